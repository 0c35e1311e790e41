//! Received datagrams, opened: what of ingress can be done by any thread, in any order.
//!
//! Opening goes first over all the datagrams of a batch and leaves one [`Entry`] for each; whatever
//! depends on order (replay windows, roaming, writing) comes after, in a second pass by the ingress
//! thread, which finds the datagrams and their entries side by side.

use std::sync::Arc;

use adit_kernel::udp::{Received, RecvBatch};
use adit_packet::aead::{Record, open_batch};
use adit_protocol::Instant;
use adit_protocol::message::{DATA_HEADER_LEN, DataHeader};
use arrayvec::ArrayVec;

use super::counters::Ingress as Counters;
use super::helper::Work;
use super::{Session, SessionTable};

/// Messages of one `recvmmsg`, each up to 64 datagrams. More would leave the L2 cache before they
/// are opened.
pub(super) const MESSAGES: usize = 16;
/// `UDP_MAX_SEGMENTS`: datagrams in one message, where a local sender's super-packet comes straight
/// through.
const SEGMENTS: usize = 128;
/// Datagrams of one session opened at once.
const GROUP: usize = 128;

/// What is known of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No data message: a handshake message or nonsense.
    NotData,
    /// A data message that is dropped, and counted by now.
    Dropped,
    /// Opened, and genuine.
    Authentic,
}

/// A datagram of the batch, by position.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) verdict: Verdict,
    counter: u64,
}

/// Data messages in a row for one receiver index; entries of other datagrams may lie between them.
#[derive(Debug)]
struct Run {
    /// Why there is no session, if there is none.
    session: Result<Arc<Session>, Unusable>,
    /// Entries, those between included.
    entries: usize,
}

#[derive(Clone, Copy, Debug)]
enum Unusable {
    UnknownIndex,
    Expired,
}

/// The entries of one batch.
#[derive(Debug)]
pub(super) struct Opened {
    entries: Vec<Entry>,
    runs: Vec<Run>,
    /// Entries in those runs.
    covered: usize,
}

impl Opened {
    /// Room for all the datagrams of so many messages; nothing is allocated later.
    pub(super) fn new(messages: usize) -> Self {
        Self {
            entries: Vec::with_capacity(messages * SEGMENTS),
            runs: Vec::with_capacity(messages * SEGMENTS),
            covered: 0,
        }
    }

