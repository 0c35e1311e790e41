//! Notices packets that are steered but never arrive, and sockets that are gone from the map.

/// Ticks (seconds) without progress before something is done about it.
const PATIENCE: u32 = 3;

/// Compares what XDP counted with what the data threads got.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    counted: u64,
    received: u64,
    stalled_ticks: u32,
    unclaimed: u64,
    unclaimed_ticks: u32,
}

impl Watchdog {
    /// Called once a second with the datagrams received so far, and a way to ask for those that
    /// the programs have counted. True when packets have been counted for some seconds and none
    /// was received.
    pub(super) fn is_stalled(
        &mut self,
        received: u64,
        counted: impl FnOnce() -> Option<u64>,
    ) -> bool {
        let progress = received != self.received;
        self.received = received;
        let Some(counted) = counted() else {
            return false;
        };
        let steered = counted > self.counted;
        self.counted = counted;
        if progress {
            self.stalled_ticks = 0;
        } else if steered {
            self.stalled_ticks += 1;
        }
        if self.stalled_ticks < PATIENCE {
            return false;
        }
        self.stalled_ticks = 0;
        true
    }

    /// Called once a second with the number that grows while packets find no socket, if it is known.
    /// True when it has grown in some seconds since the last [`rest`](Self::rest): in one it may,
    /// for there is a moment between an interface's being added and its sockets'.
    pub(super) fn is_unclaimed(&mut self, unclaimed: Option<u64>) -> bool {
        let before = self.unclaimed;
        self.unclaimed = unclaimed.unwrap_or(before);
        self.unclaimed_ticks += u32::from(self.unclaimed != before);
        if self.unclaimed_ticks < PATIENCE {
            return false;
        }
        self.unclaimed_ticks = 0;
        true
    }

    /// Nothing is steered: what was seen before says nothing about what comes.
    pub(super) fn rest(&mut self) {
        self.stalled_ticks = 0;
        self.unclaimed_ticks = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packets_that_are_lost_for_seconds_are_a_stall() {
        let mut watchdog = Watchdog::default();
        // Idle.
        assert!((0..10).all(|_| !watchdog.is_stalled(0, || Some(0))));
        // Traffic that arrives.
        assert!((1..10).all(|n| !watchdog.is_stalled(n * 10, || Some(n * 10))));
        // Counted, never received; idle seconds in between change nothing.
        let counted = [91, 92, 92, 93];
        let stalled: Vec<bool> = counted
            .iter()
            .map(|&n| watchdog.is_stalled(90, || Some(n)))
            .collect();
        assert_eq!(stalled, [false, false, false, true]);
        // Starts again.
        assert!(!watchdog.is_stalled(90, || Some(94)));
    }

    #[test]
    fn packets_without_a_socket_in_several_seconds_are_a_fault() {
        let mut watchdog = Watchdog::default();
        let mut seen = |count| watchdog.is_unclaimed(count);
        assert!(!seen(Some(7)));
        assert!((0..10).all(|_| !seen(Some(7)) && !seen(None)));
        assert!(!seen(Some(8)));
        assert!(seen(Some(9)));
        assert!(!seen(Some(10)));
        watchdog.rest();
        assert!(!watchdog.is_unclaimed(Some(11)));
        assert!(!watchdog.is_unclaimed(Some(12)));
    }

    #[test]
    fn unknown_counts_are_no_stall() {
        let mut watchdog = Watchdog::default();
        assert!((0..10).all(|_| !watchdog.is_stalled(0, || None)));
    }
}
