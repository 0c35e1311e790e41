//! What the tunnel must know of the IP packets inside it: addresses, true length, padding.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

use crate::message::PADDING_MULTIPLE;

const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;

/// Source, destination and length of an inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerPacket {
    /// Source address: the sending peer must own it.
    pub source: IpAddr,
    /// Destination address: chooses the peer to send to.
    pub destination: IpAddr,
    /// Length by the IP header, in bytes; what follows is padding.
    pub length: usize,
}

/// Why bytes are not an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InnerPacketError {
    /// The version is neither 4 nor 6, or there is nothing at all.
    #[error("neither IPv4 nor IPv6")]
    UnknownVersion,
    /// Shorter than the IP header.
    #[error("shorter than its IP header")]
    Truncated,
    /// The header claims less than itself or more than there is.
    #[error("the length in the IP header does not fit")]
    WrongLength,
}

impl InnerPacket {
    /// Reads addresses and length of the packet at the start of `bytes`; padding may follow it.
    ///
    /// # Errors
    /// [`InnerPacketError`] when the bytes cannot be an IP packet.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Self, InnerPacketError> {
        match bytes.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            _ => Err(InnerPacketError::UnknownVersion),
        }
    }

    fn parse_v4(bytes: &[u8]) -> Result<Self, InnerPacketError> {
        let header: &[u8; IPV4_HEADER_LEN] =
            bytes.first_chunk().ok_or(InnerPacketError::Truncated)?;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if length < IPV4_HEADER_LEN || length > bytes.len() {
            return Err(InnerPacketError::WrongLength);
        }
        Ok(Self {
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            length,
        })
    }

    fn parse_v6(bytes: &[u8]) -> Result<Self, InnerPacketError> {
        let header: &[u8; IPV6_HEADER_LEN] =
            bytes.first_chunk().ok_or(InnerPacketError::Truncated)?;
        let length = IPV6_HEADER_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if length > bytes.len() {
            return Err(InnerPacketError::WrongLength);
        }
        let address = |offset: usize| {
            let octets: [u8; 16] = *header[offset..]
                .first_chunk()
                .expect("both addresses lie within the 40 bytes");
            IpAddr::from(Ipv6Addr::from(octets))
        };
        Ok(Self {
            source: address(8),
            destination: address(24),
            length,
        })
    }
}

/// Length of a packet of `length` bytes with its padding: a multiple of 16, but never past `mtu`
/// (kernel, `send.c` `calculate_skb_padding`). A `mtu` of 0 means unknown and sets no bound.
///
/// A packet longer than the MTU (a super-packet on its way to be split) is padded as its last piece
/// would be.
#[must_use]
#[inline]
pub const fn padded_len(length: usize, mtu: usize) -> usize {
    if mtu == 0 {
        return length.next_multiple_of(PADDING_MULTIPLE);
    }
    let last = if length > mtu { length % mtu } else { length };
    let padded = last.next_multiple_of(PADDING_MULTIPLE);
    length - last + if padded > mtu { mtu } else { padded }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn padding_to_16_never_past_the_mtu() {
        assert_eq!(padded_len(0, 1420), 0);
        assert_eq!(padded_len(1, 1420), 16);
        assert_eq!(padded_len(16, 1420), 16);
        assert_eq!(padded_len(1409, 1420), 1420);
        assert_eq!(padded_len(1420, 1420), 1420);
        assert_eq!(padded_len(1421, 1420), 1436);
        assert_eq!(padded_len(5, 3), 6);
    }

    #[test]
    fn padding_with_an_mtu_of_zero() {
        assert_eq!(padded_len(0, 0), 0);
        assert_eq!(padded_len(1401, 0), 1408);
    }

    fn v4(total: u16, room: usize) -> Vec<u8> {
        let mut bytes = vec![0; room];
        bytes[0] = 0x45;
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        bytes[12..16].copy_from_slice(&[10, 0, 0, 1]);
        bytes[16..20].copy_from_slice(&[10, 0, 0, 2]);
        bytes
    }

    #[test]
    fn ipv4_lengths() {
        let packet = InnerPacket::parse(&v4(20, 32)).unwrap();
        assert_eq!(packet.length, 20);
        assert_eq!(packet.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(packet.destination, IpAddr::from([10, 0, 0, 2]));
        assert_eq!(
            InnerPacket::parse(&v4(33, 32)),
            Err(InnerPacketError::WrongLength)
        );
        assert_eq!(
            InnerPacket::parse(&v4(19, 32)),
            Err(InnerPacketError::WrongLength)
        );
        assert_eq!(
            InnerPacket::parse(&v4(20, 20)[..19]),
            Err(InnerPacketError::Truncated)
        );
    }

    #[test]
    fn ipv6_lengths() {
        let mut bytes = vec![0; 48];
        bytes[0] = 0x60;
        bytes[5] = 8;
        assert_eq!(InnerPacket::parse(&bytes).unwrap().length, 48);
        bytes[5] = 9;
        assert_eq!(
            InnerPacket::parse(&bytes),
            Err(InnerPacketError::WrongLength)
        );
        // 65535 + 40 must not wrap around.
        bytes[4..6].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(
            InnerPacket::parse(&bytes),
            Err(InnerPacketError::WrongLength)
        );
        assert_eq!(
            InnerPacket::parse(&bytes[..39]),
            Err(InnerPacketError::Truncated)
        );
        assert_eq!(
            InnerPacket::parse(&[]),
            Err(InnerPacketError::UnknownVersion)
        );
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            if let Ok(packet) = InnerPacket::parse(&bytes) {
                prop_assert!(packet.length <= bytes.len());
            }
        }

        #[test]
        fn padding_bounds(length in 0_usize..70_000, mtu in 0_usize..70_000) {
            let padded = padded_len(length, mtu);
            prop_assert!(padded >= length && padded < length + 16);
            if mtu > 0 && length <= mtu {
                prop_assert!(padded <= mtu);
            }
        }
    }
}
