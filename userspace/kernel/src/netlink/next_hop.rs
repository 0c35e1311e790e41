//! All that an Ethernet and IP header needs but the neighbour's Ethernet address, as the kernel would
//! choose it for a datagram of ours.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::codec::{Attributes, Message, read_i32, read_u32};
use super::link::LINK_HEADER;
use super::route::{NO_ROUTE, ROUTE_HEADER, address};
use super::socket::{RouteSocket, none_if};

/// Attributes of linux/rtnetlink.h that libc lacks.
const RTA_VIA: u16 = 18;
const RTA_ENCAP_TYPE: u16 = 21;
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;
/// Metrics, nested in `RTA_METRICS`.
const RTAX_LOCK: u16 = 1;
const RTAX_MTU: u16 = 2;
const RTAX_HOPLIMIT: u16 = 10;
/// `RTNH_F_DEAD | RTNH_F_LINKDOWN`.
const DEAD: u32 = 1 | 16;
/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;

/// A datagram to find the way for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// Where to.
    pub to: SocketAddr,
    /// From which address; `None` leaves it to the kernel.
    pub source: Option<IpAddr>,
    /// From which port.
    pub port: u16,
    /// Firewall mark; 0 for none.
    pub mark: u32,
}

/// The way of a datagram, up to the next station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Index of the interface, a plain Ethernet one.
    pub interface: u32,
    /// Its Ethernet address.
    pub ethernet: [u8; 6],
    /// Whose Ethernet address the packet needs: the gateway, or the destination itself. May be of the
    /// other family (RFC 5549).
    pub neighbour: IpAddr,
    /// Source address.
    pub source: IpAddr,
    /// Bytes of the longest IP packet that needs no fragmentation.
    pub mtu: u32,
    /// TTL or hop limit.
    pub hop_limit: u8,
}

/// Finds the next hop in the namespace of the calling thread. `None` if there is no route, or one whose
/// packets the kernel treats in a way that a plain header does not tell: through another kind of
/// interface, encapsulated, or with path MTU discovery switched off.
///
/// Routes, addresses and links may change (see [`RouteMonitor`](super::RouteMonitor)), and the path
/// MTU does without any notice.
///
/// # Errors
/// When netlink cannot be used.
pub fn next_hop(datagram: &Outbound) -> io::Result<Option<NextHop>> {
    if datagram
        .source
        .is_some_and(|source| source.is_ipv4() != datagram.to.is_ipv4())
    {
        return Ok(None);
    }
    // A lookup of IPv4 refuses a source that is not ours; one of IPv6 does not look.
    if let Some(source @ IpAddr::V6(_)) = datagram.source {
        let itself = Outbound {
            to: SocketAddr::new(source, 0),
            source: None,
            ..*datagram
        };
        if look_up(&itself)?.is_none_or(|route| route.kind != libc::RTN_LOCAL) {
            return Ok(None);
        }
    }
    let Some(route) = look_up(datagram)?.filter(Route::is_plain) else {
        return Ok(None);
    };
    let Some(source) = datagram.source.or(route.source) else {
        return Ok(None);
    };
    let Some(link) = ethernet_link(route.interface)? else {
        return Ok(None);
    };
    let defaults = match datagram.to {
        SocketAddr::V4(_) => Defaults::ipv4(),
        SocketAddr::V6(_) => Defaults::ipv6(&link.name),
    };
    let Some(defaults) = defaults else {
        return Ok(None);
    };
    let mtu = route.mtu.or(defaults.mtu).unwrap_or(link.mtu);
    Ok(Some(NextHop {
        interface: route.interface,
        ethernet: link.ethernet,
        neighbour: route.gateway.unwrap_or(datagram.to.ip()),
        source,
        mtu: mtu.min(link.mtu),
        hop_limit: route.hop_limit.unwrap_or(defaults.hop_limit),
    }))
}

/// An answer to a lookup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Route {
    /// `RTN_…`.
    pub(super) kind: u8,
    pub(super) interface: u32,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    /// Of the route, or what routers have said of the path.
    pub(super) mtu: Option<u32>,
    hop_limit: Option<u8>,
    /// Something that a plain header does not tell.
    special: bool,
}

impl Route {
    fn is_plain(&self) -> bool {
        self.kind == libc::RTN_UNICAST && self.interface != 0 && !self.special
    }

