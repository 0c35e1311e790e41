//! The AEAD backends against each other: any lengths, counters and batches, whole and spoilt.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use adit_packet::aead::EmulatedKey;
use adit_packet::aead::{Backend, KEY_LEN, Key, Record, open_batch, seal_batch};

use crate::script::{Script, noise};

/// Packets of a batch, and bytes of all of them.
const PACKETS: usize = 70;
const BYTES: usize = 8_000;
/// Of those, what goes through the emulated lanes: one more packet than there are lanes.
#[cfg(target_arch = "x86_64")]
const EMULATED_PACKETS: usize = 17;
#[cfg(target_arch = "x86_64")]
const EMULATED_BYTES: usize = 3_000;

#[derive(Clone, Copy)]
enum Direction {
    Seal,
    Open,
}

/// A packet: its counter, its body, and how many bytes of the buffer lie in front of it.
#[derive(Clone, Debug, PartialEq)]
struct Packet {
    counter: u64,
    buffer: Vec<u8>,
    offset: usize,
}

/// The bytes are a key, the shape of a batch, and what to spoil between sealing and opening.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let mut secret = [0; KEY_LEN];
    let seed = script.byte();
    match seed {
        // Keys at the edges.
        0 => {}
        1 => secret.fill(0xff),
        _ => secret.copy_from_slice(&noise(seed.into(), KEY_LEN)),
    }
    let mut packets = batch(&mut script);
    let oracle = Key::new(Backend::Portable, &secret);

    let sealed = apply(&packets, |records| seal_batch(&oracle, records));
    each_backend(&secret, &packets, &sealed, Direction::Seal);
    let emulate = seed & 3 == 1;
    if emulate {
        check_emulated(&secret, &packets, &sealed, Direction::Seal);
    }

    for (packet, (body, _)) in packets.iter_mut().zip(&sealed) {
        packet.buffer[packet.offset..].copy_from_slice(body);
    }
    while !script.is_empty() && !packets.is_empty() {
        let which = script.choice(packets.len());
        let packet = &mut packets[which];
        match script.choice(4) {
            0 => packet.counter ^= 1 << script.choice(64),
            1 => {
                let left = script.below(packet.buffer.len() - packet.offset + 1);
                packet.buffer.truncate(packet.offset + left);
            }
            _ => {
                let room = packet.buffer.len() - packet.offset;
                let at = packet.offset + script.below(room);
                if room > 0 {
                    packet.buffer[at] ^= 1 << script.choice(8);
                }
            }
        }
    }
    let opened = apply(&packets, |records| open_batch(&oracle, records));
    for (body, authentic) in &opened {
        assert!(*authentic || body.iter().all(|byte| *byte == 0));
    }
    each_backend(&secret, &packets, &opened, Direction::Open);
    if emulate {
        check_emulated(&secret, &packets, &opened, Direction::Open);
    }
}

fn batch(script: &mut Script<'_>) -> Vec<Packet> {
    let count = 1 + script.choice(PACKETS);
    let shape = script.byte();
    let usual = script.below(1600);
    let mut counter = match shape >> 6 {
        0 => 0,
        1 => u64::from(u32::MAX) - 3,
        2 => u64::MAX - 100,
        _ => script.u64(),
    };
    let fill = script.byte();
    let mut total = 0;
    let mut packets = Vec::new();
    for number in 0..count {
        let length = match shape & 7 {
            0 | 1 => usual,
            2 if number + 1 == count => script.below(usual + 1),
            2 => usual,
            3 => [usual, 52][number % 2],
            4 => usual + script.choice(3) * 16,
            5 => usize::from(script.byte()),
            _ => script.below(1600),
        };
        total += length;
        if total > BYTES {
            break;
        }
        let offset = if shape & 8 == 0 {
            16
        } else {
            script.choice(16)
        };
        let buffer = match fill {
            0 | 0xff => vec![fill; offset + length],
            seed => noise(u64::from(seed) + number as u64, offset + length),
        };
        packets.push(Packet {
            counter,
            buffer,
            offset,
        });
        counter = counter.wrapping_add(1);
    }
    packets
}

/// What becomes of the bodies, and the verdicts.
fn apply(packets: &[Packet], work: impl FnOnce(&mut [Record<'_>])) -> Vec<(Vec<u8>, bool)> {
    let mut copies = packets.to_vec();
    let mut records: Vec<_> = copies
        .iter_mut()
        .map(|packet| Record {
            counter: packet.counter,
            body: &mut packet.buffer[packet.offset..],
            authentic: false,
        })
        .collect();
    work(&mut records);
    let verdicts: Vec<_> = records.iter().map(|record| record.authentic).collect();
    let results = copies.iter().zip(packets).zip(verdicts);
    results
        .map(|((after, before), authentic)| {
            let front = ..before.offset;
            assert_eq!(after.buffer[front], before.buffer[front]);
            (after.buffer[after.offset..].to_vec(), authentic)
        })
        .collect()
}

fn each_backend(
    secret: &[u8; KEY_LEN],
    packets: &[Packet],
    expected: &[(Vec<u8>, bool)],
    direction: Direction,
) {
    static BACKENDS: OnceLock<Vec<Backend>> = OnceLock::new();
    let backends = BACKENDS.get_or_init(|| {
        let all = Backend::ALL.into_iter();
        all.filter(|backend| backend.is_available()).collect()
    });
    for backend in backends {
        let key = Key::new(*backend, secret);
        let results = apply(packets, |records| match direction {
            Direction::Seal => seal_batch(&key, records),
            Direction::Open => open_batch(&key, records),
        });
        assert!(results == expected, "{backend} differs from portable");
    }
}

/// There are no vectors to emulate.
#[cfg(not(target_arch = "x86_64"))]
fn check_emulated(_: &[u8; KEY_LEN], _: &[Packet], _: &[(Vec<u8>, bool)], _: Direction) {}

/// Vectors as arrays are slow: one of the two ways of multiplying, and the first packets of the batch only.
#[cfg(target_arch = "x86_64")]
fn check_emulated(
    secret: &[u8; KEY_LEN],
    packets: &[Packet],
    expected: &[(Vec<u8>, bool)],
    direction: Direction,
) {
    let mut bytes = 0;
    let few = packets.iter().take(EMULATED_PACKETS).take_while(|packet| {
        bytes += packet.buffer.len() - packet.offset;
        bytes <= EMULATED_BYTES
    });
    let count = few.count();
    let fused = secret[1] & 1 != 0;
    let key = EmulatedKey::new(secret, fused);
    let results = apply(&packets[..count], |records| match direction {
        Direction::Seal => key.seal_batch(records),
        Direction::Open => key.open_batch(records),
    });
    assert!(
        results == expected[..count],
        "AVX-512 (fused: {fused}) differs from portable"
    );
}
