//! Offsets and field access shared by [`crate::split`], [`crate::coalesce`] and [`crate::ecn`].

use crate::checksum;

/// IPv4 header without options.
pub(crate) const IPV4_LEN: usize = 20;
/// IPv6 header without extension headers.
pub(crate) const IPV6_LEN: usize = 40;
/// TCP header without options.
pub(crate) const TCP_LEN: usize = 20;
/// UDP header.
pub(crate) const UDP_LEN: usize = 8;

/// Protocol and next-header number of TCP.
pub(crate) const TCP: u8 = 6;
/// Protocol and next-header number of UDP.
pub(crate) const UDP: u8 = 17;

/// Offset of the checksum in a TCP header.
pub(crate) const TCP_CHECK: usize = 16;
/// Offset of the checksum in a UDP header.
pub(crate) const UDP_CHECK: usize = 6;
/// Offset of the header checksum in an IPv4 header.
pub(crate) const IPV4_CHECK: usize = 10;

/// TCP flags, byte 13 of the header.
pub(crate) const TCP_FIN: u8 = 0x01;
pub(crate) const TCP_PSH: u8 = 0x08;
pub(crate) const TCP_ACK: u8 = 0x10;
pub(crate) const TCP_CWR: u8 = 0x80;

/// IPv4 flags-and-offset word: "do not fragment".
pub(crate) const IPV4_DF: u16 = 0x4000;
/// IPv4 flags-and-offset word: "more fragments" and the offset; not zero exactly in fragments.
pub(crate) const IPV4_FRAGMENT: u16 = 0x3fff;

/// The big-endian word at `at`, which the caller has checked to be inside `bytes`.
#[inline(always)]
pub(crate) fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The big-endian double word at `at`, which the caller has checked to be inside `bytes`.
#[inline(always)]
pub(crate) fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Stores `value` big-endian at `at`, which the caller has checked to be inside `bytes`.
#[inline(always)]
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The addresses of an IP header of known version, as they stand in it.
#[inline(always)]
pub(crate) fn addresses(packet: &[u8], ipv4: bool) -> &[u8] {
    if ipv4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    }
}

/// The pseudo-header sum without the length, which callers add per segment.
#[inline(always)]
pub(crate) fn pseudo_sum(packet: &[u8], ipv4: bool, protocol: u8) -> u64 {
    checksum::sum(addresses(packet, ipv4)) + u64::from(protocol)
}
