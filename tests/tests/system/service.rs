//! What a service manager is told, by those whom it believes; and that the units are what systemd understands.

use std::collections::BTreeMap;
use std::fs;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use adit_tests::command::{Output, output, run};
use adit_tests::daemon::Options;
use adit_tests::process::alive;
use adit_tests::wait::{wait_for, wait_until};
use adit_tests::wg::{KeyPair, wg};
use adit_tests::{Daemon, Implementation, Namespace, name};
use anyhow::{Context as _, Result, ensure};
use nix::cmsg_space;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::socket::sockopt::PassCred;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::documents;

const PATIENCE: Duration = Duration::from_secs(20);
/// Microseconds; a daemon says that it is alive twice in that time.
const WATCHDOG: &str = "4000000";

/// Something that a manager was told.
#[derive(Debug)]
pub(crate) struct Message {
    pid: u32,
    pub(crate) text: String,
}

impl Message {
    fn value(&self, key: &str) -> Option<&str> {
        let mut lines = self.text.lines().filter_map(|line| line.split_once('='));
        lines.find_map(|(name, value)| (name == key).then_some(value))
    }
}

/// Listens in systemd's place.
pub(crate) struct Manager {
    socket: UnixDatagram,
    pub(crate) directory: tempfile::TempDir,
}

impl Manager {
    pub(crate) fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = UnixDatagram::bind(directory.path().join("notify"))?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, PassCred, &true)?;
        Ok(Self { socket, directory })
    }

    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        let path = self.directory.path().join("notify");
        [
            ("NOTIFY_SOCKET", &*path.to_string_lossy()),
            ("WATCHDOG_USEC", WATCHDOG),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// The next message, if one is there.
    fn take(&self) -> Option<Message> {
        let mut text = [0; 4096];
        let mut space = cmsg_space!(UnixCredentials);
        let mut parts = [IoSliceMut::new(&mut text)];
        let descriptor = self.socket.as_raw_fd();
        let received =
            recvmsg::<()>(descriptor, &mut parts, Some(&mut space), MsgFlags::empty()).ok()?;
        let length = received.bytes;
        let sender = received.cmsgs().ok()?.find_map(|message| match message {
            ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.pid()),
            _ => None,
        })?;
        Some(Message {
            pid: sender.unsigned_abs(),
            text: String::from_utf8_lossy(&text[..length]).into_owned(),
        })
    }

    /// Waits for a message with an assignment to `key`; those before it are passed over.
    fn wait(&self, key: &str) -> Result<Message> {
        wait_for(key, PATIENCE, || {
            self.take().filter(|message| message.value(key).is_some())
        })
    }

    /// Everything that is there.
    pub(crate) fn drain(&self) -> Vec<Message> {
        std::iter::from_fn(|| self.take()).collect()
    }

    /// Starts `adit` with these arguments as systemd starts the main process of a service.
    fn start(&self, namespace: &Namespace, arguments: &[&str]) -> Result<(u32, Output)> {
        let directory = self.directory.path();
        let script = r#"echo $$ > "$0"; export SYSTEMD_EXEC_PID=$$ WATCHDOG_PID=$$; exec "$@""#;
        let pid = directory.join("pid");
        let mut command = namespace.command("sh");
        command.args(["-c", script]).arg(&pid);
        command.arg(Implementation::Adit.program()?);
        let command = command.args(arguments).envs(self.environment());
        command.env("CREDENTIALS_DIRECTORY", directory);
        let output = output(command)?;
        Ok((fs::read_to_string(pid)?.trim().parse()?, output))
    }

    /// Writes a tunnel's file into a directory of ours and returns its path.
    fn write_config(&self, interface: &str, more: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(format!("{interface}.conf"));
        let private = KeyPair::generate()?.private;
        let text = format!("[Interface]\nPrivateKey = {private}\nAddress = 10.9.0.1/24\n{more}");
        fs::write(&path, text)?;
        Ok(path)
    }
}

fn start_in_foreground(manager: &Manager, namespace: &Namespace) -> Result<Daemon> {
    let options = Options {
        environment: manager.environment(),
        ..Options::default()
    };
    Daemon::start(namespace, &options)
}

