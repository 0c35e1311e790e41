//! The outer headers of a next hop, written but for what differs from packet to packet.

use std::net::{IpAddr, SocketAddr};

use adit_packet::checksum;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;
const PROTOCOL_UDP: u8 = 17;
const DONT_FRAGMENT: u16 = 0x4000;
/// Flow labels that hosts make up rather than agree on have this bit on Linux (include/net/ipv6.h,
/// `IPV6_FLOWLABEL_STATELESS_FLAG`).
const STATELESS: u32 = 0x8_0000;

/// Where a packet goes, in all layers.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Our Ethernet address and the neighbour's.
    pub ethernet: [[u8; 6]; 2],
    /// Our address and port.
    pub from: SocketAddr,
    /// The peer's.
    pub to: SocketAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// For IPv6; the lower 19 bits count.
    pub flow_label: u32,
}

/// Ethernet, IP and UDP header of one flow.
#[derive(Clone, Debug)]
pub struct Headers {
    bytes: [u8; ETHERNET + IPV6 + UDP],
    length: usize,
    /// Partial sum of the IPv4 header without its length, ECN field, identification and flags.
    ip_sum: u64,
    /// Partial sum of pseudo header and ports, without the length.
    udp_sum: u64,
}

impl Headers {
    /// Prepares the headers; `None` if the addresses are of different families.
    pub fn new(way: &Way) -> Option<Self> {
        let [ours, theirs] = way.ethernet;
        let mut bytes = [0; ETHERNET + IPV6 + UDP];
        bytes[..6].copy_from_slice(&theirs);
        bytes[6..12].copy_from_slice(&ours);
        let ip = &mut bytes[ETHERNET..];
        let (header, ip_sum, pseudo) = match (way.from.ip(), way.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                ip[..IPV4].copy_from_slice(&[
                    0x45,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    way.hop_limit,
                    PROTOCOL_UDP,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                ]);
                ip[12..16].copy_from_slice(&from.octets());
                ip[16..20].copy_from_slice(&to.octets());
                let pseudo = checksum::pseudo_v4(from.octets(), to.octets(), PROTOCOL_UDP, 0);
                (IPV4, checksum::sum(&ip[..IPV4]), pseudo)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let [_, label @ ..] = (way.flow_label & (STATELESS - 1) | STATELESS).to_be_bytes();
                ip[0] = 0x60;
                ip[1..4].copy_from_slice(&label);
                ip[6] = PROTOCOL_UDP;
                ip[7] = way.hop_limit;
                ip[8..24].copy_from_slice(&from.octets());
                ip[24..40].copy_from_slice(&to.octets());
                let pseudo = checksum::pseudo_v6(from.octets(), to.octets(), PROTOCOL_UDP, 0);
                (IPV6, 0, pseudo)
            }
            _ => return None,
        };
        let ethertype: u16 = if header == IPV4 { 0x0800 } else { 0x86dd };
        bytes[12..ETHERNET].copy_from_slice(&ethertype.to_be_bytes());
        let ports = [way.from.port(), way.to.port()];
        let udp = &mut bytes[ETHERNET + header..];
        udp[..2].copy_from_slice(&ports[0].to_be_bytes());
        udp[2..4].copy_from_slice(&ports[1].to_be_bytes());
        Some(Self {
            bytes,
            length: ETHERNET + header + UDP,
            ip_sum,
            udp_sum: pseudo + u64::from(ports[0]) + u64::from(ports[1]),
        })
    }

    /// Bytes of all headers.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Bytes of IP and UDP header, which count towards the MTU.
    pub fn in_mtu(&self) -> usize {
        self.length - ETHERNET
    }

    /// Writes a whole packet that may be fragmented, and has this identification; or, without one, that may
    /// not (RFC 6864, section 4.1). IPv6 has neither. `frame` is as long as [`length`](Self::length) and `payload` together, and the
    /// IP packet no longer than 65,535 bytes. Nothing is written otherwise.
    pub fn write(&self, frame: &mut [u8], ecn: u8, identification: Option<u16>, payload: &[u8]) {
        let Ok(udp_length) = u16::try_from(payload.len() + UDP) else {
            return;
        };
        if frame.len() != self.length + payload.len() {
            return;
        }
        let (headers, body) = frame.split_at_mut(self.length);
        headers.copy_from_slice(&self.bytes[..self.length]);
        let (before, udp) = headers.split_at_mut(self.length - UDP);
        let ip = &mut before[ETHERNET..];
        let ecn = ecn & 3;
        if ip.len() == IPV4 {
            let total = udp_length.saturating_add(20);
            ip[1] = ecn;
            let (identification, flags) = match identification {
                Some(identification) => (identification, 0),
                None => (0, DONT_FRAGMENT),
            };
            ip[2..4].copy_from_slice(&total.to_be_bytes());
            ip[4..6].copy_from_slice(&identification.to_be_bytes());
            ip[6..8].copy_from_slice(&flags.to_be_bytes());
            let sum = [ecn.into(), total, identification, flags].map(u64::from);
            let sum = self.ip_sum + sum.iter().sum::<u64>();
            ip[10..12].copy_from_slice(&checksum::finish(sum).to_be_bytes());
        } else {
            ip[1] |= ecn << 4;
            ip[4..6].copy_from_slice(&udp_length.to_be_bytes());
        }
        udp[4..6].copy_from_slice(&udp_length.to_be_bytes());
        // The length is in the pseudo header and in the header.
        let sum = self.udp_sum + 2 * u64::from(udp_length) + checksum::copy_and_sum(body, payload);
        // Zero would mean that there is none (RFC 768).
        let check = match checksum::finish(sum) {
            0 => 0xffff,
            check => check,
        };
        udp[6..8].copy_from_slice(&check.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use adit_kernel::xsk::frame::parse;
    use adit_packet::checksum::{fold, pseudo_v4, pseudo_v6, sum};

    use super::*;

    fn way(from: &str, to: &str) -> Way {
        Way {
            ethernet: [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]],
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            hop_limit: 61,
            flow_label: 0xffff_ffff,
        }
    }

    fn packet(way: &Way, ecn: u8, payload: &[u8]) -> Vec<u8> {
        identified(way, ecn, Some(0x1234), payload)
    }

    fn identified(way: &Way, ecn: u8, identification: Option<u16>, payload: &[u8]) -> Vec<u8> {
        let headers = Headers::new(way).unwrap();
        // What an earlier packet has left behind does not matter.
        let mut frame = vec![0xaa; headers.length() + payload.len()];
        headers.write(&mut frame, ecn, identification, payload);
        frame
    }

    #[test]
    fn what_is_written_is_read_back_and_its_checksums_hold() {
        for length in (0..70).chain([1452, 1453, 9000]) {
            let payload: Vec<u8> = (0..length)
                .map(|n| u8::try_from(n * 7 % 251).unwrap())
                .collect();
            for ecn in 0..4 {
                let v4 = packet(&way("192.0.2.1:51820", "198.51.100.9:7"), ecn, &payload);
                assert_eq!(v4[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
                let outer = parse(&v4, 0).unwrap();
                assert_eq!(outer.from, "192.0.2.1:51820".parse().unwrap());
                assert_eq!(outer.local, "198.51.100.9".parse::<IpAddr>().unwrap());
                assert_eq!((outer.ecn, v4[22]), (ecn, 61));
                assert_eq!(v4[18..22], [0x12, 0x34, 0, 0]);
                assert_eq!(v4[outer.payload], payload);
                assert_eq!(fold(sum(&v4[14..34])), 0xffff);
                let pseudo = pseudo_v4([192, 0, 2, 1], [198, 51, 100, 9], 17, length + 8);
                assert_eq!(fold(pseudo + sum(&v4[34..])), 0xffff);

                let v6 = packet(&way("[fd00::1]:51820", "[2001:db8::9]:7"), ecn, &payload);
                let outer = parse(&v6, 0).unwrap();
                assert_eq!(outer.from, "[fd00::1]:51820".parse().unwrap());
                assert_eq!((outer.ecn, v6[21]), (ecn, 61));
                assert_eq!(v6[14..18], [0x60, ecn << 4 | 0xf, 0xff, 0xff]);
                assert_eq!(v6[outer.payload], payload);
                let octets = |at: usize| <[u8; 16]>::try_from(&v6[at..at + 16]).unwrap();
                let pseudo = pseudo_v6(octets(22), octets(38), 17, u32::from(length) + 8);
                assert_eq!(fold(pseudo + sum(&v6[54..])), 0xffff);
            }
        }
    }

    #[test]
    fn a_packet_without_identification_must_not_be_fragmented() {
        let frame = identified(&way("192.0.2.1:1", "192.0.2.2:2"), 0, None, &[1; 99]);
        assert_eq!(frame[18..22], [0, 0, 0x40, 0]);
        assert_eq!(fold(sum(&frame[14..34])), 0xffff);
        let v6 = way("[fd00::1]:1", "[fd00::2]:2");
        assert_eq!(identified(&v6, 0, None, &[1; 99]), packet(&v6, 0, &[1; 99]));
    }

    #[test]
    fn a_checksum_of_zero_is_written_as_all_ones() {
        let way = way("[fd00::1]:1", "[fd00::2]:2");
        let frame = packet(&way, 0, &[0, 0]);
        let check = u16::from_be_bytes([frame[60], frame[61]]);
        // A word that brings the sum to 0xffff.
        let frame = packet(&way, 0, &check.to_be_bytes());
        assert_eq!(frame[60..62], [0xff, 0xff]);
    }

    #[test]
    fn families_do_not_mix_and_lengths_must_agree() {
        assert!(Headers::new(&way("192.0.2.1:1", "[fd00::2]:2")).is_none());
        let headers = Headers::new(&way("192.0.2.1:1", "192.0.2.2:2")).unwrap();
        let mut frame = [0xaa; 50];
        headers.write(&mut frame, 0, None, &[0; 9]);
        assert_eq!(frame, [0xaa; 50]);
    }
}
