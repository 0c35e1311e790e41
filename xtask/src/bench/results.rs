//! Everything a run of the benchmark found out: what is written as JSON, and what tables and charts are made of.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::statistics::Statistics;

/// Name and version of the JSON form. A field that goes or changes its meaning needs another version; a new one does not.
pub(crate) const SCHEMA: &str = "adit-bench/1";

/// A run of the benchmark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Results {
    /// [`SCHEMA`].
    pub(crate) schema: String,
    /// When it began, in UTC, as ISO 8601 has it.
    pub(crate) date: String,
    /// Was everything measured, or was the run interrupted?
    pub(crate) complete: bool,
    /// The commit of the source that was built, `-dirty` behind it if there were changes; `None` outside of a repository.
    pub(crate) commit: Option<String>,
    /// Where it ran.
    pub(crate) machine: Machine,
    /// How it ran.
    pub(crate) settings: Settings,
    /// What was compared, in the order in which it was measured and is shown.
    pub(crate) contenders: Vec<ContenderInfo>,
    /// What was measured, in the order in which it is shown.
    pub(crate) scenarios: Vec<ScenarioInfo>,
    /// Every measurement.
    pub(crate) samples: Vec<Sample>,
    /// What the samples come to; written for those who read the JSON, never read.
    #[serde(default)]
    pub(crate) summary: Vec<Summary>,
}

/// How the benchmark was run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Measurements of each contender in each scenario.
    pub(crate) rounds: u32,
    /// Length of one, in seconds.
    pub(crate) seconds: u32,
    /// The contender that ratios refer to.
    pub(crate) reference: String,
    /// MTU of the wire.
    pub(crate) wire_mtu: u32,
    /// MTU of the tunnel devices.
    pub(crate) tunnel_mtu: u32,
}

/// Who was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContenderInfo {
    /// The name it goes by.
    pub(crate) name: String,
    /// How its daemon is started; empty for none.
    pub(crate) command: String,
    /// What the program says its version is.
    pub(crate) version: Option<String>,
    /// Why it was not measured at all.
    pub(crate) missing: Option<String>,
    /// Adit, by one way or another?
    pub(crate) own: bool,
    /// Not a tunnel but what the machine does without one?
    pub(crate) ceiling: bool,
}

/// What was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ScenarioInfo {
    /// The name on the command line.
    pub(crate) name: String,
    /// The name for people.
    pub(crate) title: String,
    /// Its values, the one that matters most first.
    pub(crate) metrics: Vec<MetricInfo>,
}

/// A value of a scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MetricInfo {
    /// The name in samples.
    pub(crate) key: String,
    /// The name for people, with its unit.
    pub(crate) title: String,
    /// Is more of it better?
    pub(crate) more_is_better: bool,
    /// Is it in the table, or in the JSON only?
    pub(crate) shown: bool,
}

/// One measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Name of the scenario.
    pub(crate) scenario: String,
    /// Name of the contender.
    pub(crate) contender: String,
    /// Number of the round, from 1.
    pub(crate) round: u32,
    /// Share of the machine that others kept busy just before, in percent; `None` if it did not come to that.
    pub(crate) background_percent: Option<f64>,
    /// What was measured, by the keys of the metrics.
    pub(crate) values: BTreeMap<String, f64>,
    /// Why there are no values, or not all of them.
    pub(crate) error: Option<String>,
}

/// The samples of one value of one contender in one scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// Name of the scenario.
    pub(crate) scenario: String,
    /// Name of the contender.
    pub(crate) contender: String,
    /// Key of the metric.
    pub(crate) metric: String,
    /// What the samples come to.
    #[serde(flatten)]
    pub(crate) statistics: Statistics,
    /// The median over that of the reference; `None` if that has none, or it is 0.
    pub(crate) ratio: Option<f64>,
}

impl Results {
    /// What the samples of one value come to, if there are any.
    pub(crate) fn statistics(
        &self,
        scenario: &str,
        contender: &str,
        metric: &str,
    ) -> Option<Statistics> {
        let values = self
            .samples
            .iter()
            .filter(|sample| sample.scenario == scenario && sample.contender == contender)
            .filter_map(|sample| sample.values.get(metric).copied());
        Statistics::of(values.collect())
    }

    /// The median of one value of a contender over that of the reference.
    pub(crate) fn ratio(&self, scenario: &str, contender: &str, metric: &str) -> Option<f64> {
        let own = self.statistics(scenario, contender, metric)?.median;
        let reference = self.statistics(scenario, &self.settings.reference, metric)?;
        let ratio = own / reference.median;
        ratio.is_finite().then_some(ratio)
    }

    /// Why a contender failed in a scenario, and how often.
    pub(crate) fn failure(&self, scenario: &str, contender: &str) -> Option<(usize, &str)> {
        let errors: Vec<_> = self
            .samples
            .iter()
            .filter(|sample| sample.scenario == scenario && sample.contender == contender)
            .filter_map(|sample| sample.error.as_deref())
            .collect();
        errors.first().map(|first| (errors.len(), *first))
    }

