//! Messages 1, 2 and 3: starting, answering and completing handshakes.

use std::sync::Arc;

use super::schedule::jitter;
use super::{Core, Device, Event, Output, Peer, Queued};
use crate::cookie::MacState;
use crate::crypto::Secret;
use crate::message::{CookieReply, INITIATION_LEN, Initiation, RESPONSE_LEN, Response};
use crate::noise::{self, Identity, SessionKeys, Tai64n};
use crate::peer::{Endpoint, PeerId};
use crate::session::{Role, Session};
use crate::time::Now;
use crate::transport::TransportKey;

impl<K> Peer<K> {
    /// The DH of both static keys, from the cache or made now.
    fn static_static(&mut self, identity: &Identity) -> Option<Secret> {
        if self.static_static.is_none() {
            let shared = identity.static_static(self.link.public_key())?;
            self.static_static = Some(Box::new(shared));
        }
        self.static_static.as_deref().cloned()
    }
}

impl<K: TransportKey> Core<K> {
    /// Starts a handshake afresh: the count of attempts begins anew.
    pub(super) fn begin_handshake(&mut self, now: Now, peer: &mut Peer<K>) {
        peer.timers.attempts = 0;
        self.initiate(now, peer);
    }

    /// The initiation in flight was not answered in time.
    pub(super) fn retry_handshake(&mut self, now: Now, peer: &mut Peer<K>) {
        if peer.timers.attempts < self.limits.handshake_attempts {
            // The way we came by may be the reason for the silence.
            peer.link.clear_source();
            self.initiate(now, peer);
            return;
        }
        self.drop_initiation(peer);
        peer.timers.attempts = 0;
        // Before the queue is emptied, so that a packet staged right after asks for a new attempt.
        peer.link.set_handshake_pending(false);
        peer.link.drop_staged();
        if peer.timers.wipe_at.is_none() && !peer.session_indices.is_empty() {
            peer.timers.wipe_at = Some(now.instant + self.limits.wipe_after_time());
        }
        self.log(Event::HandshakeGaveUp {
            peer: peer.link.id(),
        });
    }

    /// Sends an initiation, unless the last handshake message to the peer is less than 5 s old: then
    /// it is sent when the 5 s have passed.
    fn initiate(&mut self, now: Now, peer: &mut Peer<K>) {
        let Some((identity, _)) = &self.identity else {
            return;
        };
        let Some(to) = peer.link.endpoint() else {
            return;
        };
        if let Some(last) = peer.last_handshake_sent {
            let allowed = last + self.limits.rekey_timeout;
            if now.instant < allowed {
                if !peer.timers.handshake_pending() {
                    peer.timers.deferred_at = Some(allowed);
                }
                return;
            }
        }
        let id = peer.link.id();
        let remote = *peer.link.public_key();
        let Some(static_static) = peer.static_static(identity) else {
            peer.last_handshake_sent = Some(now.instant);
            return self.log(Event::UnusablePeerKey { peer: id });
        };
        // A wall clock that was set back must not lock us out of the peer.
        let timestamp = Tai64n::from_unix(now.unix).max(peer.sent_timestamp.successor_if_sent());

        self.drop_initiation(peer);
        let local_index = self.new_index(id);
        let Some((identity, _)) = &self.identity else {
            return;
        };
        let mut message = [0; INITIATION_LEN];
        let Some(initiation) = noise::create_initiation(
            &mut *self.rng,
            identity,
            &remote,
            &static_static,
            timestamp,
            local_index,
            &mut message,
        ) else {
            self.indices.remove(&local_index);
            peer.last_handshake_sent = Some(now.instant);
            return self.log(Event::UnusablePeerKey { peer: id });
        };
        peer.initiation = Some(Box::new(initiation));
        peer.initiated_at = now.instant;
        peer.sent_timestamp = timestamp;
        peer.timers.attempts += 1;
        peer.timers.deferred_at = None;
        peer.timers.retry_at = Some(
            now.instant
                + self.limits.rekey_timeout
                + jitter(&mut *self.rng, self.limits.rekey_timeout_jitter),
        );
        self.send_handshake_message(now, peer, to, &mut message);
        self.log(Event::InitiationSent {
            peer: id,
            attempt: peer.timers.attempts,
        });
    }

