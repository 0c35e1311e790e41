//! Waiting for a set of descriptors that seldom changes, with `epoll(7)`.
//!
//! Unlike `ppoll(2)`, a wait does not visit every descriptor on its way to sleep and back: what a
//! wake-up costs does not depend on how many are waited for.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::sys;

/// Descriptors that can be reported by one wait; the others are by the next.
const EVENTS: usize = 32;

/// A set of descriptors to wait for until data can be read from them.
///
/// It does not keep them open: one that is closed leaves the set.
pub struct ReadSet {
    epoll: OwnedFd,
    events: [libc::epoll_event; EVENTS],
}

/// A descriptor that has something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The token it was added with.
    pub token: u64,
    /// An error or a hang-up: for a TUN or an AF_XDP socket, that it is gone.
    pub failed: bool,
}

impl ReadSet {
    /// An empty set.
    ///
    /// # Errors
    /// When the process is out of descriptors or memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: sys::epoll()?,
            events: [libc::epoll_event { events: 0, u64: 0 }; EVENTS],
        })
    }

    /// Reports `fd` as `token` whenever a read would not block: there is data, or an error or end
    /// to be read.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`: the descriptor is in the set already, or cannot be waited for.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let event = libc::epoll_event {
            events: libc::EPOLLIN.unsigned_abs(),
            u64: token,
        };
        sys::epoll_add(&self.epoll, fd, event)
    }

    /// Waits until some are ready or `timeout` has passed (`None`: no limit; otherwise in
    /// milliseconds, rounded up). None may be ready after a signal, too.
    ///
    /// # Errors
    /// As `epoll_wait(2)`. A signal is not an error.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
    ) -> io::Result<impl Iterator<Item = Ready> + '_> {
        let timeout = timeout.map_or(-1, |limit| {
            let milliseconds = limit.as_nanos().div_ceil(1_000_000);
            i32::try_from(milliseconds).unwrap_or(i32::MAX)
        });
        let count = match sys::epoll_wait(&self.epoll, &mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        let failed = (libc::EPOLLERR | libc::EPOLLHUP).unsigned_abs();
        Ok(self.events[..count].iter().map(move |event| Ready {
            token: event.u64,
            failed: event.events & failed != 0,
        }))
    }
}

impl fmt::Debug for ReadSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadSet")
            .field("epoll", &self.epoll)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::event::EventFd;

    fn ready(set: &mut ReadSet) -> Vec<Ready> {
        set.wait(None).unwrap().collect()
    }

    #[test]
    fn reports_only_the_descriptor_that_is_ready_until_it_is_read() {
        let (quiet, loud) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let mut set = ReadSet::new().unwrap();
        set.add(quiet.as_fd(), 1).unwrap();
        set.add(loud.as_fd(), u64::MAX).unwrap();
        loud.signal();
        let expected = [Ready {
            token: u64::MAX,
            failed: false,
        }];
        assert_eq!(ready(&mut set), expected);
        assert_eq!(ready(&mut set), expected);
        assert!(loud.clear());
        quiet.signal();
        assert_eq!(ready(&mut set)[0].token, 1);
    }

    #[test]
    fn a_hang_up_is_reported_without_data() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut set = ReadSet::new().unwrap();
        set.add(near.as_fd(), 3).unwrap();
        (&far).write_all(b"x").unwrap();
        assert!(!ready(&mut set)[0].failed);
        drop(far);
        let expected = [Ready {
            token: 3,
            failed: true,
        }];
        assert_eq!(ready(&mut set), expected);
    }

    #[test]
    fn a_closed_descriptor_leaves_the_set() {
        let (gone, there) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let mut set = ReadSet::new().unwrap();
        set.add(gone.as_fd(), 1).unwrap();
        set.add(there.as_fd(), 2).unwrap();
        gone.signal();
        there.signal();
        drop(gone);
        assert!(ready(&mut set).iter().all(|ready| ready.token == 2));
    }

    #[test]
    fn times_out_with_nothing_ready() {
        let quiet = EventFd::new().unwrap();
        let mut set = ReadSet::new().unwrap();
        set.add(quiet.as_fd(), 1).unwrap();
        let limit = Some(Duration::from_micros(1));
        assert_eq!(set.wait(limit).unwrap().count(), 0);
    }

    #[test]
    fn adding_twice_is_an_error() {
        let event = EventFd::new().unwrap();
        let set = ReadSet::new().unwrap();
        set.add(event.as_fd(), 1).unwrap();
        let error = set.add(event.as_fd(), 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
}
