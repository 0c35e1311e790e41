//! Nothing a datagram contains may panic, leak or end the device.

use crate::sim::{Net, SeededRng, millis, secs};
use adit_protocol::Endpoint;
use adit_protocol::message::MessageType;
use proptest::prelude::*;

fn still_works(net: &mut Net) {
    let before = net.nodes[1].received.len();
    net.send(0, 1, 100).unwrap();
    net.run(secs(8));
    assert_eq!(net.nodes[1].received.len(), before + 1);
}

#[test]
fn every_type_with_every_length() {
    let mut net = Net::connected(1);
    let from = Endpoint::new(net.nodes[0].address);
    let mut rng = SeededRng(7);
    let mut sent = 0;
    for kind in 0..=5_u8 {
        for length in (0..300).chain([1500, 65_507, 65_535]) {
            let mut datagram = vec![0; length];
            rng.fill_bytes(&mut datagram);
            for (byte, value) in datagram.iter_mut().zip([kind, 0, 0, 0]) {
                *byte = value;
            }
            let now = net.now();
            net.nodes[1]
                .device
                .handle_datagram(now, from, &mut datagram);
            net.drain(1);
            sent += 1;
        }
    }
    let counters = net.nodes[1].device.counters();
    let counted = counters.malformed
        + counters.invalid_mac1
        + counters.unknown_index
        + counters.unknown_session;
    assert_eq!(counted, sent, "{counters:?}");
    still_works(&mut net);
}

#[test]
fn truncated_and_changed_real_messages() {
    let mut net = Net::connected(2);
    net.send(0, 1, 1000).unwrap();
    net.run(secs(1));
    let real: Vec<_> = net
        .nodes
        .iter()
        .flat_map(|node| node.sent.iter().cloned())
        .collect();
    let mut rng = SeededRng(9);
    for message in real {
        for _ in 0..200 {
            let mut payload = message.payload.clone();
            if rng.chance(50) {
                payload.truncate(usize::try_from(rng.next_u64() % 200).unwrap());
            }
            if !payload.is_empty() {
                let at = usize::try_from(rng.next_u64()).unwrap() % payload.len();
                payload[at] ^= 1 << (rng.next_u64() % 8);
            }
            for node in 0..2 {
                let to = net.nodes[node].address;
                net.inject(message.from, to, payload.clone(), millis(1));
            }
        }
        net.run(millis(10));
    }
    assert_eq!(net.nodes[1].sent_of(MessageType::Response).len(), 1);
    still_works(&mut net);
}

#[test]
fn a_device_that_is_down_or_without_key_ignores_everything() {
    let mut net = Net::pair(3);
    net.send(0, 1, 100).unwrap();
    net.nodes[1].device.down();
    net.run(secs(1));
    net.nodes[1].device.up();
    net.nodes[1].device.set_private_key(None);
    net.run(secs(6));
    assert!(net.nodes[1].sent.is_empty());
    assert_eq!(net.nodes[0].sent_of(MessageType::Initiation).len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_datagrams(datagrams in proptest::collection::vec(
        (proptest::option::of(1_u8..5), proptest::collection::vec(any::<u8>(), 0..200)), 1..40)
    ) {
        let mut net = Net::pair(4);
        let from = Endpoint::new(net.nodes[0].address);
        for (kind, mut datagram) in datagrams {
            if let (Some(kind), true) = (kind, datagram.len() >= 4) {
                datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
            }
            let now = net.now();
            net.nodes[1].device.handle_datagram(now, from, &mut datagram);
            prop_assert!(net.nodes[1].device.poll_output().is_none());
        }
    }
}
