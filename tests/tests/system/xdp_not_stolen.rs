//! Packets that look like the tunnel's and are not, or that XDP cannot steer, arrive where they would without it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use adit_tests::Namespace;
use adit_tests::link::{End, forward, veth};
use adit_tests::ping::{ping_all, ping_with};
use adit_tests::tunnel::{Family, PORT, Pair, WAN};
use adit_tests::wait::wait_until;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::xdp::{NATIVE, Wire, receives};
use crate::xdp_tools::{entries, pinned};

/// Datagrams as a tunnel's: each type at its length, other lengths, and none at all; among them what XDP drops when it
/// comes for the tunnel.
fn lookalikes() -> Vec<Vec<u8>> {
    let mut all = vec![vec![], vec![4], vec![0xff; 40]];
    for (kind, length) in [
        (1, 148),
        (2, 92),
        (3, 64),
        (4, 32),
        (4, 1452),
        (4, 31),
        (9, 500),
    ] {
        let mut datagram = vec![0; length];
        datagram[0] = kind;
        all.push(datagram);
    }
    all
}

/// Sends all [`lookalikes`] to `target`, where `receiver` gets each, unchanged and in order.
fn every_one_arrives(from: &UdpSocket, target: SocketAddr, receiver: &UdpSocket) -> Result<()> {
    receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = [0; 2048];
    for round in 0..20 {
        for datagram in lookalikes() {
            from.send_to(&datagram, target)?;
            let (length, _) = receiver
                .recv_from(&mut buffer)
                .with_context(|| format!("round {round}, {} bytes to {target}", datagram.len()))?;
            ensure!(buffer[..length] == datagram, "changed on the way");
        }
    }
    Ok(())
}

fn bind(namespace: &Namespace, address: impl Into<IpAddr>, port: u16) -> Result<UdpSocket> {
    let address = SocketAddr::new(address.into(), port);
    let socket = namespace.enter(|| UdpSocket::bind(address))?;
    socket.with_context(|| address.to_string())
}

/// The tunnel works, through AF_XDP.
fn tunnel_works(pair: &Pair) -> Result<()> {
    receives(&pair.right, (10, 0), || {
        ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 10, 100)
    })
}

/// A host behind a site, which forwards what is for it.
fn host_beyond(router: &Namespace) -> Result<Namespace> {
    let beyond = Namespace::new()?;
    let ends = [
        (router, ["198.51.100.1/24", "2001:db8:1::1/64"]),
        (&beyond, ["198.51.100.2/24", "2001:db8:1::2/64"]),
    ];
    let [near, far] = ends.each_ref().map(|(namespace, addresses)| End {
        namespace,
        interface: "lan0",
        addresses,
    });
    veth(near, far, 1500)?;
    forward(router)?;
    beyond.ip("route add default via 198.51.100.1\nroute add ::/0 via 2001:db8:1::1")?;
    Ok(beyond)
}

/// The right site is a router, too. What it forwards has the tunnel's port.
#[test]
fn a_router_forwards_datagrams_with_the_tunnels_port() -> Result<()> {
    let mut pair = NATIVE.steering_pair()?;
    pair.wait_connected()?;
    let (left, router) = (&pair.left.namespace, &pair.right.namespace);
    let beyond = host_beyond(router)?;
    left.ip("route add 198.51.100.0/24 via 192.0.2.2\nroute add 2001:db8:1::/64 via 2001:db8::2")?;

    let pairs: [(IpAddr, IpAddr); 2] = [
        ("192.0.2.1".parse()?, "198.51.100.2".parse()?),
        ("2001:db8::1".parse()?, "2001:db8:1::2".parse()?),
    ];
    for (here, there) in pairs {
        let (client, server) = (bind(left, here, 0)?, bind(&beyond, there, PORT)?);
        every_one_arrives(&client, server.local_addr()?, &server)?;
        // And from that port.
        every_one_arrives(&server, client.local_addr()?, &client)?;
    }
    tunnel_works(&pair)?;
    pair.check_running()
}

