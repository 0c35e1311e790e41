//! Paths narrower than the tunnel assumes, that say so or do not, and paths that change: content gets through in every case,
//! and who sends what is too large is told.
//!
//! ```text
//!   left ── 1500 ── near ══ narrow ══ far ── 1500 ── right
//! ```

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use adit_tests::command::{Running, output};
use adit_tests::daemon::Options;
use adit_tests::link::{End, forward, veth};
use adit_tests::ping::{ping, ping_all, wait_reachable};
use adit_tests::transfer::{tcp_both_ways, udp_echo};
use adit_tests::tunnel::{Family, HANDSHAKE_LIMIT, PORT, Site, WAN};
use adit_tests::wait::wait_until;
use adit_tests::{Namespace, uapi};
use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::xdp::{GENERIC, NATIVE, Wire, values, wait_steering};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Largest payload of a ping that fits the tunnel's MTU of 1420.
const LARGE: usize = 1420 - 28;
/// The tunnel looks once a second, and the kernel forgets what routers said after [`EXPIRES`].
const LIMIT: Duration = Duration::from_secs(20);
const EXPIRES: &str = "3";
/// No path is probed more often.
const PROBED: Duration = Duration::from_secs(5);

/// Two sites with two routers between them.
struct Path {
    left: Site,
    right: Site,
    near: Namespace,
    far: Namespace,
    outer: Family,
}

impl Path {
    /// With a tunnel over addresses of this family, and a link of this MTU in the middle.
    fn new(outer: Family, mtu: u32) -> Result<Self> {
        let [left, near, far, right] = [(); 4].map(|()| Namespace::new());
        let (left, near, far, right) = (left?, near?, far?, right?);
        let end = |namespace, interface, addresses| End {
            namespace,
            interface,
            addresses,
        };
        veth(
            end(&left, WAN, &["198.51.100.1/30", "2001:db8:a::1/64"]),
            end(&near, "out0", &["198.51.100.2/30", "2001:db8:a::2/64"]),
            1500,
        )?;
        veth(
            end(&near, "mid0", &["203.0.113.1/30", "2001:db8:c::1/64"]),
            end(&far, "mid0", &["203.0.113.2/30", "2001:db8:c::2/64"]),
            mtu,
        )?;
        veth(
            end(&far, "out0", &["192.0.2.1/30", "2001:db8:b::1/64"]),
            end(&right, WAN, &["192.0.2.2/30", "2001:db8:b::2/64"]),
            1500,
        )?;
        for router in [&near, &far] {
            forward(router)?;
        }
        near.ip("route add default via 203.0.113.2\nroute add default via 2001:db8:c::2")?;
        far.ip("route add default via 203.0.113.1\nroute add default via 2001:db8:c::1")?;
        left.ip("route add default via 198.51.100.2\nroute add default via 2001:db8:a::2")?;
        right.ip("route add default via 192.0.2.1\nroute add default via 2001:db8:b::1")?;
        for host in [&left, &right] {
            host.sysctl("net.ipv4.route.mtu_expires", EXPIRES)?;
            host.sysctl("net.ipv6.route.mtu_expires", EXPIRES)?;
        }
        let path = Self {
            left: Site::start(left, 1, 1420, &Options::default())?,
            right: Site::start(right, 2, 1420, &Options::default())?,
            near,
            far,
            outer,
        };
        for (site, peer) in [(&path.left, &path.right), (&path.right, &path.left)] {
            let endpoint = SocketAddr::new(path.address(peer), PORT);
            site.add_peer(peer, &format!("endpoint {endpoint}"))?;
        }
        wait_reachable(
            &path.left.namespace,
            path.right.inner(Family::V4),
            HANDSHAKE_LIMIT,
        )?;
        Ok(path)
    }

    /// Outer address of a site.
    fn address(&self, site: &Site) -> IpAddr {
        let text = match (self.outer, site.number) {
            (Family::V4, 1) => "198.51.100.1",
            (Family::V4, _) => "192.0.2.2",
            (Family::V6, 1) => "2001:db8:a::1",
            (Family::V6, _) => "2001:db8:b::2",
        };
        text.parse().unwrap_or(IpAddr::from([0; 4]))
    }

