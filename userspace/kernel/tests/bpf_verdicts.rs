//! What the eBPF programs decide about single frames, by `BPF_PROG_TEST_RUN`: each rule, from both sides.
//! Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod packets;

use std::net::IpAddr;
use std::os::fd::AsFd;

use adit_kernel::bpf::{
    Direction, DropReason, EventLevel, Flow, Hook, Listener, LoadOptions, RateLimit, Steering,
};
use adit_kernel::xsk::{FrameSize, Receiver, ReceiverOptions, Umem};
use packets::{Datagram, data, fix_ipv4, handshake, with_extension_header};

/// XDP verdicts, `enum xdp_action` of `linux/bpf.h`.
const DROP: u32 = 1;
const PASS: u32 = 2;
const REDIRECT: u32 = 4;
/// `TC_ACT_UNSPEC`: on to the next program.
const UNSPEC: u32 = u32::MAX;

const PORT: u16 = 51820;
const LIVE: u32 = 0x8899_aabb;
/// `BPF_PROG_TEST_RUN` says that frames come from here.
const LOOPBACK: u32 = 1;

const PEER: &str = "192.0.2.1:7000";
const HOST: &str = "198.51.100.2:51820";
const PEER6: &str = "[2001:db8::1]:7000";
const HOST6: &str = "[2001:db8::2]:51820";

/// Programs that listen on [`HOST`] and [`HOST6`] with one live index, and a socket on queue 0 of the loopback interface.
struct Bench {
    steering: Steering,
    // The slot is emptied when the socket is closed.
    _receiver: Receiver,
}

impl Bench {
    fn new(events: EventLevel) -> Self {
        let mut steering = Steering::load(&LoadOptions {
            max_flows: 1024,
            events,
            ..LoadOptions::default()
        })
        .expect("the verifier accepts the programs");
        steering
            .set_listeners(["198.51.100.2", "2001:db8::2"].map(listener))
            .unwrap();
        steering.sessions().unwrap().insert(LIVE, 3).unwrap();
        let umem = Umem::new(64, FrameSize::Bytes2048).unwrap();
        let receiver = Receiver::open(
            &umem,
            ReceiverOptions {
                ifindex: LOOPBACK,
                queue: 0,
                frames: 0..64,
                generic: true,
            },
        )
        .unwrap();
        let capacity = umem.frame_size().capacity();
        steering.add_device(LOOPBACK, 1, capacity).unwrap();
        steering.set_socket(LOOPBACK, 0, receiver.as_fd()).unwrap();
        steering.set_steering(true).unwrap();
        Self {
            steering,
            _receiver: receiver,
        }
    }

    fn xdp(&mut self, frame: &[u8]) -> u32 {
        self.steering.try_frame(Hook::Xdp, frame).unwrap()
    }

    fn drops(&self) -> [u64; 6] {
        self.steering.drops().unwrap().map(|count| count.packets)
    }

    fn flows(&self) -> Vec<Flow> {
        self.steering.flows().unwrap()
    }
}

fn listener(address: &str) -> Listener {
    Listener {
        address: address.parse::<IpAddr>().unwrap(),
        port: PORT,
        ifindex: None,
    }
}

/// Runs `work` in a namespace of its own.
fn isolated<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    common::namespace().run_in(work).unwrap()
}

fn good(length: usize) -> Datagram {
    Datagram::new(PEER, HOST, data(LIVE, 1, length))
}

fn good6(length: usize) -> Datagram {
    Datagram::new(PEER6, HOST6, data(LIVE, 1, length))
}

/// `good` with one thing changed.
fn changed(change: impl FnOnce(&mut Datagram)) -> Vec<u8> {
    let mut datagram = good(80);
    change(&mut datagram);
    datagram.frame()
}

/// [`good`]'s frame with bytes overwritten and the header checksum made right again.
fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = good(80).frame();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    fix_ipv4(frame)
}

