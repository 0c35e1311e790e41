//! Peers that move, hosts with more than one address, and paths that go away under a live tunnel.

use std::time::Duration;

use adit_tests::daemon::Options;
use adit_tests::link::{End, forward, veth};
use adit_tests::ping::{ping, ping_all, wait_reachable};
use adit_tests::relay::{Relay, Weather};
use adit_tests::tunnel::{Family, HANDSHAKE_LIMIT, PORT, Pair, PairOptions, Site, WAN};
use adit_tests::wait::wait_until;
use adit_tests::{Namespace, transfer};
use anyhow::{Result, ensure};

use crate::live_changes::handshake_time;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Waits until `site` has `address` for where `peer` is.
fn wait_endpoint(site: &Site, peer: &Site, address: &str) -> Result<()> {
    wait_until(
        &format!("site {} sees its peer at {address}", site.number),
        Duration::from_secs(10),
        || {
            site.peer(peer)
                .is_ok_and(|peer| peer.endpoint.is_some_and(|e| e.ip().to_string() == address))
        },
    )
}

/// Behind a relay, the peer's address changes without the peer knowing: the other side answers to the new one at once.
#[test]
fn peer_changes_port_and_address_unknowingly() -> Result<()> {
    for outer in FAMILIES {
        let middle = Namespace::new()?;
        let mut pair = Pair::new(&PairOptions {
            outer,
            right_knows_left: false,
            ..PairOptions::default()
        })?;
        let wires: [(&Site, [&str; 2]); 2] = [
            (&pair.left, ["198.51.100.1/30", "2001:db8:a::1/64"]),
            (&pair.right, ["203.0.113.1/24", "2001:db8:b::1/64"]),
        ];
        let middles = [
            ["198.51.100.2/30", "2001:db8:a::2/64"],
            ["203.0.113.2/24", "2001:db8:b::2/64"],
        ];
        for ((site, own), (n, other)) in wires.iter().zip(middles.iter().enumerate()) {
            let interface = format!("m{n}");
            veth(
                End {
                    namespace: &site.namespace,
                    interface: "relay0",
                    addresses: own,
                },
                End {
                    namespace: &middle,
                    interface: &interface,
                    addresses: other,
                },
                1500,
            )?;
        }
        middle
            .ip("address add 203.0.113.3/24 dev m1\naddress add 2001:db8:b::3/64 dev m1 nodad")?;
        let (front, right, back) = match outer {
            Family::V4 => ("198.51.100.2", "203.0.113.1", "203.0.113.3"),
            Family::V6 => ("2001:db8:a::2", "2001:db8:b::1", "2001:db8:b::3"),
        };
        let right_address = std::net::SocketAddr::new(right.parse()?, PORT);
        let relay = Relay::start(&middle, front.parse()?, right_address, Weather::default())?;
        pair.left.wg_set(&format!(
            "peer {} endpoint {}",
            pair.right.keys.public,
            relay.address()
        ))?;
        pair.wait_connected()?;
        let before = handshake_time(&pair.left, &pair.right)?;

        for address in [right_address.ip(), back.parse()?].map(|a| {
            if a == right_address.ip() {
                unspecified(a)
            } else {
                a
            }
        }) {
            let port = relay.move_back(&middle, address)?.port();
            ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 5, 56)?;
            let seen = pair.right.peer(&pair.left)?.endpoint;
            ensure!(
                seen.is_some_and(|e| e.port() == port),
                "right side sees {seen:?}, not port {port}"
            );
            ping_all(&pair.right.namespace, pair.left.inner(Family::V4), 5, 56)?;
        }
        wait_endpoint(&pair.right, &pair.left, back)?;
        ensure!(
            handshake_time(&pair.left, &pair.right)? == before,
            "a new handshake was needed"
        );
        pair.check_running()?;
    }
    Ok(())
}

fn unspecified(address: std::net::IpAddr) -> std::net::IpAddr {
    adit_tests::relay::unspecified(address)
}

