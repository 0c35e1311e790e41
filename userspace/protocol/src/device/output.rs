//! What a device asks its owner to do.

use std::fmt;
use std::sync::Arc;

use crate::key::PublicKey;
use crate::peer::{Endpoint, PeerId};
use crate::session::Session;

/// One thing to do, in order. See [`Device::poll_output`](crate::Device::poll_output).
#[derive(Debug)]
pub enum Output<K> {
    /// Send this datagram: a handshake message, a cookie reply, a keepalive, or data sealed by the
    /// device itself.
    Transmit {
        /// Where to.
        to: Endpoint,
        /// The peer it is for; `None` for a cookie reply, whose receiver is not authenticated.
        peer: Option<PeerId>,
        /// The UDP payload.
        payload: Box<[u8]>,
    },
    /// A session can receive from now on. Comes before anything that lets the peer use its index:
    /// for a responder before the response, for an initiator before the session becomes current
    /// (which happens when this output has been taken and the next one is asked for).
    SessionAdded {
        /// The session; also in the [`SessionTable`](crate::SessionTable) already.
        session: Arc<Session<K>>,
    },
    /// A session is gone from the table.
    SessionRemoved {
        /// Its receiver index.
        receiver_index: u32,
    },
    /// There is a current session and packets are staged: drain
    /// [`PeerLink::staged`](crate::PeerLink::staged), sealing each packet under the lock, or call
    /// [`Device::flush_staged`](crate::Device::flush_staged).
    FlushStaged {
        /// The peer.
        peer: PeerId,
    },
    /// A decrypted inner packet, without its padding, from a source its peer owns.
    Packet {
        /// The peer that sent it.
        peer: PeerId,
        /// The IP packet.
        payload: Box<[u8]>,
    },
    /// Something for the log.
    Event(Event),
}

/// What happened, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An initiation was sent.
    InitiationSent {
        /// To this peer.
        peer: PeerId,
        /// How many since the last success; 1 is the first.
        attempt: u32,
    },
    /// A valid initiation was received and answered.
    InitiationReceived {
        /// From this peer.
        peer: PeerId,
    },
    /// A session is in use, on either side.
    HandshakeCompleted {
        /// With this peer.
        peer: PeerId,
    },
    /// Nothing answered; staged packets were dropped.
    HandshakeGaveUp {
        /// This peer did not answer.
        peer: PeerId,
    },
    /// A handshake was wanted but the peer's key allows none: the DH result is zero.
    UnusablePeerKey {
        /// This peer.
        peer: PeerId,
    },
    /// A cookie was received; the next handshake message carries it.
    CookieReceived {
        /// From this peer.
        peer: PeerId,
    },
    /// All keys of a peer were wiped for want of a new session.
    KeysWiped {
        /// This peer.
        peer: PeerId,
    },
    /// A keepalive was sent.
    KeepaliveSent {
        /// To this peer.
        peer: PeerId,
    },
    /// A peer was removed because the new private key is its own.
    SelfPeerRemoved {
        /// The key of both.
        public_key: PublicKey,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InitiationSent { peer, attempt } => {
                write!(
                    f,
                    "handshake initiation sent to peer {peer}, attempt {attempt}"
                )
            }
            Self::InitiationReceived { peer } => {
                write!(f, "handshake initiation of peer {peer} answered")
            }
            Self::HandshakeCompleted { peer } => write!(f, "new session with peer {peer}"),
            Self::HandshakeGaveUp { peer } => write!(f, "peer {peer} does not answer"),
            Self::UnusablePeerKey { peer } => {
                write!(f, "the public key of peer {peer} allows no handshake")
            }
            Self::CookieReceived { peer } => write!(f, "cookie received from peer {peer}"),
            Self::KeysWiped { peer } => write!(f, "keys of peer {peer} wiped"),
            Self::KeepaliveSent { peer } => write!(f, "keepalive sent to peer {peer}"),
            Self::SelfPeerRemoved { public_key } => {
                write!(f, "peer {public_key:?} removed, its key is now our own")
            }
        }
    }
}

/// What a device has refused, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Not a WireGuard message: type, reserved bytes or length.
    pub malformed: u64,
    /// Handshake messages with a wrong `mac1`.
    pub invalid_mac1: u64,
    /// Handshake messages dropped under load although `mac2` was right: too many from one source.
    pub rate_limited: u64,
    /// Handshake messages under load without a right `mac2`, answered with a cookie reply.
    pub cookie_replies_sent: u64,
    /// Handshake messages that failed authentication, or are from nobody we know.
    pub invalid_handshake: u64,
    /// Initiations whose timestamp is not newer than the last one.
    pub replayed_initiation: u64,
    /// Initiations less than 20 ms after the last one of the same peer.
    pub flooded_initiation: u64,
    /// Responses and cookie replies for an index that is not ours.
    pub unknown_index: u64,
    /// Cookie replies that answer nothing or are not authentic.
    pub invalid_cookie_reply: u64,
    /// Data for no live session.
    pub unknown_session: u64,
    /// Data that is not authentic.
    pub invalid_data: u64,
    /// Data whose counter was seen before or is too old.
    pub replayed_data: u64,
    /// Decrypted data that is not an IP packet.
    pub invalid_packet: u64,
    /// Inner packets from a source that its peer does not own.
    pub wrong_source: u64,
}
