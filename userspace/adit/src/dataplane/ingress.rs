//! Network → TUN device: receive, open, check, coalesce, write; run to completion.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use adit_kernel::alloc::allocations_on_this_thread;
use adit_kernel::epoll::ReadSet;
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

/// What the thread receives from, and waits for.
#[derive(Debug)]
struct Sources {
    sockets: Option<Arc<UdpSockets>>,
    receivers: ArrayVec<Box<Receiver>, RECEIVERS>,
    set: ReadSet,
}

/// Tokens in the set: the control thread, the two UDP sockets, then the AF_XDP sockets.
const WAKE: u64 = 0;
const UDP: u64 = 1;
const XSK: u64 = 3;

/// Which sources have something.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    /// The control thread has changed sockets or receivers.
    changes: bool,
    /// IPv4 and IPv6, as the sockets iterate.
    udp: [bool; 2],
    /// One bit for each receiver.
    failed: u128,
}

impl Sources {
    fn new(shared: &Dataplane) -> io::Result<Self> {
        let mut sources = Self {
            sockets: None,
            receivers: ArrayVec::new(),
            set: ReadSet::new()?,
        };
        sources.renew(shared)?;
        Ok(sources)
    }

    /// Takes over what the control thread has changed.
    fn renew(&mut self, shared: &Dataplane) -> io::Result<()> {
        self.sockets = shared.sockets.load_full();
        change(&mut self.receivers, shared.take_receiver_changes());
        self.rebuild(shared)
    }

    fn rebuild(&mut self, shared: &Dataplane) -> io::Result<()> {
        self.set = ReadSet::new()?;
        self.set.add(shared.wake_ingress.as_fd(), WAKE)?;
        let sockets = self.sockets.iter().flat_map(|sockets| sockets.iter());
        for (token, socket) in (UDP..).zip(sockets) {
            self.set.add(socket.as_fd(), token)?;
        }
        for (token, receiver) in (XSK..).zip(&self.receivers) {
            self.set.add(receiver.as_fd(), token)?;
        }
        Ok(())
    }

    /// Blocks until there is something to receive, or the control thread has something new for us.
    fn wait(&mut self) -> io::Result<Ready> {
        let mut ready = Ready::default();
        for source in self.set.wait(None)? {
            match source.token {
                WAKE => ready.changes = true,
                token @ UDP..XSK => ready.udp[usize::from(token != UDP)] = true,
                token => ready.failed |= u128::from(source.failed) << (token - XSK),
            }
        }
        Ok(ready)
    }

    /// Closes the receivers that failed.
    fn remove_failed(&mut self, shared: &Dataplane, failed: u128) -> io::Result<()> {
        for position in (0..self.receivers.len()).rev() {
            if failed & 1 << position != 0 {
                let ifindex = self.receivers.remove(position).options().ifindex;
                shared.notify(Notice::ReceiverFailed { ifindex });
            }
        }
        self.rebuild(shared)
    }
}

impl Ingress {
    pub(super) fn new(shared: Arc<Dataplane>) -> Self {
        let writer = TunWriter::new(Arc::clone(&shared));
        Self { shared, writer }
    }

    /// Works until the data plane is stopped or the device is gone.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        if let Err(error) = self.receive() {
            tracing::error!(%error, "cannot wait for the UDP sockets");
            shared.notify(Notice::DeviceGone);
        } else if self.writer.is_device_gone() {
            shared.notify(Notice::DeviceGone);
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut batch = RecvBatch::new(MESSAGES);
        let mut sources = Sources::new(&shared)?;
        let allocations_before = allocations_on_this_thread();
        while !shared.is_stopping() && !self.writer.is_device_gone() {
            let ready = sources.wait()?;
            for receiver in &mut sources.receivers {
                self.drain_receiver(receiver);
            }
            let sockets = sources.sockets.iter().flat_map(|sockets| sockets.iter());
            for (socket, _) in sockets.zip(ready.udp).filter(|(_, ready)| *ready) {
                self.drain(socket, &mut batch);
            }
            if ready.failed != 0 {
                sources.remove_failed(&shared, ready.failed)?;
            }
            if ready.changes && shared.wake_ingress.clear() {
                sources.renew(&shared)?;
            }
            let allocated = allocations_on_this_thread() - allocations_before;
            shared.counters.ingress.ingress_allocations.set(allocated);
        }
        Ok(())
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
