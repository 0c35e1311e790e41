//! How a daemon ends, and what is left then: nothing.

use std::time::Duration;

use adit_tests::daemon::Options;
use adit_tests::ping::wait_reachable;
use adit_tests::tunnel::{Family, HANDSHAKE_LIMIT, Pair, PairOptions};
use adit_tests::wait::wait_until;
use adit_tests::{Daemon, Namespace, uapi};
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

/// Starts a daemon, lets `end` end it, and checks exit code and leftovers.
fn ends_cleanly(end: impl FnOnce(&Namespace, &mut Daemon) -> Result<()>) -> Result<()> {
    let namespace = Namespace::new()?;
    let mut daemon = Daemon::start(&namespace, &Options::default())?;
    end(&namespace, &mut daemon)?;
    let status = daemon.wait()?;
    ensure!(status.code() == Some(0), "{status}\n{}", daemon.log_text());
    nothing_left(&namespace, daemon.interface())
}

fn nothing_left(namespace: &Namespace, interface: &str) -> Result<()> {
    ensure!(!uapi::socket_path(interface).exists(), "socket file left");
    // The kernel takes a TUN device down after its last descriptor was closed, not before.
    wait_until("device gone", Duration::from_secs(5), || {
        !namespace.has_interface(interface)
    })?;
    ensure!(
        namespace.pids().is_empty(),
        "processes left: {:?}",
        namespace.pids()
    );
    Ok(())
}

#[test]
fn sigterm() -> Result<()> {
    ends_cleanly(|_, daemon| daemon.signal(Signal::SIGTERM))
}

#[test]
fn sigint() -> Result<()> {
    ends_cleanly(|_, daemon| daemon.signal(Signal::SIGINT))
}

#[test]
fn device_deleted_from_outside() -> Result<()> {
    ends_cleanly(|namespace, daemon| namespace.ip(&format!("link delete {}", daemon.interface())))
}

#[test]
fn socket_file_removed() -> Result<()> {
    ends_cleanly(|_, daemon| Ok(std::fs::remove_file(uapi::socket_path(daemon.interface()))?))
}

/// Each end, once more, with traffic flowing.
#[test]
fn every_end_under_traffic() -> Result<()> {
    type End = fn(&mut Pair) -> Result<()>;
    let ends: [End; 3] = [
        |pair| pair.left.daemon.signal(Signal::SIGTERM),
        |pair| {
            pair.left
                .namespace
                .ip(&format!("link delete {}", pair.left.interface()))
        },
        |pair| {
            Ok(std::fs::remove_file(uapi::socket_path(
                pair.left.interface(),
            ))?)
        },
    ];
    for end in ends {
        let mut pair = Pair::connected(&PairOptions::default())?;
        let target = pair.right.inner(Family::V4).to_string();
        let mut flood = pair.left.namespace.command("ping");
        flood.args(["-q", "-n", "-i", "0.001", "-s", "1300", &target]);
        let flood = adit_tests::command::Running::start(&mut flood)?;
        let before = pair.right.peer(&pair.left)?.received;
        wait_until("traffic", Duration::from_secs(10), || {
            pair.right
                .peer(&pair.left)
                .is_ok_and(|peer| peer.received > before + 50_000)
        })?;
        end(&mut pair)?;
        let status = pair.left.daemon.wait()?;
        ensure!(
            status.code() == Some(0),
            "{status}\n{}",
            pair.left.daemon.log_text()
        );
        drop(flood);
        nothing_left(&pair.left.namespace, pair.left.interface())?;
    }
    Ok(())
}

/// A killed daemon leaves its socket file. The next one takes the name over, and the tunnel comes back.
#[test]
fn killed_and_restarted() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    for _ in 0..2 {
        pair.left.daemon.crash_and_restart(&pair.left.namespace)?;
        pair.left.set_up(1420)?;
        pair.left.add_peer(
            &pair.right,
            &format!("endpoint {}", pair.right.endpoint(Family::V4)),
        )?;
        pair.wait_connected()?;
        let from = &pair.right.namespace;
        wait_reachable(from, pair.left.inner(Family::V4), HANDSHAKE_LIMIT)?;
    }
    pair.check_running()
}

/// A stale socket file of a daemon that runs no more does not stand in the way; one that is in use does.
#[test]
fn name_in_use_is_refused() -> Result<()> {
    let (namespace, other) = (Namespace::new()?, Namespace::new()?);
    let mut first = Daemon::start(&namespace, &Options::default())?;
    let same = Options {
        interface: Some(first.interface().to_owned()),
        ..Options::default()
    };
    // In another namespace the device name is free, but the socket is not. `Daemon` would remove the socket file when
    // dropped, so the second one is run bare.
    for place in [&namespace, &other] {
        let mut command = place.command(same.implementation.program()?);
        let output = adit_tests::command::output(command.args(["-f", first.interface()]))?;
        ensure!(output.status.code() == Some(1), "{}", output.status);
    }
    ensure!(
        first.running() && uapi::request(first.interface(), "get=1").is_ok(),
        "the first one is disturbed"
    );
    Ok(())
}
