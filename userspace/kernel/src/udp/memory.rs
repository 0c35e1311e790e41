//! Remembering where segmented sends do not get through.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long a destination is served packet by packet. A failing call each time this has passed is
/// cheap; after a route has got wider, full speed is back within it.
const LIFETIME: Duration = Duration::from_secs(10);

/// Destinations at once. A tunnel has few behind a narrow route; with more, the oldest is
/// forgotten and costs one failing call.
const CAPACITY: usize = 16;

/// A destination and the smallest segment it refused.
#[derive(Clone, Copy, Debug)]
struct Limit {
    destination: SocketAddr,
    segment_size: usize,
    until: Instant,
}

/// Destinations whose route MTU is below the outer packet, for which the kernel does not segment
/// but fragments each packet.
#[derive(Debug, Default)]
pub(super) struct SegmentLimits {
    limits: [Option<Limit>; CAPACITY],
    /// Lets the common case pass without looking at the clock.
    any: bool,
}

impl SegmentLimits {
    /// Whether segments of this size to `destination` were refused of late.
    pub(super) fn refuses(
        &mut self,
        destination: &SocketAddr,
        segment_size: usize,
        now: impl FnOnce() -> Instant,
    ) -> bool {
        if !self.any {
            return false;
        }
        let now = now();
        for slot in &mut self.limits {
            if slot.is_some_and(|limit| limit.until <= now) {
                *slot = None;
            }
        }
        self.any = self.limits.iter().any(Option::is_some);
        self.limits
            .iter()
            .flatten()
            .any(|limit| limit.destination == *destination && segment_size >= limit.segment_size)
    }

    /// Notes a refusal.
    pub(super) fn remember(&mut self, destination: SocketAddr, segment_size: usize, now: Instant) {
        self.any = true;
        let same = self
            .limits
            .iter()
            .position(|slot| slot.is_some_and(|limit| limit.destination == destination));
        let free = || self.limits.iter().position(Option::is_none);
        let oldest = || {
            let age = |index: &usize| self.limits[*index].map(|limit| limit.until);
            (0..CAPACITY).min_by_key(age).unwrap_or(0)
        };
        let index = same.or_else(free).unwrap_or_else(oldest);
        self.limits[index] = Some(Limit {
            destination,
            segment_size,
            until: now + LIFETIME,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    #[test]
    fn remembers_the_destination_and_larger_segments_for_a_while() {
        let now = Instant::now();
        let mut limits = SegmentLimits::default();
        assert!(!limits.refuses(&destination(1), 1400, || unreachable!(
            "no clock when empty"
        )));
        limits.remember(destination(1), 1400, now);
        assert!(limits.refuses(&destination(1), 1400, || now));
        assert!(limits.refuses(&destination(1), 1500, || now));
        assert!(!limits.refuses(&destination(1), 1200, || now));
        assert!(!limits.refuses(&destination(2), 1400, || now));
        assert!(!limits.refuses(&destination(1), 1400, || now + LIFETIME));
        assert!(!limits.any);
    }

    #[test]
    fn the_oldest_gives_way() {
        let now = Instant::now();
        let mut limits = SegmentLimits::default();
        for port in 0..=16 {
            limits.remember(
                destination(port),
                1400,
                now + Duration::from_millis(port.into()),
            );
        }
        assert!(!limits.refuses(&destination(0), 1400, || now));
        assert!((1..=16).all(|port| limits.refuses(&destination(port), 1400, || now)));
        limits.remember(destination(3), 1300, now);
        assert!(limits.refuses(&destination(3), 1300, || now));
        assert!(limits.refuses(&destination(4), 1400, || now));
    }
}
