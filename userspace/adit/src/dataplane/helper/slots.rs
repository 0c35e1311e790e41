//! The places where a thread leaves batches for its helper and finds them again.
//!
//! ```text
//!           offer            take             finish           collect
//!   EMPTY ─────────► READY ─────────► TAKEN ─────────► DONE ─────────► EMPTY
//!           owner            either            who took         owner
//! ```
//! A batch moves by value. The state says whose it is: whoever wins the step from READY to TAKEN
//! has it alone. So the owner of the slots can always take what the helper has not begun, and waits
//! for the helper only while that is at work on the very batch that is needed.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// Batches on their way at most. One at the helper, one waiting for it, one done and one spare.
pub(super) const SLOTS: usize = 4;

const EMPTY: u8 = 0;
const READY: u8 = 1;
const TAKEN: u8 = 2;
const DONE: u8 = 3;

/// A state that both sides see.
pub(super) trait Flag {
    fn new(value: u8) -> Self;
    fn load(&self) -> u8;
    fn store(&self, value: u8);
    /// Changes `from` to `to`; false if it was something else.
    fn change(&self, from: u8, to: u8) -> bool;
}

/// Room for one value, reached only by whom the state gives it to.
pub(super) trait Place<T> {
    fn new() -> Self;
    fn put(&self, value: T);
    fn take(&self) -> Option<T>;
}

/// What slots are made of: the standard library's primitives, or in tests loom's.
pub(super) trait Primitives {
    type Flag: Flag;
    type Place<T>: Place<T>;
}

/// The standard library's.
#[derive(Debug)]
pub(super) struct Std;

impl Primitives for Std {
    type Flag = AtomicU8;
    type Place<T> = Mutex<Option<T>>;
}

/// The same steps, and the same orderings, for whoever's atomic it is.
macro_rules! impl_flag {
    ($atomic:ty) => {
        impl Flag for $atomic {
            fn new(value: u8) -> Self {
                Self::new(value)
            }

            fn load(&self) -> u8 {
                Self::load(self, Ordering::SeqCst)
            }

            fn store(&self, value: u8) {
                Self::store(self, value, Ordering::SeqCst);
            }

            fn change(&self, from: u8, to: u8) -> bool {
                self.compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed)
                    .is_ok()
            }
        }
    };
}

impl_flag!(AtomicU8);

/// Never contended: the state has settled who may look.
impl<T> Place<T> for Mutex<Option<T>> {
    fn new() -> Self {
        Self::new(None)
    }

    fn put(&self, value: T) {
        *self.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }

    fn take(&self) -> Option<T> {
        self.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Aligned so that working on one slot does not disturb whoever looks at another.
#[repr(align(128))]
struct Slot<T, P: Primitives> {
    state: P::Flag,
    place: P::Place<T>,
}

/// [`SLOTS`] places.
pub(super) struct Slots<T, P: Primitives = Std> {
    slots: [Slot<T, P>; SLOTS],
}

impl<T, P: Primitives> Slots<T, P> {
    pub(super) fn new() -> Self {
        Self {
            slots: std::array::from_fn(|_| Slot {
                state: P::Flag::new(EMPTY),
                place: P::Place::new(),
            }),
        }
    }

    fn slot(&self, number: usize) -> &Slot<T, P> {
        &self.slots[number % SLOTS]
    }

    /// Leaves a batch for whoever takes it first. Only the owner calls this, on a slot it has
    /// collected from.
    pub(super) fn offer(&self, number: usize, batch: T) {
        let slot = self.slot(number);
        slot.place.put(batch);
        slot.state.store(READY);
    }

    /// Whether there is a batch that nobody has begun.
    pub(super) fn is_ready(&self, number: usize) -> bool {
        self.slot(number).state.load() == READY
    }

    /// Takes a batch that nobody has begun, to [`finish`](Self::finish) it.
    pub(super) fn take(&self, number: usize) -> Option<T> {
        let slot = self.slot(number);
        if slot.state.load() == READY && slot.state.change(READY, TAKEN) {
            slot.place.take()
        } else {
            None
        }
    }

    /// Puts back what was taken from this slot, worked on.
    pub(super) fn finish(&self, number: usize, batch: T) {
        let slot = self.slot(number);
        slot.place.put(batch);
        slot.state.store(DONE);
    }

    /// Takes a finished batch out. Only the owner calls this.
    pub(super) fn collect(&self, number: usize) -> Option<T> {
        let slot = self.slot(number);
        if slot.state.load() != DONE {
            return None;
        }
        let batch = slot.place.take();
        slot.state.store(EMPTY);
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_had_by_one_at_a_time() {
        let slots = Slots::<u8>::new();
        assert!(slots.take(0).is_none() && slots.collect(0).is_none());
        slots.offer(0, 7);
        assert!(slots.collect(0).is_none(), "not finished");
        assert_eq!(slots.take(0), Some(7));
        assert!(slots.take(0).is_none() && slots.collect(0).is_none());
        slots.finish(0, 8);
        assert!(slots.take(0).is_none(), "worked on twice");
        assert_eq!(slots.collect(SLOTS), Some(8));
        assert!(slots.collect(0).is_none());
    }

    /// The same code on loom's primitives, in every interleaving.
    mod model {
        use super::super::*;
        use loom::sync::atomic::AtomicU8 as LoomU8;
        use loom::sync::{Arc, Mutex as LoomMutex};

        struct Loom;

        impl Primitives for Loom {
            type Flag = LoomU8;
            type Place<T> = LoomMutex<Option<T>>;
        }

        impl_flag!(LoomU8);

        impl<T> Place<T> for LoomMutex<Option<T>> {
            fn new() -> Self {
                Self::new(None)
            }

            fn put(&self, value: T) {
                // Fails the test if the other side is here, too.
                *self.try_lock().unwrap() = Some(value);
            }

            fn take(&self) -> Option<T> {
                self.try_lock().unwrap().take()
            }
        }

        /// Owner and helper race for each batch; it is worked on once, and comes out in order.
        #[test]
        fn every_batch_is_worked_on_once_in_every_interleaving() {
            loom::model(|| {
                let slots = Arc::new(Slots::<(u32, u32), Loom>::new());
                let helper = {
                    let slots = Arc::clone(&slots);
                    loom::thread::spawn(move || {
                        for number in 0..2 {
                            if let Some((batch, worked)) = slots.take(number) {
                                slots.finish(number, (batch, worked + 1));
                            }
                        }
                    })
                };
                slots.offer(0, (10, 0));
                slots.offer(1, (11, 0));
                for number in 0..2 {
                    if let Some((batch, worked)) = slots.take(number) {
                        slots.finish(number, (batch, worked + 1));
                    }
                    let out = loop {
                        if let Some(out) = slots.collect(number) {
                            break out;
                        }
                        loom::thread::yield_now();
                    };
                    assert_eq!(out, (10 + u32::try_from(number).unwrap(), 1));
                }
                helper.join().unwrap();
            });
        }
    }
}
