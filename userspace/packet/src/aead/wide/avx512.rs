//! The instructions: every operation of [`Vector`] is one intrinsic, and the algorithm is compiled for them here.
#![allow(
    unsafe_code,
    reason = "intrinsics, and functions compiled for AVX-512, may run only where run-time detection vouches for it"
)]

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_add_epi64, _mm512_and_si512, _mm512_loadu_si512,
    _mm512_madd52hi_epu64, _mm512_madd52lo_epu64, _mm512_mul_epu32, _mm512_or_si512,
    _mm512_rol_epi32, _mm512_set1_epi32, _mm512_set1_epi64, _mm512_setzero_si512,
    _mm512_shuffle_i64x2, _mm512_slli_epi64, _mm512_srli_epi64, _mm512_storeu_si512,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    _mm512_xor_si512,
};
use std::ptr;

use zeroize::Zeroize;

use super::field::{Limbs26, Limbs44};
use super::transform;
use super::vector::{CHUNK, Fused, LANES, Vector};
use crate::aead::lanes::{Common, compare_tags, write_tags};
use crate::aead::{KEY_LEN, Record};

/// A key. Exists only on processors with AVX-512.
pub(in super::super) struct Cipher {
    words: [u32; 8],
    fused: bool,
}

impl Cipher {
    /// `fused` asks for the multiplications of IFMA. `None` on a processor without the instructions.
    pub(in super::super) fn new(key: &[u8; KEY_LEN], fused: bool) -> Option<Self> {
        if !has(fused) {
            return None;
        }
        let (bytes, _) = key.as_chunks();
        Some(Self {
            words: std::array::from_fn(|word| u32::from_le_bytes(bytes[word])),
            fused,
        })
    }

    /// Whether this uses IFMA.
    pub(in super::super) const fn is_fused(&self) -> bool {
        self.fused
    }

    /// Seals up to [`LANES`] bodies of one length.
    pub(in super::super) fn seal(&self, common: Common<'_>, group: &mut [&mut Record<'_>]) {
        let tags = if self.fused {
            // SAFETY: `new` gives no `Cipher` that is `fused` unless the processor has AVX-512 with IFMA.
            unsafe { with_ifma::<false>(&self.words, common, group) }
        } else {
            // SAFETY: `new` gives no `Cipher` unless the processor has AVX-512.
            unsafe { without_ifma::<false>(&self.words, common, group) }
        };
        write_tags(group, &tags);
    }

    /// Opens up to [`LANES`] bodies of one length, and wipes the forged ones.
    pub(in super::super) fn open(&self, common: Common<'_>, group: &mut [&mut Record<'_>]) {
        let tags = if self.fused {
            // SAFETY: `new` gives no `Cipher` that is `fused` unless the processor has AVX-512 with IFMA.
            unsafe { with_ifma::<true>(&self.words, common, group) }
        } else {
            // SAFETY: `new` gives no `Cipher` unless the processor has AVX-512.
            unsafe { without_ifma::<true>(&self.words, common, group) }
        };
        compare_tags(group, &tags);
    }
}

impl Drop for Cipher {
    fn drop(&mut self) {
        self.words.zeroize();
    }
}

