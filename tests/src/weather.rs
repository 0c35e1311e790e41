//! What a bad network does to datagrams, decided by dice that fall the same way for the same seed.
//!
//! [`Sky`] has no clock and no sockets: a relay gives it what arrives and the time, and is told what to pass on and when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// How long a datagram that is to be overtaken is held back; any longer than the next one takes to arrive will do.
const DETOUR: Duration = Duration::from_millis(2);

/// Bits flipped at most in a datagram that is corrupted.
const FLIPS: u64 = 8;

/// How a network treats datagrams; chances are per thousand. Without anything it passes them on as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Not passed on.
    pub loss: u64,
    /// Passed on twice.
    pub duplication: u64,
    /// Passed on later than others that came after it.
    pub reordering: u64,
    /// Passed on with one to eight bits of it flipped, in any bytes.
    pub corruption: u64,
    /// Passed on without its end, possibly without any of it.
    pub truncation: u64,
    /// How long every datagram takes.
    pub delay: Duration,
    /// Bytes a second that get through; what comes faster waits.
    pub rate: Option<Rate>,
}

/// A bottleneck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Payload bytes a second.
    pub bytes_per_second: u32,
    /// Datagrams that may wait in front of it; those beyond are lost.
    pub queue: usize,
}

/// What became of datagrams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed on, repetitions included.
    pub passed: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Repeated.
    pub duplicated: u64,
    /// Passed on after one that had come later.
    pub reordered: u64,
    /// Changed.
    pub corrupted: u64,
    /// Cut.
    pub truncated: u64,
    /// Passed on later than they came.
    pub delayed: u64,
    /// Lost for want of room in front of the bottleneck.
    pub overflowed: u64,
}

/// Dice: xorshift64\*, repeatable, and good enough to roll.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Dice that fall as the seed says.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Seeds that differ in a bit shall differ in every roll, and zero is the one state to avoid.
        Self((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1)
    }

    /// A number below `sides`, which must not be 0.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20) % sides
    }

    /// As [`Dice::roll`], for lengths.
    pub fn index(&mut self, below: usize) -> usize {
        usize::try_from(self.roll(below as u64)).unwrap_or(0)
    }

    /// True so many times in a thousand.
    pub fn happens(&mut self, per_thousand: u64) -> bool {
        per_thousand > 0 && self.roll(1000) < per_thousand
    }
}

/// The weather over one direction.
#[derive(Debug)]
pub struct Sky {
    dice: Dice,
    /// What is under way, by when it is due, then by when it came.
    under_way: BinaryHeap<Reverse<Datagram>>,
    arrivals: u64,
    /// The latest arrival that was passed on.
    passed: u64,
    /// Until when the bottleneck is busy.
    busy: Option<Instant>,
    counts: Counts,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Datagram {
    due: Instant,
    arrival: u64,
    came: Instant,
    bytes: Vec<u8>,
}

impl Sky {
    /// A sky whose dice fall as the seed says.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            dice: Dice::new(seed),
            under_way: BinaryHeap::new(),
            arrivals: 0,
            passed: 0,
            busy: None,
            counts: Counts::default(),
        }
    }

    /// Takes a datagram that has come.
    pub fn take(&mut self, weather: &Weather, now: Instant, datagram: &[u8]) {
        if self.dice.happens(weather.loss) {
            self.counts.lost += 1;
            return;
        }
        let mut bytes = datagram.to_vec();
        if self.dice.happens(weather.corruption) && !bytes.is_empty() {
            for _ in 0..=self.dice.roll(FLIPS) {
                let place = self.dice.index(bytes.len());
                bytes[place] ^= 1 << self.dice.roll(8);
            }
            self.counts.corrupted += u64::from(bytes != datagram);
        }
        if self.dice.happens(weather.truncation) && !bytes.is_empty() {
            bytes.truncate(self.dice.index(bytes.len()));
            self.counts.truncated += 1;
        }
        if self.dice.happens(weather.duplication) {
            self.counts.duplicated += 1;
            self.send(weather, now, bytes.clone());
        }
        self.send(weather, now, bytes);
    }

    fn send(&mut self, weather: &Weather, now: Instant, bytes: Vec<u8>) {
        let mut due = now;
        if let Some(rate) = weather.rate {
            let waiting = self
                .busy
                .map_or(Duration::ZERO, |busy| busy.saturating_duration_since(now));
            let per_byte = Duration::from_secs(1) / rate.bytes_per_second.max(1);
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            // What waits longer than a queue full of its like takes does not fit.
            let room = u32::try_from(rate.queue).unwrap_or(u32::MAX);
            if waiting > per_byte * length.max(1) * room {
                self.counts.overflowed += 1;
                return;
            }
            due = now + waiting + per_byte * length;
            self.busy = Some(due);
        }
        due += weather.delay;
        if self.dice.happens(weather.reordering) {
            due += DETOUR;
        }
        self.arrivals += 1;
        self.under_way.push(Reverse(Datagram {
            due,
            arrival: self.arrivals,
            came: now,
            bytes,
        }));
    }

    /// A datagram to be passed on by now.
    pub fn pass(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.next()? > now {
            return None;
        }
        let Reverse(datagram) = self.under_way.pop()?;
        self.counts.passed += 1;
        self.counts.delayed += u64::from(datagram.due > datagram.came);
        self.counts.reordered += u64::from(datagram.arrival < self.passed);
        self.passed = self.passed.max(datagram.arrival);
        Some(datagram.bytes)
    }

    /// When there will be something to pass on.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.under_way.peek().map(|Reverse(datagram)| datagram.due)
    }

    /// What became of all datagrams so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

