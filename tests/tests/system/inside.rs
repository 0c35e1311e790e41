//! What people put inside the tunnel and expect to come out the same: VXLAN, ECN marks.

use std::net::UdpSocket;
use std::time::Duration;

use adit_tests::packet_socket::{PacketSocket, ecn, udp_payload};
use adit_tests::ping::{ping_all, wait_reachable};
use adit_tests::transfer;
use adit_tests::tunnel::{Family, HANDSHAKE_LIMIT, PORT, Pair, PairOptions, WAN};
use anyhow::{Result, ensure};

/// VXLAN sends UDP without a checksum over IPv4, and TSO packets of its own.
#[test]
fn vxlan() -> Result<()> {
    for inner in [Family::V4, Family::V6] {
        let mut pair = Pair::connected(&PairOptions::default())?;
        let (left, right) = (&pair.left, &pair.right);
        for (site, other) in [(left, right), (right, left)] {
            let n = site.number;
            site.namespace.ip(&format!(
                "link add vx0 type vxlan id 42 dstport 4789 local {} remote {} dev {}
                 address add 172.20.0.{n}/24 dev vx0
                 address add fd20::{n}/64 dev vx0 nodad
                 link set vx0 mtu 1350 up",
                site.inner(inner),
                other.inner(inner),
                site.interface(),
            ))?;
        }
        for target in ["172.20.0.2", "fd20::2"] {
            let target = target.parse()?;
            wait_reachable(&left.namespace, target, HANDSHAKE_LIMIT)?;
            ping_all(&left.namespace, target, 3, 1300)?;
            transfer::tcp(&left.namespace, &right.namespace, target, 4 << 20)?;
            transfer::udp_echo(
                &left.namespace,
                &right.namespace,
                target,
                &[0, 1, 1000, 1300],
            )?;
        }
        pair.check_running()?;
    }
    Ok(())
}

/// Not-ECT, ECT(1), ECT(0), CE.
const MARKS: [u8; 4] = [0, 1, 2, 3];
const CE: u8 = 3;
const TEST_PORT: u16 = 4000;

/// Sends a datagram with an ECN mark from left to right until it is seen, and returns its mark at the other end.
fn through(pair: &Pair, inner: Family, mark: u8, tag: &[u8], limit: Duration) -> Result<u8> {
    let far_end = PacketSocket::open(&pair.right.namespace, pair.right.interface())?;
    let any = adit_tests::relay::unspecified(pair.left.inner(inner));
    let socket = pair.left.namespace.enter(|| UdpSocket::bind((any, 0)))??;
    let reference = socket2::SockRef::from(&socket);
    match inner {
        Family::V4 => reference.set_tos_v4(mark.into())?,
        Family::V6 => reference.set_tclass_v6(mark.into())?,
    }
    socket.send_to(tag, (pair.right.inner(inner), TEST_PORT))?;
    far_end.find("the datagram at the far end", limit, |packet| {
        let (_, port, payload) = udp_payload(packet)?;
        (port == TEST_PORT && payload == tag).then(|| ecn(packet))?
    })
}

/// RFC 6040: on the way in the outer header takes the inner mark (CE becomes CE too), and without congestion every mark
/// comes out as it went in.
#[test]
fn ecn_marks_survive() -> Result<()> {
    for outer in [Family::V4, Family::V6] {
        for inner in [Family::V4, Family::V6] {
            let mut pair = Pair::connected(&PairOptions {
                outer,
                ..PairOptions::default()
            })?;
            for mark in MARKS {
                let wire = PacketSocket::open(&pair.left.namespace, WAN)?;
                let tag = [0x40 | mark; 300];
                let arrived = through(&pair, inner, mark, &tag, Duration::from_secs(10))?;
                ensure!(arrived == mark, "inner mark {mark} arrived as {arrived}");
                let on_wire = wire.find("the outer packet", Duration::from_secs(10), |packet| {
                    let (_, port, payload) = udp_payload(packet)?;
                    (port == PORT && payload.len() > 300).then(|| ecn(packet))?
                })?;
                ensure!(on_wire == mark, "inner mark {mark} went out as {on_wire}");
            }
            pair.check_running()?;
        }
    }
    Ok(())
}

/// Congestion marks the outer packet, here as it leaves, where AF_XDP does not bypass the firewall that plays the part: a capable inner packet gets the mark, an incapable one is dropped (RFC 6040).
#[test]
fn congestion_reaches_the_inner_packet() -> Result<()> {
    for outer in [Family::V4, Family::V6] {
        let mut pair = Pair::connected(&PairOptions {
            outer,
            ..PairOptions::default()
        })?;
        let protocol = if outer == Family::V4 { "ip" } else { "ip6" };
        pair.left.namespace.nft(&format!(
            "table inet congestion {{
                 chain congest {{
                     type filter hook output priority 0;
                     udp dport {PORT} udp length > 300 {protocol} ecn set ce
                 }}
             }}"
        ))?;
        for inner in [Family::V4, Family::V6] {
            for mark in [1, 2, CE] {
                let arrived = through(
                    &pair,
                    inner,
                    mark,
                    &[0x50 | mark; 300],
                    Duration::from_secs(10),
                )?;
                ensure!(arrived == CE, "inner mark {mark} arrived as {arrived}");
            }
            let incapable = through(&pair, inner, 0, &[0x60; 300], Duration::from_millis(500));
            ensure!(
                incapable.is_err(),
                "an incapable packet arrived as {incapable:?}"
            );
        }
        pair.check_running()?;
    }
    Ok(())
}

/// A TCP connection with ECN negotiates it through the tunnel and stays intact, congested or not.
#[test]
fn tcp_with_ecn() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    for site in [&pair.left, &pair.right] {
        site.namespace.sysctl("net.ipv4.tcp_ecn", "1")?;
    }
    transfer::tcp_both_ways(&pair.left, &pair.right, Family::V4, 8 << 20)?;
    // Every twentieth outer packet of size meets congestion.
    pair.left.namespace.nft(&format!(
        "table inet congestion {{
             chain congest {{
                 type filter hook output priority 0;
                 udp dport {PORT} udp length > 300 numgen inc mod 20 0 ip ecn set ce
             }}
         }}"
    ))?;
    transfer::tcp_both_ways(&pair.left, &pair.right, Family::V4, 8 << 20)?;
    pair.check_running()
}
