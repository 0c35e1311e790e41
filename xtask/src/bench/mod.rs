//! `cargo xtask bench`: Adit beside its peers, everything measured in one run, in turn.

mod bed;
mod chart;
mod contender;
mod figures;
mod handshakes;
mod machine;
mod peers;
mod results;
mod scenario;
mod statistics;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use adit_tests::command::interrupt;
use adit_tests::daemon::{adit_path, hide_logs};
use adit_tests::measure::Meter;
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum as _};

use contender::{Contender, contenders};
use results::{Results, SCHEMA, Sample, Settings};
use scenario::Scenario;
use statistics::readable;

use crate::setup;
use crate::stage::say;

/// What ratios refer to if it is there and nothing else was asked for.
const REFERENCE: &str = "wireguard-go";

/// Name of the JSON file.
const JSON: &str = "results.json";

/// How long the machine is watched before a measurement, to tell what others do on it.
const BEFORE: Duration = Duration::from_millis(200);

/// Characters of an error in the report.
const ERROR_LENGTH: usize = 300;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What `cargo xtask bench` can be told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Another daemon to measure; COMMAND starts it in the foreground, %i stands for the interface
    #[arg(long, value_name = "NAME='COMMAND %i'")]
    peer: Vec<String>,
    /// Measure only these contenders (no-tunnel, adit-socket, adit-xdp, wireguard-go, boringtun, and those of --peer)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Measure only these scenarios
    #[arg(long, value_enum, value_name = "NAME", value_delimiter = ',')]
    scenario: Vec<Scenario>,
    /// How often each contender is measured in each scenario
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each measurement takes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// The contender that ratios refer to (default: wireguard-go, or the first one)
    #[arg(long, value_name = "NAME")]
    reference: Option<String>,
    /// Where to write JSON and charts (default: bench in the target directory)
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// One round of one second each: to see that everything works, not for figures
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    quick: bool,
    /// Measure nothing: table and charts from the JSON of an earlier run
    #[arg(long, value_name = "FILE")]
    redraw: Option<PathBuf>,
}

/// `cargo xtask bench`. Leaves nothing behind but what it writes, also when interrupted; what was measured until then is
/// reported.
///
/// # Errors
/// What is needed cannot be installed or built, there is nothing to measure, or it was interrupted.
pub(crate) fn run(options: &Options) -> Result<()> {
    let output = match &options.output {
        Some(directory) => directory.clone(),
        None => crate::workspace()?.join("target/bench"),
    };
    if let Some(file) = &options.redraw {
        return report(&read(file)?, &output);
    }
    // Everything that is made is a guard; a signal only makes the waits end, and the guards do the rest.
    ctrlc::set_handler(|| {
        INTERRUPTED.store(true, Ordering::Relaxed);
        interrupt();
    })
    .context("cannot handle Ctrl-C")?;
    setup::install()?;
    hide_logs();
    say("Building the daemon (the first time takes a few minutes) …");
    adit_path()?;
    let results = measure_all(options)?;
    report(&results, &output)?;
    if !results.complete {
        bail!("interrupted: not everything was measured");
    }
    Ok(())
}

fn read(file: &Path) -> Result<Results> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let results: Results =
        serde_json::from_str(&text).with_context(|| format!("{}: not ours", file.display()))?;
    ensure!(
        results.schema == SCHEMA,
        "{}: has the form {}, not {SCHEMA}",
        file.display(),
        results.schema
    );
    Ok(results)
}

