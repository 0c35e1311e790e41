//! Per-source limits while under load: on handshakes, a token bucket for each IPv4 address and each
//! IPv6 /64 (kernel, `ratelimiter.c`); on cookie replies, a pause after each.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use crate::time::Instant;

/// Handshakes a second from one source.
const PER_SECOND: u64 = 20;
/// Handshakes a source may send at once after silence.
const BURST: u64 = 5;
/// Nanoseconds of waiting that one handshake costs.
const COST: u64 = 1_000_000_000 / PER_SECOND;
/// Sources remembered at once. Beyond that, new sources are refused: each entry has already shown a
/// valid `mac2`, so it takes that many real addresses to get here.
const CAPACITY: usize = 65_536;
/// A bucket is full again, and so can be forgotten, after BURST / PER_SECOND; sweeping once a second
/// is enough.
const SWEEP: Duration = Duration::from_secs(1);
/// A source that was just told its cookie is told nothing for so long: it needs only one, and whoever
/// goes on without it is not at that address.
const REPLY_PAUSE: Duration = Duration::from_millis(100);
/// Places for the sources of cookie replies. Any address can be forged, so they are shared by chance,
/// and anew every second: a flood that takes the place of an honest source does not keep it.
const REPLY_PLACES: usize = 4096;

/// One source: an IPv4 address or an IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    V4(u32),
    V6([u16; 4]),
}

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self::V6([a, b, c, d])
            }
        }
    }
}

#[derive(Debug)]
struct Bucket {
    tokens: u64,
    updated: Instant,
}

/// The buckets of all sources seen of late.
#[derive(Debug, Default)]
pub(crate) struct RateLimiter {
    buckets: HashMap<Source, Bucket>,
    swept: Instant,
}

impl RateLimiter {
    /// Takes one token of the source; false if it has none left.
    pub(crate) fn allow(&mut self, now: Instant, address: IpAddr) -> bool {
        if now.saturating_duration_since(self.swept) >= SWEEP {
            self.swept = now;
            self.buckets
                .retain(|_, bucket| now.saturating_duration_since(bucket.updated) < SWEEP);
            if self.buckets.is_empty() {
                self.buckets = HashMap::new();
            }
        }
        let source = Source::of(address);
        if let Some(bucket) = self.buckets.get_mut(&source) {
            let passed = now.as_nanos().saturating_sub(bucket.updated.as_nanos());
            bucket.tokens = bucket.tokens.saturating_add(passed).min(COST * BURST);
            bucket.updated = now.max(bucket.updated);
            let allowed = bucket.tokens >= COST;
            if allowed {
                bucket.tokens -= COST;
            }
            return allowed;
        }
        if self.buckets.len() >= CAPACITY {
            return false;
        }
        let tokens = COST * (BURST - 1);
        self.buckets.insert(
            source,
            Bucket {
                tokens,
                updated: now,
            },
        );
        true
    }
}

/// When sources were sent cookies, by places that they share.
#[derive(Debug, Default)]
pub(crate) struct ReplyLimiter {
    /// Empty while there is no load.
    last: Vec<Option<Instant>>,
    chance: RandomState,
    mixed: Instant,
}

impl ReplyLimiter {
    /// Whether the source may be sent a cookie; if so, its place is taken for a while.
    pub(crate) fn allow(&mut self, now: Instant, address: IpAddr) -> bool {
        if self.last.is_empty() || now.saturating_duration_since(self.mixed) >= SWEEP {
            self.last.resize(REPLY_PLACES, None);
            self.chance = RandomState::new();
            self.mixed = now;
        }
        let hash = self.chance.hash_one(Source::of(address));
        let place = usize::try_from(hash % REPLY_PLACES as u64).unwrap_or(0);
        let Some(last) = self.last.get_mut(place) else {
            return false;
        };
        let allowed = last.is_none_or(|last| now.saturating_duration_since(last) >= REPLY_PAUSE);
        if allowed {
            *last = Some(now);
        }
        allowed
    }

    /// Gives the memory back once the load is over.
    pub(crate) fn forget(&mut self) {
        self.last = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_told_its_cookie_ten_times_a_second() {
        let mut limiter = ReplyLimiter::default();
        let source = IpAddr::from([192, 0, 2, 1]);
        assert!(limiter.allow(at(1000), source));
        assert!(!limiter.allow(at(1000), source));
        assert!(!limiter.allow(at(1099), source));
        assert!(limiter.allow(at(1100), source));
        limiter.forget();
        assert!(limiter.last.is_empty());
        assert!(limiter.allow(at(1101), source));
    }

    #[test]
    fn a_flood_of_sources_keeps_nobody_from_a_cookie_for_long() {
        let mut limiter = ReplyLimiter::default();
        let honest = IpAddr::from([192, 0, 2, 1]);
        let mut told = 0;
        let mut replies = 0;
        for millis in 0..60_000 {
            // 20,000 a second, from 1,000 sources.
            for number in 0..20_u32 {
                let source = 0xc612_0000 + (u32::try_from(millis).unwrap() * 20 + number) % 1000;
                replies += u32::from(limiter.allow(at(millis), IpAddr::V4(source.into())));
            }
            if millis % 5000 == 77 {
                told += u32::from(limiter.allow(at(millis), honest));
            }
        }
        assert!(told >= 3, "{told} of 12 attempts");
        assert!(replies <= 60 * 10 * 1000 + 60 * 4096, "{replies}");
        assert_eq!(limiter.last.len(), REPLY_PLACES);
    }

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn twenty_a_second_with_a_burst_of_five() {
        let mut limiter = RateLimiter::default();
        let source = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..5 {
            assert!(limiter.allow(at(10_000), source));
        }
        assert!(!limiter.allow(at(10_000), source));
        assert!(!limiter.allow(at(10_049), source));
        assert!(limiter.allow(at(10_050), source));
        assert!(!limiter.allow(at(10_050), source));
        let accepted = (10_051..20_051)
            .filter(|&millis| limiter.allow(at(millis), source))
            .count();
        assert_eq!(accepted, 200);
        // Rest fills the bucket, but no further than the burst.
        let burst = (0..10)
            .filter(|_| limiter.allow(at(60_000), source))
            .count();
        assert_eq!(burst, 5);
    }

    #[test]
    fn ipv4_by_address_and_ipv6_by_64() {
        let mut limiter = RateLimiter::default();
        let mut exhaust = |address: &str| {
            let address = address.parse().unwrap();
            (0..10).filter(|_| limiter.allow(at(5000), address)).count()
        };
        assert_eq!(exhaust("192.0.2.1"), 5);
        assert_eq!(exhaust("192.0.2.2"), 5);
        assert_eq!(exhaust("::ffff:192.0.2.1"), 0);
        assert_eq!(exhaust("2001:db8::1"), 5);
        assert_eq!(exhaust("2001:db8::ffff:0:0:2"), 0);
        assert_eq!(exhaust("2001:db8:0:1::1"), 5);
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let mut limiter = RateLimiter::default();
        for address in 0..70_000_u32 {
            let allowed = limiter.allow(at(1), IpAddr::V4(address.into()));
            assert_eq!(allowed, address < 65_536);
        }
        assert!(limiter.allow(at(2000), IpAddr::from([192, 0, 2, 1])));
        assert_eq!(limiter.buckets.len(), 1);
    }
}
