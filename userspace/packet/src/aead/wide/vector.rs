//! What the algorithms need of a 512-bit vector: each operation is one instruction of AVX-512.

use zeroize::Zeroize;

/// Packets side by side: one for each 32-bit word of a vector.
pub(in super::super) const LANES: usize = 16;

/// Bytes of a vector, and of a block of key stream.
pub(in super::super) const CHUNK: usize = 64;

/// Sixteen words of 32 bits, or eight of 64, or four quarters of 128.
///
/// Whoever calls an algorithm that is generic over this must have been compiled for the instructions behind it: they
/// are inlined into it. Hence no closures on the way there, which would be functions of their own.
pub(super) trait Vector: Copy + Zeroize {
    /// All bits zero.
    fn zero() -> Self;
    /// The same word in all sixteen places.
    fn splat32(word: u32) -> Self;
    /// The same word in all eight places.
    fn splat64(word: u64) -> Self;
    /// From memory; little-endian words.
    fn load(bytes: &[u8; CHUNK]) -> Self;
    /// To memory; little-endian words.
    fn store(self, bytes: &mut [u8; CHUNK]);

    /// Bitwise exclusive or.
    fn xor(self, other: Self) -> Self;
    /// Bitwise and.
    fn and(self, other: Self) -> Self;
    /// Bitwise or.
    fn or(self, other: Self) -> Self;

    /// Sums of 32-bit words.
    fn add32(self, other: Self) -> Self;
    /// Each 32-bit word rotated left by `BITS`.
    fn rotate32<const BITS: i32>(self) -> Self;

    /// Sums of 64-bit words.
    fn add64(self, other: Self) -> Self;
    /// Each 64-bit word shifted left by `BITS`.
    fn left64<const BITS: u32>(self) -> Self;
    /// Each 64-bit word shifted right by `BITS`, zeros following.
    fn right64<const BITS: u32>(self) -> Self;
    /// Products of the lower halves of 64-bit words.
    fn mul32(self, other: Self) -> Self;

    /// Of each quarter the first two 32-bit words, this one's and the other's in turns.
    fn low32(self, other: Self) -> Self;
    /// Of each quarter the last two 32-bit words, this one's and the other's in turns.
    fn high32(self, other: Self) -> Self;
    /// Of each quarter the first 64-bit word, this one's and the other's in turns.
    fn low64(self, other: Self) -> Self;
    /// Of each quarter the second 64-bit word, this one's and the other's in turns.
    fn high64(self, other: Self) -> Self;
    /// Quarters 0 and 2 of this one, then of the other.
    fn even_quarters(self, other: Self) -> Self;
    /// Quarters 1 and 3 of this one, then of the other.
    fn odd_quarters(self, other: Self) -> Self;
}

/// A vector with the multiply-and-add instructions of AVX-512 IFMA.
pub(super) trait Fused: Vector {
    /// This one plus the lower 52 bits of the products of the lower 52 bits.
    fn add_low52(self, x: Self, y: Self) -> Self;
    /// This one plus the upper 52 bits of the products of the lower 52 bits.
    fn add_high52(self, x: Self, y: Self) -> Self;
}

/// Four vectors seen as four by four quarters, transposed.
#[inline(always)]
fn transpose_quarters<V: Vector>([a, b, c, d]: [V; 4]) -> [V; 4] {
    let (ab_even, ab_odd) = (a.even_quarters(b), a.odd_quarters(b));
    let (cd_even, cd_odd) = (c.even_quarters(d), c.odd_quarters(d));
    [
        ab_even.even_quarters(cd_even),
        ab_odd.even_quarters(cd_odd),
        ab_even.odd_quarters(cd_even),
        ab_odd.odd_quarters(cd_odd),
    ]
}

/// From vectors of one 32-bit word for sixteen packets to sixteen words for each packet.
#[inline(always)]
pub(super) fn transpose32<V: Vector>(words: &[V; LANES]) -> [V; LANES] {
    let mut fours = [[V::zero(); 4]; 4];
    for group in 0..4 {
        let [a, b] = [words[group * 4], words[group * 4 + 1]];
        let [c, d] = [words[group * 4 + 2], words[group * 4 + 3]];
        let (ab_low, ab_high) = (a.low32(b), a.high32(b));
        let (cd_low, cd_high) = (c.low32(d), c.high32(d));
        // Quarter q of the nth: these four words of packet 4 q + n.
        fours[0][group] = ab_low.low64(cd_low);
        fours[1][group] = ab_low.high64(cd_low);
        fours[2][group] = ab_high.low64(cd_high);
        fours[3][group] = ab_high.high64(cd_high);
    }
    let mut packets = [V::zero(); LANES];
    for place in 0..4 {
        let quarters = transpose_quarters(fours[place]);
        for at in 0..4 {
            packets[at * 4 + place] = quarters[at];
        }
    }
    packets
}

/// Transposes eight by eight 64-bit words: from those of eight packets to a vector for each place in a packet.
#[inline(always)]
pub(super) fn transpose64<V: Vector>([a, b, c, d, e, f, g, h]: [V; 8]) -> [V; 8] {
    let even = transpose_quarters([a.low64(b), c.low64(d), e.low64(f), g.low64(h)]);
    let odd = transpose_quarters([a.high64(b), c.high64(d), e.high64(f), g.high64(h)]);
    [
        even[0], odd[0], even[1], odd[1], even[2], odd[2], even[3], odd[3],
    ]
}