/// Writes JSON and charts, and prints the table.
fn report(results: &Results, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let mut files = vec![(JSON.to_owned(), results.to_json()?)];
    files.extend(figures::charts(results));
    for (name, content) in &files {
        let path = directory.join(name);
        fs::write(&path, content).with_context(|| path.display().to_string())?;
    }
    print(&table::render(results));
    let names: Vec<_> = files.iter().map(|(name, _)| &**name).collect();
    say(&format!(
        "\nIn {}: {}",
        directory.display(),
        names.join(", ")
    ));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is what the benchmark shows")]
fn print(text: &str) {
    print!("{text}");
}

fn measure_all(options: &Options) -> Result<Results> {
    let all = contenders(&options.peer)?;
    let chosen = choose(all, &options.only)?;
    let scenarios = if options.scenario.is_empty() {
        Scenario::value_variants().to_vec()
    } else {
        options.scenario.clone()
    };
    let (rounds, seconds) = if options.quick {
        (1, 1)
    } else {
        (options.rounds, options.seconds)
    };
    let mut results = Results {
        schema: SCHEMA.to_owned(),
        date: machine::now(),
        complete: false,
        commit: commit(),
        machine: machine::Machine::this(),
        settings: Settings {
            rounds,
            seconds,
            reference: reference(&chosen, options.reference.as_deref())?,
            wire_mtu: bed::WIRE_MTU,
            tunnel_mtu: bed::TUNNEL_MTU,
        },
        contenders: chosen.iter().map(Contender::info).collect(),
        scenarios: scenarios.iter().map(|scenario| scenario.info()).collect(),
        samples: Vec::new(),
        summary: Vec::new(),
    };
    for contender in results.contenders.iter() {
        if let Some(why) = &contender.missing {
            say(&format!("{} is missing: {why}", contender.name));
        }
    }
    let steps = steps(&chosen, &scenarios, rounds);
    ensure!(!steps.is_empty(), "nothing to measure");
    results.complete = take(&steps, seconds, &mut results.samples);
    results.summarize();
    Ok(results)
}

/// Those asked for, all if none was.
fn choose(all: Vec<Contender>, only: &[String]) -> Result<Vec<Contender>> {
    for name in only {
        if !all.iter().any(|contender| contender.name == *name) {
            let names: Vec<_> = all.iter().map(|contender| &*contender.name).collect();
            bail!("--only {name}: there are {}", names.join(", "));
        }
    }
    let wanted = |contender: &Contender| only.is_empty() || only.contains(&contender.name);
    Ok(all.into_iter().filter(wanted).collect())
}

/// The contender that ratios refer to.
fn reference(contenders: &[Contender], asked: Option<&str>) -> Result<String> {
    let mut present = contenders.iter().filter(|contender| contender.available());
    if let Some(name) = asked {
        let found = present.find(|contender| contender.name == name);
        return Ok(found
            .with_context(|| format!("--reference {name}: not among the contenders"))?
            .name
            .clone());
    }
    let by_name = present
        .clone()
        .find(|contender| contender.name == REFERENCE);
    let tunnel = present.clone().find(|contender| contender.is_tunnel());
    let found = by_name.or(tunnel).or_else(|| present.next());
    Ok(found.context("nothing to measure")?.name.clone())
}

/// One measurement to be made.
#[derive(Debug, Clone, Copy)]
struct Step<'a> {
    scenario: Scenario,
    contender: &'a Contender,
    round: u32,
}

/// All of them. Contenders change fastest, so that what disturbs the machine for a while disturbs all of them alike.
fn steps<'a>(contenders: &'a [Contender], scenarios: &[Scenario], rounds: u32) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    for &scenario in scenarios {
        for round in 1..=rounds {
            for contender in contenders {
                if contender.available() && scenario.applies_to(contender) {
                    steps.push(Step {
                        scenario,
                        contender,
                        round,
                    });
                }
            }
        }
    }
    steps
}

