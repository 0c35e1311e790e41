//! Where the latest data messages went, per CPU.
//!
//! A message that goes where one of the latest went needs no look-up of listener, index and device: three hash tables
//! that cost as much as the rest of the program together. No rule is loosened by that: an entry counts only while
//! `epoch` is what it was before those look-ups, and userspace changes `epoch` after it has taken anything out of those
//! maps. An index dies here in the same instant as there.

use core::arch::asm;

use adit_ebpf::{Device, SessionKey};
use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};

use crate::{maps::EPOCH, words::Words};

/// Entries per CPU, a power of two. An index is random, so each has its place by its lowest bits.
const ENTRIES: u32 = 64;

/// Of the messages that find their place taken, one in so many takes it over.
const PATIENCE: u32 = 16;

/// Where a data message goes.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The address of ours.
    pub(crate) destination: Words,
    /// The port of ours, host order.
    pub(crate) port: u32,
    /// The interface it came in on.
    pub(crate) ifindex: u32,
    /// The receiver index.
    pub(crate) receiver: SessionKey,
}

/// A place, and what was found for it.
#[repr(C)]
struct Entry {
    /// What `epoch` was; it starts with 1, so an empty entry never counts.
    epoch: u64,
    destination: Words,
    port: u32,
    ifindex: u32,
    receiver: u32,
    /// Messages for other places that have come since.
    others: u32,
    device: Device,
    padding: u32,
}

#[btf_map(name = "recent")]
static RECENT: PerCpuArray<Entry, { ENTRIES as usize }> = PerCpuArray::new();

/// The entry for a receiver index.
#[inline(always)]
fn entry<'a>(receiver: SessionKey) -> Option<&'a mut Entry> {
    let entry = RECENT.get_ptr_mut(receiver & (ENTRIES - 1))?;
    // SAFETY: the pointer comes from a lookup in this invocation and is this CPU's own value. Programs run with bottom
    // halves off, so nothing else on this CPU touches it meanwhile, and no caller holds two.
    Some(unsafe { &mut *entry })
}

/// What was found for this place, if that still holds.
#[inline(always)]
pub(crate) fn find(place: &Place) -> Option<Device> {
    let entry = entry(place.receiver)?;
    let known = entry.receiver == place.receiver
        && entry.destination[0] == place.destination[0]
        && entry.destination[1] == place.destination[1]
        && entry.port == place.port
        && entry.ifindex == place.ifindex
        && entry.epoch == *EPOCH.get(0)?;
    known.then_some(entry.device)
}

/// Remembers a place that was just found to be good, if its entry is to be had: what `look_up` finds is what counts.
#[inline(always)]
pub(crate) fn remember(place: &Place, look_up: impl FnOnce() -> Option<Device>) -> Option<()> {
    let entry = entry(place.receiver)?;
    let epoch = EPOCH.get_ptr_mut(0)?;
    // SAFETY: the pointer comes from a lookup in this invocation, and the kernel writes the eight bytes in one piece.
    if entry.epoch == unsafe { epoch.read_volatile() } {
        entry.others = entry.others.wrapping_add(1);
        if entry.others % PATIENCE != 0 {
            return None;
        }
    }
    let epoch = load_before_all_else(epoch);
    let device = look_up()?;
    *entry = Entry {
        epoch,
        destination: place.destination,
        port: place.port,
        ifindex: place.ifindex,
        receiver: place.receiver,
        others: 0,
        device,
        padding: 0,
    };
    Some(())
}

/// Reads a number in a map; what is read after it in the program is read after it in time too.
///
/// A plain load does not promise that on every architecture, and the compiler knows no atomic operation of BPF that
/// does: one that returns the value before is a full barrier (Documentation/bpf/standardization/instruction-set.rst).
#[inline(always)]
fn load_before_all_else(number: *mut u64) -> u64 {
    let mut value = 0_u64;
    // SAFETY: callers pass the pointer of a map value of eight bytes; nothing is added to it.
    unsafe {
        asm!(
            "{value} = atomic_fetch_or((u64 *)({number} + 0), {value})",
            value = inout(reg) value,
            number = in(reg) number,
        );
    }
    value
}
