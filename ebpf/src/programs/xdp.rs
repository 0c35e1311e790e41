//! `adit_xdp`: takes the tunnel's data messages out of the stack.
//!
//! Only what is certainly ours is touched. Whatever is unusual about the Ethernet, IP or UDP header (VLAN tags,
//! options, extension headers, fragments, lengths that disagree, a wrong header checksum, a source nobody can have) is
//! left to the network stack, which knows all the rules.

use adit_ebpf::{
    Config, DATA_MESSAGE_MIN, Device, Direction, DropReason, Family, FlowKey, ListenerKey,
    SessionKey,
};
use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT},
    helpers::bpf_xdp_get_buff_len,
    macros::xdp,
    programs::XdpContext,
};

use crate::{
    count,
    heard::is_heard,
    limit,
    maps::{CONFIG, DEVICES, LISTENERS, SESSIONS, XSKS},
    message::{Message, classify, second_mac},
    recent::{self, Place},
    words::{Words, bytes, ipv4_words},
};

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: u16 = 8;

const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();
const PROTOCOL_UDP: u8 = 17;
/// Everything in the IPv4 flags and offset field but "don't fragment".
const FRAGMENT_OR_RESERVED: u16 = 0xbfff_u16.to_be();

#[repr(C, packed)]
struct EthernetHeader {
    destination: [u8; 6],
    source: [u8; 6],
    ethertype: u16,
}

#[repr(C, packed)]
struct Ipv4Header {
    version_and_length: u8,
    tos: u8,
    total_length: u16,
    identification: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

#[repr(C, packed)]
struct Ipv6Header {
    version: u8,
    class_and_label: [u8; 3],
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    source: Words,
    destination: Words,
}

#[repr(C, packed)]
struct UdpHeader {
    source: u16,
    destination: u16,
    length: u16,
    checksum: u16,
}

/// The start of a data message.
#[repr(C, packed)]
struct DataHead {
    kind: u32,
    receiver: u32,
}

/// What the outer headers say about a datagram.
struct Outer {
    source: Words,
    destination: Words,
    source_port: u16,
    destination_port: u16,
    family: Family,
    /// Offset of the UDP payload in the frame.
    payload: usize,
    /// Bytes of UDP payload.
    length: u32,
    /// Bytes of the frame as far as the IP header describes it.
    frame: u64,
}

/// Entry point. Every path ends in PASS, DROP or REDIRECT.
#[xdp(frags)]
pub(crate) fn adit_xdp(ctx: XdpContext) -> u32 {
    let Some(outer) = outer(&ctx) else {
        return XDP_PASS;
    };
    if let Some(device) = recently_steered(&ctx, &outer) {
        return steer(&ctx, &outer, available(&ctx), device);
    }
    if is_listener(&ctx, &outer) {
        decide(&ctx, &outer, available(&ctx))
    } else {
        XDP_PASS
    }
}

/// Bytes of the frame, also of those parts that are not linear.
#[inline(always)]
fn available(ctx: &XdpContext) -> u64 {
    // SAFETY: the context is valid for the whole invocation.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) }
}

/// A pointer to a `T` in the linear part of the frame.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*const T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    Some(start as *const T)
}

/// Reads the headers; `None` unless the packet is a plain datagram.
#[inline(always)]
fn outer(ctx: &XdpContext) -> Option<Outer> {
    // SAFETY: `at` has checked the bounds, and a packed header has alignment 1.
    let ethernet = unsafe { &*at::<EthernetHeader>(ctx, 0)? };
    if ethernet.destination[0] & 1 != 0 {
        return None;
    }
    let outer = match ethernet.ethertype {
        ETHERTYPE_IPV4 => ipv4(ctx)?,
        ETHERTYPE_IPV6 => ipv6(ctx)?,
        _ => return None,
    };
    // Nobody can answer to port 0.
    if outer.source_port == 0 {
        return None;
    }
    Some(outer)
}

