//! Control messages, in both directions: `cmsg(3)`, `ip(7)`, `ipv6(7)`, `udp(7)`.
//!
//! A message is a `struct cmsghdr` (length, level, type) and a value, each padded to the size of a
//! `size_t`. Both directions work on bytes with checked bounds.

use std::ffi::c_int;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Length of `struct cmsghdr`.
const HEADER: usize = size_of::<libc::cmsghdr>();
/// `CMSG_ALIGN`.
const ALIGNMENT: usize = size_of::<usize>();
/// `CMSG_SPACE` of a value.
const fn space(value: usize) -> usize {
    (HEADER + value).next_multiple_of(ALIGNMENT)
}

/// Length of `struct in_pktinfo`: interface, source to use, destination of the packet.
const V4_INFO: usize = size_of::<libc::in_pktinfo>();
/// Length of `struct in6_pktinfo`: address, interface.
const V6_INFO: usize = size_of::<libc::in6_pktinfo>();
/// Length of an `int`.
const INTEGER: usize = size_of::<c_int>();

/// Room for all a datagram can carry here: address, traffic class, segment size.
pub(super) const CAPACITY: usize = 128;
const _: () = assert!(space(V6_INFO) + 2 * space(INTEGER) <= CAPACITY);
const _: () = assert!(V4_INFO <= V6_INFO);

/// A control buffer, aligned as `struct cmsghdr` must be.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub(super) struct ControlBuffer {
    bytes: [u8; CAPACITY],
    length: usize,
}

impl ControlBuffer {
    pub(super) const EMPTY: Self = Self {
        bytes: [0; CAPACITY],
        length: 0,
    };

    /// Forgets everything. Padding of the next messages is zero again.
    pub(super) fn clear(&mut self) {
        self.bytes[..self.length].fill(0);
        self.length = 0;
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The whole room, for the kernel to write into; [`set_length`](Self::set_length) follows.
    pub(super) fn room(&mut self) -> &mut [u8; CAPACITY] {
        &mut self.bytes
    }

    pub(super) fn set_length(&mut self, length: usize) {
        self.length = length.min(CAPACITY);
    }

    /// Sends from `source`. The interface counts for IPv6 link-local addresses only, which mean
    /// nothing without one. For all others it is left to the routing table: pinning it would break
    /// the tunnel when the route to the peer moves to another interface of a multi-homed host.
    pub(super) fn push_source(&mut self, source: IpAddr, interface: u32) {
        match source {
            IpAddr::V4(address) => {
                let mut info = [0; V4_INFO];
                info[4..8].copy_from_slice(&address.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            IpAddr::V6(address) => {
                let mut info = [0; V6_INFO];
                info[..16].copy_from_slice(&address.octets());
                if address.is_unicast_link_local() {
                    info[16..20].copy_from_slice(&interface.to_ne_bytes());
                }
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }

    /// Sends with this ECN field. The option follows the family of the destination: one for the
    /// other family is refused or ignored.
    pub(super) fn push_ecn(&mut self, ecn: u8, v4: bool) {
        let value = c_int::from(ecn).to_ne_bytes();
        if v4 {
            self.push(libc::IPPROTO_IP, libc::IP_TOS, &value);
        } else {
            self.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &value);
        }
    }

    /// Has the kernel cut the data into datagrams of this many bytes.
    pub(super) fn push_segment_size(&mut self, size: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
    }

    fn push(&mut self, level: c_int, kind: c_int, value: &[u8]) {
        let start = self.length;
        let Some(room) = self.bytes.get_mut(start..start + space(value.len())) else {
            return;
        };
        room.fill(0);
        let length = HEADER + value.len();
        room[..8].copy_from_slice(&(length as u64).to_ne_bytes());
        room[8..12].copy_from_slice(&level.to_ne_bytes());
        room[12..16].copy_from_slice(&kind.to_ne_bytes());
        room[HEADER..length].copy_from_slice(value);
        self.length = start + room.len();
    }
}

// The writer above and the reader below spell out the 64-bit layout.
const _: () = assert!(HEADER == 16 && ALIGNMENT == 8);

/// What a received datagram came with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Control {
    /// The address it was sent to, and the interface it came in by.
    pub(super) local: Option<(IpAddr, u32)>,
    /// The low two bits of TOS or traffic class.
    pub(super) ecn: u8,
    /// What GRO put together, in bytes.
    pub(super) segment_size: Option<usize>,
}

impl Control {
    /// Reads what the kernel wrote; ends at the first message that is cut short.
    pub(super) fn read(mut bytes: &[u8]) -> Self {
        let mut control = Self::default();
        while let Some(header) = bytes.first_chunk::<HEADER>() {
            let [length @ .., _, _, _, _, _, _, _, _] = *header;
            let length = usize::try_from(u64::from_ne_bytes(length)).unwrap_or(usize::MAX);
            let Some(value) = bytes.get(HEADER..length) else {
                break;
            };
            let level = read_integer(&header[8..]).unwrap_or(0);
            let kind = read_integer(&header[12..]).unwrap_or(0);
            control.take(level, kind, value);
            // At least a header further on, so this ends whatever the lengths say.
            bytes = bytes
                .get(length.next_multiple_of(ALIGNMENT)..)
                .unwrap_or_default();
        }
        control
    }

    fn take(&mut self, level: c_int, kind: c_int, value: &[u8]) {
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => self.local = read_v4_info(value).or(self.local),
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                self.local = read_v6_info(value).or(self.local);
            }
            // One byte for IPv4, an `int` for IPv6.
            (libc::IPPROTO_IP, libc::IP_TOS) => self.ecn = value.first().map_or(0, |tos| tos & 3),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                self.ecn = read_integer(value).map_or(0, |class| class.to_le_bytes()[0] & 3);
            }
            (libc::SOL_UDP, libc::UDP_GRO) => {
                self.segment_size = read_integer(value).and_then(|size| usize::try_from(size).ok());
            }
            _ => {}
        }
    }
}

