//! Super-packets taken apart, against segmentation done naively.

use adit_packet::split::{SplitError, Splitter};
use adit_packet::virtio::{
    F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VirtioNetHeader,
};

use crate::coalesce;
use crate::script::{Script, noise};
use crate::wire::{Spec, TCP, UDP, get16, naive_sum, pseudo, put16};

/// Most segments looked at.
const SEGMENTS: usize = 400;
/// Most segments put together again.
const COALESCED: usize = 140;

/// The bytes are a virtio header and a packet, or how to build both and what to spoil.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    if script.flag() {
        let mut header = [0; VirtioNetHeader::LEN];
        let given = script.bytes(VirtioNetHeader::LEN);
        header[..given.len()].copy_from_slice(given);
        check(VirtioNetHeader::decode(&header), script.rest());
        return;
    }
    let spec = spec(&mut script);
    let mut packet = spec.build_partial();
    let mut header = header(&spec, script.u16());
    if spec.tcp && spec.flags & 0x80 != 0 {
        header.gso_type |= GSO_ECN;
    }
    let spoilt = !script.is_empty();
    while !script.is_empty() {
        match script.choice(4) {
            0 => header.gso_type = script.byte(),
            1 => header.csum_start = script.u16(),
            2 => header.csum_offset = script.u16(),
            _ => {
                let at = script.below(packet.len().min(128));
                packet[at] = script.byte();
            }
        }
    }
    let segments = check(header, &packet);
    if !spoilt {
        assert_ne!(segments, None, "{header:?}");
    }
}

pub(crate) fn spec(script: &mut Script<'_>) -> Spec {
    let shape = script.byte();
    let (ipv4, tcp) = (shape & 1 != 0, shape & 2 != 0);
    let length = if shape & 4 != 0 {
        script.below(65_000)
    } else {
        script.below(3000)
    };
    Spec {
        ipv4,
        tcp,
        host: shape >> 6,
        port: 5201,
        seq: script.u32(),
        flags: script.byte(),
        options: noise(1, if tcp { script.choice(11) * 4 } else { 0 }),
        tos: script.byte(),
        df: shape & 8 != 0,
        id: script.u16(),
        payload: noise(script.byte().into(), length.max(1)),
    }
}

fn header(spec: &Spec, gso_size: u16) -> VirtioNetHeader {
    VirtioNetHeader {
        flags: F_NEEDS_CSUM,
        gso_type: match (spec.tcp, spec.ipv4) {
            (true, true) => GSO_TCPV4,
            (true, false) => GSO_TCPV6,
            (false, _) => GSO_UDP_L4,
        },
        hdr_len: 0,
        gso_size: gso_size.max(1),
        csum_start: spec.transport() as u16,
        csum_offset: spec.check() as u16,
    }
}

/// Splits, compares each piece with one made naively, and hands all to coalescing. `None` if it was refused.
pub(crate) fn check(header: VirtioNetHeader, packet: &[u8]) -> Option<usize> {
    let mut splitter = match Splitter::new(header, packet) {
        Ok(splitter) => splitter,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(error != SplitError::GsoSize || header.gso_size == 0);
            return None;
        }
    };
    let count = splitter.remaining();
    let mut segments = Vec::new();
    while let Some(length) = splitter.next_len() {
        if segments.len() == SEGMENTS {
            break;
        }
        let before = splitter.remaining();
        if length > 0 {
            assert_eq!(splitter.write_next(&mut vec![0; length - 1]), None);
        }
        assert_eq!(splitter.remaining(), before);
        let mut slot = vec![0xee; length];
        assert_eq!(splitter.write_next(&mut slot), Some(length));
        assert_eq!(splitter.remaining(), before - 1);
        segments.push(slot);
    }
    assert_eq!(segments.len(), count.min(SEGMENTS));
    if header.gso_type == GSO_NONE {
        assert_eq!(segments.len(), 1);
        check_single(header, packet, &segments[0]);
    } else {
        check_segments(header, packet, &segments, count);
    }
    // Who has overtaken whom takes time in proportion to the square.
    segments.truncate(COALESCED);
    coalesce::check_batches(&[segments], coalesce::ALL);
    Some(count)
}

fn check_single(header: VirtioNetHeader, packet: &[u8], written: &[u8]) {
    if !header.needs_csum() {
        assert_eq!(written, packet);
        return;
    }
    let start = usize::from(header.csum_start);
    let field = start + usize::from(header.csum_offset);
    let mut expected = packet.to_vec();
    put16(&mut expected, field, !naive_sum(&[&packet[start..]]));
    if get16(&expected, field) == 0 && get16(written, field) == 0xffff {
        // UDP has two zeros, and only one of them is a checksum.
        put16(&mut expected, field, 0xffff);
    }
    assert_eq!(written, expected);
}

fn check_segments(header: VirtioNetHeader, packet: &[u8], segments: &[Vec<u8>], count: usize) {
    let ipv4 = packet[0] >> 4 == 4;
    let tcp = header.gso_kind() != GSO_UDP_L4;
    let plain = if ipv4 {
        usize::from(packet[0] & 15) * 4
    } else {
        40
    };
    let transport = if header.needs_csum() {
        usize::from(header.csum_start)
    } else {
        plain
    };
    let header_len = transport
        + if tcp {
            usize::from(packet[transport + 12] >> 4) * 4
        } else {
            8
        };
    let gso_size = usize::from(header.gso_size);
    let payload = &packet[header_len..];
    assert_eq!(count, payload.len().div_ceil(gso_size).max(1));
    for (index, segment) in segments.iter().enumerate() {
        let from = (index * gso_size).min(payload.len());
        let piece = &payload[from..payload.len().min(from + gso_size)];
        let mut expected = [&packet[..header_len], piece].concat();
        let length = expected.len();
        if ipv4 {
            put16(&mut expected, 2, length as u16);
            let id = get16(packet, 4).wrapping_add(index as u16);
            put16(&mut expected, 4, id);
            put16(&mut expected, 10, 0);
            let check = !naive_sum(&[&expected[..transport]]);
            put16(&mut expected, 10, check);
        } else {
            put16(&mut expected, 4, (length - 40) as u16);
        }
        let (protocol, check) = if tcp {
            let seq = &mut expected[transport + 4..transport + 8];
            let first = u32::from_be_bytes(seq.try_into().unwrap());
            let here = first.wrapping_add((index * gso_size) as u32);
            seq.copy_from_slice(&here.to_be_bytes());
            if index + 1 != count {
                expected[transport + 13] &= !0x09;
            }
            if index != 0 {
                expected[transport + 13] &= !0x80;
            }
            (TCP, transport + 16)
        } else {
            put16(&mut expected, transport + 4, (length - transport) as u16);
            (UDP, transport + 6)
        };
        if transport == plain {
            put16(&mut expected, check, 0);
            let pseudo = pseudo(&expected, protocol, length - transport);
            let sum = match !naive_sum(&[&pseudo, &expected[transport..]]) {
                0 if !tcp => 0xffff,
                sum => sum,
            };
            put16(&mut expected, check, sum);
        } else {
            // Behind extension headers the kernel's partial sum stands for addresses that are not at hand.
            put16(&mut expected, check, get16(segment, check));
        }
        assert_eq!(*segment, expected, "segment {index} of {count}");
    }
}
