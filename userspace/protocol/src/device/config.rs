//! What configuration changes: keys, peers and their settings, up and down (kernel, `netlink.c`).
//!
//! No call here takes the time or does cryptography worth mentioning. What a change calls for (a
//! first keepalive, packets that wait for an endpoint) is done by the next `handle_timeout`, which
//! `poll_timeout` asks for at once.

use std::collections::BTreeSet;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::{Core, Device, Event, Peer, Routes};
use crate::allowed_ips::Prefix;
use crate::cookie;
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::noise::{Identity, Tai64n};
use crate::peer::{Endpoint, PeerId, PeerLink};
use crate::session::Role;
use crate::time::Instant;
use crate::timers::Timers;
use crate::transport::TransportKey;

/// Why a peer was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddPeerError {
    /// The key is the device's own. `wg(8)` expects this to be ignored without an error.
    #[error("the peer's public key is the device's own")]
    OwnKey,
}

/// A peer as `wg show` prints it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerInfo {
    /// The peer's id.
    pub id: PeerId,
    /// Its public key.
    pub public_key: PublicKey,
    /// Its preshared key, if one is set.
    pub preshared_key: Option<PresharedKey>,
    /// Where it is, if known.
    pub endpoint: Option<Endpoint>,
    /// Unix time of the last handshake, if there was one.
    pub last_handshake: Option<Duration>,
    /// What the last handshake took to the peer and back, both sides' work and queues included: from our initiation to the
    /// response, or from our response to the first packet on the session, which an initiator sends at once.
    pub round_trip: Option<Duration>,
    /// UDP payload bytes sent to it.
    pub tx_bytes: u64,
    /// UDP payload bytes received from it.
    pub rx_bytes: u64,
    /// Persistent keepalive interval in seconds; 0 is off.
    pub keepalive: u16,
    /// Its prefixes, IPv4 first, by address.
    pub allowed_ips: Vec<Prefix>,
    /// Our role in the current session, if there is one.
    pub session: Option<Role>,
    /// Whether a handshake is in flight or scheduled.
    pub handshake_pending: bool,
    /// Packets waiting for a session.
    pub staged: usize,
    /// Packets dropped while waiting.
    pub staged_dropped: u64,
}

impl<K: TransportKey> Device<K> {
    /// Sets or removes the private key. A peer with the same key is removed; sessions stop sending
    /// (they still receive), and each peer needs a new handshake. The same key again changes nothing.
    pub fn set_private_key(&mut self, key: Option<PrivateKey>) {
        let current = self.core.identity.as_ref().map(|(id, _)| &id.private);
        if current == key.as_ref() {
            return;
        }
        self.core.identity = key.map(|key| {
            let identity = Identity::new(key);
            let checker = cookie::Checker::new(&identity.public);
            (identity, checker)
        });
        if let Some(public_key) = self.public_key()
            && let Some(&id) = self.by_key.get(&public_key)
        {
            self.remove_peer(id);
            self.core.log(Event::SelfPeerRemoved { public_key });
        }
        for peer in self.peers.values_mut() {
            peer.static_static = None;
            self.core.drop_initiation(peer);
            peer.timers.retry_at = None;
            peer.timers.deferred_at = None;
            peer.last_handshake_sent = None;
            for &index in &peer.session_indices {
                if let Some(session) = self.core.sessions.get(index) {
                    session.retire();
                }
            }
            self.core.schedule(peer);
            if peer.link.has_staged() {
                self.core.look_soon(peer);
            }
        }
    }

    /// The private key, if one is set.
    #[must_use]
    pub fn private_key(&self) -> Option<&PrivateKey> {
        self.core.identity.as_ref().map(|(id, _)| &id.private)
    }

    /// The public key, if a private key is set.
    #[must_use]
    pub fn public_key(&self) -> Option<PublicKey> {
        self.core.identity.as_ref().map(|(id, _)| id.public)
    }

    /// Sets the inner MTU in bytes, which padding never exceeds; 0 means unknown.
    pub fn set_mtu(&mut self, mtu: usize) {
        self.core.mtu = mtu;
    }

