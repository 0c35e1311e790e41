//! What a thread does when a system call fails that it cannot do without.

use std::io;
use std::time::Duration;

use adit_kernel::poll::poll;

/// The first pause, and the longest: each is twice the one before.
const FIRST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(64);

/// Failures in a row after which the call will not work any more: some six seconds.
const PATIENCE: u32 = 100;

/// Failures in a row of one kind of call.
///
/// The kernel may be short of memory, or a driver fail for a moment: then the thread waits, for it would only spin, and
/// tries again. Only if that does not end is the daemon broken.
#[derive(Debug, Default)]
pub(crate) struct Setbacks {
    in_a_row: u32,
}

impl Setbacks {
    /// The call has worked.
    pub(crate) fn over(&mut self) {
        self.in_a_row = 0;
    }

    /// The call has failed: waits for a moment.
    ///
    /// # Errors
    /// The error given, if this has happened too often, or will happen whatever we do.
    pub(crate) fn after(&mut self, error: io::Error) -> io::Result<()> {
        self.in_a_row += 1;
        if self.in_a_row > PATIENCE || is_lasting(&error) {
            return Err(error);
        }
        self.pause();
        Ok(())
    }

    /// The call has failed, but the thread can do without: waits for a moment.
    pub(crate) fn endure(&mut self) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.pause();
    }

    fn pause(&self) {
        let doublings = self.in_a_row.saturating_sub(1).min(u8::BITS);
        // Failing to wait only makes the next attempt come sooner.
        let _ = poll(&mut [], Some((FIRST * 2_u32.pow(doublings)).min(LONGEST)));
    }
}

/// Whether a descriptor or an argument is wrong, which time does not mend.
fn is_lasting(error: &io::Error) -> bool {
    use libc::{EBADF, EBADFD, EFAULT, ENOTSOCK, EPERM};
    let lasting = [EBADF, EBADFD, EFAULT, ENOTSOCK, EPERM];
    error
        .raw_os_error()
        .is_none_or(|errno| lasting.contains(&errno))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn pauses_grow_and_end_with_success() {
        let mut setbacks = Setbacks::default();
        let start = Instant::now();
        for _ in 0..4 {
            let failed = setbacks.after(io::ErrorKind::OutOfMemory.into());
            // An error without an errno is none of the kernel's.
            assert!(failed.is_err());
        }
        setbacks.over();
        for _ in 0..4 {
            setbacks.after(io::Error::from_raw_os_error(12)).unwrap();
        }
        assert!(start.elapsed() >= Duration::from_millis(1 + 2 + 4 + 8));
        setbacks.over();
        assert_eq!(setbacks.in_a_row, 0);
    }

    #[test]
    fn what_does_not_end_is_told() {
        let mut setbacks = Setbacks { in_a_row: PATIENCE };
        assert!(setbacks.after(io::Error::from_raw_os_error(12)).is_err());
        let mut setbacks = Setbacks::default();
        assert!(setbacks.after(io::Error::from_raw_os_error(9)).is_err());
    }
}
