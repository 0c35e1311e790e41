//! The map keys and values.

/// Version of everything in this module. It is part of the pin directory's name, so that a tool never reads a map
/// written with another layout.
pub const LAYOUT_VERSION: u32 = 1;

/// Entries in `flows`. An entry costs 32 bytes per CPU; two directions of a few thousand peers fit.
pub const MAX_FLOWS: u32 = 8192;
/// Entries in `sessions`: four indices (previous, current, next, handshake) for 16,384 peers. Not preallocated.
pub const MAX_SESSIONS: u32 = 65_536;
/// Entries in `listeners`: one per local address.
pub const MAX_LISTENERS: u32 = 1024;
/// Entries in `devices`: interfaces the XDP program is attached to.
pub const MAX_DEVICES: u32 = 64;
/// Entries in `xsks`: RX queues over all devices.
pub const MAX_SLOTS: u32 = 1024;
/// Entries in `sources`, and in `bare_sources`: sources whose handshakes are being limited. Under a flood of forged sources
/// the oldest go.
pub const MAX_SOURCES: u32 = 16_384;

/// Sustained handshake messages without a second MAC per second and source while under load. A peer sends one in five
/// seconds and is answered with a cookie; more than one peer may sit behind an address.
pub const BARE_PER_SECOND: u32 = 10;
/// Such messages that a source may send at once.
pub const BARE_BURST: u32 = 10;
/// Handshake messages per second from all sources together while under load: so many of those without a second MAC, and as
/// many of the others. Checking and answering the former takes a tenth of a processor.
pub const COMMON_PER_SECOND: u32 = 20_000;
/// Such messages at once.
pub const COMMON_BURST: u32 = 2_000;

/// Bytes in a data message with an empty payload (a keepalive): header 16, tag 16. WireGuard paper, section 5.4.6.
pub const DATA_MESSAGE_MIN: u32 = 32;

/// An IPv6 address, or an IPv4 address in its mapped form `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2), in network
/// order.
pub type Address = [u8; 16];

/// Puts an IPv4 address (network order) into the form the maps use.
#[must_use]
#[inline]
pub const fn map_ipv4(v4: [u8; 4]) -> Address {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
    ]
}

/// Which way a flow's packets go, as stored in [`FlowKey::direction`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Direction {
    /// From the network to this host.
    Ingress = 0,
    /// From this host to the network.
    Egress = 1,
}

/// The third value of [`FlowKey::direction`]: from this host to the network by AF_XDP, which no program sees. The daemon
/// itself writes these entries, about once a second and with everything in the value of CPU 0; no program touches them.
pub const EGRESS_XSK: u16 = 2;

/// The outer IP version, as stored in [`FlowKey::family`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Family {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

/// Key of `flows`: one direction of one outer UDP flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// The peer's address.
    pub remote_address: Address,
    /// This host's address.
    pub local_address: Address,
    /// The peer's UDP port, host order.
    pub remote_port: u16,
    /// This host's UDP port, host order.
    pub local_port: u16,
    /// A [`Direction`], or [`EGRESS_XSK`].
    pub direction: u16,
    /// A [`Family`].
    pub family: u16,
}

/// Value of `flows`, one per CPU: data messages (type 4) only, handshakes are not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowCounters {
    /// Messages; a GSO or GRO super-packet counts as the datagrams it stands for.
    pub packets: u64,
    /// Bytes of UDP payload, that is whole WireGuard messages, as `wg show` counts them.
    pub bytes: u64,
    /// CLOCK_MONOTONIC_COARSE nanoseconds of the first message on this CPU; 0 if there was none.
    pub first_seen_ns: u64,
    /// CLOCK_MONOTONIC_COARSE nanoseconds of the latest message on this CPU; 0 if there was none.
    pub last_seen_ns: u64,
}

/// Key of `sessions`: a receiver index this host chose, as a number (it is little-endian on the wire).
pub type SessionKey = u32;

/// Value of `sessions`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SessionValue {
    /// The daemon's number for the peer.
    pub peer: u32,
}

/// Key of `listeners`: where the daemon's UDP socket can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ListenerKey {
    /// One of this host's addresses.
    pub address: Address,
    /// The daemon's UDP port, host order.
    pub port: u32,
}

/// Value of `listeners`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ListenerValue {
    /// Steer only packets that come in on this interface; 0 means any. A network card may strip VLAN tags before XDP
    /// sees the frame; naming the interface that owns the address keeps such frames out.
    pub ifindex: u32,
}

/// Value of `config`, index 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// 0: data messages go up the stack as if there were no AF_XDP sockets.
    pub steer: u32,
    /// Not 0: limit handshake messages per source (IPv4 /32, IPv6 /64) and all together.
    pub under_load: u32,
    /// Sustained handshake messages with a second MAC per second and source while under load; 0 drops them all.
    pub handshakes_per_second: u32,
    /// Such messages a source may send at once while under load.
    pub handshake_burst: u32,
    /// [`LAYOUT_VERSION`] of the writer.
    pub layout_version: u32,
    /// Process that loaded the programs.
    pub owner_pid: u32,
    /// Start time of that process in clock ticks after boot (`/proc/PID/stat`, field 22), since numbers are reused.
    pub owner_started: u64,
}

