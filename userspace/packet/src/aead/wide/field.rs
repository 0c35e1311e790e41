//! Numbers modulo 2^130 - 5 for eight packets, one per 64-bit lane, in limbs: what Poly1305 computes with.
//!
//! Two sizes of limbs, because AVX-512 multiplies 32 bits by 32 everywhere, and 52 by 52 with IFMA only.

use zeroize::Zeroize;

use super::vector::{CHUNK, Fused, Vector};
use crate::aead::lanes::residue;

/// Eight numbers in limbs that can be added without carrying: sums of two fit everywhere.
pub(super) trait Field<V: Vector>: Copy + Zeroize {
    /// A number made ready to multiply others with.
    type Factor: Copy + Zeroize;
    /// Sums of products, not yet carried.
    type Sum: Copy;

    /// 0.
    fn zero() -> Self;
    /// From numbers of 128 bits, given as lower and upper words.
    fn from_words(low: V, high: V) -> Self;
    /// From blocks of 16 bytes: the bit above them is set.
    fn from_block(low: V, high: V) -> Self;
    /// The sum; one of two must come from a block or be carried.
    fn plus(self, other: Self) -> Self;
    /// The number as a factor. It must be carried, or made from words.
    fn factor(self) -> Self::Factor;
    /// No products.
    fn no_products() -> Self::Sum;
    /// Adds a product: four at most before they are carried.
    fn add_product(sum: Self::Sum, x: Self, factor: &Self::Factor) -> Self::Sum;
    /// Limbs again.
    fn carry(sum: Self::Sum) -> Self;
    /// The low 128 bits of the numbers modulo 2^130 - 5.
    fn residues(self) -> [u128; 8];
}

/// Five limbs of 26 bits, and products of 32 by 32 bits.
#[derive(Clone, Copy, Zeroize)]
pub(super) struct Limbs26<V: Vector>([V; 5]);

/// Limbs 1 to 4 come with their fivefold: what limbs past 2^130 come back as.
#[derive(Clone, Copy, Zeroize)]
pub(super) struct Factor26<V: Vector> {
    limbs: [V; 5],
    folded: [V; 4],
}

const MASK26: u64 = (1 << 26) - 1;

impl<V: Vector> Field<V> for Limbs26<V> {
    type Factor = Factor26<V>;
    type Sum = [V; 5];

    #[inline(always)]
    fn zero() -> Self {
        Self([V::zero(); 5])
    }

    #[inline(always)]
    fn from_words(low: V, high: V) -> Self {
        let mask = V::splat64(MASK26);
        let middle = low.right64::<52>().or(high.left64::<12>());
        Self([
            low.and(mask),
            low.right64::<26>().and(mask),
            middle.and(mask),
            high.right64::<14>().and(mask),
            high.right64::<40>(),
        ])
    }

    #[inline(always)]
    fn from_block(low: V, high: V) -> Self {
        let Self([l0, l1, l2, l3, l4]) = Self::from_words(low, high);
        Self([l0, l1, l2, l3, l4.or(V::splat64(1 << 24))])
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        let Self(mut limbs) = self;
        for at in 0..5 {
            limbs[at] = limbs[at].add64(other.0[at]);
        }
        Self(limbs)
    }

    #[inline(always)]
    fn factor(self) -> Factor26<V> {
        let mut folded = [V::zero(); 4];
        for at in 0..4 {
            folded[at] = self.0[at + 1].add64(self.0[at + 1].left64::<2>());
        }
        Factor26 {
            limbs: self.0,
            folded,
        }
    }

    #[inline(always)]
    fn no_products() -> [V; 5] {
        [V::zero(); 5]
    }

    /// Limbs of `x` are below 2^28 and of the folded factor below 2^29: twenty products, those of four blocks, fit into
    /// 62 bits.
    #[inline(always)]
    fn add_product(mut sum: [V; 5], x: Self, factor: &Factor26<V>) -> [V; 5] {
        let Factor26 { limbs, folded } = factor;
        for at in 0..5 {
            for of_x in 0..5 {
                // Limbs at + 5 of the product come back at `at`, five times.
                let of_factor = if of_x <= at {
                    limbs[at - of_x]
                } else {
                    folded[at + 4 - of_x]
                };
                sum[at] = sum[at].add64(x.0[of_x].mul32(of_factor));
            }
        }
        sum
    }

    /// Two chains at once. Limbs 1 and 4 may end a little above 26 bits.
    #[inline(always)]
    fn carry([mut d0, mut d1, mut d2, mut d3, mut d4]: [V; 5]) -> Self {
        let mask = V::splat64(MASK26);
        macro_rules! carry {
            ($from:ident => $to:ident) => {
                $to = $to.add64($from.right64::<26>());
                $from = $from.and(mask);
            };
        }
        carry!(d0 => d1);
        carry!(d3 => d4);
        carry!(d1 => d2);
        let over = d4.right64::<26>();
        d4 = d4.and(mask);
        d0 = d0.add64(over.add64(over.left64::<2>()));
        carry!(d2 => d3);
        carry!(d0 => d1);
        carry!(d3 => d4);
        Self([d0, d1, d2, d3, d4])
    }

