//! Hours of tunnel life, in milliseconds.

use crate::sim::{Net, Node, Weather, millis, number_of, secs};
use adit_protocol::Limits;
use adit_protocol::message::MessageType;
use rand_core::Rng as _;
use std::collections::{HashMap, HashSet};

/// On each session counters rise by one per message, and packets leave in the order they came.
fn assert_sent_in_order(node: &Node) {
    let mut next: HashMap<u32, u64> = HashMap::new();
    for sent in node.sent_of(MessageType::Data) {
        let header = sent.header();
        let next = next.entry(header.receiver_index).or_default();
        assert_eq!(header.counter, *next);
        *next += 1;
    }
}

fn assert_delivered_once(node: &Node) {
    let mut seen = HashSet::new();
    for packet in &node.received {
        assert!(seen.insert(number_of(packet)), "delivered twice");
    }
}

/// Traffic in bursts and pauses, both ways.
fn talk(net: &mut Net, pairs: &[(usize, usize)], duration: std::time::Duration) -> [usize; 3] {
    let end = net.time + duration;
    let mut sent = [0; 3];
    while net.time < end {
        for _ in 0..net.rng.next_u64() % 30 {
            let pair = usize::try_from(net.rng.next_u64()).unwrap() % pairs.len();
            let (from, to) = pairs[pair];
            let length = 28 + usize::try_from(net.rng.next_u64() % 1400).unwrap();
            net.send(from, to, length).unwrap();
            sent[to] += 1;
            let gap = net.rng.next_u64() % 20;
            net.run(millis(gap));
        }
        // Mostly short pauses, now and then one that outlives a session.
        let pause = match net.rng.next_u64() % 100 {
            0..=1 => 200,
            2..=20 => 15,
            _ => 2,
        };
        net.run(secs(pause));
    }
    sent
}

/// One side sends every ten seconds, the other answers now and then: each session is used until its end.
#[test]
fn a_day_of_renewals_loses_nothing() {
    let mut net = Net::pair(24);
    let day = secs(24 * 3600);
    let mut sent = [0; 2];
    while net.time < day {
        net.send(0, 1, 100).unwrap();
        sent[1] += 1;
        if net.rng.chance(20) {
            net.send(1, 0, 100).unwrap();
            sent[0] += 1;
        }
        net.run(secs(10));
        assert!(net.nodes.iter().all(|node| node.live_keys() <= 3));
    }
    for (node, sent) in net.nodes.iter().zip(sent) {
        assert_eq!(node.received.len(), sent);
        assert_delivered_once(node);
        assert_sent_in_order(node);
        // Sessions are renewed by the first or second packet after 120 s.
        let renewals = node.completed();
        assert!(
            (24 * 3600 / 141..=24 * 3600 / 119).contains(&renewals),
            "{renewals}"
        );
    }
}

#[test]
fn an_hour_in_fair_weather_loses_nothing() {
    for seed in [1, 11, 12] {
        fair_weather(seed);
    }
}

fn fair_weather(seed: u64) {
    let mut net = Net::pair(seed);
    let sent = talk(&mut net, &[(0, 1), (1, 0)], secs(3600));
    net.run(secs(10));
    for (node, sent) in net.nodes.iter().zip(sent) {
        assert!(sent > 2000, "{sent}");
        assert_eq!(node.received.len(), sent);
        assert!(node.received.is_sorted_by_key(|p| number_of(p)));
        assert_delivered_once(node);
        assert_sent_in_order(node);
        assert!(node.completed() >= 20, "{}", node.completed());
        assert!(node.live.len() <= 3);
        assert!(node.live_keys() <= 3);
    }
    net.run(secs(600));
    for node in &net.nodes {
        assert_eq!(node.live_keys(), 0, "keys outlive the tunnel");
        assert_eq!(node.device.poll_timeout(), None);
    }
}

#[test]
fn an_hour_in_bad_weather_loses_what_the_network_loses() {
    for seed in 2..5 {
        let mut net = Net::pair(seed);
        net.weather = Weather {
            latency: millis(30),
            jitter: millis(80),
            loss_percent: 5,
            duplication_percent: 5,
        };
        let mut sent = [0; 3];
        for minute in 0..60_u8 {
            let more = talk(&mut net, &[(0, 1), (1, 0)], secs(60));
            for (sum, more) in sent.iter_mut().zip(more) {
                *sum += more;
            }
            // One end moves every few minutes, and says so itself.
            if minute % 7 == 3 {
                net.nodes[0].address.set_port(10_000 + u16::from(minute));
                net.send(0, 1, 100).unwrap();
                sent[1] += 1;
                net.run(secs(1));
            }
        }
        net.run(secs(10));
        for (node, sent) in net.nodes.iter().zip(sent) {
            let share = node.received.len() * 100 / sent;
            // 95 of 100 and what a move or a slow handshake costs.
            assert!((91..=97).contains(&share), "seed {seed}: {share} %");
            assert_delivered_once(node);
            assert_sent_in_order(node);
            assert!(node.completed() >= 20);
            assert!(node.live_keys() <= 3);
            assert!(node.device.counters().replayed_data > 10);
        }
        net.run(secs(600));
        assert!(net.nodes.iter().all(|node| node.live_keys() == 0));
    }
}

#[test]
fn three_devices_and_one_that_restarts() {
    let mut net = Net::new(6, 3, Limits::default());
    for (a, b) in [(0, 1), (1, 2), (0, 2)] {
        net.connect(a, b);
    }
    for node in &mut net.nodes {
        node.device.up();
    }
    let pairs = [(0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0)];
    let mut sent = [0; 3];
    for _ in 0..10 {
        let more = talk(&mut net, &pairs, secs(360));
        for (sum, more) in sent.iter_mut().zip(more) {
            *sum += more;
        }
        // Sessions gone on one side only; the others find out by silence.
        net.nodes[2].device.down();
        net.nodes[2].device.up();
        net.drain(2);
    }
    net.run(secs(120));
    for (node, sent) in net.nodes.iter().zip(sent) {
        let share = node.received.len() * 100 / sent;
        assert!(share >= 85, "{share} %");
        assert_delivered_once(node);
        assert_sent_in_order(node);
    }
}

/// The device whose state is gone needs the other to notice: data sent, nothing back for 15 s.
#[test]
fn a_peer_that_lost_its_sessions_is_found_within_16_s() {
    let mut net = Net::connected(7);
    net.run(secs(12));
    net.nodes[1].device.down();
    net.nodes[1].device.up();
    net.drain(1);
    net.send(0, 1, 100).unwrap();
    net.run(secs(16));
    assert_eq!(net.nodes[0].completed(), 2);
    net.send(0, 1, 100).unwrap();
    net.run(secs(1));
    assert_eq!(net.nodes[1].received.len(), 2);
}
