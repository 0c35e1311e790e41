//! Noticing that a file was removed or replaced, with `inotify(7)`.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::sys;

/// Size of `struct inotify_event` without its name.
const EVENT_HEADER: usize = size_of::<libc::inotify_event>();

/// Events in the directory that concern a name in it.
const NAME_EVENTS: u32 =
    libc::IN_DELETE | libc::IN_MOVED_FROM | libc::IN_MOVED_TO | libc::IN_CREATE;
/// Events that concern the directory itself.
const DIRECTORY_EVENTS: u32 = libc::IN_DELETE_SELF | libc::IN_MOVE_SELF;

/// Watches one file. Readable when something happened in its directory; then ask
/// [`removed`](Self::removed).
///
/// The directory is watched and not the file, since a watch on the file misses nothing only while
/// the file has a single name.
#[derive(Debug)]
pub struct FileWatch {
    queue: OwnedFd,
    path: PathBuf,
    identity: (u64, u64),
    removed: bool,
}

impl FileWatch {
    /// Starts to watch the file at `path`, which must exist; a symbolic link is not followed.
    ///
    /// # Errors
    /// `NotFound` when there is no such file; `ENOSPC` when the user is out of watches.
    pub fn new(path: &Path) -> io::Result<Self> {
        let directory = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Err(sys::invalid("not a file path")),
        };
        let queue = sys::inotify()?;
        let directory = CString::new(directory.as_os_str().as_bytes())
            .map_err(|_| sys::invalid("NUL in a path"))?;
        let mask = NAME_EVENTS | DIRECTORY_EVENTS | libc::IN_ONLYDIR;
        sys::inotify_watch(queue.as_fd(), &directory, mask)?;
        // After the watch is set: whatever happens to the file from here on leaves an event.
        let identity = identity(path)?;
        Ok(Self {
            queue,
            path: path.to_owned(),
            identity,
            removed: false,
        })
    }

    /// Whether the file is gone or another one has taken its name. Once true it stays true. Empties
    /// the event queue, so the descriptor is readable again only after the next event.
    ///
    /// # Errors
    /// When the event queue cannot be read.
    pub fn removed(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        loop {
            match sys::read(self.queue.as_fd(), &mut buffer) {
                Ok(length) => self.take_events(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(self.removed),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn take_events(&mut self, mut events: &[u8]) {
        while let Some((header, rest)) = events.split_at_checked(EVENT_HEADER) {
            let word = |at: usize| {
                u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
            };
            // Layout: wd, mask, cookie, length of the name that follows.
            let (mask, length) = (word(4), word(12) as usize);
            let Some((name, rest)) = rest.split_at_checked(length) else {
                return;
            };
            events = rest;
            let end = name.iter().position(|&byte| byte == 0).unwrap_or(length);
            let ours = self.path.file_name() == Some(OsStr::from_bytes(&name[..end]));
            // Our name: an inode number alone would not do, the next file may get the same one.
            // Anything else (the directory, an overflow, an unmount) is settled by looking.
            if mask & NAME_EVENTS != 0 {
                self.removed |= ours;
            } else {
                self.removed |= identity(&self.path).ok() != Some(self.identity);
            }
        }
    }
}

impl AsFd for FileWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poll::{Interest, PollFd, poll};
    use std::time::Duration;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("adit-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn readable(watch: &FileWatch) -> bool {
        let mut fds = [PollFd::new(watch.as_fd(), Interest::Read)];
        poll(&mut fds, Some(Duration::ZERO)).unwrap() == 1
    }

    #[test]
    fn removal_is_noticed_and_neighbours_are_not() {
        let directory = Directory::new("watch-removal");
        let path = directory.0.join("wg0.sock");
        fs::write(&path, "").unwrap();
        let mut watch = FileWatch::new(&path).unwrap();
        assert!(!readable(&watch) && !watch.removed().unwrap());

        fs::write(directory.0.join("wg1.sock"), "").unwrap();
        assert!(readable(&watch));
        assert!(!watch.removed().unwrap());
        assert!(!readable(&watch));

        fs::remove_file(&path).unwrap();
        assert!(readable(&watch));
        assert!(watch.removed().unwrap());
    }

    #[test]
    fn replacement_counts_as_removal_even_with_the_same_inode_number() {
        let directory = Directory::new("watch-replaced");
        let path = directory.0.join("wg0.sock");
        fs::write(&path, "").unwrap();
        let mut watch = FileWatch::new(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(watch.removed().unwrap());
        assert!(watch.removed().unwrap());
    }

    #[test]
    fn renaming_over_the_file_and_removing_the_directory_are_noticed() {
        let directory = Directory::new("watch-rename");
        let (path, other) = (directory.0.join("a"), directory.0.join("b"));
        fs::write(&path, "").unwrap();
        fs::write(&other, "").unwrap();
        let mut watch = FileWatch::new(&path).unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(watch.removed().unwrap());

        let mut watch = FileWatch::new(&path).unwrap();
        fs::rename(&directory.0, directory.0.with_extension("moved")).unwrap();
        assert!(watch.removed().unwrap());
        fs::remove_dir_all(directory.0.with_extension("moved")).unwrap();
    }

    #[test]
    fn a_file_that_does_not_exist_is_refused() {
        let error = FileWatch::new(Path::new("/nonexistent/wg0.sock")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
