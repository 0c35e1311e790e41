//! The replay window: each counter of a session is accepted once, in any order within the window
//! (RFC 6479; kernel, `receive.c` `counter_validate`).

const WORD_BITS: u64 = 64;
const WORDS: usize = 128;

/// Bits kept: 8192.
pub const WINDOW_BITS: u64 = WORD_BITS * WORDS as u64;

/// Counters up to this far behind the highest one can still be accepted. One word of the bitmap is
/// always partly in the future, so it is 8192 − 64.
pub const WINDOW_USABLE: u64 = WINDOW_BITS - WORD_BITS;

/// Which counters of one session have been accepted. One kilobyte.
///
/// ```text
///  words as a ring:   … | 64 | 64 | 64 | 64 | …
///                         ^ oldest   ^ word of `next − 1`
/// ```
/// Sliding forward clears whole words; no bit is ever shifted.
#[derive(Clone)]
pub struct ReplayWindow {
    /// Highest accepted counter plus one; 0 before the first packet.
    next: u64,
    reject_after: u64,
    bitmap: [u64; WORDS],
}

impl ReplayWindow {
    /// An empty window that refuses counters of `reject_after_messages` and above.
    #[must_use]
    pub const fn new(reject_after_messages: u64) -> Self {
        Self {
            next: 0,
            reject_after: reject_after_messages,
            bitmap: [0; WORDS],
        }
    }

    /// Checks `counter` and marks it as seen. False for a replay, for a counter too far behind, and
    /// at the end of the session.
    ///
    /// Call only after the packet proved authentic: a forged counter must not move the window.
    #[must_use = "a packet that is not accepted must be dropped"]
    pub fn accept(&mut self, counter: u64) -> bool {
        if counter >= self.reject_after {
            return false;
        }
        let word = counter / WORD_BITS;
        if counter >= self.next {
            // `next` = 0 counts as being in word 0, which starts out clear.
            let current = self.next.saturating_sub(1) / WORD_BITS;
            let advance = (word - current).min(WORDS as u64);
            for step in 1..=advance {
                self.bitmap[slot(current + step)] = 0;
            }
            self.next = counter + 1;
        } else if self.next - 1 - counter >= WINDOW_USABLE {
            return false;
        }
        let bit = 1 << (counter % WORD_BITS);
        let entry = &mut self.bitmap[slot(word)];
        if *entry & bit != 0 {
            return false;
        }
        *entry |= bit;
        true
    }
}

/// Place of a word in the ring.
fn slot(word: u64) -> usize {
    usize::try_from(word % WORDS as u64).expect("below 128")
}

impl std::fmt::Debug for ReplayWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplayWindow")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const REJECT: u64 = u64::MAX - (1 << 13);

    fn window() -> ReplayWindow {
        ReplayWindow::new(REJECT)
    }

    #[test]
    fn counter_zero_is_valid_once() {
        let mut window = window();
        assert!(window.accept(0));
        assert!(!window.accept(0));
        assert!(window.accept(1));
        assert!(!window.accept(0));
    }

    #[test]
    fn the_window_has_8128_usable_counters() {
        assert_eq!(WINDOW_USABLE, 8128);
        let mut window = window();
        assert!(window.accept(10_000));
        assert!(!window.accept(10_000 - 8128));
        assert!(window.accept(10_000 - 8127));
        assert!(!window.accept(10_000 - 8127));
    }

    #[test]
    fn a_jump_over_the_whole_window_clears_it() {
        let mut window = window();
        for counter in 0..9000 {
            assert!(window.accept(counter));
        }
        assert!(window.accept(1 << 40));
        for behind in 1..8128 {
            assert!(window.accept((1 << 40) - behind), "{behind}");
        }
        assert!(!window.accept((1 << 40) - 8128));
        assert!(!window.accept(8999));
    }

    #[test]
    fn the_last_counter_is_one_below_the_limit() {
        let mut window = window();
        assert!(!window.accept(u64::MAX));
        assert!(!window.accept(REJECT));
        assert!(window.accept(REJECT - 1));
        assert!(!window.accept(REJECT - 1));
        assert!(window.accept(REJECT - 2));
    }

    proptest! {
        /// Against a set of everything ever seen.
        #[test]
        fn agrees_with_a_naive_model(steps in proptest::collection::vec((any::<bool>(), 0_u64..20_000), 1..400)) {
            let mut window = window();
            let mut seen = HashSet::new();
            let mut highest = 0_u64;
            let mut any = false;
            for (forward, distance) in steps {
                let counter = if forward { highest + distance % 300 } else { highest.saturating_sub(distance) };
                let expected = (!any || counter > highest || highest - counter < WINDOW_USABLE) && !seen.contains(&counter);
                prop_assert_eq!(window.accept(counter), expected);
                if expected {
                    seen.insert(counter);
                    highest = highest.max(counter);
                    any = true;
                }
            }
        }
    }
}
