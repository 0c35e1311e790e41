//! Many peers: how long `wg` takes to configure and show them, the memory they take, and what they cost the one that has
//! traffic.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use adit_tests::Namespace;
use adit_tests::stopwatch::timed;
use adit_tests::tunnel::{Family, PORT, Pair, Site, connect};
use adit_tests::wg::random_public_keys;
use anyhow::{Context as _, Result, ensure};

use super::bed::{Bed, TUNNEL_MTU, WIRE_MTU};
use super::contender::Contender;
use super::scenario::{Values, resident_mb, tcp_run};

/// How long one command of `wg` may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Measures a contender once, with `count` peers on both sides.
///
/// # Errors
/// The daemons do not work, or `wg` fails; what was measured before that is in `values`.
pub(crate) fn measure(
    contender: &Contender,
    count: usize,
    seconds: u32,
    values: &mut Values,
) -> Result<()> {
    let (left, right) = (Namespace::new()?, Namespace::new()?);
    connect(&left, &right, WIRE_MTU)?;
    let left = Site::start(left, 1, TUNNEL_MTU, &contender.options())?;
    let right = Site::start(right, 2, TUNNEL_MTU, &contender.options())?;
    let directory = tempfile::tempdir()?;
    let (at_left, at_right) = (
        directory.path().join("left"),
        directory.path().join("right"),
    );
    std::fs::write(&at_left, config(&left, &right, count)?)?;
    std::fs::write(&at_right, config(&right, &left, count)?)?;

    wg(&left, "setconf", &at_left)?;
    values.push((
        "setconf_ms",
        milliseconds(wg(&right, "setconf", &at_right)?),
    ));
    let mut show = Command::new("wg");
    let show = show.args(["show", right.interface(), "dump"]);
    let (time, text) = timed(show, LIMIT).context("wg show dump")?;
    let shown = text.lines().count().saturating_sub(1);
    ensure!(
        shown == count,
        "wg show dump tells of {shown} peers, not {count}"
    );
    values.push(("dump_ms", milliseconds(time)));

    let pair = Pair { left, right };
    pair.wait_connected()?;
    let mut bed = Bed::of(pair, contender)?;
    let resident = resident_mb(&bed)?;
    let report = tcp_run(&bed, seconds, &[]).run()?;
    bed.check()?;
    values.push(("resident_mb", resident));
    values.push(("throughput", report.bits_per_second / 1e9));

    // Last: there are daemons that do not survive a change of a peer they have.
    if let Bed::Tunnel { pair, .. } = &bed {
        values.push((
            "syncconf_ms",
            milliseconds(wg(&pair.right, "syncconf", &at_right)?),
        ));
    }
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Runs `wg ACTION IFACE FILE` and tells how long it took. The socket is found from every namespace.
fn wg(site: &Site, action: &str, file: &Path) -> Result<Duration> {
    let mut command = Command::new("wg");
    command.args([action, site.interface()]).arg(file);
    let timed = timed(&mut command, LIMIT).with_context(|| format!("wg {action}"))?;
    Ok(timed.0)
}

/// A whole configuration: one peer that is there, and others up to `count`, each with an address of both families.
fn config(own: &Site, peer: &Site, count: usize) -> Result<String> {
    let mut text = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n",
        own.keys.private
    );
    write!(
        text,
        "[Peer]\nPublicKey = {}\nAllowedIPs = {}/32, {}/128\nEndpoint = {}\n",
        peer.keys.public,
        peer.inner(Family::V4),
        peer.inner(Family::V6),
        peer.endpoint(Family::V4),
    )?;
    for (n, key) in random_public_keys(count.saturating_sub(1))?
        .iter()
        .enumerate()
    {
        let (high, low) = (n / 256, n % 256);
        write!(
            text,
            "[Peer]\nPublicKey = {key}\nAllowedIPs = 10.77.{high}.{low}/32, fd77::{n:x}/128\n"
        )?;
    }
    Ok(text)
}
