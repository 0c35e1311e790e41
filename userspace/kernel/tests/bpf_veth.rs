//! The eBPF programs and AF_XDP sockets on virtual interfaces. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod packets;
mod wire;

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Instant;

use adit_kernel::bpf::{
    AttachError, Direction, DropReason, LinkState, LoadOptions, Steering, TcMode, XdpMode,
    attached_program,
};
use adit_kernel::udp::{Outcome, Outgoing, SendBatch, UdpOptions, UdpSockets};
use adit_kernel::xsk::{FrameSize, Receiver, ReceiverOptions, Umem, XskError};
use common::{PATIENCE, ip, namespace, path, patiently, readable};
use packets::{data, handshake};
use wire::{
    FRAMES, LIVE, PORT, Wire, bpftool, collect, host_socket, ifindex, ingress, messages, prepare,
    socket_receives, total,
};

#[test]
fn native_mode_takes_data_and_leaves_the_rest() {
    let wire = Wire::new(1);
    wire.here(|| {
        let socket = host_socket();
        let (mut steering, mut receivers) = prepare(1, false);
        steering.attach_xdp(ifindex(), XdpMode::Native).unwrap();
        assert_eq!(steering.xdp_state(ifindex()).unwrap(), LinkState::Attached);
        assert!(!receivers[0].is_zero_copy().unwrap(), "veth has none");

        let sent: Vec<_> = (0..1000)
            .map(|counter| data(LIVE, counter, 32 + usize::try_from(counter).unwrap()))
            .collect();
        for batch in sent.chunks(100) {
            wire.send(7000, batch);
            let received = collect(&mut receivers[0], batch.len());
            let bytes: Vec<_> = received.iter().map(|one| &one.data).collect();
            assert_eq!(
                bytes,
                batch.iter().collect::<Vec<_>>(),
                "all, once, in order"
            );
            for one in &received {
                assert_eq!(one.from, "10.7.0.1:7000".parse().unwrap());
                assert_eq!(one.local.to_string(), "10.7.0.2");
                assert_eq!(one.ecn, 0);
            }
        }
        wire.send_to("fd07::1", 7001, "fd07::2", &sent[..10]);
        let received = collect(&mut receivers[0], 10);
        assert_eq!(received[9].from, "[fd07::1]:7001".parse().unwrap());
        assert_eq!(received[9].local.to_string(), "fd07::2");

        // Handshakes reach the socket; junk and dead indices reach nobody.
        wire.send(
            7000,
            &[
                vec![1; 40],
                data(LIVE + 1, 0, 80),
                handshake(1, 148),
                vec![],
                handshake(2, 92),
            ],
        );
        let arrived = socket_receives(&socket, 2);
        assert_eq!(arrived, [handshake(1, 148), handshake(2, 92)]);
        assert!(!readable(socket.as_fd()), "nothing else did");
        let drops = steering.drops().unwrap();
        let dropped = |reason: DropReason| drops[reason as usize].packets;
        assert_eq!(dropped(DropReason::DeadIndex), 1);
        assert_eq!(dropped(DropReason::TooShort), 1);
        assert_eq!(dropped(DropReason::Reserved), 1);

        let statistics = receivers[0].statistics().unwrap();
        assert_eq!(statistics.received, 1010);
        assert_eq!(statistics.unreadable, 0);
        assert_eq!(statistics.bad_descriptors, 0);
        assert_eq!(statistics.dropped + statistics.ring_full, 0);
        let bytes: usize = sent.iter().map(Vec::len).sum::<usize>()
            + sent[..10].iter().map(Vec::len).sum::<usize>();
        let flows = steering.flows().unwrap();
        assert_eq!(ingress(&flows), (1010, bytes as u64));
    });
}

