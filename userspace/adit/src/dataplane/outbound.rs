//! From inner packets to sealed datagrams on their way: one buffer, one batch, one system call.
//!
//! ```text
//!  buffer  ┌────────┬─────────────┬─────┬────────┬─────────────┬─────┬──┄
//!          │ header │ packet, pad │ tag │ header │ packet, pad │ tag │
//!          └────────┴─────────────┴─────┴────────┴─────────────┴─────┴──┄
//!          └───────── segment size ─────┘
//!          └───────────────────────── train ───────────────────────────┄
//! ```
//! A *train* is what one `UDP_SEGMENT` message can carry: datagrams of one session, equally long
//! but for a shorter last one. Packets are split straight into their place in a train, sealed
//! there, and sent from there.

use std::net::SocketAddr;
use std::sync::Arc;

use adit_kernel::udp::{Outcome, Outgoing, SendBatch, UdpSockets};
use adit_packet::aead::{Record, TAG_LEN, seal_batch};
use adit_protocol::message::{DATA_HEADER_LEN, DataHeader};
use adit_protocol::{Instant, padded_len};
use arrayvec::ArrayVec;

use super::counters::Egress as Counters;
use super::{PeerLink, Session};

/// Bytes after which a batch is sent: one super-packet from the TUN device.
const FULL: usize = 64 << 10;
/// A batch that is not full yet takes another super-packet of segments with 48 bytes added to
/// each, or one packet of the largest MTU.
const BUFFER: usize = FULL + (80 << 10);
/// Enough for a batch of small packets to different peers.
const TRAINS: usize = 128;
/// Datagrams sealed at once; bounds the stack that their descriptions take.
const RECORDS: usize = 128;

/// Datagrams that one message can carry.
#[derive(Debug)]
struct Train {
    session: Arc<Session>,
    start: usize,
    end: usize,
    segment_size: usize,
    ecn: u8,
    /// Packets that are not keepalives.
    data_packets: usize,
    /// The last datagram is shorter: nothing may follow.
    closed: bool,
}

impl Train {
    fn datagrams(&self) -> usize {
        (self.end - self.start).div_ceil(self.segment_size)
    }
}

/// A batch being filled, and what it takes to send it.
#[derive(Debug)]
pub struct Outbound {
    buffer: Box<[u8]>,
    used: usize,
    trains: ArrayVec<Train, TRAINS>,
    sender: SendBatch,
}

impl Outbound {
    /// An empty batch; all memory it will ever need is allocated here.
    pub fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER].into_boxed_slice(),
            used: 0,
            trains: ArrayVec::new(),
            sender: SendBatch::new(),
        }
    }

    /// Whether it is time to send.
    pub fn is_full(&self) -> bool {
        self.used >= FULL || self.trains.is_full()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.trains.is_empty()
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
        let padded = padded_len(len, mtu);
        let size = DATA_HEADER_LEN + padded + TAG_LEN;
        if self.buffer.len() - self.used < size {
            return false;
        }
        let joins = self.trains.last().is_some_and(|train| {
            !train.closed
                && size <= train.segment_size
                && train.ecn == ecn
                && Arc::ptr_eq(&train.session, session)
        });
        if !joins && self.trains.is_full() {
            return false;
        }
        let slot = &mut self.buffer[self.used..][..size];
        let (packet, padding) = slot[DATA_HEADER_LEN..][..padded].split_at_mut(len);
        write(packet);
        padding.fill(0);
        if !joins {
            self.trains.push(Train {
                session: Arc::clone(session),
                start: self.used,
                end: self.used,
                segment_size: size,
                ecn,
                data_packets: 0,
                closed: false,
            });
        }
        self.used += size;
        if let Some(train) = self.trains.last_mut() {
            train.end = self.used;
            train.closed = size < train.segment_size;
            train.data_packets += usize::from(len > 0);
        }
        true
    }

    /// Seals and sends the batch. `attend` is called for each peer that the control thread has to
    /// look at.
    pub fn flush(
        &mut self,
        now: Instant,
        sockets: Option<&UdpSockets>,
        counters: &Counters,
        mut attend: impl FnMut(&PeerLink),
    ) {
        if self.trains.is_empty() {
            return;
        }
        for train in &mut self.trains {
            seal(train, &mut self.buffer, counters);
        }
        let mut sent = [0u64; TRAINS];
        for family in [Family::V4, Family::V6] {
            self.send_family(family, sockets, counters, &mut sent);
        }
        for (train, bytes) in self.trains.iter().zip(sent) {
            let link = train.session.peer();
            if link.sent(now, &train.session, train.data_packets as u64, bytes) {
                attend(link);
            }
        }
        self.trains.clear();
        self.used = 0;
    }

    /// Sends the trains whose endpoint is of one family; notes the bytes each got sent.
    fn send_family(
        &mut self,
        family: Family,
        sockets: Option<&UdpSockets>,
        counters: &Counters,
        sent: &mut [u64; TRAINS],
    ) {
        let mut messages: ArrayVec<Outgoing<'_>, TRAINS> = ArrayVec::new();
        let mut indices: ArrayVec<usize, TRAINS> = ArrayVec::new();
        for (index, train) in self.trains.iter().enumerate() {
            if train.end == train.start {
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
                segment_size: train.segment_size,
                data: &self.buffer[train.start..train.end],
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
                .map(|&index| self.trains[index].datagrams())
                .sum();
            counters.drop_egress_no_socket.add_len(datagrams);
            return;
        };
        let report = self.sender.send(socket, &mut messages);
        counters.count_sends(messages.len(), &report);
        for (message, &index) in messages.iter().zip(&indices) {
            let train = &self.trains[index];
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
                    sent[index] = (kept * train.segment_size).min(message.data.len()) as u64;
                }
                Outcome::SentAfterForgettingSource => {
                    train.session.peer().forget_source(message.to);
                    sent[index] = message.data.len() as u64;
                }
                _ => sent[index] = message.data.len() as u64,
            }
        }
    }
}

impl Default for Outbound {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes the headers of a train and seals its packets in place. A session without counters left
/// empties the train.
fn seal(train: &mut Train, buffer: &mut [u8], counters: &Counters) {
    let Some(mut counter) = train.session.reserve(train.datagrams() as u64) else {
        counters.drop_egress_exhausted.add_len(train.datagrams());
        train.end = train.start;
        return;
    };
    let receiver_index = train.session.peer_index();
    let mut datagrams = buffer[train.start..train.end]
        .chunks_mut(train.segment_size)
        .peekable();
    while datagrams.peek().is_some() {
        let mut records: ArrayVec<Record<'_>, RECORDS> = ArrayVec::new();
        for datagram in datagrams.by_ref().take(RECORDS) {
            let (header, body) = datagram.split_at_mut(DATA_HEADER_LEN);
            header.copy_from_slice(
                &DataHeader {
                    receiver_index,
                    counter,
                }
                .to_bytes(),
            );
            records.push(Record {
                counter,
                body,
                authentic: false,
            });
            counter += 1;
        }
        seal_batch(train.session.sending_key().batch(), &mut records);
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
