//! The numbers for `--metrics`.

use super::Control;
use crate::inspect::answer::Device;
use crate::metrics::snapshot::{Measurable, Peer, Snapshot};

impl Measurable for Control {
    fn measure(&self, peers: usize) -> Snapshot {
        // As `get=1` tells them, so that either has all that the other has.
        let mut state = String::with_capacity(8192);
        self.describe_state(&mut state);
        state.push_str("errno=0\n\n");
        let mut snapshot = Snapshot {
            up: self.up,
            // Read by what tests read it with: it cannot fail.
            device: Device::parse(state.as_bytes()).unwrap_or_default(),
            peer_count: self.device.peer_count(),
            ..Snapshot::default()
        };
        for peer in self.device.peers() {
            snapshot.sessions += usize::from(peer.session.is_some());
            snapshot.handshakes_pending += usize::from(peer.handshake_pending);
            snapshot.staged_packets += peer.staged;
            snapshot.peers.push(Peer {
                public_key: peer.public_key,
                received: peer.rx_bytes,
                sent: peer.tx_bytes,
                latest_handshake: peer.last_handshake,
                round_trip: peer.round_trip,
                session: peer.session.is_some(),
            });
        }
        snapshot.limit_peers(peers);
        snapshot
    }
}
