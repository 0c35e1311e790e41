//! Who owns which frame on the way out.

use std::ops::Range;

use super::queue::{Descriptor, place};
use super::ring::{Consumer, Memory, Producer};
use super::umem::FrameSize;

/// An entry of a TX ring.
pub(super) trait NewDescriptor: Descriptor {
    fn new(offset: u64, length: u32) -> Self;
}

impl NewDescriptor for libc::xdp_desc {
    fn new(offset: u64, length: u32) -> Self {
        Self {
            addr: offset,
            len: length,
            options: 0,
        }
    }
}

/// The TX and completion ring of one socket and the frames that travel between them.
///
/// There are as many frames as the rings have entries, so that the completion ring is never too full. The TX ring may be: the
/// kernel gives frames back before it says that it has read their descriptors.
#[derive(Debug)]
pub(super) struct Outgoing<T: Memory, C: Memory<Entry = u64>> {
    transmit: Producer<T>,
    completion: Consumer<C>,
    frame_size: FrameSize,
    /// The frames of the UMEM that are this queue's.
    frames: Range<u32>,
    /// A bit per frame: set while it is ours.
    ours: Box<[u64]>,
    /// Frames that are ours and empty; the one used last is taken first, while the cache still has it. Holds them all, so
    /// it never grows.
    idle: Vec<u32>,
    /// Frames that are ours and written, in order. Never grows either.
    written: Vec<T::Entry>,
    /// Completions of memory of somebody else, or of a frame that was ours already.
    bad: u64,
}

