//! Network namespaces. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::UdpSocket;

use adit_kernel::netlink::link_by_name;
use adit_kernel::netns::NetworkNamespace;
use common::{ip, namespace};

#[test]
fn work_happens_inside_and_leaves_the_caller_where_it_was() {
    let home = NetworkNamespace::current().unwrap().id().unwrap();
    let (one, other) = (namespace(), namespace());
    let ids = [one.id().unwrap(), other.id().unwrap(), home];
    assert!(ids[0] != ids[1] && ids[1] != home && ids[0] != home);
    let inside = one
        .run_in(|| NetworkNamespace::current().unwrap().id().unwrap())
        .unwrap();
    assert_eq!(inside, ids[0]);
    assert_eq!(NetworkNamespace::current().unwrap().id().unwrap(), home);

    one.run_in(|| ip("link add inner0 type veth peer name inner1"))
        .unwrap();
    let exists = |place: &NetworkNamespace| place.run_in(|| link_by_name("inner0")).unwrap();
    assert!(exists(&one).unwrap().is_some());
    assert!(exists(&other).unwrap().is_none());
}

#[test]
fn the_loopback_device_is_up() {
    namespace()
        .run_in(|| {
            assert!(link_by_name("lo").unwrap().unwrap().up);
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 1);
        })
        .unwrap();
}

#[test]
#[should_panic(expected = "from inside")]
fn a_panic_inside_comes_out() {
    let _ = namespace().run_in(|| panic!("from inside"));
}
