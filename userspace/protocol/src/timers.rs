//! The five timers of a peer (paper, section 6; kernel, `timers.c`), made lazy.
//!
//! Data threads never touch a timer. They note in [`Activity`] when something began to wait for an
//! answer, and tell control only if control is not already going to look. Control keeps one deadline
//! per peer and, when it comes, reads the notes and decides. A busy tunnel thus wakes control once
//! in 10 to 15 seconds, an idle one never.
//!
//! Handing over: a data thread stores the note, then swaps the `armed` flag to true and wakes
//! control if it was false. Control clears the flag, then reads the note. Both use sequentially
//! consistent operations, so at least one of them sees what the other did.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::limits::Limits;
use crate::time::Instant;

/// A moment that may be unset. Zero is "unset", so a real zero counts as one nanosecond later.
#[derive(Debug, Default)]
struct Mark(AtomicU64);

impl Mark {
    fn get(&self, order: Ordering) -> Option<Instant> {
        match self.0.load(order) {
            0 => None,
            nanos => Some(Instant::from_nanos(nanos)),
        }
    }

    fn set(&self, now: Instant, order: Ordering) {
        self.0.store(now.as_nanos().max(1), order);
    }

    /// Writes only if set: the common case leaves the cache line shared.
    fn clear(&self) {
        if self.0.load(Ordering::Relaxed) != 0 {
            self.0.store(0, Ordering::SeqCst);
        }
    }
}

/// Since when something waits, and whether control is going to look.
#[derive(Debug, Default)]
struct Wait {
    since: Mark,
    armed: AtomicBool,
}

impl Wait {
    /// Starts waiting if nothing waits yet; true if control must be woken.
    fn begin(&self, now: Instant) -> bool {
        if self.since.0.load(Ordering::Relaxed) != 0 {
            return false;
        }
        self.since.set(now, Ordering::SeqCst);
        !self.armed.swap(true, Ordering::SeqCst)
    }
}

/// What the data threads note about one peer.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// First data sent since anything authenticated came in.
    unanswered: Wait,
    /// First data received since anything was sent.
    unacknowledged: Wait,
    /// Last time anything authenticated went either way; kept only if a persistent keepalive is set.
    traversal: Mark,
    persistent: AtomicBool,
}

impl Activity {
    /// Something authenticated was sent; true if control must be woken.
    pub(crate) fn sent(&self, now: Instant, data: bool) -> bool {
        self.traversed(now);
        self.unacknowledged.since.clear();
        data && self.unanswered.begin(now)
    }

    /// Something authenticated was received; true if control must be woken.
    pub(crate) fn received(&self, now: Instant, data: bool) -> bool {
        self.traversed(now);
        self.unanswered.since.clear();
        data && self.unacknowledged.begin(now)
    }

    fn traversed(&self, now: Instant) {
        if self.persistent.load(Ordering::Relaxed) {
            self.traversal.set(now, Ordering::Relaxed);
        }
    }

    /// Forgets all waiting, as after `down`.
    pub(crate) fn reset(&self) {
        for wait in [&self.unanswered, &self.unacknowledged] {
            wait.since.0.store(0, Ordering::SeqCst);
            wait.armed.store(false, Ordering::SeqCst);
        }
        self.traversal.0.store(0, Ordering::Relaxed);
    }
}

/// Control's side of one [`Wait`].
#[derive(Debug, Default)]
struct Watch {
    /// When to look next.
    check: Option<Instant>,
    jitter: Duration,
}

impl Watch {
    /// Looks at the wait: arms the deadline if a data thread asked for it, moves it if the wait began
    /// later than thought, and returns true when `timeout` has passed.
    fn poll(
        &mut self,
        wait: &Wait,
        now: Instant,
        timeout: Duration,
        jitter: impl FnOnce() -> Duration,
    ) -> bool {
        if self.check.is_none() {
            if !wait.armed.load(Ordering::SeqCst) {
                return false;
            }
            self.jitter = jitter();
            let since = wait.since.get(Ordering::SeqCst).unwrap_or(now);
            self.check = Some(since + timeout + self.jitter);
        }
        if self.check.is_none_or(|check| now < check) {
            return false;
        }
        self.check = None;
        wait.armed.store(false, Ordering::SeqCst);
        let Some(since) = wait.since.get(Ordering::SeqCst) else {
            return false;
        };
        let due = since + timeout + self.jitter;
        if now < due {
            wait.armed.store(true, Ordering::SeqCst);
            self.check = Some(due);
            return false;
        }
        wait.since.clear();
        true
    }
}

