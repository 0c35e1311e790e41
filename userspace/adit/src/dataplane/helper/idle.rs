//! How much of the machine nobody uses: `/proc/uptime`, which is cheap to read however many cores
//! there are (`fs/proc/uptime.c`).

use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// Both values of `/proc/uptime`, in hundredths of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    uptime: u64,
    /// Summed over the cores.
    idle: u64,
}

/// Measures how many cores were idle between two looks.
#[derive(Debug)]
pub(super) struct IdleCores {
    file: Option<File>,
    last: Option<Reading>,
    #[cfg(test)]
    pretended: Option<u64>,
}

impl IdleCores {
    /// Without `/proc` no core ever counts as idle.
    pub(super) fn new() -> Self {
        Self {
            file: File::open("/proc/uptime").ok(),
            last: None,
            #[cfg(test)]
            pretended: None,
        }
    }

    /// Begins to measure.
    pub(super) fn start(&mut self) {
        self.last = self.read();
    }

    /// Hundredths of a core that were idle since [`start`](Self::start), on average.
    pub(super) fn percent(&self) -> u64 {
        #[cfg(test)]
        if let Some(percent) = self.pretended {
            return percent;
        }
        match (self.last, self.read()) {
            (Some(before), Some(after)) => percent(before, after),
            _ => 0,
        }
    }

    /// Says so many from now on.
    #[cfg(test)]
    pub(super) fn pretend(&mut self, percent: u64) {
        self.pretended = Some(percent);
    }

    fn read(&self) -> Option<Reading> {
        let mut text = [0; 64];
        let len = self.file.as_ref()?.read_at(&mut text, 0).ok()?;
        parse(text.get(..len)?)
    }
}

fn percent(before: Reading, after: Reading) -> u64 {
    let passed = after.uptime.saturating_sub(before.uptime);
    let idle = after.idle.saturating_sub(before.idle);
    (idle * 100).checked_div(passed).unwrap_or(0)
}

fn parse(text: &[u8]) -> Option<Reading> {
    let text = std::str::from_utf8(text).ok()?;
    let mut values = text.split_ascii_whitespace().map(hundredths);
    Some(Reading {
        uptime: values.next()??,
        idle: values.next()??,
    })
}

/// `12.34` as 1234.
fn hundredths(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.')?;
    if part.len() != 2 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    whole.checked_mul(100)?.checked_add(part.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_values_are_read() {
        let reading = parse(b"350735.47 234388.90\n").unwrap();
        assert_eq!((reading.uptime, reading.idle), (35_073_547, 23_438_890));
        for junk in [
            &b""[..],
            b"1.00",
            b"1 2",
            b"1.5 2.50",
            b"a.00 b.00",
            b"\xff",
        ] {
            assert_eq!(parse(junk), None);
        }
        assert!(IdleCores::new().read().is_some());
    }

    #[test]
    fn idle_time_is_per_time_passed() {
        let at = |uptime, idle| Reading { uptime, idle };
        assert_eq!(percent(at(100, 50), at(110, 65)), 150);
        assert_eq!(percent(at(100, 50), at(110, 50)), 0);
        assert_eq!(percent(at(100, 50), at(100, 70)), 0, "no time has passed");
        assert_eq!(percent(at(100, 50), at(110, 40)), 0, "a core went offline");
    }
}
