//! Keepalives, silence, and what an idle tunnel costs.

use crate::sim::{Net, millis, secs};
use adit_protocol::message::MessageType;

#[test]
fn data_without_an_answer_gets_a_keepalive_after_10_s() {
    let mut net = Net::connected(1);
    let sent_at = net.time;
    net.nodes[1].sent.clear();
    net.send(0, 1, 100).unwrap();
    net.run(secs(30));
    // The very first packet was answered 10 s after it arrived, and this answers both.
    let keepalives = net.nodes[1].keepalives();
    assert_eq!(keepalives.len(), 1);
    assert!(keepalives[0].at <= sent_at + millis(10_020));
    assert_eq!(keepalives[0].payload.len(), 32);
}

#[test]
fn keepalives_are_not_answered() {
    let mut net = Net::connected(2);
    net.run(secs(100));
    assert_eq!(net.nodes[1].keepalives().len(), 1);
    assert_eq!(net.nodes[0].keepalives().len(), 0);
}

#[test]
fn an_answer_in_time_makes_the_keepalive_unnecessary() {
    let mut net = Net::connected(3);
    for _ in 0..20 {
        net.send(0, 1, 100).unwrap();
        net.run(secs(3));
        net.send(1, 0, 100).unwrap();
        net.run(secs(3));
    }
    assert!(net.nodes.iter().all(|node| node.keepalives().is_empty()));
}

#[test]
fn silence_for_15_s_after_data_starts_a_handshake() {
    let mut net = Net::connected(4);
    // Let the first packet be answered.
    net.run(secs(12));
    net.filter = Some(Box::new(|_| false));
    let sent_at = net.time;
    net.send(0, 1, 100).unwrap();
    net.run(secs(16));
    let initiations = net.nodes[0].sent_of(MessageType::Initiation);
    assert_eq!(initiations.len(), 2);
    let waited = initiations[1].at - sent_at;
    assert!((secs(15)..millis(15_333)).contains(&waited), "{waited:?}");
}

#[test]
fn keepalives_sent_into_silence_start_nothing() {
    let mut net = Net::connected(5);
    net.run(secs(12));
    net.filter = Some(Box::new(|_| false));
    let peer = net.peer(0, 1);
    net.nodes[0].device.set_keepalive(peer, 5);
    net.run(secs(60));
    assert_eq!(net.nodes[0].sent_of(MessageType::Initiation).len(), 1);
    assert!(net.nodes[0].keepalives().len() >= 11);
}

#[test]
fn persistent_keepalive_opens_the_tunnel_and_holds_it() {
    let mut net = Net::pair(6);
    let peer = net.peer(0, 1);
    net.nodes[0].device.set_keepalive(peer, 25);
    net.run(secs(3600));
    let completed = net.nodes[0].completed();
    assert!((28..=31).contains(&completed), "{completed}");
    // Never silent for longer than the interval, in the direction that needs it.
    let times: Vec<_> = net.nodes[0].sent.iter().map(|sent| sent.at).collect();
    for pair in times.windows(2) {
        assert!(pair[1] - pair[0] <= millis(25_001), "{pair:?}");
    }
    // And not much more than that.
    assert!(net.nodes[0].sent.len() < 3600 / 25 + 2 * completed + 5);
}

#[test]
fn traffic_stands_in_for_the_persistent_keepalive() {
    let mut net = Net::connected(7);
    let peer = net.peer(0, 1);
    net.nodes[0].device.set_keepalive(peer, 10);
    net.run(millis(1));
    net.nodes[0].sent.clear();
    for _ in 0..20 {
        net.send(0, 1, 100).unwrap();
        net.run(secs(2));
        net.send(1, 0, 100).unwrap();
        net.run(secs(2));
    }
    assert!(net.nodes[0].keepalives().is_empty());
}

#[test]
fn persistent_keepalive_can_be_changed_and_turned_off() {
    let mut net = Net::connected(8);
    // The answer to the first packet counts as traffic as well; let it pass.
    net.run(secs(12));
    let peer = net.peer(0, 1);
    net.nodes[0].device.set_keepalive(peer, 20);
    net.run(secs(41));
    net.nodes[0].sent.clear();
    net.nodes[0].device.set_keepalive(peer, 5);
    net.run(secs(20));
    assert_eq!(net.nodes[0].keepalives().len(), 4);
    net.nodes[0].sent.clear();
    net.nodes[0].device.set_keepalive(peer, 0);
    net.run(secs(60));
    assert!(net.nodes[0].sent.is_empty());
    assert_eq!(net.nodes[0].device.peers().next().unwrap().keepalive, 0);
}

#[test]
fn persistent_keepalive_without_an_endpoint_or_key_does_nothing_and_does_not_spin() {
    let mut net = Net::new(9, 2, adit_protocol::Limits::default());
    let key = net.nodes[1].device.public_key().unwrap();
    let device = &mut net.nodes[0].device;
    let peer = device.add_peer(key).unwrap();
    device.up();
    device.set_keepalive(peer, 25);
    for _ in 0..5 {
        let now = net.now();
        net.nodes[0].device.handle_timeout(now);
        let next = net.nodes[0].device.poll_timeout().unwrap();
        assert!(next >= now.instant + secs(24));
        net.run(secs(25));
    }
    assert!(net.nodes[0].sent.is_empty());
    let address = net.nodes[1].address;
    net.nodes[0].device.set_private_key(None);
    net.nodes[0].device.set_endpoint(peer, address);
    net.run(secs(60));
    assert!(net.nodes[0].sent.is_empty());
}

#[test]
fn an_idle_tunnel_needs_no_timer() {
    let mut net = Net::connected(10);
    net.run(secs(3600));
    for node in &net.nodes {
        assert_eq!(node.device.poll_timeout(), None);
    }
    // One handshake, one packet, its keepalive, and then nothing.
    let total: usize = net.nodes.iter().map(|node| node.sent.len()).sum();
    assert_eq!(total, 4);
}

#[test]
fn up_contacts_peers_with_a_persistent_keepalive() {
    let mut net = Net::connected(11);
    let peer = net.peer(0, 1);
    net.nodes[0].device.set_keepalive(peer, 25);
    net.run(secs(1));
    net.nodes[0].device.down();
    net.run(secs(100));
    net.nodes[0].sent.clear();
    net.nodes[0].device.up();
    net.run(secs(1));
    assert_eq!(net.nodes[0].sent_of(MessageType::Initiation).len(), 1);
    assert_eq!(net.nodes[0].completed(), 2);
}
