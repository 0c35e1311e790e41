//! Tunnel daemons: Adit, and the ones it must work with.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::wait_child;
use crate::wait::{poll, wait_for};
use crate::{Namespace, name, uapi};

/// How long a daemon may take to be ready or to end on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Lines of a daemon's log shown when a test that used it fails.
const LOG_TAIL: usize = 60;

static LOGS_HIDDEN: AtomicBool = AtomicBool::new(false);

/// Stops daemons from printing the end of their log when dropped; for programs that are not tests.
pub fn hide_logs() {
    LOGS_HIDDEN.store(true, Ordering::Relaxed);
}

/// Whose daemon to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Implementation {
    /// The one under test; see [`adit_path`].
    #[default]
    Adit,
    /// `wireguard-go` from `PATH`.
    WireguardGo,
    /// `boringtun-cli`; see [`boringtun_path`].
    Boringtun,
}

impl Implementation {
    /// Path of the program.
    ///
    /// # Errors
    /// It is not there, and cannot be built.
    pub fn program(self) -> Result<PathBuf> {
        match self {
            Self::Adit => adit_path(),
            Self::WireguardGo => Ok(PathBuf::from("wireguard-go")),
            Self::Boringtun => boringtun_path(),
        }
    }
}

/// Path of the daemon under test: `ADIT_TEST_DAEMON`, or the release build of this workspace, brought up to date once.
///
/// # Errors
/// It does not build.
pub fn adit_path() -> Result<PathBuf> {
    static PATH: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = PATH.get_or_init(|| match std::env::var_os("ADIT_TEST_DAEMON") {
        Some(path) => Ok(PathBuf::from(path)),
        None => build().map_err(|e| format!("{e:#}")),
    });
    found.clone().map_err(anyhow::Error::msg)
}

fn build() -> Result<PathBuf> {
    built(&["--release", "--package", "adit", "--bin", "adit"])
}

/// Has cargo build something of this workspace; the program or library that came of it.
pub(crate) fn built(what: &[&str]) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    command.args(["build", "--quiet"]).args(what);
    let output = command.args(["--message-format", "json"]).output()?;
    if !output.status.success() {
        bail!("cargo build {} failed", what.join(" "));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut made = text.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let library = || {
            let files = message.get("filenames")?.as_array()?;
            let mut paths = files.iter().filter_map(|file| file.as_str());
            paths.find(|path| path.ends_with(".so"))
        };
        let executable = message.get("executable").and_then(|path| path.as_str());
        Some(PathBuf::from(executable.or_else(library)?))
    });
    // What was asked for comes last, after proc macros, which are libraries of this kind, too.
    made.next_back().context("cargo named no file")
}

/// Path of `boringtun-cli`: `ADIT_TEST_BORINGTUN`, where `cargo xtask setup` put it, or `PATH`.
///
/// # Errors
/// It is in none of these places.
pub fn boringtun_path() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ADIT_TEST_BORINGTUN") {
        return Ok(PathBuf::from(path));
    }
    let own = tools_directory()?.join("bin/boringtun-cli");
    if own.is_file() {
        return Ok(own);
    }
    if crate::command::installed("boringtun-cli") {
        return Ok(PathBuf::from("boringtun-cli"));
    }
    bail!("boringtun-cli is missing: run `cargo xtask setup`")
}

/// Where `cargo xtask setup` puts programs that Debian does not have: `tools` in the target directory.
///
/// # Errors
/// The running program is not in a target directory.
pub fn tools_directory() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    // Cargo marks the target directory with this file, however deep the program lies in it.
    let target = program
        .ancestors()
        .find(|directory| directory.join("CACHEDIR.TAG").is_file());
    Ok(target
        .context("not run from a target directory")?
        .join("tools"))
}

/// How to start a daemon.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Whose.
    pub implementation: Implementation,
    /// A shell command in place of all that, `%i` standing for the interface name; it must stay in the foreground.
    pub command: Option<String>,
    /// Options before the interface name.
    pub arguments: Vec<String>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Interface name; a unique one if `None`.
    pub interface: Option<String>,
}

/// A daemon in the foreground in a namespace; ended when dropped.
#[derive(Debug)]
pub struct Daemon {
    options: Options,
    child: Child,
    interface: String,
    log: tempfile::NamedTempFile,
    ended: Option<ExitStatus>,
}

