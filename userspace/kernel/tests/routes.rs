//! UDP over routes that narrow, change and vanish, in namespaces. Needs root.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use adit_kernel::netlink::link_by_name;
use adit_kernel::netns::NetworkNamespace;
use adit_kernel::udp::{
    Outcome, Outgoing, RecvBatch, SendBatch, SendReport, UdpError, UdpOptions, UdpSockets,
};
use common::{ip, namespace, path, patiently, wait};

/// Two hosts: 192.0.2.1 and .2, 2001:db8::1 and ::2, on `wire0` and `wire1`.
fn pair() -> (NetworkNamespace, NetworkNamespace) {
    let (near, far) = (namespace(), namespace());
    near.run_in(|| {
        ip(&format!(
            "link add wire0 type veth peer name wire1 netns {}",
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

fn bind(namespace: &NetworkNamespace) -> UdpSockets {
    namespace
        .run_in(|| UdpSockets::bind(0, &UdpOptions::default()).unwrap())
        .unwrap()
}

fn send(
    sockets: &UdpSockets,
    batch: &mut SendBatch,
    to: SocketAddr,
    source: Option<(IpAddr, u32)>,
    data: &[u8],
) -> (Outcome, SendReport) {
    let outcome = Outcome::Pending;
    let mut messages = [Outgoing {
        to,
        source,
        ecn: 1,
        probe: false,
        segment_size: 1400,
        data,
        outcome,
    }];
    let report = batch.send(sockets.for_address(&to).unwrap(), &mut messages);
    (messages[0].outcome, report)
}

/// The lengths of the datagrams that arrive, until `bytes` have; and where from.
fn receive(sockets: &UdpSockets, to: &SocketAddr, bytes: usize) -> (Vec<usize>, IpAddr) {
    let socket = sockets.for_address(to).unwrap();
    let mut batch = RecvBatch::new(16);
    let mut lengths = Vec::new();
    loop {
        assert!(
            wait(socket.as_fd()),
            "{} of {bytes} bytes arrived",
            lengths.iter().sum::<usize>()
        );
        batch.recv(socket).unwrap();
        let mut from = None;
        for message in batch.messages() {
            assert_eq!(message.ecn, 1);
            lengths.extend(message.data.chunks(message.segment_size).map(<[u8]>::len));
            from = Some(message.from.ip());
        }
        if lengths.iter().sum::<usize>() >= bytes {
            return (lengths, from.unwrap());
        }
    }
}

fn address(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(text.parse().unwrap(), port)
}

/// wireguard-go bug (a), against the real kernel: an outer packet larger than the route MTU.
#[test]
fn a_route_mtu_below_the_segment_is_got_past() {
    let (near, far) = pair();
    near.run_in(|| {
        ip("route add 192.0.2.2/32 dev wire0 mtu 1200");
        ip("-6 route add 2001:db8::2/128 dev wire0 mtu 1280");
    })
    .unwrap();
    let (sender, receiver) = (bind(&near), bind(&far));
    let data = vec![5; 20 * 1400];
    for text in ["192.0.2.2", "2001:db8::2"] {
        let to = address(text, receiver.port());
        let mut batch = SendBatch::new();
        for refusals in [1, 0, 0] {
            let (outcome, report) = send(&sender, &mut batch, to, None, &data);
            assert_eq!(outcome, Outcome::Sent, "{report:?}");
            assert_eq!((report.gso_refused, report.gso_sends), (refusals, 0));
            assert_eq!(receive(&receiver, &to, data.len()).0, [1400; 20]);
        }
        assert!(sender.for_address(&to).unwrap().gso());
    }
}

/// Firezone: 64 segments of 1,320 bytes are more than a datagram holds.
#[test]
fn long_messages_are_split_for_the_kernel() {
    let (near, far) = pair();
    let (sender, receiver) = (bind(&near), bind(&far));
    let data = vec![5; 100 * 1400];
    for text in ["192.0.2.2", "2001:db8::2"] {
        let to = address(text, receiver.port());
        let (outcome, report) = send(&sender, &mut SendBatch::new(), to, None, &data);
        assert_eq!(outcome, Outcome::Sent, "{report:?}");
        assert_eq!((report.syscalls, report.gso_sends), (1, 3));
        assert_eq!(receive(&receiver, &to, data.len()).0, [1400; 100]);
    }
}

/// A source address, or the interface of a link-local one, disappears under a live tunnel.
#[test]
fn sources_that_disappear_are_forgotten() {
    let (near, far) = pair();
    near.run_in(|| {
        ip("address add 192.0.2.77/24 dev wire0");
        ip("-6 address add 2001:db8::77/64 dev wire0 nodad preferred_lft 0");
        ip("link add extra0 type veth peer name extra1");
        ip("link set extra0 up");
    })
    .unwrap();
    let extra = near
        .run_in(|| link_by_name("extra0"))
        .unwrap()
        .unwrap()
        .unwrap()
        .index;
    let (sender, receiver) = (bind(&near), bind(&far));
    let mut batch = SendBatch::new();
    let data = vec![5; 5 * 1400];
    for (text, source, usual) in [
        ("192.0.2.2", "192.0.2.77", "192.0.2.1"),
        ("2001:db8::2", "2001:db8::77", "2001:db8::1"),
    ] {
        let to = address(text, receiver.port());
        let source: IpAddr = source.parse().unwrap();
        let bits = if source.is_ipv4() { 24 } else { 64 };
        // The interface given is a wrong one, and does not count.
        let pinned = Some((source, extra));
        assert_eq!(
            send(&sender, &mut batch, to, pinned, &data).0,
            Outcome::Sent
        );
        assert_eq!(receive(&receiver, &to, data.len()).1, source);

        near.run_in(|| ip(&format!("address delete {source}/{bits} dev wire0")))
            .unwrap();
        let (outcome, report) = send(&sender, &mut batch, to, pinned, &data);
        assert_eq!(outcome, Outcome::SentAfterForgettingSource, "{report:?}");
        assert_eq!(
            receive(&receiver, &to, data.len()).1,
            usual.parse::<IpAddr>().unwrap()
        );
        assert!(sender.for_address(&to).unwrap().gso());
    }

    near.run_in(|| ip("link delete extra0")).unwrap();
    let to = address("2001:db8::2", receiver.port());
    let link_local = Some(("fe80::1".parse().unwrap(), extra));
    let (outcome, report) = send(&sender, &mut batch, to, link_local, &data);
    assert_eq!(outcome, Outcome::SentAfterForgettingSource, "{report:?}");
    receive(&receiver, &to, data.len());
}

#[test]
fn an_unreachable_destination_does_not_touch_the_others() {
    let (near, far) = pair();
    let (sender, receiver) = (bind(&near), bind(&far));
    let good = address("192.0.2.2", receiver.port());
    let data = vec![5; 3000];
    let message = |to| Outgoing {
        to,
        source: None,
        ecn: 1,
        probe: false,
        segment_size: 1400,
        data: &data,
        outcome: Outcome::Pending,
    };
    let mut messages = [
        message(address("198.51.100.1", 9)),
        message(good),
        message(address("2001:db8::2", 9)),
        message(address("255.255.255.255", 9)),
        message(good),
    ];
    let report = SendBatch::new().send(sender.v4.as_ref().unwrap(), &mut messages);
    let outcomes = messages.map(|message| message.outcome);
    assert_eq!(
        (outcomes[1], outcomes[4]),
        (Outcome::Sent, Outcome::Sent),
        "{report:?}"
    );
    for (index, errno) in [(0, libc::ENETUNREACH), (2, libc::EAFNOSUPPORT)] {
        let dropped = Outcome::Dropped {
            datagrams: 3,
            errno,
            forget_source: false,
        };
        assert_eq!(outcomes[index], dropped);
    }
    // Not allowed without SO_BROADCAST.
    assert!(matches!(outcomes[3], Outcome::Dropped { datagrams: 3, .. }));
    assert_eq!(
        receive(&receiver, &good, 6000).0,
        [1400, 1400, 200, 1400, 1400, 200]
    );
}

#[test]
fn the_firewall_mark_takes_effect_at_once() {
    let (near, far) = pair();
    near.run_in(|| {
        ip("rule add fwmark 5 table 50 priority 10");
        ip("route add unreachable default table 50");
    })
    .unwrap();
    let (sender, receiver) = (bind(&near), bind(&far));
    let to = address("192.0.2.2", receiver.port());
    let mut batch = SendBatch::new();
    for (mark, arrives) in [(0, true), (5, false), (0, true)] {
        sender.set_fwmark(mark).unwrap();
        let (outcome, report) = send(&sender, &mut batch, to, None, b"marked");
        assert_eq!(outcome == Outcome::Sent, arrives, "{report:?}");
        if arrives {
            receive(&receiver, &to, 6);
        }
    }
    let options = UdpOptions {
        fwmark: 5,
        ..UdpOptions::default()
    };
    let marked = near
        .run_in(|| UdpSockets::bind(0, &options).unwrap())
        .unwrap();
    assert_ne!(
        send(&marked, &mut batch, to, None, b"marked").0,
        Outcome::Sent
    );
}

/// The source of a reply is pinned, its interface is not: the route may move.
#[test]
fn a_reply_follows_a_route_that_moved() {
    let (near, far) = pair();
    near.run_in(|| {
        ip(&format!(
            "link add second0 type veth peer name second1 netns {}",
            path(&far)
        ))
    })
    .unwrap();
    far.run_in(|| {
        ip("address add 203.0.113.2/32 dev lo");
        ip("address add 198.51.100.2/24 dev second1");
        ip("link set second1 up");
        ip("route add 192.0.2.1/32 via 198.51.100.1");
    })
    .unwrap();
    near.run_in(|| {
        ip("address add 198.51.100.1/24 dev second0");
        ip("link set second0 up");
        ip("route add 203.0.113.2/32 via 192.0.2.2");
    })
    .unwrap();
    let first = near
        .run_in(|| link_by_name("wire0"))
        .unwrap()
        .unwrap()
        .unwrap()
        .index;
    let (sender, receiver) = (bind(&near), bind(&far));
    let to = address("203.0.113.2", receiver.port());
    let pinned = Some(("192.0.2.1".parse().unwrap(), first));
    let mut batch = SendBatch::new();
    assert_eq!(
        send(&sender, &mut batch, to, pinned, b"before").0,
        Outcome::Sent
    );
    receive(&receiver, &to, 6);
    near.run_in(|| ip("route change 203.0.113.2/32 via 198.51.100.2"))
        .unwrap();
    near.run_in(|| ip("link set wire0 down")).unwrap();
    assert_eq!(
        send(&sender, &mut batch, to, pinned, b"after!").0,
        Outcome::Sent
    );
    assert_eq!(
        receive(&receiver, &to, 6).1,
        "192.0.2.1".parse::<IpAddr>().unwrap()
    );
}

/// Others gave the families different random ports.
#[test]
fn a_random_port_is_free_in_both_families() {
    namespace()
        .run_in(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40001").unwrap();
            let options = UdpOptions::default();
            // Taken for IPv6 only.
            let blocker = UdpSockets {
                v4: None,
                ..UdpSockets::bind(40_000, &options).unwrap()
            };
            let sockets = UdpSockets::bind(0, &options).unwrap();
            assert_eq!(sockets.port(), 40_001);
            assert_eq!(sockets.v6.as_ref().unwrap().port(), 40_001);
            let error = UdpSockets::bind(0, &options).unwrap_err();
            assert!(matches!(error, UdpError::PortInUse { .. }), "{error}");
            drop(blocker);
            let sockets = patiently(|| UdpSockets::bind(0, &options));
            assert_eq!(sockets.port(), 40_000);
        })
        .unwrap();
}
