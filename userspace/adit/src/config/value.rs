//! One value: what `wg(8)` and `ip(8)` take for it, and what to say of anything else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use adit_protocol::{Prefix, PresharedKey, PrivateKey, PublicKey};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use zeroize::{Zeroize as _, Zeroizing};

use super::{Address, Endpoint, Table};

/// Characters of a key in base64.
const KEY_CHARACTERS: usize = 44;
/// The least MTU that a TUN device takes (`tun_net_init()`, drivers/net/tun.c).
const LEAST_MTU: u32 = 68;
/// The largest packet of IP.
const LARGEST_MTU: u32 = 65_535;

/// Why a value will not do. It never repeats a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; expected {expected}")]
pub struct Wrong {
    /// What is wrong with it.
    pub problem: String,
    /// What was expected in its place.
    pub expected: String,
    /// What to do, where that can be told.
    pub help: Option<String>,
}

impl Wrong {
    fn new(problem: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            expected: expected.into(),
            help: None,
        }
    }

    /// `text` is not what it should be.
    fn not(text: &str, what: &str, expected: impl Into<String>) -> Self {
        Self::new(format!("{} is not {what}", quoted(text)), expected)
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// A word of the user's, safe to print.
pub(super) fn quoted(text: &str) -> String {
    /// Longer ones are hardly words.
    const LONGEST: usize = 60;
    let mut short: String = text.chars().take(LONGEST).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("`{}`", short.escape_debug())
}

/// A private key in base64.
///
/// # Errors
/// What is wrong, without the text.
pub fn private_key(text: &str) -> Result<PrivateKey, Wrong> {
    key(text).map(|key| PrivateKey::from_bytes(*key))
}

/// A preshared key in base64.
///
/// # Errors
/// What is wrong, without the text.
pub fn preshared_key(text: &str) -> Result<PresharedKey, Wrong> {
    key(text).map(|key| PresharedKey::from_bytes(*key))
}

/// A public key in base64.
///
/// # Errors
/// What is wrong, without the text.
pub fn public_key(text: &str) -> Result<PublicKey, Wrong> {
    key(text).map(|key| PublicKey::from_bytes(*key))
}

fn key(text: &str) -> Result<Zeroizing<[u8; 32]>, Wrong> {
    let mut bytes = BASE64_STANDARD.decode(text).unwrap_or_default();
    let key = <[u8; 32]>::try_from(bytes.as_slice()).map(Zeroizing::new);
    bytes.zeroize();
    key.map_err(|_| {
        let count = text.chars().count();
        let expected = "32 bytes in base64: 43 characters and a `=`";
        let hexadecimal = count == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hexadecimal {
            return Wrong::new("the key is in hexadecimal", expected);
        }
        if count != KEY_CHARACTERS {
            let wrong = Wrong::new(format!("a key has 44 characters, not {count}"), expected);
            return match count {
                43 => wrong.help("was the last character, a `=`, lost when it was copied?"),
                _ => wrong,
            };
        }
        let foreign = text.chars().position(|c| !is_base64(c));
        match foreign {
            Some(at) => Wrong::new(
                format!("the key's character {} is none of base64", at + 1),
                expected,
            ),
            None => Wrong::new("the key does not end as 32 bytes do", expected)
                .help("a character was changed when it was copied"),
        }
    })
}

fn is_base64(character: char) -> bool {
    character.is_ascii_alphanumeric() || "+/=".contains(character)
}

/// A UDP port to listen on; 0 is any free one.
///
/// # Errors
/// Anything but a number up to 65535.
pub fn port(text: &str) -> Result<u16, Wrong> {
    digits(text).ok_or_else(|| Wrong::not(text, "a port", "a number from 0 to 65535"))
}

/// A firewall mark; `off` is 0.
///
/// # Errors
/// Anything but `off` and a number of 32 bits, decimal or after `0x`.
pub fn fwmark(text: &str) -> Result<u32, Wrong> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(0);
    }
    let number = match text.strip_prefix("0x") {
        Some(number) => hexadecimal(number),
        None => digits(text),
    };
    number.ok_or_else(|| {
        Wrong::not(
            text,
            "a mark",
            "`off`, or a number from 0 to 4294967295, decimal or as 0x…",
        )
    })
}

