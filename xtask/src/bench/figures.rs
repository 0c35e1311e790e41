//! Which charts are drawn of the results.

use super::chart::{Bar, Figure, Panel, Style, render};
use super::results::{MetricInfo, Results, ScenarioInfo};

/// A file name, its title, and scenario and metric of each panel.
type Plan = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

const PLANS: [Plan; 4] = [
    (
        "throughput",
        "Throughput",
        &[
            ("tcp", "throughput"),
            ("tcp-4", "throughput"),
            ("tcp-both", "throughput"),
            ("udp-1300-max", "throughput"),
            ("udp-64-max", "received_per_second"),
            ("peers-10000", "throughput"),
        ],
    ),
    (
        "cpu",
        "Processor time",
        &[
            ("tcp", "host_cpu_per_gb"),
            ("tcp-both", "host_cpu_per_gb"),
            ("udp-1300", "host_cpu_per_packet"),
            ("udp-64", "host_cpu_per_packet"),
            ("steady-200", "host_cpu_percent"),
            ("handshakes", "daemon_cpu_per_handshake"),
        ],
    ),
    (
        "latency",
        "Round-trip time",
        &[
            ("rtt", "rtt_p50"),
            ("rtt", "rtt_p99"),
            ("rtt-tcp", "rtt_p50"),
            ("rtt-tcp", "rtt_p99"),
            ("steady-200", "rtt_p50"),
            ("steady-200", "rtt_p99"),
        ],
    ),
    (
        "peers",
        "Peers, handshakes, memory",
        &[
            ("handshakes", "handshakes_per_second"),
            ("peers-10000", "setconf_ms"),
            ("peers-10000", "dump_ms"),
            ("peers-10000", "syncconf_ms"),
            ("peers-10000", "resident_mb"),
            ("memory", "resident_used_mb"),
        ],
    ),
];

/// File names and documents of all charts for which there is something to show.
pub(crate) fn charts(results: &Results) -> Vec<(String, String)> {
    PLANS
        .iter()
        .filter_map(|(file, title, panels)| {
            let panels: Vec<_> = panels
                .iter()
                .filter_map(|&(scenario, metric)| panel(results, scenario, metric))
                .collect();
            let figure = Figure {
                title: (*title).to_owned(),
                notes: notes(results),
                panels,
            };
            (!figure.panels.is_empty()).then(|| (format!("{file}.svg"), render(&figure)))
        })
        .collect()
}

fn panel(results: &Results, scenario: &str, metric: &str) -> Option<Panel> {
    let scenario = results.scenarios.iter().find(|s| s.name == scenario)?;
    let metric = scenario.metrics.iter().find(|m| m.key == metric)?;
    let bars = bars(results, scenario, metric);
    bars.iter().any(|bar| bar.value.is_some()).then(|| Panel {
        title: scenario.title.clone(),
        subtitle: format!(
            "{}, {} is better",
            metric.title,
            if metric.more_is_better {
                "more"
            } else {
                "less"
            }
        ),
        bars,
    })
}

/// Those that were measured, also when they failed.
fn bars(results: &Results, scenario: &ScenarioInfo, metric: &MetricInfo) -> Vec<Bar> {
    let mut own = 0;
    let mut bars = Vec::new();
    for contender in &results.contenders {
        let style = match contender {
            contender if contender.own => {
                own += 1;
                Style::Own(own - 1)
            }
            contender if contender.ceiling => Style::Ceiling,
            _ => Style::Other,
        };
        let mut of = results.samples.iter();
        if of.any(|s| s.scenario == scenario.name && s.contender == contender.name) {
            let value = results.statistics(&scenario.name, &contender.name, &metric.key);
            // Without a daemon there is no processor time of one.
            if value.is_some() || !contender.ceiling {
                bars.push(Bar {
                    name: contender.name.clone(),
                    style,
                    value,
                });
            }
        }
    }
    bars
}

fn notes(results: &Results) -> Vec<String> {
    let settings = &results.settings;
    let mut notes = vec![
        format!(
            "{}, {}",
            results.date.get(..10).unwrap_or(&results.date),
            results.machine.describe()
        ),
        format!(
            "Median of {} × {} s, the contenders in turn; line: least to most. Two namespaces, a veth pair, MTU {}; \
             a shared machine.",
            settings.rounds, settings.seconds, settings.wire_mtu
        ),
    ];
    if !results.complete {
        notes.push("Interrupted: not everything was measured.".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::example;
    use super::super::scenario::Scenario;
    use super::*;
    use clap::ValueEnum as _;

    #[test]
    fn charts_are_made_of_what_was_measured() {
        let charts = charts(&example());
        let names: Vec<_> = charts.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["throughput.svg", "cpu.svg", "latency.svg"]);
        let (_, throughput) = &charts[0];
        assert!(throughput.contains("Gbit/s, more is better") && throughput.contains(">3.20<"));
        assert!(throughput.contains("Example 3000 &amp; Co.") && !throughput.contains("gone"));
    }

    #[test]
    fn every_panel_exists() {
        let scenarios: Vec<_> = Scenario::value_variants()
            .iter()
            .map(|s| s.info())
            .collect();
        for (scenario, metric) in PLANS.iter().flat_map(|plan| plan.2) {
            let found = scenarios.iter().find(|s| s.name == *scenario);
            assert!(
                found.unwrap().metrics.iter().any(|m| m.key == *metric),
                "{scenario} {metric}"
            );
        }
    }
}
