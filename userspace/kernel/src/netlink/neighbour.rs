//! Neighbours: the Ethernet addresses that IP addresses on a link have, as the kernel has learnt them
//! (ARP, RFC 826; neighbour discovery, RFC 4861).
//!
//! The kernel confirms an entry when a packet is sent by it. Whoever builds Ethernet headers himself
//! has to ask for that ([`confirm_neighbour`]), or a neighbour that moves is never noticed.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use super::codec::{Message, read_u32};
use super::socket::{BUFFER, Reading, RouteSocket, none_if};

/// Length of `struct ndmsg`.
const NEIGHBOUR_HEADER: usize = 12;
/// `NDA_DST` and `NDA_LLADDR` of linux/neighbour.h.
const DESTINATION: u16 = 1;
const LINK_ADDRESS: u16 = 2;
/// `NTF_USE`: as if a packet were sent.
const USE: u8 = 1;
/// `NTF_PROXY`: an address that this host answers for.
const PROXY: u8 = 8;
/// More changes than this at once are left for the next wake-up.
const READS_PER_CALL: usize = 64;

/// How sure the kernel is that a neighbour is where it was (`NUD_…`, RFC 4861 section 7.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// Set by an administrator; never to be confirmed.
    Permanent,
    /// Confirmed of late.
    Reachable,
    /// Not confirmed for a while, and nobody asks.
    Stale,
    /// Being asked; what is known is good until there is no answer.
    Probing,
    /// Not known: never answered, or not any more.
    Unknown,
}

impl Reachability {
    /// Whether packets may go to the address that is known.
    #[must_use]
    pub fn is_usable(self) -> bool {
        self != Self::Unknown
    }

    fn new(state: u16) -> Self {
        match state {
            libc::NUD_PERMANENT => Self::Permanent,
            libc::NUD_REACHABLE => Self::Reachable,
            libc::NUD_STALE => Self::Stale,
            libc::NUD_DELAY | libc::NUD_PROBE => Self::Probing,
            // Also NUD_NOARP: a link without Ethernet addresses to resolve.
            _ => Self::Unknown,
        }
    }
}

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the interface it is behind.
    pub interface: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its Ethernet address, as far as one is known.
    pub ethernet: Option<[u8; 6]>,
    /// Whether that still holds. [`Reachability::Unknown`] without an Ethernet address.
    pub reachability: Reachability,
}

impl Neighbour {
    /// Reads an `RTM_NEWNEIGH` or `RTM_DELNEIGH`; `None` for what is no IP neighbour.
    fn read(message: &Message<'_>) -> Option<Self> {
        if message.kind != libc::RTM_NEWNEIGH && message.kind != libc::RTM_DELNEIGH {
            return None;
        }
        // struct ndmsg: family, padding (3), index (4), state (2), flags, type.
        let (header, attributes) = message.body(NEIGHBOUR_HEADER)?;
        let bytes = attributes.value_of(DESTINATION)?;
        // Bridges announce what they learn in a family of their own.
        let address = match i32::from(header[0]) {
            libc::AF_INET => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
            libc::AF_INET6 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
            _ => return None,
        };
        if header[10] & PROXY != 0 {
            return None;
        }
        let ethernet = attributes
            .value_of(LINK_ADDRESS)
            .and_then(|bytes| <[u8; 6]>::try_from(bytes).ok())
            .filter(|_| message.kind == libc::RTM_NEWNEIGH);
        let reachability = match ethernet {
            Some(_) => Reachability::new(u16::from_ne_bytes([header[8], header[9]])),
            None => Reachability::Unknown,
        };
        Some(Self {
            interface: read_u32(&header[4..])?,
            address,
            ethernet,
            reachability,
        })
    }
}

/// A request's header.
fn header(interface: u32, address: IpAddr, flags: u8) -> [u8; NEIGHBOUR_HEADER] {
    let mut header = [0; NEIGHBOUR_HEADER];
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    header[0] = u8::try_from(family).unwrap_or(0);
    header[4..8].copy_from_slice(&interface.to_ne_bytes());
    header[10] = flags;
    header
}

/// What the kernel knows of `address` behind `interface`, in the namespace of the calling thread. An
/// entry that does not exist is `None`.
///
/// # Errors
/// When netlink cannot be used; `EOPNOTSUPP` before Linux 5.0.
pub fn neighbour(interface: u32, address: IpAddr) -> io::Result<Option<Neighbour>> {
    let answer = RouteSocket::ask(
        libc::RTM_GETNEIGH,
        0,
        &header(interface, address, 0),
        |request| super::route::address(request, DESTINATION, address),
        Neighbour::read,
    );
    none_if(answer, &[libc::ENOENT, libc::ENODEV])
}

