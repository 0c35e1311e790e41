//! Pins: `/sys/fs/bpf/adit/IFACE/v1/MAP`, for `bpftool` and `adit flows`.

use std::ffi::CStr;
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use adit_ebpf::{Config, LAYOUT_VERSION, maps};
use aya::maps::{Array, Map, MapData, PerCpuHashMap};
use thiserror::Error;

use super::attach::io_error;
use super::tables::{self, Flow, FlowMap};
use crate::sys::check;

/// Where the BPF file system is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC`, `linux/magic.h`.
const BPFFS_MAGIC: i64 = 0xcafe_4a11;
/// Only root reads the maps: they hold peers' addresses.
const MODE: u32 = 0o700;

/// Why the maps could not be pinned, or pins not be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PinError {
    /// No BPF file system, and it could not be mounted.
    #[error("no BPF file system is mounted at {BPFFS}")]
    NoBpffs(#[source] io::Error),
    /// A running process has pinned maps under this name.
    #[error("maps are pinned at {path} by the running process {owner}")]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Its process number.
        owner: u32,
    },
    /// The pins were written with another layout.
    #[error("the maps at {path} have layout {found}, not {LAYOUT_VERSION}")]
    Layout {
        /// The directory.
        path: PathBuf,
        /// The layout's version.
        found: u32,
    },
    /// Anything else.
    #[error("{path}: pinning failed")]
    Io {
        /// What it was about.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl PinError {
    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// A directory of pins of ours. Dropping it removes them.
#[derive(Debug)]
pub(super) struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// Pins `maps` for tunnel `interface`, in the place of those of process `predecessor`.
    pub(super) fn new<'a>(
        interface: &str,
        predecessor: Option<u32>,
        maps: impl Iterator<Item = (&'a str, &'a Map)>,
    ) -> Result<Self, PinError> {
        mount()?;
        let mut directory = directory(&component(interface));
        let other_owner =
            |directory: &Path| living_owner(directory).filter(|&owner| Some(owner) != predecessor);
        if let Some(owner) = other_owner(&directory) {
            // The same name in another network namespace is another tunnel, but the file system is the same.
            let other = format!("{}@{}", component(interface), network_namespace());
            let taken = std::mem::replace(&mut directory, self::directory(&other));
            if other_owner(&directory).is_some() {
                return Err(PinError::InUse { path: taken, owner });
            }
        }
        remove(&directory);
        make(&directory).map_err(|source| PinError::io(&directory, source))?;
        // From here on what has been made is removed, also when a step fails.
        let pins = Self { directory };
        for (name, map) in maps {
            let path = pins.directory.join(name);
            map.pin(&path)
                .map_err(|error| PinError::io(&path, io_error(&error)))?;
        }
        Ok(pins)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Leaves the pins to whoever puts others in their place.
    pub(super) fn leave(mut self) {
        self.directory = PathBuf::new();
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if !self.directory.as_os_str().is_empty() {
            remove(&self.directory);
        }
    }
}

/// Makes the directory and those above it.
fn make(directory: &Path) -> io::Result<()> {
    let mut attempts = 0;
    loop {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(MODE)
            .create(directory)
            .map_err(|error| (error.kind(), error));
        match made {
            // A tunnel that ended just now has removed the directory above, empty to its eyes.
            Err((io::ErrorKind::NotFound, _)) if attempts < 5 => attempts += 1,
            Err((_, error)) => return Err(error),
            Ok(()) => return Ok(()),
        }
    }
}

/// Removes pins, and the directories that are empty then.
fn remove(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.path());
    }
    // .../adit/IFACE/v1, .../adit/IFACE, .../adit: a directory that others use is not empty and stays.
    for ancestor in directory.ancestors().take(3) {
        if fs::remove_dir(ancestor).is_err() {
            break;
        }
    }
}

/// The directory of a tunnel; the layout's version is in it, so that no tool reads a map it does not know.
fn directory(component: &str) -> PathBuf {
    PathBuf::from(format!("{BPFFS}/adit/{component}/v{LAYOUT_VERSION}"))
}

/// An interface name as the BPF file system takes it: it refuses dots (`bpf_lookup()`, kernel/bpf/inode.c).
fn component(interface: &str) -> String {
    interface
        .replace('%', "%25")
        .replace('.', "%2e")
        .replace('@', "%40")
}

