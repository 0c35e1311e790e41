//! Reads from a TUN device: plain ones against io_uring's. Needs root.
//!
//! `cargo bench -p adit-kernel --bench tun_reads`. In turn, medians: nanoseconds of the reading thread's processor time per
//! packet, and for packets that come one at a time the time until the thread has it.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]
#![allow(clippy::print_stdout, reason = "its result")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use adit_kernel::epoll::ReadSet;
use adit_kernel::tun::{Tun, TunOptions};
use common::{ip, namespace};
use io_uring::{IoUring, opcode, types};

/// Packets that wait in the device when it is drained; fewer than its queue holds.
const WAITING: usize = 256;
/// Reads that one `io_uring_enter` submits.
const BATCH: usize = 32;
const ROUNDS: usize = 200;
const SINGLES: usize = 3_000;
const LONGEST: usize = 2048;

/// A way to read.
trait Reads {
    /// Everything that is there; the number of packets.
    fn drain(&mut self, tun: &Tun) -> usize;
    /// Waits for a packet and reads it.
    fn next(&mut self, tun: &Tun);
}

struct Plain {
    buffer: Box<[u8]>,
    set: ReadSet,
}

impl Plain {
    fn new(tun: &Tun) -> Self {
        let set = ReadSet::new().unwrap();
        set.add(tun.as_fd(), 0).unwrap();
        Self {
            buffer: vec![0; LONGEST].into(),
            set,
        }
    }
}

impl Reads for Plain {
    fn drain(&mut self, tun: &Tun) -> usize {
        std::iter::from_fn(|| tun.read(&mut self.buffer).ok()).count()
    }

    fn next(&mut self, tun: &Tun) {
        let ready = self.set.wait(None).unwrap();
        assert_eq!(ready.count(), 1);
        tun.read(&mut self.buffer).unwrap();
    }
}

struct Uring {
    ring: IoUring,
    buffers: Vec<Box<[u8]>>,
}

impl Uring {
    fn new(tun: &Tun) -> Self {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(64)
            .unwrap();
        let submitter = ring.submitter();
        submitter
            .register_files(&[tun.as_fd().as_raw_fd()])
            .unwrap();
        Self {
            ring,
            buffers: vec![vec![0; LONGEST].into(); BATCH],
        }
    }

    /// Submits `count` reads, waits for all of them, and says how many brought a packet.
    fn read(&mut self, count: usize, flags: i32) -> usize {
        for buffer in &mut self.buffers[..count] {
            let length = u32::try_from(buffer.len()).unwrap();
            let read = opcode::Read::new(types::Fixed(0), buffer.as_mut_ptr(), length)
                .rw_flags(flags)
                .build();
            // SAFETY: the buffers live as long as the ring, and each is read into by one entry, which is waited for below.
            unsafe { self.ring.submission().push(&read).unwrap() };
        }
        self.ring.submit_and_wait(count).unwrap();
        let completions = self.ring.completion();
        completions.filter(|entry| entry.result() > 0).count()
    }
}

impl Reads for Uring {
    fn drain(&mut self, _: &Tun) -> usize {
        let mut packets = 0;
        loop {
            let read = self.read(BATCH, libc::RWF_NOWAIT);
            packets += read;
            if read < BATCH {
                return packets;
            }
        }
    }

    fn next(&mut self, _: &Tun) {
        assert_eq!(self.read(1, 0), 1);
    }
}

/// Processor time of this thread.
fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live `timespec`.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap(),
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn per(time: Duration, count: usize) -> f64 {
    time.as_secs_f64() * 1e9 / count as f64
}

/// Nanoseconds per packet of a full queue.
fn drained(reads: &mut dyn Reads, tun: &Tun, sender: &UdpSocket, payload: &[u8]) -> f64 {
    for _ in 0..WAITING {
        sender.send(payload).unwrap();
    }
    let before = thread_time();
    let count = reads.drain(tun);
    let time = thread_time() - before;
    assert_eq!(count, WAITING);
    per(time, count)
}

/// Processor time and latency of packets that come one at a time, in nanoseconds.
fn singles(
    reads: &mut dyn Reads,
    tun: &Tun,
    go: &Sender<()>,
    sent: &Receiver<Instant>,
) -> (f64, f64) {
    let mut latencies = Vec::with_capacity(SINGLES);
    let before = thread_time();
    for _ in 0..SINGLES {
        go.send(()).unwrap();
        reads.next(tun);
        let now = Instant::now();
        latencies.push(per(now - sent.recv().unwrap(), 1));
    }
    (per(thread_time() - before, SINGLES), median(latencies))
}

fn main() {
    let namespace = namespace();
    namespace
        .run_in(|| {
            let tun = Tun::create("bench0", &TunOptions::default()).unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/bench0/disable_ipv6", "1").unwrap();
            ip("address add 10.9.0.1/24 dev bench0");
            ip("link set bench0 up");
            let sender = UdpSocket::bind((Ipv4Addr::new(10, 9, 0, 1), 0)).unwrap();
            sender.connect((Ipv4Addr::new(10, 9, 0, 2), 9)).unwrap();
            let mut ways: [(&str, Box<dyn Reads>); 2] = [
                ("read(2)", Box::new(Plain::new(&tun))),
                ("io_uring", Box::new(Uring::new(&tun))),
            ];
            for payload in [vec![0; 36], vec![0; 1300]] {
                let mut times = [const { Vec::new() }; 2];
                for _ in 0..ROUNDS {
                    for ((_, way), times) in ways.iter_mut().zip(&mut times) {
                        times.push(drained(way.as_mut(), &tun, &sender, &payload));
                    }
                }
                for ((name, _), times) in ways.iter().zip(times) {
                    let length = payload.len() + 28;
                    println!("{name:9} {length:5}-byte packets that wait {:5.0} ns each", median(times));
                }
            }
            let (go, wanted) = channel();
            let (tell, sent) = channel();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    while wanted.recv().is_ok() {
                        // The reader sleeps by then.
                        std::thread::sleep(Duration::from_micros(60));
                        let now = Instant::now();
                        sender.send(&[0; 36]).unwrap();
                        tell.send(now).unwrap();
                    }
                });
                let mut results = [const { Vec::new() }; 2];
                for _ in 0..7 {
                    for ((_, way), results) in ways.iter_mut().zip(&mut results) {
                        results.push(singles(way.as_mut(), &tun, &go, &sent));
                    }
                }
                drop(go);
                for ((name, _), results) in ways.iter().zip(results) {
                    let (times, latencies): (Vec<_>, Vec<_>) = results.into_iter().unzip();
                    println!(
                        "{name:9} packets one at a time {:5.0} ns each, read {:6.0} ns after they were sent",
                        median(times),
                        median(latencies)
                    );
                }
            });
        })
        .unwrap();
}
