//! The addresses of this host.

use std::io;
use std::net::IpAddr;

use super::codec::{Message, read_u32};
use super::socket::RouteSocket;

/// Length of `struct ifaddrmsg`.
pub(super) const ADDRESS_HEADER: usize = 8;

/// An address and the interface that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalAddress {
    /// The address.
    pub address: IpAddr,
    /// Index of the interface.
    pub interface: u32,
}

/// All addresses of the calling thread's namespace.
///
/// # Errors
/// When netlink cannot be used.
pub fn local_addresses() -> io::Result<Vec<LocalAddress>> {
    RouteSocket::dump(libc::RTM_GETADDR, &[0; ADDRESS_HEADER], read_address)
}

fn read_address(message: &Message<'_>) -> Option<LocalAddress> {
    if message.kind != libc::RTM_NEWADDR {
        return None;
    }
    // struct ifaddrmsg: family, prefix length, flags, scope, index (4).
    let (header, attributes) = message.body(ADDRESS_HEADER)?;
    // On a point-to-point link IFA_ADDRESS is the other end's.
    let bytes = attributes
        .value_of(libc::IFA_LOCAL)
        .or_else(|| attributes.value_of(libc::IFA_ADDRESS))?;
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(LocalAddress {
        address,
        interface: read_u32(&header[4..])?,
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn loopback_has_its_address() {
        let loopback = LocalAddress {
            address: Ipv4Addr::LOCALHOST.into(),
            interface: 1,
        };
        assert!(local_addresses().unwrap().contains(&loopback));
    }
}
