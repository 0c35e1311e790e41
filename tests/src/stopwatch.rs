//! How long a program takes, without the pauses of waiting for it by looking again and again.

use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::command::{Running, fail_if_interrupted};

/// How often an interruption is looked for.
const INTERVAL: Duration = Duration::from_millis(100);

/// Runs a program that must succeed, and returns the time from its start to its end and its standard output.
///
/// # Errors
/// It cannot be started, fails (its words are in the error, its name is not), or does not end within `limit`; it is
/// killed then.
pub fn timed(command: &mut Command, limit: Duration) -> Result<(Duration, String)> {
    command.stdin(Stdio::null());
    let start = Instant::now();
    let running = Running::start(command)?;
    let pid = Pid::from_raw(i32::try_from(running.pid())?);
    let (sender, ended) = channel();
    // Left alone when the wait below is given up: it ends as soon as the program does.
    std::thread::spawn(move || {
        // The program stays to be reaped by `running`.
        let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let _ = sender.send(start.elapsed());
    });
    let time = loop {
        match ended.recv_timeout(INTERVAL) {
            Ok(time) => break time,
            Err(RecvTimeoutError::Timeout) if start.elapsed() < limit => fail_if_interrupted()?,
            Err(_) => bail!("still running after {limit:?}"),
        }
    };
    let output = running.finish(limit)?;
    if !output.status.success() {
        bail!("{}: {}", output.status, output.stderr.trim());
    }
    Ok((time, output.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_failure_are_told() {
        let mut shell = Command::new("sh");
        let (_, output) = timed(shell.args(["-c", "echo out"]), Duration::from_secs(20)).unwrap();
        assert_eq!(output, "out\n");
        let mut shell = Command::new("sh");
        let error = timed(
            shell.args(["-c", "echo why >&2; exit 3"]),
            Duration::from_secs(20),
        );
        let text = format!("{:#}", error.unwrap_err());
        assert!(text.contains("why") && text.contains('3'), "{text}");
    }

    #[test]
    fn what_does_not_end_is_ended() {
        let mut sleep = Command::new("sleep");
        let error = timed(sleep.arg("1000"), Duration::from_millis(1)).unwrap_err();
        assert!(format!("{error:#}").contains("still running"));
    }
}
