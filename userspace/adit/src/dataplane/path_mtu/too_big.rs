//! What a router says of a packet that does not fit the next link: "fragmentation needed" (RFC 792, RFC
//! 1191) and "packet too big" (RFC 4443, section 3.2).
//!
//! It comes from the address that the packet was for, as from the kernel's own tunnels
//! (net/ipv4/ip_tunnel_core.c, `iptunnel_pmtud_build_icmp`): this host's address would be
//! taken for a forged one on its own tunnel device, and any other might not be routed to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use adit_packet::checksum;
use adit_packet::virtio::VirtioNetHeader;
use adit_protocol::{InnerPacket, Instant};

/// Messages a second, and at once. One is enough for a host: it remembers.
const RATE: u64 = 100;
const BURST: u64 = 20;
const SECOND: u64 = 1_000_000_000;

/// Longest message of IPv4 (RFC 1812, section 4.3.2.3) and of IPv6.
const LONGEST_V4: usize = 576;
const LONGEST_V6: usize = 1280;
const IPV4: usize = 20;
const IPV6: usize = 40;
const ICMP: usize = 8;
const VIRTIO: usize = VirtioNetHeader::LEN;
const HOP_LIMIT: u8 = 64;

/// RFC 792: destination unreachable, fragmentation needed and "don't fragment" set.
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
/// RFC 4443, section 3.2.
const PACKET_TOO_BIG: u8 = 2;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_ICMPV6: u8 = 58;
const DONT_FRAGMENT: u16 = 0x4000;
const OFFSET: u16 = 0x1fff;

/// How many messages may be sent. One egress thread's.
#[derive(Debug)]
pub(in crate::dataplane) struct Tokens {
    /// In nanoseconds of waiting, `SECOND / RATE` for each message.
    saved: u64,
    at: u64,
}

impl Tokens {
    pub(in crate::dataplane) fn new() -> Self {
        Self {
            saved: BURST * SECOND / RATE,
            at: 0,
        }
    }

    /// Whether there is one.
    pub(in crate::dataplane) fn any(&mut self, now: Instant) -> bool {
        let elapsed = now.as_nanos().saturating_sub(self.at);
        self.at = now.as_nanos();
        self.saved = self
            .saved
            .saturating_add(elapsed)
            .min(BURST * SECOND / RATE);
        self.saved >= SECOND / RATE
    }

    /// Takes one.
    pub(in crate::dataplane) fn take(&mut self) {
        self.saved = self.saved.saturating_sub(SECOND / RATE);
    }
}

/// Room for one message, with the virtio header in front.
#[derive(Debug)]
pub(in crate::dataplane) struct TooBig {
    bytes: [u8; VIRTIO + LONGEST_V6],
}

impl TooBig {
    pub(in crate::dataplane) fn new() -> Self {
        Self {
            bytes: [0; VIRTIO + LONGEST_V6],
        }
    }

    /// Writes the message that tells the sender of `packet` that `mtu` bytes would fit; `length` is that of
    /// the packet, or of the first segment if it is a super-packet. With an all-zero virtio header in front.
    ///
    /// `None` if nobody is to be told: the packet may be fragmented by routers, it is an ICMP error
    /// message itself or not the first fragment, or its addresses are not those of two hosts (RFC 1122,
    /// section 3.2.2; RFC 4443, section 2.4). Or if smaller packets are more than may be asked for.
    pub(in crate::dataplane) fn write(
        &mut self,
        inner: &InnerPacket,
        packet: &[u8],
        length: usize,
        mtu: usize,
    ) -> Option<&[u8]> {
        let end = match (inner.source, inner.destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.write_v4(from, to, packet, length, mtu)?,
            (IpAddr::V6(from), IpAddr::V6(to)) => self.write_v6(from, to, packet, length, mtu)?,
            _ => return None,
        };
        self.bytes.get(..end)
    }

