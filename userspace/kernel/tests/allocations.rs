//! The calls a data thread makes allocate nothing, whatever the kernel answers. Needs root.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use adit_kernel::alloc::{CountingAllocator, allocations_on_this_thread};
use adit_kernel::clock::boottime_ns;
use adit_kernel::event::EventFd;
use adit_kernel::poll::{Interest, PollFd, poll};
use adit_kernel::tun::{Tun, TunOptions, VNET_HEADER_LENGTH};
use adit_kernel::udp::{Outcome, Outgoing, RecvBatch, SendBatch, UdpOptions, UdpSockets};
use common::{ip, namespace};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Allocations made by `work`.
fn count(work: impl FnOnce()) -> u64 {
    let before = allocations_on_this_thread();
    work();
    allocations_on_this_thread() - before
}

#[test]
fn sending_and_receiving_allocate_nothing() {
    namespace()
        .run_in(|| {
            let options = UdpOptions::default();
            let sockets = UdpSockets::bind(0, &options).unwrap();
            let socket = sockets.v4.as_ref().unwrap();
            let (mut sending, mut receiving) = (SendBatch::new(), RecvBatch::new(64));
            let data = vec![9; 20_000];
            let good = SocketAddr::from((Ipv4Addr::LOCALHOST, sockets.port()));
            let unreachable = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9));
            let stale: IpAddr = Ipv4Addr::new(192, 0, 2, 2).into();
            let wrong_family = "[::1]:9".parse().unwrap();
            let allocations = count(|| {
                for round in 0..50 {
                    let message = |to, source| Outgoing {
                        to,
                        source,
                        ecn: 1,
                        probe: false,
                        segment_size: 1000 + round,
                        data: &data,
                        outcome: Outcome::Pending,
                    };
                    let mut messages = [
                        message(good, None),
                        message(unreachable, None),
                        message(good, Some((stale, 1))),
                        message(wrong_family, None),
                    ];
                    let report = sending.send(socket, &mut messages);
                    assert!(report.datagrams > 0 && report.dropped() > 0);
                    assert_eq!(messages[2].outcome, Outcome::SentAfterForgettingSource);
                    while receiving.recv(socket).is_ok() {
                        assert!(receiving.messages().all(|message| message.ecn == 1));
                    }
                }
            });
            assert_eq!(allocations, 0);
        })
        .unwrap();
}

#[test]
fn a_tun_device_and_waiting_allocate_nothing() {
    namespace()
        .run_in(|| {
            let tun = Tun::create("adit0", &TunOptions::default()).unwrap();
            ip("link set adit0 up");
            let event = EventFd::new().unwrap();
            let packet = [0_u8; VNET_HEADER_LENGTH + 60];
            let mut buffer = vec![0; 70_000];
            let allocations = count(|| {
                for _ in 0..100 {
                    event.signal();
                    let mut fds = [
                        PollFd::new(tun.as_fd(), Interest::Read),
                        PollFd::new(event.as_fd(), Interest::Read),
                    ];
                    assert!(poll(&mut fds, Some(Duration::from_millis(1))).unwrap() > 0);
                    assert!(event.clear());
                    // Not a packet of any IP version: refused, without harm.
                    let (header, body) = packet.split_at(VNET_HEADER_LENGTH);
                    let _ = tun.write_vectored(&[IoSlice::new(header), IoSlice::new(body)]);
                    while tun.read(&mut buffer).is_ok() {}
                    assert!(boottime_ns() > 0);
                }
            });
            assert_eq!(allocations, 0);
        })
        .unwrap();
}
