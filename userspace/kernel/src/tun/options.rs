//! What to ask of a device.

use std::ffi::c_uint;

/// A longer queue than the driver's 500, which one burst of super-packets taken apart overruns.
const DEFAULT_QUEUE_LENGTH: u32 = 1000;

/// How to set a device up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunOptions {
    /// Ask for a virtio header in front of each packet and for TCP and UDP super-packets.
    pub offload: bool,
    /// Packets the device queues for reading before it drops.
    pub queue_len: u32,
    /// Allow more than one queue ([`Tun::open_queue`](super::Tun::open_queue)).
    pub multi_queue: bool,
}

impl Default for TunOptions {
    fn default() -> Self {
        Self {
            offload: true,
            queue_len: DEFAULT_QUEUE_LENGTH,
            multi_queue: false,
        }
    }
}

/// What the kernel may hand over unfinished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunOffloads {
    /// Packets whose transport checksum is still to be computed. The others need it.
    pub checksum: bool,
    /// TCP super-packets over IPv4.
    pub tso4: bool,
    /// TCP super-packets over IPv6.
    pub tso6: bool,
    /// UDP super-packets over IPv4 (Linux 6.2, and only along with `uso6`).
    pub uso4: bool,
    /// UDP super-packets over IPv6.
    pub uso6: bool,
}

impl TunOffloads {
    /// Everything this crate knows to ask for.
    pub const ALL: Self = Self {
        checksum: true,
        tso4: true,
        tso6: true,
        uso4: true,
        uso6: true,
    };
    /// Plain packets with complete checksums.
    pub const NONE: Self = Self {
        checksum: false,
        tso4: false,
        tso6: false,
        uso4: false,
        uso6: false,
    };

    /// This without UDP super-packets.
    #[must_use]
    pub fn without_udp(self) -> Self {
        Self {
            uso4: false,
            uso6: false,
            ..self
        }
    }

    const FLAGS: [c_uint; 5] = [
        libc::TUN_F_CSUM,
        libc::TUN_F_TSO4,
        libc::TUN_F_TSO6,
        libc::TUN_F_USO4,
        libc::TUN_F_USO6,
    ];

    pub(super) fn to_flags(self) -> c_uint {
        let wanted = [self.checksum, self.tso4, self.tso6, self.uso4, self.uso6];
        Self::FLAGS
            .iter()
            .zip(wanted)
            .map(|(flag, on)| if on { *flag } else { 0 })
            .sum()
    }

    pub(super) fn from_flags(flags: c_uint) -> Self {
        let [checksum, tso4, tso6, uso4, uso6] = Self::FLAGS.map(|flag| flags & flag != 0);
        Self {
            checksum,
            tso4,
            tso6,
            uso4,
            uso6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offload_flags_survive_the_round_trip() {
        for offloads in [
            TunOffloads::ALL,
            TunOffloads::NONE,
            TunOffloads::ALL.without_udp(),
        ] {
            assert_eq!(TunOffloads::from_flags(offloads.to_flags()), offloads);
        }
        assert_eq!(TunOffloads::ALL.to_flags(), 0x67);
    }
}
