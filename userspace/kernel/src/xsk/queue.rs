//! Who owns which frame.

use std::ops::Range;

use super::ring::{Consumer, Memory, Producer};
use super::umem::FrameSize;

/// A received packet: where in the UMEM its bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    /// Offset of the first byte.
    pub(super) offset: usize,
    /// Bytes.
    pub(super) length: usize,
    /// Index of the frame in this queue's range.
    frame: u32,
}

/// An entry of an RX or TX ring.
pub(super) trait Descriptor: Copy {
    fn offset(self) -> u64;
    fn length(self) -> u32;
}

impl Descriptor for libc::xdp_desc {
    fn offset(self) -> u64 {
        self.addr
    }

    fn length(self) -> u32 {
        self.len
    }
}

/// The fill and RX ring of one socket and the frames that travel between them.
#[derive(Debug)]
pub(super) struct Queue<F: Memory<Entry = u64>, R: Memory> {
    fill: Producer<F>,
    receive: Consumer<R>,
    frame_size: FrameSize,
    /// The frames of the UMEM that are this queue's.
    frames: Range<u32>,
    /// A bit per frame: set while it is ours.
    ours: Box<[u64]>,
    /// Frames that are ours and wait for room in the fill ring. Holds them all, so it never grows.
    idle: Vec<u32>,
    /// Descriptors that named memory of somebody else, or a frame that was ours already.
    bad: u64,
}

impl<F, R> Queue<F, R>
where
    F: Memory<Entry = u64>,
    R: Memory,
    R::Entry: Descriptor,
{
    /// Starts with all frames ours; [`refill`](Self::refill) gives them to the kernel.
    pub(super) fn new(
        fill: Producer<F>,
        receive: Consumer<R>,
        frame_size: FrameSize,
        frames: Range<u32>,
    ) -> Self {
        let count = frames.end - frames.start;
        Self {
            fill,
            receive,
            frame_size,
            frames,
            ours: vec![u64::MAX; count.div_ceil(64) as usize].into(),
            idle: (0..count).collect(),
            bad: 0,
        }
    }

    /// Takes up to `limit` packets. Each of their frames is the caller's until it calls [`give_back`](Self::give_back).
    pub(super) fn take(&mut self, limit: u32, mut each: impl FnMut(Packet)) {
        let size = u64::from(self.frame_size.bytes());
        let (start, count) = (
            u64::from(self.frames.start),
            self.frames.end - self.frames.start,
        );
        let (ours, bad) = (&mut self.ours, &mut self.bad);
        self.receive.pop(limit, |descriptor| {
            let offset = descriptor.offset();
            let fits = offset % size + u64::from(descriptor.length()) <= size;
            let frame = (offset / size)
                .checked_sub(start)
                .and_then(|frame| u32::try_from(frame).ok())
                .filter(|frame| *frame < count && fits);
            let (Some(frame), Ok(offset)) = (frame, usize::try_from(offset)) else {
                *bad += 1;
                return;
            };
            let (word, bit) = place(frame);
            if ours[word] & bit != 0 {
                *bad += 1;
                return;
            }
            ours[word] |= bit;
            each(Packet {
                offset,
                length: descriptor.length() as usize,
                frame,
            });
        });
    }

    /// Says that the caller is done with a packet.
    pub(super) fn give_back(&mut self, packet: Packet) {
        self.idle.push(packet.frame);
    }

    /// Moves as many frames as there is room for into the fill ring; says whether the kernel wants to be woken.
    pub(super) fn refill(&mut self) -> bool {
        const CHUNK: usize = 64;
        let size = u64::from(self.frame_size.bytes());
        while !self.idle.is_empty() {
            let from = self.idle.len().saturating_sub(CHUNK);
            let mut offsets = [0; CHUNK];
            let chunk = &mut offsets[..self.idle.len() - from];
            for (offset, frame) in chunk.iter_mut().zip(self.idle[from..].iter().rev()) {
                *offset = u64::from(self.frames.start + frame) * size;
            }
            for frame in &self.idle[from..] {
                let (word, bit) = place(*frame);
                self.ours[word] &= !bit;
            }
            let pushed = self.fill.push(chunk);
            let kept = self.idle.len() - pushed;
            for frame in &self.idle[from..kept] {
                let (word, bit) = place(*frame);
                self.ours[word] |= bit;
            }
            let full = pushed < chunk.len();
            self.idle.truncate(kept);
            if full {
                break;
            }
        }
        self.fill.needs_wakeup()
    }

    /// Descriptors that were refused; anything but 0 is a kernel bug.
    pub(super) fn bad_descriptors(&self) -> u64 {
        self.bad
    }
}

/// Word and bit of a frame in the ownership set.
pub(super) fn place(frame: u32) -> (usize, u64) {
    ((frame / 64) as usize, 1 << (frame % 64))
}

