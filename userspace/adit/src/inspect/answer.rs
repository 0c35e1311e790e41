//! The answer to `get=1` of the configuration protocol (<https://www.wireguard.com/xplatform/>), read as `wg(8)` reads it: keys
//! that are not known are passed over, so that every implementation's answer will do.
//!
//! Nothing secret leaves this file: of the private key there remains the public one, of a preshared key that there is one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use adit_protocol::{PrivateKey, PublicKey};
use thiserror::Error;
use zeroize::Zeroizing;

/// What Adit's own keys start with.
const OWN: &str = "adit_";

/// Why an answer makes no sense. The words never repeat a value, which may be secret.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AnswerError {
    /// A line that is not `key=value`, or not text.
    #[error("line {0} of the answer is not key=value")]
    NotALine(usize),
    /// A value that its key does not take.
    #[error("line {line} of the answer: {key} has a value it cannot have")]
    Value {
        /// Number of the line, from 1.
        line: usize,
        /// The key.
        key: String,
    },
    /// A key of a peer before the first peer.
    #[error("line {line} of the answer: {key} does not belong to a peer")]
    NoPeer {
        /// Number of the line, from 1.
        line: usize,
        /// The key.
        key: String,
    },
    /// The daemon reports a failure.
    #[error("the daemon answers with errno {0}")]
    Errno(i64),
    /// The answer ends before its `errno=` line.
    #[error("the answer is cut short")]
    Truncated,
}

/// A tunnel device as its daemon describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Of the private key, if there is one.
    pub public_key: Option<PublicKey>,
    /// UDP port; 0 while the device is down.
    pub listen_port: u16,
    /// Firewall mark; 0 if off.
    pub fwmark: u32,
    /// How packets come in: `xdp`, `socket`, `none`.
    pub datapath: Option<String>,
    /// Why not by AF_XDP, one reason a line.
    pub datapath_notes: Vec<String>,
    /// Interfaces whose packets come in by AF_XDP.
    pub xdp: Vec<XdpDevice>,
    /// Interfaces whose packets go out by AF_XDP.
    pub transmit: Vec<TransmitDevice>,
    /// Adit's counters without their prefix, in the order of the answer.
    pub counters: Vec<(String, u64)>,
    /// The peers, in the order of the answer.
    pub peers: Vec<Peer>,
}

impl Device {
    /// One of the counters.
    pub fn counter(&self, name: &str) -> Option<u64> {
        let mut counters = self.counters.iter();
        counters.find_map(|(found, count)| (found == name).then_some(*count))
    }

    /// Packets dropped, by reason.
    pub fn drops(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counters
            .iter()
            .filter_map(|(name, count)| Some((name.strip_prefix("drop_")?, *count)))
    }
}

/// An interface whose packets come in by AF_XDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpDevice {
    /// Its name.
    pub name: String,
    /// `native` or `generic`.
    pub mode: String,
    /// The driver writes straight into our memory.
    pub zero_copy: bool,
    /// RX queues with a socket.
    pub queues: u32,
}

/// An interface whose packets go out by AF_XDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransmitDevice {
    /// Its name.
    pub name: String,
    /// The driver reads straight from our memory.
    pub zero_copy: bool,
}

/// A peer in [`Device`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub public_key: PublicKey,
    /// There is a preshared key.
    pub preshared_key: bool,
    /// Where it was last heard of.
    pub endpoint: Option<SocketAddr>,
    /// Unix time of the last handshake in seconds; 0 if never.
    pub latest_handshake: u64,
    /// What it took to the peer and back, if the daemon says so.
    pub round_trip: Option<Duration>,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Seconds between keepalives; 0 if off.
    pub keepalive: u16,
    /// Allowed prefixes: address, length.
    pub allowed_ips: Vec<(IpAddr, u8)>,
}

impl Peer {
    fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            preshared_key: false,
            endpoint: None,
            latest_handshake: 0,
            round_trip: None,
            received: 0,
            sent: 0,
            keepalive: 0,
            allowed_ips: Vec::new(),
        }
    }
}

