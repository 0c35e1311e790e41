//! Sending by AF_XDP in copy mode over veth, neighbours and next hops, in namespaces. Needs root.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use adit_kernel::bpf::{Direction, LoadOptions, Steering};
use adit_kernel::netlink::{
    Neighbour, NeighbourChange, NeighbourMonitor, NextHop, Outbound, Reachability,
    confirm_neighbour, link_by_name, neighbour, next_hop,
};
use adit_kernel::netns::NetworkNamespace;
use adit_kernel::xsk::{
    FrameSize, Receiver, ReceiverOptions, TRANSMIT_FRAMES, Transmitter, Umem, XskError,
};
use common::{PATIENCE, ip, namespace, path, wait};

const NEAR: [u8; 6] = [2, 0, 0, 0, 0, 1];
const FAR: [u8; 6] = [2, 0, 0, 0, 0, 2];
const RECEIVE: u32 = 64;

/// Two hosts: 192.0.2.1 and .2, 2001:db8::1 and ::2, on `wire0` and `wire1`.
fn pair() -> (NetworkNamespace, NetworkNamespace) {
    let (near, far) = (namespace(), namespace());
    near.run_in(|| {
        ip(&format!(
            "link add wire0 address 02:00:00:00:00:01 type veth \
             peer name wire1 address 02:00:00:00:00:02 netns {}",
            path(&far)
        ));
        configure("wire0", 1);
    })
    .unwrap();
    far.run_in(|| configure("wire1", 2)).unwrap();
    (near, far)
}

fn configure(device: &str, host: u8) {
    ip(&format!("address add 192.0.2.{host}/24 dev {device}"));
    ip(&format!(
        "-6 address add 2001:db8::{host}/64 dev {device} nodad"
    ));
    ip(&format!("link set {device} up"));
}

fn index() -> u32 {
    link_by_name("wire0").unwrap().unwrap().index
}

/// A receiver and a transmitter with so many frames on `wire0`.
fn open(frames: u32) -> (Receiver, Transmitter) {
    let umem = Umem::new(RECEIVE + frames, FrameSize::Bytes2048).unwrap();
    let options = ReceiverOptions {
        ifindex: index(),
        queue: 0,
        frames: 0..RECEIVE,
        generic: false,
    };
    let receiver = Receiver::open(&umem, options).unwrap();
    let transmitter = Transmitter::open(&receiver, RECEIVE..RECEIVE + frames).unwrap();
    (receiver, transmitter)
}

/// An IPv4 packet with a UDP datagram without a checksum, to port 9 of the far host.
fn packet(payload: &[u8]) -> Vec<u8> {
    let mut frame = [FAR, NEAR].concat();
    frame.extend([0x08, 0x00, 0x45, 0]);
    let length = |header: usize| u16::try_from(payload.len() + header).unwrap().to_be_bytes();
    frame.extend(length(28));
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    let sum: u32 = frame[14..34]
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
    frame.extend([0x12, 0x34, 0, 9]);
    frame.extend(length(8));
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

fn push(transmitter: &mut Transmitter, number: u32) -> bool {
    let frame = packet(&number.to_be_bytes());
    transmitter.push(frame.len(), |bytes| bytes.copy_from_slice(&frame))
}

#[test]
fn packets_arrive_in_order_and_frames_come_back() {
    let (near, far) = pair();
    let sink = far
        .run_in(|| UdpSocket::bind("192.0.2.2:9").unwrap())
        .unwrap();
    sink.set_read_timeout(Some(PATIENCE)).unwrap();
    near.run_in(|| {
        let (_receiver, mut transmitter) = open(64);
        assert!(!transmitter.is_zero_copy());
        // More than there are frames, more than one call sends in copy mode on older kernels.
        let mut next = 0;
        for batch in 0..20 {
            assert!(transmitter.wait(PATIENCE).unwrap());
            let deadline = Instant::now() + PATIENCE;
            while transmitter.room(64) < 64 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            for _ in 0..64 {
                assert!(push(&mut transmitter, next), "batch {batch}");
                next += 1;
            }
            assert!(!push(&mut transmitter, next), "only 64 frames");
            assert!(transmitter.wait(PATIENCE).unwrap());
            let mut bytes = [0; 2048];
            for expected in next - 64..next {
                let length = sink.recv(&mut bytes).unwrap();
                assert_eq!(bytes[..length], expected.to_be_bytes());
            }
        }
        let statistics = transmitter.statistics().unwrap();
        assert_eq!(statistics.sent, u64::from(next));
        assert_eq!((statistics.invalid, statistics.bad_completions), (0, 0));
        assert!(statistics.kicks >= 20);
    })
    .unwrap();
}

#[test]
fn a_device_that_is_down_is_an_error_and_no_packet_is_lost_by_it() {
    let (near, far) = pair();
    let sink = far
        .run_in(|| UdpSocket::bind("192.0.2.2:9").unwrap())
        .unwrap();
    sink.set_read_timeout(Some(PATIENCE)).unwrap();
    near.run_in(|| {
        let (_receiver, mut transmitter) = open(64);
        ip("link set wire0 down");
        assert!(push(&mut transmitter, 1));
        let error = transmitter.submit().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(100), "ENETDOWN: {error}");
        ip("link set wire0 up");
        assert!(transmitter.wait(PATIENCE).unwrap());
        let mut bytes = [0; 64];
        assert_eq!(sink.recv(&mut bytes).unwrap(), 4);
        ip("link delete wire0");
        push(&mut transmitter, 2);
        assert!(transmitter.submit().is_err(), "the device is gone");
    })
    .unwrap();
}

