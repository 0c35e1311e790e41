//! Sockets for several threads on one port: `SO_REUSEPORT`, `net/core/sock_reuseport.c`.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use super::{Family, UdpError, UdpOptions, UdpSocket, UdpSockets};
use crate::bpf::SocketFilter;

/// One pair of sockets per receiving thread, all on one port.
///
/// The kernel chooses among them by a hash of both addresses and ports, so what one peer sends
/// stays with one of them, and in order. A group of one does not share its port.
#[derive(Debug)]
pub struct UdpGroup {
    first: UdpSockets,
    others: Box<[UdpSockets]>,
    filter: Option<SocketFilter>,
    drops: Mutex<Drops>,
}

/// Datagrams dropped for want of room, as the kernel's counts, which wrap, are read now and then.
#[derive(Debug, Default)]
struct Drops {
    read: u32,
    total: u64,
}

impl UdpGroup {
    fn new(first: UdpSockets, others: Box<[UdpSockets]>) -> Self {
        let group = Self {
            first,
            others,
            filter: None,
            drops: Mutex::default(),
        };
        group.begin_counting();
        group
    }

    /// Opens `count` pairs, at least one; `port` 0 picks one that is free in both families.
    ///
    /// # Errors
    /// See [`UdpError`]. A port that anybody has, another group included, is in use.
    pub fn bind(port: u16, options: &UdpOptions, count: usize) -> Result<Self, UdpError> {
        let first = UdpSockets::bind(port, options)?;
        let mut others = Vec::new();
        if count > 1 {
            let failed = |error| UdpError::new("share a UDP port", error);
            first
                .iter()
                .try_for_each(UdpSocket::share)
                .map_err(failed)?;
            let join = |socket: &Option<UdpSocket>| {
                let joined = socket.as_ref().map(|socket| socket.join(options));
                joined.transpose().map_err(failed)
            };
            for _ in 1..count {
                others.push(UdpSockets {
                    v4: join(&first.v4)?,
                    v6: join(&first.v6)?,
                });
            }
        }
        Ok(Self::new(first, others.into()))
    }

    /// Takes over the sockets of a group that another process had, in the order of
    /// [`descriptors`](Self::descriptors); `None` if there are none. What waits in them is kept.
    ///
    /// # Errors
    /// See [`UdpError`].
    pub fn inherited(
        descriptors: Vec<OwnedFd>,
        options: &UdpOptions,
    ) -> Result<Option<Self>, UdpError> {
        let mut members: Vec<UdpSockets> = Vec::new();
        for descriptor in descriptors {
            let socket = UdpSocket::inherited(descriptor, options)
                .map_err(|error| UdpError::new("take over a UDP socket", error))?;
            match (socket.family(), members.last_mut()) {
                // A member's IPv4 socket comes first, if it has one.
                (Family::V6, Some(member)) if member.v6.is_none() => member.v6 = Some(socket),
                (Family::V6, _) => members.push(UdpSockets {
                    v4: None,
                    v6: Some(socket),
                }),
                (Family::V4, _) => members.push(UdpSockets {
                    v4: Some(socket),
                    v6: None,
                }),
            }
        }
        let mut members = members.into_iter();
        Ok(members
            .next()
            .map(|first| Self::new(first, members.collect())))
    }

