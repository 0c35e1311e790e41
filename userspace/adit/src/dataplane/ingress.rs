//! Network → TUN device: receive, open, check, coalesce, write; run to completion.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use adit_kernel::alloc::allocations_on_this_thread;
use adit_kernel::poll::{Interest, PollFd, poll};
use adit_kernel::udp::{Received, RecvBatch, UdpSocket, UdpSockets};
use adit_kernel::xsk::Receiver;
use adit_packet::aead::{Record, TAG_LEN, open_batch};
use adit_packet::ecn;
use adit_protocol::message::{DATA_HEADER_LEN, DataHeader, MessageType};
use adit_protocol::{Endpoint, InnerPacket, Instant, Source};
use arrayvec::ArrayVec;

use super::tun_writer::TunWriter;
use super::{Dataplane, HandshakeMessage, Notice, ReceiverChange};
use crate::instant;

/// Messages of one `recvmmsg`, each up to 64 datagrams. More would leave the L2 cache before they
/// are opened.
const MESSAGES: usize = 16;
/// Times a socket is read before the other one gets its turn.
const ROUNDS: usize = 16;
/// Datagrams of one session opened at once.
const GROUP: usize = 128;
/// Inner packets that are coalesced together.
const PACKETS: usize = 256;

/// AF_XDP sockets at most; those beyond are closed, and their queues' packets go to the UDP socket.
const RECEIVERS: usize = u128::BITS as usize;

/// The ingress thread's state.
#[derive(Debug)]
pub(super) struct Ingress {
    shared: Arc<Dataplane>,
    writer: TunWriter,
}

/// Which of the things waited for have something.
#[derive(Debug, Default)]
struct Ready {
    /// The control thread has changed sockets or receivers.
    changes: bool,
    /// One bit for each receiver.
    failed: u128,
    /// IPv4 and IPv6, as the sockets iterate.
    udp: ArrayVec<bool, 2>,
}

impl Ingress {
    pub(super) fn new(shared: Arc<Dataplane>) -> Self {
        let writer = TunWriter::new(Arc::clone(&shared));
        Self { shared, writer }
    }

