//! Changes to a running tunnel, and what they must not touch.

use std::time::Duration;

use adit_tests::command::Running;
use adit_tests::ping::{answered, ping, ping_all, wait_reachable};
use adit_tests::tunnel::{Family, HANDSHAKE_LIMIT, PORT, Pair, PairOptions, Site};
use adit_tests::wait::wait_until;
use adit_tests::{Namespace, uapi, wg};
use anyhow::{Context as _, Result, ensure};

/// Nanoseconds since 1970 of the last handshake with `peer`; `wg` shows seconds only.
pub(crate) fn handshake_time(site: &Site, peer: &Site) -> Result<u128> {
    let key = wg::hex(&peer.keys.public)?;
    let answer = uapi::request(site.interface(), "get=1")?;
    let mut fields = answer
        .iter()
        .skip_while(|(k, v)| k != "public_key" || *v != key);
    let mut field = |name: &str| -> Result<u128> {
        Ok(fields
            .find(|(k, _)| k == name)
            .with_context(|| format!("no {name}"))?
            .1
            .parse()?)
    };
    Ok(field("last_handshake_time_sec")? * 1_000_000_000 + field("last_handshake_time_nsec")?)
}

/// How many of the requests may stay unanswered without a reason: ping does not wait long for the last answers.
const STRAY: u32 = 3;

/// Pings without a break while `change` works on the tunnel; fails when more than `lost` requests went unanswered.
fn under_traffic(pair: &Pair, lost: u32, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let target = pair.right.inner(Family::V4).to_string();
    let mut command = pair.left.namespace.command("ping");
    command.args(["-n", "-q", "-i", "0.01", "-W", "2", "-c", "150", &target]);
    let running = Running::start(&mut command)?;
    change()?;
    let output = running.finish(Duration::from_secs(30))?;
    let received = answered(&output.stdout).with_context(|| output.stdout.clone())?;
    ensure!(
        received + lost + STRAY >= 150,
        "{} of 150 requests lost",
        150 - received
    );
    Ok(())
}

#[test]
fn syncconf_leaves_other_sessions_alone() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let (left, right) = (&pair.left, &pair.right);
    let others = wg::random_public_keys(3)?;
    for (i, key) in others.iter().enumerate() {
        left.wg_set(&format!("peer {key} allowed-ips 10.77.{i}.0/24"))?;
    }
    let (before, counters) = (handshake_time(left, right)?, left.peer(right)?);

    let config = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = 10.9.0.2/32, fd09::2/128\nEndpoint = {}\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = 10.77.0.0/25\nPersistentKeepalive = 7\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = 10.78.0.0/16\n",
        left.keys.private,
        right.keys.public,
        right.endpoint(Family::V4),
        others[0],
        wg::KeyPair::generate()?.public,
    );
    under_traffic(&pair, 0, || {
        for _ in 0..5 {
            wg::apply(&left.namespace, "syncconf", left.interface(), &config)?;
        }
        Ok(())
    })?;

    ensure!(
        handshake_time(left, right)? == before,
        "a new handshake was needed"
    );
    let after = left.peer(right)?;
    ensure!(
        after.received > counters.received && after.sent > counters.sent,
        "counters were reset"
    );
    let dump = left.dump()?;
    ensure!(dump.peers.len() == 3, "{dump:?}");
    ensure!(dump.peers[&others[0]].keepalive == Some(7));
    ensure!(!dump.peers.contains_key(&others[1]) && !dump.peers.contains_key(&others[2]));
    pair.check_running()
}

/// A peer that is itself modified keeps its session too.
#[test]
fn modified_peer_keeps_its_session() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let (left, right) = (&pair.left, &pair.right);
    let before = handshake_time(left, right)?;
    under_traffic(&pair, 0, || {
        for i in 0..5 {
            left.add_peer(
                right,
                &format!(
                    "persistent-keepalive {i} endpoint {}",
                    right.endpoint(Family::V4)
                ),
            )?;
            right.wg_set(&format!(
                "peer {} allowed-ips 10.9.0.1/32,fd09::1/128,10.80.{i}.0/24",
                left.keys.public
            ))?;
        }
        Ok(())
    })?;
    ensure!(
        handshake_time(left, right)? == before,
        "a new handshake was needed"
    );
    pair.check_running()
}