    /// Adds a peer; the id of the existing one if there is one with this key.
    ///
    /// # Errors
    /// [`AddPeerError::OwnKey`] if it would be this device itself.
    pub fn add_peer(&mut self, public_key: PublicKey) -> Result<PeerId, AddPeerError> {
        if self.public_key() == Some(public_key) {
            return Err(AddPeerError::OwnKey);
        }
        let entry = match self.by_key.entry(public_key) {
            Entry::Occupied(entry) => return Ok(*entry.get()),
            Entry::Vacant(entry) => entry,
        };
        let id = *entry.insert(PeerId::new(self.next_peer));
        self.next_peer += 1;
        let peer = Peer {
            link: Arc::new(PeerLink::new(id, public_key, !self.core.up)),
            preshared_key: None,
            static_static: None,
            initiation: None,
            initiated_at: Instant::default(),
            latest_timestamp: Tai64n::default(),
            last_initiation_received: None,
            sent_timestamp: Tai64n::default(),
            last_handshake_sent: None,
            last_handshake: None,
            round_trip: None,
            cookie: cookie::Maker::default(),
            timers: Timers::default(),
            deadline: None,
            session_indices: Vec::new(),
            keepalive: 0,
            allowed_ips: BTreeSet::new(),
        };
        self.peers.insert(id, peer);
        Ok(id)
    }

    /// The peer with this public key.
    #[must_use]
    pub fn peer_by_key(&self, public_key: &PublicKey) -> Option<PeerId> {
        self.by_key.get(public_key).copied()
    }

    /// The shared side of a peer, for data threads.
    #[must_use]
    pub fn link(&self, peer: PeerId) -> Option<Arc<PeerLink<K>>> {
        self.peers.get(&peer).map(|peer| Arc::clone(&peer.link))
    }

    /// Removes a peer with its sessions, prefixes and staged packets. False if there was none.
    pub fn remove_peer(&mut self, peer: PeerId) -> bool {
        let Some(mut peer) = self.peers.remove(&peer) else {
            return false;
        };
        self.by_key.remove(peer.link.public_key());
        self.routes_stale |= !peer.allowed_ips.is_empty();
        for prefix in &peer.allowed_ips {
            self.allowed_ips.remove(prefix);
        }
        peer.link.set_closed(true);
        self.core.clear_keys(&mut peer);
        self.core.set_deadline(&mut peer, None);
        true
    }

    /// Removes all peers.
    pub fn remove_all_peers(&mut self) {
        let all: Vec<PeerId> = self.peers.keys().copied().collect();
        for peer in all {
            self.remove_peer(peer);
        }
    }