#[test]
fn frames_of_the_receiver_are_not_to_be_had() {
    let (near, _far) = pair();
    near.run_in(|| {
        let umem = Umem::new(RECEIVE * 2, FrameSize::Bytes2048).unwrap();
        let options = ReceiverOptions {
            ifindex: index(),
            queue: 0,
            frames: 0..RECEIVE,
            generic: false,
        };
        let receiver = Receiver::open(&umem, options).unwrap();
        for frames in [0..64, 63..127, 64..256, 64..65 + 32, 64..64] {
            let error = Transmitter::open(&receiver, frames.clone()).unwrap_err();
            assert!(matches!(error, XskError::Io { .. }), "{frames:?} {error}");
        }
        let umem = Umem::new(RECEIVE + 4 * TRANSMIT_FRAMES, FrameSize::Bytes2048).unwrap();
        drop(receiver);
        drop(umem);
    })
    .unwrap();
}

fn outbound(to: &str) -> Outbound {
    Outbound {
        to: to.parse().unwrap(),
        source: None,
        port: 51820,
        mark: 0,
    }
}

fn found(to: &str) -> NextHop {
    next_hop(&outbound(to)).unwrap().unwrap()
}

#[test]
fn next_hops_are_the_kernels() {
    let (near, _far) = pair();
    near.run_in(|| {
        let direct = found("192.0.2.2:9");
        let expected = NextHop {
            interface: index(),
            ethernet: NEAR,
            neighbour: [192, 0, 2, 2].into(),
            source: [192, 0, 2, 1].into(),
            mtu: 1500,
            hop_limit: 64,
        };
        assert_eq!(direct, expected);
        ip("route add 198.51.100.0/24 via 192.0.2.9 mtu 1400 hoplimit 9");
        let routed = found("198.51.100.7:9");
        assert_eq!(routed.neighbour, IpAddr::from([192, 0, 2, 9]));
        assert_eq!((routed.mtu, routed.hop_limit), (1400, 9));
        let v6 = found("[2001:db8::2]:9");
        assert_eq!(v6.source, "2001:db8::1".parse::<IpAddr>().unwrap());
        assert_eq!(v6.neighbour, "2001:db8::2".parse::<IpAddr>().unwrap());
        assert_eq!((v6.mtu, v6.hop_limit), (1500, 64));

        // A pinned source is kept, and one that is not ours refused.
        ip("address add 192.0.2.77/32 dev wire0");
        for (to, source, kept) in [
            ("192.0.2.2:9", "192.0.2.77", true),
            ("192.0.2.2:9", "192.0.2.78", false),
            ("[2001:db8::2]:9", "2001:db8::1", true),
            ("[2001:db8::2]:9", "2001:db8::78", false),
            ("192.0.2.2:9", "2001:db8::1", false),
        ] {
            let source: IpAddr = source.parse().unwrap();
            let pinned = Outbound {
                source: Some(source),
                ..outbound(to)
            };
            let hop = next_hop(&pinned).unwrap();
            assert_eq!(hop.map(|hop| hop.source), kept.then_some(source), "{to}");
        }
        // A mark that leads elsewhere.
        ip("rule add fwmark 7 table 99");
        ip("route add unreachable default table 99");
        let marked = Outbound {
            mark: 7,
            ..outbound("192.0.2.2:9")
        };
        assert_eq!(next_hop(&marked).unwrap(), None);
        // A rule about ports.
        ip("rule add ipproto udp dport 10 table 99");
        assert_eq!(next_hop(&outbound("192.0.2.2:10")).unwrap(), None);
        // What a plain header cannot tell.
        ip("route add 203.0.113.0/24 via 192.0.2.9 mtu lock 1400");
        assert_eq!(next_hop(&outbound("203.0.113.1:9")).unwrap(), None);
        assert_eq!(
            next_hop(&outbound("192.0.2.1:9")).unwrap(),
            None,
            "ourselves"
        );
        assert_eq!(next_hop(&outbound("192.0.2.255:9")).unwrap(), None);
        ip("link set wire0 arp off");
        assert_eq!(next_hop(&outbound("192.0.2.2:9")).unwrap(), None);
    })
    .unwrap();
}

