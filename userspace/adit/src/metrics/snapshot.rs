//! The numbers at one moment.

use std::time::Duration;

use adit_protocol::PublicKey;

use crate::inspect::answer::Device;

/// What can be measured.
pub trait Measurable {
    /// The numbers by now, with at most `peers` peers one by one.
    fn measure(&self, peers: usize) -> Snapshot;
}

/// A tunnel at one moment. Nothing in it is secret.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Whether the interface is up.
    pub up: bool,
    /// Data path and counters, as `get=1` tells them; without keys and peers.
    pub device: Device,
    /// Peers that there are.
    pub peer_count: usize,
    /// Those that have a session to send on.
    pub sessions: usize,
    /// Those that wait for an answer to a handshake, or for the time to start one.
    pub handshakes_pending: usize,
    /// Packets that wait for a session.
    pub staged_packets: usize,
    /// Peers one by one; not all if there are too many.
    pub peers: Vec<Peer>,
}

/// A peer in [`Snapshot`].
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name.
    pub public_key: PublicKey,
    /// UDP payload bytes received from it.
    pub received: u64,
    /// UDP payload bytes sent to it.
    pub sent: u64,
    /// Unix time of the latest handshake, if there was one.
    pub latest_handshake: Option<Duration>,
    /// What it took to the peer and back.
    pub round_trip: Option<Duration>,
    /// Whether there is a session to send on.
    pub session: bool,
}

impl Snapshot {
    /// Keeps `limit` peers: those that were ever heard of first, by key within these, so that the same ones are kept each time.
    pub fn limit_peers(&mut self, limit: usize) {
        let order = |peer: &Peer| (peer.latest_handshake.is_none(), peer.public_key);
        if limit == 0 {
            self.peers.clear();
        } else if self.peers.len() > limit {
            self.peers.select_nth_unstable_by_key(limit - 1, order);
            self.peers.truncate(limit);
        }
        self.peers.sort_unstable_by_key(order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_were_heard_of_are_kept() {
        let peer = |number: u8, heard: bool| Peer {
            public_key: PublicKey::from_bytes([number; 32]),
            received: 0,
            sent: 0,
            latest_handshake: heard.then_some(Duration::from_secs(1)),
            round_trip: None,
            session: false,
        };
        let kept = |limit| {
            let mut snapshot = Snapshot {
                peers: vec![peer(4, false), peer(3, true), peer(2, false), peer(1, true)],
                ..Snapshot::default()
            };
            snapshot.limit_peers(limit);
            let keys = snapshot.peers.iter();
            keys.map(|peer| peer.public_key.as_bytes()[0])
                .collect::<Vec<_>>()
        };
        assert!(kept(0).is_empty());
        assert_eq!(kept(1), [1]);
        assert_eq!(kept(3), [1, 3, 2]);
        assert_eq!(kept(9), [1, 3, 2, 4]);
    }
}
