//! How verdicts and counters follow sessions, listeners, sockets and load. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
mod common;
mod packets;

use std::os::fd::AsFd as _;

use adit_ebpf::{BARE_BURST, BARE_PER_SECOND, COMMON_BURST, COMMON_PER_SECOND};
use adit_kernel::bpf::{
    Direction, DropReason, EventLevel, Hook, Listener, LoadOptions, RateLimit, Steering,
};
use bench::{
    Bench, DROP, HOST, HOST6, LIVE, LOOPBACK, PASS, PEER, PEER6, REDIRECT, UNSPEC, changed, good,
    good6, isolated, listener, payload,
};
use packets::{Datagram, bare_initiation, data, handshake, with_extension_header};

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

/// The program remembers where messages went: no longer than it is right.
#[test]
fn what_is_remembered_counts_no_longer_than_what_is_looked_up() {
    isolated(|| {
        let mut bench = Bench::new(EventLevel::Off);
        let twice = |bench: &mut Bench, frame: &[u8]| {
            assert_eq!(bench.xdp(frame), REDIRECT);
            assert_eq!(bench.xdp(frame), REDIRECT);
        };
        let frame = good(80).frame();
        twice(&mut bench, &frame);
        // Nearly the same place, and nearly the same message.
        assert_eq!(bench.xdp(&changed(|d| d.to.set_port(51821))), PASS);
        let other = changed(|d| d.to = "198.51.100.3:51820".parse().unwrap());
        assert_eq!(bench.xdp(&other), PASS);
        assert_eq!(bench.xdp(&payload(data(LIVE ^ 64, 1, 80))), DROP);
        assert_eq!(bench.xdp(&payload(data(LIVE, 1, 31))), DROP);
        assert_eq!(bench.xdp(&good(1792 - 41).frame()), PASS, "does not fit");
        assert_eq!(bench.xdp(&frame), REDIRECT);

        bench.steering.set_steering(false).unwrap();
        assert_eq!(bench.xdp(&frame), PASS);
        bench.steering.set_steering(true).unwrap();
        twice(&mut bench, &frame);

        let listeners = ["198.51.100.2", "2001:db8::2"].map(listener);
        bench.steering.set_listeners([]).unwrap();
        assert_eq!(bench.xdp(&frame), PASS);
        bench.steering.set_listeners(listeners).unwrap();
        bench
            .steering
            .hear("198.51.100.2".parse().unwrap(), 51820)
            .unwrap();
        twice(&mut bench, &frame);

        bench.steering.remove_device(LOOPBACK).unwrap();
        assert_eq!(bench.xdp(&frame), PASS);
        bench.steering.add_device(LOOPBACK, 1, 1792).unwrap();
        assert_eq!(bench.xdp(&frame), PASS, "no socket in the slot");
        let socket = bench.receiver.as_fd();
        bench.steering.set_socket(LOOPBACK, 0, socket).unwrap();
        twice(&mut bench, &frame);

        let mut sessions = bench.steering.sessions().unwrap();
        sessions.remove(LIVE).unwrap();
        assert_eq!(bench.xdp(&frame), DROP);
        sessions.insert(LIVE, 1).unwrap();
        twice(&mut bench, &frame);
    });
}