#[cfg(test)]
mod tests {
    use super::super::ring::plain::PlainRing;
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug, Default)]
    struct Entry(u64, u32);

    impl Descriptor for Entry {
        fn offset(self) -> u64 {
            self.0
        }

        fn length(self) -> u32 {
            self.1
        }
    }

    type PlainQueue = Queue<PlainRing<u64>, PlainRing<Entry>>;

    /// The kernel's ends of both rings.
    struct Kernel {
        fill: Consumer<PlainRing<u64>>,
        receive: Producer<PlainRing<Entry>>,
    }

    fn queue(frames: Range<u32>, capacity: u32) -> (PlainQueue, Kernel) {
        let fill = PlainRing::new(capacity, u32::MAX - 3);
        let receive = PlainRing::new(capacity, 0);
        let kernel = Kernel {
            fill: Consumer::new(fill.clone()),
            receive: Producer::new(receive.clone()),
        };
        let queue = Queue::new(
            Producer::new(fill),
            Consumer::new(receive),
            FrameSize::Bytes2048,
            frames,
        );
        (queue, kernel)
    }

    impl Kernel {
        fn take_empty(&mut self, limit: u32) -> Vec<u64> {
            let mut taken = Vec::new();
            self.fill.pop(limit, |offset| taken.push(offset));
            taken
        }
    }

    #[test]
    fn all_frames_are_given_to_the_kernel_once() {
        let (mut queue, mut kernel) = queue(16..216, 256);
        queue.refill();
        let mut given = kernel.take_empty(1000);
        given.sort_unstable();
        assert!(given.into_iter().eq((16..216).map(|frame| frame * 2048)));
        queue.refill();
        assert!(kernel.take_empty(1000).is_empty());
    }

    #[test]
    fn frames_of_others_and_frames_that_are_ours_are_refused() {
        let (mut queue, mut kernel) = queue(16..32, 32);
        queue.refill();
        let offset = kernel.take_empty(1)[0];
        let entries = [
            Entry(0, 60),
            Entry(32 * 2048, 60),
            Entry(u64::MAX, 60),
            Entry(offset + 256, 2048),
            Entry(offset + 256, 60),
            Entry(offset + 256, 60),
        ];
        assert_eq!(kernel.receive.push(&entries), 6);
        let mut packets = Vec::new();
        queue.take(64, |packet| packets.push(packet));
        assert_eq!(packets.len(), 1);
        assert_eq!(packets[0].length, 60);
        assert_eq!(queue.bad_descriptors(), 5);
    }

    proptest! {
        /// Whatever the order of events, no frame is in two places and none is lost.
        #[test]
        fn a_frame_goes_back_exactly_once(
            steps in proptest::collection::vec((0..4, 1_u32..40), 1..200),
            capacity in prop_oneof![Just(16_u32), Just(64)],
        ) {
            let (mut queue, mut kernel) = queue(3..51, capacity);
            let mut empty: Vec<u64> = Vec::new();
            let mut waiting = 0;
            let mut held: Vec<Packet> = Vec::new();
            queue.refill();
            for (step, count) in steps {
                match step {
                    0 => empty.extend(kernel.take_empty(count)),
                    1 => {
                        let count = empty.len().min(count as usize);
                        let batch: Vec<Entry> =
                            empty.iter().take(count).map(|offset| Entry(offset + 256, 100)).collect();
                        let pushed = kernel.receive.push(&batch);
                        empty.drain(..pushed);
                        waiting += pushed;
                    }
                    2 => {
                        let before = held.len();
                        queue.take(count, |packet| held.push(packet));
                        waiting -= held.len() - before;
                    }
                    _ => {
                        for packet in held.drain(..held.len().min(count as usize)) {
                            queue.give_back(packet);
                        }
                        queue.refill();
                    }
                }
                let mut seen: Vec<u64> = empty.clone();
                seen.extend(held.iter().map(|packet| packet.offset as u64 & !2047));
                seen.sort_unstable();
                let unique = seen.windows(2).all(|pair| pair[0] != pair[1]);
                prop_assert!(unique, "a frame is in two places");
                prop_assert!(seen.len() + waiting + queue.idle.len() <= 48);
            }
            for packet in held.drain(..) {
                queue.give_back(packet);
            }
            queue.take(u32::MAX, |packet| held.push(packet));
            for packet in held {
                queue.give_back(packet);
            }
            loop {
                queue.refill();
                let more = kernel.take_empty(1000);
                if more.is_empty() {
                    break;
                }
                empty.extend(more);
            }
            empty.sort_unstable();
            prop_assert!(empty.into_iter().eq((3..51).map(|frame| frame * 2048)));
            prop_assert_eq!(queue.bad_descriptors(), 0);
        }
    }
}
