//! What the XDP program decides about single frames: each rule, from both sides. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
mod common;
mod packets;

use adit_kernel::bpf::{DropReason, EventLevel};
use bench::{
    Bench, DROP, HOST6, LIVE, PASS, PEER, PEER6, PORT, REDIRECT, changed, from, from6, good, good6,
    isolated, padded, patched, patched6, payload,
};
use packets::{Datagram, data, fix_ipv4, handshake, with_extension_header};

#[test]
fn every_rule_from_both_sides() {
    let table: Vec<(&str, Vec<u8>, u32, Option<DropReason>)> = vec![
        // Data.
        ("data", good(80).frame(), REDIRECT, None),
        ("data over IPv6", good6(80).frame(), REDIRECT, None),
        ("keepalive", good(32).frame(), REDIRECT, None),
        ("keepalive over IPv6", good6(32).frame(), REDIRECT, None),
        ("data with Ethernet padding", padded(90), REDIRECT, None),
        (
            "data with ECN and DSCP",
            changed(|d| d.tos = 0xb9),
            REDIRECT,
            None,
        ),
        (
            "data without DF",
            changed(|d| d.ipv4_flags = 0),
            REDIRECT,
            None,
        ),
        (
            "the longest that fits a frame",
            good(1792 - 42).frame(),
            REDIRECT,
            None,
        ),
        ("longer than a frame", good(1792 - 41).frame(), PASS, None),
        (
            "data too short",
            payload(data(LIVE, 1, 31)),
            DROP,
            Some(DropReason::TooShort),
        ),
        (
            "data without an index",
            payload(vec![4, 0, 0, 0]),
            DROP,
            Some(DropReason::TooShort),
        ),
        (
            "dead index",
            payload(data(LIVE + 1, 1, 80)),
            DROP,
            Some(DropReason::DeadIndex),
        ),
        (
            "index zero",
            payload(data(0, 1, 80)),
            DROP,
            Some(DropReason::DeadIndex),
        ),
        (
            "live index in network order",
            payload(data(LIVE.swap_bytes(), 1, 80)),
            DROP,
            Some(DropReason::DeadIndex),
        ),
        // Handshakes.
        ("initiation", payload(handshake(1, 148)), PASS, None),
        ("response", payload(handshake(2, 92)), PASS, None),
        ("cookie reply", payload(handshake(3, 64)), PASS, None),
        (
            "initiation, short",
            payload(handshake(1, 147)),
            DROP,
            Some(DropReason::TooShort),
        ),
        (
            "initiation, long",
            payload(handshake(1, 149)),
            DROP,
            Some(DropReason::HandshakeLength),
        ),
        (
            "response, short",
            payload(handshake(2, 91)),
            DROP,
            Some(DropReason::TooShort),
        ),
        (
            "response, long",
            payload(handshake(2, 93)),
            DROP,
            Some(DropReason::HandshakeLength),
        ),
        (
            "cookie reply, short",
            payload(handshake(3, 63)),
            DROP,
            Some(DropReason::TooShort),
        ),
        (
            "cookie reply, long",
            payload(handshake(3, 65)),
            DROP,
            Some(DropReason::HandshakeLength),
        ),
        // Junk.
        ("empty", payload(vec![]), DROP, Some(DropReason::TooShort)),
        (
            "three bytes",
            payload(vec![4, 0, 0]),
            DROP,
            Some(DropReason::TooShort),
        ),
        (
            "type 0",
            payload(handshake(0, 148)),
            DROP,
            Some(DropReason::UnknownType),
        ),
        (
            "type 5",
            payload(handshake(5, 148)),
            DROP,
            Some(DropReason::UnknownType),
        ),
        (
            "type 255",
            payload(handshake(255, 32)),
            DROP,
            Some(DropReason::UnknownType),
        ),
        (
            "data, reserved byte 1",
            payload([&[4, 1, 0, 0], &data(LIVE, 1, 80)[4..]].concat()),
            DROP,
            Some(DropReason::Reserved),
        ),
        (
            "data, reserved byte 3",
            payload([&[4, 0, 0, 1], &data(LIVE, 1, 80)[4..]].concat()),
            DROP,
            Some(DropReason::Reserved),
        ),
        (
            "initiation, reserved byte 2",
            payload([&[1, 0, 7, 0][..], &[0; 144]].concat()),
            DROP,
            Some(DropReason::Reserved),
        ),
        // Not for us.
        (
            "another port",
            changed(|d| d.to.set_port(PORT + 1)),
            PASS,
            None,
        ),
        (
            "another host",
            changed(|d| d.to = "198.51.100.3:51820".parse().unwrap()),
            PASS,
            None,
        ),
        (
            "another host over IPv6",
            Datagram::new(PEER6, "[2001:db8::3]:51820", data(LIVE, 1, 80)).frame(),
            PASS,
            None,
        ),
        (
            "junk to another host",
            Datagram::new(PEER, "198.51.100.3:51820", handshake(9, 9)).frame(),
            PASS,
            None,
        ),
        (
            "our port as the source",
            changed(|d| std::mem::swap(&mut d.from, &mut d.to)),
            PASS,
            None,
        ),
        (
            "broadcast frame",
            changed(|d| d.destination_mac = [0xff; 6]),
            PASS,
            None,
        ),
        (
            "multicast frame",
            changed(|d| d.destination_mac = [1, 0, 0x5e, 0, 0, 1]),
            PASS,
            None,
        ),
        ("VLAN tag", changed(|d| d.vlan = Some(5)), PASS, None),
        ("priority tag", changed(|d| d.vlan = Some(0)), PASS, None),
        // IPv4.
        (
            "options",
            changed(|d| d.ipv4_options = vec![1, 1, 1, 1]),
            PASS,
            None,
        ),
        (
            "junk with options",
            changed(|d| {
                d.ipv4_options = vec![1, 1, 1, 1];
                d.payload = vec![9];
            }),
            PASS,
            None,
        ),
        (
            "first fragment",
            changed(|d| d.ipv4_flags = 0x2000),
            PASS,
            None,
        ),
        (
            "later fragment",
            changed(|d| d.ipv4_flags = 0x00b9),
            PASS,
            None,
        ),
        (
            "last fragment with DF",
            changed(|d| d.ipv4_flags = 0x4001),
            PASS,
            None,
        ),
        (
            "reserved flag",
            changed(|d| d.ipv4_flags = 0x8000),
            PASS,
            None,
        ),
        ("TCP", patched(23, &[6]), PASS, None),
        ("IP version 5", patched(14, &[0x55]), PASS, None),
        ("header length 4", patched(14, &[0x44]), PASS, None),
        (
            "IP length beyond the frame",
            patched(16, &[0, 200]),
            PASS,
            None,
        ),
        (
            "both lengths beyond the frame",
            {
                let mut frame = patched(16, &[0, 200]);
                frame[38..40].copy_from_slice(&[0, 180]);
                fix_ipv4(frame)
            },
            PASS,
            None,
        ),
        ("UDP length differs", patched(38, &[0, 87]), PASS, None),
        ("UDP length below 8", patched(38, &[0, 7]), PASS, None),
        (
            "wrong header checksum",
            {
                let mut frame = good(80).frame();
                frame[24] ^= 1;
                frame
            },
            PASS,
            None,
        ),
        ("from 0.0.0.0", from("0.0.0.0:7000"), PASS, None),
        ("from loopback", from("127.0.0.1:7000"), PASS, None),
        ("from multicast", from("224.0.0.1:7000"), PASS, None),
        ("from broadcast", from("255.255.255.255:7000"), PASS, None),
        ("from port 0", from("192.0.2.1:0"), PASS, None),
        (
            "from the highest unicast address",
            from("223.255.255.254:7000"),
            REDIRECT,
            None,
        ),
        // IPv6.
        (
            "hop-by-hop options",
            with_extension_header(good6(80).frame(), 0, [1, 4, 0, 0, 0, 0]),
            PASS,
            None,
        ),
        (
            "destination options",
            with_extension_header(good6(80).frame(), 60, [1, 4, 0, 0, 0, 0]),
            PASS,
            None,
        ),
        (
            "IPv6 fragment",
            with_extension_header(good6(80).frame(), 44, [0, 1, 0, 0, 0, 1]),
            PASS,
            None,
        ),
        (
            "IPv6 atomic fragment",
            with_extension_header(good6(80).frame(), 44, [0, 0, 0, 0, 0, 1]),
            PASS,
            None,
        ),
        ("IPv6 with version 4", patched6(14, &[0x40]), PASS, None),
        ("TCP over IPv6", patched6(20, &[6]), PASS, None),
        (
            "IPv6 without UDP checksum",
            patched6(60, &[0, 0]),
            PASS,
            None,
        ),
        ("IPv6 length differs", patched6(18, &[0, 87]), PASS, None),
        ("from ::", from6("[::]:7000"), PASS, None),
        ("from ::1", from6("[::1]:7000"), PASS, None),
        (
            "from a mapped address",
            from6("[::ffff:192.0.2.1]:7000"),
            PASS,
            None,
        ),
        ("from IPv6 multicast", from6("[ff02::1]:7000"), PASS, None),
        ("from link-local", from6("[fe80::1]:7000"), REDIRECT, None),
        (
            "junk over IPv6",
            Datagram::new(PEER6, HOST6, vec![7; 40]).frame(),
            DROP,
            Some(DropReason::UnknownType),
        ),
        // Other protocols and the beginnings of frames.
        (
            "ARP",
            [&[0; 12][..], &[0x08, 0x06], &[0; 46]].concat(),
            PASS,
            None,
        ),
        (
            "Ethernet header only",
            good(80).frame()[..14].to_vec(),
            PASS,
            None,
        ),
        (
            "cut in the IP header",
            good(80).frame()[..33].to_vec(),
            PASS,
            None,
        ),
        (
            "cut in the UDP header",
            good(80).frame()[..41].to_vec(),
            PASS,
            None,
        ),
        (
            "cut in the message",
            good(80).frame()[..46].to_vec(),
            PASS,
            None,
        ),
        (
            "cut in the IPv6 header",
            good6(80).frame()[..50].to_vec(),
            PASS,
            None,
        ),
    ];
    assert!(table.len() >= 40);
    isolated(move || {
        let mut bench = Bench::new(EventLevel::Off);
        for (name, frame, verdict, reason) in table {
            let before = bench.drops();
            assert_eq!(bench.xdp(&frame), verdict, "{name}");
            let mut expected = before;
            if let Some(reason) = reason {
                expected[reason as usize] += 1;
            }
            assert_eq!(bench.drops(), expected, "{name}");
        }
    });
}

