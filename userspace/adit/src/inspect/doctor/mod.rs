//! `adit doctor`: what this machine offers a tunnel, what is in the way, and which path `--datapath auto` would take.
//!
//! What cannot be known by asking is tried in a network namespace of its own, where nobody sees it. Interfaces that carry traffic
//! are only asked.
//!
//! | file | what |
//! |---|---|
//! | `check` | one thing looked at |
//! | `rights` | capabilities and limits |
//! | `tunnel` | TUN devices and UDP sockets |
//! | `programs` | eBPF and AF_XDP; wg-quick |
//! | `underlay` | interfaces |
//! | `report` | the verdict, for people and for programs |

mod check;
mod programs;
mod report;
mod rights;
mod tunnel;
mod underlay;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use self::check::{Check, Section};
use self::report::Report;
use self::rights::Rights;
use super::style::{Style, print};

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Interfaces to look at; those with a default route if not given.
    pub underlay: Option<Vec<String>>,
    /// For programs.
    pub json: bool,
}

/// Looks at everything and prints it. Success unless something is in the way of any tunnel.
///
/// # Errors
/// Only when the report cannot be made or written; what is found missing is in the report.
pub fn run(options: &Options) -> Result<ExitCode> {
    let report = examine(options.underlay.as_deref())?;
    let text = if options.json {
        let mut text = serde_json::to_string_pretty(&report).context("cannot write JSON")?;
        text.push('\n');
        text
    } else {
        report.text(Style::for_stdout())
    };
    print(&text)?;
    Ok(if report.tunnel_possible() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn examine(underlay: Option<&[String]>) -> Result<Report> {
    let rights = Rights::own();
    let lab = tunnel::lab();
    let (lab, no_lab) = match lab {
        Ok(lab) => (Some(lab), None),
        Err(check) => (None, Some(check)),
    };
    let (devices, gone) = underlay::devices(underlay).context("cannot list interfaces")?;

    let mut capabilities = rights.checks();
    capabilities.extend(no_lab);
    let mut programs = programs::ebpf(rights);
    programs.push(programs::af_xdp(lab.as_ref()));
    let mut sections = vec![
        section("Rights", capabilities),
        section("TUN device", tunnel::tun(lab.as_ref())),
        section("UDP", tunnel::udp()),
        section("eBPF and AF_XDP", programs),
        section("Other software", vec![programs::wg_quick()]),
    ];
    for name in gone {
        let check = Check::missing("device", "interface", "there is no such interface");
        sections.push(section(&format!("Underlay {name}"), vec![check]));
    }
    for device in &devices {
        let title = format!("Underlay {}", device.name());
        sections.push(section(&title, device.checks()));
    }
    let devices = devices
        .iter()
        .map(|device| (device.name().to_owned(), device.native()))
        .collect();
    Ok(Report::new(sections, devices))
}

fn section(title: &str, checks: Vec<Check>) -> Section {
    Section {
        title: title.to_owned(),
        checks,
    }
}