impl Device {
    /// Reads an answer, up to and including its `errno=` line.
    ///
    /// # Errors
    /// See [`AnswerError`].
    pub fn parse(answer: &[u8]) -> Result<Self, AnswerError> {
        let mut device = Self::default();
        for (index, bytes) in answer.split(|byte| *byte == b'\n').enumerate() {
            let line = index + 1;
            if bytes.is_empty() {
                break;
            }
            let (key, value) = std::str::from_utf8(bytes)
                .ok()
                .and_then(|text| text.split_once('='))
                .ok_or(AnswerError::NotALine(line))?;
            if key == "errno" {
                return match value.parse() {
                    Ok(0) => Ok(device),
                    Ok(errno) => Err(AnswerError::Errno(errno)),
                    Err(_) => Err(wrong_value(line, key)),
                };
            }
            device.take(line, key, value)?;
        }
        Err(AnswerError::Truncated)
    }

    fn take(&mut self, line: usize, key: &str, value: &str) -> Result<(), AnswerError> {
        let wrong = || wrong_value(line, key);
        match key {
            "private_key" => {
                let bytes = key_bytes(value).ok_or_else(wrong)?;
                self.public_key =
                    (!is_zero(&bytes)).then(|| PrivateKey::from_bytes(*bytes).public_key());
            }
            "listen_port" => self.listen_port = value.parse().map_err(|_| wrong())?,
            "fwmark" => self.fwmark = value.parse().map_err(|_| wrong())?,
            "public_key" => {
                let bytes = key_bytes(value).ok_or_else(wrong)?;
                self.peers.push(Peer::new(PublicKey::from_bytes(*bytes)));
            }
            _ => match key.strip_prefix(OWN) {
                Some(key) => self.take_own(key, value),
                None => self.take_of_peer(line, key, value)?,
            },
        }
        Ok(())
    }

    /// Adit's own keys help a person; one that makes no sense is not shown.
    fn take_own(&mut self, key: &str, value: &str) {
        match key {
            "datapath" => self.datapath = Some(value.to_owned()),
            "datapath_note" => self.datapath_notes.push(value.to_owned()),
            "xdp" => self.xdp.extend(xdp_device(value)),
            "xdp_transmit" => self.transmit.extend(transmit_device(value)),
            "round_trip_us" => {
                if let Some(peer) = self.peers.last_mut() {
                    peer.round_trip = value.parse().ok().map(Duration::from_micros);
                }
            }
            _ => {
                if let Ok(count) = value.parse() {
                    self.counters.push((key.to_owned(), count));
                }
            }
        }
    }

    fn take_of_peer(&mut self, line: usize, key: &str, value: &str) -> Result<(), AnswerError> {
        let wrong = || wrong_value(line, key);
        let known = [
            "preshared_key",
            "endpoint",
            "last_handshake_time_sec",
            "rx_bytes",
            "tx_bytes",
            "persistent_keepalive_interval",
            "allowed_ip",
        ];
        if !known.contains(&key) {
            return Ok(());
        }
        let peer = self.peers.last_mut().ok_or_else(|| AnswerError::NoPeer {
            line,
            key: key.to_owned(),
        })?;
        match key {
            "preshared_key" => {
                peer.preshared_key = !is_zero(&*key_bytes(value).ok_or_else(wrong)?);
            }
            "endpoint" => peer.endpoint = Some(value.parse().map_err(|_| wrong())?),
            "last_handshake_time_sec" => {
                peer.latest_handshake = value.parse().map_err(|_| wrong())?;
            }
            "rx_bytes" => peer.received = value.parse().map_err(|_| wrong())?,
            "tx_bytes" => peer.sent = value.parse().map_err(|_| wrong())?,
            "persistent_keepalive_interval" => {
                peer.keepalive = value.parse().map_err(|_| wrong())?;
            }
            _ => peer.allowed_ips.push(prefix(value).ok_or_else(wrong)?),
        }
        Ok(())
    }
}

fn wrong_value(line: usize, key: &str) -> AnswerError {
    AnswerError::Value {
        line,
        key: key.to_owned(),
    }
}

/// 64 hexadecimal digits. No branch or index depends on a digit's value, since keys are secret.
fn key_bytes(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let mut key = Zeroizing::new([0; 32]);
    let mut all_right = 1;
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let (high, high_right) = hex_digit(pair[0]);
        let (low, low_right) = hex_digit(pair[1]);
        *byte = high << 4 | low;
        all_right &= high_right & low_right;
    }
    (all_right == 1).then_some(key)
}

