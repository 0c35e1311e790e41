//! The batch AEAD as the protocol's transport key.

use std::sync::OnceLock;

use adit_packet::aead::{Backend, Key, Record, open_batch, seal_batch};

/// Chosen once: detection runs a self-test.
static BACKEND: OnceLock<Backend> = OnceLock::new();

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