#[test]
fn a_daemon_in_the_foreground_tells_of_itself() -> Result<()> {
    let (manager, namespace) = (Manager::new()?, Namespace::new()?);
    let mut daemon = start_in_foreground(&manager, &namespace)?;
    let ready = manager.wait("READY")?;
    ensure!(ready.value("READY") == Some("1") && ready.value("MAINPID").is_none());
    ensure!(ready.pid == daemon.pid() && ready.value("STATUS").is_some());

    for _ in 0..2 {
        let sign = manager.wait("WATCHDOG")?;
        ensure!(sign.value("WATCHDOG") == Some("1") && sign.pid == daemon.pid());
    }
    let interface = daemon.interface().to_owned();
    let peer = KeyPair::generate()?.public;
    wg(&namespace, &format!("set {interface} peer {peer}"))?;
    namespace.ip(&format!("link set {interface} up"))?;
    let told = |message: Message| message.value("STATUS")?.contains("1 peers").then_some(());
    wait_for("status", PATIENCE, || manager.take().and_then(told))?;

    daemon.signal(Signal::SIGTERM)?;
    ensure!(daemon.wait()?.success());
    let stopping = manager.wait("STOPPING")?;
    ensure!(stopping.value("STOPPING") == Some("1"));
    Ok(())
}

/// Stops one thread of a process for as long as `meanwhile` takes.
fn with_thread_stopped<T>(thread: i32, meanwhile: impl FnOnce() -> T) -> Result<T> {
    let thread = Pid::from_raw(thread);
    ptrace::seize(thread, ptrace::Options::empty())?;
    ptrace::interrupt(thread)?;
    waitpid(thread, Some(WaitPidFlag::__WALL))?;
    let result = meanwhile();
    ptrace::detach(thread, None)?;
    Ok(result)
}

fn thread(pid: u32, wanted: &str) -> Result<i32> {
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        if fs::read_to_string(path.join("comm"))?.trim() == wanted {
            let id = path.file_name().context("no name")?.to_string_lossy();
            return Ok(id.parse()?);
        }
    }
    anyhow::bail!("no thread {wanted}")
}

/// The manager is to end a daemon whose packets do not move any more, and not to be told that all is well.
#[test]
fn a_hanging_data_thread_silences_the_watchdog() -> Result<()> {
    let (manager, namespace) = (Manager::new()?, Namespace::new()?);
    let mut daemon = start_in_foreground(&manager, &namespace)?;
    manager.wait("WATCHDOG")?;
    for (before, name) in ["egress", "ingress"].into_iter().enumerate() {
        let said = || daemon.log_text().matches("a data thread hangs").count();
        with_thread_stopped(thread(daemon.pid(), name)?, || -> Result<()> {
            wait_until("the hang is seen", PATIENCE, || said() > before)?;
            manager.drain();
            // Two more signs of life would have been due.
            std::thread::sleep(Duration::from_secs(5));
            let told = manager.drain();
            let alive = |message: &Message| message.value("WATCHDOG").is_some();
            ensure!(!told.iter().any(alive), "{name}: {told:?}");
            Ok(())
        })??;
        manager.wait("WATCHDOG")?;
    }
    ensure!(daemon.running());
    Ok(())
}

/// `adit up` says when everything is in place, in one message from the process that systemd started, and names the daemon,
/// which goes on from there.
#[test]
fn up_names_the_daemon() -> Result<()> {
    let (manager, namespace) = (Manager::new()?, Namespace::new()?);
    let interface = name::interface();
    let ready = manager.directory.path().join("before-ready");
    // A hook that fails if somebody was told too early.
    let config = manager.write_config(
        &interface,
        &format!(
            "PostUp = ip -br address show dev %i > {}\n",
            ready.display()
        ),
    )?;
    let config = config.to_string_lossy().into_owned();
    let (main, output) = manager.start(&namespace, &["up", &config])?;
    ensure!(output.status.success(), "{}", output.stderr);
    ensure!(fs::read_to_string(ready)?.contains("10.9.0.1/24"));

    let told = manager.drain();
    ensure!(told.len() == 1, "{told:?}");
    let message = &told[0];
    ensure!(message.pid == main && message.value("READY") == Some("1"));
    let daemon: u32 = message.value("MAINPID").context("no MAINPID")?.parse()?;
    ensure!(daemon != main && alive(daemon));
    ensure!(namespace.pids() == [i32::try_from(daemon)?]);
    ensure!(manager.wait("WATCHDOG")?.pid == daemon);

    let (_, output) = manager.start(&namespace, &["down", &config])?;
    ensure!(output.status.success(), "{}", output.stderr);
    ensure!(manager.wait("STOPPING")?.pid == daemon);
    wait_until("the daemon ends", PATIENCE, || namespace.pids().is_empty())
}

/// What fails is not said to be ready, and nothing is left.
#[test]
fn a_failed_up_is_not_ready() -> Result<()> {
    let (manager, namespace) = (Manager::new()?, Namespace::new()?);
    let interface = name::interface();
    let config = manager.write_config(&interface, "PostUp = false\n")?;
    let (_, output) = manager.start(&namespace, &["up", &config.to_string_lossy()])?;
    ensure!(output.status.code() == Some(1), "{}", output.status);
    let told = manager.drain();
    ensure!(
        told.iter().all(|message| message.value("READY").is_none()),
        "{told:?}"
    );
    wait_until("the daemon ends", PATIENCE, || namespace.pids().is_empty())
}