/// The session goes on under the old key; the next handshake needs the new one, whoever has it.
#[test]
fn preshared_key_of_a_live_peer() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let before = handshake_time(&pair.left, &pair.right)?;
    let key = wg::preshared_key()?;
    under_traffic(&pair, 0, || pair.set_preshared_key(&key))?;
    ensure!(
        handshake_time(&pair.left, &pair.right)? == before,
        "a new handshake was needed"
    );

    // A restarted right side knows no session, so it has to make a new handshake with a left side that lived through
    // the change: first without the key, in vain, then with it.
    pair.right.daemon.crash_and_restart(&pair.right.namespace)?;
    pair.right.set_up(1420)?;
    pair.right.add_peer(
        &pair.left,
        &format!("endpoint {}", pair.left.endpoint(Family::V4)),
    )?;
    let (left, right) = (&pair.left, &pair.right);
    let answered = ping(&right.namespace, left.inner(Family::V4), 3, 56)?;
    ensure!(
        answered == 0,
        "handshake without the preshared key succeeded"
    );
    right.wg_set_secret(&format!("peer {} preshared-key", left.keys.public), &key)?;
    wait_reachable(&right.namespace, left.inner(Family::V4), HANDSHAKE_LIMIT)?;
    ensure!(handshake_time(left, right)? > before);
    pair.check_running()
}

#[test]
fn listen_port_of_a_live_tunnel() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let (left, right) = (&pair.left, &pair.right);
    let before = handshake_time(left, right)?;
    // What is on the way to the old port when it closes is lost; nothing else may be.
    under_traffic(&pair, 10, || {
        for port in [40_001, 40_002, 40_003] {
            left.wg_set(&format!("listen-port {port}"))?;
            wait_until("right side follows", Duration::from_secs(10), || {
                right
                    .peer(left)
                    .is_ok_and(|peer| peer.endpoint.is_some_and(|e| e.port() == port))
            })?;
        }
        Ok(())
    })?;
    ensure!(left.dump()?.listen_port == 40_003);
    ensure!(
        handshake_time(left, right)? == before,
        "a new handshake was needed"
    );

    left.wg_set("listen-port 0")?;
    let chosen = left.dump()?.listen_port;
    ensure!(
        chosen != 0 && chosen != 40_003,
        "port {chosen} after asking for a random one"
    );
    wait_reachable(&left.namespace, right.inner(Family::V4), HANDSHAKE_LIMIT)?;
    pair.check_running()
}

/// A port in use is refused with an error, and the tunnel stays on the port it has.
#[test]
fn listen_port_in_use() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let (left, right) = (&pair.left, &pair.right);
    let taken = left
        .namespace
        .enter(|| std::net::UdpSocket::bind("0.0.0.0:40100"))??;
    let refused = left.wg_set("listen-port 40100");
    ensure!(
        format!("{refused:?}").contains("Address already in use"),
        "{refused:?}"
    );
    drop(taken);
    ping_all(&left.namespace, right.inner(Family::V4), 3, 56)?;
    ping_all(&right.namespace, left.inner(Family::V4), 3, 56)?;
    left.wg_set("listen-port 40100")?;
    ping_all(&left.namespace, right.inner(Family::V4), 3, 56)?;
    pair.check_running()
}

#[test]
fn fwmark_of_a_live_tunnel() -> Result<()> {
    for outer in [Family::V4, Family::V6] {
        let mut pair = Pair::connected(&PairOptions {
            outer,
            ..PairOptions::default()
        })?;
        let (left, right) = (&pair.left, &pair.right);
        left.namespace.nft(&format!(
            "table inet t {{
                 counter plain {{ }}
                 counter marked {{ }}
                 chain out {{
                     type filter hook output priority 0;
                     udp dport {PORT} meta mark 0 counter name plain
                     udp dport {PORT} meta mark 0x51 counter name marked
                 }}
             }}"
        ))?;
        let send = || ping_all(&left.namespace, right.inner(Family::V4), 5, 56);
        send()?;
        let unmarked = counter(&left.namespace, "plain")?;
        ensure!(unmarked >= 5 && counter(&left.namespace, "marked")? == 0);

        under_traffic(&pair, 0, || left.wg_set("fwmark 0x51"))?;
        ensure!(left.dump()?.fwmark == 0x51);
        let unmarked = counter(&left.namespace, "plain")?;
        send()?;
        ensure!(
            counter(&left.namespace, "marked")? >= 5,
            "packets are not marked"
        );
        ensure!(
            counter(&left.namespace, "plain")? == unmarked,
            "some packets are not marked"
        );

        left.wg_set("fwmark 0")?;
        ensure!(left.dump()?.fwmark == 0);
        send()?;
        ensure!(
            counter(&left.namespace, "plain")? >= unmarked + 5,
            "packets are still marked"
        );
        pair.check_running()?;
    }
    Ok(())
}