/// Takes the steps and tells of each. False if it was interrupted.
fn take(steps: &[Step<'_>], seconds: u32, samples: &mut Vec<Sample>) -> bool {
    let start = Instant::now();
    for (done, step) in steps.iter().enumerate() {
        let sample = sample(step, seconds);
        if INTERRUPTED.load(Ordering::Relaxed) {
            return false;
        }
        let each = start.elapsed() / u32::try_from(done + 1).unwrap_or(u32::MAX);
        let left = each * u32::try_from(steps.len() - done - 1).unwrap_or(u32::MAX);
        say(&format!(
            "[{}/{}, {} left] {}, round {}, {}: {}",
            done + 1,
            steps.len(),
            minutes(left),
            sample.scenario,
            step.round,
            sample.contender,
            outcome(step.scenario, &sample)
        ));
        samples.push(sample);
    }
    true
}

fn sample(step: &Step<'_>, seconds: u32) -> Sample {
    let background = background_percent();
    let mut values = Vec::new();
    let measured = step.scenario.measure(step.contender, seconds, &mut values);
    let error = measured.err().map(|error| one_line(&format!("{error:#}")));
    Sample {
        scenario: step.scenario.name(),
        contender: step.contender.name.clone(),
        round: step.round,
        background_percent: background.ok(),
        values: values
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
        error,
    }
}

/// What others do on the machine while we do nothing.
fn background_percent() -> Result<f64> {
    let meter = Meter::start(&[])?;
    std::thread::sleep(BEFORE);
    Ok(100.0 * meter.stop()?.busy())
}

/// The values of the table, and what went wrong.
fn outcome(scenario: Scenario, sample: &Sample) -> String {
    let shown = scenario
        .info()
        .metrics
        .into_iter()
        .filter(|metric| metric.shown);
    let values = shown.filter_map(|metric| {
        let value = sample.values.get(&metric.key)?;
        Some(format!("{} {}", readable(*value), metric.title))
    });
    let failure = sample.error.iter().map(|error| format!("FAILED: {error}"));
    values.chain(failure).collect::<Vec<_>>().join(", ")
}

/// Errors carry logs; the report has room for a line.
fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").chars().take(ERROR_LENGTH).collect()
}

fn minutes(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

/// The commit of the source, with a mark if it was changed since; `None` outside of a repository.
fn commit() -> Option<String> {
    let git = Command::new("git")
        .args(["describe", "--always", "--dirty", "--exclude", "*"])
        .current_dir(crate::workspace().ok()?)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&git.stdout).trim().to_owned();
    (git.status.success() && !text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Vec<Contender> {
        let given = ["b=/bin/b %i".to_owned(), "c=/bin/c %i".to_owned()];
        contender::no_tunnel_and(&given)
    }

    #[test]
    fn contenders_take_turns() {
        let three = three();
        let order: Vec<_> = steps(&three, &[Scenario::Tcp, Scenario::Handshakes], 2)
            .iter()
            .map(|step| {
                (
                    step.scenario.name(),
                    step.round,
                    step.contender.name.clone(),
                )
            })
            .collect();
        let names: Vec<_> = order
            .iter()
            .map(|(s, r, c)| format!("{s} {r} {c}"))
            .collect();
        assert_eq!(
            names,
            [
                "tcp 1 no-tunnel",
                "tcp 1 b",
                "tcp 1 c",
                "tcp 2 no-tunnel",
                "tcp 2 b",
                "tcp 2 c",
                "handshakes 1 b",
                "handshakes 1 c",
                "handshakes 2 b",
                "handshakes 2 c",
            ]
        );
    }

    #[test]
    fn the_reference_is_a_tunnel_if_there_is_one() {
        assert_eq!(reference(&three(), None).unwrap(), "b");
        assert_eq!(reference(&three(), Some("c")).unwrap(), "c");
        assert_eq!(reference(&three()[..1], None).unwrap(), "no-tunnel");
        assert!(reference(&three(), Some("d")).is_err());
        assert!(choose(three(), &["d".to_owned()]).is_err());
        assert_eq!(choose(three(), &["c".to_owned()]).unwrap().len(), 1);
    }

    #[test]
    fn errors_fit_a_line() {
        assert_eq!(one_line("a\n  b\tc"), "a b c");
        assert_eq!(one_line(&"ö".repeat(1000)).chars().count(), ERROR_LENGTH);
        assert_eq!(minutes(Duration::from_secs(754)), "12:34");
    }
}
