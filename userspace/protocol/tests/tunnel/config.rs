//! What `wg set` and its kin change, on a live device.

use crate::sim::{Net, secs};
use adit_protocol::message::MessageType;
use adit_protocol::{
    AddPeerError, Device, Event, Limits, Prefix, PresharedKey, PrivateKey, PublicKey,
};
use std::time::Instant as WallClock;

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix::new(address.parse().unwrap(), length.parse().unwrap()).unwrap()
}

fn key(number: u32) -> PublicKey {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    PublicKey::from_bytes(bytes)
}

fn device() -> Device {
    Device::new(Box::new(crate::sim::SeededRng(1)))
}

#[test]
fn our_own_key_cannot_be_a_peer() {
    let mut device = device();
    let private = PrivateKey::from_bytes([1; 32]);
    device.set_private_key(Some(private.clone()));
    assert_eq!(
        device.add_peer(private.public_key()),
        Err(AddPeerError::OwnKey)
    );
    assert_eq!(device.peer_count(), 0);
}

#[test]
fn a_new_private_key_removes_the_peer_that_has_it() {
    let mut net = Net::connected(1);
    let theirs = PrivateKey::from_bytes([2; 32]);
    net.nodes[0].device.set_private_key(Some(theirs));
    net.drain(0);
    assert_eq!(net.nodes[0].device.peer_count(), 0);
    assert!(net.nodes[0].live.is_empty());
    let removed = |event: &Event| matches!(event, Event::SelfPeerRemoved { .. });
    assert_eq!(net.nodes[0].count(removed), 1);
}

#[test]
fn a_new_private_key_ends_sending_on_old_sessions() {
    let mut net = Net::connected(2);
    let new = PrivateKey::from_bytes([77; 32]);
    let public = new.public_key();
    net.nodes[0].device.set_private_key(Some(new));
    net.nodes[0].sent.clear();
    net.send(0, 1, 100).unwrap();
    net.run(secs(1));
    assert!(net.nodes[0].sent_of(MessageType::Data).is_empty());
    assert_eq!(net.nodes[0].sent_of(MessageType::Initiation).len(), 1);
    // They still receive.
    net.send(1, 0, 100).unwrap();
    net.run(secs(1));
    assert_eq!(net.nodes[0].received.len(), 1);
    // Once the peer knows the new key, the tunnel is back.
    let address = net.nodes[0].address;
    let other = &mut net.nodes[1].device;
    let peer = other.add_peer(public).unwrap();
    other.set_endpoint(peer, address);
    other.add_allowed_ip(peer, prefix("10.0.0.1/32"));
    net.run(secs(6));
    assert_eq!(net.nodes[1].received.len(), 2);
}

#[test]
fn the_same_private_key_again_changes_nothing() {
    let mut net = Net::connected(3);
    let same = PrivateKey::from_bytes([1; 32]);
    net.nodes[0].device.set_private_key(Some(same));
    net.send(0, 1, 100).unwrap();
    net.run(secs(1));
    assert_eq!(net.nodes[1].received.len(), 2);
    assert_eq!(net.nodes[0].completed(), 1);
}

#[test]
fn without_a_private_key_nothing_is_sent() {
    let mut net = Net::connected(4);
    net.nodes[0].device.set_private_key(None);
    assert_eq!(net.nodes[0].device.public_key(), None);
    net.nodes[0].sent.clear();
    let peer = net.nodes[0].device.peers().next().unwrap().id;
    net.nodes[0].device.set_keepalive(peer, 5);
    net.send(0, 1, 100).unwrap();
    net.send(1, 0, 100).unwrap();
    net.run(secs(300));
    assert!(net.nodes[0].sent.is_empty());
    // Handshakes are not answered either; with the key back, what waits is sent.
    let key = PrivateKey::from_bytes([1; 32]);
    net.nodes[0].device.set_private_key(Some(key));
    net.run(secs(10));
    assert_eq!(net.nodes[1].received.len(), 2);
}

#[test]
fn adding_a_peer_again_is_the_same_peer() {
    let mut net = Net::connected(5);
    let peer = net.peer(0, 1);
    let key = net.nodes[1].device.public_key().unwrap();
    assert_eq!(net.nodes[0].device.add_peer(key), Ok(peer));
    net.send(0, 1, 100).unwrap();
    net.run(secs(1));
    assert_eq!(net.nodes[1].received.len(), 2);
    assert_eq!(net.nodes[0].completed(), 1, "the session was kept");
}

