//! What README.md tells people to type works.

use std::path::Path;

use adit_tests::command::{output, run};
use adit_tests::tunnel;
use adit_tests::wg::KeyPair;
use adit_tests::{Implementation, Namespace, name, uapi};
use anyhow::{Context as _, Result, ensure};

/// Commands that every run of continuous integration carries out outside of this test: `.ci/run` is the second, a stage
/// of it the first and the third, and `packages` has the others.
const RUN_BY_CI: [&str; 5] = [
    "cargo xtask demo",
    "cargo xtask test",
    "cargo build --release --package adit",
    "cargo xtask dist",
    "dpkg --install target/dist/adit_*.deb",
];

/// Puts the built program where the other blocks expect it, which [`run_block`] does by `PATH`.
const INSTALLS: &str = "install -m 755 target/release/adit /usr/local/bin/adit";

fn readme() -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The fenced blocks: what stands behind the fence, and the lines inside.
fn blocks(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(tag) = line.strip_prefix("```") {
            blocks.push((
                tag,
                lines.by_ref().take_while(|line| *line != "```").collect(),
            ));
        }
    }
    blocks
}

/// Runs a block as a script in a namespace of its own, `wg0` replaced by a name nobody uses.
fn run_block(lines: &[&str]) -> Result<()> {
    let (namespace, other) = (Namespace::new()?, Namespace::new()?);
    tunnel::connect(&namespace, &other, 1500)?;
    let interface = name::interface();
    let directory = tempfile::tempdir()?;
    std::os::unix::fs::symlink(
        Implementation::Adit.program()?.canonicalize()?,
        directory.path().join("adit"),
    )?;
    let config = directory.path().join(format!("{interface}.conf"));
    let private = KeyPair::generate()?.private;
    std::fs::write(
        &config,
        format!("[Interface]\nPrivateKey = {private}\nAddress = 10.9.0.1/24\n"),
    )?;

    // /etc/wireguard is the machine's own: hide it, in a mount namespace that ends with the script.
    let script = format!(
        "set -euo pipefail
         mount -t tmpfs none /etc/wireguard
         cp {} /etc/wireguard/
         {}",
        config.display(),
        lines.join("\n").replace("wg0", &interface),
    );
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = namespace.command("unshare");
    command.args(["--mount", "bash", "-c", &script]);
    command.env(
        "PATH",
        format!("{}:{path}:/usr/sbin:/sbin", directory.path().display()),
    );
    let result = run(&mut command);
    let _ = adit_tests::wait::wait_until("daemon ends", std::time::Duration::from_secs(10), || {
        namespace.pids().is_empty() && !uapi::socket_path(&interface).exists()
    });
    result.with_context(|| script)?;
    ensure!(namespace.pids().is_empty(), "the daemon still runs");
    Ok(())
}

#[test]
fn commands_work() -> Result<()> {
    let text = readme()?;
    let mut ran = 0;
    for (tag, lines) in blocks(&text) {
        match tag {
            "sh run" => {
                run_block(&lines)?;
                ran += 1;
            }
            "sh" => {
                for line in lines {
                    ensure!(
                        RUN_BY_CI.contains(&line) || line == INSTALLS,
                        "nobody tests: {line}"
                    );
                }
            }
            // A drawing.
            "text" => {}
            other => anyhow::bail!("block of unknown kind: {other}"),
        }
    }
    ensure!(ran >= 2, "only {ran} blocks to run");
    Ok(())
}

/// Every option and variable that the program's help names is in README.md.
#[test]
fn options_are_complete() -> Result<()> {
    let text = readme()?;
    let mut command = std::process::Command::new(Implementation::Adit.program()?);
    let help = output(command.arg("--help"))?.stdout;
    let names = help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'));
    let options: Vec<_> = names
        .filter(|word| {
            word.starts_with("--") || word.starts_with("ADIT_") || word.starts_with("WG_")
        })
        .collect();
    ensure!(options.len() >= 5, "{help}");
    for option in options {
        ensure!(
            ["--help", "--version"].contains(&option) || text.contains(option),
            "README.md does not tell of {option}"
        );
    }
    Ok(())
}