/// The value of a digit, and 1 if it is one.
fn hex_digit(character: u8) -> (u8, u8) {
    // 1 if `value` is below `limit`, both far below 2^15; a negative difference has the top bit.
    let below = |value: u16, limit: u16| value.wrapping_sub(limit) >> 15 & !(value >> 15);
    let number = u16::from(character).wrapping_sub(u16::from(b'0'));
    let letter = u16::from(character & !0x20).wrapping_sub(u16::from(b'A'));
    let (is_number, is_letter) = (below(number, 10), below(letter, 6));
    let value = is_number * (number & 15) + is_letter * (letter.wrapping_add(10) & 15);
    let [value, _] = value.to_le_bytes();
    let [right, _] = (is_number | is_letter).to_le_bytes();
    (value, right)
}

/// All zeroes means "none". Looks at every byte, whatever the first ones are.
fn is_zero(key: &[u8; 32]) -> bool {
    key.iter().fold(0, |all, byte| all | byte) == 0
}

fn prefix(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = length.parse().ok().filter(|length| *length <= longest)?;
    Some((address, length))
}

/// `NAME native|generic copy|zerocopy QUEUES`.
fn xdp_device(text: &str) -> Option<XdpDevice> {
    let words: Vec<&str> = text.split(' ').collect();
    let [name, mode @ ("native" | "generic"), copy, queues] = words[..] else {
        return None;
    };
    Some(XdpDevice {
        name: name.to_owned(),
        mode: mode.to_owned(),
        zero_copy: match copy {
            "copy" => false,
            "zerocopy" => true,
            _ => return None,
        },
        queues: queues.parse().ok()?,
    })
}

