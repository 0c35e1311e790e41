//! Waiting for several descriptors at once, with `ppoll(2)`.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use crate::sys;

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Data to read.
    Read,
    /// Room to write.
    Write,
    /// Either.
    ReadWrite,
}

/// One descriptor to wait for, and what became of it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct PollFd<'fd> {
    entry: libc::pollfd,
    borrow: PhantomData<BorrowedFd<'fd>>,
}

impl<'fd> PollFd<'fd> {
    /// Waits for `interest` on `fd`. Errors and hang-ups are always reported.
    #[must_use]
    pub fn new(fd: BorrowedFd<'fd>, interest: Interest) -> Self {
        let events = match interest {
            Interest::Read => libc::POLLIN,
            Interest::Write => libc::POLLOUT,
            Interest::ReadWrite => libc::POLLIN | libc::POLLOUT,
        };
        let entry = libc::pollfd {
            fd: fd.as_raw_fd(),
            events,
            revents: 0,
        };
        Self {
            entry,
            borrow: PhantomData,
        }
    }

    /// Whether a read would not block: there is data, or an error or end to be read.
    ///
    /// Error and hang-up count, because a loop that waits for "readable" alone spins forever once
    /// only they are left.
    #[must_use]
    pub fn readable(&self) -> bool {
        self.entry.revents & (libc::POLLIN | libc::POLLERR | libc::POLLHUP) != 0
    }

    /// Whether a write would not block.
    #[must_use]
    pub fn writable(&self) -> bool {
        self.entry.revents & (libc::POLLOUT | libc::POLLERR) != 0
    }

    /// Whether the descriptor failed, was hung up or is not open: for a TUN, that the device is
    /// gone.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.entry.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0
    }
}

/// Waits until one of `fds` is ready or `timeout` has passed (`None`: no limit) and returns how
/// many are ready.
///
/// # Errors
/// As `ppoll(2)`. A signal is not an error: it ends the wait with 0.
pub fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    for fd in &mut *fds {
        fd.entry.revents = 0;
    }
    let entries = std::ptr::from_mut(fds);
    // SAFETY: `PollFd` is transparent over `pollfd`, and the slice stays exclusively borrowed.
    let entries = unsafe { &mut *(entries as *mut [libc::pollfd]) };
    match sys::ppoll(entries, timeout) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventFd;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn reports_only_the_descriptor_that_is_ready() {
        let (quiet, loud) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        loud.signal();
        let mut fds = [
            PollFd::new(quiet.as_fd(), Interest::Read),
            PollFd::new(loud.as_fd(), Interest::Read),
        ];
        assert_eq!(poll(&mut fds, None).unwrap(), 1);
        assert!(!fds[0].readable());
        assert!(fds[1].readable() && !fds[1].failed());
    }

    #[test]
    fn times_out_with_nothing_ready() {
        let quiet = EventFd::new().unwrap();
        let mut fds = [PollFd::new(quiet.as_fd(), Interest::Read)];
        assert_eq!(poll(&mut fds, Some(Duration::from_millis(1))).unwrap(), 0);
        assert!(!fds[0].readable());
    }

    /// wireguard-go 436f7fd: a hang-up without data must not be lost.
    #[test]
    fn hang_up_is_reported_as_readable_and_failed() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"x").unwrap();
        drop(far);
        let mut fds = [PollFd::new(near.as_fd(), Interest::Read)];
        assert_eq!(poll(&mut fds, None).unwrap(), 1);
        assert!(fds[0].readable() && fds[0].failed());
    }
}
