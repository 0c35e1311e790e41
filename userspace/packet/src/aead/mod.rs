//! ChaCha20-Poly1305 (RFC 8439) over batches of packets of one session, as WireGuard's data messages use it: the
//! nonce is four zero bytes and the 64-bit little-endian counter, and there is no associated data.
//!
//! ```
//! use adit_packet::aead::{Backend, Key, Record, TAG_LEN, open_batch, seal_batch};
//!
//! let key = Key::new(Backend::detect(), &[7; 32]);
//! let mut body = [&b"hello"[..], &[0; TAG_LEN]].concat();
//!
//! let mut records = [Record { counter: 0, body: &mut body, authentic: false }];
//! seal_batch(&key, &mut records);
//! assert!(records[0].authentic);
//! open_batch(&key, &mut records);
//! assert!(records[0].authentic);
//! assert_eq!(&body[..5], b"hello");
//! ```

#[cfg(target_arch = "x86_64")]
mod auto;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod aws_lc;
mod backend;
#[cfg(all(feature = "fuzzing", target_arch = "x86_64"))]
mod emulated;
#[cfg(target_arch = "x86_64")]
mod groups;
#[cfg(target_arch = "x86_64")]
mod lanes;
mod portable;
#[cfg(target_arch = "x86_64")]
mod wide;
#[cfg(all(test, target_arch = "x86_64"))]
mod wycheproof;

use std::fmt;

pub use self::backend::Backend;
#[cfg(all(feature = "fuzzing", target_arch = "x86_64"))]
pub use self::emulated::EmulatedKey;
#[cfg(target_arch = "x86_64")]
use self::{groups::by_length, lanes::Common};

/// Length of the authentication tag behind every ciphertext, in bytes.
pub const TAG_LEN: usize = 16;

/// Length of a key in bytes.
pub const KEY_LEN: usize = 32;

/// The key of one direction of one session. Wiped from memory on drop; never shown by `Debug`.
pub struct Key(Cipher);

enum Cipher {
    Portable(portable::Cipher),
    AwsLcRs(aws_lc::Cipher),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Cipher),
    #[cfg(target_arch = "x86_64")]
    Avx512(wide::Cipher),
    #[cfg(target_arch = "x86_64")]
    Auto(auto::Cipher),
}

impl Key {
    /// A key for use with `backend`, or with the next best one if this machine does not have it.
    #[must_use]
    pub fn new(backend: Backend, key: &[u8; KEY_LEN]) -> Self {
        Self(match backend {
            Backend::Portable => Cipher::portable(key),
            Backend::AwsLcRs => Cipher::aws_lc(key),
            Backend::Avx2 => Cipher::avx2(key),
            Backend::Avx512 => Cipher::avx512(key, false),
            Backend::Avx512Ifma => Cipher::avx512(key, true),
            Backend::Auto => Cipher::auto(key),
        })
    }

    /// The backend that does the work.
    #[must_use]
    pub const fn backend(&self) -> Backend {
        match &self.0 {
            Cipher::Portable(_) => Backend::Portable,
            Cipher::AwsLcRs(_) => Backend::AwsLcRs,
            #[cfg(target_arch = "x86_64")]
            Cipher::Avx2(_) => Backend::Avx2,
            #[cfg(target_arch = "x86_64")]
            Cipher::Avx512(cipher) if cipher.is_fused() => Backend::Avx512Ifma,
            #[cfg(target_arch = "x86_64")]
            Cipher::Avx512(_) => Backend::Avx512,
            #[cfg(target_arch = "x86_64")]
            Cipher::Auto(_) => Backend::Auto,
        }
    }
}

impl Cipher {
    fn portable(key: &[u8; KEY_LEN]) -> Self {
        Self::Portable(portable::Cipher::new(key))
    }

    fn aws_lc(key: &[u8; KEY_LEN]) -> Self {
        aws_lc::Cipher::new(key).map_or_else(|| Self::portable(key), Self::AwsLcRs)
    }

    #[cfg(target_arch = "x86_64")]
    fn avx2(key: &[u8; KEY_LEN]) -> Self {
        avx2::Cipher::new(key).map_or_else(|| Self::aws_lc(key), Self::Avx2)
    }

