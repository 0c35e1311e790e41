//! The lines of a `set` operation, parsed one at a time into [`Setting`]s.

use std::net::{IpAddr, SocketAddr};

use adit_protocol::{Prefix, PresharedKey, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::Errno;

/// One line of a `set` operation.
///
/// Lines up to the first [`Setting::Peer`] concern the device, later ones the peer named last.
#[derive(Debug)]
pub enum Setting {
    /// `private_key`; all zero removes it.
    PrivateKey(Option<PrivateKey>),
    /// `listen_port`; 0 asks for any free one.
    ListenPort(u16),
    /// `fwmark`; 0 removes it.
    FirewallMark(u32),
    /// `replace_peers=true`: remove all peers first.
    ReplacePeers,
    /// `public_key`: the peer that the following lines are about.
    Peer(PublicKey),
    /// `remove=true`.
    Remove,
    /// `update_only=true`: do not create the peer.
    UpdateOnly,
    /// `preshared_key`; all zero removes it.
    PresharedKey(Option<PresharedKey>),
    /// `endpoint`.
    Endpoint(SocketAddr),
    /// `persistent_keepalive_interval` in seconds; 0 switches it off.
    PersistentKeepalive(u16),
    /// `replace_allowed_ips=true`: remove the peer's prefixes first.
    ReplaceAllowedIps,
    /// `allowed_ip=ADDRESS/LENGTH`.
    AllowedIp(Prefix),
    /// `allowed_ip=-ADDRESS/LENGTH`: take the prefix from the peer, if it is the peer's.
    RemoveAllowedIp(Prefix),
    /// `protocol_version=1`.
    ProtocolVersion,
}

/// Reads the lines of one operation, knowing which keys are allowed where.
#[derive(Debug, Default)]
pub struct Parser {
    in_peer: bool,
}

impl Parser {
    /// Parses one line, without its newline.
    ///
    /// # Errors
    /// [`Errno::Protocol`] for a line without `=`, [`Errno::Invalid`] for an unknown key, a key in
    /// the wrong place or a wrong value.
    pub fn line(&mut self, line: &str) -> Result<Setting, Errno> {
        let (key, value) = line.split_once('=').ok_or(Errno::Protocol)?;
        if key == "public_key" {
            self.in_peer = true;
            return Ok(Setting::Peer(PublicKey::from_bytes(*hex_key(value)?)));
        }
        if self.in_peer {
            peer_setting(key, value)
        } else {
            device_setting(key, value)
        }
    }
}

fn device_setting(key: &str, value: &str) -> Result<Setting, Errno> {
    Ok(match key {
        "private_key" => {
            let key = hex_key(value)?;
            Setting::PrivateKey(is_set(&key).then(|| PrivateKey::from_bytes(*key)))
        }
        "listen_port" => Setting::ListenPort(number(value)?),
        "fwmark" => Setting::FirewallMark(mark(value)?),
        "replace_peers" => truth(value, Setting::ReplacePeers)?,
        _ => return Err(Errno::Invalid),
    })
}

fn peer_setting(key: &str, value: &str) -> Result<Setting, Errno> {
    Ok(match key {
        "remove" => truth(value, Setting::Remove)?,
        "update_only" => truth(value, Setting::UpdateOnly)?,
        "preshared_key" => {
            let key = hex_key(value)?;
            Setting::PresharedKey(is_set(&key).then(|| PresharedKey::from_bytes(*key)))
        }
        "endpoint" => Setting::Endpoint(endpoint(value)?),
        "persistent_keepalive_interval" => Setting::PersistentKeepalive(number(value)?),
        "replace_allowed_ips" => truth(value, Setting::ReplaceAllowedIps)?,
        "allowed_ip" => match value.strip_prefix('-') {
            Some(prefix) => Setting::RemoveAllowedIp(prefix_of(prefix)?),
            None => Setting::AllowedIp(prefix_of(value)?),
        },
        "protocol_version" if value == "1" => Setting::ProtocolVersion,
        _ => return Err(Errno::Invalid),
    })
}

fn is_set(key: &[u8; 32]) -> bool {
    key.iter().fold(0, |all, byte| all | byte) != 0
}

fn truth(value: &str, setting: Setting) -> Result<Setting, Errno> {
    if value == "true" {
        Ok(setting)
    } else {
        Err(Errno::Invalid)
    }
}

/// Digits only: `str::parse` alone would also take a sign.
fn number<T: std::str::FromStr>(value: &str) -> Result<T, Errno> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Errno::Invalid);
    }
    value.parse().map_err(|_| Errno::Invalid)
}

