//! The AEAD of transport data, plugged in from outside.
//!
//! The protocol needs one key object per direction and session; which implementation of
//! ChaCha20-Poly1305 stands behind it is the data path's business.

use std::fmt;

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Tag};

use crate::message::TAG_LEN;

/// A ChaCha20-Poly1305 key for one direction of one session (RFC 8439; nonce = 32 zero bits and the
/// 64-bit little-endian counter, no associated data).
///
/// An implementation wipes its key when dropped.
pub trait TransportKey: Send + Sync + 'static {
    /// Expands a key just derived by the handshake.
    fn new(key: &[u8; 32]) -> Self;

    /// Encrypts in place. `body` is the padded plaintext followed by 16 bytes that receive the tag.
    fn seal_in_place(&self, counter: u64, body: &mut [u8]);

    /// Decrypts in place. `body` is ciphertext and tag; true if authentic, and then the plaintext is
    /// in `body[..body.len() - 16]`. On false the content of `body` is unspecified.
    fn open_in_place(&self, counter: u64, body: &mut [u8]) -> bool;
}

/// The portable implementation, over the `chacha20poly1305` crate.
pub struct PortableKey(ChaCha20Poly1305);

/// The nonce of transport message `counter`.
fn nonce(counter: u64) -> chacha20poly1305::Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce.into()
}

impl TransportKey for PortableKey {
    fn new(key: &[u8; 32]) -> Self {
        Self(ChaCha20Poly1305::new(key.into()))
    }

    /// # Panics
    /// When `body` is shorter than the tag; the caller builds it.
    fn seal_in_place(&self, counter: u64, body: &mut [u8]) {
        let (plaintext, tag) = body.split_at_mut(body.len() - TAG_LEN);
        let computed = self
            .0
            .encrypt_inout_detached(&nonce(counter), &[], plaintext.into())
            .expect("ChaCha20-Poly1305 takes 256 GB, a datagram has 64 KB");
        tag.copy_from_slice(&computed);
    }

    fn open_in_place(&self, counter: u64, body: &mut [u8]) -> bool {
        let Some(length) = body.len().checked_sub(TAG_LEN) else {
            return false;
        };
        let (ciphertext, tag) = body.split_at_mut(length);
        let Ok(tag) = Tag::try_from(&*tag) else {
            return false;
        };
        self.0
            .decrypt_inout_detached(&nonce(counter), &[], ciphertext.into(), &tag)
            .is_ok()
    }
}

impl fmt::Debug for PortableKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PortableKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seal_and_open_agree() {
        let key = PortableKey::new(&[7; 32]);
        let mut body = [0x5a; 48];
        key.seal_in_place(3, &mut body);
        let mut copy = body;
        assert!(!key.open_in_place(4, &mut copy));
        assert!(key.open_in_place(3, &mut body));
        assert_eq!(body[..32], [0x5a; 32]);
    }

    #[test]
    fn a_body_shorter_than_the_tag_is_not_authentic() {
        let key = PortableKey::new(&[7; 32]);
        assert!(!key.open_in_place(0, &mut [0; 15]));
        assert!(!key.open_in_place(0, &mut []));
    }

    #[test]
    fn the_counter_is_64_bits_of_the_nonce() {
        let key = PortableKey::new(&[7; 32]);
        let mut low = [0; 16];
        let mut high = [0; 16];
        key.seal_in_place(1, &mut low);
        key.seal_in_place(1 + (1 << 32), &mut high);
        assert_ne!(low, high);
    }
}
