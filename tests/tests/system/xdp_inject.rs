//! Faults inside a running daemon: a descriptor closed behind its back, a slot of the XSKMAP that leads elsewhere.

use std::fs;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

use adit_kernel::xsk::{FrameSize, Receiver, ReceiverOptions, Umem};
use adit_tests::command::run;
use adit_tests::tunnel::Site;
use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;

#[cfg(target_arch = "x86_64")]
use crate::system_call::call;
use crate::xdp_tools::pinned;

/// Number of the descriptor of the daemon's AF_XDP socket: of all its sockets, the one whose rings are mapped.
#[cfg(target_arch = "x86_64")]
pub(crate) fn xsk_descriptor(site: &Site) -> Result<u64> {
    let pid = site.daemon.pid();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mapped: Vec<&str> = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .filter(|name| name.starts_with("socket:["))
        .collect();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        if mapped.contains(&&*target.to_string_lossy()) {
            let name = path.file_name().context("no name")?;
            return Ok(name.to_string_lossy().parse()?);
        }
    }
    anyhow::bail!("no descriptor of {mapped:?}")
}

/// Puts an AF_XDP socket of ours, which is bound to another interface, where the daemon's was: XDP still counts and
/// redirects the packets, and the kernel drops them all. The socket must live as long as that is to last.
pub(crate) fn mislead(site: &Site) -> Result<Receiver> {
    let umem = Umem::new(64, FrameSize::Bytes2048)?;
    let options = ReceiverOptions {
        // The loopback interface.
        ifindex: 1,
        queue: 0,
        frames: 0..64,
        generic: true,
    };
    let socket = site.namespace.enter(|| Receiver::open(&umem, options))??;
    // A value of an XSKMAP is a descriptor of the process that writes it, here standard input.
    run(Command::new("bpftool")
        .args(["map", "update", "pinned"])
        .arg(pinned(site, "xsks"))
        .args("key 0 0 0 0 value 0 0 0 0".split(' '))
        .stdin(Stdio::from(socket.as_fd().try_clone_to_owned()?)))?;
    Ok(socket)
}

/// Has a process close one of its descriptors, as a stray `close` in it would.
#[cfg(target_arch = "x86_64")]
pub(crate) fn close_descriptor(pid: u32, descriptor: u64) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?);
    let result = call(pid, nix::libc::SYS_close, [descriptor, 0, 0, 0])?;
    ensure!(result == 0, "close returned {result}");
    Ok(())
}
