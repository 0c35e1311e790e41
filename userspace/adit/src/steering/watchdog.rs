//! Notices packets that are steered but never arrive.

/// Ticks (seconds) without progress before something is done about it.
const PATIENCE: u32 = 3;

/// Compares what XDP counted with what the data threads got.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    counted: u64,
    received: u64,
    stalled_ticks: u32,
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
    fn unknown_counts_are_no_stall() {
        let mut watchdog = Watchdog::default();
        assert!((0..10).all(|_| !watchdog.is_stalled(0, || None)));
    }
}
