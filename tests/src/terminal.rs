//! Programs that draw on a terminal: a pseudo-terminal to run them on, and what stands on its screen.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::{Pid, ttyname};
use vt100::Parser;

use crate::command::{run, wait_child};
use crate::wait::wait_for;

/// How long a program may take to draw something, or to end, on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Everything the program has written, as a terminal takes it.
struct Written {
    parser: Parser,
    bytes: Vec<u8>,
}

/// A program on a pseudo-terminal; killed when dropped.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    /// Ours, so that what the program has set can be looked at when it has ended.
    line: Option<OwnedFd>,
    written: Arc<Mutex<Written>>,
    reader: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Written {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.parser.screen().contents())
    }
}

impl Terminal {
    /// Starts `command` on a terminal of so many columns and lines, which is its controlling terminal.
    ///
    /// # Errors
    /// The terminal cannot be made or the program not started.
    pub fn start(command: &Command, columns: u16, lines: u16) -> Result<Self> {
        let (screen_columns, screen_lines) = screen_size(columns, lines)?;
        let size = Winsize {
            ws_row: lines,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(&size, None).context("cannot make a pseudo-terminal")?;
        // It becomes the session's leader itself: one process, whose id is the program's.
        let mut leader = Command::new("setsid");
        leader
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => leader.env(name, value),
                None => leader.env_remove(name),
            };
        }
        let child = leader
            .stdin(Stdio::from(pair.slave.try_clone()?))
            .stdout(Stdio::from(pair.slave.try_clone()?))
            .stderr(Stdio::from(pair.slave.try_clone()?))
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        // Closes our copies of the terminal's line, or nobody would notice the program's end.
        drop(leader);
        let written = Arc::new(Mutex::new(Written {
            parser: Parser::new(screen_lines, screen_columns, 1000),
            bytes: Vec::new(),
        }));
        let master = File::from(pair.master);
        let keyboard = master.try_clone()?;
        let into = Arc::clone(&written);
        let reader = std::thread::spawn(move || read(master, &into));
        Ok(Self {
            child,
            keyboard,
            line: Some(pair.slave),
            written,
            reader: Some(reader),
        })
    }

    /// Types.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn keys(&mut self, keys: &str) -> Result<()> {
        Ok(self.keyboard.write_all(keys.as_bytes())?)
    }

    /// Makes the terminal another size, as a person does with a window.
    ///
    /// # Errors
    /// `stty` failed.
    pub fn resize(&mut self, columns: u16, lines: u16) -> Result<()> {
        let (screen_columns, screen_lines) = screen_size(columns, lines)?;
        let line = self.line.as_ref().context("the terminal is closed")?;
        let path = ttyname(line)?;
        self.written()
            .parser
            .screen_mut()
            .set_size(screen_lines, screen_columns);
        let size = ["rows", &lines.to_string(), "columns", &columns.to_string()].map(str::to_owned);
        run(Command::new("stty").arg("-F").arg(path).args(size)).map(drop)
    }

    /// What stands on the screen, a line each without trailing blanks.
    #[must_use]
    pub fn screen(&self) -> String {
        let written = self.written();
        let screen = written.parser.screen();
        let (_, columns) = screen.size();
        screen
            .rows(0, columns.get())
            .map(|row| format!("{}\n", row.trim_end()))
            .collect()
    }

    /// Waits until the screen shows what `check` looks for; returns the screen.
    ///
    /// # Errors
    /// Not in time; the screen is in the error.
    pub fn wait_screen(&self, what: &str, mut check: impl FnMut(&str) -> bool) -> Result<String> {
        let found = wait_for(what, LIMIT, || {
            let screen = self.screen();
            check(&screen).then_some(screen)
        });
        found.with_context(|| self.screen())
    }

    /// Is any character on the screen coloured?
    #[must_use]
    pub fn coloured(&self) -> bool {
        let written = self.written();
        let screen = written.parser.screen();
        let (lines, columns) = screen.size();
        (0..lines.get()).any(|line| {
            (0..columns.get()).any(|column| {
                screen.cell(line, column).is_some_and(|cell| {
                    cell.fgcolor() != vt100::Color::Default
                        || cell.bgcolor() != vt100::Color::Default
                })
            })
        })
    }

    /// Every byte that the program has written.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.written().bytes.clone()
    }

    /// Has the program given back the terminal: the usual screen, a cursor, lines and an echo of what is typed?
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn is_restored(&self) -> Result<bool> {
        let line = self.line.as_ref().context("the terminal is closed")?;
        let modes = tcgetattr(line)?.local_flags;
        let written = self.written();
        let screen = written.parser.screen();
        Ok(
            modes.contains(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG)
                && !screen.alternate_screen()
                && !screen.hide_cursor(),
        )
    }

    /// The process id of the program.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the program.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.pid())?), signal)?;
        Ok(())
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let status = wait_child(&mut self.child, LIMIT).with_context(|| self.screen())?;
        // What it wrote last may still be on its way.
        std::thread::sleep(Duration::from_millis(50));
        Ok(status)
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn screen_size(columns: u16, lines: u16) -> Result<(NonZeroU16, NonZeroU16)> {
    let size = NonZeroU16::new(columns).zip(NonZeroU16::new(lines));
    size.context("a screen has columns and lines")
}

fn read(mut master: File, into: &Mutex<Written>) {
    let mut chunk = [0; 4096];
    // Fails when the last handle on the line is closed.
    while let Ok(length @ 1..) = master.read(&mut chunk) {
        let mut written = into.lock().unwrap_or_else(PoisonError::into_inner);
        written.parser.process(&chunk[..length]);
        written.bytes.extend_from_slice(&chunk[..length]);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself meanwhile; both errors say so.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.line = None;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_sees_a_terminal_of_that_size() -> Result<()> {
        let mut command = Command::new("sh");
        command.args(["-c", "tty -s && stty size; read x; echo got $x"]);
        let mut terminal = Terminal::start(&command, 70, 20)?;
        terminal.wait_screen("its size", |screen| screen.starts_with("20 70\n"))?;
        terminal.keys("word\n")?;
        terminal.wait_screen("the answer", |screen| screen.contains("\ngot word\n"))?;
        assert!(terminal.wait()?.success());
        assert!(terminal.is_restored()? && !terminal.coloured());
        Ok(())
    }
}
