//! Taking apart what a TUN device with `IFF_VNET_HDR` delivers: TSO and USO super-packets, and single packets whose
//! checksum is still to be completed.
//!
//! Follows `tcp_gso_segment`, `__udp_gso_segment`, `inet_gso_segment` and `ipv6_gso_segment` of the kernel: the
//! headers are repeated in front of every `gso_size` bytes of payload, lengths, IPv4 id, TCP sequence number, flags
//! and checksums adjusted. The payload is read once: copied and summed in the same pass.
//!
//! ```
//! use adit_packet::split::Splitter;
//! use adit_packet::virtio::{F_NEEDS_CSUM, GSO_UDP_L4, VirtioNetHeader};
//!
//! # fn main() -> Result<(), adit_packet::split::SplitError> {
//! // Two datagrams of 4 and 2 bytes in one IPv4/UDP super-packet.
//! let mut packet = vec![0x45, 0, 0, 34, 0, 7, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
//! packet.extend([0x30, 0x39, 0, 53, 0, 14, 0, 0]);
//! packet.extend(b"abcdef");
//! let header = VirtioNetHeader {
//!     flags: F_NEEDS_CSUM,
//!     gso_type: GSO_UDP_L4,
//!     gso_size: 4,
//!     csum_start: 20,
//!     csum_offset: 6,
//!     ..VirtioNetHeader::default()
//! };
//!
//! let mut splitter = Splitter::new(header, &packet)?;
//! assert_eq!(splitter.remaining(), 2);
//! let mut slot = [0; 64];
//! let mut payloads = Vec::new();
//! while let Some(len) = splitter.write_next(&mut slot) {
//!     payloads.push(slot[28..len].to_vec());
//! }
//! assert_eq!(payloads, [&b"abcd"[..], b"ef"]);
//! # Ok(())
//! # }
//! ```

use crate::checksum;
use crate::header::{
    IPV4_CHECK, IPV4_FRAGMENT, IPV4_LEN, IPV6_LEN, TCP, TCP_CHECK, TCP_CWR, TCP_FIN, TCP_LEN,
    TCP_PSH, UDP, UDP_CHECK, UDP_LEN, get16, get32, pseudo_sum, put16,
};
use crate::virtio::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VirtioNetHeader};

/// Why a packet cannot be split. The packet is to be dropped and counted; the reader goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// The packet is empty or ends inside its headers.
    #[error("the packet ends inside its headers")]
    Truncated,
    /// The checksum to be completed does not lie inside the packet, or not where its headers put it.
    #[error("checksum start {start} and offset {offset} do not fit the packet")]
    Checksum {
        /// `csum_start` of the virtio header.
        start: u16,
        /// `csum_offset` of the virtio header.
        offset: u16,
    },
    /// A GSO type that was never offered to the kernel, or does not exist.
    #[error("unknown GSO type {0:#04x}")]
    GsoType(u8),
    /// A super-packet with a segment size of zero.
    #[error("GSO size of zero")]
    GsoSize,
    /// The headers are not those of the GSO type, or contradict each other or the length of the packet.
    #[error("the packet's headers do not fit its GSO type or its length")]
    Headers,
    /// A segment would not fit the length field of its IP header.
    #[error("a segment would be longer than an IP packet can be")]
    TooLong,
}

/// The packets inside one read from the TUN device, written out one at a time.
///
/// One super-packet may hold thousands of segments (a tiny MSS) while the caller's buffers are finite, so splitting
/// can pause between any two segments.
#[derive(Debug)]
pub struct Splitter<'a> {
    packet: &'a [u8],
    shape: Shape,
    next: usize,
    count: usize,
}

#[derive(Debug)]
enum Shape {
    /// One packet; the checksum to be completed starts and lies here.
    Single(Option<Completion>),
    Segments(Segments),
}

#[derive(Debug)]
struct Completion {
    start: usize,
    field: usize,
    zero_means_none: bool,
}

