//! Congestion marks across a tunnel: RFC 6040, normal mode, as `include/net/inet_ecn.h` does for the kernel's tunnels.
//!
//! The DSCP stays inside (RFC 2983 calls it the pipe model); only the two ECN bits cross.

use crate::checksum;
use crate::header::{IPV4_CHECK, IPV4_LEN, IPV6_LEN, get16, put16};

/// Not ECN-capable.
pub const NOT_ECT: u8 = 0b00;
/// ECN-capable, codepoint 1 (also the L4S identifier, RFC 9331).
pub const ECT_1: u8 = 0b01;
/// ECN-capable, codepoint 0.
pub const ECT_0: u8 = 0b10;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// What to do with a packet after decapsulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Deliver it.
    Keep,
    /// Drop it: congestion was signalled on a packet whose sender cannot hear of it otherwise.
    Drop,
}

/// The ECN bits of the outer header for an inner packet: a copy of its own (RFC 6040 section 4.1). Zero, not
/// ECN-capable, for anything that is no IP packet.
#[must_use]
pub fn encapsulate(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if first >> 4 == 4 => second & CE,
        [first, second, ..] if first >> 4 == 6 => second >> 4 & CE,
        _ => NOT_ECT,
    }
}

/// Merges the ECN bits of the outer header (its whole traffic class may be passed) into a decrypted inner packet, by
/// the table of RFC 6040 section 4.2. An ECN-capable packet stays so; the IPv4 header checksum is kept right.
/// Anything that is no IP packet is left alone.
pub fn decapsulate(outer_ecn: u8, packet: &mut [u8]) -> Verdict {
    let inner = encapsulate(packet);
    let merged = match (inner, outer_ecn & CE) {
        (NOT_ECT, CE) => return Verdict::Drop,
        (ECT_0 | ECT_1, CE) => CE,
        (ECT_0, ECT_1) => ECT_1,
        _ => return Verdict::Keep,
    };
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= IPV4_LEN => {
            let old = get16(packet, 0);
            packet[1] = packet[1] & !CE | merged;
            let check = checksum::update(get16(packet, IPV4_CHECK), old, get16(packet, 0));
            put16(packet, IPV4_CHECK, check);
        }
        Some(6) if packet.len() >= IPV6_LEN => {
            packet[1] = packet[1] & !(CE << 4) | merged << 4;
        }
        _ => {}
    }
    Verdict::Keep
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(ecn: u8) -> [u8; 20] {
        let mut packet = [0; 20];
        packet[..12].copy_from_slice(&[0x45, 0xb8 | ecn, 0, 20, 1, 2, 0x40, 0, 64, 6, 0, 0]);
        packet[12..].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let check = checksum::finish(checksum::sum(&packet));
        put16(&mut packet, IPV4_CHECK, check);
        packet
    }

    fn ipv6(ecn: u8) -> [u8; 40] {
        let mut packet = [0xa5; 40];
        packet[0] = 0x6b;
        packet[1] = 0x8c | ecn << 4;
        packet
    }

    /// Rows: inner; columns: outer, in the order of RFC 6040 figure 4: Not-ECT, ECT(0), ECT(1), CE. `None` is drop.
    const TABLE: [(u8, [Option<u8>; 4]); 4] = [
        (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
        (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
        (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
        (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
    ];

    #[test]
    fn the_table_of_rfc_6040() {
        for (inner, row) in TABLE {
            for (outer, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
                let (mut v4, mut v6) = (ipv4(inner), ipv6(inner));
                // A DSCP on the outer header must not matter.
                let verdicts = [
                    decapsulate(0x28 | outer, &mut v4),
                    decapsulate(outer, &mut v6),
                ];
                let verdict = if expected.is_some() {
                    Verdict::Keep
                } else {
                    Verdict::Drop
                };
                assert_eq!(verdicts, [verdict; 2]);
                let result = expected.unwrap_or(inner);
                assert_eq!(v4, ipv4(result), "{inner} in {outer}, checksum included");
                assert_eq!(v6, ipv6(result));
                assert_eq!([encapsulate(&v4), encapsulate(&v6)], [result; 2]);
            }
        }
    }

    #[test]
    fn nonsense_is_left_alone() {
        for packet in [
            &mut [][..],
            &mut [0x45],
            &mut [0x45, 2, 0],
            &mut [0x6f, 0xff],
            &mut [0x12, 0xff, 3],
        ] {
            let before = packet.to_vec();
            for outer in 0..4 {
                let _ = decapsulate(outer, packet);
                assert_eq!(packet, before);
            }
        }
    }
}
