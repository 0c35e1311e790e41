//! XDP is taken away while a TCP stream runs: the stream goes on over the UDP socket, one line of the log says why, and
//! the daemon returns to XDP by itself.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use adit_tests::command::{output, run};
use adit_tests::iperf::{Amount, Run};
use adit_tests::ping::{ping_all, wait_reachable};
use adit_tests::tunnel::{Family, HANDSHAKE_LIMIT, Pair, Site, WAN};
use adit_tests::wait::wait_until;
use adit_tests::{Namespace, uapi};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::xdp::{
    NATIVE, STEERING_LIMIT, Traffic, Wire, connect, receives, receives_by, wait_steering,
};
use crate::xdp_inject::mislead;
#[cfg(target_arch = "x86_64")]
use crate::xdp_inject::{close_descriptor, xsk_descriptor};
use crate::xdp_tools::{detach_link, flows, pinned, prefixed, program_on_wire};

/// Warnings and errors in the daemon's log.
fn complaints(site: &Site) -> Vec<String> {
    let text = site.daemon.log_text();
    let loud = |line: &&str| line.contains("WARN") || line.contains("ERROR");
    text.lines().filter(loud).map(str::to_owned).collect()
}

/// Times the daemon said that it steers.
fn returns(site: &Site) -> usize {
    let text = site.daemon.log_text();
    text.matches("packets come in by AF_XDP").count()
}

/// An iperf3 stream to the left site survives `disturb`; the sites said why exactly once, in words that `said` accepts,
/// and steer again while it still runs.
fn stream_survives(
    wire: &Wire<'_>,
    disturbed: fn(&Pair) -> Vec<&Site>,
    said: &str,
    disturb: impl FnOnce(&Pair) -> Result<()>,
) -> Result<()> {
    let mut pair = wire.steering_pair()?;
    let run = Run {
        client: &pair.left.namespace,
        server: &pair.right.namespace,
        to: pair.right.inner(Family::V4),
        amount: Amount::Seconds(14),
        // Received here, where the intervals are told: bytes sent might be in a buffer only.
        options: &["--reverse"],
    };
    let server = run.start_server()?;
    let client = run.start_client()?;
    let data_flows = |more: u64| {
        let before = Traffic::of(&pair.left)?;
        wait_until("data flows through AF_XDP", STEERING_LIMIT, || {
            Traffic::of(&pair.left).is_ok_and(|now| now.xsk >= before.xsk + more)
        })
    };
    data_flows(1000)?;
    let sites: Vec<_> = disturbed(&pair)
        .into_iter()
        .map(|site| (site, returns(site)))
        .collect();
    disturb(&pair)?;
    for (site, before) in sites {
        wait_until("daemon steers again", STEERING_LIMIT, || {
            returns(site) == before + 1 && receives_by(site, "xdp")
        })
        .with_context(|| site.daemon.log_text())?;
        let lost = uapi::request(site.interface(), "get=1")?;
        let lost = lost
            .iter()
            .filter(|(key, count)| key.starts_with("adit_xdp_lost_") && count != "0");
        let lost: Vec<_> = lost.collect();
        ensure!(matches!(lost[..], [(_, once)] if once == "1"), "{lost:?}");
        let complaints = complaints(site);
        ensure!(
            complaints.len() == 1 && complaints.iter().all(|line| line.contains(said)),
            "expected one line with {said:?}: {complaints:#?}"
        );
    }
    data_flows(1000)?;

    let output = client.finish(Duration::from_secs(60))?;
    drop(server);
    let report: Value = serde_json::from_str(&output.stdout)?;
    ensure!(report.get("error").is_none(), "{}", output.stdout);
    let intervals = report.get("intervals").and_then(Value::as_array);
    let bytes = intervals
        .and_then(|intervals| intervals.iter().rev().find_map(interval_bytes))
        .with_context(|| format!("no interval: {}", output.stdout))?;
    ensure!(bytes > 0, "nothing arrived at the end: {}", output.stdout);
    pair.check_running()
}