/// `NAME copy|zerocopy`.
fn transmit_device(text: &str) -> Option<TransmitDevice> {
    let (name, copy) = text.split_once(' ')?;
    Some(TransmitDevice {
        name: name.to_owned(),
        zero_copy: match copy {
            "copy" => false,
            "zerocopy" => true,
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE: &str = "e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a";
    const PEER: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";
    const ZERO: &str = "0000000000000000000000000000000000000000000000000000000000000000";

    fn whole() -> String {
        format!(
            "private_key={PRIVATE}\nlisten_port=12912\nfwmark=51820\nadit_datapath=xdp\n\
             adit_datapath_note=eth1: no such queue\nadit_xdp=eth0 native copy 2\nadit_xdp=eth1 odd copy 2\n\
             adit_xdp_transmit=eth0 zerocopy\nadit_xdp_transmit=eth1 odd\n\
             adit_tun_reads=17\nadit_drop_ingress_ecn=3\nadit_new=word\nfuture=1\n\
             public_key={PEER}\npreshared_key={ZERO}\nprotocol_version=1\nendpoint=[abcd:23::33]:51820\n\
             last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\nadit_round_trip_us=800\ntx_bytes=38333\nrx_bytes=2224\n\
             persistent_keepalive_interval=111\nallowed_ip=192.168.4.4/32\nallowed_ip=fd00::/8\n\
             public_key={PRIVATE}\npreshared_key={PEER}\nerrno=0\n\n"
        )
    }

    #[test]
    fn a_whole_answer_is_read() {
        let device = Device::parse(whole().as_bytes()).unwrap();
        let base64 = device.public_key.unwrap().to_base64();
        // As `wg pubkey` gives it for this key.
        assert_eq!(base64.len(), 44);
        assert_eq!((device.listen_port, device.fwmark), (12912, 51820));
        assert_eq!(device.datapath.as_deref(), Some("xdp"));
        assert_eq!(device.datapath_notes, ["eth1: no such queue"]);
        let [xdp] = &device.xdp[..] else { panic!() };
        assert_eq!(
            (
                xdp.name.as_str(),
                xdp.mode.as_str(),
                xdp.zero_copy,
                xdp.queues
            ),
            ("eth0", "native", false, 2)
        );
        let [transmit] = &device.transmit[..] else {
            panic!()
        };
        assert!(transmit.name == "eth0" && transmit.zero_copy);
        assert_eq!(
            device.counters,
            [
                ("tun_reads".to_owned(), 17),
                ("drop_ingress_ecn".to_owned(), 3)
            ]
        );
        let [first, second] = &device.peers[..] else {
            panic!()
        };
        assert!(!first.preshared_key && second.preshared_key);
        assert_eq!(first.endpoint, Some("[abcd:23::33]:51820".parse().unwrap()));
        assert_eq!(
            (
                first.latest_handshake,
                first.sent,
                first.received,
                first.keepalive
            ),
            (1_700_000_000, 38333, 2224, 111)
        );
        assert_eq!(first.allowed_ips[1], ("fd00::".parse().unwrap(), 8));
        assert_eq!((second.endpoint, second.latest_handshake), (None, 0));
        assert_eq!(first.round_trip, Some(Duration::from_micros(800)));
        assert_eq!(second.round_trip, None);
    }

    #[test]
    fn an_empty_device_is_fine_and_no_answer_is_not() {
        assert_eq!(
            Device::parse(b"errno=0\n\n").unwrap(),
            Device::parse(format!("private_key={ZERO}\nerrno=0\n\n").as_bytes()).unwrap()
        );
        for cut in ["", "\n", "listen_port=1\n", "listen_port=1\n\nerrno=0\n"] {
            assert_eq!(
                Device::parse(cut.as_bytes()),
                Err(AnswerError::Truncated),
                "{cut:?}"
            );
        }
        assert_eq!(
            Device::parse(b"errno=-22\n\n"),
            Err(AnswerError::Errno(-22))
        );
    }

    #[test]
    fn values_that_make_no_sense_are_named_by_key_and_not_repeated() {
        let long = format!("private_key={PRIVATE}0\n");
        for line in [
            long.as_str(),
            "private_key=zz\n",
            "listen_port=65536\n",
            "fwmark=-1\n",
            "errno=no\n",
        ] {
            let Err(AnswerError::Value { line: 1, key }) = Device::parse(line.as_bytes()) else {
                panic!("{line}");
            };
            assert_eq!(Some(key.as_str()), line.split('=').next());
        }
        for value in [
            "endpoint=1.2.3.4",
            "allowed_ip=1.2.3.4/33",
            "allowed_ip=1.2.3.4",
            "rx_bytes=-1",
            "persistent_keepalive_interval=off",
            "preshared_key=é",
        ] {
            let answer = format!("public_key={PEER}\n{value}\nerrno=0\n\n");
            assert!(
                matches!(
                    Device::parse(answer.as_bytes()),
                    Err(AnswerError::Value { line: 2, .. })
                ),
                "{value}"
            );
        }
    }

    #[test]
    fn digits_are_those_of_hexadecimal() {
        for character in 0..=u8::MAX {
            let expected = char::from(character).to_digit(16);
            let (value, right) = hex_digit(character);
            assert_eq!(
                (right == 1).then_some(u32::from(value)),
                expected,
                "{character}"
            );
        }
    }

    #[test]
    fn peers_come_before_what_belongs_to_them() {
        assert_eq!(
            Device::parse(b"tx_bytes=1\nerrno=0\n\n"),
            Err(AnswerError::NoPeer {
                line: 1,
                key: "tx_bytes".to_owned()
            })
        );
    }

    #[test]
    fn nothing_secret_is_left() {
        let device = Device::parse(whole().as_bytes()).unwrap();
        let text = format!("{device:?}");
        assert!(!text.contains(&PRIVATE[..8]));
        assert!(!text.contains(&format!("{:?}", &key_bytes(PRIVATE).unwrap()[..8])));
    }

    /// Every cut and every single changed byte of a whole answer, and junk.
    #[test]
    fn nothing_makes_it_panic() {
        let whole = whole().into_bytes();
        for end in 0..whole.len() {
            let _ = Device::parse(&whole[..end]);
        }
        for at in 0..whole.len() {
            for byte in [0, b'=', b'\n', b'9', 0xff] {
                let mut changed = whole.clone();
                changed[at] = byte;
                let _ = Device::parse(&changed);
            }
        }
        for junk in [&b"\xff\xfe"[..], b"=", b"=\n", b"\0=\0\n", b"adit_xdp=\n"] {
            assert!(Device::parse(junk).is_err());
        }
    }
}
