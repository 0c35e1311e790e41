//! Several pairs of data threads, and helpers for their cryptography: order is kept, and whatever works with one pair
//! works with four.

use std::net::UdpSocket;
use std::time::Duration;

use adit_tests::command::output;
use adit_tests::daemon::{Implementation, Options};
use adit_tests::iperf::{Amount, Run};
use adit_tests::ping::{ping_all, wait_reachable};
use adit_tests::transfer::{tcp, tcp_both_ways, udp_echo};
use adit_tests::tunnel::{Family, HANDSHAKE_LIMIT, Pair, PairOptions, Site};
use adit_tests::{Namespace, tunnel, uapi};
use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

/// A daemon with four queues, and helpers at work whatever the machine says.
fn many() -> Options {
    Options {
        arguments: ["--queues", "4", "--helpers", "always"]
            .map(str::to_owned)
            .into(),
        ..Options::default()
    }
}

/// Both sides like that.
fn pair(outer: Family) -> Result<Pair> {
    let pair = Pair::connected(&PairOptions {
        left: many(),
        right: many(),
        outer,
        ..PairOptions::default()
    })?;
    for site in [&pair.left, &pair.right] {
        ensure!(uapi::number(site.interface(), "adit_queues")? == 4);
    }
    Ok(pair)
}

fn counter(site: &Site, name: &str) -> Result<u64> {
    uapi::number(site.interface(), name)
}

/// Nothing may come out in another order than it went in: not TCP, not UDP, not super-packets.
fn in_order(outer: Family) -> Result<()> {
    let mut pair = pair(outer)?;
    let (left, right) = (&pair.left, &pair.right);
    for inner in [Family::V4, Family::V6] {
        tcp_both_ways(left, right, inner, 16 << 20)?;
        super_packets(left, right, inner)?;
        for options in [
            &["-u", "-b", "100M", "-l", "1200"][..],
            &["-u", "-b", "100M", "-l", "1200", "-P", "4", "-R"],
        ] {
            let run = Run {
                client: &left.namespace,
                server: &right.namespace,
                to: right.inner(inner),
                amount: Amount::Seconds(1),
                options,
            };
            let report = run.run()?;
            ensure!(report.datagrams > report.lost, "{report:?}");
            ensure!(report.out_of_order == 0, "{report:?}");
        }
    }
    for site in [left, right] {
        let helped = counter(site, "adit_egress_helper_batches")?
            + counter(site, "adit_ingress_helper_batches")?;
        ensure!(helped > 0, "no helper has done anything");
        ensure!(counter(site, "adit_drop_ingress_replayed")? == 0);
        ensure!(counter(site, "adit_drop_ingress_unauthentic")? == 0);
    }
    pair.check_running()
}

/// Neither queues nor helpers allocate once they are warm.
#[test]
fn nothing_is_allocated() -> Result<()> {
    let mut pair = pair(Family::V4)?;
    let (left, right) = (&pair.left, &pair.right);
    let flows = || -> Result<()> {
        // Each flow goes out by a queue of its own.
        for _ in 0..8 {
            tcp_both_ways(left, right, Family::V4, 2 << 20)?;
        }
        udp_echo(
            &left.namespace,
            &right.namespace,
            right.inner(Family::V4),
            &[0, 500, 1300],
        )
    };
    // The first packets of each thread may still grow a buffer; which flows those are is up to the ports.
    for _ in 0..3 {
        flows()?;
    }
    let allocations = || -> Result<[u64; 2]> {
        let of = |site: &Site| counter(site, "adit_data_thread_allocations");
        Ok([of(left)?, of(right)?])
    };
    let before = allocations()?;
    flows()?;
    let after = allocations()?;
    ensure!(before == after, "{before:?} became {after:?}");
    pair.check_running()
}

/// Numbered datagrams in super-packets, as fast as they go; some may be lost on the way.
fn super_packets(left: &Site, right: &Site, inner: Family) -> Result<()> {
    const SIZE: usize = 1200;
    const SEGMENTS: u32 = 40;
    const SENDS: u32 = 100;
    let receiver = right
        .namespace
        .enter(|| UdpSocket::bind((right.inner(inner), 0)))??;
    setsockopt(&receiver, sockopt::RcvBufForce, &(16 << 20))?;
    receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
    let sender = left
        .namespace
        .enter(|| UdpSocket::bind((left.inner(inner), 0)))??;
    setsockopt(&sender, sockopt::UdpGsoSegment, &i32::try_from(SIZE)?)?;
    let to = receiver.local_addr()?;
    let mut numbers = 0..;
    for _ in 0..SENDS {
        let mut payload = vec![0; SIZE * SEGMENTS as usize];
        for (segment, number) in payload.chunks_mut(SIZE).zip(&mut numbers) {
            segment[..4].copy_from_slice(&u32::to_be_bytes(number));
        }
        sender.send_to(&payload, to)?;
    }
    let mut buffer = [0; 2 * SIZE];
    let mut last: Option<u32> = None;
    let mut received = 0;
    while last != Some(SENDS * SEGMENTS - 1) {
        let Ok(length) = receiver.recv(&mut buffer) else {
            break;
        };
        ensure!(length == SIZE);
        let number = u32::from_be_bytes(*buffer.first_chunk().context("four bytes")?);
        ensure!(last < Some(number), "{number} after {last:?}");
        last = Some(number);
        received += 1;
    }
    ensure!(received >= SENDS, "{received} datagrams arrived");
    Ok(())
}

