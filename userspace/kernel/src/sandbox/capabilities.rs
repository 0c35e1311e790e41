//! `capabilities(7)`: having fewer of them.

use std::fmt;
use std::io;

use crate::sys::{check, is_errno};

/// One privilege of those that root has. Numbers and meanings: `linux/capability.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Capability {
    /// Listening on ports below 1024.
    NetBindService = 10,
    /// Hearing of what happens in other network namespaces (`NETLINK_LISTEN_ALL_NSID`).
    NetBroadcast = 11,
    /// Changing devices and routes, socket marks, attaching programs to devices.
    NetAdmin = 12,
    /// `AF_XDP` and raw sockets.
    NetRaw = 13,
    /// Locking as much memory as one likes.
    IpcLock = 14,
    /// Nearly everything; `bpf(2)` before Linux 5.8.
    SysAdmin = 21,
    /// Loading tracing and networking programs that the verifier trusts further.
    Perfmon = 38,
    /// `bpf(2)`.
    Bpf = 39,
}

/// A set of capabilities, as the kernel writes it in `/proc/PID/status`: bit n is capability n.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// None at all.
    pub const EMPTY: Self = Self(0);

    /// This set and one more.
    #[must_use]
    pub const fn with(self, capability: Capability) -> Self {
        Self(self.0 | 1 << capability as u8)
    }

    /// Those in both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether it has this one.
    #[must_use]
    pub const fn has(self, capability: Capability) -> bool {
        self.0 & 1 << capability as u8 != 0
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// What the calling thread may use now: its effective set.
    ///
    /// # Errors
    /// On kernels before Linux 2.6.26.
    pub fn current() -> io::Result<Self> {
        let [low, high] = get()?;
        Ok(Self(
            u64::from(low.effective) | u64::from(high.effective) << 32,
        ))
    }
}

impl fmt::Debug for CapabilitySet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#x}", self.0)
    }
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`: one half of each set.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

impl Header {
    /// `_LINUX_CAPABILITY_VERSION_3`, and the calling thread.
    const fn new() -> Self {
        Self {
            version: 0x2008_0522,
            pid: 0,
        }
    }
}

/// Drops every capability that is not in `wanted` from all sets of the calling thread: effective,
/// permitted, bounding; the inheritable and ambient sets end empty. Returns what it still has.
///
/// The bounding set stays as it is without `CAP_SETPCAP`; then `no_new_privs` does its work, which
/// [`forbid_new_privileges`](super::forbid_new_privileges) sets.
///
/// # Errors
/// When the system refuses; dropping needs no permission.
pub fn keep_capabilities(wanted: CapabilitySet) -> io::Result<CapabilitySet> {
    // The bounding set first: that needs a capability which goes with the others.
    drop_from_bounding_set(wanted)?;
    clear_ambient_set()?;
    let halves = get()?;
    // Both fit.
    let kept =
        [wanted.0 & 0xffff_ffff, wanted.0 >> 32].map(|half| u32::try_from(half).unwrap_or(0));
    let mut lesser = halves;
    for (half, kept) in lesser.iter_mut().zip(kept) {
        half.permitted &= kept;
        half.effective &= half.permitted;
        half.inheritable = 0;
    }
    set(&lesser)?;
    CapabilitySet::current()
}

fn drop_from_bounding_set(wanted: CapabilitySet) -> io::Result<()> {
    for number in 0..u64::BITS {
        // SAFETY: takes integers only.
        let there = unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) };
        if there < 0 {
            // The kernel knows no capability of that number, nor of larger ones.
            return Ok(());
        }
        if there == 1 && wanted.0 & 1 << number == 0 {
            // SAFETY: takes integers only.
            let dropped = check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) });
            match dropped {
                Err(error) if is_errno(&error, libc::EPERM) => return Ok(()),
                other => other?,
            };
        }
    }
    Ok(())
}

fn clear_ambient_set() -> io::Result<()> {
    let all = libc::PR_CAP_AMBIENT_CLEAR_ALL;
    // SAFETY: takes integers only.
    match check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, all, 0, 0, 0) }) {
        // There are no ambient capabilities before Linux 4.3.
        Err(error) if is_errno(&error, libc::EINVAL) => Ok(()),
        other => other.map(drop),
    }
}

fn get() -> io::Result<[Half; 2]> {
    let (mut header, mut halves) = (Header::new(), [Half::default(); 2]);
    let (header, data) = (&raw mut header, &raw mut halves);
    // SAFETY: both pointers are to live structures; version 3 has two halves.
    if unsafe { libc::syscall(libc::SYS_capget, header, data) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(halves)
}

fn set(halves: &[Half; 2]) -> io::Result<()> {
    let mut header = Header::new();
    let (header, data) = (&raw mut header, std::ptr::from_ref(halves));
    // SAFETY: both pointers are to live structures; version 3 has two halves, which are only read.
    if unsafe { libc::syscall(libc::SYS_capset, header, data) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The set of this name in the calling thread's status.
    fn shown(name: &str) -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
    }

    #[test]
    fn what_is_not_wanted_is_gone_for_good() {
        // Capabilities are a thread's own; the others of the test run keep theirs.
        std::thread::spawn(|| {
            let before = CapabilitySet::current().unwrap();
            assert_eq!(before.bits(), shown("CapEff:"));
            let wanted = CapabilitySet::EMPTY
                .with(Capability::NetRaw)
                .with(Capability::Bpf);
            let kept = keep_capabilities(wanted).unwrap();
            assert_eq!(kept, before.and(wanted));
            for name in ["CapEff:", "CapPrm:"] {
                assert_eq!(shown(name), kept.bits(), "{name}");
            }
            for name in ["CapInh:", "CapAmb:"] {
                assert_eq!(shown(name), 0, "{name}");
            }
            // `CAP_SETPCAP` is number 8.
            if before.bits() & 1 << 8 != 0 {
                assert_eq!(shown("CapBnd:") & !wanted.bits(), 0);
            }
            let more = wanted.with(Capability::NetAdmin);
            assert_eq!(keep_capabilities(more).unwrap(), kept);
        })
        .join()
        .unwrap();
    }
}
