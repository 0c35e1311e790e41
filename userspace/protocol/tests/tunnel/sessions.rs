//! Rekeying, rejecting and wiping; previous, current and next.

use crate::sim::{Net, millis, secs};
use adit_protocol::message::MessageType;
use adit_protocol::{Event, Limits, Output, Role};

#[test]
fn the_initiator_rekeys_when_it_sends_after_120_s() {
    let mut net = Net::connected(1);
    net.run(secs(118));
    net.send(0, 1, 100).unwrap();
    net.run(millis(500));
    assert_eq!(net.nodes[0].sent_of(MessageType::Initiation).len(), 1);
    net.run(secs(1));
    net.send(0, 1, 100).unwrap();
    net.run(secs(1));
    assert_eq!(net.nodes[0].sent_of(MessageType::Initiation).len(), 2);
    assert_eq!(net.nodes[0].completed(), 2);
    assert_eq!(net.nodes[1].completed(), 2);
    assert_eq!(net.nodes[1].received.len(), 3);
}

#[test]
fn the_responder_does_not_rekey_by_age() {
    let mut net = Net::connected(2);
    net.run(secs(150));
    net.send(1, 0, 100).unwrap();
    net.run(secs(5));
    assert!(net.nodes[1].sent_of(MessageType::Initiation).is_empty());
    assert_eq!(net.nodes[0].received.len(), 1);
}

#[test]
fn an_initiator_that_only_receives_rekeys_at_165_s_once() {
    let mut net = Net::connected(3);
    net.filter = Some(Box::new(|sent| sent.kind() == MessageType::Data));
    // Data from the responder only; what the initiator sends back are keepalives, and those count
    // as sending. Keep them rare: one every 10 s, before 120 s and not after.
    net.run(secs(163));
    net.send(1, 0, 100).unwrap();
    net.run(millis(500));
    assert_eq!(net.nodes[0].sent_of(MessageType::Initiation).len(), 1);
    net.run(secs(1));
    net.send(1, 0, 100).unwrap();
    net.run(millis(500));
    assert_eq!(net.nodes[0].sent_of(MessageType::Initiation).len(), 2);
    let asked = net.nodes[0]
        .events
        .iter()
        .filter(|(_, event)| matches!(event, Event::InitiationSent { attempt: 1, .. }))
        .count();
    assert_eq!(asked, 2);
    for _ in 0..8 {
        net.send(1, 0, 100).unwrap();
        net.run(secs(1));
    }
    let again = net.nodes[0]
        .events
        .iter()
        .filter(|(_, event)| matches!(event, Event::InitiationSent { attempt: 1, .. }))
        .count();
    assert_eq!(again, 2, "only the retries of the one handshake");
}

#[test]
fn nothing_is_sent_or_accepted_on_a_session_of_180_s() {
    let mut net = Net::connected(4);
    net.run(secs(170));
    // Sealed before, arriving after.
    net.weather.latency = secs(15);
    net.filter = Some(Box::new(|sent| sent.kind() == MessageType::Data));
    net.send(1, 0, 100).unwrap();
    net.run(secs(16));
    assert!(net.nodes[0].received.is_empty());
    assert_eq!(net.nodes[0].device.counters().unknown_session, 1);
    // And sending needs a handshake now.
    let before = net.nodes[0].sent_of(MessageType::Data).len();
    net.send(0, 1, 100).unwrap();
    net.run(secs(1));
    assert_eq!(net.nodes[0].sent_of(MessageType::Data).len(), before);
    assert_eq!(net.nodes[0].sent_of(MessageType::Initiation).len(), 2);
}