    fn write_v4(
        &mut self,
        from: Ipv4Addr,
        to: Ipv4Addr,
        packet: &[u8],
        length: usize,
        mtu: usize,
    ) -> Option<usize> {
        let header = usize::from(packet.first()? & 15) * 4;
        let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]);
        let told = fragment & DONT_FRAGMENT != 0
            && fragment & OFFSET == 0
            && [from, to].iter().all(is_host_v4)
            && !(packet[9] == PROTOCOL_ICMP && is_error_v4(*packet.get(header)?));
        let total = u16::try_from(length).ok()?;
        let mtu = u16::try_from(mtu).ok()?;
        if !told || header < IPV4 || length <= usize::from(mtu) {
            return None;
        }
        let quoted = packet.len().min(length).min(LONGEST_V4 - IPV4 - ICMP);
        if quoted < header + 8 {
            return None;
        }
        self.bytes.fill(0);
        let message = &mut self.bytes[VIRTIO..][..IPV4 + ICMP + quoted];
        let message_length = u16::try_from(message.len()).ok()?;
        let (ip, icmp) = message.split_at_mut(IPV4);
        ip[0] = 0x45;
        // Internetwork control, as routers have it (RFC 1812, section 4.3.2.5).
        ip[1] = 0xc0;
        ip[2..4].copy_from_slice(&message_length.to_be_bytes());
        ip[8] = HOP_LIMIT;
        ip[9] = PROTOCOL_ICMP;
        ip[12..16].copy_from_slice(&to.octets());
        ip[16..20].copy_from_slice(&from.octets());
        let check = checksum::finish(checksum::sum(ip));
        ip[10..12].copy_from_slice(&check.to_be_bytes());

        icmp[0] = UNREACHABLE;
        icmp[1] = FRAGMENTATION_NEEDED;
        icmp[6..8].copy_from_slice(&mtu.to_be_bytes());
        let quote = &mut icmp[ICMP..];
        quote.copy_from_slice(&packet[..quoted]);
        // Of a super-packet the sender must recognise a segment.
        quote[2..4].copy_from_slice(&total.to_be_bytes());
        quote[10..12].fill(0);
        let check = checksum::finish(checksum::sum(&quote[..header]));
        quote[10..12].copy_from_slice(&check.to_be_bytes());
        let check = checksum::finish(checksum::sum(icmp));
        icmp[2..4].copy_from_slice(&check.to_be_bytes());
        Some(VIRTIO + IPV4 + ICMP + quoted)
    }

    fn write_v6(
        &mut self,
        from: Ipv6Addr,
        to: Ipv6Addr,
        packet: &[u8],
        length: usize,
        mtu: usize,
    ) -> Option<usize> {
        // No link of IPv6 is narrower, so nobody need send less.
        let mtu = u32::try_from(mtu.max(super::LEAST as usize)).ok()?;
        let told = [from, to].iter().all(is_host_v6)
            && !(*packet.get(6)? == PROTOCOL_ICMPV6 && *packet.get(IPV6)? < 128);
        if !told || length <= mtu as usize {
            return None;
        }
        let payload = u16::try_from(length - IPV6).ok()?;
        let quoted = packet.len().min(length).min(LONGEST_V6 - IPV6 - ICMP);
        self.bytes.fill(0);
        let message = &mut self.bytes[VIRTIO..][..IPV6 + ICMP + quoted];
        let (ip, icmp) = message.split_at_mut(IPV6);
        let icmp_length = u16::try_from(icmp.len()).ok()?;
        ip[0] = 0x60;
        ip[4..6].copy_from_slice(&icmp_length.to_be_bytes());
        ip[6] = PROTOCOL_ICMPV6;
        ip[7] = HOP_LIMIT;
        ip[8..24].copy_from_slice(&to.octets());
        ip[24..40].copy_from_slice(&from.octets());

        icmp[0] = PACKET_TOO_BIG;
        icmp[4..8].copy_from_slice(&mtu.to_be_bytes());
        let quote = &mut icmp[ICMP..];
        quote.copy_from_slice(&packet[..quoted]);
        quote[4..6].copy_from_slice(&payload.to_be_bytes());
        let pseudo = checksum::pseudo_v6(
            to.octets(),
            from.octets(),
            PROTOCOL_ICMPV6,
            icmp_length.into(),
        );
        let check = checksum::finish(pseudo + checksum::sum(icmp));
        icmp[2..4].copy_from_slice(&check.to_be_bytes());
        Some(VIRTIO + IPV6 + ICMP + quoted)
    }
}

fn is_host_v4(address: &Ipv4Addr) -> bool {
    let other = address.is_multicast()
        || address.is_broadcast()
        || address.is_unspecified()
        || address.is_loopback();
    !other
}

fn is_host_v6(address: &Ipv6Addr) -> bool {
    !(address.is_multicast() || address.is_unspecified() || address.is_loopback())
}