/// Value of `devices`: how packets from an interface find their AF_XDP socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Device {
    /// Slot of RX queue 0 in `xsks`.
    pub first_slot: u32,
    /// RX queues with a slot.
    pub queues: u32,
    /// Bytes of the longest frame, Ethernet header included, that fits a UMEM frame.
    pub max_frame: u32,
}

/// Value of `drops`, one per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DropCounters {
    /// Packets dropped.
    pub packets: u64,
    /// Bytes of UDP payload in them.
    pub bytes: u64,
}

/// Why a packet to our port was dropped: the index into `drops`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum DropReason {
    /// Shorter than any message of its type.
    TooShort = 0,
    /// A known type, but the three reserved bytes are not zero.
    Reserved = 1,
    /// A type that WireGuard does not have.
    UnknownType = 2,
    /// A handshake message that is longer or shorter than its type.
    HandshakeLength = 3,
    /// A data message for a receiver index that is not live.
    DeadIndex = 4,
    /// A handshake message above its source's limit, or that of all sources, while under load.
    RateLimited = 5,
}

impl DropReason {
    /// Every reason, in index order.
    pub const ALL: [Self; 6] = [
        Self::TooShort,
        Self::Reserved,
        Self::UnknownType,
        Self::HandshakeLength,
        Self::DeadIndex,
        Self::RateLimited,
    ];

    /// Number of reasons, and so of entries in `drops`.
    pub const COUNT: u32 = 6;

    /// The reason as it is written in logs and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooShort => "too_short",
            Self::Reserved => "reserved",
            Self::UnknownType => "unknown_type",
            Self::HandshakeLength => "handshake_length",
            Self::DeadIndex => "dead_index",
            Self::RateLimited => "rate_limited",
        }
    }
}

/// Key of `sources`: an IPv4 address in mapped form, or an IPv6 /64 with the rest zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SourceKey {
    /// The prefix.
    pub prefix: Address,
}

/// Value of `sources` and its like: a token bucket in units of time, as the kernel module's `ratelimiter.c` keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Bucket {
    /// Credit in nanoseconds; a handshake message costs one second over the rate.
    pub credit_ns: u64,
    /// CLOCK_MONOTONIC_COARSE nanoseconds of the last message.
    pub last_ns: u64,
}

/// The handshake messages and their exact lengths. WireGuard paper, sections 5.4.2, 5.4.3 and 5.4.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake;

impl Handshake {
    /// Length in bytes of handshake message `kind` (1 to 3); `None` for other types.
    #[must_use]
    #[inline]
    pub const fn length(kind: u32) -> Option<u32> {
        match kind {
            1 => Some(148),
            2 => Some(92),
            3 => Some(64),
            _ => None,
        }
    }
}

// The kernel hashes keys of whole 32-bit words twice as fast as others (htab_map_hash(), kernel/bpf/hashtab.c).
const _: () = {
    assert!(size_of::<FlowKey>().is_multiple_of(4));
    assert!(size_of::<ListenerKey>().is_multiple_of(4));
};

// Without implicit padding a struct is as large as its fields; the numbers are what older readers of a pinned map rely on.
const _: () = {
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<FlowCounters>() == 32);
    assert!(size_of::<SessionValue>() == 4);
    assert!(size_of::<ListenerKey>() == 20);
    assert!(size_of::<ListenerValue>() == 4);
    assert!(size_of::<Config>() == 32);
    assert!(size_of::<Device>() == 12);
    assert!(size_of::<DropCounters>() == 16);
    assert!(size_of::<SourceKey>() == 16);
    assert!(size_of::<Bucket>() == 16);
    assert!(DropReason::ALL.len() == DropReason::COUNT as usize);
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        Bucket, Config, Device, DropCounters, FlowCounters, FlowKey, ListenerKey, ListenerValue,
        SessionValue, SourceKey,
    };

    macro_rules! plain_data {
        ($($name:ident),+ $(,)?) => {
            $(
                // SAFETY: repr(C), made of integers only, and without padding (the sizes are asserted above), so every
                // byte of a value is initialised and every bit pattern is a value.
                unsafe impl aya::Pod for $name {}
            )+
        };
    }

    plain_data!(
        Bucket,
        Config,
        Device,
        DropCounters,
        FlowCounters,
        FlowKey,
        ListenerKey,
        ListenerValue,
        SessionValue,
        SourceKey,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_reasons_are_their_index() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{}", reason.name());
        }
    }

    #[test]
    fn names_fit_the_kernel() {
        let programs = [
            crate::programs::XDP,
            crate::programs::TC_INGRESS,
            crate::programs::TC_EGRESS,
            crate::programs::SOCKET,
        ];
        for name in crate::maps::ALL.into_iter().chain(programs) {
            assert!(name.len() <= 15, "{name}");
        }
    }
}
