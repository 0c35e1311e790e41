//! A host on which a tunnel is brought up and down by either tool, and everything that is compared.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use adit_tests::command::{Output, output};
use adit_tests::wait::wait_until;
use adit_tests::wg::KeyPair;
use adit_tests::{Implementation, Namespace, name, tunnel, uapi};
use anyhow::{Context as _, Result, ensure};

/// Notes how it was called, with its standard input, and remembers what `-l` shall print.
const RESOLVCONF: &str = r#"#!/bin/bash
case $1 in
-l) cat "$CALLS.dns" ;;
*)
    echo "resolvconf $*" >> "$CALLS"
    [[ $1 == -a ]] && tee "$CALLS.dns" >> "$CALLS" || true ;;
esac
"#;

/// Programs that wg-quick and the tests' hooks use and that are not in `/usr/bin`, where wg-quick itself is.
const PROGRAMS: [&str; 8] = [
    "ip",
    "sysctl",
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
];

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    WgQuick,
    Adit,
}

/// A namespace with a wire to another host, and a directory for the file, a fake `resolvconf` and notes of its calls.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) namespace: std::rc::Rc<Namespace>,
    _other: std::rc::Rc<Namespace>,
    pub(crate) interface: String,
    directory: tempfile::TempDir,
    path: String,
}

/// The keys of the tunnel and of a peer.
pub(crate) fn keys() -> Result<(KeyPair, KeyPair)> {
    Ok((KeyPair::generate()?, KeyPair::generate()?))
}

impl Bench {
    pub(crate) fn new() -> Result<Self> {
        let (namespace, other) = (Namespace::new()?, Namespace::new()?);
        tunnel::connect(&namespace, &other, 1500)?;
        Self::on(namespace.into(), other.into())
    }

    fn on(namespace: std::rc::Rc<Namespace>, other: std::rc::Rc<Namespace>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let programs = directory.path().join("bin");
        fs::create_dir(&programs)?;
        let resolvconf = programs.join("resolvconf");
        fs::write(&resolvconf, RESOLVCONF)?;
        fs::set_permissions(&resolvconf, fs::Permissions::from_mode(0o755))?;
        let path = format!("{}:/usr/bin:/usr/sbin:/sbin:/bin", programs.display());
        Ok(Self {
            namespace,
            _other: other,
            interface: name::interface(),
            directory,
            path,
        })
    }

    /// A host where `nft` is not installed.
    pub(crate) fn without_nft() -> Result<Self> {
        let mut bench = Self::new()?;
        let programs = bench.programs();
        for program in PROGRAMS {
            let path = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
                .map(|directory| Path::new(directory).join(program))
                .into_iter()
                .find(|path| path.exists())
                .with_context(|| format!("{program} is not installed"))?;
            symlink(path, programs.join(program))?;
        }
        ensure!(!Path::new("/usr/bin/nft").exists(), "nft is in /usr/bin");
        bench.path = format!("{}:/usr/bin", programs.display());
        // What is loaded once leaves its empty chains behind.
        for program in ["iptables", "ip6tables"] {
            for chain in [
                "raw -X PREROUTING",
                "mangle -X PREROUTING",
                "mangle -X POSTROUTING",
            ] {
                for action in ["-A", "-D"] {
                    let chain = chain.replace("-X", action);
                    let line = format!("/usr/sbin/{program} -t {chain} -j ACCEPT");
                    bench.namespace.run(&line)?;
                }
            }
        }
        Ok(bench)
    }

    /// Another tunnel on the same host.
    pub(crate) fn another(&self) -> Result<Self> {
        Self::on(self.namespace.clone(), self._other.clone())
    }

    /// The directory that is first in `PATH`.
    pub(crate) fn programs(&self) -> PathBuf {
        self.directory.path().join("bin")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.directory
            .path()
            .join(format!("{}.conf", self.interface))
    }

    /// Where calls are noted.
    pub(crate) fn notes(&self) -> PathBuf {
        self.directory.path().join("calls")
    }

    /// Puts the file in place and begins a new list of calls.
    pub(crate) fn write(&self, settings: &str) -> Result<()> {
        fs::write(self.config(), settings)?;
        fs::set_permissions(self.config(), fs::Permissions::from_mode(0o600))?;
        fs::write(self.notes(), "")?;
        Ok(())
    }

