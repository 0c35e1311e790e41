//! Noticing that a path eats large packets: a TCP segment is repeated again and again, while the peer
//! is heard of.
//!
//! TCP repeats a segment that is not acknowledged after its timeout, alone, then after twice as long,
//! and so on. The same large segment for the third time means that none got through. If the peer is
//! heard of meanwhile, it is not the whole path that is down. Being wrong costs little: segments are
//! smaller than they need be, for ten minutes.

use std::net::IpAddr;

use adit_protocol::{InnerPacket, Instant};

/// Flows that are watched at once, those that send one segment at a time. Too few of them only means
/// that it takes longer.
const FLOWS: usize = 64;
/// The same segment for so many times,
const SIGHTINGS: u8 = 3;
/// over so long, is a stall: more than duplicates, and one that selective acknowledgements have repaired.
const STALL: u64 = 500_000_000;
/// Nanoseconds for which a flow that seems stuck keeps its place.
const KEPT: u64 = 20_000_000_000;
const PROTOCOL_TCP: u8 = 6;
/// Sequence number and payload lie beyond the ports.
const TCP_HEADER: usize = 20;

/// The last segment of a flow.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    key: u64,
    sequence: u32,
    sightings: u8,
    since: u64,
    /// What had come from the peer by then, in bytes.
    heard: u64,
}

/// The flows of one egress thread.
#[derive(Debug)]
pub(in crate::dataplane) struct Stalls {
    flows: [Flow; FLOWS],
}

impl Stalls {
    pub(in crate::dataplane) fn new() -> Self {
        Self {
            flows: [Flow::default(); FLOWS],
        }
    }

    /// Looks at a large inner packet that was not put together from several. True if it is the segment of a
    /// flow that is stuck; `heard` is what has come from its peer so far, in bytes.
    pub(in crate::dataplane) fn see(
        &mut self,
        now: Instant,
        inner: &InnerPacket,
        packet: &[u8],
        heard: u64,
    ) -> bool {
        let Some((key, sequence)) = segment(inner, packet) else {
            return false;
        };
        let now = now.as_nanos();
        let place = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let flow = &mut self.flows[usize::try_from(place).unwrap_or(0) % FLOWS];
        let age = now.saturating_sub(flow.since);
        if flow.key == key && flow.sequence == sequence && flow.sightings > 0 {
            flow.sightings = flow.sightings.saturating_add(1);
            let stuck = flow.sightings >= SIGHTINGS && age >= STALL && heard > flow.heard;
            if stuck {
                *flow = Flow::default();
            }
            return stuck;
        }
        if flow.key == key || flow.sightings < 2 || age > KEPT {
            *flow = Flow {
                key,
                sequence,
                sightings: 1,
                since: now,
                heard,
            };
        }
        false
    }
}

/// The flow and the sequence number of a TCP segment; fragments and extension headers are passed over.
fn segment(inner: &InnerPacket, packet: &[u8]) -> Option<(u64, u32)> {
    let (at, protocol) = match inner.source {
        IpAddr::V4(_) => {
            let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
            let header = usize::from(packet.first()? & 15) * 4;
            (header, if fragment == 0 { *packet.get(9)? } else { 0 })
        }
        IpAddr::V6(_) => (40, *packet.get(6)?),
    };
    if protocol != PROTOCOL_TCP {
        return None;
    }
    let header = packet.get(at..at + TCP_HEADER)?;
    let word = |at: usize| {
        let bytes = header.get(at..at + 4).and_then(|word| word.try_into().ok());
        u32::from_be_bytes(bytes.unwrap_or_default())
    };
    // Few flows need to be told apart, and whoever makes two collide has only slowed down himself.
    let key = fold(inner.source)
        .wrapping_mul(31)
        .wrapping_add(fold(inner.destination))
        .wrapping_mul(31)
        .wrapping_add(u64::from(word(0)));
    Some((key, word(4)))
}

fn fold(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let [high, low] = [address.to_bits() >> 64, address.to_bits()];
            u64::try_from((high ^ low) & u128::from(u64::MAX)).unwrap_or(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(v4: bool, protocol: u8, port: u8, sequence: u32) -> Vec<u8> {
        let mut packet = vec![0; 1400];
        let at = if v4 { 20 } else { 40 };
        if v4 {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&1400_u16.to_be_bytes());
            packet[9] = protocol;
        } else {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&1360_u16.to_be_bytes());
            packet[6] = protocol;
        }
        packet[at + 1] = port;
        packet[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
        packet
    }

    fn see(stalls: &mut Stalls, milliseconds: u64, heard: u64, packet: &[u8]) -> bool {
        let inner = InnerPacket::parse(packet).unwrap();
        let now = Instant::from_nanos(1 + milliseconds * 1_000_000);
        stalls.see(now, &inner, packet, heard)
    }

    #[test]
    fn a_segment_repeated_while_the_peer_is_heard_of_is_a_stall() {
        for v4 in [true, false] {
            let stuck = packet(v4, 6, 1, 77);
            let mut stalls = Stalls::new();
            assert!(!see(&mut stalls, 0, 5, &stuck));
            assert!(!see(&mut stalls, 250, 6, &stuck));
            assert!(see(&mut stalls, 650, 6, &stuck));
            // Said once; what follows is looked at anew.
            assert!(!see(&mut stalls, 700, 6, &stuck));

            // A peer that is not heard of at all is down or far away.
            let mut stalls = Stalls::new();
            for seconds in 0..14 {
                assert!(!see(&mut stalls, seconds * 1000, 5, &stuck));
            }
            assert!(see(&mut stalls, 15_000, 6, &stuck));
        }
    }

    #[test]
    fn progress_duplicates_and_others_are_no_stall() {
        let mut stalls = Stalls::new();
        for sequence in 0..1000 {
            let moves = packet(true, 6, 1, sequence);
            assert!(!see(&mut stalls, u64::from(sequence) * 100, 100, &moves));
        }
        let udp = packet(true, 17, 1, 77);
        let mut fragment = packet(true, 6, 1, 77);
        fragment[6] = 0x20;
        for round in 1..20 {
            assert!(!see(
                &mut stalls,
                100_000 + round,
                round,
                &packet(false, 6, 1, 9)
            ));
            assert!(!see(&mut stalls, round * 1000, round, &udp));
            assert!(!see(&mut stalls, round * 1000, round, &fragment));
        }
    }

    #[test]
    fn a_stuck_flow_keeps_its_place_among_many() {
        let mut stalls = Stalls::new();
        let stuck = packet(true, 6, 1, 77);
        see(&mut stalls, 0, 1, &stuck);
        see(&mut stalls, 200, 1, &stuck);
        for port in 2..=255 {
            see(&mut stalls, 300, 2, &packet(true, 6, port, u32::from(port)));
        }
        assert!(see(&mut stalls, 600, 3, &stuck));
    }
}