#[inline(always)]
fn ipv4(ctx: &XdpContext) -> Option<Outer> {
    // SAFETY: `at` has checked the bounds, and a packed header has alignment 1.
    let ip = unsafe { &*at::<Ipv4Header>(ctx, ETHERNET)? };
    if ip.version_and_length != 0x45
        || ip.fragment & FRAGMENT_OR_RESERVED != 0
        || ip.protocol != PROTOCOL_UDP
    {
        return None;
    }
    // A martian source could be replayed at us to move a peer's endpoint to this host itself: let the stack drop it.
    let network = u32::from_be(ip.source) >> 24;
    if network == 0 || network == 127 || network >= 224 {
        return None;
    }
    // SAFETY: as above.
    let words = unsafe { &*at::<[[u8; 4]; IPV4 / 4]>(ctx, ETHERNET)? };
    // One's complement sums may be taken in words of any width and folded (RFC 1071, section 2).
    let mut sum = 0_u64;
    let mut index = 0;
    while index < IPV4 / 4 {
        sum += u64::from(u32::from_ne_bytes(words[index]));
        index += 1;
    }
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    if sum != 0xffff {
        return None;
    }
    // SAFETY: as above.
    let udp = unsafe { &*at::<UdpHeader>(ctx, ETHERNET + IPV4)? };
    let total = u16::from_be(ip.total_length);
    let length = u16::from_be(udp.length);
    if length < UDP || u32::from(total) != u32::from(length) + IPV4 as u32 {
        return None;
    }
    Some(Outer {
        source: ipv4_words(ip.source),
        destination: ipv4_words(ip.destination),
        source_port: u16::from_be(udp.source),
        destination_port: u16::from_be(udp.destination),
        family: Family::V4,
        payload: ETHERNET + IPV4 + UDP as usize,
        length: u32::from(length - UDP),
        frame: ETHERNET as u64 + u64::from(total),
    })
}

#[inline(always)]
fn ipv6(ctx: &XdpContext) -> Option<Outer> {
    // SAFETY: `at` has checked the bounds, and a packed header has alignment 1.
    let ip = unsafe { &*at::<Ipv6Header>(ctx, ETHERNET)? };
    let source = ip.source;
    let multicast = source[0].to_ne_bytes()[0] == 0xff;
    if ip.version >> 4 != 6 || ip.next_header != PROTOCOL_UDP || multicast {
        return None;
    }
    // ::, ::1 and mapped addresses all begin with 64 zero bits, and none of them may come from a network.
    if source[0] == 0 {
        return None;
    }
    // SAFETY: as above.
    let udp = unsafe { &*at::<UdpHeader>(ctx, ETHERNET + IPV6)? };
    let length = u16::from_be(udp.length);
    // RFC 8200, section 8.1: a UDP checksum of zero is not valid over IPv6.
    if length < UDP || ip.payload_length != udp.length || udp.checksum == 0 {
        return None;
    }
    Some(Outer {
        source,
        destination: ip.destination,
        source_port: u16::from_be(udp.source),
        destination_port: u16::from_be(udp.destination),
        family: Family::V6,
        payload: ETHERNET + IPV6 + UDP as usize,
        length: u32::from(length - UDP),
        frame: (ETHERNET + IPV6) as u64 + u64::from(length),
    })
}

/// Whether the datagram is for one of our listeners, and came in where that one's address is.
#[inline(always)]
fn is_listener(ctx: &XdpContext, outer: &Outer) -> bool {
    let key = ListenerKey {
        address: bytes(outer.destination),
        port: u32::from(outer.destination_port),
    };
    // SAFETY: nothing in this program removes listeners; a concurrent removal at worst yields a stale value.
    let Some(listener) = (unsafe { LISTENERS.get(key) }) else {
        return false;
    };
    listener.ifindex == 0 || listener.ifindex == ingress(ctx)
}

#[inline(always)]
fn ingress(ctx: &XdpContext) -> u32 {
    // SAFETY: the context is valid for the whole invocation.
    unsafe { (*ctx.ctx).ingress_ifindex }
}

/// What [`look_up`] would find, if it was found for such a data message a moment ago.
#[inline(always)]
fn recently_steered(ctx: &XdpContext, outer: &Outer) -> Option<Device> {
    if outer.length < DATA_MESSAGE_MIN || !is_steering() {
        return None;
    }
    // SAFETY: `at` has checked the bounds, and a packed header has alignment 1.
    let head = unsafe { &*at::<DataHead>(ctx, outer.payload)? };
    if u32::from_le(head.kind) != 4 {
        return None;
    }
    recent::find(&place(ctx, outer, u32::from_le(head.receiver)))
}

#[inline(always)]
fn place(ctx: &XdpContext, outer: &Outer, receiver: SessionKey) -> Place {
    Place {
        destination: outer.destination,
        port: u32::from(outer.destination_port),
        ifindex: ingress(ctx),
        receiver,
    }
}

/// Where to steer a data message for this index; `None` if the program would not.
#[inline(always)]
fn look_up(ctx: &XdpContext, outer: &Outer, receiver: SessionKey) -> Option<Device> {
    if !is_listener(ctx, outer) {
        return None;
    }
    SESSIONS.get_ptr(receiver)?;
    device(ctx)
}

