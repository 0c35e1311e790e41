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

#[cfg(test)]
mod tests {
    //! Known answers were computed with Python: hashlib.blake2s, and pyca/cryptography's
    //! ChaCha20-Poly1305 under a HChaCha20 checked against draft-irtf-cfrg-xchacha.

    use super::*;
    use crate::testing::{SeededRng, unhex};
    use std::time::Duration;

    const V4: &str = "192.0.2.7:51820";

    fn public() -> PublicKey {
        PublicKey::from_bytes(std::array::from_fn(|i| u8::try_from(100 + i).unwrap()))
    }

    /// A message of the right length with known bytes in front of the macs.
    fn message() -> [u8; 148] {
        let mut message = std::array::from_fn(|i| u8::try_from((i * 7) & 0xff).unwrap());
        message[..4].copy_from_slice(&1_u32.to_le_bytes());
        message
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(0) + Duration::from_secs(seconds)
    }

    fn checker(made: Instant) -> Checker {
        let secret = Secret(std::array::from_fn(|i| u8::try_from(200 + i).unwrap()));
        let mut checker = Checker::new(&public());
        checker.secret = Some((secret, made));
        checker
    }

    fn maker_with_cookie(received: Instant) -> Maker {
        let value = unhex("2b9e5e8b20c810e2eae4319f9b068ad1");
        Maker {
            last_mac1: None,
            cookie: Some(Box::new(Cookie { value, received })),
        }
    }

    #[test]
    fn macs_known_answer() {
        let mut message = message();
        let mut maker = maker_with_cookie(at(0));
        maker.add_macs(at(0), &Limits::default(), &public(), &mut message);
        assert_eq!(
            message[116..132],
            unhex::<16>("08e9222b16ef17c11e5c772918c369bd")
        );
        assert_eq!(
            message[132..],
            unhex::<16>("0661859ac7b605208ec3168a8a3a1ea5")
        );
    }

    #[test]
    fn cookie_known_answers() {
        let checker = checker(at(0));
        let (secret, _) = checker.secret.as_ref().unwrap();
        assert_eq!(
            cookie(secret, V4.parse().unwrap()),
            unhex("2b9e5e8b20c810e2eae4319f9b068ad1")
        );
        assert_eq!(
            cookie(secret, "[::ffff:192.0.2.7]:51820".parse().unwrap()),
            unhex("2b9e5e8b20c810e2eae4319f9b068ad1")
        );
        assert_eq!(
            cookie(secret, "[2001:db8::7]:51820".parse().unwrap()),
            unhex("fe28dc7675a0c2f169257797a002118e")
        );
    }

    #[test]
    fn cookie_reply_known_answer() {
        let nonce: [u8; 24] = std::array::from_fn(|i| u8::try_from(50 + i).unwrap());
        let mut reply = [0; COOKIE_REPLY_LEN];
        reply[0] = 3;
        reply[8..32].copy_from_slice(&nonce);
        reply[32..].copy_from_slice(&unhex::<32>(
            "35b7ee65fb2b7c56cf7e0ced7b1f9a10e2d7cfa06657d3372e19ae169eb536c9",
        ));
        let mut maker = Maker::default();
        maker.add_macs(at(0), &Limits::default(), &public(), &mut message());
        let reply = CookieReply::parse(&reply).unwrap();
        assert!(maker.consume_reply(at(0), &public(), reply));
        assert_eq!(
            maker.cookie.as_ref().unwrap().value,
            unhex("2b9e5e8b20c810e2eae4319f9b068ad1")
        );
        // Once only.
        assert!(!maker.consume_reply(at(0), &public(), reply));
    }

    #[test]
    fn a_cookie_counts_for_its_address_and_port_only() {
        let limits = Limits::default();
        let mut message = message();
        maker_with_cookie(at(0)).add_macs(at(0), &limits, &public(), &mut message);
        let check = |source: &str| {
            checker(at(0)).check(at(1), &limits, source.parse().unwrap(), &message, true)
        };
        assert_eq!(check(V4), MacState::Mac1AndMac2);
        assert_eq!(check("192.0.2.7:51821"), MacState::Mac1);
        assert_eq!(check("192.0.2.8:51820"), MacState::Mac1);
    }

    #[test]
    fn secret_and_cookie_live_120_seconds() {
        let limits = Limits::default();
        let source = V4.parse().unwrap();
        let mut maced = message();
        maker_with_cookie(at(0)).add_macs(at(119), &limits, &public(), &mut maced);
        let check = |now| checker(at(0)).check(now, &limits, source, &maced, true);
        assert_eq!(check(at(119)), MacState::Mac1AndMac2);
        assert_eq!(check(at(120)), MacState::Mac1);

        maker_with_cookie(at(0)).add_macs(at(120), &limits, &public(), &mut maced);
        assert_eq!(maced[132..], [0; 16]);

        let mut checker = checker(at(0));
        let mut rng = SeededRng(1);
        checker.reply(at(119), &limits, &mut rng, source, &maced);
        assert_eq!(checker.secret.as_ref().unwrap().1, at(0));
        checker.reply(at(120), &limits, &mut rng, source, &maced);
        assert_eq!(checker.secret.as_ref().unwrap().1, at(120));
    }

    #[test]
    fn every_bit_of_a_message_counts_for_mac1() {
        let limits = Limits::default();
        let source = V4.parse().unwrap();
        let mut message = message();
        Maker::default().add_macs(at(0), &limits, &public(), &mut message);
        let checker = Checker::new(&public());
        let check = |message: &[u8]| checker.check(at(0), &limits, source, message, false);
        assert_eq!(check(&message), MacState::Mac1);
        for bit in 0..132 * 8 {
            let mut changed = message;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(check(&changed), MacState::Invalid, "bit {bit}");
        }
        assert_eq!(check(&message[..31]), MacState::Invalid);
        assert_eq!(check(&[]), MacState::Invalid);
    }

    #[test]
    fn a_reply_is_bound_to_the_message_it_answers() {
        let limits = Limits::default();
        let source = V4.parse().unwrap();
        let (mut first, mut second) = (message(), message());
        second[20] ^= 1;
        let (mut one, mut two) = (Maker::default(), Maker::default());
        one.add_macs(at(0), &limits, &public(), &mut first);
        two.add_macs(at(0), &limits, &public(), &mut second);
        let reply = Checker::new(&public())
            .reply(at(0), &limits, &mut SeededRng(1), source, &first)
            .unwrap();
        let parsed = CookieReply::parse(&reply).unwrap();
        assert_eq!(reply[4..8], first[4..8]);
        assert!(!two.consume_reply(at(0), &public(), parsed));
        assert!(!Maker::default().consume_reply(at(0), &public(), parsed));
        assert!(one.consume_reply(at(0), &public(), parsed));
    }
}
