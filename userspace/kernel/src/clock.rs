//! The two clocks a tunnel needs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::sys;

/// Nanoseconds since boot, time in suspend included (`CLOCK_BOOTTIME`, the clock of
/// `bpf_ktime_get_boot_ns`): a session is as old as its peer thinks after a laptop slept.
#[must_use]
pub fn boottime_ns() -> u64 {
    // CLOCK_BOOTTIME exists since Linux 2.6.39, so the fallback to 0 is for form's sake.
    let time = sys::clock_gettime(libc::CLOCK_BOOTTIME).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Time since the Unix epoch; zero if the wall clock is set before it.
#[must_use]
pub fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_never_goes_back_and_agrees_with_proc() {
        let first = boottime_ns();
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let second = boottime_ns();
        assert!(second >= first);
        assert!((Duration::from_nanos(first).as_secs_f64() - seconds).abs() < 1.0);
    }

    #[test]
    fn wall_clock_is_after_this_was_written() {
        assert!(unix_time() > Duration::from_secs(1_760_000_000));
    }
}