impl<T, C> Outgoing<T, C>
where
    T: Memory,
    T::Entry: NewDescriptor,
    C: Memory<Entry = u64>,
{
    /// Starts with all frames ours and empty.
    pub(super) fn new(
        transmit: Producer<T>,
        completion: Consumer<C>,
        frame_size: FrameSize,
        frames: Range<u32>,
    ) -> Self {
        let count = frames.end - frames.start;
        Self {
            transmit,
            completion,
            frame_size,
            frames,
            ours: vec![u64::MAX; count.div_ceil(64) as usize].into(),
            idle: (0..count).rev().collect(),
            written: Vec::with_capacity(count as usize),
            bad: 0,
        }
    }

    /// Empty frames.
    pub(super) fn room(&self) -> usize {
        self.idle.len()
    }

    /// Offset in the UMEM of the frame that [`commit`](Self::commit) will send. It is the caller's until then.
    pub(super) fn next_frame(&self) -> Option<usize> {
        let frame = self.idle.last()?;
        let offset = u64::from(self.frames.start + frame) * u64::from(self.frame_size.bytes());
        usize::try_from(offset).ok()
    }

    /// Puts the next frame, into which `length` bytes were written, behind those that wait for [`publish`](Self::publish).
    pub(super) fn commit(&mut self, length: u32) {
        if length == 0 || length > self.frame_size.bytes() {
            return;
        }
        if let Some(frame) = self.idle.pop() {
            let offset = u64::from(self.frames.start + frame) * u64::from(self.frame_size.bytes());
            self.written.push(T::Entry::new(offset, length));
        }
    }

    /// Gives what was written to the kernel, as far as the ring has room; says whether it wants to be woken.
    pub(super) fn publish(&mut self) -> bool {
        for descriptor in &self.written {
            let (word, bit) = self.place(*descriptor);
            self.ours[word] &= !bit;
        }
        let pushed = self.transmit.push(&self.written);
        for descriptor in &self.written[pushed..] {
            let (word, bit) = self.place(*descriptor);
            self.ours[word] |= bit;
        }
        self.written.drain(..pushed);
        self.transmit.needs_wakeup()
    }

    /// Word and bit of a frame of ours.
    fn place(&self, descriptor: T::Entry) -> (usize, u64) {
        let frame = descriptor.offset() / u64::from(self.frame_size.bytes());
        // The number came out of `idle`, so it fits.
        let frame = u32::try_from(frame).unwrap_or(0);
        place(frame.saturating_sub(self.frames.start))
    }

    /// Takes back frames whose packets have left.
    pub(super) fn reclaim(&mut self) {
        let size = u64::from(self.frame_size.bytes());
        let (start, count) = (
            u64::from(self.frames.start),
            self.frames.end - self.frames.start,
        );
        let (ours, idle, bad) = (&mut self.ours, &mut self.idle, &mut self.bad);
        self.completion.pop(u32::MAX, |offset| {
            let frame = (offset / size)
                .checked_sub(start)
                .and_then(|frame| u32::try_from(frame).ok())
                .filter(|frame| *frame < count);
            let Some(frame) = frame else {
                *bad += 1;
                return;
            };
            let (word, bit) = place(frame);
            if ours[word] & bit != 0 {
                *bad += 1;
                return;
            }
            ours[word] |= bit;
            idle.push(frame);
        });
    }

    /// Packets that the kernel has not looked at yet, or that wait for room in the TX ring.
    pub(super) fn pending(&mut self) -> u32 {
        let waiting = u32::try_from(self.written.len()).unwrap_or(u32::MAX);
        self.transmit.pending().saturating_add(waiting)
    }

    /// Completions that were refused; anything but 0 is a kernel bug.
    pub(super) fn bad_completions(&self) -> u64 {
        self.bad
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::model::ModelRing;
    use super::super::ring::plain::PlainRing;
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Entry(u64, u32);

    impl Descriptor for Entry {
        fn offset(self) -> u64 {
            self.0
        }

        fn length(self) -> u32 {
            self.1
        }
    }

    impl NewDescriptor for Entry {
        fn new(offset: u64, length: u32) -> Self {
            Self(offset, length)
        }
    }

    /// The kernel's ends of both rings.
    struct Kernel {
        transmit: Consumer<PlainRing<Entry>>,
        completion: Producer<PlainRing<u64>>,
    }

    fn outgoing(frames: Range<u32>) -> (Outgoing<PlainRing<Entry>, PlainRing<u64>>, Kernel) {
        let capacity = frames.end - frames.start;
        let transmit = PlainRing::new(capacity, u32::MAX - 3);
        let completion = PlainRing::new(capacity, 0);
        let kernel = Kernel {
            transmit: Consumer::new(transmit.clone()),
            completion: Producer::new(completion.clone()),
        };
        let outgoing = Outgoing::new(
            Producer::new(transmit),
            Consumer::new(completion),
            FrameSize::Bytes2048,
            frames,
        );
        (outgoing, kernel)
    }

    impl Kernel {
        fn take(&mut self, limit: u32) -> Vec<Entry> {
            let mut taken = Vec::new();
            self.transmit.pop(limit, |entry| taken.push(entry));
            taken
        }
    }

    #[test]
    fn packets_leave_in_order_and_their_frames_come_back() {
        let (mut outgoing, mut kernel) = outgoing(16..32);
        for length in 1..=16 {
            assert!(outgoing.next_frame().is_some());
            outgoing.commit(length);
        }
        assert_eq!((outgoing.room(), outgoing.next_frame()), (0, None));
        // Nothing is left to commit.
        outgoing.commit(7);
        assert!(kernel.take(100).is_empty(), "before publishing");
        outgoing.publish();
        assert_eq!(outgoing.pending(), 16);
        let taken = kernel.take(100);
        assert!(taken.iter().map(|entry| entry.1).eq(1..=16));
        assert_eq!(outgoing.pending(), 0);
        let mut offsets: Vec<u64> = taken.iter().map(|entry| entry.0).collect();
        assert_eq!(kernel.completion.push(&offsets), 16);
        outgoing.reclaim();
        assert_eq!((outgoing.room(), outgoing.bad_completions()), (16, 0));
        offsets.sort_unstable();
        assert!(offsets.into_iter().eq((16..32).map(|frame| frame * 2048)));
    }

    #[test]
    fn lengths_the_kernel_would_refuse_are_not_sent() {
        let (mut outgoing, mut kernel) = outgoing(0..4);
        outgoing.commit(0);
        outgoing.commit(2049);
        outgoing.commit(2048);
        outgoing.publish();
        assert_eq!(kernel.take(4).len(), 1);
        assert_eq!(outgoing.room(), 3);
    }

    #[test]
    fn completions_of_others_and_of_frames_that_are_ours_are_refused() {
        let (mut outgoing, mut kernel) = outgoing(16..32);
        outgoing.commit(60);
        outgoing.publish();
        let sent = kernel.take(1)[0].0;
        let completions = [0, 32 * 2048, u64::MAX, 20 * 2048, sent, sent];
        assert_eq!(kernel.completion.push(&completions), 6);
        outgoing.reclaim();
        assert_eq!((outgoing.room(), outgoing.bad_completions()), (16, 5));
    }

    proptest! {
        /// Whatever the order of events, no frame is in two places and none is lost.
        #[test]
        fn a_frame_is_taken_and_returned_exactly_once(
            steps in proptest::collection::vec((0..5, 1_u32..40), 1..200),
        ) {
            let (mut outgoing, mut kernel) = outgoing(3..35);
            let mut wired: Vec<u64> = Vec::new();
            let mut next = 1;
            let mut expected = 1;
            for (step, count) in steps {
                match step {
                    0 => for _ in 0..count {
                        if let Some(offset) = outgoing.next_frame() {
                            prop_assert!(!wired.contains(&(offset as u64)));
                            outgoing.commit(next);
                            next = next % 2048 + 1;
                        }
                    },
                    1 => drop(outgoing.publish()),
                    2 => for entry in kernel.take(count) {
                        prop_assert_eq!(entry.1, expected, "order");
                        expected = expected % 2048 + 1;
                        wired.push(entry.0);
                    },
                    3 => {
                        let done = wired.len().min(count as usize);
                        let pushed = kernel.completion.push(&wired[..done]);
                        prop_assert_eq!(pushed, done);
                        wired.drain(..done);
                    }
                    _ => outgoing.reclaim(),
                }
                let mut seen = wired.clone();
                seen.sort_unstable();
                prop_assert!(seen.windows(2).all(|pair| pair[0] != pair[1]));
                prop_assert!(outgoing.room() + outgoing.written.len() + wired.len() <= 32);
            }
            while outgoing.pending() > 0 {
                outgoing.publish();
                wired.extend(kernel.take(u32::MAX).iter().map(|entry| entry.0));
            }
            kernel.completion.push(&wired);
            outgoing.reclaim();
            prop_assert_eq!((outgoing.room(), outgoing.bad_completions()), (32, 0));
        }
    }

    /// A kernel that takes, reads and completes while we write, publish and reclaim: loom reports any access to a frame's
    /// bytes that the rings do not order.
    #[test]
    fn no_frame_is_written_while_the_kernel_reads_it_in_any_interleaving() {
        use loom::cell::UnsafeCell;
        use loom::sync::Arc;

        loom::model(|| {
            let transmit = ModelRing::<Entry>::new(2, u32::MAX);
            let completion = ModelRing::<u64>::new(2, 0);
            let bytes: Arc<[UnsafeCell<u32>; 2]> =
                Arc::new([UnsafeCell::new(0), UnsafeCell::new(0)]);
            let mut outgoing = Outgoing::new(
                Producer::new(transmit.clone()),
                Consumer::new(completion.clone()),
                FrameSize::Bytes2048,
                0..2,
            );
            let (mut taking, mut completing) = (Consumer::new(transmit), Producer::new(completion));
            let read = Arc::clone(&bytes);
            let kernel = loom::thread::spawn(move || {
                let mut seen = 0;
                for _ in 0..2 {
                    taking.pop(1, |entry| {
                        let frame = usize::try_from(entry.0 / 2048).unwrap();
                        // SAFETY: loom fails the test if somebody else accesses the cell meanwhile.
                        let value = read[frame].with(|cell| unsafe { *cell });
                        assert_eq!(value, entry.1, "the bytes of this packet");
                        assert_eq!(completing.push(&[entry.0]), 1);
                        seen += 1;
                    });
                }
                seen
            });
            for value in 1..=3 {
                outgoing.reclaim();
                if let Some(offset) = outgoing.next_frame() {
                    // SAFETY: as above.
                    bytes[offset / 2048].with_mut(|cell| unsafe { *cell = value });
                    outgoing.commit(value);
                    outgoing.publish();
                }
            }
            let completed: usize = kernel.join().unwrap();
            outgoing.reclaim();
            let pending = usize::try_from(outgoing.pending()).unwrap();
            assert_eq!(outgoing.bad_completions(), 0);
            assert_eq!(outgoing.room() + pending, 2, "after {completed}");
        });
    }
}
