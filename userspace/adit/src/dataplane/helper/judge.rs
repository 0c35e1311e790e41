//! Whether a helper is worth its while.
//!
//! A helper costs: it burns a core while it waits for batches, and each batch travels to its cache
//! and back. It pays if the thread cannot keep up by itself and a core has nothing to do. Both are
//! judged without a helper at work, or its own doings would be taken for the machine's. So help is
//! granted for a while only, and then everything is looked at again.

use super::idle::IdleCores;

/// Nanoseconds that judgements look back on. `/proc/uptime` counts in steps of 10 ms and core.
const WINDOW: u64 = 100_000_000;
/// Percent of its time that a thread works before it may need help: below that the load varies
/// anyway, and helping would only make it wait.
const BUSY: u64 = 75;
/// Hundredths of a core that must be idle. A helper takes 30 to 50 at full load.
const IDLE: u64 = 50;
/// Percent of the time that helper and thread work together under which help ends early.
const QUIET: u64 = 50;
/// Percent of a helper's time for which it may be kept from running before the core is called busy.
const LOST: u64 = 10;
/// For how long help is granted at first,
const FIRST_GRANT: u64 = 500_000_000;
/// and at most, doubled each time the next look confirms it. A look takes two windows, so that a
/// twentieth of the time is without help in the end.
const LONGEST_GRANT: u64 = 4_000_000_000;
/// Windows in a row that must speak for help: at the beginning of a transfer the other end of a
/// connection has not got going.
const AGREEING: u32 = 2;
/// How long nothing is tried again after a core turned out to be busy; twice as long each time
const FIRST_REST: u64 = 2_000_000_000;
/// up to this.
const LONGEST_REST: u64 = 32_000_000_000;

/// What a helper has done since it was started, in nanoseconds and batches.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Effort {
    /// Batches that it did.
    pub(super) helped: u64,
    /// Batches that it had not begun when they were needed.
    pub(super) takeovers: u64,
    /// Working on batches.
    pub(super) worked: u64,
    /// Ready to run, or in the middle of a batch that was waited for, and not running.
    pub(super) lost: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Without help, measuring; so many windows have spoken for it.
    Watching { agreeing: u32 },
    /// With help until a moment in nanoseconds.
    Helping { until: u64 },
    /// Without help until a moment in nanoseconds.
    Resting { until: u64 },
}

/// Judges for one thread. All times are nanoseconds on one clock.
#[derive(Debug)]
pub(super) struct Judge {
    state: State,
    grant: u64,
    rest: u64,
    window_start: u64,
    /// How long the thread waited for something to do in this window.
    slept: u64,
    effort_before: Effort,
    idle: IdleCores,
}

impl Judge {
    pub(super) fn new() -> Self {
        Self {
            state: State::Watching { agreeing: 0 },
            grant: FIRST_GRANT,
            rest: FIRST_REST,
            window_start: 0,
            slept: 0,
            effort_before: Effort::default(),
            idle: IdleCores::new(),
        }
    }

    /// The thread has waited for something to do.
    pub(super) fn slept(&mut self, nanoseconds: u64) {
        self.slept += nanoseconds;
    }

    /// Whether the next batch goes to the helper. Called for each batch that is worth handing over.
    pub(super) fn grants(&mut self, now: u64, effort: impl FnOnce() -> Effort) -> bool {
        let helping = matches!(self.state, State::Helping { .. });
        let passed = now.saturating_sub(self.window_start);
        if passed < WINDOW {
            return helping;
        }
        if passed > 2 * WINDOW {
            // There was a pause; what it says about the load is not about this one.
            if helping {
                self.state = State::Watching { agreeing: 0 };
            }
            self.start_window(now, effort());
            return false;
        }
        let effort = effort();
        let before = self.effort_before;
        let worked = effort.worked.saturating_sub(before.worked);
        let lost = effort.lost.saturating_sub(before.lost);
        let helped = effort.helped.saturating_sub(before.helped);
        let takeovers = effort.takeovers.saturating_sub(before.takeovers);
        let percent = |part: u64| part.saturating_mul(100) / passed;
        let busy = percent(passed.saturating_sub(self.slept));
        self.state = match self.state {
            State::Watching { agreeing } if busy >= BUSY && self.idle.percent() >= IDLE => {
                if agreeing + 1 < AGREEING {
                    State::Watching {
                        agreeing: agreeing + 1,
                    }
                } else {
                    let until = now + self.grant;
                    self.grant = (2 * self.grant).min(LONGEST_GRANT);
                    State::Helping { until }
                }
            }
            State::Watching { .. } => {
                self.grant = FIRST_GRANT;
                State::Watching { agreeing: 0 }
            }
            // Kept from running, or too late: the core is not idle.
            State::Helping { .. } if percent(lost) >= LOST || takeovers > helped => {
                self.grant = FIRST_GRANT;
                let until = now + self.rest;
                self.rest = (2 * self.rest).min(LONGEST_REST);
                State::Resting { until }
            }
            State::Helping { until } if until > now && busy + percent(worked) >= QUIET => {
                State::Helping { until }
            }
            State::Helping { .. } => {
                self.rest = FIRST_REST;
                State::Watching { agreeing: 0 }
            }
            State::Resting { until } if until > now => State::Resting { until },
            State::Resting { .. } => State::Watching { agreeing: 0 },
        };
        self.start_window(now, effort);
        matches!(self.state, State::Helping { .. })
    }

