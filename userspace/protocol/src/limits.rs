//! Every number of the protocol in one place.

use std::time::Duration;

/// Limits of time and count. [`Default`] is WireGuard (paper, section 6.1 and 6.5; kernel,
/// `messages.h` and `timers.h`); other values are for simulations that want a lifetime in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// After so many packets sent on a session a new handshake is wanted: 2^60.
    pub rekey_after_messages: u64,
    /// A session neither sends nor accepts this counter or a higher one: 2^64 − 2^13 − 1.
    pub reject_after_messages: u64,
    /// An initiator that sends on a session of this age wants a new handshake: 120 s.
    pub rekey_after_time: Duration,
    /// A session of this age neither sends nor receives: 180 s.
    pub reject_after_time: Duration,
    /// An initiation is repeated after this time, and never sent sooner after the last one: 5 s.
    pub rekey_timeout: Duration,
    /// Random addition to a retry, so that two peers do not stay in step: up to 333 ms.
    pub rekey_timeout_jitter: Duration,
    /// Initiations sent in vain before giving up: 20, about as many as fit 90 s.
    pub handshake_attempts: u32,
    /// Data received and nothing sent for this long is answered with a keepalive: 10 s.
    pub keepalive_timeout: Duration,
    /// The responder changes its cookie secret after this time: 120 s.
    pub cookie_secret_lifetime: Duration,
    /// The initiator uses a received cookie for this long: 120 s.
    pub cookie_lifetime: Duration,
    /// Shortest time between two initiations accepted from one peer: 20 ms, 50 a second.
    pub initiation_interval: Duration,
    /// So many handshake messages waiting mean that we are under load: 4096 / 8.
    pub under_load_backlog: usize,
    /// And for this long after that: 1 s.
    pub under_load_linger: Duration,
}

impl Limits {
    /// Age at which an initiator that only receives asks for a new handshake, once per session:
    /// 165 s, so that a keepalive and one retry still fit before the session ends.
    #[must_use]
    pub fn refresh_after_time(&self) -> Duration {
        self.reject_after_time
            .saturating_sub(self.keepalive_timeout)
            .saturating_sub(self.rekey_timeout)
    }

    /// Data sent and nothing authenticated back for this long leads to a new handshake: 15 s.
    #[must_use]
    pub fn new_handshake_timeout(&self) -> Duration {
        self.keepalive_timeout + self.rekey_timeout
    }

    /// Keys are wiped when no new session came for this long: 540 s.
    #[must_use]
    pub fn wipe_after_time(&self) -> Duration {
        self.reject_after_time * 3
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rekey_after_messages: 1 << 60,
            reject_after_messages: u64::MAX - (1 << 13),
            rekey_after_time: Duration::from_secs(120),
            reject_after_time: Duration::from_secs(180),
            rekey_timeout: Duration::from_secs(5),
            rekey_timeout_jitter: Duration::from_millis(333),
            handshake_attempts: 20,
            keepalive_timeout: Duration::from_secs(10),
            cookie_secret_lifetime: Duration::from_secs(120),
            cookie_lifetime: Duration::from_secs(120),
            initiation_interval: Duration::from_millis(20),
            under_load_backlog: 4096 / 8,
            under_load_linger: Duration::from_secs(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_wireguard() {
        let limits = Limits::default();
        assert_eq!(limits.rekey_after_messages, 1_152_921_504_606_846_976);
        // 2^64 - 2^13 - 1
        assert_eq!(limits.reject_after_messages, 18_446_744_073_709_543_423);
        assert_eq!(limits.refresh_after_time(), Duration::from_secs(165));
        assert_eq!(limits.new_handshake_timeout(), Duration::from_secs(15));
        assert_eq!(limits.wipe_after_time(), Duration::from_secs(540));
    }
}
