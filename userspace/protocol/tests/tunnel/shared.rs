//! What data threads do with sessions and links, from several threads.

use crate::sim::{Net, ipv4, secs};
use adit_protocol::{Endpoint, Limits, TransportKey};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn counters_reserved_by_many_threads_are_unique() {
    let limits = Limits {
        reject_after_messages: 100_000,
        ..Limits::default()
    };
    let mut net = Net::new(1, 2, limits);
    net.connect(0, 1);
    for node in &mut net.nodes {
        node.device.up();
    }
    net.send(0, 1, 100).unwrap();
    net.run(secs(1));
    let link = Arc::clone(net.nodes[0].device.links().next().unwrap());
    let session = link.current().clone().unwrap();
    let threads: Vec<_> = (1..=4_u64)
        .map(|count| {
            let session = Arc::clone(&session);
            std::thread::spawn(move || {
                let mut mine = Vec::new();
                while let Some(first) = session.reserve(count) {
                    mine.extend(first..first + count);
                }
                mine
            })
        })
        .collect();
    let mut seen = HashSet::from([0]);
    for thread in threads {
        for counter in thread.join().unwrap() {
            assert!(counter < 100_000);
            assert!(seen.insert(counter), "{counter} twice");
        }
    }
    assert!(seen.len() > 99_990);
    assert_eq!(session.reserve(u64::MAX), None);
    assert!(!session.can_send(net.instant()) || session.reserve(1).is_some());
}

#[test]
fn a_batch_larger_than_what_is_left_takes_nothing() {
    let limits = Limits {
        reject_after_messages: 10,
        ..Limits::default()
    };
    let mut net = Net::new(2, 2, limits);
    net.connect(0, 1);
    for node in &mut net.nodes {
        node.device.up();
    }
    net.send(0, 1, 100).unwrap();
    net.run(secs(1));
    let session = net.nodes[0]
        .device
        .links()
        .next()
        .unwrap()
        .current()
        .clone()
        .unwrap();
    assert_eq!(session.reserve(10), None);
    assert_eq!(session.reserve(9), Some(1));
    assert_eq!(session.reserve(1), None);
    assert!(!session.can_send(net.instant()));
}

/// A data thread seals and opens on its own, as the daemon does, and control hears of it only when
/// there is need.
#[test]
fn a_batch_without_the_device_promotes_and_wakes_control_once() {
    let mut net = Net::pair(3);
    net.filter = Some(Box::new(|sent| sent.payload.len() != 32));
    let peer = net.peer(0, 1);
    net.nodes[0].device.set_keepalive(peer, 25);
    net.run(secs(1));
    // The initiator's keepalive was lost, so the responder still waits.
    assert_eq!(net.nodes[1].completed(), 0);
    let now = net.now();
    let sender = Arc::clone(net.nodes[0].device.links().next().unwrap());
    let session = sender.current().clone().unwrap();
    let receiver = Arc::clone(net.nodes[1].device.links().next().unwrap());
    let theirs = net.nodes[1]
        .device
        .sessions()
        .get(session.peer_index())
        .unwrap();
    assert!(receiver.current().is_none());

    let packet = ipv4([10, 0, 0, 1], [10, 0, 0, 2], 48, 1);
    let first = session.reserve(64).unwrap();
    let mut batch: Vec<(u64, Vec<u8>)> = (first..first + 64)
        .map(|counter| {
            let mut body = packet.clone();
            body.extend([0; 16]);
            session.sending_key().seal_in_place(counter, &mut body);
            (counter, body)
        })
        .collect();
    assert!(sender.sent(now.instant, &session, 64, 64 * 80));
    assert!(!sender.sent(now.instant, &session, 64, 64 * 80));

    for (counter, body) in &mut batch {
        assert!(theirs.receiving_key().open_in_place(*counter, body));
    }
    let mut replay = theirs.replay();
    assert!(batch.iter().all(|(counter, _)| replay.accept(*counter)));
    assert!(!batch.iter().any(|(counter, _)| replay.accept(*counter)));
    drop(replay);
    assert!(receiver.received(now.instant, &theirs, 64, 64 * 80));
    assert!(!receiver.received(now.instant, &theirs, 64, 64 * 80));
    receiver.set_endpoint(Endpoint::new("203.0.113.1:1".parse().unwrap()));
    assert!(Arc::ptr_eq(receiver.current().as_ref().unwrap(), &theirs));

    net.nodes[1].device.attend(now, receiver.id());
    net.drain(1);
    assert_eq!(net.nodes[1].completed(), 1);
    // Armed now: neither direction needs control for the traffic that follows.
    net.nodes[0].device.attend(now, sender.id());
    let mut woken = 0;
    for _ in 0..1000 {
        woken += u32::from(sender.sent(now.instant, &session, 1, 80));
        woken += u32::from(receiver.received(now.instant, &theirs, 1, 80));
        woken += u32::from(receiver.sent(now.instant, &theirs, 1, 80));
        woken += u32::from(sender.received(now.instant, &session, 1, 80));
    }
    assert!(woken <= 2, "{woken}");
}

