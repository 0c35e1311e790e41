//! Many peers, and memory.

use adit_tests::daemon::Options;
use adit_tests::iperf::{Amount, Run};
use adit_tests::ping::wait_reachable;
use adit_tests::process::resident_bytes;
use adit_tests::tunnel::{Family, HANDSHAKE_LIMIT, PORT, Pair, PairOptions};
use adit_tests::wg::{KeyPair, apply, dump, random_public_keys};
use adit_tests::{Daemon, Namespace};
use anyhow::{Result, ensure};

const PEERS: usize = 10_000;
const MEGABYTE: u64 = 1 << 20;

/// 10,000 peers by `setconf`: all are shown, each costs at most 4 KB, and syncing them changes nothing.
#[test]
fn ten_thousand_peers() -> Result<()> {
    let namespace = Namespace::new()?;
    let mut daemon = Daemon::start(&namespace, &Options::default())?;
    let interface = daemon.interface().to_owned();
    namespace.ip(&format!("link set {interface} up"))?;
    let own = KeyPair::generate()?;
    let head = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n",
        own.private
    );
    apply(&namespace, "setconf", &interface, &head)?;
    let before = resident_bytes(daemon.pid())?;

    let mut config = head;
    for (n, key) in random_public_keys(PEERS)?.iter().enumerate() {
        let (high, low) = (n / 256, n % 256);
        config.push_str(&format!(
            "[Peer]\nPublicKey = {key}\nAllowedIPs = 10.{high}.{low}.0/24, fd00:{n:x}::/32\nEndpoint = 192.0.2.1:{}\n",
            n + 1
        ));
    }
    apply(&namespace, "setconf", &interface, &config)?;
    let shown = dump(&namespace, &interface)?;
    ensure!(shown.peers.len() == PEERS, "{} peers", shown.peers.len());
    ensure!(
        shown
            .peers
            .values()
            .all(|peer| peer.allowed_ips.len() == 2 && peer.endpoint.is_some())
    );
    let each = resident_bytes(daemon.pid())?.saturating_sub(before) / PEERS as u64;
    ensure!(each <= 4096, "{each} bytes a peer");

    apply(&namespace, "syncconf", &interface, &config)?;
    ensure!(
        dump(&namespace, &interface)? == shown,
        "syncconf of the same configuration changed something"
    );
    apply(
        &namespace,
        "setconf",
        &interface,
        &config[..config.find("[Peer]").unwrap_or(0)],
    )?;
    ensure!(dump(&namespace, &interface)?.peers.is_empty());
    ensure!(daemon.running());
    Ok(())
}

/// A tunnel works for one peer among ten thousand.
#[test]
fn one_of_ten_thousand() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let config: String = random_public_keys(PEERS)?
        .iter()
        .enumerate()
        .map(|(n, key)| {
            format!(
                "[Peer]\nPublicKey = {key}\nAllowedIPs = 10.{}.{}.0/24\n",
                10 + n / 256,
                n % 256
            )
        })
        .collect();
    apply(
        &pair.left.namespace,
        "addconf",
        pair.left.interface(),
        &config,
    )?;
    apply(
        &pair.right.namespace,
        "addconf",
        pair.right.interface(),
        &config,
    )?;
    pair.right.daemon.crash_and_restart(&pair.right.namespace)?;
    pair.right.set_up(1420)?;
    apply(
        &pair.right.namespace,
        "addconf",
        pair.right.interface(),
        &config,
    )?;
    pair.right.add_peer(
        &pair.left,
        &format!("endpoint {}", pair.left.endpoint(Family::V4)),
    )?;
    wait_reachable(
        &pair.right.namespace,
        pair.left.inner(Family::V4),
        HANDSHAKE_LIMIT,
    )?;
    adit_tests::transfer::tcp_both_ways(&pair.left, &pair.right, Family::V4, 8 << 20)?;
    pair.check_running()
}

/// Idle with one peer at most 24 MB; after traffic in both directions at most 40 MB.
#[test]
fn resident_memory() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    for site in [&pair.left, &pair.right] {
        let resident = resident_bytes(site.daemon.pid())?;
        ensure!(resident <= 24 * MEGABYTE, "{resident} bytes when idle");
    }
    for options in [&["-P", "4"][..], &["-P", "4", "-R"], &["-u", "-b", "500M"]] {
        let (client, server) = (&pair.left.namespace, &pair.right.namespace);
        let to = pair.right.inner(Family::V4);
        Run {
            client,
            server,
            to,
            amount: Amount::Seconds(2),
            options,
        }
        .run()?;
    }
    for site in [&pair.left, &pair.right] {
        let resident = resident_bytes(site.daemon.pid())?;
        ensure!(resident <= 40 * MEGABYTE, "{resident} bytes after traffic");
    }
    pair.check_running()
}
