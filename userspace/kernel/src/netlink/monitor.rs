//! Following one TUN device: up, down, MTU, moved to another namespace, gone.
//!
//! The socket stays in the namespace it was opened in. When the device is moved, that namespace
//! gives a number to the new one and the socket listens to all numbered namespaces
//! (`NETLINK_LISTEN_ALL_NSID`, Linux 4.2). A socket opened *in* the other namespace would do too,
//! but it would keep that namespace alive: `ip netns del` would then neither end the namespace nor
//! the device, for as long as the daemon ran.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::codec::Message;
use super::link::{LINK_HEADER, Link, by_name, namespace_number, read_namespace_number};
use super::socket::{BUFFER, Reading, RouteSocket};
use crate::netns::{NamespaceId, NetworkNamespace};
use crate::sys::is_errno;
use crate::tun::Tun;

/// How often to ask again for a device that is not where it should be.
const FRUITLESS_QUESTIONS: u8 = 5;

/// What happened to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is up (`IFF_UP`).
    Up,
    /// It is down.
    Down,
    /// Its MTU, in bytes.
    Mtu(u32),
    /// It is in another namespace now; its state there follows.
    Moved,
    /// It was deleted. Nothing follows.
    Gone,
}

/// Where the device is, as seen from the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// Number of its namespace; none for the socket's own.
    nsid: Option<i32>,
    /// Interface index; 0 until it is known.
    index: u32,
}

/// Watches one TUN device from the namespace of the thread that made the monitor.
///
/// Readable when there may be events; then call [`next_event`](Self::next_event) until it gives
/// none. Right after creation the first events tell the state.
#[derive(Debug)]
pub struct LinkMonitor {
    socket: RouteSocket,
    buffer: Box<[u8]>,
    home: NamespaceId,
    place: Place,
    /// Sequence number of the question about the state that is under way.
    question: u32,
    mtu: Option<u32>,
    up: Option<bool>,
    /// Questions in a row that found no device.
    fruitless: u8,
    /// Messages were lost.
    overrun: bool,
    gone: bool,
    events: VecDeque<LinkEvent>,
}

/// What a message means for the device.
enum Meaning {
    Nothing,
    State(Link),
    /// It left its place: moved or deleted.
    Left,
    /// It was asked for and is not there.
    NotFound,
    /// Its namespace ended, and it with that.
    NamespaceEnded,
}

impl LinkMonitor {
    /// Starts to watch `tun`. Must be called on a thread in the namespace the daemon lives in.
    ///
    /// # Errors
    /// When netlink cannot be used, or the device is in another namespace and cannot be followed
    /// (`EPERM`).
    pub fn new(tun: &Tun) -> io::Result<Self> {
        // Joined before the state is asked for, so no change after the answer is missed.
        let socket = RouteSocket::open(&[libc::RTNLGRP_LINK, libc::RTNLGRP_NSID])?;
        let mut monitor = Self {
            socket,
            buffer: vec![0; BUFFER].into(),
            home: NetworkNamespace::current()?.id()?,
            place: Place {
                nsid: None,
                index: 0,
            },
            question: 0,
            mtu: None,
            up: None,
            fruitless: 0,
            overrun: false,
            gone: false,
            events: VecDeque::new(),
        };
        monitor.locate(tun)?;
        Ok(monitor)
    }

