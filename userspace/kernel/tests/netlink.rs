//! Following devices and routes, each test in a namespace of its own. Needs root.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::IpAddr;
use std::os::fd::AsFd;

use adit_kernel::netlink::{LinkEvent, LinkMonitor, RouteMonitor, link_by_name, route_interface};
use adit_kernel::tun::{Tun, TunOptions};
use common::{ip, namespace, path, readable, wait};

fn create() -> (Tun, LinkMonitor) {
    let tun = Tun::create("adit0", &TunOptions::default()).expect("a TUN device");
    let monitor = LinkMonitor::new(&tun).expect("a monitor");
    (tun, monitor)
}

/// A device that is up, and so is its other end.
fn create_veth(name: &str) {
    ip(&format!("link add {name} type veth peer name {name}-peer"));
    ip(&format!("link set {name}-peer up"));
    ip(&format!("link set {name} up"));
}

/// Waits for the next event.
fn next(tun: &Tun, monitor: &mut LinkMonitor) -> LinkEvent {
    loop {
        if let Some(event) = monitor.next_event(tun).unwrap() {
            return event;
        }
        assert!(wait(monitor.as_fd()), "no event");
    }
}

/// What is there without waiting.
fn events(tun: &Tun, monitor: &mut LinkMonitor) -> Vec<LinkEvent> {
    std::iter::from_fn(|| monitor.next_event(tun).unwrap()).collect()
}

#[test]
fn state_comes_first_and_changes_follow() {
    namespace()
        .run_in(|| {
            let (tun, mut monitor) = create();
            assert!(readable(monitor.as_fd()));
            assert_eq!(
                events(&tun, &mut monitor),
                [LinkEvent::Mtu(1500), LinkEvent::Down]
            );
            assert!(!readable(monitor.as_fd()));
            ip("link set adit0 up");
            assert_eq!(next(&tun, &mut monitor), LinkEvent::Up);
            tun.set_mtu(1400).unwrap();
            assert_eq!(next(&tun, &mut monitor), LinkEvent::Mtu(1400));
            ip("link set adit0 down");
            ip("link set adit0 name other0");
            ip("link set other0 mtu 1300");
            assert_eq!(next(&tun, &mut monitor), LinkEvent::Down);
            assert_eq!(next(&tun, &mut monitor), LinkEvent::Mtu(1300));
            ip("link add adit0 mtu 1200 type veth peer name adit1");
            ip("link delete adit0");
            assert_eq!(
                events(&tun, &mut monitor),
                [],
                "another device of the old name"
            );
            ip("link delete other0");
            assert_eq!(next(&tun, &mut monitor), LinkEvent::Gone);
            assert_eq!(events(&tun, &mut monitor), []);
        })
        .unwrap();
}

#[test]
fn changes_before_the_first_read_are_not_lost() {
    namespace()
        .run_in(|| {
            let (tun, mut monitor) = create();
            ip("link set adit0 up mtu 1400");
            ip("link set adit0 down");
            ip("link set adit0 up");
            let events = events(&tun, &mut monitor);
            assert_eq!(events.first(), Some(&LinkEvent::Mtu(1500)));
            assert!(events.contains(&LinkEvent::Mtu(1400)));
            assert_eq!(events.last(), Some(&LinkEvent::Up));
        })
        .unwrap();
}

#[test]
fn a_device_gone_before_the_monitor_is_told() {
    namespace()
        .run_in(|| {
            let tun = Tun::create("adit0", &TunOptions::default()).unwrap();
            ip("link delete adit0");
            let mut monitor = LinkMonitor::new(&tun).unwrap();
            assert_eq!(events(&tun, &mut monitor), [LinkEvent::Gone]);
        })
        .unwrap();
}

#[test]
fn a_device_is_followed_to_another_namespace_and_back() {
    let (home, away) = (namespace(), namespace());
    home.run_in(|| {
        let (tun, mut monitor) = create();
        ip("link set adit0 up");
        assert_eq!(
            events(&tun, &mut monitor),
            [LinkEvent::Mtu(1500), LinkEvent::Down, LinkEvent::Up]
        );
        ip(&format!("link set adit0 netns {}", path(&away)));
        // The kernel takes it down to move it.
        let mut event = next(&tun, &mut monitor);
        if event == LinkEvent::Down {
            event = next(&tun, &mut monitor);
        }
        assert_eq!(event, LinkEvent::Moved);
        assert_eq!(next(&tun, &mut monitor), LinkEvent::Mtu(1500));
        assert_eq!(next(&tun, &mut monitor), LinkEvent::Down);
        away.run_in(|| {
            ip("link set adit0 name inner0");
            ip("link set inner0 up mtu 1380");
        })
        .unwrap();
        let mut changes = [next(&tun, &mut monitor), next(&tun, &mut monitor)];
        changes.sort_by_key(|event| *event != LinkEvent::Up);
        assert_eq!(changes, [LinkEvent::Up, LinkEvent::Mtu(1380)]);

        away.run_in(|| ip(&format!("link set inner0 netns {}", path(&home))))
            .unwrap();
        while next(&tun, &mut monitor) != LinkEvent::Moved {}
        assert_eq!(next(&tun, &mut monitor), LinkEvent::Mtu(1380));
        assert_eq!(next(&tun, &mut monitor), LinkEvent::Down);
        ip("link delete inner0");
        assert_eq!(next(&tun, &mut monitor), LinkEvent::Gone);
    })
    .unwrap();
}