#[test]
fn staging_wakes_control_once_per_handshake() {
    let mut net = Net::pair(4);
    let now = net.now();
    let link = Arc::clone(net.nodes[0].device.links().next().unwrap());
    let packet = ipv4([10, 0, 0, 1], [10, 0, 0, 2], 48, 1);
    assert!(link.stage(&packet));
    assert!(!link.stage(&packet));
    net.nodes[0].device.attend(now, link.id());
    net.drain(0);
    assert!(!link.stage(&packet));
    net.run(secs(1));
    assert_eq!(net.nodes[1].received.len(), 3);
    assert!(!link.has_staged());
}

/// One thread stages while another drains, as egress and control do: nothing is lost, doubled or
/// overtaken.
#[test]
fn staged_packets_keep_their_order_between_threads() {
    let net = Net::connected(5);
    let link = Arc::clone(net.nodes[0].device.links().next().unwrap());
    let done = Arc::new(AtomicBool::new(false));
    let drainer = {
        let (link, done) = (Arc::clone(&link), Arc::clone(&done));
        std::thread::spawn(move || {
            let mut drained = Vec::new();
            loop {
                let finished = done.load(Ordering::SeqCst);
                let mut staged = link.staged();
                while let Some(packet) = staged.pop_front() {
                    drained.push(u64::from_be_bytes(packet[20..28].try_into().unwrap()));
                }
                drop(staged);
                if finished && !link.has_staged() {
                    return drained;
                }
            }
        })
    };
    for number in 0..20_000_u64 {
        let _ = link.stage(&ipv4([10, 0, 0, 1], [10, 0, 0, 2], 28, number));
    }
    done.store(true, Ordering::SeqCst);
    let drained = drainer.join().unwrap();
    assert!(drained.is_sorted_by(|a, b| a < b));
    assert_eq!(drained.len() as u64 + link.staged_dropped(), 20_000);
    assert_eq!(drained.last(), Some(&19_999));
}

/// Sessions come and go while threads look them up.
#[test]
fn lookups_never_see_a_torn_table() {
    let mut net = Net::connected(6);
    let table = net.nodes[0].device.sessions();
    let done = Arc::new(AtomicBool::new(false));
    let reader = {
        let (table, done) = (Arc::clone(&table), Arc::clone(&done));
        std::thread::spawn(move || {
            let mut index = 1_u32;
            while !done.load(Ordering::Relaxed) {
                index = index.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if let Some(session) = table.get(index) {
                    assert_eq!(session.receiver_index(), index);
                }
            }
        })
    };
    for _ in 0..200 {
        net.nodes[0].device.down();
        net.nodes[0].device.up();
        net.send(0, 1, 100).unwrap();
        net.run(secs(1));
        for &index in &net.nodes[0].live {
            assert_eq!(table.get(index).unwrap().receiver_index(), index);
        }
    }
    done.store(true, Ordering::Relaxed);
    reader.join().unwrap();
    net.nodes[0].device.down();
    assert_eq!(format!("{table:?}"), "SessionTable { sessions: 0, .. }");
}
