//! Vectors as arrays, after the Intel Software Developer's Manual: the algorithm's instance for tests, and what the
//! instructions are compared with.

use zeroize::Zeroize;

use super::field::{Limbs26, Limbs44};
use super::transform;
use super::vector::{CHUNK, Fused, Vector};
use crate::aead::lanes::{Common, compare_tags, write_tags};
use crate::aead::{KEY_LEN, Record};

/// Eight words of 64 bits, the lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Array(pub(super) [u64; 8]);

impl Zeroize for Array {
    fn zeroize(&mut self) {
        self.0.zeroize();
    }
}

fn words32(vector: Array) -> [u32; 16] {
    let mut bytes = [0; CHUNK];
    vector.store(&mut bytes);
    std::array::from_fn(|at| u32::from_le_bytes(bytes.as_chunks().0[at]))
}

fn from_words32(words: [u32; 16]) -> Array {
    Array(std::array::from_fn(|at| {
        u64::from(words[at * 2]) | u64::from(words[at * 2 + 1]) << 32
    }))
}

fn each64(x: Array, y: Array, work: impl Fn(u64, u64) -> u64) -> Array {
    Array(std::array::from_fn(|at| work(x.0[at], y.0[at])))
}

fn product52(x: u64, y: u64) -> u128 {
    const MASK: u64 = (1 << 52) - 1;
    u128::from(x & MASK) * u128::from(y & MASK)
}

impl Vector for Array {
    fn zero() -> Self {
        Self([0; 8])
    }

    fn splat32(word: u32) -> Self {
        from_words32([word; 16])
    }

    fn splat64(word: u64) -> Self {
        Self([word; 8])
    }

    fn load(bytes: &[u8; CHUNK]) -> Self {
        Self(std::array::from_fn(|at| {
            u64::from_le_bytes(bytes.as_chunks().0[at])
        }))
    }

    fn store(self, bytes: &mut [u8; CHUNK]) {
        for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(self.0) {
            *bytes = word.to_le_bytes();
        }
    }

    fn xor(self, other: Self) -> Self {
        each64(self, other, |x, y| x ^ y)
    }

    fn and(self, other: Self) -> Self {
        each64(self, other, |x, y| x & y)
    }

    fn or(self, other: Self) -> Self {
        each64(self, other, |x, y| x | y)
    }

    fn add32(self, other: Self) -> Self {
        let (x, y) = (words32(self), words32(other));
        from_words32(std::array::from_fn(|at| x[at].wrapping_add(y[at])))
    }

    fn rotate32<const BITS: i32>(self) -> Self {
        from_words32(words32(self).map(|word| word.rotate_left(BITS.cast_unsigned())))
    }

    fn add64(self, other: Self) -> Self {
        each64(self, other, u64::wrapping_add)
    }

    fn left64<const BITS: u32>(self) -> Self {
        Self(self.0.map(|word| word << BITS))
    }

    fn right64<const BITS: u32>(self) -> Self {
        Self(self.0.map(|word| word >> BITS))
    }

    fn mul32(self, other: Self) -> Self {
        const LOW: u64 = 0xffff_ffff;
        each64(self, other, |x, y| (x & LOW) * (y & LOW))
    }

    fn low32(self, other: Self) -> Self {
        let (x, y) = (words32(self), words32(other));
        let word = |at: usize| [x, y][at % 2][at / 4 * 4 + at % 4 / 2];
        from_words32(std::array::from_fn(word))
    }

    fn high32(self, other: Self) -> Self {
        let (x, y) = (words32(self), words32(other));
        let word = |at: usize| [x, y][at % 2][at / 4 * 4 + at % 4 / 2 + 2];
        from_words32(std::array::from_fn(word))
    }

    fn low64(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| {
            [self, other][at % 2].0[at / 2 * 2]
        }))
    }

    fn high64(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| {
            [self, other][at % 2].0[at / 2 * 2 + 1]
        }))
    }

    fn even_quarters(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| {
            [self, other][at / 4].0[at % 4 / 2 * 4 + at % 2]
        }))
    }

    fn odd_quarters(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| {
            [self, other][at / 4].0[at % 4 / 2 * 4 + 2 + at % 2]
        }))
    }
}

impl Fused for Array {
    fn add_low52(self, x: Self, y: Self) -> Self {
        let products = each64(x, y, |x, y| {
            u64::try_from(product52(x, y) & ((1 << 52) - 1)).unwrap_or(0)
        });
        self.add64(products)
    }

    fn add_high52(self, x: Self, y: Self) -> Self {
        let products = each64(x, y, |x, y| {
            u64::try_from(product52(x, y) >> 52).unwrap_or(0)
        });
        self.add64(products)
    }
}

/// A key for the algorithm on arrays, with the interface of [`Cipher`](super::Cipher).
pub(in super::super) struct Emulated {
    words: [u32; 8],
    fused: bool,
}

impl Emulated {
    pub(in super::super) fn new(key: &[u8; KEY_LEN], fused: bool) -> Self {
        let (bytes, _) = key.as_chunks();
        Self {
            words: std::array::from_fn(|word| u32::from_le_bytes(bytes[word])),
            fused,
        }
    }

    pub(in super::super) fn seal(&self, common: Common<'_>, group: &mut [&mut Record<'_>]) {
        let tags = if self.fused {
            transform::<Array, Limbs44<Array>, false>(&self.words, common, group)
        } else {
            transform::<Array, Limbs26<Array>, false>(&self.words, common, group)
        };
        write_tags(group, &tags);
    }

    pub(in super::super) fn open(&self, common: Common<'_>, group: &mut [&mut Record<'_>]) {
        let tags = if self.fused {
            transform::<Array, Limbs44<Array>, true>(&self.words, common, group)
        } else {
            transform::<Array, Limbs26<Array>, true>(&self.words, common, group)
        };
        compare_tags(group, &tags);
    }
}
