//! The benchmark measures, reports what fails, and leaves nothing behind but its report, also when it is interrupted.
#![forbid(unsafe_code)]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use adit_tests::command::{Output, Running};
use adit_tests::daemon::adit_path;
use adit_tests::process::alive;
use adit_tests::wait::{wait_for, wait_until};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use common::{namespaces, pids};

fn bench(output: &Path, arguments: &[&str]) -> Result<Running> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command
        .arg("bench")
        .args(arguments)
        .arg("--output")
        .arg(output)
        .env("ADIT_TEST_DAEMON", adit_path()?);
    Running::start(&mut command)
}

fn finish(bench: Running) -> Result<Output> {
    let pid = bench.pid();
    let output = bench.finish(Duration::from_secs(120))?;
    ensure!(namespaces(pid).is_empty(), "left: {:?}", namespaces(pid));
    Ok(output)
}

fn results(directory: &Path) -> Result<Value> {
    let path = directory.join("results.json");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str(&text)?)
}

/// The samples of a contender: their values and errors.
fn samples<'a>(results: &'a Value, contender: &str) -> Vec<&'a Value> {
    let samples = results["samples"].as_array().into_iter().flatten();
    samples
        .filter(|sample| sample["contender"] == contender)
        .collect()
}

#[test]
fn a_quick_run_measures_and_reports_what_fails() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let output = finish(bench(
        directory.path(),
        &[
            "--quick",
            "--scenario=rtt,udp-64",
            "--peer=broken=false %i",
            "--only=no-tunnel,adit-socket,broken",
        ],
    )?)?;
    ensure!(output.status.success(), "{}", output.stderr);

    let results = results(directory.path())?;
    ensure!(results["schema"] == "adit-bench/1" && results["complete"] == true);
    for contender in ["no-tunnel", "adit-socket"] {
        let samples = samples(&results, contender);
        ensure!(samples.len() == 2, "{contender}: {samples:?}");
        for (sample, key) in samples.into_iter().zip(["rtt_p50", "received_per_second"]) {
            let value = sample["values"][key].as_f64();
            ensure!(value.is_some_and(|value| value > 0.0), "{key}: {sample}");
        }
    }
    let broken = samples(&results, "broken");
    ensure!(broken.len() == 2 && broken.iter().all(|sample| sample["error"].is_string()));

    for expected in [
        "Round trips of an idle tunnel",
        "adit-socket",
        "! broken failed 1×",
    ] {
        ensure!(output.stdout.contains(expected), "{}", output.stdout);
    }
    for chart in ["latency.svg", "cpu.svg"] {
        let svg = std::fs::read_to_string(directory.path().join(chart))?;
        ensure!(
            svg.starts_with("<svg ") && svg.contains("adit-socket"),
            "{svg}"
        );
    }

    // The JSON holds all there is to know.
    let file = directory.path().join("results.json");
    let again = finish(bench(
        &directory.path().join("again"),
        &["--redraw", file.to_str().context("path is not UTF-8")?],
    )?)?;
    ensure!(again.stdout == output.stdout, "{}", again.stdout);
    Ok(())
}

#[test]
fn interrupted() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let bench = bench(
        directory.path(),
        &["--scenario=rtt", "--only=adit-socket", "--seconds=60"],
    )?;
    let pid = bench.pid();
    let running = wait_for("daemons run", Duration::from_secs(60), || {
        let pids: Vec<_> = namespaces(pid).iter().flat_map(|name| pids(name)).collect();
        (pids.len() >= 2).then_some(pids)
    })?;
    ensure!(
        Command::new("kill")
            .args(["-INT", &pid.to_string()])
            .status()?
            .success()
    );
    let output = finish(bench)?;
    ensure!(
        output.status.code() == Some(1) && output.stderr.contains("interrupted"),
        "{}",
        output.stderr
    );
    ensure!(results(directory.path())?["complete"] == false);
    wait_until("all processes end", Duration::from_secs(5), || {
        !running.iter().any(|&pid| alive(pid))
    })
}

#[test]
fn wrong_names_are_told() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for (arguments, expected) in [
        (["--quick", "--only=nobody"], "no-tunnel, adit-socket"),
        (["--quick", "--peer=nobody"], "NAME='COMMAND %i'"),
        (
            ["--quick", "--reference=nobody"],
            "not among the contenders",
        ),
    ] {
        let output = finish(bench(directory.path(), &arguments)?)?;
        ensure!(
            output.status.code() == Some(1) && output.stderr.contains(expected),
            "{arguments:?}: {}",
            output.stderr
        );
    }
    Ok(())
}
