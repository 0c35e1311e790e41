//! Which routes a tunnel needs, and its MTU.

use std::cmp::Reverse;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use adit_kernel::netlink::{self, MAIN_TABLE, TableRoute};
use adit_protocol::Prefix;
use anyhow::{Context as _, Result, bail};

use super::client::State;
use crate::config::Table;

/// What the tunnel puts around a packet, at most: 40 bytes of IPv6, 8 of UDP, 32 of WireGuard.
const OVERHEAD: u32 = 80;
/// Where nothing else is known, the MTU of Ethernet.
const ETHERNET: u32 = 1500;
/// Where `ip(8)` finds the names of tables.
const TABLE_NAMES: [&str; 2] = ["/etc/iproute2/rt_tables", "/usr/share/iproute2/rt_tables"];
const TABLE_DIRECTORIES: [&str; 2] = [
    "/etc/iproute2/rt_tables.d",
    "/usr/share/iproute2/rt_tables.d",
];

/// What the peers may be reached by, longest prefix first.
pub(super) fn prefixes(state: &State) -> Vec<Prefix> {
    let mut prefixes: Vec<_> = state.prefixes().collect();
    prefixes.sort_unstable_by_key(|prefix| Reverse((prefix.length(), *prefix)));
    prefixes.dedup();
    prefixes
}

/// Whether a route through the interface covers the prefix already: that of a subnet an address is in.
pub(super) fn covered(prefix: Prefix, interface: u32) -> Result<bool> {
    let routes = netlink::routes(prefix.address().is_ipv4(), MAIN_TABLE)
        .context("cannot read the routing table")?;
    Ok(routes
        .iter()
        .any(|route| route.interface == interface && covers(route, prefix)))
}

fn covers(route: &TableRoute, prefix: Prefix) -> bool {
    route.prefix_length <= prefix.length()
        && Prefix::new(route.destination, route.prefix_length)
            .is_ok_and(|destination| destination.contains(prefix.address()))
}

/// The number of the table that routes go into; `None` if there are none to add.
pub(super) fn table(table: Option<&Table>) -> Result<Option<u32>> {
    Ok(match table {
        Some(Table::Off) => None,
        None | Some(Table::Auto) => Some(MAIN_TABLE),
        Some(Table::Number(number)) => Some(*number),
        Some(Table::Name(name)) => Some(named_table(name)?),
    })
}

fn named_table(name: &str) -> Result<u32> {
    let known = match name {
        "default" => Some(253),
        "main" => Some(MAIN_TABLE),
        "local" => Some(255),
        _ => None,
    };
    if let Some(number) = known {
        return Ok(number);
    }
    let mut files: Vec<_> = TABLE_NAMES
        .iter()
        .map(|file| Path::new(file).to_owned())
        .collect();
    for directory in TABLE_DIRECTORIES {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let entries = entries.map(|entry| entry.path());
        files.extend(entries.filter(|path| path.extension().is_some_and(|end| end == "conf")));
    }
    for file in files {
        let text = fs::read_to_string(file).unwrap_or_default();
        if let Some(number) = number_of(name, &text) {
            return Ok(number);
        }
    }
    bail!(
        "Table: there is no routing table {name}: give its number, or name it in {}",
        TABLE_NAMES[0]
    )
}

/// Looks a name up in a file of lines `NUMBER NAME`.
fn number_of(name: &str, text: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (number, word) = (words.next()?, words.next()?);
        let number = match number.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok()?,
            None => number.parse().ok()?,
        };
        (word == name).then_some(number)
    })
}

/// The MTU for a tunnel to these endpoints: the largest of the paths to them, else that of the default route, less what
/// the tunnel adds.
pub(super) fn mtu(endpoints: &[SocketAddr]) -> Result<u32> {
    let mut largest = 0;
    for endpoint in endpoints {
        let route = netlink::route_to(endpoint.ip()).context("cannot ask for a route")?;
        largest = largest.max(route.map_or(Ok(0), path_mtu)?);
    }
    if largest == 0 {
        let routes = netlink::routes(true, MAIN_TABLE).context("cannot read the routing table")?;
        let default = routes.into_iter().find(|route| route.prefix_length == 0);
        largest = default.map_or(Ok(0), path_mtu)?;
    }
    if largest == 0 {
        largest = ETHERNET;
    }
    Ok(largest.saturating_sub(OVERHEAD))
}

/// Of a route, or of the interface it leads to; 0 if neither is known.
fn path_mtu(route: TableRoute) -> Result<u32> {
    if let Some(mtu) = route.mtu {
        return Ok(mtu);
    }
    let links = netlink::links().context("cannot ask the kernel for its interfaces")?;
    let link = links.iter().find(|link| link.index == route.interface);
    Ok(link.map_or(0, |link| link.mtu))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        crate::config::value::allowed_ip(text).unwrap().0
    }

    #[test]
    fn shorter_prefixes_cover_longer_ones() {
        let route = |text: &str| TableRoute {
            destination: prefix(text).address(),
            prefix_length: prefix(text).length(),
            table: MAIN_TABLE,
            interface: 1,
            mtu: None,
        };
        assert!(covers(&route("10.9.0.0/24"), prefix("10.9.0.2/32")));
        assert!(covers(&route("10.9.0.0/24"), prefix("10.9.0.0/24")));
        assert!(covers(&route("0.0.0.0/0"), prefix("10.9.0.0/24")));
        assert!(!covers(&route("10.9.0.0/24"), prefix("10.9.0.0/16")));
        assert!(!covers(&route("10.9.0.0/24"), prefix("10.8.0.0/32")));
        assert!(!covers(&route("0.0.0.0/0"), prefix("fd00::/64")));
    }

    #[test]
    fn longest_prefixes_come_first() {
        let state = State::with_prefixes(
            ["10.0.0.0/8", "0.0.0.0/0", "fd00::1/128", "10.1.0.0/16"].map(prefix),
        );
        let sorted: Vec<_> = prefixes(&state).iter().map(Prefix::length).collect();
        assert_eq!(sorted, [128, 16, 8, 0]);
    }

    #[test]
    fn tables_have_names() {
        let text = "# reserved\n255\tlocal\n0x10 sixteen # here\n#7 seven\n";
        assert_eq!(number_of("sixteen", text), Some(16));
        assert_eq!(number_of("seven", text), None);
        assert_eq!(named_table("main").unwrap(), 254);
        assert!(named_table("no-such-table").is_err());
        assert_eq!(table(Some(&Table::Off)).unwrap(), None);
    }
}
