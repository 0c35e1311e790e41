//! The addresses of endpoints that are given by name.

use std::env::{self, VarError};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use dns_lookup::{AddrInfoHints, LookupError, LookupErrorKind, SockType, getaddrinfo};

use super::{say, steps};
use crate::config::{Config, Endpoint};

/// How often a name server that does not answer is asked again; the variable is `wg(8)`'s.
const VARIABLE: &str = "WG_ENDPOINT_RESOLUTION_RETRIES";
const DEFAULT_RETRIES: u32 = 15;
/// The first pause between two tries; each is longer than the one before, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// How often to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retries {
    /// So many times.
    Times(u32),
    /// For ever.
    Infinite,
}

impl Retries {
    /// What the environment says.
    pub(super) fn from_environment() -> Result<Self> {
        match env::var(VARIABLE) {
            Err(VarError::NotPresent) => Ok(Self::Times(DEFAULT_RETRIES)),
            Err(error) => Err(error).context(VARIABLE),
            Ok(text) => Self::parse(&text)
                .with_context(|| format!("{VARIABLE}={text}: expected a number or `infinity`")),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if text == "infinity" {
            return Some(Self::Infinite);
        }
        text.parse().ok().map(Self::Times)
    }
}

/// The address of an endpoint. A name is looked up, and looked up again as long as it is not certain that there is no such
/// name.
pub(super) fn endpoint(endpoint: &Endpoint, retries: Retries) -> Result<SocketAddr> {
    let (host, port) = match endpoint {
        Endpoint::Address(address) => return Ok(*address),
        Endpoint::Name { host, port } => (host, *port),
    };
    let mut left = retries;
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match look_up(host, port) {
            Ok(Some(address)) => return Ok(address),
            Ok(None) => bail!("Endpoint: {endpoint} has no address"),
            Err(error) => error,
        };
        left = match left {
            _ if is_final(&error) => bail!("Endpoint: cannot look up {endpoint}: {error}"),
            Retries::Times(0) => bail!("Endpoint: cannot look up {endpoint}: {error}"),
            Retries::Times(times) => Retries::Times(times - 1),
            Retries::Infinite => Retries::Infinite,
        };
        say(&format!(
            "adit: cannot look up {endpoint}: {error}; trying again in {:.1} s",
            pause.as_secs_f64()
        ));
        steps::pause(pause)?;
        pause = (pause * 6 / 5).min(LONGEST_PAUSE);
    }
}

/// All the endpoints of a file.
pub(super) fn endpoints(config: &Config, retries: Retries) -> Result<Vec<Option<SocketAddr>>> {
    let endpoints = config.peers.iter().map(|peer| peer.endpoint.as_ref());
    endpoints
        .map(|given| given.map(|given| endpoint(given, retries)).transpose())
        .collect()
}

/// Asking again would not help: of all failures, glibc's manual calls these permanent.
fn is_final(error: &LookupError) -> bool {
    use LookupErrorKind::{Fail, NoData, NoName};
    matches!(error.kind(), NoName | NoData | Fail)
}

fn look_up(host: &str, port: u16) -> Result<Option<SocketAddr>, LookupError> {
    let hints = AddrInfoHints {
        socktype: SockType::DGram.into(),
        ..AddrInfoHints::default()
    };
    let mut found = getaddrinfo(Some(host), Some(&port.to_string()), Some(hints))?;
    let first = found.find_map(Result::ok);
    Ok(first.map(|answer| answer.sockaddr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_no_name_server() {
        let given = crate::config::value::endpoint("[2001:db8::1]:51820").unwrap();
        let found = endpoint(&given, Retries::Times(0)).unwrap();
        assert_eq!(found.to_string(), "[2001:db8::1]:51820");
    }

    #[test]
    fn names_have_addresses_and_link_local_ones_have_interfaces() {
        let resolved = |text: &str| {
            let given = crate::config::value::endpoint(text).unwrap();
            endpoint(&given, Retries::Times(0))
        };
        let local = resolved("localhost:51820").unwrap();
        assert!(local.ip().is_loopback() && local.port() == 51820);
        assert_eq!(
            resolved("[fe80::1%lo]:5").unwrap().to_string(),
            "[fe80::1%1]:5"
        );
        let error = format!("{:#}", resolved("no-such-host.invalid:1").unwrap_err());
        assert!(error.contains("no-such-host.invalid:1"), "{error}");
    }

    #[test]
    fn retries_are_those_of_wg() {
        assert_eq!(Retries::parse("infinity"), Some(Retries::Infinite));
        assert_eq!(Retries::parse("3"), Some(Retries::Times(3)));
        assert_eq!(Retries::parse("-1"), None);
    }
}
