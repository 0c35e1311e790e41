//! What the socket filter lets into a UDP socket. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod packets;

use std::net::{SocketAddr, UdpSocket as StdSocket};

use adit_ebpf::BARE_BURST;
use adit_kernel::bpf::{DropReason, EventLevel, LoadOptions, RateLimit, SocketFilter, Steering};
use adit_kernel::udp::{Outcome, Outgoing, RecvBatch, SendBatch, UdpGroup, UdpOptions, UdpSocket};
use common::ip;
use packets::{bare_initiation, data, handshake};

const LIVE: u32 = 0x8899_aabb;

/// Sockets with the filter in front of them, and who sends to them.
struct Bench {
    steering: Steering,
    group: UdpGroup,
    senders: [StdSocket; 2],
}

impl Bench {
    fn new(options: &UdpOptions, count: usize) -> Self {
        ip("link set lo up");
        let steering = Steering::load(&LoadOptions {
            events: EventLevel::Off,
            ..LoadOptions::default()
        })
        .expect("the verifier accepts the programs");
        steering.sessions().unwrap().insert(LIVE, 3).unwrap();
        let mut group = UdpGroup::bind(0, options, count).unwrap();
        group.set_filter(Some(steering.socket_filter()));
        group.put_filter_on().unwrap();
        let senders = ["127.0.0.1:0", "[::1]:0"].map(|any| StdSocket::bind(any).unwrap());
        Self {
            steering,
            group,
            senders,
        }
    }

    /// Sends a datagram over IPv4 and one over IPv6; how many came through.
    fn passed(&self, payload: &[u8]) -> usize {
        for sender in &self.senders {
            let to = SocketAddr::new(sender.local_addr().unwrap().ip(), self.group.port());
            assert_eq!(sender.send_to(payload, to).unwrap(), payload.len());
        }
        self.waiting()
            .iter()
            .filter(|waiting| **waiting == payload)
            .count()
    }

    /// All datagrams that wait. Over loopback they are there when `send` returns.
    fn waiting(&self) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        let mut batch = RecvBatch::new(16);
        for socket in self.sockets() {
            while batch.recv(socket).is_ok() {
                for message in batch.messages() {
                    if message.data.is_empty() {
                        datagrams.push(Vec::new());
                    }
                    for datagram in message.data.chunks(message.segment_size.max(1)) {
                        datagrams.push(datagram.to_vec());
                    }
                }
            }
        }
        datagrams
    }

    fn sockets(&self) -> impl Iterator<Item = &UdpSocket> {
        (0..4).flat_map(|index| self.group.member(index).iter())
    }

    fn filter(&self) -> SocketFilter {
        self.steering.socket_filter()
    }

    fn drops(&self, reason: DropReason) -> (u64, u64) {
        let drops = self.steering.drops().unwrap();
        let count = drops.iter().find(|count| count.reason == reason).unwrap();
        (count.packets, count.bytes)
    }
}

fn isolated(work: impl FnOnce() + Send) {
    common::namespace().run_in(work).unwrap();
}

#[test]
fn every_rule_from_both_sides() {
    let reserved = [&[4, 1, 0, 0], &data(LIVE, 1, 80)[4..]].concat();
    let table = [
        ("data", data(LIVE, 1, 80), None),
        ("keepalive", data(LIVE, 1, 32), None),
        ("initiation", handshake(1, 148), None),
        ("initiation without a second MAC", bare_initiation(), None),
        ("response", handshake(2, 92), None),
        ("cookie reply", handshake(3, 64), None),
        (
            "dead index",
            data(LIVE + 1, 1, 80),
            Some(DropReason::DeadIndex),
        ),
        (
            "data too short",
            data(LIVE, 1, 31),
            Some(DropReason::TooShort),
        ),
        ("no index", vec![4, 0, 0, 0], Some(DropReason::TooShort)),
        ("no type", vec![4, 0, 0], Some(DropReason::TooShort)),
        ("empty", Vec::new(), Some(DropReason::TooShort)),
        (
            "initiation, short",
            handshake(1, 147),
            Some(DropReason::TooShort),
        ),
        (
            "initiation, long",
            handshake(1, 149),
            Some(DropReason::HandshakeLength),
        ),
        (
            "response, long",
            handshake(2, 93),
            Some(DropReason::HandshakeLength),
        ),
        ("type 0", handshake(0, 148), Some(DropReason::UnknownType)),
        ("type 5", handshake(5, 148), Some(DropReason::UnknownType)),
        ("reserved bytes", reserved, Some(DropReason::Reserved)),
    ];
    for queues in [1, 3] {
        isolated(|| {
            let bench = Bench::new(&UdpOptions::default(), queues);
            for (what, message, reason) in &table {
                let before = reason.map(|reason| bench.drops(reason));
                let passed = bench.passed(message);
                assert_eq!(passed, if reason.is_some() { 0 } else { 2 }, "{what}");
                let after = reason.map(|reason| bench.drops(reason));
                let bytes = message.len() as u64;
                let counted = before.map(|(packets, sum)| (packets + 2, sum + 2 * bytes));
                assert_eq!(after, counted, "{what}");
            }
            let refused = table.iter().filter(|(.., reason)| reason.is_some()).count() as u64;
            assert_eq!(bench.filter().dropped().unwrap(), 2 * refused);
            assert_eq!(bench.group.receive_drops(), 0, "not for want of room");
        });
    }
}

