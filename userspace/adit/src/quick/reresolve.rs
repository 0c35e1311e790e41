//! `adit reresolve`: endpoints that are given by name, followed to the addresses that the names have by now.
//!
//! The daemon knows addresses only, and follows a peer that sends from another one. A peer that moved while nothing was
//! sent can be found by its name alone. As wireguard-tools' `reresolve-dns.sh` does, this looks at peers that have been
//! silent for longer than a living session can be, so that a peer that roamed is left where it is.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use super::client::{self, State};
use super::file::File;
use super::operation::Operation;
use super::resolve::{self, Retries};
use super::{say, steps};
use crate::config::{Config, Endpoint};

/// A peer that sends renews its session after 120 s; this is some seconds more.
const SILENCE: u64 = 135;

/// What the command line says.
#[derive(Debug)]
pub struct Options {
    /// A file, or the name of a tunnel whose file is in `/etc/wireguard`.
    pub config: PathBuf,
    /// Do it again and again, with this pause between, until the tunnel is taken down.
    pub every: Option<Duration>,
    /// Say which peer was moved where.
    pub verbose: bool,
}

/// Looks up the names of the endpoints of silent peers, and gives the daemon those addresses that changed.
///
/// # Errors
/// What is wrong with the file, which is shown; no such tunnel; without `every`, a name that cannot be looked up.
pub fn run(options: &Options) -> Result<()> {
    let file = File::read(&options.config)?;
    let interface = file.interface(&options.config)?;
    let config = file.config()?;
    let Some(pause) = options.every else {
        return once(&interface, &config, options.verbose);
    };
    client::get(&interface)?;
    steps::catch_signals()?;
    while client::listens(&interface) {
        if let Err(error) = once(&interface, &config, options.verbose) {
            say(&format!("adit: {interface}: {error:#}"));
        }
        if steps::pause(pause).is_err() {
            // Told to end.
            return Ok(());
        }
    }
    Ok(())
}

/// Every peer is tried, whatever becomes of the others; the first failure is returned.
fn once(interface: &str, config: &Config, verbose: bool) -> Result<()> {
    let state = client::get(interface)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    let mut failure = None;
    let mut operation = Operation::new(config.peers.len(), 0);
    let mut moved = false;
    for (peer, named) in silent(config, &state, now) {
        match resolve::endpoint(named, Retries::Times(0)) {
            Ok(address) if Some(address) != peer.endpoint => {
                moved = true;
                operation.move_peer(&peer.public_key, address);
                if verbose {
                    say(&format!("{interface}: {named} is at {address}"));
                }
            }
            Ok(_) => {}
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    if moved {
        client::set(interface, &operation)?;
    }
    failure.map_or(Ok(()), Err)
}

/// The peers with names for endpoints whose sessions are dead.
fn silent<'a>(
    config: &'a Config,
    state: &'a State,
    now: u64,
) -> impl Iterator<Item = (&'a client::PeerState, &'a Endpoint)> {
    config.peers.iter().filter_map(move |peer| {
        let endpoint = peer.endpoint.as_ref()?;
        let running = state
            .peers
            .iter()
            .find(|p| p.public_key == peer.public_key)?;
        let named = matches!(endpoint, Endpoint::Name { .. });
        let silent = now.saturating_sub(running.latest_handshake) > SILENCE;
        (named && silent).then_some((running, endpoint))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silent_peers_with_names_are_looked_up() {
        let config = crate::config::parse(
            "[Peer]\nPublicKey=xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nEndpoint=a.example:1\n\
             [Peer]\nPublicKey=TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=\nEndpoint=192.0.2.1:1\n",
        )
        .config;
        let mut state = State::with_prefixes([]);
        let found = |state: &State, now| silent(&config, state, now).count();
        assert_eq!(found(&state, 1000), 0, "not a peer of the file");
        state.peers[0].public_key = config.peers[0].public_key;
        assert_eq!(found(&state, 1000), 1, "never heard of");
        state.peers[0].latest_handshake = 900;
        assert_eq!(found(&state, 1000), 0, "alive");
        assert_eq!(found(&state, 1036), 1, "dead");
        state.peers[0].public_key = config.peers[1].public_key;
        assert_eq!(found(&state, 2000), 0, "has an address, not a name");
    }
}
