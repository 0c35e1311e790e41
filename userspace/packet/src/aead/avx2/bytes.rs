//! Bytes of packets to vectors and back: the only memory accesses of the backend that are not plain Rust.
#![allow(
    unsafe_code,
    reason = "the unaligned load and store intrinsics take raw pointers"
)]

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_loadu_si256, _mm256_storeu_si256,
};
use std::ptr;

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the borrow vouches for 16 readable bytes, and this load asks for no alignment.
    unsafe { _mm_loadu_si128(ptr::from_ref(bytes).cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load32(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the borrow vouches for 32 readable bytes, and this load asks for no alignment.
    unsafe { _mm256_loadu_si256(ptr::from_ref(bytes).cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store32(bytes: &mut [u8; 32], value: __m256i) {
    // SAFETY: the exclusive borrow vouches for 32 writable bytes, and this store asks for no alignment.
    unsafe { _mm256_storeu_si256(ptr::from_mut(bytes).cast(), value) }
}
