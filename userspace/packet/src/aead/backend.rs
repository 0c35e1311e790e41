//! Which implementations there are, and whether they can be trusted on this machine.

use std::fmt;

use super::{KEY_LEN, Key, Record, TAG_LEN, open_batch, record, seal_batch};

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
    /// Sixteen packets of one length side by side, Poly1305 by 32-bit multiplications. Needs a processor with AVX-512
    /// (F, BW and VL). No processor was at hand to measure it on; `auto` does without it.
    Avx512,
    /// Sixteen packets of one length side by side, Poly1305 by 52-bit multiplications. Needs a processor with AVX-512
    /// (F, BW, VL and IFMA).
    Avx512Ifma,
    /// `avx512-ifma` or `avx2` for groups of packets where that is measurably not slower, `aws-lc-rs` for the others. Needs a processor
    /// with AVX2.
    Auto,
}

impl Backend {
    /// All backends, in the order in which [`detect`](Self::detect) tries them.
    pub const ALL: [Self; 6] = [
        Self::Auto,
        Self::AwsLcRs,
        Self::Avx512Ifma,
        Self::Avx512,
        Self::Avx2,
        Self::Portable,
    ];

    /// The fastest backend that passes its self-test on this machine. Runs the self-tests: call it once, at start.
    #[must_use]
    pub fn detect() -> Self {
        Self::ALL
            .into_iter()
            .find(|backend| backend.self_test())
            .unwrap_or(Self::Portable)
    }

    /// The backends whose instructions this machine has, but which do not compute what they must: worth a warning.
    /// [`detect`](Self::detect) gives none of them, and [`Auto`](Self::Auto) does without `avx512-ifma` then. Runs the
    /// self-tests.
    pub fn rejected() -> impl Iterator<Item = Self> {
        Self::ALL
            .into_iter()
            .filter(|backend| backend.is_available() && !backend.self_test())
    }

    /// Whether this machine has the backend's instructions.
    #[must_use]
    pub fn is_available(self) -> bool {
        Key::new(self, &[0; KEY_LEN]).backend() == self
    }

    /// The backend with this [`name`](Self::name), for a switch.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|backend| backend.name() == name)
    }

    /// The name of the backend: `auto`, `aws-lc-rs`, `avx512-ifma`, `avx512`, `avx2` or `portable`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::AwsLcRs => "aws-lc-rs",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Ifma => "avx512-ifma",
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

/// Packets of one length: all lanes of the widest vector and a rest. Every lane has its turn with a forged packet.
fn same_as_portable(key: &Key, secret: &[u8; KEY_LEN]) -> bool {
    let oracle = Key::new(Backend::Portable, secret);
    // Nothing but a tag, a part of a block, a part of a chunk, whole chunks, and enough of them for the powers of the
    // Poly1305 key, with a rest.
    [0, 1, 63, 64, 128, 330]
        .into_iter()
        .all(|text| (0..PACKETS).all(|forged| agrees(key, &oracle, text, forged)))
}

const PACKETS: usize = 19;
const LONGEST: usize = 330 + TAG_LEN;

fn agrees(key: &Key, oracle: &Key, text: usize, forged: usize) -> bool {
    let mut plain = [[0; LONGEST]; PACKETS];
    for (packet, body) in (0u8..).zip(&mut plain) {
        body[..text].fill(0x5a ^ packet);
    }
    let batch = |key: &Key, run: fn(&Key, &mut [Record<'_>]), bodies: &mut [[u8; LONGEST]]| {
        let mut bodies = bodies.iter_mut();
        let mut counter = u64::from(u32::MAX) - 3;
        let mut records = [(); PACKETS].map(|()| {
            counter += 1;
            let body = bodies.next().map_or(&mut [][..], |body| &mut body[..]);
            let len = body.len().min(text + TAG_LEN);
            record(counter, &mut body[..len])
        });
        run(key, &mut records);
        records.map(|record| record.authentic)
    };
    let (mut expected, mut sealed) = (plain, plain);
    batch(oracle, seal_batch, &mut expected);
    let all_sealed = batch(key, seal_batch, &mut sealed) == [true; PACKETS];
    if !all_sealed || sealed != expected {
        return false;
    }
    sealed[forged][text / 2] ^= 0x10;
    let verdicts = batch(key, open_batch, &mut sealed);
    let mut wanted = [true; PACKETS];
    wanted[forged] = false;
    verdicts == wanted
        && (0..PACKETS)
            .filter(|packet| *packet != forged)
            .all(|packet| sealed[packet][..text] == plain[packet][..text])
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