/// Whether processor and operating system have all that the functions below are compiled for.
pub(super) fn has(fused: bool) -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && (!fused || is_x86_feature_detected!("avx512ifma"))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn with_ifma<const OPEN: bool>(
    key: &[u32; 8],
    common: Common<'_>,
    group: &mut [&mut Record<'_>],
) -> [u128; LANES] {
    transform::<Register, Limbs44<Register>, OPEN>(key, common, group)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn without_ifma<const OPEN: bool>(
    key: &[u32; 8],
    common: Common<'_>,
    group: &mut [&mut Record<'_>],
) -> [u128; LANES] {
    transform::<Register, Limbs26<Register>, OPEN>(key, common, group)
}

/// A register of AVX-512. Only the two functions above compute with it (and tests that ask [`has`] first): they are
/// what every `SAFETY` note below relies on.
#[derive(Clone, Copy)]
pub(super) struct Register(__m512i);

impl Zeroize for Register {
    #[inline(always)]
    fn zeroize(&mut self) {
        self.0.zeroize();
    }
}

/// One operation, one intrinsic.
macro_rules! operation {
    ($intrinsic:expr $(, $argument:expr)*) => {
        // SAFETY: see `Register`: the processor has AVX-512, and IFMA where it is used.
        Self(unsafe { $intrinsic($($argument),*) })
    };
}

impl Vector for Register {
    #[inline(always)]
    fn zero() -> Self {
        operation!(_mm512_setzero_si512)
    }

    #[inline(always)]
    fn splat32(word: u32) -> Self {
        operation!(_mm512_set1_epi32, word.cast_signed())
    }

    #[inline(always)]
    fn splat64(word: u64) -> Self {
        operation!(_mm512_set1_epi64, word.cast_signed())
    }

    #[inline(always)]
    fn load(bytes: &[u8; CHUNK]) -> Self {
        // The borrow vouches for 64 readable bytes, and this load asks for no alignment.
        operation!(_mm512_loadu_si512, ptr::from_ref(bytes).cast())
    }

    #[inline(always)]
    fn store(self, bytes: &mut [u8; CHUNK]) {
        // SAFETY: see `Register`; the exclusive borrow vouches for 64 writable bytes, and this store asks for no
        // alignment.
        unsafe { _mm512_storeu_si512(ptr::from_mut(bytes).cast(), self.0) }
    }

    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        operation!(_mm512_xor_si512, self.0, other.0)
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        operation!(_mm512_and_si512, self.0, other.0)
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        operation!(_mm512_or_si512, self.0, other.0)
    }

    #[inline(always)]
    fn add32(self, other: Self) -> Self {
        operation!(_mm512_add_epi32, self.0, other.0)
    }

    #[inline(always)]
    fn rotate32<const BITS: i32>(self) -> Self {
        operation!(_mm512_rol_epi32::<BITS>, self.0)
    }

    #[inline(always)]
    fn add64(self, other: Self) -> Self {
        operation!(_mm512_add_epi64, self.0, other.0)
    }

    #[inline(always)]
    fn left64<const BITS: u32>(self) -> Self {
        operation!(_mm512_slli_epi64::<BITS>, self.0)
    }

    #[inline(always)]
    fn right64<const BITS: u32>(self) -> Self {
        operation!(_mm512_srli_epi64::<BITS>, self.0)
    }

    #[inline(always)]
    fn mul32(self, other: Self) -> Self {
        operation!(_mm512_mul_epu32, self.0, other.0)
    }

    #[inline(always)]
    fn low32(self, other: Self) -> Self {
        operation!(_mm512_unpacklo_epi32, self.0, other.0)
    }

    #[inline(always)]
    fn high32(self, other: Self) -> Self {
        operation!(_mm512_unpackhi_epi32, self.0, other.0)
    }

    #[inline(always)]
    fn low64(self, other: Self) -> Self {
        operation!(_mm512_unpacklo_epi64, self.0, other.0)
    }

    #[inline(always)]
    fn high64(self, other: Self) -> Self {
        operation!(_mm512_unpackhi_epi64, self.0, other.0)
    }

    #[inline(always)]
    fn even_quarters(self, other: Self) -> Self {
        operation!(_mm512_shuffle_i64x2::<0b10_00_10_00>, self.0, other.0)
    }

    #[inline(always)]
    fn odd_quarters(self, other: Self) -> Self {
        operation!(_mm512_shuffle_i64x2::<0b11_01_11_01>, self.0, other.0)
    }
}

impl Fused for Register {
    #[inline(always)]
    fn add_low52(self, x: Self, y: Self) -> Self {
        operation!(_mm512_madd52lo_epu64, self.0, x.0, y.0)
    }

    #[inline(always)]
    fn add_high52(self, x: Self, y: Self) -> Self {
        operation!(_mm512_madd52hi_epu64, self.0, x.0, y.0)
    }
}