    #[inline(always)]
    fn residues(self) -> [u128; 8] {
        let limbs = words(&self.0);
        let mut residues = [0; 8];
        for lane in 0..8 {
            residues[lane] = residue::<5, 26>(limbs[lane]);
        }
        residues
    }
}

/// Limbs of 44, 44 and 42 bits, and the products of 52 by 52 bits that IFMA adds up.
#[derive(Clone, Copy, Zeroize)]
pub(super) struct Limbs44<V: Fused>([V; 3]);

/// Limbs 1 and 2 come with their twentyfold: limb 3 would stand at 2^132, which is 20 modulo the prime.
#[derive(Clone, Copy, Zeroize)]
pub(super) struct Factor44<V: Fused> {
    limbs: [V; 3],
    folded: [V; 2],
}

const MASK44: u64 = (1 << 44) - 1;
const MASK42: u64 = (1 << 42) - 1;

impl<V: Fused> Field<V> for Limbs44<V> {
    type Factor = Factor44<V>;
    /// Lower and upper 52 bits of the products.
    type Sum = [[V; 3]; 2];

    #[inline(always)]
    fn zero() -> Self {
        Self([V::zero(); 3])
    }

    #[inline(always)]
    fn from_words(low: V, high: V) -> Self {
        let mask = V::splat64(MASK44);
        let middle = low.right64::<44>().or(high.left64::<20>());
        Self([low.and(mask), middle.and(mask), high.right64::<24>()])
    }

    #[inline(always)]
    fn from_block(low: V, high: V) -> Self {
        let Self([l0, l1, l2]) = Self::from_words(low, high);
        Self([l0, l1, l2.or(V::splat64(1 << 40))])
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        let Self(mut limbs) = self;
        for at in 0..3 {
            limbs[at] = limbs[at].add64(other.0[at]);
        }
        Self(limbs)
    }

    #[inline(always)]
    fn factor(self) -> Factor44<V> {
        let mut folded = [V::zero(); 2];
        for at in 0..2 {
            // 16 + 4
            let limb = self.0[at + 1];
            folded[at] = limb.left64::<4>().add64(limb.left64::<2>());
        }
        Factor44 {
            limbs: self.0,
            folded,
        }
    }

    #[inline(always)]
    fn no_products() -> [[V; 3]; 2] {
        [[V::zero(); 3]; 2]
    }

    /// Limbs of `x` are below 2^46 and of the folded factor below 2^49, so that the instructions see all of them. Of
    /// twelve products, those of four blocks, the lower halves add up to less than 2^56 and the upper ones to 2^48.
    #[inline(always)]
    fn add_product([mut low, mut high]: Self::Sum, x: Self, factor: &Factor44<V>) -> Self::Sum {
        let Factor44 { limbs, folded } = factor;
        for at in 0..3 {
            for of_x in 0..3 {
                let of_factor = if of_x <= at {
                    limbs[at - of_x]
                } else {
                    folded[at + 2 - of_x]
                };
                low[at] = low[at].add_low52(x.0[of_x], of_factor);
                high[at] = high[at].add_high52(x.0[of_x], of_factor);
            }
        }
        [low, high]
    }

    /// The upper half of a product stands 52 bits above its limb: 8 above the next one. Limb 1 may end a little above
    /// 44 bits.
    #[inline(always)]
    fn carry([low, high]: Self::Sum) -> Self {
        let mask = V::splat64(MASK44);
        let mut d0 = low[0];
        let mut d1 = low[1].add64(high[0].left64::<8>());
        let mut d2 = low[2].add64(high[1].left64::<8>());
        d1 = d1.add64(d0.right64::<44>());
        d0 = d0.and(mask);
        d2 = d2.add64(d1.right64::<44>());
        d1 = d1.and(mask);
        let over = d2.right64::<42>();
        d2 = d2.and(V::splat64(MASK42));
        // Past 2^130 five times, and 8 bits above 2^132 twenty times.
        d0 = d0.add64(over.add64(over.left64::<2>()));
        d0 = d0.add64(high[2].left64::<12>().add64(high[2].left64::<10>()));
        d1 = d1.add64(d0.right64::<44>());
        d0 = d0.and(mask);
        Self([d0, d1, d2])
    }

    #[inline(always)]
    fn residues(self) -> [u128; 8] {
        let limbs = words(&self.0);
        let mut residues = [0; 8];
        for lane in 0..8 {
            residues[lane] = residue::<3, 44>(limbs[lane]);
        }
        residues
    }
}

/// The 64-bit words of the vectors, by lane.
#[inline(always)]
pub(super) fn words<V: Vector, const COUNT: usize>(vectors: &[V; COUNT]) -> [[u64; COUNT]; 8] {
    let mut words = [[0; COUNT]; 8];
    for at in 0..COUNT {
        let mut bytes = [0; CHUNK];
        vectors[at].store(&mut bytes);
        for lane in 0..8 {
            words[lane][at] = u64::from_le_bytes(bytes.as_chunks().0[lane]);
        }
    }
    words
}
