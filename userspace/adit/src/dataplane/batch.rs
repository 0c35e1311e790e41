//! A batch of inner packets on their way to be sealed and sent: one buffer.
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

use std::sync::Arc;

use adit_packet::aead::{Record, TAG_LEN, seal_batch};
use adit_protocol::message::{DATA_HEADER_LEN, DataHeader};
use adit_protocol::padded_len;
use arrayvec::ArrayVec;

use super::Session;
use super::counters::Egress as Counters;
use super::helper::Work;

/// Bytes after which a batch is sent: one super-packet from the TUN device.
const FULL: usize = 64 << 10;
/// A batch that is not full yet takes another super-packet of segments with 48 bytes added to
/// each, or one packet of the largest MTU.
const BUFFER: usize = FULL + (80 << 10);
/// Enough for a batch of small packets to different peers.
pub(super) const TRAINS: usize = 128;
/// Datagrams sealed at once; bounds the stack that their descriptions take.
const RECORDS: usize = 128;

/// Datagrams that one message can carry.
#[derive(Debug)]
pub(super) struct Train {
    pub(super) session: Arc<Session>,
    start: usize,
    end: usize,
    pub(super) segment_size: usize,
    pub(super) ecn: u8,
    /// Packets that are not keepalives.
    pub(super) data_packets: usize,
    /// The last datagram is shorter: nothing may follow.
    closed: bool,
    /// Of the first datagram, once reserved.
    counter: u64,
}

impl Train {
    /// How many there are; none if the session had no counters left for them.
    pub(super) fn datagrams(&self) -> usize {
        (self.end - self.start).div_ceil(self.segment_size)
    }
}

/// A batch, being filled or full.
#[derive(Debug)]
pub(super) struct Batch {
    buffer: Box<[u8]>,
    used: usize,
    trains: ArrayVec<Train, TRAINS>,
}

impl Batch {
    /// An empty batch; all memory it will ever need is allocated here, and touched when it is used.
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER].into_boxed_slice(),
            used: 0,
            trains: ArrayVec::new(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.used >= FULL || self.trains.is_full()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.trains.is_empty()
    }

    pub(super) fn trains(&self) -> &[Train] {
        &self.trains
    }

    /// The sealed datagrams of a train.
    pub(super) fn data(&self, train: &Train) -> &[u8] {
        &self.buffer[train.start..train.end]
    }

    /// Offers each train's datagrams to `take`, which says how many bytes of them, from the front, it
    /// has sent; those are added to `sent`, and left out from now on.
    pub(super) fn take(
        &mut self,
        mut take: impl FnMut(&Train, &[u8]) -> usize,
        sent: &mut [u64; TRAINS],
    ) {
        for (train, sent) in self.trains.iter_mut().zip(sent) {
            let taken = take(train, &self.buffer[train.start..train.end]);
            train.start += taken;
            *sent += taken as u64;
        }
    }

    pub(super) fn clear(&mut self) {
        self.trains.clear();
        self.used = 0;
    }

    /// Adds one inner packet of `len` bytes, which `write` puts into the slice it is given; an
    /// empty one is a keepalive. `false` if there is no room for it.
    pub(super) fn push(
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
                counter: 0,
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

    /// Reserves the send counters. Batches are sent in the order in which this is called on them. A
    /// session without counters left empties its trains.
    pub(super) fn reserve(&mut self, counters: &Counters) {
        for train in &mut self.trains {
            if let Some(counter) = train.session.reserve(train.datagrams() as u64) {
                train.counter = counter;
            } else {
                counters.drop_egress_exhausted.add_len(train.datagrams());
                train.end = train.start;
            }
        }
    }

    /// Writes the headers and seals the packets in place.
    pub(super) fn seal(&mut self) {
        for train in &self.trains {
            seal(train, &mut self.buffer[train.start..train.end]);
        }
    }
}

impl Work for Batch {
    fn work(&mut self) {
        self.seal();
    }
}

/// Seals one train, whose counters are reserved.
fn seal(train: &Train, buffer: &mut [u8]) {
    let mut counter = train.counter;
    let receiver_index = train.session.peer_index();
    let mut datagrams = buffer.chunks_mut(train.segment_size).peekable();
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
