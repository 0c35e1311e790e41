//! Another device in the place of one that has gone: its peers' pasts are restored.

use crate::sim::{Net, SeededRng, millis, secs};
use adit_protocol::message::MessageType;
use adit_protocol::{Device, PeerHistory, PrivateKey};

/// Puts a fresh device with the same key in the place of `number`, and has it restore what `change` leaves of the past.
fn replace(net: &mut Net, number: usize, change: impl FnOnce(&mut PeerHistory)) -> PeerHistory {
    let other = 1 - number;
    let peer = net.peer(number, other);
    let mut history = net.nodes[number]
        .device
        .history(net.instant(), peer)
        .unwrap();
    let seed = u8::try_from(number).unwrap();
    let mut device = Device::new(Box::new(SeededRng(7777)));
    device.set_private_key(Some(PrivateKey::from_bytes([seed + 1; 32])));
    net.nodes[number].device = device;
    net.nodes[number].live.clear();
    net.connect(0, 1);
    change(&mut history);
    let peer = net.peer(number, other);
    net.nodes[number].device.restore(peer, &history);
    history
}

#[test]
fn a_live_peer_is_sent_an_initiation_at_once() {
    // As initiator and as responder before.
    for number in [0, 1] {
        let mut net = Net::connected(40);
        net.nodes[number].sent.clear();
        let history = replace(&mut net, number, |_| {});
        assert!(history.live && history.tx_bytes > 0 && history.last_handshake.is_some());
        assert!(
            net.nodes[number].device.poll_timeout().is_none(),
            "it is down"
        );
        net.nodes[number].device.up();
        net.run(millis(500));
        assert_eq!(net.nodes[number].sent_of(MessageType::Initiation).len(), 1);
        // The peer has heard of it, and both directions work.
        let before = [0, 1].map(|node| net.nodes[node].received.len());
        net.send(0, 1, 100).unwrap();
        net.send(1, 0, 100).unwrap();
        net.run(secs(1));
        let after = [0, 1].map(|node| net.nodes[node].received.len());
        assert_eq!(after, before.map(|count| count + 1));
        let peer = net.peer(number, 1 - number);
        let now = net.nodes[number]
            .device
            .history(net.instant(), peer)
            .unwrap();
        assert!(now.tx_bytes > history.tx_bytes && now.rx_bytes > history.rx_bytes);
        assert!(now.last_handshake > history.last_handshake);
    }
}

#[test]
fn a_silent_peer_is_left_alone() {
    let mut net = Net::pair(41);
    net.nodes[0].sent.clear();
    let history = replace(&mut net, 0, |_| {});
    assert!(!history.live && history.last_handshake.is_none());
    net.nodes[0].device.up();
    net.run(secs(60));
    assert!(net.nodes[0].sent.is_empty());
}

/// The clock may stand still or go back between the two.
#[test]
fn the_peer_takes_the_first_initiation_whatever_the_clock_says() {
    let mut net = Net::connected(42);
    // An initiation from an hour ahead.
    replace(&mut net, 0, |_| {});
    let peer = net.peer(0, 1);
    let mut history = net.nodes[0].device.history(net.instant(), peer).unwrap();
    history.sent_timestamp[6] = history.sent_timestamp[6].wrapping_add(14);
    net.nodes[0].device.restore(peer, &history);
    net.nodes[0].device.up();
    net.run(secs(1));
    let ahead = net.nodes[0].device.history(net.instant(), peer).unwrap();
    assert!(ahead.sent_timestamp > history.sent_timestamp);
    replace(&mut net, 0, |_| {});
    net.nodes[0].device.up();
    net.nodes[1].events.clear();
    net.run(secs(1));
    assert_eq!(net.nodes[1].completed(), 1);
}

/// What the peer sent before is a replay for the successor, too.
#[test]
fn old_initiations_stay_replays() {
    let mut net = Net::connected(43);
    let old = net.nodes[0].sent_of(MessageType::Initiation)[0].clone();
    for (known, answers) in [(true, 0), (false, 1)] {
        replace(&mut net, 1, |history| {
            history.live = false;
            if !known {
                history.latest_timestamp = [0; 12];
            }
        });
        net.nodes[1].device.up();
        net.nodes[1].sent.clear();
        net.inject(old.from, old.to.address, old.payload.clone(), millis(1));
        net.run(secs(1));
        assert_eq!(net.nodes[1].sent_of(MessageType::Response).len(), answers);
    }
}
