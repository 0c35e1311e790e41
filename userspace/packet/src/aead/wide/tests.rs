//! The instructions against their emulation, and the algorithm on the emulation against the oracle.

use super::avx512::{Register, has};
use super::emulated::{Array, Emulated};
use super::vector::{CHUNK, Fused, LANES, Vector};
use crate::aead::lanes::Common;
use crate::aead::{Backend, Key, Record, TAG_LEN, open_batch, record, seal_batch};

fn noise(seed: usize, len: usize) -> Vec<u8> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            state.to_be_bytes()[0]
        })
        .collect()
}

fn bytes<V: Vector>(vector: V) -> [u8; CHUNK] {
    let mut bytes = [0; CHUNK];
    vector.store(&mut bytes);
    bytes
}

/// Operands at the edges and in between.
fn operands() -> Vec<[u8; CHUNK]> {
    let mut operands = vec![[0; CHUNK], [0xff; CHUNK]];
    operands.push(std::array::from_fn(|at| u8::try_from(at).unwrap()));
    operands.extend((0..40).map(|seed| <[u8; CHUNK]>::try_from(noise(seed, CHUNK)).unwrap()));
    operands
}

/// Every operation on every pair of operands, as one vector type has it.
fn results<V: Vector>() -> Vec<(&'static str, [u8; CHUNK])> {
    let mut results = vec![
        ("zero", bytes(V::zero())),
        ("splat32", bytes(V::splat32(0x8765_4321))),
        ("splat64", bytes(V::splat64(0xfedc_ba98_7654_3210))),
    ];
    for x in operands() {
        let x = V::load(&x);
        results.extend([
            ("load", bytes(x)),
            ("rotate32 7", bytes(x.rotate32::<7>())),
            ("rotate32 8", bytes(x.rotate32::<8>())),
            ("rotate32 12", bytes(x.rotate32::<12>())),
            ("rotate32 16", bytes(x.rotate32::<16>())),
            ("left64 2", bytes(x.left64::<2>())),
            ("left64 20", bytes(x.left64::<20>())),
            ("right64 26", bytes(x.right64::<26>())),
            ("right64 52", bytes(x.right64::<52>())),
        ]);
        for y in operands() {
            let y = V::load(&y);
            results.extend([
                ("xor", bytes(x.xor(y))),
                ("and", bytes(x.and(y))),
                ("or", bytes(x.or(y))),
                ("add32", bytes(x.add32(y))),
                ("add64", bytes(x.add64(y))),
                ("mul32", bytes(x.mul32(y))),
                ("low32", bytes(x.low32(y))),
                ("high32", bytes(x.high32(y))),
                ("low64", bytes(x.low64(y))),
                ("high64", bytes(x.high64(y))),
                ("even_quarters", bytes(x.even_quarters(y))),
                ("odd_quarters", bytes(x.odd_quarters(y))),
            ]);
        }
    }
    results
}

fn fused_results<V: Fused>() -> Vec<(&'static str, [u8; CHUNK])> {
    let mut results = Vec::new();
    for x in operands() {
        for y in operands() {
            for sum in [[0; CHUNK], [0xff; CHUNK], [0x35; CHUNK]] {
                let (sum, x, y) = (V::load(&sum), V::load(&x), V::load(&y));
                results.push(("add_low52", bytes(sum.add_low52(x, y))));
                results.push(("add_high52", bytes(sum.add_high52(x, y))));
            }
        }
    }
    results
}

/// Where the processor has them; elsewhere there is nothing to compare.
#[test]
fn instructions_do_what_their_emulation_does() {
    if has(false) {
        for (here, emulated) in results::<Register>().iter().zip(results::<Array>()) {
            assert_eq!(*here, emulated);
        }
    }
    if has(true) {
        for (here, emulated) in fused_results::<Register>()
            .iter()
            .zip(fused_results::<Array>())
        {
            assert_eq!(*here, emulated);
        }
    }
}

