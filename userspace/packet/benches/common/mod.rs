//! What both benches work on.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each bench uses its part, and its inputs are its own"
)]

use adit_packet::virtio::{F_NEEDS_CSUM, GSO_TCPV4, VirtioNetHeader};

/// Packets of a super-packet at the usual MTU.
pub(crate) const BATCH: usize = 45;

/// IPv4 and TCP, without options.
pub(crate) const HEADERS: usize = 40;

/// An IPv4/TCP super-packet of up to `BATCH` segments with `size` bytes each, headers included.
pub(crate) fn super_packet(size: usize) -> (VirtioNetHeader, Vec<u8>, usize) {
    let gso_size = size - HEADERS;
    let segments = BATCH.min((65_535 - HEADERS) / gso_size);
    let len = HEADERS + gso_size * segments;
    let mut packet = vec![0x5a; len];
    packet[..HEADERS].fill(0);
    packet[..4].copy_from_slice(&[0x45, 0, 0, 0]);
    packet[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
    packet[6..10].copy_from_slice(&[0x40, 0, 64, 6]);
    packet[12..24].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3, 4]);
    packet[32..36].copy_from_slice(&[0x50, 0x10, 1, 0]);
    let header = VirtioNetHeader {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        gso_size: u16::try_from(gso_size).unwrap(),
        csum_start: 20,
        csum_offset: 16,
        ..VirtioNetHeader::default()
    };
    (header, packet, segments)
}
