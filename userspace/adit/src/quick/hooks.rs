//! `PreUp`, `PostUp`, `PreDown` and `PostDown`.

use std::env;
use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::file::File;
use super::installed;
use super::steps::Steps;

/// Runs the commands given under `key`, one after the other, until one fails.
///
/// They run as `wg-quick` runs them: by bash, which ends at the first command that fails, `%i` replaced by the tunnel's
/// name, without a locale, and with the directory of the program first in `PATH`. The variables `INTERFACE` and
/// `CONFIG_FILE`, which `wg-quick`'s own shell has, are in the environment.
pub(super) fn run(
    key: &str,
    commands: &[String],
    interface: &str,
    file: &File,
    steps: &Steps,
) -> Result<()> {
    for command in commands {
        let command = command.replace("%i", interface);
        steps.begin(format_args!("{key}: {command}"))?;
        let status = shell(&command)
            .env("LC_ALL", "C")
            .env("PATH", path())
            .env("INTERFACE", interface)
            .env("CONFIG_FILE", &file.path)
            .status()
            .with_context(|| format!("cannot run a shell for {key}"))?;
        if !status.success() {
            // Not the command itself: it may have a key in it.
            bail!("a command of {key} failed: {status}");
        }
    }
    Ok(())
}

fn shell(command: &str) -> Command {
    let bash = installed("bash");
    let mut shell = Command::new(if bash { "bash" } else { "sh" });
    shell.arg("-e");
    if bash {
        shell.args(["-o", "pipefail", "-O", "extglob"]);
    }
    shell.arg("-c").arg(command);
    shell
}

fn path() -> OsString {
    let own = env::current_exe().ok();
    let own = own.iter().filter_map(|program| program.parent());
    let inherited = env::var_os("PATH").unwrap_or_default();
    let all = own.map(Into::into).chain(env::split_paths(&inherited));
    env::join_paths(all).unwrap_or(inherited)
}
