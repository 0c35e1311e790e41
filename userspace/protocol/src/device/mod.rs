//! The device: an identity, its peers, and the rules that tie handshakes, sessions and timers
//! together (kernel, `device.c`, `send.c`, `receive.c`).
//!
//! One thread owns it. Files by subject: `config` (what `wg set` changes), `handshake` (messages 1
//! to 3), `data` (message 4, for use without data threads), `schedule` (timers), `history` (what the
//! next daemon goes on with), `output`.

mod config;
mod data;
mod handshake;
mod history;
mod output;
mod schedule;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand_core::CryptoRng;

use crate::allowed_ips::{AllowedIps, LookupTable, Prefix};
use crate::cookie;
use crate::crypto::Secret;
use crate::key::{PresharedKey, PublicKey};
use crate::limits::Limits;
use crate::message::MessageType;
use crate::noise::{Identity, Initiator, Tai64n};
use crate::peer::{Endpoint, PeerId, PeerLink};
use crate::rate_limit::{RateLimiter, ReplyLimiter};
use crate::session::Session;
use crate::table::SessionTable;
use crate::time::{Instant, Now};
use crate::timers::Timers;
use crate::transport::{PortableKey, TransportKey};

pub use config::{AddPeerError, PeerInfo};
pub use data::SendError;
pub use history::PeerHistory;
pub use output::{Counters, Event, Output};

/// Which peer owns which inner address, for the data path.
pub type Routes<K> = LookupTable<Arc<PeerLink<K>>>;

/// Inner MTU assumed until [`Device::set_mtu`] says otherwise: 1500 less 80 bytes of overhead.
const DEFAULT_MTU: usize = 1420;

/// A WireGuard device without sockets: feed it datagrams, packets and time, and do what
/// [`Device::poll_output`] says.
pub struct Device<K: TransportKey = PortableKey> {
    core: Core<K>,
    /// In order of creation.
    peers: BTreeMap<PeerId, Peer<K>>,
    by_key: HashMap<PublicKey, PeerId>,
    next_peer: u64,
    allowed_ips: AllowedIps<Arc<PeerLink<K>>>,
    routes: Arc<Routes<K>>,
    routes_stale: bool,
}

/// Everything of a device that is not a peer, so that both can be borrowed at once.
struct Core<K> {
    limits: Limits,
    rng: Box<dyn CryptoRng + Send>,
    identity: Option<(Identity, cookie::Checker)>,
    up: bool,
    mtu: usize,
    sessions: Arc<SessionTable<K>>,
    /// Our indices in use, by handshakes in flight and by sessions.
    indices: HashMap<u32, PeerId>,
    /// Peers by the time they next need a look.
    deadlines: BTreeSet<(Instant, PeerId)>,
    outputs: VecDeque<Queued<K>>,
    rate_limiter: RateLimiter,
    reply_limiter: ReplyLimiter,
    /// When the backlog of handshakes was last too long.
    loaded_at: Option<Instant>,
    counters: Counters,
}

/// An output, or something to be done once the outputs before it have been taken.
enum Queued<K> {
    Output(Output<K>),
    /// Make a session we initiated the current one. Waits behind its `SessionAdded`, so that the
    /// owner knows the index before any data thread can send on the session.
    Install {
        peer: PeerId,
        session: Arc<Session<K>>,
        now: Now,
    },
}

/// Control's side of a peer.
struct Peer<K> {
    link: Arc<PeerLink<K>>,
    preshared_key: Option<PresharedKey>,
    /// DH of the static keys, made when first needed: it would be most of the cost of configuring
    /// thousands of peers.
    static_static: Option<Box<Secret>>,
    /// Our handshake in flight.
    initiation: Option<Box<Initiator>>,
    /// When it was sent.
    initiated_at: Instant,
    /// Greatest timestamp the peer has shown.
    latest_timestamp: Tai64n,
    last_initiation_received: Option<Instant>,
    /// Timestamp of our last initiation.
    sent_timestamp: Tai64n,
    /// When we last sent an initiation or a response.
    last_handshake_sent: Option<Instant>,
    /// Unix time of the last completed handshake.
    last_handshake: Option<Duration>,
    /// What the last handshake took to the peer and back.
    round_trip: Option<Duration>,
    cookie: cookie::Maker,
    timers: Timers,
    /// Where the peer stands in `Core::deadlines`.
    deadline: Option<Instant>,
    /// Receiver indices of the peer's sessions in the table.
    session_indices: Vec<u32>,
    keepalive: u16,
    allowed_ips: BTreeSet<Prefix>,
}

impl<K> Core<K> {
    fn emit(&mut self, output: Output<K>) {
        self.outputs.push_back(Queued::Output(output));
    }

    fn log(&mut self, event: Event) {
        self.emit(Output::Event(event));
    }

