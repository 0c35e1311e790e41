//! Landlock: which files a process may still open, and that it opens no TCP connections and signals
//! nobody.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use thiserror::Error;

/// What may be done with a file, or with everything below a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileAccess {
    /// Files are read.
    Read,
    /// Directories are listed, and files in them are removed.
    ListAndRemove,
    /// Files are removed.
    Remove,
    /// Empty directories are removed.
    RemoveDirectories,
}

impl FileAccess {
    fn rights(self) -> BitFlags<AccessFs> {
        match self {
            Self::Read => AccessFs::ReadFile.into(),
            Self::ListAndRemove => AccessFs::ReadDir | AccessFs::RemoveFile,
            Self::Remove => AccessFs::RemoveFile.into(),
            Self::RemoveDirectories => AccessFs::RemoveDir.into(),
        }
    }
}

/// How much of it the kernel can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// Everything.
    Full,
    /// What its version knows: files since Linux 5.13, TCP since 6.7, signals since 6.12.
    Partial,
    /// Nothing: the kernel has no Landlock, or it is switched off.
    Missing,
}

/// Why files could not be limited.
#[derive(Debug, Error)]
#[error("Landlock")]
pub struct FileError(#[from] RulesetError);

/// Limits that are in force for as long as the thread lives.
///
/// Keep it: the kernel knows a file by its inode, and those of `/proc` and `/sys` are made anew when
/// nobody has held them for a while. A rule about such a file would then be about nothing.
#[derive(Debug)]
pub struct FileLimits {
    /// How much of it the kernel can do.
    pub landlock: Landlock,
    _held: Vec<PathFd>,
}

/// Takes from the calling thread, and those it makes later, the right to open any file but those
/// `allowed`, to open TCP connections and to signal other processes. Paths that do not exist are
/// left out. Descriptors that are open already can be used as before, and asking about files
/// (`stat`) is not limited.
///
/// # Errors
/// When the kernel has Landlock and refuses; one without it is no error.
pub fn limit_files(allowed: &[(&Path, FileAccess)]) -> Result<FileLimits, FileError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?;
    let mut held = Vec::new();
    for &(path, access) in allowed {
        // What cannot be opened now is refused later, too, with or without limits.
        if let Ok(file) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(&file, access.rights()))?;
            held.push(file);
        }
    }
    let landlock = match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Landlock::Full,
        RulesetStatus::PartiallyEnforced => Landlock::Partial,
        RulesetStatus::NotEnforced => Landlock::Missing,
    };
    Ok(FileLimits {
        landlock,
        _held: held,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::ErrorKind;

    #[test]
    fn files_that_are_not_allowed_cannot_be_opened() {
        let directory = std::env::temp_dir().join(format!("adit-files-{}", std::process::id()));
        fs::create_dir_all(directory.join("own/empty")).unwrap();
        for name in ["own/file", "other"] {
            fs::write(directory.join(name), "text").unwrap();
        }
        // The limits are a thread's own; the others of the test run keep their files.
        let (own, other) = (directory.join("own"), directory.join("other"));
        let limited = std::thread::spawn(move || {
            let limits = limit_files(&[
                (&own, FileAccess::ListAndRemove),
                (&own, FileAccess::RemoveDirectories),
                (Path::new("/no/such/path"), FileAccess::Read),
                (Path::new("/proc/sys/net"), FileAccess::Read),
            ])
            .unwrap();
            if limits.landlock == Landlock::Missing {
                return false;
            }
            let refused = |result: std::io::Result<()>| {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied);
            };
            refused(fs::read(&other).map(drop));
            refused(fs::remove_file(&other));
            refused(fs::read(own.join("file")).map(drop));
            refused(fs::write(own.join("new"), "text"));
            refused(fs::read_dir("/").map(drop));
            refused(fs::read("/proc/self/status").map(drop));
            fs::read("/proc/sys/net/core/somaxconn").unwrap();
            assert_eq!(fs::read_dir(&own).unwrap().count(), 2);
            fs::remove_file(own.join("file")).unwrap();
            fs::remove_dir(own.join("empty")).unwrap();
            true
        })
        .join()
        .unwrap();
        assert_eq!(directory.join("own/file").exists(), !limited);
        fs::remove_dir_all(directory).unwrap();
    }
}
