//! Datagrams from strangers: every message type, truncated, oversized, random, empty, replayed. The tunnel goes on.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adit_tests::command::Running;
use adit_tests::daemon::Options;
use adit_tests::packet_socket::{PacketSocket, udp_payload};
use adit_tests::ping::ping_all;
use adit_tests::transfer::tcp;
use adit_tests::tunnel::{Family, PORT, Pair, PairOptions, WAN};
use adit_tests::wait::wait_until;
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::lesser_kernels::daemon_without_ebpf;

/// Bytes that look like nothing, but are the same in every run.
fn noise(length: usize, seed: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_u32
        ^ u32::try_from(seed % 65_521)
            .unwrap_or(0)
            .wrapping_mul(0x85eb_ca6b);
    let mut byte = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x.to_le_bytes()[0]
    };
    (0..length).map(|_| byte()).collect()
}

/// Datagrams of every type and kind of wrongness.
fn junk() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for kind in [0, 1, 2, 3, 4, 5, 255] {
        // Around the exact sizes: 148 initiation, 92 response, 64 cookie reply, 32 and more data.
        let lengths = (0..=160).chain([500, 1400, 1472, 9000, 65_000, 65_507]);
        for (seed, length) in lengths.enumerate() {
            let mut datagram = noise(length, seed);
            for (at, byte) in [kind, 0, 0, 0].into_iter().enumerate() {
                if let Some(place) = datagram.get_mut(at) {
                    *place = byte;
                }
            }
            all.push(datagram.clone());
            if let Some(reserved) = datagram.get_mut(2) {
                *reserved = 1;
                all.push(datagram);
            }
        }
    }
    all
}

/// A socket of a stranger beside the left site.
fn stranger(pair: &Pair, outer: Family) -> Result<UdpSocket> {
    let address = SocketAddr::new(pair.left.outer(outer), 0);
    let socket = pair.left.namespace.enter(|| UdpSocket::bind(address))??;
    socket.connect(pair.right.endpoint(outer))?;
    Ok(socket)
}

#[test]
fn every_type_wrong_in_every_way() -> Result<()> {
    // Where there is a filter in front of the socket, the daemon itself sees little of this.
    for (outer, right) in [
        (Family::V4, Options::default()),
        (Family::V4, daemon_without_ebpf()?),
        (Family::V6, daemon_without_ebpf()?),
    ] {
        let mut pair = Pair::connected(&PairOptions {
            outer,
            right,
            ..PairOptions::default()
        })?;
        let endpoint = pair.right.peer(&pair.left)?.endpoint;
        let socket = stranger(&pair, outer)?;
        for (n, datagram) in junk().iter().enumerate() {
            // Errors of earlier datagrams (ICMP) show here; they do not matter.
            let _ = socket.send(datagram);
            if n % 400 == 0 {
                ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 2, 1000)?;
            }
        }
        ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 5, 1000)?;
        ping_all(&pair.right.namespace, pair.left.inner(Family::V4), 5, 1000)?;
        ensure!(
            pair.right.peer(&pair.left)?.endpoint == endpoint,
            "the endpoint followed a stranger"
        );
        pair.check_running()?;
    }
    Ok(())
}

/// Real messages of the tunnel, taken from the wire: replayed, cut short, lengthened, with one bit changed.
#[test]
fn captured_messages() -> Result<()> {
    captured_messages_for(Options::default())
}

#[test]
fn captured_messages_without_a_filter() -> Result<()> {
    captured_messages_for(daemon_without_ebpf()?)
}