/// Reads changes until one is `wanted`.
fn wait_change(monitor: &mut NeighbourMonitor, wanted: impl Fn(&Neighbour) -> bool) -> Neighbour {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        assert!(wait(monitor.as_fd()), "no change");
        let mut found = None;
        let each = |change| {
            if let NeighbourChange::Is(neighbour) = change
                && wanted(&neighbour)
            {
                found = Some(neighbour);
            }
        };
        monitor.read(each).unwrap();
        if let Some(found) = found {
            return found;
        }
    }
    panic!("not told in time");
}

#[test]
fn neighbours_are_followed_and_confirmed() {
    let (near, far) = pair();
    near.run_in(|| {
        // Without a delay an entry that was used of late goes stale like any other.
        for parameter in ["base_reachable_time_ms=500", "delay_first_probe_time=0"] {
            for family in ["ipv4", "ipv6"] {
                let (name, value) = parameter.split_once('=').unwrap();
                let file = format!("/proc/sys/net/{family}/neigh/wire0/{name}");
                std::fs::write(file, value).unwrap();
            }
        }
        for far_address in ["192.0.2.2", "2001:db8::2"] {
            let address: IpAddr = far_address.parse().unwrap();
            let mut monitor = NeighbourMonitor::new().unwrap();
            assert!(!confirm_neighbour(index(), address).unwrap(), "no entry");
            let socket = UdpSocket::bind(match address {
                IpAddr::V4(_) => "0.0.0.0:0",
                IpAddr::V6(_) => "[::]:0",
            })
            .unwrap();
            let _ = socket.send_to(b"x", SocketAddr::new(address, 9));
            let is = |reachability| {
                move |neighbour: &Neighbour| {
                    neighbour.address == address && neighbour.reachability == reachability
                }
            };
            let known = wait_change(&mut monitor, is(Reachability::Reachable));
            assert_eq!((known.ethernet, known.interface), (Some(FAR), index()));
            let asked = neighbour(index(), address).unwrap().unwrap();
            assert_eq!(asked.ethernet, Some(FAR));
            // Nobody sends: the entry goes stale, and is confirmed when we ask for it.
            wait_change(&mut monitor, is(Reachability::Stale));
            assert!(confirm_neighbour(index(), address).unwrap());
            wait_change(&mut monitor, is(Reachability::Reachable));
            // Asked of nobody, it is not known any more.
            wait_change(&mut monitor, is(Reachability::Stale));
            far.run_in(|| ip("link set wire1 down")).unwrap();
            // Without its carrier the near end forgets it at once.
            wait_change(&mut monitor, is(Reachability::Unknown));
            far.run_in(|| {
                ip("link set wire1 up");
                if address.is_ipv4() {
                    ip("-6 address add 2001:db8::2/64 dev wire1 nodad");
                }
            })
            .unwrap();
        }
        assert_eq!(neighbour(index(), [192, 0, 2, 99].into()).unwrap(), None);
        ip("neighbour add 192.0.2.99 lladdr 02:00:00:00:00:63 dev wire0");
        let set = neighbour(index(), [192, 0, 2, 99].into()).unwrap().unwrap();
        assert_eq!(set.reachability, Reachability::Permanent);
        assert_eq!(set.ethernet, Some([2, 0, 0, 0, 0, 0x63]));
    })
    .unwrap();
}

#[test]
fn what_no_program_sees_is_in_the_flows() {
    let near = namespace();
    near.run_in(|| {
        let steering = Steering::load(&LoadOptions::default()).unwrap();
        let mut sent = steering.sent_flows().unwrap();
        let ends = [
            ("192.0.2.1:51820", "192.0.2.2:7"),
            ("[2001:db8::1]:51820", "[2001:db8::2]:7"),
        ];
        let ends = ends.map(|(local, remote)| -> (SocketAddr, SocketAddr) {
            (local.parse().unwrap(), remote.parse().unwrap())
        });
        for (local, remote) in ends {
            sent.set(local, remote, 5, 500).unwrap();
            // The count is the whole count, not what was added.
            sent.set(local, remote, 7, 800).unwrap();
        }
        let flows = steering.flows().unwrap();
        assert_eq!(flows.len(), 2);
        for (local, remote) in ends {
            let flow = flows.iter().find(|flow| flow.remote == remote).unwrap();
            assert_eq!((flow.local, flow.direction), (local, Direction::Egress));
            assert_eq!((flow.packets, flow.bytes), (7, 800));
            assert!(flow.first_seen_ns > 0 && flow.last_seen_ns >= flow.first_seen_ns);
        }
        sent.forget(ends[0].0, ends[0].1);
        assert_eq!(steering.flows().unwrap().len(), 1);
    })
    .unwrap();
}
