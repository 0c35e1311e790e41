//! From inner packets to sealed datagrams on their way: one batch, one system call. It goes by AF_XDP
//! where that is to be had, or by the UDP socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use adit_kernel::udp::{Outcome, Outgoing, SendBatch, UdpSockets};
use adit_protocol::Instant;
use arrayvec::ArrayVec;

use super::batch::{Batch, TRAINS};
use super::counters::Egress as Counters;
use super::path_mtu;
use super::transmit::Path;
use super::{Dataplane, PeerLink, Session};

/// A batch being filled, and what it takes to send it.
#[derive(Debug)]
pub struct Outbound {
    batch: Box<Batch>,
    sender: Sender,
}

/// What it takes to send a batch.
#[derive(Debug)]
struct Sender {
    socket: SendBatch,
    /// The way past the UDP socket.
    path: Option<Path>,
    /// Where the paths to the peers are known.
    shared: Option<Arc<Dataplane>>,
}

impl Outbound {
    /// An empty batch; all memory it will ever need is allocated here.
    pub fn new() -> Self {
        Self {
            batch: Box::new(Batch::new()),
            sender: Sender {
                socket: SendBatch::new(),
                path: None,
                shared: None,
            },
        }
    }

    /// An empty batch of one queue's egress thread: it is sent by AF_XDP as far as that is possible, and
    /// what paths take is looked after.
    pub fn of_queue(shared: Arc<Dataplane>, queue: usize) -> Self {
        let mut outbound = Self::new();
        outbound.sender.path = Some(Path::new(Arc::clone(&shared), queue));
        outbound.sender.shared = Some(shared);
        outbound
    }

    /// When to call [`retry`](Self::retry) at the latest, if packets wait for their device.
    pub fn retry_after(&self) -> Option<Duration> {
        self.sender.path.as_ref()?.retry_after()
    }

    /// Takes over changes to the AF_XDP sockets, and sends what waits for them.
    pub fn retry(&mut self) {
        if let Some(path) = &mut self.sender.path {
            path.retry();
        }
    }

    /// Whether it is time to send.
    pub fn is_full(&self) -> bool {
        self.batch.is_full()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// The batch being filled, for somebody to seal it, whom another is given in its place.
    pub(super) fn batch(&mut self) -> &mut Box<Batch> {
        &mut self.batch
    }

    /// Adds one inner packet of `len` bytes, which `write` puts into the slice it is given; an
    /// empty one is a keepalive. `false` if the batch has no room for it before it is sent.
    pub fn push(
        &mut self,
        session: &Arc<Session>,
        len: usize,
        mtu: usize,
        ecn: u8,
        write: impl FnOnce(&mut [u8]),
    ) -> bool {
        self.batch.push(session, len, mtu, ecn, write)
    }

    /// Seals and sends the batch. `attend` is called for each peer that the control thread has to
    /// look at.
    pub fn flush(
        &mut self,
        now: Instant,
        sockets: Option<&UdpSockets>,
        counters: &Counters,
        attend: impl FnMut(&PeerLink),
    ) {
        self.batch.reserve(counters);
        self.batch.seal();
        self.sender
            .send(&mut self.batch, now, sockets, counters, attend);
    }

    /// Sends and empties a batch that was sealed elsewhere.
    pub(super) fn send(
        &mut self,
        batch: &mut Batch,
        now: Instant,
        sockets: Option<&UdpSockets>,
        counters: &Counters,
        attend: impl FnMut(&PeerLink),
    ) {
        self.sender.send(batch, now, sockets, counters, attend);
    }
}

impl Default for Outbound {
    fn default() -> Self {
        Self::new()
    }
}

impl Sender {
    /// Sends and empties a batch.
    fn send(
        &mut self,
        batch: &mut Batch,
        now: Instant,
        sockets: Option<&UdpSockets>,
        counters: &Counters,
        mut attend: impl FnMut(&PeerLink),
    ) {
        if batch.is_empty() {
            return;
        }
        let mut sent = [0u64; TRAINS];
        let mut probes = [false; TRAINS];
        self.note_large(batch, counters, &mut probes);
        if let Some(sockets) = sockets {
            self.send_past(batch, sockets.port(), &mut probes, &mut sent);
        }
        for family in [Family::V4, Family::V6] {
            self.send_family(batch, family, sockets, counters, &probes, &mut sent);
        }
        for (train, bytes) in batch.trains().iter().zip(sent) {
            let link = train.session.peer();
            if link.sent(now, &train.session, train.data_packets as u64, bytes) {
                attend(link);
            }
        }
        batch.clear();
    }

    /// Says which paths take large datagrams, and finds the trains that are to begin with a probe.
    fn note_large(&self, batch: &Batch, counters: &Counters, probes: &mut [bool; TRAINS]) {
        let Some(shared) = &self.shared else {
            return;
        };
        for (train, probe) in batch.trains().iter().zip(probes) {
            if !path_mtu::may_be_large(train.segment_size) || train.datagrams() == 0 {
                continue;
            }
            let Some(endpoint) = train.session.peer().endpoint() else {
                continue;
            };
            let note = shared.paths.note(&endpoint, train.segment_size);
            *probe = note.probe;
            if note.fragmented {
                counters.udp_fragmented_datagrams.add_len(train.datagrams());
            }
        }
    }