/// The left side gets another address; the right side follows.
#[test]
fn peer_changes_address() -> Result<()> {
    for outer in FAMILIES {
        let mut pair = Pair::connected(&PairOptions {
            outer,
            ..PairOptions::default()
        })?;
        let (left, right) = (&pair.left, &pair.right);
        let before = handshake_time(left, right)?;
        let (address, length) = match outer {
            Family::V4 => ("192.0.2.77", 24),
            Family::V6 => ("2001:db8::77", 64),
        };
        left.namespace.ip(&format!(
            "address add {address}/{length} dev {WAN} nodad\naddress delete {}/{length} dev {WAN}",
            left.outer(outer)
        ))?;
        // Removing the primary IPv4 address removes the others of its subnet too, unless they are promoted.
        left.namespace.ip(&format!(
            "address replace {address}/{length} dev {WAN} nodad"
        ))?;
        wait_reachable(&left.namespace, right.inner(Family::V4), HANDSHAKE_LIMIT)?;
        wait_endpoint(right, left, address)?;
        ping_all(&right.namespace, left.inner(Family::V4), 3, 56)?;
        ensure!(
            handshake_time(left, right)? == before,
            "a new handshake was needed"
        );
        pair.check_running()?;
    }
    Ok(())
}

/// A client asks the second address of a host; the answers come from there, so the client's endpoint stays.
#[test]
fn answers_leave_from_the_address_that_was_asked() -> Result<()> {
    for outer in FAMILIES {
        let mut pair = Pair::new(&PairOptions {
            outer,
            right_knows_left: false,
            ..PairOptions::default()
        })?;
        let (left, right) = (&pair.left, &pair.right);
        let (second, length, endpoint) = match outer {
            Family::V4 => ("192.0.2.200", 24, format!("192.0.2.200:{PORT}")),
            Family::V6 => ("2001:db8::200", 64, format!("[2001:db8::200]:{PORT}")),
        };
        right
            .namespace
            .ip(&format!("address add {second}/{length} dev {WAN} nodad"))?;
        // An IPv6 host prefers its newest address; make the kernel's own choice the other one.
        let own = right.outer(outer);
        right.namespace.ip(&format!(
            "route replace {} dev {WAN} src {own}",
            left.outer(outer)
        ))?;
        left.wg_set(&format!("peer {} endpoint {endpoint}", right.keys.public))?;
        pair.wait_connected()?;
        transfer::tcp_both_ways(left, right, Family::V4, 1 << 20)?;
        ping_all(&right.namespace, left.inner(Family::V4), 5, 56)?;
        let seen = left.peer(right)?.endpoint;
        ensure!(
            seen.is_some_and(|e| e.ip().to_string() == second),
            "answers came from {seen:?}"
        );
        pair.check_running()?;
    }
    Ok(())
}

/// The source address that a live tunnel uses is taken away while another remains.
#[test]
fn source_address_disappears() -> Result<()> {
    for outer in FAMILIES {
        let mut pair = Pair::new(&PairOptions {
            outer,
            ..PairOptions::default()
        })?;
        let (left, right) = (&pair.left, &pair.right);
        let (second, length, endpoint) = match outer {
            Family::V4 => ("192.0.2.200", 24, format!("192.0.2.200:{PORT}")),
            Family::V6 => ("2001:db8::200", 64, format!("[2001:db8::200]:{PORT}")),
        };
        // The left side is known by its second address, so the right side's packets pin that as its source.
        left.namespace
            .ip(&format!("address add {second}/{length} dev {WAN} nodad"))?;
        right.wg_set(&format!("peer {} endpoint {endpoint}", left.keys.public))?;
        wait_reachable(&right.namespace, left.inner(Family::V4), HANDSHAKE_LIMIT)?;
        ping_all(&left.namespace, right.inner(Family::V4), 3, 56)?;
        wait_endpoint(right, left, second)?;
        let before = handshake_time(left, right)?;

        left.namespace
            .ip(&format!("address delete {second}/{length} dev {WAN}"))?;
        wait_reachable(&left.namespace, right.inner(Family::V4), HANDSHAKE_LIMIT)?;
        wait_endpoint(right, left, &left.outer(outer).to_string())?;
        transfer::tcp_both_ways(left, right, Family::V4, 1 << 20)?;
        ensure!(
            handshake_time(left, right)? == before,
            "a new handshake was needed"
        );
        pair.check_running()?;
    }
    Ok(())
}