/// The manual's words, on numbers.
#[test]
fn the_emulation_by_hand() {
    let x = Array::load(&std::array::from_fn(|at| u8::try_from(at).unwrap()));
    let y = Array::load(&std::array::from_fn(|at| u8::try_from(at + 64).unwrap()));
    let first = |vector: Array, words: usize| {
        bytes(vector)
            .as_chunks::<4>()
            .0
            .iter()
            .take(words)
            .map(|word| word[0])
            .collect::<Vec<_>>()
    };
    assert_eq!(first(x.low32(y), 6), [0, 64, 4, 68, 16, 80]);
    assert_eq!(first(x.high32(y), 6), [8, 72, 12, 76, 24, 88]);
    assert_eq!(first(x.low64(y), 6), [0, 4, 64, 68, 16, 20]);
    assert_eq!(first(x.high64(y), 6), [8, 12, 72, 76, 24, 28]);
    assert_eq!(
        first(x.even_quarters(y), 16),
        [
            0, 4, 8, 12, 32, 36, 40, 44, 64, 68, 72, 76, 96, 100, 104, 108
        ]
    );
    assert_eq!(first(x.odd_quarters(y), 5), [16, 20, 24, 28, 48]);
    let wide = Array([(1 << 52) - 1; 8]);
    assert_eq!(Array::zero().add_low52(wide, wide), Array([1; 8]));
    assert_eq!(
        Array([1; 8]).add_high52(wide, wide),
        Array([(1 << 52) - 1; 8])
    );
    let high = Array([u64::MAX; 8]);
    assert_eq!(high.mul32(high), Array([0xffff_fffe_0000_0001; 8]));
}

/// Runs a group through the algorithm, and through the oracle.
fn agree(seed: usize, packets: usize, len: usize) {
    let secret = noise(seed, 32).try_into().unwrap();
    let oracle = Key::new(Backend::Portable, &secret);
    let first = u64::from(u32::MAX) - 3;
    let plain: Vec<_> = (0..packets)
        .map(|lane| noise(seed * 31 + lane, len + TAG_LEN))
        .collect();
    let run = |bodies: &mut [Vec<u8>], work: &dyn Fn(&mut [Record<'_>])| {
        let mut records: Vec<_> = bodies
            .iter_mut()
            .zip(first..)
            .map(|(body, counter)| record(counter, body))
            .collect();
        work(&mut records);
        records.iter().filter(|record| record.authentic).count()
    };
    let mut expected = plain.clone();
    assert_eq!(run(&mut expected, &|all| seal_batch(&oracle, all)), packets);
    for fused in [false, true] {
        let cipher = Emulated::new(&secret, fused);
        let mut bodies = plain.clone();
        let sealed = run(&mut bodies, &|all| {
            cipher.seal(Common::WIREGUARD, &mut all.iter_mut().collect::<Vec<_>>());
        });
        assert_eq!(sealed, packets);
        assert!(bodies == expected, "{packets} × {len}, fused: {fused}");
        let forged = seed % packets;
        bodies[forged][len] ^= 0x80;
        let opened = run(&mut bodies, &|all| {
            cipher.open(Common::WIREGUARD, &mut all.iter_mut().collect::<Vec<_>>());
        });
        assert_eq!(opened, packets - 1, "{packets} × {len}, fused: {fused}");
        for lane in (0..packets).filter(|lane| *lane != forged) {
            assert_eq!(bodies[lane][..len], plain[lane][..len]);
        }
        assert!(bodies[forged].iter().all(|byte| *byte == 0));
    }
    // And nothing of this depends on what the public functions do with a batch.
    assert_eq!(run(&mut expected, &|all| open_batch(&oracle, all)), packets);
}

#[test]
fn the_algorithm_agrees_with_the_oracle() {
    for len in (0..=400).chain([1008, 1024, 1439, 1440, 1472, 4096, 8928]) {
        agree(len, 1 + len % LANES, len);
    }
    for packets in 1..=LANES {
        for len in [0, 16, 64, 255, 256, 320] {
            agree(packets * 7 + len, packets, len);
        }
    }
}
