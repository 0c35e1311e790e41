//! Finding out whether the kernel takes super-packets from us.
//!
//! Some kernels (6.6.44, 6.10.3 and neighbours) answer every write of a TCP super-packet with
//! `EINVAL`. Nothing announces it, so the daemon has to try once.

use std::io::{self, IoSlice};

use super::{Tun, VNET_HEADER_LENGTH};
use crate::sys::{self, is_errno};

const IP_HEADER: usize = 20;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const SEGMENT: usize = 64;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`, virtio 1.2 section 5.1.6.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`.
const GSO_UDP_L4: u8 = 5;

impl Tun {
    /// Whether the kernel takes TCP super-packets from us. Writes one of two segments.
    ///
    /// Call it after the device came up for the first time, before writing super-packets; on
    /// `false` write single packets only. The packet reaches nobody: its IPv4 header checksum is
    /// wrong, for which the kernel drops it before firewall and routing (and counts one
    /// `InCsumErrors`).
    ///
    /// # Errors
    /// `EIO` while the device is down; `InvalidInput` without a virtio header; `EBADFD` once the
    /// device is deleted.
    pub fn probe_gro_write(&self) -> io::Result<bool> {
        self.probe(&tcp_super_packet())
    }

    /// Whether the kernel takes UDP super-packets (`VIRTIO_NET_HDR_GSO_UDP_L4`, Linux 6.2) from
    /// us. As [`probe_gro_write`](Self::probe_gro_write).
    ///
    /// # Errors
    /// As [`probe_gro_write`](Self::probe_gro_write).
    pub fn probe_udp_gro_write(&self) -> io::Result<bool> {
        self.probe(&udp_super_packet())
    }

    fn probe(&self, packet: &[u8]) -> io::Result<bool> {
        if !self.has_vnet_header() {
            return Err(sys::invalid("super-packets need the virtio header"));
        }
        match self.write_vectored(&[IoSlice::new(packet)]) {
            Ok(_) => Ok(true),
            Err(error) if is_errno(&error, libc::EINVAL) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn tcp_super_packet() -> [u8; VNET_HEADER_LENGTH + IP_HEADER + TCP_HEADER + 2 * SEGMENT] {
    let mut packet = [0; VNET_HEADER_LENGTH + IP_HEADER + TCP_HEADER + 2 * SEGMENT];
    fill_headers(&mut packet, GSO_TCPV4, 6, IP_HEADER + TCP_HEADER, 16);
    let tcp = &mut packet[VNET_HEADER_LENGTH + IP_HEADER..];
    tcp[12] = 5 << 4; // data offset in words
    tcp[13] = 0x10; // ACK
    packet
}

fn udp_super_packet() -> [u8; VNET_HEADER_LENGTH + IP_HEADER + UDP_HEADER + 2 * SEGMENT] {
    let mut packet = [0; VNET_HEADER_LENGTH + IP_HEADER + UDP_HEADER + 2 * SEGMENT];
    fill_headers(&mut packet, GSO_UDP_L4, 17, IP_HEADER + UDP_HEADER, 6);
    let udp = &mut packet[VNET_HEADER_LENGTH + IP_HEADER..];
    udp[4..6].copy_from_slice(&short(UDP_HEADER + 2 * SEGMENT).to_be_bytes());
    packet
}

/// The virtio and IPv4 headers and the ports, which TCP and UDP have in the same place.
fn fill_headers(packet: &mut [u8], gso: u8, protocol: u8, headers: usize, checksum: u8) {
    let total = short(packet.len() - VNET_HEADER_LENGTH);
    let (virtio, ip) = packet.split_at_mut(VNET_HEADER_LENGTH);
    virtio[0] = NEEDS_CHECKSUM;
    virtio[1] = gso;
    virtio[2..4].copy_from_slice(&short(headers).to_ne_bytes());
    virtio[4..6].copy_from_slice(&short(SEGMENT).to_ne_bytes());
    virtio[6..8].copy_from_slice(&short(IP_HEADER).to_ne_bytes());
    virtio[8..10].copy_from_slice(&u16::from(checksum).to_ne_bytes());

    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    ip[8] = 1; // TTL
    ip[9] = protocol;
    // TEST-NET-1 (RFC 5737) to itself.
    ip[12..16].copy_from_slice(&[192, 0, 2, 1]);
    ip[16..20].copy_from_slice(&[192, 0, 2, 2]);
    // Any value but the right one; see the test.
    ip[10..12].copy_from_slice(&0_u16.to_be_bytes());
    // The discard port (RFC 863).
    ip[20..24].copy_from_slice(&[0, 9, 0, 9]);
}

/// A length in a header field; all here are below 1,000.
fn short(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_packets_have_a_wrong_header_checksum() {
        for packet in [&tcp_super_packet()[..], &udp_super_packet()[..]] {
            let header = &packet[VNET_HEADER_LENGTH..][..IP_HEADER];
            let mut sum = 0_u32;
            for word in header.chunks_exact(2) {
                sum += u32::from(u16::from_be_bytes([word[0], word[1]]));
            }
            sum = (sum & 0xffff) + (sum >> 16);
            assert_ne!(sum, 0xffff);
        }
    }
}