#[test]
fn a_session_rekeys_after_so_many_messages() {
    let limits = Limits {
        rekey_after_messages: 50,
        ..Limits::default()
    };
    let mut net = Net::new(5, 2, limits);
    net.connect(0, 1);
    for node in &mut net.nodes {
        node.device.up();
    }
    for _ in 0..60 {
        net.send(0, 1, 100).unwrap();
        net.run(millis(200));
    }
    assert_eq!(net.nodes[0].sent_of(MessageType::Initiation).len(), 2);
    assert_eq!(net.nodes[1].received.len(), 60);
    // The responder as well: it alone sends now.
    for _ in 0..60 {
        net.send(1, 0, 100).unwrap();
        net.run(millis(200));
    }
    assert_eq!(net.nodes[1].sent_of(MessageType::Initiation).len(), 1);
    assert_eq!(net.nodes[0].received.len(), 60);
}

#[test]
fn no_counter_is_used_at_or_after_the_last() {
    let limits = Limits {
        rekey_after_messages: 40,
        reject_after_messages: 50,
        ..Limits::default()
    };
    let mut net = Net::new(6, 2, limits);
    net.connect(0, 1);
    for node in &mut net.nodes {
        node.device.up();
    }
    net.send(0, 1, 100).unwrap();
    net.run(secs(1));
    // The handshake that is wanted does not come through.
    net.filter = Some(Box::new(|sent| sent.kind() == MessageType::Data));
    for _ in 0..100 {
        net.send(0, 1, 100).unwrap();
        net.run(millis(10));
    }
    let counters: Vec<u64> = net.nodes[0]
        .sent_of(MessageType::Data)
        .iter()
        .map(|sent| sent.header().counter)
        .collect();
    assert_eq!(counters, (0..50).collect::<Vec<_>>());
    assert_eq!(net.nodes[1].received.len(), 50);
    // The rest was staged and comes after the next handshake, in order.
    net.filter = None;
    net.run(secs(12));
    assert_eq!(net.nodes[1].received.len(), 101);
}

#[test]
fn the_responder_sends_nothing_on_next_before_it_is_confirmed() {
    let mut net = Net::connected(7);
    let first = net.nodes[1].device.peers().next().unwrap();
    assert_eq!(first.session, Some(Role::Responder));
    net.run(secs(121));
    // The new session's first data is held back.
    let old_index = net.nodes[0].live[0];
    net.filter = Some(Box::new(move |sent| {
        sent.kind() != MessageType::Data || sent.from.ip().to_string() == "192.0.2.2"
    }));
    net.send(0, 1, 100).unwrap();
    net.run(secs(1));
    assert_eq!(net.nodes[0].completed(), 2);
    assert_eq!(net.nodes[1].completed(), 1);
    // The responder has both sessions and still sends on the old one, which the initiator accepts.
    net.nodes[1].sent.clear();
    net.send(1, 0, 100).unwrap();
    net.run(secs(1));
    let sent = net.nodes[1].sent_of(MessageType::Data);
    assert_eq!(sent[0].header().receiver_index, old_index);
    assert_eq!(net.nodes[0].received.len(), 1);
    // A keepalive is confirmation enough.
    net.filter = None;
    net.run(secs(10));
    assert_eq!(net.nodes[1].completed(), 2);
    net.nodes[1].sent.clear();
    net.send(1, 0, 100).unwrap();
    assert_ne!(net.nodes[1].sent[0].header().receiver_index, old_index);
}

#[test]
fn packets_under_way_on_the_previous_session_still_arrive() {
    let mut net = Net::connected(8);
    net.run(secs(120));
    let old_index = net.nodes[1].live[0];
    net.filter = Some(Box::new(move |sent| {
        sent.kind() != MessageType::Data || sent.header().receiver_index != old_index
    }));
    net.send(0, 1, 100).unwrap();
    net.run(secs(1));
    assert_eq!(net.nodes[1].completed(), 2);
    assert_eq!(net.nodes[1].received.len(), 1);
    let late = net.nodes[0].sent_of(MessageType::Data)[1].clone();
    assert_eq!(late.header().receiver_index, old_index);
    net.inject(late.from, late.to.address, late.payload, millis(1));
    net.run(secs(1));
    assert_eq!(net.nodes[1].received.len(), 2);
}

