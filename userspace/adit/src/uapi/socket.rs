//! The socket file `/var/run/wireguard/IFACE.sock`, where `wg(8)` looks for it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use thiserror::Error;

/// Where `wg(8)` looks for userspace implementations.
pub const DIRECTORY: &str = "/var/run/wireguard";

/// Why the configuration socket could not be made.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another daemon answers on the socket.
    #[error("another daemon already serves {}", .0.display())]
    InUse(PathBuf),
    /// The path exists and is no socket; it is not ours to remove.
    #[error("{} exists and is not a socket; remove it", .0.display())]
    NotASocket(PathBuf),
    /// A file operation failed.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// A listening configuration socket; its file is removed on drop, if it is still ours.
#[derive(Debug)]
pub struct ConfigurationSocket {
    listener: UnixListener,
    path: PathBuf,
    identity: Option<FileIdentity>,
}

/// Which file a path leads to. The birth time is there because inode numbers are reused; the
/// change time would not do, since an administrator may change the file's group.
type FileIdentity = (u64, Option<SystemTime>);

fn identity(path: &Path) -> Option<FileIdentity> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.ino(), metadata.created().ok()))
}

impl ConfigurationSocket {
    /// Listens on `DIRECTORY/interface.sock`, replacing a file that no daemon answers on.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn create(interface: &str) -> Result<Self, SocketError> {
        Self::create_in(Path::new(DIRECTORY), interface)
    }

    fn create_in(directory: &Path, interface: &str) -> Result<Self, SocketError> {
        let path = directory.join(format!("{interface}.sock"));
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::File {
                action,
                path,
                source,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(failed("create the directory", directory))?;
        remove_stale(&path)?;
        let listener = {
            // The file must never be open to others, not even between bind and chmod.
            let _umask = adit_kernel::process::UmaskGuard::set(0o177);
            UnixListener::bind(&path).map_err(failed("listen on", &path))?
        };
        let identity = identity(&path);
        Ok(Self {
            listener,
            path,
            identity,
        })
    }

    /// Takes over a listening socket that whoever started us has opened (`WG_UAPI_FD`).
    ///
    /// A file at the usual place is taken to be this socket's.
    pub fn inherited(fd: OwnedFd, interface: &str) -> Self {
        let path = Path::new(DIRECTORY).join(format!("{interface}.sock"));
        let identity = identity(&path);
        Self {
            listener: UnixListener::from(fd),
            path,
            identity,
        }
    }

    /// The path of the socket file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A second handle on the listening socket, non-blocking.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.set_nonblocking(true)?;
        self.listener.try_clone()
    }

    /// Whether the file is still there and still this socket's.
    pub fn exists(&self) -> bool {
        self.identity.is_some() && identity(&self.path) == self.identity
    }
}

impl Drop for ConfigurationSocket {
    fn drop(&mut self) {
        if self.exists() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket file that nobody listens on any more.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // A full backlog (EAGAIN) has a living daemon behind it too.
        _ => return Err(SocketError::InUse(path.to_owned())),
    }
    fs::remove_file(path).map_err(|source| SocketError::File {
        action: "remove the stale socket",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("adit-uapi-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = directory("stale");
        let first = ConfigurationSocket::create_in(&directory, "wg0").unwrap();
        assert!(matches!(
            ConfigurationSocket::create_in(&directory, "wg0"),
            Err(SocketError::InUse(_))
        ));
        // As after kill -9: the file stays, nobody listens.
        let path = first.path().to_owned();
        drop(first);
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = ConfigurationSocket::create_in(&directory, "wg0").unwrap();
        let mode = fs::metadata(second.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(second);
        assert!(!path.exists());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let directory = directory("file");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("wg0.sock"), "precious").unwrap();
        assert!(matches!(
            ConfigurationSocket::create_in(&directory, "wg0"),
            Err(SocketError::NotASocket(_))
        ));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_that_is_somebody_elses_by_now_stays() {
        let directory = directory("other");
        let ours = ConfigurationSocket::create_in(&directory, "wg0").unwrap();
        let path = ours.path().to_owned();
        fs::remove_file(&path).unwrap();
        let theirs = UnixListener::bind(&path).unwrap();
        assert!(!ours.exists());
        drop(ours);
        assert!(path.exists());
        drop(theirs);
        fs::remove_dir_all(directory).unwrap();
    }
}