impl Counts {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            lost: self.lost + other.lost,
            duplicated: self.duplicated + other.duplicated,
            reordered: self.reordered + other.reordered,
            corrupted: self.corrupted + other.corrupted,
            truncated: self.truncated + other.truncated,
            delayed: self.delayed + other.delayed,
            overflowed: self.overflowed + other.overflowed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: u64 = 10_000;

    /// Sends numbered datagrams a microsecond apart and returns what comes, in order.
    fn through(sky: &mut Sky, weather: &Weather) -> Vec<Vec<u8>> {
        let mut now = Instant::now();
        let mut passed = Vec::new();
        for number in 0..COUNT {
            let mut datagram = vec![0; 100];
            datagram[..8].copy_from_slice(&number.to_le_bytes());
            sky.take(weather, now, &datagram);
            now += Duration::from_micros(1);
            passed.extend(std::iter::from_fn(|| sky.pass(now)));
        }
        now += Duration::from_secs(3600);
        passed.extend(std::iter::from_fn(|| sky.pass(now)));
        passed
    }

    fn numbers(datagrams: &[Vec<u8>]) -> Vec<u64> {
        let number = |datagram: &Vec<u8>| u64::from_le_bytes(*datagram.first_chunk().unwrap());
        datagrams.iter().map(number).collect()
    }

    #[test]
    fn fair_weather_changes_nothing() {
        let mut sky = Sky::new(1);
        let passed = through(&mut sky, &Weather::default());
        assert!(numbers(&passed).into_iter().eq(0..COUNT));
        let expected = Counts {
            passed: COUNT,
            ..Counts::default()
        };
        assert_eq!(sky.counts(), expected);
    }

    #[test]
    fn the_same_seed_is_the_same_weather() {
        let weather = Weather {
            loss: 100,
            duplication: 100,
            reordering: 100,
            corruption: 100,
            truncation: 100,
            ..Weather::default()
        };
        let [one, same, other] = [7, 7, 8].map(|seed| through(&mut Sky::new(seed), &weather));
        assert!(one == same && one != other);
    }

    #[test]
    fn chances_are_kept() {
        for chance in [10, 500, 1000] {
            let weather = Weather {
                loss: chance,
                ..Weather::default()
            };
            let mut sky = Sky::new(3);
            through(&mut sky, &weather);
            let expected = COUNT * chance / 1000;
            assert!(sky.counts().lost.abs_diff(expected) <= expected / 3);
            assert_eq!(sky.counts().lost + sky.counts().passed, COUNT);
        }
    }

    #[test]
    fn delay_and_a_bottleneck_keep_the_order() {
        let weather = Weather {
            delay: Duration::from_millis(5),
            rate: Some(Rate {
                bytes_per_second: 1_000_000,
                queue: 10,
            }),
            ..Weather::default()
        };
        let mut sky = Sky::new(4);
        let passed = through(&mut sky, &weather);
        assert!(numbers(&passed).is_sorted());
        let counts = sky.counts();
        assert_eq!(counts.overflowed + counts.passed, COUNT);
        assert_eq!((counts.delayed, counts.reordered), (counts.passed, 0));
        // A datagram takes 100 µs: one of a hundred gets through, and the queue's content at the end.
        assert!((100..=120).contains(&counts.passed), "{counts:?}");
    }

    #[test]
    fn reordering_loses_nothing() {
        let weather = Weather {
            reordering: 50,
            ..Weather::default()
        };
        let mut sky = Sky::new(5);
        let mut passed = numbers(&through(&mut sky, &weather));
        assert!(!passed.is_sorted() && sky.counts().reordered > COUNT / 40);
        passed.sort_unstable();
        assert!(passed.into_iter().eq(0..COUNT));
    }
}
