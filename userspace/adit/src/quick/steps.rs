//! What was done, and undoing it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::say;

/// Set by the signals that end a program.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

type Undo = Box<dyn FnOnce() -> Result<()>>;

/// The steps of bringing a tunnel up. Unless [`Steps::keep`] is called they are undone, last first, when this is dropped.
pub(super) struct Steps {
    interface: String,
    verbose: bool,
    undo: Vec<(String, Undo)>,
}

impl Steps {
    pub(super) fn new(interface: &str, verbose: bool) -> Self {
        Self {
            interface: interface.to_owned(),
            verbose,
            undo: Vec::new(),
        }
    }

    /// Says what is being done, to those who asked to be told. Fails if the user wants no more of it.
    pub(super) fn begin(&self, what: impl std::fmt::Display) -> Result<()> {
        fail_if_interrupted()?;
        self.tell(what);
        Ok(())
    }

    /// Says something to those who asked to be told.
    pub(super) fn tell(&self, what: impl std::fmt::Display) {
        if self.verbose {
            say(&format!("{}: {what}", self.interface));
        }
    }

    /// Something was done; `undo` takes it back, which `what` names.
    pub(super) fn done(
        &mut self,
        what: impl Into<String>,
        undo: impl FnOnce() -> Result<()> + 'static,
    ) {
        self.undo.push((what.into(), Box::new(undo)));
    }

    /// Everything succeeded and stays.
    pub(super) fn keep(mut self) {
        self.undo.clear();
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        while let Some((what, undo)) = self.undo.pop() {
            self.tell(&what);
            if let Err(error) = undo() {
                say(&format!(
                    "adit: {}: cannot {what}: {error:#}",
                    self.interface
                ));
            }
        }
    }
}

/// Makes SIGINT, SIGTERM and SIGHUP end the next [`Steps::begin`] or [`pause`] instead of the process, so that what was
/// done is undone.
pub(super) fn catch_signals() -> Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))?;
    Ok(())
}

/// Fails once a signal came.
pub(super) fn fail_if_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Waits, but not longer than until a signal comes.
pub(super) fn pause(time: Duration) -> Result<()> {
    /// How late a signal may be noticed.
    const SLICE: Duration = Duration::from_millis(50);
    let deadline = Instant::now() + time;
    loop {
        fail_if_interrupted()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(SLICE));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn steps_are_undone_last_first_even_if_one_fails() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let make = || {
            let mut steps = Steps::new("wg0", false);
            for number in 0..3 {
                let order = Rc::clone(&order);
                steps.done("take it back", move || {
                    order.borrow_mut().push(number);
                    anyhow::ensure!(number != 1, "it is stuck");
                    Ok(())
                });
            }
            steps
        };
        make().keep();
        assert!(order.borrow().is_empty());
        drop(make());
        assert_eq!(*order.borrow(), [2, 1, 0]);
    }
}
