//! `mac1`, `mac2` and cookies: proof that a sender knows our public key, and, under load, that it
//! receives at the address it sends from (paper, section 5.4.7; kernel, `cookie.c`).

use std::net::{IpAddr, SocketAddr};

use rand_core::CryptoRng;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::crypto::{Secret, hash, mac, xopen, xseal};
use crate::key::PublicKey;
use crate::limits::Limits;
use crate::message::{COOKIE_REPLY_LEN, CookieReply, MAC_LEN, MessageType};
use crate::time::Instant;

const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";

/// The key of `mac1` for messages to the owner of `receiver`.
fn mac1_key(receiver: &PublicKey) -> [u8; 32] {
    hash(&[LABEL_MAC1, receiver.as_bytes()])
}

/// The key that encrypts cookies the owner of `sender` hands out.
fn cookie_key(sender: &PublicKey) -> [u8; 32] {
    hash(&[LABEL_COOKIE, sender.as_bytes()])
}

/// A handshake message, split in front of its two macs.
struct Maced<'a> {
    body: &'a [u8],
    mac1: &'a [u8; MAC_LEN],
    mac2: &'a [u8; MAC_LEN],
}

impl<'a> Maced<'a> {
    fn split(message: &'a [u8]) -> Option<Self> {
        let (rest, mac2) = message.split_last_chunk()?;
        let (body, mac1) = rest.split_last_chunk()?;
        Some(Self { body, mac1, mac2 })
    }
}

/// What the macs of a handshake message are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MacState {
    /// Made by someone who does not know our public key.
    Invalid,
    /// `mac1` is right, `mac2` missing or wrong.
    Mac1,
    /// Both are right: the sender receives at its address.
    Mac1AndMac2,
}

/// Checks macs and hands out cookies, for all peers of a device.
#[derive(Debug)]
pub(crate) struct Checker {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
    secret: Option<(Secret, Instant)>,
}

impl Checker {
    /// For a device with this public key.
    pub(crate) fn new(public: &PublicKey) -> Self {
        Self {
            mac1_key: mac1_key(public),
            cookie_key: cookie_key(public),
            secret: None,
        }
    }

    /// Judges the macs of a message from `source`. `mac2` is looked at only when `want_mac2`: it
    /// matters only under load.
    pub(crate) fn check(
        &self,
        now: Instant,
        limits: &Limits,
        source: SocketAddr,
        message: &[u8],
        want_mac2: bool,
    ) -> MacState {
        let Some(Maced { body, mac1, mac2 }) = Maced::split(message) else {
            return MacState::Invalid;
        };
        if !bool::from(mac(&self.mac1_key, &[body]).ct_eq(mac1)) {
            return MacState::Invalid;
        }
        if !want_mac2 {
            return MacState::Mac1;
        }
        // A secret that has expired, or was never made, has no cookies out that count.
        let Some((secret, made)) = &self.secret else {
            return MacState::Mac1;
        };
        if now.saturating_duration_since(*made) >= limits.cookie_secret_lifetime {
            return MacState::Mac1;
        }
        let cookie = cookie(secret, source);
        if bool::from(mac(&cookie, &[body, mac1]).ct_eq(mac2)) {
            MacState::Mac1AndMac2
        } else {
            MacState::Mac1
        }
    }

    /// The cookie reply to a handshake message whose `mac1` is right. `message` has 148 or 92 bytes.
    pub(crate) fn reply(
        &mut self,
        now: Instant,
        limits: &Limits,
        rng: &mut dyn CryptoRng,
        source: SocketAddr,
        message: &[u8],
    ) -> Option<[u8; COOKIE_REPLY_LEN]> {
        let sender_index = message.get(4..8)?;
        let mac1 = Maced::split(message)?.mac1;
        let fresh = self.secret.take().filter(|(_, made)| {
            now.saturating_duration_since(*made) < limits.cookie_secret_lifetime
        });
        let (secret, _) = self.secret.insert(fresh.unwrap_or_else(|| {
            let mut secret = Secret([0; 32]);
            rng.fill_bytes(&mut secret.0);
            (secret, now)
        }));
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        let sealed = xseal(&self.cookie_key, &nonce, mac1, cookie(secret, source));

        let mut reply = [0; COOKIE_REPLY_LEN];
        reply[..4].copy_from_slice(&(MessageType::CookieReply as u32).to_le_bytes());
        reply[CookieReply::RECEIVER..CookieReply::NONCE].copy_from_slice(sender_index);
        reply[CookieReply::NONCE..CookieReply::COOKIE].copy_from_slice(&nonce);
        reply[CookieReply::COOKIE..].copy_from_slice(&sealed);
        Some(reply)
    }
}

/// The cookie of one source: a MAC over its address and its port. The port belongs to it so that
/// hosts behind one NAT do not share a cookie.
fn cookie(secret: &Secret, source: SocketAddr) -> [u8; 16] {
    let port = source.port().to_be_bytes();
    match source.ip().to_canonical() {
        IpAddr::V4(address) => mac(&secret.0, &[&address.octets(), &port]),
        IpAddr::V6(address) => mac(&secret.0, &[&address.octets(), &port]),
    }
}

/// A cookie as the initiator holds it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Cookie {
    value: [u8; 16],
    #[zeroize(skip)]
    received: Instant,
}

/// Puts macs on messages to one peer, and remembers the cookie it gave us.
#[derive(Default)]
pub(crate) struct Maker {
    /// `mac1` of the last message, while no cookie reply has answered it.
    last_mac1: Option<[u8; MAC_LEN]>,
    cookie: Option<Box<Cookie>>,
}

impl std::fmt::Debug for Maker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maker")
            .field("has_cookie", &self.cookie.is_some())
            .finish_non_exhaustive()
    }
}

impl Maker {
    /// Fills the last 32 bytes of a handshake message to the peer `receiver`. `mac2` stays zero
    /// without a fresh cookie.
    pub(crate) fn add_macs(
        &mut self,
        now: Instant,
        limits: &Limits,
        receiver: &PublicKey,
        message: &mut [u8],
    ) {
        let Some(body) = message.len().checked_sub(2 * MAC_LEN) else {
            return;
        };
        let mac1 = mac(&mac1_key(receiver), &[&message[..body]]);
        message[body..body + MAC_LEN].copy_from_slice(&mac1);
        self.last_mac1 = Some(mac1);
        self.cookie = self.cookie.take().filter(|cookie| {
            now.saturating_duration_since(cookie.received) < limits.cookie_lifetime
        });
        let mac2 = self.cookie.as_ref().map_or([0; MAC_LEN], |cookie| {
            mac(&cookie.value, &[&message[..body + MAC_LEN]])
        });
        message[body + MAC_LEN..].copy_from_slice(&mac2);
    }

    /// Takes the cookie out of a reply from the peer `sender`; false if the reply does not answer
    /// the last message sent, was used already or is not authentic.
    pub(crate) fn consume_reply(
        &mut self,
        now: Instant,
        sender: &PublicKey,
        reply: CookieReply<'_>,
    ) -> bool {
        let Some(mac1) = &self.last_mac1 else {
            return false;
        };
        let key = cookie_key(sender);
        let Some(value) = xopen(&key, reply.nonce(), mac1, reply.encrypted_cookie()) else {
            return false;
        };
        self.last_mac1 = None;
        self.cookie = Some(Box::new(Cookie {
            value,
            received: now,
        }));
        true
    }
}
