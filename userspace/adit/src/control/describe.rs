//! The answer to `get=1`, which is what `wg show` prints.

use std::fmt::Write as _;

use zeroize::Zeroizing;

use super::Control;
use crate::instant;

impl Control {
    /// Appends the device and its peers in the order that wg(8) expects.
    pub(super) fn describe_device(&self, answer: &mut String) {
        // Grown at once: a string that grows leaves copies of the keys behind.
        answer.reserve(8192 + self.device.peer_count() * 512 + self.device.allowed_ip_count() * 64);
        if let Some(key) = self.device.private_key() {
            hex_line(answer, "private_key", key.as_bytes());
        }
        // Writing to a String cannot fail.
        let _ = writeln!(answer, "listen_port={}", self.port);
        if self.mark != 0 {
            let _ = writeln!(answer, "fwmark={}", self.mark);
        }
        self.describe_state(answer);
        for peer in self.device.peers() {
            hex_line(answer, "public_key", peer.public_key.as_bytes());
            match peer.preshared_key {
                Some(key) => hex_line(answer, "preshared_key", key.as_bytes()),
                None => hex_line(answer, "preshared_key", &[0; 32]),
            }
            answer.push_str("protocol_version=1\n");
            if let Some(endpoint) = peer.endpoint {
                let _ = writeln!(answer, "endpoint={}", endpoint.address);
            }
            let handshake = peer.last_handshake.unwrap_or_default();
            let (seconds, nanoseconds) = (handshake.as_secs(), handshake.subsec_nanos());
            let _ = writeln!(answer, "last_handshake_time_sec={seconds}");
            let _ = writeln!(answer, "last_handshake_time_nsec={nanoseconds}");
            if let Some(taken) = peer.round_trip {
                let _ = writeln!(answer, "adit_round_trip_us={}", taken.as_micros());
            }
            let _ = writeln!(answer, "tx_bytes={}", peer.tx_bytes);
            let _ = writeln!(answer, "rx_bytes={}", peer.rx_bytes);
            let _ = writeln!(answer, "persistent_keepalive_interval={}", peer.keepalive);
            for prefix in peer.allowed_ips {
                let _ = writeln!(
                    answer,
                    "allowed_ip={}/{}",
                    prefix.address(),
                    prefix.length()
                );
            }
        }
    }

    /// Appends the data path and the counters: nothing secret, nothing of peers.
    pub(super) fn describe_state(&self, answer: &mut String) {
        let uptime = instant().saturating_duration_since(self.started);
        let _ = writeln!(answer, "adit_uptime_seconds={}", uptime.as_secs());
        self.steerer.describe(answer);
        self.shared.counters.describe(answer);
        for (reason, count) in self.steerer.drops() {
            let _ = writeln!(answer, "adit_drop_ebpf_{reason}={count}");
        }
        let omitted = crate::logging::omitted();
        let _ = writeln!(answer, "adit_log_lines_omitted={omitted}");
        let staged: u64 = self.device.links().map(|link| link.staged_dropped()).sum();
        let _ = writeln!(answer, "adit_drop_egress_staged={staged}");
        let sockets = self.shared.sockets.load();
        let unread = sockets.as_ref().map_or(0, |group| group.receive_drops());
        let _ = writeln!(answer, "adit_drop_ingress_socket_buffer={unread}");
        let refused = self.device.counters();
        let handshakes = [
            ("mac1", refused.invalid_mac1),
            ("rate_limited", refused.rate_limited),
            ("cookie_demanded", refused.cookie_replies_sent),
            ("invalid", refused.invalid_handshake),
            ("replayed", refused.replayed_initiation),
            ("flooded", refused.flooded_initiation),
            ("unknown_index", refused.unknown_index),
            ("invalid_cookie_reply", refused.invalid_cookie_reply),
        ];
        for (reason, count) in handshakes {
            let _ = writeln!(answer, "adit_drop_handshake_{reason}={count}");
        }
    }
}

/// The bytes are looked at by arithmetic alone, since some of them are secret.
pub(super) fn hex_line(answer: &mut String, name: &str, bytes: &[u8; 32]) {
    let mut digits = Zeroizing::new([0; 64]);
    for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[hex_digit(byte >> 4), hex_digit(byte & 15)]);
    }
    answer.push_str(name);
    answer.push('=');
    answer.push_str(std::str::from_utf8(&*digits).expect("digits are ASCII"));
    answer.push('\n');
}

/// `nibble` is below 16. Adds the distance from '9' to 'a' for those above 9, without a branch.
fn hex_digit(nibble: u8) -> u8 {
    let above_nine = 9u8.wrapping_sub(nibble) >> 7;
    b'0' + nibble + above_nine * (b'a' - b'9' - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_hexadecimal() {
        let digits: String = (0..16).map(hex_digit).map(char::from).collect();
        assert_eq!(digits, "0123456789abcdef");
    }
}
