//! Many packets a system call: counted by the daemon itself, and by strace from outside; and without, when told so.

use std::collections::BTreeMap;
use std::time::Duration;

use adit_tests::command::Running;
use adit_tests::daemon::Options;
use adit_tests::iperf::{Amount, Run};
use adit_tests::transfer::{tcp_both_ways, udp_echo};
use adit_tests::tunnel::{Family, Pair, PairOptions, Site};
use adit_tests::uapi::number;
use adit_tests::wait::wait_until;
use anyhow::{Context as _, Result, ensure};

/// Packets a super-packet must carry on average under a TCP stream. 44 full ones fit into one.
const PACKETS: u64 = 20;

/// A TCP stream from left to right.
fn stream<'a>(pair: &'a Pair, inner: Family, seconds: u32) -> Run<'a> {
    Run {
        client: &pair.left.namespace,
        server: &pair.right.namespace,
        to: pair.right.inner(inner),
        amount: Amount::Seconds(seconds),
        options: &[],
    }
}

/// How much each of the daemon's counters grew.
struct Growth(BTreeMap<String, u64>);

impl Growth {
    fn of(site: &Site, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        let before = counters(site)?;
        work()?;
        let after = counters(site)?;
        Ok(Self(
            after
                .into_iter()
                .map(|(key, value)| (key.clone(), value - before.get(&key).unwrap_or(&0)))
                .collect(),
        ))
    }

    fn get(&self, key: &str) -> Result<u64> {
        self.0
            .get(key)
            .copied()
            .with_context(|| format!("daemon does not tell {key}"))
    }

    /// At least [`PACKETS`] of `items` for each of `calls`.
    fn batched(&self, items: &str, calls: &str) -> Result<()> {
        let (many, few) = (self.get(items)?, self.get(calls)?);
        ensure!(
            few > 0 && many >= PACKETS * few,
            "{many} {items} in {few} {calls}"
        );
        Ok(())
    }
}

fn counters(site: &Site) -> Result<BTreeMap<String, u64>> {
    let answer = adit_tests::uapi::request(site.interface(), "get=1")?;
    Ok(answer
        .into_iter()
        .filter(|(key, _)| key.starts_with("adit_"))
        .filter_map(|(key, value)| Some((key, value.parse().ok()?)))
        .collect())
}

/// The sender of a stream reads and sends super-packets, and the receiver writes them.
#[test]
fn counted_by_the_daemon() -> Result<()> {
    for inner in [Family::V4, Family::V6] {
        let mut pair = Pair::connected(&PairOptions::default())?;
        let run = stream(&pair, inner, 2);
        let receiver = Growth::of(&pair.right, || {
            let sender = Growth::of(&pair.left, || run.run().map(drop))?;
            sender.batched("adit_tun_read_packets", "adit_tun_reads")?;
            sender.batched("adit_udp_sent_datagrams", "adit_udp_sends")
        })?;
        receiver.batched("adit_udp_received_datagrams", "adit_udp_receives")?;
        receiver.batched("adit_tun_written_packets", "adit_tun_writes")?;
        pair.check_running()?;
    }
    Ok(())
}

/// The same, seen from outside: payload bytes of the stream over system calls of the sending daemon.
#[test]
fn counted_by_strace() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let summary = tempfile::NamedTempFile::new()?;
    let mut command = std::process::Command::new("strace");
    command.args([
        "-f",
        "-c",
        "-U",
        "calls,name",
        "-p",
        &pair.left.daemon.pid().to_string(),
        "-o",
    ]);
    let strace = Running::start(
        command
            .arg(summary.path())
            .stdin(std::process::Stdio::null()),
    )?;
    let traced = || std::fs::read_to_string(format!("/proc/{}/status", pair.left.daemon.pid()));
    wait_until("strace is attached", Duration::from_secs(20), || {
        traced().is_ok_and(|status| {
            status.lines().any(|line| {
                line.strip_prefix("TracerPid:")
                    .is_some_and(|pid| pid.trim() != "0")
            })
        })
    })?;
    let report = stream(&pair, Family::V4, 3).run()?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(strace.pid())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
    strace.finish(Duration::from_secs(20))?;

    let table = std::fs::read_to_string(summary.path())?;
    let calls = |names: &[&str]| -> u64 {
        let rows = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.filter(|row| row.len() == 2 && names.contains(&row[1]))
            .filter_map(|row| row[0].parse::<u64>().ok())
            .sum()
    };
    // 1420 less IP and TCP headers with time stamps.
    let packets = report.bytes / 1368;
    let (reads, sends) = (
        calls(&["read", "readv"]),
        calls(&["sendmsg", "sendmmsg", "sendto"]),
    );
    ensure!(
        packets > 100 && reads > 0 && sends > 0,
        "{packets} packets\n{table}"
    );
    // Reads include a few that found nothing, so this is stricter than it looks.
    ensure!(
        packets >= PACKETS * reads,
        "{packets} packets in {reads} reads\n{table}"
    );
    ensure!(
        packets >= PACKETS * sends,
        "{packets} packets in {sends} sends\n{table}"
    );
    pair.check_running()
}

