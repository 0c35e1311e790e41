//! Fuzzers: built with the sanitizers of the compiler at hand, run side by side, and counted.
//!
//! They are libFuzzer's, as cargo-fuzz makes them, but without cargo-fuzz: coverage instrumentation is a stable option of
//! the compiler, and sanitizers are unstable ones that `RUSTC_BOOTSTRAP` opens. So one stable tool chain does it all.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use adit_tests::command::installed;
use adit_tests::daemon::tools_directory;
use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::stage::{run as run_command, say};
use crate::{cargo, workspace};

/// What cargo-fuzz gives the compiler: count every edge of the program's flow.
const COVERAGE: [&str; 4] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
];
/// Tells libFuzzer what is compared with what; not together with AddressSanitizer, whose own comparisons it would tell of.
const COMPARISONS: &str = "-Cllvm-args=-sanitizer-coverage-trace-compares";
/// What finds leaks, and costs next to nothing.
const LEAKS: &str = "-Zsanitizer=leak";
/// What finds accesses out of bounds, and leaks.
const ADDRESSES: &str = "-Zsanitizer=address";

/// Longest input in bytes; scripts are shorter, and no target gains from more.
const LONGEST: usize = 4096;
/// Files that `--keep` leaves in the corpus of a target, findings apart.
const KEPT: usize = 18;
/// Corpus files whose names begin so are what once failed: they stay.
const FINDING: &str = "finding-";

/// What `cargo xtask fuzz` can be told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Fuzz only these targets (the names in tests/fuzz/fuzz_targets)
    targets: Vec<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// How many targets run at a time; as many as there are cores if not given
    #[arg(long)]
    jobs: Option<usize>,
    /// Build with AddressSanitizer: slower, and of use only for what has `unsafe` (aead)
    #[arg(long)]
    address_sanitizer: bool,
    /// Afterwards keep a small selection of what was found in tests/fuzz/corpus, to be committed
    #[arg(long)]
    keep: bool,
}

impl Options {
    /// All targets, half a minute on two cores.
    pub(crate) fn short() -> Self {
        Self {
            targets: Vec::new(),
            seconds: 4,
            jobs: None,
            address_sanitizer: false,
            keep: false,
        }
    }
}

/// What a run of one target amounts to.
struct Outcome {
    target: String,
    executions: u64,
    /// Edges of the program's flow that were seen, and inputs that show them.
    edges: String,
    inputs: String,
    /// The end of the log, if the target failed.
    failure: Option<String>,
}

/// Places of everything that is made here.
struct Folders {
    sources: PathBuf,
    build: PathBuf,
}

impl Folders {
    fn new() -> Result<Self> {
        // Beside the tools, in the target directory.
        let tools = tools_directory()?;
        let target = tools.parent().context("the tools have no directory")?;
        Ok(Self {
            sources: workspace()?.join("tests/fuzz"),
            build: target.join("fuzz"),
        })
    }

    /// The committed corpus of a target.
    fn committed(&self, target: &str) -> PathBuf {
        self.sources.join("corpus").join(target)
    }

    /// A directory of a target in the target directory, made if it is not there.
    fn working(&self, kind: &str, target: &str) -> Result<PathBuf> {
        let path = self.build.join(kind).join(target);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }
}

/// `cargo xtask fuzz`.
///
/// # Errors
/// A tool is missing, the fuzzers cannot be built, or a target failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let folders = Folders::new()?;
    let targets = chosen(&folders, &options.targets)?;
    if !installed("c++") {
        bail!(
            "no C++ compiler (c++), which libFuzzer is built with: `cargo xtask setup` installs one"
        );
    }
    say("Building the fuzzers (the first time takes minutes) …");
    let programs = build(&folders, &targets, options.address_sanitizer)?;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let jobs = options.jobs.unwrap_or(cores).clamp(1, targets.len());
    say(&format!(
        "{} targets, {} s each, {jobs} at a time",
        targets.len(),
        options.seconds
    ));
    let outcomes = run_all(&folders, &programs, &targets, options.seconds, jobs)?;
    print(&outcomes, options.seconds);
    if options.keep {
        for target in &targets {
            keep(&folders, &programs.join(target), target)?;
        }
    }
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|outcome| outcome.failure.is_some())
        .map(|outcome| &*outcome.target)
        .collect();
    if !failed.is_empty() {
        bail!("findings in: {}", failed.join(", "));
    }
    Ok(())
}

/// The targets asked for, or all, by name.
fn chosen(folders: &Folders, wanted: &[String]) -> Result<Vec<String>> {
    let path = folders.sources.join("fuzz_targets");
    let files = fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut all = Vec::new();
    for file in files {
        let name = file?.file_name().to_string_lossy().into_owned();
        all.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    all.sort_unstable();
    if let Some(unknown) = wanted.iter().find(|target| !all.contains(target)) {
        bail!("there is no target {unknown}; there are {}", all.join(", "));
    }
    if !wanted.is_empty() {
        all.retain(|target| wanted.contains(target));
    }
    Ok(all)
}

/// Builds the fuzzers and returns where they are.
fn build(folders: &Folders, targets: &[String], address_sanitizer: bool) -> Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let ask = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(&rustc)
            .args(arguments)
            .output()
            .context("cannot start rustc")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let version = ask(&["-vV"])?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc does not name its host")?;
    let libraries = ask(&["--print", "target-libdir"])?;
    let libraries = Path::new(libraries.trim());
    let mut flags = COVERAGE.to_vec();
    let build = if address_sanitizer {
        if !has_library(libraries, "rt.asan") {
            bail!("this tool chain has no AddressSanitizer; rustup's has");
        }
        flags.push(ADDRESSES);
        folders.build.join("address")
    } else {
        flags.push(COMPARISONS);
        if has_library(libraries, "rt.lsan") {
            flags.push(LEAKS);
        }
        folders.build.clone()
    };
    flags.push("--cfg=fuzzing");
    // Naming the target keeps the flags away from build scripts.
    let mut command = cargo(&["build", "--release", "--quiet", "--target", host])?;
    command
        .arg("--manifest-path")
        .arg(folders.sources.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&build)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTFLAGS");
    for target in targets {
        command.args(["--bin", target]);
    }
    run_command(&mut command)?;
    Ok(build.join(host).join("release"))
}

