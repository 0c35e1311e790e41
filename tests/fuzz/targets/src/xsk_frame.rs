//! Frames that XDP steered: outer headers, and several messages glued together.

use std::net::IpAddr;

use adit_kernel::xsk::frame::{Outer, parse, segment_size};

use crate::script::{Script, noise};

/// The bytes are a frame, or what to build one of and spoil in it.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    if script.flag() {
        check(script.rest());
        return;
    }
    let ipv4 = script.flag();
    let ecn = script.byte() & 3;
    let messages = script.choice(6);
    let length = 32 + script.below(300);
    let mut payload = Vec::new();
    for number in 0..messages {
        let last = number + 1 == messages;
        let length = if last {
            32 + script.below(length - 31)
        } else {
            length
        };
        payload.extend([4, 0, 0, 0, 1, 2, 3, 4]);
        payload.extend((number as u64 + 0xff).to_le_bytes());
        payload.extend(noise(number as u64, length - 16));
    }
    let mut frame = frame(ipv4, ecn, &payload);
    // Whether Ethernet pads it, nothing may depend on that.
    frame.extend(script.bytes(3));
    let spoilt = !script.is_empty();
    while !script.is_empty() {
        let at = script.below(frame.len());
        frame[at] = script.byte();
    }
    let outer = check(&frame);
    if !spoilt {
        let outer = outer.unwrap();
        assert_eq!((outer.ecn, &frame[outer.payload]), (ecn, &payload[..]));
        if messages > 1 {
            assert_eq!(segment_size(&payload), length);
        }
    }
}

fn check(frame: &[u8]) -> Option<Outer> {
    let outer = parse(frame, 7)?;
    assert!(outer.ecn < 4);
    assert_eq!(outer.from.ip().is_ipv4(), outer.local.is_ipv4());
    let from = match outer.from.ip() {
        IpAddr::V4(_) => 42,
        IpAddr::V6(_) => 62,
    };
    assert_eq!(outer.payload.start, from);
    let payload = &frame[outer.payload.clone()];
    let size = segment_size(payload);
    assert!(size <= payload.len() && (size > 0 || payload.is_empty()));
    if size < payload.len() {
        assert!(size >= 32);
        assert_eq!(payload[..8], payload[size..size + 8]);
    }
    Some(outer)
}

fn frame(ipv4: bool, ecn: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = noise(1, 12);
    let udp = (8 + payload.len()) as u16;
    if ipv4 {
        frame.extend([8, 0, 0x45, ecn]);
        frame.extend((20 + udp).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    } else {
        frame.extend([0x86, 0xdd, 0x60, ecn << 4, 0, 0]);
        frame.extend(udp.to_be_bytes());
        frame.extend([17, 64]);
        frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    }
    frame.extend([0xca, 0x6c, 0xca, 0x6c]);
    frame.extend(udp.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}