    fn start_window(&mut self, now: u64, effort: Effort) {
        self.window_start = now;
        self.slept = 0;
        self.effort_before = effort;
        if matches!(self.state, State::Watching { .. }) {
            self.idle.start();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = WINDOW / 10;

    /// A judge who believes that a number of cores are idle.
    struct Court {
        judge: Judge,
        now: u64,
        effort: Effort,
    }

    impl Court {
        fn new() -> Self {
            Self {
                judge: Judge::new(),
                now: 1,
                effort: Effort::default(),
            }
        }

        /// Lets one window pass under a load of `busy` percent; whether the last batch in it went to
        /// the helper, of whose time `lost` percent were lost.
        fn window(&mut self, busy: u64, idle: u64, lost: u64) -> bool {
            let mut helped = false;
            for _ in 0..=10 {
                self.judge.idle.pretend(idle);
                self.now += STEP;
                self.judge.slept(STEP * (100 - busy) / 100);
                self.effort.worked += STEP / 3;
                self.effort.lost += STEP * lost / 100;
                let effort = self.effort;
                helped = self.judge.grants(self.now, || effort);
            }
            helped
        }

        fn windows(&mut self, count: usize, busy: u64, idle: u64, lost: u64) {
            for _ in 0..count {
                self.window(busy, idle, lost);
            }
        }
    }

    #[test]
    fn help_is_granted_to_a_busy_thread_on_an_idle_machine_alone() {
        for (busy, idle, expected) in [(95, 100, true), (95, 20, false), (50, 100, false)] {
            let mut court = Court::new();
            court.windows(3, busy, idle, 0);
            assert_eq!(court.window(busy, idle, 0), expected, "{busy} {idle}");
        }
    }

    #[test]
    fn help_ends_when_the_load_goes_and_is_looked_at_again_in_time() {
        let mut court = Court::new();
        court.windows(4, 95, 100, 0);
        assert!(court.window(95, 100, 0));
        // Nothing is idle once the helper is at work; that says nothing.
        assert!(court.window(95, 0, 0));
        court.windows(2, 5, 100, 0);
        assert!(!court.window(5, 100, 0), "no load");

        let mut court = Court::new();
        let helped = (0..40).filter(|_| court.window(95, 100, 0)).count();
        assert!((25..40).contains(&helped), "{helped}");
        let helped = (0..60).map(|_| court.window(95, 0, 0));
        assert!(!helped.last().unwrap(), "the machine is busy by now");
    }

    #[test]
    fn a_helper_that_is_kept_from_running_is_not_used_for_a_while() {
        let mut court = Court::new();
        court.windows(4, 95, 100, 0);
        assert!(court.window(95, 100, 0));
        court.windows(2, 95, 100, 30);
        let helped = (0..15).filter(|_| court.window(95, 100, 0)).count();
        assert_eq!(helped, 0);
        let helped = (0..15).filter(|_| court.window(95, 100, 0)).count();
        assert!(helped > 0);
    }

    #[test]
    fn a_helper_that_comes_too_late_is_tried_ever_more_seldom() {
        let mut court = Court::new();
        let mut tries = Vec::new();
        for number in 0..600 {
            court.effort.takeovers += 10;
            court.effort.helped += 4;
            if court.window(95, 100, 0) {
                tries.push(number);
            }
        }
        assert!((2..12).contains(&tries.len()), "{tries:?}");
    }

    #[test]
    fn a_pause_starts_anew() {
        let mut court = Court::new();
        court.windows(4, 95, 100, 0);
        assert!(court.window(95, 100, 0));
        court.now += 10 * WINDOW;
        let effort = court.effort;
        assert!(!court.judge.grants(court.now, || effort));
    }
}
