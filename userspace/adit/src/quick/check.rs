//! `adit check`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::file::File;
use super::say;

/// Reads configuration files and shows what is wrong with them; says of each that is right that it is.
///
/// # Errors
/// In one line for each, the files that cannot be read and those that have errors.
pub fn run(files: &[PathBuf]) -> Result<()> {
    let mut failures = Vec::new();
    for argument in files {
        if let Err(error) = look_at(argument) {
            failures.push(error);
        }
    }
    let Some(last) = failures.pop() else {
        return Ok(());
    };
    for failure in failures {
        say(&format!("adit: {failure:#}"));
    }
    Err(last)
}

fn look_at(argument: &std::path::Path) -> Result<()> {
    let file = File::read(argument)?;
    let config = file.config()?;
    file.interface(argument)?;
    file.warn_of_readers();
    let peers = match config.peers.len() {
        1 => "1 peer".to_owned(),
        peers => format!("{peers} peers"),
    };
    writeln!(std::io::stdout(), "{}: ok, {peers}", file.shown).context("cannot write")
}
