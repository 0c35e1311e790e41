//! A Debian package and a tarball of what a release has: program, manual pages, completions, units, documents.
//!
//! The package is made by `dpkg-deb`, which every Debian has, out of the tree that the tarball needs anyway. `cargo-deb`
//! would lay out the same from a second list, and would have to be built first on every machine that tests.

mod debian;
mod documents;
mod licences;
mod tree;

use std::path::{Path, PathBuf};
use std::process::Command;

use adit_tests::command;
use adit_tests::daemon::adit_path;
use anyhow::{Context as _, Result, ensure};
use clap::Args;

use self::tree::{Contents, Layout, Tree};
use crate::stage::{run, say};
use crate::{cargo, workspace};

/// What `cargo xtask dist` can be told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where to put package and tarball; target/dist if not given
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// A program that is built already
    #[arg(long, value_name = "ADIT")]
    program: Option<PathBuf>,
}

/// What all files of a release have in common.
#[derive(Debug)]
struct Release {
    version: &'static str,
    /// Seconds since 1970: the time that all files bear, so that the same source gives the same bytes.
    time: String,
    /// The same as YYYY-MM-DD.
    date: String,
}

/// `cargo xtask dist`.
///
/// # Errors
/// The program cannot be built, or a tool is missing or fails.
pub(crate) fn run_task(options: &Options) -> Result<()> {
    let program = match &options.program {
        Some(program) => program.clone(),
        None => adit_path()?,
    };
    let output = match &options.output {
        Some(output) => output.clone(),
        None => target_directory()?.join("dist"),
    };
    std::fs::create_dir_all(&output).with_context(|| output.display().to_string())?;
    let output = output.canonicalize()?;
    let release = Release::new()?;
    let scratch = tempfile::tempdir()?;

    let rendered = scratch.path().join("rendered");
    render(&rendered, &release)?;
    let stripped = scratch.path().join("adit");
    run(Command::new("strip").arg("-o").args([&stripped, &program]))?;
    let contents = Contents {
        program: &stripped,
        rendered: &rendered,
        licences: licences::collect()?,
    };

    let architecture = std::env::consts::ARCH;
    let name = format!("adit-{}-{architecture}", release.version);
    let tarball = output.join(format!("{name}.tar.gz"));
    let tree = Tree::new(&scratch.path().join(&name), Layout::Prefix, &contents)?;
    pack(&tree, &tarball, &release)?;

    let tree = Tree::new(&scratch.path().join("debian"), Layout::Debian, &contents)?;
    let package = debian::build(&tree, &program, &output, &release)?;
    for file in [tarball, package] {
        say(&file.display().to_string());
    }
    Ok(())
}

impl Release {
    fn new() -> Result<Self> {
        let time = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(time) => time,
            Err(_) => words(Command::new("git").args(["log", "-1", "--format=%ct"])).context(
                "without a Git repository, SOURCE_DATE_EPOCH must say when this is from",
            )?,
        };
        let date = words(Command::new("date").args(["-u", "+%F", "-d", &format!("@{time}")]))?;
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            time,
            date,
        })
    }
}

/// What a program prints, without the line's end.
fn words(program: &mut Command) -> Result<String> {
    Ok(command::run(program.current_dir(workspace()?))?
        .trim()
        .to_owned())
}

fn target_directory() -> Result<PathBuf> {
    let metadata = metadata()?;
    let directory = metadata["target_directory"].as_str();
    Ok(directory.context("cargo names no target directory")?.into())
}

/// What cargo knows of the workspace and its dependencies.
fn metadata() -> Result<serde_json::Value> {
    let output = cargo(&["metadata", "--format-version", "1", "--locked"])?.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata: {said}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn render(directory: &Path, release: &Release) -> Result<()> {
    let mut command = cargo(&["run", "--quiet", "--package", "adit-manual", "--"])?;
    run(command.args(["--date", &release.date]).arg(directory))
}

fn pack(tree: &Tree, tarball: &Path, release: &Release) -> Result<()> {
    let root = tree.root();
    let parent = root.parent().context("a tree has a parent")?;
    run(Command::new("tar")
        .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .args(["--use-compress-program", "gzip -9n"])
        .arg(format!("--mtime=@{}", release.time))
        .arg("--directory")
        .arg(parent)
        .args(["--create", "--file"])
        .arg(tarball)
        .args(root.file_name()))
}
