//! What the backends with a packet per lane share.

use subtle::ConstantTimeEq as _;

use super::{Record, TAG_LEN};

/// The first words of every ChaCha20 state: "expand 32-byte k".
pub(super) const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// What the packets of a group have in common beside key and length.
#[derive(Clone, Copy)]
pub(super) struct Common<'a> {
    /// The first four bytes of all nonces, as a little-endian number.
    pub(super) salt: u32,
    pub(super) associated_data: &'a [u8],
}

impl Common<'_> {
    /// WireGuard data messages (paper section 5.4.6). Anything else is for test vectors.
    pub(super) const WIREGUARD: Self = Self {
        salt: 0,
        associated_data: &[],
    };
}

/// Puts the tags behind the texts, which are sealed. Wipes bodies that have no room for one.
pub(super) fn write_tags(group: &mut [&mut Record<'_>], tags: &[u128]) {
    for (record, tag) in group.iter_mut().zip(tags) {
        let room = record.body.last_chunk_mut::<TAG_LEN>();
        record.authentic = room.is_some();
        match room {
            Some(room) => *room = tag.to_le_bytes(),
            None => record.body.fill(0),
        }
    }
}

/// Says which texts have the tags that they must have, and wipes the others.
pub(super) fn compare_tags(group: &mut [&mut Record<'_>], tags: &[u128]) {
    for (record, tag) in group.iter_mut().zip(tags) {
        record.authentic = record
            .body
            .last_chunk::<TAG_LEN>()
            .is_some_and(|given| u128::from_le_bytes(*given).ct_eq(tag).into());
        if !record.authentic {
            record.body.fill(0);
        }
    }
}

/// The low 128 bits, modulo 2^130 - 5, of a number in limbs of `BITS` bits and some more above.
#[inline(always)]
pub(super) fn residue<const LIMBS: usize, const BITS: usize>(mut limbs: [u64; LIMBS]) -> u128 {
    let top = LIMBS - 1;
    let limb = (1 << BITS) - 1;
    let top_bits = 130 - BITS * (LIMBS - 1);
    // Two passes, after which only limb 0 may be above its bits, by a little.
    for _ in 0..2 {
        for at in 0..top {
            limbs[at + 1] += limbs[at] >> BITS;
            limbs[at] &= limb;
        }
        let over = limbs[top] >> top_bits;
        limbs[top] &= (1 << top_bits) - 1;
        limbs[0] += over * 5;
    }
    let mut low = 0u128;
    for (at, limb) in limbs[..top].iter().enumerate() {
        low += u128::from(*limb) << (BITS * at);
    }
    // The top two bits do not fit, and count below. Neither can the sum: a number this close to 2^130 has had no
    // second `over`.
    let (low, carry) = low.overflowing_add(u128::from(limbs[top]) << (128 - (top_bits - 2)));
    let top = (limbs[top] >> (top_bits - 2)) + u64::from(carry);
    // At least p if adding 5 reaches 2^130: then this sum is the number less p. Chosen without a branch.
    let (less, over) = low.overflowing_add(5);
    let past = (top + u64::from(over)) >> 2;
    let choose = 0u128.wrapping_sub(u128::from(past));
    (less & choose) | (low & !choose)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2^130 - 5 + n in limbs, and what it must give.
    #[test]
    fn residues_around_the_prime() {
        const LIMB: u64 = (1 << 26) - 1;
        for n in 0..20u64 {
            let expected = u128::from(n);
            assert_eq!(
                residue::<5, 26>([LIMB - 4 + n, LIMB, LIMB, LIMB, LIMB]),
                expected
            );
            let limb = (1 << 44) - 1;
            assert_eq!(
                residue::<3, 44>([limb - 4 + n, limb, (1 << 42) - 1]),
                expected
            );
            // And twice the prime and more, with limbs above their bits.
            assert_eq!(
                residue::<3, 44>([2 * (limb - 4) + n, 2 * limb, 2 * ((1 << 42) - 1)]),
                expected
            );
        }
        for less in 1..6u64 {
            let expected = 0u128.wrapping_sub(u128::from(less + 5));
            assert_eq!(
                residue::<5, 26>([LIMB - 4 - less, LIMB, LIMB, LIMB, LIMB]),
                expected
            );
            assert_eq!(
                residue::<3, 44>([(1 << 44) - 5 - less, (1 << 44) - 1, (1 << 42) - 1]),
                expected
            );
        }
        assert_eq!(residue::<5, 26>([0, 0, 0, 0, 1 << 24]), 0);
        assert_eq!(residue::<3, 44>([7, 0, 1 << 40]), 7);
    }
}
