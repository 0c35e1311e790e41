//! Tunnels under traffic and changes for as long as one likes.

use std::time::Duration;

use adit_tests::command::interrupt;
use adit_tests::daemon::{adit_path, hide_logs};
use adit_tests::soak::Soak;
use anyhow::{Context as _, Result};
use clap::Args;

use crate::setup;
use crate::stage::say;

/// What `cargo xtask soak` can be told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How long
    #[arg(long, default_value_t = 30)]
    minutes: u32,
    /// What the dice start from that decide what happens next
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// `cargo xtask soak`. Leaves nothing behind, also when interrupted.
///
/// # Errors
/// What is needed cannot be installed, or the tunnels did not stand it.
pub(crate) fn run(options: &Options) -> Result<()> {
    ctrlc::set_handler(interrupt).context("cannot handle Ctrl-C")?;
    setup::install()?;
    hide_logs();
    say("Building the daemon (the first time takes a few minutes) …");
    adit_path()?;
    let soak = Soak {
        duration: Duration::from_secs(60) * options.minutes,
        seed: options.seed,
    };
    say(&format!("{} minutes …", options.minutes));
    let report = soak.run()?;
    say(&report.to_string());
    report.check()
}
