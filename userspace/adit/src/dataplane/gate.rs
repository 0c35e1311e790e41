//! Letting the data threads stand still for a while, which a confined process cannot do by ending
//! them: it could not start others.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What the data threads are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Order {
    /// Move packets.
    Go,
    /// Stand still.
    Stand,
    /// End.
    End,
}

impl Order {
    fn from_u8(order: u8) -> Self {
        match order {
            0 => Self::Go,
            1 => Self::Stand,
            _ => Self::End,
        }
    }
}

/// The order in force, and how many threads stand.
#[derive(Debug, Default)]
pub(super) struct Gate {
    order: AtomicU8,
    standing: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// The order in force; one load.
    pub(super) fn order(&self) -> Order {
        Order::from_u8(self.order.load(Ordering::Acquire))
    }

    /// Gives an order. Threads that wait for packets have to be woken to see it.
    pub(super) fn set(&self, order: Order) {
        let standing = self.standing();
        self.order.store(order as u8, Ordering::Release);
        drop(standing);
        self.changed.notify_all();
    }

    /// How many threads stand.
    pub(super) fn count(&self) -> usize {
        *self.standing()
    }

    /// Stands as long as the order says so.
    pub(super) fn stand(&self) {
        let mut standing = self.standing();
        *standing += 1;
        while self.order() == Order::Stand {
            standing = self
                .changed
                .wait(standing)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *standing -= 1;
    }

    fn standing(&self) -> MutexGuard<'_, usize> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn threads_stand_until_told_otherwise() {
        let gate = Arc::new(Gate::default());
        assert_eq!(gate.order(), Order::Go);
        // Nobody has to stand: no waiting.
        gate.stand();
        for order in [Order::Go, Order::End] {
            gate.set(Order::Stand);
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let gate = Arc::clone(&gate);
                    thread::spawn(move || {
                        gate.stand();
                        gate.order()
                    })
                })
                .collect();
            while gate.count() < 3 {
                thread::yield_now();
            }
            gate.set(order);
            for thread in threads {
                assert_eq!(thread.join().unwrap(), order);
            }
            assert_eq!(gate.count(), 0);
        }
    }
}
