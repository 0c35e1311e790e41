//! The demonstration leaves nothing behind, also when it is interrupted half-way.
#![forbid(unsafe_code)]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use adit_tests::command::Running;
use adit_tests::daemon::adit_path;
use adit_tests::process::alive;
use adit_tests::wait::{wait_for, wait_until};
use anyhow::{Result, ensure};

use common::{namespaces, pids};

fn interrupted_by(signal: &str) -> Result<()> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command
        .args(["demo", "--seconds", "60"])
        .env("ADIT_TEST_DAEMON", adit_path()?);
    let demo = Running::start(&mut command)?;
    let pid = demo.pid();
    // Two daemons, and an iperf3 at either end: it is in the middle of its work.
    let running = wait_for("iperf3 runs", Duration::from_secs(60), || {
        let pids: Vec<_> = namespaces(pid).iter().flat_map(|name| pids(name)).collect();
        (pids.len() >= 4).then_some(pids)
    })?;
    let killed = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status()?;
    ensure!(killed.success());
    let output = demo.finish(Duration::from_secs(30))?;
    ensure!(
        output.status.code() == Some(1) && output.stderr.contains("interrupted"),
        "{}",
        output.stderr
    );
    ensure!(namespaces(pid).is_empty(), "left: {:?}", namespaces(pid));
    wait_until("all processes end", Duration::from_secs(5), || {
        !running.iter().any(|&pid| alive(pid))
    })?;
    ensure!(
        !running
            .iter()
            .any(|pid| Path::new(&format!("/proc/{pid}/ns/net")).exists())
    );
    Ok(())
}

#[test]
fn interrupted() -> Result<()> {
    interrupted_by("-INT")
}

#[test]
fn terminated() -> Result<()> {
    interrupted_by("-TERM")
}
