//! Listening Unix sockets whose files come and go with them.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use adit_kernel::process::UmaskGuard;
use thiserror::Error;

/// Why a socket could not be made.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another process answers on the socket.
    #[error("another process already listens on {}", .0.display())]
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

impl SocketError {
    /// Takes what the system answered when `action` was tried on `path`.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// Listens on `path`, with a file that only this user may connect to. A socket's file that nobody listens on any more is
/// replaced.
///
/// # Errors
/// See [`SocketError`].
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    remove_stale(path)?;
    let listener = {
        // The file must never be open to others, not even between bind and chmod.
        let _umask = UmaskGuard::set(0o177);
        UnixListener::bind(path).map_err(SocketError::file("listen on", path))?
    };
    Ok((listener, SocketFile::at(path)))
}

/// The file of a socket of ours; it is removed on drop, if it is still ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Option<FileIdentity>,
    left: Rc<Cell<bool>>,
}

/// Which file a path leads to. The birth time is there because inode numbers are reused; the
/// change time would not do, since an administrator may change the file's group.
type FileIdentity = (u64, Option<SystemTime>);

impl SocketFile {
    /// Whatever is at `path` at this moment, taken to be ours.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            identity: identity(path),
            left: Rc::default(),
        }
    }

    /// Where it is, or was.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When set to true, wherever this is by then, the file stays: another process has the socket.
    pub fn left(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.left)
    }

    /// Whether it is still there and still the same.
    pub fn exists(&self) -> bool {
        self.identity.is_some() && identity(&self.path) == self.identity
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.left.get() && self.exists() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<FileIdentity> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.ino(), metadata.created().ok()))
}

/// Removes a socket's file that nobody listens on any more.
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
        // A full backlog (EAGAIN) has a living process behind it too.
        _ => return Err(SocketError::InUse(path.to_owned())),
    }
    fs::remove_file(path).map_err(SocketError::file("remove the stale socket", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A directory of this test's own, and a path in it.
    fn place(name: &str) -> (PathBuf, PathBuf) {
        let name = format!("adit-unix-socket-{name}-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).unwrap();
        (directory.clone(), directory.join("wg0.sock"))
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let (directory, path) = place("stale");
        let first = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::InUse(_))));
        // As after kill -9: the file stays, nobody listens.
        drop(first);
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = listen(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(second);
        assert!(!path.exists());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let (directory, path) = place("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(SocketError::NotASocket(_))));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_that_is_somebody_elses_by_now_stays() {
        let (directory, path) = place("other");
        let (_listener, ours) = listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let theirs = UnixListener::bind(&path).unwrap();
        assert!(!ours.exists());
        drop(ours);
        assert!(path.exists());
        drop(theirs);
        fs::remove_dir_all(directory).unwrap();
    }
}
