//! Sending by AF_XDP, in copy mode over veth: everything that the UDP socket does goes on working, and the counters prove
//! which way packets left.

use std::time::Duration;

use adit_tests::Implementation;
use adit_tests::daemon::Options;
use adit_tests::packet_socket::{PacketSocket, ecn, udp_payload};
use adit_tests::ping::{ping_all, ping_with, wait_reachable};
use adit_tests::transfer::{tcp_both_ways, udp_echo};
use adit_tests::tunnel::{Family, HANDSHAKE_LIMIT, PORT, Pair, Site, WAN};
use adit_tests::wait::wait_until;
use adit_tests::{Namespace, uapi};
use anyhow::{Context as _, Result, ensure};

use crate::xdp::{NATIVE, STEERING_LIMIT, Wire, connect, values, wait_steering};
use crate::xdp_tools::{Count, flows, pinned};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Both daemons send by AF_XDP.
const SENDING: Wire<'_> = Wire {
    environment: &[
        ("ADIT_DATAPATH", "xdp"),
        ("ADIT_XDP_MODE", "native"),
        ("ADIT_XDP_TRANSMIT", "on"),
    ],
    ..NATIVE
};

/// Receives by the UDP socket, whose kernel verifies checksums and Ethernet addresses.
const SOCKET: Wire<'_> = Wire {
    environment: &[("ADIT_DATAPATH", "socket")],
    ..NATIVE
};

/// Datagrams that a daemon sent, by the way they went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sent {
    xsk: u64,
    socket: u64,
}

