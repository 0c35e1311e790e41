//! A second thread for the cryptography of one heavy flow.
//!
//! ```text
//!   egress or ingress thread          ┌──┬──┬──┬──┐          helper
//!      fill ──► offer ───────────────►│  │  │  │  │ take ──► seal or open
//!      send, write ◄──────── collect ─┤  │  │  │  │◄──────── finish
//!               in the order offered  └──┴──┴──┴──┘
//! ```
//! Everything but the cryptography stays with the thread, and so does the order. What the helper has
//! not begun when it is needed, the thread does itself; a helper that does not get to run costs
//! nothing but the look. Whether there is help at all, a judge decides.
//!
//! - `slots`: how batches change hands.
//! - `judge`, `idle`: whether it pays.

mod idle;
mod judge;
mod slots;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::Context as _;
use arrayvec::ArrayVec;
use clap::ValueEnum;

use self::judge::{Effort, Judge};
use self::slots::{SLOTS, Slots};
use crate::instant;
use crate::sandbox::{Role, Sandbox};

/// How long a helper waits for the next batch before it sleeps, in nanoseconds. Batches of a flow
/// that keeps a thread busy are less than half of that apart, and waking a core from idle takes
/// 20 to 50 µs in a virtual machine.
const SPIN: u64 = 200_000;
/// Looks at the slots between two looks at the clock.
const LOOKS: u32 = 32;
/// A pause between two looks at the clock that shows that somebody else had the core, in
/// nanoseconds; interrupts take less.
const PREEMPTED: u64 = 100_000;
/// Working on a batch takes some tens of microseconds. One that is waited for longer than this is
/// with a helper that does not run.
const OVERDUE: u64 = 200_000;

/// When data threads have a helper seal or open for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Helpers {
    /// While a thread cannot keep up and a core is idle
    #[default]
    Auto,
    /// Whenever there is something to do, whatever it costs
    Always,
    /// Never
    Off,
}

/// What a helper can do to a batch.
pub(super) trait Work: Send + 'static {
    /// Does it. Must neither block nor allocate.
    fn work(&mut self);
}

/// What thread and helper share.
struct Shared<T> {
    slots: Slots<Box<T>>,
    asleep: AtomicBool,
    stopping: AtomicBool,
    worked: AtomicU64,
    lost: AtomicU64,
}

/// A thread's end: batches go in, and come out sealed or opened, in the same order.
pub(super) struct Pipeline<T> {
    shared: Arc<Shared<T>>,
    helper: Option<JoinHandle<()>>,
    spare: ArrayVec<Box<T>, SLOTS>,
    /// Batches offered since the start; the next slot's number.
    offered: usize,
    /// Batches collected since the start; the oldest slot's number.
    collected: usize,
    /// None: always.
    judge: Option<Judge>,
    takeovers: u64,
    wakes: u64,
}

/// What became of the batches since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Batches that the helper did.
    pub(super) helped: u64,
    /// Batches that were offered to it, and done by the thread in the end.
    pub(super) takeovers: u64,
    /// Times the helper was woken.
    pub(super) wakes: u64,
}

