//! What the programs log, as lines for the daemon's own log.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use aya::Ebpf;
use aya_log::EbpfLogger;

/// What the programs log. What is above the level is not in the loaded program at all: the level is a constant when the verifier
/// sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventLevel {
    /// Nothing.
    #[default]
    Off,
    /// The first packet of each new flow.
    Debug,
    /// Also dropped packets, one of each 1,024 per reason and CPU.
    Trace,
}

impl EventLevel {
    /// As aya-log numbers levels (`aya_log_common::Level`).
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Debug => 4,
            Self::Trace => 5,
        }
    }
}

/// The programs' log. Poll the descriptor for reading, then [`drain`](Self::drain).
pub struct Events {
    logger: EbpfLogger<Lines>,
    lines: Lines,
}

impl Events {
    pub(super) fn new(ebpf: &mut Ebpf) -> Option<Self> {
        let lines = Lines::default();
        let logger = EbpfLogger::init_with_logger(ebpf, lines.clone()).ok()?;
        Some(Self { logger, lines })
    }

    /// Hands over what has been logged since the last call. Addresses appear in it, so it belongs at debug level or below.
    pub fn drain(&mut self, mut each: impl FnMut(EventLevel, &str)) {
        self.logger.flush();
        for (level, line) in self.lines.take() {
            each(level, &line);
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.logger.as_fd()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Events").finish_non_exhaustive()
    }
}

/// Where aya-log puts the lines, since it writes to a `log::Log`.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<(EventLevel, String)>>>);

impl Lines {
    fn take(&self) -> Vec<(EventLevel, String)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let level = if record.level() == log::Level::Trace {
            EventLevel::Trace
        } else {
            EventLevel::Debug
        };
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push((level, record.args().to_string()));
    }

    fn flush(&self) {}
}