#[test]
fn the_programs_do_the_same_when_they_log() {
    isolated(|| {
        let mut bench = Bench::new(EventLevel::Trace);
        let mut events = bench.steering.take_events().unwrap();
        assert_eq!(bench.xdp(&good(80).frame()), REDIRECT);
        assert_eq!(bench.xdp(&good(80).frame()), REDIRECT);
        for _ in 0..5 {
            assert_eq!(bench.xdp(&payload(vec![])), DROP);
        }
        let mut lines = Vec::new();
        events.drain(|level, line| lines.push((level, line.to_owned())));
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(lines[0].0, EventLevel::Debug);
        assert!(
            lines[0].1.contains("192.0.2.1") && lines[0].1.contains("7000"),
            "{lines:?}"
        );
        assert_eq!(lines[1].0, EventLevel::Trace);
    });
    isolated(|| {
        let mut bench = Bench::new(EventLevel::Debug);
        let mut events = bench.steering.take_events().unwrap();
        assert_eq!(bench.xdp(&payload(vec![])), DROP);
        assert_eq!(bench.xdp(&good6(80).frame()), REDIRECT);
        let mut lines = Vec::new();
        events.drain(|level, line| lines.push((level, line.to_owned())));
        assert_eq!(lines.len(), 1, "{lines:?}");
    });
}