#[test]
fn removing_a_peer_removes_everything_of_it() {
    let mut net = Net::connected(6);
    let peer = net.peer(0, 1);
    let link = net.nodes[0].device.link(peer).unwrap();
    assert!(net.nodes[0].device.remove_peer(peer));
    assert!(!net.nodes[0].device.remove_peer(peer));
    net.drain(0);
    let node = &mut net.nodes[0];
    assert!(node.live.is_empty());
    assert_eq!(node.device.poll_timeout(), None);
    assert_eq!(node.device.allowed_ip_count(), 0);
    assert!(node.device.routes().lookup([10, 0, 0, 2].into()).is_none());
    assert!(link.current().is_none());
    // A data thread that still holds the link cannot do harm.
    assert!(!link.stage(&[0x45; 20]));
    let now = net.now();
    net.nodes[0].device.attend(now, peer);
    assert_eq!(net.nodes[0].live_keys(), 0);
    net.send(1, 0, 100).unwrap();
    net.run(secs(1));
    assert!(net.nodes[0].received.is_empty());
    // Added again, it is a new peer.
    net.connect(0, 1);
    assert_ne!(net.peer(0, 1), peer);
    net.run(secs(6));
    net.send(0, 1, 100).unwrap();
    net.run(secs(1));
    assert_eq!(net.nodes[1].received.len(), 2);
}

#[test]
fn changing_one_peer_leaves_the_others_sessions_alone() {
    let mut net = Net::new(7, 3, Limits::default());
    net.connect(0, 1);
    net.connect(0, 2);
    for node in &mut net.nodes {
        node.device.up();
    }
    net.send(0, 1, 100).unwrap();
    net.send(0, 2, 100).unwrap();
    net.run(secs(1));
    let (one, two) = (net.peer(0, 1), net.peer(0, 2));
    let device = &mut net.nodes[0].device;
    device.remove_peer(two);
    device.set_keepalive(one, 25);
    device.set_preshared_key(one, Some(PresharedKey::from_bytes([3; 32])));
    device.replace_allowed_ips(one);
    device.add_allowed_ip(one, prefix("10.0.0.2/32"));
    net.send(0, 1, 100).unwrap();
    net.run(secs(1));
    assert_eq!(net.nodes[1].received.len(), 2);
    assert_eq!(net.nodes[1].completed(), 1);
}

#[test]
fn allowed_ips_move_between_peers() {
    let mut device = device();
    let a = device.add_peer(key(1)).unwrap();
    let b = device.add_peer(key(2)).unwrap();
    let owner = |device: &mut Device, address: &str| {
        let address = address.parse().unwrap();
        device.routes().lookup(address).map(|link| link.id())
    };
    device.add_allowed_ip(a, prefix("10.0.0.0/24"));
    device.add_allowed_ip(a, prefix("10.1.0.0/16"));
    device.add_allowed_ip(b, prefix("fd00::/8"));
    assert_eq!(owner(&mut device, "10.0.0.1"), Some(a));
    device.add_allowed_ip(b, prefix("10.0.0.0/24"));
    assert_eq!(owner(&mut device, "10.0.0.1"), Some(b));
    let ips = |device: &Device, peer| device.peer(peer).unwrap().allowed_ips;
    assert_eq!(ips(&device, a), [prefix("10.1.0.0/16")]);
    assert_eq!(ips(&device, b), [prefix("10.0.0.0/24"), prefix("fd00::/8")]);
    // The loser cannot take away what it no longer has.
    assert!(!device.remove_allowed_ip(a, prefix("10.0.0.0/24")));
    assert_eq!(owner(&mut device, "10.0.0.1"), Some(b));
    // Removal does not give it back.
    assert!(device.remove_allowed_ip(b, prefix("10.0.0.0/24")));
    assert_eq!(owner(&mut device, "10.0.0.1"), None);
    device.replace_allowed_ips(a);
    assert_eq!(device.allowed_ip_count(), 1);
    // Given to the same peer again, it stays.
    device.add_allowed_ip(b, prefix("fd00::/8"));
    assert_eq!(device.allowed_ip_count(), 1);
}