/// Mounts the BPF file system if it is not there.
fn mount() -> Result<(), PinError> {
    const ROOT: &CStr = c"/sys/fs/bpf";
    const KIND: &CStr = c"bpf";
    // SAFETY: all-zero is a valid `statfs`, a struct of integers.
    let mut status: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is NUL-terminated and the pointer is to a live struct.
    check(unsafe { libc::statfs(ROOT.as_ptr(), &raw mut status) }).map_err(PinError::NoBpffs)?;
    // The type is `long` or `unsigned`, depending on architecture and library.
    #[allow(
        clippy::unnecessary_cast,
        reason = "its type differs between architectures"
    )]
    let kind = status.f_type as i64 & 0xffff_ffff;
    if kind == BPFFS_MAGIC {
        return Ok(());
    }
    // SAFETY: the strings are NUL-terminated, and no data is passed.
    check(unsafe {
        libc::mount(
            KIND.as_ptr(),
            ROOT.as_ptr(),
            KIND.as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            std::ptr::null(),
        )
    })
    .map(drop)
    .map_err(PinError::NoBpffs)
}

/// Number of the network namespace of the calling thread.
fn network_namespace() -> u64 {
    fs::metadata("/proc/thread-self/ns/net").map_or(0, |metadata| metadata.ino())
}

/// The process that pinned the maps in `directory`, if it is still alive.
fn living_owner(directory: &Path) -> Option<u32> {
    let config = read_config(directory).ok()?;
    (started(config.owner_pid) == Some(config.owner_started)).then_some(config.owner_pid)
}

/// When a running process was started, in clock ticks after boot: field 22 of `/proc/PID/stat`.
/// `None` also for one that has ended and that its parent has not asked about yet.
pub(super) fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn open(directory: &Path, name: &str) -> Result<MapData, PinError> {
    let path = directory.join(name);
    MapData::from_pin(&path).map_err(|error| PinError::io(&path, io_error(&error)))
}

fn read_config(directory: &Path) -> Result<Config, PinError> {
    let failed = |error| PinError::io(directory, io_error(&error));
    let map: Array<MapData, Config> = Map::Array(open(directory, maps::CONFIG)?)
        .try_into()
        .map_err(failed)?;
    map.get(&0, 0).map_err(failed)
}

/// The pinned maps of a running tunnel, for reading.
pub struct PinnedMaps {
    directory: PathBuf,
    flows: FlowMap,
    config: Config,
}

impl fmt::Debug for PinnedMaps {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PinnedMaps")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl PinnedMaps {
    /// Opens the maps of tunnel `interface`. If tunnels of that name run in several network namespaces, the one in the calling
    /// thread's is preferred.
    ///
    /// # Errors
    /// `NotFound` in [`PinError::Io`] when there are none; see [`PinError`].
    pub fn open(interface: &str) -> Result<Self, PinError> {
        let component = component(interface);
        let own = directory(&format!("{component}@{}", network_namespace()));
        if own.is_dir() {
            Self::at(own)
        } else {
            Self::at(directory(&component))
        }
    }

    fn at(directory: PathBuf) -> Result<Self, PinError> {
        let config = read_config(&directory)?;
        if config.layout_version != LAYOUT_VERSION {
            return Err(PinError::Layout {
                path: directory,
                found: config.layout_version,
            });
        }
        let failed = |error| PinError::io(&directory, io_error(&error));
        let flows: FlowMap =
            PerCpuHashMap::try_from(Map::PerCpuLruHashMap(open(&directory, maps::FLOWS)?))
                .map_err(failed)?;
        Ok(Self {
            flows,
            config,
            directory,
        })
    }

    /// Where the pins are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The process that made them, and whether it is still there.
    #[must_use]
    pub fn owner(&self) -> (u32, bool) {
        let pid = self.config.owner_pid;
        (pid, started(pid) == Some(self.config.owner_started))
    }

    /// All flows, in no order.
    ///
    /// # Errors
    /// As `bpf(2)`.
    pub fn flows(&self) -> io::Result<Vec<Flow>> {
        tables::read_flows(&self.flows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_become_distinct_components_without_dots() {
        assert_eq!(component("wg0"), "wg0");
        assert_eq!(component("wg0.1"), "wg0%2e1");
        assert_eq!(component("wg0%2e1"), "wg0%252e1");
        assert_eq!(component("wg0@5"), "wg0%405");
    }

    #[test]
    fn a_living_process_is_told_by_its_start() {
        assert!(started(std::process::id()).is_some());
        assert_eq!(started(std::process::id()), started(std::process::id()));
        assert_eq!(started(u32::MAX), None);
    }

    #[test]
    fn a_process_that_has_ended_owns_nothing() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert!(started(child.id()).is_some());
        drop(child.stdin.take());
        // It stays a zombie until `wait`.
        while started(child.id()).is_some() {
            std::thread::yield_now();
        }
        assert!(Path::new(&format!("/proc/{}", child.id())).exists());
        child.wait().unwrap();
    }
}