/// What came due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Wipe all keys of the peer.
    Wipe,
    /// The initiation was not answered: repeat it or give up.
    RetryHandshake,
    /// A handshake that had to wait for the 5 seconds since the last one may start.
    DeferredHandshake,
    /// Data went out and nothing came back: new handshake.
    NewHandshake,
    /// Data came in and nothing went out, or the persistent interval passed, or an interval was just
    /// configured: send a keepalive.
    Keepalive,
}

/// Control's timers of one peer.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// When to repeat the initiation that is in flight.
    pub(crate) retry_at: Option<Instant>,
    /// Initiations sent since the last success.
    pub(crate) attempts: u32,
    /// When a handshake that came too early may start.
    pub(crate) deferred_at: Option<Instant>,
    /// When to wipe the keys.
    pub(crate) wipe_at: Option<Instant>,
    /// Persistent keepalive interval.
    persistent: Option<Duration>,
    /// From when the interval counts if nothing went either way since; `None` means it is due now.
    persistent_base: Option<Instant>,
    new_handshake: Watch,
    keepalive: Watch,
}

impl Timers {
    /// Sets the persistent keepalive interval. Turning it on makes it due at once.
    pub(crate) fn set_persistent(&mut self, interval: Option<Duration>, activity: &Activity) {
        if self.persistent.is_none() {
            self.persistent_base = None;
            activity.traversal.0.store(0, Ordering::Relaxed);
        }
        self.persistent = interval;
        activity
            .persistent
            .store(interval.is_some(), Ordering::Relaxed);
    }

    /// Stops all timers; the persistent interval stays configured and is due at the next start.
    pub(crate) fn stop(&mut self, activity: &Activity) {
        activity.reset();
        *self = Self {
            persistent: self.persistent,
            ..Self::default()
        };
    }

    /// Whether a handshake is in flight or waiting for its time.
    pub(crate) fn handshake_pending(&self) -> bool {
        self.retry_at.is_some() || self.deferred_at.is_some()
    }

    /// Takes what is due, one after the other. Each thing taken is no longer due.
    pub(crate) fn next_due(
        &mut self,
        now: Instant,
        limits: &Limits,
        activity: &Activity,
        jitter: impl FnOnce() -> Duration,
    ) -> Option<Due> {
        let passed = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        if passed(&mut self.wipe_at) {
            return Some(Due::Wipe);
        }
        if passed(&mut self.retry_at) {
            return Some(Due::RetryHandshake);
        }
        if passed(&mut self.deferred_at) {
            return Some(Due::DeferredHandshake);
        }
        let timeout = limits.new_handshake_timeout();
        if self
            .new_handshake
            .poll(&activity.unanswered, now, timeout, jitter)
        {
            return Some(Due::NewHandshake);
        }
        let timeout = limits.keepalive_timeout;
        if self
            .keepalive
            .poll(&activity.unacknowledged, now, timeout, || Duration::ZERO)
        {
            return Some(Due::Keepalive);
        }
        if self
            .persistent_due(activity)
            .is_some_and(|due| due.is_none_or(|at| at <= now))
        {
            self.persistent_base = Some(now);
            return Some(Due::Keepalive);
        }
        None
    }

