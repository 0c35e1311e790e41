//! `--metrics`: what the daemon counts, for Prometheus and others that read OpenMetrics
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
//!
//! - [`snapshot`]: the numbers at one moment, as the control thread hands them out.
//! - `text`: their names, and the text that is read.
//! - [`server`]: HTTP on a TCP or Unix socket, with bounds on all that a client may take.
//! - `process`: what the system says of this process.
//!
//! Flows are not among them: there is no bound on how many there are. Peers are, up to a number of them.

mod process;
pub mod server;
pub mod snapshot;
mod text;

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::str::FromStr;

use anyhow::{Context as _, Result};
use clap::Args;

use process::Process;

use crate::unix_socket::{SocketFile, listen};

/// What the command line says about metrics.
#[derive(Args, Clone, Debug, Default)]
#[group(skip)]
pub struct Options {
    /// Answer Prometheus at this address, in OpenMetrics
    #[arg(long, env = "ADIT_METRICS", value_name = "ADDR:PORT|unix:PATH")]
    pub metrics: Option<Address>,
    /// Peers with metrics of their own; of the others, only how many there are is told
    #[arg(
        long,
        env = "ADIT_METRICS_PEERS",
        value_name = "N",
        default_value_t = 1000
    )]
    pub metrics_peers: usize,
}

/// Where to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP socket.
    Tcp(SocketAddr),
    /// A Unix socket that only the daemon's user may connect to.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err("expected an absolute path behind unix:".to_owned())
            };
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            "expected an IP address and a port, as in 127.0.0.1:9586 or [::1]:9586, or unix:PATH"
                .to_owned()
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

/// A socket that listens, and whatever else answers need to have open; a Unix socket's file is removed on drop.
#[derive(Debug)]
pub struct Listener {
    // Removed while the socket still listens, as the configuration socket's.
    file: Option<SocketFile>,
    socket: Socket,
    process: Process,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens at `address`. The file of a Unix socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// In one line: the address is taken, not ours, or the path cannot be had.
    pub fn bind(address: &Address) -> Result<Self> {
        let process = Process::new().context("--metrics: cannot open /proc/self/status")?;
        match address {
            Address::Tcp(address) => {
                let socket =
                    TcpListener::bind(address).with_context(|| format!("--metrics {address}"))?;
                socket.set_nonblocking(true)?;
                Ok(Self {
                    socket: Socket::Tcp(socket),
                    file: None,
                    process,
                })
            }
            Address::Unix(path) => {
                let (socket, file) =
                    listen(path).with_context(|| format!("--metrics unix:{}", path.display()))?;
                socket.set_nonblocking(true)?;
                Ok(Self {
                    socket: Socket::Unix(socket),
                    file: Some(file),
                    process,
                })
            }
        }
    }

    /// Takes over the socket that another process listens on at `address`. The file of a Unix socket stays the other's until
    /// it is [claimed](Estate::claim).
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn inherited(address: &Address, socket: OwnedFd) -> Result<Self> {
        let process = Process::new().context("--metrics: cannot open /proc/self/status")?;
        let (socket, file) = match address {
            Address::Tcp(_) => (Socket::Tcp(socket.into()), None),
            Address::Unix(path) => (Socket::Unix(socket.into()), Some(SocketFile::at(path))),
        };
        let inherited = Self {
            socket,
            file,
            process,
        };
        inherited.estate()?.leave();
        Ok(inherited)
    }

    /// What another process needs to take this listener over.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn estate(&self) -> io::Result<Estate> {
        let socket = match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        };
        Ok(Estate {
            socket: socket.try_clone_to_owned()?,
            file_left: self.file.as_ref().map(SocketFile::left),
        })
    }

    /// The file of a Unix socket.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(SocketFile::path)
    }
}

/// A listener, to be handed to another process while it is in use.
#[derive(Debug)]
pub struct Estate {
    /// The listening socket.
    pub socket: OwnedFd,
    file_left: Option<Rc<Cell<bool>>>,
}

impl Estate {
    /// Leaves the file of a Unix socket to the process that listens from now on.
    pub fn leave(&self) {
        if let Some(left) = &self.file_left {
            left.set(true);
        }
    }

    /// Takes the file of a Unix socket over from a process that has left it.
    pub fn claim(&self) {
        if let Some(left) = &self.file_left {
            left.set(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_two_kinds() {
        let tcp = |text: &str| Ok(Address::Tcp(text.parse().unwrap()));
        for text in ["127.0.0.1:9586", "[::1]:1"] {
            assert_eq!(text.parse(), tcp(text));
        }
        let path = Address::Unix(PathBuf::from("/run/adit.sock"));
        assert_eq!("unix:/run/adit.sock".parse(), Ok(path));
        for wrong in [
            "",
            "9586",
            ":9586",
            "localhost:9586",
            "unix:",
            "unix:x",
            "127.0.0.1",
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_socket_file_that_is_in_use_is_named() {
        let name = format!("adit-metrics-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let address = Address::Unix(path.clone());
        let first = Listener::bind(&address).unwrap();
        let refused = format!("{:#}", Listener::bind(&address).unwrap_err());
        let path_shown = path.display();
        let expected =
            format!("--metrics unix:{path_shown}: another process already listens on {path_shown}");
        assert_eq!(refused, expected);
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn an_address_that_is_taken_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(taken.local_addr().unwrap());
        let refused = format!("{:#}", Listener::bind(&address).unwrap_err());
        assert!(refused.starts_with("--metrics 127.0.0.1:"), "{refused}");
        assert_eq!(refused.lines().count(), 1);
    }
}