#[test]
fn what_is_not_certainly_ours_arrives_where_it_would() {
    let wire = Wire::new(1);
    let beyond = namespace();
    wire.here(|| {
        ip("addr add 10.7.0.3/24 dev under0");
        // This host is also a router to 10.9.0.0/24.
        ip("link add far0 type veth peer name far1");
        ip(&format!("link set far1 netns {}", path(&beyond)));
        ip("addr add 10.9.0.1/24 dev far0");
        ip("link set far0 up");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let router = beyond
            .run_in(|| {
                ip("addr add 10.9.0.2/24 dev far1");
                ip("link set far1 up");
                ip("route add default via 10.9.0.1");
                let socket = patiently(|| UdpSocket::bind(("0.0.0.0", PORT)));
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket
            })
            .unwrap();
        wire.peer
            .run_in(|| ip("route add 10.9.0.0/24 via 10.7.0.2"))
            .unwrap();
        let bind = |address: &str| {
            let socket = patiently(|| UdpSocket::bind((address, PORT)));
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        };
        let (own, other) = (bind("10.7.0.2"), bind("10.7.0.3"));
        let (mut steering, mut receivers) = prepare(1, false);
        steering.attach_xdp(ifindex(), XdpMode::Native).unwrap();

        let sent = messages(5, 200);
        wire.send_to("10.7.0.1", 7000, "10.9.0.2", &sent);
        assert_eq!(socket_receives(&router, 5), sent, "forwarded");
        wire.send_to("10.7.0.1", 7000, "10.7.0.3", &sent);
        assert_eq!(
            socket_receives(&other, 5),
            sent,
            "another process, another address"
        );
        let large = messages(2, 4000);
        wire.send(7000, &large);
        assert_eq!(socket_receives(&own, 2), large, "in fragments");
        // Not even junk is touched there.
        wire.send_to("10.7.0.1", 7000, "10.7.0.3", &[vec![9]]);
        assert_eq!(socket_receives(&other, 1), [vec![9]]);
        assert!(receivers[0].receive(|_| ()).is_none());
        assert!(
            steering
                .drops()
                .unwrap()
                .iter()
                .all(|count| count.packets == 0)
        );
        assert!(steering.flows().unwrap().is_empty());
    });
}

#[test]
fn each_queue_has_its_receiver() {
    let wire = Wire::new(2);
    wire.here(|| {
        let (mut steering, mut receivers) = prepare(2, false);
        steering.attach_xdp(ifindex(), XdpMode::Native).unwrap();
        // veth takes the queue the sender's flow hash picks; some of 32 ports go to either.
        let mut expected = BTreeMap::new();
        for port in 7000..7032 {
            wire.send(port, &messages(10, 64));
            expected.insert(port, 10);
        }
        let deadline = Instant::now() + PATIENCE;
        let mut seen: Vec<BTreeMap<u16, u64>> = vec![BTreeMap::new(); 2];
        let count =
            |seen: &[BTreeMap<u16, u64>]| seen.iter().flat_map(BTreeMap::values).sum::<u64>();
        while count(&seen) < 320 && Instant::now() < deadline {
            for (receiver, seen) in receivers.iter_mut().zip(&mut seen) {
                receiver.receive(|frames| {
                    for frame in frames {
                        *seen.entry(frame.from.port()).or_default() += 1;
                    }
                });
            }
        }
        assert!(seen.iter().all(|ports| !ports.is_empty()), "{seen:?}");
        let mut union = seen[0].clone();
        for (port, count) in &seen[1] {
            assert!(
                union.insert(*port, *count).is_none(),
                "a flow stays on its queue"
            );
        }
        assert_eq!(union, expected);
        assert_eq!(ingress(&steering.flows().unwrap()), (320, 320 * 64));
    });
}

#[test]
fn generic_mode_takes_glued_messages_apart_and_leaves_large_ones() {
    let wire = Wire::new(1);
    wire.here(|| {
        let sockets = patiently(|| UdpSockets::bind(PORT, &UdpOptions::default()));
        let (mut steering, mut receivers) = prepare(1, true);
        steering.attach_xdp(ifindex(), XdpMode::Generic).unwrap();
        steering.attach_tc(ifindex(), "wg0", None).unwrap();

        let plain = messages(100, 1400);
        wire.send(7000, &plain);
        let received = collect(&mut receivers[0], 100);
        assert!(received.iter().map(|one| &one.data).eq(&plain));

        // Two to a frame: one descriptor, two datagrams.
        let small = messages(2, 640);
        wire.send_gso(7001, &small);
        let received = collect(&mut receivers[0], 2);
        assert!(received.iter().map(|one| &one.data).eq(&small));

        // Far too large for a frame: the socket gets it, and tc counts it.
        let many = messages(40, 1400);
        wire.send_gso(7002, &many);
        let socket = sockets.for_address(&"10.7.0.1:1".parse().unwrap()).unwrap();
        assert!(common::wait(socket.as_fd()));
        assert!(receivers[0].receive(|_| ()).is_none());
        let flows = steering.flows().unwrap();
        let of = |port| {
            flows
                .iter()
                .find(|flow| flow.remote.port() == port)
                .map(|flow| (flow.packets, flow.bytes))
        };
        assert_eq!(of(7000), Some((100, 100 * 1400)));
        // XDP cannot see that a small super-packet is two.
        assert_eq!(of(7001), Some((1, 2 * 640)));
        assert_eq!(of(7002), Some((40, 40 * 1400)));
    });
}