    /// Works until the data plane is stopped or the device is gone.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut batch = RecvBatch::new(MESSAGES);
        let mut receivers: ArrayVec<Box<Receiver>, RECEIVERS> = ArrayVec::new();
        let allocations_before = allocations_on_this_thread();
        while !shared.is_stopping() {
            let sockets = shared.sockets.load_full();
            let ready = match self.wait(sockets.as_deref(), &receivers) {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "cannot wait for the UDP sockets");
                    return shared.notify(Notice::DeviceGone);
                }
            };
            for receiver in &mut receivers {
                self.drain_receiver(receiver);
            }
            let sockets = sockets.as_deref().into_iter().flat_map(UdpSockets::iter);
            for (socket, _) in sockets.zip(ready.udp).filter(|(_, ready)| *ready) {
                self.drain(socket, &mut batch);
            }
            for position in (0..receivers.len()).rev() {
                if ready.failed & 1 << position == 0 {
                    continue;
                }
                let ifindex = receivers.remove(position).options().ifindex;
                shared.notify(Notice::ReceiverFailed { ifindex });
            }
            if ready.changes {
                change(&mut receivers, shared.take_receiver_changes());
            }
            if self.writer.is_device_gone() {
                return shared.notify(Notice::DeviceGone);
            }
            let allocated = allocations_on_this_thread() - allocations_before;
            shared.counters.ingress.ingress_allocations.set(allocated);
        }
    }

    /// Blocks until a socket is readable or the control thread has something new for us.
    fn wait(&self, sockets: Option<&UdpSockets>, receivers: &[Box<Receiver>]) -> io::Result<Ready> {
        let wake = &self.shared.wake_ingress;
        let mut sources: ArrayVec<PollFd<'_>, { RECEIVERS + 3 }> = ArrayVec::new();
        sources.push(PollFd::new(wake.as_fd(), Interest::Read));
        for receiver in receivers {
            sources.push(PollFd::new(receiver.as_fd(), Interest::Read));
        }
        for socket in sockets.into_iter().flat_map(UdpSockets::iter) {
            sources.push(PollFd::new(socket.as_fd(), Interest::Read));
        }
        poll(&mut sources, None)?;
        let changes = sources[0].readable();
        let (receivers, sockets) = sources[1..].split_at(receivers.len());
        let mut failed = 0;
        for (position, source) in receivers.iter().enumerate() {
            failed |= u128::from(source.failed()) << position;
        }
        Ok(Ready {
            changes: changes && wake.clear(),
            failed,
            udp: sockets.iter().map(PollFd::readable).collect(),
        })
    }

    fn drain(&mut self, socket: &UdpSocket, batch: &mut RecvBatch) {
        for _ in 0..ROUNDS {
            match batch.recv(socket) {
                Ok(messages) => {
                    let shared = Arc::clone(&self.shared);
                    let counters = &shared.counters.ingress;
                    counters.udp_receive_calls.add(1);
                    counters.udp_receives.add_len(messages);
                    let count = self.process(batch.messages());
                    counters.udp_received_datagrams.add_len(count.datagrams);
                    counters.udp_received_data.add_len(count.data);
                    if batch.is_drained() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // What ICMP said about some earlier datagram; the queue behind it is still there.
                Err(error) => tracing::trace!(%error, "UDP receive"),
            }
        }
    }

    fn drain_receiver(&mut self, receiver: &mut Receiver) {
        for _ in 0..ROUNDS {
            let count = receiver.receive(|frames| {
                self.process(frames.iter_mut().map(|frame| Received {
                    from: frame.from,
                    local: Some((frame.local, frame.ifindex)),
                    ecn: frame.ecn,
                    segment_size: frame.segment_size,
                    data: &mut *frame.data,
                    truncated: false,
                }))
            });
            let Some(count) = count else {
                return;
            };
            let counters = &self.shared.counters.ingress;
            counters.xsk_received_datagrams.add_len(count.datagrams);
            counters.xsk_received_data.add_len(count.data);
        }
    }

    /// Opens what was received and writes what is inside to the TUN device.
    fn process<'a>(&mut self, messages: impl Iterator<Item = Received<'a>>) -> Count {
        let shared = Arc::clone(&self.shared);
        let counters = &shared.counters.ingress;
        let now = instant();
        let mut packets = Packets::new();
        let mut group = Group::default();
        let mut count = Count::default();
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
                let Some(header) = DataHeader::parse(datagram) else {
                    self.handshake(&origin, datagram);
                    continue;
                };
                let body = &mut datagram[DATA_HEADER_LEN..];
                if group.records.is_full() || !group.takes(header.receiver_index, &origin) {
                    count.data += self.open(now, &mut group, &mut packets);
                    group.start(header.receiver_index, &origin);
                }
                group.records.push(Record {
                    counter: header.counter,
                    body,
                    authentic: false,
                });
            }
        }
        count.data += self.open(now, &mut group, &mut packets);
        self.writer.write(&mut packets);
        count
    }

    fn handshake(&self, origin: &Origin, datagram: &[u8]) {
        let counters = &self.shared.counters.ingress;
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

    /// Opens the datagrams of one session, and hands on the inner packets that pass every check.
    /// Returns how many were for a live session.
    fn open<'a>(
        &mut self,
        now: Instant,
        group: &mut Group<'a>,
        packets: &mut Packets<'a>,
    ) -> usize {
        if group.records.is_empty() {
            return 0;
        }
        let shared = &self.shared;
        let counters = &shared.counters.ingress;
        let Some(session) = shared.sessions.get(group.index) else {
            counters
                .drop_ingress_unknown_index
                .add_len(group.records.len());
            group.records.clear();
            return 0;
        };
        if !session.can_receive(now) {
            counters.drop_ingress_expired.add_len(group.records.len());
            group.records.clear();
            return 0;
        }
        let datagrams = group.records.len();
        open_batch(session.receiving_key().batch(), &mut group.records);
        {
            let mut replay = session.replay();
            group.records.retain(|record| {
                if !record.authentic {
                    counters.drop_ingress_unauthentic.add(1);
                    return false;
                }
                let fresh = replay.accept(record.counter);
                if !fresh {
                    counters.drop_ingress_replayed.add(1);
                }
                fresh
            });
        }
        if group.records.is_empty() {
            return datagrams;
        }
        let link = session.peer();
        let mut bytes = 0;
        let mut data_packets = 0;
        let routes = shared.routes.load();
        for record in group.records.drain(..) {
            bytes += DATA_HEADER_LEN + record.body.len();
            let Some(plaintext_len) = record.body.len().checked_sub(TAG_LEN) else {
                continue;
            };
            if plaintext_len == 0 {
                continue;
            }
            data_packets += 1;
            let plaintext = &mut record.body[..plaintext_len];
            let Ok(inner) = InnerPacket::parse(plaintext) else {
                counters.drop_ingress_inner_malformed.add(1);
                continue;
            };
            if !routes
                .lookup(inner.source)
                .is_some_and(|owner| Arc::ptr_eq(owner, link))
            {
                counters.drop_ingress_inner_source.add(1);
                continue;
            }
            let packet = &mut plaintext[..inner.length];
            if ecn::decapsulate(group.ecn, packet) == ecn::Verdict::Drop {
                counters.drop_ingress_ecn.add(1);
                continue;
            }
            if packets.is_full() {
                self.writer.write(packets);
            }
            packets.push(packet);
        }
        if let Some(endpoint) = group.endpoint {
            link.set_endpoint(endpoint);
        }
        if link.received(now, &session, data_packets, bytes as u64) {
            shared.notify(Notice::Attend(link.id()));
        }
        datagrams
    }
}

/// Carries out what the control thread asks for.
fn change(receivers: &mut ArrayVec<Box<Receiver>, RECEIVERS>, changes: Vec<ReceiverChange>) {
    for change in changes {
        match change {
            ReceiverChange::Add(receiver) => {
                // One that does not fit is closed, and the kernel takes it out of the map.
                let _ = receivers.try_push(receiver);
            }
            ReceiverChange::Remove { ifindex } => {
                receivers.retain(|receiver| receiver.options().ifindex != ifindex);
            }
        }
    }
}

/// What a batch held.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    datagrams: usize,
    /// Data messages for a live session.
    data: usize,
}

/// Inner packets on their way to the TUN device.
pub(super) type Packets<'a> = ArrayVec<&'a mut [u8], PACKETS>;

/// Where a message came from, as every datagram in it did.
#[derive(Clone, Copy, Debug)]
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

/// Datagrams in a row for one session, from one place.
#[derive(Debug, Default)]
struct Group<'a> {
    index: u32,
    endpoint: Option<Endpoint>,
    ecn: u8,
    records: ArrayVec<Record<'a>, GROUP>,
}

impl Group<'_> {
    fn takes(&self, index: u32, origin: &Origin) -> bool {
        self.index == index && self.endpoint == Some(origin.endpoint) && self.ecn == origin.ecn
    }

    fn start(&mut self, index: u32, origin: &Origin) {
        self.index = index;
        self.endpoint = Some(origin.endpoint);
        self.ecn = origin.ecn;
    }
}
