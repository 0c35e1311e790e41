//! What became of a batch: per message, and in sum.

/// What became of one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Not sent yet.
    #[default]
    Pending,
    /// All of it was taken by the kernel.
    Sent,
    /// All of it was taken by the kernel, but the source address is no longer ours: it went out
    /// from another. The caller forgets the source.
    SentAfterForgettingSource,
    /// Part of it, or all, was not taken.
    Dropped {
        /// Datagrams lost.
        datagrams: u32,
        /// Why the last of them was.
        errno: i32,
        /// The rest went out only without the source address, which the caller forgets.
        forget_source: bool,
    },
}

/// Datagrams dropped for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCount {
    /// The kernel's reason; 0 for reasons past the number that is told apart.
    pub errno: i32,
    /// How many.
    pub datagrams: u64,
}

/// Reasons for drops told apart in one report.
const REASONS: usize = 8;

/// Counters of one or more sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendReport {
    /// Calls of `sendmmsg`.
    pub syscalls: u64,
    /// Messages the kernel took, of one datagram or of several.
    pub messages: u64,
    /// Those of them that it cuts up.
    pub gso_sends: u64,
    /// Datagrams the kernel took.
    pub datagrams: u64,
    /// Those of them that routers may not fragment.
    pub probes: u64,
    /// Times GSO was switched off for the socket (`EIO`).
    pub gso_disabled: u64,
    /// Messages sent packet by packet after the kernel refused to cut them up (`EINVAL`,
    /// `EMSGSIZE`).
    pub gso_refused: u64,
    /// Messages for which the source address was given up.
    pub sources_forgotten: u64,
    /// Sends repeated because of somebody else's error on the socket.
    pub retries: u64,
    /// Waits for room (`EAGAIN`, `ENOBUFS`).
    pub waits: u64,
    drops: [DropCount; REASONS],
}

impl SendReport {
    /// Adds the counters of `other`.
    pub fn absorb(&mut self, other: &Self) {
        self.syscalls += other.syscalls;
        self.messages += other.messages;
        self.gso_sends += other.gso_sends;
        self.datagrams += other.datagrams;
        self.probes += other.probes;
        self.gso_disabled += other.gso_disabled;
        self.gso_refused += other.gso_refused;
        self.sources_forgotten += other.sources_forgotten;
        self.retries += other.retries;
        self.waits += other.waits;
        for drop in other.drops() {
            self.count_drop(drop.errno, drop.datagrams);
        }
    }

    /// Datagrams dropped, by reason.
    pub fn drops(&self) -> impl Iterator<Item = DropCount> {
        self.drops.into_iter().filter(|drop| drop.datagrams > 0)
    }

    /// Datagrams dropped, whatever the reason.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops().map(|drop| drop.datagrams).sum()
    }

    pub(super) fn count_drop(&mut self, errno: i32, datagrams: u64) {
        let (last, told_apart) = match self.drops.split_last_mut() {
            Some(split) if datagrams > 0 => split,
            _ => return,
        };
        let slot = told_apart
            .iter_mut()
            .find(|slot| slot.datagrams == 0 || slot.errno == errno);
        let (slot, errno) = match slot {
            Some(slot) => (slot, errno),
            None => (last, 0),
        };
        slot.errno = errno;
        slot.datagrams += datagrams;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_counted_by_reason_and_none_is_lost() {
        let mut report = SendReport::default();
        for errno in 1..=20 {
            report.count_drop(errno, 2);
            report.count_drop(1, 1);
        }
        assert_eq!(report.dropped(), 60);
        assert_eq!(
            report.drops().next(),
            Some(DropCount {
                errno: 1,
                datagrams: 22
            })
        );
        assert_eq!(
            report.drops().last(),
            Some(DropCount {
                errno: 0,
                datagrams: 26
            })
        );
        let mut sum = report;
        sum.absorb(&report);
        assert_eq!(sum.dropped(), 120);
        assert_eq!(SendReport::default().drops().count(), 0);
    }
}