/// What is the same for all segments of a super-packet.
#[derive(Debug)]
struct Segments {
    ipv4: bool,
    tcp: bool,
    /// Where the transport header starts.
    transport: usize,
    /// Bytes of headers in front of every payload.
    header_len: usize,
    /// Payload bytes of every segment but the last.
    gso_size: usize,
    /// Sum of the IPv4 header without total length, id and checksum.
    ip_sum: u64,
    /// Sum of pseudo header and transport header without lengths, sequence number, flags and checksum.
    transport_sum: u64,
    first_id: u16,
    first_seq: u32,
    /// Data offset and flags of the super-packet's TCP header.
    offset_and_flags: u16,
}

impl<'a> Splitter<'a> {
    /// Examines `packet`, which the TUN device delivered after `header`. `hdr_len` is not trusted: the headers'
    /// length is derived from the headers.
    ///
    /// # Errors
    /// [`SplitError`] if the packet is no such thing as the header says; nothing is left to be read from it then.
    pub fn new(header: VirtioNetHeader, packet: &'a [u8]) -> Result<Self, SplitError> {
        if packet.is_empty() {
            return Err(SplitError::Truncated);
        }
        if header.gso_type == GSO_NONE {
            let completion = header.needs_csum().then(|| completion(header, packet));
            return Ok(Self {
                packet,
                shape: Shape::Single(completion.transpose()?),
                next: 0,
                count: 1,
            });
        }
        let segments = Segments::new(header, packet)?;
        let payload = packet.len() - segments.header_len;
        let count = payload.div_ceil(segments.gso_size).max(1);
        Ok(Self {
            packet,
            shape: Shape::Segments(segments),
            next: 0,
            count,
        })
    }

    /// How many packets are still to be written.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.count - self.next
    }

    /// Bytes of the next packet, or `None` when all are written.
    #[must_use]
    pub fn next_len(&self) -> Option<usize> {
        if self.next == self.count {
            return None;
        }
        Some(match &self.shape {
            Shape::Single(_) => self.packet.len(),
            Shape::Segments(segments) => {
                let left = self.packet.len() - segments.header_len - self.next * segments.gso_size;
                segments.header_len + left.min(segments.gso_size)
            }
        })
    }

    /// Writes the next packet to the front of `slot` and returns its length. `None`, with nothing consumed, if all
    /// packets are written or the slot is smaller than [`next_len`](Self::next_len).
    pub fn write_next(&mut self, slot: &mut [u8]) -> Option<usize> {
        let len = self.next_len()?;
        let slot = slot.get_mut(..len)?;
        match &self.shape {
            Shape::Single(None) => slot.copy_from_slice(self.packet),
            Shape::Single(Some(completion)) => completion.write(self.packet, slot),
            Shape::Segments(segments) => {
                segments.write(self.packet, self.next, self.next + 1 == self.count, slot);
            }
        }
        self.next += 1;
        Some(len)
    }
}

fn completion(header: VirtioNetHeader, packet: &[u8]) -> Result<Completion, SplitError> {
    let start = usize::from(header.csum_start);
    let field = start + usize::from(header.csum_offset);
    if field + 2 > packet.len() {
        return Err(SplitError::Checksum {
            start: header.csum_start,
            offset: header.csum_offset,
        });
    }
    let zero_means_none =
        field == start + UDP_CHECK && transport_protocol(packet, start) == Some(UDP);
    Ok(Completion {
        start,
        field,
        zero_means_none,
    })
}

impl Completion {
    /// The field already holds the sum of the pseudo header, so it is simply summed along with the rest.
    fn write(&self, packet: &[u8], slot: &mut [u8]) {
        let (head, body) = slot.split_at_mut(self.start);
        head.copy_from_slice(&packet[..self.start]);
        let sum = checksum::copy_and_sum(body, &packet[self.start..]);
        let check = checksum::finish(sum);
        put16(slot, self.field, not_none(check, self.zero_means_none));
    }
}

/// In UDP a checksum of zero says "none"; the one that computes to zero is sent as its other representation (RFC 768).
const fn not_none(check: u16, zero_means_none: bool) -> u16 {
    if zero_means_none && check == 0 {
        0xffff
    } else {
        check
    }
}

