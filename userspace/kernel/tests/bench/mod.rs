//! A bench for single frames: loaded programs, nothing attached, `BPF_PROG_TEST_RUN`.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use adit_kernel::bpf::{EventLevel, Flow, Hook, Listener, LoadOptions, Steering};
use adit_kernel::xsk::{FrameSize, Receiver, ReceiverOptions, Umem};

use crate::common;
use crate::packets::{Datagram, data, fix_ipv4};

/// XDP verdicts, `enum xdp_action` of `linux/bpf.h`.
pub const DROP: u32 = 1;
pub const PASS: u32 = 2;
pub const REDIRECT: u32 = 4;
/// `TC_ACT_UNSPEC`: on to the next program.
pub const UNSPEC: u32 = u32::MAX;

pub const PORT: u16 = 51820;
pub const LIVE: u32 = 0x8899_aabb;
/// `BPF_PROG_TEST_RUN` says that frames come from here.
pub const LOOPBACK: u32 = 1;

pub const PEER: &str = "192.0.2.1:7000";
pub const HOST: &str = "198.51.100.2:51820";
pub const PEER6: &str = "[2001:db8::1]:7000";
pub const HOST6: &str = "[2001:db8::2]:51820";

/// Programs that listen on [`HOST`] and [`HOST6`] with one live index, and a socket on queue 0 of the loopback interface.
pub struct Bench {
    pub steering: Steering,
    /// Its slot is emptied when it is closed.
    pub receiver: Receiver,
}

impl Bench {
    pub fn new(events: EventLevel) -> Self {
        let mut steering = Steering::load(&LoadOptions {
            max_flows: 1024,
            events,
            ..LoadOptions::default()
        })
        .expect("the verifier accepts the programs");
        steering
            .set_listeners(["198.51.100.2", "2001:db8::2"].map(listener))
            .unwrap();
        for host in [HOST, HOST6] {
            let host: SocketAddr = host.parse().unwrap();
            steering.hear(host.ip(), host.port()).unwrap();
        }
        steering.sessions().unwrap().insert(LIVE, 3).unwrap();
        let umem = Umem::new(64, FrameSize::Bytes2048).unwrap();
        let receiver = Receiver::open(
            &umem,
            ReceiverOptions {
                ifindex: LOOPBACK,
                queue: 0,
                frames: 0..64,
                generic: true,
            },
        )
        .unwrap();
        let capacity = umem.frame_size().capacity();
        steering.add_device(LOOPBACK, 1, capacity).unwrap();
        steering.set_socket(LOOPBACK, 0, receiver.as_fd()).unwrap();
        steering.set_steering(true).unwrap();
        Self { steering, receiver }
    }

    pub fn xdp(&mut self, frame: &[u8]) -> u32 {
        self.steering.try_frame(Hook::Xdp, frame).unwrap()
    }

    pub fn drops(&self) -> [u64; 6] {
        self.steering.drops().unwrap().map(|count| count.packets)
    }

    pub fn flows(&self) -> Vec<Flow> {
        self.steering.flows().unwrap()
    }
}

pub fn listener(address: &str) -> Listener {
    Listener {
        address: address.parse::<IpAddr>().unwrap(),
        port: PORT,
        ifindex: None,
    }
}

/// Runs `work` in a namespace of its own.
pub fn isolated<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    common::namespace().run_in(work).unwrap()
}

pub fn good(length: usize) -> Datagram {
    Datagram::new(PEER, HOST, data(LIVE, 1, length))
}

pub fn good6(length: usize) -> Datagram {
    Datagram::new(PEER6, HOST6, data(LIVE, 1, length))
}

/// `good` with one thing changed.
pub fn changed(change: impl FnOnce(&mut Datagram)) -> Vec<u8> {
    let mut datagram = good(80);
    change(&mut datagram);
    datagram.frame()
}

/// [`good`]'s frame with bytes overwritten and the header checksum made right again.
pub fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = good(80).frame();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    fix_ipv4(frame)
}

/// [`good6`]'s frame with bytes overwritten.
pub fn patched6(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = good6(80).frame();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

pub fn payload(payload: Vec<u8>) -> Vec<u8> {
    Datagram::new(PEER, HOST, payload).frame()
}

pub fn from(address: &str) -> Vec<u8> {
    Datagram::new(address, HOST, data(LIVE, 1, 80)).frame()
}

pub fn from6(address: &str) -> Vec<u8> {
    Datagram::new(address, HOST6, data(LIVE, 1, 80)).frame()
}

pub fn padded(length: usize) -> Vec<u8> {
    let mut frame = good(32).frame();
    frame.resize(length, 0);
    frame
}