/// [`good6`]'s frame with bytes overwritten.
fn patched6(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = good6(80).frame();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

fn payload(payload: Vec<u8>) -> Vec<u8> {
    Datagram::new(PEER, HOST, payload).frame()
}

fn from(address: &str) -> Vec<u8> {
    Datagram::new(address, HOST, data(LIVE, 1, 80)).frame()
}

fn from6(address: &str) -> Vec<u8> {
    Datagram::new(address, HOST6, data(LIVE, 1, 80)).frame()
}

fn padded(length: usize) -> Vec<u8> {
    let mut frame = good(32).frame();
    frame.resize(length, 0);
    frame
}

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

#[test]
fn only_what_is_redirected_counts_as_a_flow() {
    isolated(|| {
        let mut bench = Bench::new(EventLevel::Off);
        for length in [32, 80, 1424] {
            assert_eq!(bench.xdp(&good(length).frame()), REDIRECT);
        }
        assert_eq!(bench.xdp(&good6(80).frame()), REDIRECT);
        // Forged sources with dead indices, and handshakes, take no entry.
        for host in 1..200 {
            let source = format!("203.0.113.{host}:9");
            let dead = Datagram::new(&source, HOST, data(LIVE ^ 1, 1, 80));
            assert_eq!(bench.xdp(&dead.frame()), DROP);
            let initiation = Datagram::new(&source, HOST, handshake(1, 148));
            assert_eq!(bench.xdp(&initiation.frame()), PASS);
        }
        let mut flows = bench.flows();
        flows.sort_by_key(|flow| flow.remote);
        assert_eq!(flows.len(), 2, "{flows:?}");
        assert_eq!(flows[0].remote, PEER.parse().unwrap());
        assert_eq!(flows[0].local, HOST.parse().unwrap());
        assert_eq!(flows[0].direction, Direction::Ingress);
        assert_eq!((flows[0].packets, flows[0].bytes), (3, 32 + 80 + 1424));
        assert!(flows[0].first_seen_ns > 0 && flows[0].first_seen_ns <= flows[0].last_seen_ns);
        assert_eq!(flows[1].remote, PEER6.parse().unwrap());
        assert_eq!((flows[1].packets, flows[1].bytes), (1, 80));
    });
}

#[test]
fn an_index_lives_from_insert_to_remove() {
    isolated(|| {
        let mut bench = Bench::new(EventLevel::Off);
        let mut sessions = bench.steering.sessions().unwrap();
        let frame = payload(data(77, 0, 64));
        assert_eq!(bench.xdp(&frame), DROP);
        sessions.insert(77, 1).unwrap();
        sessions.insert(77, 2).unwrap();
        assert_eq!(bench.xdp(&frame), REDIRECT);
        let mut indices = sessions.indices().unwrap();
        indices.sort_unstable();
        assert_eq!(indices, [77, LIVE]);
        sessions.remove(77).unwrap();
        sessions.remove(77).unwrap();
        assert_eq!(bench.xdp(&frame), DROP);
    });
}

#[test]
fn a_full_session_table_is_an_error() {
    isolated(|| {
        let options = LoadOptions {
            max_sessions: 4,
            ..LoadOptions::default()
        };
        let steering = Steering::load(&options).unwrap();
        let mut sessions = steering.sessions().unwrap();
        for index in 0..4 {
            sessions.insert(index, 0).unwrap();
        }
        let error = sessions.insert(4, 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(7), "E2BIG");
    });
}

#[test]
fn without_steering_or_socket_data_goes_up_the_stack() {
    isolated(|| {
        let mut bench = Bench::new(EventLevel::Off);
        let dead = payload(data(LIVE ^ 1, 1, 80));
        bench.steering.set_steering(false).unwrap();
        assert_eq!(bench.xdp(&good(80).frame()), PASS);
        assert_eq!(bench.xdp(&dead), PASS);
        assert_eq!(
            bench.xdp(&payload(vec![])),
            DROP,
            "junk is junk all the same"
        );
        bench.steering.set_steering(true).unwrap();
        assert_eq!(bench.xdp(&good(80).frame()), REDIRECT);
        bench.steering.remove_device(LOOPBACK).unwrap();
        assert_eq!(bench.xdp(&good(80).frame()), PASS);
        assert_eq!(bench.xdp(&dead), DROP);
        bench.steering.add_device(LOOPBACK, 1, 1792).unwrap();
        assert_eq!(bench.xdp(&good(80).frame()), PASS, "no socket in the slot");
        bench.steering.add_device(LOOPBACK, 0, 1792).unwrap();
        assert_eq!(bench.xdp(&good(80).frame()), PASS, "no such queue");
        assert_eq!(
            bench.flows().iter().map(|flow| flow.packets).sum::<u64>(),
            1
        );
    });
}

#[test]
fn a_closed_socket_leaves_its_slot() {
    isolated(|| {
        let Bench {
            mut steering,
            _receiver,
        } = Bench::new(EventLevel::Off);
        drop(_receiver);
        let verdict = steering.try_frame(Hook::Xdp, &good(80).frame()).unwrap();
        assert_eq!(verdict, PASS);
        assert!(steering.flows().unwrap().is_empty());
    });
}

#[test]
fn listeners_are_replaced_and_may_name_their_interface() {
    isolated(|| {
        let mut bench = Bench::new(EventLevel::Off);
        let on = |ifindex| Listener {
            ifindex,
            ..listener("198.51.100.2")
        };
        bench.steering.set_listeners([on(Some(LOOPBACK))]).unwrap();
        assert_eq!(bench.xdp(&good(80).frame()), REDIRECT);
        assert_eq!(bench.xdp(&good6(80).frame()), PASS, "no longer a listener");
        bench
            .steering
            .set_listeners([on(Some(LOOPBACK + 1))])
            .unwrap();
        assert_eq!(bench.xdp(&good(80).frame()), PASS);
        assert_eq!(
            bench.xdp(&payload(vec![])),
            PASS,
            "nor is junk dropped there"
        );
        bench.steering.set_listeners([on(None)]).unwrap();
        assert_eq!(bench.xdp(&good(80).frame()), REDIRECT);
        bench.steering.set_listeners([]).unwrap();
        assert_eq!(bench.xdp(&good(80).frame()), PASS);
    });
}

#[test]
fn handshakes_are_limited_per_source_only_under_load() {
    isolated(|| {
        let mut bench = Bench::new(EventLevel::Off);
        let frame = |source: &str| Datagram::new(source, HOST, handshake(1, 148)).frame();
        let frame6 = |source: &str| Datagram::new(source, HOST6, handshake(2, 92)).frame();
        for _ in 0..100 {
            assert_eq!(bench.xdp(&frame(PEER)), PASS);
        }
        let start = std::time::Instant::now();
        let limit = RateLimit {
            per_second: 1,
            burst: 5,
        };
        bench.steering.set_under_load(Some(limit)).unwrap();
        let mut limited = 0;
        let mut check = |frame: &[u8], credit: u64, what| {
            let passed = (0..20).filter(|_| bench.xdp(frame) == PASS).count() as u64;
            limited += 20 - passed;
            // On a busy machine a token may come back meanwhile.
            let earned = start.elapsed().as_secs();
            assert!(
                (credit..=credit + earned).contains(&passed),
                "{what}: {passed}"
            );
        };
        check(&frame(PEER), 5, "a source");
        check(
            &frame("192.0.2.1:7001"),
            0,
            "another port is the same source",
        );
        check(&frame("192.0.2.2:7000"), 5, "another address is not");
        check(&frame6(PEER6), 5, "a source over IPv6");
        check(&frame6("[2001:db8:0:0:ffff::1]:7000"), 0, "the same /64");
        check(&frame6("[2001:db8:0:1::1]:7000"), 5, "another /64");
        assert_eq!(bench.drops()[DropReason::RateLimited as usize], limited);
        assert_eq!(
            bench.xdp(&good(80).frame()),
            REDIRECT,
            "data is not limited"
        );

        bench.steering.set_under_load(None).unwrap();
        assert_eq!(bench.xdp(&frame(PEER)), PASS);
        let none = RateLimit {
            per_second: 0,
            burst: 5,
        };
        bench.steering.set_under_load(Some(none)).unwrap();
        assert_eq!(bench.xdp(&frame("192.0.2.9:1")), DROP);
    });
}

#[test]
fn credit_comes_back_with_time() {
    isolated(|| {
        let mut bench = Bench::new(EventLevel::Off);
        let limit = RateLimit {
            per_second: 50,
            burst: 1,
        };
        bench.steering.set_under_load(Some(limit)).unwrap();
        let frame = payload(handshake(1, 148));
        assert_eq!(bench.xdp(&frame), PASS);
        std::thread::sleep(std::time::Duration::from_millis(25));
        assert_eq!(bench.xdp(&frame), PASS);
    });
}

#[test]
fn tc_counts_live_data_in_and_our_data_out() {
    isolated(|| {
        let mut bench = Bench::new(EventLevel::Off);
        let run = |bench: &mut Bench, hook, frame: &[u8]| {
            assert_eq!(bench.steering.try_frame(hook, frame).unwrap(), UNSPEC);
        };
        let reply = |payload| Datagram::new(HOST, PEER, payload).frame();
        let reply6 = |payload| Datagram::new(HOST6, PEER6, payload).frame();

        // In: counted.
        run(&mut bench, Hook::TcIngress, &good(80).frame());
        run(
            &mut bench,
            Hook::TcIngress,
            &changed(|d| d.ipv4_options = vec![1; 4]),
        );
        run(
            &mut bench,
            Hook::TcIngress,
            &changed(|d| d.ipv4_flags = 0x2000),
        );
        run(&mut bench, Hook::TcIngress, &good6(80).frame());
        let first = with_extension_header(good6(80).frame(), 44, [0, 1, 0, 0, 0, 1]);
        run(&mut bench, Hook::TcIngress, &first);
        // In: not counted.
        for frame in [
            payload(data(LIVE + 1, 1, 80)),
            payload(data(LIVE, 1, 31)),
            payload(handshake(1, 148)),
            payload(vec![]),
            changed(|d| d.to.set_port(1)),
            changed(|d| d.to = "198.51.100.3:51820".parse().unwrap()),
            changed(|d| d.ipv4_flags = 0x00b9),
            changed(|d| d.vlan = Some(5)),
            // The frame is for another station.
            changed(|d| d.destination_mac = [2, 0, 0, 0, 0, 7]),
            with_extension_header(good6(80).frame(), 44, [0, 8, 0, 0, 0, 1]),
        ] {
            run(&mut bench, Hook::TcIngress, &frame);
        }
        // Out: whatever index the peer chose.
        run(&mut bench, Hook::TcEgress, &reply(data(1, 1, 32)));
        run(&mut bench, Hook::TcEgress, &reply(data(2, 1, 1424)));
        run(&mut bench, Hook::TcEgress, &reply6(data(2, 1, 64)));
        // Out: not counted.
        for frame in [
            reply(handshake(2, 92)),
            reply(data(1, 1, 31)),
            Datagram::new("198.51.100.3:51820", PEER, data(1, 1, 80)).frame(),
            Datagram::new("198.51.100.2:51821", PEER, data(1, 1, 80)).frame(),
        ] {
            run(&mut bench, Hook::TcEgress, &frame);
        }
        let mut counted: Vec<(Direction, bool, u64, u64)> = bench
            .flows()
            .iter()
            .map(|flow| {
                (
                    flow.direction,
                    flow.local.is_ipv6(),
                    flow.packets,
                    flow.bytes,
                )
            })
            .collect();
        counted.sort_by_key(|(direction, v6, ..)| (*direction as u8, *v6));
        assert_eq!(
            counted,
            [
                (Direction::Ingress, false, 3, 240),
                (Direction::Ingress, true, 2, 160),
                (Direction::Egress, false, 2, 1456),
                (Direction::Egress, true, 1, 64),
            ]
        );
    });
}

#[test]
fn slots_of_several_interfaces_do_not_overlap() {
    isolated(|| {
        let mut steering = Steering::load(&LoadOptions::default()).unwrap();
        steering.add_device(11, 600, 1792).unwrap();
        steering.add_device(12, 400, 1792).unwrap();
        let error = steering.add_device(13, 25, 1792).unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(28), "ENOSPC");
        steering.add_device(13, 24, 1792).unwrap();
        steering.remove_device(11).unwrap();
        steering.add_device(14, 600, 1792).unwrap();
        assert!(steering.add_device(15, u32::MAX, 1792).is_err());
    });
}
