//! The Internet checksum (RFC 1071), its incremental update (RFC 1624) and the pseudo headers of TCP and UDP.
//!
//! A *partial sum* is a `u64` total of 16-bit big-endian words, as numbers in host order. Partial sums of pieces that
//! start at an even offset of the checksummed data add up with `+`; there is room for 2^48 words.

const LOW16: u64 = 0xffff;
const LOW32: u64 = 0xffff_ffff;

/// Bytes handled per round of the wide loops: wide enough for the compiler to use full vector registers.
const ROUND: usize = 32;
const LANES: usize = ROUND / 8;

/// The partial sum of `data`; an odd last byte counts as the high half of a word.
///
/// Adds halves of 64-bit words in native order, so that no lane can overflow, and swaps bytes only once at the end (RFC
/// 1071 section 2(B): the sum does not depend on byte order).
#[inline]
#[must_use]
pub fn sum(data: &[u8]) -> u64 {
    let (rounds, mut tail) = data.as_chunks::<ROUND>();
    let mut lanes = Lanes::default();
    for round in rounds {
        for (at, word) in round.as_chunks::<8>().0.iter().enumerate() {
            lanes.add(at, u64::from_ne_bytes(*word));
        }
    }
    let mut total = lanes.total();
    // Pieces of fixed size: a loop over what is left would cost more than it does.
    take::<16>(&mut tail, &mut total);
    take::<8>(&mut tail, &mut total);
    take::<4>(&mut tail, &mut total);
    take::<2>(&mut tail, &mut total);
    take::<1>(&mut tail, &mut total);
    finish_wide(total)
}

/// Copies `src` to `dst` and returns the partial sum of what was copied, reading the source once.
///
/// # Panics
/// If the lengths differ, as `copy_from_slice` does.
#[must_use]
pub fn copy_and_sum(dst: &mut [u8], src: &[u8]) -> u64 {
    assert_eq!(dst.len(), src.len(), "a copy has one length");
    let (src_rounds, mut src) = src.as_chunks::<ROUND>();
    let (dst_rounds, mut dst) = dst.as_chunks_mut::<ROUND>();
    let mut lanes = Lanes::default();
    for (to, from) in dst_rounds.iter_mut().zip(src_rounds) {
        // Word by word, or the source is loaded twice.
        let (to, from) = (to.as_chunks_mut::<8>().0, from.as_chunks::<8>().0);
        for (at, (to, from)) in to.iter_mut().zip(from).enumerate() {
            lanes.add(at, u64::from_ne_bytes(*from));
            *to = *from;
        }
    }
    let mut total = lanes.total();
    copy::<16>(&mut dst, &mut src, &mut total);
    copy::<8>(&mut dst, &mut src, &mut total);
    copy::<4>(&mut dst, &mut src, &mut total);
    copy::<2>(&mut dst, &mut src, &mut total);
    copy::<1>(&mut dst, &mut src, &mut total);
    finish_wide(total)
}

/// Lower and upper halves of the words at each place of a round, in the shape vector registers like.
#[derive(Default)]
struct Lanes {
    low: [u64; LANES],
    high: [u64; LANES],
}

impl Lanes {
    #[inline(always)]
    fn add(&mut self, at: usize, word: u64) {
        self.low[at] += word & LOW32;
        self.high[at] += word >> 32;
    }

    #[inline(always)]
    fn total(&self) -> u64 {
        self.low.iter().chain(&self.high).sum()
    }
}

/// The sum of a small piece, padded with zeros to whole 32-bit words.
#[inline(always)]
fn small<const N: usize>(piece: &[u8; N]) -> u64 {
    let (words, rest) = piece.as_chunks::<4>();
    let mut total = 0;
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    match *rest {
        [a] => total + u64::from(u32::from_ne_bytes([a, 0, 0, 0])),
        [a, b] => total + u64::from(u32::from_ne_bytes([a, b, 0, 0])),
        _ => total,
    }
}

/// Sums the first `N` bytes if there are as many, and leaves the rest.
#[inline(always)]
fn take<const N: usize>(data: &mut &[u8], total: &mut u64) {
    if let Some((piece, rest)) = data.split_first_chunk::<N>() {
        *total += small(piece);
        *data = rest;
    }
}

/// Copies and sums the first `N` bytes if there are as many, and leaves the rest.
#[inline(always)]
fn copy<const N: usize>(dst: &mut &mut [u8], src: &mut &[u8], total: &mut u64) {
    if let Some((piece, src_rest)) = src.split_first_chunk::<N>()
        && let Some((to, dst_rest)) = std::mem::take(dst).split_first_chunk_mut::<N>()
    {
        *total += small(piece);
        *to = *piece;
        (*dst, *src) = (dst_rest, src_rest);
    }
}

