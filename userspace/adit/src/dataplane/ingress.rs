//! Network → TUN device: receive, open, check, coalesce, write; run to completion.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use adit_kernel::alloc::allocations_on_this_thread;
use adit_kernel::poll::{Interest, PollFd, poll};
use adit_kernel::udp::{Received, UdpSocket, UdpSockets};
use adit_kernel::xsk::{self, Frame, Receiver};
use adit_protocol::Instant;
use arrayvec::ArrayVec;

use super::counters::Ingress as Counters;
use super::delivery::Output;
use super::helper::{Pipeline, Work as _};
use super::opening::{MESSAGES, Opened, Parcel};
use super::setbacks::Setbacks;
use super::{Dataplane, Notice, ReceiverChange};
use crate::instant;

/// Times a socket is read before the other one gets its turn.
const ROUNDS: usize = 16;
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
    /// Of receiving from sockets.
    setbacks: Setbacks,
    losses: Losses,
}

/// What the kernel drops in front of the AF_XDP sockets. It is asked once a second.
#[derive(Debug, Default)]
struct Losses {
    asked: u64,
    /// Of the sockets there are, at the last look: for want of room in the ring, and otherwise.
    last: [u64; 2],
}

impl Losses {
    fn look(&mut self, now: Instant, receivers: &[Box<Receiver>], counters: &Counters) {
        if now.as_nanos().saturating_sub(self.asked) < 1_000_000_000 {
            return;
        }
        self.asked = now.as_nanos();
        let mut sum = [0, 0];
        for statistics in receivers.iter().filter_map(|it| it.statistics().ok()) {
            sum[0] += statistics.ring_full;
            sum[1] += statistics.dropped + statistics.unreadable + statistics.bad_descriptors;
        }
        let lost = [
            &counters.drop_ingress_xsk_ring,
            &counters.drop_ingress_xsk_frame,
        ];
        for ((counter, now), last) in lost.into_iter().zip(sum).zip(&mut self.last) {
            // Less than before: sockets were closed, or opened anew.
            counter.add(now.checked_sub(*last).unwrap_or(now));
            *last = now;
        }
    }
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
        let pipeline = Pipeline::start(
            shared.helpers,
            &shared.sandbox,
            &format!("open-{queue}"),
            parcel,
        )?;
        Ok(Self {
            queue,
            parcel: parcel(),
            in_frames: Opened::new(xsk::BATCH),
            pipeline,
            output: Output::new(Arc::clone(&shared), queue),
            setbacks: Setbacks::default(),
            losses: Losses::default(),
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
        let mut waits = Setbacks::default();
        while shared.goes_on(|| change(&mut receivers, inbox.take_receiver_changes())) {
            inbox.ingress_pulse.beat();
            let sockets = shared.sockets.load_full();
            let sockets = sockets.as_deref().map(|group| group.member(self.queue));
            let waiting_since = self.pipeline.is_some().then(instant);
            let ready = match self.wait(sockets, &receivers) {
                Ok(ready) => {
                    waits.over();
                    ready
                }
                Err(error) => match waits.after(error) {
                    Ok(()) => continue,
                    Err(error) => {
                        tracing::error!(%error, "cannot wait for the UDP sockets");
                        return shared.notify(Notice::DeviceGone);
                    }
                },
            };
            if let (Some(pipeline), Some(since)) = (&mut self.pipeline, waiting_since) {
                pipeline.slept(instant().as_nanos().saturating_sub(since.as_nanos()));
            }
            for receiver in &mut receivers {
                self.drain_receiver(receiver);
            }
            if !receivers.is_empty() {
                self.losses.look(instant(), &receivers, counters);
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
            if self.output.is_device_gone() {
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
        let mut failed = 0;
        for _ in 0..ROUNDS {
            match self.parcel.received.recv_at_most(socket, limit) {
                Ok(messages) => {
                    self.setbacks.over();
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
                Err(error) => {
                    failed += 1;
                    tracing::trace!(%error, "UDP receive");
                }
            }
        }
        self.finish();
        // No queue of errors is that long: it is the socket, or the kernel is short of memory.
        if failed == ROUNDS {
            self.setbacks.endure();
        }
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
        while let Some(mut parcel) = pipeline.due() {
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
