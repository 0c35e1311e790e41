//! Junk for the tunnel's port from forged sources: dropped by XDP or in front of the UDP socket, counted by reason, without
//! harm to the tunnel or to the counters of its flows.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adit_tests::flood::{Flood, Junk, SOURCES};
use adit_tests::ping::ping_all;
use adit_tests::transfer::tcp;
use adit_tests::tunnel::{Family, PORT, Pair, PairOptions, WAN};
use adit_tests::wait::wait_until;
use adit_tests::{Namespace, uapi};
use anyhow::{Context as _, Result, ensure};

use crate::xdp::{NATIVE, Traffic};
use crate::xdp_tools::{drops, flows, pinned};

/// Reasons by their number in the `drops` map.
const TOO_SHORT: usize = 0;
const RESERVED: usize = 1;
const UNKNOWN_TYPE: usize = 2;
const DEAD_INDEX: usize = 4;
const RATE_LIMITED: usize = 5;

/// The kinds of junk that the programs tell by themselves, and the reasons.
const TOLD: [(Junk, usize); 4] = [
    (Junk::Random, UNKNOWN_TYPE),
    (Junk::DeadIndex, DEAD_INDEX),
    (Junk::Short, TOO_SHORT),
    (Junk::Reserved, RESERVED),
];

/// A flood of the right site's port by way of the wire.
fn flood(pair: &Pair) -> Result<Flood> {
    let IpAddr::V4(target) = pair.right.outer(Family::V4) else {
        anyhow::bail!("no IPv4 address");
    };
    let target = SocketAddrV4::new(target, PORT);
    Flood::new(&pair.left.namespace, &pair.right.namespace, WAN, target)
}

/// Where a frame of a flood can end.
#[derive(Debug, Clone)]
struct Account {
    /// In XDP or in front of the socket, by reason.
    dropped: Vec<u64>,
    /// On the wire, for want of room: veth counts that at the sender.
    lost: u64,
    /// Initiations in the daemon, whether it had the time to look at them or not.
    initiations: u64,
    /// Initiations in front of the daemon's socket, for want of room.
    not_read: u64,
}

impl Account {
    fn of(pair: &Pair) -> Result<Self> {
        let number = |key| uapi::number(pair.right.interface(), key);
        Ok(Self {
            dropped: dropped(pair)?,
            lost: lost(&pair.left.namespace)?,
            initiations: number("adit_handshake_messages")?
                + number("adit_drop_ingress_handshake_queue")?,
            not_read: receive_buffer_errors(&pair.right.namespace)?,
        })
    }

    fn since(&self, before: &Self) -> Self {
        let dropped = self.dropped.iter().zip(&before.dropped);
        Self {
            dropped: dropped.map(|(now, before)| now - before).collect(),
            lost: self.lost - before.lost,
            initiations: self.initiations - before.initiations,
            not_read: self.not_read - before.not_read,
        }
    }

    fn total(&self) -> u64 {
        self.dropped.iter().sum::<u64>() + self.lost + self.initiations + self.not_read
    }
}

/// Frames that the wire's end has lost on their way out.
fn lost(namespace: &Namespace) -> Result<u64> {
    let text = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
    let fields = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(WAN)?.strip_prefix(':'));
    // Eight columns in, then bytes, packets, errors, drops out.
    let dropped = fields.and_then(|fields| fields.split_whitespace().nth(11)?.parse().ok());
    dropped.with_context(|| format!("{WAN}: {text}"))
}

/// Datagrams for which a socket of this namespace had no room.
pub(crate) fn receive_buffer_errors(namespace: &Namespace) -> Result<u64> {
    let text = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = lines.next().zip(lines.next()).context("no UDP counters")?;
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let value = pairs.find(|(name, _)| *name == "RcvbufErrors");
    Ok(value.context("no RcvbufErrors")?.1.parse()?)
}

/// Packets dropped by reason.
fn dropped(pair: &Pair) -> Result<Vec<u64>> {
    let drops = drops(&pinned(&pair.right, "drops"))?;
    Ok(drops.iter().map(|count| count.packets).collect())
}

/// Nothing but the tunnel has entries in the flow counters.
fn only_real_flows(pair: &Pair) -> Result<()> {
    let flows = flows(&pinned(&pair.right, "flows"))?;
    let peer: Ipv4Addr = "192.0.2.1".parse()?;
    ensure!(
        flows.len() == 2
            && flows
                .iter()
                .all(|flow| flow.remote == peer.to_ipv6_mapped()),
        "{flows:#?}"
    );
    Ok(())
}

