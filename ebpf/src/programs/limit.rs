//! The limit on handshake messages per source while userspace is under load.

use adit_ebpf::{Bucket, Config, Family, SourceKey};
use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_ktime_get_coarse_ns};

use crate::{
    maps::SOURCES,
    words::{Words, bytes},
};

const SECOND_NS: u64 = 1_000_000_000;

/// Whether a handshake message from `source` may pass now; takes its token if so.
///
/// Two CPUs that serve one source at the same instant may let one message too many through: a lock would cost every
/// honest packet more than that costs us.
#[inline(always)]
pub(crate) fn admit(config: &Config, source: Words, family: Family) -> bool {
    let rate = u64::from(config.handshakes_per_second);
    if rate == 0 {
        return false;
    }
    let cost = SECOND_NS / rate;
    let full = cost * u64::from(config.handshake_burst);
    let prefix = match family {
        Family::V4 => source,
        Family::V6 => [source[0], 0],
    };
    let key = SourceKey {
        prefix: bytes(prefix),
    };
    // SAFETY: the helper takes no argument and only reads the clock.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if let Some(bucket) = SOURCES.get_ptr_mut(key) {
        // SAFETY: the pointer comes from a lookup in this invocation. If the entry is evicted meanwhile the bucket of
        // another source is charged once, which is harmless.
        let bucket = unsafe { &mut *bucket };
        let mut credit = bucket.credit_ns + now.saturating_sub(bucket.last_ns);
        if credit > full {
            credit = full;
        }
        bucket.last_ns = now;
        if credit < cost {
            bucket.credit_ns = credit;
            return false;
        }
        bucket.credit_ns = credit - cost;
        return true;
    }
    if full < cost {
        return false;
    }
    // A full map evicts the oldest source, so this fails only for want of memory; the message may pass then.
    let _ = SOURCES.insert(
        key,
        Bucket {
            credit_ns: full - cost,
            last_ns: now,
        },
        u64::from(BPF_ANY),
    );
    true
}
