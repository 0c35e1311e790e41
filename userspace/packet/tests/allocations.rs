//! Nothing on the hot path allocates once the buffers have seen the largest batch.

#![allow(clippy::unwrap_used, reason = "helper functions of tests")]

mod common;

use adit_packet::aead::{Backend, Key, Record, TAG_LEN, open_batch, seal_batch};
use adit_packet::coalesce::{Coalescer, Offloads};
use adit_packet::ecn::{self, Verdict};
use adit_packet::split::Splitter;
use adit_packet::virtio::{F_NEEDS_CSUM, GSO_TCPV4, VirtioNetHeader};
use common::{Spec, noise};

const SEGMENT: usize = 1440;
const SEGMENTS: usize = 45;
const SLOT: usize = SEGMENT + TAG_LEN;

/// One super-packet from the TUN device to the network and back to the TUN device. Returns the number of writes.
fn there_and_back(packet: &[u8], key: &Key, coalescer: &mut Coalescer, arena: &mut [u8]) -> usize {
    let header = VirtioNetHeader {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        gso_size: u16::try_from(SEGMENT - 40).unwrap(),
        csum_start: 20,
        csum_offset: 16,
        ..VirtioNetHeader::default()
    };
    let mut splitter = Splitter::new(header, packet).unwrap();
    for slot in arena.chunks_mut(SLOT) {
        assert_eq!(splitter.write_next(slot), Some(SEGMENT));
    }
    let mut slots = arena.chunks_mut(SLOT);
    let mut records: [Record<'_>; SEGMENTS] = std::array::from_fn(|counter| Record {
        counter: counter as u64,
        body: slots.next().unwrap(),
        authentic: false,
    });
    seal_batch(key, &mut records);
    // One of them arrives damaged.
    records[SEGMENTS - 1].body[3] ^= 1;
    open_batch(key, &mut records);
    assert_eq!(
        records.iter().filter(|record| record.authentic).count(),
        SEGMENTS - 1
    );
    let mut packets = records.map(|record| &mut record.body[..SEGMENT]);
    for packet in &mut packets[..SEGMENTS - 1] {
        assert_eq!(
            ecn::decapsulate(ecn::encapsulate(packet), packet),
            Verdict::Keep
        );
    }
    let mut writes = 0;
    coalescer.coalesce(&mut packets[..SEGMENTS - 1], |_, merged| {
        assert_eq!(merged, SEGMENTS - 1);
        writes += 1;
    });
    writes
}

#[test]
fn nothing_is_allocated_per_packet() {
    let packet = Spec::new(true, true)
        .payload(noise(1, SEGMENTS * (SEGMENT - 40)))
        .build_partial();
    let mut arena = vec![0; SEGMENTS * SLOT];
    let offloads = Offloads {
        tcp4: true,
        tcp6: true,
        udp4: true,
        udp6: true,
    };
    for backend in Backend::ALL {
        let key = Key::new(backend, &[7; 32]);
        let mut coalescer = Coalescer::new(offloads);
        there_and_back(&packet, &key, &mut coalescer, &mut arena);
        let mut writes = 0;
        let info = allocation_counter::measure(|| {
            for _ in 0..3 {
                writes += there_and_back(&packet, &key, &mut coalescer, &mut arena);
            }
        });
        assert_eq!(writes, 3);
        assert_eq!(info.count_total, 0, "{backend}");
    }
}