/// Sessions whose indices have the same place in the program's memory.
#[test]
fn sessions_that_share_a_place_are_steered_and_counted_alike() {
    isolated(|| {
        let mut bench = Bench::new(EventLevel::Off);
        let mut sessions = bench.steering.sessions().unwrap();
        let indices: Vec<u32> = (0..5).map(|n| 7 + n * 64).collect();
        for &index in &indices {
            sessions.insert(index, 1).unwrap();
        }
        for round in 0..40 {
            for &index in &indices {
                let datagram = Datagram::new(PEER, HOST, data(index, round, 80));
                assert_eq!(bench.xdp(&datagram.frame()), REDIRECT);
            }
        }
        for &index in &indices {
            sessions.remove(index).unwrap();
            assert_eq!(bench.xdp(&payload(data(index, 99, 80))), DROP);
        }
        let flows = bench.flows();
        assert_eq!(flows.len(), 1, "{flows:?}");
        assert_eq!((flows[0].packets, flows[0].bytes), (200, 200 * 80));
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
        assert_eq!(bench.steering.unclaimed().unwrap(), 0);
        assert_eq!(bench.xdp(&good(80).frame()), PASS, "no socket in the slot");
        assert_eq!(bench.steering.unclaimed().unwrap(), 1);
        bench.steering.add_device(LOOPBACK, 0, 1792).unwrap();
        assert_eq!(bench.xdp(&good(80).frame()), PASS, "no such queue");
        assert_eq!(bench.steering.unclaimed().unwrap(), 1);
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
            receiver,
        } = Bench::new(EventLevel::Off);
        drop(receiver);
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

/// Where no authentic message has come, what comes may be for another host.
#[test]
fn nothing_is_dropped_where_nothing_was_heard() {
    isolated(|| {
        let mut bench = Bench::new(EventLevel::Off);
        let elsewhere = "198.51.100.3:51820";
        let listeners = || ["198.51.100.2", "198.51.100.3"].map(listener);
        bench.steering.set_listeners(listeners()).unwrap();
        let limit = RateLimit {
            per_second: 0,
            burst: 1,
        };
        bench.steering.set_under_load(Some(limit)).unwrap();
        let refused = [
            data(LIVE + 1, 1, 80),
            vec![9; 80],
            handshake(1, 148),
            vec![],
        ];
        let frame = |to: &str, message: &[u8]| Datagram::new(PEER, to, message.to_vec()).frame();
        for (to, expected) in [(HOST, DROP), (elsewhere, PASS)] {
            for message in &refused {
                assert_eq!(
                    bench.xdp(&frame(to, message)),
                    expected,
                    "{to}: {message:?}"
                );
            }
            assert_eq!(bench.xdp(&frame(to, &data(LIVE, 1, 80))), REDIRECT);
        }
        let address = "198.51.100.3".parse().unwrap();
        bench.steering.hear(address, 51820).unwrap();
        assert_eq!(bench.xdp(&frame(elsewhere, &[9; 80])), DROP);
        // An address that goes and comes back is a new one.
        let one = [listener("198.51.100.2")];
        bench.steering.set_listeners(one).unwrap();
        bench.steering.set_listeners(listeners()).unwrap();
        assert_eq!(bench.xdp(&frame(elsewhere, &[9; 80])), PASS);
        assert_eq!(bench.xdp(&frame(HOST, &[9; 80])), DROP);
    });
}

#[test]
fn messages_without_a_second_mac_have_limits_of_their_own() {
    isolated(|| {
        let mut bench = Bench::new(EventLevel::Off);
        let bare = |source: &str| Datagram::new(source, HOST, bare_initiation()).frame();
        let proven = |source: &str| Datagram::new(source, HOST, handshake(1, 148)).frame();
        let limit = RateLimit::default();
        bench.steering.set_under_load(Some(limit)).unwrap();
        let start = std::time::Instant::now();
        let mut passed = |frame: &[u8], times: u32| {
            let passed = (0..times).filter(|_| bench.xdp(frame) == PASS).count();
            (passed, start.elapsed())
        };
        let within = |(passed, elapsed): (usize, std::time::Duration), burst: u32, rate: u32| {
            let most = f64::from(burst) + 1.0 + elapsed.as_secs_f64() * f64::from(rate);
            let passed = passed as f64;
            assert!(
                (f64::from(burst)..=most).contains(&passed),
                "{passed} of {burst} to {most}"
            );
        };
        within(passed(&bare(PEER), 200), BARE_BURST, BARE_PER_SECOND);
        // Who has a cookie is not harmed by who has none and says to be him.
        let burst = limit.burst.min(200);
        within(passed(&proven(PEER), 200), burst, limit.per_second);
        // Each source has a burst of its own, but not all of them together.
        let mut all = 0;
        let sources = 2 * COMMON_BURST / BARE_BURST;
        for number in 0..sources {
            let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
            all += passed(&bare(&format!("203.0.{high}.{low}:9")), BARE_BURST).0;
        }
        // The programs' clock may be a tick ahead of the time that has passed: 10 ms at 100 Hz.
        let (_, elapsed) = passed(&bare(PEER), 0);
        let earned = (elapsed.as_secs_f64() + 0.01) * f64::from(COMMON_PER_SECOND);
        let most = f64::from(COMMON_BURST) + earned;
        assert!(all as f64 <= most + 1.0, "{all} in {elapsed:?}");
        assert!(all >= COMMON_BURST as usize / 2, "{all} in {elapsed:?}");
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