#[test]
fn order_is_kept_over_ipv4() -> Result<()> {
    in_order(Family::V4)
}

#[test]
fn order_is_kept_over_ipv6() -> Result<()> {
    in_order(Family::V6)
}

/// How many queues of a daemon have seen packets in a direction: `sent` or `received`.
fn queues_used(site: &Site, direction: &str) -> Result<usize> {
    let mut used = 0;
    for queue in 0..4 {
        let name = format!("adit_queue_{queue}_{direction}_datagrams");
        used += usize::from(counter(site, &name)? > 1);
    }
    Ok(used)
}

/// Flows inside go out by several queues, and what comes from one peer comes in by one.
#[test]
fn flows_are_spread() -> Result<()> {
    let mut pair = pair(Family::V4)?;
    let (left, right) = (&pair.left, &pair.right);
    let to = (right.inner(Family::V4), 9);
    for _ in 0..32 {
        let sender = left
            .namespace
            .enter(|| UdpSocket::bind((left.inner(Family::V4), 0)))??;
        for _ in 0..4 {
            sender.send_to(&[0; 100], to)?;
        }
    }
    ping_all(&left.namespace, right.inner(Family::V4), 3, 56)?;
    ensure!(queues_used(left, "sent")? > 1, "all by one queue");
    ensure!(queues_used(right, "received")? == 1, "a peer by two queues");
    ensure!(counter(right, "adit_drop_ingress_replayed")? == 0);
    pair.check_running()
}

/// Peers are spread over the sockets, and each is answered.
#[test]
fn peers_are_spread() -> Result<()> {
    const PEERS: u8 = 8;
    let hub = Namespace::new()?;
    let mut others = Vec::new();
    for number in 0..PEERS {
        let other = Namespace::new()?;
        let wire = format!("wan{number}");
        adit_tests::link::veth(
            adit_tests::link::End {
                namespace: &hub,
                interface: &wire,
                addresses: &[&format!("198.51.{number}.1/24")],
            },
            adit_tests::link::End {
                namespace: &other,
                interface: tunnel::WAN,
                addresses: &[&format!("198.51.{number}.2/24")],
            },
            1500,
        )?;
        others.push(other);
    }
    let mut hub = Site::start(hub, 1, 1420, &many())?;
    let mut sites = Vec::new();
    for (number, other) in (0..).zip(others) {
        let site = Site::start(other, 10 + number, 1420, &Options::default())?;
        hub.add_peer(&site, "")?;
        let endpoint = format!("endpoint 198.51.{number}.1:{}", tunnel::PORT);
        site.add_peer(&hub, &endpoint)?;
        wait_reachable(&site.namespace, hub.inner(Family::V4), HANDSHAKE_LIMIT)?;
        sites.push(site);
    }
    for site in &sites {
        tcp(
            &site.namespace,
            &hub.namespace,
            hub.inner(Family::V4),
            1 << 20,
        )?;
        tcp(
            &hub.namespace,
            &site.namespace,
            site.inner(Family::V4),
            1 << 20,
        )?;
    }
    ensure!(queues_used(&hub, "received")? > 1, "all peers by one queue");
    ensure!(counter(&hub, "adit_drop_ingress_replayed")? == 0);
    ensure!(hub.daemon.running());
    Ok(())
}

