//! Poly1305 (RFC 8439 section 2.5) for eight packets, each with a key of its own: two halves of four packets, one
//! packet per 64-bit lane, numbers in five limbs of 26 bits.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi64, _mm256_and_si256, _mm256_castsi128_si256, _mm256_castsi256_si128,
    _mm256_cvtepu32_epi64, _mm256_extracti128_si256, _mm256_inserti128_si256, _mm256_mul_epu32,
    _mm256_or_si256, _mm256_set1_epi64x, _mm256_setzero_si256, _mm256_slli_epi64,
    _mm256_srli_epi64, _mm256_unpackhi_epi64, _mm256_unpacklo_epi64,
};

use zeroize::Zeroize;

use super::LANES;
use super::bytes::{load16, store32};
use super::chacha20::Block;
use crate::aead::lanes::residue;

/// Bytes of a packet that are taken in at once: a block of key stream.
pub(super) const CHUNK: usize = 64;

/// Chunks from which on the powers of the key are worth their price.
const WORTH_POWERS: usize = 4;

const MASK: i64 = (1 << 26) - 1;

/// Five limbs of 26 bits, with room above, of four packets.
type Limbs = [__m256i; 5];

/// Four packets.
struct Half {
    accumulator: Limbs,
    key: Factor,
    /// The second half of the one-time key, by packet.
    pad: [u128; 4],
}

/// A key or a power of it.
struct Factor {
    limbs: Limbs,
    /// Limbs 1 to 4 times 5: what limbs past 2^130 come back as.
    folded: [__m256i; 4],
}

/// The powers 2, 3 and 4 of the key: four blocks are multiplied by one power each, for a single carry.
struct Powers([Factor; 3]);

/// The state of eight packets.
pub(super) struct Authenticator([Half; 2]);

impl Authenticator {
    /// `block` is the key stream's block 0, whose first 32 bytes are the one-time key.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn new(block: &Block) -> Self {
        let low = |word: usize| _mm256_cvtepu32_epi64(_mm256_castsi256_si128(block[word]));
        let high = |word: usize| _mm256_cvtepu32_epi64(_mm256_extracti128_si256::<1>(block[word]));
        Self([
            Half::new(std::array::from_fn(low)),
            Half::new(std::array::from_fn(high)),
        ])
    }

    /// Takes in the first `count` chunks of all packets.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn chunks(&mut self, texts: &[&mut [[u8; CHUNK]]; LANES], count: usize) {
        if count < WORTH_POWERS {
            for at in 0..count {
                self.blocks(&chunks(texts, at), CHUNK);
            }
            return;
        }
        let [low, high] = &mut self.0;
        let powers = [low.key.powers(), high.key.powers()];
        for at in 0..count {
            let chunks = chunks(texts, at);
            let (chunks, _) = chunks.as_chunks();
            low.chunk(&powers[0], &chunks[0]);
            high.chunk(&powers[1], &chunks[1]);
        }
    }

    /// Takes in the first `len` bytes of a chunk of every packet, followed by zeros up to a whole block.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn blocks(&mut self, chunks: &[&[u8; CHUNK]; LANES], len: usize) {
        let (chunks, _) = chunks.as_chunks();
        for part in 0..len.div_ceil(16) {
            for (half, chunks) in self.0.iter_mut().zip(chunks) {
                half.block(load(chunks, part));
            }
        }
    }

    /// Takes in the lengths of the associated data and of the text, and gives the tags.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn finish(&mut self, associated_data: usize, text: usize) -> [u128; LANES] {
        let word = |len: usize| _mm256_set1_epi64x((len as u64).cast_signed());
        let (associated_data, text) = (word(associated_data), word(text));
        for half in &mut self.0 {
            half.block(limbs_of_block(associated_data, text));
        }
        let [low, high] = &self.0;
        let (low, high) = (low.tags(), high.tags());
        std::array::from_fn(|lane| if lane < 4 { low[lane] } else { high[lane - 4] })
    }
}

