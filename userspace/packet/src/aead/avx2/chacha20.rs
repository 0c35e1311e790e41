//! ChaCha20 (RFC 8439 section 2.3) for eight packets: vector *w* of the state holds word *w* of every packet, one
//! packet per 32-bit lane. All packets stand at the same block, so that the block counter is the same in every lane.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_or_si256, _mm256_permute2x128_si256, _mm256_set_epi8,
    _mm256_set1_epi32, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi32,
    _mm256_srli_epi32, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32,
    _mm256_unpacklo_epi64, _mm256_xor_si256,
};

use std::hint::black_box;

use zeroize::Zeroize;

use super::LANES;
use super::bytes::load32;
use crate::aead::lanes::CONSTANTS;

/// The words of one block for eight packets.
pub(super) type Block = [__m256i; 16];

/// Key and nonces of eight packets, and what of the first round does not depend on the block counter: the column
/// that holds the counter is the same in every lane and cheap to do without vectors, the other three never change.
pub(super) struct Cipher {
    initial: Block,
    first_round: Block,
    column: [u32; 3],
    rotations: Rotations,
}

/// What `vpshufb` needs to rotate words by 16 and by 8 bits. Loaded from here rather than written as constants: of
/// shuffles it can see through, LLVM makes twice as many.
#[derive(Clone, Copy)]
struct Rotations {
    sixteen: __m256i,
    eight: __m256i,
}

impl Rotations {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new() -> Self {
        black_box(Self {
            sixteen: _mm256_set_epi8(
                13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2, //
                13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2,
            ),
            eight: _mm256_set_epi8(
                14, 13, 12, 15, 10, 9, 8, 11, 6, 5, 4, 7, 2, 1, 0, 3, //
                14, 13, 12, 15, 10, 9, 8, 11, 6, 5, 4, 7, 2, 1, 0, 3,
            ),
        })
    }
}

impl Cipher {
    /// `salt` is the first word of all nonces, `counters` are the other two.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn new(key: &[u32; 8], salt: u32, counters: &[u64; LANES]) -> Self {
        let mut initial = [_mm256_setzero_si256(); 16];
        for (word, vector) in CONSTANTS.iter().chain(key).zip(&mut initial) {
            *vector = _mm256_set1_epi32(word.cast_signed());
        }
        let mut words = [[0; 32]; 2];
        for (lane, counter) in counters.iter().enumerate() {
            let bytes = counter.to_le_bytes();
            words[0][lane * 4..][..4].copy_from_slice(&bytes[..4]);
            words[1][lane * 4..][..4].copy_from_slice(&bytes[4..]);
        }
        initial[13] = _mm256_set1_epi32(salt.cast_signed());
        initial[14] = load32(&words[0]);
        initial[15] = load32(&words[1]);
        let mut first_round = initial;
        let rotations = Rotations::new();
        columns(&mut first_round, &rotations);
        Self {
            initial,
            first_round,
            column: [CONSTANTS[0], key[0], key[4]],
            rotations,
        }
    }

    /// The state behind the first round of the block with this number.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn start(&self, number: u32) -> Block {
        let [mut a, mut b, mut c] = self.column;
        let mut d = number;
        for [first, second] in [[16, 12], [8, 7]] {
            a = a.wrapping_add(b);
            d = (d ^ a).rotate_left(first);
            c = c.wrapping_add(d);
            b = (b ^ c).rotate_left(second);
        }
        let mut state = self.first_round;
        for (word, at) in [(a, 0), (b, 4), (c, 8), (d, 12)] {
            state[at] = _mm256_set1_epi32(word.cast_signed());
        }
        state
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn finish(&self, number: u32, state: &mut Block) {
        for (word, initial) in state.iter_mut().zip(&self.initial) {
            *word = _mm256_add_epi32(*word, *initial);
        }
        // Word 12 of `initial` is block 0.
        state[12] = _mm256_add_epi32(state[12], _mm256_set1_epi32(number.cast_signed()));
    }

    /// The key stream words of one block.
    ///
    /// Every place of use has its `SITE` and thereby its own copy: what is used once LLVM inlines, however long. As a
    /// function it would spill to a stack that is not aligned for vectors.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn block<const OPEN: bool, const SITE: u8>(&self, number: u32) -> Block {
        let mut state = self.start(number);
        diagonals(&mut state, &self.rotations);
        for _ in 0..9 {
            columns(&mut state, &self.rotations);
            diagonals(&mut state, &self.rotations);
        }
        self.finish(number, &mut state);
        state
    }
}

