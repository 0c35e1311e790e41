//! System calls that fail inside running daemons, every one in every way, now and then and for a while: what is inside
//! the tunnel arrives as it was sent and in its order, what is lost is counted, and nobody ends or spins.

use std::fs;
use std::time::{Duration, Instant};

use adit_tests::faults::{Call, Faults, SHORT};
use adit_tests::ping::wait_reachable;
use adit_tests::transfer::tcp_at_once;
use adit_tests::tunnel::{Family, HANDSHAKE_LIMIT, Pair, PairOptions, Site};
use adit_tests::uapi;
use adit_tests::udp_flow::{Delivery, Flow};
use anyhow::{Context as _, Result, ensure};
use nix::libc;

use crate::flood::receive_buffer_errors;
use crate::xdp::{NATIVE, Traffic, wait_steering};

/// How a call fails: the name for messages, and the errno.
pub(crate) type Fault = (&'static str, u64);

const fn errno(name: &'static str, number: i32) -> Fault {
    (name, number.unsigned_abs() as u64)
}

const INTERRUPTED: Fault = errno("EINTR", libc::EINTR);

/// What any call may say.
pub(crate) const FAULTS: [Fault; 8] = [
    errno("EIO", libc::EIO),
    errno("EINVAL", libc::EINVAL),
    errno("EMSGSIZE", libc::EMSGSIZE),
    errno("ENOBUFS", libc::ENOBUFS),
    errno("ENOMEM", libc::ENOMEM),
    errno("EAGAIN", libc::EAGAIN),
    INTERRUPTED,
    ("less than asked", SHORT),
];

/// So many in a thousand calls fail.
const RATE: u64 = 50;

/// Bytes of each stream.
const BYTES: usize = 128 << 10;

/// Two sites whose calls can be made to fail; the left one exchanges super-packets, the right one single packets, so
/// that both ways of working meet every fault.
fn pair(faults: &Faults) -> Result<Pair> {
    let single = ["--no-gso", "--no-gro", "--no-tun-offload"];
    Pair::connected(&PairOptions {
        left: faults.options(&[]),
        right: faults.options(&single),
        ..PairOptions::default()
    })
}

/// A call that fails now and then, in each way.
fn now_and_then(call: Call, ways: &[Fault]) -> Result<()> {
    let faults = Faults::new(call as u64)?;
    let mut pair = pair(&faults)?;
    each_way(&faults, &mut pair, call, ways)?;
    unharmed(&pair)
}

fn each_way(faults: &Faults, pair: &mut Pair, call: Call, ways: &[Fault]) -> Result<()> {
    for &(name, errno) in ways {
        let Pair { left, right } = &*pair;
        let before = faults.count(call)?.injected;
        faults.set(call, errno, RATE)?;
        // Both at once: the flow keeps the calls coming while the streams wait for what was lost.
        let flows = std::thread::scope(|scope| -> Result<()> {
            let streams = scope.spawn(|| tcp_at_once(left, right, Family::V4, BYTES));
            flows(pair)?;
            streams
                .join()
                .map_err(|_| anyhow::anyhow!("transfer panicked"))?
        });
        flows.with_context(|| format!("{call:?}: {name}"))?;
        faults.set(call, errno, 0)?;
        let injected = faults.count(call)?.injected - before;
        ensure!(injected > 0, "{call:?}: {name} did not happen");
        pair.check_running()?;
    }
    Ok(())
}

/// Numbered datagrams both ways come in order.
fn deliver(pair: &Pair) -> Result<[Delivery; 2]> {
    let one_way = |from: &Site, to: &Site| {
        let flow = Flow {
            from: &from.namespace,
            to: &to.namespace,
            address: to.inner(Family::V6),
            size: 300,
            rate: Some(4_000),
            duration: Duration::from_millis(100),
        };
        flow.run()
    };
    let deliveries = std::thread::scope(|scope| -> Result<_> {
        let other = scope.spawn(|| one_way(&pair.right, &pair.left));
        let this = one_way(&pair.left, &pair.right)?;
        let other = other
            .join()
            .map_err(|_| anyhow::anyhow!("flow panicked"))??;
        Ok([this, other])
    })?;
    let ordered = |delivery: &Delivery| delivery.reordered == 0 && delivery.repeated == 0;
    ensure!(deliveries.iter().all(ordered), "{deliveries:?}");
    Ok(deliveries)
}

/// As [`deliver`], and each that does not come is counted somewhere.
fn flows(pair: &Pair) -> Result<[Delivery; 2]> {
    let before = lost(pair)?;
    let deliveries = deliver(pair)?;
    let counted = lost(pair)? - before;
    let lost: u64 = deliveries.iter().map(Delivery::lost).sum();
    ensure!(
        lost <= counted,
        "{deliveries:?}, and {counted} are counted as lost"
    );
    Ok(deliveries)
}

/// What both daemons say that they dropped, and what the kernel did before it reached them.
fn lost(pair: &Pair) -> Result<u64> {
    let mut sum = 0;
    for site in [&pair.left, &pair.right] {
        let answer = uapi::request(site.interface(), "get=1")?;
        for (_, count) in answer
            .iter()
            .filter(|(key, _)| key.starts_with("adit_drop_"))
        {
            sum += count.parse::<u64>()?;
        }
        sum += receive_buffer_errors(&site.namespace)?;
        sum += device_drops(site)?;
    }
    Ok(sum + backlog_drops()?)
}

/// Packets that found no room in front of a processor of this machine, as those from a veth may.
fn backlog_drops() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/softnet_stat")?;
    let dropped = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    Ok(text.lines().filter_map(dropped).sum())
}