/// Seconds between keepalives; `off` is 0.
///
/// # Errors
/// Anything but `off` and a number up to 65535.
pub fn keepalive(text: &str) -> Result<u16, Wrong> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(0);
    }
    digits(text).ok_or_else(|| {
        let wrong = Wrong::not(text, "an interval", "`off`, or seconds from 0 to 65535");
        match text.trim_end_matches(['s', 'S']).trim_end() {
            seconds if seconds != text && digits::<u16>(seconds).is_some() => {
                wrong.help(format!("write {seconds}, without a unit"))
            }
            _ => wrong,
        }
    })
}

/// An MTU in bytes.
///
/// # Errors
/// Anything but a number that a tunnel device takes.
pub fn mtu(text: &str) -> Result<u32, Wrong> {
    digits(text)
        .filter(|mtu| (LEAST_MTU..=LARGEST_MTU).contains(mtu))
        .ok_or_else(|| Wrong::not(text, "an MTU", "bytes, from 68 to 65535"))
}

/// `true` or `false`.
///
/// # Errors
/// Anything else.
pub fn boolean(text: &str) -> Result<bool, Wrong> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        other => {
            let wrong = Wrong::not(text, "a truth value", "`true` or `false`");
            Err(match other {
                "yes" | "on" | "1" => wrong.help("write `true`"),
                "no" | "off" | "0" => wrong.help("write `false`"),
                _ => wrong,
            })
        }
    }
}

/// A routing table.
///
/// # Errors
/// What can be neither the number nor the name of a table.
pub fn table(text: &str) -> Result<Table, Wrong> {
    let expected = "`off`, `auto`, or the number or name of a routing table";
    let number = match text.strip_prefix("0x") {
        Some(number) => hexadecimal(number),
        None => digits(text),
    };
    let is_name = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    match text {
        "off" => Ok(Table::Off),
        "auto" => Ok(Table::Auto),
        _ if number.is_some_and(|number| number > 0) => Ok(Table::Number(number.unwrap_or(0))),
        _ => match text.to_ascii_lowercase().as_str() {
            word @ ("off" | "auto" | "none") => {
                let word = if word == "auto" { "auto" } else { "off" };
                Err(Wrong::not(text, "a table", expected).help(format!("did you mean `{word}`?")))
            }
            _ if is_name(text) => Ok(Table::Name(text.to_owned())),
            _ => Err(Wrong::not(text, "a table", expected)),
        },
    }
}

/// An address of the device, `ADDRESS[/LENGTH]`; without a length, all of it. As `ip(8)` does, this takes a mask of IPv4
/// in place of a length.
///
/// # Errors
/// Anything else, names among it.
pub fn address(text: &str) -> Result<Address, Wrong> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (ip(address, text)?, Some(length)),
        None => (ip(text, text)?, None),
    };
    let prefix_length = match length {
        Some(mask) if mask.contains('.') && address.is_ipv4() => {
            mask_length(mask).ok_or_else(|| {
                Wrong::new(
                    format!("{} is not a mask", quoted(mask)),
                    "a length from 0 to 32",
                )
            })?
        }
        length => prefix_length(address, length)?,
    };
    Ok(Address {
        address,
        prefix_length,
    })
}

/// One of a peer's allowed addresses, `ADDRESS[/LENGTH]`, and whether it has bits behind its length, which do not count.
///
/// # Errors
/// Anything else.
pub fn allowed_ip(text: &str) -> Result<(Prefix, bool), Wrong> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (ip(address, text)?, Some(length)),
        None => (ip(text, text)?, None),
    };
    let length = prefix_length(address, length)?;
    let prefix = Prefix::new(address, length).map_err(|_| too_long(address, length.to_string()))?;
    Ok((prefix, prefix.address() != address))
}

/// The address in `whole`.
fn ip(text: &str, whole: &str) -> Result<IpAddr, Wrong> {
    text.parse().map_err(|_| {
        let expected = "an address such as 10.9.0.1/24 or fd09::1/64";
        let wrong = Wrong::not(text, "an IP address", expected);
        let parts: Vec<&str> = text.split('.').collect();
        let numbers = parts.iter().all(|part| digits::<u32>(part).is_some());
        match parts.len() {
            1..=3 if numbers && whole.contains('/') => {
                wrong.help("write all four numbers of the address")
            }
            4 if numbers => wrong.help("its numbers go from 0 to 255, without leading zeroes"),
            _ if text.starts_with('[') => wrong.help("brackets are for endpoints"),
            _ if text.matches(':').count() == 1 && text.contains('.') => {
                wrong.help("ports are for endpoints")
            }
            _ if text.contains(char::is_whitespace) => wrong.help("put a comma between two"),
            _ => wrong,
        }
    })
}

