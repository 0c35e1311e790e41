//! The outer headers of a received frame. Pure: bytes in, addresses and payload out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;

const ETHERNET: usize = 14;
const UDP: usize = 8;
const PROTOCOL_UDP: u8 = 17;

/// Length in bytes of the shortest data message, and of the prefix (type, receiver, counter) that tells one message
/// of a session from the next. WireGuard paper, section 5.4.6.
const DATA_MESSAGE: usize = 32;
const DATA_PREFIX: usize = 16;

/// What the outer headers of a frame say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Where the datagram comes from. A link-local address has the interface as its scope.
    pub from: SocketAddr,
    /// The address of ours it was sent to.
    pub local: IpAddr,
    /// The two ECN bits of the outer header (RFC 3168).
    pub ecn: u8,
    /// Where in the frame the UDP payload lies.
    pub payload: Range<usize>,
}

/// Reads an Ethernet frame that carries a UDP datagram without IP options, extension headers or fragmentation, as the
/// XDP program steers them. `None` for anything else; nothing in a frame can make it panic.
///
/// The UDP checksum is not verified: the payload is authenticated, and a frame from a virtual interface may still
/// wait for its checksum.
#[must_use]
pub fn parse(frame: &[u8], ifindex: u32) -> Option<Outer> {
    let ip = frame.get(ETHERNET..)?;
    match frame[12..ETHERNET] {
        [0x08, 0x00] => parse_ipv4(ip),
        [0x86, 0xdd] => parse_ipv6(ip, ifindex),
        _ => None,
    }
}

fn parse_ipv4(ip: &[u8]) -> Option<Outer> {
    const HEADER: usize = 20;
    let header: &[u8; HEADER] = ip.first_chunk()?;
    let total = usize::from(be16(header[2], header[3]));
    // Version and header length; anything but "don't fragment" in the fragment field.
    if header[0] != 0x45 || be16(header[6], header[7]) & 0xbfff != 0 || header[9] != PROTOCOL_UDP {
        return None;
    }
    let (from, payload) = parse_udp(ip.get(HEADER..total)?, ETHERNET + HEADER)?;
    let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    let local = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    Some(Outer {
        from: SocketAddrV4::new(source, from).into(),
        local: local.into(),
        ecn: header[1] & 3,
        payload,
    })
}

fn parse_ipv6(ip: &[u8], ifindex: u32) -> Option<Outer> {
    const HEADER: usize = 40;
    let header: &[u8; HEADER] = ip.first_chunk()?;
    let length = usize::from(be16(header[4], header[5]));
    if header[0] >> 4 != 6 || header[6] != PROTOCOL_UDP {
        return None;
    }
    let (from, payload) = parse_udp(ip.get(HEADER..HEADER + length)?, ETHERNET + HEADER)?;
    let source = Ipv6Addr::from(*header[8..].first_chunk::<16>()?);
    let local = Ipv6Addr::from(*header[24..].first_chunk::<16>()?);
    let scope = if source.is_unicast_link_local() {
        ifindex
    } else {
        0
    };
    Some(Outer {
        from: SocketAddrV6::new(source, from, 0, scope).into(),
        local: local.into(),
        // The traffic class is the low nibble of the first byte and the high nibble of the second.
        ecn: (header[1] >> 4) & 3,
        payload,
    })
}

/// Source port and payload of `udp`, which begins at `offset` of the frame and ends with the IP packet.
fn parse_udp(udp: &[u8], offset: usize) -> Option<(u16, Range<usize>)> {
    let header: &[u8; UDP] = udp.first_chunk()?;
    if usize::from(be16(header[4], header[5])) != udp.len() {
        return None;
    }
    let source = be16(header[0], header[1]);
    Some((source, offset + UDP..offset + udp.len()))
}

fn be16(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}

