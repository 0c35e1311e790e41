//! The traffic of `traffic`, received through AF_XDP: XDP in native mode on veth, with one queue and with two, and in
//! generic mode. And what the other `xdp_…` modules start from: two sites whose daemons steer.

use std::time::Duration;

use adit_tests::daemon::Options;
use adit_tests::iperf::{Amount, Run};
use adit_tests::link::nodad;
use adit_tests::ping::ping_all;
use adit_tests::transfer::{tcp_both_ways, udp_echo};
use adit_tests::tunnel::{Family, Pair, Site, WAN, outer};
use adit_tests::wait::wait_until;
use adit_tests::{Namespace, uapi};
use anyhow::{Context as _, Result, ensure};

/// How long it may take until the daemon steers (again): it looks once a second, on a busy machine.
pub(crate) const STEERING_LIMIT: Duration = Duration::from_secs(20);

/// How long it may take until the counters tell of a packet that has arrived.
pub(crate) const SETTLED: Duration = Duration::from_secs(5);

/// How to build a pair of sites.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wire<'a> {
    /// RX and TX queues of both ends.
    pub(crate) queues: u32,
    /// Outer family.
    pub(crate) outer: Family,
    /// Environment of both daemons: how they receive.
    pub(crate) environment: &'a [(&'a str, &'a str)],
}

/// Both daemons receive through AF_XDP, in native mode.
pub(crate) const NATIVE: Wire<'_> = Wire {
    queues: 1,
    outer: Family::V4,
    environment: &[("ADIT_DATAPATH", "xdp"), ("ADIT_XDP_MODE", "native")],
};

/// Both daemons receive through AF_XDP, in generic mode.
pub(crate) const GENERIC: Wire<'_> = Wire {
    environment: &[("ADIT_DATAPATH", "xdp"), ("ADIT_XDP_MODE", "generic")],
    ..NATIVE
};

impl Wire<'_> {
    /// How its daemons are started.
    pub(crate) fn options(&self) -> Options {
        let environment = self.environment.iter();
        Options {
            environment: environment
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            ..Options::default()
        }
    }

    /// Two sites over a wire; their daemons are configured, and no packet was exchanged yet.
    pub(crate) fn pair(&self) -> Result<Pair> {
        let (left, right) = (Namespace::new()?, Namespace::new()?);
        connect(&left, &right, self.queues)?;
        let left = Site::start(left, 1, 1420, &self.options())?;
        let right = Site::start(right, 2, 1420, &self.options())?;
        for (site, peer) in [(&left, &right), (&right, &left)] {
            site.add_peer(peer, &format!("endpoint {}", peer.endpoint(self.outer)))?;
        }
        Ok(Pair { left, right })
    }

    /// [`Wire::pair`], as soon as both daemons steer: not a single data packet went another way.
    pub(crate) fn steering_pair(&self) -> Result<Pair> {
        let pair = self.pair()?;
        wait_steering(&pair.left)?;
        wait_steering(&pair.right)?;
        Ok(pair)
    }
}

/// Joins two namespaces by a wire with so many queues, and gives its ends the outer addresses of sites 1 and 2.
pub(crate) fn connect(left: &Namespace, right: &Namespace, queues: u32) -> Result<()> {
    let queues = format!("numrxqueues {queues} numtxqueues {queues}");
    left.ip(&format!(
        "link add {WAN} {queues} type veth peer name {WAN} {queues} netns {}",
        right.name()
    ))?;
    for (namespace, number) in [(left, 1), (right, 2)] {
        let mut lines = format!("link set {WAN} up\n");
        for (family, length) in [(Family::V4, 24), (Family::V6, 64)] {
            let address = outer(number, family).to_string();
            let nodad = nodad(&address);
            lines.push_str(&format!(
                "address add {address}/{length} dev {WAN} {nodad}\n"
            ));
        }
        namespace.ip(&lines)?;
    }
    Ok(())
}

/// The values of a key in the daemon's answer to `get`.
pub(crate) fn values(site: &Site, key: &str) -> Result<Vec<String>> {
    let answer = uapi::request(site.interface(), "get=1")?;
    let values = answer.into_iter().filter(|(name, _)| name == key);
    Ok(values.map(|(_, value)| value).collect())
}

/// Does the daemon say that it receives in this way: `xdp`, `socket`?
pub(crate) fn receives_by(site: &Site, path: &str) -> bool {
    values(site, "adit_datapath").is_ok_and(|values| values == [path])
}