#[test]
fn tc_counts_exactly_what_xdp_leaves_and_what_is_sent() {
    for mode in [TcMode::Tcx, TcMode::Clsact] {
        let wire = Wire::new(1);
        wire.here(|| {
            let sockets = patiently(|| UdpSockets::bind(PORT, &UdpOptions::default()));
            let (mut steering, mut receivers) = prepare(1, false);
            assert_eq!(
                steering.attach_tc(ifindex(), "wg0", Some(mode)).unwrap(),
                mode
            );
            assert_eq!(steering.tc_state(ifindex()).unwrap(), LinkState::Attached);

            // Socket path: super-packets count as their datagrams.
            wire.send_gso(7000, &messages(40, 1424));
            wire.send(7000, &messages(7, 80));
            wire.send(7000, &[handshake(1, 148), data(LIVE + 1, 0, 80)]);
            // XDP path.
            steering.attach_xdp(ifindex(), XdpMode::Native).unwrap();
            wire.send(7000, &messages(25, 300));
            assert_eq!(collect(&mut receivers[0], 25).len(), 25);
            // And back.
            steering.detach_xdp(ifindex());
            wire.send(7000, &messages(3, 80));
            let expected = (40 + 7 + 25 + 3, 40 * 1424 + 10 * 80 + 25 * 300);
            assert_eq!(ingress(&steering.flows().unwrap()), expected, "{mode:?}");

            // Out: with GSO, to a peer's index we know nothing of.
            let to = "10.7.0.1:7000".parse().unwrap();
            let all = messages(30, 1000).concat();
            let mut outgoing = [Outgoing {
                to,
                source: None,
                ecn: 0,
                probe: false,
                segment_size: 1000,
                data: &all,
                outcome: Outcome::default(),
            }];
            SendBatch::new().send(sockets.for_address(&to).unwrap(), &mut outgoing);
            let flows = steering.flows().unwrap();
            assert_eq!(total(&flows, Direction::Egress), (30, 30_000), "{mode:?}");
            assert_eq!(flows.len(), 2, "one flow, two directions: {flows:?}");

            // Started again after it was killed: one filter, not two.
            if mode == TcMode::Clsact {
                steering.attach_tc(ifindex(), "wg0", Some(mode)).unwrap();
                std::mem::forget(Steering::load(&LoadOptions::default()).map(|mut stale| {
                    stale.attach_tc(ifindex(), "wg0", Some(mode)).unwrap();
                    stale
                }));
                steering.attach_tc(ifindex(), "wg0", Some(mode)).unwrap();
                let output = Command::new("tc")
                    .args(["filter", "show", "dev", "under0", "ingress"])
                    .output()
                    .unwrap();
                let filters = String::from_utf8(output.stdout).unwrap();
                assert_eq!(filters.matches(" handle ").count(), 1, "{filters}");
            }
            drop(steering);
            let output = Command::new("tc")
                .args(["filter", "show", "dev", "under0", "ingress"])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{mode:?}");
        });
    }
}

#[test]
fn somebody_elses_program_is_left_alone_and_named() {
    let wire = Wire::new(1);
    wire.here(|| {
        let index = ifindex();
        assert_eq!(attached_program(index).unwrap(), None);
        let mut other = Steering::load(&LoadOptions::default()).unwrap();
        other.attach_xdp(index, XdpMode::Native).unwrap();
        let there = attached_program(index).unwrap().unwrap();
        assert_eq!(there.name, "adit_xdp");

        let mut ours = Steering::load(&LoadOptions::default()).unwrap();
        for mode in [XdpMode::Native, XdpMode::Generic] {
            match ours.attach_xdp(index, mode) {
                Err(AttachError::Foreign(program)) => assert_eq!(program, there),
                other => panic!("{mode:?}: {other:?}"),
            }
        }
        assert_eq!(other.xdp_state(index).unwrap(), LinkState::Attached);

        // The same through netlink, as `ip link set … xdp` does it.
        other.detach_xdp(index);
        let id = there.id.to_string();
        bpftool(&["net", "attach", "xdpdrv", "id", &id, "dev", "under0"]);
        let error = ours.attach_xdp(index, XdpMode::Native).unwrap_err();
        assert!(error.to_string().contains("adit_xdp"), "{error}");
        bpftool(&["net", "detach", "xdpdrv", "dev", "under0"]);
        ours.attach_xdp(index, XdpMode::Native).unwrap();
        assert!(matches!(
            ours.attach_xdp(4_000_000, XdpMode::Native),
            Err(AttachError::NoInterface(_))
        ));
    });
}

