//! Every check and test, in the order in which they are cheap.

use std::process::Command;

use adit_tests::daemon::adit_path;
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::stage::{run, say, stage};
use crate::{build_ebpf, cargo, demo, fuzz, setup};

/// What `cargo xtask test` can be told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these stages (comma-separated)
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Stage>,
    /// Leave out the stages and tests that take minutes
    #[arg(long)]
    quick: bool,
    /// Run only the system tests whose names contain one of these
    filters: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    Setup,
    Format,
    Lints,
    Docs,
    Dependencies,
    Ebpf,
    Unit,
    Instructions,
    Fuzz,
    Build,
    Demo,
    System,
}

impl Stage {
    const ALL: [Self; 12] = [
        Self::Setup,
        Self::Format,
        Self::Dependencies,
        Self::Lints,
        Self::Docs,
        Self::Ebpf,
        Self::Build,
        Self::Unit,
        Self::Instructions,
        Self::Fuzz,
        Self::Demo,
        Self::System,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Setup => "what the tests need",
            Self::Format => "format",
            Self::Lints => "lints",
            Self::Docs => "documentation",
            Self::Dependencies => "licences, sources and duplicates of dependencies",
            Self::Ebpf => "eBPF object against its source",
            Self::Unit => "unit tests",
            Self::Instructions => "instructions of the hot path",
            Self::Fuzz => "fuzzing, half a minute",
            Self::Build => "release build",
            Self::Demo => "demonstration",
            Self::System => "system tests",
        }
    }

    fn run(self, options: &Options) -> Result<()> {
        match self {
            Self::Setup => setup::install(),
            Self::Format => run(&mut cargo(&["fmt", "--all", "--check"])?),
            Self::Lints => run(&mut cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "--deny",
                "warnings",
            ])?),
            Self::Docs => {
                run(cargo(&["doc", "--workspace", "--no-deps"])?
                    .env("RUSTDOCFLAGS", "--deny warnings"))
            }
            Self::Dependencies => run(deny()?.args(["check", "bans", "licenses", "sources"])),
            Self::Ebpf => build_ebpf::run(build_ebpf::Options::check_with_tool_chain()),
            Self::Unit => run(&mut cargo(&[
                "test",
                "--workspace",
                "--exclude",
                "adit-tests",
                "--no-fail-fast",
            ])?),
            Self::Instructions => run(&mut cargo(&[
                "bench",
                "--package",
                "adit-packet",
                "--bench",
                "instructions",
            ])?),
            Self::Fuzz => fuzz::run(&fuzz::Options::short()),
            Self::Build => adit_path().map(drop),
            Self::Demo => demo::run(&demo::Options::short()),
            Self::System => run(&mut system_tests(options)?),
        }
    }
}

fn deny() -> Result<Command> {
    let mut command = Command::new(setup::cargo_deny()?);
    // As a cargo subcommand it expects to be found through PATH; called directly it needs to know its cargo.
    if let Some(cargo) = std::env::var_os("CARGO") {
        command.env("CARGO", cargo);
    }
    command.current_dir(crate::workspace()?);
    Ok(command)
}

fn system_tests(options: &Options) -> Result<Command> {
    let mut command = cargo(&["test", "--package", "adit-tests", "--"])?;
    // Most of them wait for daemons and timers more than they compute.
    let threads = 2 * std::thread::available_parallelism().map_or(2, usize::from);
    command
        .arg(format!("--test-threads={threads}"))
        .args(&options.filters);
    if options.quick {
        command.args(["--skip", "ageing::"]);
    }
    command.env("ADIT_TEST_DAEMON", adit_path()?);
    Ok(command)
}

/// `cargo xtask test`: goes on after a failed stage, so that one run shows all that is wrong.
///
/// # Errors
/// Names the stages that failed.
pub(crate) fn run_stages(options: &Options) -> Result<()> {
    let wanted = |stage: &Stage| {
        let slow = matches!(
            stage,
            Stage::Dependencies | Stage::Ebpf | Stage::Instructions | Stage::Fuzz | Stage::Demo
        );
        if options.only.is_empty() {
            !(options.quick && slow)
        } else {
            options.only.contains(stage)
        }
    };
    let mut failed = Vec::new();
    for step in Stage::ALL.into_iter().filter(wanted) {
        if let Err(error) = stage(step.title(), || step.run(options)) {
            say(&format!("{error:#}"));
            failed.push(step.title());
            // Without their tools, or a daemon, the rest would only repeat the same complaint.
            if matches!(step, Stage::Setup | Stage::Build) {
                break;
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
