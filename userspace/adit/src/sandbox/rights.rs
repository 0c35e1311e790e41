//! Which capabilities and files the daemon still needs.

use std::path::Path;

use adit_kernel::bpf::BPFFS;
use adit_kernel::sandbox::{Capability, CapabilitySet, FileAccess};

/// Which kernel runs: some take or give super-packets wrongly.
const KERNEL_RELEASE: &str = "/proc/sys/kernel/osrelease";
/// Settings of the network: what headers of packets sent by AF_XDP must be like.
const NETWORK_SETTINGS: &str = "/proc/sys/net";
/// Whoever reads values that each processor has its own of must know how many there may be.
const POSSIBLE_PROCESSORS: &str = "/sys/devices/system/cpu/possible";

/// What the daemon goes on doing after its start.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// The configuration socket's file.
    pub socket: &'a Path,
    /// The file of the socket for metrics, if it is one of the file system.
    pub metrics: Option<&'a Path>,
    /// eBPF programs are loaded: their maps are read and written.
    pub programs: bool,
    /// Where the maps are pinned.
    pub pins: Option<&'a Path>,
    /// AF_XDP sockets may be opened.
    pub af_xdp: bool,
}

impl<'a> Needs<'a> {
    /// The capabilities.
    pub(super) fn capabilities(&self) -> CapabilitySet {
        let always = CapabilitySet::EMPTY
            // Marks and buffer sizes of sockets, links of programs, the device's own settings.
            .with(Capability::NetAdmin)
            // `listen-port 443`.
            .with(Capability::NetBindService)
            // Following the device to another namespace.
            .with(Capability::NetBroadcast)
            // Memory stays locked however much of it there will be.
            .with(Capability::IpcLock);
        let programs = match self.programs {
            true => always.with(Capability::Bpf),
            false => always,
        };
        match self.af_xdp {
            true => programs.with(Capability::NetRaw),
            false => programs,
        }
    }

    /// The files.
    pub(super) fn files(&self) -> Vec<(&'a Path, FileAccess)> {
        let mut files = vec![(Path::new(KERNEL_RELEASE), FileAccess::Read)];
        let sockets = [Some(self.socket), self.metrics].into_iter().flatten();
        for directory in sockets.filter_map(Path::parent) {
            let named = !directory.as_os_str().is_empty();
            let directory = if named { directory } else { Path::new(".") };
            files.push((directory, FileAccess::Remove));
        }
        // The pins lie in a directory for their layout, that in one for the tunnel.
        if let Some(tunnel) = self.pins.and_then(Path::parent) {
            files.push((tunnel, FileAccess::ListAndRemove));
            // Both directories, and the one above them if no other tunnel has anything in it.
            files.push((Path::new(BPFFS), FileAccess::RemoveDirectories));
        }
        if self.programs {
            files.push((Path::new(POSSIBLE_PROCESSORS), FileAccess::Read));
        }
        if self.af_xdp {
            files.push((Path::new(NETWORK_SETTINGS), FileAccess::Read));
        }
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By sockets alone, and without counting.
    fn least() -> Needs<'static> {
        Needs {
            socket: Path::new("/var/run/wireguard/wg0.sock"),
            metrics: None,
            programs: false,
            pins: None,
            af_xdp: false,
        }
    }

    #[test]
    fn the_less_is_done_the_less_is_kept() {
        let needs = least();
        assert!(!needs.capabilities().has(Capability::Bpf));
        assert!(!needs.capabilities().has(Capability::NetRaw));
        assert_eq!(needs.files().len(), 2);
        let needs = Needs {
            programs: true,
            pins: Some(Path::new("/sys/fs/bpf/adit/wg0/v1")),
            ..least()
        };
        assert!(needs.capabilities().has(Capability::Bpf));
        assert!(!needs.capabilities().has(Capability::NetRaw));
        let tunnel = (Path::new("/sys/fs/bpf/adit/wg0"), FileAccess::ListAndRemove);
        assert!(needs.files().contains(&tunnel));
    }

    #[test]
    fn what_root_can_do_beyond_networks_is_never_kept() {
        let all = Needs {
            programs: true,
            af_xdp: true,
            ..least()
        };
        for never in [Capability::SysAdmin, Capability::Perfmon] {
            assert!(!all.capabilities().has(never));
        }
    }
}
