//! The handshake: `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s` (paper, section 5.4; kernel, `noise.c`).
//!
//! Pure functions over keys and messages. Who may start a handshake, and when, is decided in
//! `device`; `mac1` and `mac2` are put on in `cookie`.

use std::time::Duration;

use rand_core::CryptoRng;

use crate::crypto::{Secret, hash, kdf, open, seal};
use crate::dh::KeyPair;
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::message::{INITIATION_LEN, Initiation, MessageType, RESPONSE_LEN, Response};

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// A TAI64N label: when an initiation was made. Greater means later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tai64n([u8; 12]);

/// The clock's resolution in an initiation: the power of two below a fiftieth of a second, as the
/// kernel rounds it, so that the clock cannot be measured through it.
const TAI64N_RESOLUTION: u32 = 1 << 24;

impl Tai64n {
    /// The label for a unix time, rounded down.
    pub(crate) fn from_unix(unix: Duration) -> Self {
        Self::from_parts(
            unix.as_secs().wrapping_add(0x4000_0000_0000_000a),
            unix.subsec_nanos() & !(TAI64N_RESOLUTION - 1),
        )
    }

    fn from_parts(seconds: u64, nanos: u32) -> Self {
        let mut label = [0; 12];
        label[..8].copy_from_slice(&seconds.to_be_bytes());
        label[8..].copy_from_slice(&nanos.to_be_bytes());
        Self(label)
    }

    pub(crate) const fn from_bytes(label: [u8; 12]) -> Self {
        Self(label)
    }

    pub(crate) const fn to_bytes(self) -> [u8; 12] {
        self.0
    }

    /// The smallest label that a peer who saw `self` accepts and that keeps the rounding.
    pub(crate) fn successor(self) -> Self {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3] = self.0;
        let seconds = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let nanos = u32::from_be_bytes([n0, n1, n2, n3]).saturating_add(TAI64N_RESOLUTION);
        if nanos < 1_000_000_000 {
            Self::from_parts(seconds, nanos)
        } else {
            Self::from_parts(seconds.wrapping_add(1), 0)
        }
    }
}

/// Our static key pair.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) private: PrivateKey,
    pub(crate) public: PublicKey,
    pair: KeyPair,
}

impl Identity {
    pub(crate) fn new(private: PrivateKey) -> Self {
        let pair = KeyPair::new(private.as_bytes());
        Self {
            public: PublicKey::from_bytes(pair.public),
            private,
            pair,
        }
    }

    /// DH of the two static keys; `None` if the other key is a low-order point.
    pub(crate) fn static_static(&self, remote: &PublicKey) -> Option<Secret> {
        self.pair.shared(remote.as_bytes())
    }
}

/// The keys of a new session, from this side.
#[derive(Debug)]
pub(crate) struct SessionKeys {
    pub(crate) sending: Secret,
    pub(crate) receiving: Secret,
}

fn ephemeral(rng: &mut dyn CryptoRng) -> KeyPair {
    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut *bytes);
    KeyPair::new(&bytes)
}

/// Noise's symmetric state: chaining key and transcript hash.
#[derive(Clone, Debug)]
struct Symmetric {
    chaining_key: Secret,
    hash: [u8; 32],
}

impl Symmetric {
    /// The state before the first message to the owner of `responder`.
    fn new(responder: &PublicKey) -> Self {
        let chaining_key = hash(&[CONSTRUCTION]);
        let prologue = hash(&[&chaining_key, IDENTIFIER]);
        Self {
            chaining_key: Secret(chaining_key),
            hash: hash(&[&prologue, responder.as_bytes()]),
        }
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = hash(&[&self.hash, data]);
    }

    fn mix_ephemeral(&mut self, public: &[u8; 32]) {
        let [chaining_key] = kdf(&self.chaining_key, public);
        self.chaining_key = chaining_key;
        self.mix_hash(public);
    }

    fn mix_dh(&mut self, shared: &Secret) {
        let [chaining_key] = kdf(&self.chaining_key, &shared.0);
        self.chaining_key = chaining_key;
    }

    fn mix_dh_key(&mut self, shared: &Secret) -> Secret {
        let [chaining_key, key] = kdf(&self.chaining_key, &shared.0);
        self.chaining_key = chaining_key;
        key
    }

    fn mix_psk(&mut self, psk: Option<&PresharedKey>) -> Secret {
        let psk = psk.map_or(&[0; 32], PresharedKey::as_bytes);
        let [chaining_key, temporary, key] = kdf(&self.chaining_key, psk);
        self.chaining_key = chaining_key;
        self.mix_hash(&temporary.0);
        key
    }

    /// `text` holds the plaintext and room for the tag.
    fn encrypt(&mut self, key: &Secret, text: &mut [u8]) {
        seal(key, &self.hash, text);
        self.mix_hash(text);
    }

    fn decrypt<const N: usize>(&mut self, key: &Secret, sealed: &[u8]) -> Option<[u8; N]> {
        let plain = open(key, &self.hash, sealed)?;
        self.mix_hash(sealed);
        Some(plain)
    }

    /// The keys of initiator and responder, in this order.
    fn split(&self) -> [Secret; 2] {
        kdf(&self.chaining_key, &[])
    }
}

/// What an initiator keeps while it waits for the response. Wiped when dropped.
#[derive(Debug)]
pub(crate) struct Initiator {
    symmetric: Symmetric,
    ephemeral: KeyPair,
    /// Our index, which the response names.
    pub(crate) local_index: u32,
}