/// Unreachable, source quench, redirect, time exceeded, parameter problem.
fn is_error_v4(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

#[cfg(test)]
mod tests {
    use adit_packet::checksum::{fold, pseudo_v6, sum};

    use super::*;

    fn v4(protocol: u8, flags: u8, first: u8, length: usize) -> Vec<u8> {
        let mut packet = vec![7; length];
        let total = u16::try_from(length).unwrap().to_be_bytes();
        packet[..20].copy_from_slice(&[
            0x45, 0, total[0], total[1], 0, 9, flags, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0,
            2,
        ]);
        packet[20] = first;
        packet
    }

    fn v6(protocol: u8, first: u8, length: usize) -> Vec<u8> {
        let mut packet = vec![7; length];
        let payload = u16::try_from(length - 40).unwrap().to_be_bytes();
        packet[..8].copy_from_slice(&[0x60, 0, 0, 0, payload[0], payload[1], protocol, 64]);
        for (at, last) in [(8, 1), (24, 2)] {
            packet[at..at + 16].fill(0);
            packet[at] = 0xfd;
            packet[at + 15] = last;
        }
        packet[40] = first;
        packet
    }

    fn told(packet: &[u8], length: usize, mtu: usize) -> Option<Vec<u8>> {
        let inner = InnerPacket::parse(packet).unwrap();
        let mut room = TooBig::new();
        // What an earlier message has left behind does not matter.
        room.bytes.fill(0xaa);
        let message = room.write(&inner, packet, length, mtu)?;
        assert_eq!(message[..VIRTIO], [0; VIRTIO]);
        Some(message[VIRTIO..].to_vec())
    }

    #[test]
    fn an_ipv4_sender_is_told_what_fits() {
        let message = told(&v4(6, 0x40, 1, 9000), 1420, 1340).unwrap();
        assert_eq!(message.len(), LONGEST_V4);
        assert_eq!(message[..4], [0x45, 0xc0, 2, 0x40]);
        assert_eq!(message[12..20], [10, 0, 0, 2, 10, 0, 0, 1]);
        assert_eq!(fold(sum(&message[..20])), 0xffff);
        assert_eq!(message[20..22], [3, 4]);
        assert_eq!(message[24..28], [0, 0, 5, 0x3c]);
        assert_eq!(fold(sum(&message[20..])), 0xffff);
        // The quoted packet is the first segment.
        let quote = &message[28..];
        assert_eq!(quote[2..4], 1420_u16.to_be_bytes());
        assert_eq!(fold(sum(&quote[..20])), 0xffff);
        assert_eq!(quote[12..20], [10, 0, 0, 1, 10, 0, 0, 2]);
        assert_eq!(quote[20], 1);
    }

    #[test]
    fn an_ipv6_sender_is_told_what_fits_and_never_less_than_1280() {
        let message = told(&v6(6, 1, 9000), 1420, 1300).unwrap();
        assert_eq!(message.len(), LONGEST_V6);
        assert_eq!(message[24..40], v6(6, 1, 50)[8..24]);
        assert_eq!(message[40..42], [2, 0]);
        assert_eq!(message[44..48], 1300_u32.to_be_bytes());
        let source = <[u8; 16]>::try_from(&message[8..24]).unwrap();
        let destination = <[u8; 16]>::try_from(&message[24..40]).unwrap();
        let pseudo = pseudo_v6(source, destination, 58, 1240);
        assert_eq!(fold(pseudo + sum(&message[40..])), 0xffff);
        assert_eq!(message[52..54], 1380_u16.to_be_bytes());
        let least = told(&v6(6, 1, 9000), 1420, 700).unwrap();
        assert_eq!(least[44..48], 1280_u32.to_be_bytes());
        assert!(told(&v6(6, 1, 1280), 1280, 700).is_none());
    }

    #[test]
    fn nobody_is_told_who_must_not_be() {
        let told = |packet: Vec<u8>| told(&packet, 1420, 1340).is_some();
        assert!(told(v4(17, 0x40, 1, 1420)) && told(v4(1, 0x40, 8, 1420)));
        // May be fragmented, is a later fragment, is an error message.
        assert!(!told(v4(17, 0, 1, 1420)));
        let mut later = v4(17, 0x40, 1, 1420);
        later[7] = 1;
        assert!(!told(later));
        assert!(!told(v4(1, 0x40, 3, 1420)) && !told(v4(1, 0x40, 11, 1420)));
        for (at, address) in [(12, [224, 0, 0, 1]), (16, [255; 4]), (12, [0; 4])] {
            let mut packet = v4(17, 0x40, 1, 1420);
            packet[at..at + 4].copy_from_slice(&address);
            assert!(!told(packet));
        }
        assert!(told(v6(17, 1, 1420)) && told(v6(58, 128, 1420)));
        assert!(!told(v6(58, 1, 1420)));
        for at in [8, 24] {
            let mut packet = v6(17, 1, 1420);
            packet[at] = 0xff;
            assert!(!told(packet));
        }
    }

    #[test]
    fn headers_that_lie_make_no_message_and_no_panic() {
        for length in 20..1500 {
            for first in [0x45, 0x4f, 0x41] {
                let mut packet = v4(1, 0x40, 1, length.max(21));
                packet[0] = first;
                let _ = told(&packet, 1420, 1340);
            }
            let _ = told(&v6(58, 128, length.max(41)), 1420, 1300);
        }
        // A header that is all there is.
        let inner = InnerPacket::parse(&v4(6, 0x40, 0, 21)).unwrap();
        assert!(
            TooBig::new()
                .write(&inner, &[0x45; 20], 1420, 1340)
                .is_none()
        );
        assert!(TooBig::new().write(&inner, &[], 1420, 1340).is_none());
    }

    #[test]
    fn messages_are_few() {
        let mut tokens = Tokens::new();
        let count = |tokens: &mut Tokens, nanos: std::ops::Range<u64>| {
            nanos
                .step_by(100_000)
                .filter(|&at| {
                    let any = tokens.any(Instant::from_nanos(at));
                    if any {
                        tokens.take();
                    }
                    any
                })
                .count() as u64
        };
        let first = count(&mut tokens, SECOND..2 * SECOND);
        assert!((RATE..=RATE + BURST).contains(&first), "{first}");
        let second = count(&mut tokens, 2 * SECOND..3 * SECOND);
        assert!(second.abs_diff(RATE) <= 1, "{second}");
    }
}
