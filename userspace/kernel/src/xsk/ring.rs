//! The two ends of an AF_XDP ring, as careful with memory as the kernel's own (`net/xdp/xsk_queue.h`).
//!
//! ```text
//!   consumer cursor          producer cursor          Both count up for ever and wrap at 2^32; the slot is the
//!        |                        |                   cursor's value modulo the capacity, a power of two.
//!   [    x x x x x x x x x x x x      ]               What lies between them belongs to the consumer,
//!                                                     the rest to the producer.
//! ```
//!
//! Each end keeps a copy of the other's cursor and looks at the shared one only when the copy says there is too little:
//! the cache line then travels once per batch.

use std::sync::atomic::Ordering;

/// A cursor that both sides see.
pub(crate) trait Cursor {
    fn load(&self, order: Ordering) -> u32;
    fn store(&self, value: u32, order: Ordering);
}

impl Cursor for std::sync::atomic::AtomicU32 {
    fn load(&self, order: Ordering) -> u32 {
        Self::load(self, order)
    }

    fn store(&self, value: u32, order: Ordering) {
        Self::store(self, value, order);
    }
}

/// The memory of a ring, wherever it is: shared with the kernel, or plain memory in tests.
pub(crate) trait Memory {
    /// What a slot holds.
    type Entry: Copy;
    /// The cursors' type.
    type Cursor: Cursor;

    /// Number of slots, a power of two.
    fn capacity(&self) -> u32;
    fn producer(&self) -> &Self::Cursor;
    fn consumer(&self) -> &Self::Cursor;
    /// `XDP_RING_NEED_WAKEUP` and friends.
    fn flags(&self) -> u32;

    /// # Safety
    /// The caller is the consumer, and `slot < capacity` lies between the cursors.
    unsafe fn read(&self, slot: u32) -> Self::Entry;

    /// # Safety
    /// The caller is the producer, and `slot < capacity` does not lie between the cursors.
    unsafe fn write(&self, slot: u32, entry: Self::Entry);
}

/// The end that puts entries in.
#[derive(Debug)]
pub(crate) struct Producer<M> {
    memory: M,
    /// Our cursor, including what is not published yet.
    next: u32,
    /// The consumer's cursor when it was last looked at.
    consumed: u32,
}

impl<M: Memory> Producer<M> {
    /// Takes the producing end; there must be no other.
    pub(crate) fn new(memory: M) -> Self {
        let next = memory.producer().load(Ordering::Relaxed);
        let consumed = memory.consumer().load(Ordering::Acquire);
        Self {
            memory,
            next,
            consumed,
        }
    }

    /// Free slots, at least `wanted` if there are as many.
    fn free(&mut self, wanted: u32) -> u32 {
        let capacity = self.memory.capacity();
        let free = |consumed: u32, next: u32| capacity.saturating_sub(next.wrapping_sub(consumed));
        let cached = free(self.consumed, self.next);
        if cached >= wanted {
            return cached;
        }
        // Acquire: the consumer has finished reading a slot before we write to it.
        self.consumed = self.memory.consumer().load(Ordering::Acquire);
        free(self.consumed, self.next)
    }

    /// Puts in as many of `entries` as there is room for, from the front, and publishes them; returns how many.
    pub(crate) fn push(&mut self, entries: &[M::Entry]) -> usize {
        let wanted = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let count = self.free(wanted).min(wanted);
        let mask = self.memory.capacity() - 1;
        for entry in &entries[..count as usize] {
            // SAFETY: `free` has found `count` slots from `next` on outside the consumer's range, and we are the only
            // producer (`new`).
            unsafe { self.memory.write(self.next & mask, *entry) };
            self.next = self.next.wrapping_add(1);
        }
        if count > 0 {
            // Release: whoever sees the cursor sees the entries.
            self.memory.producer().store(self.next, Ordering::Release);
        }
        count as usize
    }

    /// Entries that the consumer has not taken yet.
    pub(crate) fn pending(&mut self) -> u32 {
        // Acquire: as in `free`.
        self.consumed = self.memory.consumer().load(Ordering::Acquire);
        self.next.wrapping_sub(self.consumed)
    }

    /// Whether the kernel asks to be woken after a push (`XDP_USE_NEED_WAKEUP`).
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.memory.flags() & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// The end that takes entries out.
#[derive(Debug)]
pub(crate) struct Consumer<M> {
    memory: M,
    /// Our cursor.
    next: u32,
    /// The producer's cursor when it was last looked at.
    produced: u32,
}

impl<M: Memory> Consumer<M> {
    /// Takes the consuming end; there must be no other.
    pub(crate) fn new(memory: M) -> Self {
        let next = memory.consumer().load(Ordering::Relaxed);
        Self {
            memory,
            next,
            produced: next,
        }
    }

