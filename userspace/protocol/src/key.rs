//! The three kinds of keys a person configures: Curve25519 private and public keys, and the
//! preshared key of a pair of peers. All are 32 bytes.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::{Choice, ConstantTimeEq};
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Length of every key, in bytes.
pub const KEY_LEN: usize = 32;

/// A Curve25519 public key: the name of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; KEY_LEN]);

impl PublicKey {
    /// Wraps the 32 bytes of a public key.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The base64 form that `wg(8)` prints.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_base64())
    }
}

impl fmt::Debug for PublicKey {
    /// The first and last four base64 characters, as wireguard-go logs peers: enough to tell
    /// peers apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.to_base64();
        write!(f, "{}…{}", &text[..4], &text[39..43])
    }
}

/// A Curve25519 private key, clamped when it is made. Wiped when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; KEY_LEN]);

impl PrivateKey {
    /// Takes 32 secret bytes and clamps them (RFC 7748, section 5), so that the key reads back as
    /// the kernel would show it.
    #[must_use]
    pub const fn from_bytes(mut bytes: [u8; KEY_LEN]) -> Self {
        bytes[0] &= 0b1111_1000;
        bytes[31] = (bytes[31] & 0b0111_1111) | 0b0100_0000;
        Self(bytes)
    }

    /// The 32 clamped bytes. The caller keeps them secret.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The public key that belongs to this private key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        let private = StaticSecret::from(self.0);
        PublicKey(x25519_dalek::PublicKey::from(&private).to_bytes())
    }
}

/// The optional symmetric key two peers share beforehand. Wiped when dropped, never printed.
///
/// All zero means "none", in the protocol as in `wg(8)`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY_LEN]);

impl PresharedKey {
    /// Takes the 32 secret bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes. The caller keeps them secret.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Whether this is the all-zero key, that is, no preshared key.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0.ct_eq(&[0; KEY_LEN]).into()
    }
}

macro_rules! secret_key {
    ($name:ident) => {
        impl ConstantTimeEq for $name {
            fn ct_eq(&self, other: &Self) -> Choice {
                self.0.ct_eq(&other.0)
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.ct_eq(other).into()
            }
        }

        impl Eq for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

secret_key!(PrivateKey);
secret_key!(PresharedKey);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_keys_are_clamped() {
        let key = PrivateKey::from_bytes([0xff; 32]);
        assert_eq!(key.as_bytes()[0], 0xf8);
        assert_eq!(key.as_bytes()[31], 0x7f);
        let key = PrivateKey::from_bytes([0; 32]);
        assert_eq!(key.as_bytes()[31], 0x40);
    }

    #[test]
    fn public_key_of_a_known_private_key() {
        // Computed with pyca/cryptography from the bytes 1 to 32.
        let private = PrivateKey::from_bytes(std::array::from_fn(|i| u8::try_from(i + 1).unwrap()));
        assert_eq!(
            private.public_key().to_base64(),
            "B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw="
        );
    }

    #[test]
    fn debug_output_hides_secrets() {
        let secret = [0x41; 32];
        let private = format!("{:?}", PrivateKey::from_bytes(secret));
        let preshared = format!("{:?}", PresharedKey::from_bytes(secret));
        assert_eq!(private, "PrivateKey(redacted)");
        assert_eq!(preshared, "PresharedKey(redacted)");
        let public = PublicKey::from_bytes([0x41; 32]);
        // Base64 of 32 times "A" is "QUFB…QUFBQUE=": eleven groups, the last one padded.
        assert_eq!(format!("{public:?}"), "QUFB…BQUE");
    }
}