impl Drop for Cipher {
    fn drop(&mut self) {
        self.initial.zeroize();
        self.first_round.zeroize();
        self.column.zeroize();
    }
}

/// Two quarter rounds in step: enough to keep the processor busy, while the other half of the state can rest in
/// memory. Of all four in step, or one after another, or in another order of the diagonals, LLVM makes slower code.
macro_rules! quarter_rounds {
    ($v:ident, $rotations:ident, $([$a:literal, $b:literal, $c:literal, $d:literal]),*) => {
        $($v[$a] = _mm256_add_epi32($v[$a], $v[$b]);)*
        $($v[$d] = _mm256_shuffle_epi8(_mm256_xor_si256($v[$d], $v[$a]), $rotations.sixteen);)*
        $($v[$c] = _mm256_add_epi32($v[$c], $v[$d]);)*
        $(
            let x = _mm256_xor_si256($v[$b], $v[$c]);
            $v[$b] = _mm256_or_si256(_mm256_slli_epi32::<12>(x), _mm256_srli_epi32::<20>(x));
        )*
        $($v[$a] = _mm256_add_epi32($v[$a], $v[$b]);)*
        $($v[$d] = _mm256_shuffle_epi8(_mm256_xor_si256($v[$d], $v[$a]), $rotations.eight);)*
        $($v[$c] = _mm256_add_epi32($v[$c], $v[$d]);)*
        $(
            let x = _mm256_xor_si256($v[$b], $v[$c]);
            $v[$b] = _mm256_or_si256(_mm256_slli_epi32::<7>(x), _mm256_srli_epi32::<25>(x));
        )*
    };
}

#[inline]
#[target_feature(enable = "avx2")]
fn columns(v: &mut Block, rotations: &Rotations) {
    quarter_rounds!(v, rotations, [0, 4, 8, 12], [1, 5, 9, 13]);
    quarter_rounds!(v, rotations, [2, 6, 10, 14], [3, 7, 11, 15]);
}

#[inline]
#[target_feature(enable = "avx2")]
fn diagonals(v: &mut Block, rotations: &Rotations) {
    quarter_rounds!(v, rotations, [3, 4, 9, 14], [0, 5, 10, 15]);
    quarter_rounds!(v, rotations, [1, 6, 11, 12], [2, 7, 8, 13]);
}

/// From vectors of one word for eight packets to the 64 bytes of each packet, in two halves.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn by_packet(block: &Block) -> [[__m256i; 2]; LANES] {
    let low = transpose(std::array::from_fn(|word| block[word]));
    let high = transpose(std::array::from_fn(|word| block[word + 8]));
    std::array::from_fn(|lane| [low[lane], high[lane]])
}

/// Transposes eight by eight words.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
    let [a, b, c, d, e, f, g, h] = rows;
    // Pairs of rows: lanes 0, 1 | 4, 5 and 2, 3 | 6, 7.
    let pairs = |x, y| (_mm256_unpacklo_epi32(x, y), _mm256_unpackhi_epi32(x, y));
    let ((ab0, ab2), (cd0, cd2), (ef0, ef2), (gh0, gh2)) =
        (pairs(a, b), pairs(c, d), pairs(e, f), pairs(g, h));
    let fours = |x, y| (_mm256_unpacklo_epi64(x, y), _mm256_unpackhi_epi64(x, y));
    let ((ad0, ad1), (ad2, ad3)) = (fours(ab0, cd0), fours(ab2, cd2));
    let ((eh0, eh1), (eh2, eh3)) = (fours(ef0, gh0), fours(ef2, gh2));
    [
        _mm256_permute2x128_si256::<0x20>(ad0, eh0),
        _mm256_permute2x128_si256::<0x20>(ad1, eh1),
        _mm256_permute2x128_si256::<0x20>(ad2, eh2),
        _mm256_permute2x128_si256::<0x20>(ad3, eh3),
        _mm256_permute2x128_si256::<0x31>(ad0, eh0),
        _mm256_permute2x128_si256::<0x31>(ad1, eh1),
        _mm256_permute2x128_si256::<0x31>(ad2, eh2),
        _mm256_permute2x128_si256::<0x31>(ad3, eh3),
    ]
}