    /// Adds the macs, keeps the books and sends.
    fn send_handshake_message(
        &mut self,
        now: Now,
        peer: &mut Peer<K>,
        to: Endpoint,
        message: &mut [u8],
    ) {
        let (limits, link) = (&self.limits, &peer.link);
        peer.cookie
            .add_macs(now.instant, limits, link.public_key(), message);
        peer.last_handshake_sent = Some(now.instant);
        link.add_tx_bytes(message.len());
        // Not data, so it never needs control.
        let _ = link.activity.sent(now.instant, false);
        let peer = Some(link.id());
        self.emit(Output::Transmit {
            to,
            peer,
            payload: (&*message).into(),
        });
    }

    /// Checks macs and load. True if the message may cost us cryptography.
    fn admit(&mut self, now: Now, from: Endpoint, message: &[u8]) -> bool {
        let under_load = self.is_under_load(now.instant);
        let Some((_, checker)) = &mut self.identity else {
            // Without a key, nothing can be meant for this device.
            self.counters.invalid_mac1 += 1;
            return false;
        };
        let (limits, source) = (&self.limits, from.address);
        match checker.check(now.instant, limits, source, message, under_load) {
            MacState::Invalid => {
                self.counters.invalid_mac1 += 1;
                false
            }
            MacState::Mac1 if under_load => {
                if !self.reply_limiter.allow(now.instant, source.ip()) {
                    self.counters.rate_limited += 1;
                    return false;
                }
                let reply = checker.reply(now.instant, limits, &mut *self.rng, source, message);
                if let Some(reply) = reply {
                    self.counters.cookie_replies_sent += 1;
                    self.emit(Output::Transmit {
                        to: from,
                        peer: None,
                        payload: reply.into(),
                    });
                }
                false
            }
            MacState::Mac1 => true,
            MacState::Mac1AndMac2 => {
                let allowed = self.rate_limiter.allow(now.instant, source.ip());
                self.counters.rate_limited += u64::from(!allowed);
                allowed
            }
        }
    }

    /// Notes an authentic handshake message.
    fn authenticated(now: Now, peer: &Peer<K>, from: Endpoint, bytes: usize) {
        peer.link.set_endpoint(from);
        peer.link.add_rx_bytes(bytes);
        // Not data, so it never needs control.
        let _ = peer.link.activity.received(now.instant, false);
    }

    /// Makes a session and announces it. It is in the table, but not yet among the peer's three.
    fn new_session(
        &mut self,
        now: Now,
        peer: &mut Peer<K>,
        role: Role,
        indices: (u32, u32),
        keys: &SessionKeys,
    ) -> Arc<Session<K>> {
        let link = Arc::clone(&peer.link);
        let session = Session::new(now.instant, &self.limits, link, role, indices, keys);
        let session = Arc::new(session);
        self.sessions.insert(&session);
        peer.session_indices.push(indices.0);
        peer.timers.wipe_at = Some(now.instant + self.limits.wipe_after_time());
        self.emit(Output::SessionAdded {
            session: Arc::clone(&session),
        });
        session
    }

    /// A session is in use: ends retries, notes the time, and tells.
    pub(super) fn complete_handshake(&mut self, now: Now, peer: &mut Peer<K>) {
        self.drop_initiation(peer);
        peer.timers.retry_at = None;
        peer.timers.deferred_at = None;
        peer.timers.attempts = 0;
        peer.last_handshake = Some(now.unix);
        self.sweep_sessions(peer);
        self.log(Event::HandshakeCompleted {
            peer: peer.link.id(),
        });
    }
}

impl Tai64n {
    /// The least timestamp for a next initiation, after this one; none was sent if it is zero.
    fn successor_if_sent(self) -> Self {
        if self == Self::default() {
            self
        } else {
            self.successor()
        }
    }
}

