//! ChaCha20 (RFC 8439 section 2.3) for sixteen packets: vector *w* of the state holds word *w* of every packet. All
//! packets stand at the same block, so that the block counter is the same in every lane.

use zeroize::Zeroize as _;

use super::vector::{CHUNK, LANES, Vector};
use crate::aead::lanes::CONSTANTS;

/// Key and nonces of sixteen packets, and what of the first round does not depend on the block counter: the column
/// that holds the counter is the same in every lane and cheap to do without vectors, the other three never change.
pub(super) struct Cipher<V: Vector> {
    initial: [V; 16],
    first_round: [V; 16],
    column: [u32; 3],
}

/// Quarter rounds in step, so that none waits for the one before it.
macro_rules! quarter_rounds {
    ($v:ident, $([$a:literal, $b:literal, $c:literal, $d:literal]),*) => {
        $($v[$a] = $v[$a].add32($v[$b]);)*
        $($v[$d] = $v[$d].xor($v[$a]).rotate32::<16>();)*
        $($v[$c] = $v[$c].add32($v[$d]);)*
        $($v[$b] = $v[$b].xor($v[$c]).rotate32::<12>();)*
        $($v[$a] = $v[$a].add32($v[$b]);)*
        $($v[$d] = $v[$d].xor($v[$a]).rotate32::<8>();)*
        $($v[$c] = $v[$c].add32($v[$d]);)*
        $($v[$b] = $v[$b].xor($v[$c]).rotate32::<7>();)*
    };
}

macro_rules! columns {
    ($v:ident) => {
        quarter_rounds!(
            $v,
            [0, 4, 8, 12],
            [1, 5, 9, 13],
            [2, 6, 10, 14],
            [3, 7, 11, 15]
        );
    };
}

macro_rules! diagonals {
    ($v:ident) => {
        quarter_rounds!(
            $v,
            [0, 5, 10, 15],
            [1, 6, 11, 12],
            [2, 7, 8, 13],
            [3, 4, 9, 14]
        );
    };
}

impl<V: Vector> Cipher<V> {
    /// `salt` is the first word of all nonces, `counters` are the other two.
    #[inline(always)]
    pub(super) fn new(key: &[u32; 8], salt: u32, counters: &[u64; LANES]) -> Self {
        let mut initial = [V::zero(); 16];
        for word in 0..4 {
            initial[word] = V::splat32(CONSTANTS[word]);
        }
        for word in 0..8 {
            initial[4 + word] = V::splat32(key[word]);
        }
        let mut words = [[0; CHUNK]; 2];
        for lane in 0..LANES {
            let bytes = counters[lane].to_le_bytes();
            words[0][lane * 4..][..4].copy_from_slice(&bytes[..4]);
            words[1][lane * 4..][..4].copy_from_slice(&bytes[4..]);
        }
        initial[13] = V::splat32(salt);
        initial[14] = V::load(&words[0]);
        initial[15] = V::load(&words[1]);
        let mut first_round = initial;
        columns!(first_round);
        Self {
            initial,
            first_round,
            column: [CONSTANTS[0], key[0], key[4]],
        }
    }

    /// The key stream words of the block with this number.
    #[inline(always)]
    pub(super) fn block(&self, number: u32) -> [V; 16] {
        let mut state = self.first_round;
        let [a, b, c, d] = self.counter_column(number);
        state[0] = V::splat32(a);
        state[4] = V::splat32(b);
        state[8] = V::splat32(c);
        state[12] = V::splat32(d);
        diagonals!(state);
        for _ in 0..9 {
            columns!(state);
            diagonals!(state);
        }
        for word in 0..16 {
            state[word] = state[word].add32(self.initial[word]);
        }
        // Word 12 of `initial` is block 0.
        state[12] = state[12].add32(V::splat32(number));
        state
    }

    /// The first round of the column that holds the block counter.
    #[inline(always)]
    fn counter_column(&self, number: u32) -> [u32; 4] {
        let [mut a, mut b, mut c] = self.column;
        let mut d = number;
        for [first, second] in [[16, 12], [8, 7]] {
            a = a.wrapping_add(b);
            d = (d ^ a).rotate_left(first);
            c = c.wrapping_add(d);
            b = (b ^ c).rotate_left(second);
        }
        [a, b, c, d]
    }
}

impl<V: Vector> Drop for Cipher<V> {
    #[inline(always)]
    fn drop(&mut self) {
        self.initial.zeroize();
        self.first_round.zeroize();
        self.column.zeroize();
    }
}