    fn set_mtu(&self, mtu: u32) -> Result<()> {
        for router in [&self.near, &self.far] {
            router.ip(&format!("link set mid0 mtu {mtu}"))?;
        }
        Ok(())
    }

    /// The routers do not say what does not fit.
    fn mute(&self) -> Result<()> {
        for router in [&self.near, &self.far] {
            router.nft(
                "table inet mute {
                   chain out {
                     type filter hook output priority 0;
                     icmp type destination-unreachable drop;
                     icmpv6 type packet-too-big drop;
                   }
                 }",
            )?;
        }
        Ok(())
    }

    fn carry(&self, mebibytes: usize) -> Result<()> {
        for inner in FAMILIES {
            tcp_both_ways(&self.left, &self.right, inner, mebibytes << 20)?;
        }
        let (from, to) = (&self.left.namespace, &self.right.namespace);
        let address = self.right.inner(Family::V4);
        udp_echo(from, to, address, &[0, 1000, LARGE, LARGE, LARGE])
    }

    /// Bytes of an inner packet that fit an outer one.
    fn room(&self, mtu: usize) -> usize {
        mtu - if self.outer == Family::V4 { 60 } else { 80 }
    }

    fn check_running(&mut self) -> Result<()> {
        ensure!(self.left.daemon.running() && self.right.daemon.running());
        Ok(())
    }
}

fn counter(site: &Site, name: &str) -> Result<u64> {
    uapi::number(site.interface(), &format!("adit_{name}"))
}

/// What one large ping that must not be fragmented prints, from left to right.
fn large_ping(path: &Path, inner: Family) -> Result<String> {
    let mut command = path.left.namespace.command("ping");
    let to = path.right.inner(inner).to_string();
    let size = (1420 - if inner == Family::V4 { 28 } else { 48 }).to_string();
    command.args(["-n", "-M", "do", "-c", "1", "-W", "2", "-s", &size, &to]);
    let output = output(&mut command)?;
    Ok(output.stdout + &output.stderr)
}

/// Waits until a host that sends packets of the tunnel's MTU is told that so many bytes fit.
fn wait_told(path: &Path, room: usize) -> Result<()> {
    let mut said = String::new();
    for inner in FAMILIES {
        wait_until("large packets are answered with what fits", LIMIT, || {
            said = large_ping(path, inner).unwrap_or_default();
            let answers = [
                format!("mtu = {room}"),
                format!("mtu={room}"),
                format!("mtu: {room}"),
            ];
            answers.iter().any(|answer| said.contains(answer))
        })
        .with_context(|| said.clone())?;
    }
    Ok(())
}

/// Waits until packets of the tunnel's MTU get through, whole, with nobody being told anything.
fn wait_wide(path: &Path) -> Result<()> {
    wait_until("large packets fit", LIMIT, || {
        let whole = || -> Result<bool> {
            let before = counter(&path.left, "udp_fragmented_datagrams")?;
            let said = large_ping(path, Family::V4)?;
            let after = counter(&path.left, "udp_fragmented_datagrams")?;
            Ok(said.contains(" 0% packet loss") && !said.contains("mtu") && before == after)
        };
        whole().unwrap_or(false)
    })
}

/// A transfer after which next to nothing was sent in fragments: TCP has learnt what fits.
fn whole_segments(path: &Path) -> Result<()> {
    for attempt in 0..5 {
        let before = counter(&path.left, "udp_fragmented_datagrams")?;
        let sent = counter(&path.left, "udp_sent_datagrams")?;
        let (from, to) = (&path.left.namespace, &path.right.namespace);
        adit_tests::transfer::tcp(from, to, path.right.inner(Family::V4), 4 << 20)?;
        let fragmented = counter(&path.left, "udp_fragmented_datagrams")? - before;
        let sent = counter(&path.left, "udp_sent_datagrams")? - sent;
        // What the kernel was told expires now and then, here and inside.
        if sent > 1000 && fragmented * 5 < sent {
            return Ok(());
        }
        ensure!(attempt < 4, "{fragmented} of {sent} datagrams in fragments");
    }
    Ok(())
}