#[test]
fn handshake_messages_are_limited_under_load() {
    isolated(|| {
        let mut bench = Bench::new(&UdpOptions::default(), 1);
        let limit = RateLimit {
            per_second: 1,
            burst: 5,
        };
        let passed = |bench: &Bench, message: &[u8]| (0..40).map(|_| bench.passed(message)).sum();
        let all: usize = passed(&bench, &bare_initiation());
        assert_eq!(all, 80);
        bench.steering.set_under_load(Some(limit)).unwrap();
        let start = std::time::Instant::now();
        let bare: usize = passed(&bench, &bare_initiation());
        let marked: usize = passed(&bench, &handshake(1, 148));
        // Two sources, which may have earned some more on a busy machine.
        let most = |burst: f64, per_second: f64| {
            2.0 * (burst + 1.0 + start.elapsed().as_secs_f64() * per_second)
        };
        let burst = f64::from(BARE_BURST);
        assert!(
            bare as f64 >= 2.0 * burst && bare as f64 <= most(burst, 10.0),
            "{bare}"
        );
        assert!(marked >= 10 && marked as f64 <= most(5.0, 1.0), "{marked}");
        assert_eq!(
            passed(&bench, &data(LIVE, 1, 80)),
            80,
            "data is not limited"
        );
        bench.steering.set_under_load(None).unwrap();
        assert_eq!(passed(&bench, &bare_initiation()), 80);
    });
}

/// What follows the first datagram in a super-packet may be genuine. Over loopback what was sent as one message is
/// delivered as one.
#[test]
fn super_packets_pass() {
    isolated(|| {
        let bench = Bench::new(&UdpOptions::default(), 1);
        let sender = UdpGroup::bind(0, &UdpOptions::default(), 1).unwrap();
        let sender = sender.member(0).v4.as_ref().unwrap();
        let genuine = data(LIVE, 1, 80);
        let train = [&[9; 80][..], &genuine, &genuine].concat();
        let mut message = [Outgoing {
            to: SocketAddr::from(([127, 0, 0, 1], bench.group.port())),
            source: None,
            ecn: 0,
            probe: false,
            segment_size: 80,
            data: &train,
            outcome: Outcome::default(),
        }];
        SendBatch::new().send(sender, &mut message);
        let waiting = bench.waiting();
        assert_eq!(waiting.len(), 3);
        assert_eq!(waiting[1..], [genuine.clone(), genuine]);
    });
}

/// The kernel counts what a filter drops as if the receive buffer had been full.
#[test]
fn drops_for_want_of_room_are_told_apart() {
    isolated(|| {
        let options = UdpOptions {
            receive_buffer: 2048,
            ..UdpOptions::default()
        };
        let bench = Bench::new(&options, 1);
        let send = |payload: &[u8], times: usize| {
            for _ in 0..times {
                let to = ("127.0.0.1", bench.group.port());
                bench.senders[0].send_to(payload, to).unwrap();
            }
        };
        send(&[9; 80], 1000);
        assert_eq!(bench.group.receive_drops(), 0);
        send(&data(LIVE, 1, 1000), 100);
        let lost = 100 - bench.waiting().len() as u64;
        assert!(lost > 0);
        assert_eq!(bench.group.receive_drops(), lost);
        send(&[9; 80], 1000);
        assert_eq!(bench.group.receive_drops(), lost);
        assert_eq!(bench.filter().dropped().unwrap(), 2000);
    });
}

/// As at a restart of the daemon: the new one puts its own filter in the place of the old one's, or none.
#[test]
fn a_filter_changes_hands_with_its_sockets() {
    isolated(|| {
        let options = UdpOptions::default();
        let bench = Bench::new(&options, 1);
        let inherit = || {
            let copies = bench.group.descriptors().map(|fd| fd.try_clone_to_owned());
            let copies = copies.collect::<Result<Vec<_>, _>>().unwrap();
            UdpGroup::inherited(copies, &options).unwrap().unwrap()
        };
        let (mine, others) = (data(LIVE, 1, 80), data(7, 1, 80));
        let junk = [9; 80];
        bench.passed(&junk);
        let successor = Steering::load(&LoadOptions::default()).unwrap();
        successor.sessions().unwrap().insert(7, 0).unwrap();
        let mut heir = inherit();
        heir.set_filter(Some(successor.socket_filter()));
        heir.put_filter_on().unwrap();
        assert_eq!([bench.passed(&mine), bench.passed(&others)], [0, 2]);
        assert_eq!(heir.receive_drops(), 0);
        assert_eq!(successor.socket_filter().dropped().unwrap(), 2);

        // It has failed, and the old one goes on.
        drop((heir, successor));
        bench.group.put_filter_on().unwrap();
        assert_eq!([bench.passed(&mine), bench.passed(&others)], [2, 0]);
        let heir = inherit();
        heir.put_filter_on().unwrap();
        assert_eq!([bench.passed(&mine), bench.passed(&junk)], [2, 2]);
        assert_eq!(heir.receive_drops(), 0);

        bench.group.put_filter_on().unwrap();
        bench.group.take_filter_off();
        assert_eq!([bench.passed(&others), bench.passed(&junk)], [2, 2]);
        assert_eq!(bench.group.receive_drops(), 0);
    });
}
