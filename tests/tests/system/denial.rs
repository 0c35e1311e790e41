//! What somebody without a key, or a client of the configuration socket, may do to keep the tunnel from working.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddrV4};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use adit_tests::daemon::Options;
use adit_tests::flood::Flood;
use adit_tests::initiators::Initiators;
use adit_tests::ping::ping_all;
use adit_tests::process::{open_files, resident_bytes, unix_sockets};
use adit_tests::transfer::tcp_at_once;
use adit_tests::tunnel::{Family, PORT, Pair, PairOptions, Site, WAN};
use adit_tests::{Namespace, uapi};
use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;

use crate::documents;
use crate::lesser_kernels::daemon_without_ebpf;

/// Strangers whose initiations are sent, each from all of the flood's sources.
const STRANGERS: u16 = 20;

/// Handshake messages that wait before the daemon asks for cookies (`under_load_backlog`), and those that it takes from
/// the queue before it looks again.
const BACKLOG: u64 = 4096 / 8 + 32;

/// Memory that a daemon may use more under attack: what it had not touched before.
const MEMORY: u64 = 8 << 20;

fn counter(site: &Site, name: &str) -> Result<u64> {
    uapi::number(site.interface(), name)
}

/// Initiations with a right first MAC, as anybody can make who knows the public key, from a thousand sources: costly to
/// answer, so from those who cannot be reached at their address the daemon only wants cookies. Meanwhile streams flow.
fn flood_with_initiations(right: Options) -> Result<()> {
    let mut pair = Pair::connected(&PairOptions {
        right,
        ..PairOptions::default()
    })?;
    let (left, right) = (&pair.left, &pair.right);
    let IpAddr::V4(address) = right.outer(Family::V4) else {
        anyhow::bail!("no IPv4 address");
    };
    let target = SocketAddrV4::new(address, PORT);
    let key = base64::engine::general_purpose::STANDARD.decode(&right.keys.public)?;
    let key = *key.first_chunk().context("a key of 32 bytes")?;
    let payloads = Initiators::new(&Namespace::new()?, key, target, STRANGERS)?.initiations()?;
    let flood = Flood::of(&payloads, &left.namespace, &right.namespace, WAN, target)?;
    // As a stranger would be: beyond a router, which takes what is sent back.
    right.namespace.ip(&format!(
        "route add 198.18.0.0/15 via {}",
        left.outer(Family::V4)
    ))?;
    let names = [
        "adit_drop_handshake_invalid",
        "adit_drop_handshake_cookie_demanded",
        "adit_drop_handshake_mac1",
    ];
    let counters = || -> Result<[u64; 3]> {
        let [invalid, demanded, mac1] = names.map(|name| counter(right, name));
        Ok([invalid?, demanded?, mac1?])
    };
    let before = (counters()?, resident_bytes(right.daemon.pid())?);
    let start = Instant::now();
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| flood.run(&running, u64::MAX));
        let flowed = tcp_at_once(left, right, Family::V4, 8 << 20);
        // Not over before it has begun, however fast the streams are.
        let flooded = adit_tests::wait::wait_until("cookies", Duration::from_secs(20), || {
            counters().is_ok_and(|now| now[1] > before.0[1] + 1000)
        });
        running.store(false, Ordering::Relaxed);
        let sent = flood.join();
        flowed.and(flooded)?;
        sent.unwrap_or_else(|_| Ok(0)).map(drop)
    })?;
    let after = counters()?;
    let [invalid, demanded, mac1] = std::array::from_fn(|i| after[i] - before.0[i]);
    // Load is over a second after the last long queue at the earliest.
    let onsets = start.elapsed().as_secs() + 1;
    ensure!(
        mac1 == 0 && demanded > 1000 && invalid <= BACKLOG * onsets,
        "of strangers' initiations {invalid} cost cryptography, {demanded} a cookie; {onsets} onsets of load"
    );
    let resident = resident_bytes(right.daemon.pid())?;
    ensure!(
        resident <= before.1 + MEMORY,
        "{resident} bytes after {}",
        before.1
    );
    ping_all(&left.namespace, right.inner(Family::V4), 10, 1000)?;
    pair.check_running()
}

#[test]
fn a_flood_of_initiations_with_right_macs() -> Result<()> {
    flood_with_initiations(Options::default())
}

/// Each of them reaches the daemon, which has no help of the kernel.
#[test]
fn a_flood_of_initiations_without_a_filter() -> Result<()> {
    flood_with_initiations(daemon_without_ebpf()?)
}

