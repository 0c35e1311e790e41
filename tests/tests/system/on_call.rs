//! What somebody on call has to go by: a described counter for each drop, and a log that whoever can send packets cannot
//! fill.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddrV4};
use std::sync::atomic::AtomicBool;

use adit_tests::daemon::Options;
use adit_tests::flood::{Flood, SOURCES};
use adit_tests::ping::ping_all;
use adit_tests::tunnel::{Family, PORT, Pair, WAN};
use adit_tests::{Daemon, Namespace, uapi};
use anyhow::{Result, bail, ensure};

use crate::documents::{self, code_spans};
use crate::xdp::{NATIVE, Wire};

/// Lines of the right daemon's log.
fn lines(pair: &Pair) -> usize {
    pair.right.daemon.log_text().lines().count()
}

/// Sends junk of each kind to the right daemon, and returns how many frames that were.
fn flood(pair: &Pair, rounds: u64) -> Result<u64> {
    let IpAddr::V4(target) = pair.right.outer(Family::V4) else {
        bail!("no IPv4 address");
    };
    let target = SocketAddrV4::new(target, PORT);
    let (left, right) = (&pair.left.namespace, &pair.right.namespace);
    let flood = Flood::new(left, right, WAN, target)?;
    let rounds = flood.run(&AtomicBool::new(true), rounds)?;
    Ok(rounds * u64::from(SOURCES) * 5)
}

#[test]
fn every_reason_for_a_drop_is_described() -> Result<()> {
    let namespace = Namespace::new()?;
    let daemon = Daemon::start(&namespace, &Options::default())?;
    let rows = documents::table(
        "userspace/adit/docs/metrics.md",
        &["reason", "what happened"],
    )?;
    let described: BTreeSet<String> = rows
        .iter()
        .flat_map(|row| code_spans(&row[0]))
        .map(str::to_owned)
        .collect();
    let told: BTreeSet<String> = uapi::request(daemon.interface(), "get=1")?
        .into_iter()
        .filter_map(|(key, _)| Some(key.strip_prefix("adit_drop_")?.to_owned()))
        .collect();
    ensure!(
        described == told,
        "{:?}",
        described.symmetric_difference(&told)
    );
    Ok(())
}

/// What comes from nobody in particular is not worth a line; it is counted.
#[test]
fn junk_is_not_worth_a_line() -> Result<()> {
    let wire = Wire {
        environment: &[("ADIT_DATAPATH", "socket"), ("LOG_LEVEL", "debug")],
        ..NATIVE
    };
    let mut pair = wire.pair()?;
    pair.wait_connected()?;
    let before = lines(&pair);
    flood(&pair, 4)?;
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 5, 100)?;
    let said = lines(&pair) - before;
    ensure!(said < 100, "{said} lines");
    pair.check_running()
}

/// With a line for each packet that XDP drops, as one may ask for, there are still few: the programs' buffer and the
/// daemon's own limit see to that.
#[test]
fn lines_for_each_packet_are_limited() -> Result<()> {
    let wire = Wire {
        environment: &[
            ("ADIT_DATAPATH", "xdp"),
            ("ADIT_XDP_MODE", "native"),
            ("LOG_LEVEL", "trace"),
        ],
        ..NATIVE
    };
    let mut pair = wire.steering_pair()?;
    pair.wait_connected()?;
    let start = std::time::Instant::now();
    let before = lines(&pair);
    let frames = flood(&pair, 4)?;
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 5, 100)?;
    // Until the programs' lines were read.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let said = lines(&pair) - before;
    // Some ten places have something to say, each a hundred times and then ten times a second.
    let limit = 10 * (100 + 10 * usize::try_from(start.elapsed().as_secs() + 1)?);
    ensure!(
        said < limit && limit as u64 * 4 < frames,
        "{said} lines for {frames} frames"
    );
    pair.check_running()
}
