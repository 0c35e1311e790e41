//! Waking another thread, with `eventfd(2)`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys;

/// A flag that one thread raises and another waits for. Raising it often before it is cleared
/// wakes the other once.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A lowered flag.
    ///
    /// # Errors
    /// When the process is out of descriptors or memory.
    pub fn new() -> io::Result<Self> {
        sys::eventfd().map(Self)
    }

    /// Raises the flag: the descriptor is readable until [`clear`](Self::clear).
    pub fn signal(&self) {
        // The only failure is a counter at its maximum, and then the flag is raised already.
        let _ = sys::write(self.0.as_fd(), &1_u64.to_ne_bytes());
    }

    /// Lowers the flag and tells whether it was raised.
    #[must_use = "a raised flag may need an answer"]
    pub fn clear(&self) -> bool {
        sys::read(self.0.as_fd(), &mut [0; 8]).is_ok()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clears_once_however_often_it_was_raised() {
        let event = EventFd::new().unwrap();
        assert!(!event.clear());
        event.signal();
        event.signal();
        assert!(event.clear());
        assert!(!event.clear());
    }
}
