//! A reader of the OpenMetrics text format, as strict as its specification is
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>, the ABNF and the rules in words). There is no kept-up parser
//! in Rust whose licence is one of ours.

use std::collections::HashSet;

use anyhow::{Context as _, Result, bail, ensure};

/// All that an endpoint tells.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Exposition {
    /// Families in the order of the text: name, type.
    pub families: Vec<(String, String)>,
    /// Samples in the order of the text.
    pub samples: Vec<Sample>,
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// With the suffix of its type.
    pub name: String,
    /// Names and unescaped values.
    pub labels: Vec<(String, String)>,
    /// May be infinite, or not a number.
    pub value: f64,
}

impl Exposition {
    /// The value of the only sample of this name and, if given, with this label.
    #[must_use]
    pub fn value(&self, name: &str, label: Option<(&str, &str)>) -> Option<f64> {
        let mut found = self.samples.iter().filter(|sample| {
            let mut labels = sample.labels.iter();
            sample.name == name
                && label.is_none_or(|(key, value)| labels.any(|(k, v)| k == key && v == value))
        });
        match (found.next(), found.next()) {
            (Some(sample), None) => Some(sample.value),
            _ => None,
        }
    }
}

/// Reads a whole text.
///
/// # Errors
/// The first line that breaks a rule, and which.
pub fn parse(text: &str) -> Result<Exposition> {
    let body = text
        .strip_suffix("# EOF\n")
        .context("the text does not end with # EOF")?;
    ensure!(
        body.is_empty() || body.ends_with('\n'),
        "# EOF has no line of its own"
    );
    let mut exposition = Exposition::default();
    let mut family = Family::default();
    let mut seen = HashSet::new();
    for line in body.lines() {
        read_line(line, &mut family, &mut exposition, &mut seen)
            .with_context(|| line.to_owned())?;
    }
    family.finish(&mut exposition)?;
    let mut names = HashSet::new();
    for (name, _) in &exposition.families {
        ensure!(names.insert(name), "{name} has two families");
    }
    Ok(exposition)
}

/// The family that is being read.
#[derive(Default)]
struct Family {
    name: String,
    kind: Option<String>,
    unit: Option<String>,
    help: bool,
    samples: usize,
}

impl Family {
    fn finish(&mut self, exposition: &mut Exposition) -> Result<()> {
        if !self.name.is_empty() {
            if let Some(unit) = &self.unit {
                let suffix = format!("_{unit}");
                ensure!(
                    self.name.ends_with(&suffix),
                    "{} lacks its unit {unit}",
                    self.name
                );
            }
            let kind = self.kind.take().unwrap_or_else(|| "unknown".to_owned());
            let family = (std::mem::take(&mut self.name), kind);
            exposition.families.push(family);
        }
        *self = Self::default();
        Ok(())
    }

    /// Begins another family unless it is the one being read.
    fn enter(&mut self, name: &str, exposition: &mut Exposition) -> Result<()> {
        ensure!(is_name(name, true), "{name} is no name of a metric");
        if self.name != name {
            self.finish(exposition)?;
            name.clone_into(&mut self.name);
        }
        Ok(())
    }
}

fn read_line(
    line: &str,
    family: &mut Family,
    exposition: &mut Exposition,
    seen: &mut HashSet<String>,
) -> Result<()> {
    let Some(comment) = line.strip_prefix("# ") else {
        ensure!(
            !line.is_empty() && !line.starts_with('#'),
            "no line of the format"
        );
        let sample = sample(line)?;
        check_sample(&sample, family)?;
        let mut labels = sample.labels.clone();
        labels.sort();
        ensure!(seen.insert(format!("{} {labels:?}", sample.name)), "twice");
        family.samples += 1;
        exposition.samples.push(sample);
        return Ok(());
    };
    let mut words = comment.splitn(3, ' ');
    let (keyword, name) = words.next().zip(words.next()).context("no metadata")?;
    let rest = words.next().context("no metadata")?;
    family.enter(name, exposition)?;
    ensure!(family.samples == 0, "metadata behind samples");
    match keyword {
        "TYPE" => {
            let types = [
                "counter",
                "gauge",
                "info",
                "stateset",
                "histogram",
                "gaugehistogram",
                "summary",
                "unknown",
            ];
            ensure!(types.contains(&rest), "{rest} is no type");
            ensure!(family.kind.replace(rest.to_owned()).is_none(), "two types");
        }
        "UNIT" => ensure!(family.unit.replace(rest.to_owned()).is_none(), "two units"),
        "HELP" => {
            ensure!(!std::mem::replace(&mut family.help, true), "two helps");
            unescape(rest)?;
        }
        _ => bail!("{keyword} is no keyword"),
    }
    Ok(())
}

/// Whether a sample belongs to the family being read, as its type demands.
fn check_sample(sample: &Sample, family: &Family) -> Result<()> {
    let suffix = sample
        .name
        .strip_prefix(&family.name)
        .filter(|_| !family.name.is_empty())
        .context("the sample is of no family, or of one before")?;
    match (family.kind.as_deref().unwrap_or("unknown"), suffix) {
        ("counter", "_total") => {
            ensure!(
                sample.value >= 0.0,
                "a counter is not negative, and a number"
            );
        }
        ("gauge" | "unknown", "") => {}
        ("info", "_info") => ensure!((sample.value - 1.0).abs() < f64::EPSILON, "an info is 1"),
        (kind, suffix) => bail!("a {kind} has no samples called …{suffix}, or none that we know"),
    }
    Ok(())
}

