//! Nanoseconds per packet for what the data path does to every packet, in batches of 45 as a super-packet holds.
//!
//! `cargo bench -p adit-packet`. Figures of one run compare, figures of different machines do not.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench prints, and its inputs are its own"
)]

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use adit_packet::aead::{Backend, Key, Record, TAG_LEN, open_batch, seal_batch};
use adit_packet::checksum;
use adit_packet::coalesce::{Coalescer, Offloads};
use adit_packet::split::Splitter;
use common::{BATCH, HEADERS, super_packet};

const SIZES: [usize; 6] = [64, 256, 512, 1024, 1440, 8928];
/// The first is what the others are compared with. Those that the processor does not have are left out.
const BACKENDS: [Backend; 6] = [
    Backend::AwsLcRs,
    Backend::Avx512Ifma,
    Backend::Avx512,
    Backend::Avx2,
    Backend::Auto,
    Backend::Portable,
];
/// Distance of the packets in memory: a power of two would make them collide in the first-level cache.
const STRIDE: usize = 9088;

/// Time of one call of `work`, in nanoseconds per packet of the batch: the lower decile of many short rounds, most of
/// which fit into one time slice even when other processes want the core.
fn measure(packets: usize, mut work: impl FnMut()) -> f64 {
    const ROUNDS: usize = 200;
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (start, mut calls) = (Instant::now(), 0u32);
            while start.elapsed() < Duration::from_micros(400) {
                work();
                calls += 1;
            }
            start.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 10] / f64::from(u32::try_from(packets).unwrap())
}

fn report(what: &str, size: usize, ns: f64) {
    let bytes = f64::from(u32::try_from(size).unwrap());
    println!(
        "{what:28} {size:5} bytes {ns:9.1} ns/packet {:7.2} GB/s",
        bytes / ns
    );
}

fn split_and_coalesce(size: usize) {
    let (header, packet, segments) = super_packet(size);
    let mut arena = vec![0; BATCH * STRIDE];
    let copy = measure(segments, || {
        for (slot, part) in arena.chunks_mut(STRIDE).zip(packet.chunks(size - HEADERS)) {
            slot[..part.len()].copy_from_slice(black_box(part));
        }
    });
    report("copy only", size, copy);
    let split = measure(segments, || {
        let mut splitter = Splitter::new(black_box(header), black_box(&packet)).unwrap();
        for slot in arena.chunks_mut(STRIDE) {
            if splitter.write_next(slot).is_none() {
                break;
            }
        }
    });
    report("split", size, split);

    let mut splitter = Splitter::new(header, &packet).unwrap();
    let mut lengths = Vec::new();
    for slot in arena.chunks_mut(STRIDE) {
        lengths.extend(splitter.write_next(slot));
    }
    let sum = measure(segments, || {
        for (slot, len) in arena.chunks(STRIDE).zip(&lengths) {
            black_box(checksum::sum(black_box(&slot[..*len])));
        }
    });
    report("checksum only", size, sum);
    let pristine: Vec<u8> = arena[..HEADERS].to_vec();
    let offloads = Offloads {
        tcp4: true,
        tcp6: true,
        udp4: true,
        udp6: true,
    };
    let mut coalescer = Coalescer::new(offloads);
    let coalesce = measure(segments, || {
        // Merging rewrites the first packet's headers.
        arena[..HEADERS].copy_from_slice(&pristine);
        let mut slots = arena.chunks_mut(STRIDE);
        let mut packets: [&mut [u8]; BATCH] = std::array::from_fn(|index| {
            let slot = slots.next().unwrap();
            &mut slot[..lengths.get(index).copied().unwrap_or(0)]
        });
        coalescer.coalesce(&mut packets, |slices, merged| {
            assert_eq!(merged, segments);
            black_box(slices);
        });
    });
    report("coalesce", size, coalesce);
}

