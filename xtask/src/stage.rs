//! Steps of a task, each announced and timed.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

/// Prints a line for the person who runs the task.
#[expect(
    clippy::print_stderr,
    reason = "standard output belongs to the programs that are run"
)]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

/// Announces a step, does it, and says how long it took.
pub(crate) fn stage<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(&format!("\n==> {name}"));
    let start = Instant::now();
    let result = work();
    let outcome = if result.is_ok() { "done" } else { "FAILED" };
    say(&format!(
        "==> {name}: {outcome} in {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    result
}

/// Runs a program whose output the person sees; it must succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        let arguments: Vec<_> = command
            .get_args()
            .map(|argument| argument.to_string_lossy())
            .collect();
        bail!("{program} {}: {status}", arguments.join(" "));
    }
    Ok(())
}
