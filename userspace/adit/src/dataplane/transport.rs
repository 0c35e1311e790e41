//! The batch AEAD as the protocol's transport key.

use std::sync::OnceLock;

use adit_packet::aead::{Backend, Key, Record, open_batch, seal_batch};
use anyhow::{Result, bail, ensure};

/// Chosen once: detection runs a self-test.
static BACKEND: OnceLock<Backend> = OnceLock::new();

/// A name for [`choose`], checked.
///
/// # Errors
/// A line with the names there are.
pub fn parse(name: &str) -> Result<Backend, String> {
    Backend::from_name(name).ok_or_else(|| {
        let names = Backend::ALL.map(Backend::name).join(", ");
        format!("expected one of {names}")
    })
}

/// Settles on `wanted`, or in place of [`Backend::Auto`] on the fastest that this machine has and
/// that passes its self-test. To be called before the first key is made.
///
/// # Errors
/// This machine does not have `wanted`, or it fails its self-test.
pub fn choose(wanted: Backend) -> Result<()> {
    for backend in Backend::rejected() {
        tracing::warn!(
            backend = backend.name(),
            "this AEAD computes wrong results on this machine and is not used"
        );
    }
    let chosen = match wanted {
        Backend::Auto => Backend::detect(),
        wanted if !wanted.is_available() => {
            bail!("--aead {}: this processor cannot do it", wanted.name())
        }
        wanted => wanted,
    };
    ensure!(
        chosen.self_test(),
        "--aead {}: it computes wrong results on this machine",
        chosen.name()
    );
    // Settled already only where a test has made a key before.
    let _ = BACKEND.set(chosen);
    Ok(())
}

/// The AEAD implementation this process uses.
pub fn backend() -> Backend {
    *BACKEND.get_or_init(Backend::detect)
}

/// One direction of one session, for the batch functions of `adit-packet`.
#[derive(Debug)]
pub struct TransportKey(Key);

impl TransportKey {
    /// The key as the batch functions take it.
    pub fn batch(&self) -> &Key {
        &self.0
    }
}

impl adit_protocol::TransportKey for TransportKey {
    fn new(key: &[u8; 32]) -> Self {
        Self(Key::new(backend(), key))
    }

    fn seal_in_place(&self, counter: u64, body: &mut [u8]) {
        seal_batch(
            &self.0,
            &mut [Record {
                counter,
                body,
                authentic: false,
            }],
        );
    }

    fn open_in_place(&self, counter: u64, body: &mut [u8]) -> bool {
        let mut records = [Record {
            counter,
            body,
            authentic: false,
        }];
        open_batch(&self.0, &mut records);
        let [record] = records;
        record.authentic
    }
}