impl<K: TransportKey> Device<K> {
    /// Message 1: the peer wants a session.
    pub(super) fn handle_initiation(&mut self, now: Now, from: Endpoint, datagram: &[u8]) {
        let core = &mut self.core;
        let Some(message) = Initiation::parse(datagram) else {
            return;
        };
        if !core.admit(now, from, datagram) {
            return;
        }
        let Some((identity, _)) = &core.identity else {
            return;
        };
        let claimed = noise::consume_initiation(identity, message).and_then(|claimed| {
            let id = self.by_key.get(&claimed.remote)?;
            Some((self.peers.get_mut(id)?, claimed))
        });
        let Some((peer, claimed)) = claimed else {
            core.counters.invalid_handshake += 1;
            return;
        };
        let Some((timestamp, responder)) = peer
            .static_static(identity)
            .and_then(|static_static| claimed.authenticate(&static_static))
        else {
            core.counters.invalid_handshake += 1;
            return;
        };
        if timestamp <= peer.latest_timestamp {
            core.counters.replayed_initiation += 1;
            return;
        }
        if let Some(last) = peer.last_initiation_received
            && now.instant < last + core.limits.initiation_interval
        {
            core.counters.flooded_initiation += 1;
            return;
        }
        peer.latest_timestamp = timestamp;
        peer.last_initiation_received = Some(now.instant);
        Core::authenticated(now, peer, from, datagram.len());

        let id = peer.link.id();
        let local_index = core.new_index(id);
        let remote_index = responder.remote_index;
        let mut message = [0; RESPONSE_LEN];
        let Some(keys) = responder.create_response(
            &mut *core.rng,
            peer.preshared_key.as_ref(),
            local_index,
            &mut message,
        ) else {
            core.indices.remove(&local_index);
            core.counters.invalid_handshake += 1;
            return;
        };
        let indices = (local_index, remote_index);
        let session = core.new_session(now, peer, Role::Responder, indices, &keys);
        peer.link.install_next(&session);
        core.send_handshake_message(now, peer, from, &mut message);
        core.log(Event::InitiationReceived { peer: id });
        core.sweep_sessions(peer);
        core.schedule(peer);
    }

    /// Message 2: the peer answers our initiation.
    pub(super) fn handle_response(&mut self, now: Now, from: Endpoint, datagram: &[u8]) {
        let core = &mut self.core;
        let Some(message) = Response::parse(datagram) else {
            return;
        };
        if !core.admit(now, from, datagram) {
            return;
        }
        let peer = core
            .indices
            .get(&message.receiver_index())
            .and_then(|id| self.peers.get_mut(id));
        let Some(peer) = peer else {
            core.counters.unknown_index += 1;
            return;
        };
        let Some((identity, _)) = &core.identity else {
            return;
        };
        let keys = peer
            .initiation
            .as_ref()
            .filter(|initiation| initiation.local_index == message.receiver_index())
            .and_then(|initiation| {
                initiation.consume_response(identity, peer.preshared_key.as_ref(), message)
            });
        let Some(keys) = keys else {
            core.counters.invalid_handshake += 1;
            return;
        };
        Core::authenticated(now, peer, from, datagram.len());
        // The index stays in use, now by the session.
        peer.initiation = None;
        let indices = (message.receiver_index(), message.sender_index());
        let session = core.new_session(now, peer, Role::Initiator, indices, &keys);
        core.outputs.push_back(Queued::Install {
            peer: peer.link.id(),
            session,
            now,
        });
        core.schedule(peer);
    }

    /// Makes a session that we initiated the current one, now that its index is known outside.
    pub(super) fn install(&mut self, id: PeerId, session: &Arc<Session<K>>, now: Now) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        // Cleared away since, by `down`, a new private key or wiping.
        if !peer.session_indices.contains(&session.receiver_index()) {
            return;
        }
        let Some((identity, _)) = &self.core.identity else {
            return;
        };
        let taken = now.instant.saturating_duration_since(peer.initiated_at);
        peer.round_trip = Some(taken);
        peer.link
            .install_current(session, peer.initiated_at, &identity.public);
        self.core.complete_handshake(now, peer);
        // The responder sends nothing before it has heard from us on the new session.
        self.core.send_keepalive(now, peer);
        self.core.schedule(peer);
    }

    /// Message 3: the peer is under load and gives us a cookie for our next attempt.
    pub(super) fn handle_cookie_reply(&mut self, now: Now, datagram: &[u8]) {
        let core = &mut self.core;
        let Some(reply) = CookieReply::parse(datagram) else {
            return;
        };
        let peer = core
            .indices
            .get(&reply.receiver_index())
            .and_then(|id| self.peers.get_mut(id));
        let Some(peer) = peer else {
            core.counters.unknown_index += 1;
            return;
        };
        if peer
            .cookie
            .consume_reply(now.instant, peer.link.public_key(), reply)
        {
            core.log(Event::CookieReceived {
                peer: peer.link.id(),
            });
        } else {
            core.counters.invalid_cookie_reply += 1;
        }
    }
}