    /// As JSON with a line for each sample, so that it is short and a change of one shows as one.
    ///
    /// # Errors
    /// None that these types allow.
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        let value = serde_json::to_value(self)?;
        let mut text = String::from("{\n");
        let fields = value.as_object().into_iter().flatten();
        for (number, (name, value)) in fields.enumerate() {
            let separator = if number == 0 { "" } else { ",\n" };
            let _ = write!(text, "{separator}{name:?}: ");
            match value.as_array() {
                Some(elements) => {
                    let lines: Vec<_> = elements.iter().map(ToString::to_string).collect();
                    let _ = write!(text, "[\n{}\n]", lines.join(",\n"));
                }
                None => text.push_str(&value.to_string()),
            }
        }
        text.push_str("\n}\n");
        Ok(text)
    }

    /// Works out the summary.
    pub(crate) fn summarize(&mut self) {
        let mut summary = Vec::new();
        for scenario in &self.scenarios {
            for (contender, metric) in self
                .contenders
                .iter()
                .flat_map(|contender| scenario.metrics.iter().map(move |m| (contender, m)))
            {
                let names = (&*scenario.name, &*contender.name, &*metric.key);
                if let Some(statistics) = self.statistics(names.0, names.1, names.2) {
                    summary.push(Summary {
                        scenario: scenario.name.clone(),
                        contender: contender.name.clone(),
                        metric: metric.key.clone(),
                        statistics,
                        ratio: self.ratio(names.0, names.1, names.2),
                    });
                }
            }
        }
        self.summary = summary;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two scenarios, three contenders: `theirs` failed once in `tcp`, `gone` was never there.
    pub(crate) fn example() -> Results {
        let contender = |name: &str, own, ceiling, missing: Option<&str>| ContenderInfo {
            name: name.to_owned(),
            command: if ceiling {
                String::new()
            } else {
                format!("{name} -f %i")
            },
            version: (!ceiling).then(|| "1.0".to_owned()),
            missing: missing.map(str::to_owned),
            own,
            ceiling,
        };
        let metric = |key: &str, title: &str, more_is_better, shown| MetricInfo {
            key: key.to_owned(),
            title: title.to_owned(),
            more_is_better,
            shown,
        };
        let sample = |scenario: &str, contender: &str, round, values: &[(&str, f64)]| Sample {
            scenario: scenario.to_owned(),
            contender: contender.to_owned(),
            round,
            background_percent: Some(2.0),
            values: values.iter().map(|&(k, v)| (k.to_owned(), v)).collect(),
            error: None,
        };
        let mut samples = Vec::new();
        for round in 1..=3_u32 {
            let shift = f64::from(round) / 10.0;
            let values = |gbits: f64| {
                [
                    ("throughput", gbits + shift),
                    ("host_cpu_per_gb", 2.0),
                    ("retransmits", 0.0),
                ]
            };
            samples.push(sample("tcp", "no tunnel", round, &values(40.0)));
            samples.push(sample("tcp", "adit", round, &values(3.0)));
            samples.push(sample("tcp", "theirs", round, &values(1.0)));
            samples.push(sample("rtt", "adit", round, &[("rtt_p99", 90.0)]));
            samples.push(sample("rtt", "theirs", round, &[("rtt_p99", 1234.0)]));
        }
        let broken = samples
            .iter_mut()
            .find(|sample| sample.contender == "theirs")
            .unwrap();
        broken.values.clear();
        broken.error = Some("daemon ended <at once> & was not seen again".to_owned());
        let mut results = Results {
            schema: SCHEMA.to_owned(),
            date: "2026-01-02T03:04:05Z".to_owned(),
            complete: true,
            commit: None,
            machine: Machine::example(),
            settings: Settings {
                rounds: 3,
                seconds: 5,
                reference: "theirs".to_owned(),
                wire_mtu: 1500,
                tunnel_mtu: 1420,
            },
            contenders: vec![
                contender("no tunnel", false, true, None),
                contender("adit", true, false, None),
                contender("theirs", false, false, None),
                contender("gone", false, false, Some("not installed")),
            ],
            scenarios: vec![
                ScenarioInfo {
                    name: "tcp".to_owned(),
                    title: "One TCP stream".to_owned(),
                    metrics: vec![
                        metric("throughput", "Gbit/s", true, true),
                        metric("host_cpu_per_gb", "host CPU s/GB", false, true),
                        metric("retransmits", "retransmits", false, false),
                    ],
                },
                ScenarioInfo {
                    name: "rtt".to_owned(),
                    title: "Round trip, idle".to_owned(),
                    metrics: vec![metric("rtt_p99", "p99 µs", false, true)],
                },
            ],
            samples,
            summary: Vec::new(),
        };
        results.summarize();
        results
    }

    #[test]
    fn summary_holds_medians_and_ratios() {
        let results = example();
        let found = |contender: &str| {
            let mut of = results.summary.iter().filter(|s| s.metric == "throughput");
            of.find(|summary| summary.contender == contender).unwrap()
        };
        assert!((found("adit").statistics.median - 3.2).abs() < 1e-9);
        assert_eq!(found("theirs").statistics.count, 2);
        assert!((found("theirs").ratio.unwrap() - 1.0).abs() < 1e-9);
        assert!((found("adit").ratio.unwrap() - 3.2 / 1.25).abs() < 1e-9);
        let (times, why) = results.failure("tcp", "theirs").unwrap();
        assert!(times == 1 && why.contains("ended"));
    }

    #[test]
    fn a_ratio_to_zero_is_none() {
        let mut results = example();
        results.settings.reference = "adit".to_owned();
        assert_eq!(results.ratio("tcp", "theirs", "retransmits"), None);
        assert_eq!(results.ratio("tcp", "gone", "throughput"), None);
    }

    #[test]
    fn json_comes_back_as_it_went() {
        let results = example();
        let text = results.to_json().unwrap();
        assert!(text.contains("\"schema\": \"adit-bench/1\"") && text.contains("\"median\""));
        let samples = text.lines().filter(|line| line.contains("\"round\""));
        assert_eq!(samples.count(), results.samples.len());
        let mut back: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(back.samples.len(), results.samples.len());
        back.summarize();
        assert_eq!(back.summary, results.summary);
    }
}
