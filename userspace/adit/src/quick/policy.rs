//! Sending everything through the tunnel but its own packets.
//!
//! The daemon's packets carry a firewall mark. What does not carry it is looked up in a table of its own, whose only route
//! is the default one through the tunnel; before that, the main table is asked, but its default routes do not count. So
//! routes that were there stay, and go on working when the tunnel is gone.

use std::fs;
use std::io;

use adit_kernel::netlink::{self, MAIN_TABLE, Rule};
use anyhow::{Context as _, Result};

/// The first table that is tried, as `wg-quick` does.
const FIRST_TABLE: u32 = 51820;
/// With this the reverse path filter minds the mark that is restored on answers to the daemon's packets.
const SOURCE_VALID_MARK: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";
/// `EAFNOSUPPORT`, errno(3): a kernel without IPv6.
const NO_FAMILY: i32 = 97;

/// A table without routes, whose number is also free to be a mark.
pub(super) fn free_table() -> Result<u32> {
    let used = |table| -> io::Result<bool> {
        Ok(!netlink::routes(true, table)?.is_empty()
            || !without_family(netlink::routes(false, table))?.is_empty())
    };
    let mut table = FIRST_TABLE;
    while used(table).context("cannot read the routing tables")? {
        table += 1;
    }
    Ok(table)
}

fn without_family<T>(result: io::Result<Vec<T>>) -> io::Result<Vec<T>> {
    match result {
        Err(error) if error.raw_os_error() == Some(NO_FAMILY) => Ok(Vec::new()),
        result => result,
    }
}

/// What is not marked is looked up in the table of the same number.
fn unmarked(ipv4: bool, mark: u32) -> Rule {
    Rule {
        ipv4,
        table: mark,
        unless_mark: Some(mark),
        suppress_prefix_length: None,
    }
}

/// The main table, but for its default routes.
fn main_but_default(ipv4: bool) -> Rule {
    Rule {
        ipv4,
        table: MAIN_TABLE,
        unless_mark: None,
        suppress_prefix_length: Some(0),
    }
}

/// Adds the two rules of a family. If the second cannot be had the first is taken back.
pub(super) fn add_rules(ipv4: bool, mark: u32) -> Result<()> {
    let add = |rule: &Rule| netlink::add_rule(rule).context("cannot add a routing rule");
    add(&unmarked(ipv4, mark))?;
    add(&main_but_default(ipv4)).inspect_err(|_| {
        // The failure that is reported is the first one.
        let _ = remove_rules(ipv4, mark);
    })
}

/// Removes the rules of a family that lead to this table, and with each the rule that was put before it. Those of other
/// tunnels stay.
pub(super) fn remove_rules(ipv4: bool, mark: u32) -> Result<()> {
    let there = without_family(netlink::rules(ipv4)).context("cannot read the routing rules")?;
    for (priority, rule) in doomed(&there, ipv4, mark) {
        netlink::delete_rule(&rule, priority).context("cannot delete a routing rule")?;
    }
    Ok(())
}

fn doomed(there: &[(u32, Rule)], ipv4: bool, mark: u32) -> Vec<(u32, Rule)> {
    let ours: Vec<_> = there
        .iter()
        .filter(|(_, rule)| *rule == unmarked(ipv4, mark))
        .collect();
    let mains = there
        .iter()
        .filter(|(_, rule)| *rule == main_but_default(ipv4));
    // Each pair was added in one go, so the kernel gave the second rule the number before the first one's.
    let partners = mains.filter(|(priority, _)| ours.iter().any(|(own, _)| priority + 1 == *own));
    ours.iter().copied().chain(partners).copied().collect()
}

/// Lets the reverse path filter mind marks. Returns what was set before.
pub(super) fn mind_marks() -> Result<String> {
    let before = fs::read_to_string(SOURCE_VALID_MARK)
        .with_context(|| format!("cannot read {SOURCE_VALID_MARK}"))?;
    set_mind_marks("1")?;
    Ok(before.trim().to_owned())
}

/// Sets it back.
pub(super) fn set_mind_marks(value: &str) -> Result<()> {
    fs::write(SOURCE_VALID_MARK, value).with_context(|| format!("cannot write {SOURCE_VALID_MARK}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_other_tunnels_stay() {
        let main = main_but_default(true);
        let there = [
            (32_762, main),
            (32_763, unmarked(true, 51_821)),
            (32_764, main),
            (32_765, unmarked(true, 51_820)),
        ];
        let old = doomed(&there, true, 51_820);
        assert_eq!(old, [there[3], there[2]]);
        let new = doomed(&there, true, 51_821);
        assert_eq!(new, [there[1], there[0]]);
        assert_eq!(doomed(&there, false, 51_820), []);
    }
}
