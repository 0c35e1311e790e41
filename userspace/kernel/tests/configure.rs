//! Addresses, routes and rules made here are those that `ip(8)` makes, in namespaces. Needs root.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::IpAddr;

use adit_kernel::netlink::{
    InterfaceAddress, MAIN_TABLE, Rule, add_address, add_route, add_rule, delete_link, delete_rule,
    interface_addresses, link_by_name, route_to, routes, rules, set_up,
};
use common::{ip, ip_output, namespace};

const TABLE: u32 = 51820;

fn address(text: &str) -> (IpAddr, u8) {
    let (address, length) = text.split_once('/').unwrap();
    (address.parse().unwrap(), length.parse().unwrap())
}

/// What `ip` shows after `configure` was run in a namespace with a device `wire0`.
fn after(configure: impl FnOnce(u32) + Send) -> String {
    namespace()
        .run_in(|| {
            ip("link add wire0 type veth peer name wire1");
            ip("link set wire0 address 02:00:00:00:00:01 addrgenmode none");
            configure(link_by_name("wire0").unwrap().unwrap().index);
            [
                "-d address show dev wire0",
                "-d -4 route show table all dev wire0",
                "-d -6 route show table all dev wire0",
                "-d -4 rule",
                "-d -6 rule",
            ]
            .map(ip_output)
            .concat()
            .replace("forever", "")
        })
        .unwrap()
}

fn rule(ipv4: bool) -> [Rule; 2] {
    let plain = Rule {
        ipv4,
        table: TABLE,
        unless_mark: Some(TABLE),
        suppress_prefix_length: None,
    };
    let main = Rule {
        table: MAIN_TABLE,
        unless_mark: None,
        suppress_prefix_length: Some(0),
        ..plain
    };
    [plain, main]
}

#[test]
fn the_same_as_ip_makes() {
    let ours = after(|index| {
        for text in ["10.9.0.1/24", "127.9.0.1/8", "10.8.0.1/32", "fd09::1/64"] {
            let (address, prefix_length) = address(text);
            let wanted = InterfaceAddress {
                address,
                prefix_length,
            };
            add_address(index, wanted).unwrap();
            assert_eq!(
                add_address(index, wanted).unwrap_err().raw_os_error(),
                Some(17)
            );
            assert!(interface_addresses(index).unwrap().contains(&wanted));
        }
        set_up(index, 1380).unwrap();
        for (text, table) in [
            ("10.1.0.0/16", MAIN_TABLE),
            ("10.2.3.4/32", 7),
            ("0.0.0.0/0", TABLE),
            ("fd01::/48", MAIN_TABLE),
            ("::/0", TABLE),
        ] {
            let (destination, length) = address(text);
            add_route(destination, length, index, table).unwrap();
            assert!(add_route(destination, length, index, table).is_err());
            let found = routes(destination.is_ipv4(), table).unwrap();
            assert!(found.iter().any(|route| {
                (route.destination, route.prefix_length, route.interface)
                    == (destination, length, index)
            }));
        }
        for rule in [true, false].into_iter().flat_map(rule) {
            add_rule(&rule).unwrap();
        }
    });
    let theirs = after(|_| {
        for text in ["10.9.0.1/24", "127.9.0.1/8", "10.8.0.1/32"] {
            ip(&format!("-4 address add {text} dev wire0"));
        }
        ip("-6 address add fd09::1/64 dev wire0");
        ip("link set mtu 1380 up dev wire0");
        ip("-4 route add 10.1.0.0/16 dev wire0");
        ip("-4 route add 10.2.3.4/32 dev wire0 table 7");
        ip("-4 route add 0.0.0.0/0 dev wire0 table 51820");
        ip("-6 route add fd01::/48 dev wire0");
        ip("-6 route add ::/0 dev wire0 table 51820");
        for family in ["-4", "-6"] {
            ip(&format!("{family} rule add not fwmark 51820 table 51820"));
            ip(&format!(
                "{family} rule add table main suppress_prefixlength 0"
            ));
        }
    });
    assert_eq!(ours, theirs);
}

#[test]
fn rules_are_found_and_deleted_by_what_they_say() {
    namespace()
        .run_in(|| {
            let before = ip_output("-4 rule") + &ip_output("-6 rule");
            ip("rule add from 10.0.0.0/8 not fwmark 51820 table 51820");
            ip("rule add not fwmark 7 iif lo table 51820");
            let strange = ip_output("-4 rule");
            for ipv4 in [true, false] {
                let [plain, main] = rule(ipv4);
                add_rule(&plain).unwrap();
                add_rule(&main).unwrap();
                let found = rules(ipv4).unwrap();
                let priority = |wanted| found.iter().find(|(_, rule)| *rule == wanted).unwrap().0;
                assert_eq!(priority(main) + 1, priority(plain));
                assert!(delete_rule(&plain, priority(main)).is_err());
                delete_rule(&main, priority(main)).unwrap();
                delete_rule(&plain, priority(plain)).unwrap();
                assert!(
                    !rules(ipv4)
                        .unwrap()
                        .iter()
                        .any(|(_, rule)| [plain, main].contains(rule))
                );
            }
            assert_eq!(ip_output("-4 rule"), strange);
            ip("rule del from 10.0.0.0/8 not fwmark 51820 table 51820");
            ip("rule del not fwmark 7 iif lo table 51820");
            assert_eq!(ip_output("-4 rule") + &ip_output("-6 rule"), before);
        })
        .unwrap();
}

#[test]
fn the_mtu_of_a_path_is_the_routes_own() {
    namespace()
        .run_in(|| {
            ip("link add wire0 type veth peer name wire1");
            ip("link set wire0 mtu 1400 up");
            ip("link set wire1 up");
            ip("route add 192.0.2.0/24 dev wire0 mtu 1300");
            ip("route add 198.51.100.0/24 dev wire0");
            let index = link_by_name("wire0").unwrap().unwrap().index;
            let route = |text: &str| route_to(text.parse().unwrap()).unwrap();
            let narrow = route("192.0.2.1").unwrap();
            assert_eq!((narrow.interface, narrow.mtu), (index, Some(1300)));
            let wide = route("198.51.100.1").unwrap();
            assert_eq!((wide.interface, wide.mtu), (index, None));
            assert_eq!(route("203.0.113.1"), None);
            assert_eq!(routes(true, MAIN_TABLE).unwrap()[0].mtu, Some(1300));
        })
        .unwrap();
}

#[test]
fn a_deleted_link_is_gone() {
    namespace()
        .run_in(|| {
            ip("link add wire0 type veth peer name wire1");
            let index = link_by_name("wire0").unwrap().unwrap().index;
            delete_link(index).unwrap();
            assert_eq!(link_by_name("wire0").unwrap(), None);
            assert_eq!(delete_link(index).unwrap_err().raw_os_error(), Some(19));
        })
        .unwrap();
}
