//! Route lookup, and noticing that routes may have changed.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use super::codec::{Message, Request, read_u32};
use super::socket::{BUFFER, Reading, RouteSocket, none_if};
use crate::sys;

/// Length of `struct rtmsg`.
pub(super) const ROUTE_HEADER: usize = 12;
/// More changes than this at once are left for the next wake-up, so that a routing daemon that
/// loads a full table does not hold up the caller.
const READS_PER_CALL: usize = 256;

/// The answers of a lookup that mean "no route": none, unreachable, prohibited, blackhole, or a
/// source that is no longer ours.
pub(super) const NO_ROUTE: [i32; 5] = [
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::EACCES,
    libc::EINVAL,
    libc::ENODEV,
];

/// The index of the interface packets to `destination` leave by, from `source` if given, with
/// firewall mark `mark` (0: none), in the namespace of the calling thread. `None` without a route,
/// or if `source` is not an address of this host.
///
/// # Errors
/// `InvalidInput` for addresses of different families; when netlink cannot be used.
pub fn route_interface(
    destination: IpAddr,
    source: Option<IpAddr>,
    mark: u32,
) -> io::Result<Option<u32>> {
    if source.is_some_and(|source| source.is_ipv4() != destination.is_ipv4()) {
        return Err(sys::invalid("source and destination of different families"));
    }
    // A lookup of IPv4 refuses a source that is not ours; one of IPv6 does not look.
    if let Some(source @ IpAddr::V6(_)) = source {
        let local = look_up(source, None, 0)?.is_some_and(|route| route.kind == libc::RTN_LOCAL);
        if !local {
            return Ok(None);
        }
    }
    let route = look_up(destination, source, mark)?;
    // IPv6 answers with an unreachable route where IPv4 answers with an error.
    let usable = |route: &Route| route.interface != 0 && !NOWHERE.contains(&route.kind);
    Ok(route.filter(usable).map(|route| route.interface))
}

/// Kinds of routes that lead nowhere.
const NOWHERE: [u8; 4] = [
    libc::RTN_UNREACHABLE,
    libc::RTN_BLACKHOLE,
    libc::RTN_PROHIBIT,
    libc::RTN_THROW,
];

/// An answer to a lookup.
#[derive(Clone, Copy, Debug)]
struct Route {
    /// `RTN_…`.
    kind: u8,
    /// Index of the outgoing interface; 0 if there is none.
    interface: u32,
}

fn look_up(destination: IpAddr, source: Option<IpAddr>, mark: u32) -> io::Result<Option<Route>> {
    let (family, bits) = match destination {
        IpAddr::V4(_) => (libc::AF_INET, 32),
        IpAddr::V6(_) => (libc::AF_INET6, 128),
    };
    // struct rtmsg: family, destination bits, source bits, TOS, table, protocol, scope, type, flags.
    let mut header = [0; ROUTE_HEADER];
    header[0] = u8::try_from(family).unwrap_or(0);
    header[1] = bits;
    header[2] = if source.is_some() { bits } else { 0 };
    let fill = |request| {
        let request = address(request, libc::RTA_DST, destination);
        let request = match source {
            Some(source) => address(request, libc::RTA_SRC, source),
            None => request,
        };
        match mark {
            0 => request,
            mark => request.attribute(libc::RTA_MARK, &mark.to_ne_bytes()),
        }
    };
    none_if(
        RouteSocket::ask(libc::RTM_GETROUTE, 0, &header, fill, read_route),
        &NO_ROUTE,
    )
}

pub(super) fn address(request: Request, kind: u16, address: IpAddr) -> Request {
    match address {
        IpAddr::V4(address) => request.attribute(kind, &address.octets()),
        IpAddr::V6(address) => request.attribute(kind, &address.octets()),
    }
}

fn read_route(message: &Message<'_>) -> Option<Route> {
    if message.kind != libc::RTM_NEWROUTE {
        return None;
    }
    let (header, attributes) = message.body(ROUTE_HEADER)?;
    let interface = attributes
        .value_of(libc::RTA_OIF)
        .and_then(read_u32)
        .unwrap_or(0);
    Some(Route {
        kind: header[7],
        interface,
    })
}

/// Tells that links, addresses, routes or rules changed in the namespace of the thread that made
/// it, so that cached source addresses need another look.
#[derive(Debug)]
pub struct RouteMonitor {
    socket: RouteSocket,
    buffer: Box<[u8]>,
}

impl RouteMonitor {
    /// Starts to watch.
    ///
    /// # Errors
    /// When netlink cannot be used.
    pub fn new() -> io::Result<Self> {
        let socket = RouteSocket::open(&[
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV6_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_ROUTE,
            libc::RTNLGRP_IPV4_RULE,
            RTNLGRP_IPV6_RULE,
        ])?;
        Ok(Self {
            socket,
            buffer: vec![0; BUFFER].into(),
        })
    }

    /// Takes what is there and tells whether anything changed. Leaves the descriptor unreadable,
    /// unless more changes arrive than one call takes.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn changed(&mut self) -> io::Result<bool> {
        let mut changed = false;
        for _ in 0..READS_PER_CALL {
            match self.socket.receive(&mut self.buffer)? {
                Reading::Empty => break,
                Reading::Datagram(_) | Reading::Overrun => changed = true,
            }
        }
        Ok(changed)
    }
}

/// `RTNLGRP_IPV6_RULE`, which libc lacks.
const RTNLGRP_IPV6_RULE: u32 = 19;

impl AsFd for RouteMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn loopback_is_reached_by_the_loopback_interface() {
        let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(route_interface(v4, None, 0).unwrap(), Some(1));
        assert_eq!(route_interface(v4, Some(v4), 7).unwrap(), Some(1));
        let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
        assert_eq!(route_interface(v6, Some(v6), 0).unwrap(), Some(1));
    }

    #[test]
    fn a_source_that_is_not_ours_has_no_route() {
        let source = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77)));
        assert_eq!(
            route_interface(Ipv4Addr::LOCALHOST.into(), source, 0).unwrap(),
            None
        );
    }

    #[test]
    fn mixed_families_are_an_error() {
        let source = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let error = route_interface(Ipv6Addr::LOCALHOST.into(), source, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