    /// An index of ours that is not in use, now belonging to `peer`.
    fn new_index(&mut self, peer: PeerId) -> u32 {
        loop {
            let index = self.rng.next_u32();
            if let std::collections::hash_map::Entry::Vacant(entry) = self.indices.entry(index) {
                entry.insert(peer);
                return index;
            }
        }
    }

    fn is_under_load(&self, now: Instant) -> bool {
        self.loaded_at
            .is_some_and(|at| now.saturating_duration_since(at) < self.limits.under_load_linger)
    }

    /// Gives up our handshake in flight, if any.
    fn drop_initiation(&mut self, peer: &mut Peer<K>) {
        if let Some(initiation) = peer.initiation.take() {
            self.indices.remove(&initiation.local_index);
        }
    }

    /// Takes sessions that the peer no longer holds out of the table.
    fn sweep_sessions(&mut self, peer: &mut Peer<K>) {
        let link = Arc::clone(&peer.link);
        peer.session_indices.retain(|&receiver_index| {
            let held = link.holds_session(receiver_index);
            if !held {
                self.indices.remove(&receiver_index);
                self.sessions.remove(receiver_index);
                self.emit(Output::SessionRemoved { receiver_index });
            }
            held
        });
    }

    /// Forgets sessions and handshake of a peer; keys are wiped as the last references go.
    fn clear_keys(&mut self, peer: &mut Peer<K>) {
        self.drop_initiation(peer);
        peer.link.clear_sessions();
        self.sweep_sessions(peer);
    }
}

impl<K: TransportKey> Device<K> {
    /// A device without key or peers, down, with WireGuard's own limits. `rng` makes ephemeral keys,
    /// indices, nonces and jitter.
    #[must_use]
    pub fn new(rng: Box<dyn CryptoRng + Send>) -> Self {
        Self::with_limits(rng, Limits::default())
    }

    /// A device with other limits, for simulations.
    #[must_use]
    pub fn with_limits(rng: Box<dyn CryptoRng + Send>, limits: Limits) -> Self {
        Self {
            core: Core {
                limits,
                rng,
                identity: None,
                up: false,
                mtu: DEFAULT_MTU,
                sessions: Arc::new(SessionTable::new()),
                indices: HashMap::new(),
                deadlines: BTreeSet::new(),
                outputs: VecDeque::new(),
                rate_limiter: RateLimiter::default(),
                reply_limiter: ReplyLimiter::default(),
                loaded_at: None,
                counters: Counters::default(),
            },
            peers: BTreeMap::new(),
            by_key: HashMap::new(),
            next_peer: 0,
            allowed_ips: AllowedIps::new(),
            routes: Arc::default(),
            routes_stale: false,
        }
    }

    /// The sessions by receiver index, for data threads.
    #[must_use]
    pub fn sessions(&self) -> Arc<SessionTable<K>> {
        Arc::clone(&self.core.sessions)
    }

    /// What has been refused so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.core.counters
    }

    /// Says how many handshake messages wait to be handled, or were kept from us for their rate in the
    /// last second. 512 or more mean that we are under load, and for a second after that.
    pub fn note_backlog(&mut self, now: Instant, queued: usize) {
        if queued >= self.core.limits.under_load_backlog {
            self.core.loaded_at = Some(now);
        } else if !self.core.is_under_load(now) {
            self.core.reply_limiter.forget();
        }
    }

    /// Whether handshake messages need a cookie now.
    #[must_use]
    pub fn is_under_load(&self, now: Instant) -> bool {
        self.core.is_under_load(now)
    }

    /// Handles one UDP datagram of any type from `from`. `datagram` is decrypted in place. Whatever
    /// is wrong with it, it is counted and dropped.
    pub fn handle_datagram(&mut self, now: Now, from: Endpoint, datagram: &mut [u8]) {
        if !self.core.up {
            return;
        }
        match MessageType::of(datagram) {
            Ok(MessageType::Initiation) => self.handle_initiation(now, from, datagram),
            Ok(MessageType::Response) => self.handle_response(now, from, datagram),
            Ok(MessageType::CookieReply) => self.handle_cookie_reply(now, datagram),
            Ok(MessageType::Data) => self.handle_data(now, from, datagram),
            Err(_) => self.core.counters.malformed += 1,
        }
    }

    /// The next thing to do, first in first out. Drain it after every call to the device.
    pub fn poll_output(&mut self) -> Option<Output<K>> {
        loop {
            match self.core.outputs.pop_front()? {
                Queued::Output(output) => return Some(output),
                Queued::Install { peer, session, now } => self.install(peer, &session, now),
            }
        }
    }
}

/// Sessions and links point at each other; a device that goes takes them apart.
impl<K: TransportKey> Drop for Device<K> {
    fn drop(&mut self) {
        for peer in self.peers.values() {
            peer.link.set_closed(true);
            peer.link.clear_sessions();
            for &index in &peer.session_indices {
                self.core.sessions.remove(index);
            }
        }
    }
}

impl<K: TransportKey> fmt::Debug for Device<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("public_key", &self.public_key())
            .field("up", &self.core.up)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}
