//! TUN device → network: read, split, seal, send; run to completion.

use std::io::{self, IoSlice};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use adit_kernel::alloc::allocations_on_this_thread;
use adit_kernel::epoll::ReadSet;
use adit_kernel::udp::UdpGroup;
use adit_packet::aead::TAG_LEN;
use adit_packet::ecn;
use adit_packet::split::Splitter;
use adit_packet::virtio::VirtioNetHeader;
use adit_protocol::message::DATA_HEADER_LEN;
use adit_protocol::{InnerPacket, Instant};

use super::batch::Batch;
use super::helper::Pipeline;
use super::outbound::Outbound;
use super::path_mtu::{self, Stalls, Tokens, TooBig};
use super::setbacks::Setbacks;
use super::{Dataplane, Notice, PeerLink, Session};
use crate::instant;

/// A super-packet with its offload header.
const READ_BUFFER: usize = VirtioNetHeader::LEN + 65_536;

/// What a datagram has beside the inner packet.
const OVERHEAD: usize = DATA_HEADER_LEN + TAG_LEN;

/// What the thread waits for.
const WAKE: u64 = 0;
const TUN: u64 = 1;

/// After a wake-up for a single packet, that many more are taken to be for a single one, too: it is
/// sent without a second read, which would only find the device empty. Then one looks again.
const SINGLES: u32 = 16;

/// The egress thread's state.
#[derive(Debug)]
pub(super) struct Egress {
    shared: Arc<Dataplane>,
    queue: usize,
    /// Wake-ups to come that are taken to be for one packet.
    singles: u32,
    /// One segment on its way to a peer's queue of staged packets.
    segment: Box<[u8]>,
    outbound: Outbound,
    /// Where batches go to be sealed by a helper, if there is one.
    pipeline: Option<Pipeline<Batch>>,
    /// Of reading from the device.
    setbacks: Setbacks,
    stalls: Box<Stalls>,
    /// Room for what senders are told,
    too_big: Box<TooBig>,
    /// and how often they may be.
    tokens: Tokens,
}