/// Packets counted by a named nftables counter.
fn counter(namespace: &Namespace, name: &str) -> Result<u64> {
    let text = namespace.run(&format!("nft list counter inet t {name}"))?;
    let number = text
        .split_whitespace()
        .skip_while(|word| *word != "packets")
        .nth(1);
    Ok(number.context("no counter")?.parse()?)
}

/// Giving a prefix to another peer takes it from the first, at once.
#[test]
fn allowed_ip_moves() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let (left, right) = (&pair.left, &pair.right);
    let other = &wg::random_public_keys(1)?[0];
    left.wg_set(&format!("peer {other} allowed-ips 10.9.0.2/32"))?;
    ensure!(ping(&left.namespace, right.inner(Family::V4), 2, 56).is_ok_and(|n| n == 0));
    // What comes from an address that the sender no longer owns is dropped, so this direction is dead as well.
    ensure!(ping(&right.namespace, left.inner(Family::V4), 2, 56).is_ok_and(|n| n == 0));
    ping_all(&left.namespace, right.inner(Family::V6), 2, 56)?;
    left.wg_set(&format!("peer {other} remove"))?;
    ensure!(
        left.peer(right)?.allowed_ips == ["fd09::2/128"],
        "the prefix came back by itself"
    );
    left.add_peer(right, "")?;
    ping_all(&left.namespace, right.inner(Family::V4), 2, 56)?;
    pair.check_running()
}

/// A peer removed and added again works; so does a changed private key.
#[test]
fn peers_and_keys_come_and_go() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let endpoint = pair.right.endpoint(Family::V4);
    pair.left
        .wg_set(&format!("peer {} remove", pair.right.keys.public))?;
    ensure!(ping(&pair.left.namespace, pair.right.inner(Family::V4), 1, 56).is_ok_and(|n| n == 0));
    pair.left
        .add_peer(&pair.right, &format!("endpoint {endpoint}"))?;
    pair.wait_connected()?;

    let keys = wg::KeyPair::generate()?;
    pair.left.wg_set_secret("private-key", &keys.private)?;
    pair.right
        .wg_set(&format!("peer {} remove", pair.left.keys.public))?;
    pair.left.keys = keys;
    pair.right.add_peer(&pair.left, "")?;
    pair.wait_connected()?;
    ensure!(pair.left.dump()?.public_key.as_ref() == Some(&pair.left.keys.public));
    pair.check_running()
}

/// Down and up again: the device keeps its configuration and the tunnel comes back.
#[test]
fn device_down_and_up() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    for _ in 0..3 {
        let (left, right) = (&pair.left, &pair.right);
        left.namespace.ip(&format!(
            "link set {0} down\nlink set {0} up",
            left.interface()
        ))?;
        wait_reachable(&left.namespace, right.inner(Family::V4), HANDSHAKE_LIMIT)?;
        pair.check_running()?;
    }
    Ok(())
}

/// Up follows down at once, with packets coming in: the port must be free again by then, or be had a moment later.
#[test]
fn device_flaps_under_traffic() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let (left, right) = (&pair.left, &pair.right);
    let target = left.inner(Family::V4).to_string();
    let mut flood = right.namespace.command("ping");
    let flood = Running::start(flood.args(["-q", "-n", "-i", "0.001", &target]))?;
    for _ in 0..30 {
        left.namespace.ip(&format!(
            "link set {0} down\nlink set {0} up",
            left.interface()
        ))?;
    }
    wait_reachable(&left.namespace, right.inner(Family::V4), HANDSHAKE_LIMIT)?;
    drop(flood);
    ensure!(left.dump()?.listen_port == PORT);
    pair.check_running()
}
