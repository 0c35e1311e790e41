//! Keeping the tunnel's addresses from being reached from outside of it, and the mark on answers to its packets.
//!
//! Where everything is routed by a firewall mark, the reverse path filter would be in the way: it is answered by the mark
//! that connection tracking restores. A host next to us could then reach the tunnel's addresses by sending to them
//! directly, so what comes from elsewhere is dropped (CVE-2019-14899). Names and rules are those of `wg-quick(8)`.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Result, bail};

use super::{installed, run};

/// Sets up the rules for one family.
pub(super) fn set(interface: &str, ipv4: bool, addresses: &[IpAddr], mark: u32) -> Result<()> {
    let addresses: Vec<_> = addresses.iter().filter(|a| a.is_ipv4() == ipv4).collect();
    if installed("nft") {
        let rules = nft_rules(interface, ipv4, &addresses, mark);
        return run(Command::new("nft").args(["-f", "-"]), &rules).map(drop);
    }
    let [restore, _] = iptables(ipv4);
    if installed(restore) {
        let rules = iptables_rules(interface, &addresses, mark);
        return run(Command::new(restore).arg("-n"), &rules).map(drop);
    }
    bail!("a default route through the tunnel needs nft or iptables: apt-get install nftables")
}

/// Removes the rules of both families, as far as there are any.
pub(super) fn remove(interface: &str) -> Result<()> {
    if installed("nft") {
        let tables = run(Command::new("nft").args(["list", "tables"]), "").unwrap_or_default();
        let deletions = nft_deletions(interface, &tables);
        if !deletions.is_empty() {
            run(Command::new("nft").args(["-f", "-"]), &deletions)?;
        }
    }
    for ipv4 in [true, false] {
        let [restore, save] = iptables(ipv4);
        if installed(save) {
            let rules = run(&mut Command::new(save), "").unwrap_or_default();
            if let Some(deletions) = iptables_deletions(interface, &rules) {
                run(Command::new(restore).arg("-n"), &deletions)?;
            }
        }
    }
    Ok(())
}

fn iptables(ipv4: bool) -> [&'static str; 2] {
    if ipv4 {
        ["iptables-restore", "iptables-save"]
    } else {
        ["ip6tables-restore", "ip6tables-save"]
    }
}

fn nft_rules(interface: &str, ipv4: bool, addresses: &[&IpAddr], mark: u32) -> String {
    let family = if ipv4 { "ip" } else { "ip6" };
    let table = format!("{family} wg-quick-{interface}");
    let mut rules = format!(
        "add table {table}\n\
         add chain {table} preraw {{ type filter hook prerouting priority -300; }}\n\
         add chain {table} premangle {{ type filter hook prerouting priority -150; }}\n\
         add chain {table} postmangle {{ type filter hook postrouting priority -150; }}\n"
    );
    for address in addresses {
        // Writing to a string does not fail.
        let _ = writeln!(
            rules,
            "add rule {table} preraw iifname != \"{interface}\" {family} daddr {address} fib saddr type != local drop"
        );
    }
    let _ = write!(
        rules,
        "add rule {table} postmangle meta l4proto udp mark {mark} ct mark set mark\n\
         add rule {table} premangle meta l4proto udp meta mark set ct mark\n"
    );
    rules
}

fn nft_deletions(interface: &str, tables: &str) -> String {
    let ours = format!(" wg-quick-{interface}");
    let tables = tables.lines().filter(|table| table.ends_with(&ours));
    tables.map(|table| format!("delete {table}\n")).collect()
}

/// How `iptables-save` writes the comment by which our rules are found again.
fn comment(interface: &str) -> String {
    format!("-m comment --comment \"wg-quick(8) rule for {interface}\"")
}

fn iptables_rules(interface: &str, addresses: &[&IpAddr], mark: u32) -> String {
    let comment = comment(interface);
    let mut rules = "*raw\n".to_owned();
    for address in addresses {
        let _ = writeln!(
            rules,
            "-I PREROUTING ! -i {interface} -d {address} -m addrtype ! --src-type LOCAL -j DROP {comment}"
        );
    }
    rules
        + &format!(
            "COMMIT\n*mangle\n\
             -I POSTROUTING -m mark --mark {mark} -p udp -j CONNMARK --save-mark {comment}\n\
             -I PREROUTING -p udp -j CONNMARK --restore-mark {comment}\nCOMMIT\n"
        )
}

fn iptables_deletions(interface: &str, saved: &str) -> Option<String> {
    let comment = comment(interface);
    let mut found = false;
    let mut deletions = String::new();
    for line in saved.lines() {
        if line.starts_with('*') || line == "COMMIT" {
            deletions += line;
        } else if line.starts_with("-A ") && line.contains(&comment) {
            found = true;
            deletions += &line.replacen("-A", "-D", 1);
        } else {
            continue;
        }
        deletions.push('\n');
    }
    found.then_some(deletions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_tables_are_deleted() {
        let tables = "table ip wg-quick-wg0\ntable ip6 wg-quick-wg0\ntable ip wg-quick-wg01\ntable inet filter\n";
        assert_eq!(
            nft_deletions("wg0", tables),
            "delete table ip wg-quick-wg0\ndelete table ip6 wg-quick-wg0\n"
        );
    }

    #[test]
    fn only_our_own_rules_are_deleted() {
        let saved = "# made\n*raw\n:PREROUTING ACCEPT [0:0]\n\
            -A PREROUTING -d 10.9.0.1/32 ! -i wg0 -m addrtype ! --src-type LOCAL -m comment --comment \"wg-quick(8) rule for wg0\" -j DROP\n\
            -A PREROUTING -d 10.9.0.1/32 -m comment --comment \"wg-quick(8) rule for wg01\" -j DROP\nCOMMIT\n";
        let deletions = iptables_deletions("wg0", saved).unwrap();
        assert_eq!(deletions.matches("-D ").count(), 1);
        assert!(deletions.starts_with("*raw\n-D PREROUTING") && deletions.ends_with("COMMIT\n"));
        assert_eq!(iptables_deletions("wg2", saved), None);
    }
}
