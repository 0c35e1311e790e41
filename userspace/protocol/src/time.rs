//! Time as an argument: the caller reads the clocks, the protocol only compares.

use std::ops::Add;
use std::time::Duration;

/// A moment on a monotonic clock that also counts suspend (`CLOCK_BOOTTIME`), in nanoseconds from
/// an arbitrary origin.
///
/// A clock that stops in suspend would let a session outlive its 180 seconds by the length of the
/// sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The moment `nanos` nanoseconds after the clock's origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's origin.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`, zero when `earlier` lies ahead (threads read the clock at
    /// slightly different moments).
    #[must_use]
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates at the end of the clock, 584 years after its origin.
    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

/// Both clocks at one moment.
///
/// `unix` is needed for the TAI64N timestamp of an initiation and for the time of the last
/// handshake that `wg show` prints; every limit runs on `instant`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The monotonic clock.
    pub instant: Instant,
    /// Time since 1970-01-01 00:00:00 UTC.
    pub unix: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        let end = Instant::from_nanos(u64::MAX - 1);
        assert_eq!((end + Duration::from_secs(1)).as_nanos(), u64::MAX);
        assert_eq!((end + Duration::MAX).as_nanos(), u64::MAX);
        assert_eq!(
            Instant::default().saturating_duration_since(end),
            Duration::ZERO
        );
    }
}
