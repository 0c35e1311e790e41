//! A veth pair between two namespaces, with programs and receivers on one end.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use adit_kernel::bpf::{Direction, Flow, Listener, LoadOptions, Steering};
use adit_kernel::netlink::link_by_name;
use adit_kernel::netns::NetworkNamespace;
use adit_kernel::udp::{Outcome, Outgoing, SendBatch, UdpOptions, UdpSockets};
use adit_kernel::xsk::{FrameSize, Receiver, ReceiverOptions, Umem};

use crate::common::{PATIENCE, ip, namespace, path, patiently};
use crate::packets::data;

pub const PORT: u16 = 51820;
pub const LIVE: u32 = 0x0102_0304;
pub const FRAMES: u32 = 256;

/// Two namespaces and a veth pair: `under0` here, `peer0` there.
pub struct Wire {
    pub host: NetworkNamespace,
    pub peer: NetworkNamespace,
}

impl Wire {
    pub fn new(queues: u32) -> Self {
        let wire = Self {
            host: namespace(),
            peer: namespace(),
        };
        wire.host
            .run_in(|| {
                ip(&format!(
                    "link add under0 numrxqueues {queues} numtxqueues {queues} type veth \
                     peer name peer0 numrxqueues {queues} numtxqueues {queues}"
                ));
                ip(&format!("link set peer0 netns {}", path(&wire.peer)));
                ip("addr add 10.7.0.2/24 dev under0");
                ip("addr add fd07::2/64 dev under0 nodad");
                ip("link set under0 up");
            })
            .unwrap();
        wire.peer
            .run_in(|| {
                ip("addr add 10.7.0.1/24 dev peer0");
                ip("addr add fd07::1/64 dev peer0 nodad");
                ip("link set peer0 up");
            })
            .unwrap();
        wire
    }

    /// Runs `work` on this side.
    pub fn here<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.host.run_in(work).unwrap()
    }

    /// Sends messages from the peer's port `port`, one by one.
    pub fn send(&self, port: u16, messages: &[Vec<u8>]) {
        self.send_to("10.7.0.1", port, "10.7.0.2", messages);
    }

    pub fn send_to(&self, from: &str, port: u16, to: &str, messages: &[Vec<u8>]) {
        self.peer
            .run_in(|| {
                let from = SocketAddr::new(from.parse().unwrap(), port);
                let socket = patiently(|| UdpSocket::bind(from));
                for message in messages {
                    socket
                        .send_to(message, SocketAddr::new(to.parse().unwrap(), PORT))
                        .unwrap();
                }
            })
            .unwrap();
    }

    /// Sends messages of one size from the peer as GSO super-packets.
    pub fn send_gso(&self, port: u16, messages: &[Vec<u8>]) {
        self.peer
            .run_in(|| gso(port, "10.7.0.2:51820", messages))
            .unwrap();
    }
}

/// Sends messages of one size as GSO super-packets from the calling thread's namespace.
pub fn gso(port: u16, to: &str, messages: &[Vec<u8>]) {
    let sockets = patiently(|| UdpSockets::bind(port, &UdpOptions::default()));
    let to = to.parse().unwrap();
    let all = messages.concat();
    let mut outgoing = [Outgoing {
        to,
        source: None,
        ecn: 0,
        probe: false,
        segment_size: messages[0].len(),
        data: &all,
        outcome: Outcome::default(),
    }];
    let report = SendBatch::new().send(sockets.for_address(&to).unwrap(), &mut outgoing);
    assert_eq!(report.datagrams, messages.len() as u64);
    assert!(report.gso_sends > 0);
}

pub fn ifindex() -> u32 {
    link_by_name("under0").unwrap().unwrap().index
}

/// Programs for both addresses of `under0`, one live index, and a receiver per queue; not yet attached.
pub fn prepare(queues: u32, generic: bool) -> (Steering, Vec<Receiver>) {
    let ifindex = ifindex();
    let mut steering = Steering::load(&LoadOptions::default()).unwrap();
    let listener = |address: &str| Listener {
        address: address.parse().unwrap(),
        port: PORT,
        ifindex: Some(ifindex),
    };
    steering
        .set_listeners(["10.7.0.2", "fd07::2"].map(listener))
        .unwrap();
    for address in ["10.7.0.2", "fd07::2"] {
        steering.hear(address.parse().unwrap(), PORT).unwrap();
    }
    steering.sessions().unwrap().insert(LIVE, 1).unwrap();
    let umem = Umem::new(FRAMES * queues, FrameSize::for_mtu(1500)).unwrap();
    let options = |queue| ReceiverOptions {
        ifindex,
        queue,
        frames: queue * FRAMES..(queue + 1) * FRAMES,
        generic,
    };
    let mut receivers = vec![Receiver::open(&umem, options(0)).unwrap()];
    for queue in 1..queues {
        let receiver = receivers[0].open_shared(options(queue)).unwrap();
        receivers.push(receiver);
    }
    steering
        .add_device(ifindex, queues, umem.frame_size().capacity())
        .unwrap();
    for (queue, receiver) in (0..).zip(&receivers) {
        steering
            .set_socket(ifindex, queue, receiver.as_fd())
            .unwrap();
    }
    steering.set_steering(true).unwrap();
    (steering, receivers)
}

/// A datagram as it was received.
#[derive(Debug)]
pub struct Datagram {
    pub from: SocketAddr,
    pub local: std::net::IpAddr,
    pub ecn: u8,
    pub data: Vec<u8>,
}

/// Takes datagrams, glued ones apart, until there are `count`.
pub fn collect(receiver: &mut Receiver, count: usize) -> Vec<Datagram> {
    let deadline = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    while all.len() < count && Instant::now() < deadline {
        let received = receiver.receive(|frames| {
            for frame in frames {
                let segments = frame.data.chunks(frame.segment_size.max(1));
                all.extend(segments.map(|segment| Datagram {
                    from: frame.from,
                    local: frame.local,
                    ecn: frame.ecn,
                    data: segment.to_vec(),
                }));
            }
        });
        if received.is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    all
}

pub fn messages(count: u64, length: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|counter| data(LIVE, counter, length))
        .collect()
}

pub fn ingress(flows: &[Flow]) -> (u64, u64) {
    total(flows, Direction::Ingress)
}

pub fn total(flows: &[Flow], direction: Direction) -> (u64, u64) {
    flows
        .iter()
        .filter(|flow| flow.direction == direction)
        .fold((0, 0), |(packets, bytes), flow| {
            (packets + flow.packets, bytes + flow.bytes)
        })
}

/// A UDP socket of the host's, as the daemon has one beside AF_XDP.
pub fn host_socket() -> UdpSocket {
    let socket = patiently(|| UdpSocket::bind(("0.0.0.0", PORT)));
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Datagrams that reach the socket, until there are `count`.
pub fn socket_receives(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 65_536];
    (0..count)
        .map(|_| {
            let length = socket.recv(&mut buffer).unwrap();
            buffer[..length].to_vec()
        })
        .collect()
}

pub fn bpftool(arguments: &[&str]) -> String {
    let output = Command::new("bpftool").args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "bpftool {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