fn sample(line: &str) -> Result<Sample> {
    let end = line.find(['{', ' ']).context("no value")?;
    let (name, mut rest) = line.split_at(end);
    ensure!(is_name(name, true), "{name:?} is no name of a metric");
    let mut labels: Vec<(String, String)> = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            if !labels.is_empty() {
                rest = rest.strip_prefix(',').context("no comma between labels")?;
            }
            let (label, value) = rest.split_once("=\"").context("no label")?;
            ensure!(is_name(label, false), "{label:?} is no name of a label");
            ensure!(
                labels.iter().all(|(known, _)| known != label),
                "{label} twice"
            );
            let end = closing_quote(value).context("a value without an end")?;
            labels.push((label.to_owned(), unescape(&value[..end])?));
            rest = &value[end + 1..];
        }
        rest = &rest[1..];
    }
    let number = rest
        .strip_prefix(' ')
        .context("no blank before the value")?;
    // Neither timestamps nor exemplars are told.
    ensure!(is_number(number), "{number:?} is no number");
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value: number.parse()?,
    })
}

/// `metricname` and `label-name` of the ABNF.
fn is_name(name: &str, colons: bool) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_' || (colons && c == ':');
    name.starts_with(letter) && name.chars().all(|c| letter(c) || c.is_ascii_digit())
}

/// `number` of the ABNF: `realnumber`, infinities, or not a number.
fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let special = ["inf", "infinity", "nan"];
    special.contains(&unsigned.to_ascii_lowercase().as_str())
        || (unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
            && unsigned
                .chars()
                .all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'))
            && unsigned.parse::<f64>().is_ok())
}

/// Where the value ends that starts here: at the first quote that is not escaped.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (place, character) in text.char_indices() {
        match character {
            '"' if !escaped => return Some(place),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

fn unescape(text: &str) -> Result<String> {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        plain.push(match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some(character @ ('\\' | '"')) => character,
                other => bail!("\\{other:?} is no escape"),
            },
            character => character,
        });
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: &str = "# TYPE a counter\n# HELP a What \\\\ it is.\na_total 1\n\
        # TYPE b_seconds gauge\n# UNIT b_seconds seconds\nb_seconds{x=\"1,}\\\"\\n\",y=\"\"} -1.5e+3\nb_seconds NaN\n\
        # TYPE c info\nc_info{v=\"1\"} 1\n# EOF\n";

    #[test]
    fn what_is_right_is_read() -> Result<()> {
        let exposition = parse(FINE)?;
        assert_eq!(exposition.families.len(), 3);
        assert_eq!(exposition.value("a_total", None), Some(1.0));
        let labelled = exposition.value("b_seconds", Some(("x", "1,}\"\n")));
        assert_eq!(labelled, Some(-1500.0));
        assert_eq!(exposition.value("b_seconds", None), None);
        assert_eq!(parse("# EOF\n")?, Exposition::default());
        Ok(())
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for wrong in [
            "",
            "a 1\n",
            "# TYPE a gauge\na 1# EOF\n",
            "# TYPE a gauge\na 1\n\n# EOF\n",
            "# TYPE a gauge\na 1\n# EOF\n# EOF\n",
            "# TYPE a gauge\na  1\n# EOF\n",
            "# TYPE a gauge\na\n# EOF\n",
            "# TYPE a gauge\na x\n# EOF\n",
            "# TYPE a gauge\na infinite\n# EOF\n",
            "# TYPE a gauge\na 1\na 1\n# EOF\n",
            "# TYPE a gauge\na{x=\"1\",y=\"2\"} 1\na{y=\"2\",x=\"1\"} 1\n# EOF\n",
            "# TYPE a gauge\na{x=\"1\",x=\"2\"} 1\n# EOF\n",
            "# TYPE a gauge\na{x=\"1\"y=\"2\"} 1\n# EOF\n",
            "# TYPE a gauge\na{x=\"1} 1\n# EOF\n",
            "# TYPE a gauge\na{x=\"\\t\"} 1\n# EOF\n",
            "# TYPE a gauge\na{0x=\"1\"} 1\n# EOF\n",
            "# TYPE a gauge\n0a 1\n# EOF\n",
            "# TYPE a gauge\nb 1\n# EOF\n",
            "# TYPE a gauge\n# TYPE a gauge\na 1\n# EOF\n",
            "# TYPE a number\na 1\n# EOF\n",
            "# TYPE a gauge\na 1\n# HELP a late\n# EOF\n",
            "# TYPE a gauge\na 1\n# TYPE b gauge\nb 1\n# TYPE a gauge\na{x=\"\"} 1\n# EOF\n",
            "# TYPE a gauge\n# UNIT a seconds\na 1\n# EOF\n",
            "# TYPE a counter\na 1\n# EOF\n",
            "# TYPE a counter\na_total -1\n# EOF\n",
            "# TYPE a counter\na_total NaN\n# EOF\n",
            "# TYPE a info\na_info 2\n# EOF\n",
            "#TYPE a gauge\n# EOF\n",
            "a 1\n# EOF\n",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
