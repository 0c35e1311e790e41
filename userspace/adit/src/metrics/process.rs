//! What the system says of this process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use adit_kernel::clock;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

/// The file is about 1.5 KB long.
const LONGEST: usize = 8192;

/// Reads the figures again and again.
#[derive(Debug)]
pub(super) struct Process {
    /// Opened once: a sandbox may keep files from being opened later.
    status: File,
    /// Unix time.
    started: Duration,
}

/// The figures; `None` where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Figures {
    /// Processor time, user and system, in seconds.
    pub(super) cpu_seconds: Option<f64>,
    /// Memory in use, in bytes.
    pub(super) resident_bytes: Option<u64>,
    pub(super) threads: Option<u64>,
    /// Unix time in seconds.
    pub(super) start_time: f64,
}

impl Process {
    /// # Errors
    /// When there is no /proc.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            status: File::open("/proc/self/status")?,
            started: clock::unix_time(),
        })
    }

    /// The figures by now.
    pub(super) fn figures(&self) -> Figures {
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
        let cpu_seconds = usage.map(|usage| {
            let time = usage.user_time() + usage.system_time();
            #[expect(clippy::cast_precision_loss, reason = "285 years of microseconds fit")]
            let microseconds = time.num_microseconds() as f64;
            microseconds / 1e6
        });
        let mut buffer = [0; LONGEST];
        // At offset 0 the kernel writes the file anew.
        let length = self.status.read_at(&mut buffer, 0).unwrap_or(0);
        let text = std::str::from_utf8(&buffer[..length]).unwrap_or_default();
        Figures {
            cpu_seconds,
            resident_bytes: number(text, "VmRSS:").map(|kilobytes| kilobytes * 1024),
            threads: number(text, "Threads:"),
            start_time: self.started.as_secs_f64(),
        }
    }
}

fn number(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_of_now() {
        let process = Process::new().unwrap();
        let before = process.figures();
        assert!(before.resident_bytes.unwrap() > 1 << 20);
        assert!(before.threads.unwrap() >= 1);
        assert!(before.start_time > 1.0e9);
        let memory = vec![1_u8; 64 << 20];
        let after = process.figures();
        assert!(after.resident_bytes.unwrap() > before.resident_bytes.unwrap() + (32 << 20));
        assert!(after.cpu_seconds.unwrap() >= before.cpu_seconds.unwrap());
        assert_eq!(memory.len(), 64 << 20);
        assert_eq!(after.start_time, before.start_time);
    }
}
