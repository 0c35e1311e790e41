//! Network namespaces.

use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

use crate::command::{run, run_with_input};
use crate::name;
use crate::wait::poll;

/// Where `ip netns` keeps its namespaces.
const DIRECTORY: &str = "/run/netns";

/// A network namespace with the loopback interface up; deleted when dropped, after the processes in it were ended.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes a namespace with a name of its own.
    ///
    /// The first call of a process also removes the namespaces of runs that died without cleaning up.
    ///
    /// # Errors
    /// Not root, or `ip netns add` failed.
    pub fn new() -> Result<Self> {
        static SWEEP: Once = Once::new();
        require_root()?;
        SWEEP.call_once(sweep);
        let name = name::namespace();
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let file = File::open(format!("{DIRECTORY}/{name}")).inspect_err(|_| delete(&name))?;
        let namespace = Self { name, file };
        // An IPv6 address would otherwise be unusable for a second after it was added.
        namespace.sysctl("net.ipv6.conf.all.accept_dad", "0")?;
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run `program` in here, without standard input.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name])
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Runs `ip` in here; one command a line, all in one batch.
    ///
    /// # Errors
    /// `ip` failed; the lines after the failing one were not carried out.
    pub fn ip(&self, commands: &str) -> Result<()> {
        let mut ip = Command::new("ip");
        run_with_input(
            ip.args(["-n", &self.name, "-batch", "-"]),
            &format!("{}\n", commands.trim()),
        )
        .map(drop)
        .with_context(|| commands.to_owned())
    }

    /// Runs a program with blank-separated arguments in here; it must succeed. Returns its standard output.
    ///
    /// # Errors
    /// As [`run`].
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("empty command")?;
        run(self.command(program).args(words))
    }

    /// Sets a kernel parameter in here.
    ///
    /// # Errors
    /// No such parameter, or the kernel refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.enter(|| std::fs::write(&path, value))?
            .with_context(|| format!("{path} = {value}"))
    }

    /// Loads nftables rules in here.
    ///
    /// # Errors
    /// `nft` does not take them.
    pub fn nft(&self, rules: &str) -> Result<()> {
        run_with_input(self.command("nft").args(["-f", "-"]), rules).map(drop)
    }

    /// Runs `work` on a thread inside the namespace. Sockets made there stay there.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    ///
    /// # Panics
    /// When `work` does.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                Ok::<_, nix::Error>(work())
            });
            match thread.join() {
                Ok(result) => {
                    result.map_err(|e| anyhow!("cannot enter namespace {}: {e}", self.name))
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Is there an interface of this name in here?
    #[must_use]
    pub fn has_interface(&self, interface: &str) -> bool {
        // sysfs shows the namespace of whoever mounted it; /proc/net/dev shows that of the reading thread.
        let devices = self.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
        matches!(devices, Ok(Ok(text)) if text.lines().any(|line| {
            line.split(':').next().is_some_and(|name| name.trim() == interface)
        }))
    }

    /// Ids of the processes in here.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        pids(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        end_processes(&self.name);
        delete(&self.name);
    }
}

/// # Errors
/// When not root, in words that say what to do.
pub fn require_root() -> Result<()> {
    if !Uid::effective().is_root() {
        bail!("system tests make network namespaces and TUN devices: run them as root");
    }
    Ok(())
}

fn delete(name: &str) {
    // Nobody is left to report a failure to; the next run sweeps. Not `run`, which an interruption ends: cleaning up
    // is what an interrupted program still has to do.
    let _ = ip_netns(["delete", name]);
}

fn pids(name: &str) -> Vec<i32> {
    ip_netns(["pids", name])
        .map(|output| {
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .filter_map(|pid| pid.trim().parse().ok())
                .collect()
        })
        .unwrap_or_default()
}

fn ip_netns(arguments: [&str; 2]) -> std::io::Result<std::process::Output> {
    Command::new("ip")
        .arg("netns")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
}

/// Ends what runs in a namespace of ours, politely first.
fn end_processes(name: &str) {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let others = || {
        pids(name)
            .into_iter()
            .filter(move |&pid| pid != own)
            .collect::<Vec<_>>()
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let left = others();
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = kill(Pid::from_raw(pid), signal);
        }
        poll(Duration::from_secs(2), || others().is_empty().then_some(()));
    }
}

/// Deletes the namespaces of harness processes that no longer run.
fn sweep() {
    for entry in std::fs::read_dir(DIRECTORY).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(owner) = name::namespace_owner(&name)
            && !std::path::Path::new(&format!("/proc/{owner}")).exists()
        {
            end_processes(&name);
            delete(&name);
        }
    }
}
