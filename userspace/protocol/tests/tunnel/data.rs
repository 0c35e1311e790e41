//! Data messages: padding, replay, and who may send from where.

use crate::sim::{Net, ipv4, millis, number_of, secs};
use adit_protocol::message::MessageType;
use adit_protocol::{Limits, Prefix, SendError};

fn prefix(address: [u8; 4], length: u8) -> Prefix {
    Prefix::new(address.into(), length).unwrap()
}

#[test]
fn packets_are_padded_to_16_but_never_past_the_mtu() {
    let mut net = Net::connected(1);
    net.nodes[0].device.set_mtu(1420);
    for (length, padded) in [(28, 32), (32, 32), (33, 48), (1409, 1420), (1420, 1420)] {
        net.send(0, 1, length).unwrap();
        let sent = net.nodes[0].sent.last().unwrap();
        assert_eq!(sent.payload.len(), 32 + padded, "{length}");
    }
    net.nodes[0].device.set_mtu(0);
    net.send(0, 1, 1409).unwrap();
    assert_eq!(net.nodes[0].sent.last().unwrap().payload.len(), 32 + 1424);
    net.run(secs(1));
    let lengths: Vec<_> = net.nodes[1].received[1..].iter().map(Vec::len).collect();
    assert_eq!(lengths, [28, 32, 33, 1409, 1420, 1409]);
}

#[test]
fn bytes_count_the_udp_payload_keepalives_included() {
    let mut net = Net::connected(2);
    let info = |net: &Net, node: usize| net.nodes[node].device.peers().next().unwrap();
    // Initiation, response, one packet of 100 bytes padded to 112.
    assert_eq!(info(&net, 0).tx_bytes, 148 + 32 + 112);
    assert_eq!(info(&net, 0).rx_bytes, 92);
    assert_eq!(info(&net, 1).rx_bytes, 148 + 32 + 112);
    // The keepalive in answer is 32 bytes.
    net.run(secs(15));
    assert_eq!(info(&net, 0).rx_bytes, 92 + 32);
    assert_eq!(info(&net, 1).tx_bytes, 92 + 32);
}

#[test]
fn a_duplicate_is_delivered_once() {
    let mut net = Net::connected(3);
    net.weather.duplication_percent = 100;
    for _ in 0..50 {
        net.send(0, 1, 100).unwrap();
        net.run(millis(10));
    }
    net.run(secs(1));
    assert_eq!(net.nodes[1].received.len(), 51);
    assert_eq!(net.nodes[1].device.counters().replayed_data, 50);
}

#[test]
fn reordering_within_the_window_loses_nothing() {
    let mut net = Net::connected(4);
    net.weather.jitter = secs(1);
    for _ in 0..5000 {
        net.send(0, 1, 100).unwrap();
        net.run(std::time::Duration::from_micros(200));
    }
    net.run(secs(3));
    assert_eq!(net.nodes[1].received.len(), 5001);
    let numbers: Vec<_> = net.nodes[1].received.iter().map(|p| number_of(p)).collect();
    assert!(!numbers.is_sorted(), "the network did reorder");
}

#[test]
fn a_source_must_be_owned_device_wide_by_the_sender() {
    let mut net = Net::new(5, 3, Limits::default());
    net.connect(0, 1);
    net.connect(2, 1);
    for node in &mut net.nodes {
        node.device.up();
    }
    // At 1, peer 0 has all of 10.0.0.0/8, but 10.0.0.3 belongs to peer 2.
    let wide = net.peer(1, 0);
    net.nodes[1]
        .device
        .add_allowed_ip(wide, prefix([10, 0, 0, 0], 8));
    let now = net.now();
    let send = |net: &mut Net, source: [u8; 4]| {
        let packet = ipv4(source, net.nodes[1].inner, 100, 1);
        net.nodes[0].device.send_packet(now, &packet).unwrap();
        net.drain(0);
    };
    send(&mut net, [10, 77, 0, 1]);
    net.run(secs(1));
    assert_eq!(net.nodes[1].received.len(), 1);
    send(&mut net, [10, 0, 0, 3]);
    send(&mut net, [11, 0, 0, 1]);
    net.run(secs(1));
    assert_eq!(net.nodes[1].received.len(), 1);
    assert_eq!(net.nodes[1].device.counters().wrong_source, 2);
    // The session is authentic all the same, and so it counts as traffic.
    send(&mut net, [10, 0, 0, 1]);
    net.run(secs(1));
    assert_eq!(net.nodes[1].received.len(), 2);
}

#[test]
fn what_is_inside_must_be_an_ip_packet() {
    let mut net = Net::connected(6);
    let now = net.now();
    let device = &mut net.nodes[0].device;
    for garbage in [&[][..], &[0x45][..], &[0x00; 40][..], &[0xff; 40][..]] {
        let result = device.send_packet(now, garbage);
        assert!(matches!(result, Err(SendError::InvalidPacket(_))));
    }
    // Straight through the session, as a hostile peer would.
    let link = device.links().next().unwrap().clone();
    for garbage in [&[0x45][..], &[0x00; 48][..], &[0x6f; 41][..]] {
        assert!(!link.stage(garbage) || link.has_staged());
    }
    let peer = net.peer(0, 1);
    net.nodes[0].device.flush_staged(now, peer);
    net.drain(0);
    net.run(secs(1));
    assert_eq!(net.nodes[1].device.counters().invalid_packet, 3);
    assert_eq!(net.nodes[1].received.len(), 1);
}

#[test]
fn ipv6_inside() {
    let mut net = Net::connected(7);
    let inner = |node: usize| Prefix::new(format!("fd00::{node}").parse().unwrap(), 128).unwrap();
    for (here, there) in [(0, 1), (1, 0)] {
        let peer = net.peer(here, there);
        net.nodes[here].device.add_allowed_ip(peer, inner(there));
    }
    let mut packet = vec![0; 41];
    (packet[0], packet[5]) = (0x60, 1);
    (packet[8], packet[23]) = (0xfd, 0);
    (packet[24], packet[39]) = (0xfd, 1);
    let now = net.now();
    net.nodes[0].device.send_packet(now, &packet).unwrap();
    net.drain(0);
    net.run(secs(1));
    assert_eq!(net.nodes[1].received[1], packet);
}

#[test]
fn data_for_an_index_that_is_not_live_is_dropped() {
    let mut net = Net::connected(8);
    net.send(0, 1, 100).unwrap();
    let mut stray = net.nodes[0].sent.last().unwrap().clone();
    assert_eq!(stray.kind(), MessageType::Data);
    stray.payload[4] ^= 1;
    net.inject(stray.from, stray.to.address, stray.payload, millis(1));
    net.run(secs(1));
    assert_eq!(net.nodes[1].device.counters().unknown_session, 1);
}