    /// Number of peers.
    #[must_use]
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// Sets or removes (`None` or all zero) the preshared key. The next handshake uses it; the
    /// session goes on.
    pub fn set_preshared_key(&mut self, peer: PeerId, key: Option<PresharedKey>) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.preshared_key = key.filter(|key| !key.is_zero());
        }
    }

    /// Sets where the peer is. Our own source address towards it is chosen anew if that changed.
    pub fn set_endpoint(&mut self, peer: PeerId, address: SocketAddr) {
        let Some(peer) = self.peers.get_mut(&peer) else {
            return;
        };
        let known = peer.link.endpoint();
        if known.is_none_or(|known| known.address != address) {
            peer.link.set_endpoint(Endpoint::new(address));
        }
        if peer.link.has_staged() {
            self.core.look_soon(peer);
        }
    }

    /// Sets the persistent keepalive interval in seconds; 0 turns it off. Turned on, it sends the
    /// first one at once.
    pub fn set_keepalive(&mut self, peer: PeerId, seconds: u16) {
        let Some(peer) = self.peers.get_mut(&peer) else {
            return;
        };
        peer.keepalive = seconds;
        let interval = (seconds != 0).then(|| Duration::from_secs(seconds.into()));
        peer.timers.set_persistent(interval, &peer.link.activity);
        self.core.schedule(peer);
    }

    /// Gives a prefix to a peer, taking it from the one that has it.
    pub fn add_allowed_ip(&mut self, peer: PeerId, prefix: Prefix) {
        let Some(owner) = self.peers.get_mut(&peer) else {
            return;
        };
        if !owner.allowed_ips.insert(prefix) {
            return;
        }
        self.routes_stale = true;
        if let Some(loser) = self.allowed_ips.insert(prefix, Arc::clone(&owner.link))
            && let Some(loser) = self.peers.get_mut(&loser.id())
        {
            loser.allowed_ips.remove(&prefix);
        }
    }

    /// Takes a prefix from a peer; false if the peer does not have it.
    pub fn remove_allowed_ip(&mut self, peer: PeerId, prefix: Prefix) -> bool {
        let Some(owner) = self.peers.get_mut(&peer) else {
            return false;
        };
        if !owner.allowed_ips.remove(&prefix) {
            return false;
        }
        self.routes_stale = true;
        self.allowed_ips.remove(&prefix);
        true
    }

    /// Takes all prefixes from a peer, to be followed by those that replace them.
    pub fn replace_allowed_ips(&mut self, peer: PeerId) {
        let Some(owner) = self.peers.get_mut(&peer) else {
            return;
        };
        self.routes_stale |= !owner.allowed_ips.is_empty();
        for prefix in std::mem::take(&mut owner.allowed_ips) {
            self.allowed_ips.remove(&prefix);
        }
    }

    /// Number of prefixes of all peers.
    #[must_use]
    pub fn allowed_ip_count(&self) -> usize {
        self.allowed_ips.len()
    }

    /// The routes as of now. Made anew only after changes, so ask once per batch of them; it takes
    /// time in proportion to the number of prefixes.
    #[must_use]
    pub fn routes(&mut self) -> Arc<Routes<K>> {
        if std::mem::take(&mut self.routes_stale) {
            self.routes = Arc::new(self.allowed_ips.to_table());
        }
        Arc::clone(&self.routes)
    }

    /// All peers, in order of creation.
    pub fn peers(&self) -> impl Iterator<Item = PeerInfo> {
        self.peers.values().map(Peer::info)
    }

    /// One peer.
    #[must_use]
    pub fn peer(&self, peer: PeerId) -> Option<PeerInfo> {
        self.peers.get(&peer).map(Peer::info)
    }

    /// The shared sides of all peers, in order of creation.
    pub fn links(&self) -> impl Iterator<Item = &Arc<PeerLink<K>>> {
        self.peers.values().map(|peer| &peer.link)
    }

    /// Whether the device is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.core.up
    }

    /// Starts: packets are taken, and peers with a persistent keepalive are contacted.
    pub fn up(&mut self) {
        if std::mem::replace(&mut self.core.up, true) {
            return;
        }
        for peer in self.peers.values_mut() {
            peer.link.set_closed(false);
            self.core.schedule(peer);
        }
    }

    /// Stops: sessions and handshakes are gone, timers stand still, staged packets are dropped.
    pub fn down(&mut self) {
        self.core.up = false;
        for peer in self.peers.values_mut() {
            peer.link.set_closed(true);
            peer.timers.stop(&peer.link.activity);
            peer.last_handshake_sent = None;
            self.core.clear_keys(peer);
            self.core.schedule(peer);
        }
    }
}

impl<K> Peer<K> {
    fn info(&self) -> PeerInfo {
        let link = &self.link;
        PeerInfo {
            id: link.id(),
            public_key: *link.public_key(),
            preshared_key: self.preshared_key.clone(),
            endpoint: link.endpoint(),
            last_handshake: self.last_handshake,
            round_trip: self.round_trip,
            tx_bytes: link.tx_bytes(),
            rx_bytes: link.rx_bytes(),
            keepalive: self.keepalive,
            allowed_ips: self.allowed_ips.iter().copied().collect(),
            session: link.current().as_ref().map(|session| session.role()),
            handshake_pending: self.timers.handshake_pending(),
            staged: link.staged().len(),
            staged_dropped: link.staged_dropped(),
        }
    }
}

impl<K: TransportKey> Core<K> {
    /// Has the peer looked at by the next `handle_timeout`.
    fn look_soon(&mut self, peer: &mut Peer<K>) {
        if self.up {
            self.set_deadline(peer, Some(Instant::default()));
        }
    }
}