impl Egress {
    /// The state of one queue's thread, and its helper.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(super) fn new(shared: Arc<Dataplane>, queue: usize) -> anyhow::Result<Self> {
        let name = format!("seal-{queue}");
        let pipeline = Pipeline::start(shared.helpers, &shared.sandbox, &name, || {
            Box::new(Batch::new())
        })?;
        let outbound = Outbound::of_queue(Arc::clone(&shared), queue);
        Ok(Self {
            shared,
            queue,
            singles: 0,
            segment: vec![0; READ_BUFFER].into_boxed_slice(),
            outbound,
            pipeline,
            setbacks: Setbacks::default(),
            stalls: Box::new(Stalls::new()),
            too_big: Box::new(TooBig::new()),
            tokens: Tokens::new(),
        })
    }

    /// Works until the data plane is stopped or the device is gone.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut read_buffer = vec![0; READ_BUFFER].into_boxed_slice();
        let mut sources = match sources(&shared, self.queue) {
            Ok(sources) => sources,
            Err(error) => {
                tracing::error!(%error, "cannot wait for the TUN device");
                return shared.notify(Notice::DeviceGone);
            }
        };
        let inbox = &shared.inboxes[self.queue];
        let counters = &shared.counters.of(self.queue).egress;
        let allocations_before = allocations_on_this_thread();
        let mut waits = Setbacks::default();
        while shared.goes_on(|| self.outbound.retry()) {
            let waiting_since = self.pipeline.is_some().then(instant);
            inbox.egress_pulse.beat();
            let woken = sources
                .wait(self.outbound.retry_after())
                .map(|mut ready| ready.any(|source| source.token == WAKE));
            match woken {
                Ok(woken) => {
                    waits.over();
                    if woken {
                        _ = inbox.wake_egress.clear();
                    }
                }
                // Whether there is something to read is seen by reading.
                Err(error) => {
                    if let Err(error) = waits.after(error) {
                        tracing::error!(%error, "cannot wait for the TUN device");
                        return shared.notify(Notice::DeviceGone);
                    }
                }
            }
            if let (Some(pipeline), Some(since)) = (&mut self.pipeline, waiting_since) {
                pipeline.slept(instant().as_nanos().saturating_sub(since.as_nanos()));
            }
            self.outbound.retry();
            if self.drain(&mut read_buffer).is_err() {
                return shared.notify(Notice::DeviceGone);
            }
            let allocated = allocations_on_this_thread() - allocations_before;
            counters.egress_allocations.set(allocated);
            if let Some(pipeline) = &self.pipeline {
                counters.note_help(pipeline.report());
            }
        }
    }

    /// Reads until the device has nothing more, or can be taken to have, sending whenever a batch is full.
    fn drain(&mut self, read_buffer: &mut [u8]) -> Result<(), DeviceGone> {
        let shared = Arc::clone(&self.shared);
        let tun = shared.tun_queue(self.queue);
        let counters = &shared.counters.of(self.queue).egress;
        let mut reads = 0;
        loop {
            let now = instant();
            let end = loop {
                if self.outbound.is_full() {
                    break Round::Full;
                }
                if reads == 1 && self.singles > 0 {
                    break Round::Single;
                }
                match tun.read(read_buffer) {
                    Ok(len) => {
                        reads += 1;
                        self.setbacks.over();
                        counters.tun_reads.add(1);
                        self.packet(now, &read_buffer[..len]);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        break Round::Empty;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) if !tun.attached() => break Round::Gone,
                    Err(error) => {
                        tracing::trace!(%error, "TUN read");
                        break Round::Failed;
                    }
                }
            };
            let full = matches!(end, Round::Full);
            self.flush(now, full);
            if !full {
                self.finish(now);
            }
            match end {
                Round::Full if shared.is_interrupted() => return Ok(()),
                Round::Full => shared.inboxes[self.queue].egress_pulse.beat(),
                Round::Single => {
                    self.singles -= 1;
                    return Ok(());
                }
                Round::Empty => {
                    self.singles = if reads == 1 { SINGLES } else { 0 };
                    return Ok(());
                }
                // Whatever is wrong with the device, it still says that there is something to read.
                Round::Failed => {
                    self.setbacks.endure();
                    return Ok(());
                }
                Round::Gone => return Err(DeviceGone),
            }
        }
    }

    /// Sends the batch, or lets a helper seal it to be sent later. `full` says that there is more to
    /// come.
    fn flush(&mut self, now: Instant, full: bool) {
        if self.outbound.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let sockets = shared.sockets.load();
        let sockets = sockets.as_ref().map(|group| group.member(self.queue));
        let counters = &shared.counters.of(self.queue).egress;
        let attend = |link: &PeerLink| shared.notify(Notice::Attend(link.id()));
        let wanted = |pipeline: &mut Pipeline<_>| pipeline.wants(full);
        let wanted = self.pipeline.as_mut().is_some_and(wanted);
        let Some(pipeline) = self.pipeline.as_mut().filter(|_| wanted) else {
            self.finish(now);
            return self.outbound.flush(now, sockets, counters, attend);
        };
        let batch = self.outbound.batch();
        batch.reserve(counters);
        pipeline.offer(batch);
        while let Some(mut batch) = pipeline.due() {
            self.outbound
                .send(&mut batch, now, sockets, counters, attend);
            pipeline.give_back(batch);
        }
    }

    /// Sends what a helper has or should have sealed. To be called before anything newer is sent in
    /// another way.
    fn finish(&mut self, now: Instant) {
        let Some(pipeline) = self.pipeline.as_mut().filter(|it| !it.is_empty()) else {
            return;
        };
        let shared = &self.shared;
        let sockets = shared.sockets.load();
        let sockets = sockets.as_ref().map(|group| group.member(self.queue));
        let counters = &shared.counters.of(self.queue).egress;
        while let Some(mut batch) = pipeline.finish() {
            self.outbound
                .send(&mut batch, now, sockets, counters, |link| {
                    shared.notify(Notice::Attend(link.id()));
                });
            pipeline.give_back(batch);
        }
    }

    /// Puts what one read returned into the batch, or into the queue of a peer that has no
    /// session yet.
    fn packet(&mut self, now: Instant, read: &[u8]) {
        let shared = Arc::clone(&self.shared);
        let counters = &shared.counters.of(self.queue).egress;
        let (header, packet) = if shared.tun.has_vnet_header() {
            let Some((header, packet)) = read.split_first_chunk() else {
                return counters.drop_egress_malformed.add(1);
            };
            (VirtioNetHeader::decode(header), packet)
        } else {
            (VirtioNetHeader::default(), read)
        };
        let Ok(inner) = InnerPacket::parse(packet) else {
            return counters.drop_egress_malformed.add(1);
        };
        let routes = shared.routes.load();
        let Some(link) = routes.lookup(inner.destination).map(Arc::clone) else {
            return counters.drop_egress_no_route.add(1);
        };
        drop(routes);
        let ecn = ecn::encapsulate(packet);
        match Splitter::new(header, packet) {
            Ok(splitter) => {
                counters.tun_read_packets.add_len(splitter.remaining());
                let mtu = self.fit(now, &link, &inner, packet, &splitter);
                self.segments(now, &link, splitter, (mtu, ecn));
            }
            Err(error) => {
                tracing::trace!(%error, "TUN packet");
                counters.drop_egress_offload.add(1);
            }
        }
    }

    /// Tells the sender of a packet that does not fit the path to the peer. The packet goes on, in fragments;
    /// returned is what it may be padded to.
    fn fit(
        &mut self,
        now: Instant,
        link: &PeerLink,
        inner: &InnerPacket,
        packet: &[u8],
        segments: &Splitter<'_>,
    ) -> usize {
        let shared = &self.shared;
        let mtu = shared.mtu();
        let counters = &shared.counters.of(self.queue).egress;
        let length = segments.next_len().unwrap_or(0);
        if path_mtu::may_be_large(length + OVERHEAD)
            && segments.remaining() == 1
            && self.stalls.see(now, inner, packet, link.rx_bytes())
            && let Some(endpoint) = link.endpoint()
            && let Some(path) = shared.paths.get(&endpoint)
            && path.mtu() > path_mtu::LEAST
        {
            shared.paths.suspect(&path);
            counters.path_mtu_stalls.add(1);
        }
        let Some((endpoint, path)) = shared.paths.narrow(|| link.endpoint(), length, mtu) else {
            return mtu;
        };
        let room = path.room(&endpoint);
        if length <= room {
            return mtu.min(room);
        }
        if !self.tokens.any(now) {
            counters.path_mtu_told_limited.add(1);
        } else if let Some(message) = self.too_big.write(inner, packet, length, room) {
            let tun = shared.tun_queue(self.queue);
            let skipped = if tun.has_vnet_header() {
                0
            } else {
                VirtioNetHeader::LEN
            };
            // The device may be down or gone, which reading from it shows.
            if tun
                .write_vectored(&[IoSlice::new(&message[skipped..])])
                .is_ok()
            {
                counters.path_mtu_told.add(1);
            }
            self.tokens.take();
        }
        mtu
    }

    fn segments(
        &mut self,
        now: Instant,
        link: &Arc<PeerLink>,
        mut segments: Splitter<'_>,
        (mtu, ecn): (usize, u8),
    ) {
        let session = link
            .current()
            .as_ref()
            .filter(|session| session.can_send(now))
            .map(Arc::clone);
        let Some(session) = session else {
            let mut attend = false;
            while let Some(len) = segments.write_next(&mut self.segment) {
                attend |= link.stage(&self.segment[..len]);
            }
            if attend {
                self.shared.notify(Notice::Attend(link.id()));
            }
            return;
        };
        if link.has_staged() {
            self.staged(now, link, &session);
        }
        while let Some(len) = segments.next_len() {
            let pushed = self.outbound.push(&session, len, mtu, ecn, |slot| {
                segments.write_next(slot);
            });
            if !pushed {
                if self.outbound.is_empty() {
                    // Longer than any datagram can be.
                    let counters = &self.shared.counters.of(self.queue).egress;
                    return counters.drop_egress_malformed.add(1);
                }
                self.flush(now, true);
            }
        }
    }

    /// Sends the packets that waited for a session. The lock is held until they are sent, so that
    /// the control thread, doing the same, cannot let newer packets overtake older ones.
    fn staged(&mut self, now: Instant, link: &PeerLink, session: &Arc<Session>) {
        self.finish(now);
        let sockets = self.shared.sockets.load();
        send_staged(
            &mut self.outbound,
            link,
            session,
            &self.shared,
            (self.queue, sockets.as_deref()),
            now,
        );
    }
}