#[inline(always)]
fn device(ctx: &XdpContext) -> Option<Device> {
    // SAFETY: nothing in this program removes devices; a concurrent removal at worst yields a stale value.
    unsafe { DEVICES.get(ingress(ctx)) }.copied()
}

/// While userspace does not steer it may not keep `sessions` up to date either.
#[inline(always)]
fn is_steering() -> bool {
    !matches!(CONFIG.get(0), Some(Config { steer: 0, .. }) | None)
}

/// Decides about a datagram to one of our listeners by its WireGuard header. The frame has `available` bytes.
#[inline(always)]
fn decide(ctx: &XdpContext, outer: &Outer, available: u64) -> u32 {
    if outer.frame > available {
        return XDP_PASS;
    }
    if outer.length < 4 {
        return drop(ctx, DropReason::TooShort, outer);
    }
    let Some(kind) = at::<[u8; 4]>(ctx, outer.payload) else {
        return XDP_PASS;
    };
    // SAFETY: `at` has checked the bounds; alignment 1.
    let kind = u32::from_le_bytes(unsafe { *kind });
    match classify(kind, outer.length) {
        Ok(Message::Data) => {}
        Ok(Message::Handshake) => return handshake(ctx, outer, kind),
        Err(reason) => return drop(ctx, reason, outer),
    }
    if !is_steering() {
        return XDP_PASS;
    }
    let Some(receiver) = at::<[u8; 4]>(ctx, outer.payload + 4) else {
        return XDP_PASS;
    };
    // SAFETY: `at` has checked the bounds; alignment 1.
    let receiver: SessionKey = u32::from_le_bytes(unsafe { *receiver });
    if SESSIONS.get_ptr(receiver).is_none() {
        return drop(ctx, DropReason::DeadIndex, outer);
    }
    let Some(device) = device(ctx) else {
        return XDP_PASS;
    };
    let _ = recent::remember(&place(ctx, outer, receiver), || {
        look_up(ctx, outer, receiver)
    });
    steer(ctx, outer, available, device)
}

#[inline(always)]
fn handshake(ctx: &XdpContext, outer: &Outer, kind: u32) -> u32 {
    let Some(config) = limit::under_load() else {
        return XDP_PASS;
    };
    let bare = match second_mac(kind, outer.length) {
        None => false,
        Some(offset) => match at::<[[u8; 8]; 2]>(ctx, outer.payload + offset as usize) {
            // SAFETY: `at` has checked the bounds; alignment 1.
            Some(mac) => (unsafe { *mac }) == [[0; 8]; 2],
            None => return XDP_PASS,
        },
    };
    if limit::admit(config, outer.source, outer.family, bare) {
        XDP_PASS
    } else {
        drop(ctx, DropReason::RateLimited, outer)
    }
}

/// Sends a live data message to the AF_XDP socket of this RX queue, or up the stack where that cannot be.
#[inline(always)]
fn steer(ctx: &XdpContext, outer: &Outer, available: u64, device: Device) -> u32 {
    // SAFETY: the context is valid for the whole invocation.
    let queue = unsafe { (*ctx.ctx).rx_queue_index };
    let linear = (ctx.data_end() - ctx.data()) as u64;
    // A super-packet (generic mode sees them) or a jumbo frame does not fit a UMEM frame; an AF_XDP socket without
    // scatter-gather would drop it.
    if queue >= device.queues
        || outer.frame > available
        || available > u64::from(device.max_frame)
        || linear != available
    {
        return XDP_PASS;
    }
    // The flag is the verdict when the slot is empty: bpf_redirect_map(), net/core/filter.c.
    if XSKS
        .redirect(device.first_slot + queue, u64::from(XDP_PASS))
        .is_err()
    {
        count::unclaimed();
        return XDP_PASS;
    }
    let key = FlowKey {
        remote_address: bytes(outer.source),
        local_address: bytes(outer.destination),
        remote_port: outer.source_port,
        local_port: outer.destination_port,
        direction: Direction::Ingress as u16,
        family: outer.family as u16,
    };
    count::flow(ctx, &key, 1, u64::from(outer.length));
    XDP_REDIRECT
}

#[inline(always)]
fn drop(ctx: &XdpContext, reason: DropReason, outer: &Outer) -> u32 {
    if !is_heard(outer.destination, outer.destination_port) {
        return XDP_PASS;
    }
    count::dropped(ctx, reason, outer.length);
    XDP_DROP
}
