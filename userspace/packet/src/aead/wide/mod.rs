//! AVX-512: sixteen packets of one length side by side, one per 32-bit lane.
//!
//! ```text
//!                packet 0   1   2  …  15
//!  chacha20      word 0 [ .   .   .     . ]   16 vectors, 20 rounds: a block of key stream each
//!                   ⋮
//!  transpose32        64 bytes of key stream for each packet, exclusive-or'ed with its text
//!  transpose64        the ciphertext, while it is in registers: one packet per 64-bit lane
//!  field         limb 0 [ .       .    …  ]   two halves of eight packets: Poly1305
//! ```
//! The shape and its reasons were measured on Zen 4 with a prototype: one pass over the texts beats two here, where the
//! vectors are 32 and the key stream need not go through memory.
//!
//! The algorithm is written over [`vector::Vector`], so that every test of it runs on any machine, with arrays in the
//! place of registers (`emulated`); `avx512` is the instructions, one by one. No processor or emulator with AVX-512 was
//! at hand: the instructions were compiled and read, never run, and their speed is unknown. Where they exist, the tests
//! and the self-test at the start run them, and what fails that is not used. Nothing here branches or indexes by a
//! secret. Keys, one-time keys and key stream kept in variables are wiped; what the compiler spills is beyond reach,
//! and is overwritten by the next batch.

#![expect(
    clippy::needless_range_loop,
    reason = "closures of iterators would be functions that are not compiled for AVX-512"
)]

mod avx512;
mod chacha20;
#[cfg(any(test, feature = "fuzzing"))]
mod emulated;
mod field;
mod poly1305;
#[cfg(test)]
mod tests;
mod vector;

#[cfg(any(test, feature = "fuzzing"))]
pub(super) use self::emulated::Emulated;

use zeroize::Zeroize as _;

use self::chacha20::Cipher as Stream;
use self::field::Field;
use self::poly1305::Poly1305;
use self::vector::{CHUNK, Vector, transpose32};
pub(super) use self::{avx512::Cipher, vector::LANES};
use super::lanes::Common;
use super::{Record, TAG_LEN};

/// Fewest packets of one batch for which [`pays`] may hold.
pub(super) const FEWEST: usize = 4;

/// Whether a group is faster side by side than one by one with AWS-LC. From the prototype's break-even on Zen 4: about
/// eight packets, four at 64 bytes. Empty lanes cost as much as full ones.
pub(super) fn pays(packets: usize, body: usize) -> bool {
    packets >= 8 || (packets >= FEWEST && body <= 64 + TAG_LEN)
}

/// Encrypts or decrypts the texts in front of the tags and gives the tags they must have. All bodies are equally long.
#[inline(always)]
fn transform<V: Vector, F: Field<V>, const OPEN: bool>(
    key: &[u32; 8],
    common: Common<'_>,
    group: &mut [&mut Record<'_>],
) -> [u128; LANES] {
    let body = group.first().map_or(0, |record| record.body.len());
    let Some(len) = body.checked_sub(TAG_LEN) else {
        return [0; LANES];
    };
    // A lane without a packet has an empty text: it computes with zeros, and its results are dropped.
    let mut counters = [0; LANES];
    let mut texts: [&mut [[u8; CHUNK]]; LANES] = Default::default();
    let mut tails: [&mut [u8]; LANES] = Default::default();
    for (lane, record) in group.iter_mut().enumerate() {
        counters[lane] = record.counter;
        (texts[lane], tails[lane]) = record.body[..len].as_chunks_mut();
    }
    let stream = Stream::<V>::new(key, common.salt, &counters);
    let mut one_time_keys = transpose32(&stream.block(0));
    let full = len / CHUNK;
    let mut poly1305 = Poly1305::<V, F>::new(&one_time_keys, full);
    one_time_keys.zeroize();

    for piece in common.associated_data.chunks(CHUNK) {
        let mut padded = [0; CHUNK];
        padded[..piece.len()].copy_from_slice(piece);
        poly1305.take(&[V::load(&padded); LANES], piece.len());
    }

    // Block 0 was the one-time keys.
    let mut number = 1;
    for at in 0..full {
        let mut chunks = transpose32(&stream.block(number));
        for lane in 0..LANES {
            // Without a packet, the key stream: what becomes of it is dropped.
            if let Some(chunk) = texts[lane].get_mut(at) {
                let before = V::load(chunk);
                let after = before.xor(chunks[lane]);
                after.store(chunk);
                chunks[lane] = if OPEN { before } else { after };
            }
        }
        poly1305.take(&chunks, CHUNK);
        number += 1;
    }

    let rest = len % CHUNK;
    if rest > 0 {
        let mut padded = [[0; CHUNK]; LANES];
        let mut chunks = transpose32(&stream.block(number));
        for lane in 0..LANES {
            let (padded, tail) = (&mut padded[lane], &mut *tails[lane]);
            padded[..tail.len()].copy_from_slice(tail);
            let before = V::load(padded);
            before.xor(chunks[lane]).store(padded);
            tail.copy_from_slice(&padded[..tail.len()]);
            padded[rest..].fill(0);
            chunks[lane] = if OPEN { before } else { V::load(padded) };
        }
        poly1305.take(&chunks, rest);
        padded.zeroize();
    }
    poly1305.finish(common.associated_data.len(), len)
}