/// As fast as this machine sends: every frame is accounted for, and each kind by its reason.
fn count_every_frame(mut pair: Pair) -> Result<()> {
    const ROUNDS: u64 = 200;
    pair.wait_connected()?;
    let (flood, before) = (flood(&pair)?, Account::of(&pair)?);
    let rounds = flood.run(&AtomicBool::new(true), ROUNDS)?;
    ensure!(rounds == ROUNDS, "{rounds}");
    let of_each = ROUNDS * u64::from(SOURCES);
    let sent = of_each * Junk::ALL.len() as u64;
    let now = || Ok::<_, anyhow::Error>(Account::of(&pair)?.since(&before));
    // The daemon counts after it has looked.
    let complete = || now().is_ok_and(|account| account.total() == sent);
    if wait_until("all are accounted for", Duration::from_secs(10), complete).is_err() {
        anyhow::bail!("{:?} of {sent}", now()?);
    }
    let account = now()?;
    for (junk, reason) in TOLD {
        let counted = account.dropped[reason];
        // What is missing was lost on the wire.
        ensure!(
            (of_each.saturating_sub(account.lost)..=of_each).contains(&counted),
            "{junk:?}: {account:?} of {of_each}"
        );
    }
    let others = account.dropped.iter().enumerate().filter(|(reason, _)| {
        *reason != RATE_LIMITED && TOLD.iter().all(|(_, told)| told != reason)
    });
    ensure!(
        others.map(|(_, count)| count).sum::<u64>() == 0,
        "{account:?}"
    );
    let not_read = uapi::number(pair.right.interface(), "adit_drop_ingress_socket_buffer")?;
    ensure!(not_read == account.not_read, "{not_read}: {account:?}");
    only_real_flows(&pair)?;
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 10, 1000)?;
    pair.check_running()
}

#[test]
fn every_frame_is_counted_by_xdp() -> Result<()> {
    count_every_frame(NATIVE.steering_pair()?)
}

#[test]
fn every_frame_is_counted_in_front_of_the_socket() -> Result<()> {
    count_every_frame(Pair::connected(&PairOptions::default())?)
}

/// As fast as this machine sends, beside real traffic, for as long as that takes.
fn work_under_a_flood(mut pair: Pair, by_xdp: bool) -> Result<()> {
    pair.wait_connected()?;
    let flood = flood(&pair)?;
    let before = (dropped(&pair)?, Traffic::of(&pair.right)?);
    let running = AtomicBool::new(true);
    let rounds = std::thread::scope(|scope| {
        let flood = scope.spawn(|| flood.run(&running, u64::MAX));
        let (left, right) = (&pair.left, &pair.right);
        let inner = |site: &adit_tests::Site| site.inner(Family::V4);
        let worked = tcp(&left.namespace, &right.namespace, inner(right), 16 << 20)
            .and_then(|()| tcp(&right.namespace, &left.namespace, inner(left), 16 << 20));
        running.store(false, Ordering::Relaxed);
        let rounds = flood.join();
        worked?;
        rounds.unwrap_or_else(|_| Ok(0))
    })?;
    let counted: Vec<u64> = dropped(&pair)?
        .iter()
        .zip(&before.0)
        .map(|(after, before)| after - before)
        .collect();
    let of_each = rounds * u64::from(SOURCES);
    for (junk, reason) in TOLD {
        ensure!(
            (1000..=of_each).contains(&counted[reason]),
            "{junk:?}: {counted:?} of {of_each}"
        );
    }
    let traffic = Traffic::of(&pair.right)?.since(before.1);
    let [ours, other] = if by_xdp {
        [traffic.xsk, traffic.socket]
    } else {
        [traffic.socket, traffic.xsk]
    };
    ensure!(other == 0 && ours > 1000, "{traffic:?}");
    only_real_flows(&pair)?;
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 10, 1000)?;
    pair.check_running()
}

#[test]
fn the_tunnel_works_by_xdp() -> Result<()> {
    work_under_a_flood(NATIVE.steering_pair()?, true)
}

#[test]
fn the_tunnel_works_by_the_socket() -> Result<()> {
    work_under_a_flood(Pair::connected(&PairOptions::default())?, false)
}