impl<T: Work> Pipeline<T> {
    /// Starts a helper, asleep, named `name`; `batch` makes the batches to exchange. `None` if
    /// there is to be no help.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(super) fn start(
        helpers: Helpers,
        sandbox: &Sandbox,
        name: &str,
        batch: impl Fn() -> Box<T>,
    ) -> anyhow::Result<Option<Self>> {
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        let judge = match helpers {
            Helpers::Off => return Ok(None),
            // Nobody to help.
            Helpers::Auto if cores() == 1 => return Ok(None),
            Helpers::Auto => Some(Judge::new()),
            Helpers::Always => None,
        };
        let shared = Arc::new(Shared {
            slots: Slots::new(),
            asleep: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            worked: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let helper = thread::Builder::new()
            .name(name.to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                let sandbox = sandbox.clone();
                move || {
                    sandbox.confine(Role::Helper);
                    shared.help();
                }
            })
            .with_context(|| format!("cannot start the {name} thread"))?;
        Ok(Some(Self {
            shared,
            helper: Some(helper),
            spare: (0..SLOTS).map(|_| batch()).collect(),
            offered: 0,
            collected: 0,
            judge,
            takeovers: 0,
            wakes: 0,
        }))
    }

    /// Takes note that the thread has waited for something to do.
    pub(super) fn slept(&mut self, nanoseconds: u64) {
        if let Some(judge) = &mut self.judge {
            judge.slept(nanoseconds);
        }
    }

    /// Whether the batch at hand goes to the helper. `large` says that it is worth handing over, and
    /// that another is likely to follow at once.
    pub(super) fn wants(&mut self, large: bool) -> bool {
        let report = self.report();
        let Some(judge) = &mut self.judge else {
            return true;
        };
        let shared = &self.shared;
        large
            && judge.grants(nanoseconds(), || Effort {
                helped: report.helped,
                takeovers: report.takeovers,
                worked: shared.worked.load(Ordering::Relaxed),
                lost: shared.lost.load(Ordering::Relaxed),
            })
    }

    /// Hands `batch` over and puts a spare one in its place. Not to be called while
    /// [`is_full`](Self::is_full).
    pub(super) fn offer(&mut self, batch: &mut Box<T>) {
        let Some(spare) = self.spare.pop() else {
            return debug_assert!(false, "offered while full");
        };
        let slots = &self.shared.slots;
        slots.offer(self.offered, std::mem::replace(batch, spare));
        self.offered += 1;
        if self.shared.asleep.swap(false, Ordering::SeqCst)
            && let Some(helper) = &self.helper
        {
            self.wakes += 1;
            helper.thread().unpark();
        }
    }

    /// Whether a batch has to be collected before another can be offered.
    fn is_full(&self) -> bool {
        self.spare.is_empty()
    }

    /// Whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.offered == self.collected
    }

    /// The oldest batch, if it is done or there is no room for another. To be [given back](Self::give_back).
    pub(super) fn due(&mut self) -> Option<Box<T>> {
        match self.finished() {
            None if self.is_full() => self.finish(),
            finished => finished,
        }
    }

    /// The oldest batch, if it is done.
    fn finished(&mut self) -> Option<Box<T>> {
        if self.is_empty() {
            return None;
        }
        let batch = self.shared.slots.collect(self.collected)?;
        self.collected += 1;
        Some(batch)
    }

    /// The oldest batch, done: the thread works on what the helper has not begun until it is. `None`
    /// if nothing is on its way. To be [given back](Self::give_back).
    pub(super) fn finish(&mut self) -> Option<Box<T>> {
        let mut waiting_since = None;
        while !self.is_empty() {
            if let Some(batch) = self.finished() {
                return Some(batch);
            }
            if self.take_over() {
                waiting_since = None;
                continue;
            }
            // The helper is at it.
            for _ in 0..LOOKS {
                std::hint::spin_loop();
            }
            let now = nanoseconds();
            let since = *waiting_since.get_or_insert(now);
            if now.saturating_sub(since) > OVERDUE {
                let lost = now.saturating_sub(since);
                self.shared.lost.fetch_add(lost, Ordering::Relaxed);
                waiting_since = Some(now);
                // Perhaps it waits for this very core.
                thread::yield_now();
            }
        }
        None
    }

    /// Works on the oldest batch that the helper has not begun; false if there is none.
    fn take_over(&mut self) -> bool {
        let slots = &self.shared.slots;
        for number in self.collected..self.offered {
            if let Some(mut batch) = slots.take(number) {
                batch.work();
                slots.finish(number, batch);
                self.takeovers += 1;
                return true;
            }
        }
        false
    }

    /// Returns a collected batch, for later.
    pub(super) fn give_back(&mut self, batch: Box<T>) {
        // There are never more than were made.
        let _ = self.spare.try_push(batch);
    }

    /// What became of the batches. Exact while nothing is on its way.
    pub(super) fn report(&self) -> Report {
        Report {
            helped: (self.collected as u64).saturating_sub(self.takeovers),
            takeovers: self.takeovers,
            wakes: self.wakes,
        }
    }
}

impl<T: Work> Shared<T> {
    /// The helper thread: works while there is something to do, spins while that is likely, and
    /// sleeps until it is woken.
    fn help(&self) {
        let mut next = 0;
        let mut looked_at = nanoseconds();
        let mut spinning_since = looked_at;
        while !self.stopping.load(Ordering::Relaxed) {
            if let Some((number, mut batch)) = self.take(next) {
                let start = nanoseconds();
                batch.work();
                self.slots.finish(number, batch);
                next = number + 1;
                looked_at = nanoseconds();
                spinning_since = looked_at;
                let took = looked_at.saturating_sub(start);
                self.worked.fetch_add(took, Ordering::Relaxed);
                continue;
            }
            for _ in 0..LOOKS {
                std::hint::spin_loop();
            }
            let now = nanoseconds();
            let pause = now.saturating_sub(looked_at);
            looked_at = now;
            if pause > PREEMPTED {
                self.lost.fetch_add(pause, Ordering::Relaxed);
            }
            if now.saturating_sub(spinning_since) > SPIN {
                self.sleep(next);
                looked_at = nanoseconds();
                spinning_since = looked_at;
            }
        }
    }

    /// The oldest batch that nobody has begun. Whatever lies before the last one taken is done.
    fn take(&self, next: usize) -> Option<(usize, Box<T>)> {
        (next..next + SLOTS).find_map(|number| Some((number, self.slots.take(number)?)))
    }

    fn sleep(&self, next: usize) {
        self.asleep.store(true, Ordering::SeqCst);
        // What was offered before that was seen, nobody wakes us for.
        let found = (next..next + SLOTS).any(|number| self.slots.is_ready(number));
        if found || self.stopping.load(Ordering::SeqCst) {
            self.asleep.store(false, Ordering::SeqCst);
            return;
        }
        while self.asleep.load(Ordering::SeqCst) {
            thread::park();
        }
    }
}

impl<T> Drop for Pipeline<T> {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.asleep.store(false, Ordering::SeqCst);
        if let Some(helper) = self.helper.take() {
            helper.thread().unpark();
            let _ = helper.join();
        }
    }
}

