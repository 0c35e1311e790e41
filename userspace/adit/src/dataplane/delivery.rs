//! The second pass over what was received: replay, owner, ECN, and into the TUN device, in order.

use std::sync::Arc;

use adit_kernel::udp::Received;
use adit_packet::aead::TAG_LEN;
use adit_packet::ecn;
use adit_protocol::message::{DATA_HEADER_LEN, MessageType};
use adit_protocol::{Endpoint, InnerPacket, Instant, Source};
use arrayvec::ArrayVec;

use super::counters::Ingress as Counters;
use super::opening::{Opened, Parcel, Verdict};
use super::tun_writer::TunWriter;
use super::{Dataplane, HandshakeMessage, Notice, Routes, Session};

/// Inner packets that are coalesced together.
const PACKETS: usize = 256;

/// What comes after opening, in order.
#[derive(Debug)]
pub(super) struct Output {
    shared: Arc<Dataplane>,
    queue: usize,
    writer: TunWriter,
}

impl Output {
    pub(super) fn new(shared: Arc<Dataplane>, queue: usize) -> Self {
        Self {
            writer: TunWriter::new(Arc::clone(&shared), queue),
            shared,
            queue,
        }
    }

    /// Whether a write found the device deleted.
    pub(super) fn is_device_gone(&self) -> bool {
        self.writer.is_device_gone()
    }

    fn counters(&self) -> &Counters {
        &self.shared.counters.of(self.queue).ingress
    }

    /// Delivers what a UDP socket has received.
    pub(super) fn deliver_parcel(&mut self, parcel: &mut Parcel) {
        let Parcel {
            received,
            opened,
            now,
            ..
        } = parcel;
        let count = self.deliver(*now, opened, received.messages());
        let counters = self.counters();
        counters.udp_received_datagrams.add_len(count.datagrams);
        counters.udp_received_data.add_len(count.data);
    }

    /// Writes what passes every check to the TUN device, and hands handshake messages on. The
    /// messages are those that were opened.
    pub(super) fn deliver<'a>(
        &mut self,
        now: Instant,
        opened: &mut Opened,
        messages: impl Iterator<Item = Received<'a>>,
    ) -> Count {
        let shared = Arc::clone(&self.shared);
        let counters = &shared.counters.of(self.queue).ingress;
        let mut count = Count {
            datagrams: 0,
            data: opened.check_replay(counters),
        };
        let routes = shared.routes.load();
        let mut packets = Packets::new();
        let mut arrival: Option<Arrival<'_>> = None;
        let mut verdicts = opened.verdicts();
        for message in messages {
            if message.truncated {
                counters.drop_ingress_truncated.add(1);
                continue;
            }
            if message.data.is_empty() {
                count.datagrams += 1;
                counters.drop_ingress_empty.add(1);
                continue;
            }
            let origin = Origin::of(&message);
            for datagram in message.data.chunks_mut(message.segment_size) {
                count.datagrams += 1;
                let Some((verdict, session)) = verdicts.next() else {
                    // More than the kernel ever puts into a message.
                    counters.drop_ingress_truncated.add(1);
                    continue;
                };
                let session = match (verdict, session) {
                    (Verdict::Authentic, Some(session)) => session,
                    (Verdict::NotData, _) => {
                        self.handshake(&origin, datagram);
                        continue;
                    }
                    _ => continue,
                };
                let current = match &mut arrival {
                    Some(arrival) if arrival.takes(session, &origin) => arrival,
                    _ => {
                        self.end(now, arrival.take());
                        arrival.insert(Arrival::new(session, origin))
                    }
                };
                if let Some(packet) = current.packet(counters, &routes, datagram) {
                    if packets.is_full() {
                        self.writer.write(&mut packets);
                    }
                    packets.push(packet);
                }
            }
        }
        self.end(now, arrival);
        self.writer.write(&mut packets);
        drop(verdicts);
        opened.clear();
        count
    }

    /// Tells the peer's link what has arrived, and the control thread if that must act.
    fn end(&self, now: Instant, arrival: Option<Arrival<'_>>) {
        let Some(arrival) = arrival else {
            return;
        };
        let link = arrival.session.peer();
        link.set_endpoint(arrival.origin.endpoint);
        let (packets, bytes) = (arrival.data_packets, arrival.bytes as u64);
        if link.received(now, arrival.session, packets, bytes) {
            self.shared.notify(Notice::Attend(link.id()));
        }
    }

    fn handshake(&self, origin: &Origin, datagram: &[u8]) {
        let counters = self.counters();
        let message = match MessageType::of(datagram) {
            Ok(_) => HandshakeMessage::new(origin.endpoint, datagram),
            Err(_) => None,
        };
        let Some(message) = message else {
            return counters.drop_ingress_malformed.add(1);
        };
        if self.shared.queue_handshake(message) {
            counters.handshake_messages.add(1);
        } else {
            counters.drop_ingress_handshake_queue.add(1);
        }
    }
}

/// Datagrams in a row of one session, from one place, all of them authentic and fresh.
#[derive(Debug)]
struct Arrival<'a> {
    session: &'a Arc<Session>,
    origin: Origin,
    bytes: usize,
    data_packets: u64,
}

impl<'a> Arrival<'a> {
    fn new(session: &'a Arc<Session>, origin: Origin) -> Self {
        Self {
            session,
            origin,
            bytes: 0,
            data_packets: 0,
        }
    }

    fn takes(&self, session: &Arc<Session>, origin: &Origin) -> bool {
        Arc::ptr_eq(self.session, session) && self.origin == *origin
    }

    /// Counts a datagram in, and finds the inner packet, if there is one that may go on.
    fn packet<'d>(
        &mut self,
        counters: &Counters,
        routes: &Routes,
        datagram: &'d mut [u8],
    ) -> Option<&'d mut [u8]> {
        self.bytes += datagram.len();
        let end = datagram.len().checked_sub(TAG_LEN)?;
        let plaintext = datagram.get_mut(DATA_HEADER_LEN..end)?;
        if plaintext.is_empty() {
            return None;
        }
        self.data_packets += 1;
        let Ok(inner) = InnerPacket::parse(plaintext) else {
            counters.drop_ingress_inner_malformed.add(1);
            return None;
        };
        let link = self.session.peer();
        if !routes
            .lookup(inner.source)
            .is_some_and(|owner| Arc::ptr_eq(owner, link))
        {
            counters.drop_ingress_inner_source.add(1);
            return None;
        }
        let packet = &mut plaintext[..inner.length];
        if ecn::decapsulate(self.origin.ecn, packet) == ecn::Verdict::Drop {
            counters.drop_ingress_ecn.add(1);
            return None;
        }
        Some(packet)
    }
}

/// What a batch held.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    pub(super) datagrams: usize,
    /// Data messages for a live session.
    pub(super) data: usize,
}

/// Inner packets on their way to the TUN device.
pub(super) type Packets<'a> = ArrayVec<&'a mut [u8], PACKETS>;

/// Where a message came from, as every datagram in it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Origin {
    endpoint: Endpoint,
    ecn: u8,
}

impl Origin {
    fn of(message: &Received<'_>) -> Self {
        let source = message
            .local
            .map(|(address, interface)| Source { address, interface });
        Self {
            endpoint: Endpoint {
                address: message.from,
                source,
            },
            ecn: message.ecn,
        }
    }
}
