//! The AVX-512 algorithm on any processor, for tests of other crates.

use std::fmt;

use super::groups::by_length;
use super::lanes::Common;
use super::wide::{Emulated, LANES};
use super::{KEY_LEN, Record};

/// A key that seals and opens as [`Backend::Avx512`](super::Backend::Avx512) does, on arrays instead of vector registers.
pub struct EmulatedKey(Emulated);

impl EmulatedKey {
    /// Poly1305 by 52-bit multiplications if `fused`, as [`Backend::Avx512Ifma`](super::Backend::Avx512Ifma), else by
    /// 32-bit ones.
    #[must_use]
    pub fn new(key: &[u8; KEY_LEN], fused: bool) -> Self {
        Self(Emulated::new(key, fused))
    }

    /// As [`seal_batch`](super::seal_batch).
    pub fn seal_batch(&self, records: &mut [Record<'_>]) {
        by_length::<LANES>(records, |group| self.0.seal(Common::WIREGUARD, group));
    }

    /// As [`open_batch`](super::open_batch).
    pub fn open_batch(&self, records: &mut [Record<'_>]) {
        by_length::<LANES>(records, |group| self.0.open(Common::WIREGUARD, group));
    }
}

impl fmt::Debug for EmulatedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EmulatedKey(redacted)")
    }
}