/// The protocol of the transport header at `transport`, following the IPv6 extension headers that may stand in front
/// of it in a packet that is not fragmented.
fn transport_protocol(packet: &[u8], transport: usize) -> Option<u8> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    match packet.first()? >> 4 {
        4 => packet.get(9).copied(),
        6 => {
            let mut next_header = *packet.get(6)?;
            let mut at = IPV6_LEN;
            while at < transport && matches!(next_header, HOP_BY_HOP | ROUTING | DESTINATION) {
                next_header = *packet.get(at)?;
                at += (usize::from(*packet.get(at + 1)?) + 1) * 8;
            }
            (at == transport).then_some(next_header)
        }
        _ => None,
    }
}

impl Segments {
    fn new(header: VirtioNetHeader, packet: &[u8]) -> Result<Self, SplitError> {
        let (tcp, must_be) = match header.gso_kind() {
            GSO_TCPV4 => (true, Some(4)),
            GSO_TCPV6 => (true, Some(6)),
            GSO_UDP_L4 => (false, None),
            _ => return Err(SplitError::GsoType(header.gso_type)),
        };
        if header.gso_size == 0 {
            return Err(SplitError::GsoSize);
        }
        let version = packet[0] >> 4;
        if must_be.is_some_and(|must_be| must_be != version) {
            return Err(SplitError::Headers);
        }
        let ipv4 = match version {
            4 => true,
            6 => false,
            _ => return Err(SplitError::Headers),
        };
        let (protocol, check) = if tcp {
            (TCP, TCP_CHECK)
        } else {
            (UDP, UDP_CHECK)
        };

        let plain = network_header(ipv4, packet)?;
        let transport = if header.needs_csum() {
            let start = usize::from(header.csum_start);
            // Only IPv6 extension headers may stand between; then the kernel says where the transport header is.
            let misplaced = if ipv4 { start != plain } else { start < plain };
            if misplaced || usize::from(header.csum_offset) != check {
                return Err(SplitError::Checksum {
                    start: header.csum_start,
                    offset: header.csum_offset,
                });
            }
            start
        } else {
            plain
        };
        if transport_protocol(packet, transport) != Some(protocol) {
            return Err(SplitError::Headers);
        }
        let header_len = transport + transport_header_len(tcp, packet, transport)?;
        let payload = packet.len() - header_len;
        let gso_size = usize::from(header.gso_size);
        let longest = header_len + payload.min(gso_size);
        if longest - if ipv4 { 0 } else { IPV6_LEN } > usize::from(u16::MAX) {
            return Err(SplitError::TooLong);
        }

        // The partial sum in the checksum field covers the length of the whole; behind a routing header it is the
        // only source of the final destination's address.
        let pseudo = if transport == plain {
            pseudo_sum(packet, ipv4, protocol)
        } else {
            let whole = checksum::fold(length_word(packet.len() - transport));
            u64::from(get16(packet, transport + check)) + u64::from(!whole)
        };
        let ports = checksum::sum(&packet[transport..transport + 4]);
        let rest = if tcp {
            checksum::sum(&packet[transport + 8..transport + 12])
                + u64::from(get16(packet, transport + 14))
                + checksum::sum(&packet[transport + 18..header_len])
        } else {
            0
        };
        let ip_sum = if ipv4 {
            u64::from(get16(packet, 0))
                + checksum::sum(&packet[6..10])
                + checksum::sum(&packet[12..transport])
        } else {
            0
        };
        Ok(Self {
            ipv4,
            tcp,
            transport,
            header_len,
            gso_size,
            ip_sum,
            transport_sum: pseudo + ports + rest,
            first_id: if ipv4 { get16(packet, 4) } else { 0 },
            first_seq: if tcp { get32(packet, transport + 4) } else { 0 },
            offset_and_flags: if tcp {
                get16(packet, transport + 12)
            } else {
                0
            },
        })
    }