#[test]
fn all_keys_are_wiped_540_s_after_the_last_session() {
    let mut net = Net::connected(9);
    net.run(secs(535));
    assert_eq!(net.nodes[0].live_keys(), 1);
    net.run(secs(10));
    for node in &net.nodes {
        assert_eq!(node.live_keys(), 0);
        assert!(node.live.is_empty());
        let wiped = |event: &Event| matches!(event, Event::KeysWiped { .. });
        assert_eq!(node.count(wiped), 1);
        assert_eq!(node.device.poll_timeout(), None);
    }
    // And the tunnel comes back when needed.
    net.send(1, 0, 100).unwrap();
    net.run(secs(1));
    assert_eq!(net.nodes[0].received.len(), 1);
}

#[test]
fn an_unanswered_handshake_wipes_old_keys_too() {
    let mut net = Net::connected(10);
    net.run(secs(100));
    net.filter = Some(Box::new(|_| false));
    net.send(0, 1, 100).unwrap();
    net.run(secs(700));
    assert_eq!(net.nodes[0].live_keys(), 0);
}

#[test]
fn a_session_is_announced_before_anything_that_uses_its_index() {
    let mut net = Net::pair(11);
    net.send(0, 1, 100).unwrap();
    let now = net.now();
    let from = adit_protocol::Endpoint::new(net.nodes[0].address);
    let mut initiation = net.nodes[0].sent[0].payload.clone();
    let responder = &mut net.nodes[1].device;
    responder.handle_datagram(now, from, &mut initiation);
    let Some(Output::SessionAdded { session }) = responder.poll_output() else {
        panic!("announced first");
    };
    assert_eq!(session.role(), Role::Responder);
    assert!(responder.sessions().get(session.receiver_index()).is_some());
    let Some(Output::Transmit { mut payload, .. }) = responder.poll_output() else {
        panic!("then the response");
    };
    assert_eq!(payload[4..8], session.receiver_index().to_le_bytes());

    let from = adit_protocol::Endpoint::new(net.nodes[1].address);
    let peer = net.peer(0, 1);
    let initiator = &mut net.nodes[0].device;
    let link = initiator.link(peer).unwrap();
    initiator.handle_datagram(now, from, &mut payload);
    let Some(Output::SessionAdded { session }) = initiator.poll_output() else {
        panic!("announced first");
    };
    assert!(initiator.sessions().get(session.receiver_index()).is_some());
    assert!(link.current().is_none(), "not before the owner has seen it");
    let next = initiator.poll_output();
    assert!(matches!(next, Some(Output::Event(_))));
    assert!(link.current().is_some());
    assert!(matches!(
        initiator.poll_output(),
        Some(Output::FlushStaged { .. })
    ));
}

#[test]
fn a_session_taken_down_before_it_was_installed_stays_down() {
    let mut net = Net::pair(12);
    net.send(0, 1, 100).unwrap();
    let now = net.now();
    let addresses = [net.nodes[0].address, net.nodes[1].address];
    let mut initiation = net.nodes[0].sent[0].payload.clone();
    let responder = &mut net.nodes[1].device;
    responder.handle_datagram(
        now,
        adit_protocol::Endpoint::new(addresses[0]),
        &mut initiation,
    );
    let mut response = std::iter::from_fn(|| responder.poll_output())
        .find_map(|output| match output {
            Output::Transmit { payload, .. } => Some(payload),
            _ => None,
        })
        .unwrap();
    let peer = net.peer(0, 1);
    let initiator = &mut net.nodes[0].device;
    let link = initiator.link(peer).unwrap();
    initiator.handle_datagram(
        now,
        adit_protocol::Endpoint::new(addresses[1]),
        &mut response,
    );
    initiator.down();
    let mut live = 0_i32;
    while let Some(output) = initiator.poll_output() {
        match output {
            Output::SessionAdded { .. } => live += 1,
            Output::SessionRemoved { .. } => live -= 1,
            _ => {}
        }
    }
    assert_eq!(live, 0);
    assert!(link.current().is_none());
}
