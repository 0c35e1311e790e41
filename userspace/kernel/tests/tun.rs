//! TUN devices, each test in a namespace of its own. Needs root.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use adit_kernel::poll::{Interest, PollFd, poll};
use adit_kernel::tun::{Tun, TunError, TunOffloads, TunOptions, VNET_HEADER_LENGTH};
use adit_kernel::udp::{Outcome, Outgoing, RecvBatch, SendBatch, UdpOptions, UdpSockets};
use common::{PATIENCE, ip, ip_output, namespace, path, wait};

const VIRTIO_GSO_NONE: u8 = 0;
const VIRTIO_GSO_UDP_L4: u8 = 5;

fn create(name: &str) -> Tun {
    Tun::create(name, &TunOptions::default()).expect("a TUN device")
}

/// A device that is up, with 10.9.0.1/24 and without the kernel's own IPv6 chatter.
fn raise(tun: &Tun) {
    let name = tun.name();
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1").unwrap();
    ip(&format!("address add 10.9.0.1/24 dev {name}"));
    ip(&format!("link set {name} up"));
}

/// Sends `count` datagrams of 500 bytes to the other end, as one message.
fn send(sockets: &UdpSockets, count: usize) {
    let data = vec![7; 500 * count];
    let to = SocketAddr::from((Ipv4Addr::new(10, 9, 0, 2), 9));
    let mut messages = [Outgoing {
        to,
        source: None,
        ecn: 0,
        probe: false,
        segment_size: 500,
        data: &data,
        outcome: Outcome::Pending,
    }];
    SendBatch::new().send(sockets.v4.as_ref().unwrap(), &mut messages);
    assert_eq!(messages[0].outcome, Outcome::Sent);
}

/// All packets that wait to be read.
fn read_all(tun: &Tun) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut buffer = vec![0; VNET_HEADER_LENGTH + 65_535];
    loop {
        match tun.read(&mut buffer) {
            Ok(length) => packets.push(buffer[..length].to_vec()),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                return packets;
            }
        }
    }
}

#[test]
fn a_new_device_has_offloads_and_a_long_queue() {
    namespace()
        .run_in(|| {
            let tun = create("adit0");
            assert!(tun.has_vnet_header());
            let offloads = tun.offloads();
            assert!(
                offloads.checksum && offloads.tso4 && offloads.tso6,
                "{offloads:?}"
            );
            assert_eq!(tun.name(), "adit0");
            assert_eq!(tun.current_name().unwrap(), "adit0");
            assert!(tun.attached());
            assert!(!tun.is_up().unwrap());
            assert_eq!(tun.mtu().unwrap(), 1500);
            tun.set_mtu(1280).unwrap();
            assert_eq!(tun.mtu().unwrap(), 1280);
            assert_eq!(
                tun.set_mtu(10).unwrap_err().raw_os_error(),
                Some(libc::EINVAL)
            );
            assert!(ip_output("link show adit0").contains("qlen 1000"));
            ip("link set adit0 up");
            assert!(tun.is_up().unwrap());
            drop(tun);
            // A child that another test is just starting holds every descriptor until it executes.
            let start = std::time::Instant::now();
            while adit_kernel::netlink::link_by_name("adit0")
                .unwrap()
                .is_some()
            {
                assert!(
                    start.elapsed() < PATIENCE,
                    "the device outlives its last queue"
                );
                std::thread::yield_now();
            }
        })
        .unwrap();
}

#[test]
fn a_taken_name_tells_by_what() {
    namespace()
        .run_in(|| {
            let _first = create("adit0");
            ip("link add adit1 type veth peer name adit2");
            for (name, kind) in [
                ("adit0", "tun"),
                ("adit1", "veth"),
                ("lo", "a network interface"),
            ] {
                let error = Tun::create(name, &TunOptions::default()).unwrap_err();
                let TunError::NameTaken { by, .. } = &error else {
                    panic!("{error:?}")
                };
                assert_eq!(by, kind);
                assert!(error.to_string().contains(name));
            }
        })
        .unwrap();
}

