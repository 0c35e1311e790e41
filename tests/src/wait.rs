//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at again.
const INTERVAL: Duration = Duration::from_millis(20);

/// Calls `check` until it gives a value, and returns that.
///
/// # Errors
/// Names `what` when `limit` is over, or when the process was told to stop ([`crate::command::interrupt`]).
pub fn wait_for<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> Result<T> {
    let waited = poll(limit, || match check() {
        Some(value) => Some(Ok(value)),
        None => crate::command::fail_if_interrupted().err().map(Err),
    });
    waited.unwrap_or_else(|| bail!("not within {limit:?}: {what}"))
}

/// Calls `check` until it is true.
///
/// # Errors
/// As [`wait_for`].
pub fn wait_until(what: &str, limit: Duration, mut check: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, limit, || check().then_some(()))
}

/// [`wait_for`] that an interruption does not end: for cleaning up.
pub(crate) fn poll<T>(limit: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        let value = check();
        if value.is_some() || Instant::now() >= deadline {
            return value;
        }
        std::thread::sleep(INTERVAL);
    }
}
