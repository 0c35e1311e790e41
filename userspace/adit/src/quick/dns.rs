//! Name servers, by way of `resolvconf(8)`.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{installed, run, run_aloud};
use crate::config::Interface;

/// Where Debian's resolvconf orders interfaces.
const ORDER: &str = "/etc/resolvconf/interface-order";

/// Tells `resolvconf` the tunnel's name servers and search domains, ahead of all others.
pub(super) fn set(interface: &str, config: &Interface) -> Result<()> {
    ensure!(
        installed("resolvconf"),
        "DNS needs resolvconf, which is not installed: apt-get install openresolv, or remove the line"
    );
    let name = record(interface);
    let mut command = Command::new("resolvconf");
    run_aloud(command.args(["-a", &name, "-m", "0", "-x"]), &lines(config))
}

/// Takes the name servers back.
pub(super) fn unset(interface: &str) -> Result<()> {
    let name = record(interface);
    run_aloud(Command::new("resolvconf").args(["-d", &name, "-f"]), "")
}

/// The name servers that `resolvconf` has for the tunnel.
pub(super) fn servers(interface: &str) -> Vec<String> {
    let name = record(interface);
    let known = run(Command::new("resolvconf").args(["-l", &name]), "").ok();
    // Debian's own resolvconf does not know -l.
    let known = known
        .or_else(|| fs::read_to_string(format!("/etc/resolvconf/run/interface/{name}")).ok())
        .unwrap_or_default();
    known
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver "))
        .map(|server| server.trim().to_owned())
        .collect()
}

fn lines(config: &Interface) -> String {
    let mut lines: String = config
        .dns
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    if !config.dns_search.is_empty() {
        lines += &format!("search {}\n", config.dns_search.join(" "));
    }
    lines
}

/// What `resolvconf` calls the tunnel: Debian's gives precedence by prefixes, of which the first is the best.
fn record(interface: &str) -> String {
    let order = fs::read_to_string(ORDER).unwrap_or_default();
    format!("{}{interface}", prefix(&order))
}

fn prefix(order: &str) -> String {
    let is_name = |name: &&str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let mut names = order
        .lines()
        .filter_map(|line| line.trim().strip_suffix('*'));
    names
        .find(is_name)
        .map_or(String::new(), |name| format!("{name}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_prefix_of_the_order_counts() {
        let debian = "# interface-order(5)\nlo.inet6\nlo.inet\nlo.@(dhclient|dnsmasq)\nlo.!(pdns)\nlo\ntun*\ntap*\nhso*\n";
        assert_eq!(prefix(debian), "tun.");
        assert_eq!(prefix(""), "");
        assert_eq!(prefix("*\na b*\n"), "");
    }

    #[test]
    fn servers_come_before_domains() {
        let interface = Interface {
            dns: vec!["9.9.9.9".parse().unwrap(), "2620:fe::fe".parse().unwrap()],
            dns_search: vec!["a.example".to_owned(), "b.example".to_owned()],
            ..Interface::default()
        };
        assert_eq!(
            lines(&interface),
            "nameserver 9.9.9.9\nnameserver 2620:fe::fe\nsearch a.example b.example\n"
        );
    }
}
