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
mod avx2;
mod aws_lc;
#[cfg(target_arch = "x86_64")]
mod groups;
mod portable;

use std::fmt;

#[cfg(target_arch = "x86_64")]
use self::groups::by_length;

/// Length of the authentication tag behind every ciphertext, in bytes.
pub const TAG_LEN: usize = 16;

/// Length of a key in bytes.
pub const KEY_LEN: usize = 32;

/// An implementation of the AEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// The `chacha20poly1305` crate: plain Rust, the oracle of the tests.
    Portable,
    /// The `aws-lc-rs` crate: assembly, one packet at a time.
    AwsLcRs,
    /// Eight packets of one length side by side, also where that is slow: when most of the eight places stay empty.
    /// Needs a processor with AVX2.
    Avx2,
    /// `avx2` for groups of packets where that is measurably not slower, `aws-lc-rs` for the others. Needs a processor
    /// with AVX2.
    Auto,
}

impl Backend {
    /// All backends, in the order in which [`detect`](Self::detect) tries them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::AwsLcRs, Self::Avx2, Self::Portable];

    /// The fastest backend that passes its self-test on this machine. Runs the self-tests: call it once, at start.
    #[must_use]
    pub fn detect() -> Self {
        Self::ALL
            .into_iter()
            .find(|backend| backend.self_test())
            .unwrap_or(Self::Portable)
    }

    /// The backend with this [`name`](Self::name), for a switch.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|backend| backend.name() == name)
    }

    /// The name of the backend: `auto`, `aws-lc-rs`, `avx2` or `portable`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::AwsLcRs => "aws-lc-rs",
            Self::Avx2 => "avx2",
            Self::Auto => "auto",
        }
    }

    /// Whether this machine has the backend, and it seals a packet to a known result and a batch as `portable` does,
    /// and opens what is genuine and nothing else.
    #[must_use]
    pub fn self_test(self) -> bool {
        let mut secret = [0; KEY_LEN];
        for (value, byte) in (0u8..).zip(&mut secret) {
            *byte = value;
        }
        let key = Key::new(self, &secret);
        key.backend() == self && known_answer(&key) && same_as_portable(&key, &secret)
    }
}

/// Key 0, 1, …, 31, counter 1 and plaintext 0, 1, …, 63.
fn known_answer(key: &Key) -> bool {
    /// Computed with a third implementation, written after RFC 8439 with plain big integers and checked against its
    /// section 2.8.2.
    const TAG: [u8; TAG_LEN] = [
        0x58, 0x2e, 0x02, 0x2b, 0xd3, 0x9c, 0x70, 0xa6, 0x82, 0x95, 0x34, 0xbd, 0xc9, 0xc9, 0xd5,
        0xb9,
    ];
    let mut body = [0; 64 + TAG_LEN];
    for (value, byte) in (0u8..64).zip(&mut body) {
        *byte = value;
    }
    let plaintext = body;
    seal_batch(key, &mut [record(1, &mut body)]);
    if body[64..] != TAG {
        return false;
    }
    let mut forged = body;
    forged[17] ^= 0x40;
    let mut records = [record(1, &mut body), record(1, &mut forged)];
    open_batch(key, &mut records);
    let verdicts = [records[0].authentic, records[1].authentic];
    verdicts == [true, false] && body[..64] == plaintext[..64]
}

