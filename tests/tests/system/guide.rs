//! `five-minutes.md` is played command by command on two hosts.

use std::io::{PipeWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use adit_tests::command::Running;
use adit_tests::wait::{wait_for, wait_until};
use adit_tests::{Implementation, Namespace, tunnel};
use anyhow::{Context as _, Result, bail, ensure};

use crate::documents::{self, Block};

/// How long the commands of one block may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A shell that a reader of the guide sits at, with files and sockets of its own, so that both hosts can have a `wg0`.
struct Host {
    shell: Running,
    keyboard: Option<PipeWriter>,
    blocks: u32,
    public_key: String,
    namespace: Namespace,
}

impl Host {
    fn new(namespace: Namespace, programs: &Path) -> Result<Self> {
        let (input, keyboard) = std::io::pipe()?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = namespace.command("unshare");
        command
            .args(["--mount", "bash", "-euo", "pipefail"])
            .stdin(input)
            .env(
                "PATH",
                format!("{}:{path}:/usr/sbin:/sbin", programs.display()),
            );
        let shell = Running::start(&mut command)?;
        let mut host = Self {
            shell,
            keyboard: Some(keyboard),
            blocks: 0,
            public_key: String::new(),
            namespace,
        };
        host.type_in(
            "exec 2>&1
             mkdir -p /etc/wireguard /run/wireguard
             mount -t tmpfs none /etc/wireguard
             mount -t tmpfs none /run/wireguard",
        )?;
        Ok(host)
    }

    /// Types commands and returns what they print.
    fn type_in(&mut self, commands: &str) -> Result<String> {
        self.blocks += 1;
        let end = format!("end of block {}\n", self.blocks);
        let before = self.shell.stdout_so_far().len();
        let keyboard = self.keyboard.as_mut().context("the shell was left")?;
        writeln!(keyboard, "{commands}\necho {}", end.trim())?;
        let printed = wait_for(&end, PATIENCE, || {
            let all = self.shell.stdout_so_far();
            all[before..].strip_suffix(&end).map(str::to_owned)
        });
        printed.with_context(|| format!("{commands}\n{}", &self.shell.stdout_so_far()[before..]))
    }

    /// Ends the shell, and finds nothing running any more.
    fn leave(mut self) -> Result<()> {
        self.keyboard = None;
        let namespace = self.namespace;
        let output = self.shell.finish(PATIENCE)?;
        ensure!(output.status.success(), "the shell: {}", output.status);
        wait_until("the daemon ends", PATIENCE, || namespace.pids().is_empty())?;
        let links = namespace.run("ip -o link")?;
        ensure!(!links.contains("wg0"), "{links}");
        Ok(())
    }
}

/// Each line of what the guide shows begins with what the program printed: up to a colon, where values begin, or all of it.
fn compare(shown: &str, printed: &str) -> Result<()> {
    for line in shown.lines().filter(|line| !line.is_empty()) {
        let label = line.split_inclusive(": ").next().unwrap_or(line);
        ensure!(
            printed.lines().any(|line| line.starts_with(label)),
            "the guide shows `{label}`, but printed was\n{printed}"
        );
    }
    Ok(())
}

/// The block of the bpftool guide that is marked so.
#[test]
fn bpftool() -> Result<()> {
    let programs = tempfile::tempdir()?;
    let program = Implementation::Adit.program()?.canonicalize()?;
    std::os::unix::fs::symlink(program, programs.path().join("adit"))?;
    let mut host = Host::new(Namespace::new()?, programs.path())?;
    let text = documents::read("userspace/adit/docs/bpftool.md")?;
    let blocks = documents::blocks(&text);
    let mut played = blocks.iter().filter(|block| block.tag == "sh run");
    let block = played.next().context("no block to play")?;
    let printed = host.type_in(&block.text)?;
    for name in ["layout_version", "owner_pid", "max_entries 8192"] {
        ensure!(printed.contains(name), "{name} is not in\n{printed}");
    }
    ensure!(played.next().is_none(), "only one block is played");
    host.leave()
}

#[test]
fn five_minutes() -> Result<()> {
    let programs = tempfile::tempdir()?;
    let program = Implementation::Adit.program()?.canonicalize()?;
    std::os::unix::fs::symlink(program, programs.path().join("adit"))?;
    let (left, right) = (Namespace::new()?, Namespace::new()?);
    tunnel::connect(&left, &right, 1500)?;
    let mut hosts = [
        Host::new(left, programs.path())?,
        Host::new(right, programs.path())?,
    ];

    let text = documents::read("userspace/adit/docs/five-minutes.md")?;
    let mut printed = String::new();
    let mut played = 0;
    for Block { tag, text } in documents::blocks(&text) {
        let chosen = match tag {
            "sh both" => 0..2,
            "sh left" => 0..1,
            "sh right" => 1..2,
            "text" => {
                compare(&text, &printed)?;
                continue;
            }
            "sh" => {
                // Its test says who runs them.
                let readme = documents::read("README.md")?;
                ensure!(readme.contains(&text), "nobody tests: {text}");
                continue;
            }
            other => bail!("block of unknown kind: {other}"),
        };
        // What the reader is told to put in place of these.
        let commands = text
            .replace("LEFT_PUBLIC_KEY", &hosts[0].public_key)
            .replace("RIGHT_PUBLIC_KEY", &hosts[1].public_key);
        for host in &mut hosts[chosen] {
            printed = host.type_in(&commands)?;
            if commands.contains("adit pubkey") {
                host.public_key = printed.trim().to_owned();
            }
        }
        played += 1;
    }
    ensure!(played >= 8, "only {played} blocks to play");
    for host in hosts {
        host.leave()?;
    }
    Ok(())
}
