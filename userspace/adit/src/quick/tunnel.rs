//! The device and the daemon behind it.

use std::env;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use adit_kernel::netlink::{self, Link};
use anyhow::{Context as _, Result, bail, ensure};

use super::client;
use crate::service;

/// A daemon whose device is gone ends within milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(10);
/// `CAP_NET_ADMIN`, include/uapi/linux/capability.h.
const NET_ADMIN: u32 = 12;

/// Fails in words a user can act on unless this process may make devices.
pub(super) fn check_rights() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    // Where /proc tells nothing, the kernel will.
    ensure!(
        effective.is_none_or(|bits| bits >> NET_ADMIN & 1 == 1),
        "this needs root: run it with sudo"
    );
    Ok(())
}

/// The interface of this name.
pub(super) fn find(interface: &str) -> Result<Option<Link>> {
    netlink::link_by_name(interface).context("cannot ask the kernel for its interfaces")
}

/// Starts the daemon, which makes the device; returns when device and socket are there. The daemon reads its options from
/// the environment.
pub(super) fn start(interface: &str) -> Result<Link> {
    let program = env::current_exe().context("cannot find the program to start as a daemon")?;
    let mut command = Command::new(program);
    command
        .arg("--")
        .arg(interface)
        .env_remove("WG_PROCESS_FOREGROUND")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // The terminal's Ctrl-C is for us; it would leave a daemon behind that nobody waits for.
        .process_group(0);
    service::hand_over(&mut command);
    let status = command.status().context("cannot start the daemon")?;
    // The daemon has said why.
    ensure!(status.success(), "the daemon did not start");
    match find(interface)? {
        Some(link) => Ok(link),
        None => bail!("the daemon started, but its device is not there"),
    }
}

/// Removes a device, and waits until its daemon has ended too.
pub(super) fn remove(link: &Link) -> Result<()> {
    match netlink::delete_link(link.index) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.raw_os_error() == Some(NO_SUCH_DEVICE) => {}
        result => result.with_context(|| format!("cannot remove the device {}", link.name))?,
    }
    let deadline = Instant::now() + PATIENCE;
    while client::listens(&link.name) && Instant::now() < deadline {
        std::thread::sleep(INTERVAL);
    }
    Ok(())
}

/// `ENODEV`, errno(3).
const NO_SUCH_DEVICE: i32 = 19;
