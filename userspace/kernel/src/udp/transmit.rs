//! The one call that sends, behind a seam for tests.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::address::RawAddress;
use super::cmsg::ControlBuffer;
use super::socket::{Family, UdpSocket};
use crate::poll::{Interest, PollFd, poll};
use crate::sys::{self, socket as calls};

/// Messages per call. Twice this is no faster in others' measurements, and a message that has to
/// go packet by packet has at most 64 or so.
pub(super) const BATCH: usize = 128;

/// Device queues drain in well under a millisecond; polling cannot tell when, since the socket
/// itself has room.
const QUEUE_PAUSE: Duration = Duration::from_micros(200);

/// One message for the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) to: SocketAddr,
    pub(super) source: Option<(IpAddr, u32)>,
    pub(super) ecn: u8,
    /// Have `data` cut into datagrams of this many bytes.
    pub(super) segment_size: Option<u16>,
    pub(super) data: &'a [u8],
}

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shortage {
    /// Send buffer of the socket (`EAGAIN`): polling tells when there is some again.
    Buffer,
    /// Anything else (`ENOBUFS`: a device queue).
    Queue,
}

/// The kernel, as seen by the sending side.
pub(super) trait Transmitter {
    /// Sends a prefix of `entries`, at least one, or tells why the first cannot be sent. With `probe`,
    /// where that is to be had, routers may not fragment them.
    fn transmit(&mut self, entries: &[Entry<'_>], probe: bool) -> io::Result<usize>;
    /// Family of the destinations it takes.
    fn family(&self) -> Family;
    /// Whether routers can be forbidden to fragment.
    fn can_probe(&self) -> bool {
        true
    }
    /// Whether it cuts up messages.
    fn gso(&self) -> bool;
    /// Whether it cuts up correctly what leaves no shorter rest.
    fn equal_tail(&self) -> bool {
        true
    }
    /// Never ask it to again.
    fn disable_gso(&mut self);
    /// Waits, at most for `limit`.
    fn wait(&mut self, shortage: Shortage, limit: Duration);
    /// The time.
    fn now(&self) -> Instant;
}

/// Storage for the headers of one call.
pub(super) struct Headers {
    addresses: Box<[RawAddress]>,
    controls: Box<[ControlBuffer]>,
    vectors: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: the raw pointers point into the other fields or at data of a call that has ended; they
// are written anew before each use.
unsafe impl Send for Headers {}

impl Headers {
    pub(super) fn new() -> Self {
        let vector = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let header = libc::mmsghdr {
            msg_hdr: calls::empty_header(),
            msg_len: 0,
        };
        Self {
            addresses: vec![RawAddress::EMPTY; BATCH].into(),
            controls: vec![ControlBuffer::EMPTY; BATCH].into(),
            vectors: vec![vector; BATCH].into(),
            headers: vec![header; BATCH].into(),
        }
    }

    /// Describes `entries` and returns how many fit.
    fn fill(&mut self, entries: &[Entry<'_>]) -> usize {
        let names = self.addresses.iter_mut().zip(&mut self.controls);
        let slots = self.headers.iter_mut().zip(names.zip(&mut self.vectors));
        for (entry, (header, ((address, control), vector))) in entries.iter().zip(slots) {
            *address = RawAddress::new(&entry.to);
            control.clear();
            if let Some((source, interface)) = entry.source {
                control.push_source(source, interface);
            }
            if entry.ecn != 0 {
                control.push_ecn(entry.ecn & 3, entry.to.is_ipv4());
            }
            if let Some(size) = entry.segment_size {
                control.push_segment_size(size);
            }
            vector.iov_base = entry.data.as_ptr().cast_mut().cast();
            vector.iov_len = entry.data.len();

            let (name, options) = (address.as_bytes(), control.as_bytes());
            let header = &mut header.msg_hdr;
            header.msg_name = name.as_ptr().cast_mut().cast();
            header.msg_namelen = sys::length(name.len());
            header.msg_iov = std::ptr::from_mut(vector);
            header.msg_iovlen = 1;
            header.msg_controllen = options.len();
            // A pointer without a length would do, but not on the eyes of whoever traces the calls.
            header.msg_control = if options.is_empty() {
                std::ptr::null_mut()
            } else {
                options.as_ptr().cast_mut().cast()
            };
            header.msg_flags = 0;
        }
        entries.len().min(BATCH)
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Headers").finish_non_exhaustive()
    }
}

/// The real one.
#[derive(Debug)]
pub(super) struct Kernel<'a> {
    pub(super) socket: &'a UdpSocket,
    pub(super) headers: &'a mut Headers,
}

impl Transmitter for Kernel<'_> {
    fn transmit(&mut self, entries: &[Entry<'_>], probe: bool) -> io::Result<usize> {
        let count = self.headers.fill(entries);
        let headers = &mut self.headers.headers[..count];
        let forbidden = probe && self.socket.forbid_fragments(true);
        // SAFETY: `fill` has just pointed each of these at storage of `self.headers` and at the
        // data of an entry, all borrowed until the call returns, with their true lengths.
        let sent = unsafe { calls::send_many(self.socket.as_fd(), headers) };
        if forbidden {
            self.socket.forbid_fragments(false);
        }
        sent
    }

    fn family(&self) -> Family {
        self.socket.family()
    }

    fn can_probe(&self) -> bool {
        self.socket.can_probe()
    }

    fn gso(&self) -> bool {
        self.socket.gso()
    }

    fn equal_tail(&self) -> bool {
        self.socket.equal_tail()
    }

    fn disable_gso(&mut self) {
        self.socket.disable_gso();
    }

    fn wait(&mut self, shortage: Shortage, limit: Duration) {
        // Failing to wait only makes the next attempt come sooner.
        let _ = match shortage {
            Shortage::Buffer => {
                let mut fds = [PollFd::new(self.socket.as_fd(), Interest::Write)];
                poll(&mut fds, Some(limit))
            }
            Shortage::Queue => poll(&mut [], Some(limit.min(QUEUE_PAUSE))),
        };
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry<'a>(to: &str, source: Option<&str>, ecn: u8, data: &'a [u8]) -> Entry<'a> {
        let source = source.map(|source| (source.parse().unwrap(), 9));
        Entry {
            to: to.parse().unwrap(),
            source,
            ecn,
            segment_size: None,
            data,
        }
    }

    /// What the kernel would read from the first slot.
    fn described(headers: &Headers) -> (Vec<u8>, Vec<u8>, usize, usize) {
        let header = &headers.headers[0].msg_hdr;
        (
            headers.addresses[0].as_bytes().to_vec(),
            headers.controls[0].as_bytes().to_vec(),
            header.msg_namelen as usize,
            header.msg_controllen,
        )
    }

    /// wireguard-go bug (c) and 6901984: whatever a slot was used for before, it describes the
    /// next message as a fresh one would.
    #[test]
    fn slots_carry_nothing_over_from_their_last_use() {
        let full = Entry {
            segment_size: Some(1400),
            ..entry("255.255.255.255:65535", Some("255.255.255.255"), 3, b"x")
        };
        let bare = entry("[2001:db8::1]:1", None, 0, b"yy");
        let other = entry("[2001:db8::1]:1", Some("fe80::1"), 1, b"yy");
        for next in [bare, other, full] {
            let (mut used, mut fresh) = (Headers::new(), Headers::new());
            used.fill(&[full]);
            used.fill(&[next]);
            fresh.fill(&[next]);
            assert_eq!(described(&used), described(&fresh));
        }
        let mut headers = Headers::new();
        headers.fill(&[full]);
        headers.fill(&[bare]);
        assert_eq!(described(&headers).3, 0);
        assert!(headers.headers[0].msg_hdr.msg_control.is_null());
    }
}
