//! Changing an interface: addresses, MTU, up, removal.

use std::io;
use std::net::IpAddr;

use super::address::ADDRESS_HEADER;
use super::codec::{Message, Request, read_u32};
use super::link::LINK_HEADER;
use super::socket::RouteSocket;
use crate::sys::{invalid, narrow};

/// What every change asks for: an acknowledgement, or the reason why not.
const CHANGE: i32 = libc::NLM_F_ACK;
/// A change that must make something that is not there yet.
pub(super) const CREATE: i32 = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;

/// An address of an interface with the length of its subnet's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// Length of the subnet's prefix in bits.
    pub prefix_length: u8,
}

/// The addresses of one interface of the calling thread's namespace, in the kernel's order.
///
/// # Errors
/// When netlink cannot be used.
pub fn interface_addresses(interface: u32) -> io::Result<Vec<InterfaceAddress>> {
    RouteSocket::dump(libc::RTM_GETADDR, &[0; ADDRESS_HEADER], |message| {
        read_address(message, interface)
    })
}

fn read_address(message: &Message<'_>, interface: u32) -> Option<InterfaceAddress> {
    if message.kind != libc::RTM_NEWADDR {
        return None;
    }
    // struct ifaddrmsg: family, prefix length, flags, scope, index (4).
    let (header, attributes) = message.body(ADDRESS_HEADER)?;
    if read_u32(&header[4..])? != interface {
        return None;
    }
    let bytes = attributes
        .value_of(libc::IFA_LOCAL)
        .or_else(|| attributes.value_of(libc::IFA_ADDRESS))?;
    Some(InterfaceAddress {
        address: address_from(bytes)?,
        prefix_length: header[1],
    })
}

/// Gives an interface an address, as `ip address add ADDRESS/LENGTH dev IFACE` does.
///
/// # Errors
/// `EEXIST` when the interface has it; what the kernel says of an address that it does not take;
/// when netlink cannot be used.
pub fn add_address(interface: u32, address: InterfaceAddress) -> io::Result<()> {
    let mut header = [0; ADDRESS_HEADER];
    header[0] = family(address.address);
    header[1] = address.prefix_length;
    if matches!(address.address, IpAddr::V4(v4) if v4.is_loopback()) {
        header[3] = libc::RT_SCOPE_HOST;
    }
    header[4..].copy_from_slice(&interface.to_ne_bytes());
    let fill = |request| {
        let request = ip_attribute(request, libc::IFA_LOCAL, address.address);
        ip_attribute(request, libc::IFA_ADDRESS, address.address)
    };
    change(libc::RTM_NEWADDR, CREATE, &header, fill)
}

/// Sets an interface up, with the MTU given in bytes, as `ip link set mtu MTU up dev IFACE` does.
///
/// # Errors
/// `EINVAL` for an MTU that the device does not take; when netlink cannot be used.
pub fn set_up(interface: u32, mtu: u32) -> io::Result<()> {
    let up = u32::try_from(libc::IFF_UP).unwrap_or(0).to_ne_bytes();
    let mut header = link_header(interface);
    header[8..12].copy_from_slice(&up);
    header[12..].copy_from_slice(&up);
    let fill = |request: Request| request.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
    change(libc::RTM_NEWLINK, CHANGE, &header, fill)
}

/// Removes an interface.
///
/// # Errors
/// `ENODEV` when there is none; `EOPNOTSUPP` for one that cannot be removed; when netlink cannot be
/// used.
pub fn delete_link(interface: u32) -> io::Result<()> {
    let header = link_header(interface);
    change(libc::RTM_DELLINK, CHANGE, &header, |request| request)
}

/// struct ifinfomsg: family, padding, type (2), index (4), flags (4), change (4).
fn link_header(interface: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&interface.to_ne_bytes());
    header
}

/// Sends a request and waits for its acknowledgement.
pub(super) fn change(
    kind: u16,
    flags: i32,
    body: &[u8],
    fill: impl FnOnce(Request) -> Request,
) -> io::Result<()> {
    RouteSocket::ask(kind, flags, body, fill, |message| message.error().map(drop))
}

/// `AF_INET` or `AF_INET6`, as headers have it.
pub(super) fn family(address: IpAddr) -> u8 {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    narrow(family).to_le_bytes()[0]
}

/// Appends an address as an attribute.
pub(super) fn ip_attribute(request: Request, kind: u16, address: IpAddr) -> Request {
    match address {
        IpAddr::V4(address) => request.attribute(kind, &address.octets()),
        IpAddr::V6(address) => request.attribute(kind, &address.octets()),
    }
}

/// An address from the value of an attribute.
pub(super) fn address_from(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}

/// Fails for a prefix longer than its address.
pub(super) fn check_prefix(address: IpAddr, length: u8) -> io::Result<()> {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    if length > longest {
        return Err(invalid("the prefix is longer than the address"));
    }
    Ok(())
}