    /// The next event, or `None` when there is none yet.
    ///
    /// # Errors
    /// When the socket fails, or the device went to a namespace where it cannot be followed
    /// (`EPERM`). The monitor stays usable.
    pub fn next_event(&mut self, tun: &Tun) -> io::Result<Option<LinkEvent>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if self.gone || !self.take_datagram(tun)? {
                return Ok(None);
            }
        }
    }

    /// Reads one datagram; false if there was none.
    fn take_datagram(&mut self, tun: &Tun) -> io::Result<bool> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let reading = self.socket.receive(&mut buffer);
        let result = match reading {
            Ok(Reading::Datagram(datagram)) => datagram
                .messages()
                .try_for_each(|message| self.take_message(tun, datagram.nsid, &message))
                .map(|()| true),
            Ok(Reading::Overrun) => {
                self.overrun = true;
                Ok(true)
            }
            // Only now: while the queue is full an answer would be lost as well.
            Ok(Reading::Empty) if self.overrun => {
                self.overrun = false;
                self.locate(tun).map(|()| true)
            }
            Ok(Reading::Empty) => Ok(false),
            Err(error) => Err(error),
        };
        self.buffer = buffer;
        result
    }

    fn take_message(
        &mut self,
        tun: &Tun,
        nsid: Option<i32>,
        message: &Message<'_>,
    ) -> io::Result<()> {
        match self.interpret(nsid, message) {
            Meaning::Nothing => {}
            Meaning::State(link) => self.take_state(&link),
            // A rename between looking up the name and asking for it, which goes away by asking
            // again. Bounded for kernels that cannot tell where the device is.
            Meaning::NotFound if self.fruitless >= FRUITLESS_QUESTIONS => {}
            Meaning::NotFound => {
                self.fruitless += 1;
                self.locate(tun)?;
            }
            Meaning::Left => self.locate(tun)?,
            Meaning::NamespaceEnded => self.end(),
        }
        Ok(())
    }

    fn interpret(&self, nsid: Option<i32>, message: &Message<'_>) -> Meaning {
        let answer = self.socket.answers(message, self.question);
        if let Some(errno) = message.error() {
            return if answer && errno != 0 {
                Meaning::NotFound
            } else {
                Meaning::Nothing
            };
        }
        if message.kind == libc::RTM_DELNSID {
            let ended = nsid.is_none() && read_namespace_number(message) == self.place.nsid;
            return if ended && self.place.nsid.is_some() {
                Meaning::NamespaceEnded
            } else {
                Meaning::Nothing
            };
        }
        let Some(link) = Link::read(message) else {
            return Meaning::Nothing;
        };
        let here = link.index != 0
            && Place {
                nsid,
                index: link.index,
            } == self.place;
        match message.kind {
            libc::RTM_NEWLINK if answer || here => Meaning::State(link),
            libc::RTM_DELLINK if here => Meaning::Left,
            _ => Meaning::Nothing,
        }
    }

    fn take_state(&mut self, link: &Link) {
        self.place.index = link.index;
        self.fruitless = 0;
        if self.mtu.replace(link.mtu) != Some(link.mtu) {
            self.events.push_back(LinkEvent::Mtu(link.mtu));
        }
        if self.up.replace(link.up) != Some(link.up) {
            self.events.push_back(if link.up {
                LinkEvent::Up
            } else {
                LinkEvent::Down
            });
        }
    }

    /// Finds out where the device is and asks for its state.
    fn locate(&mut self, tun: &Tun) -> io::Result<()> {
        self.place.index = 0;
        let name = match tun.current_name() {
            Ok(name) => name,
            Err(error) if is_errno(&error, libc::EBADFD) => {
                self.end();
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let nsid = self.namespace_of(tun)?;
        if nsid != self.place.nsid {
            if nsid.is_some() {
                self.socket.listen_to_all_namespaces()?;
            }
            self.place.nsid = nsid;
            (self.mtu, self.up) = (None, None);
            self.events.push_back(LinkEvent::Moved);
        }
        self.question = self
            .socket
            .send(libc::RTM_GETLINK, 0, &[0; LINK_HEADER], |request| {
                by_name(request, &name, nsid)
            })?;
        Ok(())
    }

    fn namespace_of(&self, tun: &Tun) -> io::Result<Option<i32>> {
        let namespace = match tun.namespace() {
            Ok(namespace) => namespace,
            // Linux before 5.2: it cannot be followed, so it is taken to be where it was.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY)) => {
                return Ok(self.place.nsid);
            }
            Err(error) => return Err(error),
        };
        if namespace.id()? == self.home {
            return Ok(None);
        }
        namespace_number(&namespace).map(Some)
    }

    fn end(&mut self) {
        if !self.gone {
            self.gone = true;
            self.events.push_back(LinkEvent::Gone);
        }
    }
}

impl AsFd for LinkMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
