//! Message 4 without data threads: for library use and for simulation. The daemon does the same in
//! batches, with [`Session`](crate::Session) and [`PeerLink`](crate::PeerLink).

use std::sync::Arc;

use thiserror::Error;

use super::{Core, Device, Output};
use crate::inner::{InnerPacket, InnerPacketError, padded_len};
use crate::message::{DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, TAG_LEN};
use crate::peer::{Endpoint, PeerId, PeerLink};
use crate::session::Session;
use crate::time::Now;
use crate::transport::TransportKey;

/// Why a packet was not taken for sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SendError {
    /// The device is down.
    #[error("the device is down")]
    Down,
    /// Not an IP packet.
    #[error("not an IP packet")]
    InvalidPacket(#[from] InnerPacketError),
    /// No peer owns the destination address.
    #[error("no peer owns the destination address")]
    NoRoute,
    /// The peer's address is not known.
    #[error("the peer has no endpoint")]
    NoEndpoint,
}

impl<K: TransportKey> Device<K> {
    /// Sends an inner IP packet to the peer that owns its destination. Without a session it is staged
    /// and a handshake begins.
    ///
    /// # Errors
    /// [`SendError`] when the packet cannot be sent to anyone.
    pub fn send_packet(&mut self, now: Now, packet: &[u8]) -> Result<(), SendError> {
        if !self.core.up {
            return Err(SendError::Down);
        }
        let inner = InnerPacket::parse(packet)?;
        let routes = self.routes();
        let link = routes.lookup(inner.destination).ok_or(SendError::NoRoute)?;
        let to = link.endpoint().ok_or(SendError::NoEndpoint)?;
        let current = link.current();
        let sendable = current
            .as_ref()
            .filter(|session| session.can_send(now.instant) && !link.has_staged())
            .and_then(|session| Some((session, session.reserve(1)?)));
        let needed = match sendable {
            Some((session, counter)) => self.core.seal_to(now, link, session, to, counter, packet),
            None => link.stage(packet),
        };
        if needed {
            self.look_at(now, link.id());
        }
        Ok(())
    }

    /// Seals the packets staged for a peer, as far as its session can send them. The answer to
    /// [`Output::FlushStaged`] where there are no data threads.
    pub fn flush_staged(&mut self, now: Now, peer: PeerId) {
        let Some(link) = self.link(peer) else {
            return;
        };
        let Some(to) = link.endpoint() else {
            return;
        };
        let current = link.current();
        let mut needed = false;
        let mut staged = link.staged();
        while !staged.is_empty() {
            let session = current
                .as_ref()
                .filter(|session| session.can_send(now.instant));
            // A counter first: a packet once taken out must go.
            let Some((session, counter)) =
                session.and_then(|session| Some((session, session.reserve(1)?)))
            else {
                needed = true;
                break;
            };
            if let Some(packet) = staged.pop_front() {
                needed |= self.core.seal_to(now, &link, session, to, counter, &packet);
            }
        }
        drop(staged);
        if needed {
            self.look_at(now, peer);
        }
    }

    /// Message 4: data from a peer.
    pub(super) fn handle_data(&mut self, now: Now, from: Endpoint, datagram: &mut [u8]) {
        let core = &mut self.core;
        let Some(header) = DataHeader::parse(datagram) else {
            return;
        };
        let session = core
            .sessions
            .get(header.receiver_index)
            .filter(|session| session.can_receive(now.instant));
        let Some(session) = session else {
            core.counters.unknown_session += 1;
            return;
        };
        let length = datagram.len() as u64;
        let body = &mut datagram[DATA_HEADER_LEN..];
        if !session.receiving_key().open_in_place(header.counter, body) {
            core.counters.invalid_data += 1;
            return;
        }
        if !session.replay().accept(header.counter) {
            core.counters.replayed_data += 1;
            return;
        }
        let plaintext = &body[..body.len() - TAG_LEN];
        let link = Arc::clone(session.peer());
        link.set_endpoint(from);
        let data_packets = u64::from(!plaintext.is_empty());
        if link.received(now.instant, &session, data_packets, length) {
            self.look_at(now, link.id());
        }
        if !plaintext.is_empty() {
            self.deliver(&link, plaintext);
        }
    }

    /// Hands an inner packet out, if it is one and its source belongs to the peer.
    fn deliver(&mut self, link: &Arc<PeerLink<K>>, plaintext: &[u8]) {
        let Ok(inner) = InnerPacket::parse(plaintext) else {
            self.core.counters.invalid_packet += 1;
            return;
        };
        // The longest prefix of the whole device counts, not just any prefix of this peer.
        let routes = self.routes();
        let owner = routes.lookup(inner.source);
        if !owner.is_some_and(|owner| Arc::ptr_eq(owner, link)) {
            self.core.counters.wrong_source += 1;
            return;
        }
        self.core.emit(Output::Packet {
            peer: link.id(),
            payload: plaintext[..inner.length].into(),
        });
    }
}

impl<K: TransportKey> Core<K> {
    /// Seals one packet with a reserved counter and sends it. True when the peer needs a look.
    fn seal_to(
        &mut self,
        now: Now,
        link: &PeerLink<K>,
        session: &Session<K>,
        to: Endpoint,
        counter: u64,
        packet: &[u8],
    ) -> bool {
        let padded = padded_len(packet.len(), self.mtu);
        let mut payload = vec![0; DATA_OVERHEAD + padded];
        let (head, body) = payload.split_at_mut(DATA_HEADER_LEN);
        let header = DataHeader {
            receiver_index: session.peer_index(),
            counter,
        };
        head.copy_from_slice(&header.to_bytes());
        body[..packet.len()].copy_from_slice(packet);
        session.sending_key().seal_in_place(counter, body);
        let bytes = payload.len() as u64;
        self.emit(Output::Transmit {
            to,
            peer: Some(link.id()),
            payload: payload.into(),
        });
        link.sent(now.instant, session, 1, bytes)
    }
}