/// Bytes of an interval that is not a mere rest of one.
fn interval_bytes(interval: &Value) -> Option<u64> {
    let sum = interval.get("sum")?;
    let seconds = sum.get("seconds")?.as_f64()?;
    (seconds > 0.5).then_some(sum.get("bytes")?.as_u64()?)
}

#[test]
fn a_stream_survives_a_detached_link() -> Result<()> {
    stream_survives(
        &NATIVE,
        |pair| vec![&pair.left],
        "the XDP program was detached",
        |pair| detach_link(&pair.left),
    )
}

#[test]
fn a_stream_survives_its_underlay_going_down_and_up() -> Result<()> {
    stream_survives(
        &NATIVE,
        |pair| vec![&pair.left],
        "the interface is down",
        |pair| {
            let site = &pair.left;
            site.namespace.ip(&format!("link set {WAN} down"))?;
            wait_until("daemon notices", STEERING_LIMIT, || {
                receives_by(site, "socket")
            })?;
            site.namespace.ip(&format!("link set {WAN} up"))
        },
    )
}

/// The descriptor is closed inside the daemon, as a stray `close` in it would.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_stream_survives_an_af_xdp_socket_closed_behind_its_back() -> Result<()> {
    stream_survives(
        &NATIVE,
        |pair| vec![&pair.left],
        "its AF_XDP socket failed",
        |pair| close_descriptor(pair.left.daemon.pid(), xsk_descriptor(&pair.left)?),
    )
}

/// Packets are counted and redirected, and never reach the daemon: so it looks from there when a socket or its rings
/// do not work any more.
#[test]
fn a_stream_survives_an_af_xdp_socket_that_gets_nothing() -> Result<()> {
    let mut misleading = None;
    stream_survives(
        &NATIVE,
        |pair| vec![&pair.left],
        "packets are steered but do not arrive",
        |pair| {
            misleading = Some(mislead(&pair.left)?);
            Ok(())
        },
    )?;
    ensure!(misleading.is_some(), "nothing was disturbed");
    Ok(())
}

/// Somebody empties the socket's slot: nothing is lost, and the daemon puts a socket there again.
#[test]
fn a_stream_survives_an_af_xdp_socket_taken_out_of_the_map() -> Result<()> {
    stream_survives(
        &NATIVE,
        |pair| vec![&pair.left],
        "an AF_XDP socket was taken out of its map",
        |pair| empty_slot(&pair.left),
    )
}

/// The wire is cut, so both ends go, and is laid again under the same names and addresses.
fn relay_wire(pair: &Pair) -> Result<()> {
    let (left, right) = (&pair.left, &pair.right);
    left.namespace.ip(&format!("link delete {WAN}"))?;
    wait_until("both notice", STEERING_LIMIT, || {
        receives_by(left, "socket") && receives_by(right, "socket")
    })?;
    connect(&left.namespace, &right.namespace, 1)
}

#[test]
fn a_stream_survives_its_underlay_deleted_and_made_again() -> Result<()> {
    stream_survives(
        &NATIVE,
        |pair| vec![&pair.left, &pair.right],
        "the interface is gone",
        relay_wire,
    )
}

/// A named underlay is found again by its name.
#[test]
fn a_stream_survives_a_named_underlay_made_again() -> Result<()> {
    let named = Wire {
        environment: &[("ADIT_DATAPATH", "xdp"), ("ADIT_UNDERLAY", WAN)],
        ..NATIVE
    };
    stream_survives(
        &named,
        |pair| vec![&pair.left, &pair.right],
        "the interface is gone",
        relay_wire,
    )
}

/// Takes the AF_XDP socket of queue 0 out of the map.
fn empty_slot(site: &Site) -> Result<()> {
    let mut command = Command::new("bpftool");
    command.args(["map", "delete", "pinned"]);
    command
        .arg(pinned(site, "xsks"))
        .args(["key", "0", "0", "0", "0"]);
    run(&mut command).map(drop)
}