#[test]
fn a_narrow_link_that_says_so() -> Result<()> {
    for outer in FAMILIES {
        let mut path = Path::new(outer, 1400)?;
        path.carry(1)?;
        wait_told(&path, path.room(1400))?;
        whole_segments(&path)?;
        ensure!(counter(&path.left, "path_mtu_told")? > 0);
        // Wide again, which nobody says: it is found out when the kernel forgets.
        path.set_mtu(1500)?;
        path.carry(1)?;
        wait_wide(&path)?;
        // Narrower while in use. Over IPv4 that is found out within a minute, or when routes have changed.
        path.set_mtu(1380)?;
        path.carry(1)?;
        std::thread::sleep(PROBED);
        path.left
            .namespace
            .ip("route add 198.18.0.0/15 via 198.51.100.2")?;
        wait_told(&path, path.room(1380))?;
        path.check_running()?;
    }
    Ok(())
}

/// Over IPv4 the routers fragment, and TCP does not even notice.
#[test]
fn a_black_hole_over_ipv4() -> Result<()> {
    let mut path = Path::new(Family::V4, 1500)?;
    path.mute()?;
    path.set_mtu(1300)?;
    path.carry(4)?;
    // The probes are what is lost.
    wait_until("path probed", LIMIT, || {
        let (from, to) = (&path.left.namespace, path.right.inner(Family::V4));
        let _ = ping(from, to, 5, LARGE);
        counter(&path.left, "path_mtu_probes").is_ok_and(|probes| probes > 0)
    })?;
    path.carry(4)?;
    let probes = counter(&path.left, "path_mtu_probes")?;
    ensure!(probes <= 3, "{probes} probes");
    ping_all(&path.left.namespace, path.right.inner(Family::V4), 5, LARGE)?;
    path.check_running()
}

/// Over IPv6 nobody fragments: the tunnel sees that TCP repeats in vain, and has it send less.
#[test]
fn a_black_hole_over_ipv6() -> Result<()> {
    let mut path = Path::new(Family::V6, 1500)?;
    path.carry(1)?;
    path.mute()?;
    path.set_mtu(1400)?;
    let mut pings = Vec::new();
    for (site, peer) in [(&path.left, &path.right), (&path.right, &path.left)] {
        let mut command = site.namespace.command("ping");
        let to = peer.inner(Family::V4).to_string();
        pings.push(Running::start(
            command.args(["-i", "0.1", "-w", "60", &to]),
        )?);
    }
    let (from, to) = (&path.left.namespace, &path.right.namespace);
    for inner in FAMILIES {
        adit_tests::transfer::tcp(from, to, path.right.inner(inner), 4 << 20)?;
    }
    let stalls = counter(&path.left, "path_mtu_stalls")?;
    ensure!(stalls > 0, "{stalls} stalls");
    // It is known from now on.
    whole_segments(&path)?;
    path.check_running()
}

#[test]
fn a_route_with_an_mtu_of_its_own() -> Result<()> {
    for outer in FAMILIES {
        let mut path = Path::new(outer, 1500)?;
        let gateway = if outer == Family::V4 {
            "198.51.100.2"
        } else {
            "2001:db8:a::2"
        };
        let route = format!("route replace {} via {gateway}", path.address(&path.right));
        path.left.namespace.ip(&format!("{route} mtu 1380"))?;
        path.carry(1)?;
        wait_told(&path, path.room(1380))?;
        whole_segments(&path)?;
        path.left.namespace.ip(&route)?;
        wait_wide(&path)?;
        path.carry(1)?;
        path.check_running()?;
    }
    Ok(())
}

/// An ICMP message from `from` that a packet of `left`'s tunnel to the right was too big.
fn forge(path: &Path, from: &Namespace, port: u16, mtu: u16) -> Result<()> {
    let (left, right) = (path.address(&path.left), path.address(&path.right));
    let udp = [&port.to_be_bytes()[..], &PORT.to_be_bytes(), &[5, 0, 0, 0]].concat();
    let (domain, protocol, message) = match (left, right) {
        (IpAddr::V4(left), IpAddr::V4(right)) => {
            let mut message = vec![3, 4, 0, 0, 0, 0];
            message.extend(mtu.to_be_bytes());
            message.extend([0x45, 0, 5, 20, 0, 0, 0x40, 0, 60, 17, 0, 0]);
            message.extend([left.octets(), right.octets()].concat());
            message.extend(&udp);
            let sum: u32 = message
                .chunks(2)
                .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
                .sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            let check = !u16::try_from((sum & 0xffff) + (sum >> 16))?;
            message[2..4].copy_from_slice(&check.to_be_bytes());
            (Domain::IPV4, Protocol::ICMPV4, message)
        }
        (IpAddr::V6(left), IpAddr::V6(right)) => {
            // The kernel writes the checksum.
            let mut message = vec![2, 0, 0, 0, 0, 0];
            message.extend(mtu.to_be_bytes());
            message.extend([0x60, 0, 0, 0, 5, 0, 17, 60]);
            message.extend([left.octets(), right.octets()].concat());
            message.extend(&udp);
            (Domain::IPV6, Protocol::ICMPV6, message)
        }
        _ => anyhow::bail!("two families"),
    };
    let socket = from.enter(|| Socket::new(domain, Type::RAW, Some(protocol)))??;
    socket.send_to(&message, &SocketAddr::new(left, 0).into())?;
    Ok(())
}