#[test]
fn a_device_deleted_elsewhere_is_gone() {
    let (home, away) = (namespace(), namespace());
    home.run_in(|| {
        let (tun, mut monitor) = create();
        ip(&format!("link set adit0 netns {}", path(&away)));
        while next(&tun, &mut monitor) != LinkEvent::Moved {}
        away.run_in(|| ip("link delete adit0")).unwrap();
        while next(&tun, &mut monitor) != LinkEvent::Gone {}
    })
    .unwrap();
}

/// The monitor must not keep the other namespace alive.
#[test]
fn a_device_goes_with_its_namespace() {
    let (home, away) = (namespace(), namespace());
    home.run_in(move || {
        let (tun, mut monitor) = create();
        ip(&format!("link set adit0 netns {}", path(&away)));
        while next(&tun, &mut monitor) != LinkEvent::Moved {}
        assert!(tun.mtu().is_ok());
        drop(away);
        while next(&tun, &mut monitor) != LinkEvent::Gone {}
    })
    .unwrap();
}

/// More changes than the socket holds: the state is asked for again.
#[test]
fn an_overrun_ends_with_the_right_state() {
    namespace()
        .run_in(|| {
            let (tun, mut monitor) = create();
            for mtu in 1000..2000 {
                tun.set_mtu(mtu).unwrap();
            }
            let events = events(&tun, &mut monitor);
            assert!(
                events.len() < 1000,
                "nothing was lost, so nothing was tested"
            );
            assert_eq!(events.last(), Some(&LinkEvent::Mtu(1999)));
        })
        .unwrap();
}

#[test]
fn changes_of_addresses_and_routes_are_told_once() {
    namespace()
        .run_in(|| {
            create_veth("out0");
            let mut monitor = RouteMonitor::new().unwrap();
            for change in [
                "address add 192.0.2.1/24 dev out0",
                "route add 198.51.100.0/24 via 192.0.2.2",
                "rule add fwmark 7 table 100",
                "-6 rule add fwmark 7 table 100",
                "-6 address add 2001:db8::1/64 dev out0 nodad",
                "link set out0 down",
            ] {
                while monitor.changed().unwrap() {}
                assert!(!readable(monitor.as_fd()));
                ip(change);
                assert!(wait(monitor.as_fd()), "{change}");
                assert!(monitor.changed().unwrap(), "{change}");
            }
        })
        .unwrap();
}

#[test]
fn routes_follow_source_and_mark() {
    namespace()
        .run_in(|| {
            for (device, subnet) in [("out0", 1), ("out1", 2)] {
                create_veth(device);
                ip(&format!("address add 192.0.{subnet}.1/24 dev {device}"));
            }
            ip("-6 address add 2001:db8::1/64 dev out1 nodad");
            ip("route add default via 192.0.1.2");
            ip("route add default via 192.0.2.2 table 100");
            ip("rule add fwmark 7 table 100");
            ip("route add unreachable 203.0.113.0/24");
            ip("-6 route add unreachable 2001:db8:dead::/48");
            let [out0, out1] =
                ["out0", "out1"].map(|name| link_by_name(name).unwrap().unwrap().index);
            let address = |text: &str| text.parse::<IpAddr>().unwrap();
            let route = |to: &str, source: Option<&str>, mark| {
                route_interface(address(to), source.map(address), mark).unwrap()
            };
            assert_eq!(route("198.51.100.1", None, 0), Some(out0));
            assert_eq!(route("198.51.100.1", None, 7), Some(out1));
            assert_eq!(route("198.51.100.1", Some("192.0.2.1"), 0), Some(out0));
            assert_eq!(route("198.51.100.1", Some("192.0.9.9"), 0), None);
            assert_eq!(route("192.0.2.9", None, 0), Some(out1));
            assert_eq!(route("203.0.113.1", None, 0), None);
            assert_eq!(route("2001:db8::9", None, 0), Some(out1));
            assert_eq!(route("2001:db8::9", Some("2001:db8::1"), 0), Some(out1));
            assert_eq!(route("2001:db8::9", Some("2001:db8::77"), 0), None);
            assert_eq!(route("2001:db8:dead::1", None, 0), None);
            assert_eq!(route("2001:db8:beef::1", None, 0), None);
        })
        .unwrap();
}
