//! `adit set`: what `wg set` does, with the same arguments.

use std::fs;

use adit_protocol::{PresharedKey, PublicKey};
use anyhow::{Context as _, Result, bail};
use zeroize::Zeroizing;

use super::client;
use super::operation::{Operation, PeerChange};
use super::resolve::{self, Retries};
use crate::config::value::{self, Wrong};

/// What comes after the name of the tunnel.
pub const ARGUMENTS: &str = "[listen-port PORT] [fwmark MARK] [private-key FILE] \
    [peer KEY [remove] [preshared-key FILE] [endpoint HOST:PORT] [persistent-keepalive SECONDS] \
    [allowed-ips [+|-]PREFIX[,…]]]…";

/// Changes a running tunnel. Arguments up to the first `peer` are about the device, those after it about the peer.
///
/// # Errors
/// An argument that makes no sense, named; a key file that cannot be read; no such tunnel.
pub fn run(interface: &str, arguments: &[String]) -> Result<()> {
    client::set(interface, &operation(arguments)?)
}

/// A peer whose arguments are being read.
struct Open {
    key: PublicKey,
    remove: bool,
    change: PeerChange,
}

fn operation(arguments: &[String]) -> Result<Operation> {
    let mut operation = Operation::new(1, arguments.len());
    let mut peer: Option<Open> = None;
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        if word == "remove"
            && let Some(peer) = &mut peer
        {
            peer.remove = true;
            continue;
        }
        if !known(word, peer.is_some()) {
            bail!("{}", stray(word, peer.is_some()));
        }
        let value = words
            .next()
            .with_context(|| format!("{word} wants a value"))?;
        let wrong = |error: Wrong| error.context_of(word);
        if word == "peer" {
            close(peer.take(), &mut operation);
            peer = Some(Open {
                key: value::public_key(value).map_err(wrong)?,
                remove: false,
                change: PeerChange::default(),
            });
            continue;
        }
        match &mut peer {
            None => device(word, value, &mut operation)?,
            Some(peer) => of_peer(word, value, &mut peer.change)?,
        }
    }
    close(peer, &mut operation);
    Ok(operation)
}

fn known(word: &str, in_peer: bool) -> bool {
    match word {
        "peer" => true,
        "listen-port" | "fwmark" | "private-key" => !in_peer,
        "preshared-key" | "endpoint" | "persistent-keepalive" | "allowed-ips" => in_peer,
        _ => false,
    }
}

fn stray(word: &str, in_peer: bool) -> String {
    if known(word, !in_peer) || word == "remove" {
        let place = if in_peer {
            "before the first"
        } else {
            "after a"
        };
        return format!("{word} belongs {place} peer; expected {ARGUMENTS}");
    }
    format!(
        "{} is no argument; expected {ARGUMENTS}",
        word.escape_debug()
    )
}

fn device(word: &str, value: &str, operation: &mut Operation) -> Result<()> {
    let wrong = |error: Wrong| error.context_of(word);
    match word {
        "listen-port" => operation.listen_port(value::port(value).map_err(wrong)?),
        "fwmark" => operation.fwmark(value::fwmark(value).map_err(wrong)?),
        _ => {
            let key = key_file(word, value, value::private_key)?;
            operation.private_key(key.as_ref());
        }
    }
    Ok(())
}

fn of_peer(word: &str, value: &str, change: &mut PeerChange) -> Result<()> {
    let wrong = |error: Wrong| error.context_of(word);
    match word {
        "preshared-key" => {
            let key = key_file(word, value, value::preshared_key)?;
            change.preshared_key = Some(key.unwrap_or(PresharedKey::from_bytes([0; 32])));
        }
        "endpoint" => {
            let endpoint = value::endpoint(value).map_err(wrong)?;
            change.endpoint = Some(resolve::endpoint(&endpoint, Retries::from_environment()?)?);
        }
        "persistent-keepalive" => change.keepalive = Some(value::keepalive(value).map_err(wrong)?),
        _ => {
            change.replace_allowed_ips = true;
            let value: String = value.split_whitespace().collect();
            for text in value.split(',').filter(|_| !value.is_empty()) {
                let (prefix, given) = match text.strip_prefix('-') {
                    Some(prefix) => (prefix, false),
                    None => (text.strip_prefix('+').unwrap_or(text), true),
                };
                // A sign makes it a change to what is there.
                if prefix != text {
                    change.replace_allowed_ips = false;
                }
                let (prefix, _) = value::allowed_ip(prefix).map_err(wrong)?;
                change.allowed_ips.push((prefix, given));
            }
        }
    }
    Ok(())
}

