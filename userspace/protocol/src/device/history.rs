//! What a peer's past means to the process that takes the device over.

use std::sync::Arc;
use std::time::Duration;

use super::Device;
use crate::noise::Tai64n;
use crate::peer::{Endpoint, PeerId};
use crate::time::Instant;
use crate::transport::TransportKey;

/// What is known of a peer beside its configuration. Nothing in it is secret, and its sessions are
/// not in it: they end with the process that has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerHistory {
    /// Where it is, and by which of our addresses it is reached.
    pub endpoint: Option<Endpoint>,
    /// UDP payload bytes sent to it.
    pub tx_bytes: u64,
    /// UDP payload bytes received from it.
    pub rx_bytes: u64,
    /// Unix time of the last handshake, if there was one.
    pub last_handshake: Option<Duration>,
    /// TAI64N of its latest initiation: earlier ones are replays.
    pub latest_timestamp: [u8; 12],
    /// TAI64N of our latest initiation: the peer takes earlier ones for replays.
    pub sent_timestamp: [u8; 12],
    /// It has a session to send on, or is about to have one.
    pub live: bool,
}

impl<K: TransportKey> Device<K> {
    /// A peer's past at `now`; `None` if there is no such peer.
    #[must_use]
    pub fn history(&self, now: Instant, peer: PeerId) -> Option<PeerHistory> {
        let peer = self.peers.get(&peer)?;
        let current = peer.link.current();
        let sends = current
            .as_ref()
            .is_some_and(|session| session.can_send(now));
        Some(PeerHistory {
            endpoint: peer.link.endpoint(),
            tx_bytes: peer.link.tx_bytes(),
            rx_bytes: peer.link.rx_bytes(),
            last_handshake: peer.last_handshake,
            latest_timestamp: peer.latest_timestamp.to_bytes(),
            sent_timestamp: peer.sent_timestamp.to_bytes(),
            live: sends || peer.timers.handshake_pending(),
        })
    }

    /// Goes on from a peer's past: what it counts is added, and a peer that was live is sent an
    /// initiation as soon as the device is up. Without one a peer that sends would notice only after
    /// 15 s that its session leads nowhere.
    pub fn restore(&mut self, peer: PeerId, history: &PeerHistory) {
        let Some(peer) = self.peers.get_mut(&peer) else {
            return;
        };
        let link = Arc::clone(&peer.link);
        if let Some(endpoint) = history.endpoint {
            link.set_endpoint(endpoint);
        }
        link.restore_bytes(history.tx_bytes, history.rx_bytes);
        peer.last_handshake = history.last_handshake.or(peer.last_handshake);
        let latest = Tai64n::from_bytes(history.latest_timestamp);
        peer.latest_timestamp = peer.latest_timestamp.max(latest);
        let sent = Tai64n::from_bytes(history.sent_timestamp);
        peer.sent_timestamp = peer.sent_timestamp.max(sent);
        if history.live {
            peer.timers.deferred_at = Some(Instant::default());
        }
        self.core.schedule(peer);
    }
}
