//! What the daemon gives up when it is set up, so that whoever takes it over gets little.
//!
//! Control, events and data threads and their helpers each have a list of system calls (`calls`).
//! Data threads and helpers, which need neither capabilities nor files, give up all of both when they
//! start; control and events threads keep a few (`rights`). Memory is the process's.
//!
//! What is promised of it stands in `SECURITY.md`, and `tests/tests/system/sandbox.rs` compares a
//! running daemon with that.

mod calls;
mod rights;

use std::path::Path;
use std::sync::Arc;

use adit_kernel::sandbox::{
    CallFilter, CapabilitySet, FileAccess, FileLimits, FilterError, Landlock, Refusal,
    forbid_dumps, forbid_new_privileges, keep_capabilities, limit_files, lock_memory,
};
use clap::ValueEnum;

pub use self::rights::Needs;
use crate::error_chain;

/// Whether the daemon confines itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Not at all
    Off,
    /// Refuse nothing; the kernel logs the system calls that would be refused
    Log,
    /// Refuse what is not needed after the start
    #[default]
    On,
}

/// What a thread does, and so what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It moves packets.
    Data,
    /// It does a data thread's cryptography.
    Helper,
    /// It waits for events of devices, routes and files.
    Events,
    /// It does everything else.
    Control,
}

/// How threads are confined. All of them have one, and none can get out again.
#[derive(Clone, Debug)]
pub struct Sandbox {
    mode: Mode,
    filters: Option<Arc<Filters>>,
}

#[derive(Debug)]
struct Filters {
    data: CallFilter,
    helper: CallFilter,
    events: CallFilter,
    control: CallFilter,
}

impl Sandbox {
    /// Confines nobody yet.
    ///
    /// What the kernel cannot do is left out, here and later; a line of the log says what.
    pub fn new(mode: Mode) -> Self {
        let refusal = match mode {
            Mode::Off => return Self::none(),
            Mode::Log => Refusal::LogOnly,
            Mode::On => Refusal::Errno,
        };
        let filters = Filters::new(refusal)
            .inspect_err(|error| {
                let error = error_chain(error);
                tracing::warn!(error, "system calls are not limited");
            })
            .ok();
        Self {
            mode,
            filters: filters.map(Arc::new),
        }
    }

    /// Never confines anybody.
    pub fn none() -> Self {
        Self {
            mode: Mode::Off,
            filters: None,
        }
    }

    /// Protects the memory of the process, and takes from the calling thread, which is the control
    /// thread, and those it makes later, what `needs` does not name. To be called when everything is
    /// set up. The limits hold for as long as the thread lives, and are to be kept as long.
    pub fn enter(&self, needs: &Needs<'_>) -> Option<FileLimits> {
        if self.mode != Mode::Off {
            protect_memory();
        }
        let now = CapabilitySet::current().unwrap_or_default();
        self.give_up(needs.capabilities(now), &needs.files())
    }

    /// Limits the calling thread to the system calls of its role. If it is a data thread or a helper,
    /// it also loses all capabilities and files.
    pub fn confine(&self, role: Role) {
        if matches!(role, Role::Data | Role::Helper) {
            // No file is allowed, so there are none to be held.
            drop(self.give_up(CapabilitySet::EMPTY, &[]));
        }
        let Some(filters) = &self.filters else {
            return;
        };
        let filter = match role {
            Role::Data => &filters.data,
            Role::Helper => &filters.helper,
            Role::Events => &filters.events,
            Role::Control => &filters.control,
        };
        if let Err(error) = filter.install() {
            let error = error_chain(&error);
            tracing::warn!(?role, error, "system calls are not limited");
        }
    }

    /// Takes capabilities and files from the calling thread.
    fn give_up(
        &self,
        capabilities: CapabilitySet,
        files: &[(&Path, FileAccess)],
    ) -> Option<FileLimits> {
        if self.mode == Mode::Off {
            return None;
        }
        if let Err(error) = forbid_new_privileges() {
            tracing::warn!(%error, "no_new_privs cannot be set");
        }
        // The kernel has no way to only log these.
        if self.mode == Mode::Log {
            return None;
        }
        match keep_capabilities(capabilities) {
            Ok(kept) => tracing::debug!(?kept, "capabilities dropped"),
            Err(error) => tracing::warn!(%error, "capabilities cannot be dropped"),
        }
        limit(files)
    }
}

impl Filters {
    fn new(refusal: Refusal) -> Result<Self, FilterError> {
        let filter = |role| CallFilter::new(calls::allowed(role), refusal);
        Ok(Self {
            data: filter(Role::Data)?,
            helper: filter(Role::Helper)?,
            events: filter(Role::Events)?,
            control: filter(Role::Control)?,
        })
    }
}

fn protect_memory() {
    if let Err(error) = forbid_dumps() {
        tracing::warn!(%error, "core dumps cannot be switched off");
    }
    if let Err(error) = lock_memory() {
        tracing::warn!(
            %error,
            "keys may get into swap: locking memory needs CAP_IPC_LOCK or `ulimit -l unlimited`"
        );
    }
}

fn limit(files: &[(&Path, FileAccess)]) -> Option<FileLimits> {
    match limit_files(files) {
        Ok(limits) => {
            if limits.landlock != Landlock::Full {
                tracing::debug!(landlock = ?limits.landlock, "files are limited only in part");
            }
            Some(limits)
        }
        Err(error) => {
            let error = error_chain(&error);
            tracing::warn!(error, "files are not limited");
            None
        }
    }
}
