//! The replay window against a set of all counters ever accepted.

use std::collections::HashSet;

use adit_protocol::{ReplayWindow, WINDOW_USABLE};

use crate::script::Script;

/// The bytes are counters: absolute, or steps from the highest one.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let reject_after = match script.choice(3) {
        0 => u64::MAX - (1 << 13),
        1 => u64::from(script.u16()),
        _ => script.u64(),
    };
    let mut window = ReplayWindow::new(reject_after);
    let mut seen = HashSet::new();
    let mut highest = None;
    while !script.is_empty() {
        let from: u64 = highest.unwrap_or(0);
        let counter = match script.choice(4) {
            0 => from.saturating_add(script.byte().into()),
            1 => from.saturating_sub(script.u16().into()),
            2 => from.saturating_add(script.u16().into()),
            _ => script.u64(),
        };
        let recent = highest
            .is_none_or(|highest: u64| counter > highest || highest - counter < WINDOW_USABLE);
        let expected = counter < reject_after && recent && !seen.contains(&counter);
        assert_eq!(
            window.accept(counter),
            expected,
            "{counter} after {highest:?}"
        );
        if expected {
            seen.insert(counter);
            highest = highest.max(Some(counter));
        }
    }
}
