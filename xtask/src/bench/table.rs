//! The results as text: a block for each scenario, a line for each contender, at most 100 columns.

use std::fmt::Write as _;

use super::results::{ContenderInfo, MetricInfo, Results, ScenarioInfo};
use super::statistics::{Statistics, readable};

/// Columns of everything.
const WIDTH: usize = 100;

/// Share of the machine, in percent, that others may use before figures are of no use.
const QUIET: f64 = 10.0;

/// Columns of the contender's name.
const NAME_WIDTH: usize = 16;

/// Columns of a median, of the values from the least to the most, and of a ratio.
const CELL_WIDTHS: [usize; 3] = [8, 13, 7];

/// Metrics beside each other.
const PER_LINE: usize = 3;

/// The whole report.
pub(crate) fn render(results: &Results) -> String {
    let mut text = head(results);
    for scenario in &results.scenarios {
        let metrics: Vec<_> = scenario.metrics.iter().filter(|m| m.shown).collect();
        let measured = |contender: &&ContenderInfo| {
            let of = |sample: &&super::results::Sample| {
                sample.scenario == scenario.name && sample.contender == contender.name
            };
            results.samples.iter().any(|sample| of(&sample))
        };
        let contenders: Vec<_> = results.contenders.iter().filter(measured).collect();
        if contenders.is_empty() {
            continue;
        }
        let _ = write!(text, "\n{}\n", scenario.title);
        for metrics in metrics.chunks(PER_LINE) {
            text.push_str(&block(results, scenario, metrics, &contenders));
        }
        for contender in contenders {
            if let Some((times, why)) = results.failure(&scenario.name, &contender.name) {
                let line = format!("  ! {} failed {times}×: {why}", contender.name);
                let _ = writeln!(text, "{}", clipped(&line));
            }
        }
    }
    text
}

/// What fits the width; the JSON has the rest.
fn clipped(line: &str) -> String {
    if line.chars().count() <= WIDTH {
        return line.to_owned();
    }
    let start: String = line.chars().take(WIDTH - 1).collect();
    format!("{start}…")
}

fn head(results: &Results) -> String {
    let settings = &results.settings;
    let mut text = format!(
        "Adit's benchmark of {}{}, {}\n",
        results.date.get(..10).unwrap_or(&results.date),
        if results.complete {
            ""
        } else {
            " (interrupted)"
        },
        results.machine.describe(),
    );
    let _ = writeln!(
        text,
        "Two network namespaces on one machine; sender, receiver and both daemons share its processors."
    );
    let _ = writeln!(
        text,
        "Each measured {} × {} s, in turn. Columns: median, least–most, × {}; ↑ more, ↓ less is better.",
        settings.rounds, settings.seconds, settings.reference
    );
    if let Some(background) = background(results) {
        let _ = writeln!(
            text,
            "Others kept {} % of the machine busy before the measurements ({}–{}): {}.",
            readable(background.median),
            readable(background.least),
            readable(background.most),
            if background.median > QUIET {
                "not figures to quote"
            } else {
                "only ratios count"
            }
        );
    }
    text.push('\n');
    for contender in &results.contenders {
        let what = match (&contender.missing, &contender.version) {
            (Some(why), _) => format!("missing: {}", why.lines().next().unwrap_or_default()),
            (None, Some(version)) => format!("{version}   ({})", contender.command),
            (None, None) if contender.ceiling => "the bare wire, as a ceiling".to_owned(),
            (None, None) => contender.command.clone(),
        };
        let line = format!("  {:1$}{what}", contender.name, NAME_WIDTH - 2);
        let _ = writeln!(text, "{}", clipped(&line));
    }
    text
}

/// What others kept busy, in percent of the machine.
fn background(results: &Results) -> Option<Statistics> {
    let values = results.samples.iter().filter_map(|s| s.background_percent);
    Statistics::of(values.collect())
}

fn block(
    results: &Results,
    scenario: &ScenarioInfo,
    metrics: &[&MetricInfo],
    contenders: &[&ContenderInfo],
) -> String {
    let width: usize = CELL_WIDTHS.iter().sum();
    let mut text = " ".repeat(NAME_WIDTH);
    for metric in metrics {
        let arrow = if metric.more_is_better { '↑' } else { '↓' };
        let _ = write!(text, "{:>width$}", format!("{} {arrow}", metric.title));
    }
    text.push('\n');
    for contender in contenders {
        let mut line = format!("  {:1$}", contender.name, NAME_WIDTH - 2);
        for metric in metrics {
            line.push_str(&cell(results, &scenario.name, &contender.name, &metric.key));
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn cell(results: &Results, scenario: &str, contender: &str, metric: &str) -> String {
    let [value, spread, ratio] = CELL_WIDTHS;
    let Some(statistics) = results.statistics(scenario, contender, metric) else {
        return format!("{:>value$}{:>spread$}{:>ratio$}", "–", "", "");
    };
    let range = if statistics.count > 1 {
        format!(
            "{}–{}",
            readable(statistics.least),
            readable(statistics.most)
        )
    } else {
        String::new()
    };
    let times = results
        .ratio(scenario, contender, metric)
        .map_or_else(String::new, |ratio| format!("×{}", readable(ratio)));
    format!(
        "{:>value$}{range:>spread$}{times:>ratio$}",
        readable(statistics.median)
    )
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::example;
    use super::*;

    #[test]
    fn a_line_for_each_contender_and_no_column_past_100() {
        let text = render(&example());
        assert!(
            text.lines().all(|line| line.chars().count() <= 100),
            "{text}"
        );
        for expected in [
            "One TCP stream",
            "Gbit/s ↑",
            "p99 µs ↓",
            "gone          missing: not installed",
            "theirs failed 1×: daemon ended <at once>",
        ] {
            assert!(text.contains(expected), "{expected} not in\n{text}");
        }
        assert!(!text.contains("segments"), "{text}");
        let adit = text
            .lines()
            .find(|l| l.starts_with("  adit") && l.contains("3.20"));
        assert!(
            adit.unwrap().contains("3.10–3.30") && adit.unwrap().contains("×2.56"),
            "{text}"
        );
    }

    #[test]
    fn long_errors_are_clipped_and_a_busy_machine_is_told() {
        let mut results = example();
        for sample in &mut results.samples {
            sample.background_percent = Some(80.0);
            if let Some(error) = &mut sample.error {
                *error = "ö".repeat(1000);
            }
        }
        let text = render(&results);
        let longest = text.lines().map(|line| line.chars().count()).max();
        assert_eq!(longest, Some(WIDTH));
        assert!(
            text.contains("80.0 % of the machine busy") && text.contains("not figures to quote")
        );
    }

    #[test]
    fn columns_stand_below_each_other() {
        let text = render(&example());
        let ends = |needle: &str| {
            let line = text.lines().find(|line| line.contains(needle)).unwrap();
            line.chars().count()
        };
        assert_eq!(ends("p99 µs ↓"), NAME_WIDTH + 28);
        assert_eq!(ends("1,234"), NAME_WIDTH + 28);
    }
}