impl<T> fmt::Debug for Pipeline<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Pipeline")
            .field("offered", &self.offered)
            .field("collected", &self.collected)
            .field("judge", &self.judge)
            .finish_non_exhaustive()
    }
}

/// Now, on the clock of everything here.
fn nanoseconds() -> u64 {
    instant().as_nanos()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Works as long as it is told to.
    #[derive(Default)]
    struct Number {
        value: u64,
        worked: u32,
        takes: Duration,
        blocked: Option<Arc<AtomicBool>>,
    }

    impl Work for Number {
        fn work(&mut self) {
            if let Some(blocked) = self.blocked.take() {
                while blocked.load(Ordering::Acquire) {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            if !self.takes.is_zero() {
                thread::sleep(self.takes);
            }
            self.worked += 1;
        }
    }

    fn pipeline() -> Pipeline<Number> {
        let batch = Box::<Number>::default;
        Pipeline::start(Helpers::Always, &Sandbox::none(), "test-helper", batch)
            .unwrap()
            .unwrap()
    }

    /// Sends numbers through, collecting as a data thread does; they come out in order, each worked
    /// on once.
    fn run(pipeline: &mut Pipeline<Number>, count: u64, takes: impl Fn(u64) -> Duration) -> Report {
        let mut expected = 0;
        let mut check = |pipeline: &mut Pipeline<Number>, batch: Box<Number>| {
            assert_eq!((batch.value, batch.worked), (expected, 1));
            expected += 1;
            pipeline.give_back(batch);
        };
        let mut batch = Box::<Number>::default();
        for value in 0..count {
            *batch = Number {
                value,
                takes: takes(value),
                ..Number::default()
            };
            pipeline.offer(&mut batch);
            while let Some(done) = pipeline.finished() {
                check(pipeline, done);
            }
            // The helper may have been so fast that nothing is left.
            if (pipeline.is_full() || value % 7 == 0)
                && let Some(done) = pipeline.finish()
            {
                check(pipeline, done);
            }
        }
        while let Some(done) = pipeline.finish() {
            check(pipeline, done);
        }
        assert!(pipeline.is_empty());
        assert_eq!(expected, count);
        pipeline.report()
    }

    #[test]
    fn order_is_kept_whoever_does_the_work() {
        let mut pipeline = pipeline();
        let report = run(&mut pipeline, 20_000, |_| Duration::ZERO);
        assert_eq!(report.helped + report.takeovers, 20_000);
    }

    #[test]
    fn order_is_kept_under_a_slow_helper() {
        let mut pipeline = pipeline();
        let report = run(&mut pipeline, 60, |value| {
            Duration::from_micros(if value % 3 == 0 { 900 } else { 50 })
        });
        assert!(report.helped > 0, "{report:?}");
        assert_eq!(report.helped + report.takeovers, 60);
    }

    /// A helper that is stopped in the middle of a batch: the others are done meanwhile, and that
    /// one is waited for.
    #[test]
    fn a_descheduled_helper_delays_nothing_but_what_it_has_begun() {
        let mut pipeline = pipeline();
        let blocked = Arc::new(AtomicBool::new(true));
        let mut batch = Box::new(Number {
            value: 1,
            blocked: Some(Arc::clone(&blocked)),
            ..Number::default()
        });
        pipeline.offer(&mut batch);
        while pipeline.shared.slots.is_ready(0) {
            thread::yield_now();
        }
        for value in 2..=3 {
            *batch = Number {
                value,
                ..Number::default()
            };
            pipeline.offer(&mut batch);
        }
        assert!(pipeline.finished().is_none());
        while pipeline.take_over() {}
        assert_eq!(pipeline.takeovers, 2);
        assert!(pipeline.finished().is_none(), "the first comes first");
        let release = thread::spawn(move || {
            thread::sleep(Duration::from_millis(5));
            blocked.store(false, Ordering::Release);
        });
        for value in 1..=3 {
            let done = pipeline.finish().unwrap();
            assert_eq!((done.value, done.worked), (value, 1));
            pipeline.give_back(done);
        }
        release.join().unwrap();
        assert!(pipeline.finish().is_none());
        assert!(pipeline.shared.lost.load(Ordering::Relaxed) > 0);
        let report = pipeline.report();
        assert_eq!((report.helped, report.takeovers), (1, 2));
    }

    #[test]
    fn a_helper_that_sleeps_is_woken_and_one_that_is_never_used_ends() {
        let mut pipeline = pipeline();
        for round in 1..=3 {
            while !pipeline.shared.asleep.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            let mut batch = Box::<Number>::default();
            pipeline.offer(&mut batch);
            let done = loop {
                if let Some(done) = pipeline.finished() {
                    break done;
                }
                thread::yield_now();
            };
            pipeline.give_back(done);
            assert_eq!(pipeline.report().helped, round);
        }
        drop(pipeline);
        drop(super::tests::pipeline());
        let none = Pipeline::start(
            Helpers::Off,
            &Sandbox::none(),
            "none",
            Box::<Number>::default,
        );
        assert!(none.unwrap().is_none());
    }
}
