//! `adit_tc_ingress` and `adit_tc_egress`: count the data messages that pass through the network stack.
//!
//! They change nothing. What XDP has redirected never gets here, so every message is counted once. The headers are
//! read relative to the network header, which works on interfaces without Ethernet headers too.

use adit_ebpf::{
    Address, DATA_MESSAGE_MIN, Direction, Family, FlowKey, ListenerKey, SessionKey, map_ipv4,
};
use aya_ebpf::{
    EbpfContext,
    bindings::{TC_ACT_UNSPEC, bpf_hdr_start_off::BPF_HDR_START_NET},
    helpers::bpf_skb_load_bytes_relative,
    macros::classifier,
    programs::TcContext,
};

use crate::{
    count,
    maps::{LISTENERS, SESSIONS},
};

const PROTOCOL_IPV4: u32 = 0x0800_u16.to_be() as u32;
const PROTOCOL_IPV6: u32 = 0x86dd_u16.to_be() as u32;
const UDP: u8 = 17;
const FRAGMENT_HEADER: u8 = 44;
const PACKET_HOST: u32 = 0;
/// Bytes that hold every header up to the receiver index: Ethernet, IPv4 with all options or IPv6 with a fragment header.
const HEADERS: u32 = 14 + 60 + 16;

/// One side of the outer packet.
struct Ends {
    source: Address,
    destination: Address,
    family: Family,
    /// Offset of the UDP header from the network header.
    udp: u32,
}

/// Counts data messages on their way to the UDP socket.
#[classifier]
pub(crate) fn adit_tc_ingress(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid for the whole invocation.
    let kind = unsafe { (*ctx.skb.skb).pkt_type };
    if kind == PACKET_HOST {
        let _ = count(&ctx, Direction::Ingress);
    }
    TC_ACT_UNSPEC
}

/// Counts data messages the UDP socket has sent.
#[classifier]
pub(crate) fn adit_tc_egress(ctx: TcContext) -> i32 {
    let _ = count(&ctx, Direction::Egress);
    TC_ACT_UNSPEC
}

/// Reads a `T` at `offset` from the network header.
#[inline(always)]
fn load<T: Copy, const N: usize>(
    ctx: &TcContext,
    offset: u32,
    convert: fn([u8; N]) -> T,
) -> Option<T> {
    let mut bytes = [0_u8; N];
    // SAFETY: the helper writes at most N bytes to `bytes`.
    let result = unsafe {
        bpf_skb_load_bytes_relative(
            ctx.as_ptr(),
            offset,
            bytes.as_mut_ptr().cast(),
            N as u32,
            BPF_HDR_START_NET,
        )
    };
    (result == 0).then(|| convert(bytes))
}

#[inline(always)]
fn count(ctx: &TcContext, direction: Direction) -> Option<()> {
    // SAFETY: the context is valid for the whole invocation.
    let (protocol, vlan, gso_size) = unsafe {
        (
            (*ctx.skb.skb).protocol,
            (*ctx.skb.skb).vlan_present,
            (*ctx.skb.skb).gso_size,
        )
    };
    // A tagged packet belongs to a VLAN interface above this one, where it is counted if that is an underlay.
    if vlan != 0 {
        return None;
    }
    let ends = match protocol {
        PROTOCOL_IPV4 => ipv4(ctx)?,
        PROTOCOL_IPV6 => ipv6(ctx)?,
        _ => return None,
    };
    // UDP header, message type and receiver index in one go. The helper reads linear data only, and the payload of a GSO
    // super-packet is not; pulling a few bytes in front of it changes nothing that others see.
    let head = match load::<_, 16>(ctx, ends.udp, |bytes| bytes) {
        Some(head) => head,
        None => {
            ctx.pull_data(ctx.len().min(HEADERS)).ok()?;
            load::<_, 16>(ctx, ends.udp, |bytes| bytes)?
        }
    };
    let source_port = u16::from_be_bytes([head[0], head[1]]);
    let destination_port = u16::from_be_bytes([head[2], head[3]]);
    let length = u64::from(u16::from_be_bytes([head[4], head[5]]));
    let kind = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
    let receiver: SessionKey = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
    if kind != 4 || length < 8 + u64::from(DATA_MESSAGE_MIN) {
        return None;
    }
    let key = match direction {
        Direction::Ingress => FlowKey {
            remote_address: ends.source,
            local_address: ends.destination,
            remote_port: source_port,
            local_port: destination_port,
            direction: direction as u16,
            family: ends.family as u16,
        },
        Direction::Egress => FlowKey {
            remote_address: ends.destination,
            local_address: ends.source,
            remote_port: destination_port,
            local_port: source_port,
            direction: direction as u16,
            family: ends.family as u16,
        },
    };
    LISTENERS.get_ptr(ListenerKey {
        address: key.local_address,
        port: u32::from(key.local_port),
    })?;
    // What we send is ours; what comes in must name a live index before it may take an entry in `flows`.
    if let Direction::Ingress = direction {
        SESSIONS.get_ptr(receiver)?;
    }
    let bytes = length - 8;
    let packets = match u64::from(gso_size) {
        0 => 1,
        size => bytes.div_ceil(size),
    };
    count::flow(ctx, &key, packets, bytes);
    Some(())
}

/// Options are skipped. Of a fragmented datagram the first fragment stands for the whole: its UDP header has the length.
#[inline(always)]
fn ipv4(ctx: &TcContext) -> Option<Ends> {
    let header = load::<_, 20>(ctx, 0, |bytes| bytes)?;
    let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    if header[0] >> 4 != 4 || header[9] != UDP || offset != 0 {
        return None;
    }
    Some(Ends {
        source: map_ipv4([header[12], header[13], header[14], header[15]]),
        destination: map_ipv4([header[16], header[17], header[18], header[19]]),
        family: Family::V4,
        udp: u32::from(header[0] & 0xf) * 4,
    })
}

/// Of the extension headers only a fragment header is looked behind, as [`ipv4`] does.
#[inline(always)]
fn ipv6(ctx: &TcContext) -> Option<Ends> {
    let mut next = load::<_, 1>(ctx, 6, |[byte]| byte)?;
    let mut udp = 40;
    if next == FRAGMENT_HEADER {
        let fragment = load::<_, 4>(ctx, 40, |bytes| bytes)?;
        if u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff8 != 0 {
            return None;
        }
        next = fragment[0];
        udp = 48;
    }
    if next != UDP {
        return None;
    }
    Some(Ends {
        source: load::<Address, 16>(ctx, 8, |bytes| bytes)?,
        destination: load::<Address, 16>(ctx, 24, |bytes| bytes)?,
        family: Family::V6,
        udp,
    })
}
