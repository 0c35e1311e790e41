//! The frame queues of AF_XDP on rings in plain memory, whose other end may write anything at any time.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::outgoing::Outgoing;
use super::queue::{Packet, Queue};
use super::receiver::LIMIT;
use super::ring::plain::PlainRing;
use super::ring::{Consumer, Memory as _, Producer};
use super::umem::FrameSize;

/// Descriptors are made of address and length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Descriptor(u64, u32);

impl super::queue::Descriptor for Descriptor {
    fn offset(self) -> u64 {
        self.0
    }

    fn length(self) -> u32 {
        self.1
    }
}

impl super::outgoing::NewDescriptor for Descriptor {
    fn new(offset: u64, length: u32) -> Self {
        Self(offset, length)
    }
}

/// A ring's end as the kernel has it: it may set its cursor and slots as it likes.
#[derive(Debug)]
struct KernelEnd<T>(PlainRing<T>);

impl<T: Copy + Default> KernelEnd<T> {
    fn new(capacity: u32, start: u32) -> (Self, PlainRing<T>) {
        let ring = PlainRing::new(capacity, start);
        (Self(ring.clone()), ring)
    }

    fn write(&self, slot: u32, entry: T) {
        let slot = slot % self.0.capacity();
        // SAFETY: `slot < capacity`. Both ends are used by one thread in turn, so no access overlaps another; that the
        // slot may not be the producer's is what is being tested.
        unsafe { self.0.write(slot, entry) };
    }

    fn read(&self, slot: u32) -> T {
        let slot = slot % self.0.capacity();
        // SAFETY: as in `write`.
        unsafe { self.0.read(slot) }
    }

    fn produce(&self, cursor: u32) {
        self.0.producer().store(cursor, Ordering::Release);
    }

    fn consume(&self, cursor: u32) {
        self.0.consumer().store(cursor, Ordering::Release);
    }

    /// What lies between the cursors, as far as the ring can hold it.
    fn published(&self) -> Vec<T> {
        let from = self.0.consumer().load(Ordering::Acquire);
        let count = self.0.producer().load(Ordering::Acquire).wrapping_sub(from);
        let count = count.min(self.0.capacity());
        (0..count)
            .map(|at| self.read(from.wrapping_add(at)))
            .collect()
    }
}

/// A receiver's fill and RX ring.
#[derive(Debug)]
pub struct ReceivingRings {
    queue: Queue<PlainRing<u64>, PlainRing<Descriptor>>,
    fill: KernelEnd<u64>,
    receive: KernelEnd<Descriptor>,
    held: Vec<Packet>,
}

impl ReceivingRings {
    /// Rings for a power of two of `frames`, whose cursors begin at `start`. All frames are in the fill ring.
    #[must_use]
    pub fn new(frames: Range<u32>, size: FrameSize, start: u32) -> Self {
        let count = frames.end - frames.start;
        let (fill, ours) = KernelEnd::new(count, start);
        let (receive, receiving) = KernelEnd::new(count, start);
        let mut queue = Queue::new(Producer::new(ours), Consumer::new(receiving), size, frames);
        queue.refill();
        Self {
            queue,
            fill,
            receive,
            held: Vec::new(),
        }
    }

    /// The kernel writes a descriptor into a slot of the RX ring.
    pub fn write(&self, slot: u32, offset: u64, length: u32) {
        self.receive.write(slot, Descriptor(offset, length));
    }

    /// The kernel moves its cursor in the RX ring.
    pub fn produce(&self, cursor: u32) {
        self.receive.produce(cursor);
    }

    /// The kernel moves its cursor in the fill ring.
    pub fn consume(&self, cursor: u32) {
        self.fill.consume(cursor);
    }

    /// Offsets of the empty frames that the kernel finds in the fill ring.
    #[must_use]
    pub fn filled(&self) -> Vec<u64> {
        self.fill.published()
    }

    /// We take packets: offset and length in bytes of each. They are ours until given back.
    pub fn take(&mut self) -> Vec<(usize, usize)> {
        let mut taken = Vec::new();
        let held = &mut self.held;
        self.queue.take(LIMIT, |packet| {
            held.push(packet);
            taken.push((packet.offset, packet.length));
        });
        taken
    }

    /// We give back the packets taken, and refill.
    pub fn give_back(&mut self) {
        for packet in self.held.drain(..) {
            self.queue.give_back(packet);
        }
        self.queue.refill();
    }

    /// Descriptors that were refused.
    #[must_use]
    pub fn bad(&self) -> u64 {
        self.queue.bad_descriptors()
    }
}

/// A transmitter's TX and completion ring.
#[derive(Debug)]
pub struct TransmittingRings {
    outgoing: Outgoing<PlainRing<Descriptor>, PlainRing<u64>>,
    transmit: KernelEnd<Descriptor>,
    completion: KernelEnd<u64>,
}

impl TransmittingRings {
    /// Rings for a power of two of `frames`, whose cursors begin at `start`.
    #[must_use]
    pub fn new(frames: Range<u32>, size: FrameSize, start: u32) -> Self {
        let count = frames.end - frames.start;
        let (transmit, sending) = KernelEnd::new(count, start);
        let (completion, completing) = KernelEnd::new(count, start);
        let outgoing = Outgoing::new(
            Producer::new(sending),
            Consumer::new(completing),
            size,
            frames,
        );
        Self {
            outgoing,
            transmit,
            completion,
        }
    }

    /// We write a packet of `length` bytes; the offset of its frame.
    pub fn send(&mut self, length: u32) -> Option<usize> {
        let frame = self.outgoing.next_frame();
        self.outgoing.commit(length);
        frame
    }

    /// We publish what was written.
    pub fn publish(&mut self) {
        self.outgoing.publish();
    }

    /// Packets the kernel finds in the TX ring: offset and length in bytes.
    #[must_use]
    pub fn sent(&self) -> Vec<(u64, u32)> {
        let published = self.transmit.published().into_iter();
        published
            .map(|Descriptor(offset, length)| (offset, length))
            .collect()
    }

    /// The kernel moves its cursor in the TX ring.
    pub fn consume(&self, cursor: u32) {
        self.transmit.consume(cursor);
    }

    /// The kernel writes an offset into a slot of the completion ring.
    pub fn complete(&self, slot: u32, offset: u64) {
        self.completion.write(slot, offset);
    }

    /// The kernel moves its cursor in the completion ring.
    pub fn produce(&self, cursor: u32) {
        self.completion.produce(cursor);
    }

    /// We take back what is completed.
    pub fn reclaim(&mut self) {
        self.outgoing.reclaim();
    }

    /// Empty frames.
    #[must_use]
    pub fn room(&self) -> usize {
        self.outgoing.room()
    }

    /// Packets that the kernel has not looked at, as it says.
    pub fn pending(&mut self) -> u32 {
        self.outgoing.pending()
    }

    /// Completions that were refused.
    #[must_use]
    pub fn bad(&self) -> u64 {
        self.outgoing.bad_completions()
    }
}
