//! `adit sync`: what `wg syncconf` does.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;

use adit_protocol::PresharedKey;
use anyhow::Result;

use super::client::{self, PeerState, State};
use super::file::File;
use super::operation::{Operation, PeerChange};
use super::resolve::{self, Retries};
use crate::config::Config;

/// Makes a running tunnel what a file says, without disturbing the sessions of peers that stay. What only `wg-quick` reads
/// (addresses, routes, hooks) is passed over.
///
/// # Errors
/// What is wrong with the file, which is shown; no such tunnel.
pub fn run(interface: &str, config: &Path) -> Result<()> {
    let file = File::read(config)?;
    let config = file.config()?;
    let state = client::get(interface)?;
    let endpoints = resolve::endpoints(&config, Retries::from_environment()?)?;
    client::set(interface, &difference(&config, &endpoints, &state))
}

fn difference(config: &Config, endpoints: &[Option<SocketAddr>], state: &State) -> Operation {
    let wanted: HashMap<_, _> = config.peers.iter().map(|p| (p.public_key, ())).collect();
    let running: HashMap<_, &PeerState> = state.peers.iter().map(|p| (p.public_key, p)).collect();
    let prefixes = config.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
    let mut operation = Operation::new(config.peers.len() + state.peers.len(), prefixes);
    operation.device(config);
    for peer in &state.peers {
        if !wanted.contains_key(&peer.public_key) {
            operation.remove_peer(&peer.public_key);
        }
    }
    for (peer, endpoint) in config.peers.iter().zip(endpoints) {
        let mut change = PeerChange::of(peer, *endpoint);
        if let Some(running) = running.get(&peer.public_key) {
            // What the file does not say is taken away.
            if running.preshared_key.is_some() && change.preshared_key.is_none() {
                change.preshared_key = Some(PresharedKey::from_bytes([0; 32]));
            }
            change.keepalive = change.keepalive.or(Some(0));
        }
        operation.peer(&peer.public_key, &change);
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_come_go_and_lose_what_is_no_longer_said() {
        let keys = [
            "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
            "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=",
        ];
        let config = crate::config::parse(&format!(
            "[Peer]\nPublicKey={}\n[Peer]\nPublicKey={}\nAllowedIPs=10.0.0.0/8\n",
            keys[0], keys[1]
        ))
        .config;
        let mut state = State::with_prefixes([]);
        let mut kept = State::with_prefixes([]).peers.remove(0);
        kept.public_key = config.peers[0].public_key;
        kept.preshared_key = Some(PresharedKey::from_bytes([1; 32]));
        kept.keepalive = 25;
        state.peers.push(kept);
        let operation = difference(&config, &[None, None], &state);
        let text = operation.text().to_owned();
        assert!(!text.contains("replace_peers"));
        let hex = |key: &[u8; 32]| {
            key.iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        assert!(text.contains(&format!("public_key={}\nremove=true\n", hex(&[7; 32]))));
        assert!(text.contains(&format!(
            "public_key={}\npreshared_key={}\npersistent_keepalive_interval=0\nreplace_allowed_ips=true\n",
            hex(config.peers[0].public_key.as_bytes()),
            "0".repeat(64)
        )));
        assert!(text.ends_with(&format!(
            "public_key={}\nreplace_allowed_ips=true\nallowed_ip=10.0.0.0/8\n",
            hex(config.peers[1].public_key.as_bytes())
        )));
    }
}