/// Eleven packets of one length: all lanes of a vector and a rest, whole blocks of key stream and a part of one.
fn same_as_portable(key: &Key, secret: &[u8; KEY_LEN]) -> bool {
    const PACKETS: usize = 11;
    const TEXT: usize = 300;
    const FORGED: usize = 5;
    let plain: [[u8; TEXT + TAG_LEN]; PACKETS] = [[0x5a; TEXT + TAG_LEN]; PACKETS];
    let batch = |key: &Key, run: fn(&Key, &mut [Record<'_>]), bodies: &mut [[u8; _]; PACKETS]| {
        let mut bodies = bodies.iter_mut();
        let mut counter = u64::from(u32::MAX) - 3;
        let mut records = [(); PACKETS].map(|()| {
            counter += 1;
            record(counter, bodies.next().map_or(&mut [], |body| body))
        });
        run(key, &mut records);
        records.map(|record| record.authentic)
    };
    let (mut expected, mut sealed) = (plain, plain);
    batch(
        &Key::new(Backend::Portable, secret),
        seal_batch,
        &mut expected,
    );
    let all_sealed = batch(key, seal_batch, &mut sealed) == [true; PACKETS];
    if !all_sealed || sealed != expected {
        return false;
    }
    sealed[FORGED][TEXT - 1] ^= 1;
    let verdicts = batch(key, open_batch, &mut sealed);
    let mut wanted = [true; PACKETS];
    wanted[FORGED] = false;
    verdicts == wanted
        && (0..PACKETS)
            .filter(|packet| *packet != FORGED)
            .all(|packet| sealed[packet][..TEXT] == plain[packet][..TEXT])
}

fn record(counter: u64, body: &mut [u8]) -> Record<'_> {
    Record {
        counter,
        body,
        authentic: false,
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The key of one direction of one session. Wiped from memory on drop; never shown by `Debug`.
pub struct Key(Cipher);

enum Cipher {
    Portable(portable::Cipher),
    AwsLcRs(aws_lc::Cipher),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Cipher),
    #[cfg(target_arch = "x86_64")]
    Auto(avx2::Cipher, aws_lc::Cipher),
}

impl Key {
    /// A key for use with `backend`, or with the next best one if this machine does not have it.
    #[must_use]
    pub fn new(backend: Backend, key: &[u8; KEY_LEN]) -> Self {
        Self(match backend {
            Backend::Portable => Cipher::portable(key),
            Backend::AwsLcRs => Cipher::aws_lc(key),
            Backend::Avx2 => Cipher::avx2(key),
            Backend::Auto => Cipher::auto(key),
        })
    }

    /// The backend that does the work.
    #[must_use]
    pub const fn backend(&self) -> Backend {
        match self.0 {
            Cipher::Portable(_) => Backend::Portable,
            Cipher::AwsLcRs(_) => Backend::AwsLcRs,
            #[cfg(target_arch = "x86_64")]
            Cipher::Avx2(_) => Backend::Avx2,
            #[cfg(target_arch = "x86_64")]
            Cipher::Auto(..) => Backend::Auto,
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
    fn auto(key: &[u8; KEY_LEN]) -> Self {
        match (avx2::Cipher::new(key), aws_lc::Cipher::new(key)) {
            (Some(wide), Some(single)) => Self::Auto(wide, single),
            _ => Self::aws_lc(key),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn avx2(key: &[u8; KEY_LEN]) -> Self {
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
        Cipher::Portable(cipher) => each(records, |nonce, text, tag| cipher.seal(nonce, text, tag)),
        Cipher::AwsLcRs(cipher) => each(records, |nonce, text, tag| cipher.seal(nonce, text, tag)),
        #[cfg(target_arch = "x86_64")]
        Cipher::Avx2(wide) => by_length::<{ avx2::LANES }>(records, |group| wide.seal(group)),
        #[cfg(target_arch = "x86_64")]
        Cipher::Auto(wide, single) => auto(
            records,
            |group| wide.seal(group),
            |nonce, text, tag| single.seal(nonce, text, tag),
        ),
    }
}

/// Opens every record in place and says in `authentic` which are genuine. The body of a forged one is wiped. A body
/// shorter than [`TAG_LEN`] is never authentic. Allocates nothing.
pub fn open_batch(key: &Key, records: &mut [Record<'_>]) {
    match &key.0 {
        Cipher::Portable(cipher) => each(records, |nonce, text, tag| cipher.open(nonce, text, tag)),
        Cipher::AwsLcRs(cipher) => each(records, |nonce, text, tag| cipher.open(nonce, text, tag)),
        #[cfg(target_arch = "x86_64")]
        Cipher::Avx2(wide) => by_length::<{ avx2::LANES }>(records, |group| wide.open(group)),
        #[cfg(target_arch = "x86_64")]
        Cipher::Auto(wide, single) => auto(
            records,
            |group| wide.open(group),
            |nonce, text, tag| single.open(nonce, text, tag),
        ),
    }
}

/// Gathers the batch by length, and runs every group side by side or one by one.
#[cfg(target_arch = "x86_64")]
fn auto(
    records: &mut [Record<'_>],
    wide: impl Fn(&mut [&mut Record<'_>]),
    single: impl Fn([u8; 12], &mut [u8], &mut [u8; TAG_LEN]) -> bool,
) {
    if records.len() < avx2::FEWEST {
        return each(records, single);
    }
    by_length::<{ avx2::LANES }>(records, |group| {
        let body = group.first().map_or(0, |record| record.body.len());
        if avx2::pays(group.len(), body) {
            wide(group);
        } else {
            each(group.iter_mut().map(|record| &mut **record), &single);
        }
    });
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