fn sources(shared: &Dataplane, queue: usize) -> io::Result<ReadSet> {
    let sources = ReadSet::new()?;
    sources.add(shared.inboxes[queue].wake_egress.as_fd(), WAKE)?;
    sources.add(shared.tun_queue(queue).as_fd(), TUN)?;
    Ok(sources)
}

/// Seals and sends the packets staged for a peer, by the sockets of one queue.
pub(crate) fn send_staged(
    outbound: &mut Outbound,
    link: &PeerLink,
    session: &Arc<Session>,
    shared: &Dataplane,
    (queue, sockets): (usize, Option<&UdpGroup>),
    now: Instant,
) {
    let mtu = shared.mtu();
    let sockets = sockets.map(|group| group.member(queue));
    let counters = &shared.counters.of(queue).egress;
    let flush = |outbound: &mut Outbound| {
        outbound.flush(now, sockets, counters, |link| {
            shared.notify(Notice::Attend(link.id()));
        });
    };
    let mut staged = link.staged();
    while let Some(packet) = staged.pop_front() {
        let ecn = ecn::encapsulate(&packet);
        for _ in 0..2 {
            let pushed = outbound.push(session, packet.len(), mtu, ecn, |slot| {
                slot.copy_from_slice(&packet);
            });
            if pushed {
                break;
            }
            flush(outbound);
        }
    }
    flush(outbound);
}

enum Round {
    Full,
    Single,
    Empty,
    Failed,
    Gone,
}

/// The TUN device was deleted.
#[derive(Debug)]
struct DeviceGone;
