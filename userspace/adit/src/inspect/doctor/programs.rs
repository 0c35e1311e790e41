//! What the eBPF half needs: loading through the verifier, the BPF file system, AF_XDP sockets.

use std::fs;
use std::path::Path;

use adit_kernel::bpf::{BPFFS, LoadError, LoadOptions, Steering};
use adit_kernel::netns::NetworkNamespace;
use adit_kernel::xsk::{FrameSize, Receiver, ReceiverOptions, Umem, XskError};

use super::check::{Check, GIVE_RIGHTS};
use super::rights::Rights;
use crate::error_chain;

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Looks at the kernel's type information, the BPF file system and the programs.
pub(super) fn ebpf(rights: Rights) -> Vec<Check> {
    vec![btf(Path::new(BTF).exists()), bpffs(rights), load(rights)]
}

fn btf(there: bool) -> Check {
    if there {
        Check::ok("btf", "kernel BTF", format!("{BTF} is there"))
    } else {
        // The programs read no kernel structures, so they do without.
        Check::missing(
            "btf",
            "kernel BTF",
            format!("no {BTF}: bpftool prints bytes instead of named fields"),
        )
        .change("a kernel with CONFIG_DEBUG_INFO_BTF=y")
    }
}

fn bpffs(rights: Rights) -> Check {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    bpffs_check(
        is_mounted(&mounts, BPFFS, "bpf"),
        Path::new(BPFFS).is_dir(),
        rights.may_administrate(),
    )
}

fn bpffs_check(mounted: bool, directory: bool, may_mount: bool) -> Check {
    const ID: &str = "bpffs";
    const SUBJECT: &str = "BPF file system";
    if mounted {
        return Check::ok(ID, SUBJECT, format!("mounted at {BPFFS}"));
    }
    if !directory {
        return Check::missing(
            ID,
            SUBJECT,
            format!("no {BPFFS}: flows are counted, but cannot be read"),
        )
        .change("mount -t sysfs sysfs /sys, on a kernel with CONFIG_BPF_SYSCALL=y");
    }
    if may_mount {
        return Check::ok(ID, SUBJECT, "not mounted yet; the daemon mounts it");
    }
    Check::missing(
        ID,
        SUBJECT,
        "not mounted, and no CAP_SYS_ADMIN to do so: flows are counted, but cannot be read",
    )
    .change(format!("mount -t bpf bpf {BPFFS}"))
}

/// Whether a file system of this kind is the topmost at `place`, by `/proc/PID/mountinfo`.
fn is_mounted(mountinfo: &str, place: &str, kind: &str) -> bool {
    let topmost = mountinfo.lines().rev().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let at = mount.split(' ').nth(4)?;
        (at == place).then(|| file_system.split(' ').next())?
    });
    topmost == Some(kind)
}

/// Loads the programs as a tunnel does, with small maps, attaches them nowhere, and lets them go.
fn load(rights: Rights) -> Check {
    let options = LoadOptions {
        max_flows: 1,
        max_sessions: 1,
        ..LoadOptions::default()
    };
    load_check(
        Steering::load(&options).map(drop),
        rights.may_use_pointers(),
    )
}

/// `may_use_pointers`: whether the verifier lets the programs compute with addresses of packet data.
fn load_check(result: Result<(), LoadError>, may_use_pointers: bool) -> Check {
    const ID: &str = "bpf_programs";
    const SUBJECT: &str = "eBPF programs";
    let error = match result {
        Ok(()) => return Check::ok(ID, SUBJECT, "the kernel's verifier takes them"),
        Err(error) => error,
    };
    let found = match &error {
        LoadError::Refused { source, .. } if !may_use_pointers => {
            format!("the verifier refuses them without CAP_PERFMON: {source}")
        }
        _ => one_line(&error_chain(&error)),
    };
    let check = Check::missing(ID, SUBJECT, found);
    match error {
        LoadError::Permission(_) => check.change(format!(
            "{GIVE_RIGHTS}; if that does not help: is the kernel locked down (cat /sys/kernel/security/lockdown)?"
        )),
        LoadError::Refused { .. } if !may_use_pointers => check.change(GIVE_RIGHTS),
        LoadError::Unsupported(_) => {
            check.change("Linux 5.10 or later with CONFIG_BPF_SYSCALL=y and CONFIG_XDP_SOCKETS=y")
        }
        _ => check,
    }
}

/// Looks at AF_XDP sockets by binding one to the loopback device, in `lab` if there is one. No program leads to it, so it takes
/// no packet.
pub(super) fn af_xdp(lab: Option<&NetworkNamespace>) -> Check {
    let tried = match lab {
        Some(lab) => lab.run_in(try_socket).unwrap_or_else(|source| {
            Err(XskError::Io {
                call: "setns",
                source,
            })
        }),
        None => try_socket(),
    };
    socket_check(tried)
}

fn try_socket() -> Result<(), XskError> {
    const FRAMES: u32 = 64;
    const LOOPBACK: u32 = 1;
    let umem = Umem::new(FRAMES, FrameSize::Bytes2048).map_err(|source| XskError::Io {
        call: "mmap of packet memory",
        source,
    })?;
    let options = ReceiverOptions {
        ifindex: LOOPBACK,
        queue: 0,
        frames: 0..FRAMES,
        generic: true,
    };
    Receiver::open(&umem, options).map(drop)
}