/// Has the kernel find out whether a neighbour whose entry is stale is still there, as it does when a
/// packet of its own is sent. False if there is no such entry.
///
/// Not for permanent entries, which some kernels would make ordinary ones.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`; when netlink cannot be used.
pub fn confirm_neighbour(interface: u32, address: IpAddr) -> io::Result<bool> {
    let answer = RouteSocket::ask(
        libc::RTM_NEWNEIGH,
        libc::NLM_F_ACK,
        &header(interface, address, USE),
        |request| super::route::address(request, DESTINATION, address),
        |message| message.error().map(drop),
    );
    none_if(answer, &[libc::ENOENT, libc::ENODEV]).map(|answer| answer.is_some())
}

/// What a [`NeighbourMonitor`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourChange {
    /// This is so now; an entry that was deleted is [`Reachability::Unknown`].
    Is(Neighbour),
    /// Messages were lost: anything may have changed.
    Lost,
}

/// Tells what changes in the neighbour tables of the namespace of the thread that made it.
#[derive(Debug)]
pub struct NeighbourMonitor {
    socket: RouteSocket,
    buffer: Box<[u8]>,
}

impl NeighbourMonitor {
    /// Starts to watch.
    ///
    /// # Errors
    /// When netlink cannot be used.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            socket: RouteSocket::open(&[libc::RTNLGRP_NEIGH])?,
            buffer: vec![0; BUFFER].into(),
        })
    }

    /// Hands what is there to `each`. Leaves the descriptor unreadable, unless more changes arrive than
    /// one call takes.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn read(&mut self, mut each: impl FnMut(NeighbourChange)) -> io::Result<()> {
        for _ in 0..READS_PER_CALL {
            match self.socket.receive(&mut self.buffer)? {
                Reading::Empty => break,
                Reading::Overrun => each(NeighbourChange::Lost),
                Reading::Datagram(datagram) => datagram
                    .messages()
                    .filter_map(|message| Neighbour::read(&message))
                    .for_each(|neighbour| each(NeighbourChange::Is(neighbour))),
            }
        }
        Ok(())
    }
}

impl AsFd for NeighbourMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec::{Messages, Request};
    use super::*;

    fn read(kind: u16, state: u16, flags: u8, link: &[u8]) -> Option<Neighbour> {
        let mut header = header(7, [192, 0, 2, 1].into(), flags);
        header[8..10].copy_from_slice(&state.to_ne_bytes());
        let bytes = Request::new(kind, 0, 0, &header)
            .attribute(DESTINATION, &[192, 0, 2, 1])
            .attribute(LINK_ADDRESS, link)
            .into_bytes();
        Neighbour::read(&Messages(&bytes).next().unwrap())
    }

    #[test]
    fn states_say_whether_an_address_may_be_used() {
        let link = [2, 0, 0, 0, 0, 9];
        for (state, expected, usable) in [
            (libc::NUD_PERMANENT, Reachability::Permanent, true),
            (libc::NUD_REACHABLE, Reachability::Reachable, true),
            (libc::NUD_STALE, Reachability::Stale, true),
            (libc::NUD_DELAY, Reachability::Probing, true),
            (libc::NUD_PROBE, Reachability::Probing, true),
            (libc::NUD_INCOMPLETE, Reachability::Unknown, false),
            (libc::NUD_FAILED, Reachability::Unknown, false),
            (libc::NUD_NOARP, Reachability::Unknown, false),
        ] {
            let neighbour = read(libc::RTM_NEWNEIGH, state, 0, &link).unwrap();
            assert_eq!(neighbour.reachability, expected);
            assert_eq!(neighbour.reachability.is_usable(), usable);
            assert_eq!((neighbour.interface, neighbour.ethernet), (7, Some(link)));
        }
    }

    #[test]
    fn what_is_no_ethernet_neighbour_is_not_used() {
        let reachable = libc::NUD_REACHABLE;
        let gone = read(libc::RTM_DELNEIGH, reachable, 0, &[2; 6]).unwrap();
        assert_eq!(
            (gone.ethernet, gone.reachability),
            (None, Reachability::Unknown)
        );
        let infiniband = read(libc::RTM_NEWNEIGH, reachable, 0, &[2; 20]).unwrap();
        assert_eq!(infiniband.reachability, Reachability::Unknown);
        assert_eq!(read(libc::RTM_NEWNEIGH, reachable, PROXY, &[2; 6]), None);
        assert_eq!(read(libc::RTM_NEWROUTE, reachable, 0, &[2; 6]), None);
    }
}
