//! What one packet is to the coalescer, from its headers alone; and whether it continues another.

use super::Offloads;
use crate::checksum;
use crate::header::{
    IPV4_CHECK, IPV4_FRAGMENT, IPV4_LEN, IPV6_LEN, TCP, TCP_ACK, TCP_CHECK, TCP_LEN, TCP_PSH, UDP,
    UDP_CHECK, UDP_LEN, addresses, get16, pseudo_sum,
};

/// Hash of everything a flow is known by: addresses, protocol and ports.
pub(super) type FlowHash = u64;
/// Hash of the addresses alone.
pub(super) type AddressHash = u64;

/// What to do about a packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// May start or continue a run.
    Mergeable(Candidate),
    /// Goes alone, and ends the run of its own flow.
    Alone(FlowHash),
    /// Its flow cannot be told; ends every run between its addresses.
    Unclear(AddressHash),
    /// Nothing can be told; ends every run.
    Opaque,
    /// Goes alone and can share a flow with no run, because its kind is never merged here.
    Free,
}

/// A packet whose headers allow merging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) flow: FlowHash,
    pub(super) addresses: AddressHash,
    pub(super) kind: Kind,
    /// Bytes of headers, and so where the payload starts. At most 40 + 60.
    pub(super) header_len: usize,
}

/// Network and transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) ipv4: bool,
    pub(super) tcp: bool,
}

impl Kind {
    /// Where the transport header starts: no packet with IP options or extension headers is merged.
    pub(super) const fn transport(self) -> usize {
        if self.ipv4 { IPV4_LEN } else { IPV6_LEN }
    }

    pub(super) const fn protocol(self) -> u8 {
        if self.tcp { TCP } else { UDP }
    }

    /// Where the checksum is stored in the transport header.
    pub(super) const fn check(self) -> usize {
        if self.tcp { TCP_CHECK } else { UDP_CHECK }
    }

    const fn offered(self, offloads: Offloads) -> bool {
        match (self.tcp, self.ipv4) {
            (true, true) => offloads.tcp4,
            (true, false) => offloads.tcp6,
            (false, true) => offloads.udp4,
            (false, false) => offloads.udp6,
        }
    }
}

/// Looks at the headers of `packet`; checksums are left for when a merge is about to happen.
pub(super) fn classify(packet: &[u8], offloads: Offloads) -> Class {
    let (ipv4, plausible, protocol) = match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= IPV4_LEN => {
            let plausible = packet[0] & 0x0f == 5
                && usize::from(get16(packet, 2)) == packet.len()
                && get16(packet, 6) & IPV4_FRAGMENT == 0;
            (true, plausible, packet[9])
        }
        Some(6) if packet.len() >= IPV6_LEN => {
            let plausible = usize::from(get16(packet, 4)) + IPV6_LEN == packet.len();
            (false, plausible, packet[6])
        }
        _ => return Class::Opaque,
    };
    let between = hash(u64::from(ipv4), addresses(packet, ipv4));
    let tcp = protocol == TCP;
    if !plausible || !(tcp || protocol == UDP) {
        return Class::Unclear(between);
    }
    let kind = Kind { ipv4, tcp };
    let transport = &packet[kind.transport()..];
    let Some((ports, _)) = transport.split_first_chunk::<4>() else {
        return Class::Unclear(between);
    };
    if !kind.offered(offloads) {
        return Class::Free;
    }
    let flow = hash(between ^ u64::from(protocol), ports);
    let transport_header = if tcp {
        tcp_header(transport)
    } else {
        udp_header(transport)
    };
    match transport_header {
        Some(len) => Class::Mergeable(Candidate {
            flow,
            addresses: between,
            kind,
            header_len: kind.transport() + len,
        }),
        None => Class::Alone(flow),
    }
}

/// The length of the TCP header if the segment may be merged.
fn tcp_header(segment: &[u8]) -> Option<usize> {
    if segment.len() < TCP_LEN {
        return None;
    }
    let len = usize::from(segment[12] >> 4) * 4;
    let flags_allow = segment[13] & !TCP_PSH == TCP_ACK;
    (flags_allow && len >= TCP_LEN && len < segment.len()).then_some(len)
}

/// The length of the UDP header if the datagram may be merged. One without a checksum may not: segmentation always
/// writes one, so the datagram would change on its way (the kernel's `udp_gro_receive_segment` refuses it likewise).
fn udp_header(datagram: &[u8]) -> Option<usize> {
    let len_agrees = datagram.len() > UDP_LEN && usize::from(get16(datagram, 4)) == datagram.len();
    (len_agrees && get16(datagram, UDP_CHECK) != 0).then_some(UDP_LEN)
}

/// Whether segmentation of a super-packet with the headers of `first` could give the headers of `next`, apart from
/// the fields that count up (IPv4 id, TCP sequence number), lengths and checksums. Both are candidates of equal kind
/// and header length.
pub(super) fn same_headers(kind: Kind, header_len: usize, first: &[u8], next: &[u8]) -> bool {
    let network = if kind.ipv4 {
        // Version, header length, TOS; flags, offset, TTL, protocol; addresses.
        same::<2>(first, next, 0) && same::<4>(first, next, 6) && same::<8>(first, next, 12)
    } else {
        // Version, traffic class, flow label; next header, hop limit, addresses.
        same::<4>(first, next, 0) && same::<34>(first, next, 6)
    };
    let at = kind.transport();
    if !kind.tcp {
        return network && same::<4>(first, next, at);
    }
    // Ports; acknowledgement, data offset; window; urgent pointer; options. The flags are checked, PSH apart.
    network
        && same::<4>(first, next, at)
        && same::<5>(first, next, at + 8)
        && same::<2>(first, next, at + 14)
        && same::<2>(first, next, at + 18)
        && first[at + TCP_LEN..header_len] == next[at + TCP_LEN..header_len]
}

/// Compares a field of known length without a call.
#[inline(always)]
fn same<const N: usize>(first: &[u8], next: &[u8], at: usize) -> bool {
    first[at..at + N].first_chunk::<N>() == next[at..at + N].first_chunk::<N>()
}

/// Whether the checksums of a candidate are right and the ones segmentation would compute (of the two representations
/// of zero only one is).
pub(super) fn checksums_right(kind: Kind, packet: &[u8]) -> bool {
    let at = kind.transport();
    if kind.ipv4 {
        let right = checksum::fold(checksum::sum(&packet[..at])) == 0xffff;
        if !right || get16(packet, IPV4_CHECK) == 0xffff {
            return false;
        }
    }
    if kind.tcp && get16(packet, at + TCP_CHECK) == 0xffff {
        return false;
    }
    let segment = &packet[at..];
    let pseudo = pseudo_sum(packet, kind.ipv4, kind.protocol()) + segment.len() as u64;
    checksum::fold(pseudo + checksum::sum(segment)) == 0xffff
}

/// Spreads the bytes of addresses or ports, a multiple of four, over 64 bits. Collisions cost merges, never
/// correctness, so speed matters more than strength.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().fold(seed, |state, word| {
        let mixed = (state ^ u64::from(u32::from_ne_bytes(*word))).wrapping_mul(ODD);
        mixed ^ (mixed >> 29)
    })
}
