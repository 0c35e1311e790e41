//! One rtnetlink socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::codec::{Message, Messages, Request};
use crate::poll::{Interest, PollFd, poll};
use crate::sys::{is_errno, narrow, socket};

/// Length of `struct sockaddr_nl`.
const ADDRESS: usize = 12;
/// `NETLINK_LISTEN_ALL_NSID`, an option and a control message of level `SOL_NETLINK`.
const LISTEN_ALL_NSID: i32 = 8;
/// Space for one control message that holds an `int`: a 16-byte header and the padded value.
const CONTROL: usize = 24;
/// As iproute2 uses: the kernel makes no larger rtnetlink datagram.
pub(super) const BUFFER: usize = 32 * 1024;
/// Answers are queued before the request returns, so this only bounds the impossible.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A non-blocking rtnetlink socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct RouteSocket {
    fd: OwnedFd,
    port: u32,
    sequence: u32,
}

/// One datagram from the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram<'a> {
    bytes: &'a [u8],
    /// The namespace it is about, as this socket's namespace numbers it; none for its own.
    pub(super) nsid: Option<i32>,
}

impl<'a> Datagram<'a> {
    pub(super) fn messages(&self) -> Messages<'a> {
        Messages(self.bytes)
    }
}

/// What a read gave.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reading<'a> {
    /// Messages.
    Datagram(Datagram<'a>),
    /// Messages were lost: what is known has to be asked for again.
    Overrun,
    /// Nothing there.
    Empty,
}

impl RouteSocket {
    pub(super) fn open(groups: &[u32]) -> io::Result<Self> {
        let fd = socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
        // Family, padding, port (0: the kernel picks), groups (joined one by one below).
        let mut address = [0; ADDRESS];
        address[..2].copy_from_slice(&narrow(libc::AF_NETLINK).to_ne_bytes());
        socket::bind(fd.as_fd(), &address)?;
        socket::local_address(fd.as_fd(), &mut address)?;
        let [.., a, b, c, d, _, _, _, _] = address;
        for &group in groups {
            let group = i32::try_from(group).unwrap_or(0);
            socket::set_option(
                fd.as_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                group,
            )?;
        }
        Ok(Self {
            fd,
            port: u32::from_ne_bytes([a, b, c, d]),
            sequence: 0,
        })
    }

    /// Also receive notifications from other namespaces, as far as this one has numbers for them.
    pub(super) fn listen_to_all_namespaces(&self) -> io::Result<()> {
        socket::set_option(self.fd.as_fd(), libc::SOL_NETLINK, LISTEN_ALL_NSID, 1)
    }

    /// Sends a request and returns the sequence number its answer will have.
    pub(super) fn send(
        &mut self,
        kind: u16,
        flags: i32,
        body: &[u8],
        fill: impl FnOnce(Request) -> Request,
    ) -> io::Result<u32> {
        // Zero is what notifications carry.
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let flags = u16::try_from(libc::NLM_F_REQUEST | flags).unwrap_or(0);
        let request = fill(Request::new(kind, flags, self.sequence, body));
        socket::send(self.fd.as_fd(), &request.into_bytes())?;
        Ok(self.sequence)
    }

    /// Whether `message` is the answer to request `sequence` of this socket.
    pub(super) fn answers(&self, message: &Message<'_>, sequence: u32) -> bool {
        message.sequence == sequence && message.port == self.port
    }

    pub(super) fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Reading<'a>> {
        loop {
            let mut control = ControlBuffer([0; CONTROL]);
            let mut sender = [0; ADDRESS];
            let lengths =
                match socket::receive(self.fd.as_fd(), buffer, &mut control.0, &mut sender) {
                    Ok(lengths) => lengths,
                    Err(error) => match error.raw_os_error() {
                        Some(libc::EINTR) => continue,
                        Some(libc::EAGAIN) => return Ok(Reading::Empty),
                        Some(libc::ENOBUFS) => return Ok(Reading::Overrun),
                        _ => return Err(error),
                    },
                };
            // Port 0 is the kernel; another process has no business here.
            if lengths.address != ADDRESS || sender[4..8] != [0; 4] {
                continue;
            }
            if lengths.flags & libc::MSG_TRUNC != 0 {
                return Ok(Reading::Overrun);
            }
            let nsid = read_nsid(&control.0[..lengths.control]);
            let bytes = &buffer[..lengths.data];
            return Ok(Reading::Datagram(Datagram { bytes, nsid }));
        }
    }

    /// Sends a request and returns its answer as made by `read`; for sockets without groups.
    pub(super) fn ask<T>(
        kind: u16,
        flags: i32,
        body: &[u8],
        fill: impl FnOnce(Request) -> Request,
        mut read: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> io::Result<T> {
        let mut socket = Self::open(&[])?;
        let sequence = socket.send(kind, flags, body, fill)?;
        let mut buffer = vec![0; BUFFER];
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            match socket.receive(&mut buffer)? {
                Reading::Datagram(datagram) => {
                    for message in datagram.messages() {
                        if !socket.answers(&message, sequence) {
                            continue;
                        }
                        if let Some(errno) = message.error().filter(|errno| *errno != 0) {
                            return Err(io::Error::from_raw_os_error(errno));
                        }
                        if let Some(answer) = read(&message) {
                            return Ok(answer);
                        }
                    }
                }
                Reading::Overrun => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
                Reading::Empty => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let mut fds = [PollFd::new(socket.as_fd(), Interest::Read)];
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    poll(&mut fds, Some(left))?;
                }
            }
        }
    }
}

impl RouteSocket {
    /// Asks for everything of a kind and returns what `read` makes of the answers.
    pub(super) fn dump<T>(
        kind: u16,
        body: &[u8],
        mut read: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut all = Vec::new();
        Self::ask(
            kind,
            libc::NLM_F_DUMP,
            body,
            |request| request,
            |message| {
                if i32::from(message.kind) == libc::NLMSG_DONE {
                    return Some(());
                }
                all.extend(read(message));
                None
            },
        )?;
        Ok(all)
    }
}

impl AsFd for RouteSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `cmsghdr` wants the alignment of `size_t`.
#[repr(align(8))]
struct ControlBuffer([u8; CONTROL]);

/// Reads the one control message that was asked for.
fn read_nsid(control: &[u8]) -> Option<i32> {
    let word = |at: usize| -> Option<i32> {
        control
            .get(at..)?
            .first_chunk()
            .copied()
            .map(i32::from_ne_bytes)
    };
    // struct cmsghdr: length (8 bytes on 64-bit machines), level, type, value.
    let header = size_of::<libc::cmsghdr>();
    let ours = word(header - 8)? == libc::SOL_NETLINK && word(header - 4)? == LISTEN_ALL_NSID;
    ours.then(|| word(header)).flatten()
}

/// The answers that mean "there is no such thing" rather than "the question failed".
pub(super) fn none_if<T>(result: io::Result<T>, errnos: &[i32]) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if errnos.iter().any(|errno| is_errno(&error, *errno)) => Ok(None),
        Err(error) => Err(error),
    }
}
