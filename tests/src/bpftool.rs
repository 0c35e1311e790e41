//! bpftool(8): what is attached to an interface, and taking it off as an administrator would.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::Namespace;
use crate::command::run;
use crate::tunnel::{Site, WAN};

/// The answer of `bpftool -j` in a namespace.
///
/// # Errors
/// It failed, or did not answer in JSON.
pub fn bpftool(namespace: &Namespace, arguments: &str) -> Result<Value> {
    let mut command = namespace.command("bpftool");
    let text = run(command.arg("-j").args(arguments.split_whitespace()))?;
    serde_json::from_str(&text).with_context(|| format!("bpftool {arguments}: {text}"))
}

/// Number of the XDP program on the wire's end.
///
/// # Errors
/// As [`bpftool`].
pub fn program_on_wire(namespace: &Namespace) -> Result<Option<u64>> {
    program_on(namespace, WAN)
}

/// Number of the XDP program on an interface.
///
/// # Errors
/// As [`bpftool`].
pub fn program_on(namespace: &Namespace, device: &str) -> Result<Option<u64>> {
    let answer = bpftool(namespace, &format!("net show dev {device}"))?;
    Ok(answer
        .pointer("/0/xdp/0")
        .and_then(|xdp| xdp.get("id")?.as_u64()))
}

/// Detaches the daemon's XDP link as an administrator would.
///
/// # Errors
/// As [`bpftool`], or there is no such link.
pub fn detach_link(site: &Site) -> Result<()> {
    let program = program_on_wire(&site.namespace)?.context("no XDP program on the wire")?;
    let links = bpftool(&site.namespace, "link show")?;
    let number = |link: &Value, key| link.get(key).and_then(Value::as_u64);
    let link = links
        .as_array()
        .into_iter()
        .flatten()
        .find(|link| number(link, "prog_id") == Some(program))
        .and_then(|link| number(link, "id"))
        .with_context(|| format!("no link of program {program}: {links}"))?;
    site.namespace
        .run(&format!("bpftool link detach id {link}"))
        .map(drop)
}
