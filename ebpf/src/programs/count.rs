//! Flow and drop counters.

use adit_ebpf::{Direction, DropCounters, DropReason, FlowCounters, FlowKey};
use aya_ebpf::{EbpfContext, bindings::BPF_NOEXIST, helpers::bpf_ktime_get_coarse_ns};
use aya_log_ebpf::{debug, trace};

use crate::maps::{DROPS, FILTERED, FLOWS, UNCLAIMED};

/// Adds `packets` messages of `bytes` in total to a flow, which is created if it is new.
#[inline(always)]
pub(crate) fn flow<C: EbpfContext>(ctx: &C, key: &FlowKey, packets: u64, bytes: u64) {
    // SAFETY: the helper takes no argument and only reads the clock.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if let Some(counters) = FLOWS.get_ptr_mut(key) {
        add(counters, packets, bytes, now);
        return;
    }
    let first = FlowCounters {
        packets,
        bytes,
        first_seen_ns: now,
        last_seen_ns: now,
    };
    if FLOWS.insert(key, first, u64::from(BPF_NOEXIST)).is_ok() {
        if key.direction == Direction::Ingress as u16 {
            debug!(
                ctx,
                "new flow: in from [{:i}]:{} to [{:i}]:{}",
                key.remote_address,
                key.remote_port,
                key.local_address,
                key.local_port
            );
        } else {
            debug!(
                ctx,
                "new flow: out to [{:i}]:{} from [{:i}]:{}",
                key.remote_address,
                key.remote_port,
                key.local_address,
                key.local_port
            );
        }
    } else if let Some(counters) = FLOWS.get_ptr_mut(key) {
        // Another CPU saw the flow first; this CPU's counters exist now.
        add(counters, packets, bytes, now);
    }
}

#[inline(always)]
fn add(counters: *mut FlowCounters, packets: u64, bytes: u64, now: u64) {
    // SAFETY: the pointer comes from a lookup in this invocation and is this CPU's own value. Programs run with bottom
    // halves off, so nothing else on this CPU writes to it meanwhile.
    let counters = unsafe { &mut *counters };
    counters.packets += packets;
    counters.bytes += bytes;
    if counters.first_seen_ns == 0 {
        counters.first_seen_ns = now;
    }
    counters.last_seen_ns = now;
}

/// Counts a packet dropped for `reason`, of `bytes` of UDP payload.
#[inline(always)]
pub(crate) fn dropped<C: EbpfContext>(ctx: &C, reason: DropReason, bytes: u32) {
    let Some(counters) = DROPS.get_ptr_mut(reason as u32) else {
        return;
    };
    // SAFETY: as in `add`.
    let counters: &mut DropCounters = unsafe { &mut *counters };
    // A flood would fill the log with one line a packet: tell of the first, and of each 1024th after it.
    if counters.packets & 0x3ff == 0 {
        trace!(ctx, "dropped {} bytes for reason {}", bytes, reason as u32);
    }
    counters.packets += 1;
    counters.bytes += u64::from(bytes);
}

/// Notes that a message found no AF_XDP socket in its slot. CPUs may overwrite each other's counts: that it grows is
/// all that is looked for.
#[inline(always)]
pub(crate) fn unclaimed() {
    if let Some(count) = UNCLAIMED.get_ptr_mut(0) {
        // SAFETY: the pointer comes from a lookup in this invocation; a value of eight bytes is written in one piece.
        unsafe { count.write_volatile(count.read_volatile() + 1) };
    }
}

/// Notes that a socket gets one packet less.
#[inline(always)]
pub(crate) fn filtered() {
    if let Some(count) = FILTERED.get_ptr_mut(0) {
        // SAFETY: as in `add`.
        unsafe { *count += 1 };
    }
}
