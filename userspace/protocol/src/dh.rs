//! X25519 (RFC 7748) by AWS-LC: its formally verified assembly takes half the time of code for any processor, and a
//! handshake is little else than three of these.

use std::fmt;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};

use crate::crypto::Secret;

/// A private key, which AWS-LC wipes when it is dropped, and its public key.
pub(crate) struct KeyPair {
    private: PrivateKey,
    pub(crate) public: [u8; 32],
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("KeyPair").finish_non_exhaustive()
    }
}

impl KeyPair {
    /// Any 32 bytes are a private key.
    pub(crate) fn new(private: &[u8; 32]) -> Self {
        let private = PrivateKey::from_private_key(&X25519, private);
        let private = private.expect("32 bytes are a private key");
        let computed = private.compute_public_key();
        let computed = computed.expect("a private key has a public key");
        let mut public = [0; 32];
        public.copy_from_slice(computed.as_ref());
        Self { private, public }
    }

    /// DH with another's public key; `None` if the result is all zero, as with points of low order.
    pub(crate) fn shared(&self, public: &[u8; 32]) -> Option<Secret> {
        let public = UnparsedPublicKey::new(&X25519, public);
        agree(&self.private, public, (), |shared| {
            let shared: &[u8; 32] = shared.try_into().map_err(drop)?;
            Ok(Secret(*shared))
        })
        .ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(hex: &str) -> [u8; 32] {
        std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
    }

    /// RFC 7748, section 6.1.
    #[test]
    fn alice_and_bob() {
        let alice = KeyPair::new(&key(
            "77076d0a7318a57d3c16c17251b26645df4c6c1eb2ee5f2f2f8a3d0e3f9f5c2a",
        ));
        let bob = KeyPair::new(&key(
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        ));
        assert_eq!(
            bob.public,
            key("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
        );
        assert_eq!(
            alice.shared(&bob.public).unwrap().0,
            bob.shared(&alice.public).unwrap().0
        );
    }

    /// RFC 7748, section 5.2.
    #[test]
    fn one_multiplication() {
        let pair = KeyPair::new(&key(
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
        ));
        let shared = pair.shared(&key(
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
        ));
        assert_eq!(
            shared.unwrap().0,
            key("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")
        );
    }

    /// Points of low order, canonical or not: RFC 7748, section 6.1, and <https://cr.yp.to/ecdh.html#validate>.
    #[test]
    fn nothing_is_shared_with_points_of_low_order() {
        let pair = KeyPair::new(&[7; 32]);
        let largest = |last: u8| {
            let mut point = [0xff; 32];
            (point[0], point[31]) = (last, 0x7f);
            point
        };
        let mut one = [0; 32];
        one[0] = 1;
        let points = [
            [0; 32],
            one,
            key("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
            key("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
            largest(0xec),
            largest(0xed),
            largest(0xee),
        ];
        for point in points {
            assert!(pair.shared(&point).is_none(), "{point:02x?}");
            // The highest bit is ignored.
            let mut high = point;
            high[31] |= 0x80;
            assert!(pair.shared(&high).is_none(), "{high:02x?}");
        }
    }

    proptest! {
        #[test]
        fn another_implementation_agrees(private: [u8; 32], other: [u8; 32]) {
            let reference = x25519_dalek::StaticSecret::from(private);
            let public = x25519_dalek::PublicKey::from(&reference);
            let pair = KeyPair::new(&private);
            prop_assert_eq!(&pair.public, public.as_bytes());
            let shared = reference.diffie_hellman(&x25519_dalek::PublicKey::from(other));
            let expected = shared.was_contributory().then(|| shared.to_bytes());
            prop_assert_eq!(pair.shared(&other).map(|shared| shared.0), expected);
        }
    }
}
