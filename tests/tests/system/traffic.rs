//! Ping, TCP and UDP through the tunnel, both families inside and outside.

use std::net::UdpSocket;
use std::time::Duration;

use adit_tests::Namespace;
use adit_tests::iperf::{Amount, Run};
use adit_tests::link::{End, forward, veth};
use adit_tests::ping::ping_all;
use adit_tests::tunnel::{Family, Pair, PairOptions};
use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use adit_tests::transfer::{tcp, tcp_both_ways, udp_echo};

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

/// Packets that a router passes on into the tunnel: super-packets arrive there with heads as the far machine made them.
#[test]
fn forwarded() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let (left, right) = (&pair.left, &pair.right);
    let behind = Namespace::new()?;
    veth(
        End {
            namespace: &behind,
            interface: "lan0",
            addresses: &["10.7.0.2/24", "fd07::2/64"],
        },
        End {
            namespace: &left.namespace,
            interface: "lan0",
            addresses: &["10.7.0.1/24", "fd07::1/64"],
        },
        1500,
    )?;
    behind.ip("route add default via 10.7.0.1\nroute add default via fd07::1")?;
    forward(&left.namespace)?;
    right.wg_set(&format!(
        "peer {} allowed-ips 10.9.0.1/32,fd09::1/128,10.7.0.0/24,fd07::/64",
        left.keys.public
    ))?;
    let interface = right.interface();
    right.namespace.ip(&format!(
        "route add 10.7.0.0/24 dev {interface}\nroute add fd07::/64 dev {interface}"
    ))?;
    for (inner, address) in [(Family::V4, "10.7.0.2"), (Family::V6, "fd07::2")] {
        tcp(&behind, &right.namespace, right.inner(inner), 8 << 20)?;
        tcp(&right.namespace, &behind, address.parse()?, 8 << 20)?;
        udp_echo(
            &behind,
            &right.namespace,
            right.inner(inner),
            &[0, 1, 1000, 1300],
        )?;
    }
    pair.check_running()
}

/// An application inside sends UDP super-packets: every datagram comes out, whole and in order.
#[test]
fn udp_segments_of_an_application() -> Result<()> {
    const SIZE: usize = 1200;
    const SEGMENTS: usize = 40;
    let mut pair = Pair::connected(&PairOptions::default())?;
    let (left, right) = (&pair.left, &pair.right);
    for inner in [Family::V4, Family::V6] {
        let receiver = right
            .namespace
            .enter(|| UdpSocket::bind((right.inner(inner), 0)))??;
        receiver.set_read_timeout(Some(Duration::from_secs(3)))?;
        let sender = left
            .namespace
            .enter(|| UdpSocket::bind((left.inner(inner), 0)))??;
        setsockopt(&sender, sockopt::UdpGsoSegment, &i32::try_from(SIZE)?)?;
        // The last datagram of a super-packet may be shorter.
        for last in [1, SIZE / 2, SIZE] {
            let mut payload = vec![0; (SEGMENTS - 1) * SIZE + last];
            for (n, segment) in payload.chunks_mut(SIZE).enumerate() {
                segment.fill(u8::try_from(n)?);
            }
            sender.send_to(&payload, receiver.local_addr()?)?;
            let mut buffer = [0; 2 * SIZE];
            for (n, segment) in payload.chunks(SIZE).enumerate() {
                let length = receiver
                    .recv(&mut buffer)
                    .with_context(|| format!("datagram {n}"))?;
                ensure!(
                    buffer[..length] == *segment,
                    "datagram {n} of {SEGMENTS}: {length} bytes"
                );
            }
        }
    }
    pair.check_running()
}
