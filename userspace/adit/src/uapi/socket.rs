//! The socket file `/var/run/wireguard/IFACE.sock`, where `wg(8)` looks for it.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::socket::Backlog;

use crate::unix_socket::{SocketError, SocketFile, listen};

/// Where `wg(8)` looks for userspace implementations.
pub const DIRECTORY: &str = "/var/run/wireguard";

/// A listening configuration socket; its file is removed on drop, if it is still ours.
#[derive(Debug)]
pub struct ConfigurationSocket {
    // Removed before nobody listens any more: whoever finds it then takes it for a stale one, and puts another in its place
    // while we look at it.
    file: SocketFile,
    listener: UnixListener,
}

impl ConfigurationSocket {
    /// Listens on `DIRECTORY/interface.sock`, replacing a file that no daemon answers on.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn create(interface: &str) -> Result<Self, SocketError> {
        let directory = Path::new(DIRECTORY);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(SocketError::file("create the directory", directory))?;
        let (listener, file) = listen(&path_of(interface))?;
        Ok(Self { listener, file })
    }

    /// Takes over a listening socket that whoever started us has opened (`WG_UAPI_FD`).
    ///
    /// A file at the usual place is taken to be this socket's.
    pub fn inherited(fd: OwnedFd, interface: &str) -> Self {
        Self {
            listener: UnixListener::from(fd),
            file: SocketFile::at(&path_of(interface)),
        }
    }

    /// The path of the socket file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// A second handle on the listening socket, non-blocking.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.set_nonblocking(true)?;
        self.listener.try_clone()
    }

    /// Leaves the file to another process, which serves the socket, or does so again.
    pub fn leave(&self) {
        self.file.left().set(true);
    }

    /// Takes socket and file over from a process that has left them.
    pub fn claim(&self) {
        self.file.left().set(false);
        // Has the kernel name this process to those who ask who listens (unix_listen(), net/unix/af_unix.c). Nothing but
        // messages depends on it.
        let _ = nix::sys::socket::listen(&self.listener, Backlog::MAXALLOWABLE);
    }

    /// Whether the file is still there and still this socket's.
    pub fn exists(&self) -> bool {
        self.file.exists()
    }
}

impl AsFd for ConfigurationSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

fn path_of(interface: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{interface}.sock"))
}