    /// Opens the data messages among the datagrams, in place. Datagrams beyond the room there is
    /// have no entry.
    pub(super) fn open<'a>(
        &mut self,
        messages: impl Iterator<Item = Received<'a>>,
        sessions: &SessionTable,
        now: Instant,
    ) {
        self.clear();
        let mut group = Group::default();
        for message in messages {
            // Such are counted in the second pass, and not looked at.
            if message.truncated || message.data.is_empty() {
                continue;
            }
            for datagram in message.data.chunks_mut(message.segment_size) {
                if self.entries.len() == self.entries.capacity() {
                    break;
                }
                let Some(header) = DataHeader::parse(datagram) else {
                    self.note(Verdict::NotData, 0);
                    continue;
                };
                if group.records.is_full() || !group.is_for(header.receiver_index) {
                    self.end(&mut group, sessions, now);
                    group.index = Some(header.receiver_index);
                    group.first = self.entries.len();
                }
                self.note(Verdict::Dropped, header.counter);
                group.records.push(Record {
                    counter: header.counter,
                    body: &mut datagram[DATA_HEADER_LEN..],
                    authentic: false,
                });
            }
        }
        self.end(&mut group, sessions, now);
    }

    /// Forgets the entries, and lets go of the sessions, whose keys would outlive them here.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.runs.clear();
        self.covered = 0;
    }

    fn note(&mut self, verdict: Verdict, counter: u64) {
        self.entries.push(Entry { verdict, counter });
    }

    /// Opens a group, and makes a run of all entries since the last one.
    fn end(&mut self, group: &mut Group<'_>, sessions: &SessionTable, now: Instant) {
        let Some(index) = group.index.take() else {
            return;
        };
        let session = match sessions.get(index) {
            None => Err(Unusable::UnknownIndex),
            Some(session) if !session.can_receive(now) => Err(Unusable::Expired),
            Some(session) => Ok(session),
        };
        if let Ok(session) = &session {
            open_batch(session.receiving_key().batch(), &mut group.records);
            let entries = self.entries[group.first..].iter_mut();
            let data = entries.filter(|entry| entry.verdict != Verdict::NotData);
            for (entry, record) in data.zip(&group.records) {
                if record.authentic {
                    entry.verdict = Verdict::Authentic;
                }
            }
        }
        group.records.clear();
        self.runs.push(Run {
            session,
            entries: self.entries.len() - self.covered,
        });
        self.covered = self.entries.len();
    }

    /// Checks the counters of what is authentic against the replay windows, and counts what is
    /// dropped. Batches go through here in the order in which they were received. Returns how many
    /// datagrams were for a live session.
    pub(super) fn check_replay(&mut self, counters: &Counters) -> usize {
        let mut live = 0;
        let mut rest = &mut self.entries[..];
        for run in &self.runs {
            let (entries, others) = rest.split_at_mut(run.entries.min(rest.len()));
            rest = others;
            let entries = entries
                .iter_mut()
                .filter(|entry| entry.verdict != Verdict::NotData);
            match &run.session {
                Err(Unusable::UnknownIndex) => {
                    counters.drop_ingress_unknown_index.add_len(entries.count());
                }
                Err(Unusable::Expired) => counters.drop_ingress_expired.add_len(entries.count()),
                Ok(session) => {
                    let mut replay = session.replay();
                    for entry in entries {
                        live += 1;
                        if entry.verdict != Verdict::Authentic {
                            counters.drop_ingress_unauthentic.add(1);
                        } else if !replay.accept(entry.counter) {
                            counters.drop_ingress_replayed.add(1);
                            entry.verdict = Verdict::Dropped;
                        }
                    }
                }
            }
        }
        live
    }

    /// The verdict on each datagram, in order, with the session that an authentic one is of.
    pub(super) fn verdicts(&self) -> impl Iterator<Item = (Verdict, Option<&Arc<Session>>)> {
        let sessions = self
            .runs
            .iter()
            .flat_map(|run| std::iter::repeat_n(run.session.as_ref().ok(), run.entries));
        // Entries after the last run are of no session.
        let sessions = sessions.chain(std::iter::repeat(None));
        let verdicts = self.entries.iter().map(|entry| entry.verdict);
        verdicts.zip(sessions)
    }
}

/// Data messages of one receiver index, collected to be opened together.
#[derive(Debug, Default)]
struct Group<'a> {
    /// `None` before the first.
    index: Option<u32>,
    /// Position of the first one's entry.
    first: usize,
    records: ArrayVec<Record<'a>, GROUP>,
}

impl Group<'_> {
    fn is_for(&self, index: u32) -> bool {
        self.index == Some(index)
    }
}

/// A receive buffer with what was found in it, as it travels to a helper and back.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) received: RecvBatch,
    pub(super) opened: Opened,
    sessions: Arc<SessionTable>,
    /// When it was received.
    pub(super) now: Instant,
}

impl Parcel {
    /// An empty one; all memory it will ever need is allocated here, and touched when it is used.
    pub(super) fn new(sessions: &Arc<SessionTable>) -> Self {
        Self {
            received: RecvBatch::new(MESSAGES),
            opened: Opened::new(MESSAGES),
            sessions: Arc::clone(sessions),
            now: Instant::from_nanos(0),
        }
    }
}

impl Work for Parcel {
    fn work(&mut self) {
        self.opened
            .open(self.received.messages(), &self.sessions, self.now);
    }
}
