//! Network → TUN device: receive, open, check, coalesce, write; run to completion.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use adit_kernel::alloc::allocations_on_this_thread;
use adit_kernel::poll::{Interest, PollFd, poll};
use adit_kernel::udp::{Received, UdpSocket, UdpSockets};
use adit_kernel::xsk::{self, Frame, Receiver};
use adit_packet::aead::TAG_LEN;
use adit_packet::ecn;
use adit_protocol::message::{DATA_HEADER_LEN, MessageType};
use adit_protocol::{Endpoint, InnerPacket, Instant, Source};
use arrayvec::ArrayVec;

use super::counters::Ingress as Counters;
use super::helper::{Pipeline, Work as _};
use super::opening::{MESSAGES, Opened, Parcel, Verdict};
use super::tun_writer::TunWriter;
use super::{Dataplane, HandshakeMessage, Notice, ReceiverChange, Routes, Session};
use crate::instant;

/// Times a socket is read before the other one gets its turn.
const ROUNDS: usize = 16;
/// Inner packets that are coalesced together.
const PACKETS: usize = 256;
/// Bytes from which on a batch is worth handing to a helper: half of a super-packet,
const WORTH_HELP: usize = 32 << 10;
/// and which it should have if there are more, so that helper and thread work at the same time.
const HELPED_BATCH: usize = 96 << 10;

/// AF_XDP sockets at most; those beyond are closed, and their queues' packets go to the UDP socket.
const RECEIVERS: usize = u128::BITS as usize;

/// The ingress thread's state.
#[derive(Debug)]
pub(super) struct Ingress {
    shared: Arc<Dataplane>,
    queue: usize,
    parcel: Box<Parcel>,
    /// What is in the frames of an AF_XDP socket.
    in_frames: Opened,
    /// Where parcels go to be opened by a helper, if there is one.
    pipeline: Option<Pipeline<Parcel>>,
    output: Output,
}

