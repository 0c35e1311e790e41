//! Socket addresses as the bytes of `struct sockaddr_in` and `sockaddr_in6`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::sys::narrow;

/// Length of `struct sockaddr_in`.
const V4_LENGTH: usize = size_of::<libc::sockaddr_in>();
/// Length of `struct sockaddr_in6`, the larger one.
const V6_LENGTH: usize = size_of::<libc::sockaddr_in6>();

const V4_FAMILY: u16 = narrow(libc::AF_INET);
const V6_FAMILY: u16 = narrow(libc::AF_INET6);

/// Room for an address of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawAddress {
    bytes: [u8; V6_LENGTH],
    length: usize,
}

impl RawAddress {
    pub(super) const EMPTY: Self = Self {
        bytes: [0; V6_LENGTH],
        length: V6_LENGTH,
    };

    /// Every byte is written anew, so a slot that is used again keeps nothing of its last address.
    pub(super) fn new(address: &SocketAddr) -> Self {
        let mut bytes = [0; V6_LENGTH];
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        let (family, length) = match address {
            // Family, port, address, padding.
            SocketAddr::V4(v4) => {
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                (V4_FAMILY, V4_LENGTH)
            }
            // Family, port, flow information, address, scope.
            SocketAddr::V6(v6) => {
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                (V6_FAMILY, V6_LENGTH)
            }
        };
        bytes[..2].copy_from_slice(&family.to_ne_bytes());
        Self { bytes, length }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The whole room, for the kernel to write into; [`set_length`](Self::set_length) follows.
    pub(super) fn room(&mut self) -> &mut [u8; V6_LENGTH] {
        &mut self.bytes
    }

    pub(super) fn set_length(&mut self, length: usize) {
        self.length = length.min(V6_LENGTH);
    }

    /// Reads the address; `None` if it is of another family. A v4-mapped one comes back as IPv4.
    pub(super) fn to_socket_address(self) -> Option<SocketAddr> {
        let bytes = self.as_bytes();
        let family = u16::from_ne_bytes(*bytes.first_chunk()?);
        let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
        let address = if family == V4_FAMILY {
            let octets: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
            SocketAddr::from((Ipv4Addr::from(octets), port))
        } else if family == V6_FAMILY {
            let octets: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
            let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
            SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, scope).into()
        } else {
            return None;
        };
        Some(canonical(address))
    }
}

/// The IPv4 address inside a v4-mapped IPv6 one; anything else unchanged.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::from((v4, address.port())),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in [
            "192.0.2.1:51820",
            "[2001:db8::1]:1",
            "[fe80::1%3]:65535",
            "0.0.0.0:0",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(
                RawAddress::new(&address).to_socket_address(),
                Some(address),
                "{text}"
            );
        }
    }

    #[test]
    fn mapped_addresses_come_back_as_ipv4() {
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:9".parse().unwrap();
        let plain: SocketAddr = "192.0.2.1:9".parse().unwrap();
        assert_eq!(RawAddress::new(&mapped).to_socket_address(), Some(plain));
    }

    #[test]
    fn foreign_and_cut_addresses_are_refused() {
        let mut address = RawAddress::new(&"192.0.2.1:9".parse().unwrap());
        address.set_length(7);
        assert_eq!(address.to_socket_address(), None);
        address.set_length(0);
        assert_eq!(address.to_socket_address(), None);
        let mut unix = RawAddress::EMPTY;
        unix.room()[..2].copy_from_slice(&narrow(libc::AF_UNIX).to_ne_bytes());
        assert_eq!(unix.to_socket_address(), None);
    }

    /// wireguard-go bug (c): an IPv6 destination after an IPv4 one from the same pool kept 12 bytes.
    #[test]
    fn no_stale_bytes_after_an_address_of_the_other_family() {
        let v4: SocketAddr = "255.255.255.255:65535".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:1".parse().unwrap();
        let fresh = RawAddress::new(&v6);
        let mut slot = RawAddress::EMPTY;
        slot.room().fill(0xff);
        for address in [v4, v6] {
            slot = RawAddress::new(&address);
        }
        assert_eq!(slot, fresh);
    }
}