#[test]
fn what_native_mode_refuses_has_a_reason() {
    // The loopback interface has no native XDP.
    namespace()
        .run_in(|| {
            let mut steering = Steering::load(&LoadOptions::default()).unwrap();
            let error = steering.attach_xdp(1, XdpMode::Native).unwrap_err();
            assert!(
                matches!(error, AttachError::NoNativeSupport(_)),
                "{error:?}"
            );
            steering.attach_xdp(1, XdpMode::Generic).unwrap();
        })
        .unwrap();
    // The peer sends on more queues than this side receives on.
    let host = namespace();
    host.run_in(|| {
        ip("link add under0 numrxqueues 1 numtxqueues 4 type veth peer name peer0 numtxqueues 4");
        ip("link set under0 up");
        ip("link set peer0 up");
        let mut steering = Steering::load(&LoadOptions::default()).unwrap();
        let error = steering.attach_xdp(ifindex(), XdpMode::Native).unwrap_err();
        assert!(matches!(error, AttachError::Queues(_)), "{error:?}");
    })
    .unwrap();
}

#[test]
fn a_lost_link_is_noticed() {
    let wire = Wire::new(1);
    wire.here(|| {
        let index = ifindex();
        let mut steering = Steering::load(&LoadOptions::default()).unwrap();
        assert_eq!(steering.xdp_state(index).unwrap(), LinkState::Detached);
        steering.attach_xdp(index, XdpMode::Native).unwrap();
        steering.attach_tc(index, "wg0", None).unwrap();
        let program = attached_program(index).unwrap().unwrap().id;

        // Detached from outside.
        let links = bpftool(&["link", "show"]);
        let ours = format!("prog {program} ");
        let line = links
            .lines()
            .find(|line| format!("{line} ").contains(&ours))
            .unwrap_or_else(|| panic!("no link of program {program}: {links}"));
        let link = line.split(':').next().unwrap();
        bpftool(&["link", "detach", "id", link]);
        assert_eq!(steering.xdp_state(index).unwrap(), LinkState::Detached);
        assert_eq!(attached_program(index).unwrap(), None);
        assert_eq!(steering.tc_state(index).unwrap(), LinkState::Attached);

        // Attached again, and the interface goes.
        steering.attach_xdp(index, XdpMode::Native).unwrap();
        assert_eq!(steering.xdp_state(index).unwrap(), LinkState::Attached);
        ip("link delete under0");
        assert_eq!(steering.xdp_state(index).unwrap(), LinkState::Detached);
        assert_eq!(steering.tc_state(index).unwrap(), LinkState::Detached);
    });
}

#[test]
fn nothing_stays_attached() {
    let wire = Wire::new(1);
    wire.here(|| {
        let (mut steering, _receivers) = prepare(1, false);
        steering.attach_xdp(ifindex(), XdpMode::Native).unwrap();
        drop(steering);
        assert_eq!(attached_program(ifindex()).unwrap(), None);
    });
}

#[test]
fn receivers_say_why_they_cannot_be_opened() {
    let wire = Wire::new(1);
    wire.here(|| {
        let umem = Umem::new(FRAMES, FrameSize::Bytes2048).unwrap();
        let options = |queue, frames| ReceiverOptions {
            ifindex: ifindex(),
            queue,
            frames,
            generic: false,
        };
        let _first = Receiver::open(&umem, options(0, 0..FRAMES)).unwrap();
        let error = Receiver::open(&umem, options(0, 0..FRAMES)).unwrap_err();
        assert!(
            matches!(error, XskError::QueueBusy { queue: 0, .. }),
            "{error:?}"
        );
        let error = Receiver::open(&umem, options(5, 0..FRAMES)).unwrap_err();
        assert!(
            matches!(error, XskError::NoQueue { queue: 5, .. }),
            "{error:?}"
        );
        assert!(
            Receiver::open(&umem, options(0, 0..100)).is_err(),
            "not a power of two"
        );
        assert!(
            Receiver::open(&umem, options(0, 0..2 * FRAMES)).is_err(),
            "not there"
        );
    });
}

#[test]
fn a_receiver_that_falls_behind_loses_packets_but_no_frames() {
    let wire = Wire::new(1);
    wire.here(|| {
        let (mut steering, mut receivers) = prepare(1, false);
        steering.attach_xdp(ifindex(), XdpMode::Native).unwrap();
        let receiver = &mut receivers[0];
        for _ in 0..4 {
            // Four times as many as there are frames.
            wire.send(7000, &messages(1024, 100));
            let mut received = 0;
            while let Some(count) = receiver.receive(|frames| frames.len()) {
                received += count;
            }
            assert_eq!(received, FRAMES as usize);
            // A batch whose handling panics gives its frames back too.
            wire.send(7000, &messages(64, 100));
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                while receiver
                    .receive(|_| panic!("in the middle of a batch"))
                    .is_none()
                {}
            }));
            assert!(panicked.is_err());
            while receiver.receive(|_| ()).is_some() {}
        }
        let statistics = receiver.statistics().unwrap();
        assert!(statistics.ring_full + statistics.fill_empty + statistics.dropped > 0);
        assert_eq!(statistics.bad_descriptors, 0);
    });
}
