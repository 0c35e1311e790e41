//! `docs/json.md` describes what `--json` prints: all of it, and nothing else.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use adit_tests::Site;
use adit_tests::command::{Running, run};
use adit_tests::daemon::{Options, adit_path};
use adit_tests::tunnel::{Pair, PairOptions};
use adit_tests::wait::wait_for;
use adit_tests::wg::KeyPair;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::documents;

/// Objects whose fields are no fixed set.
const OPEN: [&str; 2] = ["interfaces[].drops", "interfaces[].counters"];

/// Types by path, `[]` standing for the elements of an array.
type Fields = BTreeMap<String, String>;

/// The table below a heading: path and type of each field.
fn documented(heading: &str) -> Result<Fields> {
    let text = documents::read("userspace/adit/docs/json.md")?;
    let (_, section) = text
        .split_once(&format!("\n## {heading}\n"))
        .with_context(|| heading.to_owned())?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let path = cells.next()?.trim_end_matches('`');
        Some((path.to_owned(), cells.next()?.to_owned()))
    });
    Ok(rows.collect())
}

/// Adds the fields of `value`, with all types that were met.
fn collect(value: &Value, path: &str, found: &mut BTreeMap<String, Vec<&'static str>>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let kinds = found.entry(path.to_owned()).or_default();
    if !kinds.contains(&kind) {
        kinds.push(kind);
    }
    match value {
        Value::Array(elements) => {
            for element in elements {
                collect(element, &format!("{path}[]"), found);
            }
        }
        Value::Object(fields) if !OPEN.contains(&path) => {
            for (name, field) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                collect(field, &format!("{path}{dot}{name}"), found);
            }
        }
        _ => {}
    }
}

/// Compares what is printed with what is written, both ways.
fn compare(printed: &[Value], documented: &Fields) -> Result<()> {
    let mut found = BTreeMap::new();
    for value in printed {
        collect(value, "", &mut found);
    }
    // Elements of arrays are told of with the array.
    found.retain(|path, _| !path.is_empty() && !path.ends_with("[]"));
    for (path, kinds) in &found {
        let text = documented
            .get(path)
            .with_context(|| format!("json.md does not tell of {path}"))?;
        for kind in kinds {
            ensure!(
                text.split([' ', ',']).any(|word| word == *kind),
                "{path} is a {kind}, not {text}"
            );
        }
    }
    let always = documented.iter();
    for (path, _) in always.filter(|(_, kind)| !kind.contains("not always")) {
        ensure!(
            found.contains_key(path),
            "json.md tells of {path}: {printed:?}"
        );
    }
    Ok(())
}

/// `adit` where the daemon's maps are to be seen: in its mount namespace.
fn adit(site: &Site, arguments: &str) -> Result<Command> {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--mount=/proc/{}/ns/mnt", site.daemon.pid()))
        .arg(adit_path()?.canonicalize()?)
        .args(arguments.split_whitespace());
    Ok(command)
}

#[test]
fn every_field_is_described() -> Result<()> {
    let xdp = ["--datapath", "xdp", "--xdp-transmit", "on"];
    let pair = Pair::connected(&PairOptions {
        left: Options {
            arguments: xdp.map(str::to_owned).into(),
            ..Options::default()
        },
        ..PairOptions::default()
    })?;
    let left = &pair.left;
    let name = left.interface();
    let show = documented("adit show --json")?;
    let flows = wait_for("flows of the peer", Duration::from_secs(20), || {
        let text = adit(left, &format!("show {name} --json")).and_then(|mut c| run(&mut c));
        let value: Value = serde_json::from_str(&text.ok()?).ok()?;
        let interface = value["interfaces"].get(0)?;
        let complete = ["xdp", "xdp_transmit"]
            .iter()
            .all(|list| interface[*list].get(0).is_some());
        let flows = interface["peers"][0]["flows"].get(0).is_some();
        (complete && flows).then_some(value)
    })?;
    // One more, which has nothing yet.
    left.wg_set(&format!(
        "peer {} persistent-keepalive 25",
        KeyPair::generate()?.public
    ))?;
    let later = run(&mut adit(left, &format!("show {name} --json"))?)?;
    compare(&[flows, serde_json::from_str(&later)?], &show)?;

    let names = run(&mut adit(left, "show interfaces --json")?)?;
    let names: Value = serde_json::from_str(&names)?;
    ensure!(names["version"] == 1, "{names}");
    ensure!(
        names["interfaces"]
            .as_array()
            .is_some_and(|list| list.iter().all(Value::is_string))
    );

    let mut expected = documented("adit flows --json")?;
    for (path, kind) in &show {
        if let Some(field) = path.strip_prefix("interfaces[].peers[].flows[].") {
            expected.insert(format!("flows[].{field}"), kind.clone());
        }
    }
    let watching = Running::start(&mut adit(
        left,
        &format!("flows {name} --watch 0.2 --json"),
    )?)?;
    let lines = wait_for("two lines", Duration::from_secs(20), || {
        let text = watching.stdout_so_far();
        (text.matches('\n').count() >= 2).then_some(text)
    })?;
    let lines = lines.lines().take(2).map(serde_json::from_str);
    let lines: Vec<Value> = lines.collect::<Result<_, _>>()?;
    ensure!(lines[0]["flows"][0].get("bits_per_second").is_none());
    compare(&lines, &expected)?;

    let doctor = run(&mut adit(left, "doctor --json")?)?;
    compare(
        &[serde_json::from_str(&doctor)?],
        &documented("adit doctor --json")?,
    )
}