impl Daemon {
    /// Starts a daemon and waits until device and socket are there.
    ///
    /// # Errors
    /// It ends at once or is not ready in time; its log is in the error.
    pub fn start(namespace: &Namespace, options: &Options) -> Result<Self> {
        let interface = options.interface.clone().unwrap_or_else(name::interface);
        let log = tempfile::NamedTempFile::new()?;
        let child = spawn(namespace, options, &interface, &log)?;
        let mut daemon = Self {
            options: options.clone(),
            child,
            interface,
            log,
            ended: None,
        };
        daemon.wait_ready(namespace)?;
        Ok(daemon)
    }

    /// Kills the daemon as a crash would, and starts another with the same interface name.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn crash_and_restart(&mut self, namespace: &Namespace) -> Result<()> {
        if self.running() {
            self.child.kill()?;
            self.child.wait()?;
        }
        self.restart(namespace)
    }

    /// Starts a daemon that has ended again, with the same options and interface name.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn restart(&mut self, namespace: &Namespace) -> Result<()> {
        self.child = spawn(namespace, &self.options, &self.interface, &self.log)?;
        self.ended = None;
        self.wait_ready(namespace)
    }

    fn wait_ready(&mut self, namespace: &Namespace) -> Result<()> {
        let interface = self.interface.clone();
        let path = uapi::socket_path(&interface);
        let ready = wait_for("device and socket", LIMIT, || match self.child.try_wait() {
            Ok(Some(status)) => {
                self.ended = Some(status);
                Some(Err(status))
            }
            _ => (UnixStream::connect(&path).is_ok() && namespace.has_interface(&interface))
                .then_some(Ok(())),
        });
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("daemon ended at once: {status}\n{}", self.log_text()),
            Err(error) => Err(error.context(self.log_text())),
        }
    }

    /// The interface name it was started with.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Is it still running?
    pub fn running(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended.is_none()
    }

    /// What it logged so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        fs::read(self.log.path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Sends a signal to it.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if !self.running() {
            bail!("daemon has ended\n{}", self.log_text());
        }
        kill(Pid::from_raw(i32::try_from(self.pid())?), signal)?;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        let status = wait_child(&mut self.child, LIMIT).with_context(|| self.log_text())?;
        self.ended = Some(status);
        Ok(status)
    }
}

fn spawn(
    namespace: &Namespace,
    options: &Options,
    interface: &str,
    log: &tempfile::NamedTempFile,
) -> Result<Child> {
    let mut command = match &options.command {
        Some(line) => shell(namespace, line, interface),
        None => program(namespace, options, interface)?,
    };
    command
        .env("LOG_LEVEL", "verbose")
        .envs(&options.environment);
    command
        .stdout(Stdio::from(log.reopen_for_append()?))
        .stderr(Stdio::from(log.reopen_for_append()?))
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))
}

fn shell(namespace: &Namespace, line: &str, interface: &str) -> Command {
    let mut command = namespace.command("sh");
    // In the shell's place, so that its process is the daemon.
    command.args(["-c", &format!("exec {}", line.replace("%i", interface))]);
    command.env("WG_PROCESS_FOREGROUND", "1");
    command
}

fn program(namespace: &Namespace, options: &Options, interface: &str) -> Result<Command> {
    let mut command = namespace.command(options.implementation.program()?);
    command.arg("-f");
    if options.implementation == Implementation::Boringtun {
        // Connected sockets keep boringtun from following a peer to another address.
        command.args([
            "--disable-drop-privileges",
            "--disable-connected-udp",
            "--verbosity",
            "info",
        ]);
    }
    command.args(&options.arguments).arg(interface);
    Ok(command)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.running() {
            let _ = self.signal(Signal::SIGTERM);
            if poll(Duration::from_secs(3), || (!self.running()).then_some(())).is_none() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
        // The name is ours alone, so a socket file still there is a leftover.
        let _ = fs::remove_file(uapi::socket_path(&self.interface));
        show_log(&self.interface, &self.log_text());
    }
}

/// Shows the end of a log; the test runner keeps it back unless the test failed.
fn show_log(interface: &str, text: &str) {
    if !LOGS_HIDDEN.load(Ordering::Relaxed) {
        let lines: Vec<_> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n");
        print_captured(&format!("--- log of {interface} ---\n{tail}"));
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the test runner captures it and shows it when the test fails"
)]
fn print_captured(text: &str) {
    println!("{text}");
}

/// A second handle on a log file that appends, so that two writers do not overwrite each other.
trait ReopenForAppend {
    fn reopen_for_append(&self) -> Result<fs::File>;
}

impl ReopenForAppend for tempfile::NamedTempFile {
    fn reopen_for_append(&self) -> Result<fs::File> {
        Ok(fs::OpenOptions::new()
            .append(true)
            .open::<&Path>(self.path())?)
    }
}
