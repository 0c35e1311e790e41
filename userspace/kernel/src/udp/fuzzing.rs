//! Control messages from and to plain bytes.

use std::net::IpAddr;

use super::cmsg::{Control, ControlBuffer};

/// What control messages say about a datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlMessages {
    /// The address it was sent to, and the interface it came in by.
    pub local: Option<(IpAddr, u32)>,
    /// The low two bits of TOS or traffic class.
    pub ecn: u8,
    /// Length in bytes of the datagrams that GRO put together.
    pub segment_size: Option<usize>,
}

/// Reads a control buffer as `recvmmsg(2)` leaves it.
#[must_use]
pub fn read_control(bytes: &[u8]) -> ControlMessages {
    let Control {
        local,
        ecn,
        segment_size,
    } = Control::read(bytes);
    ControlMessages {
        local,
        ecn,
        segment_size,
    }
}

/// The control messages of a datagram to be sent: from `source` (with its interface), with an ECN field for IPv4 (true) or
/// IPv6, cut into pieces of `segment_size` bytes.
#[must_use]
pub fn write_control(
    source: Option<(IpAddr, u32)>,
    ecn: Option<(u8, bool)>,
    segment_size: Option<u16>,
) -> Vec<u8> {
    let mut buffer = ControlBuffer::EMPTY;
    if let Some((source, interface)) = source {
        buffer.push_source(source, interface);
    }
    if let Some((ecn, v4)) = ecn {
        buffer.push_ecn(ecn, v4);
    }
    if let Some(size) = segment_size {
        buffer.push_segment_size(size);
    }
    buffer.as_bytes().to_vec()
}
