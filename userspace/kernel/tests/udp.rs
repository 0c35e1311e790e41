//! The UDP sockets over loopback. Needs no rights.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use adit_kernel::poll::{Interest, PollFd, poll};
use adit_kernel::udp::{
    Outcome, Outgoing, RecvBatch, SendBatch, SendReport, UdpError, UdpOptions, UdpSocket,
    UdpSockets,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// What [`Received`](adit_kernel::udp::Received) held.
#[derive(Debug)]
struct Message {
    from: SocketAddr,
    local: Option<(IpAddr, u32)>,
    ecn: u8,
    segment_size: usize,
    data: Vec<u8>,
    truncated: bool,
}

fn bind(options: &UdpOptions) -> UdpSockets {
    UdpSockets::bind(0, options).expect("sockets")
}

fn plain() -> UdpOptions {
    UdpOptions {
        gro: false,
        gso: false,
        ..UdpOptions::default()
    }
}

fn loopback(v4: bool, port: u16) -> SocketAddr {
    let ip: IpAddr = if v4 {
        Ipv4Addr::LOCALHOST.into()
    } else {
        Ipv6Addr::LOCALHOST.into()
    };
    (ip, port).into()
}

fn message(to: SocketAddr, segment_size: usize, data: &[u8]) -> Outgoing<'_> {
    Outgoing {
        to,
        source: None,
        ecn: 0,
        probe: false,
        segment_size,
        data,
        outcome: Outcome::Pending,
    }
}

fn send_one(socket: &UdpSocket, mut message: Outgoing<'_>) -> (Outcome, SendReport) {
    let report = SendBatch::new().send(socket, std::slice::from_mut(&mut message));
    (message.outcome, report)
}

fn receive(socket: &UdpSocket, batch: &mut RecvBatch) -> Vec<Message> {
    let mut fds = [PollFd::new(socket.as_fd(), Interest::Read)];
    assert_eq!(
        poll(&mut fds, Some(PATIENCE)).unwrap(),
        1,
        "nothing arrived"
    );
    let count = batch.recv(socket).expect("messages");
    let messages: Vec<_> = batch
        .messages()
        .map(|message| Message {
            from: message.from,
            local: message.local,
            ecn: message.ecn,
            segment_size: message.segment_size,
            data: message.data.to_vec(),
            truncated: message.truncated,
        })
        .collect();
    assert_eq!(messages.len(), count);
    messages
}

/// Receives until `bytes` have arrived.
fn receive_all(socket: &UdpSocket, bytes: usize) -> Vec<Message> {
    let mut batch = RecvBatch::new(16);
    let mut messages: Vec<Message> = Vec::new();
    while messages
        .iter()
        .map(|message| message.data.len())
        .sum::<usize>()
        < bytes
    {
        messages.extend(receive(socket, &mut batch));
    }
    messages
}

fn pattern(length: usize) -> Vec<u8> {
    (0..251).cycle().take(length).collect()
}

/// Others picked a random port for each family.
#[test]
fn both_families_share_one_port_and_a_taken_port_is_told() {
    let sockets = bind(&plain());
    let (v4, v6) = (sockets.v4.as_ref().unwrap(), sockets.v6.as_ref().unwrap());
    assert_ne!(sockets.port(), 0);
    assert_eq!((v4.port(), v6.port()), (sockets.port(), sockets.port()));
    let error = UdpSockets::bind(sockets.port(), &plain()).unwrap_err();
    assert!(
        matches!(error, UdpError::PortInUse { port, .. } if port == sockets.port()),
        "{error}"
    );
}

