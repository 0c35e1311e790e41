//! Whether the data threads still go round.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Dataplane;

/// Rounds that a data thread has made.
// Aligned so that no two threads write to one cache line, nor to a prefetched pair.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Pulse(AtomicU64);

impl Pulse {
    /// Another round; called by the thread itself, for each batch or wake-up.
    pub(super) fn beat(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Tells threads that work or wait from one that hangs.
#[derive(Debug, Default)]
pub struct Pulses {
    seen: Vec<u64>,
}

impl Pulses {
    /// Whether each thread has gone round since the last call; true at the first. Wakes all of them, so that those
    /// without packets do before the next.
    pub fn all_beat(&mut self, shared: &Dataplane) -> bool {
        let inboxes = shared.inboxes.iter();
        let pulses = inboxes.flat_map(|inbox| [&inbox.egress_pulse, &inbox.ingress_pulse]);
        let now: Vec<u64> = pulses.map(Pulse::get).collect();
        let alive = self.seen.iter().zip(&now).all(|(seen, now)| seen != now);
        self.seen = now;
        for inbox in &shared.inboxes {
            inbox.wake_egress.signal();
            inbox.wake_ingress.signal();
        }
        alive
    }
}
