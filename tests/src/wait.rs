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
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = check() {
            return Ok(value);
        }
        crate::command::fail_if_interrupted()?;
        if Instant::now() >= deadline {
            bail!("not within {limit:?}: {what}");
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Calls `check` until it is true.
///
/// # Errors
/// As [`wait_for`].
pub fn wait_until(what: &str, limit: Duration, mut check: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, limit, || check().then_some(()))
}
