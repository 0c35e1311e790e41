//! Map layouts shared by the eBPF programs and the userspace that loads them.
//!
//! Every type is `repr(C)` without implicit padding, so that the bytes of a key compare equal exactly when its fields
//! do, and so that `bpftool map dump` can print the fields by name from the BTF in the object.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_op_in_unsafe_fn)]

mod layout;

pub use layout::EGRESS_XSK;
pub use layout::{
    Address, BARE_BURST, BARE_PER_SECOND, Bucket, COMMON_BURST, COMMON_PER_SECOND, Config,
    DATA_MESSAGE_MIN, Device, Direction, DropCounters, DropReason, Family, FlowCounters, FlowKey,
    Handshake, LAYOUT_VERSION, ListenerKey, ListenerValue, MAX_DEVICES, MAX_FLOWS, MAX_LISTENERS,
    MAX_SESSIONS, MAX_SLOTS, MAX_SOURCES, SessionKey, SessionValue, SourceKey, map_ipv4,
};

/// Names of the maps in the object; the kernel keeps at most 15 bytes of each.
pub mod maps {
    /// [`FlowKey`](crate::FlowKey) → [`FlowCounters`](crate::FlowCounters), LRU, per CPU.
    pub const FLOWS: &str = "flows";
    /// [`SessionKey`](crate::SessionKey) → [`SessionValue`](crate::SessionValue).
    pub const SESSIONS: &str = "sessions";
    /// [`ListenerKey`](crate::ListenerKey) → [`ListenerValue`](crate::ListenerValue).
    pub const LISTENERS: &str = "listeners";
    /// [`DropReason`](crate::DropReason) as `u32` → [`DropCounters`](crate::DropCounters), per CPU.
    pub const DROPS: &str = "drops";
    /// Index 0 → [`Config`](crate::Config).
    pub const CONFIG: &str = "config";
    /// Interface index → [`Device`](crate::Device).
    pub const DEVICES: &str = "devices";
    /// [`SourceKey`](crate::SourceKey) → [`Bucket`](crate::Bucket), LRU.
    pub const SOURCES: &str = "sources";
    /// Slot ([`Device::first_slot`](crate::Device::first_slot) + RX queue) → AF_XDP socket.
    pub const XSKS: &str = "xsks";

    /// [`ListenerKey`](crate::ListenerKey) → `u32`, unused: where an authentic message has come. Not pinned.
    pub const HEARD: &str = "heard";

    /// [`SourceKey`](crate::SourceKey) → [`Bucket`](crate::Bucket), LRU: messages without a second MAC. Not pinned.
    pub const BARE_SOURCES: &str = "bare_sources";

    /// Index 0 and 1 → [`Bucket`](crate::Bucket): messages with a second MAC and without, from all sources. Not pinned.
    pub const COMMON: &str = "common";

    /// Index 0 → `u64`, per CPU: packets that the socket filter has dropped. They are in [`DROPS`], too. Not pinned.
    pub const FILTERED: &str = "filtered";

    /// Index 0 → `u64`, from 1 up: changes after anything was taken out of [`LISTENERS`], [`SESSIONS`] or [`DEVICES`].
    /// Not pinned: it tells nothing.
    pub const EPOCH: &str = "epoch";

    /// Index 0 → `u64`: grows while messages find no socket in their slot of [`XSKS`]. Not pinned.
    pub const UNCLAIMED: &str = "unclaimed";

    /// All that are pinned, in that order.
    pub const ALL: [&str; 8] = [
        FLOWS, SESSIONS, LISTENERS, DROPS, CONFIG, DEVICES, SOURCES, XSKS,
    ];
}

/// Names of the programs in the object; the kernel keeps at most 15 bytes of each.
pub mod programs {
    /// Steers data messages into AF_XDP sockets and drops junk.
    pub const XDP: &str = "adit_xdp";
    /// Counts data messages that reach the network stack.
    pub const TC_INGRESS: &str = "adit_tc_ingress";
    /// Counts data messages that the tunnel sends.
    pub const TC_EGRESS: &str = "adit_tc_egress";
    /// Drops junk, data for indices that are not live, and handshake messages above their limits, in front of the UDP
    /// sockets.
    pub const SOCKET: &str = "adit_socket";
}