fn close(peer: Option<Open>, operation: &mut Operation) {
    match peer {
        Some(peer) if peer.remove => operation.remove_peer(&peer.key),
        Some(peer) => operation.peer(&peer.key, &peer.change),
        None => {}
    }
}

/// The key in a file; an empty file is no key.
fn key_file<T>(
    word: &str,
    path: &str,
    parse: impl FnOnce(&str) -> Result<T, Wrong>,
) -> Result<Option<T>> {
    let text = fs::read_to_string(path).with_context(|| format!("{word}: cannot read {path}"))?;
    let text = Zeroizing::new(text);
    if text.is_empty() {
        return Ok(None);
    }
    let key = parse(text.trim_end()).map_err(|wrong| wrong.context_of(word))?;
    Ok(Some(key))
}

/// Naming the argument that is wrong.
trait ContextOf {
    fn context_of(self, word: &str) -> anyhow::Error;
}

impl ContextOf for Wrong {
    fn context_of(self, word: &str) -> anyhow::Error {
        let help = self.help.as_ref().map(|help| format!(" ({help})"));
        anyhow::anyhow!("{word}: {self}{}", help.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    const HEX: &str = "c53201039adba14be71f886da1d8dbe9eebded08cb111b75340078999aa9f038";

    fn set(line: &str) -> Result<String> {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        operation(&words).map(|operation| operation.text().to_owned())
    }

    #[test]
    fn arguments_become_lines() {
        let line = format!(
            "listen-port 51820 fwmark 0x10 private-key /dev/null peer {KEY} endpoint 192.0.2.1:5 \
             persistent-keepalive off allowed-ips 10.0.0.0/8,fd00::1 peer {KEY} remove peer {KEY} allowed-ips +10.1.0.0/16,-10.2.0.0/16 \
             preshared-key /dev/null"
        );
        let zero = "0".repeat(64);
        assert_eq!(
            set(&line).unwrap(),
            format!(
                "set=1\nlisten_port=51820\nfwmark=16\nprivate_key={zero}\n\
                 public_key={HEX}\nendpoint=192.0.2.1:5\npersistent_keepalive_interval=0\nreplace_allowed_ips=true\n\
                 allowed_ip=10.0.0.0/8\nallowed_ip=fd00::1/128\npublic_key={HEX}\nremove=true\n\
                 public_key={HEX}\npreshared_key={zero}\nallowed_ip=10.1.0.0/16\nallowed_ip=-10.2.0.0/16\n"
            )
        );
    }

    #[test]
    fn no_prefixes_are_all_taken_away() {
        let words = ["peer", KEY, "allowed-ips", ""].map(str::to_owned);
        let text = operation(&words).unwrap().text().to_owned();
        assert!(text.ends_with("replace_allowed_ips=true\n"));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (line, word) in [
            ("listen-port".to_owned(), "listen-port wants a value"),
            ("listen-port x".to_owned(), "`x` is not a port"),
            ("colour red".to_owned(), "colour is no argument"),
            ("remove".to_owned(), "remove belongs after a peer"),
            (
                "endpoint 192.0.2.1:5".to_owned(),
                "endpoint belongs after a peer",
            ),
            (format!("peer {KEY} fwmark 1"), "fwmark belongs before"),
            ("peer short".to_owned(), "peer: a key has 44 characters"),
            (format!("peer {KEY} allowed-ips 10.0.0.0/33"), "too long"),
            (
                "private-key /no/such/file".to_owned(),
                "private-key: cannot read",
            ),
        ] {
            let error = format!("{:#}", set(&line).unwrap_err());
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
