//! `adit_socket`: keeps floods out of the tunnel's UDP sockets.
//!
//! What is dropped here takes no room in the receive buffer, wakes nobody and costs no system call. The kernel runs it on
//! what it has decided to deliver to one of our sockets, so that there is nothing to know of addresses, routes and
//! firewalls. Super-packets pass: what follows the first datagram in one may be genuine.

use adit_ebpf::{DropReason, Family, SessionKey};
use aya_ebpf::{
    bindings::bpf_hdr_start_off::BPF_HDR_START_NET, helpers::bpf_skb_load_bytes_relative,
    macros::socket_filter, programs::SkBuffContext,
};

use crate::{
    count,
    heard::is_heard,
    limit,
    maps::{DEVICES, SESSIONS},
    message::{Message, classify, second_mac},
    words::{Words, ipv4_words},
};

/// A socket filter of UDP sees the packet from the UDP header on: `udp_queue_rcv_one_skb()`, `net/ipv4/udp.c`.
const UDP: u32 = 8;
const PROTOCOL_IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV4_SOURCE: u32 = 12;
const IPV4_DESTINATION: u32 = 16;
const IPV6_SOURCE: u32 = 8;
const IPV6_DESTINATION: u32 = 24;

/// Returns how many bytes of the packet to keep.
#[socket_filter]
pub(crate) fn adit_socket(ctx: SkBuffContext) -> i64 {
    let whole = ctx.len();
    match judge(&ctx, whole.saturating_sub(UDP)) {
        Ok(()) => i64::from(whole),
        Err(reason) => {
            count::dropped(&ctx, reason, whole.saturating_sub(UDP));
            count::filtered();
            0
        }
    }
}

/// Whether the daemon wants to see a message of `length` bytes.
#[inline(always)]
fn judge(ctx: &SkBuffContext, length: u32) -> Result<(), DropReason> {
    // SAFETY: the context is valid for the whole invocation.
    let (gso_size, interfaces) = unsafe {
        let skb = &*ctx.skb.skb;
        (skb.gso_size, [skb.ingress_ifindex, skb.ifindex])
    };
    if gso_size != 0 {
        return Ok(());
    }
    // On an interface with AF_XDP sockets, XDP has judged and counted. Behind a VRF the first of these is the VRF.
    if (DEVICES.get_ptr(interfaces[0]).is_some() || DEVICES.get_ptr(interfaces[1]).is_some())
        && destination(ctx).is_some_and(|(address, port)| is_heard(address, port))
    {
        return Ok(());
    }
    if length < 4 {
        return Err(DropReason::TooShort);
    }
    let Ok(kind) = ctx.load::<[u8; 4]>(UDP as usize) else {
        return Ok(());
    };
    let kind = u32::from_le_bytes(kind);
    match classify(kind, length)? {
        Message::Data => live(ctx),
        Message::Handshake => limited(ctx, kind, length),
    }
}

#[inline(always)]
fn live(ctx: &SkBuffContext) -> Result<(), DropReason> {
    let Ok(receiver) = ctx.load::<[u8; 4]>(UDP as usize + 4) else {
        return Ok(());
    };
    let receiver: SessionKey = u32::from_le_bytes(receiver);
    match SESSIONS.get_ptr(receiver) {
        Some(_) => Ok(()),
        None => Err(DropReason::DeadIndex),
    }
}

#[inline(always)]
fn limited(ctx: &SkBuffContext, kind: u32, length: u32) -> Result<(), DropReason> {
    let Some(config) = limit::under_load() else {
        return Ok(());
    };
    let bare = match second_mac(kind, length) {
        None => false,
        Some(offset) => match ctx.load::<Words>((UDP + offset) as usize) {
            Ok(mac) => mac == [0; 2],
            Err(_) => return Ok(()),
        },
    };
    let Some((source, family)) = address(ctx, IPV4_SOURCE, IPV6_SOURCE) else {
        return Ok(());
    };
    if limit::admit(config, source, family, bare) {
        Ok(())
    } else {
        Err(DropReason::RateLimited)
    }
}

/// Where the packet was sent.
#[inline(always)]
fn destination(ctx: &SkBuffContext) -> Option<(Words, u16)> {
    let (address, _) = address(ctx, IPV4_DESTINATION, IPV6_DESTINATION)?;
    let port = ctx.load::<[u8; 2]>(2).ok()?;
    Some((address, u16::from_be_bytes(port)))
}

/// The address at one of these offsets in the IP header.
#[inline(always)]
fn address(ctx: &SkBuffContext, in_ipv4: u32, in_ipv6: u32) -> Option<(Words, Family)> {
    // SAFETY: the context is valid for the whole invocation.
    let protocol = unsafe { (*ctx.skb.skb).protocol };
    if protocol == PROTOCOL_IPV4 {
        let address = load_from_network_header::<[u8; 4]>(ctx, in_ipv4)?;
        Some((ipv4_words(u32::from_ne_bytes(address)), Family::V4))
    } else {
        let address = load_from_network_header::<Words>(ctx, in_ipv6)?;
        Some((address, Family::V6))
    }
}

/// Reads integers at `offset` from the IP header.
#[inline(always)]
fn load_from_network_header<T: Copy + Default>(ctx: &SkBuffContext, offset: u32) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the helper writes `size_of::<T>()` bytes to `value`, whose type takes any bytes: it is made of integers.
    let result = unsafe {
        bpf_skb_load_bytes_relative(
            ctx.skb.skb.cast(),
            offset,
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            BPF_HDR_START_NET,
        )
    };
    (result == 0).then_some(value)
}
