//! ping(8).

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::Namespace;
use crate::command::output;
use crate::wait::wait_until;

/// Sends `count` echo requests with `size` bytes of data, fragmentation forbidden, 20 ms apart, and returns how many were answered.
///
/// # Errors
/// `ping` failed in another way than by a missing answer, for example because the packet does not fit the interface.
pub fn ping(from: &Namespace, to: IpAddr, count: u32, size: usize) -> Result<u32> {
    ping_with(from, to, count, size, &["-M", "do"])
}

/// [`ping`] with options of one's own in place of the fragmentation rule.
///
/// # Errors
/// As [`ping`].
pub fn ping_with(
    from: &Namespace,
    to: IpAddr,
    count: u32,
    size: usize,
    options: &[&str],
) -> Result<u32> {
    report(from, to, count, size, options).map(|(received, _)| received)
}

fn report(
    from: &Namespace,
    to: IpAddr,
    count: u32,
    size: usize,
    options: &[&str],
) -> Result<(u32, String)> {
    let mut command = from.command("ping");
    command.args(["-n", "-i", "0.02", "-W", "3"]).args(options);
    command
        .args(["-c", &count.to_string(), "-s", &size.to_string()])
        .arg(to.to_string());
    let output = output(&mut command)?;
    // Exit status 1 is "no answer"; more is a failure.
    if output.status.code().is_none_or(|code| code > 1) {
        bail!("ping {to}: {}{}", output.stdout, output.stderr);
    }
    let received = answered(&output.stdout);
    let received =
        received.with_context(|| format!("ping {to}: {}{}", output.stdout, output.stderr))?;
    Ok((received, output.stdout))
}

/// How many echo requests were answered, by what `ping` printed.
#[must_use]
pub fn answered(stdout: &str) -> Option<u32> {
    let summary = stdout
        .lines()
        .find(|line| line.contains("packets transmitted"))?;
    summary
        .split(", ")
        .find_map(|part| part.strip_suffix(" received")?.parse().ok())
}

/// Waits until one echo request is answered.
///
/// # Errors
/// Not within `limit`.
pub fn wait_reachable(from: &Namespace, to: IpAddr, limit: Duration) -> Result<()> {
    wait_until(
        &format!("{to} answers ping from {}", from.name()),
        limit,
        || {
            let mut command = from.command("ping");
            command
                .args(["-n", "-c", "1", "-W", "1"])
                .arg(to.to_string());
            output(&mut command).is_ok_and(|output| output.status.success())
        },
    )
}

/// Tries of [`ping_all`].
const TRIES: u32 = 3;

/// All of `count` echo requests must be answered.
///
/// ping waits for the last answers only twice as long as the slowest one took, and at least for one interval. On a busy
/// machine that is too short now and then, so it gets further tries; what does not pass at all passes in none.
///
/// # Errors
/// One was not, in any try.
pub fn ping_all(from: &Namespace, to: IpAddr, count: u32, size: usize) -> Result<()> {
    let mut text = String::new();
    for _ in 0..TRIES {
        let (received, output) = report(from, to, count, size, &["-M", "do"])?;
        if received == count {
            return Ok(());
        }
        text = output;
    }
    bail!(
        "not all of {count} echo requests of {size} bytes answered by {to}, {TRIES} times\n{text}"
    )
}
