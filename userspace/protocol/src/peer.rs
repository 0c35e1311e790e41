//! What control and the data threads share about one peer.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwapOption, Guard};

use crate::key::PublicKey;
use crate::session::Session;
use crate::staged::{STAGED_PACKETS, Staged, StagedGuard};
use crate::time::Instant;
use crate::timers::Activity;

/// Names a peer of one device. Never given out twice; ascending in order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(u64);

impl PeerId {
    pub(crate) const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The bare number, for logs and map values.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a peer is, and from which of our addresses it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The peer's outer address and port.
    pub address: SocketAddr,
    /// Where the peer last reached us; `None` leaves the choice to the routing table.
    pub source: Option<Source>,
}

impl Endpoint {
    /// An endpoint as it is configured: without a source.
    #[must_use]
    pub const fn new(address: SocketAddr) -> Self {
        Self {
            address,
            source: None,
        }
    }
}

/// One of our own addresses, with the interface it was seen on. Opaque to the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The destination address of what the peer sent.
    pub address: IpAddr,
    /// Index of the interface it came in by.
    pub interface: u32,
}

/// The three sessions a peer may have at once.
struct Keypairs<K> {
    previous: Option<Arc<Session<K>>>,
    current: Option<Arc<Session<K>>>,
    /// Made as responder, not yet used by the initiator: receives, never sends.
    next: Option<Arc<Session<K>>>,
}

/// A peer as the data threads see it. All methods take `&self` and none waits for control.
///
/// ```text
///  egress:   routes → link → (staged? drain them first) → current session → seal → sent()
///  ingress:  index → session → open → replay → link.received() → set_endpoint()
/// ```
/// `sent`, `received` and `stage` return true when control must look at the peer; the caller then
/// passes the id on to [`Device::attend`](crate::Device::attend). They do so once per need, not once
/// per batch.
pub struct PeerLink<K> {
    id: PeerId,
    public_key: PublicKey,
    endpoint: ArcSwapOption<Endpoint>,
    current: ArcSwapOption<Session<K>>,
    keypairs: Mutex<Keypairs<K>>,
    staged: Mutex<Staged>,
    any_staged: AtomicBool,
    tx_bytes: AtomicU64,
    rx_bytes: AtomicU64,
    staged_dropped: AtomicU64,
    /// Control has been asked to look and has not done so yet.
    attention: AtomicBool,
    /// A handshake is in flight or scheduled: no need to ask for one.
    handshake_pending: AtomicBool,
    rekey_wanted: AtomicBool,
    /// The initiator has used `next`; control finishes the handshake.
    handshake_confirmed: AtomicBool,
    /// The peer was removed or the device is down: nothing may be staged.
    closed: AtomicBool,
    pub(crate) activity: Activity,
}

impl<K> PeerLink<K> {
    pub(crate) fn new(id: PeerId, public_key: PublicKey, closed: bool) -> Self {
        Self {
            id,
            public_key,
            endpoint: ArcSwapOption::empty(),
            current: ArcSwapOption::empty(),
            keypairs: Mutex::new(Keypairs {
                previous: None,
                current: None,
                next: None,
            }),
            staged: Mutex::default(),
            any_staged: AtomicBool::new(false),
            tx_bytes: AtomicU64::new(0),
            rx_bytes: AtomicU64::new(0),
            staged_dropped: AtomicU64::new(0),
            attention: AtomicBool::new(false),
            handshake_pending: AtomicBool::new(false),
            rekey_wanted: AtomicBool::new(false),
            handshake_confirmed: AtomicBool::new(false),
            closed: AtomicBool::new(closed),
            activity: Activity::default(),
        }
    }