impl Factor {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(limbs: Limbs) -> Self {
        let five = |x| _mm256_add_epi64(x, _mm256_slli_epi64::<2>(x));
        let [_, l1, l2, l3, l4] = limbs;
        Self {
            limbs,
            folded: [five(l1), five(l2), five(l3), five(l4)],
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn powers(&self) -> Powers {
        let square = Self::new(carry(self.times(self.limbs)));
        let cube = Self::new(carry(self.times(square.limbs)));
        let fourth = Self::new(carry(self.times(cube.limbs)));
        Powers([square, cube, fourth])
    }

    /// The product, not yet carried. Limbs of `x` are below 2^28 and of the folded key below 2^29: twenty products,
    /// those of four blocks, fit into 62 bits.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn times(&self, x: Limbs) -> Limbs {
        let [h0, h1, h2, h3, h4] = x;
        let [r0, r1, r2, r3, r4] = self.limbs;
        let [s1, s2, s3, s4] = self.folded;
        macro_rules! dot {
            ($($x:ident * $y:ident),*) => {{
                let products = [$(_mm256_mul_epu32($x, $y)),*];
                _mm256_add_epi64(
                    _mm256_add_epi64(
                        _mm256_add_epi64(products[0], products[1]),
                        _mm256_add_epi64(products[2], products[3]),
                    ),
                    products[4],
                )
            }};
        }
        [
            dot!(h0 * r0, h1 * s4, h2 * s3, h3 * s2, h4 * s1),
            dot!(h0 * r1, h1 * r0, h2 * s4, h3 * s3, h4 * s2),
            dot!(h0 * r2, h1 * r1, h2 * r0, h3 * s4, h4 * s3),
            dot!(h0 * r3, h1 * r2, h2 * r1, h3 * r0, h4 * s4),
            dot!(h0 * r4, h1 * r3, h2 * r2, h3 * r1, h4 * r0),
        ]
    }
}

impl Half {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(words: [__m256i; 8]) -> Self {
        let join = |low, high| _mm256_or_si256(low, _mm256_slli_epi64::<32>(high));
        let clamp =
            |words, mask: u64| _mm256_and_si256(words, _mm256_set1_epi64x(mask.cast_signed()));
        let key = limbs(
            clamp(join(words[0], words[1]), 0x0fff_fffc_0fff_ffff),
            clamp(join(words[2], words[3]), 0x0fff_fffc_0fff_fffc),
        );
        let low = lanes(join(words[4], words[5]));
        let high = lanes(join(words[6], words[7]));
        Self {
            accumulator: [_mm256_setzero_si256(); 5],
            key: Factor::new(key),
            pad: std::array::from_fn(|lane| u128::from(low[lane]) | u128::from(high[lane]) << 64),
        }
    }

    /// Takes in one block.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn block(&mut self, block: Limbs) {
        self.accumulator = carry(self.key.times(add(self.accumulator, block)));
    }

    /// Takes in four blocks.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn chunk(&mut self, powers: &Powers, chunks: &[&[u8; CHUNK]; 4]) {
        let Powers([square, cube, fourth]) = powers;
        let mut sum = fourth.times(add(self.accumulator, load(chunks, 0)));
        sum = add(sum, cube.times(load(chunks, 1)));
        sum = add(sum, square.times(load(chunks, 2)));
        sum = add(sum, self.key.times(load(chunks, 3)));
        self.accumulator = carry(sum);
    }

    /// The accumulator modulo 2^130 - 5, plus the pad modulo 2^128.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn tags(&self) -> [u128; 4] {
        let limbs = self.accumulator.map(|vector| lanes(vector));
        std::array::from_fn(|lane| {
            let limb = |index: usize| limbs[index][lane];
            residue::<5, 26>([limb(0), limb(1), limb(2), limb(3), limb(4)])
                .wrapping_add(self.pad[lane])
        })
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.accumulator.zeroize();
        self.pad.zeroize();
    }
}

