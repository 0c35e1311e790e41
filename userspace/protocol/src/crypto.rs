//! The few functions everything else is made of: BLAKE2s hash and MAC, HMAC, KDF, and the AEADs of
//! the handshake (paper, section 5.4).

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, Tag, XChaCha20Poly1305};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::message::TAG_LEN;

/// A 32-byte secret that is wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Secret(pub(crate) [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// `Hash(parts…)`: BLAKE2s, 32 bytes.
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = Blake2s256::default();
    for part in parts {
        state.update(part);
    }
    state.finalize_fixed().into()
}

/// `Mac(key, parts…)`: keyed BLAKE2s, 16 bytes. `key` is at most 32 bytes.
pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut state =
        <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("every key has 16 or 32 bytes");
    for part in parts {
        state.update(part);
    }
    state.finalize_fixed().into()
}

/// `Hmac(key, parts…)`: HMAC over BLAKE2s (RFC 2104 with its block length of 64 bytes).
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    const BLOCK: usize = 64;
    let mut pad = Zeroizing::new([0x36; BLOCK]);
    for (byte, key) in pad.iter_mut().zip(key) {
        *byte ^= key;
    }
    let mut inner = Blake2s256::default();
    inner.update(&*pad);
    for part in parts {
        inner.update(part);
    }
    let inner: Zeroizing<[u8; 32]> = Zeroizing::new(inner.finalize_fixed().into());
    for byte in pad.iter_mut() {
        *byte ^= 0x36 ^ 0x5c;
    }
    Zeroizing::new(hash(&[&*pad, &*inner]))
}

/// `Kdf_n(key, input)`: HKDF with as many outputs as asked for (paper, section 5.4).
pub(crate) fn kdf<const N: usize>(key: &Secret, input: &[u8]) -> [Secret; N] {
    let extracted = hmac(&key.0, &[input]);
    let mut previous: Option<Zeroizing<[u8; 32]>> = None;
    let mut counter = 0_u8;
    std::array::from_fn(|_| {
        counter += 1;
        let output = match &previous {
            None => hmac(&extracted, &[&[counter]]),
            Some(previous) => hmac(&extracted, &[&**previous, &[counter]]),
        };
        let secret = Secret(*output);
        previous = Some(output);
        secret
    })
}

/// Encrypts `out[..out.len() - 16]` in place with counter 0 and writes the tag behind it.
pub(crate) fn seal(key: &Secret, aad: &[u8], out: &mut [u8]) {
    let (text, tag) = out.split_at_mut(out.len() - TAG_LEN);
    let computed = ChaCha20Poly1305::new((&key.0).into())
        .encrypt_inout_detached(&[0; 12].into(), aad, text.into())
        .expect("handshake fields are far below the AEAD's limit");
    tag.copy_from_slice(&computed);
}

/// Decrypts with counter 0 what [`seal`] made; `None` if it is not authentic. `N` is the length of
/// the plaintext.
pub(crate) fn open<const N: usize>(key: &Secret, aad: &[u8], sealed: &[u8]) -> Option<[u8; N]> {
    let (text, tag) = sealed.split_last_chunk::<TAG_LEN>()?;
    let mut plain: [u8; N] = text.try_into().ok()?;
    ChaCha20Poly1305::new((&key.0).into())
        .decrypt_inout_detached(
            &[0; 12].into(),
            aad,
            plain.as_mut_slice().into(),
            &Tag::from(*tag),
        )
        .ok()?;
    Some(plain)
}

/// XChaCha20-Poly1305 of a cookie.
pub(crate) fn xseal(key: &[u8; 32], nonce: &[u8; 24], aad: &[u8], cookie: [u8; 16]) -> [u8; 32] {
    let mut out = [0; 32];
    let (text, tag) = out.split_at_mut(16);
    text.copy_from_slice(&cookie);
    let computed = XChaCha20Poly1305::new(key.into())
        .encrypt_inout_detached(&(*nonce).into(), aad, text.into())
        .expect("16 bytes are far below the AEAD's limit");
    tag.copy_from_slice(&computed);
    out
}

/// The cookie in what [`xseal`] made; `None` if it is not authentic.
pub(crate) fn xopen(
    key: &[u8; 32],
    nonce: &[u8; 24],
    aad: &[u8],
    sealed: &[u8; 32],
) -> Option<[u8; 16]> {
    let (text, tag) = sealed.split_last_chunk::<TAG_LEN>()?;
    let mut cookie: [u8; 16] = text.try_into().ok()?;
    XChaCha20Poly1305::new(key.into())
        .decrypt_inout_detached(
            &(*nonce).into(),
            aad,
            cookie.as_mut_slice().into(),
            &Tag::from(*tag),
        )
        .ok()?;
    Some(cookie)
}

#[cfg(test)]
mod tests {
    //! Known answers were computed with Python's hashlib and hmac, and with pyca/cryptography.

    use super::*;
    use crate::testing::unhex;

    fn key() -> Secret {
        Secret(std::array::from_fn(|i| u8::try_from(i).unwrap()))
    }

    #[test]
    fn hash_known_answer() {
        assert_eq!(
            hash(&[b"Noise_IKpsk2_25519", b"_ChaChaPoly_BLAKE2s"]),
            unhex("60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36")
        );
    }

    #[test]
    fn kdf_known_answers() {
        let [first, second, third] = kdf(&key(), b"input key material");
        assert_eq!(
            first.0,
            unhex("93e2a65883e34ac95485f5d0aa4b09163a4e944dab8cf9406d3a138e362851c6")
        );
        assert_eq!(
            second.0,
            unhex("dd6fae42afdb2a41170f44dc5b885ec4cfd17c8dd324d38b390c548630dd0a83")
        );
        assert_eq!(
            third.0,
            unhex("4125e0adfa9b7e736615e99dde6f3f0b64b949d8b480e82cab2e685dc286e45d")
        );
        // Fewer outputs are the first ones of more.
        let [only] = kdf(&key(), b"input key material");
        assert_eq!(only.0, first.0);

        let [first, second] = kdf(&key(), &[]);
        assert_eq!(
            first.0,
            unhex("7a38c34bf2b8738d7374ca77c44ecb309a11d2b2528304fa86052c365e722624")
        );
        assert_eq!(
            second.0,
            unhex("1a17621f346abdc520746a9fb64d8eb03231d674fc15687537b0780fd9c060fd")
        );
    }

    #[test]
    fn sealed_text_opens_only_unchanged() {
        let mut sealed = [1; 12 + TAG_LEN];
        seal(&key(), b"transcript", &mut sealed);
        assert_eq!(open(&key(), b"transcript", &sealed), Some([1; 12]));
        assert_eq!(open::<12>(&key(), b"another", &sealed), None);
        assert_eq!(open::<11>(&key(), b"transcript", &sealed), None);
        assert_eq!(open::<0>(&key(), b"transcript", &sealed[..15]), None);
        sealed[0] ^= 1;
        assert_eq!(open::<12>(&key(), b"transcript", &sealed), None);
    }

    #[test]
    fn secrets_are_not_printed() {
        assert_eq!(format!("{:?}", key()), "Secret(redacted)");
    }
}
