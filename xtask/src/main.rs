//! Builds, sets up, demonstrates, measures and tests Adit: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod bench;
mod build_ebpf;
mod demo;
mod dist;
mod fuzz;
mod setup;
mod soak;
mod stage;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    about = "Builds, sets up, demonstrates, measures and tests Adit"
)]
enum Task {
    /// Install what the demonstration and the tests need (Debian, as root)
    Setup,
    /// Show a tunnel at work: two network namespaces, two daemons, wg, ping and iperf3
    Demo(demo::Options),
    /// Measure Adit beside its peers, by socket and by XDP: throughput, processor time, latency, handshakes, many peers
    Bench(bench::Options),
    /// Build the eBPF programs, or check that the committed object is up to date
    BuildEbpf(build_ebpf::Options),
    /// Feed every parser and state machine what no test thought of
    Fuzz(fuzz::Options),
    /// Let tunnels run for half an hour under traffic while everything around them changes
    Soak(soak::Options),
    /// Make a Debian package and a tarball of program, manual pages, completions, units and documents
    Dist(dist::Options),
    /// Run every check and test, as continuous integration does
    Test(test::Options),
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            stage::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup => setup::run_task(),
        Task::Demo(options) => demo::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::BuildEbpf(options) => build_ebpf::run(options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Dist(options) => dist::run_task(&options),
        Task::Test(options) => test::run_stages(&options),
    }
}

/// The directory of the workspace.
fn workspace() -> Result<PathBuf> {
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    Ok(parent.context("xtask is not in a workspace")?.to_owned())
}

/// A cargo command in the workspace, by the cargo that runs this program.
fn cargo(arguments: &[&str]) -> Result<std::process::Command> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(program);
    command
        .args(arguments)
        .current_dir(workspace()?)
        .stdin(std::process::Stdio::null());
    Ok(command)
}
