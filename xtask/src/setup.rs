//! Installs what demonstration and tests need, once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use adit_tests::command::installed;
use adit_tests::daemon::tools_directory;
use adit_tests::namespace::require_root;
use anyhow::{Result, bail};

use crate::cargo;
use crate::stage::{run, say};

/// Programs that are used, and the Debian packages they are in.
const PROGRAMS: [(&str, &str); 18] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("ping", "iputils-ping"),
    ("iperf3", "iperf3"),
    ("wg", "wireguard-tools"),
    ("wg-quick", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
    ("nft", "nftables"),
    ("sysctl", "procps"),
    ("strace", "strace"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("ethtool", "ethtool"),
    ("bpftool", "bpftool"),
    ("valgrind", "valgrind"),
    ("c++", "g++"),
    ("man", "man-db"),
    ("systemd-analyze", "systemd"),
];

/// A program from crates.io, built into the target directory.
#[derive(Debug, Clone, Copy)]
struct Tool {
    package: &'static str,
    version: &'static str,
    /// Further arguments of `cargo install`.
    options: &'static [&'static str],
    /// What it is good for, in the words of the person who waits for it.
    purpose: &'static str,
}

/// Versions are exact, so that every machine tests with the same ones.
const TOOLS: [Tool; 2] = [
    Tool {
        package: "boringtun-cli",
        version: "0.7.1",
        options: &[],
        purpose: "a peer to interoperate with",
    },
    // A debug build takes a third of the time and checks as well.
    Tool {
        package: "cargo-deny",
        version: "0.20.2",
        options: &["--debug"],
        purpose: "checks licences and sources",
    },
];

/// Installs what is missing. Quick when all is there.
///
/// # Errors
/// Not root, not Debian, or an installation failed.
pub(crate) fn install() -> Result<()> {
    require_root()?;
    install_packages()?;
    for tool in TOOLS {
        install_tool(tool)?;
    }
    Ok(())
}

/// `cargo xtask setup`.
pub(crate) fn run_task() -> Result<()> {
    install()?;
    say("Everything is installed.");
    Ok(())
}

/// Path of cargo-deny.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    Ok(tools_directory()?.join("bin/cargo-deny"))
}

fn install_packages() -> Result<()> {
    let missing: Vec<_> = PROGRAMS
        .into_iter()
        .filter(|(program, _)| !is_there(program))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    if !installed("apt-get") {
        let programs: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
        bail!(
            "missing programs: {}; only on Debian they can be installed from here",
            programs.join(", ")
        );
    }
    say(&format!(
        "Installing Debian packages: {}",
        packages.join(" ")
    ));
    let apt = || {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    };
    run(apt().args(["-qq", "update"]))?;
    // wireguard-tools recommends a kernel module, and with it a whole kernel.
    run(apt()
        .args(["-qq", "install", "--yes", "--no-install-recommends"])
        .args(&packages))?;
    match missing.iter().find(|(program, _)| !is_there(program)) {
        Some((program, package)) => {
            bail!("{program} is not there although {package} was installed")
        }
        None => Ok(()),
    }
}

/// Administrators' programs may lie outside `PATH`.
fn is_there(program: &str) -> bool {
    installed(program)
        || ["/usr/sbin", "/sbin"]
            .iter()
            .any(|directory| Path::new(directory).join(program).is_file())
}

fn install_tool(tool: Tool) -> Result<()> {
    let Tool {
        package,
        version,
        options,
        purpose,
    } = tool;
    let directory = tools_directory()?;
    let program = directory.join("bin").join(package);
    let answer = Command::new(&program)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    if answer.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(version)) {
        return Ok(());
    }
    say(&format!(
        "Building {package} {version} ({purpose}) into {}",
        directory.display()
    ));
    let mut command = cargo(&[
        "install",
        "--quiet",
        "--locked",
        "--force",
        package,
        "--version",
        version,
    ])?;
    run(command.args(options).arg("--root").arg(&directory))
}
