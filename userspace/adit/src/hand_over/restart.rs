//! `adit restart`.

use std::env;
use std::fs;
use std::io::{self, PipeReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use adit_kernel::netns::NetworkNamespace;
use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use crate::daemon::{again_as_daemon, end_of, wait_until_ready};
use crate::quick::client;

/// A daemon that is alive answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than what any daemon tells of its options.
const LONGEST_ANSWER: u64 = 1 << 16;

/// What a running daemon says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Running {
    /// Its process id.
    pid: u32,
    /// Whoever started it waits for its end.
    foreground: bool,
    /// A service manager hears which process is the daemon.
    managed: bool,
    /// Options it was given, as environment variables.
    options: Vec<(String, String)>,
}

impl Running {
    fn parse(text: &str) -> Option<Self> {
        let mut running = Self::default();
        for line in text.lines() {
            let (key, value) = line.split_once('=')?;
            match key {
                "pid" => running.pid = value.parse().ok()?,
                "foreground" => running.foreground = value == "true",
                "managed" => running.managed = value == "true",
                "option" => {
                    let (name, value) = value.split_once('=')?;
                    running.options.push((name.to_owned(), value.to_owned()));
                }
                "errno" => return (value == "0" && running.pid != 0).then_some(running),
                // Of a later version.
                _ => {}
            }
        }
        None
    }
}

/// Replaces the daemon of `interface` by one that runs this program, and returns when that is done.
///
/// # Errors
/// In one line, and the daemon goes on: it cannot be replaced, or the other one did not start, which has said why itself.
pub fn run(interface: &str) -> Result<()> {
    let running = ask(interface)?;
    ensure!(
        !running.foreground || running.managed,
        "the daemon runs in the foreground, and whoever started it (process {}) would take this for its end: \
         restart it there",
        parent(running.pid).map_or_else(|| "unknown".to_owned(), |pid| pid.to_string())
    );
    let (mut ready, mut child) = start(&running)?;
    if wait_until_ready(&mut ready) {
        return Ok(());
    }
    let status = end_of(&mut child)?;
    bail!("the new daemon ended before it was ready: {status}; the old one goes on");
}

fn ask(interface: &str) -> Result<Running> {
    let mut stream = client::connect(interface)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // By its number here, which is another one than its own where it is in a container.
    let listener = getsockopt(&stream, PeerCredentials).map_or(0, |peer| peer.pid());
    let mut answer = String::new();
    let talk = stream
        .write_all(b"hand_over=options\n\n")
        .and_then(|()| stream.shutdown(std::net::Shutdown::Write))
        .and_then(|()| stream.take(LONGEST_ANSWER).read_to_string(&mut answer));
    match talk {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            bail!("the daemon does not answer")
        }
        // One that does not know the question may close the connection as it likes.
        _ => {}
    }
    let mut running = Running::parse(&answer).context(
        "the daemon cannot hand over: it is not adit, or a version without `adit restart`; take the tunnel down and up",
    )?;
    ensure!(
        listener > 0,
        "the daemon is in a container that cannot be seen into from here: restart it there"
    );
    running.pid = listener.unsigned_abs();
    Ok(running)
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// Starts this program with these arguments again, as a daemon where the running one is.
fn start(running: &Running) -> Result<(PipeReader, Child)> {
    let (mut command, ready) = again_as_daemon()?;
    let given = |name: &str| env::var_os(name).is_some();
    command.envs(
        running
            .options
            .iter()
            .filter(|(name, _)| !given(name))
            .cloned(),
    );
    // The manager of whoever runs this is not the daemon's.
    for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        command.env_remove(variable);
    }
    let child = match elsewhere(running.pid) {
        Some(namespace) => namespace
            .run_in(|| command.spawn())
            .context("cannot enter the daemon's network namespace")?,
        None => command.spawn(),
    };
    let child = child.context("cannot start the daemon")?;
    join_group(running.pid, child.id());
    Ok((ready, child))
}

/// The network namespace of a process, if it is another one than ours. Where its `/proc` is not to be seen it is taken to be
/// ours.
fn elsewhere(pid: u32) -> Option<NetworkNamespace> {
    let theirs = fs::File::open(format!("/proc/{pid}/ns/net")).ok()?;
    let theirs = NetworkNamespace::from(OwnedFd::from(theirs));
    let ours = NetworkNamespace::current().ok()?;
    (theirs.id().ok()? != ours.id().ok()?).then_some(theirs)
}

/// Puts process `pid` in the control group of `model`, or it would end with whoever is logged in here, and its service
/// would be empty. Where that is not possible the tunnel works all the same.
fn join_group(model: u32, pid: u32) {
    let group = |process: &str| {
        let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
        let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        Some(path.to_owned())
    };
    let (theirs, ours) = (group(&model.to_string()), group("self"));
    if let Some(path) = theirs.filter(|theirs| Some(theirs) != ours.as_ref()) {
        let file = Path::new("/sys/fs/cgroup").join(path).join("cgroup.procs");
        let _ = fs::write(file, pid.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_tells_its_options() {
        let text = "pid=7\nforeground=true\nmanaged=false\noption=ADIT_UNDERLAY=a,b\n\
                    option=ADIT_METRICS=unix:/x=y\ncolour=blue\nerrno=0\n\n";
        let running = Running::parse(text).unwrap();
        assert!(running.pid == 7 && running.foreground && !running.managed);
        let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            running.options,
            [
                option("ADIT_UNDERLAY", "a,b"),
                option("ADIT_METRICS", "unix:/x=y")
            ]
        );
    }

    #[test]
    fn others_and_older_ones_are_told_by_their_answer() {
        for text in ["", "errno=-71\n\n", "errno=1\n\n", "errno=0\n\n", "pid=7\n"] {
            assert_eq!(Running::parse(text), None, "{text:?}");
        }
    }
}
