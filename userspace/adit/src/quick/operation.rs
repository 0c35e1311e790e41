//! A `set` operation of the configuration protocol under construction.

use std::fmt::Write as _;
use std::net::SocketAddr;

use adit_protocol::{Prefix, PresharedKey, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::config::Config;

/// Enough for what is said of the device.
const DEVICE: usize = 256;
/// Enough for what is said of a peer but for its prefixes.
const PEER: usize = 512;
/// Enough for a prefix.
const PREFIX: usize = 64;

/// The lines of an operation, keys among them: wiped when dropped.
#[derive(Clone)]
pub(super) struct Operation(Zeroizing<String>);

/// What is set of a peer.
#[derive(Clone, Default)]
pub(super) struct PeerChange {
    pub(super) preshared_key: Option<PresharedKey>,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) keepalive: Option<u16>,
    /// The prefixes given are all that the peer has from then on.
    pub(super) replace_allowed_ips: bool,
    /// The prefix, and whether it is given to the peer or taken from it.
    pub(super) allowed_ips: Vec<(Prefix, bool)>,
}

impl Operation {
    /// An operation of this many peers with this many prefixes together.
    pub(super) fn new(peers: usize, prefixes: usize) -> Self {
        let mut lines = Self(Zeroizing::default());
        lines.reserve(DEVICE + peers * PEER + prefixes * PREFIX);
        lines.add("set=1");
        lines
    }

    /// The text to send; an empty line ends it.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    fn reserve(&mut self, bytes: usize) {
        if self.0.capacity() - self.0.len() < bytes {
            // Growing in place would leave a copy behind that nobody wipes.
            let mut larger = String::with_capacity(2 * self.0.capacity() + bytes);
            larger.push_str(&self.0);
            self.0 = Zeroizing::new(larger);
        }
    }

    fn add(&mut self, line: &str) {
        self.reserve(line.len() + 1);
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn number(&mut self, key: &str, value: impl std::fmt::Display) {
        let mut line = String::new();
        // Writing to a string does not fail.
        let _ = write!(line, "{key}={value}");
        self.add(&line);
    }

    fn key(&mut self, key: &str, value: &[u8; 32]) {
        self.reserve(key.len() + 2 * value.len() + 2);
        self.0.push_str(key);
        self.0.push('=');
        for byte in value {
            self.0.push(hex_digit(byte >> 4));
            self.0.push(hex_digit(byte & 15));
        }
        self.0.push('\n');
    }

    /// `None` removes it.
    pub(super) fn private_key(&mut self, key: Option<&PrivateKey>) {
        self.key("private_key", key.map_or(&[0; 32], PrivateKey::as_bytes));
    }

    pub(super) fn listen_port(&mut self, port: u16) {
        self.number("listen_port", port);
    }

    pub(super) fn fwmark(&mut self, mark: u32) {
        self.number("fwmark", mark);
    }

    pub(super) fn replace_peers(&mut self) {
        self.add("replace_peers=true");
    }

    pub(super) fn remove_peer(&mut self, key: &PublicKey) {
        self.key("public_key", key.as_bytes());
        self.add("remove=true");
    }

    /// A new endpoint for a peer, if it is still there.
    pub(super) fn move_peer(&mut self, key: &PublicKey, endpoint: SocketAddr) {
        self.key("public_key", key.as_bytes());
        self.add("update_only=true");
        self.number("endpoint", endpoint);
    }

    pub(super) fn peer(&mut self, key: &PublicKey, change: &PeerChange) {
        self.key("public_key", key.as_bytes());
        if let Some(key) = &change.preshared_key {
            self.key("preshared_key", key.as_bytes());
        }
        if let Some(endpoint) = change.endpoint {
            self.number("endpoint", endpoint);
        }
        if let Some(seconds) = change.keepalive {
            self.number("persistent_keepalive_interval", seconds);
        }
        if change.replace_allowed_ips {
            self.add("replace_allowed_ips=true");
        }
        for (prefix, given) in &change.allowed_ips {
            let sign = if *given { "" } else { "-" };
            self.number("allowed_ip", format_args!("{sign}{prefix}"));
        }
    }

    /// What `wg setconf` sends of the interface: what a file does not say is taken away.
    pub(super) fn device(&mut self, config: &Config) {
        let interface = &config.interface;
        self.private_key(interface.private_key.as_ref());
        self.listen_port(interface.listen_port.unwrap_or(0));
        self.fwmark(interface.fwmark.unwrap_or(0));
    }

    /// What `wg setconf` sends of a file. `endpoints` has one entry for each peer.
    pub(super) fn whole(config: &Config, endpoints: &[Option<SocketAddr>]) -> Self {
        let prefixes = config.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
        let mut operation = Self::new(config.peers.len(), prefixes);
        operation.device(config);
        operation.replace_peers();
        for (peer, endpoint) in config.peers.iter().zip(endpoints) {
            operation.peer(&peer.public_key, &PeerChange::of(peer, *endpoint));
        }
        operation
    }
}

impl PeerChange {
    /// Everything a file says of a peer.
    pub(super) fn of(peer: &crate::config::Peer, endpoint: Option<SocketAddr>) -> Self {
        Self {
            preshared_key: peer.preshared_key.clone(),
            endpoint,
            keepalive: peer.persistent_keepalive,
            replace_allowed_ips: true,
            allowed_ips: peer
                .allowed_ips
                .iter()
                .map(|prefix| (*prefix, true))
                .collect(),
        }
    }
}

/// A digit of a secret: no branch and no index depends on it.
fn hex_digit(value: u8) -> char {
    // 1 from ten on.
    let letter = (9_u8.wrapping_sub(value)) >> 7;
    char::from(b'0' + value + letter * (b'a' - b'0' - 10))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uapi::request::Parser;

    #[test]
    fn digits_are_those_of_hexadecimal() {
        for value in 0..16 {
            assert_eq!(Some(hex_digit(value)), char::from_digit(value.into(), 16));
        }
    }

    #[test]
    fn the_daemon_understands_every_line() {
        let key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        let text = format!(
            "[Interface]\nPrivateKey={key}\nListenPort=1\nFwMark=off\n[Peer]\nPublicKey={key}\nPresharedKey={key}\n\
             AllowedIPs=10.0.0.0/8,fd00::/8\nPersistentKeepalive=25\n"
        );
        let config = crate::config::parse(&text).config;
        let endpoint = "[fe80::1%7]:5".parse().unwrap();
        let mut operation = Operation::whole(&config, &[Some(endpoint)]);
        let peer = config.peers[0].public_key;
        operation.remove_peer(&peer);
        operation.move_peer(&peer, endpoint);
        let change = PeerChange {
            allowed_ips: vec![(config.peers[0].allowed_ips[0], false)],
            ..PeerChange::default()
        };
        operation.peer(&peer, &change);
        let mut parser = Parser::default();
        let mut lines = operation.text().lines();
        assert_eq!(lines.next(), Some("set=1"));
        for line in lines {
            parser.line(line).unwrap_or_else(|_| panic!("{line}"));
        }
        assert!(operation.text().ends_with("allowed_ip=-10.0.0.0/8\n"));
    }
}