#[test]
fn routes_are_made_anew_only_after_changes() {
    let mut device = device();
    let peer = device.add_peer(key(1)).unwrap();
    device.add_allowed_ip(peer, prefix("10.0.0.0/24"));
    let first = device.routes();
    assert!(std::sync::Arc::ptr_eq(&first, &device.routes()));
    device.add_allowed_ip(peer, prefix("10.0.0.0/24"));
    assert!(std::sync::Arc::ptr_eq(&first, &device.routes()));
    device.remove_allowed_ip(peer, prefix("10.0.0.0/24"));
    assert!(!std::sync::Arc::ptr_eq(&first, &device.routes()));
}

#[test]
fn peers_are_listed_in_order_of_creation() {
    let mut device = device();
    for number in [5, 3, 9, 1] {
        device.add_peer(key(number)).unwrap();
    }
    let listed: Vec<_> = device.peers().map(|peer| peer.public_key).collect();
    assert_eq!(listed, [key(5), key(3), key(9), key(1)]);
    device.remove_all_peers();
    assert_eq!(device.peers().count(), 0);
}

/// `setconf` and `syncconf` with ten thousand peers: no step may grow with their number. The bound
/// is loose enough for a busy machine and far below what one walk over all peers per step costs.
#[test]
fn ten_thousand_peers_are_configured_in_no_time() {
    let began = WallClock::now();
    let mut device = device();
    device.set_private_key(Some(PrivateKey::from_bytes([1; 32])));
    device.up();
    let configure = |device: &mut Device, number: u32| {
        let peer = device.add_peer(key(number)).unwrap();
        let octets = (0x0a00_0000 + number).to_be_bytes();
        device.set_preshared_key(peer, Some(PresharedKey::from_bytes([4; 32])));
        device.set_endpoint(peer, (octets, 51820).into());
        device.replace_allowed_ips(peer);
        device.add_allowed_ip(peer, Prefix::new(octets.into(), 32).unwrap());
        peer
    };
    let peers: Vec<_> = (0..10_000)
        .map(|number| configure(&mut device, number))
        .collect();
    for number in 0..10_000 {
        configure(&mut device, number);
    }
    assert_eq!(
        device.routes().lookup([10, 0, 0, 9].into()).unwrap().id(),
        peers[9]
    );
    for peer in &peers[..5000] {
        device.remove_peer(*peer);
    }
    assert_eq!(device.peer_count(), 5000);
    device.remove_all_peers();
    assert!(began.elapsed() < secs(3), "{:?}", began.elapsed());
}

#[test]
fn many_peers_due_at_once_are_served_in_portions() {
    let mut net = Net::new(8, 1, Limits::default());
    let device = &mut net.nodes[0].device;
    device.up();
    for number in 0..300_u32 {
        let private = [u8::try_from(number % 250).unwrap() + 3; 32];
        let mut public = *PrivateKey::from_bytes(private).public_key().as_bytes();
        public[0] ^= u8::try_from(number / 250).unwrap();
        let peer = device.add_peer(PublicKey::from_bytes(public)).unwrap();
        device.set_endpoint(peer, ([192, 0, 2, 200], 1).into());
        device.set_keepalive(peer, 25);
    }
    let now = net.now();
    let device = &mut net.nodes[0].device;
    let mut calls = 0;
    while device.poll_timeout().is_some_and(|at| at <= now.instant) {
        device.handle_timeout(now);
        calls += 1;
    }
    assert_eq!(calls, 5);
    net.drain(0);
    assert_eq!(net.nodes[0].sent_of(MessageType::Initiation).len(), 300);
}

#[test]
fn debug_output_shows_no_secret() {
    let mut net = Net::connected(9);
    let peer = net.peer(0, 1);
    let psk = PresharedKey::from_bytes([0x5a; 32]);
    net.nodes[0].device.set_preshared_key(peer, Some(psk));
    let device = &net.nodes[0].device;
    let shown = format!(
        "{device:?} {:?} {:?} {:?}",
        device.peers().next(),
        device.links().next(),
        device.links().next().map(|link| link.current().clone()),
    );
    for secret in ["0x5a", "90, 90", "5a5a", "1, 1, 1"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}