/// A thousand clients that say nothing: a few are kept, the device and other clients are served.
#[test]
fn a_thousand_idle_clients() -> Result<()> {
    /// `uapi::server::CONNECTIONS`, and those of this test.
    const KEPT: usize = 64 + 8;
    let mut pair = Pair::connected(&PairOptions::default())?;
    let site = &pair.left;
    let path = uapi::socket_path(site.interface());
    let pid = site.daemon.pid();
    let before = (open_files(pid)?, resident_bytes(pid)?);
    let mut clients = Vec::new();
    for number in 0..1000 {
        let mut client = UnixStream::connect(&path).context("no room for a client")?;
        // Some begin to say something.
        if number % 3 == 0 {
            client.write_all(b"set=1\nfwm")?;
        }
        clients.push(client);
    }
    ensure!(site.dump()?.peers.len() == 1);
    site.wg_set("fwmark 5")?;
    ensure!(site.dump()?.fwmark == 5);
    let (files, sockets) = (open_files(pid)?, unix_sockets(pid)?);
    ensure!(
        files <= before.0 + KEPT && sockets <= KEPT + 8,
        "{files} descriptors, {sockets} sockets, after {}",
        before.0
    );
    let resident = resident_bytes(pid)?;
    ensure!(
        resident <= before.1 + MEMORY,
        "{resident} bytes after {}",
        before.1
    );
    ping_all(&site.namespace, pair.right.inner(Family::V4), 10, 1000)?;
    drop(clients);
    pair.check_running()
}

/// An operation without an end, and answers that nobody reads: others are served, and memory stays bounded.
#[test]
fn an_operation_without_end() -> Result<()> {
    const LINES: usize = 400_000;
    let mut pair = Pair::connected(&PairOptions::default())?;
    let (left, right) = (&pair.left, &pair.right);
    let running = AtomicBool::new(true);
    let written = std::thread::scope(|scope| -> Result<usize> {
        let endless = scope.spawn(|| -> Result<usize> {
            let mut client = uapi::connect(left.interface())?;
            client.write_all(b"set=1\n")?;
            let lines = b"listen_port=7\n".repeat(1000);
            let mut written = 0;
            while running.load(Ordering::Relaxed) && written < 10 * LINES {
                client.write_all(&lines)?;
                written += 1000;
            }
            Ok(written)
        });
        let served = (|| -> Result<()> {
            for _ in 0..5 {
                let mut deaf = uapi::connect(left.interface())?;
                deaf.write_all(b"get=1\n\n")?;
                tcp_at_once(left, right, Family::V4, 1 << 20)?;
                ensure!(left.dump()?.listen_port == PORT);
            }
            Ok(())
        })();
        running.store(false, Ordering::Relaxed);
        let written = endless.join();
        served?;
        written.unwrap_or_else(|_| anyhow::bail!("the client panicked"))
    })?;
    ensure!(written > 10_000, "only {written} lines");
    // What was never ended was never applied.
    ensure!(left.dump()?.listen_port == PORT);
    pair.check_running()
}

/// The table of what can grow says what the source says.
#[test]
fn bounds_are_what_the_document_says() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let rows = documents::table("SECURITY.md", &["what grows", "by whom"])?;
    ensure!(rows.len() > 20, "only {} rows", rows.len());
    for row in rows {
        let said: u64 = row[2].replace(',', "").parse()?;
        let (file, name) = row[3]
            .trim_matches('`')
            .split_once("::")
            .with_context(|| row[3].clone())?;
        let source = fs::read_to_string(root.join(file)).with_context(|| file.to_owned())?;
        let value = constant(&source, name).with_context(|| row[3].clone())?;
        ensure!(value == said, "{}: {value}, not {said}", row[3]);
    }
    Ok(())
}

/// The value of a constant in a source file, if that is a number, possibly shifted.
fn constant(source: &str, name: &str) -> Option<u64> {
    let (_, rest) = source.split_once(&format!("const {name}: "))?;
    let (declaration, _) = rest.split_once(';')?;
    let (_, value) = declaration.split_once('=')?;
    let number = |text: &str| text.trim().replace('_', "").parse::<u64>().ok();
    match value.split_once("<<") {
        Some((number_shifted, bits)) => Some(number(number_shifted)? << number(bits)?),
        None => number(value),
    }
}

#[test]
fn constants_are_read() {
    let source =
        "pub const ONE: usize = 1_024;\nconst TWO: usize = 7 << 20;\nconst THREE: u8 = ONE;";
    assert_eq!(constant(source, "ONE"), Some(1024));
    assert_eq!(constant(source, "TWO"), Some(7 << 20));
    assert_eq!(constant(source, "THREE"), None);
    assert_eq!(constant(source, "FOUR"), None);
}