fn read_integer(bytes: &[u8]) -> Option<c_int> {
    bytes.first_chunk().copied().map(c_int::from_ne_bytes)
}

fn read_v4_info(value: &[u8]) -> Option<(IpAddr, u32)> {
    let interface = u32::from_ne_bytes(*value.first_chunk()?);
    // The second address, `ipi_spec_dst`, is the one to answer from; the third may be a broadcast.
    let octets: [u8; 4] = *value.get(4..)?.first_chunk()?;
    Some((Ipv4Addr::from(octets).into(), interface))
}

fn read_v6_info(value: &[u8]) -> Option<(IpAddr, u32)> {
    let octets: [u8; 16] = *value.first_chunk()?;
    let interface = u32::from_ne_bytes(*value.get(16..)?.first_chunk()?);
    Some((Ipv6Addr::from(octets).to_canonical(), interface))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A buffer as the kernel fills it: IPv4 information, TOS as one byte, segment size.
    fn received() -> ControlBuffer {
        let mut buffer = ControlBuffer::EMPTY;
        let mut info = [0; V4_INFO];
        info[..4].copy_from_slice(&5_u32.to_ne_bytes());
        info[4..8].copy_from_slice(&[192, 0, 2, 1]);
        info[8..12].copy_from_slice(&[192, 0, 2, 255]);
        buffer.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        buffer.push(libc::IPPROTO_IP, libc::IP_TOS, &[0xfe]);
        buffer.push(libc::SOL_UDP, libc::UDP_GRO, &1400_i32.to_ne_bytes());
        buffer
    }

    #[test]
    fn reads_what_the_kernel_writes() {
        let source = (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 5);
        let expected = Control {
            local: Some(source),
            ecn: 2,
            segment_size: Some(1400),
        };
        assert_eq!(Control::read(received().as_bytes()), expected);
    }

    /// wireguard-go f502ec3: a value whose length is not a multiple of 8 is padded in the buffer,
    /// and the next message starts after the padding.
    #[test]
    fn padding_after_an_odd_value_is_skipped() {
        let buffer = received();
        assert_eq!(
            buffer.as_bytes().len(),
            space(V4_INFO) + space(1) + space(INTEGER)
        );
        assert_eq!(Control::read(buffer.as_bytes()).segment_size, Some(1400));
        // The last message may lack its padding.
        let cut = &buffer.as_bytes()[..space(V4_INFO) + space(1) + HEADER + INTEGER];
        assert_eq!(Control::read(cut).segment_size, Some(1400));
    }

    /// wireguard-go 07a1e55: two control messages made the reader loop for ever.
    #[test]
    fn lengths_that_lead_nowhere_end_the_reading() {
        for length in [0_u64, 1, 15, 16, 17, u64::MAX, u64::MAX - 7] {
            let mut bytes = [0; 64];
            bytes[..8].copy_from_slice(&length.to_ne_bytes());
            bytes[16..24].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Control::read(&bytes), Control::default());
        }
    }

    /// wireguard-go 6901984: the control length of one use leaked into the next.
    #[test]
    fn a_cleared_buffer_equals_a_fresh_one() {
        let fill = |buffer: &mut ControlBuffer| {
            buffer.push_source("2001:db8::1".parse().unwrap(), 3);
            buffer.push_ecn(1, false);
        };
        let mut used = received();
        used.push_segment_size(0xffff);
        used.clear();
        assert_eq!(used.as_bytes(), b"");
        fill(&mut used);
        let mut fresh = ControlBuffer::EMPTY;
        fill(&mut fresh);
        assert_eq!(used.bytes, fresh.bytes);
        assert_eq!(used.length, fresh.length);
    }

    #[test]
    fn the_interface_is_pinned_for_link_local_sources_only() {
        let interface_of = |source: &str| {
            let mut buffer = ControlBuffer::EMPTY;
            buffer.push_source(source.parse().unwrap(), 7);
            Control::read(buffer.as_bytes()).local.unwrap()
        };
        assert_eq!(interface_of("fe80::1").1, 7);
        assert_eq!(
            interface_of("2001:db8::1"),
            ("2001:db8::1".parse().unwrap(), 0)
        );
        assert_eq!(interface_of("192.0.2.9"), ("192.0.2.9".parse().unwrap(), 0));
    }

    /// A v4 option on a v6 destination (and the reverse) is ignored by the kernel at best.
    #[test]
    fn ecn_option_follows_the_address_family() {
        for (v4, level) in [(true, libc::IPPROTO_IP), (false, libc::IPPROTO_IPV6)] {
            let mut buffer = ControlBuffer::EMPTY;
            buffer.push_ecn(3, v4);
            assert_eq!(read_integer(&buffer.as_bytes()[8..]), Some(level));
            assert_eq!(Control::read(buffer.as_bytes()).ecn, 3);
        }
    }

    #[test]
    fn everything_at_once_fits() {
        let mut buffer = ControlBuffer::EMPTY;
        buffer.push_source("fe80::1".parse().unwrap(), 1);
        buffer.push_ecn(3, false);
        buffer.push_segment_size(1400);
        assert_eq!(buffer.length, space(V6_INFO) + space(INTEGER) + space(2));
    }

    proptest! {
        #[test]
        fn garbage_is_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..CAPACITY)) {
            let control = Control::read(&bytes);
            prop_assert!(control.ecn < 4);
        }
    }
}