    /// Writes segment `index` to `slot`, which has exactly its length.
    fn write(&self, packet: &[u8], index: usize, last: bool, slot: &mut [u8]) {
        let len = slot.len();
        let (head, body) = slot.split_at_mut(self.header_len);
        head.copy_from_slice(&packet[..self.header_len]);
        let start = self.header_len + index * self.gso_size;
        let payload_sum = checksum::copy_and_sum(body, &packet[start..start + body.len()]);

        let (ip, transport) = head.split_at_mut(self.transport);
        if self.ipv4 {
            let (total, id) = (low16(len), self.first_id.wrapping_add(low16(index)));
            put16(ip, 2, total);
            put16(ip, 4, id);
            let sum = self.ip_sum + u64::from(total) + u64::from(id);
            put16(ip, IPV4_CHECK, checksum::finish(sum));
        } else {
            put16(ip, 4, low16(len - IPV6_LEN));
        }

        let transport_len = len - self.transport;
        let mut sum = self.transport_sum + payload_sum + length_word(transport_len);
        if self.tcp {
            let seq = self.first_seq.wrapping_add(low32(index * self.gso_size));
            transport[4..8].copy_from_slice(&seq.to_be_bytes());
            let mut offset_and_flags = self.offset_and_flags;
            if !last {
                offset_and_flags &= !u16::from(TCP_FIN | TCP_PSH);
            }
            if index > 0 {
                offset_and_flags &= !u16::from(TCP_CWR);
            }
            put16(transport, 12, offset_and_flags);
            sum += u64::from(seq >> 16) + u64::from(seq & 0xffff) + u64::from(offset_and_flags);
            put16(transport, TCP_CHECK, checksum::finish(sum));
        } else {
            let udp_len = low16(transport_len);
            put16(transport, 4, udp_len);
            sum += u64::from(udp_len);
            put16(transport, UDP_CHECK, not_none(checksum::finish(sum), true));
        }
    }
}

/// Checks the IP header against the length of the packet and returns where the next header starts.
fn network_header(ipv4: bool, packet: &[u8]) -> Result<usize, SplitError> {
    let len = packet.len();
    let (start, claimed) = if ipv4 {
        if len < IPV4_LEN {
            return Err(SplitError::Truncated);
        }
        let start = usize::from(packet[0] & 0x0f) * 4;
        if start < IPV4_LEN || get16(packet, 6) & IPV4_FRAGMENT != 0 {
            return Err(SplitError::Headers);
        }
        (start, usize::from(get16(packet, 2)))
    } else {
        if len < IPV6_LEN {
            return Err(SplitError::Truncated);
        }
        (IPV6_LEN, usize::from(get16(packet, 4)) + IPV6_LEN)
    };
    // A super-packet may be longer than its length field can say; then the field says nothing.
    let sayable = usize::from(u16::MAX) + if ipv4 { 0 } else { IPV6_LEN };
    if len <= sayable && claimed != len {
        return Err(SplitError::Headers);
    }
    if start > len {
        return Err(SplitError::Truncated);
    }
    Ok(start)
}

/// The length of the transport header at `transport`, which is checked to lie inside the packet.
fn transport_header_len(tcp: bool, packet: &[u8], transport: usize) -> Result<usize, SplitError> {
    let room = packet.len().saturating_sub(transport);
    let len = if tcp {
        if room < TCP_LEN {
            return Err(SplitError::Truncated);
        }
        usize::from(packet[transport + 12] >> 4) * 4
    } else {
        UDP_LEN
    };
    if len < if tcp { TCP_LEN } else { UDP_LEN } {
        return Err(SplitError::Headers);
    }
    if room < len {
        return Err(SplitError::Truncated);
    }
    Ok(len)
}

/// A length as a term of a partial sum; 32 bits in IPv6, and its upper half counts as a word of its own.
const fn length_word(len: usize) -> u64 {
    len as u64
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "lengths are checked in Segments::new; an id counts modulo 2^16"
)]
const fn low16(value: usize) -> u16 {
    value as u16
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "sequence numbers count modulo 2^32"
)]
const fn low32(value: usize) -> u32 {
    value as u32
}
