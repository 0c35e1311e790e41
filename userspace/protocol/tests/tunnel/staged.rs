//! Packets that wait for a session.

use crate::sim::{Net, number_of, secs};
use adit_protocol::message::MessageType;
use adit_protocol::{Prefix, SendError};

fn numbers(net: &Net, node: usize) -> Vec<u64> {
    net.nodes[node]
        .received
        .iter()
        .map(|packet| number_of(packet))
        .collect()
}

#[test]
fn the_newest_128_are_kept_and_sent_in_order() {
    let mut net = Net::pair(1);
    for _ in 0..200 {
        net.send(0, 1, 100).unwrap();
    }
    let info = net.nodes[0].device.peers().next().unwrap();
    assert_eq!((info.staged, info.staged_dropped), (128, 72));
    assert_eq!(net.nodes[0].sent.len(), 1, "one handshake for all of them");
    net.run(secs(1));
    let numbers = numbers(&net, 1);
    assert_eq!(numbers.len(), 128);
    assert!(numbers.is_sorted());
    let info = net.nodes[0].device.peers().next().unwrap();
    assert_eq!((info.staged, info.staged_dropped), (0, 72));
}

#[test]
fn later_packets_do_not_overtake() {
    let mut net = Net::pair(2);
    for step in 0..100 {
        net.send(0, 1, 100).unwrap();
        net.run(std::time::Duration::from_millis(step % 7));
    }
    net.run(secs(1));
    let numbers = numbers(&net, 1);
    assert_eq!(numbers.len(), 100);
    assert!(numbers.is_sorted());
}

#[test]
fn the_responder_sends_what_it_staged_once_the_session_is_confirmed() {
    let mut net = Net::pair(3);
    net.filter = Some(Box::new(|sent| {
        sent.kind() != MessageType::Initiation || sent.from.ip().to_string() == "192.0.2.1"
    }));
    net.send(1, 0, 100).unwrap();
    net.run(secs(1));
    net.send(0, 1, 100).unwrap();
    net.run(secs(1));
    assert_eq!(net.nodes[0].received.len(), 1);
    assert_eq!(net.nodes[1].received.len(), 1);
}

#[test]
fn without_an_endpoint_or_a_route_nothing_is_staged() {
    let mut net = Net::pair(4);
    let key = adit_protocol::PublicKey::from_bytes([9; 32]);
    let device = &mut net.nodes[0].device;
    let peer = device.add_peer(key).unwrap();
    device.add_allowed_ip(peer, Prefix::new([10, 9, 0, 0].into(), 16).unwrap());
    let now = net.now();
    let device = &mut net.nodes[0].device;
    let to = |address| crate::sim::ipv4([10, 0, 0, 1], address, 100, 1);
    assert_eq!(
        device.send_packet(now, &to([10, 9, 1, 1])),
        Err(SendError::NoEndpoint)
    );
    assert_eq!(
        device.send_packet(now, &to([10, 8, 1, 1])),
        Err(SendError::NoRoute)
    );
    let link = device.link(peer).unwrap();
    assert!(!link.stage(&to([10, 9, 1, 1])));
    assert!(!link.has_staged());
    assert_eq!(link.staged_dropped(), 1);
}

#[test]
fn down_drops_what_is_staged_and_takes_no_more() {
    let mut net = Net::pair(5);
    net.filter = Some(Box::new(|_| false));
    for _ in 0..10 {
        net.send(0, 1, 100).unwrap();
    }
    let link = net.nodes[0].device.links().next().unwrap().clone();
    net.nodes[0].device.down();
    assert!(!link.has_staged());
    assert!(!link.stage(&[0x45; 20]));
    assert_eq!(link.staged_dropped(), 11);
    assert_eq!(net.send(0, 1, 100), Err(SendError::Down));
}

#[test]
fn an_endpoint_configured_later_sends_what_waits() {
    let mut net = Net::pair(6);
    let peer = net.peer(0, 1);
    let (right, wrong) = (net.nodes[1].address, "203.0.113.1:1".parse().unwrap());
    net.nodes[0].device.set_endpoint(peer, wrong);
    net.send(0, 1, 100).unwrap();
    net.run(secs(2));
    net.nodes[0].device.set_endpoint(peer, right);
    net.run(secs(5));
    assert_eq!(net.nodes[1].received.len(), 1);
}
