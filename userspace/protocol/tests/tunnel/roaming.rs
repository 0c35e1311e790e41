//! Endpoints follow authenticated packets, and nothing else.

use crate::sim::{Net, millis, secs};
use adit_protocol::message::MessageType;
use adit_protocol::{Endpoint, Source};
use std::net::SocketAddr;

fn endpoint(net: &Net, here: usize) -> Endpoint {
    net.nodes[here]
        .device
        .peers()
        .next()
        .unwrap()
        .endpoint
        .unwrap()
}

#[test]
fn data_from_a_new_address_moves_the_endpoint() {
    let mut net = Net::connected(1);
    for address in ["192.0.2.1:4444", "203.0.113.5:51820", "[2001:db8::5]:7"] {
        net.nodes[0].address = address.parse().unwrap();
        net.send(0, 1, 100).unwrap();
        net.run(secs(1));
        assert_eq!(endpoint(&net, 1).address, net.nodes[0].address);
        net.send(1, 0, 100).unwrap();
        net.run(secs(1));
    }
    assert_eq!(net.nodes[0].received.len(), 3);
    assert_eq!(net.nodes[0].completed(), 1);
}

#[test]
fn a_keepalive_is_enough() {
    let mut net = Net::connected(2);
    let peer = net.peer(0, 1);
    net.nodes[0].address = "203.0.113.5:1".parse().unwrap();
    net.nodes[0].device.set_keepalive(peer, 25);
    net.run(secs(1));
    assert_eq!(endpoint(&net, 1).address, net.nodes[0].address);
}

#[test]
fn initiation_and_response_move_it_too() {
    let mut net = Net::pair(3);
    net.nodes[0].address = "203.0.113.5:1".parse().unwrap();
    net.send(0, 1, 100).unwrap();
    net.run(millis(21));
    assert_eq!(endpoint(&net, 1).address, net.nodes[0].address);
    // The response on its way appears to come from elsewhere.
    let response = net.nodes[1].sent_of(MessageType::Response)[0].clone();
    let elsewhere: SocketAddr = "203.0.113.6:6".parse().unwrap();
    net.inject(elsewhere, response.to.address, response.payload, millis(1));
    net.run(millis(5));
    assert_eq!(endpoint(&net, 0).address, elsewhere);
}

#[test]
fn a_packet_that_is_not_authentic_moves_nothing() {
    let mut net = Net::connected(4);
    net.send(0, 1, 100).unwrap();
    let data = net.nodes[0].sent.last().unwrap().clone();
    let elsewhere: SocketAddr = "203.0.113.6:6".parse().unwrap();
    let to = net.nodes[1].address;
    let mut forged = data.payload.clone();
    *forged.last_mut().unwrap() ^= 1;
    net.inject(elsewhere, to, forged, millis(1));
    net.run(secs(1));
    // A replay of a genuine packet is no better.
    net.inject(elsewhere, to, data.payload, millis(1));
    net.run(secs(1));
    assert_eq!(endpoint(&net, 1).address, net.nodes[0].address);
    let counters = net.nodes[1].device.counters();
    assert_eq!((counters.invalid_data, counters.replayed_data), (1, 1));
}

#[test]
fn the_source_a_peer_reached_us_at_is_kept_for_the_answer() {
    let mut net = Net::connected(5);
    net.send(0, 1, 100).unwrap();
    let mut data = net.nodes[0].sent.last().unwrap().payload.clone();
    let from = Endpoint {
        address: net.nodes[0].address,
        source: Some(Source {
            address: [192, 0, 2, 99].into(),
            interface: 3,
        }),
    };
    let now = net.now();
    net.nodes[1].device.handle_datagram(now, from, &mut data);
    net.drain(1);
    net.send(1, 0, 100).unwrap();
    assert_eq!(net.nodes[1].sent.last().unwrap().to, from);

    // A failed send elsewhere does not concern it, one to this address does.
    let link = net.nodes[1].device.links().next().unwrap();
    link.forget_source("203.0.113.1:1".parse().unwrap());
    assert_eq!(link.endpoint(), Some(from));
    link.forget_source(from.address);
    assert_eq!(link.endpoint(), Some(Endpoint::new(from.address)));
}

#[test]
fn silence_forgets_the_source() {
    let mut net = Net::connected(6);
    net.run(secs(12));
    let from = Endpoint {
        address: net.nodes[1].address,
        source: Some(Source {
            address: [192, 0, 2, 1].into(),
            interface: 3,
        }),
    };
    let link = net.nodes[0].device.links().next().unwrap().clone();
    link.set_endpoint(from);
    net.filter = Some(Box::new(|_| false));
    net.send(0, 1, 100).unwrap();
    net.run(secs(14));
    assert_eq!(link.endpoint(), Some(from));
    net.run(secs(2));
    assert_eq!(link.endpoint(), Some(Endpoint::new(from.address)));
}

#[test]
fn configuring_the_same_address_again_keeps_the_source() {
    let mut net = Net::connected(7);
    let from = Endpoint {
        address: net.nodes[1].address,
        source: Some(Source {
            address: [192, 0, 2, 1].into(),
            interface: 3,
        }),
    };
    let peer = net.peer(0, 1);
    let device = &mut net.nodes[0].device;
    device.link(peer).unwrap().set_endpoint(from);
    device.set_endpoint(peer, from.address);
    assert_eq!(device.link(peer).unwrap().endpoint(), Some(from));
    let other: SocketAddr = "203.0.113.5:1".parse().unwrap();
    device.set_endpoint(peer, other);
    assert_eq!(
        device.link(peer).unwrap().endpoint(),
        Some(Endpoint::new(other))
    );
}