/// Waits until the daemon steers.
pub(crate) fn wait_steering(site: &Site) -> Result<()> {
    wait_until("daemon steers", STEERING_LIMIT, || receives_by(site, "xdp"))
        .with_context(|| format!("{:?}", values(site, "adit_datapath_note")))
}

/// Data messages of live sessions that a daemon received, by the way they came; and datagrams it sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// By AF_XDP.
    pub(crate) xsk: u64,
    /// By the UDP socket.
    pub(crate) socket: u64,
    /// Data messages sent.
    pub(crate) sent: u64,
}

impl Traffic {
    /// Since the start of the daemon.
    pub(crate) fn of(site: &Site) -> Result<Self> {
        let number = |key| uapi::number(site.interface(), key);
        Ok(Self {
            xsk: number("adit_xsk_received_data")?,
            socket: number("adit_udp_received_data")?,
            sent: number("adit_udp_sent_datagrams")?,
        })
    }

    /// From `before` to `self`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            xsk: self.xsk - before.xsk,
            socket: self.socket - before.socket,
            sent: self.sent - before.sent,
        }
    }
}

/// During `work` the site receives exactly so many data messages by AF_XDP and by its socket.
///
/// # Errors
/// Others, or `work` failed.
pub(crate) fn receives(
    site: &Site,
    (xsk, socket): (u64, u64),
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    // A daemon counts after it has passed the packet on: let it count what came before.
    std::thread::sleep(Duration::from_millis(100));
    let before = Traffic::of(site)?;
    work()?;
    let told = || Ok::<_, anyhow::Error>(Traffic::of(site)?.since(before));
    let expected = |traffic: &Traffic| (traffic.xsk, traffic.socket) == (xsk, socket);
    wait_until("exactly what was sent", SETTLED, || {
        told().is_ok_and(|traffic| expected(&traffic))
    })
    .with_context(|| format!("expected {xsk} and {socket}: {:?}", told()))
}

/// Ping, verified TCP in both directions and UDP, iperf3 TCP and UDP, which comes in the order it was sent if `ordered`.
fn carry(pair: &Pair, inner: Family, mebibytes: usize, ordered: bool) -> Result<()> {
    let (left, right) = (&pair.left, &pair.right);
    for size in [0, 56, 1420 - 48] {
        ping_all(&left.namespace, right.inner(inner), 5, size)?;
        ping_all(&right.namespace, left.inner(inner), 5, size)?;
    }
    let (client, server, to) = (&left.namespace, &right.namespace, right.inner(inner));
    udp_echo(client, server, to, &[1, 1000, 1300])?;
    tcp_both_ways(left, right, inner, mebibytes << 20)?;
    let udp = ["-u", "-b", "20M", "-l", "1200"];
    for options in [&[][..], &["-R"], &udp, &[&udp[..], &["-R"]].concat()] {
        let run = Run {
            client,
            server,
            to,
            amount: Amount::Seconds(1),
            options,
        };
        let report = run.run()?;
        ensure!(report.bytes > 0, "no byte arrived: {run:?}");
        ensure!(
            report.datagrams == 0 || report.datagrams > report.lost,
            "no datagram arrived: {report:?}"
        );
        ensure!(
            !ordered || report.out_of_order == 0,
            "order within a flow changed: {report:?}"
        );
    }
    Ok(())
}

/// Everything came through AF_XDP: the traffic, and before it so many packets that are known by number.
fn all_through_xdp(pair: &mut Pair, inner: Family, mebibytes: usize) -> Result<()> {
    let (left, right) = (&pair.left, &pair.right);
    let begin = (Traffic::of(left)?, Traffic::of(right)?);
    ping_all(&left.namespace, right.inner(inner), 50, 500)?;
    let told = || -> Result<bool> {
        let (at_left, at_right) = (
            Traffic::of(left)?.since(begin.0),
            Traffic::of(right)?.since(begin.1),
        );
        Ok(at_left.sent >= 50 && at_left.xsk == at_right.sent && at_right.xsk == at_left.sent)
    };
    // A daemon counts after it has passed the packet on.
    wait_until("what was sent came through AF_XDP", SETTLED, || {
        told().unwrap_or(false)
    })
    .with_context(|| format!("{:?} {:?}", Traffic::of(left), Traffic::of(right)))?;
    carry(pair, inner, mebibytes, true)?;
    for (site, begin) in [(&pair.left, begin.0), (&pair.right, begin.1)] {
        let traffic = Traffic::of(site)?.since(begin);
        ensure!(
            traffic.socket == 0,
            "data came by the UDP socket: {traffic:?}"
        );
        ensure!(traffic.xsk > 1000, "hardly any data: {traffic:?}");
        ensure!(receives_by(site, "xdp"), "stopped to steer");
    }
    pair.check_running()
}