/// What comes for a socket that is gone from the map goes to the UDP socket, packet by packet.
#[test]
fn packets_without_an_af_xdp_socket_reach_the_udp_socket() -> Result<()> {
    let mut pair = NATIVE.steering_pair()?;
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 5, 100)?;
    empty_slot(&pair.right)?;
    receives(&pair.right, (0, 20), || {
        ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 20, 100)
    })?;
    pair.check_running()
}

/// A killed daemon leaves nothing on the interface, and the next one of its name steers.
#[test]
fn killed_and_started_again_it_steers() -> Result<()> {
    let mut pair = NATIVE.steering_pair()?;
    pair.wait_connected()?;
    for _ in 0..2 {
        pair.left.daemon.signal(Signal::SIGKILL)?;
        pair.left.daemon.wait()?;
        wait_until("program gone", STEERING_LIMIT, || {
            matches!(program_on_wire(&pair.left.namespace), Ok(None))
        })?;
        pair.left.daemon.restart(&pair.left.namespace)?;
        pair.left.set_up(1420)?;
        let endpoint = format!("endpoint {}", pair.right.endpoint(Family::V4));
        pair.left.add_peer(&pair.right, &endpoint)?;
        wait_steering(&pair.left)?;
        pair.wait_connected()?;
        let (from, to) = (&pair.right.namespace, pair.left.inner(Family::V4));
        wait_reachable(from, to, HANDSHAKE_LIMIT)?;
        receives(&pair.left, (20, 0), || ping_all(from, to, 20, 100))?;
    }
    pair.check_running()
}

/// In a mount namespace with a BPF file system, where pins outlive a killed daemon: the next one takes them over, and
/// an orderly end removes them.
#[test]
fn pins_of_a_killed_daemon_do_not_harm_the_next() -> Result<()> {
    let mounts = format!("nsenter --mount=/proc/{}/ns/mnt", std::process::id());
    let (_script, options) = prefixed(&mounts, NATIVE.options())?;
    let (left, right) = (Namespace::new()?, Namespace::new()?);
    connect(&left, &right, 1)?;
    let mut site = Site::start(left, 1, 1420, &options)?;
    let peer = Site::start(right, 2, 1420, &NATIVE.options())?;
    peer.add_peer(&site, &format!("endpoint {}", site.endpoint(Family::V4)))?;
    let directory = Path::new("/sys/fs/bpf/adit").join(site.interface());
    let maps = directory.join("v1");
    let packets = || -> Result<u64> {
        let flows = flows(&maps.join("flows"))?;
        Ok(flows.iter().map(|flow| flow.count.packets).sum())
    };
    for killed in [true, true, false] {
        site.add_peer(&peer, &format!("endpoint {}", peer.endpoint(Family::V4)))?;
        wait_steering(&site)?;
        wait_reachable(&site.namespace, peer.inner(Family::V4), HANDSHAKE_LIMIT)?;
        let before = packets()?;
        ping_all(&site.namespace, peer.inner(Family::V4), 10, 100)?;
        ensure!(packets()? >= before + 20, "the pins are not this daemon's");
        if killed {
            site.daemon.signal(Signal::SIGKILL)?;
            site.daemon.wait()?;
            ensure!(maps.join("flows").exists(), "nothing was left: no test");
            site.daemon.restart(&site.namespace)?;
            site.set_up(1420)?;
        }
    }
    site.daemon.signal(Signal::SIGTERM)?;
    let status = site.daemon.wait()?;
    ensure!(status.success(), "{status}");
    ensure!(!directory.exists(), "pins left behind");
    let wire = format!("-d link show {WAN}");
    let shown = output(site.namespace.command("ip").args(wire.split(' ')))?.stdout;
    ensure!(!shown.contains("xdp"), "{shown}");
    Ok(())
}