/// So does `adit IFACE` when it leaves a daemon behind.
#[test]
fn a_parent_names_its_daemon() -> Result<()> {
    let (manager, namespace) = (Manager::new()?, Namespace::new()?);
    let interface = name::interface();
    let (main, output) = manager.start(&namespace, &[&interface])?;
    ensure!(output.status.success(), "{}", output.stderr);
    let message = manager.wait("READY")?;
    let daemon: i32 = message.value("MAINPID").context("no MAINPID")?.parse()?;
    ensure!(message.pid == main && namespace.pids() == [daemon]);
    ensure!(manager.wait("WATCHDOG")?.pid == daemon.unsigned_abs());
    namespace.ip(&format!("link delete {interface}"))?;
    manager.wait("STOPPING").map(drop)
}

/// A service of somebody else's that happens to call `adit up` reports for itself.
#[test]
fn nobody_speaks_for_another_service() -> Result<()> {
    let (manager, namespace) = (Manager::new()?, Namespace::new()?);
    let interface = name::interface();
    let config = manager.write_config(&interface, "")?;
    let program = Implementation::Adit.program()?;
    let mut command = namespace.command(&program);
    command.arg("up").arg(&config).envs(manager.environment());
    run(command.env("SYSTEMD_EXEC_PID", "1"))?;
    let told = manager.drain();
    ensure!(told.is_empty(), "{told:?}");
    run(namespace.command(&program).arg("down").arg(&config))?;
    wait_until("the daemon ends", PATIENCE, || namespace.pids().is_empty())
}

/// `LoadCredential=IFACE.conf`: the file is found by the tunnel's name.
#[test]
fn credentials_are_found_by_name() -> Result<()> {
    let (manager, namespace) = (Manager::new()?, Namespace::new()?);
    let interface = name::interface();
    manager.write_config(&interface, "ListenPort = 51999\n")?;
    let (_, output) = manager.start(&namespace, &["up", &interface])?;
    ensure!(output.status.success(), "{}", output.stderr);
    ensure!(wg(&namespace, &format!("show {interface} listen-port"))?.trim() == "51999");
    let (_, output) = manager.start(&namespace, &["down", &interface])?;
    ensure!(output.status.success(), "{}", output.stderr);
    wait_until("the daemon ends", PATIENCE, || namespace.pids().is_empty())?;

    manager.write_config(&interface, "SaveConfig = true\n")?;
    let (_, output) = manager.start(&namespace, &["up", &interface])?;
    ensure!(!output.status.success() && output.stderr.contains("SaveConfig"));
    ensure!(namespace.pids().is_empty());
    Ok(())
}

/// The units, with the program that is there in the place where they expect it.
fn units(directory: &Path) -> Result<Vec<PathBuf>> {
    let program = Implementation::Adit.program()?.canonicalize()?;
    let names = [
        "adit@.service",
        "adit-reresolve@.service",
        "adit-reresolve@.timer",
    ];
    let write = |name: &str| {
        let text = documents::read(&format!("userspace/adit/packaging/{name}"))?;
        let path = directory.join(name);
        let program = program.to_string_lossy();
        fs::write(&path, text.replace("/usr/local/bin/adit", &program))?;
        Ok(path)
    };
    names.into_iter().map(write).collect()
}

#[test]
fn systemd_understands_the_units() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let units = units(directory.path())?;
    let verify = |units: &[PathBuf]| {
        let mut command = Command::new("systemd-analyze");
        output(command.args(["verify", "--man=no"]).args(units))
    };
    let found = verify(&units)?;
    ensure!(
        found.status.success() && found.stderr.is_empty(),
        "{}",
        found.stderr
    );

    // It would notice.
    let wrong = directory.path().join("wrong@.service");
    fs::write(
        &wrong,
        "[Service]\nExecStart=/nonexistent/adit %i\nWatchdogSec=soon\n",
    )?;
    ensure!(!verify(&[wrong])?.stderr.is_empty());
    Ok(())
}

/// What the services may do, by systemd's own measure, in tenths: 100 is everything.
#[test]
fn the_units_are_confined() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for (unit, most) in units(directory.path())?.iter().zip(["40", "30"]) {
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--no-pager", "--offline=true"]);
        let judged = output(command.arg(format!("--threshold={most}")).arg(unit))?;
        ensure!(
            judged.status.success(),
            "{}{}",
            judged.stdout,
            judged.stderr
        );
    }
    Ok(())
}
