//! The licences of the crates that the program is linked with: each wants its notice to go with the program.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::metadata;

/// Names of files that licences are in.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// A list of the crates, with the texts of their licences; equal texts once.
///
/// # Errors
/// Cargo does not know the dependencies, or a crate has neither a text nor the name of a licence.
pub(super) fn collect() -> Result<String> {
    let metadata = metadata()?;
    let packages = array(&metadata, "packages")?;
    let linked = linked(&metadata)?;
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut list = String::new();
    for package in packages {
        // The workspace's own have no source.
        if !linked.contains(string(package, "id")?) || package["source"].is_null() {
            continue;
        }
        let name = format!(
            "{} {}",
            string(package, "name")?,
            string(package, "version")?
        );
        let licence = package["license"].as_str().unwrap_or("see below");
        let manifest = Path::new(string(package, "manifest_path")?);
        let directory = manifest.parent().context("a manifest is in a directory")?;
        let found = files(directory)?;
        ensure!(
            !found.is_empty() || package["license"].is_string(),
            "{name} says nothing of a licence"
        );
        let _ = writeln!(list, "{name}: {licence}");
        for text in found {
            texts.entry(text).or_default().push(name.clone());
        }
    }
    ensure!(!list.is_empty(), "no dependencies found");
    let mut all = format!("adit is linked with these crates, under the licences named.\n\n{list}");
    for (text, names) in texts {
        let _ = write!(
            all,
            "\n{:-<100}\n{}\n\n{}\n",
            "",
            names.join(", "),
            text.trim()
        );
    }
    Ok(all)
}

/// Ids of the packages that end up in the program: what it depends on other than for building or testing.
fn linked(metadata: &Value) -> Result<BTreeSet<&str>> {
    let nodes = array(&metadata["resolve"], "nodes")?;
    let by_id: BTreeMap<&str, &Value> = nodes
        .iter()
        .map(|node| Ok((string(node, "id")?, node)))
        .collect::<Result<_>>()?;
    let packages = array(metadata, "packages")?;
    let program = packages.iter().find(|package| package["name"] == "adit");
    let mut waiting = vec![string(program.context("no package adit")?, "id")?];
    let mut found = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if !found.insert(id) {
            continue;
        }
        let node = by_id.get(id).context("a package without dependencies")?;
        for dependency in array(node, "deps")? {
            let mut kinds = array(dependency, "dep_kinds")?.iter();
            if kinds.any(|kind| kind["kind"].is_null()) {
                waiting.push(string(dependency, "pkg")?);
            }
        }
    }
    Ok(found)
}

/// The texts in a crate's own directory.
fn files(directory: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_uppercase();
        if path.is_file() && NAMES.iter().any(|start| name.starts_with(start)) {
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            texts.push(String::from_utf8_lossy(&bytes).replace('\r', ""));
        }
    }
    texts.sort();
    Ok(texts)
}

fn array<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    let found = value[key].as_array();
    found.with_context(|| format!("cargo metadata has no {key}"))
}

fn string<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    let found = value[key].as_str();
    found.with_context(|| format!("cargo metadata has no {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_named() {
        let all = collect().unwrap();
        for name in ["\naws-lc-sys ", "\ntokio ", "\nclap "] {
            assert!(all.contains(name), "{name}");
        }
        // For tests, for building, and our own.
        for name in ["\nproptest ", "\ncc ", "\nadit-kernel "] {
            assert!(!all.contains(name), "{name}");
        }
        assert!(all.contains("Permission is hereby granted"));
    }
}