/// The right site has a second address, whose datagrams for the tunnel's port its firewall sends to another host: a second
/// tunnel's, say, whose indices are not live here.
#[test]
fn a_firewall_forwards_datagrams_from_the_tunnels_port() -> Result<()> {
    let mut pair = NATIVE.steering_pair()?;
    pair.wait_connected()?;
    let (left, router) = (&pair.left.namespace, &pair.right.namespace);
    let beyond = host_beyond(router)?;
    router.ip(&format!("address add 192.0.2.77/24 dev {WAN}"))?;
    router.nft(&format!(
        "add table ip nat
         add chain ip nat in {{ type nat hook prerouting priority dstnat; }}
         add rule ip nat in ip daddr 192.0.2.77 udp dport {PORT} dnat to 198.51.100.2:{PORT}"
    ))?;
    let receiver = bind(&beyond, Ipv4Addr::UNSPECIFIED, PORT)?;
    let sender = bind(left, pair.left.outer(Family::V4), 0)?;
    let known = [192, 0, 2, 77].map(Value::from);
    wait_until("XDP knows the address", Duration::from_secs(10), || {
        entries(&pinned(&pair.right, "listeners")).is_ok_and(|listeners| {
            let addresses = listeners
                .iter()
                .filter_map(|entry| entry.pointer("/key/address"));
            let mut octets = addresses.filter_map(Value::as_array);
            octets.any(|octets| octets.ends_with(&known))
        })
    })?;
    every_one_arrives(
        &sender,
        SocketAddr::from(([192, 0, 2, 77], PORT)),
        &receiver,
    )?;
    tunnel_works(&pair)?;
    pair.check_running()
}

/// A container beside the right site has an address of its own on the same interface.
#[test]
fn another_process_on_another_address_has_the_tunnels_port() -> Result<()> {
    let mut pair = NATIVE.steering_pair()?;
    pair.wait_connected()?;
    let container = Namespace::new()?;
    pair.right.namespace.ip(&format!(
        "link add link {WAN} name inner0 netns {} type macvlan mode bridge",
        container.name()
    ))?;
    container.ip("link set inner0 up
         address add 192.0.2.3/24 dev inner0
         address add 2001:db8::3/64 dev inner0 nodad")?;
    let left = &pair.left.namespace;
    let pairs: [(IpAddr, IpAddr); 2] = [
        ("192.0.2.1".parse()?, "192.0.2.3".parse()?),
        ("2001:db8::1".parse()?, "2001:db8::3".parse()?),
    ];
    for (here, there) in pairs {
        let (client, server) = (bind(left, here, 0)?, bind(&container, there, PORT)?);
        every_one_arrives(&client, server.local_addr()?, &server)?;
    }
    tunnel_works(&pair)?;
    pair.check_running()
}

/// Another process of the right site has another port of the same address.
#[test]
fn another_port_of_the_same_address_is_left_alone() -> Result<()> {
    let mut pair = NATIVE.steering_pair()?;
    pair.wait_connected()?;
    for family in [Family::V4, Family::V6] {
        let client = bind(&pair.left.namespace, pair.left.outer(family), 0)?;
        let server = bind(&pair.right.namespace, pair.right.outer(family), PORT + 1)?;
        every_one_arrives(&client, server.local_addr()?, &server)?;
    }
    tunnel_works(&pair)?;
    pair.check_running()
}

/// The tunnel's MTU exceeds the wire's, so that large messages come in fragments, which XDP leaves to the stack, between
/// small ones, which it steers.
#[test]
fn fragments_reach_the_socket() -> Result<()> {
    for outer in [Family::V4, Family::V6] {
        let mut pair = Wire { outer, ..NATIVE }.steering_pair()?;
        for site in [&pair.left, &pair.right] {
            let interface = site.interface();
            site.namespace
                .ip(&format!("link set {interface} mtu 4000"))?;
        }
        pair.wait_connected()?;
        let (from, to) = (&pair.left.namespace, pair.right.inner(Family::V4));
        for _ in 0..5 {
            receives(&pair.right, (10, 10), || {
                // Whoever forbids fragments would be told to send less.
                let received = ping_with(from, to, 10, 3500, &["-M", "dont"])?;
                ensure!(received == 10, "{received} of 10 large ones");
                ping_all(from, to, 10, 100)
            })?;
        }
        pair.check_running()?;
    }
    Ok(())
}
