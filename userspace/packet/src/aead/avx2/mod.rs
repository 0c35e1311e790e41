//! AVX2: eight packets of one length side by side, one per 32-bit lane.
//!
//! ```text
//!              packet 0   1   2   3   4   5   6   7
//!  chacha20    word 0 [ .   .   .   .   .   .   .   . ]   16 vectors, 20 rounds: a block of key stream each
//!                 ⋮
//!  by_packet        64 bytes of key stream for each packet, exclusive-or'ed in memory
//!  poly1305    limb 0 [ .       .       .       . ]   2 × 5 vectors: 16 bytes of ciphertext of four packets
//! ```
//! Encryption and authentication are a pass each over the texts, which stay in the first-level cache at the lengths of
//! packets. Nothing here branches or indexes by a secret: what happens depends on the number of packets and their
//! length. Keys, one-time keys and key stream kept in variables are wiped; what the compiler spills is beyond reach,
//! and is overwritten by the next batch.

mod bytes;
mod chacha20;
mod poly1305;

use std::arch::x86_64::_mm256_xor_si256;

use zeroize::Zeroize as _;

use self::bytes::{load32, store32};
use self::chacha20::{Block, by_packet};
use self::poly1305::{Authenticator, CHUNK};
use super::lanes::{Common, compare_tags, write_tags};
use super::{KEY_LEN, Record, TAG_LEN};

/// Packets side by side.
pub(super) const LANES: usize = 8;

/// Packets of an MTU of 1500, padded. Longer ones gain a tenth or lose as much, depending on what else the core is
/// doing: Poly1305 one by one leaves the vector units alone, and gains more where nobody shares them.
const LONGEST: usize = 1504 + TAG_LEN;

/// Fewest packets of one batch for which [`pays`] may hold.
pub(super) const FEWEST: usize = 5;

/// Whether a group is faster side by side than one by one with AWS-LC. Measured on Zen 3 at 64, 256, 512, 1024, 1440
/// and 8928 bytes, sealing and opening in turns: eight packets win up to 1440 (between 1.5 and 2.2 times as fast at 64
/// bytes, and between a par and 1.2 times at 1440), seven up to 1024 bytes, five and six at 64 only. Empty lanes cost
/// as much as full ones.
pub(super) fn pays(packets: usize, body: usize) -> bool {
    let longest = match packets {
        LANES => LONGEST,
        7 => 1024 + TAG_LEN,
        FEWEST.. => 64 + TAG_LEN,
        _ => 0,
    };
    body <= longest
}

/// A key. Exists only on processors with AVX2.
pub(super) struct Cipher {
    words: [u32; 8],
}

#[allow(
    unsafe_code,
    reason = "functions compiled for AVX2 are called where only run-time detection vouches for it"
)]
impl Cipher {
    /// `None` on a processor without AVX2.
    pub(super) fn new(key: &[u8; KEY_LEN]) -> Option<Self> {
        if !is_x86_feature_detected!("avx2") {
            return None;
        }
        let (bytes, _) = key.as_chunks();
        Some(Self {
            words: std::array::from_fn(|word| u32::from_le_bytes(bytes[word])),
        })
    }

    /// Seals up to [`LANES`] bodies of one length.
    pub(super) fn seal(&self, common: Common<'_>, group: &mut [&mut Record<'_>]) {
        // SAFETY: `new` gives no `Cipher` unless the processor has AVX2.
        let tags = unsafe { transform::<false>(&self.words, common, group) };
        write_tags(group, &tags);
    }

    /// Opens up to [`LANES`] bodies of one length, and wipes the forged ones.
    pub(super) fn open(&self, common: Common<'_>, group: &mut [&mut Record<'_>]) {
        // SAFETY: `new` gives no `Cipher` unless the processor has AVX2.
        let tags = unsafe { transform::<true>(&self.words, common, group) };
        compare_tags(group, &tags);
    }
}

impl Drop for Cipher {
    fn drop(&mut self) {
        self.words.zeroize();
    }
}

/// Encrypts or decrypts the texts in front of the tags and gives the tags they must have.
#[target_feature(enable = "avx2")]
fn transform<const OPEN: bool>(
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
    let cipher = chacha20::Cipher::new(key, common.salt, &counters);
    let mut authenticator = Authenticator::new(&cipher.block::<OPEN, 0>(0));
    for piece in common.associated_data.chunks(CHUNK) {
        let mut padded = [0; CHUNK];
        padded[..piece.len()].copy_from_slice(piece);
        authenticator.blocks(&[&padded; LANES], piece.len());
    }

    let full = len / CHUNK;
    if OPEN {
        authenticator.chunks(&texts, full);
    }
    // Block 0 was the one-time keys.
    let mut number = 1;
    for at in 0..full {
        let block = cipher.block::<OPEN, 1>(number);
        apply(&block, texts.iter_mut().map(|text| text.get_mut(at)));
        number += 1;
    }
    if !OPEN {
        authenticator.chunks(&texts, full);
    }

    let rest = len % CHUNK;
    if rest > 0 {
        let mut padded = [[0; CHUNK]; LANES];
        for (padded, tail) in padded.iter_mut().zip(&tails) {
            padded[..tail.len()].copy_from_slice(tail);
        }
        if OPEN {
            authenticator.blocks(&padded.each_ref(), rest);
        }
        apply(
            &cipher.block::<OPEN, 2>(number),
            padded.iter_mut().map(Some),
        );
        for (padded, tail) in padded.iter_mut().zip(&mut tails) {
            tail.copy_from_slice(&padded[..tail.len()]);
            padded[rest..].fill(0);
        }
        if !OPEN {
            authenticator.blocks(&padded.each_ref(), rest);
        }
        padded.zeroize();
    }
    authenticator.finish(common.associated_data.len(), len)
}

/// Adds the key stream to a chunk of each packet.
#[inline]
#[target_feature(enable = "avx2")]
fn apply<'a>(block: &Block, chunks: impl Iterator<Item = Option<&'a mut [u8; CHUNK]>>) {
    for (chunk, key_stream) in chunks.zip(by_packet(block)) {
        let Some(chunk) = chunk else { continue };
        let (halves, _) = chunk.as_chunks_mut();
        for (half, key_stream) in halves.iter_mut().zip(key_stream) {
            store32(half, _mm256_xor_si256(load32(half), key_stream));
        }
    }
}
