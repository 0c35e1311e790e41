//! System calls of a daemon that fail: which, how and how often is changed while it runs.
//!
//! `tests/faults` is a library that the daemon is started with (`LD_PRELOAD`), so this works with any build of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context as _, Result};

use crate::daemon::{Options, built};

#[path = "../faults/src/page.rs"]
pub mod page;

pub use page::{Call, SHORT};

/// Path of the library, built once.
///
/// # Errors
/// It does not build.
fn library() -> Result<PathBuf> {
    static PATH: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || built(&["--package", "adit-faults"]).map_err(|error| format!("{error:#}"));
    PATH.get_or_init(build).clone().map_err(anyhow::Error::msg)
}

/// What daemons that were started with [`Faults::options`] are told.
#[derive(Debug)]
pub struct Faults {
    file: tempfile::NamedTempFile,
    library: PathBuf,
}

impl Faults {
    /// No faults yet; the dice fall as `seed` says.
    ///
    /// # Errors
    /// The library does not build, or there is no room for a file.
    pub fn new(seed: u64) -> Result<Self> {
        let faults = Self {
            file: tempfile::NamedTempFile::new()?,
            library: library()?,
        };
        let length = page::NUMBERS * size_of::<u64>();
        faults.file().set_len(u64::try_from(length)?)?;
        faults.write(page::SEED, seed)?;
        Ok(faults)
    }

    /// How to start a daemon that is to have these faults.
    #[must_use]
    pub fn options(&self, arguments: &[&str]) -> Options {
        let path = |path: &std::path::Path| path.display().to_string();
        Options {
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            environment: BTreeMap::from([
                ("LD_PRELOAD".to_owned(), path(&self.library)),
                (page::VARIABLE.to_owned(), path(self.file.path())),
            ]),
            ..Options::default()
        }
    }

    /// Lets so many in a thousand calls fail with `errno`, or be [`SHORT`].
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&self, call: Call, errno: u64, per_thousand: u64) -> Result<()> {
        self.write(call.position(page::FAULT), errno)?;
        self.write(call.position(page::RATE), per_thousand)
    }

    /// Lets the daemons' clocks run so many times faster from now on. To be called before they start: what they know by
    /// now would seem old.
    ///
    /// # Errors
    /// As [`Faults::set`].
    pub fn set_clock(&self, times: u64) -> Result<()> {
        self.write(page::CLOCK, times)
    }

    /// Calls made so far, and those that were made to fail.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn count(&self, call: Call) -> Result<Count> {
        Ok(Count {
            attempts: self.read(call.position(page::ATTEMPTS))?,
            injected: self.read(call.position(page::INJECTED))?,
        })
    }

    fn file(&self) -> &File {
        self.file.as_file()
    }

    fn write(&self, position: usize, number: u64) -> Result<()> {
        self.file()
            .write_all_at(&number.to_ne_bytes(), offset(position))
            .context("cannot write the file of faults")
    }

    fn read(&self, position: usize) -> Result<u64> {
        let mut bytes = [0; 8];
        self.file()
            .read_exact_at(&mut bytes, offset(position))
            .context("cannot read the file of faults")?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

fn offset(position: usize) -> u64 {
    (position * size_of::<u64>()) as u64
}

/// Calls of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Made.
    pub attempts: u64,
    /// Of these, made to fail.
    pub injected: u64,
}