impl Drop for Factor {
    fn drop(&mut self) {
        self.limbs.zeroize();
        self.folded.zeroize();
    }
}

/// A chunk of each packet. Where there is no packet, zeros.
#[inline]
fn chunks<'a>(texts: &'a [&mut [[u8; CHUNK]]; LANES], at: usize) -> [&'a [u8; CHUNK]; LANES] {
    std::array::from_fn(|lane| texts[lane].get(at).unwrap_or(&[0; CHUNK]))
}

/// Block `part` of four packets.
#[inline]
#[target_feature(enable = "avx2")]
fn load(chunks: &[&[u8; CHUNK]; 4], part: usize) -> Limbs {
    let load = |lane: usize| load16(&chunks[lane].as_chunks().0[part]);
    let pair =
        |x: usize, y: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(x)), load(y));
    let (even, odd) = (pair(0, 2), pair(1, 3));
    limbs_of_block(
        _mm256_unpacklo_epi64(even, odd),
        _mm256_unpackhi_epi64(even, odd),
    )
}

/// The limbs of a block of 16 bytes with the bit above it.
#[inline]
#[target_feature(enable = "avx2")]
fn limbs_of_block(low: __m256i, high: __m256i) -> Limbs {
    let mut block = limbs(low, high);
    block[4] = _mm256_or_si256(block[4], _mm256_set1_epi64x(1 << 24));
    block
}

#[inline]
#[target_feature(enable = "avx2")]
fn add(x: Limbs, y: Limbs) -> Limbs {
    let [x0, x1, x2, x3, x4] = x;
    let [y0, y1, y2, y3, y4] = y;
    [
        _mm256_add_epi64(x0, y0),
        _mm256_add_epi64(x1, y1),
        _mm256_add_epi64(x2, y2),
        _mm256_add_epi64(x3, y3),
        _mm256_add_epi64(x4, y4),
    ]
}

/// Limbs of 26 bits again, in two chains at once. Limbs 1 and 4 may end a little above.
#[inline]
#[target_feature(enable = "avx2")]
fn carry(sum: Limbs) -> Limbs {
    let mask = _mm256_set1_epi64x(MASK);
    let [mut d0, mut d1, mut d2, mut d3, mut d4] = sum;
    macro_rules! carry {
        ($from:ident => $to:ident) => {
            $to = _mm256_add_epi64($to, _mm256_srli_epi64::<26>($from));
            $from = _mm256_and_si256($from, mask);
        };
    }
    carry!(d0 => d1);
    carry!(d3 => d4);
    carry!(d1 => d2);
    let over = _mm256_srli_epi64::<26>(d4);
    d4 = _mm256_and_si256(d4, mask);
    d0 = _mm256_add_epi64(d0, _mm256_add_epi64(over, _mm256_slli_epi64::<2>(over)));
    carry!(d2 => d3);
    carry!(d0 => d1);
    carry!(d3 => d4);
    [d0, d1, d2, d3, d4]
}

/// A 128-bit number per packet, as low and high words, in limbs.
#[inline]
#[target_feature(enable = "avx2")]
fn limbs(low: __m256i, high: __m256i) -> Limbs {
    let mask = _mm256_set1_epi64x(MASK);
    let middle = _mm256_or_si256(_mm256_srli_epi64::<52>(low), _mm256_slli_epi64::<12>(high));
    [
        _mm256_and_si256(low, mask),
        _mm256_and_si256(_mm256_srli_epi64::<26>(low), mask),
        _mm256_and_si256(middle, mask),
        _mm256_and_si256(_mm256_srli_epi64::<14>(high), mask),
        _mm256_srli_epi64::<40>(high),
    ]
}

/// The four lanes of a vector.
#[inline]
#[target_feature(enable = "avx2")]
fn lanes(vector: __m256i) -> [u64; 4] {
    let mut bytes = [0; 32];
    store32(&mut bytes, vector);
    let (words, _) = bytes.as_chunks();
    std::array::from_fn(|lane| u64::from_le_bytes(words[lane]))
}