/// Both inner families over one outer family, on native XDP with so many queues.
fn native(outer: Family, queues: u32) -> Result<()> {
    let wire = Wire {
        outer,
        queues,
        ..NATIVE
    };
    let mut pair = wire.steering_pair()?;
    for site in [&pair.left, &pair.right] {
        let state = values(site, "adit_xdp")?;
        ensure!(
            state == [format!("{WAN} native copy {queues}")],
            "{state:?}"
        );
    }
    all_through_xdp(&mut pair, Family::V4, 8)?;
    all_through_xdp(&mut pair, Family::V6, 8)
}

#[test]
fn over_ipv4_everything_comes_through_native_xdp() -> Result<()> {
    native(Family::V4, 1)
}

#[test]
fn over_ipv6_everything_comes_through_native_xdp() -> Result<()> {
    native(Family::V6, 1)
}

/// A veth takes the queue that the flow's ports and addresses hash to: other ports, other queues.
#[test]
fn each_of_two_queues_has_its_socket() -> Result<()> {
    let wire = Wire {
        queues: 2,
        ..NATIVE
    };
    let mut pair = wire.steering_pair()?;
    for site in [&pair.left, &pair.right] {
        let state = values(site, "adit_xdp")?;
        ensure!(state == [format!("{WAN} native copy 2")], "{state:?}");
    }
    all_through_xdp(&mut pair, Family::V4, 2)?;

    let begin = Traffic::of(&pair.right)?;
    let mut sent = 0;
    for port in 40_000..40_016 {
        pair.left.wg_set(&format!("listen-port {port}"))?;
        let (from, to) = (&pair.left.namespace, pair.right.inner(Family::V4));
        ping_all(from, to, 4, 100)?;
        sent += 4;
    }
    let traffic = Traffic::of(&pair.right)?.since(begin);
    ensure!(traffic.socket == 0 && traffic.xsk >= sent, "{traffic:?}");
    for queue in 0..2 {
        let name = format!("rx_queue_{queue}_xdp_packets:");
        let statistics = pair.right.namespace.run(&format!("ethtool -S {WAN}"))?;
        let packets: u64 = statistics
            .lines()
            .find_map(|line| line.trim().strip_prefix(&name)?.trim().parse().ok())
            .with_context(|| format!("{name} {statistics}"))?;
        ensure!(packets > 0, "no port of 16 led to queue {queue}");
    }
    pair.check_running()
}

/// In generic mode the sender's super-packets are whole when XDP sees them. Those that do not fit a frame go to the
/// socket, which is made for them. What comes two ways may overtake: that is a price of this mode.
#[test]
fn generic_mode_takes_what_fits_a_frame() -> Result<()> {
    let mut pair = GENERIC.steering_pair()?;
    let state = values(&pair.right, "adit_xdp")?;
    ensure!(state == [format!("{WAN} generic copy 1")], "{state:?}");
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 50, 500)?;
    for (site, peer) in [(&pair.left, &pair.right), (&pair.right, &pair.left)] {
        let (here, there) = (Traffic::of(site)?, Traffic::of(peer)?);
        ensure!(
            here.socket == 0 && here.xsk == there.sent,
            "{here:?} {there:?}"
        );
    }
    carry(&pair, Family::V4, 8, false)?;
    carry(&pair, Family::V6, 2, false)?;
    let traffic = Traffic::of(&pair.right)?;
    ensure!(traffic.xsk > 50, "{traffic:?}");
    pair.check_running()
}

/// A sender that makes no super-packets: then everything fits a frame.
#[test]
fn generic_mode_takes_everything_from_a_sender_without_gso() -> Result<()> {
    let wire = Wire {
        environment: &[
            ("ADIT_DATAPATH", "xdp"),
            ("ADIT_XDP_MODE", "generic"),
            ("ADIT_NO_GSO", "1"),
        ],
        ..NATIVE
    };
    let mut pair = wire.steering_pair()?;
    all_through_xdp(&mut pair, Family::V4, 2)
}