    /// A command on this host.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.namespace.command(program);
        command
            .env("PATH", &self.path)
            .env("CALLS", self.notes())
            .env("WG_ENDPOINT_RESOLUTION_RETRIES", "0");
        command
    }

    /// `wg-quick ACTION FILE` or `adit ACTION FILE`.
    pub(crate) fn run(&self, tool: Tool, action: &str) -> Result<Output> {
        let adit = Implementation::Adit.program()?.canonicalize()?;
        let mut command = match tool {
            // By its path: PATH is not searched by `ip netns exec` in its new form.
            Tool::WgQuick => self.command("/usr/bin/wg-quick"),
            Tool::Adit => self.command(&adit),
        };
        command.env("WG_QUICK_USERSPACE_IMPLEMENTATION", &adit);
        output(command.arg(action).arg(self.config()))
    }

    pub(crate) fn succeed(&self, tool: Tool, action: &str) -> Result<()> {
        let output = self.run(tool, action)?;
        ensure!(
            output.status.success(),
            "{tool:?} {action}: {}\n{}",
            output.status,
            output.stderr
        );
        if tool == Tool::Adit {
            ensure!(
                output.stdout.is_empty() && output.stderr.is_empty(),
                "{action} talks:\n{}{}",
                output.stdout,
                output.stderr
            );
        }
        Ok(())
    }

    /// `wg-quick down` does not wait for the daemon.
    pub(crate) fn wait_ended(&self) -> Result<()> {
        wait_until("daemon and socket gone", Duration::from_secs(10), || {
            !uapi::socket_path(&self.interface).exists()
                && !self.namespace.has_interface(&self.interface)
        })
    }

    /// Addresses, MTU, routes of all tables, rules and firewall of the host; what differs from one tunnel to the next is
    /// put in one form.
    pub(crate) fn state(&self) -> Result<String> {
        let mut state = String::new();
        // Asked also where the tools under test are not to find nft.
        for command in [
            "ip -br address",
            "ip -o link show",
            "ip -4 -d route show table all",
            "ip -6 -d route show table all",
            "ip -4 -d rule",
            "ip -6 -d rule",
            "/usr/sbin/nft list ruleset",
            "/usr/sbin/iptables-save",
            "/usr/sbin/ip6tables-save",
        ] {
            let text = self.namespace.run(command)?;
            let mut lines: Vec<_> = text.lines().filter_map(|line| self.normal(line)).collect();
            if command.contains("route") {
                // Among IPv6 routes the made-up link-local addresses decide on the order.
                lines.sort();
            }
            state += &format!("# {command}\n{}\n", lines.join("\n"));
        }
        Ok(state)
    }

    /// A line without what is chance: the tunnel's name, the device's number, its link-local address, and the time.
    fn normal(&self, line: &str) -> Option<String> {
        if line.starts_with("# Generated") || line.starts_with("# Completed") {
            return None;
        }
        let line = match line.split_once(": ") {
            Some((number, rest))
                if number.bytes().all(|b| b.is_ascii_digit()) && rest.contains(" mtu ") =>
            {
                rest.split(" link/").next().unwrap_or(rest)
            }
            _ => line,
        };
        let words = line.split(' ').map(|word| match word {
            _ if word.starts_with("fe80::") && word != "fe80::/64" => "LINK-LOCAL".to_owned(),
            // iptables-save counts packets.
            _ if word.starts_with('[') && word.contains(':') => "[]".to_owned(),
            _ => word.replace(&self.interface, "TUNNEL"),
        });
        let line = words.collect::<Vec<_>>().join(" ");
        Some(line.trim_end().to_owned())
    }

    /// Calls of `resolvconf` and of hooks since the file was written, and standard inputs.
    pub(crate) fn calls(&self) -> Result<String> {
        Ok(fs::read_to_string(self.notes())?.replace(&self.interface, "TUNNEL"))
    }

    /// The file as it is by now.
    pub(crate) fn saved(&self) -> Result<String> {
        let text = fs::read_to_string(self.config())?;
        let random = |line: &&str| !line.starts_with("Address = fe80::");
        Ok(text
            .lines()
            .filter(random)
            .map(|line| format!("{line}\n"))
            .collect())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // A tunnel that a failed test has left up; its daemon ends with its device.
        if self.namespace.has_interface(&self.interface) {
            let _ = self
                .namespace
                .ip(&format!("link delete {}", self.interface));
        }
    }
}
