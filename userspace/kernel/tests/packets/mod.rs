//! Ethernet frames for the tests of the eBPF programs, with every field right unless a test spoils it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::net::{Ipv4Addr, SocketAddr};

/// A UDP datagram in an Ethernet frame.
#[derive(Clone, Debug)]
pub struct Datagram {
    pub destination_mac: [u8; 6],
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub tos: u8,
    pub ipv4_flags: u16,
    /// 32-bit words of options.
    pub ipv4_options: Vec<u8>,
    pub vlan: Option<u16>,
    pub payload: Vec<u8>,
}

impl Datagram {
    pub fn new(from: &str, to: &str, payload: Vec<u8>) -> Self {
        Self {
            destination_mac: [0; 6],
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            tos: 0,
            ipv4_flags: 0x4000,
            ipv4_options: Vec::new(),
            vlan: None,
            payload,
        }
    }

    pub fn frame(&self) -> Vec<u8> {
        let udp = self.udp();
        let mut frame = self.destination_mac.to_vec();
        frame.extend([2, 0, 0, 0, 0, 9]);
        if let Some(tag) = self.vlan {
            frame.extend([0x81, 0]);
            frame.extend(tag.to_be_bytes());
        }
        match (self.from, self.to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                frame.extend([0x08, 0]);
                frame.extend(self.ipv4(*from.ip(), *to.ip(), udp.len()));
            }
            (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                frame.extend([0x86, 0xdd]);
                frame.extend([0x60 | self.tos >> 4, self.tos << 4, 0, 0]);
                frame.extend(u16::try_from(udp.len()).unwrap().to_be_bytes());
                frame.extend([17, 64]);
                frame.extend(from.ip().octets());
                frame.extend(to.ip().octets());
            }
            _ => panic!("one family"),
        }
        frame.extend(udp);
        frame
    }

    fn ipv4(&self, from: Ipv4Addr, to: Ipv4Addr, udp: usize) -> Vec<u8> {
        let length = 20 + self.ipv4_options.len();
        let mut header = vec![0x40 | u8::try_from(length / 4).unwrap(), self.tos];
        header.extend(u16::try_from(length + udp).unwrap().to_be_bytes());
        header.extend([0, 1]);
        header.extend(self.ipv4_flags.to_be_bytes());
        header.extend([64, 17, 0, 0]);
        header.extend(from.octets());
        header.extend(to.octets());
        header.extend(&self.ipv4_options);
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn udp(&self) -> Vec<u8> {
        let length = u16::try_from(8 + self.payload.len()).unwrap();
        let mut udp = self.from.port().to_be_bytes().to_vec();
        udp.extend(self.to.port().to_be_bytes());
        udp.extend(length.to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(&self.payload);
        let addresses = match (self.from, self.to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                [from.ip().octets(), to.ip().octets()].concat()
            }
            (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                [from.ip().octets(), to.ip().octets()].concat()
            }
            _ => panic!("one family"),
        };
        let sum = checksum(&[&addresses, &[0, 17], &length.to_be_bytes(), &udp]);
        udp[6..8].copy_from_slice(&if sum == 0 {
            [0xff; 2]
        } else {
            sum.to_be_bytes()
        });
        udp
    }
}

/// The Internet checksum (RFC 1071) of parts of even length, but for the last.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// A data message for `receiver`, `length` bytes in all.
pub fn data(receiver: u32, counter: u64, length: usize) -> Vec<u8> {
    let mut message = vec![4, 0, 0, 0];
    message.extend(receiver.to_le_bytes());
    message.extend(counter.to_le_bytes());
    message.resize(length, 0xaa);
    message
}

/// A handshake message of `kind`, `length` bytes in all, none of them zero behind the type.
pub fn handshake(kind: u8, length: usize) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.resize(length, 0x55);
    message
}

/// An initiation without a second MAC.
pub fn bare_initiation() -> Vec<u8> {
    let mut message = handshake(1, 132);
    message.resize(148, 0);
    message
}

/// Inserts an extension header of 8 bytes before the UDP header of an IPv6 frame.
pub fn with_extension_header(mut frame: Vec<u8>, kind: u8, body: [u8; 6]) -> Vec<u8> {
    let length = u16::from_be_bytes([frame[18], frame[19]]) + 8;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame[20] = kind;
    let mut header = vec![17, 0];
    header.extend(body);
    frame.splice(54..54, header);
    frame
}

/// Recomputes the IPv4 header checksum of a frame that a test has changed.
pub fn fix_ipv4(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let sum = checksum(&[&frame[14..34]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}