    /// The peer's id.
    #[must_use]
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// The peer's public key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Where the peer is, if known.
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint.load().as_deref().copied()
    }

    /// The same without a copy, for the hot path. Hold it no longer than a batch.
    #[must_use]
    #[inline]
    pub fn endpoint_guard(&self) -> Guard<Option<Arc<Endpoint>>> {
        self.endpoint.load()
    }

    /// Roaming: an authenticated packet came from `endpoint`. Writes only when it differs.
    #[inline]
    pub fn set_endpoint(&self, endpoint: Endpoint) {
        if self.endpoint.load().as_deref() != Some(&endpoint) {
            self.endpoint.store(Some(Arc::new(endpoint)));
        }
    }

    /// Forgets our own address towards the peer if it still is at `address`; the routing table
    /// chooses again. For a source address that is gone, or that no route leads back from.
    pub fn forget_source(&self, address: SocketAddr) {
        let known = self.endpoint.load_full();
        if let Some(endpoint) = known.as_deref()
            && endpoint.address == address
            && endpoint.source.is_some()
        {
            let cleared = Arc::new(Endpoint::new(address));
            // Lost to a packet that arrived meanwhile: its source is newer than our doubt.
            self.endpoint.compare_and_swap(&known, Some(cleared));
        }
    }

    /// Forgets our own address towards the peer, wherever it is.
    pub fn clear_source(&self) {
        if let Some(endpoint) = self.endpoint() {
            self.forget_source(endpoint.address);
        }
    }

    /// The session to send on. `None` before the first handshake; may be too old to send on
    /// ([`Session::can_send`]).
    #[must_use]
    #[inline]
    pub fn current(&self) -> Guard<Option<Arc<Session<K>>>> {
        self.current.load()
    }

    /// UDP payload bytes sent to the peer, handshakes included.
    #[must_use]
    pub fn tx_bytes(&self) -> u64 {
        self.tx_bytes.load(Ordering::Relaxed)
    }

    /// Authenticated UDP payload bytes received from the peer, handshakes included.
    #[must_use]
    pub fn rx_bytes(&self) -> u64 {
        self.rx_bytes.load(Ordering::Relaxed)
    }

    /// Packets dropped while waiting for a session.
    #[must_use]
    pub fn staged_dropped(&self) -> u64 {
        self.staged_dropped.load(Ordering::Relaxed)
    }

    /// Says that a batch was sent on `session`: `data_packets` with content (0 if only keepalives),
    /// `bytes` of UDP payload. True when control must look at the peer.
    #[inline]
    #[must_use = "control must attend to the peer when this is true"]
    pub fn sent(&self, now: Instant, session: &Session<K>, data_packets: u64, bytes: u64) -> bool {
        self.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut needed = self.activity.sent(now, data_packets > 0);
        if session.wants_rekey(now) && !self.handshake_pending.load(Ordering::Relaxed) {
            self.rekey_wanted.store(true, Ordering::Relaxed);
            needed = true;
        }
        needed && self.call_control()
    }

    /// Says that a batch was received on `session`, all of it authentic and accepted by the replay
    /// window: `data_packets` with content, `bytes` of UDP payload. The first such batch on a session
    /// made as responder makes it the current one. True when control must look at the peer.
    #[inline]
    #[must_use = "control must attend to the peer when this is true"]
    pub fn received(
        &self,
        now: Instant,
        session: &Arc<Session<K>>,
        data_packets: u64,
        bytes: u64,
    ) -> bool {
        self.rx_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut needed = self.activity.received(now, data_packets > 0);
        if !session.is_confirmed() && self.promote(session) {
            needed = true;
        }
        if session.ask_refresh(now) {
            self.rekey_wanted.store(true, Ordering::Relaxed);
            needed = true;
        }
        needed && self.call_control()
    }

    /// Keeps a copy of an inner packet until there is a session; the oldest goes when there are 128
    /// already. Without an endpoint, or with the peer gone, the packet is dropped and counted. True
    /// when control must start a handshake.
    #[must_use = "control must attend to the peer when this is true"]
    pub fn stage(&self, packet: &[u8]) -> bool {
        let reachable = self.endpoint.load().is_some();
        let mut staged = self.staged();
        // Looked at under the lock: whoever closes the peer clears the queue under it.
        if !reachable || self.closed.load(Ordering::Relaxed) {
            self.staged_dropped.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        if staged.len() >= STAGED_PACKETS {
            let _oldest = staged.pop_front();
            self.staged_dropped.fetch_add(1, Ordering::Relaxed);
        }
        staged.push_back(packet);
        drop(staged);
        fence(Ordering::SeqCst);
        !self.handshake_pending.load(Ordering::SeqCst) && self.call_control()
    }

    /// Whether packets are staged. If so, and a session can send, drain [`Self::staged`] before
    /// sending anything newer.
    #[must_use]
    #[inline]
    pub fn has_staged(&self) -> bool {
        self.any_staged.load(Ordering::Acquire)
    }

    /// The staged packets, locked.
    pub fn staged(&self) -> StagedGuard<'_> {
        StagedGuard::lock(&self.staged, &self.any_staged)
    }

    /// Whether control must be woken: it must, unless it has been and has not looked yet.
    fn call_control(&self) -> bool {
        // Orders the caller's notes before the load; see `answer_call`.
        fence(Ordering::SeqCst);
        !self.attention.load(Ordering::SeqCst) && !self.attention.swap(true, Ordering::SeqCst)
    }

    fn keypairs(&self) -> MutexGuard<'_, Keypairs<K>> {
        self.keypairs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Turns `next` into `current` if it is `session`.
    #[cold]
    fn promote(&self, session: &Arc<Session<K>>) -> bool {
        let mut keypairs = self.keypairs();
        if !keypairs
            .next
            .as_ref()
            .is_some_and(|next| Arc::ptr_eq(next, session))
        {
            return false;
        }
        keypairs.previous = keypairs.current.take();
        keypairs.current = keypairs.next.take();
        self.current.store(keypairs.current.clone());
        session.confirm();
        self.handshake_confirmed.store(true, Ordering::SeqCst);
        true
    }

    // What follows is control's.

    /// Control looks now: later needs call again.
    pub(crate) fn answer_call(&self) {
        self.attention.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Takes the news that the initiator has used the session we made as responder.
    pub(crate) fn take_confirmed(&self) -> bool {
        self.handshake_confirmed.load(Ordering::SeqCst)
            && self.handshake_confirmed.swap(false, Ordering::SeqCst)
    }

    /// Takes the wish for a new handshake, if the current session still gives reason for it.
    pub(crate) fn take_rekey_wanted(&self, now: Instant) -> bool {
        self.rekey_wanted.swap(false, Ordering::SeqCst)
            && self
                .current
                .load()
                .as_ref()
                .is_some_and(|session| session.wants_rekey(now) || session.refresh_due(now))
    }

    pub(crate) fn set_handshake_pending(&self, pending: bool) {
        self.handshake_pending.store(pending, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Puts a session we made as responder in its place. Nothing may be sent on it before the
    /// initiator has used it (kernel, `noise.c` `add_new_keypair`).
    pub(crate) fn install_next(&self, session: &Arc<Session<K>>) {
        let mut keypairs = self.keypairs();
        keypairs.next = Some(Arc::clone(session));
        keypairs.previous = None;
    }

    /// Puts a session we initiated in its place: the response was the peer's confirmation.
    ///
    /// If `next` was made after we sent our initiation at `started`, both sides started at once, and
    /// both sessions are good. Each side may already send on the one it initiated, so both are kept
    /// for receiving; then the side with the lesser public key moves over to the other's session,
    /// by the ordinary promotion. Otherwise both would go on as initiators, and rekey at once for
    /// ever.
    pub(crate) fn install_current(
        &self,
        session: &Arc<Session<K>>,
        started: Instant,
        our_key: &PublicKey,
    ) {
        let mut keypairs = self.keypairs();
        keypairs.next = keypairs
            .next
            .take()
            .filter(|next| next.created() >= started);
        if let Some(rival) = &keypairs.next
            && *our_key > self.public_key
        {
            rival.confirm();
        }
        keypairs.previous = keypairs.current.replace(Arc::clone(session));
        self.current.store(keypairs.current.clone());
    }

    /// Lets go of all sessions.
    pub(crate) fn clear_sessions(&self) {
        let mut keypairs = self.keypairs();
        keypairs.previous = None;
        keypairs.current = None;
        keypairs.next = None;
        self.current.store(None);
        self.handshake_confirmed.store(false, Ordering::SeqCst);
    }

    /// Whether the session with this index is one of the three.
    pub(crate) fn holds_session(&self, receiver_index: u32) -> bool {
        let keypairs = self.keypairs();
        [&keypairs.previous, &keypairs.current, &keypairs.next]
            .into_iter()
            .flatten()
            .any(|session| session.receiver_index() == receiver_index)
    }

    /// Control itself sent a keepalive: as [`Self::sent`], but nobody needs to be woken.
    pub(crate) fn keepalive_sent(&self, now: Instant, session: &Session<K>, bytes: usize) {
        self.add_tx_bytes(bytes);
        // Not data, so it arms nothing.
        let _ = self.activity.sent(now, false);
        if session.wants_rekey(now) {
            self.rekey_wanted.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn add_tx_bytes(&self, bytes: usize) {
        self.tx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_rx_bytes(&self, bytes: usize) {
        self.rx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Adds what was counted before this process.
    pub(crate) fn restore_bytes(&self, sent: u64, received: u64) {
        self.tx_bytes.fetch_add(sent, Ordering::Relaxed);
        self.rx_bytes.fetch_add(received, Ordering::Relaxed);
    }

    /// Drops the staged packets, counted.
    pub(crate) fn drop_staged(&self) {
        let dropped = self.staged().clear() as u64;
        self.staged_dropped.fetch_add(dropped, Ordering::Relaxed);
    }

    /// Refuses packets from now on (`closed`) or takes them again.
    pub(crate) fn set_closed(&self, closed: bool) {
        let mut staged = self.staged();
        self.closed.store(closed, Ordering::Relaxed);
        if closed {
            let dropped = staged.clear() as u64;
            self.staged_dropped.fetch_add(dropped, Ordering::Relaxed);
        }
    }
}

impl<K> fmt::Debug for PeerLink<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerLink")
            .field("id", &self.id)
            .field("public_key", &self.public_key)
            .finish_non_exhaustive()
    }
}
