//! A tunnel to look at: two network namespaces, two daemons, `wg`, ping, iperf3 both ways.

use adit_tests::command::{self, interrupt};
use adit_tests::daemon::{adit_path, hide_logs};
use adit_tests::iperf::{Amount, Run};
use adit_tests::measure::Measurement;
use adit_tests::tunnel::{Family, Pair, PairOptions, Site, WAN};
use adit_tests::wg::wg;
use anyhow::{Context as _, Result};
use clap::Args;

use crate::setup;
use crate::stage::say;

/// What `cargo xtask demo` can be told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Length of each iperf3 run
    #[arg(long, default_value_t = 5)]
    seconds: u32,
}

impl Options {
    /// Just long enough to see that it works.
    pub(crate) fn short() -> Self {
        Self { seconds: 1 }
    }
}

/// `cargo xtask demo`. Leaves nothing behind, also when interrupted.
///
/// # Errors
/// What is needed cannot be installed, or a step fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    // Everything that was made is a guard; a signal only makes the waits end, and the guards do the rest.
    ctrlc::set_handler(interrupt).context("cannot handle Ctrl-C")?;
    setup::install()?;
    hide_logs();
    say("Building the daemon (the first time takes a few minutes) …");
    adit_path()?;
    show(options)
}

fn show(options: &Options) -> Result<()> {
    let pair = Pair::new(&PairOptions::default())?;
    let (left, right) = (&pair.left, &pair.right);
    print(&drawing(left, right));

    for site in [left, right] {
        print(&format!(
            "\n$ wg showconf {}    # {}",
            site.interface(),
            site.namespace.name()
        ));
        print(&without_secrets(&wg(
            &site.namespace,
            &format!("showconf {}", site.interface()),
        )?));
    }

    for family in [Family::V4, Family::V6] {
        let target = right.inner(family);
        print(&format!("\n$ ping -c 3 -i 0.2 {target}"));
        let mut ping = left.namespace.command("ping");
        print(&command::run(ping.args([
            "-n",
            "-c",
            "3",
            "-i",
            "0.2",
            "-W",
            "5",
            &target.to_string(),
        ]))?);
    }

    print(&format!(
        "\n$ iperf3 -t {}    # one TCP stream; both daemons and both ends of iperf3 share this machine\n\n{:24}{:>14}{:>22}{:>22}",
        options.seconds, "", "Gbit/s", "CPU s per GB: host", "sending, receiving"
    ));
    for (name, from, to) in [
        ("left to right", left, right),
        ("right to left", right, left),
    ] {
        print(&line(name, options.seconds, from, to)?);
    }

    print("\n$ wg show    # left");
    print(&wg(&left.namespace, &format!("show {}", left.interface()))?);
    print("Cleaning up.");
    Ok(())
}

/// Measures one stream and describes it in a line of the table.
fn line(name: &str, seconds: u32, from: &Site, to: &Site) -> Result<String> {
    let run = Run {
        client: &from.namespace,
        server: &to.namespace,
        to: to.inner(Family::V4),
        amount: Amount::Seconds(seconds),
        options: &[],
    };
    let measured = Measurement::of(&run, &[from.daemon.pid(), to.daemon.pid()])?;
    let daemons: Vec<_> = measured
        .processes
        .iter()
        .map(|&time| format!("{:.2}", measured.per_gigabyte(time)))
        .collect();
    Ok(format!(
        "{name:24}{:>14.2}{:>22.2}{:>22}",
        measured.gigabits_per_second(),
        measured.per_gigabyte(measured.host),
        daemons.join(", "),
    ))
}

fn drawing(left: &Site, right: &Site) -> String {
    let cell = |site: &Site, address: String| {
        format!("{:26}", format!("{:12} {address}", site.interface()))
    };
    let wan = |site: &Site| format!("{:26}", format!("{WAN:12} {}", site.outer(Family::V4)));
    format!(
        "\n  {:30}{:8}{}\n  ┌────────────────────────────┐        ┌────────────────────────────┐\n  \
         │ {} │ tunnel │ {} │\n  │ {} │────────│ {} │\n  └────────────────────────────┘        └────────────────────────────┘",
        left.namespace.name(),
        "",
        right.namespace.name(),
        cell(left, left.inner(Family::V4).to_string()),
        cell(right, right.inner(Family::V4).to_string()),
        wan(left),
        wan(right),
    )
}

/// The keys live for seconds, but a demonstration should not teach to show them.
fn without_secrets(config: &str) -> String {
    let hide = |line: &str| match line.split_once(" = ") {
        Some((key @ ("PrivateKey" | "PresharedKey"), _)) => format!("{key} = (hidden)"),
        _ => line.to_owned(),
    };
    config.lines().map(hide).collect::<Vec<_>>().join("\n")
}

#[expect(clippy::print_stdout, reason = "this is what the demonstration shows")]
fn print(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden() {
        let shown = without_secrets(
            "[Interface]\nListenPort = 1\nPrivateKey = abc=\n[Peer]\nPresharedKey = d=\nPublicKey = e=",
        );
        assert!(
            !shown.contains("abc") && !shown.contains("d=") && shown.contains("PublicKey = e=")
        );
    }
}
