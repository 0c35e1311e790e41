//! Inner packets that wait for a session.

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Packets kept per peer while there is no session.
pub const STAGED_PACKETS: usize = 128;

/// Inner packets waiting for a session, oldest first.
#[derive(Default)]
pub struct Staged {
    packets: VecDeque<Box<[u8]>>,
}

impl Staged {
    /// Takes the oldest packet.
    pub fn pop_front(&mut self) -> Option<Box<[u8]>> {
        let packet = self.packets.pop_front();
        if self.packets.is_empty() {
            // An idle peer keeps no buffer.
            self.packets = VecDeque::new();
        }
        packet
    }

    /// Number of packets waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether none wait.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    pub(crate) fn push_back(&mut self, packet: &[u8]) {
        self.packets.push_back(packet.into());
    }

    /// Drops all packets; returns how many.
    pub(crate) fn clear(&mut self) -> usize {
        std::mem::take(&mut self.packets).len()
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged").field("len", &self.len()).finish()
    }
}

/// The staged packets of a peer, locked. Whoever drains them sends them before letting go, so that
/// no later packet overtakes them.
#[derive(Debug)]
pub struct StagedGuard<'a> {
    staged: MutexGuard<'a, Staged>,
    any: &'a AtomicBool,
}

impl<'a> StagedGuard<'a> {
    /// Locks the packets; `any` says without the lock whether there are some.
    pub(crate) fn lock(staged: &'a Mutex<Staged>, any: &'a AtomicBool) -> Self {
        Self {
            staged: staged.lock().unwrap_or_else(PoisonError::into_inner),
            any,
        }
    }
}

impl Deref for StagedGuard<'_> {
    type Target = Staged;

    fn deref(&self) -> &Staged {
        &self.staged
    }
}

impl DerefMut for StagedGuard<'_> {
    fn deref_mut(&mut self) -> &mut Staged {
        &mut self.staged
    }
}

impl Drop for StagedGuard<'_> {
    fn drop(&mut self) {
        self.any.store(!self.staged.is_empty(), Ordering::Release);
    }
}
