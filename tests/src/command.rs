//! Running programs to their end, with a deadline and their output kept.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Deadline of [`run`] and [`output`]: long enough for a busy machine, short enough for a hung program to be seen.
pub const LIMIT: Duration = Duration::from_secs(60);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes every wait of the harness fail, so that the guards clean up. For signal handlers of programs that use it.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

pub(crate) fn fail_if_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// What a program left when it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// Standard error, invalid UTF-8 replaced.
    pub stderr: String,
}

/// Runs a program that must succeed and returns its standard output.
///
/// # Errors
/// The program cannot be started, ends with a failure (its output is in the error), or does not end within [`LIMIT`].
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "{}: {}\n{}{}",
            describe(command),
            output.status,
            output.stdout,
            output.stderr
        );
    }
    Ok(output.stdout)
}

/// Runs a program that must succeed, with `input` as its standard input, and returns its standard output.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let mut file = tempfile::tempfile()?;
    file.write_all(input.as_bytes())?;
    file.seek(SeekFrom::Start(0))?;
    run(command.stdin(file))
}

/// Runs a program, which may fail, and returns what it left.
///
/// # Errors
/// The program cannot be started or does not end within [`LIMIT`].
pub fn output(command: &mut Command) -> Result<Output> {
    Running::start(command)?.finish(LIMIT)
}

/// A program running in the background; killed when dropped.
///
/// Its output goes to unnamed files: with pipes, a daemon that inherits them would keep the reader waiting.
#[derive(Debug)]
pub struct Running {
    child: Child,
    description: String,
    stdout: File,
    stderr: File,
    ended: bool,
}

impl Running {
    /// Starts `command`. Standard input is what the caller set on it, else inherited, so callers that must not read the
    /// terminal set it to null.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let description = describe(command);
        let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let child = command
            .stdout(Stdio::from(stdout.try_clone()?))
            .stderr(Stdio::from(stderr.try_clone()?))
            .spawn()
            .with_context(|| format!("cannot start {description}"))?;
        Ok(Self {
            child,
            description,
            stdout,
            stderr,
            ended: false,
        })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of the program.
    ///
    /// # Errors
    /// It does not end within `limit`; it is killed then.
    pub fn finish(mut self, limit: Duration) -> Result<Output> {
        let status = wait_child(&mut self.child, limit)
            .with_context(|| format!("{}\n{}", self.description, read_all(&self.stderr)))?;
        self.ended = true;
        Ok(Output {
            status,
            stdout: read_all(&self.stdout),
            stderr: read_all(&self.stderr),
        })
    }

    /// What the program wrote to standard output so far.
    #[must_use]
    pub fn stdout_so_far(&self) -> String {
        read_all(&self.stdout)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            // It may have ended by itself meanwhile; both errors say so.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Waits for a child with a deadline.
pub(crate) fn wait_child(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        fail_if_interrupted()?;
        if Instant::now() >= deadline {
            bail!("still running after {limit:?}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// `program` found in `PATH`?
#[must_use]
pub fn installed(program: impl AsRef<OsStr>) -> bool {
    let program = program.as_ref();
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Reads without moving the file offset, which the child shares.
fn read_all(file: &File) -> String {
    let mut bytes = Vec::new();
    let mut chunk = [0; 16384];
    while let Ok(length @ 1..) = file.read_at(&mut chunk, bytes.len() as u64) {
        bytes.extend_from_slice(&chunk[..length]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
