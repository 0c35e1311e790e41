//! The `chacha20poly1305` crate. It wipes its copy of the key on drop (feature `zeroize`).

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};

use super::{KEY_LEN, TAG_LEN};

pub(super) struct Cipher(ChaCha20Poly1305);

impl Cipher {
    pub(super) fn new(key: &[u8; KEY_LEN]) -> Self {
        Self(ChaCha20Poly1305::new(key.into()))
    }

    pub(super) fn seal(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &mut [u8; TAG_LEN],
    ) -> bool {
        let nonce = Nonce::from(nonce);
        match self.0.encrypt_inout_detached(&nonce, aad, text.into()) {
            Ok(computed) => {
                tag.copy_from_slice(&computed);
                true
            }
            Err(_) => false,
        }
    }

    pub(super) fn open(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> bool {
        let (nonce, tag) = (Nonce::from(nonce), Tag::from(*tag));
        self.0
            .decrypt_inout_detached(&nonce, aad, text.into(), &tag)
            .is_ok()
    }
}