/// Writes an initiation (without macs) to `message`; `None` if a DH result is zero.
pub(crate) fn create_initiation(
    rng: &mut dyn CryptoRng,
    identity: &Identity,
    remote: &PublicKey,
    static_static: &Secret,
    timestamp: Tai64n,
    local_index: u32,
    message: &mut [u8; INITIATION_LEN],
) -> Option<Initiator> {
    let mut symmetric = Symmetric::new(remote);
    let ephemeral = ephemeral(rng);

    message[..4].copy_from_slice(&(MessageType::Initiation as u32).to_le_bytes());
    message[Initiation::SENDER..Initiation::EPHEMERAL].copy_from_slice(&local_index.to_le_bytes());
    message[Initiation::EPHEMERAL..Initiation::STATIC].copy_from_slice(&ephemeral.public);
    symmetric.mix_ephemeral(&ephemeral.public);

    let key = symmetric.mix_dh_key(&ephemeral.shared(remote.as_bytes())?);
    let sealed = &mut message[Initiation::STATIC..Initiation::TIMESTAMP];
    sealed[..32].copy_from_slice(identity.public.as_bytes());
    symmetric.encrypt(&key, sealed);

    let key = symmetric.mix_dh_key(static_static);
    let sealed = &mut message[Initiation::TIMESTAMP..Initiation::MAC1];
    sealed[..12].copy_from_slice(&timestamp.0);
    symmetric.encrypt(&key, sealed);

    Some(Initiator {
        symmetric,
        ephemeral,
        local_index,
    })
}

impl Initiator {
    /// Checks a response; `None` if it is not authentic. The state stays as it was, so that a forged
    /// response does not end the handshake.
    pub(crate) fn consume_response(
        &self,
        identity: &Identity,
        preshared_key: Option<&PresharedKey>,
        response: Response<'_>,
    ) -> Option<SessionKeys> {
        let mut symmetric = self.symmetric.clone();
        let remote = response.ephemeral();
        symmetric.mix_ephemeral(remote);
        symmetric.mix_dh(&self.ephemeral.shared(remote)?);
        symmetric.mix_dh(&identity.pair.shared(remote)?);
        let key = symmetric.mix_psk(preshared_key);
        symmetric.decrypt::<0>(&key, response.encrypted_nothing())?;
        let [sending, receiving] = symmetric.split();
        Some(SessionKeys { sending, receiving })
    }
}

/// An initiation whose sender has named itself but not yet proved to be it.
#[derive(Debug)]
pub(crate) struct ClaimedInitiation<'a> {
    symmetric: Symmetric,
    message: Initiation<'a>,
    /// The static key the sender claims.
    pub(crate) remote: PublicKey,
}

/// Reads who claims to have sent an initiation; `None` if it is not for us.
pub(crate) fn consume_initiation<'a>(
    identity: &Identity,
    message: Initiation<'a>,
) -> Option<ClaimedInitiation<'a>> {
    let mut symmetric = Symmetric::new(&identity.public);
    symmetric.mix_ephemeral(message.ephemeral());
    let shared = identity.pair.shared(message.ephemeral())?;
    let key = symmetric.mix_dh_key(&shared);
    let remote = symmetric.decrypt(&key, message.encrypted_static())?;
    Some(ClaimedInitiation {
        symmetric,
        message,
        remote: PublicKey::from_bytes(remote),
    })
}

/// An authentic initiation, ready to be answered.
#[derive(Debug)]
pub(crate) struct Responder {
    symmetric: Symmetric,
    remote: PublicKey,
    remote_ephemeral: [u8; 32],
    /// The initiator's index.
    pub(crate) remote_index: u32,
}

impl ClaimedInitiation<'_> {
    /// Proves the sender by the DH of the static keys; `None` if it is not who it claims to be.
    pub(crate) fn authenticate(mut self, static_static: &Secret) -> Option<(Tai64n, Responder)> {
        let key = self.symmetric.mix_dh_key(static_static);
        let timestamp = self
            .symmetric
            .decrypt(&key, self.message.encrypted_timestamp())?;
        let responder = Responder {
            symmetric: self.symmetric,
            remote: self.remote,
            remote_ephemeral: *self.message.ephemeral(),
            remote_index: self.message.sender_index(),
        };
        Some((Tai64n(timestamp), responder))
    }
}

impl Responder {
    /// Writes the response (without macs) to `message`; `None` if a DH result is zero.
    pub(crate) fn create_response(
        mut self,
        rng: &mut dyn CryptoRng,
        preshared_key: Option<&PresharedKey>,
        local_index: u32,
        message: &mut [u8; RESPONSE_LEN],
    ) -> Option<SessionKeys> {
        let symmetric = &mut self.symmetric;
        let ephemeral = ephemeral(rng);

        message[..4].copy_from_slice(&(MessageType::Response as u32).to_le_bytes());
        message[Response::SENDER..Response::RECEIVER].copy_from_slice(&local_index.to_le_bytes());
        message[Response::RECEIVER..Response::EPHEMERAL]
            .copy_from_slice(&self.remote_index.to_le_bytes());
        message[Response::EPHEMERAL..Response::EMPTY].copy_from_slice(&ephemeral.public);
        symmetric.mix_ephemeral(&ephemeral.public);

        symmetric.mix_dh(&ephemeral.shared(&self.remote_ephemeral)?);
        symmetric.mix_dh(&ephemeral.shared(self.remote.as_bytes())?);
        let key = symmetric.mix_psk(preshared_key);
        symmetric.encrypt(&key, &mut message[Response::EMPTY..Response::MAC1]);

        let [receiving, sending] = symmetric.split();
        Some(SessionKeys { sending, receiving })
    }
}

#[cfg(test)]
mod tests;