    fn read(message: &Message<'_>) -> Option<Self> {
        if message.kind != libc::RTM_NEWROUTE {
            return None;
        }
        // struct rtmsg: family, destination bits, source bits, TOS, table, protocol, scope, type, flags (4).
        let (header, attributes) = message.body(ROUTE_HEADER)?;
        let mut route = Self {
            kind: header[7],
            special: read_u32(&header[8..])? & DEAD != 0,
            ..Self::default()
        };
        for (kind, value) in attributes {
            match kind {
                libc::RTA_OIF => route.interface = read_u32(value)?,
                libc::RTA_GATEWAY => route.gateway = Some(ip(value)?),
                // struct rtvia: family (2), address.
                RTA_VIA => route.gateway = Some(ip(value.get(2..)?)?),
                libc::RTA_PREFSRC => route.source = Some(ip(value)?),
                libc::RTA_METRICS => route.read_metrics(value),
                RTA_ENCAP_TYPE | libc::RTA_MULTIPATH => route.special = true,
                _ => {}
            }
        }
        Some(route)
    }

    fn read_metrics(&mut self, metrics: &[u8]) {
        for (kind, value) in Attributes(metrics) {
            let Some(number) = read_u32(value).filter(|number| *number != 0) else {
                continue;
            };
            match kind {
                // A locked MTU means no path MTU discovery: the kernel fragments, and clears "don't fragment".
                RTAX_LOCK => self.special |= number & (1 << RTAX_MTU) != 0,
                RTAX_MTU => self.mtu = Some(number),
                RTAX_HOPLIMIT => self.hop_limit = u8::try_from(number).ok(),
                _ => {}
            }
        }
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

pub(super) fn look_up(datagram: &Outbound) -> io::Result<Option<Route>> {
    let to = datagram.to.ip();
    let (family, bits) = match to {
        IpAddr::V4(_) => (libc::AF_INET, 32),
        IpAddr::V6(_) => (libc::AF_INET6, 128),
    };
    let mut header = [0; ROUTE_HEADER];
    header[0] = u8::try_from(family).unwrap_or(0);
    header[1] = bits;
    header[2] = if datagram.source.is_some() { bits } else { 0 };
    let scope = match datagram.to {
        SocketAddr::V6(to) => to.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let protocol = u8::try_from(libc::IPPROTO_UDP).unwrap_or(0);
    let fill = |request| {
        let mut request = address(request, libc::RTA_DST, to);
        if let Some(source) = datagram.source {
            request = address(request, libc::RTA_SRC, source);
        }
        if datagram.mark != 0 {
            request = request.attribute(libc::RTA_MARK, &datagram.mark.to_ne_bytes());
        }
        if scope != 0 {
            request = request.attribute(libc::RTA_OIF, &scope.to_ne_bytes());
        }
        if datagram.to.port() == 0 {
            return request;
        }
        // Rules may look at these, and the choice among several next hops.
        request
            .attribute(RTA_IP_PROTO, &[protocol])
            .attribute(RTA_SPORT, &datagram.port.to_be_bytes())
            .attribute(RTA_DPORT, &datagram.to.port().to_be_bytes())
    };
    let answer = RouteSocket::ask(libc::RTM_GETROUTE, 0, &header, fill, Route::read);
    none_if(answer, &NO_ROUTE)
}

/// An Ethernet interface that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
struct EthernetLink {
    name: String,
    ethernet: [u8; 6],
    mtu: u32,
}

impl EthernetLink {
    /// The outer `None` is no answer, the inner one another kind of interface.
    fn read(message: &Message<'_>) -> Option<Option<Self>> {
        if message.kind != libc::RTM_NEWLINK {
            return None;
        }
        // struct ifinfomsg: family, padding, type (2), index (4), flags (4), change (4).
        let (header, attributes) = message.body(LINK_HEADER)?;
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        let flags = read_i32(&header[8..])?;
        let plain = kind == ETHERNET && flags & (libc::IFF_UP | libc::IFF_NOARP) == libc::IFF_UP;
        let name = attributes.value_of(libc::IFLA_IFNAME)?;
        let ethernet = attributes.value_of(libc::IFLA_ADDRESS);
        Some(match ethernet.map(<[u8; 6]>::try_from) {
            Some(Ok(ethernet)) if plain => Some(Self {
                name: String::from_utf8_lossy(name)
                    .trim_end_matches('\0')
                    .to_owned(),
                ethernet,
                mtu: read_u32(attributes.value_of(libc::IFLA_MTU)?)?,
            }),
            _ => None,
        })
    }
}

fn ethernet_link(interface: u32) -> io::Result<Option<EthernetLink>> {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&interface.to_ne_bytes());
    let answer = RouteSocket::ask(
        libc::RTM_GETLINK,
        0,
        &header,
        |request| request,
        EthernetLink::read,
    );
    Ok(none_if(answer, &[libc::ENODEV])?.flatten())
}

/// What holds where a route says nothing. Read in the namespace of the calling thread.
#[derive(Clone, Copy, Debug)]
struct Defaults {
    hop_limit: u8,
    mtu: Option<u32>,
}

impl Defaults {
    /// `None` if sockets do not do path MTU discovery: then packets carry an identification and may be
    /// fragmented on the way.
    fn ipv4() -> Option<Self> {
        (setting("ipv4/ip_no_pmtu_disc")? == 0).then_some(())?;
        Some(Self {
            hop_limit: setting("ipv4/ip_default_ttl")?.try_into().ok()?,
            mtu: None,
        })
    }

    /// Routers may announce values for an interface (RFC 4861, section 6.3.4).
    fn ipv6(interface: &str) -> Option<Self> {
        let hop_limit = setting(&format!("ipv6/conf/{interface}/hop_limit"))?;
        Some(Self {
            hop_limit: hop_limit.try_into().ok()?,
            mtu: Some(ipv6_mtu(interface)?),
        })
    }
}

/// What an interface takes of IPv6, which routers may announce (RFC 4861, section 4.6.4).
pub(super) fn ipv6_mtu(interface: &str) -> Option<u32> {
    setting(&format!("ipv6/conf/{interface}/mtu"))
}

fn setting(name: &str) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::codec::{Messages, Request};
    use super::*;

    fn route(kind: u8, flags: u32, fill: impl FnOnce(Request) -> Request) -> Route {
        let mut header = [0; ROUTE_HEADER];
        header[7] = kind;
        header[8..].copy_from_slice(&flags.to_ne_bytes());
        let request = Request::new(libc::RTM_NEWROUTE, 0, 0, &header);
        let bytes = fill(request.attribute(libc::RTA_OIF, &3_u32.to_ne_bytes())).into_bytes();
        Route::read(&Messages(&bytes).next().unwrap()).unwrap()
    }

    #[test]
    fn a_route_with_a_gateway_and_metrics_is_read() {
        let metric = |kind: u16, value: u32| {
            let header = [8_u16.to_ne_bytes(), kind.to_ne_bytes()].concat();
            [header, value.to_ne_bytes().to_vec()].concat()
        };
        let metrics = [metric(RTAX_MTU, 1400), metric(RTAX_HOPLIMIT, 17)].concat();
        let read = route(libc::RTN_UNICAST, 0, |request| {
            request
                .attribute(libc::RTA_GATEWAY, &[192, 0, 2, 1])
                .attribute(libc::RTA_PREFSRC, &[192, 0, 2, 7])
                .attribute(libc::RTA_METRICS, &metrics)
        });
        assert!(read.is_plain());
        assert_eq!(read.gateway, Some([192, 0, 2, 1].into()));
        assert_eq!(read.source, Some([192, 0, 2, 7].into()));
        assert_eq!((read.mtu, read.hop_limit), (Some(1400), Some(17)));
        let locked = metric(RTAX_LOCK, 1 << RTAX_MTU);
        let read = route(libc::RTN_UNICAST, 0, |request| {
            request.attribute(libc::RTA_METRICS, &locked)
        });
        assert!(!read.is_plain());
    }

    #[test]
    fn what_a_plain_header_cannot_tell_is_left_to_the_kernel() {
        let plain = |request| request;
        assert!(route(libc::RTN_UNICAST, 0, plain).is_plain());
        assert!(!route(libc::RTN_LOCAL, 0, plain).is_plain());
        assert!(!route(libc::RTN_BROADCAST, 0, plain).is_plain());
        assert!(!route(libc::RTN_UNICAST, 16, plain).is_plain());
        let encapsulated = route(libc::RTN_UNICAST, 0, |request| {
            request.attribute(RTA_ENCAP_TYPE, &[1, 0])
        });
        assert!(!encapsulated.is_plain());
        let over_ipv6 = route(libc::RTN_UNICAST, 0, |request| {
            let via = [10_u16.to_ne_bytes().to_vec(), vec![0xfe; 16]].concat();
            request.attribute(RTA_VIA, &via)
        });
        assert_eq!(over_ipv6.gateway, Some([0xfe; 16].into()));
    }

    #[test]
    fn loopback_is_no_ethernet() {
        let datagram = Outbound {
            to: "127.0.0.1:9".parse().unwrap(),
            source: None,
            port: 7,
            mark: 0,
        };
        assert_eq!(next_hop(&datagram).unwrap(), None);
        assert_eq!(ethernet_link(1).unwrap(), None);
        assert_eq!(ethernet_link(u32::MAX >> 1).unwrap(), None);
    }
}
