//! Which run a flow has open: a small set-associative table that forgets rather than searches.

use super::classify::{AddressHash, FlowHash};

const SETS: usize = 256;
const WAYS: usize = 4;

/// Finds the latest run of a flow in constant time. It may forget a run (too many flows in one set) or be told to by
/// a packet of unclear flow; both only mean that nothing more is merged into that run.
///
/// Entries carry the tick of their insertion. Those from before the current batch, or from before a barrier, do not
/// count, so nothing is ever cleared.
#[derive(Debug)]
pub(super) struct FlowTable {
    sets: Box<[[Entry; WAYS]]>,
    /// The latest tick at which all runs between addresses of this hash were ended.
    barriers: Box<[u64]>,
    /// The latest tick at which all runs were ended.
    barrier: u64,
    tick: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    flow: FlowHash,
    run: usize,
    born: u64,
}

impl FlowTable {
    pub(super) fn new() -> Self {
        Self {
            sets: vec![[Entry::default(); WAYS]; SETS].into_boxed_slice(),
            barriers: vec![0; SETS].into_boxed_slice(),
            barrier: 0,
            tick: 0,
        }
    }

    /// The run that was last inserted for this flow, if it still counts. Another flow may share the hash: the caller
    /// compares headers before merging.
    pub(super) fn find(&self, flow: FlowHash, addresses: AddressHash) -> Option<usize> {
        let barrier = self.barrier.max(self.barriers[index(addresses)]);
        self.sets[index(flow)]
            .iter()
            .find(|entry| entry.flow == flow && entry.born > barrier)
            .map(|entry| entry.run)
    }

    /// Makes `run` the one that [`find`](Self::find) gives for this flow, in place of any other or of the oldest of
    /// its set.
    pub(super) fn insert(&mut self, flow: FlowHash, run: usize) {
        self.tick += 1;
        let set = &mut self.sets[index(flow)];
        let mut place = 0;
        for (way, entry) in set.iter().enumerate() {
            if entry.flow == flow {
                place = way;
                break;
            }
            if entry.born < set[place].born {
                place = way;
            }
        }
        set[place] = Entry {
            flow,
            run,
            born: self.tick,
        };
    }

    /// Ends the run of this flow.
    pub(super) fn end(&mut self, flow: FlowHash) {
        for entry in &mut self.sets[index(flow)] {
            if entry.flow == flow {
                entry.born = 0;
            }
        }
    }

    /// Ends all runs between these addresses, and a few others.
    pub(super) fn end_between(&mut self, addresses: AddressHash) {
        self.barriers[index(addresses)] = self.tick;
    }

    /// Ends all runs.
    pub(super) fn end_all(&mut self) {
        self.barrier = self.tick;
    }
}

/// The upper bits are the well-mixed ones.
fn index(hash: u64) -> usize {
    const SHIFT: u32 = u64::BITS - SETS.ilog2();
    (hash >> SHIFT) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_latest_run_until_it_is_ended() {
        let mut table = FlowTable::new();
        table.insert(7, 1);
        assert_eq!(table.find(7, 0), Some(1));
        table.insert(7, 2);
        assert_eq!(table.find(7, 0), Some(2));
        table.end(7);
        assert_eq!(table.find(7, 0), None);
        table.insert(7, 3);
        table.end_between(1 << 63);
        assert_eq!(table.find(7, 0), Some(3), "other addresses");
        table.end_between(0);
        assert_eq!(table.find(7, 0), None);
        table.insert(7, 4);
        assert_eq!(table.find(7, 0), Some(4), "runs after the barrier count");
        table.end_all();
        assert_eq!(table.find(7, 0), None);
    }

    #[test]
    fn a_full_set_forgets_its_oldest_flow() {
        let mut table = FlowTable::new();
        for flow in 1..=5 {
            table.insert(flow, 0);
        }
        assert_eq!(table.find(1, 0), None);
        for flow in 2..=5 {
            assert_eq!(table.find(flow, 0), Some(0));
        }
    }
}
