//! What the kernel knows of the MTU of a path.

use std::io;

use super::link::link_by_index;
use super::next_hop::{Outbound, ipv6_mtu, look_up};

/// Bytes of the longest IP packet to `datagram.to` that the kernel sends in one piece: the MTU of
/// the interface or of the route, or less if a router has said so of late (RFC 1191, RFC 8201). What
/// routers say is kept for ten minutes (`net.ipv4.route.mtu_expires`, `net.ipv6.route.mtu_expires`),
/// and never taken to be below 552 bytes for IPv4 (`min_pmtu`) or 1280 for IPv6.
///
/// In the namespace of the calling thread. `None` without a route.
///
/// # Errors
/// When netlink cannot be used.
pub fn path_mtu(datagram: &Outbound) -> io::Result<Option<u32>> {
    if datagram
        .source
        .is_some_and(|source| source.is_ipv4() != datagram.to.is_ipv4())
    {
        return Ok(None);
    }
    let Some(route) = look_up(datagram)?.filter(|route| route.interface != 0) else {
        return Ok(None);
    };
    let Some(link) = link_by_index(route.interface)? else {
        return Ok(None);
    };
    let announced = || ipv6_mtu(&link.name).filter(|_| datagram.to.is_ipv6());
    let mtu = route.mtu.or_else(announced).unwrap_or(link.mtu);
    Ok(Some(mtu.min(link.mtu)))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn outbound(to: &str) -> Outbound {
        Outbound {
            to: to.parse().unwrap(),
            source: None,
            port: 7,
            mark: 0,
        }
    }

    #[test]
    fn a_path_without_routers_is_as_wide_as_its_interface() {
        assert_eq!(path_mtu(&outbound("127.0.0.1:9")).unwrap(), Some(65_536));
        let v6: SocketAddr = "[::1]:9".parse().unwrap();
        let source = Some("127.0.0.1".parse().unwrap());
        let mixed = Outbound {
            to: v6,
            source,
            ..outbound("127.0.0.1:9")
        };
        assert_eq!(path_mtu(&mixed).unwrap(), None);
    }
}