    /// Sends what can go by AF_XDP, and leaves the rest; notes the bytes each train got sent.
    fn send_past(
        &mut self,
        batch: &mut Batch,
        port: u16,
        probes: &mut [bool; TRAINS],
        sent: &mut [u64; TRAINS],
    ) {
        let Some(path) = self.path.as_mut() else {
            return;
        };
        if !path.begin() {
            return;
        }
        let mut probes = probes.iter_mut();
        batch.take(
            |train, data| {
                let (Some(probe), Some(endpoint)) =
                    (probes.next(), train.session.peer().endpoint())
                else {
                    return 0;
                };
                let taken = path.take(
                    &endpoint,
                    port,
                    (train.ecn, *probe),
                    train.segment_size,
                    data,
                );
                *probe &= taken == 0;
                taken
            },
            sent,
        );
        path.submit();
    }

    /// Sends the trains whose endpoint is of one family; notes the bytes each got sent.
    fn send_family(
        &mut self,
        batch: &Batch,
        family: Family,
        sockets: Option<&UdpSockets>,
        counters: &Counters,
        probes: &[bool; TRAINS],
        sent: &mut [u64; TRAINS],
    ) {
        let mut messages: ArrayVec<Outgoing<'_>, TRAINS> = ArrayVec::new();
        let mut indices: ArrayVec<usize, TRAINS> = ArrayVec::new();
        for (index, train) in batch.trains().iter().enumerate() {
            if train.datagrams() == 0 {
                continue;
            }
            let Some(endpoint) = train.session.peer().endpoint() else {
                if family == Family::V4 {
                    counters.drop_egress_no_endpoint.add_len(train.datagrams());
                }
                continue;
            };
            if Family::of(&endpoint.address) != family {
                continue;
            }
            messages.push(Outgoing {
                to: endpoint.address,
                source: endpoint
                    .source
                    .map(|source| (source.address, source.interface)),
                ecn: train.ecn,
                probe: probes[index],
                segment_size: train.segment_size,
                data: batch.data(train),
                outcome: Outcome::Pending,
            });
            indices.push(index);
        }
        let Some(first) = messages.first() else {
            return;
        };
        let Some(socket) = sockets.and_then(|sockets| sockets.for_address(&first.to)) else {
            let datagrams = indices
                .iter()
                .map(|&index| batch.trains()[index].datagrams())
                .sum();
            counters.drop_egress_no_socket.add_len(datagrams);
            return;
        };
        let report = self.socket.send(socket, &mut messages);
        counters.count_sends(&report);
        for (message, &index) in messages.iter().zip(&indices) {
            let train = &batch.trains()[index];
            match message.outcome {
                Outcome::Dropped {
                    datagrams,
                    forget_source,
                    ..
                } => {
                    counters.drop_egress_send_error.add(datagrams.into());
                    if forget_source {
                        train.session.peer().forget_source(message.to);
                    }
                    let datagrams = datagrams as usize;
                    let kept = train.datagrams().saturating_sub(datagrams);
                    sent[index] += (kept * train.segment_size).min(message.data.len()) as u64;
                }
                Outcome::SentAfterForgettingSource => {
                    train.session.peer().forget_source(message.to);
                    sent[index] += message.data.len() as u64;
                }
                _ => sent[index] += message.data.len() as u64,
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: &SocketAddr) -> Self {
        match address {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) => Self::V6,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as StdSocket;
    use std::time::Duration;

    use adit_kernel::udp::UdpOptions;
    use adit_packet::aead::{Record, TAG_LEN, open_batch};
    use adit_protocol::message::{DATA_HEADER_LEN, DataHeader};
    use adit_protocol::{Device, Endpoint, Now, Output, Prefix, PrivateKey, padded_len};
    use getrandom::SysRng;
    use rand_core::UnwrapErr;

    use super::*;
    use crate::dataplane::transport::TransportKey;

    const MTU: usize = 1420;

    /// The two ends of a session between two devices in memory; the first's peer is at `address`.
    fn sessions(address: SocketAddr) -> [Arc<Session>; 2] {
        let now = Now {
            instant: Instant::from_nanos(1),
            unix: Duration::from_secs(1_700_000_000),
        };
        let mut devices: [Device<TransportKey>; 2] =
            std::array::from_fn(|_| Device::new(Box::new(UnwrapErr(SysRng))));
        let keys = [1, 2].map(|byte| PrivateKey::from_bytes([byte; 32]));
        for (here, device) in devices.iter_mut().enumerate() {
            device.set_private_key(Some(keys[here].clone()));
            let peer = device.add_peer(keys[1 - here].public_key()).unwrap();
            device.set_endpoint(peer, address);
            device.add_allowed_ip(peer, Prefix::new([0, 0, 0, 0].into(), 0).unwrap());
            device.up();
        }
        let mut packet = [0; 20];
        (packet[0], packet[3]) = (0x45, 20);
        devices[0].send_packet(now, &packet).unwrap();
        let mut sessions = [None, None];
        for turn in 0..8 {
            let here = turn % 2;
            while let Some(output) = devices[here].poll_output() {
                match output {
                    Output::Transmit { mut payload, .. } => {
                        devices[1 - here].handle_datagram(
                            now,
                            Endpoint::new(address),
                            &mut payload,
                        );
                    }
                    Output::SessionAdded { session } => sessions[here] = Some(session),
                    _ => {}
                }
            }
        }
        sessions.map(Option::unwrap)
    }

    fn push(outbound: &mut Outbound, session: &Arc<Session>, len: usize, ecn: u8) -> bool {
        outbound.push(session, len, MTU, ecn, |slot| slot.fill(7))
    }

    #[test]
    fn equal_packets_make_a_train_and_a_shorter_one_ends_it() {
        let [session, _] = sessions("127.0.0.1:9".parse().unwrap());
        let mut outbound = Outbound::new();
        for len in [1420, 1420, 700, 700, 0, 1420] {
            assert!(push(&mut outbound, &session, len, 0));
        }
        assert!(push(&mut outbound, &session, 1420, 1));
        let shape: Vec<_> = outbound
            .batch
            .trains()
            .iter()
            .map(|train| (train.datagrams(), train.segment_size, train.data_packets))
            .collect();
        assert_eq!(
            shape,
            [(3, 1452, 3), (2, 736, 1), (1, 1452, 1), (1, 1452, 1)]
        );
        assert_eq!(outbound.batch.trains()[3].ecn, 1);
    }

    #[test]
    fn a_batch_takes_a_super_packet_and_says_when_it_is_full() {
        let [session, _] = sessions("127.0.0.1:9".parse().unwrap());
        let mut outbound = Outbound::new();
        let mut pushed = 0;
        while push(&mut outbound, &session, 1420, 0) {
            pushed += 1;
        }
        assert!(outbound.is_full());
        assert_eq!(pushed, (144 << 10) / 1452);
        // Neither can many small trains overrun the list of them.
        let mut outbound = Outbound::new();
        let trains =
            (0..2 * TRAINS).take_while(|n| push(&mut outbound, &session, 1 + n % 2 * 16, 0));
        assert!(trains.count() >= TRAINS && outbound.is_full());
        // The largest MTU fits an empty batch.
        assert!(Outbound::new().push(&session, 65_535, 65_535, 0, |slot| slot.fill(0)));
    }

    #[test]
    fn what_is_sent_opens_at_the_other_end_in_order() {
        let receiver = StdSocket::bind("127.0.0.1:0").unwrap();
        receiver
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let [session, other] = sessions(receiver.local_addr().unwrap());
        let sockets = UdpSockets::bind(0, &UdpOptions::default()).unwrap();
        let counters = Counters::default();
        let mut outbound = Outbound::new();
        let lengths = [1420, 1420, 900, 33, 0, 64, 64, 64];
        for len in lengths {
            assert!(push(&mut outbound, &session, len, 0));
        }
        outbound.flush(Instant::from_nanos(2), Some(&sockets), &counters, |_| {});
        assert!(outbound.is_empty() && !outbound.is_full());
        assert_eq!(counters.udp_sent_datagrams.get(), lengths.len() as u64);

        let mut datagram = [0; 2048];
        let mut last = None;
        for len in lengths {
            let size = receiver.recv(&mut datagram).unwrap();
            let header = DataHeader::parse(&datagram[..size]).unwrap();
            assert_eq!(header.receiver_index, other.receiver_index());
            assert!(last.is_none_or(|last| header.counter == last + 1));
            last = Some(header.counter);
            let body = &mut datagram[DATA_HEADER_LEN..size];
            let mut records = [Record {
                counter: header.counter,
                body,
                authentic: false,
            }];
            open_batch(other.receiving_key().batch(), &mut records);
            assert!(records[0].authentic);
            let plaintext = &records[0].body[..size - DATA_HEADER_LEN - TAG_LEN];
            assert_eq!(plaintext.len(), padded_len(len, MTU));
            assert!(plaintext[..len].iter().all(|&byte| byte == 7));
            assert!(
                plaintext[len..].iter().all(|&byte| byte == 0),
                "padding is zero"
            );
        }
    }

    #[test]
    fn without_a_socket_packets_are_counted() {
        let [session, _] = sessions("127.0.0.1:9".parse().unwrap());
        let counters = Counters::default();
        let mut outbound = Outbound::new();
        for _ in 0..3 {
            push(&mut outbound, &session, 100, 0);
        }
        outbound.flush(Instant::from_nanos(2), None, &counters, |_| {});
        assert_eq!(counters.drop_egress_no_socket.get(), 3);
        assert!(outbound.is_empty());
    }
}