    /// When the persistent keepalive is due: `Some(None)` is "at once".
    #[allow(
        clippy::option_option,
        reason = "outer: configured at all; inner: has a time"
    )]
    fn persistent_due(&self, activity: &Activity) -> Option<Option<Instant>> {
        let interval = self.persistent?;
        let last = self
            .persistent_base
            .max(activity.traversal.get(Ordering::Relaxed));
        Some(last.map(|last| last + interval))
    }

    /// The earliest moment at which something may be due.
    pub(crate) fn deadline(&self, activity: &Activity) -> Option<Instant> {
        let persistent = self
            .persistent_due(activity)
            .map(|due| due.unwrap_or_default());
        [
            self.wipe_at,
            self.retry_at,
            self.deferred_at,
            self.new_handshake.check,
            self.keepalive.check,
            persistent,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn due(timers: &mut Timers, activity: &Activity, millis: u64) -> Option<Due> {
        timers.next_due(at(millis), &Limits::default(), activity, || {
            Duration::from_millis(100)
        })
    }

    #[test]
    fn control_is_woken_once_while_traffic_goes_both_ways() {
        let (activity, mut timers) = (Activity::default(), Timers::default());
        let mut woken = 0;
        for millis in 1000..9000 {
            woken += u32::from(activity.sent(at(millis), true));
            woken += u32::from(activity.received(at(millis), true));
        }
        assert_eq!(woken, 2);
        assert_eq!(due(&mut timers, &activity, 9000), None);
        assert!(timers.deadline(&activity).is_some());
    }

    #[test]
    fn silence_after_data_sent_wants_a_handshake_after_15_s_and_jitter() {
        let (activity, mut timers) = (Activity::default(), Timers::default());
        assert!(activity.sent(at(1000), true));
        assert_eq!(due(&mut timers, &activity, 1000), None);
        assert_eq!(timers.deadline(&activity), Some(at(16_100)));
        assert!(!activity.sent(at(5000), true));
        assert_eq!(due(&mut timers, &activity, 16_099), None);
        assert_eq!(due(&mut timers, &activity, 16_100), Some(Due::NewHandshake));
        assert_eq!(due(&mut timers, &activity, 16_100), None);
        assert_eq!(timers.deadline(&activity), None);
    }

    #[test]
    fn an_answer_moves_the_check_or_ends_it() {
        let (activity, mut timers) = (Activity::default(), Timers::default());
        activity.sent(at(1000), true);
        due(&mut timers, &activity, 1000);
        activity.received(at(2000), false);
        activity.sent(at(3000), true);
        assert_eq!(due(&mut timers, &activity, 16_100), None);
        assert_eq!(timers.deadline(&activity), Some(at(18_100)));
        activity.received(at(4000), false);
        assert_eq!(due(&mut timers, &activity, 18_100), None);
        assert_eq!(timers.deadline(&activity), None);
        // Disarmed, so the next data wakes control again.
        assert!(activity.sent(at(20_000), true));
    }

    #[test]
    fn data_received_is_answered_after_10_s_unless_something_was_sent() {
        let (activity, mut timers) = (Activity::default(), Timers::default());
        assert!(!activity.received(at(500), false));
        assert_eq!(due(&mut timers, &activity, 60_000), None);
        assert!(activity.received(at(61_000), true));
        due(&mut timers, &activity, 61_000);
        assert_eq!(due(&mut timers, &activity, 70_999), None);
        assert_eq!(due(&mut timers, &activity, 71_000), Some(Due::Keepalive));
        activity.received(at(72_000), true);
        due(&mut timers, &activity, 72_000);
        activity.sent(at(73_000), false);
        assert_eq!(due(&mut timers, &activity, 82_000), None);
    }

    #[test]
    fn the_persistent_keepalive_counts_from_the_last_traversal() {
        let (activity, mut timers) = (Activity::default(), Timers::default());
        timers.set_persistent(Some(Duration::from_secs(25)), &activity);
        assert_eq!(due(&mut timers, &activity, 1000), Some(Due::Keepalive));
        assert_eq!(due(&mut timers, &activity, 1000), None);
        assert_eq!(timers.deadline(&activity), Some(at(26_000)));
        activity.received(at(20_000), false);
        assert_eq!(due(&mut timers, &activity, 26_000), None);
        assert_eq!(timers.deadline(&activity), Some(at(45_000)));
        timers.set_persistent(None, &activity);
        assert_eq!(timers.deadline(&activity), None);
    }
}
