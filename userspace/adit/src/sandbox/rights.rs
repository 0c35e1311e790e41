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
    /// The capabilities, out of those that are there now.
    pub(super) fn capabilities(&self, now: CapabilitySet) -> CapabilitySet {
        let always = CapabilitySet::EMPTY
            // Marks and buffer sizes of sockets, links of programs, the device's own settings.
            .with(Capability::NetAdmin)
            // `listen-port 443`.
            .with(Capability::NetBindService)
            // Following the device to another namespace.
            .with(Capability::NetBroadcast)
            // Memory stays locked however much of it there will be.
            .with(Capability::IpcLock);
        let mut needed = always;
        if self.programs {
            // Before Linux 5.8, and in some containers, it is this one that lets us use maps.
            let bpf = match now.has(Capability::Bpf) {
                true => Capability::Bpf,
                false => Capability::SysAdmin,
            };
            needed = needed.with(bpf);
        }
        if self.af_xdp {
            needed = needed.with(Capability::NetRaw);
        }
        now.and(needed)
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

    /// What root has; the kernel may know no `CAP_BPF`.
    fn root(bpf: bool) -> CapabilitySet {
        let old = [
            Capability::NetBindService,
            Capability::NetBroadcast,
            Capability::NetAdmin,
            Capability::NetRaw,
            Capability::IpcLock,
            Capability::SysAdmin,
        ];
        let old = old
            .into_iter()
            .fold(CapabilitySet::EMPTY, CapabilitySet::with);
        match bpf {
            true => old.with(Capability::Bpf).with(Capability::Perfmon),
            false => old,
        }
    }

    #[test]
    fn the_less_is_done_the_less_is_kept() {
        let needs = least();
        assert!(!needs.capabilities(root(true)).has(Capability::Bpf));
        assert!(!needs.capabilities(root(true)).has(Capability::NetRaw));
        assert_eq!(needs.files().len(), 2);
        let needs = Needs {
            programs: true,
            pins: Some(Path::new("/sys/fs/bpf/adit/wg0/v1")),
            ..least()
        };
        assert!(needs.capabilities(root(true)).has(Capability::Bpf));
        assert!(!needs.capabilities(root(true)).has(Capability::NetRaw));
        let tunnel = (Path::new("/sys/fs/bpf/adit/wg0"), FileAccess::ListAndRemove);
        assert!(needs.files().contains(&tunnel));
    }

    #[test]
    fn what_root_can_do_beyond_networks_is_kept_only_for_want_of_less() {
        let all = Needs {
            programs: true,
            af_xdp: true,
            ..least()
        };
        for never in [Capability::SysAdmin, Capability::Perfmon] {
            assert!(!all.capabilities(root(true)).has(never));
        }
        assert!(all.capabilities(root(false)).has(Capability::SysAdmin));
        assert!(!least().capabilities(root(false)).has(Capability::SysAdmin));
        let none = all.capabilities(CapabilitySet::EMPTY);
        assert_eq!(none, CapabilitySet::EMPTY);
    }
}