/// In the steady state no data thread allocates, whichever way the packets go.
#[test]
fn no_allocation_per_packet() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let flow = || -> Result<()> {
        tcp_both_ways(&pair.left, &pair.right, Family::V4, 16 << 20)?;
        tcp_both_ways(&pair.left, &pair.right, Family::V6, 16 << 20)?;
        udp_echo(
            &pair.left.namespace,
            &pair.right.namespace,
            pair.right.inner(Family::V4),
            &[0, 500, 1300],
        )
    };
    // The first packets may still grow a buffer.
    flow()?;
    let allocations = || -> Result<[u64; 2]> {
        let of = |site: &Site| number(site.interface(), "adit_data_thread_allocations");
        Ok([of(&pair.left)?, of(&pair.right)?])
    };
    let before = allocations()?;
    flow()?;
    let after = allocations()?;
    ensure!(
        before == after,
        "allocations of the data threads grew from {before:?} to {after:?}"
    );
    pair.check_running()
}

/// Each switch, as an option and as a variable, and all together: traffic flows, and what is off is off.
#[test]
fn switches() -> Result<()> {
    let single = [
        (
            "--no-tun-offload",
            "ADIT_NO_TUN_OFFLOAD",
            [
                ("adit_tun_read_packets", "adit_tun_reads"),
                ("adit_tun_written_packets", "adit_tun_writes"),
            ]
            .as_slice(),
        ),
        (
            "--no-gso",
            "ADIT_NO_GSO",
            &[("adit_udp_sent_datagrams", "adit_udp_sends")],
        ),
        (
            "--no-gro",
            "ADIT_NO_GRO",
            &[("adit_udp_received_datagrams", "adit_udp_receives")],
        ),
    ];
    let mut cases: Vec<(Options, Vec<(&str, &str)>)> = Vec::new();
    for (option, variable, equal) in single {
        cases.push((
            Options {
                arguments: vec![option.into()],
                ..Options::default()
            },
            equal.to_vec(),
        ));
        let environment = BTreeMap::from([(variable.to_owned(), "1".to_owned())]);
        cases.push((
            Options {
                environment,
                ..Options::default()
            },
            equal.to_vec(),
        ));
    }
    let arguments = single
        .iter()
        .map(|(option, ..)| (*option).to_owned())
        .collect();
    let all = single
        .iter()
        .flat_map(|(.., equal)| equal.to_vec())
        .collect();
    cases.push((
        Options {
            arguments,
            ..Options::default()
        },
        all,
    ));
    for (options, equal) in cases {
        // The other side has everything on: each side must stand what the other sends.
        let mut pair = Pair::connected(&PairOptions {
            left: options.clone(),
            ..PairOptions::default()
        })?;
        let mut differences = Vec::new();
        // A packet may be between two counters at the moment of reading, but not each time.
        for _ in 0..4 {
            let growth = Growth::of(&pair.left, || {
                tcp_both_ways(&pair.left, &pair.right, Family::V4, 4 << 20)
            })?;
            differences.clear();
            for (items, calls) in &equal {
                let (items_grew, calls_grew) = (growth.get(items)?, growth.get(calls)?);
                if items_grew != calls_grew {
                    differences.push(format!("{items_grew} {items} in {calls_grew} {calls}"));
                }
            }
            if differences.is_empty() {
                break;
            }
        }
        ensure!(differences.is_empty(), "{options:?}: {differences:?}");
        tcp_both_ways(&pair.left, &pair.right, Family::V6, 1 << 20)?;
        pair.check_running()?;
    }
    Ok(())
}