/// The interface a live tunnel goes through is deleted; another way to the peer remains.
#[test]
fn interface_disappears() -> Result<()> {
    for outer in FAMILIES {
        let mut pair = Pair::new(&PairOptions {
            outer,
            ..PairOptions::default()
        })?;
        let (left, right) = (&pair.left, &pair.right);
        veth(
            End {
                namespace: &left.namespace,
                interface: "wan1",
                addresses: &["198.51.100.1/24", "2001:db8:c::1/64"],
            },
            End {
                namespace: &right.namespace,
                interface: "wan1",
                addresses: &["198.51.100.2/24", "2001:db8:c::2/64"],
            },
            1500,
        )?;
        // Each side is known by an address of no wire, reachable over both.
        for (site, other, own) in [(left, right, 1), (right, left, 2)] {
            let (address, route) = match outer {
                Family::V4 => ("203.0.113", format!("203.0.113.{}/32", other.number)),
                Family::V6 => ("2001:db8:d:", format!("2001:db8:d::{}/128", other.number)),
            };
            let separator = if outer == Family::V4 { "." } else { ":" };
            let second = if outer == Family::V4 {
                format!("198.51.100.{}", other.number)
            } else {
                format!("2001:db8:c::{}", other.number)
            };
            site.namespace.ip(&format!(
                "address add {address}{separator}{own} dev lo
                 route add {route} via {} metric 10
                 route add {route} via {second} metric 20",
                other.outer(outer),
            ))?;
        }
        let endpoint = |n| {
            if outer == Family::V4 {
                format!("203.0.113.{n}:{PORT}")
            } else {
                format!("[2001:db8:d::{n}]:{PORT}")
            }
        };
        left.wg_set(&format!(
            "peer {} endpoint {}",
            right.keys.public,
            endpoint(2)
        ))?;
        right.wg_set(&format!(
            "peer {} endpoint {}",
            left.keys.public,
            endpoint(1)
        ))?;
        pair.wait_connected()?;
        ping_all(&right.namespace, left.inner(Family::V4), 3, 56)?;
        let before = handshake_time(left, right)?;

        left.namespace.ip(&format!("link delete {WAN}"))?;
        wait_reachable(&left.namespace, right.inner(Family::V4), HANDSHAKE_LIMIT)?;
        wait_reachable(&right.namespace, left.inner(Family::V4), HANDSHAKE_LIMIT)?;
        transfer::tcp_both_ways(left, right, Family::V4, 1 << 20)?;
        ensure!(
            handshake_time(left, right)? == before,
            "a new handshake was needed"
        );
        pair.check_running()?;
    }
    Ok(())
}

/// Behind NAT, the persistent keepalive holds the mapping open, so that the other side can speak first.
#[test]
fn nat_with_keepalive() -> Result<()> {
    let (inside, router, outside) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
    veth(
        End {
            namespace: &inside,
            interface: WAN,
            addresses: &["192.168.7.2/24"],
        },
        End {
            namespace: &router,
            interface: "in0",
            addresses: &["192.168.7.1/24"],
        },
        1500,
    )?;
    veth(
        End {
            namespace: &router,
            interface: "out0",
            addresses: &["203.0.113.1/24"],
        },
        End {
            namespace: &outside,
            interface: WAN,
            addresses: &["203.0.113.2/24"],
        },
        1500,
    )?;
    inside.ip("route add default via 192.168.7.1")?;
    forward(&router)?;
    router.nft(
        "table ip nat {
             chain post { type nat hook postrouting priority 100; oifname out0 masquerade random; }
         }
         table ip filter {
             chain pass { type filter hook forward priority 0; policy drop; iifname in0 accept; ct state established accept; }
         }",
    )?;
    let timeout = 3;
    for key in [
        "nf_conntrack_udp_timeout",
        "nf_conntrack_udp_timeout_stream",
    ] {
        router.sysctl(&format!("net.netfilter.{key}"), &timeout.to_string())?;
    }
    let left = Site::start(inside, 1, 1420, &Options::default())?;
    let right = Site::start(outside, 2, 1420, &Options::default())?;
    right.add_peer(&left, "")?;
    left.add_peer(
        &right,
        &format!("endpoint 203.0.113.2:{PORT} persistent-keepalive 1"),
    )?;

    // The keepalive makes the handshake by itself.
    wait_endpoint(&right, &left, "203.0.113.1")?;
    let received = right.peer(&left)?.received;
    std::thread::sleep(Duration::from_secs(2 * timeout));
    ensure!(
        right.peer(&left)?.received >= received + 32 * timeout,
        "keepalives are missing or not counted"
    );
    ping_all(&right.namespace, left.inner(Family::V4), 3, 56)?;

    // Without it the mapping ends, and with it the way in.
    left.wg_set(&format!(
        "peer {} persistent-keepalive off",
        right.keys.public
    ))?;
    let mapping_ended = (0..5).any(|_| {
        // Silence is what ends it: each look from outside may keep it alive.
        std::thread::sleep(Duration::from_secs(timeout + 2));
        matches!(ping(&right.namespace, left.inner(Family::V4), 1, 56), Ok(0))
    });
    ensure!(mapping_ended, "the way in is open without keepalive");
    // The inside speaks first again, from a new port of the router, and is followed.
    wait_reachable(&left.namespace, right.inner(Family::V4), HANDSHAKE_LIMIT)?;
    ping_all(&right.namespace, left.inner(Family::V4), 3, 56)
}

