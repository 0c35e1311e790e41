//! The limits on handshake messages while userspace is under load.
//!
//! Those with a second MAC are limited per source: it is made up, or its sender has been told a cookie. Those without are
//! answered with a cookie at most, so few are enough for each source. All sources can be forged, so either kind has a
//! limit for all of them together, too, which keeps a flood from taking the processor that existing sessions need.

use adit_ebpf::{
    BARE_BURST, BARE_PER_SECOND, Bucket, COMMON_BURST, COMMON_PER_SECOND, Config, Family, SourceKey,
};
use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_ktime_get_coarse_ns};

use crate::{
    maps::{BARE_SOURCES, COMMON, CONFIG, SOURCES, Sources},
    words::{Words, bytes},
};

const SECOND_NS: u64 = 1_000_000_000;

/// A rate and a burst in units of time.
struct Allowance {
    /// Nanoseconds that one message costs.
    cost: u64,
    /// Nanoseconds of credit there can be.
    full: u64,
}

impl Allowance {
    /// `None` if nothing is allowed.
    #[inline(always)]
    fn new(per_second: u32, burst: u32) -> Option<Self> {
        if per_second == 0 || burst == 0 {
            return None;
        }
        let cost = SECOND_NS / u64::from(per_second);
        Some(Self {
            cost,
            full: cost * u64::from(burst),
        })
    }

    /// Takes a message's cost from a bucket; false if there is too little in it.
    ///
    /// CPUs that do so at the same instant may each let a message too many through: a lock would cost every honest packet
    /// more than that costs us.
    #[inline(always)]
    fn take(&self, bucket: &mut Bucket, now: u64) -> bool {
        let mut credit = bucket.credit_ns + now.saturating_sub(bucket.last_ns);
        if credit > self.full {
            credit = self.full;
        }
        bucket.last_ns = now;
        let enough = credit >= self.cost;
        bucket.credit_ns = if enough { credit - self.cost } else { credit };
        enough
    }
}

/// The configuration, if handshake messages are to be limited.
#[inline(always)]
pub(crate) fn under_load() -> Option<&'static Config> {
    CONFIG.get(0).filter(|config| config.under_load != 0)
}

/// Whether a handshake message from `source` may pass now; takes its token if so. `bare` says that its second MAC is
/// missing.
#[inline(always)]
pub(crate) fn admit(config: &Config, source: Words, family: Family, bare: bool) -> bool {
    let prefix = match family {
        Family::V4 => source,
        Family::V6 => [source[0], 0],
    };
    let key = SourceKey {
        prefix: bytes(prefix),
    };
    // SAFETY: the helper takes no argument and only reads the clock.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let (each, sources) = if bare {
        (Allowance::new(BARE_PER_SECOND, BARE_BURST), &BARE_SOURCES)
    } else {
        let (rate, burst) = (config.handshakes_per_second, config.handshake_burst);
        (Allowance::new(rate, burst), &SOURCES)
    };
    let all = Allowance::new(COMMON_PER_SECOND, COMMON_BURST);
    let (Some(each), Some(all)) = (each, all) else {
        return false;
    };
    if !allows(&each, sources, key, now) {
        return false;
    }
    match COMMON.get_ptr_mut(u32::from(bare)) {
        // SAFETY: the pointer comes from a lookup in this invocation; all bytes are a bucket, whoever wrote them last.
        Some(bucket) => all.take(unsafe { &mut *bucket }, now),
        None => true,
    }
}

/// Whether a source has credit left; one that is not known has a full bucket.
#[inline(always)]
fn allows(allowance: &Allowance, sources: &Sources, key: SourceKey, now: u64) -> bool {
    if let Some(bucket) = sources.get_ptr_mut(key) {
        // SAFETY: the pointer comes from a lookup in this invocation. If the entry is evicted meanwhile the bucket of
        // another source is charged once, which is harmless.
        return allowance.take(unsafe { &mut *bucket }, now);
    }
    let bucket = Bucket {
        credit_ns: allowance.full - allowance.cost,
        last_ns: now,
    };
    // A full map evicts the oldest source, so this fails only for want of memory; the message may pass then.
    let _ = sources.insert(key, bucket, u64::from(BPF_ANY));
    true
}