/// What comes after opening, in order.
#[derive(Debug)]
struct Output {
    shared: Arc<Dataplane>,
    queue: usize,
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
    /// The state of one queue's thread, and its helper.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(super) fn new(shared: Arc<Dataplane>, queue: usize) -> anyhow::Result<Self> {
        let parcel = || Box::new(Parcel::new(&shared.sessions));
        let pipeline = Pipeline::start(shared.helpers, &format!("open-{queue}"), parcel)?;
        Ok(Self {
            queue,
            parcel: parcel(),
            in_frames: Opened::new(xsk::BATCH),
            pipeline,
            output: Output {
                writer: TunWriter::new(Arc::clone(&shared), queue),
                shared: Arc::clone(&shared),
                queue,
            },
            shared,
        })
    }

    /// Works until the data plane is stopped or the device is gone.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let inbox = &shared.inboxes[self.queue];
        let counters = &shared.counters.of(self.queue).ingress;
        let mut receivers: ArrayVec<Box<Receiver>, RECEIVERS> = ArrayVec::new();
        let allocations_before = allocations_on_this_thread();
        while !shared.is_stopping() {
            let sockets = shared.sockets.load_full();
            let sockets = sockets.as_deref().map(|group| group.member(self.queue));
            let waiting_since = self.pipeline.is_some().then(instant);
            let ready = match self.wait(sockets, &receivers) {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "cannot wait for the UDP sockets");
                    return shared.notify(Notice::DeviceGone);
                }
            };
            if let (Some(pipeline), Some(since)) = (&mut self.pipeline, waiting_since) {
                pipeline.slept(instant().as_nanos().saturating_sub(since.as_nanos()));
            }
            for receiver in &mut receivers {
                self.drain_receiver(receiver);
            }
            let sockets = sockets.into_iter().flat_map(UdpSockets::iter);
            for (socket, _) in sockets.zip(ready.udp).filter(|(_, ready)| *ready) {
                self.drain(socket);
            }
            for position in (0..receivers.len()).rev() {
                if ready.failed & 1 << position == 0 {
                    continue;
                }
                let ifindex = receivers.remove(position).options().ifindex;
                shared.notify(Notice::ReceiverFailed { ifindex });
            }
            if ready.changes {
                change(&mut receivers, inbox.take_receiver_changes());
            }
            if self.output.writer.is_device_gone() {
                return shared.notify(Notice::DeviceGone);
            }
            let allocated = allocations_on_this_thread() - allocations_before;
            counters.ingress_allocations.set(allocated);
            if let Some(pipeline) = &self.pipeline {
                counters.note_help(pipeline.report());
            }
        }
    }

    /// Blocks until a socket is readable or the control thread has something new for us.
    fn wait(&self, sockets: Option<&UdpSockets>, receivers: &[Box<Receiver>]) -> io::Result<Ready> {
        let wake = &self.shared.inboxes[self.queue].wake_ingress;
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

    fn drain(&mut self, socket: &UdpSocket) {
        let shared = Arc::clone(&self.shared);
        let counters = &shared.counters.of(self.queue).ingress;
        let mut limit = MESSAGES;
        for _ in 0..ROUNDS {
            match self.parcel.received.recv_at_most(socket, limit) {
                Ok(messages) => {
                    counters.udp_receive_calls.add(1);
                    counters.udp_receives.add_len(messages);
                    let bytes = self.parcel.received.bytes();
                    self.parcel.now = instant();
                    if self.hand_over(bytes) {
                        limit = (HELPED_BATCH * messages / bytes.max(1)).clamp(1, MESSAGES);
                        continue;
                    }
                    self.parcel.work();
                    self.output.deliver_parcel(&mut self.parcel);
                    if self.parcel.received.is_drained() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // What ICMP said about some earlier datagram; the queue behind it is still there.
                Err(error) => tracing::trace!(%error, "UDP receive"),
            }
        }
        self.finish();
    }

    /// Gives what was received to the helper, if that is to open it; what came before it and is not
    /// is delivered.
    fn hand_over(&mut self, bytes: usize) -> bool {
        let wanted = |pipeline: &mut Pipeline<_>| pipeline.wants(bytes >= WORTH_HELP);
        let wanted = self.pipeline.as_mut().is_some_and(wanted);
        let Some(pipeline) = self.pipeline.as_mut().filter(|_| wanted) else {
            self.finish();
            return false;
        };
        pipeline.offer(&mut self.parcel);
        while let Some(mut parcel) = match pipeline.finished() {
            None if pipeline.is_full() => pipeline.finish(),
            finished => finished,
        } {
            self.output.deliver_parcel(&mut parcel);
            pipeline.give_back(parcel);
        }
        true
    }

    /// Delivers what the helper has or should have opened. To be called before anything newer is
    /// delivered.
    fn finish(&mut self) {
        let Some(pipeline) = &mut self.pipeline else {
            return;
        };
        while let Some(mut parcel) = pipeline.finish() {
            self.output.deliver_parcel(&mut parcel);
            pipeline.give_back(parcel);
        }
    }

    fn drain_receiver(&mut self, receiver: &mut Receiver) {
        let Self {
            shared,
            queue,
            in_frames,
            output,
            ..
        } = self;
        let counters = &shared.counters.of(*queue).ingress;
        for _ in 0..ROUNDS {
            let count = receiver.receive(|frames| {
                let now = instant();
                in_frames.open(frames.iter_mut().map(received), &shared.sessions, now);
                output.deliver(now, in_frames, frames.iter_mut().map(received))
            });
            let Some(count) = count else {
                return;
            };
            counters.xsk_received_datagrams.add_len(count.datagrams);
            counters.xsk_received_data.add_len(count.data);
        }
    }
}

/// A datagram in a frame, as if a UDP socket had received it.
fn received<'a>(frame: &'a mut Frame<'_>) -> Received<'a> {
    Received {
        from: frame.from,
        local: Some((frame.local, frame.ifindex)),
        ecn: frame.ecn,
        segment_size: frame.segment_size,
        data: &mut *frame.data,
        truncated: false,
    }
}

impl Output {
    fn counters(&self) -> &Counters {
        &self.shared.counters.of(self.queue).ingress
    }

    /// Delivers what a UDP socket has received.
    fn deliver_parcel(&mut self, parcel: &mut Parcel) {
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
    fn deliver<'a>(
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
