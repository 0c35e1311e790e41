//! What the process may do: capabilities, and the limit on locked memory.

use std::fs;

use super::check::{Check, GIVE_RIGHTS};

/// Numbers of `linux/capability.h`.
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const IPC_LOCK: u32 = 14;
const SYS_ADMIN: u32 = 21;
const SYS_RESOURCE: u32 = 24;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// Packet memory of one RX queue at an MTU of up to 1,770: 4,096 frames of 2 KiB (`steering`).
const QUEUE_MEMORY: u64 = 8 << 20;

/// Effective capabilities, and the limit on locked memory in bytes (`None`: no limit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rights {
    capabilities: u64,
    locked_memory: Option<u64>,
}

impl Rights {
    /// Those of this process, from `/proc/self`; none where it cannot be read.
    pub(super) fn own() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            capabilities: effective(&read("/proc/self/status")).unwrap_or(0),
            locked_memory: locked_memory(&read("/proc/self/limits")).unwrap_or(Some(0)),
        }
    }

    fn has(self, capability: u32) -> bool {
        self.capabilities & 1 << capability != 0
    }

    /// May mount, and make network namespaces.
    pub(super) fn may_administrate(self) -> bool {
        self.has(SYS_ADMIN)
    }

    /// May load programs that compute with addresses of packet data, as ours do (`bpf_allow_ptr_leaks()`, linux/bpf.h).
    pub(super) fn may_use_pointers(self) -> bool {
        self.has(PERFMON) || self.has(SYS_ADMIN)
    }

    pub(super) fn checks(self) -> Vec<Check> {
        vec![
            self.check(
                "cap_net_admin",
                "CAP_NET_ADMIN",
                &[NET_ADMIN],
                Check::blocking,
                "without it there is no TUN device (but for one passed in by WG_TUN_FD)",
            ),
            self.check(
                "cap_bpf",
                "CAP_BPF",
                &[BPF, SYS_ADMIN],
                Check::missing,
                "without it no eBPF: packets come in by the UDP socket, uncounted and unfiltered",
            ),
            self.check(
                "cap_perfmon",
                "CAP_PERFMON",
                &[PERFMON, SYS_ADMIN],
                Check::missing,
                "without it the verifier refuses the eBPF programs",
            ),
            self.check(
                "cap_net_raw",
                "CAP_NET_RAW",
                &[NET_RAW],
                Check::missing,
                "without it no AF_XDP: packets come in by the UDP socket",
            ),
            self.check(
                "cap_sys_admin",
                "CAP_SYS_ADMIN",
                &[SYS_ADMIN],
                Check::missing,
                "only needed to mount /sys/fs/bpf, and by this program to try things out unseen",
            ),
            self.memory(),
        ]
    }

    fn check(
        self,
        id: &'static str,
        name: &'static str,
        any_of: &[u32],
        otherwise: impl Fn(&'static str, &'static str, &'static str) -> Check,
        effect: &'static str,
    ) -> Check {
        if any_of.iter().any(|capability| self.has(*capability)) {
            return Check::ok(id, name, "there");
        }
        let check = otherwise(id, name, effect);
        if any_of == [SYS_ADMIN] {
            // Not worth running a daemon with it.
            return check;
        }
        check.change(GIVE_RIGHTS)
    }

    /// UMEM counts against `RLIMIT_MEMLOCK` (`xdp_umem_account_pages()`, net/xdp/xdp_umem.c).
    fn memory(self) -> Check {
        const ID: &str = "rlimit_memlock";
        const SUBJECT: &str = "RLIMIT_MEMLOCK";
        let Some(limit) = self.locked_memory else {
            return Check::ok(ID, SUBJECT, "unlimited");
        };
        if self.has(IPC_LOCK) {
            return Check::ok(
                ID,
                SUBJECT,
                format!("{limit} bytes, does not apply with CAP_IPC_LOCK"),
            );
        }
        if self.has(SYS_RESOURCE) {
            return Check::ok(
                ID,
                SUBJECT,
                format!("{limit} bytes, is raised with CAP_SYS_RESOURCE"),
            );
        }
        let found = format!("{limit} bytes; AF_XDP needs {QUEUE_MEMORY} for each RX queue");
        if limit >= QUEUE_MEMORY {
            Check::ok(ID, SUBJECT, found)
        } else {
            Check::missing(ID, SUBJECT, found)
                .change("ulimit -l unlimited (in a systemd unit: LimitMEMLOCK=infinity)")
        }
    }
}

/// `CapEff` of `/proc/PID/status`.
fn effective(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The soft limit in `/proc/PID/limits`; `Some(None)` if there is none.
#[expect(clippy::option_option, reason = "not known, no limit, a limit")]
fn locked_memory(limits: &str) -> Option<Option<u64>> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(None),
        bytes => bytes.parse().ok().map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;

    fn rights(capabilities: &[u32], locked_memory: Option<u64>) -> Rights {
        Rights {
            capabilities: capabilities.iter().map(|number| 1 << number).sum(),
            locked_memory,
        }
    }

    fn statuses(rights: Rights) -> Vec<Status> {
        rights.checks().iter().map(|check| check.status).collect()
    }

    #[test]
    fn proc_is_read() {
        let status = "Name:\tadit\nCapInh:\t0\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n";
        assert_eq!(effective(status), Some(0x1ff_ffff_ffff));
        assert_eq!(effective("CapEff:\tx"), None);
        let line = |limit| format!("Limit\nMax locked memory         {limit}  8388608  bytes\n");
        assert_eq!(locked_memory(&line("65536")), Some(Some(65536)));
        assert_eq!(locked_memory(&line("unlimited")), Some(None));
        assert_eq!(locked_memory(""), None);
        assert!(effective(&fs::read_to_string("/proc/self/status").unwrap()).is_some());
        assert!(locked_memory(&fs::read_to_string("/proc/self/limits").unwrap()).is_some());
    }

    #[test]
    fn only_net_admin_is_in_the_way_of_a_tunnel() {
        use Status::{Blocking, Missing, Ok};
        let nothing = rights(&[], Some(65536));
        assert_eq!(
            statuses(nothing),
            [Blocking, Missing, Missing, Missing, Missing, Missing]
        );
        let all = rights(&[NET_ADMIN, NET_RAW, SYS_ADMIN], None);
        assert_eq!(statuses(all), [Ok; 6]);
        let few = rights(&[NET_ADMIN, NET_RAW, PERFMON, BPF], Some(QUEUE_MEMORY));
        assert_eq!(statuses(few), [Ok, Ok, Ok, Ok, Missing, Ok]);
    }

    #[test]
    fn locked_memory_does_not_bind_everybody() {
        for capability in [IPC_LOCK, SYS_RESOURCE] {
            let check = rights(&[capability], Some(0)).memory();
            assert_eq!(check.status, Status::Ok, "{check:?}");
        }
        assert!(rights(&[], Some(0)).memory().change.is_some());
    }
}
