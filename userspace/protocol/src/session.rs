//! A session: the pair of transport keys one handshake made, with its counters and age limits
//! (paper, section 6.2; kernel, `struct noise_keypair`).

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limits::Limits;
use crate::noise::SessionKeys;
use crate::peer::PeerLink;
use crate::replay::ReplayWindow;
use crate::time::Instant;
use crate::transport::TransportKey;

/// Which side of the handshake we were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We sent the initiation; it is ours to renew the session.
    Initiator,
    /// We answered; we send only after the first data from the initiator.
    Responder,
}

/// Keeps what the sending thread writes away from what the receiving thread reads.
#[repr(align(128))]
struct OwnCacheLine<T>(T);

/// One session. Shared by control and the data threads: keys are immutable, the send counter is
/// atomic, the replay window is locked once per batch.
///
/// The keys are wiped when the last reference goes.
pub struct Session<K> {
    peer: Arc<PeerLink<K>>,
    receiver_index: u32,
    peer_index: u32,
    role: Role,
    sending: K,
    receiving: K,
    created: Instant,
    rekey_at: Instant,
    refresh_at: Instant,
    reject_at: Instant,
    rekey_after_messages: u64,
    reject_after_messages: u64,
    /// Sending was ended early: our private key changed.
    retired: AtomicBool,
    /// Initiator: always. Responder: the initiator has used the session.
    confirmed: AtomicBool,
    /// The one handshake that reception alone may ask for has been asked for.
    refresh_asked: AtomicBool,
    send_counter: OwnCacheLine<AtomicU64>,
    replay: OwnCacheLine<Mutex<ReplayWindow>>,
}

/// The far end of time, for limits that do not apply.
const NEVER: Instant = Instant::from_nanos(u64::MAX);

impl<K: TransportKey> Session<K> {
    pub(crate) fn new(
        now: Instant,
        limits: &Limits,
        peer: Arc<PeerLink<K>>,
        role: Role,
        (receiver_index, peer_index): (u32, u32),
        keys: &SessionKeys,
    ) -> Self {
        let initiator_only = |at| match role {
            Role::Initiator => at,
            Role::Responder => NEVER,
        };
        Self {
            peer,
            receiver_index,
            peer_index,
            role,
            sending: K::new(&keys.sending.0),
            receiving: K::new(&keys.receiving.0),
            created: now,
            rekey_at: initiator_only(now + limits.rekey_after_time),
            refresh_at: initiator_only(now + limits.refresh_after_time()),
            reject_at: now + limits.reject_after_time,
            rekey_after_messages: limits.rekey_after_messages,
            reject_after_messages: limits.reject_after_messages,
            retired: AtomicBool::new(false),
            confirmed: AtomicBool::new(role == Role::Initiator),
            refresh_asked: AtomicBool::new(false),
            send_counter: OwnCacheLine(AtomicU64::new(0)),
            replay: OwnCacheLine(Mutex::new(ReplayWindow::new(limits.reject_after_messages))),
        }
    }
}

impl<K> Session<K> {
    /// Our index: what the peer writes into data messages to us.
    #[must_use]
    pub fn receiver_index(&self) -> u32 {
        self.receiver_index
    }

    /// The peer's index: what we write into data messages to it.
    #[must_use]
    pub fn peer_index(&self) -> u32 {
        self.peer_index
    }

    /// The peer at the other end.
    #[must_use]
    pub fn peer(&self) -> &Arc<PeerLink<K>> {
        &self.peer
    }

    /// Which side of the handshake we were.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The key to seal with.
    #[must_use]
    pub fn sending_key(&self) -> &K {
        &self.sending
    }

    /// The key to open with.
    #[must_use]
    pub fn receiving_key(&self) -> &K {
        &self.receiving
    }

    /// Whether data may be sent on this session: younger than 180 s and counters left.
    #[must_use]
    #[inline]
    pub fn can_send(&self, now: Instant) -> bool {
        now < self.reject_at
            && !self.retired.load(Ordering::Relaxed)
            && self.send_counter.0.load(Ordering::Relaxed) < self.reject_after_messages
    }

    /// Whether data may be accepted on this session: younger than 180 s.
    #[must_use]
    #[inline]
    pub fn can_receive(&self, now: Instant) -> bool {
        now < self.reject_at
    }

    /// Reserves `count` consecutive send counters and returns the first. `None` when fewer are left
    /// before reject-after-messages; no counter is ever handed out twice.
    #[must_use]
    #[inline]
    pub fn reserve(&self, count: u64) -> Option<u64> {
        self.send_counter
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |counter| {
                counter
                    .checked_add(count)
                    .filter(|&end| end <= self.reject_after_messages)
            })
            .ok()
    }

    /// The replay window, locked. Take it once per batch, after the batch proved authentic.
    #[inline]
    pub fn replay(&self) -> MutexGuard<'_, ReplayWindow> {
        self.replay.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the handshake derived the keys.
    #[must_use]
    pub fn created(&self) -> Instant {
        self.created
    }

    /// How many messages have been sent, keepalives included.
    #[must_use]
    pub fn messages_sent(&self) -> u64 {
        self.send_counter.0.load(Ordering::Relaxed)
    }

    /// Whether sending on this session asks for a new handshake: by count, or by age for the
    /// initiator.
    #[inline]
    pub(crate) fn wants_rekey(&self, now: Instant) -> bool {
        now >= self.rekey_at
            || self.send_counter.0.load(Ordering::Relaxed) > self.rekey_after_messages
    }

    /// Whether receiving on this session asks for a new handshake. True at most once.
    #[inline]
    pub(crate) fn ask_refresh(&self, now: Instant) -> bool {
        now >= self.refresh_at && !self.refresh_asked.swap(true, Ordering::Relaxed)
    }

    /// Whether the session is old enough for [`Self::ask_refresh`].
    pub(crate) fn refresh_due(&self, now: Instant) -> bool {
        now >= self.refresh_at
    }

    #[inline]
    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed)
    }

    pub(crate) fn confirm(&self) {
        self.confirmed.store(true, Ordering::Relaxed);
    }

    /// Ends sending for good.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }
}

impl<K> fmt::Debug for Session<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.peer.id())
            .field("receiver_index", &self.receiver_index)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}