/// wg(8) sends decimal; `0x` is accepted since people write marks that way.
fn mark(value: &str) -> Result<u32, Errno> {
    match value.strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            u32::from_str_radix(digits, 16).map_err(|_| Errno::Invalid)
        }
        Some(_) => Err(Errno::Invalid),
        None => number(value),
    }
}

/// 64 hexadecimal digits. No branch or index depends on a digit's value, since keys are secret.
fn hex_key(value: &str) -> Result<Zeroizing<[u8; 32]>, Errno> {
    let digits: &[u8; 64] = value.as_bytes().try_into().map_err(|_| Errno::Invalid)?;
    let mut key = Zeroizing::new([0; 32]);
    let mut wrong = 0;
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let (high, bad_high) = hex_digit(pair[0]);
        let (low, bad_low) = hex_digit(pair[1]);
        *byte = (high << 4) | low;
        wrong |= bad_high | bad_low;
    }
    if wrong == 0 {
        Ok(key)
    } else {
        Err(Errno::Invalid)
    }
}

/// The value of a digit, and 0xFF where it is none.
fn hex_digit(digit: u8) -> (u8, u8) {
    let lower = digit | 0x20;
    let decimal = digit.wrapping_sub(b'0');
    let letter = lower.wrapping_sub(b'a');
    // 0xFF where the value is below the bound, else 0.
    let below = |value: u8, bound: u8| {
        ((u16::from(value).wrapping_sub(u16::from(bound))) >> 8).to_le_bytes()[0]
    };
    let is_decimal = below(decimal, 10);
    let is_letter = below(letter, 6);
    (
        (is_decimal & decimal) | (is_letter & letter.wrapping_add(10)),
        !(is_decimal | is_letter),
    )
}

/// `1.2.3.4:5`, `[::1]:5` or, for a link-local address, `[fe80::1%3]:5` with an interface index.
fn endpoint(value: &str) -> Result<SocketAddr, Errno> {
    let address: SocketAddr = value.parse().map_err(|_| Errno::Invalid)?;
    // A mapped address names an IPv4 host, and only the IPv4 socket can reach it.
    Ok(match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::from((v4, address.port())),
        IpAddr::V6(_) => address,
    })
}

