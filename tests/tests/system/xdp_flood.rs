//! Junk for the tunnel's port from forged sources: dropped in front of the stack, counted by reason, without harm to the
//! tunnel or to the counters of its flows.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adit_tests::ping::ping_all;
use adit_tests::transfer::tcp;
use adit_tests::tunnel::{Family, PORT, Pair};
use adit_tests::wait::wait_until;
use adit_tests::{Namespace, uapi};
use anyhow::{Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use crate::xdp::{NATIVE, Traffic};
use crate::xdp_tools::{drops, flows, pinned};

/// Forged senders, in the block that RFC 2544 sets aside for tests of this kind.
const SOURCES: u16 = 1000;

/// Reasons by their number in the `drops` map.
const TOO_SHORT: usize = 0;
const RESERVED: usize = 1;
const UNKNOWN_TYPE: usize = 2;
const DEAD_INDEX: usize = 4;
const RATE_LIMITED: usize = 5;

/// The kinds of junk: what it is, and the reason it is dropped for. Initiations look right until their MAC is looked at,
/// so they go to the daemon.
fn junk() -> Vec<(Vec<u8>, Option<usize>)> {
    let message = |head: &[u8], length: usize| {
        let mut bytes: Vec<u8> = (0..=255).cycle().take(length).collect();
        bytes[..head.len()].copy_from_slice(head);
        bytes
    };
    vec![
        (message(&[0x5a, 0x17], 333), Some(UNKNOWN_TYPE)),
        // An index that is live once in four thousand million times.
        (
            message(&[4, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef], 160),
            Some(DEAD_INDEX),
        ),
        (message(&[4, 0, 0, 0], 31), Some(TOO_SHORT)),
        (message(&[4, 0, 1, 0], 160), Some(RESERVED)),
        (message(&[1, 0, 0, 0], 148), None),
    ]
}

/// A socket that sends IPv4 packets with headers of our own making.
struct Forger {
    socket: OwnedFd,
    target: Ipv4Addr,
}

impl Forger {
    fn new(namespace: &Namespace, target: Ipv4Addr) -> Result<Self> {
        let socket = namespace.enter(|| {
            let flags = SockFlag::SOCK_CLOEXEC;
            socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)
        })??;
        Ok(Self { socket, target })
    }

    /// Sends a datagram to the tunnel's port as if it came from forged source `number`.
    fn send(&self, number: u16, payload: &[u8]) -> Result<()> {
        let [high, low] = number.to_be_bytes();
        let udp_length = u16::try_from(8 + payload.len())?;
        // The kernel fills in length, identification and checksum of the IP header: raw(7).
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend([198, 18, high, low]);
        packet.extend(self.target.octets());
        packet.extend((1024 + number).to_be_bytes());
        packet.extend(PORT.to_be_bytes());
        packet.extend(udp_length.to_be_bytes());
        // Over IPv4 a UDP checksum of zero means that there is none.
        packet.extend([0, 0]);
        packet.extend(payload);
        let to = SockaddrIn::from(std::net::SocketAddrV4::new(self.target, 0));
        sendto(self.socket.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
        Ok(())
    }
}

fn forger(pair: &Pair) -> Result<Forger> {
    let std::net::IpAddr::V4(target) = pair.right.outer(Family::V4) else {
        anyhow::bail!("no IPv4 address");
    };
    Forger::new(&pair.left.namespace, target)
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

/// Slowly enough that none is lost on the way, every packet is counted, and for its reason.
#[test]
fn junk_is_counted_by_reason() -> Result<()> {
    let mut pair = NATIVE.steering_pair()?;
    pair.wait_connected()?;
    let (forger, interface) = (forger(&pair)?, pair.right.interface().to_owned());
    let handshakes = || uapi::number(&interface, "adit_handshake_messages");
    let (before, handshakes_before) = (dropped(&pair)?, handshakes()?);
    let junk = junk();
    for number in 0..SOURCES {
        for (datagram, _) in &junk {
            forger.send(number, datagram)?;
        }
        if number % 10 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let expected = |reason| {
        let kinds = junk.iter().filter(|(_, r)| *r == Some(reason)).count();
        u64::try_from(kinds).unwrap_or(0) * u64::from(SOURCES)
    };
    let counted = || -> Result<Vec<u64>> {
        let now = dropped(&pair)?;
        Ok(now
            .iter()
            .zip(&before)
            .map(|(now, before)| now - before)
            .collect())
    };
    let complete = || {
        counted().is_ok_and(|c| {
            [TOO_SHORT, RESERVED, UNKNOWN_TYPE, DEAD_INDEX]
                .iter()
                .all(|&r| c[r] == expected(r))
        })
    };
    if wait_until("all are counted", Duration::from_secs(10), complete).is_err() {
        anyhow::bail!("{:?} of {SOURCES} of each kind", counted()?);
    }
    // Initiations: those that the daemon got, and those that were above a source's limit.
    let seen =
        || Ok::<_, anyhow::Error>(handshakes()? - handshakes_before + counted()?[RATE_LIMITED]);
    let all_seen = || seen().is_ok_and(|seen| seen >= u64::from(SOURCES));
    if wait_until("all initiations", Duration::from_secs(10), all_seen).is_err() {
        anyhow::bail!("{} of {SOURCES} initiations", seen()?);
    }
    only_real_flows(&pair)?;
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 10, 1000)?;
    pair.check_running()
}

/// As fast as this machine sends, beside real traffic, for as long as that takes.
#[test]
fn the_tunnel_works_under_a_flood() -> Result<()> {
    let mut pair = NATIVE.steering_pair()?;
    pair.wait_connected()?;
    let (forger, junk) = (forger(&pair)?, junk());
    let before = (dropped(&pair)?, Traffic::of(&pair.right)?);
    let running = AtomicBool::new(true);
    let sent = std::thread::scope(|scope| -> Result<u64> {
        let flood = scope.spawn(|| {
            let mut sent = 0;
            let numbers = (0..SOURCES)
                .cycle()
                .take_while(|_| running.load(Ordering::Relaxed));
            for number in numbers.take(2_000_000) {
                for (datagram, _) in &junk {
                    // A full queue is what a flood is about.
                    sent += u64::from(forger.send(number, datagram).is_ok());
                }
            }
            sent
        });
        let (left, right) = (&pair.left, &pair.right);
        let inner = |site: &adit_tests::Site| site.inner(Family::V4);
        let worked = tcp(&left.namespace, &right.namespace, inner(right), 16 << 20)
            .and_then(|()| tcp(&right.namespace, &left.namespace, inner(left), 16 << 20));
        running.store(false, Ordering::Relaxed);
        let sent = flood.join().unwrap_or(0);
        worked.map(|()| sent)
    })?;
    let after = dropped(&pair)?;
    let counted: Vec<u64> = after
        .iter()
        .zip(&before.0)
        .map(|(after, before)| after - before)
        .collect();
    ensure!(counted.iter().sum::<u64>() <= sent, "{counted:?} of {sent}");
    for reason in [TOO_SHORT, RESERVED, UNKNOWN_TYPE, DEAD_INDEX] {
        ensure!(counted[reason] > 1000, "{counted:?} of {sent}");
    }
    let traffic = Traffic::of(&pair.right)?.since(before.1);
    ensure!(traffic.socket == 0 && traffic.xsk > 1000, "{traffic:?}");
    only_real_flows(&pair)?;
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 10, 1000)?;
    pair.check_running()
}