/// What the left host's kernel knows of the path to the right.
fn known(path: &Path) -> Result<Option<u32>> {
    let right = path.address(&path.right);
    let shown = path.left.namespace.run(&format!(
        "ip route get {right} sport {PORT} dport {PORT} ipproto udp"
    ))?;
    let mut words = shown.split_whitespace();
    Ok(words
        .find(|word| *word == "mtu")
        .and_then(|_| words.next()?.parse().ok()))
}

/// Anybody may forge such messages. They cost throughput for a while, never the connection, and go down to what every
/// path takes.
#[test]
fn forged_messages_have_bounds() -> Result<()> {
    for outer in FAMILIES {
        let mut path = Path::new(outer, 1500)?;
        // So that what is forged stays for the test.
        path.left
            .namespace
            .sysctl("net.ipv4.route.mtu_expires", "600")?;
        path.left
            .namespace
            .sysctl("net.ipv6.route.mtu_expires", "600")?;
        path.carry(1)?;
        // About another socket of this host's, which there is none.
        forge(&path, &path.near, PORT + 1, 1000)?;
        std::thread::sleep(Duration::from_millis(100));
        ensure!(known(&path)?.is_none_or(|mtu| mtu == 1500), "believed");
        for mtu in [0, 68, 400] {
            forge(&path, &path.near, PORT, mtu)?;
        }
        std::thread::sleep(Duration::from_millis(100));
        let least = if outer == Family::V4 { 552 } else { 1280 };
        let mtu = known(&path)?.unwrap_or(1500);
        ensure!(mtu >= least, "{mtu}");
        path.carry(1)?;
        ping_all(&path.left.namespace, path.right.inner(Family::V6), 5, 1200)?;
        path.check_running()?;
    }
    Ok(())
}

/// An underlay of 9000 bytes: the tunnel takes 8920, by the UDP socket and where XDP was asked for.
#[test]
fn jumbo() -> Result<()> {
    let socket = Wire {
        environment: &[("ADIT_DATAPATH", "socket")],
        ..NATIVE
    };
    for (wire, steers) in [(socket, false), (NATIVE, false), (GENERIC, true)] {
        let mut pair = wire.pair()?;
        for site in [&pair.left, &pair.right] {
            site.namespace.ip(&format!(
                "link set {WAN} mtu 9000\nlink set {} mtu 8920",
                site.interface()
            ))?;
        }
        pair.wait_connected()?;
        if steers {
            wait_steering(&pair.left)?;
        }
        for inner in FAMILIES {
            tcp_both_ways(&pair.left, &pair.right, inner, 8 << 20)?;
        }
        let (from, to) = (&pair.left.namespace, pair.right.inner(Family::V4));
        ping_all(from, to, 10, 8920 - 28)?;
        udp_echo(from, &pair.right.namespace, to, &[1, 4000, 8892])?;
        ping_all(
            &pair.right.namespace,
            pair.left.inner(Family::V6),
            10,
            8920 - 48,
        )?;
        for site in [&pair.left, &pair.right] {
            let fragmented = counter(site, "udp_fragmented_datagrams")?;
            ensure!(fragmented == 0, "{fragmented} datagrams in fragments");
            let refused = counter(site, "udp_gso_refused")?;
            ensure!(
                refused == 0,
                "{refused} {:?}",
                values(site, "adit_datapath")
            );
        }
        pair.check_running()?;
    }
    Ok(())
}
