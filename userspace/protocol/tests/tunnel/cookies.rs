//! Under load: cookies, and limits per source.

use crate::sim::{Net, millis, secs};
use adit_protocol::message::MessageType;
use adit_protocol::{Event, Limits};
use std::net::SocketAddr;

/// Keeps device 1 under load for as long as the test runs it in steps.
fn run_loaded(net: &mut Net, steps: u32) {
    for _ in 0..steps {
        let now = net.instant();
        net.nodes[1].device.note_backlog(now, 512);
        net.run(millis(500));
    }
}

#[test]
fn load_begins_at_512_waiting_messages_and_lasts_a_second() {
    let mut net = Net::pair(1);
    let device = &mut net.nodes[0].device;
    let now = adit_protocol::Instant::from_nanos(1_000_000_000);
    device.note_backlog(now, 511);
    assert!(!device.is_under_load(now));
    device.note_backlog(now, 512);
    assert!(device.is_under_load(now));
    device.note_backlog(now + millis(500), 0);
    assert!(device.is_under_load(now + millis(999)));
    assert!(!device.is_under_load(now + secs(1)));
}

#[test]
fn under_load_a_cookie_comes_first_and_the_retry_succeeds() {
    let mut net = Net::pair(2);
    net.send(0, 1, 100).unwrap();
    run_loaded(&mut net, 2);
    assert_eq!(net.nodes[1].sent_of(MessageType::CookieReply).len(), 1);
    assert!(net.nodes[1].sent_of(MessageType::Response).is_empty());
    let got_cookie = |event: &Event| matches!(event, Event::CookieReceived { .. });
    assert_eq!(net.nodes[0].count(got_cookie), 1);
    let first = net.nodes[0].sent[0].payload.clone();
    assert_eq!(first[132..], [0; 16]);
    run_loaded(&mut net, 12);
    let initiations = net.nodes[0].sent_of(MessageType::Initiation);
    assert_eq!(initiations.len(), 2);
    assert_ne!(initiations[1].payload[132..], [0; 16]);
    assert_eq!(net.nodes[1].received.len(), 1);
}

#[test]
fn without_load_no_cookie_is_asked_for() {
    let mut net = Net::connected(3);
    net.run(secs(1));
    assert!(net.nodes[1].sent_of(MessageType::CookieReply).is_empty());
}

#[test]
fn responses_are_subject_to_cookies_too() {
    let mut net = Net::pair(4);
    net.send(1, 0, 100).unwrap();
    run_loaded(&mut net, 1);
    assert_eq!(net.nodes[1].sent_of(MessageType::CookieReply).len(), 1);
    // The responder holds the cookie for its next response.
    let got_cookie = |event: &Event| matches!(event, Event::CookieReceived { .. });
    assert_eq!(net.nodes[0].count(got_cookie), 1);
    run_loaded(&mut net, 12);
    assert_eq!(net.nodes[0].received.len(), 1);
}

#[test]
fn a_cookie_reply_never_changes_the_endpoint() {
    let mut net = Net::pair(5);
    net.send(0, 1, 100).unwrap();
    let now = net.instant();
    net.nodes[1].device.note_backlog(now, 512);
    net.run(millis(30));
    let reply = net.nodes[1].sent_of(MessageType::CookieReply)[0].clone();
    // The same reply, sooner and from elsewhere.
    let elsewhere: SocketAddr = "203.0.113.9:9".parse().unwrap();
    net.inject(elsewhere, net.nodes[0].address, reply.payload, millis(1));
    net.run(millis(100));
    let got_cookie = |event: &Event| matches!(event, Event::CookieReceived { .. });
    assert_eq!(net.nodes[0].count(got_cookie), 1);
    let endpoint = net.nodes[0]
        .device
        .peers()
        .next()
        .unwrap()
        .endpoint
        .unwrap();
    assert_eq!(endpoint.address, net.nodes[1].address);
}

#[test]
fn a_cookie_reply_counts_once_and_only_as_an_answer() {
    let mut net = Net::pair(6);
    net.send(0, 1, 100).unwrap();
    run_loaded(&mut net, 1);
    let reply = net.nodes[1].sent_of(MessageType::CookieReply)[0].clone();
    for delay in 1..4 {
        let to = net.nodes[0].address;
        net.inject(reply.from, to, reply.payload.clone(), millis(delay));
    }
    net.run(millis(100));
    let got_cookie = |event: &Event| matches!(event, Event::CookieReceived { .. });
    assert_eq!(net.nodes[0].count(got_cookie), 1);
    assert_eq!(net.nodes[0].device.counters().invalid_cookie_reply, 3);
    // For an index that is not ours.
    let mut wrong = reply.payload.clone();
    wrong[4] ^= 1;
    net.inject(reply.from, net.nodes[0].address, wrong, millis(1));
    net.run(millis(100));
    assert_eq!(net.nodes[0].device.counters().unknown_index, 1);
}

#[test]
fn a_cookie_of_another_port_does_not_count() {
    let mut net = Net::pair(7);
    net.send(0, 1, 100).unwrap();
    run_loaded(&mut net, 2);
    // The same host from another port, as behind a NAT that maps anew.
    net.nodes[0].address.set_port(4000);
    run_loaded(&mut net, 12);
    assert_eq!(net.nodes[1].sent_of(MessageType::CookieReply).len(), 2);
    run_loaded(&mut net, 12);
    assert_eq!(net.nodes[1].received.len(), 1);
}

#[test]
fn under_load_a_source_gets_20_a_second_after_a_burst_of_5() {
    let fast = Limits {
        rekey_timeout: millis(21),
        rekey_timeout_jitter: millis(0),
        handshake_attempts: 10_000,
        ..Limits::default()
    };
    let mut net = Net::new(8, 2, fast);
    net.connect(0, 1);
    for node in &mut net.nodes {
        node.device.up();
    }
    // A reply must be back before the next attempt, or it answers nothing.
    net.weather.latency = millis(5);
    // Responses are lost, so that the initiator goes on and on.
    net.filter = Some(Box::new(|sent| sent.kind() != MessageType::Response));
    net.send(0, 1, 100).unwrap();
    run_loaded(&mut net, 20);
    let answered = net.nodes[1].sent_of(MessageType::Response).len();
    assert!((195..=206).contains(&answered), "{answered}");
    assert!(net.nodes[1].device.counters().rate_limited > 100);
    assert!(net.nodes[1].device.counters().cookie_replies_sent <= 3);
}

#[test]
fn a_wrong_mac1_is_not_even_worth_a_cookie() {
    let mut net = Net::pair(9);
    net.send(0, 1, 100).unwrap();
    let mut forged = net.nodes[0].sent[0].clone();
    forged.payload[116] ^= 1;
    let now = net.instant();
    net.nodes[1].device.note_backlog(now, 512);
    net.inject(forged.from, forged.to.address, forged.payload, millis(1));
    net.run(millis(10));
    assert!(net.nodes[1].sent.is_empty());
    assert_eq!(net.nodes[1].device.counters().invalid_mac1, 1);
}
