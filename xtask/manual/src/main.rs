//! Renders manual pages and completions from the command line that `adit` really has. `cargo xtask dist` runs this.
//!
//! - [`page`]: a page for `adit` and for each subcommand, from clap's description and what is in `pages/`.
//! - [`completions`]: for bash, zsh and fish.
//!
//! It is a program apart from xtask, which would otherwise have to build the whole daemon before it can do anything.
#![forbid(unsafe_code)]

mod completions;
mod page;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;

/// Renders manual pages into `DIRECTORY/man`, completions into `DIRECTORY/completions`.
#[derive(Debug, Parser)]
struct Options {
    /// The date that the pages bear, YYYY-MM-DD
    #[arg(long, default_value = "")]
    date: String,
    /// Where to write
    directory: PathBuf,
}

fn main() -> Result<()> {
    let options = Options::parse();
    write("man", page::all(&options.date)?, &options)?;
    write("completions", completions::all(), &options)
}

/// Writes files, given by name and content, into a folder.
fn write(folder: &str, files: Vec<(String, Vec<u8>)>, options: &Options) -> Result<()> {
    let folder = options.directory.join(folder);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for (name, content) in files {
        let path = folder.join(name);
        fs::write(&path, content).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