#[test]
fn an_address_finds_the_socket_of_its_family() {
    let sockets = bind(&plain());
    let port_of = |text: &str| {
        let address = text.parse().unwrap();
        std::ptr::from_ref(sockets.for_address(&address).unwrap())
    };
    let v4 = std::ptr::from_ref(sockets.v4.as_ref().unwrap());
    let v6 = std::ptr::from_ref(sockets.v6.as_ref().unwrap());
    assert_eq!(port_of("192.0.2.1:1"), v4);
    assert_eq!(port_of("[::ffff:192.0.2.1]:1"), v4);
    assert_eq!(port_of("[2001:db8::1]:1"), v6);
    let sockets = UdpSockets {
        v6: None,
        ..sockets
    };
    assert!(
        sockets
            .for_address(&"[2001:db8::1]:1".parse().unwrap())
            .is_none()
    );
}

#[test]
fn an_idle_socket_would_block() {
    let sockets = bind(&plain());
    let mut batch = RecvBatch::new(4);
    let error = batch.recv(sockets.v4.as_ref().unwrap()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(batch.messages().count(), 0);
}

#[test]
fn addresses_interface_and_ecn_arrive() {
    let (sender, receiver) = (bind(&plain()), bind(&plain()));
    for v4 in [true, false] {
        for ecn in 0..4 {
            let to = loopback(v4, receiver.port());
            let socket = sender.for_address(&to).unwrap();
            let (outcome, _) = send_one(
                socket,
                Outgoing {
                    ecn,
                    probe: false,
                    ..message(to, 0, b"hello")
                },
            );
            assert_eq!(outcome, Outcome::Sent);
            let received = receive_all(receiver.for_address(&to).unwrap(), 5);
            assert_eq!(received[0].from, loopback(v4, sender.port()));
            assert_eq!(received[0].local, Some((to.ip(), 1)));
            assert_eq!(received[0].ecn, ecn);
            assert_eq!(
                (received[0].data.as_slice(), received[0].segment_size),
                (&b"hello"[..], 5)
            );
            assert!(!received[0].truncated);
        }
    }
}

/// A host with several addresses answers from the one that was asked.
#[test]
fn replies_leave_from_the_address_that_was_asked() {
    let (client, server) = (bind(&plain()), bind(&plain()));
    let asked: IpAddr = Ipv4Addr::new(127, 0, 0, 7).into();
    let to = SocketAddr::new(asked, server.port());
    send_one(client.v4.as_ref().unwrap(), message(to, 0, b"ask"));
    let question = &receive_all(server.v4.as_ref().unwrap(), 3)[0];
    assert_eq!(question.local.unwrap().0, asked);

    let reply = Outgoing {
        source: question.local,
        ..message(question.from, 0, b"reply")
    };
    let (outcome, _) = send_one(server.v4.as_ref().unwrap(), reply);
    assert_eq!(outcome, Outcome::Sent);
    assert_eq!(receive_all(client.v4.as_ref().unwrap(), 5)[0].from, to);
}

/// The errors a stale source gives are the kernel's business; the datagram arrives all the same.
#[test]
fn a_source_that_is_not_ours_is_forgotten() {
    let (sender, receiver) = (bind(&UdpOptions::default()), bind(&plain()));
    let stale: [IpAddr; 2] = [
        "192.0.2.77".parse().unwrap(),
        "2001:db8::77".parse().unwrap(),
    ];
    for source in stale {
        let to = loopback(source.is_ipv4(), receiver.port());
        let socket = sender.for_address(&to).unwrap();
        let data = pattern(3000);
        let outgoing = Outgoing {
            source: Some((source, 1)),
            ..message(to, 1000, &data)
        };
        let (outcome, report) = send_one(socket, outgoing);
        assert_eq!(outcome, Outcome::SentAfterForgettingSource, "{report:?}");
        let messages = receive_all(receiver.for_address(&to).unwrap(), 3000);
        assert_eq!(
            messages.iter().map(|m| m.data.len()).collect::<Vec<_>>(),
            [1000; 3]
        );
        assert!(socket.gso(), "the source was to blame");
    }
}

/// wireguard-go 24ea133: GRO was switched on, and what it put together never taken apart.
#[test]
fn gro_tells_the_segment_size_and_loses_nothing() {
    let (sender, receiver) = (bind(&UdpOptions::default()), bind(&UdpOptions::default()));
    for v4 in [true, false] {
        let to = loopback(v4, receiver.port());
        let data = pattern(10 * 1200 + 7);
        let (outcome, report) =
            send_one(sender.for_address(&to).unwrap(), message(to, 1200, &data));
        assert_eq!(
            (outcome, report.syscalls, report.gso_sends),
            (Outcome::Sent, 1, 1)
        );
        let messages = receive_all(receiver.for_address(&to).unwrap(), data.len());
        let mut datagrams = Vec::new();
        for message in &messages {
            assert_eq!(
                message.local,
                Some((to.ip(), 1)),
                "bug (b): source address lost"
            );
            datagrams.extend(message.data.chunks(message.segment_size));
        }
        assert!(messages.len() < 11, "nothing was put together");
        assert_eq!(datagrams, data.chunks(1200).collect::<Vec<_>>());
    }
}

#[test]
fn without_gro_datagrams_come_one_by_one() {
    let (sender, receiver) = (bind(&UdpOptions::default()), bind(&plain()));
    let to = loopback(true, receiver.port());
    let data = pattern(64 * 1000);
    send_one(sender.v4.as_ref().unwrap(), message(to, 1000, &data));
    let messages = receive_all(receiver.v4.as_ref().unwrap(), data.len());
    let lengths: Vec<_> = messages
        .iter()
        .map(|m| (m.data.len(), m.segment_size))
        .collect();
    assert_eq!(lengths, [(1000, 1000); 64]);
    assert!(messages.iter().flat_map(|m| &m.data).eq(&data));
}

/// wireguard-go bug (i): a zero-length datagram, which anyone can send, dropped its neighbours.
#[test]
fn empty_datagrams_do_not_hide_their_neighbours() {
    let (sender, receiver) = (bind(&plain()), bind(&UdpOptions::default()));
    let to = loopback(true, receiver.port());
    let bodies: [&[u8]; 5] = [b"one", b"", b"two", b"", b"three"];
    let mut messages = bodies.map(|body| message(to, 0, body));
    let report = SendBatch::new().send(sender.v4.as_ref().unwrap(), &mut messages);
    assert_eq!((report.datagrams, report.syscalls), (5, 1));
    let received = receive_all(receiver.v4.as_ref().unwrap(), bodies.concat().len());
    let got: Vec<_> = received
        .iter()
        .map(|message| message.data.as_slice())
        .collect();
    assert_eq!(got, bodies);
    assert_eq!(received[1].segment_size, 0);
}

/// Datagrams longer than the buffer made another implementation panic. No UDP datagram is longer
/// than a slot, so what is tested is that the largest one fits.
#[test]
fn the_largest_datagram_fits() {
    let (sender, receiver) = (bind(&plain()), bind(&plain()));
    for (v4, largest) in [(true, 65_507), (false, 65_487)] {
        let to = loopback(v4, receiver.port());
        let data = pattern(largest);
        let (outcome, _) = send_one(sender.for_address(&to).unwrap(), message(to, 0, &data));
        assert_eq!(outcome, Outcome::Sent);
        let messages = receive_all(receiver.for_address(&to).unwrap(), largest);
        assert_eq!(messages[0].data, data);
        assert!(!messages[0].truncated);
    }
    let data = pattern(65_508);
    let to = loopback(true, receiver.port());
    let (outcome, report) = send_one(sender.v4.as_ref().unwrap(), message(to, 0, &data));
    assert!(
        matches!(outcome, Outcome::Dropped { datagrams: 1, .. }),
        "{outcome:?}"
    );
    assert_eq!(report.dropped(), 1);
}

/// wireguard-go 6901984: lengths the kernel wrote into the headers leaked into the next use.
#[test]
fn a_batch_is_as_good_as_new_each_time() {
    let (sender, receiver) = (bind(&plain()), bind(&UdpOptions::default()));
    let mut batch = RecvBatch::new(4);
    for round in 0..3 {
        for v4 in [true, false] {
            let to = loopback(v4, receiver.port());
            for ecn in [3, 0] {
                let data = pattern(100 + round);
                let outgoing = Outgoing {
                    ecn,
                    probe: false,
                    ..message(to, 0, &data)
                };
                send_one(sender.for_address(&to).unwrap(), outgoing);
                let received = receive(receiver.for_address(&to).unwrap(), &mut batch);
                assert_eq!(received[0].ecn, ecn);
                assert_eq!(received[0].local, Some((to.ip(), 1)));
                assert_eq!(received[0].from.ip(), to.ip());
                assert_eq!(received[0].data, data);
            }
        }
    }
}

/// The data of all messages of a batch is usable, and writable, at the same time.
#[test]
fn messages_of_a_batch_are_disjoint() {
    let (sender, receiver) = (bind(&plain()), bind(&plain()));
    let to = loopback(true, receiver.port());
    let mut messages = [message(to, 0, b"first"), message(to, 0, b"second")];
    SendBatch::new().send(sender.v4.as_ref().unwrap(), &mut messages);
    let mut batch = RecvBatch::new(2);
    let socket = receiver.v4.as_ref().unwrap();
    let mut fds = [PollFd::new(socket.as_fd(), Interest::Read)];
    poll(&mut fds, Some(PATIENCE)).unwrap();
    batch.recv(socket).unwrap();
    let mut all: Vec<_> = batch.messages().collect();
    for message in &mut all {
        message.data.reverse();
    }
    assert_eq!(all[0].data, b"tsrif");
    assert_eq!(all[1].data, b"dnoces");
}

/// One storage serves sockets of both families in turn.
#[test]
fn one_send_batch_serves_both_families() {
    let (sender, receiver) = (bind(&UdpOptions::default()), bind(&plain()));
    let mut batch = SendBatch::new();
    let data = pattern(5000);
    for v4 in [true, false, true, false] {
        let to = loopback(v4, receiver.port());
        let mut messages = [message(to, 1000, &data)];
        let report = batch.send(sender.for_address(&to).unwrap(), &mut messages);
        assert_eq!((messages[0].outcome, report.datagrams), (Outcome::Sent, 5));
        let messages = receive_all(receiver.for_address(&to).unwrap(), data.len());
        assert!(messages.iter().flat_map(|m| &m.data).eq(&data));
    }
}

/// A receiver that does not listen answers with ICMP; the sender goes on.
#[test]
fn a_closed_port_does_not_disturb_the_sender() {
    let (sender, receiver) = (bind(&plain()), bind(&plain()));
    let closed = bind(&plain()).port();
    for v4 in [true, false] {
        let to = loopback(v4, receiver.port());
        let socket = sender.for_address(&to).unwrap();
        for _ in 0..5 {
            let mut messages = [
                message(loopback(v4, closed), 0, b"lost"),
                message(to, 0, b"kept"),
            ];
            let report = SendBatch::new().send(socket, &mut messages);
            assert_eq!(report.dropped(), 0);
            let received = receive_all(receiver.for_address(&to).unwrap(), 4);
            assert_eq!(received[0].data, b"kept");
        }
    }
}

/// More than the socket buffer holds: what is not sent is counted, and nothing hangs.
#[test]
fn a_flood_is_sent_or_counted() {
    let options = UdpOptions {
        send_buffer: 4096,
        ..UdpOptions::default()
    };
    let (sender, receiver) = (bind(&options), bind(&plain()));
    let to = loopback(true, receiver.port());
    let data = pattern(60_000);
    let mut messages = vec![message(to, 1200, &data); 50];
    let report = SendBatch::new().send(sender.v4.as_ref().unwrap(), &mut messages);
    assert_eq!(report.datagrams + report.dropped(), 50 * 50);
    assert!(
        messages
            .iter()
            .all(|message| message.outcome != Outcome::Pending)
    );
}
