//! Ping, TCP and UDP through the tunnel, both families inside and outside.

use adit_tests::iperf::{Amount, Run};
use adit_tests::ping::ping_all;
use adit_tests::tunnel::{Family, Pair, PairOptions};
use anyhow::{Result, ensure};

use adit_tests::transfer::tcp_both_ways;

/// Ping, verified TCP in both directions, iperf3 TCP and UDP.
fn carry(outer: Family, inner: Family) -> Result<()> {
    let mut pair = Pair::connected(&PairOptions {
        outer,
        ..PairOptions::default()
    })?;
    let (left, right) = (&pair.left, &pair.right);
    for size in [0, 1, 56, 1000, 1420 - 48] {
        ping_all(&left.namespace, right.inner(inner), 5, size)?;
        ping_all(&right.namespace, left.inner(inner), 5, size)?;
    }
    tcp_both_ways(left, right, inner, 8 << 20)?;

    let (client, server) = (&left.namespace, &right.namespace);
    for options in [&[][..], &["-R"], &["-P", "4"]] {
        let run = Run {
            client,
            server,
            to: right.inner(inner),
            amount: Amount::Seconds(1),
            options,
        };
        ensure!(run.run()?.bytes > 0, "no byte arrived: {run:?}");
    }
    for options in [
        &["-u", "-b", "20M", "-l", "1200"][..],
        &["-u", "-b", "20M", "-l", "1200", "-R"],
    ] {
        let run = Run {
            client,
            server,
            to: right.inner(inner),
            amount: Amount::Seconds(1),
            options,
        };
        let report = run.run()?;
        ensure!(
            report.datagrams > report.lost,
            "no datagram arrived: {report:?}"
        );
        ensure!(
            report.out_of_order == 0,
            "order within a flow changed: {report:?}"
        );
    }
    pair.check_running()
}

#[test]
fn ipv4_in_ipv4() -> Result<()> {
    carry(Family::V4, Family::V4)
}

#[test]
fn ipv6_in_ipv4() -> Result<()> {
    carry(Family::V4, Family::V6)
}

#[test]
fn ipv4_in_ipv6() -> Result<()> {
    carry(Family::V6, Family::V4)
}

#[test]
fn ipv6_in_ipv6() -> Result<()> {
    carry(Family::V6, Family::V6)
}