/// Seals and opens in batches of `batch`: the backends take turns, round by round, so that a change of the clock or a
/// neighbour on the core hits all of them. Prints medians, and medians of the ratios to `aws-lc-rs` of the same round.
fn aead(shape: &str, len: impl Fn(usize) -> usize, batch: usize) {
    const ROUNDS: usize = 401;
    let packets = BATCH.next_multiple_of(batch);
    let mut arena = vec![0; packets * STRIDE];
    let mut records: Vec<Record<'_>> = arena
        .chunks_mut(STRIDE)
        .enumerate()
        .map(|(n, slot)| Record {
            counter: n as u64,
            body: &mut slot[..len(n) + TAG_LEN],
            authentic: false,
        })
        .collect();
    let backends = BACKENDS
        .into_iter()
        .filter(|backend| backend.is_available());
    let keys: Vec<Key> = backends
        .map(|backend| Key::new(backend, &[7; 32]))
        .collect();
    let mut time = |key: &Key, work: fn(&Key, &mut [Record<'_>])| {
        let start = Instant::now();
        for batch in records.chunks_mut(batch) {
            work(key, batch);
        }
        let elapsed = start.elapsed().as_secs_f64() * 1e9;
        assert!(records.iter().all(|record| record.authentic));
        elapsed / f64::from(u32::try_from(packets).unwrap())
    };
    let mut rounds: [[Vec<f64>; BACKENDS.len()]; 2] = Default::default();
    for _ in 0..ROUNDS {
        for (index, key) in keys.iter().enumerate() {
            rounds[0][index].push(time(key, seal_batch));
            rounds[1][index].push(time(key, open_batch));
        }
    }
    for (what, rounds) in ["seal", "open"].into_iter().zip(&rounds) {
        print!("{what} {shape:>11} × {batch:2}");
        let reference = &rounds[0];
        for (key, times) in keys.iter().zip(rounds) {
            let backend = key.backend();
            let ratio = reference.iter().zip(times).map(|(one, other)| one / other);
            print!(
                "  {backend} {:7.1} ns {:4.2}×",
                median(times.clone()),
                median(ratio.collect())
            );
        }
        println!();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Splits a super-packet and seals its packets, in groups of `group`: few packets at a time are sealed while they are
/// in the first-level cache. `bound` sums the payload and leaves out the copy, which is less than sealing out of place
/// would have to do.
fn egress(size: usize) {
    const ROUNDS: usize = 401;
    let (header, packet, segments) = super_packet(size);
    let mut arena = vec![0; BATCH * (size + 32)];
    let key = Key::new(Backend::Auto, &[7; 32]);
    let mut time = |group: usize, bound: bool| {
        let start = Instant::now();
        let mut splitter = Splitter::new(black_box(header), black_box(&packet)).unwrap();
        let mut payloads = packet[HEADERS..].chunks(size - HEADERS);
        for slots in arena.chunks_mut(group * (size + 32)) {
            let mut records: [Record<'_>; BATCH] = std::array::from_fn(|_| Record {
                counter: 0,
                body: &mut [],
                authentic: false,
            });
            let mut count = 0;
            for slot in slots.chunks_mut(size + 32) {
                if bound {
                    let Some(payload) = payloads.next() else {
                        break;
                    };
                    black_box(checksum::sum(payload));
                } else if splitter.write_next(&mut slot[16..]).is_none() {
                    break;
                }
                records[count].body = &mut slot[16..];
                count += 1;
            }
            seal_batch(&key, &mut records[..count]);
        }
        start.elapsed().as_secs_f64() * 1e9 / f64::from(u32::try_from(segments).unwrap())
    };
    let mut rounds: [Vec<f64>; 5] = Default::default();
    for _ in 0..ROUNDS {
        rounds[0].push(time(BATCH, false));
        rounds[1].push(time(16, false));
        rounds[2].push(time(8, false));
        rounds[3].push(time(BATCH, true));
        rounds[4].push(time(8, true));
    }
    print!("split and seal {size:5} bytes");
    let names = ["all at once", "16", "8", "bound", "bound, 8"];
    for (name, times) in names.into_iter().zip(&rounds) {
        let ratio = rounds[0].iter().zip(times).map(|(one, other)| one / other);
        let (time, ratio) = (median(times.clone()), median(ratio.collect()));
        print!("  {name} {time:7.1} ns {ratio:5.3}×");
    }
    println!();
}

fn main() {
    if std::env::args().any(|argument| argument == "egress") {
        for size in [256, 1024, 1440] {
            egress(size);
        }
        return;
    }
    // `cargo bench -p adit-packet -- aead` leaves out the rest.
    if !std::env::args().any(|argument| argument == "aead") {
        for size in SIZES {
            split_and_coalesce(size);
        }
    }
    for size in SIZES {
        for batch in [1, 8, BATCH] {
            aead(&format!("{size} bytes"), |_| size, batch);
        }
    }
    aead("64 and 1440", |n| [64, 1440][n % 2], BATCH);
    aead("all lengths", |n| (n * 619 % BATCH) * 32, BATCH);
}
