//! `adit top`: a tunnel's peers and flows, live.
//!
//! - `sampler`: asks the daemon again and again, on a thread of its own.
//! - `model`: rates between two readings; what to show and in what order.
//! - `state`: what the keys have set.
//! - `screen`: draws; `tables` the lists; `figures` writes numbers in few characters.

mod figures;
mod model;
mod sampler;
mod screen;
mod state;
mod tables;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal as _};
use std::panic;
use std::sync::mpsc::{self, Sender, SyncSender};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use ratatui::DefaultTerminal;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use ratatui::crossterm::style::force_color_output;

use crate::inspect::client;
use crate::inspect::style::Style;
use model::{Picture, Reading};
use screen::Palette;
use state::{Request, State};

/// Keys and readings that wait to be looked at. Whoever has more waits itself.
const BACKLOG: usize = 64;

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// A tunnel; the first one by name if not given.
    pub interface: Option<String>,
    /// Time between two readings.
    pub every: Duration,
}

/// What wakes the drawing thread.
#[derive(Debug)]
enum News {
    /// The terminal has something: a key, another size.
    Terminal(Event),
    /// The tunnel was read.
    Reading(Box<Reading>),
    /// The tunnel is there, and could not be read: why.
    Trouble(String),
    /// The tunnel is not there any more: in one line.
    Gone(String),
    /// A signal asks us to end, or the terminal is gone.
    End,
}

/// Shows the tunnel until a key or a signal ends it.
///
/// # Errors
/// In one line: no such tunnel, its end, no terminal, or what the system says.
pub fn run(options: &Options) -> Result<()> {
    let interface = match &options.interface {
        Some(interface) => interface.clone(),
        None => client::tunnels()?
            .into_iter()
            .next()
            .context("there is no tunnel: no daemon listens in /var/run/wireguard")?,
    };
    // Said on the terminal as it was, not on a screen that is then cleared.
    client::describe(&interface)?;
    ensure!(
        io::stdin().is_terminal() && io::stdout().is_terminal(),
        "adit top needs a terminal; for programs there are `adit show --json` and `adit flows --watch --json`"
    );
    let colours = Style::for_stdout().has_colours();
    force_color_output(colours);

    let (news, told) = mpsc::sync_channel(BACKLOG);
    let ending = news.clone();
    ctrlc::set_handler(move || {
        // Nobody to tell: the end is here already.
        let _ = ending.send(News::End);
    })
    .context("cannot handle signals")?;
    let mut screen = Screen::open()?;
    let (requests, requested) = mpsc::channel();
    let (to_sampler, pace) = (news.clone(), options.every);
    thread::Builder::new()
        .name("sampler".to_owned())
        .spawn(move || sampler::run(interface, pace, &requested, &to_sampler))
        .context("cannot start a thread")?;
    thread::Builder::new()
        .name("keys".to_owned())
        .spawn(move || read_terminal(&news))
        .context("cannot start a thread")?;

    let palette = Palette::new(colours);
    let mut state = State::new(options.every);
    loop {
        screen.draw(&mut state, palette)?;
        let Ok(first) = told.recv() else {
            return Ok(());
        };
        // What has gathered meanwhile is drawn at once.
        for news in [first].into_iter().chain(told.try_iter().take(BACKLOG)) {
            if !follow(news, &mut state, &requests)? {
                return Ok(());
            }
        }
    }
}

/// Takes news in. `false` ends the display.
fn follow(news: News, state: &mut State, requests: &Sender<Request>) -> Result<bool> {
    match news {
        News::Terminal(Event::Key(key)) => match state.press(key) {
            Some(Request::Quit) => return Ok(false),
            // The sampler lives as long as we do.
            Some(request) => drop(requests.send(request)),
            None => {}
        },
        News::Terminal(_) => {}
        News::Reading(reading) => {
            let before = state.picture.as_ref().map(|picture| &picture.reading);
            let picture = Picture::new(*reading, before);
            state.show(picture);
        }
        News::Trouble(line) => state.trouble = Some(line),
        News::Gone(line) => bail!("the tunnel has ended: {line}"),
        News::End => return Ok(false),
    }
    Ok(true)
}

/// Passes on what the terminal has.
fn read_terminal(news: &SyncSender<News>) {
    loop {
        let happened = event::read().map_or(News::End, News::Terminal);
        let last = matches!(happened, News::End);
        if news.send(happened).is_err() || last {
            return;
        }
    }
}

/// The terminal, taken over until this is dropped. A panic gives it back, too, by a hook of ratatui's.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> Result<Self> {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // The hook that ratatui sets leaves the cursor hidden. The terminal may be gone.
            let _ = execute!(io::stdout(), Show);
            hook(info);
        }));
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self(terminal)),
            Err(error) => {
                // Half of it may have been done.
                let _ = ratatui::try_restore();
                Err(error).context("cannot take over the terminal")
            }
        }
    }

    fn draw(&mut self, state: &mut State, palette: Palette) -> Result<()> {
        self.0
            .draw(|frame| screen::draw(frame, state, palette))
            .context("cannot draw on the terminal")?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = ratatui::try_restore();
    }
}