fn prefix_length(address: IpAddr, text: Option<&str>) -> Result<u8, Wrong> {
    let longest = longest_prefix(address);
    let Some(text) = text else {
        return Ok(longest);
    };
    match digits::<u8>(text) {
        Some(length) if length <= longest => Ok(length),
        Some(_) => Err(too_long(address, text.to_owned())),
        None => {
            let wrong = Wrong::new(
                format!("{} is not a prefix length", quoted(text)),
                format!("a number from 0 to {longest}"),
            );
            Err(match mask_length(text) {
                Some(length) if address.is_ipv4() => wrong.help(format!("write /{length}")),
                _ => wrong,
            })
        }
    }
}

fn too_long(address: IpAddr, length: String) -> Wrong {
    let (family, longest) = match address {
        IpAddr::V4(_) => ("IPv4", longest_prefix(address)),
        IpAddr::V6(_) => ("IPv6", longest_prefix(address)),
    };
    Wrong::new(
        format!("prefix length {length} is too long for {family}"),
        format!("a length from 0 to {longest}"),
    )
}

fn longest_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// How many ones a mask such as 255.255.255.0 begins with, if there are only zeroes behind them.
fn mask_length(text: &str) -> Option<u8> {
    let mask = text.parse::<Ipv4Addr>().ok()?.to_bits();
    let length = mask.leading_ones();
    (mask.count_ones() == length)
        .then(|| u8::try_from(length).ok())
        .flatten()
}

/// `HOST:PORT`, where an IPv6 address stands in brackets.
///
/// # Errors
/// Anything else. Whether a name exists is not looked at.
pub fn endpoint(text: &str) -> Result<Endpoint, Wrong> {
    let expected = "HOST:PORT, such as vpn.example.org:51820 or [2001:db8::1]:51820";
    if let Some(address) = text
        .parse::<Ipv6Addr>()
        .ok()
        .filter(|_| !text.starts_with('['))
    {
        return Err(Wrong::new("the endpoint has no port", expected)
            .help(format!("write [{address}]:51820, if that is the port")));
    }
    let (host, port) = split_endpoint(text).ok_or_else(|| {
        let wrong = Wrong::new("the endpoint has no port", expected);
        match text {
            _ if text.starts_with('[') && !text.contains(']') => {
                Wrong::new("the endpoint's bracket does not close", expected)
            }
            _ if text.contains("://") => wrong.help("an endpoint is not a URL"),
            _ => wrong.help(format!("write {text}:51820, if that is the port")),
        }
    })?;
    let port: u16 = digits(port).ok_or_else(|| {
        Wrong::new(
            format!("{} is not a port", quoted(port)),
            "a number from 1 to 65535",
        )
    })?;
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(Endpoint::Address(SocketAddr::new(address, port)));
    }
    let zoned = host.split_once('%').is_some_and(|(address, zone)| {
        address.parse::<Ipv6Addr>().is_ok() && !zone.is_empty() && !zone.contains('/')
    });
    if !zoned && !is_host_name(host) {
        let wrong = Wrong::new(
            format!(
                "{} is neither an address nor the name of a host",
                quoted(host)
            ),
            expected,
        );
        return Err(match host {
            _ if host.contains("//") => wrong.help("an endpoint is not a URL"),
            _ if looks_like_ipv4(host) => {
                wrong.help("the numbers of an address go from 0 to 255, without leading zeroes")
            }
            _ if host.contains(':') => wrong.help("an IPv6 address stands in brackets"),
            _ => wrong,
        });
    }
    Ok(Endpoint::Name {
        host: host.to_owned(),
        port,
    })
}

fn split_endpoint(text: &str) -> Option<(&str, &str)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once("]:")?,
        None => text.rsplit_once(':')?,
    };
    (!host.is_empty() && !port.is_empty()).then_some((host, port))
}

/// What may be asked of a name server (RFC 1123, section 2.1, and underscores, which exist), and is not an address gone
/// wrong.
fn is_host_name(text: &str) -> bool {
    let labels = text.strip_suffix('.').unwrap_or(text).split('.');
    let valid = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label
                .chars()
                .all(|c| c.is_alphanumeric() || c == '-' || c == '_')
    };
    text.len() <= 253 && labels.into_iter().all(valid) && !looks_like_ipv4(text)
}

