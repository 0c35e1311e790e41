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
    let mut command = from.command("ping");
    command.args(["-n", "-i", "0.02", "-W", "3"]).args(options);
    command
        .args(["-c", &count.to_string(), "-s", &size.to_string()])
        .arg(to.to_string());
    let output = output(&mut command)?;
    let summary = output
        .stdout
        .lines()
        .find(|line| line.contains("packets transmitted"));
    let received = summary
        .and_then(|line| {
            line.split(", ")
                .find_map(|part| part.strip_suffix(" received")?.parse().ok())
        })
        .with_context(|| format!("ping {to}: {}{}", output.stdout, output.stderr))?;
    // Exit status 1 is "no answer"; more is a failure.
    if output.status.code().is_none_or(|code| code > 1) {
        bail!("ping {to}: {}{}", output.stdout, output.stderr);
    }
    Ok(received)
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

/// All of `count` echo requests must be answered.
///
/// # Errors
/// One was not.
pub fn ping_all(from: &Namespace, to: IpAddr, count: u32, size: usize) -> Result<()> {
    let received = ping(from, to, count, size)?;
    if received != count {
        bail!("{received} of {count} echo requests of {size} bytes answered by {to}");
    }
    Ok(())
}
