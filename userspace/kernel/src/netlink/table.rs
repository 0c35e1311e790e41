//! Routing tables: what is in them, adding to them, and the MTU of a path.

use std::io;
use std::net::IpAddr;

use super::codec::{Attributes, Message, read_u32};
use super::interface::{CREATE, address_from, change, check_prefix, family, ip_attribute};
use super::route::{NO_ROUTE, ROUTE_HEADER};
use super::socket::{RouteSocket, none_if};

/// `RT_TABLE_MAIN`: where routes go unless told otherwise.
pub const MAIN_TABLE: u32 = libc::RT_TABLE_MAIN as u32;

/// `RTM_F_CLONED`: a cached copy of a route, such as one that learnt a path MTU.
const CLONED: u32 = 0x200;
/// `RTAX_MTU`, an attribute inside `RTA_METRICS`.
const METRIC_MTU: u16 = 2;

/// A destination and the interface that leads there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRoute {
    /// Where the route leads: the first address.
    pub destination: IpAddr,
    /// How many leading bits of `destination` count.
    pub prefix_length: u8,
    /// Routing table.
    pub table: u32,
    /// Index of the outgoing interface; 0 for a route over several, or over none.
    pub interface: u32,
    /// The route's own MTU in bytes, if it has one.
    pub mtu: Option<u32>,
}

/// The routes of one table of the calling thread's namespace, those for IPv4 or those for IPv6, in
/// the kernel's order.
///
/// # Errors
/// When netlink cannot be used.
pub fn routes(ipv4: bool, table: u32) -> io::Result<Vec<TableRoute>> {
    let mut header = [0; ROUTE_HEADER];
    header[0] = family(unspecified(ipv4));
    RouteSocket::dump(libc::RTM_GETROUTE, &header, |message| {
        read(message, ipv4).filter(|route| route.table == table)
    })
}

/// Adds a route to `destination/length` through an interface, as `ip route add … dev IFACE table
/// TABLE` does.
///
/// # Errors
/// `EEXIST` when the table has such a route; `InvalidInput` for a prefix longer than its address;
/// what the kernel says of a route that it does not take; when netlink cannot be used.
pub fn add_route(
    destination: IpAddr,
    prefix_length: u8,
    interface: u32,
    table: u32,
) -> io::Result<()> {
    check_prefix(destination, prefix_length)?;
    let mut header = [0; ROUTE_HEADER];
    header[0] = family(destination);
    header[1] = prefix_length;
    // The field holds a byte; the attribute holds all of it.
    header[4] = u8::try_from(table).unwrap_or(libc::RT_TABLE_UNSPEC);
    header[5] = libc::RTPROT_BOOT;
    header[6] = libc::RT_SCOPE_LINK;
    header[7] = libc::RTN_UNICAST;
    change(libc::RTM_NEWROUTE, CREATE, &header, |request| {
        let request = if prefix_length == 0 {
            request
        } else {
            ip_attribute(request, libc::RTA_DST, destination)
        };
        request
            .attribute(libc::RTA_OIF, &interface.to_ne_bytes())
            .attribute(libc::RTA_TABLE, &table.to_ne_bytes())
    })
}

/// The route that packets to `destination` take, `None` if there is none.
///
/// # Errors
/// When netlink cannot be used.
pub fn route_to(destination: IpAddr) -> io::Result<Option<TableRoute>> {
    let mut header = [0; ROUTE_HEADER];
    header[0] = family(destination);
    header[1] = if destination.is_ipv4() { 32 } else { 128 };
    let answer = RouteSocket::ask(
        libc::RTM_GETROUTE,
        0,
        &header,
        |request| ip_attribute(request, libc::RTA_DST, destination),
        |message| read_any(message, destination.is_ipv4()),
    );
    none_if(answer, &NO_ROUTE)
}

fn read(message: &Message<'_>, ipv4: bool) -> Option<TableRoute> {
    let flags = message.payload.get(8..).and_then(read_u32)?;
    if flags & CLONED != 0 {
        return None;
    }
    read_any(message, ipv4)
}

fn read_any(message: &Message<'_>, ipv4: bool) -> Option<TableRoute> {
    if message.kind != libc::RTM_NEWROUTE {
        return None;
    }
    // struct rtmsg: family, destination bits, source bits, TOS, table, protocol, scope, type, flags.
    let (header, attributes) = message.body(ROUTE_HEADER)?;
    if header[0] != family(unspecified(ipv4)) {
        return None;
    }
    let number = |kind| attributes.value_of(kind).and_then(read_u32);
    let mtu = attributes
        .value_of(libc::RTA_METRICS)
        .and_then(|metrics| Attributes(metrics).value_of(METRIC_MTU))
        .and_then(read_u32);
    Some(TableRoute {
        destination: match attributes.value_of(libc::RTA_DST) {
            Some(bytes) => address_from(bytes)?,
            None => unspecified(ipv4),
        },
        prefix_length: header[1],
        table: number(libc::RTA_TABLE).unwrap_or(header[4].into()),
        interface: number(libc::RTA_OIF).unwrap_or(0),
        mtu,
    })
}

fn unspecified(ipv4: bool) -> IpAddr {
    if ipv4 {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn the_way_to_ourselves_is_the_loopback_interface() {
        for address in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ] {
            let route = route_to(address).unwrap().unwrap();
            assert_eq!((route.destination, route.interface), (address, 1));
        }
    }

    #[test]
    fn a_prefix_longer_than_its_address_is_refused() {
        let error = add_route(Ipv4Addr::LOCALHOST.into(), 33, 1, MAIN_TABLE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
