//! What the eBPF programs cost per packet, in nanoseconds, with everything they read in the cache. Needs root.
//!
//! `cargo bench -p adit-kernel --bench xdp_cost [-- NAME]`. The least of several rounds counts: on a shared machine the others were disturbed.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]
#![allow(clippy::print_stdout, reason = "its result")]

#[path = "../tests/bench/mod.rs"]
mod bench;
#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/packets/mod.rs"]
mod packets;

use adit_kernel::bpf::{EventLevel, Hook};
use bench::{Bench, HOST, LIVE, PEER, changed, good, good6, isolated, payload};
use packets::{Datagram, data, handshake};

const RUNS: u32 = 200_000;
const ROUNDS: usize = 15;

fn main() {
    let reply = Datagram::new(HOST, PEER, data(LIVE, 1, 1424)).frame();
    let cases: [(&str, Hook, Vec<u8>); 9] = [
        ("steered, IPv4", Hook::Xdp, good(1424).frame()),
        ("steered, IPv6", Hook::Xdp, good6(1424).frame()),
        ("another port", Hook::Xdp, changed(|d| d.to.set_port(9))),
        (
            "another host",
            Hook::Xdp,
            Datagram::new(PEER, "198.51.100.3:51820", data(LIVE, 1, 80)).frame(),
        ),
        ("handshake", Hook::Xdp, payload(handshake(1, 148))),
        (
            "dropped, dead index",
            Hook::Xdp,
            payload(data(LIVE + 1, 1, 80)),
        ),
        (
            "dropped, unknown type",
            Hook::Xdp,
            payload(handshake(9, 80)),
        ),
        ("counted, in", Hook::TcIngress, good(1424).frame()),
        ("counted, out", Hook::TcEgress, reply),
    ];
    // Cargo adds `--bench`.
    let wanted = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    isolated(move || {
        let mut bench = Bench::new(EventLevel::Off);
        for (name, hook, frame) in cases {
            if wanted.as_ref().is_some_and(|wanted| !name.contains(wanted)) {
                continue;
            }
            let times = (0..ROUNDS).map(|_| bench.steering.time_frame(hook, &frame, RUNS).unwrap());
            println!("{name:24} {:4} ns", times.min().unwrap().as_nanos());
        }
    });
}