/// Loss, duplication and reordering: TCP gets through complete, and nothing is delivered twice.
#[test]
fn bad_weather() -> Result<()> {
    let mut pair = Pair::new(&PairOptions {
        right_knows_left: false,
        ..PairOptions::default()
    })?;
    let (left, right) = (&pair.left, &pair.right);
    let weather = Weather {
        loss: 10,
        duplication: 100,
        reordering: 50,
        ..Weather::default()
    };
    let relay = Relay::start(
        &right.namespace,
        right.outer(Family::V4),
        right.endpoint(Family::V4),
        weather,
    )?;
    left.wg_set(&format!(
        "peer {} endpoint {}",
        right.keys.public,
        relay.address()
    ))?;
    pair.wait_connected()?;
    transfer::tcp_both_ways(left, right, Family::V4, 2 << 20)?;

    let mut command = left.namespace.command("ping");
    command.args([
        "-n",
        "-i",
        "0.005",
        "-c",
        "400",
        "-W",
        "1",
        &right.inner(Family::V4).to_string(),
    ]);
    let output = adit_tests::command::output(&mut command)?;
    ensure!(
        !output.stdout.contains("DUP!") && !output.stdout.contains("duplicates"),
        "{}",
        output.stdout
    );
    ensure!(output.stdout.contains("received"), "{}", output.stdout);
    pair.check_running()
}

/// The device is moved to another namespace; the UDP socket stays where it was born.
#[test]
fn device_moves_to_another_namespace() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let inner = Namespace::new()?;
    {
        let (left, right) = (&pair.left, &pair.right);
        let interface = left.interface();
        left.namespace
            .ip(&format!("link set {interface} netns {}", inner.name()))?;
        inner.ip(&format!(
            "address add 10.9.0.1/24 dev {interface}
             address add fd09::1/64 dev {interface} nodad
             link set {interface} mtu 1400 up"
        ))?;
        wait_reachable(&inner, right.inner(Family::V4), HANDSHAKE_LIMIT)?;
        wait_reachable(&right.namespace, left.inner(Family::V6), HANDSHAKE_LIMIT)?;
        transfer::tcp(&inner, &right.namespace, right.inner(Family::V4), 4 << 20)?;
        transfer::tcp(&right.namespace, &inner, left.inner(Family::V4), 4 << 20)?;
        ensure!(left.dump()?.listen_port == PORT);
        // Events of the device are seen there too: down, up, and its end.
        inner.ip(&format!(
            "link set {interface} down\nlink set {interface} up"
        ))?;
        wait_reachable(&inner, right.inner(Family::V4), HANDSHAKE_LIMIT)?;
    }
    pair.check_running()?;
    inner.ip(&format!("link delete {}", pair.left.interface()))?;
    let status = pair.left.daemon.wait()?;
    ensure!(
        status.code() == Some(0),
        "{status}\n{}",
        pair.left.daemon.log_text()
    );
    Ok(())
}