    /// Hands the next entries to `take`, at most `limit`, gives their slots back, and returns how many there were.
    pub(crate) fn pop(&mut self, limit: u32, mut take: impl FnMut(M::Entry)) -> u32 {
        let capacity = self.memory.capacity();
        let mut ready = self.produced.wrapping_sub(self.next);
        if ready < limit {
            // Acquire: pairs with the producer's release, so the entries are there.
            let produced = self.memory.producer().load(Ordering::Acquire);
            // A cursor out of bounds would be the kernel's bug; never read more than there is memory for, nor remember it.
            ready = produced.wrapping_sub(self.next).min(capacity);
            self.produced = self.next.wrapping_add(ready);
        }
        let count = ready.min(limit);
        for _ in 0..count {
            // SAFETY: the slot lies between the cursors, and we are the only consumer (`new`).
            take(unsafe { self.memory.read(self.next & (capacity - 1)) });
            self.next = self.next.wrapping_add(1);
        }
        if count > 0 {
            // Release: our reads are done before the producer may overwrite the slots.
            self.memory.consumer().store(self.next, Ordering::Release);
        }
        count
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod plain {
    //! A ring in plain memory, for tests.

    use super::*;
    use std::cell::UnsafeCell;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    #[derive(Debug)]
    pub(crate) struct Shared<T> {
        pub(crate) producer: AtomicU32,
        pub(crate) consumer: AtomicU32,
        pub(crate) flags: AtomicU32,
        slots: Box<[UnsafeCell<T>]>,
    }

    /// Both ends hold one.
    #[derive(Debug, Clone)]
    pub(crate) struct PlainRing<T>(pub(crate) Arc<Shared<T>>);

    impl<T: Copy + Default> PlainRing<T> {
        /// `start` is where both cursors begin.
        pub(crate) fn new(capacity: u32, start: u32) -> Self {
            assert!(capacity.is_power_of_two());
            Self(Arc::new(Shared {
                producer: AtomicU32::new(start),
                consumer: AtomicU32::new(start),
                flags: AtomicU32::new(0),
                slots: (0..capacity).map(|_| UnsafeCell::default()).collect(),
            }))
        }
    }

    impl<T: Copy> Memory for PlainRing<T> {
        type Entry = T;
        type Cursor = AtomicU32;

        fn capacity(&self) -> u32 {
            u32::try_from(self.0.slots.len()).expect("made of a u32")
        }

        fn producer(&self) -> &AtomicU32 {
            &self.0.producer
        }

        fn consumer(&self) -> &AtomicU32 {
            &self.0.consumer
        }

        fn flags(&self) -> u32 {
            self.0.flags.load(Ordering::Relaxed)
        }

        unsafe fn read(&self, slot: u32) -> T {
            // SAFETY: the caller owns the slot (contract of the trait).
            unsafe { *self.0.slots[slot as usize].get() }
        }

        unsafe fn write(&self, slot: u32, entry: T) {
            // SAFETY: the caller owns the slot (contract of the trait).
            unsafe { *self.0.slots[slot as usize].get() = entry };
        }
    }
}

#[cfg(test)]
pub(crate) mod model {
    //! A ring on loom's atomics and cells, which report every race in every interleaving.

    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU32;

    impl Cursor for AtomicU32 {
        fn load(&self, order: Ordering) -> u32 {
            Self::load(self, order)
        }

        fn store(&self, value: u32, order: Ordering) {
            Self::store(self, value, order);
        }
    }

    struct Shared<T> {
        producer: AtomicU32,
        consumer: AtomicU32,
        slots: Vec<UnsafeCell<T>>,
    }

    /// Both ends hold one.
    #[derive(Clone)]
    pub(crate) struct ModelRing<T>(Arc<Shared<T>>);

    // SAFETY: the cells are reached only through `Memory`, whose callers own the slot; loom checks exactly that.
    unsafe impl<T: Send> Send for ModelRing<T> {}

    impl<T: Copy + Default> ModelRing<T> {
        /// `start` is where both cursors begin.
        pub(crate) fn new(capacity: u32, start: u32) -> Self {
            Self(Arc::new(Shared {
                producer: AtomicU32::new(start),
                consumer: AtomicU32::new(start),
                slots: (0..capacity)
                    .map(|_| UnsafeCell::new(T::default()))
                    .collect(),
            }))
        }
    }

    impl<T: Copy> Memory for ModelRing<T> {
        type Entry = T;
        type Cursor = AtomicU32;

        fn capacity(&self) -> u32 {
            u32::try_from(self.0.slots.len()).unwrap()
        }

        fn producer(&self) -> &AtomicU32 {
            &self.0.producer
        }

        fn consumer(&self) -> &AtomicU32 {
            &self.0.consumer
        }

        fn flags(&self) -> u32 {
            0
        }

        unsafe fn read(&self, slot: u32) -> T {
            // SAFETY: loom fails the test if the caller does not own the slot.
            self.0.slots[slot as usize].with(|cell| unsafe { *cell })
        }

        unsafe fn write(&self, slot: u32, entry: T) {
            // SAFETY: as above.
            self.0.slots[slot as usize].with_mut(|cell| unsafe { *cell = entry });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::plain::PlainRing;
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn a_cursor_out_of_bounds_is_never_good_for_more_than_the_ring_holds() {
        for ahead in [5, 1000, u32::MAX - 4, u32::MAX] {
            let ring = PlainRing::<u64>::new(4, 7);
            let mut consumer = Consumer::new(ring.clone());
            ring.producer()
                .store(7_u32.wrapping_add(ahead), Ordering::Release);
            for _ in 0..5 {
                assert!(consumer.pop(64, |_| ()) <= 4, "{ahead}");
            }
        }
    }

    #[test]
    fn a_full_ring_takes_no_more_and_loses_nothing() {
        let ring = PlainRing::new(4, u32::MAX - 1);
        let mut producer = Producer::new(ring.clone());
        let mut consumer = Consumer::new(ring);
        assert_eq!(producer.push(&[1_u64, 2, 3, 4, 5, 6]), 4);
        assert_eq!(producer.push(&[5]), 0);
        let mut seen = Vec::new();
        assert_eq!(consumer.pop(3, |entry| seen.push(entry)), 3);
        assert_eq!(producer.push(&[5, 6, 7, 8]), 3);
        assert_eq!(consumer.pop(64, |entry| seen.push(entry)), 4);
        assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(consumer.pop(64, |_| ()), 0);
    }

    #[test]
    fn a_cursor_out_of_bounds_reads_at_most_the_ring() {
        let ring = PlainRing::<u64>::new(4, 0);
        ring.producer().store(1_000_000, Ordering::Release);
        assert_eq!(Consumer::new(ring).pop(64, |_| ()), 4);
    }

    #[test]
    fn an_overfull_cursor_leaves_no_room() {
        let ring = PlainRing::<u64>::new(4, 0);
        ring.producer().store(1_000_000, Ordering::Release);
        assert_eq!(Producer::new(ring).push(&[1]), 0);
    }

    proptest! {
        #[test]
        fn behaves_as_a_bounded_queue(
            start in any::<u32>(),
            steps in proptest::collection::vec((any::<bool>(), 0_usize..12), 0..200),
        ) {
            let ring = PlainRing::new(8, start);
            let mut producer = Producer::new(ring.clone());
            let mut consumer = Consumer::new(ring);
            let mut model = VecDeque::new();
            let mut next = 0_u64;
            for (push, count) in steps {
                if push {
                    let batch: Vec<u64> = (next..).take(count).collect();
                    let room = 8 - model.len();
                    let pushed = producer.push(&batch);
                    prop_assert_eq!(pushed, count.min(room));
                    model.extend(&batch[..pushed]);
                    next += pushed as u64;
                } else {
                    let mut taken = Vec::new();
                    consumer.pop(u32::try_from(count).unwrap(), |entry| taken.push(entry));
                    prop_assert_eq!(taken.len(), count.min(model.len()));
                    for entry in taken {
                        prop_assert_eq!(Some(entry), model.pop_front());
                    }
                }
            }
        }
    }

    #[test]
    fn every_entry_arrives_once_and_in_order_in_every_interleaving() {
        loom::model(|| {
            let ring = model::ModelRing::new(2, u32::MAX);
            let mut producer = Producer::new(ring.clone());
            let mut consumer = Consumer::new(ring);
            let sender = loom::thread::spawn(move || {
                let mut sent = 0;
                for _ in 0..2 {
                    let batch: Vec<u64> = (sent..4).map(|entry| entry + 1).collect();
                    sent += producer.push(&batch) as u64;
                }
                sent
            });
            let mut seen = Vec::new();
            for _ in 0..2 {
                consumer.pop(2, |entry| seen.push(entry));
            }
            let sent = sender.join().unwrap();
            consumer.pop(4, |entry| seen.push(entry));
            assert!(seen.iter().copied().eq(1..=sent), "{seen:?} of {sent}");
        });
    }
}
