//! What the `xdp…` modules need of bpftool(8), and of ways to start a daemon.

use std::path::{Path, PathBuf};
use std::process::Command;

use adit_tests::Implementation;
pub(crate) use adit_tests::bpftool::{bpftool, detach_link, program_on, program_on_wire};
use adit_tests::command::run;
use adit_tests::daemon::Options;
use adit_tests::tunnel::Site;
use anyhow::{Context as _, Result};
use serde_json::Value;

/// Where a daemon's map is pinned, seen from outside of its mount namespace: `ip netns exec` gives it one of its own.
pub(crate) fn pinned(site: &Site, map: &str) -> PathBuf {
    let (pid, interface) = (site.daemon.pid(), site.interface());
    PathBuf::from(format!(
        "/proc/{pid}/root/sys/fs/bpf/adit/{interface}/v1/{map}"
    ))
}

/// Packets, and bytes in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Count {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl std::ops::Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, count| sum + count)
    }
}

/// An entry of the `flows` map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flow {
    /// IPv4 addresses in their mapped form.
    pub(crate) remote: std::net::Ipv6Addr,
    pub(crate) remote_port: u64,
    pub(crate) local_port: u64,
    /// 0 in, 1 out.
    pub(crate) direction: u64,
    /// 4 or 6.
    pub(crate) family: u64,
    /// Of all processors.
    pub(crate) count: Count,
}

/// The `flows` map, its fields found by the names that its BTF gives them.
pub(crate) fn flows(path: &Path) -> Result<Vec<Flow>> {
    entries(path)?
        .iter()
        .map(|entry| {
            let number = |name| entry.pointer(&format!("/key/{name}"))?.as_u64();
            let bytes: Vec<u8> = entry
                .pointer("/key/remote_address")?
                .as_array()?
                .iter()
                .filter_map(|byte| byte.as_u64()?.try_into().ok())
                .collect();
            Some(Flow {
                remote: <[u8; 16]>::try_from(bytes).ok()?.into(),
                remote_port: number("remote_port")?,
                local_port: number("local_port")?,
                direction: number("direction")?,
                family: number("family")?,
                count: count(entry)?,
            })
        })
        .collect::<Option<_>>()
        .with_context(|| format!("{}: a field is missing", path.display()))
}

/// The `drops` map: what was dropped for each reason, by its number.
pub(crate) fn drops(path: &Path) -> Result<Vec<Count>> {
    let counts: Option<_> = entries(path)?.iter().map(count).collect();
    counts.with_context(|| format!("{}: a field is missing", path.display()))
}

/// The entries of a pinned map as bpftool formats them by BTF.
pub(crate) fn entries(path: &Path) -> Result<Vec<Value>> {
    let mut command = Command::new("bpftool");
    let text = run(command.args(["-j", "map", "dump", "pinned"]).arg(path))?;
    let entries: Vec<Value> = serde_json::from_str(&text).with_context(|| text.clone())?;
    entries
        .into_iter()
        .map(|mut entry| Some(entry.get_mut("formatted")?.take()))
        .collect::<Option<_>>()
        .with_context(|| format!("no BTF: {text}"))
}

/// Sum over the processors.
fn count(entry: &Value) -> Option<Count> {
    let values = entry.get("values")?.as_array()?;
    values
        .iter()
        .map(|value| {
            let number = |name| value.pointer(&format!("/value/{name}"))?.as_u64();
            Some(Count {
                packets: number("packets")?,
                bytes: number("bytes")?,
            })
        })
        .sum()
}

/// Options that start the daemon by way of `prefix`, for example `setpriv …`. The directory must outlive them.
///
/// The harness finds wireguard-go in `PATH`, so a script of that name there stands in for it.
pub(crate) fn prefixed(prefix: &str, options: Options) -> Result<(tempfile::TempDir, Options)> {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir()?;
    let script = directory.path().join("wireguard-go");
    let adit = Implementation::Adit.program()?.canonicalize()?;
    let text = format!("#!/bin/sh\nexec {prefix} {} \"$@\"\n", adit.display());
    std::fs::write(&script, text)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut options = Options {
        implementation: Implementation::WireguardGo,
        ..options
    };
    let path = format!("{}:{path}", directory.path().display());
    options.environment.insert("PATH".to_owned(), path);
    Ok((directory, options))
}
