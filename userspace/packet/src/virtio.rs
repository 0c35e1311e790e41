//! `struct virtio_net_hdr`: the 10 bytes in front of every packet of a TUN device opened with `IFF_VNET_HDR`.
//!
//! Source: `include/uapi/linux/virtio_net.h`. The multi-byte fields are in host order, as a TUN device has them
//! unless `TUNSETVNETBE`/`TUNSETVNETLE` says otherwise.

/// `flags`: the checksum at `csum_start + csum_offset` holds only a partial sum and must be completed.
pub const F_NEEDS_CSUM: u8 = 1;
/// `flags`: the kernel has verified the checksum.
pub const F_DATA_VALID: u8 = 2;

/// `gso_type`: an ordinary packet.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4, several segments in one.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: UDP fragmentation offload, which this crate neither offers nor accepts.
pub const GSO_UDP: u8 = 3;
/// `gso_type`: TCP over IPv6, several segments in one.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: several UDP datagrams of equal length in one (USO), over IPv4 or IPv6.
pub const GSO_UDP_L4: u8 = 5;
/// Bit of `gso_type`: the TCP super-packet carries CWR, which belongs to its first segment only.
pub const GSO_ECN: u8 = 0x80;

/// The virtio network header of one packet.
///
/// ```
/// use adit_packet::virtio::{GSO_TCPV4, VirtioNetHeader};
///
/// let header = VirtioNetHeader { gso_type: GSO_TCPV4, gso_size: 1380, ..VirtioNetHeader::default() };
/// assert_eq!(VirtioNetHeader::decode(&header.encode()), header);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioNetHeader {
    /// [`F_NEEDS_CSUM`] and [`F_DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_…` types, possibly with [`GSO_ECN`].
    pub gso_type: u8,
    /// A hint how many bytes of headers there are. What the kernel delivers here may be the whole linear part of the
    /// packet, so readers derive the length from the headers themselves.
    pub hdr_len: u16,
    /// Payload bytes of every segment but the last, which may be shorter.
    pub gso_size: u16,
    /// Where the checksum starts summing, from the start of the packet.
    pub csum_start: u16,
    /// Where the checksum is stored, from `csum_start`.
    pub csum_offset: u16,
}

impl VirtioNetHeader {
    /// Encoded length in bytes.
    pub const LEN: usize = 10;

    /// Reads a header as the kernel wrote it. Every bit pattern decodes; [`crate::split`] judges the content.
    #[must_use]
    pub const fn decode(bytes: &[u8; Self::LEN]) -> Self {
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: u16::from_ne_bytes([bytes[2], bytes[3]]),
            gso_size: u16::from_ne_bytes([bytes[4], bytes[5]]),
            csum_start: u16::from_ne_bytes([bytes[6], bytes[7]]),
            csum_offset: u16::from_ne_bytes([bytes[8], bytes[9]]),
        }
    }

    /// The bytes to write in front of the packet.
    #[must_use]
    pub const fn encode(&self) -> [u8; Self::LEN] {
        let hdr_len = self.hdr_len.to_ne_bytes();
        let gso_size = self.gso_size.to_ne_bytes();
        let csum_start = self.csum_start.to_ne_bytes();
        let csum_offset = self.csum_offset.to_ne_bytes();
        [
            self.flags,
            self.gso_type,
            hdr_len[0],
            hdr_len[1],
            gso_size[0],
            gso_size[1],
            csum_start[0],
            csum_start[1],
            csum_offset[0],
            csum_offset[1],
        ]
    }

    /// Whether the packet's checksum is still to be completed.
    #[must_use]
    pub const fn needs_csum(&self) -> bool {
        self.flags & F_NEEDS_CSUM != 0
    }

    /// The GSO type without the [`GSO_ECN`] bit.
    #[must_use]
    pub const fn gso_kind(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_kernel_s() {
        let header = VirtioNetHeader {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_TCPV6 | GSO_ECN,
            hdr_len: 0x0102,
            gso_size: 0x0304,
            csum_start: 0x0506,
            csum_offset: 0x0708,
        };
        let bytes = header.encode();
        assert_eq!(bytes[..2], [1, 0x84]);
        assert_eq!(bytes[2..4], 0x0102u16.to_ne_bytes());
        assert_eq!(bytes[4..6], 0x0304u16.to_ne_bytes());
        assert_eq!(bytes[6..8], 0x0506u16.to_ne_bytes());
        assert_eq!(bytes[8..10], 0x0708u16.to_ne_bytes());
        assert_eq!(VirtioNetHeader::decode(&bytes), header);
        assert_eq!(header.gso_kind(), GSO_TCPV6);
        assert!(header.needs_csum());
    }

    #[test]
    fn default_is_all_zero() {
        assert_eq!(
            VirtioNetHeader::default().encode(),
            [0; VirtioNetHeader::LEN]
        );
    }
}
