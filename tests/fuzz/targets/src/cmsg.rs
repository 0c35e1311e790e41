//! Control messages of received datagrams, as the kernel or a bug could write them.

use std::net::IpAddr;

use adit_kernel::fuzzing::{ControlMessages, read_control, write_control};

use crate::script::Script;

const HEADER: usize = 16;

/// The bytes are a control buffer, or what to write into one.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    match script.choice(3) {
        0 => check(script.rest()),
        1 => check(&messages(&mut script)),
        _ => round_trip(&mut script),
    }
}

fn check(bytes: &[u8]) {
    assert_eq!(read_control(bytes), naive(bytes));
}

/// Messages of all levels and types, with lengths that may lie.
fn messages(script: &mut Script<'_>) -> Vec<u8> {
    /// `IPPROTO_IP`, `IPPROTO_IPV6`, `SOL_UDP`, `SOL_SOCKET`; `IP_TOS`, `IP_PKTINFO`, `IPV6_PKTINFO`, `IPV6_TCLASS`,
    /// `UDP_GRO`, and one that is not known.
    const LEVELS: [u32; 4] = [0, 41, 17, 1];
    const TYPES: [u32; 6] = [1, 8, 50, 67, 104, 99];
    let mut buffer = Vec::new();
    while !script.is_empty() && buffer.len() < 1024 {
        let (level, kind) = (LEVELS[script.choice(4)], TYPES[script.choice(6)]);
        let lie = script.byte();
        let value = script.bytes((lie & 31).into());
        let length = (HEADER + value.len()) as u64;
        let length = match lie >> 5 {
            5 => length + u64::from(script.byte()),
            6 => u64::from(script.byte()),
            7 => script.u64(),
            _ => length,
        };
        buffer.extend(length.to_ne_bytes());
        buffer.extend(level.to_ne_bytes());
        buffer.extend(kind.to_ne_bytes());
        buffer.extend(value);
        buffer.resize(buffer.len().next_multiple_of(8), 0);
    }
    buffer.truncate(buffer.len() - script.choice(9).min(buffer.len()));
    buffer
}

/// `recvmsg(2)`, `ip(7)`, `ipv6(7)`, `udp(7)`, word by word.
fn naive(bytes: &[u8]) -> ControlMessages {
    let word = |value: &[u8]| Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?));
    let mut read = ControlMessages::default();
    let mut at = 0;
    while at + HEADER <= bytes.len() {
        let length = u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        if length < HEADER as u64 || length > (bytes.len() - at) as u64 {
            break;
        }
        let value = &bytes[at + HEADER..at + length as usize];
        match (word(&bytes[at + 8..]), word(&bytes[at + 12..])) {
            (Some(0), Some(8)) if value.len() >= 8 => {
                let octets: [u8; 4] = value[4..8].try_into().unwrap();
                read.local = word(value).map(|interface| (octets.into(), interface));
            }
            (Some(41), Some(50)) if value.len() >= 20 => {
                let octets: [u8; 16] = value[..16].try_into().unwrap();
                let address = IpAddr::from(octets).to_canonical();
                read.local = word(&value[16..]).map(|interface| (address, interface));
            }
            (Some(0), Some(1)) => read.ecn = value.first().map_or(0, |tos| tos & 3),
            (Some(41), Some(67)) => read.ecn = word(value).map_or(0, |class| (class & 3) as u8),
            (Some(17), Some(104)) => {
                read.segment_size = word(value)
                    .filter(|size| *size < 1 << 31)
                    .map(|size| size as usize);
            }
            _ => {}
        }
        at += (length as usize).next_multiple_of(8);
    }
    read
}

/// What is written can be read.
fn round_trip(script: &mut Script<'_>) {
    let source: Option<(IpAddr, u32)> = match script.choice(3) {
        0 => None,
        1 => Some((script.u32().to_be_bytes().into(), script.u32())),
        _ => {
            let high = [script.u64(), 0xfe80 << 48][script.choice(2)];
            let address = u128::from(high) << 64 | u128::from(script.u64());
            Some((address.to_be_bytes().into(), script.u32()))
        }
    };
    let ecn = script.flag().then(|| (script.byte() & 3, script.flag()));
    let size = script.flag().then(|| script.u16());
    let read = read_control(&write_control(source, ecn, size));
    assert_eq!(
        read.local.map(|(address, _)| address),
        source.map(|(address, _)| address.to_canonical())
    );
    if let (Some((IpAddr::V6(address), wanted)), Some((_, got))) = (source, read.local) {
        let expected = if address.is_unicast_link_local() {
            wanted
        } else {
            0
        };
        assert_eq!(got, expected);
    }
    assert_eq!(read.ecn, ecn.map_or(0, |(ecn, _)| ecn));
}