impl Sent {
    fn of(site: &Site) -> Result<Self> {
        let number = |key| uapi::number(site.interface(), key);
        Ok(Self {
            xsk: number("adit_xsk_sent_datagrams")?,
            socket: number("adit_udp_sent_datagrams")?,
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            xsk: self.xsk - before.xsk,
            socket: self.socket - before.socket,
        }
    }
}

/// Pings until three pings in a row have left `from` by AF_XDP and nothing by the socket.
fn wait_sending(from: &Site, to: &Site) -> Result<()> {
    wait_until("packets leave by AF_XDP", STEERING_LIMIT, || {
        let three = || -> Result<Sent> {
            let before = Sent::of(from)?;
            ping_all(&from.namespace, to.inner(Family::V4), 3, 56)?;
            // A daemon counts after the packet has gone.
            std::thread::sleep(Duration::from_millis(50));
            Ok(Sent::of(from)?.since(before))
        };
        three().is_ok_and(|sent| sent.xsk >= 3 && sent.socket == 0)
    })
    .with_context(|| {
        format!(
            "{:?} {:?}",
            Sent::of(from),
            values(from, "adit_xdp_transmit")
        )
    })
}

/// A pair whose left side sends by AF_XDP to a right side that is started as `right` says.
fn towards(outer: Family, right: &Options) -> Result<Pair> {
    let (near, far) = (Namespace::new()?, Namespace::new()?);
    connect(&near, &far, 1)?;
    let left = Site::start(near, 1, 1420, &SENDING.options())?;
    let right = Site::start(far, 2, 1420, right)?;
    for (site, peer) in [(&left, &right), (&right, &left)] {
        site.add_peer(peer, &format!("endpoint {}", peer.endpoint(outer)))?;
    }
    let pair = Pair { left, right };
    wait_steering(&pair.left)?;
    wait_reachable(
        &pair.left.namespace,
        pair.right.inner(Family::V4),
        HANDSHAKE_LIMIT,
    )?;
    wait_sending(&pair.left, &pair.right)?;
    Ok(pair)
}

/// During `work` nearly everything leaves by AF_XDP; a change of the host's may put a few packets on the other way.
fn leaves_by_xdp(site: &Site, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = Sent::of(site)?;
    work()?;
    let sent = Sent::of(site)?.since(before);
    ensure!(sent.xsk > 0 && sent.socket * 20 <= sent.xsk, "{sent:?}");
    Ok(())
}

/// Ping, UDP and verified TCP, both ways.
fn carry(pair: &Pair, mebibytes: usize) -> Result<()> {
    let (left, right) = (&pair.left, &pair.right);
    for inner in FAMILIES {
        for size in [0, 56, 1420 - 48] {
            ping_all(&left.namespace, right.inner(inner), 5, size)?;
        }
        let to = right.inner(inner);
        udp_echo(&left.namespace, &right.namespace, to, &[1, 1000, 1300])?;
        tcp_both_ways(left, right, inner, mebibytes << 20)?;
    }
    Ok(())
}

#[test]
fn everything_leaves_by_af_xdp() -> Result<()> {
    for outer in FAMILIES {
        let mut pair = Wire { outer, ..SENDING }.steering_pair()?;
        let (left, right) = (&pair.left, &pair.right);
        wait_reachable(&left.namespace, right.inner(Family::V4), HANDSHAKE_LIMIT)?;
        for (site, peer) in [(left, right), (right, left)] {
            let ways = values(site, "adit_xdp_transmit")?;
            ensure!(ways == [format!("{WAN} copy")], "{ways:?}");
            wait_sending(site, peer)?;
        }
        leaves_by_xdp(left, || leaves_by_xdp(right, || carry(&pair, 8)))?;
        pair.check_running()?;
    }
    Ok(())
}

/// With as many RX queues each egress thread has a socket of its own.
#[test]
fn every_thread_sends_by_af_xdp() -> Result<()> {
    let wire = Wire {
        queues: 4,
        environment: &[
            ("ADIT_DATAPATH", "xdp"),
            ("ADIT_XDP_TRANSMIT", "on"),
            ("ADIT_QUEUES", "4"),
            ("ADIT_HELPERS", "always"),
        ],
        ..SENDING
    };
    let mut pair = wire.steering_pair()?;
    let (left, right) = (&pair.left, &pair.right);
    wait_reachable(&left.namespace, right.inner(Family::V4), HANDSHAKE_LIMIT)?;
    for (site, peer) in [(left, right), (right, left)] {
        wait_sending(site, peer)?;
    }
    leaves_by_xdp(left, || leaves_by_xdp(right, || carry(&pair, 4)))?;
    for site in [left, right] {
        let mut used = 0;
        for queue in 0..4 {
            let name = format!("adit_queue_{queue}_sent_datagrams");
            used += u32::from(uapi::number(site.interface(), &name)? > 1);
        }
        ensure!(used > 1, "all by one thread");
    }
    pair.check_running()
}

/// The receiving kernel verifies the checksums, and sees the ECN field.
#[test]
fn a_socket_receives_it_with_its_checksums_and_ecn() -> Result<()> {
    for outer in FAMILIES {
        let mut pair = towards(outer, &SOCKET.options())?;
        leaves_by_xdp(&pair.left, || carry(&pair, 4))?;
        let socket = PacketSocket::open(&pair.right.namespace, WAN)?;
        for field in 0..3_u8 {
            let before = Sent::of(&pair.left)?;
            let mut ping = pair.left.namespace.command("ping");
            let to = pair.right.inner(Family::V4).to_string();
            let tos = field.to_string();
            ping.args([
                "-n", "-c", "5", "-i", "0.05", "-W", "5", "-s", "600", "-Q", &tos, &to,
            ]);
            let mut ping = ping.stdout(std::process::Stdio::null()).spawn()?;
            let seen = socket.find("a ping's message", Duration::from_secs(10), |packet| {
                let (_, to, payload) = udp_payload(packet)?;
                (to == PORT && payload.starts_with(&[4, 0, 0, 0]) && payload.len() > 600)
                    .then(|| ecn(packet))
                    .flatten()
                    .filter(|seen| *seen == field)
            });
            ping.wait()?;
            seen.with_context(|| format!("ECN {field}"))?;
            ensure!(Sent::of(&pair.left)?.since(before).xsk >= 5);
        }
        pair.check_running()?;
    }
    Ok(())
}

#[test]
fn wireguard_go_takes_it() -> Result<()> {
    let right = Options {
        implementation: Implementation::WireguardGo,
        ..Options::default()
    };
    for outer in FAMILIES {
        let mut pair = towards(outer, &right)?;
        leaves_by_xdp(&pair.left, || carry(&pair, 4))?;
        pair.check_running()?;
    }
    Ok(())
}

/// The peer gets another address; packets follow by AF_XDP.
#[test]
fn a_peer_that_roams_is_followed() -> Result<()> {
    for outer in FAMILIES {
        let mut pair = towards(outer, &SOCKET.options())?;
        let (left, right) = (&pair.left, &pair.right);
        let (address, length) = match outer {
            Family::V4 => ("192.0.2.77", 24),
            Family::V6 => ("2001:db8::77", 64),
        };
        right.namespace.ip(&format!(
            "address add {address}/{length} dev {WAN} nodad\naddress delete {}/{length} dev {WAN}",
            right.outer(outer)
        ))?;
        // Removing the primary IPv4 address removes the others of its subnet too, unless they are promoted.
        right.namespace.ip(&format!(
            "address replace {address}/{length} dev {WAN} nodad"
        ))?;
        wait_reachable(&right.namespace, left.inner(Family::V4), HANDSHAKE_LIMIT)?;
        wait_until("the peer's new address", Duration::from_secs(10), || {
            left.peer(right)
                .is_ok_and(|peer| peer.endpoint.is_some_and(|e| e.ip().to_string() == address))
        })?;
        wait_sending(left, right)?;
        leaves_by_xdp(left, || tcp_both_ways(left, right, Family::V4, 1 << 20))?;
        pair.check_running()?;
    }
    Ok(())
}

/// Asked at a second address, the answers leave from there.
#[test]
fn answers_leave_from_the_address_that_was_asked() -> Result<()> {
    for outer in FAMILIES {
        let mut pair = towards(outer, &SOCKET.options())?;
        let (left, right) = (&pair.left, &pair.right);
        let (second, length, endpoint) = match outer {
            Family::V4 => ("192.0.2.200", 24, format!("192.0.2.200:{PORT}")),
            Family::V6 => ("2001:db8::200", 64, format!("[2001:db8::200]:{PORT}")),
        };
        left.namespace
            .ip(&format!("address add {second}/{length} dev {WAN} nodad"))?;
        // An IPv6 host prefers its newest address; make the kernel's own choice the other one.
        let own = left.outer(outer);
        left.namespace.ip(&format!(
            "route replace {} dev {WAN} src {own}",
            right.outer(outer)
        ))?;
        right.wg_set(&format!("peer {} endpoint {endpoint}", left.keys.public))?;
        ping_all(&right.namespace, left.inner(Family::V4), 3, 56)?;
        wait_sending(left, right)?;
        leaves_by_xdp(left, || tcp_both_ways(left, right, Family::V4, 1 << 20))?;
        let seen = right.peer(left)?.endpoint;
        ensure!(
            seen.is_some_and(|e| e.ip().to_string() == second),
            "answers came from {seen:?}"
        );
        pair.check_running()?;
    }
    Ok(())
}

/// The neighbour's network card is another one: nobody says so, and the kernel, which sends nothing itself, finds out
/// because it is asked.
#[test]
fn a_neighbour_with_another_ethernet_address_is_followed() -> Result<()> {
    for outer in FAMILIES {
        let mut pair = towards(outer, &SOCKET.options())?;
        let (left, right) = (&pair.left, &pair.right);
        let family = match outer {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        for (name, value) in [
            ("base_reachable_time_ms", "1500"),
            ("delay_first_probe_time", "0"),
            ("retrans_time_ms", "200"),
        ] {
            let key = format!("net.{family}.neigh.{WAN}.{name}");
            left.namespace.sysctl(&key, value)?;
        }
        // The entry's present term was fixed when it was confirmed.
        let to = right.outer(outer);
        left.namespace
            .ip(&format!("neighbour delete {to} dev {WAN}"))?;
        wait_sending(left, right)?;
        right
            .namespace
            .ip(&format!("link set {WAN} address 02:00:00:00:00:77"))?;
        wait_sending(left, right)?;
        leaves_by_xdp(left, || tcp_both_ways(left, right, Family::V4, 1 << 20))?;
        pair.check_running()?;
    }
    Ok(())
}

/// Without a neighbour packets go by the socket, which finds it again.
#[test]
fn a_neighbour_that_is_forgotten_is_found_again() -> Result<()> {
    for outer in FAMILIES {
        let mut pair = towards(outer, &SOCKET.options())?;
        let (left, right) = (&pair.left, &pair.right);
        let before = Sent::of(left)?;
        left.namespace.ip(&format!(
            "neighbour delete {} dev {WAN}",
            right.outer(outer)
        ))?;
        ping_all(&left.namespace, right.inner(Family::V4), 3, 56)?;
        let sent = Sent::of(left)?.since(before);
        ensure!(sent.socket > 0, "the kernel was not asked: {sent:?}");
        wait_sending(left, right)?;
        pair.check_running()?;
    }
    Ok(())
}

/// The wire goes down and comes up again.
#[test]
fn a_wire_that_flaps_is_used_again() -> Result<()> {
    let mut pair = towards(Family::V4, &SOCKET.options())?;
    let (left, right) = (&pair.left, &pair.right);
    for pause in [0, 700] {
        left.namespace.ip(&format!("link set {WAN} down"))?;
        std::thread::sleep(Duration::from_millis(pause));
        left.namespace.ip(&format!("link set {WAN} up"))?;
        wait_reachable(&left.namespace, right.inner(Family::V4), HANDSHAKE_LIMIT)?;
        wait_sending(left, right)?;
        leaves_by_xdp(left, || tcp_both_ways(left, right, Family::V4, 1 << 20))?;
    }
    pair.check_running()
}

/// What would have to be fragmented is left to the kernel; the rest is not.
#[test]
fn packets_above_the_mtu_go_by_the_socket() -> Result<()> {
    let mut pair = towards(Family::V4, &SOCKET.options())?;
    let (left, right) = (&pair.left, &pair.right);
    for site in [left, right] {
        let interface = site.interface();
        site.namespace
            .ip(&format!("link set {interface} mtu 1500"))?;
    }
    wait_sending(left, right)?;
    // Packets that may be fragmented: of others the sender is told, and sends no more.
    let large = |size| -> Result<()> {
        let (from, to) = (&left.namespace, right.inner(Family::V4));
        let received = ping_with(from, to, 5, size, &["-M", "dont"])?;
        ensure!(received == 5, "{received} answers");
        Ok(())
    };
    let before = Sent::of(left)?;
    large(1472)?;
    let sent = Sent::of(left)?.since(before);
    ensure!(sent.socket >= 5, "{sent:?}");
    // A route that is narrower than the device.
    let to = right.outer(Family::V4);
    left.namespace
        .ip(&format!("route add {to} dev {WAN} mtu 1000"))?;
    wait_sending(left, right)?;
    let before = Sent::of(left)?;
    large(1200)?;
    let sent = Sent::of(left)?.since(before);
    ensure!(sent.socket >= 5, "{sent:?}");
    pair.check_running()
}

/// A mark leads to a routing table that says something else.
#[test]
fn a_mark_is_looked_at() -> Result<()> {
    let mut pair = towards(Family::V4, &SOCKET.options())?;
    let (left, right) = (&pair.left, &pair.right);
    left.namespace.ip(&format!(
        "route add {} dev {WAN} table 99 src 192.0.2.1 mtu 700\nrule add fwmark 7 table 99",
        right.outer(Family::V4)
    ))?;
    wait_sending(left, right)?;
    left.wg_set("fwmark 7")?;
    wait_sending(left, right)?;
    let before = Sent::of(left)?;
    ping_all(&left.namespace, right.inner(Family::V4), 5, 800)?;
    let sent = Sent::of(left)?.since(before);
    ensure!(sent.socket >= 5, "the mark's route is narrow: {sent:?}");
    pair.check_running()
}

/// `flows` and `wg show` know of what no program sees.
#[test]
fn counts_agree() -> Result<()> {
    for outer in FAMILIES {
        let mut pair = towards(outer, &SOCKET.options())?;
        let (left, right) = (&pair.left, &pair.right);
        ping_all(&left.namespace, right.inner(Family::V4), 100, 101)?;
        let counted = |site: &Site, directions: &[u64]| -> Result<Count> {
            let flows = flows(&pinned(site, "flows"))?;
            let flows = flows
                .iter()
                .filter(|flow| directions.contains(&flow.direction));
            Ok(flows.map(|flow| flow.count).sum())
        };
        let agree = |lossless: bool| -> Result<()> {
            let out = counted(left, &[1, 2])?;
            let into = counted(right, &[0])?;
            let sent = Sent::of(left)?;
            let by_xdp = counted(left, &[2])?;
            ensure!(by_xdp.packets == sent.xsk, "{by_xdp:?} {sent:?}");
            ensure!(out.packets == sent.xsk + sent.socket, "{out:?} {sent:?}");
            let arrived = if lossless {
                out == into
            } else {
                into.packets <= out.packets
            };
            ensure!(arrived, "out {out:?}, into the other {into:?}");
            Ok(())
        };
        let wait_agree = |lossless| {
            let told = || agree(lossless).is_ok();
            wait_until("counts agree", Duration::from_secs(10), told)
                .with_context(|| format!("{:?}", agree(lossless)))
        };
        wait_agree(true)?;
        tcp_both_ways(left, right, Family::V4, 2 << 20)?;
        wait_agree(false)?;
        pair.check_running()?;
    }
    Ok(())
}

/// Where the driver copies, `auto` leaves sending to the socket, and `off` does everywhere.
#[test]
fn auto_sends_by_af_xdp_only_without_copies() -> Result<()> {
    for choice in ["auto", "off"] {
        let environment = [
            ("ADIT_DATAPATH", "xdp"),
            ("ADIT_XDP_MODE", "native"),
            ("ADIT_XDP_TRANSMIT", choice),
        ];
        let wire = Wire {
            environment: &environment,
            ..NATIVE
        };
        let mut pair = wire.steering_pair()?;
        ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 20, 56)?;
        let ways = values(&pair.left, "adit_xdp_transmit")?;
        ensure!(ways.is_empty(), "{choice}: {ways:?}");
        let sent = Sent::of(&pair.left)?;
        ensure!(sent.xsk == 0 && sent.socket >= 20, "{choice}: {sent:?}");
        pair.check_running()?;
    }
    Ok(())
}
