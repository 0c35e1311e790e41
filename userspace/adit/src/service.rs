//! What a service manager is told: sd_notify(3), the protocol of systemd's `Type=notify`.
//!
//! Whoever the manager started says that the service is ready, and which process stays for it: the daemon itself in the
//! foreground, `adit up` and `adit IFACE` when they leave a daemon behind. The daemon says what it does, that it is alive
//! if the manager wants to know (watchdog), and that it stops.
//!
//! One socket is connected at the start and kept: a daemon that has confined itself could not connect another.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{self, Command};
use std::time::Duration;

/// Where the manager listens; a path, or with `@` before it a name in the abstract namespace.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// Microseconds after which the manager takes a silent service for dead.
const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
/// The process that has to say that it is alive; any if not set.
const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// The process that the manager started (systemd.exec(5)).
const EXEC_PID: &str = "SYSTEMD_EXEC_PID";

/// A manager that takes nothing for so long is left alone.
const PATIENCE: Duration = Duration::from_secs(1);

/// The manager that started this process, or one of those before it.
#[derive(Debug)]
pub struct ServiceManager {
    socket: UnixDatagram,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The manager that the environment names.
    ///
    /// One that cannot be reached is told of in a warning: whether the tunnel works does not depend on it.
    pub fn from_environment() -> Option<Self> {
        let name = env::var_os(NOTIFY_SOCKET).filter(|name| !name.is_empty())?;
        match connect(&name) {
            Ok(socket) => Some(Self {
                socket,
                watchdog: watchdog(|variable| env::var(variable).ok()),
            }),
            Err(error) => {
                tracing::warn!(socket = ?name, %error, "cannot reach the service manager");
                None
            }
        }
    }

    /// The same, for a process that leaves another one behind. Only if the manager started this very process: what
    /// somebody's service does with `adit up` is not for us to report.
    pub fn of_main_process() -> Option<Self> {
        let started: Option<u32> = env::var(EXEC_PID).ok()?.parse().ok();
        (started == Some(process::id())).then(Self::from_environment)?
    }

    /// The manager of another process, on the socket that this one has used, and its watchdog's time.
    pub fn inherited(socket: UnixDatagram, watchdog: Option<Duration>) -> Self {
        Self { socket, watchdog }
    }

    /// The socket, for [`inherited`](Self::inherited).
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// How often it has to be told at least that the service is alive; twice as often is advised.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The service is ready, and this process is it.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// The service is ready, and from now on it is process `pid`.
    pub fn ready_as(&self, pid: u32, status: &str) {
        // One message: it is taken from the main process alone, and the next one may not be.
        let status = one_line(status);
        self.tell(&format!("READY=1\nMAINPID={pid}\nSTATUS={status}"));
    }

    /// From now on the service is process `pid`, which has taken this one's place.
    pub fn continued_as(&self, pid: u32) {
        self.tell(&format!("MAINPID={pid}"));
    }

    /// What the service does, for people.
    pub fn status(&self, status: &str) {
        self.tell(&format!("STATUS={}", one_line(status)));
    }

    /// The service is alive.
    pub fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// The service is about to end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, message: &str) {
        if let Err(error) = self.socket.send(message.as_bytes()) {
            tracing::debug!(%error, message, "cannot tell the service manager");
        }
    }
}

/// Lets `command` start the process that stays for the service: it says that the service is alive, in our place.
pub fn hand_over(command: &mut Command) {
    if env::var(WATCHDOG_PID).is_ok_and(|pid| pid == process::id().to_string()) {
        command.env_remove(WATCHDOG_PID);
    }
}

fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', abstract_name @ ..] => SocketAddr::from_abstract_name(abstract_name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// The time that the environment gives this process.
fn watchdog(variable: impl Fn(&str) -> Option<String>) -> Option<Duration> {
    let microseconds: u64 = variable(WATCHDOG_USEC)?.parse().ok()?;
    let ours = variable(WATCHDOG_PID).is_none_or(|pid| pid == process::id().to_string());
    (ours && microseconds > 0).then(|| Duration::from_micros(microseconds))
}

/// A line break would begin another assignment.
fn one_line(status: &str) -> String {
    status.replace(char::is_control, " ")
}

/// The directory of what the manager hands to this service under the name of credentials (systemd.exec(5)).
pub fn credentials_directory() -> Option<OsString> {
    env::var_os("CREDENTIALS_DIRECTORY")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str) -> (UnixDatagram, ServiceManager) {
        let abstract_name = format!("adit-service-{name}-{}", process::id());
        let listener =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&abstract_name).unwrap())
                .unwrap();
        let name = format!("@{abstract_name}");
        let manager = ServiceManager {
            socket: connect(OsStr::new(&name)).unwrap(),
            watchdog: None,
        };
        (listener, manager)
    }

    fn next(listener: &UnixDatagram) -> String {
        let mut message = [0; 256];
        let length = listener.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    }

    #[test]
    fn messages_are_those_of_sd_notify() {
        let (listener, manager) = pair("messages");
        manager.ready("wg0 is up");
        assert_eq!(next(&listener), "READY=1\nSTATUS=wg0 is up");
        manager.ready_as(42, "wg0");
        assert_eq!(next(&listener), "READY=1\nMAINPID=42\nSTATUS=wg0");
        manager.continued_as(43);
        assert_eq!(next(&listener), "MAINPID=43");
        manager.status("a\nMAINPID=1");
        assert_eq!(next(&listener), "STATUS=a MAINPID=1");
        manager.alive();
        assert_eq!(next(&listener), "WATCHDOG=1");
        manager.stopping();
        assert_eq!(next(&listener), "STOPPING=1");
    }

    #[test]
    fn a_manager_that_is_gone_or_deaf_holds_nobody_up() {
        let (listener, manager) = pair("deaf");
        // More than any queue of datagrams is long; each waits for its time at most.
        manager.socket.set_nonblocking(true).unwrap();
        for _ in 0..2000 {
            manager.alive();
        }
        drop(listener);
        manager.alive();
        assert!(connect(OsStr::new("/nonexistent/notify")).is_err());
    }

    #[test]
    fn the_watchdog_is_for_the_process_it_names() {
        let own = process::id().to_string();
        let of = |usec: Option<&str>, pid: Option<&str>| {
            watchdog(|variable| match variable {
                WATCHDOG_USEC => usec.map(str::to_owned),
                WATCHDOG_PID => pid.map(str::to_owned),
                _ => None,
            })
        };
        let seconds = Some(Duration::from_secs(30));
        assert_eq!(of(Some("30000000"), Some(&own)), seconds);
        assert_eq!(of(Some("30000000"), None), seconds);
        assert_eq!(of(Some("30000000"), Some("1")), None);
        assert_eq!(of(Some("0"), None), None);
        assert_eq!(of(Some("soon"), None), None);
        assert_eq!(of(None, Some(&own)), None);
    }
}
