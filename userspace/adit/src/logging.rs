//! Log set-up: the level comes from `LOG_LEVEL`, lines go to standard error.
//!
//! Some lines are caused by packets. So that whoever can send packets cannot fill a disk, each place in the code may say
//! something a hundred times at once and ten times a second; what it has to say beyond that is counted and left out.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use adit_kernel::clock::boottime_ns;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Nanoseconds for each line, in the long run.
const INTERVAL: u64 = 100_000_000;
/// Lines at once.
const BURST: u64 = 100;
/// More than there are places that packets lead to; two that share one have less to say, no more.
const PLACES: usize = 128;

static OMITTED: AtomicU64 = AtomicU64::new(0);

/// Lines that were left out because the same place had said a lot already.
pub fn omitted() -> u64 {
    OMITTED.load(Relaxed)
}

/// Leaves out what is said too often.
#[derive(Debug)]
struct Limiter {
    /// When each place would have nothing saved any more, had it spoken at an even pace.
    due: [AtomicU64; PLACES],
}

impl Limiter {
    fn new() -> Self {
        Self {
            due: [const { AtomicU64::new(0) }; PLACES],
        }
    }

    /// Whether a line from a place, by its number, may be written now.
    fn allows(&self, place: u64, now: u64) -> bool {
        let place = usize::try_from(place % PLACES as u64).unwrap_or(0);
        let spend = |due: u64| {
            let due = due.max(now);
            (due - now <= (BURST - 1) * INTERVAL).then_some(due + INTERVAL)
        };
        self.due[place].try_update(Relaxed, Relaxed, spend).is_ok()
    }
}

impl<S: Subscriber> Layer<S> for Limiter {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let mut place = DefaultHasher::new();
        event.metadata().callsite().hash(&mut place);
        let allowed = self.allows(place.finish(), boottime_ns());
        OMITTED.fetch_add(u64::from(!allowed), Relaxed);
        allowed
    }
}

/// Reads a level as `wireguard-go` does: `silent`, `error`, `verbose` (its name for debug), and
/// beside these `warn`, `info`, `debug` and `trace`.
pub fn parse_level(text: &str) -> Option<LevelFilter> {
    Some(match text {
        "silent" | "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" | "verbose" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return None,
    })
}

/// Installs the subscriber. Warnings and errors are shown where nothing was asked for: a warning
/// is worth somebody's attention by definition.
///
/// The service manager's journal stamps lines itself, so only a terminal gets times.
pub fn start(level: LevelFilter) {
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    // A second call (in tests) keeps the first subscriber, which is what is wanted.
    let _ = if std::io::stderr().is_terminal() {
        builder.finish().with(Limiter::new()).try_init()
    } else {
        let builder = builder.without_time();
        builder.finish().with(Limiter::new()).try_init()
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_may_say_little_in_the_long_run_and_the_others_are_heard() {
        const SECOND: u64 = 1_000_000_000;
        let limiter = Limiter::new();
        let said = |seconds: std::ops::Range<u64>| {
            let times = (seconds.start * SECOND..seconds.end * SECOND).step_by(1_000_000);
            times.filter(|&now| limiter.allows(7, now)).count() as u64
        };
        assert_eq!(said(1000..1001), BURST + 9);
        assert_eq!(said(1001..1011), 100);
        assert!(limiter.allows(8, 1001 * SECOND));
        // What was not said is saved, but not for ever.
        assert_eq!(said(5000..5001), BURST + 9);
    }

    #[test]
    fn names_of_levels() {
        assert_eq!(parse_level("silent"), Some(LevelFilter::OFF));
        assert_eq!(parse_level("verbose"), Some(LevelFilter::DEBUG));
        assert_eq!(parse_level("error"), Some(LevelFilter::ERROR));
        assert_eq!(parse_level("loud"), None);
    }
}
