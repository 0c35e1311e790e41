//! What a task that makes namespaces has left on the machine.

use std::process::Command;

use adit_tests::name::namespace_owner;

/// Names of the namespaces that the process made.
pub(crate) fn namespaces(owner: u32) -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| namespace_owner(name) == Some(owner))
        .collect()
}

/// The processes in a namespace.
pub(crate) fn pids(namespace: &str) -> Vec<u32> {
    let output = Command::new("ip")
        .args(["netns", "pids", namespace])
        .output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    text.lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect()
}