/// Length of each datagram but the last in a payload that may be several glued together.
///
/// In generic mode a super-packet that a local sender made with UDP GSO reaches XDP in one piece if it is small enough
/// for a frame, and nothing in the headers tells. A sender glues consecutive messages of one session, so the second
/// begins with the first one's type and receiver and the next counter: 16 bytes that cannot appear by chance.
#[must_use]
pub fn segment_size(payload: &[u8]) -> usize {
    let Some(first) = payload.first_chunk::<DATA_PREFIX>() else {
        return payload.len();
    };
    let mut wanted = *first;
    let counter = u64::from_le_bytes([
        first[8], first[9], first[10], first[11], first[12], first[13], first[14], first[15],
    ]);
    wanted[8..].copy_from_slice(&counter.wrapping_add(1).to_le_bytes());
    let rest = payload.get(DATA_MESSAGE..).unwrap_or_default();
    rest.windows(DATA_PREFIX)
        .position(|window| window == wanted)
        .map_or(payload.len(), |position| position + DATA_MESSAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap();
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0xb9]);
        frame.extend((length + 28).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2]);
        frame.extend(7000_u16.to_be_bytes());
        frame.extend(51820_u16.to_be_bytes());
        frame.extend((length + 8).to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(payload);
        frame
    }

    fn v6(source: &str, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap();
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0x20, 0, 0]);
        frame.extend((length + 8).to_be_bytes());
        frame.extend([17, 64]);
        frame.extend(source.parse::<Ipv6Addr>().unwrap().octets());
        frame.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        frame.extend(7000_u16.to_be_bytes());
        frame.extend(51820_u16.to_be_bytes());
        frame.extend((length + 8).to_be_bytes());
        frame.extend([1, 1]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn reads_ipv4() {
        let mut frame = v4(b"payload");
        // Ethernet pads short frames; the padding is not part of the datagram.
        frame.extend([0xff; 11]);
        let outer = parse(&frame, 3).unwrap();
        assert_eq!(outer.from, "192.0.2.1:7000".parse().unwrap());
        assert_eq!(outer.local, "198.51.100.2".parse::<IpAddr>().unwrap());
        assert_eq!(outer.ecn, 1);
        assert_eq!(&frame[outer.payload], b"payload");
    }

    #[test]
    fn reads_ipv6_and_gives_link_local_addresses_their_scope() {
        let frame = v6("fd00::1", b"payload");
        let outer = parse(&frame, 3).unwrap();
        assert_eq!(outer.from, "[fd00::1]:7000".parse().unwrap());
        assert_eq!(outer.local, "fd00::2".parse::<IpAddr>().unwrap());
        assert_eq!(outer.ecn, 2);
        assert_eq!(&frame[outer.payload], b"payload");
        let outer = parse(&v6("fe80::1", b""), 3).unwrap();
        assert_eq!(outer.from, "[fe80::1%3]:7000".parse().unwrap());
        assert!(outer.payload.is_empty());
    }

    #[test]
    fn refuses_what_xdp_does_not_steer() {
        let good = v4(b"payload");
        for (at, value) in [
            (12, 0x81), // VLAN
            (14, 0x46), // options
            (20, 0x20), // more fragments
            (21, 0x01), // a later fragment
            (23, 6),    // TCP
            (17, 200),  // longer than the frame
            (39, 14),   // UDP shorter than IP says
        ] {
            let mut frame = good.clone();
            frame[at] = value;
            assert_eq!(parse(&frame, 0), None, "byte {at}");
        }
    }

    #[test]
    fn finds_glued_messages_by_the_next_counter() {
        let message = |counter: u64, length: usize| {
            let mut bytes = vec![4, 0, 0, 0, 9, 8, 7, 6];
            bytes.extend(counter.to_le_bytes());
            bytes.resize(length, 0x55);
            bytes
        };
        let one = message(u64::from(u32::MAX), 80);
        assert_eq!(segment_size(&one), 80);
        let glued = [
            one.clone(),
            message(1 << 32, 80),
            message((1 << 32) + 1, 48),
        ]
        .concat();
        assert_eq!(segment_size(&glued), 80);
        let other = [one, message(7, 80)].concat();
        assert_eq!(segment_size(&other), 160);
        assert_eq!(segment_size(b"short"), 5);
    }

    proptest! {
        #[test]
        fn garbage_neither_panics_nor_points_outside(
            mut frame in proptest::collection::vec(any::<u8>(), 0..200),
            kind in 0..3,
        ) {
            let plausible: &[u8] = match kind {
                0 => &[0x08, 0, 0x45],
                1 => &[0x86, 0xdd, 0x60],
                _ => &[],
            };
            if frame.len() >= 24 {
                frame[12..12 + plausible.len()].copy_from_slice(plausible);
                frame[20] = 17;
                frame[23] = 17;
            }
            if let Some(outer) = parse(&frame, 1) {
                prop_assert!(outer.payload.start <= outer.payload.end && outer.payload.end <= frame.len());
                let payload = &frame[outer.payload];
                prop_assert!(segment_size(payload) <= payload.len());
            }
        }
    }
}
