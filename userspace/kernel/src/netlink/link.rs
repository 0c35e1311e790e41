//! Looking up links, and numbers for namespaces.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::codec::{Attributes, Message, Request, read_i32, read_u32};
use super::socket::{RouteSocket, none_if};
use crate::netns::NetworkNamespace;

/// Length of `struct ifinfomsg`.
pub(super) const LINK_HEADER: usize = 16;
/// `IFLA_TARGET_NETNSID`: ask about a link in another namespace.
const TARGET_NAMESPACE: u16 = 46;
/// `IFLA_NUM_RX_QUEUES`.
const NUM_RX_QUEUES: u16 = 32;
/// `NETNSA_NSID`.
const NSID: u16 = 1;
/// `NETNSA_FD`.
const NAMESPACE_FD: u16 = 3;
/// Length of `struct rtgenmsg`, padded.
pub(super) const NAMESPACE_HEADER: usize = 4;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `IFF_UP`.
    pub up: bool,
    /// `IFF_LOOPBACK`.
    pub loopback: bool,
    /// In bytes.
    pub mtu: u32,
    /// RX queues it was made with; fewer may be in use.
    pub rx_queues: u32,
    /// The driver's name for its kind (`tun`, `veth`, `wireguard`), if it gives one.
    pub kind: Option<String>,
}

impl Link {
    /// Reads an `RTM_NEWLINK` or `RTM_DELLINK`.
    pub(super) fn read(message: &Message<'_>) -> Option<Self> {
        if message.kind != libc::RTM_NEWLINK && message.kind != libc::RTM_DELLINK {
            return None;
        }
        // struct ifinfomsg: family, padding, type (2), index (4), flags (4), change (4).
        let (header, attributes) = message.body(LINK_HEADER)?;
        let flags = read_i32(&header[8..])?;
        let text = |value: &[u8]| {
            String::from_utf8_lossy(value)
                .trim_end_matches('\0')
                .to_owned()
        };
        let number = |kind| attributes.value_of(kind).and_then(read_u32);
        let kind = attributes
            .value_of(libc::IFLA_LINKINFO)
            .and_then(|info| Attributes(info).value_of(libc::IFLA_INFO_KIND))
            .map(text);
        Some(Self {
            index: read_u32(&header[4..])?,
            name: attributes
                .value_of(libc::IFLA_IFNAME)
                .map(text)
                .unwrap_or_default(),
            up: flags & libc::IFF_UP != 0,
            loopback: flags & libc::IFF_LOOPBACK != 0,
            mtu: number(libc::IFLA_MTU).unwrap_or(0),
            rx_queues: number(NUM_RX_QUEUES).unwrap_or(1),
            kind,
        })
    }
}

/// Looks up the interface `name` in the namespace of the calling thread.
///
/// # Errors
/// When netlink cannot be used; an interface that does not exist is `None`.
pub fn link_by_name(name: &str) -> io::Result<Option<Link>> {
    let fill = |request| by_name(request, name, None);
    let answer = RouteSocket::ask(libc::RTM_GETLINK, 0, &[0; LINK_HEADER], fill, Link::read);
    none_if(answer, &[libc::ENODEV])
}

/// Looks up an interface by its index, in the namespace of the calling thread.
pub(super) fn link_by_index(index: u32) -> io::Result<Option<Link>> {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let answer = RouteSocket::ask(libc::RTM_GETLINK, 0, &header, |request| request, Link::read);
    none_if(answer, &[libc::ENODEV])
}

/// All interfaces in the namespace of the calling thread.
///
/// # Errors
/// When netlink cannot be used.
pub fn links() -> io::Result<Vec<Link>> {
    RouteSocket::dump(libc::RTM_GETLINK, &[0; LINK_HEADER], Link::read)
}

/// The attributes that name a link.
pub(super) fn by_name(request: Request, name: &str, nsid: Option<i32>) -> Request {
    let mut terminated = name.as_bytes().to_vec();
    terminated.push(0);
    let request = request.attribute(libc::IFLA_IFNAME, &terminated);
    match nsid {
        Some(nsid) => request.attribute(TARGET_NAMESPACE, &nsid.to_ne_bytes()),
        None => request,
    }
}

/// The number the calling thread's namespace has for `namespace`, given to it if it has none yet.
/// The kernel takes it back when the namespace ends, which the number does not hinder.
pub(super) fn namespace_number(namespace: &NetworkNamespace) -> io::Result<i32> {
    let fd = namespace.as_fd().as_raw_fd().to_ne_bytes();
    let assigned = RouteSocket::ask(
        libc::RTM_NEWNSID,
        libc::NLM_F_ACK,
        &[0; NAMESPACE_HEADER],
        // -1: any free number.
        |request| {
            request
                .attribute(NSID, &(-1_i32).to_ne_bytes())
                .attribute(NAMESPACE_FD, &fd)
        },
        |message| message.error().map(drop),
    );
    none_if(assigned, &[libc::EEXIST])?;
    RouteSocket::ask(
        libc::RTM_GETNSID,
        0,
        &[0; NAMESPACE_HEADER],
        |request| request.attribute(NAMESPACE_FD, &fd),
        read_namespace_number,
    )
}

/// Reads an `RTM_NEWNSID` or `RTM_DELNSID`.
pub(super) fn read_namespace_number(message: &Message<'_>) -> Option<i32> {
    if message.kind != libc::RTM_NEWNSID && message.kind != libc::RTM_DELNSID {
        return None;
    }
    let (_, attributes) = message.body(NAMESPACE_HEADER)?;
    attributes
        .value_of(NSID)
        .and_then(read_i32)
        .filter(|number| *number >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_and_nonsense_is_not() {
        let loopback = link_by_name("lo").unwrap().unwrap();
        assert_eq!((loopback.index, loopback.mtu), (1, 65_536));
        assert_eq!(link_by_name("no-such-device").unwrap(), None);
        assert!(links().unwrap().contains(&loopback));
    }
}