/// `ADDRESS/LENGTH`; without a length the whole address, as wireguard-go reads it.
fn prefix_of(value: &str) -> Result<Prefix, Errno> {
    let (address, length) = match value.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (value, None),
    };
    let address: IpAddr = address.parse().map_err(|_| Errno::Invalid)?;
    let widest = if address.is_ipv4() { 32 } else { 128 };
    let length = length.map_or(Ok(widest), number)?;
    Prefix::new(address, length).map_err(|_| Errno::Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a";

    fn device(line: &str) -> Result<Setting, Errno> {
        Parser::default().line(line)
    }

    fn peer(line: &str) -> Result<Setting, Errno> {
        Parser { in_peer: true }.line(line)
    }

    #[test]
    fn keys_are_64_hexadecimal_digits() {
        assert_eq!(hex_key(KEY).unwrap()[..3], [0xe8, 0x4b, 0x5a]);
        assert_eq!(
            *hex_key(&KEY.to_uppercase()).unwrap(),
            *hex_key(KEY).unwrap()
        );
        assert_eq!(hex_key(&KEY[1..]).unwrap_err(), Errno::Invalid);
        for digit in 0..=255u8 {
            let (value, wrong) = hex_digit(digit);
            match char::from(digit).to_digit(16) {
                Some(expected) => assert_eq!((u32::from(value), wrong), (expected, 0)),
                None => assert_eq!(wrong, 0xFF, "{digit}"),
            }
        }
    }

    #[test]
    fn all_zero_keys_remove() {
        let zero = "0".repeat(64);
        assert!(matches!(
            device(&format!("private_key={zero}")),
            Ok(Setting::PrivateKey(None))
        ));
        assert!(matches!(
            device(&format!("private_key={KEY}")),
            Ok(Setting::PrivateKey(Some(_)))
        ));
        assert!(matches!(
            peer(&format!("preshared_key={zero}")),
            Ok(Setting::PresharedKey(None))
        ));
    }

    #[test]
    fn booleans_are_only_true() {
        assert!(matches!(
            device("replace_peers=true"),
            Ok(Setting::ReplacePeers)
        ));
        for wrong in [
            "replace_peers=false",
            "replace_peers=1",
            "replace_peers=",
            "replace_peers=True",
        ] {
            assert_eq!(device(wrong).unwrap_err(), Errno::Invalid);
        }
    }

    #[test]
    fn numbers_are_digits_within_range() {
        assert!(matches!(
            device("listen_port=65535"),
            Ok(Setting::ListenPort(65535))
        ));
        for wrong in ["65536", "-1", "+1", "", " 1", "0x1"] {
            assert_eq!(
                device(&format!("listen_port={wrong}")).unwrap_err(),
                Errno::Invalid,
                "{wrong}"
            );
        }
        assert!(matches!(
            device("fwmark=0xca6c"),
            Ok(Setting::FirewallMark(51820))
        ));
        assert!(matches!(
            device("fwmark=4294967295"),
            Ok(Setting::FirewallMark(u32::MAX))
        ));
        assert_eq!(device("fwmark=0x").unwrap_err(), Errno::Invalid);
        assert_eq!(
            peer("persistent_keepalive_interval=65536").unwrap_err(),
            Errno::Invalid
        );
    }

    #[test]
    fn a_line_without_equals_sign_is_a_protocol_error() {
        assert_eq!(device("garbage").unwrap_err(), Errno::Protocol);
        assert_eq!(device("unknown=1").unwrap_err(), Errno::Invalid);
        assert_eq!(device("endpoint=1.2.3.4:5").unwrap_err(), Errno::Invalid);
        assert_eq!(peer("listen_port=1").unwrap_err(), Errno::Invalid);
        assert_eq!(peer("protocol_version=2").unwrap_err(), Errno::Invalid);
    }

    #[test]
    fn endpoints_of_both_families() {
        let parsed = |text: &str| match peer(&format!("endpoint={text}")) {
            Ok(Setting::Endpoint(address)) => Some(address.to_string()),
            _ => None,
        };
        assert_eq!(
            parsed("192.0.2.1:51820").as_deref(),
            Some("192.0.2.1:51820")
        );
        assert_eq!(
            parsed("[2001:db8::1]:1").as_deref(),
            Some("[2001:db8::1]:1")
        );
        assert_eq!(parsed("[fe80::1%7]:1").as_deref(), Some("[fe80::1%7]:1"));
        assert_eq!(
            parsed("[::ffff:192.0.2.1]:1").as_deref(),
            Some("192.0.2.1:1")
        );
        assert_eq!(parsed("host.example:1"), None);
        assert_eq!(parsed("192.0.2.1"), None);
    }

    #[test]
    fn prefixes_may_be_removed_with_a_minus() {
        assert!(
            matches!(peer("allowed_ip=10.0.0.0/8"), Ok(Setting::AllowedIp(prefix)) if prefix.length() == 8)
        );
        assert!(
            matches!(peer("allowed_ip=10.0.0.1"), Ok(Setting::AllowedIp(prefix)) if prefix.length() == 32)
        );
        assert!(
            matches!(peer("allowed_ip=-::/0"), Ok(Setting::RemoveAllowedIp(prefix)) if prefix.length() == 0)
        );
        for wrong in [
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "/8",
            "10.0.0.0/-1",
            "--1.2.3.4/32",
        ] {
            assert_eq!(
                peer(&format!("allowed_ip={wrong}")).unwrap_err(),
                Errno::Invalid,
                "{wrong}"
            );
        }
    }
}