    #[cfg(target_arch = "x86_64")]
    fn avx512(key: &[u8; KEY_LEN], fused: bool) -> Self {
        wide::Cipher::new(key, fused).map_or_else(|| Self::avx2(key), Self::Avx512)
    }

    #[cfg(target_arch = "x86_64")]
    fn auto(key: &[u8; KEY_LEN]) -> Self {
        auto::Cipher::new(key).map_or_else(|| Self::aws_lc(key), Self::Auto)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn avx2(key: &[u8; KEY_LEN]) -> Self {
        Self::aws_lc(key)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn avx512(key: &[u8; KEY_LEN], _fused: bool) -> Self {
        Self::aws_lc(key)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn auto(key: &[u8; KEY_LEN]) -> Self {
        Self::aws_lc(key)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("backend", &self.backend())
            .finish_non_exhaustive()
    }
}

/// One packet of a batch, transformed in place.
#[derive(Debug)]
pub struct Record<'a> {
    /// The message counter, which must never repeat for sealing under one key.
    pub counter: u64,
    /// To seal: the plaintext and [`TAG_LEN`] bytes of room. To open: the ciphertext and its tag.
    pub body: &'a mut [u8],
    /// Set by both directions: the body holds a sealed packet, or an authentic plaintext followed by its tag.
    pub authentic: bool,
}

/// Seals every record in place. A body without room for the tag cannot be sealed: `authentic` is then false and the
/// body is wiped, so that no plaintext can be sent by mistake. Allocates nothing.
pub fn seal_batch(key: &Key, records: &mut [Record<'_>]) {
    match &key.0 {
        Cipher::Portable(cipher) => each(records, |nonce, text, tag| {
            cipher.seal(nonce, &[], text, tag)
        }),
        Cipher::AwsLcRs(cipher) => each(records, |nonce, text, tag| {
            cipher.seal(nonce, &[], text, tag)
        }),
        #[cfg(target_arch = "x86_64")]
        Cipher::Avx2(cipher) => by_length::<{ avx2::LANES }>(records, |group| {
            cipher.seal(Common::WIREGUARD, group);
        }),
        #[cfg(target_arch = "x86_64")]
        Cipher::Avx512(cipher) => by_length::<{ wide::LANES }>(records, |group| {
            cipher.seal(Common::WIREGUARD, group);
        }),
        #[cfg(target_arch = "x86_64")]
        Cipher::Auto(cipher) => cipher.seal(records),
    }
}

/// Opens every record in place and says in `authentic` which are genuine. The body of a forged one is wiped. A body
/// shorter than [`TAG_LEN`] is never authentic. Allocates nothing.
pub fn open_batch(key: &Key, records: &mut [Record<'_>]) {
    match &key.0 {
        Cipher::Portable(cipher) => each(records, |nonce, text, tag| {
            cipher.open(nonce, &[], text, tag)
        }),
        Cipher::AwsLcRs(cipher) => each(records, |nonce, text, tag| {
            cipher.open(nonce, &[], text, tag)
        }),
        #[cfg(target_arch = "x86_64")]
        Cipher::Avx2(cipher) => by_length::<{ avx2::LANES }>(records, |group| {
            cipher.open(Common::WIREGUARD, group);
        }),
        #[cfg(target_arch = "x86_64")]
        Cipher::Avx512(cipher) => by_length::<{ wide::LANES }>(records, |group| {
            cipher.open(Common::WIREGUARD, group);
        }),
        #[cfg(target_arch = "x86_64")]
        Cipher::Auto(cipher) => cipher.open(records),
    }
}

/// Runs a backend that knows one packet at a time over the batch.
#[inline]
fn each<'r, 'b: 'r>(
    records: impl IntoIterator<Item = &'r mut Record<'b>>,
    transform: impl Fn([u8; 12], &mut [u8], &mut [u8; TAG_LEN]) -> bool,
) {
    for record in records {
        record.authentic = match record.body.split_last_chunk_mut::<TAG_LEN>() {
            Some((text, tag)) => transform(nonce(record.counter), text, tag),
            None => false,
        };
        if !record.authentic {
            record.body.fill(0);
        }
    }
}

/// The nonce of a WireGuard data message (paper section 5.4.6).
fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

fn record(counter: u64, body: &mut [u8]) -> Record<'_> {
    Record {
        counter,
        body,
        authentic: false,
    }
}