fn captured_messages_for(right: Options) -> Result<()> {
    let mut pair = Pair::new(&PairOptions {
        right,
        ..PairOptions::default()
    })?;
    let wire = PacketSocket::open(&pair.left.namespace, WAN)?;
    pair.wait_connected()?;
    let socket = stranger(&pair, Family::V4)?;
    let mut captured = Vec::new();
    for kind in [1_u8, 4] {
        let message = wire.find("message", Duration::from_secs(10), |packet| {
            let (_, to, payload) = udp_payload(packet)?;
            (to == PORT && payload.first() == Some(&kind)).then(|| payload.to_vec())
        });
        captured.push(message.with_context(|| format!("type {kind}"))?);
    }
    let endpoint = pair.right.peer(&pair.left)?.endpoint;
    let received = pair.right.peer(&pair.left)?.received;
    for message in &captured {
        for _ in 0..20 {
            socket.send(message)?;
        }
        for length in 0..message.len() {
            socket.send(&message[..length])?;
        }
        for at in 0..message.len() {
            let mut changed = message.clone();
            changed[at] ^= 1 << (at % 8);
            socket.send(&changed)?;
        }
        socket.send(&[message.as_slice(), &[0; 16]].concat())?;
    }
    let after = pair.right.peer(&pair.left)?;
    ensure!(
        after.endpoint == endpoint,
        "the endpoint followed a stranger"
    );
    ensure!(
        after.received == received,
        "what failed authentication was counted as received"
    );
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 5, 1000)?;
    ping_all(&pair.right.namespace, pair.left.inner(Family::V4), 5, 1000)?;
    pair.check_running()
}

/// Datagrams without a byte, and junk, in the same batch as good ones: the good ones all arrive.
///
/// The receiver is stopped while both are queued, so they are certain to meet in one batch.
#[test]
fn empty_datagrams_do_not_harm_their_neighbours() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let socket = stranger(&pair, Family::V4)?;
    for bad in [vec![], vec![4], noise(31, 1), noise(1400, 2)] {
        pair.right.daemon.signal(Signal::SIGSTOP)?;
        let target = pair.right.inner(Family::V4).to_string();
        let mut command = pair.left.namespace.command("ping");
        command.args(["-n", "-q", "-c", "50", "-i", "0.004", "-W", "10", &target]);
        let sending = (|| -> Result<Running> {
            let pinging = Running::start(&mut command)?;
            for _ in 0..100 {
                socket.send(&bad)?;
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(pinging)
        })();
        pair.right.daemon.signal(Signal::SIGCONT)?;
        let output = sending?.finish(Duration::from_secs(30))?;
        ensure!(
            output.stdout.contains("50 received"),
            "beside {} bad bytes:\n{}",
            bad.len(),
            output.stdout
        );
    }
    pair.check_running()
}

/// A TCP stream, with its receive-side trains of datagrams, goes on while strangers throw in junk.
#[test]
fn stream_under_junk() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let socket = stranger(&pair, Family::V4)?;
    let junk = junk();
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| -> Result<()> {
        let (junk, socket, go_on) = (&junk, &socket, &running);
        scope.spawn(move || {
            while go_on.load(Ordering::Relaxed) {
                for datagram in junk.iter().filter(|datagram| datagram.len() < 200) {
                    let _ = socket.send(datagram);
                    let _ = socket.send(&[]);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let result = tcp(
            &pair.left.namespace,
            &pair.right.namespace,
            pair.right.inner(Family::V4),
            32 << 20,
        )
        .and_then(|()| {
            tcp(
                &pair.right.namespace,
                &pair.left.namespace,
                pair.left.inner(Family::V4),
                32 << 20,
            )
        });
        running.store(false, Ordering::Relaxed);
        result
    })?;
    pair.check_running()
}

/// What was dropped is counted by reason.
#[test]
fn drops_are_counted() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let socket = stranger(&pair, Family::V4)?;
    let interface = pair.right.interface().to_owned();
    let dropped = || -> Result<BTreeMap<String, u64>> {
        let answer = adit_tests::uapi::request(&interface, "get=1")?;
        let drops = answer
            .into_iter()
            .filter(|(key, _)| key.starts_with("adit_drop_"));
        drops
            .map(|(key, value)| Ok((key, value.parse()?)))
            .collect()
    };
    let before: u64 = dropped()?.values().sum();
    let junk: Vec<_> = junk()
        .into_iter()
        .filter(|datagram| datagram.len() < 100)
        .collect();
    let mut sent = 0;
    for datagram in &junk {
        sent += u64::from(socket.send(datagram).is_ok());
    }
    ensure!(sent > 1000, "{sent} sent");
    let all = || dropped().is_ok_and(|drops| drops.values().sum::<u64>() >= before + sent);
    wait_until("all are counted", Duration::from_secs(10), all)
        .with_context(|| format!("{before} before, {sent} sent, then {:?}", dropped()))?;
    pair.check_running()
}