/// Runs itself again as somebody without rights.
#[test]
fn missing_rights_are_told() {
    const MARKER: &str = "ADIT_TEST_WITHOUT_RIGHTS";
    if std::env::var_os(MARKER).is_some() {
        let error = Tun::create("adit0", &TunOptions::default()).unwrap_err();
        assert!(matches!(error, TunError::Permission { .. }), "{error:?}");
        assert!(error.to_string().contains("CAP_NET_ADMIN"));
        return;
    }
    let _ = namespace();
    // Through a descriptor, since nobody may not be allowed to walk to the file.
    let program = File::open(std::env::current_exe().unwrap()).unwrap();
    let mut command = Command::new("/bin/sh");
    let fd = program.into();
    let number = adit_kernel::process::pass_to_child(&mut command, &fd).unwrap();
    let run = format!("exec /proc/self/fd/{number} --exact missing_rights_are_told");
    let output = command
        .args(["-c", &run])
        .env(MARKER, "1")
        .uid(65_534)
        .gid(65_534)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

/// wireguard-go bug (j): no switch for the virtio header.
#[test]
fn without_offload_packets_are_bare() {
    namespace()
        .run_in(|| {
            let options = TunOptions {
                offload: false,
                ..TunOptions::default()
            };
            let tun = Tun::create("adit0", &options).unwrap();
            assert!(!tun.has_vnet_header());
            assert_eq!(tun.offloads(), TunOffloads::NONE);
            assert!(tun.set_offloads(TunOffloads::ALL).is_err());
            assert!(tun.probe_gro_write().is_err());
            raise(&tun);
            send(&UdpSockets::bind(0, &UdpOptions::default()).unwrap(), 3);
            let packets = read_all(&tun);
            assert_eq!(packets.iter().map(Vec::len).collect::<Vec<_>>(), [528; 3]);
            assert!(packets.iter().all(|packet| packet[0] == 0x45));
        })
        .unwrap();
}

#[test]
fn the_probe_needs_the_device_up_and_leaves_it_usable() {
    namespace()
        .run_in(|| {
            let tun = create("adit0");
            assert_eq!(
                tun.probe_gro_write().unwrap_err().raw_os_error(),
                Some(libc::EIO)
            );
            raise(&tun);
            assert!(tun.probe_gro_write().unwrap());
            assert!(tun.probe_udp_gro_write().unwrap() || !tun.offloads().uso4);
            assert_eq!(read_all(&tun).len(), 0, "nobody answered");
        })
        .unwrap();
}

#[test]
fn a_packet_goes_out_and_its_echo_comes_in() {
    namespace()
        .run_in(|| {
            let tun = create("adit0");
            raise(&tun);
            let sockets = UdpSockets::bind(0, &UdpOptions::default()).unwrap();
            send(&sockets, 1);
            assert!(wait(tun.as_fd()));
            let mut packet = read_all(&tun).pop().unwrap();
            let ip = &mut packet[VNET_HEADER_LENGTH..];
            let (source, destination) = ip[12..20].split_at_mut(4);
            source.swap_with_slice(destination);
            let (source, destination) = ip[20..24].split_at_mut(2);
            source.swap_with_slice(destination);
            let (header, body) = packet.split_at(VNET_HEADER_LENGTH);
            let written = tun
                .write_vectored(&[IoSlice::new(header), IoSlice::new(body)])
                .unwrap();
            assert_eq!(written, packet.len());

            let socket = sockets.v4.as_ref().unwrap();
            assert!(wait(socket.as_fd()));
            let mut batch = RecvBatch::new(1);
            batch.recv(socket).unwrap();
            let echo = batch.messages().next().unwrap();
            assert_eq!(echo.from, SocketAddr::from((Ipv4Addr::new(10, 9, 0, 2), 9)));
            assert_eq!(&*echo.data, &[7; 500][..]);
        })
        .unwrap();
}

#[test]
fn offloads_can_be_switched_at_run_time() {
    namespace()
        .run_in(|| {
            let tun = create("adit0");
            raise(&tun);
            let sockets = UdpSockets::bind(0, &UdpOptions::default()).unwrap();
            if tun.offloads().uso4 {
                send(&sockets, 4);
                let packets = read_all(&tun);
                assert_eq!(packets.len(), 1);
                assert_eq!(packets[0][1], VIRTIO_GSO_UDP_L4);
            }
            tun.set_offloads(TunOffloads::NONE).unwrap();
            assert_eq!(tun.offloads(), TunOffloads::NONE);
            send(&sockets, 4);
            let packets = read_all(&tun);
            assert_eq!(packets.len(), 4);
            assert!(
                packets
                    .iter()
                    .all(|packet| packet[..2] == [0, VIRTIO_GSO_NONE])
            );
        })
        .unwrap();
}

/// Adding a TUN queue resets the offloads of the whole device.
#[test]
fn another_queue_leaves_the_offloads_alone() {
    namespace()
        .run_in(|| {
            let options = TunOptions {
                multi_queue: true,
                ..TunOptions::default()
            };
            let first = Tun::create("adit0", &options).unwrap();
            let second = first.open_queue().unwrap();
            assert_eq!(second.offloads(), first.offloads());
            assert!(second.has_vnet_header());
            raise(&first);
            send(&UdpSockets::bind(0, &UdpOptions::default()).unwrap(), 4);
            let packets: Vec<_> = [&first, &second].into_iter().flat_map(read_all).collect();
            assert_eq!(packets.len(), if first.offloads().uso4 { 1 } else { 4 });
            let single = create("adit1");
            assert!(single.open_queue().is_err());
        })
        .unwrap();
}

/// `WG_TUN_FD`.
#[test]
fn an_inherited_queue_is_taken_over() {
    namespace()
        .run_in(|| {
            for offload in [true, false] {
                let options = TunOptions {
                    offload,
                    ..TunOptions::default()
                };
                let name = if offload { "adit0" } else { "adit1" };
                let original = Tun::create(name, &options).unwrap();
                let fd = original.as_fd().try_clone_to_owned().unwrap();
                drop(original);
                let tun = Tun::from_fd(fd, &TunOptions::default()).unwrap();
                assert_eq!((tun.name(), tun.has_vnet_header()), (name, offload));
                assert_eq!(tun.offloads() == TunOffloads::NONE, !offload);
                assert_eq!(
                    tun.read(&mut [0; 100]).unwrap_err().kind(),
                    io::ErrorKind::WouldBlock
                );
            }
            let unattached = File::options()
                .read(true)
                .write(true)
                .open("/dev/net/tun")
                .unwrap();
            let error = Tun::from_fd(unattached.into(), &TunOptions::default()).unwrap_err();
            assert!(matches!(error, TunError::NotTun { .. }), "{error:?}");
        })
        .unwrap();
}

/// wireguard-go 99e8b4b: the device is deleted from outside.
#[test]
fn a_deleted_device_fails_instead_of_blocking() {
    namespace()
        .run_in(|| {
            let tun = create("adit0");
            raise(&tun);
            read_all(&tun);
            ip("link delete adit0");
            assert!(!tun.attached());
            let mut fds = [PollFd::new(tun.as_fd(), Interest::Read)];
            assert_eq!(poll(&mut fds, Some(Duration::ZERO)).unwrap(), 1);
            assert!(fds[0].failed() && fds[0].readable());
            let gone = Some(libc::EBADFD);
            assert_eq!(tun.read(&mut [0; 100]).unwrap_err().raw_os_error(), gone);
            let packet = [IoSlice::new(&[0; 40])];
            assert_eq!(
                tun.write_vectored(&packet).unwrap_err().raw_os_error(),
                gone
            );
            assert_eq!(tun.mtu().unwrap_err().raw_os_error(), gone);
        })
        .unwrap();
}

#[test]
fn a_renamed_and_moved_device_is_still_found() {
    let (home, away) = (namespace(), namespace());
    home.run_in(|| {
        let tun = create("adit0");
        ip("link set adit0 name other0");
        assert_eq!(tun.current_name().unwrap(), "other0");
        assert_eq!(tun.name(), "adit0");
        assert_eq!(tun.mtu().unwrap(), 1500);

        ip(&format!("link set other0 netns {}", path(&away)));
        assert!(tun.attached());
        assert_eq!(tun.namespace().unwrap().id().unwrap(), away.id().unwrap());
        tun.set_mtu(1400).unwrap();
        assert_eq!(tun.mtu().unwrap(), 1400);
        assert!(!tun.is_up().unwrap());
        away.run_in(|| ip("link set other0 up")).unwrap();
        assert!(tun.is_up().unwrap());
        let index = away
            .run_in(|| adit_kernel::netlink::link_by_name("other0"))
            .unwrap();
        assert_eq!(tun.index().unwrap(), index.unwrap().unwrap().index);
    })
    .unwrap();
}

#[test]
fn a_device_gets_as_many_queues_as_it_was_made_for() {
    namespace()
        .run_in(|| {
            let options = TunOptions::default();
            let queues = Tun::create_queues("many0", &options, 4).unwrap();
            assert_eq!(queues.len(), 4);
            for queue in &queues {
                assert!(queue.is_multi_queue());
                assert_eq!(queue.offloads(), queues[0].offloads());
            }
            let one = Tun::create_queues("one0", &options, 1).unwrap();
            assert!(one.len() == 1 && !one[0].is_multi_queue());
            // The kernel takes 256.
            let most = Tun::create_queues("most0", &options, 300).unwrap();
            assert_eq!(most.len(), 256);
        })
        .unwrap();
}

#[test]
fn whoever_made_a_persistent_device_decides_how_many_queues_it_takes() {
    namespace()
        .run_in(|| {
            let options = TunOptions::default();
            ip("tuntap add mode tun name single0 vnet_hdr");
            let queues = Tun::create_queues("single0", &options, 4).unwrap();
            assert!(queues.len() == 1 && !queues[0].is_multi_queue());
            let error = Tun::create_queues("single0", &options, 4).unwrap_err();
            assert!(matches!(error, TunError::NameTaken { .. }), "{error:?}");

            ip("tuntap add mode tun name many0 vnet_hdr multi_queue");
            assert_eq!(Tun::create_queues("many0", &options, 3).unwrap().len(), 3);
            assert_eq!(Tun::create_queues("many0", &options, 1).unwrap().len(), 1);

            ip("link add veth0 type veth peer name veth1");
            let error = Tun::create_queues("veth0", &options, 4).unwrap_err();
            assert!(matches!(error, TunError::NameTaken { .. }), "{error:?}");
        })
        .unwrap();
}

/// Sends datagrams from `flows` ports to an address, three rounds; the queues on which each port's were read.
fn queues_of_flows(queues: &[Tun], to: &str, flows: usize) -> BTreeMap<u16, BTreeSet<usize>> {
    let any = if to.contains(':') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let senders: Vec<_> = (0..flows)
        .map(|_| std::net::UdpSocket::bind(any).unwrap())
        .collect();
    for _ in 0..3 {
        for sender in &senders {
            sender.send_to(&[1; 100], to).unwrap();
        }
    }
    let ports: BTreeSet<u16> = senders
        .iter()
        .map(|sender| sender.local_addr().unwrap().port())
        .collect();
    let mut seen: BTreeMap<u16, BTreeSet<usize>> = BTreeMap::new();
    for (number, queue) in queues.iter().enumerate() {
        for packet in read_all(queue) {
            let packet = &packet[VNET_HEADER_LENGTH..];
            let head = if packet[0] >> 4 == 4 { 20 } else { 40 };
            let port = u16::from_be_bytes([packet[head], packet[head + 1]]);
            if ports.contains(&port) {
                seen.entry(port).or_default().insert(number);
            }
        }
    }
    seen
}

#[test]
fn flows_are_spread_over_the_queues_and_keep_to_theirs() {
    namespace()
        .run_in(|| {
            let queues = Tun::create_queues("adit0", &TunOptions::default(), 4).unwrap();
            ip("address add 10.9.0.1/24 dev adit0");
            ip("address add fd09::1/64 dev adit0 nodad");
            ip("link set adit0 up");
            for to in ["10.9.0.2:9", "[fd09::2]:9"] {
                let seen = queues_of_flows(&queues, to, 64);
                assert_eq!(seen.len(), 64, "{to}");
                assert!(seen.values().all(|queues| queues.len() == 1), "{seen:?}");
                let used: BTreeSet<_> = seen.values().flatten().collect();
                assert_eq!(used.len(), 4, "{seen:?}");
            }
        })
        .unwrap();
}