/// Whether the compiler's libraries include one of this name.
fn has_library(libraries: &Path, name: &str) -> bool {
    fs::read_dir(libraries).is_ok_and(|files| {
        files
            .flatten()
            .any(|file| file.file_name().to_string_lossy().contains(name))
    })
}

fn run_all(
    folders: &Folders,
    programs: &Path,
    targets: &[String],
    seconds: u32,
    jobs: usize,
) -> Result<Vec<Outcome>> {
    let waiting: Mutex<VecDeque<_>> = Mutex::new(targets.iter().collect());
    let outcomes = Mutex::new(Vec::new());
    let lock = PoisonError::into_inner;
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap_or_else(lock).pop_front();
                    let Some(target) = next else {
                        return;
                    };
                    let outcome = fuzz(folders, programs, target, seconds);
                    outcomes
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(outcome);
                }
            });
        }
    });
    let outcomes = outcomes
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let mut outcomes = outcomes.into_iter().collect::<Result<Vec<_>>>()?;
    outcomes.sort_by(|one, other| one.target.cmp(&other.target));
    Ok(outcomes)
}

/// Runs one fuzzer to its end.
fn fuzz(folders: &Folders, programs: &Path, target: &str, seconds: u32) -> Result<Outcome> {
    let corpus = folders.working("corpus", target)?;
    let artifacts = folders.working("artifacts", target)?;
    let log = folders.working("logs", target)?.join("log");
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = Command::new(programs.join(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={LONGEST}"))
        .args(["-timeout=25", "-rss_limit_mb=2048", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(corpus)
        .arg(folders.committed(target))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .status()
        .with_context(|| format!("cannot start the fuzzer of {target}"))?;
    let log = fs::read(log).context("cannot read the fuzzer's log")?;
    let log = String::from_utf8_lossy(&log);
    Ok(Outcome {
        target: target.to_owned(),
        executions: number_after(&log, "stat::number_of_executed_units:"),
        edges: word_after(&log, " cov: "),
        inputs: word_after(&log, " corp: "),
        failure: (!status.success()).then(|| end_of(&log)),
    })
}

fn number_after(log: &str, label: &str) -> u64 {
    word_after(log, label).parse().unwrap_or_default()
}

/// The word behind the last occurrence of `label`.
fn word_after(log: &str, label: &str) -> String {
    let after = log.rsplit_once(label).map_or("", |(_, after)| after);
    after.split_whitespace().next().unwrap_or("-").to_owned()
}

/// The part of a log that tells what failed: from the panic or report on.
fn end_of(log: &str) -> String {
    const LINES: usize = 40;
    let from = ["panicked at", "ERROR:", "SUMMARY:"]
        .iter()
        .filter_map(|mark| log.find(mark))
        .min();
    let lines: Vec<_> = log[from.unwrap_or(0)..].lines().collect();
    let (head, rest) = lines.split_at(lines.len().min(LINES));
    // The last lines name the input.
    let tail = &rest[rest.len().saturating_sub(6)..];
    [head, tail].concat().join("\n")
}

fn print(outcomes: &[Outcome], seconds: u32) {
    say(&format!(
        "{:<14} {:>12} {:>9} {:>7} {:>11}",
        "target", "executions", "a second", "edges", "inputs"
    ));
    for outcome in outcomes {
        say(&format!(
            "{:<14} {:>12} {:>9} {:>7} {:>11}{}",
            outcome.target,
            outcome.executions,
            outcome.executions / u64::from(seconds.max(1)),
            outcome.edges,
            outcome.inputs,
            if outcome.failure.is_some() {
                "  FINDING"
            } else {
                ""
            },
        ));
    }
    for outcome in outcomes {
        if let Some(failure) = &outcome.failure {
            say(&format!("\n{}:\n{failure}", outcome.target));
        }
    }
}

/// Replaces the committed corpus of a target by the few inputs that reach most, findings apart.
fn keep(folders: &Folders, program: &Path, target: &str) -> Result<()> {
    let committed = folders.committed(target);
    fs::create_dir_all(&committed).context("cannot make the corpus")?;
    let selected = folders.working("selected", target)?;
    fs::remove_dir_all(&selected).context("cannot empty the selection")?;
    fs::create_dir_all(&selected).context("cannot make the selection")?;
    run_command(
        Command::new(program)
            .arg("-set_cover_merge=1")
            .arg(&selected)
            .arg(folders.working("corpus", target)?)
            .arg(&committed)
            .stdin(Stdio::null())
            .stderr(Stdio::null()),
    )?;
    let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
    for file in fs::read_dir(&selected)? {
        let file = file?;
        files.push((file.metadata()?.modified()?, file.path()));
    }
    // Written in the order of what each adds.
    files.sort();
    for old in fs::read_dir(&committed)? {
        let old = old?;
        if !old.file_name().to_string_lossy().starts_with(FINDING) {
            fs::remove_file(old.path())?;
        }
    }
    for (_, file) in files.iter().take(KEPT) {
        if let Some(name) = file.file_name() {
            fs::copy(file, committed.join(name))?;
        }
    }
    say(&format!(
        "{target}: {} of {} inputs kept",
        files.len().min(KEPT),
        files.len()
    ));
    Ok(())
}