#[inline(always)]
fn finish_wide(total: u64) -> u64 {
    u64::from(u16::from_be(fold(total)))
}

/// Folds a partial sum to 16 bits with end-around carry, not complemented. Zero only if every word summed was zero.
#[inline]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & LOW32);
    let sum = (sum >> 32) + (sum & LOW32);
    let sum = (sum >> 16) + (sum & LOW16);
    let sum = (sum >> 16) + (sum & LOW16);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "32 bits folded twice leave 16"
    )]
    let folded = sum as u16;
    folded
}

/// The checksum field for data (with a zeroed field) whose partial sum is `sum`: folded and complemented.
#[inline]
#[must_use]
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// The partial sum of the IPv4 pseudo header (RFC 9293 section 3.1, RFC 768); `length` is that of the transport
/// header and its payload in bytes.
#[must_use]
pub fn pseudo_v4(source: [u8; 4], destination: [u8; 4], protocol: u8, length: u16) -> u64 {
    sum(&source) + sum(&destination) + u64::from(protocol) + u64::from(length)
}

/// The partial sum of the IPv6 pseudo header (RFC 8200 section 8.1); `length` is that of the transport header and
/// its payload in bytes.
#[must_use]
pub fn pseudo_v6(source: [u8; 16], destination: [u8; 16], protocol: u8, length: u32) -> u64 {
    sum(&source) + sum(&destination) + u64::from(protocol) + u64::from(length)
}

/// The checksum field after one 16-bit word under it changed from `old` to `new` (RFC 1624, equation 3).
#[must_use]
pub const fn update(check: u16, old: u16, new: u16) -> u16 {
    !fold(!check as u64 + !old as u64 + new as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, word by word.
    fn naive(data: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                state.to_be_bytes()[0]
            })
            .collect()
    }

    #[test]
    fn agrees_with_naive_on_all_lengths_and_alignments() {
        let data = noise(2200);
        for start in 0..9 {
            for len in (0..300).chain(1380..1520).chain([2048, 2100]) {
                let piece = &data[start..start + len];
                let mut copy = vec![0; len];
                assert_eq!(fold(sum(piece)), naive(piece), "{start}+{len}");
                assert_eq!(fold(copy_and_sum(&mut copy, piece)), naive(piece));
                assert_eq!(copy, piece);
            }
        }
    }

    #[test]
    fn the_largest_sum_does_not_overflow() {
        let data = vec![0xff; 65_535];
        assert_eq!(fold(sum(&data)), naive(&data));
        assert_eq!(fold(u64::MAX), 0xffff);
    }

    #[test]
    fn known_header() {
        // The IPv4 header of RFC 1071's usual worked example, checksum field zeroed.
        let header = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0,
            0xc7,
        ];
        assert_eq!(finish(sum(&header)), 0xb861);
    }

    proptest! {
        #[test]
        fn pieces_of_even_length_add_up(data in prop::collection::vec(any::<u8>(), 0..400), at in 0usize..200) {
            let (left, right) = data.split_at((at * 2).min(data.len() & !1));
            prop_assert_eq!(fold(sum(left) + sum(right)), naive(&data));
        }

        #[test]
        fn pseudo_headers_are_their_bytes(source: [u8; 16], destination: [u8; 16], protocol: u8, length: u16) {
            let mut v6 = [&source[..], &destination[..]].concat();
            v6.extend(u32::from(length).to_be_bytes());
            v6.extend([0, 0, 0, protocol]);
            prop_assert_eq!(fold(pseudo_v6(source, destination, protocol, length.into())), naive(&v6));
            let (source, destination) = ([1, 2, 3, source[0]], [destination[0], 6, 7, 8]);
            let mut v4 = [&source[..], &destination[..], &[0, protocol][..]].concat();
            v4.extend(length.to_be_bytes());
            prop_assert_eq!(fold(pseudo_v4(source, destination, protocol, length)), naive(&v4));
        }

        #[test]
        fn incremental_update_equals_recomputation(mut data: [u8; 20], at in 0usize..9, new: u16) {
            data[18..].fill(0);
            data[0] = 0x45;
            let check = finish(sum(&data));
            let at = 2 * at;
            let new = if at == 0 { new | 0x4000 } else { new };
            let old = u16::from_be_bytes([data[at], data[at + 1]]);
            data[at..at + 2].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(check, old, new), finish(sum(&data)));
        }
    }
}
