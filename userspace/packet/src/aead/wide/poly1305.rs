//! Poly1305 (RFC 8439 section 2.5) for sixteen packets, each with a key of its own: two halves of eight, one packet per
//! 64-bit lane.

use zeroize::Zeroize as _;

use super::field::{Field, words};
use super::vector::{CHUNK, LANES, Vector, transpose64};

/// Chunks from which on the powers of the key are worth their price.
const WORTH_POWERS: usize = 4;

/// Eight packets.
struct Half<V: Vector, F: Field<V>> {
    accumulator: F,
    /// The key and its powers 2, 3 and 4: four blocks are multiplied by one power each, for a single carry.
    powers: [F::Factor; 4],
    /// The second half of the one-time key, by packet.
    pad: [u128; 8],
    vector: std::marker::PhantomData<V>,
}

/// The state of sixteen packets.
pub(super) struct Poly1305<V: Vector, F: Field<V>> {
    halves: [Half<V, F>; 2],
    with_powers: bool,
}

impl<V: Vector, F: Field<V>> Poly1305<V, F> {
    /// From block 0 of each packet's key stream, whose first 32 bytes are the one-time key. `chunks` says how much there
    /// will be to take in.
    #[inline(always)]
    pub(super) fn new(blocks: &[V; LANES], chunks: usize) -> Self {
        let with_powers = chunks >= WORTH_POWERS;
        let (low, high) = halves(blocks);
        Self {
            halves: [Half::new(low, with_powers), Half::new(high, with_powers)],
            with_powers,
        }
    }

    /// Takes in the first `len` bytes of a chunk of every packet, which zeros follow up to a whole block.
    #[inline(always)]
    pub(super) fn take(&mut self, chunks: &[V; LANES], len: usize) {
        let (low, high) = halves(chunks);
        let [first, second] = &mut self.halves;
        if len == CHUNK && self.with_powers {
            first.chunk(transpose64(low));
            second.chunk(transpose64(high));
        } else {
            first.blocks(transpose64(low), len.div_ceil(16));
            second.blocks(transpose64(high), len.div_ceil(16));
        }
    }

    /// Takes in the lengths of the associated data and of the text, and gives the tags.
    #[inline(always)]
    pub(super) fn finish(&mut self, associated_data: usize, text: usize) -> [u128; LANES] {
        let lengths = F::from_block(V::splat64(associated_data as u64), V::splat64(text as u64));
        let mut tags = [0; LANES];
        for at in 0..2 {
            let half = &mut self.halves[at];
            half.block(lengths);
            let residues = half.accumulator.residues();
            for lane in 0..8 {
                tags[at * 8 + lane] = residues[lane].wrapping_add(half.pad[lane]);
            }
        }
        tags
    }
}

impl<V: Vector, F: Field<V>> Half<V, F> {
    #[inline(always)]
    fn new(blocks: [V; 8], with_powers: bool) -> Self {
        let [low, high, pad_low, pad_high, ..] = transpose64(blocks);
        let key = F::from_words(
            low.and(V::splat64(0x0fff_fffc_0fff_ffff)),
            high.and(V::splat64(0x0fff_fffc_0fff_fffc)),
        );
        let mut powers = [key.factor(); 4];
        if with_powers {
            let mut power = key;
            for at in 1..4 {
                power = F::carry(F::add_product(F::no_products(), power, &powers[0]));
                powers[at] = power.factor();
            }
        }
        let pads = words(&[pad_low, pad_high]);
        let mut pad = [0; 8];
        for lane in 0..8 {
            pad[lane] = u128::from(pads[lane][0]) | u128::from(pads[lane][1]) << 64;
        }
        Self {
            accumulator: F::zero(),
            powers,
            pad,
            vector: std::marker::PhantomData,
        }
    }

    /// Takes in one block.
    #[inline(always)]
    fn block(&mut self, block: F) {
        let sum = self.accumulator.plus(block);
        self.accumulator = F::carry(F::add_product(F::no_products(), sum, &self.powers[0]));
    }

    /// Takes in the first `count` blocks of a chunk, given as its 64-bit words.
    #[inline(always)]
    fn blocks(&mut self, words: [V; 8], count: usize) {
        for part in 0..count.min(4) {
            self.block(F::from_block(words[part * 2], words[part * 2 + 1]));
        }
    }

    /// Takes in the four blocks of a chunk, given as its 64-bit words.
    #[inline(always)]
    fn chunk(&mut self, words: [V; 8]) {
        let [key, square, cube, fourth] = &self.powers;
        let first = self.accumulator.plus(F::from_block(words[0], words[1]));
        let mut sum = F::add_product(F::no_products(), first, fourth);
        sum = F::add_product(sum, F::from_block(words[2], words[3]), cube);
        sum = F::add_product(sum, F::from_block(words[4], words[5]), square);
        sum = F::add_product(sum, F::from_block(words[6], words[7]), key);
        self.accumulator = F::carry(sum);
    }
}

impl<V: Vector, F: Field<V>> Drop for Half<V, F> {
    #[inline(always)]
    fn drop(&mut self) {
        self.accumulator.zeroize();
        self.powers.zeroize();
        self.pad.zeroize();
    }
}

/// The first eight of sixteen, and the others.
#[inline(always)]
fn halves<V: Vector>(all: &[V; LANES]) -> ([V; 8], [V; 8]) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *all;
    ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p])
}
