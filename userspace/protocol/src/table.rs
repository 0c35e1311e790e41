//! Sessions by receiver index, for the data threads.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::session::Session;

/// Power of two, so that the low bits of an index choose the shard.
const SHARDS: usize = 256;

/// Entries of one shard, sorted by receiver index.
type Shard<K> = Vec<(u32, Arc<Session<K>>)>;

/// Which session a receiver index belongs to. Read without locks by any number of threads, written
/// by the device alone.
///
/// Indices are random, so the shards fill evenly; a write copies one shard, which with 10,000 peers
/// has some hundred entries.
pub struct SessionTable<K> {
    shards: Box<[ArcSwap<Shard<K>>]>,
}

impl<K> SessionTable<K> {
    pub(crate) fn new() -> Self {
        let empty: Arc<Shard<K>> = Arc::default();
        Self {
            shards: (0..SHARDS)
                .map(|_| ArcSwap::new(Arc::clone(&empty)))
                .collect(),
        }
    }

    fn shard(&self, index: u32) -> &ArcSwap<Shard<K>> {
        &self.shards[usize::from(index.to_le_bytes()[0]) % SHARDS]
    }

    /// The live session with this receiver index.
    #[must_use]
    #[inline]
    pub fn get(&self, index: u32) -> Option<Arc<Session<K>>> {
        let shard = self.shard(index).load();
        let place = shard.binary_search_by_key(&index, |entry| entry.0).ok()?;
        Some(Arc::clone(&shard[place].1))
    }

    pub(crate) fn insert(&self, session: &Arc<Session<K>>) {
        let index = session.receiver_index();
        let shard = self.shard(index);
        let mut entries = Shard::clone(&shard.load());
        match entries.binary_search_by_key(&index, |entry| entry.0) {
            Ok(place) => entries[place].1 = Arc::clone(session),
            Err(place) => entries.insert(place, (index, Arc::clone(session))),
        }
        shard.store(Arc::new(entries));
    }

    pub(crate) fn remove(&self, index: u32) {
        let shard = self.shard(index);
        let mut entries = Shard::clone(&shard.load());
        if let Ok(place) = entries.binary_search_by_key(&index, |entry| entry.0) {
            entries.remove(place);
            shard.store(Arc::new(entries));
        }
    }
}

impl<K> fmt::Debug for SessionTable<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sessions: usize = self.shards.iter().map(|shard| shard.load().len()).sum();
        f.debug_struct("SessionTable")
            .field("sessions", &sessions)
            .finish_non_exhaustive()
    }
}