    /// All sockets, to be passed to another process.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets().map(UdpSocket::as_fd)
    }

    fn sockets(&self) -> impl Iterator<Item = &UdpSocket> {
        let members = std::iter::once(&self.first).chain(&self.others);
        members.flat_map(UdpSockets::iter)
    }

    /// Chooses the filter for all sockets, or none. It is in front of them when it is [put on](Self::put_filter_on).
    pub fn set_filter(&mut self, filter: Option<SocketFilter>) {
        self.filter = filter;
        self.begin_counting();
    }

    /// Puts the chosen filter in front of all sockets, in the place of any that another process may have put there. If there is
    /// none, takes off what they have.
    ///
    /// # Errors
    /// As `setsockopt(2)`; none of them has a filter then.
    pub fn put_filter_on(&self) -> io::Result<()> {
        let Some(filter) = &self.filter else {
            self.take_filter_off();
            return Ok(());
        };
        let attached = self
            .sockets()
            .try_for_each(|socket| filter.attach(socket.as_fd()));
        self.begin_counting();
        attached.inspect_err(|_| self.take_filter_off())
    }

    /// Lets everything through.
    pub fn take_filter_off(&self) {
        for socket in self.sockets() {
            SocketFilter::detach(socket.as_fd());
        }
        self.begin_counting();
    }

    /// The sockets of thread `index`; those of the first for a thread that has none of its own.
    #[must_use]
    pub fn member(&self, index: usize) -> &UdpSockets {
        let other = index.checked_sub(1).and_then(|at| self.others.get(at));
        other.unwrap_or(&self.first)
    }

    /// Datagrams that the kernel dropped for want of room in the receive buffers, since the sockets were opened or taken over.
    /// To be asked before it has dropped 2^31 more, filtered ones included.
    #[must_use]
    pub fn receive_drops(&self) -> u64 {
        let mut drops = self.drops.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.read_drops();
        let more = read.wrapping_sub(drops.read);
        // What the filter drops between the two readings is subtracted and not counted yet.
        if more.cast_signed() > 0 {
            drops.read = read;
            drops.total += u64::from(more);
        }
        drops.total
    }

    /// Whatever was dropped since the last reading may have been dropped by another filter.
    fn begin_counting(&self) {
        let mut drops = self.drops.lock().unwrap_or_else(PoisonError::into_inner);
        drops.read = self.read_drops();
    }

    /// What the kernel has counted, less what the filter has dropped, modulo 2^32.
    fn read_drops(&self) -> u32 {
        let counts = self
            .sockets()
            .map(|socket| socket.receive_drops().unwrap_or(0));
        let all = counts.fold(0, u32::wrapping_add);
        let filter = self.filter.as_ref();
        let filtered = filter.and_then(|filter| filter.dropped().ok()).unwrap_or(0);
        let filtered = u32::try_from(filtered % (1 << 32)).unwrap_or(0);
        all.wrapping_sub(filtered)
    }

    /// The port of all.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.first.port()
    }

    /// Changes the firewall mark of all; 0 removes it.
    ///
    /// # Errors
    /// [`UdpError::Permission`] without `CAP_NET_ADMIN`.
    pub fn set_fwmark(&self, mark: u32) -> Result<(), UdpError> {
        self.first.set_fwmark(mark)?;
        self.others
            .iter()
            .try_for_each(|sockets| sockets.set_fwmark(mark))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::UdpSocket as StdSocket;
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use super::*;
    use crate::poll::{Interest, PollFd, poll};
    use crate::udp::RecvBatch;

    #[test]
    fn what_finds_no_room_is_counted() {
        let options = UdpOptions {
            receive_buffer: 2048,
            ..UdpOptions::default()
        };
        let group = UdpGroup::bind(0, &options, 1).unwrap();
        assert_eq!(group.receive_drops(), 0);
        let sender = StdSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            let sent = sender.send_to(&[0; 1000], ("127.0.0.1", group.port()));
            assert_eq!(sent.unwrap(), 1000);
        }
        let drops = group.receive_drops();
        assert!((1..100).contains(&drops), "{drops}");
    }

    #[test]
    fn a_port_is_shared_within_a_group_and_with_nobody_else() {
        let options = UdpOptions::default();
        for count in [1, 3] {
            let group = UdpGroup::bind(0, &options, count).unwrap();
            for index in 0..count {
                let ports: BTreeSet<u16> =
                    group.member(index).iter().map(UdpSocket::port).collect();
                assert!(ports.iter().eq([&group.port()]), "{ports:?}");
            }
            for others in [1, 3] {
                let error = UdpGroup::bind(group.port(), &options, others).unwrap_err();
                assert!(matches!(error, UdpError::PortInUse { .. }), "{error:?}");
            }
        }
    }

    #[test]
    fn a_group_goes_on_in_other_hands_with_what_waits_in_it() {
        let options = UdpOptions::default();
        for count in [1, 3] {
            let group = UdpGroup::bind(0, &options, count).unwrap();
            let sender = StdSocket::bind("127.0.0.1:0").unwrap();
            sender
                .send_to(b"early", ("127.0.0.1", group.port()))
                .unwrap();
            let copies = group.descriptors().map(|fd| fd.try_clone_to_owned());
            let copies: Vec<OwnedFd> = copies.collect::<Result<_, _>>().unwrap();
            let before: Vec<_> = (0..count)
                .map(|at| group.member(at).iter().count())
                .collect();
            let other = UdpOptions {
                gro: false,
                ..options
            };
            let heir = UdpGroup::inherited(copies, &other).unwrap().unwrap();
            assert_eq!(heir.port(), group.port());
            drop(group);
            let after: Vec<_> = (0..count)
                .map(|at| heir.member(at).iter().count())
                .collect();
            assert_eq!(before, after);
            let mut batch = RecvBatch::new(1);
            let received = (0..count).any(|at| {
                let socket = heir.member(at).v4.as_ref().unwrap();
                assert!(!socket.gro());
                batch.recv(socket).is_ok()
            });
            assert!(received);
        }
        assert!(UdpGroup::inherited(Vec::new(), &options).unwrap().is_none());
        let (pipe, _) = std::io::pipe().unwrap();
        assert!(UdpGroup::inherited(vec![pipe.into()], &options).is_err());
    }

    #[test]
    fn senders_are_spread_and_each_stays_with_one_member_in_order() {
        const MEMBERS: usize = 4;
        const SENDERS: u8 = 64;
        const EACH: u8 = 5;
        let group = UdpGroup::bind(0, &UdpOptions::default(), MEMBERS).unwrap();
        let senders: Vec<StdSocket> = (0..SENDERS)
            .map(|_| StdSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        for number in 0..EACH {
            for (sender, socket) in (0..SENDERS).zip(&senders) {
                let to = ("127.0.0.1", group.port());
                socket.send_to(&[sender, number], to).unwrap();
            }
        }
        let mut batch = RecvBatch::new(16);
        let mut seen: Vec<Vec<u8>> = vec![Vec::new(); SENDERS.into()];
        let mut members_used = 0;
        for index in 0..MEMBERS {
            let socket = group.member(index).v4.as_ref().unwrap();
            let mut senders_here = BTreeSet::new();
            let mut wait = [PollFd::new(socket.as_fd(), Interest::Read)];
            poll(&mut wait, Some(Duration::from_millis(200))).unwrap();
            while batch.recv(socket).is_ok() {
                for message in batch.messages() {
                    for datagram in message.data.chunks(message.segment_size) {
                        assert!(seen[usize::from(datagram[0])].len() == usize::from(datagram[1]));
                        seen[usize::from(datagram[0])].push(datagram[1]);
                        senders_here.insert(datagram[0]);
                    }
                }
            }
            members_used += usize::from(!senders_here.is_empty());
            let complete = |sender: &u8| seen[usize::from(*sender)].len() == usize::from(EACH);
            assert!(senders_here.iter().all(complete), "split between members");
        }
        assert!(members_used >= 2);
        assert!(
            seen.iter()
                .all(|numbers| numbers.len() == usize::from(EACH))
        );
    }
}
