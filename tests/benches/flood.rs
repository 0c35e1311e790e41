//! What a flood costs a tunnel: its throughput under frames for its own port, beside the same frames for a port that is
//! closed, over AF_XDP and over the UDP socket. The frames are junk, or strangers' initiations with a right first MAC.
//! Needs root.
//!
//! `cargo bench -p adit-tests --bench flood [-- [SECONDS [ROUNDS]] [xdp|socket]]`. The sender of the flood has a thread of
//! its own and sends as fast as it can in both cases, so that the ratio tells what the receiving host does with the frames.

#![allow(clippy::print_stdout, reason = "its result")]

use std::net::{IpAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use adit_tests::daemon::{Options, hide_logs};
use adit_tests::flood::{Flood, Junk, SOURCES};
use adit_tests::initiators::Initiators;
use adit_tests::iperf::{Amount, Run};
use adit_tests::tunnel::{Family, PORT, Pair, PairOptions, WAN};
use adit_tests::wait::wait_until;
use adit_tests::{Namespace, uapi};
use anyhow::{Context as _, Result};
use base64::Engine as _;

/// Nobody listens there.
const CLOSED: u16 = PORT + 1;

/// Strangers whose initiations are sent.
const STRANGERS: u16 = 20;

/// What the tunnel's throughput was, and that of the flood beside it.
#[derive(Debug, Clone, Copy)]
struct Sample {
    bits_per_second: f64,
    frames_per_second: f64,
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut numbers = words.iter().filter_map(|word| word.parse().ok());
    let seconds = numbers.next().unwrap_or(4);
    let rounds = numbers.next().unwrap_or(3);
    hide_logs();
    println!("path    frames       port    tunnel Gbit/s   flood frames/s");
    let paths = ["xdp", "socket"];
    let named = |path: &&str| words.iter().any(|word| word == path);
    let all = !paths.iter().any(named);
    for path in paths.into_iter().filter(|path| all || named(path)) {
        let pair = pair(path)?;
        let kinds = [
            ("junk", Junk::ALL.map(Junk::payload).into()),
            ("initiations", initiations(&pair)?),
        ];
        for (kind, payloads) in kinds {
            let mut samples = [const { Vec::new() }; 2];
            for _ in 0..rounds {
                for (samples, (name, port)) in
                    samples.iter_mut().zip([("closed", CLOSED), ("ours", PORT)])
                {
                    let sample = sample(&pair, port, &payloads, seconds)?;
                    println!(
                        "{path:7} {kind:12} {name:7} {:13.3} {:16.0}",
                        sample.bits_per_second / 1e9,
                        sample.frames_per_second
                    );
                    samples.push(sample.bits_per_second);
                }
            }
            let [closed, ours] = samples.map(median);
            println!(
                "{path:7} {kind:12} for our port / beside a closed one: {:.2}",
                ours / closed
            );
        }
    }
    Ok(())
}

/// Initiations of strangers for the right site.
fn initiations(pair: &Pair) -> Result<Vec<Vec<u8>>> {
    let key = base64::engine::general_purpose::STANDARD.decode(&pair.right.keys.public)?;
    let key = *key.first_chunk().context("a key of 32 bytes")?;
    Initiators::new(&Namespace::new()?, key, target(pair, PORT)?, STRANGERS)?.initiations()
}

fn target(pair: &Pair, port: u16) -> Result<SocketAddrV4> {
    match pair.right.outer(Family::V4) {
        IpAddr::V4(address) => Ok(SocketAddrV4::new(address, port)),
        IpAddr::V6(_) => anyhow::bail!("no IPv4 address"),
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Two sites whose daemons receive by `path`.
fn pair(path: &str) -> Result<Pair> {
    let options = Options {
        environment: [("ADIT_DATAPATH", path), ("LOG_LEVEL", "error")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..Options::default()
    };
    let pair = Pair::connected(&PairOptions {
        left: options.clone(),
        right: options,
        ..PairOptions::default()
    })?;
    let expected = ("adit_datapath".to_owned(), path.to_owned());
    wait_until("the path is taken", Duration::from_secs(20), || {
        uapi::request(pair.right.interface(), "get=1").is_ok_and(|told| told.contains(&expected))
    })?;
    Ok(pair)
}

/// One TCP stream into the site whose `port` is flooded.
fn sample(pair: &Pair, port: u16, payloads: &[Vec<u8>], seconds: u32) -> Result<Sample> {
    let (left, right) = (&pair.left.namespace, &pair.right.namespace);
    let flood = Flood::of(payloads, left, right, WAN, target(pair, port)?)?;
    let run = Run {
        client: left,
        server: right,
        to: pair.right.inner(Family::V4),
        amount: Amount::Seconds(seconds),
        options: &[],
    };
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let start = Instant::now();
        let sender = scope.spawn(|| flood.run(&running, u64::MAX));
        let report = run.run();
        running.store(false, Ordering::Relaxed);
        let sent = sender.join().ok().context("the flood failed")??;
        let frames = sent as f64 * f64::from(SOURCES) * payloads.len() as f64;
        Ok(Sample {
            bits_per_second: report?.bits_per_second,
            frames_per_second: frames / start.elapsed().as_secs_f64(),
        })
    })
}
