//! When a peer gets looked at, and what is done then (kernel, `timers.c`).

use std::time::Duration;

use super::{Core, Device, Event, Output, Peer};
use crate::message::{DATA_OVERHEAD, DataHeader};
use crate::peer::PeerId;
use crate::session::Role;
use crate::time::{Instant, Now};
use crate::timers::Due;
use crate::transport::TransportKey;

/// Peers handled by one call of `handle_timeout`. A handshake takes about a tenth of a millisecond;
/// ten thousand peers coming due at once must not keep control from everything else.
const PEERS_PER_CALL: usize = 64;

impl<K: TransportKey> Device<K> {
    /// When [`Self::handle_timeout`] has something to do; `None` if nothing is waited for.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.core.deadlines.first().map(|&(at, _)| at)
    }

    /// Does what is due. Bounded work per call: ask [`Self::poll_timeout`] again afterwards.
    pub fn handle_timeout(&mut self, now: Now) {
        for _ in 0..PEERS_PER_CALL {
            match self.core.deadlines.first() {
                Some(&(at, id)) if at <= now.instant => self.look_at(now, id),
                _ => return,
            }
        }
    }

    /// Looks at a peer because a data thread asked for it: [`PeerLink::sent`], [`PeerLink::received`]
    /// or [`PeerLink::stage`] returned true. An id that is gone is ignored.
    ///
    /// [`PeerLink::sent`]: crate::PeerLink::sent
    /// [`PeerLink::received`]: crate::PeerLink::received
    /// [`PeerLink::stage`]: crate::PeerLink::stage
    pub fn attend(&mut self, now: Now, peer: PeerId) {
        self.look_at(now, peer);
    }

    pub(super) fn look_at(&mut self, now: Now, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.link.answer_call();
        if self.core.up {
            self.core.look_at(now, peer);
        }
        self.core.schedule(peer);
    }
}

impl<K: TransportKey> Core<K> {
    /// Does everything that is due for one peer.
    fn look_at(&mut self, now: Now, peer: &mut Peer<K>) {
        if peer.link.take_confirmed() {
            if let Some(session) = &*peer.link.current()
                && session.role() == Role::Responder
            {
                let taken = now.instant.saturating_duration_since(session.created());
                peer.round_trip = Some(taken);
            }
            self.complete_handshake(now, peer);
        }
        while let Some(due) = {
            let (limits, rng) = (&self.limits, &mut self.rng);
            peer.timers
                .next_due(now.instant, limits, &peer.link.activity, || {
                    jitter(&mut **rng, limits.rekey_timeout_jitter)
                })
        } {
            self.act(now, peer, due);
        }
        if peer.link.take_rekey_wanted(now.instant) {
            self.begin_handshake(now, peer);
        }
        self.serve_staged(now, peer);
    }

    fn act(&mut self, now: Now, peer: &mut Peer<K>, due: Due) {
        match due {
            Due::Wipe => {
                self.clear_keys(peer);
                self.log(Event::KeysWiped {
                    peer: peer.link.id(),
                });
            }
            Due::RetryHandshake => self.retry_handshake(now, peer),
            // The wish for it may have been met by a session the peer initiated meanwhile; what
            // still wants one says so below.
            Due::DeferredHandshake => {
                let current = peer.link.current();
                let usable = current.as_ref().is_some_and(|session| {
                    session.can_send(now.instant)
                        && !session.wants_rekey(now.instant)
                        && !session.refresh_due(now.instant)
                });
                if !usable {
                    self.begin_handshake(now, peer);
                }
            }
            Due::NewHandshake => {
                peer.link.clear_source();
                self.begin_handshake(now, peer);
            }
            Due::Keepalive => self.send_keepalive(now, peer),
        }
    }

    /// Staged packets are sent if a session can, and otherwise ask for one.
    fn serve_staged(&mut self, now: Now, peer: &mut Peer<K>) {
        if !peer.link.has_staged() {
            return;
        }
        let sendable = peer
            .link
            .current()
            .as_ref()
            .is_some_and(|session| session.can_send(now.instant));
        if sendable {
            self.emit(Output::FlushStaged {
                peer: peer.link.id(),
            });
        } else if !peer.timers.handshake_pending() {
            self.begin_handshake(now, peer);
        }
    }

    /// Sends an empty data message. Staged packets say as much; without a session a handshake does.
    pub(super) fn send_keepalive(&mut self, now: Now, peer: &mut Peer<K>) {
        let current = peer.link.current();
        let session = current
            .as_ref()
            .filter(|session| session.can_send(now.instant));
        let Some(session) = session else {
            drop(current);
            self.begin_handshake(now, peer);
            return;
        };
        if peer.link.has_staged() {
            return self.serve_staged(now, peer);
        }
        let (Some(to), Some(counter)) = (peer.link.endpoint(), session.reserve(1)) else {
            return;
        };
        let header = DataHeader {
            receiver_index: session.peer_index(),
            counter,
        };
        let mut payload = [0; DATA_OVERHEAD];
        let (head, body) = payload.split_at_mut(crate::message::DATA_HEADER_LEN);
        head.copy_from_slice(&header.to_bytes());
        session.sending_key().seal_in_place(counter, body);
        peer.link
            .keepalive_sent(now.instant, session, payload.len());
        let peer = peer.link.id();
        self.emit(Output::Transmit {
            to,
            peer: Some(peer),
            payload: payload.into(),
        });
        self.log(Event::KeepaliveSent { peer });
    }

    /// Puts the peer's next deadline in order. To be called after anything that changes its timers.
    pub(super) fn schedule(&mut self, peer: &mut Peer<K>) {
        peer.link
            .set_handshake_pending(peer.timers.handshake_pending());
        let deadline = if self.up {
            peer.timers.deadline(&peer.link.activity)
        } else {
            None
        };
        self.set_deadline(peer, deadline);
    }

    pub(super) fn set_deadline(&mut self, peer: &mut Peer<K>, deadline: Option<Instant>) {
        if peer.deadline == deadline {
            return;
        }
        let id = peer.link.id();
        if let Some(old) = peer.deadline {
            self.deadlines.remove(&(old, id));
        }
        if let Some(new) = deadline {
            self.deadlines.insert((new, id));
        }
        peer.deadline = deadline;
    }
}

/// A random duration below `limit`.
pub(super) fn jitter(rng: &mut dyn rand_core::CryptoRng, limit: Duration) -> Duration {
    let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    match limit {
        0 => Duration::ZERO,
        // The bias of the remainder is far below anything measurable here.
        limit => Duration::from_nanos(rng.next_u64() % limit),
    }
}