/// Another port, down and up, a mark: all sockets follow.
#[test]
fn sockets_are_replaced_together() -> Result<()> {
    let mut pair = pair(Family::V4)?;
    let (left, right) = (&pair.left, &pair.right);
    let interface = right.interface();
    for port in [40_001, 40_002] {
        right.wg_set(&format!("listen-port {port}"))?;
        left.wg_set(&format!(
            "peer {} endpoint {}:{port}",
            right.keys.public,
            right.outer(Family::V4)
        ))?;
        tcp_both_ways(left, right, Family::V4, 1 << 20)?;
        ensure!(right.dump()?.listen_port == port);
    }
    // The port that the kernel chooses is the same for all.
    right.wg_set("listen-port 0")?;
    let port = right.dump()?.listen_port;
    ensure!(port != 0 && port != 40_002);
    let sockets = right.namespace.run("ss -Hlun")?;
    let on_port = sockets
        .lines()
        .filter(|line| line.contains(&format!(":{port} ")));
    ensure!(on_port.count() == 8, "{sockets}");
    left.wg_set(&format!(
        "peer {} endpoint {}:{port}",
        right.keys.public,
        right.outer(Family::V4)
    ))?;
    ping_all(&left.namespace, right.inner(Family::V6), 3, 1000)?;

    for _ in 0..3 {
        right.namespace.ip(&format!("link set {interface} down"))?;
        right.namespace.ip(&format!("link set {interface} up"))?;
        wait_reachable(&left.namespace, right.inner(Family::V4), HANDSHAKE_LIMIT)?;
        tcp_both_ways(left, right, Family::V4, 1 << 20)?;
    }
    right.wg_set("fwmark 0x1234")?;
    tcp_both_ways(left, right, Family::V4, 1 << 20)?;
    pair.check_running()
}

/// A second tunnel does not get the port of the first, though sockets share it among themselves.
#[test]
fn a_port_is_not_shared_between_tunnels() -> Result<()> {
    let pair = pair(Family::V4)?;
    let other = adit_tests::Daemon::start(&pair.left.namespace, &many())?;
    let interface = other.interface();
    pair.left
        .namespace
        .ip(&format!("link set {interface} up"))?;
    adit_tests::wait::wait_until("sockets", Duration::from_secs(10), || {
        uapi::number(interface, "listen_port").is_ok_and(|port| port != 0)
    })?;
    let request = format!("set=1\nlisten_port={}", tunnel::PORT);
    let errno = uapi::errno(&uapi::request(interface, &request)?)?;
    ensure!(
        errno.abs() == nix::errno::Errno::EADDRINUSE as i32,
        "{errno}"
    );
    Ok(())
}

#[test]
fn with_other_implementations() -> Result<()> {
    for implementation in [Implementation::WireguardGo, Implementation::Boringtun] {
        let other = Options {
            implementation,
            ..Options::default()
        };
        for (left, right) in [(many(), other.clone()), (other, many())] {
            let mut pair = Pair::connected(&PairOptions {
                left,
                right,
                right_knows_left: false,
                ..PairOptions::default()
            })?;
            for inner in [Family::V4, Family::V6] {
                tcp_both_ways(&pair.left, &pair.right, inner, 4 << 20)?;
                udp_echo(
                    &pair.left.namespace,
                    &pair.right.namespace,
                    pair.right.inner(inner),
                    &[0, 1, 1300],
                )?;
            }
            pair.check_running()?;
        }
    }
    Ok(())
}

/// Somebody else's device has as many queues as it was made for.
#[test]
fn a_persistent_device_of_one_queue_is_used_with_one() -> Result<()> {
    let namespace = Namespace::new()?;
    let interface = adit_tests::name::interface();
    namespace.ip(&format!("tuntap add mode tun name {interface} vnet_hdr"))?;
    let daemon = adit_tests::Daemon::start(
        &namespace,
        &Options {
            interface: Some(interface.clone()),
            ..many()
        },
    )?;
    ensure!(uapi::number(&interface, "adit_queues")? == 1);
    ensure!(daemon.log_text().contains("fewer queues"));
    Ok(())
}

/// Whatever the processor has can be chosen, speaks with every other, and what it has not is
/// refused by name.
#[test]
fn the_aead_is_chosen_by_name() -> Result<()> {
    let using = |name: &str| Options {
        arguments: ["--aead", name].map(str::to_owned).into(),
        ..Options::default()
    };
    let has = |name| match name {
        "portable" | "aws-lc-rs" => true,
        #[cfg(target_arch = "x86_64")]
        "avx2" => is_x86_feature_detected!("avx2"),
        #[cfg(target_arch = "x86_64")]
        "avx512" => is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl"),
        #[cfg(target_arch = "x86_64")]
        "avx512-ifma" => {
            is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512ifma")
        }
        _ => false,
    };
    for name in ["portable", "aws-lc-rs", "avx2", "avx512", "avx512-ifma"] {
        if !has(name) {
            let namespace = Namespace::new()?;
            let interface = adit_tests::name::interface();
            let mut command = namespace.command(Implementation::Adit.program()?);
            let error = output(command.args(["-f", "--aead", name, &interface]))?.stderr;
            ensure!(error.contains("this processor cannot do it"), "{error}");
            continue;
        }
        let mut pair = Pair::connected(&PairOptions {
            left: using(name),
            right: using("portable"),
            ..PairOptions::default()
        })?;
        tcp_both_ways(&pair.left, &pair.right, Family::V4, 4 << 20)?;
        pair.check_running()?;
    }
    Ok(())
}