fn socket_check(result: Result<(), XskError>) -> Check {
    const ID: &str = "af_xdp";
    const SUBJECT: &str = "AF_XDP sockets";
    let error = match result {
        Ok(()) => return Check::ok(ID, SUBJECT, "one was opened and bound"),
        Err(error) => error,
    };
    let check = Check::missing(ID, SUBJECT, one_line(&error_chain(&error)));
    match error {
        XskError::Unsupported(_) => check.change("a kernel with CONFIG_XDP_SOCKETS=y"),
        XskError::Permission(_) => check.change(GIVE_RIGHTS),
        XskError::LockedMemory { .. } => {
            check.change("ulimit -l unlimited (in a systemd unit: LimitMEMLOCK=infinity)")
        }
        _ => check,
    }
}

/// The verifier's log has many lines; which program it is about stands at its start, why at its end.
fn one_line(text: &str) -> String {
    const START: usize = 60;
    const END: usize = 540;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let length = line.chars().count();
    if length <= START + END {
        return line;
    }
    let start: String = line.chars().take(START).collect();
    let end: String = line.chars().skip(length - END).collect();
    format!("{start} … {end}")
}

/// Says what `wg-quick up` would run: it prefers the kernel's own WireGuard to every other.
pub(super) fn wg_quick() -> Check {
    let loaded = Path::new("/sys/module/wireguard").exists();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = Path::new("/lib/modules").join(release.trim());
    let lists = |file| {
        fs::read_to_string(modules.join(file)).is_ok_and(|text| text.lines().any(names_wireguard))
    };
    wg_quick_check(loaded, lists("modules.builtin") || lists("modules.dep"))
}

/// A line of `modules.dep` or `modules.builtin` starts with the module's path.
fn names_wireguard(line: &str) -> bool {
    let path = line.split(':').next().unwrap_or_default();
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split('.').next() == Some("wireguard")
}

fn wg_quick_check(loaded: bool, can_be_loaded: bool) -> Check {
    const ID: &str = "wg_quick";
    const SUBJECT: &str = "wg-quick";
    let found = if loaded {
        "the kernel module wireguard is loaded: wg-quick makes its tunnels, not Adit's"
    } else if can_be_loaded {
        "the kernel module wireguard can be loaded: wg-quick makes its tunnels, not Adit's"
    } else {
        return Check::ok(
            ID,
            SUBJECT,
            "no kernel module wireguard: WG_QUICK_USERSPACE_IMPLEMENTATION=adit wg-quick up IFACE runs Adit",
        );
    };
    Check::missing(ID, SUBJECT, found).change(
        "start Adit without it (adit IFACE, then wg setconf IFACE FILE), or keep the module out: \
         echo install wireguard /bin/false >/etc/modprobe.d/adit.conf; modprobe -r wireguard",
    )
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;
    use std::io;

    #[test]
    fn the_topmost_mount_counts() {
        let sys = "22 1 0:21 / /sys rw - sysfs sysfs rw\n";
        let bpf = "30 22 0:27 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n";
        let other = "31 30 0:28 / /sys/fs/bpf rw - tmpfs tmpfs rw\n";
        let mounted = |text: &str| is_mounted(text, BPFFS, "bpf");
        assert!(mounted(&format!("{sys}{bpf}")));
        assert!(!mounted(sys));
        assert!(!mounted(&format!("{sys}{bpf}{other}")));
        assert!(!mounted("") && !mounted("odd - ") && !mounted(" - bpf"));
    }

    #[test]
    fn a_bpf_file_system_may_come_later() {
        let status = |mounted, directory, may| bpffs_check(mounted, directory, may).status;
        assert_eq!(status(true, true, false), Status::Ok);
        assert_eq!(status(false, true, true), Status::Ok);
        assert_eq!(status(false, true, false), Status::Missing);
        assert_eq!(status(false, false, true), Status::Missing);
    }

    #[test]
    fn failures_name_errno_and_remedy() {
        let error = || io::Error::from_raw_os_error(1);
        let check = load_check(Err(LoadError::Permission(error())), true);
        assert!(check.found.contains("os error 1"), "{check:?}");
        assert!(check.change.unwrap().contains("lockdown"));
        let refused = || LoadError::Refused {
            program: "adit_xdp",
            log: "line\n".repeat(1000),
            source: error(),
        };
        let check = load_check(Err(refused()), false);
        assert!(check.found.contains("CAP_PERFMON") && check.change.is_some());
        let check = load_check(Err(refused()), true);
        assert!(check.found.lines().count() == 1 && check.found.chars().count() < 610);

        for (error, remedy) in [
            (XskError::Unsupported(error()), "CONFIG_XDP_SOCKETS"),
            (XskError::Permission(error()), "root"),
            (
                XskError::LockedMemory {
                    bytes: 1,
                    source: error(),
                },
                "ulimit",
            ),
        ] {
            let check = socket_check(Err(error));
            assert_eq!(check.status, Status::Missing);
            assert!(check.change.unwrap().contains(remedy));
        }
    }

    #[test]
    fn wireguard_modules_are_found_by_name() {
        for line in [
            "kernel/drivers/net/wireguard/wireguard.ko.xz: kernel/net/ipv4/udp_tunnel.ko.xz",
            "kernel/drivers/net/wireguard/wireguard.ko",
        ] {
            assert!(names_wireguard(line), "{line}");
        }
        assert!(!names_wireguard("kernel/a.ko: kernel/wireguard.ko"));
        assert!(!names_wireguard(""));
        let status = |loaded, possible| wg_quick_check(loaded, possible).status;
        assert_eq!(status(false, false), Status::Ok);
        assert_eq!(status(true, false), Status::Missing);
        assert_eq!(status(false, true), Status::Missing);
    }
}