/// Packets that found no room in the queue of the tunnel's device.
fn device_drops(site: &Site) -> Result<u64> {
    let text = site
        .namespace
        .enter(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
    let fields = text
        .lines()
        .find_map(|line| {
            line.trim()
                .strip_prefix(site.interface())?
                .strip_prefix(':')
        })
        .context("no such device")?;
    // Drops in are the 4th column, drops out the 12th.
    let column = |n| fields.split_whitespace().nth(n)?.parse::<u64>().ok();
    let (incoming, outgoing) = column(3).zip(column(11)).context("no such column")?;
    Ok(incoming + outgoing)
}

/// Without faults everything is as before.
fn unharmed(pair: &Pair) -> Result<()> {
    let Pair { left, right } = pair;
    for (from, to) in [(left, right), (right, left)] {
        wait_reachable(&from.namespace, to.inner(Family::V4), HANDSHAKE_LIMIT)?;
    }
    tcp_at_once(left, right, Family::V4, BYTES)?;
    let deliveries = flows(pair)?;
    ensure!(deliveries.iter().all(|delivery| delivery.received > 0));
    Ok(())
}

#[test]
fn sending() -> Result<()> {
    now_and_then(Call::SendMany, &FAULTS)
}

#[test]
fn receiving() -> Result<()> {
    now_and_then(Call::ReceiveMany, &FAULTS)
}

/// A TUN device gives and takes whole packets.
const WHOLE: &[Fault] = FAULTS.split_at(7).0;

#[test]
fn reading_from_the_device() -> Result<()> {
    now_and_then(Call::TunRead, WHOLE)
}

#[test]
fn writing_to_the_device() -> Result<()> {
    now_and_then(Call::TunWrite, WHOLE)
}

#[test]
fn waiting_for_the_network() -> Result<()> {
    now_and_then(Call::Poll, &FAULTS)
}

#[test]
fn waiting_for_the_device() -> Result<()> {
    now_and_then(Call::EpollWait, &FAULTS)
}

/// Received by AF_XDP, where waiting and sending are all that is left of them.
#[test]
fn by_af_xdp() -> Result<()> {
    let faults = Faults::new(8)?;
    let mut options = faults.options(&[]);
    options.environment.extend(NATIVE.options().environment);
    let mut pair = Pair::connected(&PairOptions {
        left: options.clone(),
        right: options,
        ..PairOptions::default()
    })?;
    for site in [&pair.left, &pair.right] {
        wait_steering(site)?;
    }
    for call in [Call::Poll, Call::SendMany, Call::TunWrite] {
        each_way(&faults, &mut pair, call, &[FAULTS[0], INTERRUPTED])?;
    }
    unharmed(&pair)?;
    let traffic = Traffic::of(&pair.left)?;
    ensure!(traffic.xsk > 100, "{traffic:?}");
    Ok(())
}

/// Pauses after calls that keep failing soon become longer than this; so many are shorter.
const PAUSE: Duration = Duration::from_millis(16);
const SHORTER: u64 = 20;

/// Calls that may come together: both data threads of both daemons read what is there in rounds, and each round tries
/// more than once.
const TOGETHER: u64 = 4 * 16 * 3;

/// Calls that fail every time: the daemons try again, but not as fast as they can, and work as soon as it does.
fn for_a_while(calls: &[Call]) -> Result<()> {
    let faults = Faults::new(0)?;
    let mut pair = pair(&faults)?;
    let ways = [FAULTS[0], FAULTS[3], FAULTS[4]];
    for (&call, (name, errno)) in calls.iter().flat_map(|call| ways.map(|way| (call, way))) {
        faults.set(call, errno, 1000)?;
        let (start, before) = (Instant::now(), faults.count(call)?.attempts);
        // What nobody reads waits in the kernel: it is neither delivered nor lost.
        deliver(&pair)?;
        let attempts = faults.count(call)?.attempts - before;
        let pauses = u64::try_from(start.elapsed().as_nanos() / PAUSE.as_nanos())?;
        faults.set(call, errno, 0)?;
        ensure!(
            attempts > 0 && attempts <= (pauses + SHORTER) * TOGETHER,
            "{call:?} {name}: {attempts} attempts in {pauses} pauses"
        );
        pair.check_running()
            .with_context(|| format!("{call:?}: {name}"))?;
    }
    unharmed(&pair)
}

#[test]
fn nobody_spins_on_sends_that_keep_failing() -> Result<()> {
    for_a_while(&[Call::TunRead, Call::EpollWait, Call::SendMany])
}

#[test]
fn nobody_spins_on_receives_that_keep_failing() -> Result<()> {
    for_a_while(&[Call::ReceiveMany, Call::Poll, Call::TunWrite])
}

/// Netlink loses messages and is interrupted: the daemon follows its device and its routes nevertheless.
#[test]
fn hearing_of_the_device() -> Result<()> {
    let faults = Faults::new(9)?;
    let mut pair = pair(&faults)?;
    for (name, errno) in [FAULTS[3], FAULTS[4], INTERRUPTED] {
        faults.set(Call::ReceiveNetlink, errno, 300)?;
        let before = faults.count(Call::ReceiveNetlink)?.injected;
        for _ in 0..10 {
            let interface = pair.left.interface();
            pair.left.namespace.ip(&format!(
                "link set {interface} down\nlink set {interface} up\nlink set {interface} mtu 1400\nlink set {interface} mtu 1420"
            ))?;
        }
        wait_reachable(
            &pair.left.namespace,
            pair.right.inner(Family::V4),
            HANDSHAKE_LIMIT,
        )
        .with_context(|| name)?;
        faults.set(Call::ReceiveNetlink, errno, 0)?;
        ensure!(faults.count(Call::ReceiveNetlink)?.injected > before);
        pair.check_running()?;
    }
    let interface = pair.left.interface().to_owned();
    pair.left
        .namespace
        .ip(&format!("link delete {interface}"))?;
    let status = pair.left.daemon.wait()?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}