fn looks_like_ipv4(text: &str) -> bool {
    text.split('.')
        .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

/// A name server, or a search domain: `wg-quick` takes for an address what has only digits and dots, or a colon.
///
/// # Errors
/// An address that is none, or a domain with characters that no domain has.
pub fn dns(text: &str) -> Result<Result<IpAddr, String>, Wrong> {
    let expected = "the address of a name server, or a domain to search";
    let is_address = text.contains(':') || text.bytes().all(|b| b == b'.' || b.is_ascii_digit());
    if is_address {
        return text
            .parse()
            .map(Ok)
            .map_err(|_| Wrong::not(text, "an IP address", expected));
    }
    let domain = text
        .chars()
        .all(|c| c.is_alphanumeric() || "-_.~".contains(c));
    if !domain {
        return Err(Wrong::not(text, "a domain", expected));
    }
    Ok(Err(text.to_owned()))
}

/// Decimal digits and nothing else: `str::parse` alone would take a sign too.
fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    let only = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    only.then(|| text.parse().ok()).flatten()
}

fn hexadecimal(text: &str) -> Option<u32> {
    let only = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    only.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_addresses_or_names() {
        let shown = |text: &str| endpoint(text).map(|endpoint| endpoint.to_string());
        for text in [
            "192.0.2.1:51820",
            "[2001:db8::1]:1",
            "vpn.example.org:51820",
            "vpn.example.org.:1",
            "a_b:1",
            "[fe80::1%eth0]:51820",
            "bücher.example:1",
        ] {
            assert_eq!(shown(text).as_deref(), Ok(text));
        }
        // As wg(8) reads it: the port is behind the last colon.
        assert_eq!(
            endpoint("2001:db8:1:2:3:4:5:6:51820"),
            Ok(Endpoint::Address(
                "[2001:db8:1:2:3:4:5:6]:51820".parse().unwrap()
            ))
        );
        for text in [
            "",
            ":",
            ":1",
            "host",
            "host:",
            "host:port",
            "host:65536",
            "[::1]",
            "[::1:5",
            "[::1]5",
            "::1",
            "300.1.1.1:5",
            "1.2.3:5",
            "a b:1",
            "http://a:1",
            "a..b:1",
            "[fe80::1%]:5",
            "-a:1",
        ] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_have_no_signs() {
        assert_eq!(port("0"), Ok(0));
        assert_eq!(port("00051820"), Ok(51820));
        assert!(port("+1").is_err() && port("-1").is_err() && port("").is_err());
        assert_eq!(fwmark("0xCA6C"), Ok(51820));
        assert_eq!(fwmark("OFF"), Ok(0));
        assert!(fwmark("0x").is_err() && fwmark("0x1ffffffff").is_err());
        assert_eq!(keepalive("off"), Ok(0));
        assert!(keepalive("65536").is_err());
        assert_eq!(table("0x10"), Ok(Table::Number(16)));
        assert_eq!(table("main"), Ok(Table::Name("main".to_owned())));
        assert!(table("0").is_err() && table("Off").is_err() && table("").is_err());
    }

    #[test]
    fn prefixes_have_lengths() {
        assert_eq!(address("10.0.0.1").unwrap().prefix_length, 32);
        assert_eq!(address("fd00::1").unwrap().prefix_length, 128);
        assert_eq!(address("10.0.0.1/255.255.240.0").unwrap().prefix_length, 20);
        assert!(address("10.0.0.1/255.0.255.0").is_err());
        assert!(address("fd00::1/255.255.255.0").is_err());
        let (prefix, bits) = allowed_ip("10.0.0.1/8").unwrap();
        assert_eq!((prefix.to_string().as_str(), bits), ("10.0.0.0/8", true));
        assert!(!allowed_ip("10.0.0.0/8").unwrap().1);
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "::/129",
            "10/8",
            "a",
            "::/0x1",
        ] {
            assert!(allowed_ip(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_key_is_told_without_it() {
        let key = "yAnz5TF+lXXJte14tji3zlMNftft3dYgqsGgXrcPkPk=";
        assert!(private_key(key).is_ok());
        let hexadecimal = "0123456789abcdef".repeat(4);
        let changed = key.replace('l', "!");
        let end = key.replace("k=", "l=");
        for wrong in ["", "abc", &key[..43], &hexadecimal, &changed, &end] {
            let error = private_key(wrong).unwrap_err();
            let text = format!("{error} {:?}", error.help);
            assert!(wrong.is_empty() || !text.contains(wrong), "{text}");
            assert!(!text.contains(&key[..6]), "{text}");
        }
    }
}
