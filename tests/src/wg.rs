//! `wg(8)`: keys, configuration, and its `show dump`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::Namespace;
use crate::command::{run, run_with_input};

/// A Curve25519 key pair in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The private key.
    pub private: String,
    /// The public key.
    pub public: String,
}

impl KeyPair {
    /// A new key pair, made by `wg genkey` and `wg pubkey`.
    ///
    /// # Errors
    /// `wg` is missing.
    pub fn generate() -> Result<Self> {
        let private = run(Command::new("wg").arg("genkey"))?.trim().to_owned();
        let public = run_with_input(Command::new("wg").arg("pubkey"), &private)?
            .trim()
            .to_owned();
        Ok(Self { private, public })
    }
}

/// A new preshared key in base64.
///
/// # Errors
/// `wg` is missing.
pub fn preshared_key() -> Result<String> {
    Ok(run(Command::new("wg").arg("genpsk"))?.trim().to_owned())
}

/// Hexadecimal form of a base64 key, as UAPI has it.
///
/// # Errors
/// Not base64.
pub fn hex(key: &str) -> Result<String> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(key)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// `count` distinct random public keys in base64. Any 32 bytes serve as one.
///
/// # Errors
/// No randomness.
pub fn random_public_keys(count: usize) -> Result<Vec<String>> {
    use base64::Engine as _;
    let mut bytes = vec![0; count * 32];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("getrandom: {e}"))?;
    Ok(bytes
        .chunks_exact(32)
        .map(|key| base64::engine::general_purpose::STANDARD.encode(key))
        .collect())
}

/// Runs `wg` with blank-separated arguments; it must succeed. Returns its standard output.
///
/// # Errors
/// `wg` failed; its words are in the error.
pub fn wg(namespace: &Namespace, arguments: &str) -> Result<String> {
    run(namespace.command("wg").args(arguments.split_whitespace()))
        .with_context(|| format!("wg {arguments}"))
}

/// Runs `wg ACTION IFACE FILE`, ACTION being `setconf`, `addconf` or `syncconf`.
///
/// # Errors
/// As [`wg`].
pub fn apply(namespace: &Namespace, action: &str, interface: &str, config: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), config)?;
    let path = file
        .path()
        .to_str()
        .context("temporary path is not UTF-8")?;
    wg(namespace, &format!("{action} {interface} {path}")).map(drop)
}

/// What `wg show IFACE dump` tells of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// Private key in base64, `None` if there is none.
    pub private_key: Option<String>,
    /// Its public key.
    pub public_key: Option<String>,
    /// UDP port, 0 while the interface is down.
    pub listen_port: u16,
    /// Firewall mark, 0 if off.
    pub fwmark: u32,
    /// The peers by public key.
    pub peers: HashMap<String, Peer>,
}

/// A peer in [`Dump`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Preshared key in base64, `None` if there is none.
    pub preshared_key: Option<String>,
    /// Where it was last heard of.
    pub endpoint: Option<SocketAddr>,
    /// Allowed prefixes, sorted.
    pub allowed_ips: Vec<String>,
    /// Unix time of the last handshake, 0 if never.
    pub latest_handshake: u64,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Persistent keepalive interval in seconds, `None` if off.
    pub keepalive: Option<u16>,
}

/// Runs `wg show IFACE dump`.
///
/// # Errors
/// `wg` failed or its output is not what its manual says.
pub fn dump(namespace: &Namespace, interface: &str) -> Result<Dump> {
    let text = wg(namespace, &format!("show {interface} dump"))?;
    parse_dump(&text).with_context(|| format!("wg show dump: {text}"))
}

fn parse_dump(text: &str) -> Option<Dump> {
    let optional = |field: &str| (field != "(none)").then(|| field.to_owned());
    let mut lines = text
        .lines()
        .map(|line| line.split('\t').collect::<Vec<_>>());
    let [private_key, public_key, port, mark] = lines.next()?.try_into().ok()?;
    let mut peers = HashMap::new();
    for line in lines {
        let [
            key,
            preshared,
            endpoint,
            allowed,
            handshake,
            received,
            sent,
            keepalive,
        ] = line.try_into().ok()?;
        let mut allowed_ips: Vec<_> = optional(allowed)
            .iter()
            .flat_map(|a| a.split(','))
            .map(str::to_owned)
            .collect();
        allowed_ips.sort();
        let peer = Peer {
            preshared_key: optional(preshared),
            endpoint: optional(endpoint).map(|e| e.parse()).transpose().ok()?,
            allowed_ips,
            latest_handshake: handshake.parse().ok()?,
            received: received.parse().ok()?,
            sent: sent.parse().ok()?,
            keepalive: if keepalive == "off" {
                None
            } else {
                Some(keepalive.parse().ok()?)
            },
        };
        peers.insert(key.to_owned(), peer);
    }
    let fwmark = match mark {
        "off" => 0,
        number => u32::from_str_radix(number.strip_prefix("0x")?, 16).ok()?,
    };
    Some(Dump {
        private_key: optional(private_key),
        public_key: optional(public_key),
        listen_port: port.parse().ok()?,
        fwmark,
        peers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_is_read() {
        let text = "priv\tpub\t51820\t0xca6c\nkey\t(none)\t[fd00::1]:7\t10.0.0.1/32,fd09::/64\t17\t1\t2\toff\n";
        let dump = parse_dump(text).unwrap();
        assert_eq!((dump.listen_port, dump.fwmark), (51820, 0xca6c));
        let peer = &dump.peers["key"];
        assert_eq!(peer.endpoint, Some("[fd00::1]:7".parse().unwrap()));
        assert_eq!(peer.allowed_ips, ["10.0.0.1/32", "fd09::/64"]);
        assert_eq!(
            (
                peer.latest_handshake,
                peer.received,
                peer.sent,
                peer.keepalive
            ),
            (17, 1, 2, None)
        );
        assert!(parse_dump("").is_none());
    }
}
