//! Tunnels from `wg-quick(8)` files without `wg-quick`, and what `wg set` and `wg syncconf` do without `wg`.
//!
//! - [`up`], [`down`]: a tunnel with its addresses, routes, rules, name servers and hooks. What they make is what `wg-quick`
//!   makes, names included, so that each can take down what the other brought up.
//! - [`check`]: only reads the file.
//! - [`sync`], [`set`]: changes a running tunnel.
//! - [`reresolve`]: looks up the names of endpoints again.
//!
//! `steps` keeps what was done and undoes it, last first, when something fails.

pub mod check;
pub(crate) mod client;
mod dns;
pub mod down;
mod file;
mod firewall;
mod hooks;
mod operation;
mod policy;
pub mod reresolve;
mod resolve;
mod routes;
mod save;
pub mod set;
mod steps;
pub mod sync;
mod tunnel;
pub mod up;

use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// Says something on standard error; that nobody listens is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Runs a program with `input` on its standard input; it must succeed. Returns its standard output.
fn run(command: &mut Command, input: &str) -> Result<String> {
    let output = start(command, input).with_context(|| format!("cannot run {}", words(command)))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        let reason = reason.lines().find(|line| !line.trim().is_empty());
        match reason {
            Some(reason) => bail!("{} failed: {}", words(command), reason.trim()),
            None => bail!("{} failed: {}", words(command), output.status),
        }
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program with `input` on its standard input; it must succeed. What it says goes to standard error: a service that
/// it restarts may keep the other end of a pipe for ever.
fn run_aloud(command: &mut Command, input: &str) -> Result<()> {
    let finish = |command: &mut Command| {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        feed(&mut child, input);
        child.wait()
    };
    let status = finish(command).with_context(|| format!("cannot run {}", words(command)))?;
    ensure!(status.success(), "{} failed: {status}", words(command));
    Ok(())
}

fn start(command: &mut Command, input: &str) -> std::io::Result<Output> {
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    feed(&mut child, input);
    child.wait_with_output()
}

fn feed(child: &mut Child, input: &str) {
    if let Some(mut pipe) = child.stdin.take() {
        // A program that does not read its input to the end says by its status whether that is a failure.
        let _ = pipe.write_all(input.as_bytes());
    }
}

/// A command as a person would type it.
fn words(command: &Command) -> String {
    let mut line = format!("`{}", command.get_program().to_string_lossy());
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line + "`"
}

/// Whether a program is to be found by `PATH`.
fn installed(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else {
        return false;
    };
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}
