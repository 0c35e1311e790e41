//! Addresses as two machine words.
//!
//! A copy of `[u8; 16]` becomes sixteen loads and sixteen stores, each through the stack: a program has ten registers.

use adit_ebpf::Address;

/// An [`Address`], the words as they lie in memory.
pub(crate) type Words = [u64; 2];

/// The form the maps use.
#[inline(always)]
pub(crate) fn bytes(words: Words) -> Address {
    // SAFETY: both types are sixteen bytes without padding, and any bytes are an address.
    unsafe { core::mem::transmute(words) }
}

/// An IPv4 address, as it lies in memory, in its mapped form.
#[inline(always)]
pub(crate) fn ipv4_words(address: u32) -> Words {
    let [a, b, c, d] = address.to_ne_bytes();
    [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])]
}
