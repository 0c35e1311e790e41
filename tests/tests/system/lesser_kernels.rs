//! Kernels that lack something: each system call by which the daemon finds out what there is, or sets something up that it
//! can do without, fails once. The tunnel works, without what needs it.

use std::collections::BTreeMap;

use adit_tests::daemon::Options;
use adit_tests::transfer::tcp_both_ways;
use adit_tests::tunnel::{Family, Pair, PairOptions, Site, WAN};
use adit_tests::wait::wait_until;
use adit_tests::{Implementation, Namespace, uapi};
use anyhow::{Result, ensure};
use nix::libc;

use crate::xdp::{NATIVE, STEERING_LIMIT, connect, receives_by, values, wait_steering};

const UDP_GRO: i32 = 104;
const UDP_SEGMENT: i32 = 103;
/// `enum bpf_cmd`.
const LINK_CREATE: i32 = 28;

/// A system call that fails if some of its arguments, masked, have these values.
struct Rule {
    call: libc::c_long,
    errno: i32,
    /// Argument, mask, value.
    when: Vec<(u32, u32, u32)>,
}

impl Rule {
    fn new(call: libc::c_long, errno: i32) -> Self {
        Self {
            call,
            errno,
            when: Vec::new(),
        }
    }

    /// An argument is this number.
    fn with(mut self, argument: u32, value: impl Number) -> Self {
        self.when.push((argument, u32::MAX, value.number()));
        self
    }

    /// An argument has all of these bits.
    fn with_bits(mut self, argument: u32, bits: u32) -> Self {
        self.when.push((argument, bits, bits));
        self
    }

    fn ioctl(request: libc::Ioctl) -> Self {
        Self::new(libc::SYS_ioctl, libc::EINVAL).with(1, request)
    }

    fn set_option(level: i32, option: i32) -> Self {
        let rule = Self::new(libc::SYS_setsockopt, libc::ENOPROTOOPT);
        rule.with(1, level).with(2, option)
    }

    fn get_option(level: i32, option: i32) -> Self {
        let rule = Self::new(libc::SYS_getsockopt, libc::ENOPROTOOPT);
        rule.with(1, level).with(2, option)
    }

    /// As `adit-refuse` reads it.
    fn text(&self) -> String {
        let mut text = format!("{}/{}", self.call, self.errno);
        for (argument, mask, value) in &self.when {
            text += &format!("/{argument},{mask},{value}");
        }
        text
    }
}

/// What a system call takes where the kernel looks at 32 bits.
trait Number {
    fn number(self) -> u32;
}

impl Number for i32 {
    fn number(self) -> u32 {
        self.cast_unsigned()
    }
}

impl Number for libc::Ioctl {
    fn number(self) -> u32 {
        u32::try_from(self & 0xffff_ffff).unwrap_or(0)
    }
}

/// A kernel without eBPF.
fn no_bpf() -> Rule {
    Rule::new(libc::SYS_bpf, libc::ENOSYS)
}

/// A daemon on a kernel without eBPF.
pub(crate) fn daemon_without_ebpf() -> Result<Options> {
    without(&[no_bpf()], "", &[])
}

/// A daemon for which these calls fail.
fn without(rules: &[Rule], arguments: &str, environment: &[(&str, &str)]) -> Result<Options> {
    let refuse = env!("CARGO_BIN_EXE_adit-refuse");
    let program = Implementation::Adit.program()?;
    let rules: Vec<_> = rules.iter().map(Rule::text).collect();
    let environment = environment.iter();
    Ok(Options {
        command: Some(format!(
            "{refuse} {} -- {} -f {arguments} %i",
            rules.join(" "),
            program.display()
        )),
        environment: environment
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        ..Options::default()
    })
}

/// The left daemon does without; content goes both ways. Returns the pair, for what it shows.
fn works(rules: &[Rule], arguments: &str) -> Result<Pair> {
    let mut pair = Pair::connected(&PairOptions {
        left: without(rules, arguments, &[])?,
        ..PairOptions::default()
    })?;
    for inner in [Family::V4, Family::V6] {
        tcp_both_ways(&pair.left, &pair.right, inner, 1 << 20)?;
    }
    pair.check_running()?;
    for drop in ["egress_send_error", "ingress_tun_write"] {
        let count = counter(&pair, &format!("drop_{drop}"))?;
        ensure!(count == 0, "{count} {drop}");
    }
    Ok(pair)
}

fn counter(pair: &Pair, name: &str) -> Result<u64> {
    uapi::number(pair.left.interface(), &format!("adit_{name}"))
}

fn said(pair: &Pair, text: &str) -> Result<()> {
    let log = pair.left.daemon.log_text();
    ensure!(log.contains(text), "no {text:?} in\n{log}");
    Ok(())
}

/// No more items than calls, within what is in flight while the counters are read.
fn one_by_one(pair: &Pair, items: &str, calls: &str) -> Result<()> {
    let (items, calls) = (counter(pair, items)?, counter(pair, calls)?);
    ensure!(
        items > 200 && items.abs_diff(calls) < 100,
        "{items} in {calls}"
    );
    Ok(())
}

fn many_at_once(pair: &Pair, items: &str, calls: &str) -> Result<()> {
    let (items, calls) = (counter(pair, items)?, counter(pair, calls)?);
    ensure!(items > 2 * calls, "{items} in {calls}");
    Ok(())
}

const READ: (&str, &str) = ("tun_read_packets", "tun_reads");
const WRITTEN: (&str, &str) = ("tun_written_packets", "tun_writes");
const RECEIVED: (&str, &str) = ("udp_received_datagrams", "udp_receives");
const SENT: (&str, &str) = ("udp_sent_datagrams", "udp_sends");

#[test]
fn tun_without_a_virtio_header() -> Result<()> {
    let pair = works(&[Rule::ioctl(libc::TUNGETFEATURES)], "")?;
    said(&pair, "checksum: false, tso4: false")?;
    one_by_one(&pair, READ.0, READ.1)?;
    one_by_one(&pair, WRITTEN.0, WRITTEN.1)
}

/// Linux before 6.2.
#[test]
fn tun_without_udp_super_packets() -> Result<()> {
    let uso = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let pair = works(&[Rule::ioctl(libc::TUNSETOFFLOAD).with_bits(2, uso)], "")?;
    said(&pair, "tso4: true, tso6: true, uso4: false, uso6: false")?;
    many_at_once(&pair, READ.0, READ.1)
}

#[test]
fn tun_without_any_offload() -> Result<()> {
    let some = libc::TUN_F_CSUM;
    let pair = works(&[Rule::ioctl(libc::TUNSETOFFLOAD).with_bits(2, some)], "")?;
    said(&pair, "checksum: false, tso4: false")?;
    one_by_one(&pair, READ.0, READ.1)
}

/// Linux 6.6.44 and 6.10.3: the probe, which alone is a single piece, is refused.
#[test]
fn tun_that_takes_no_coalesced_packets() -> Result<()> {
    let pair = works(&[Rule::new(libc::SYS_writev, libc::EINVAL).with(2, 1)], "")?;
    for kind in ["TCP", "UDP"] {
        said(
            &pair,
            &format!("no coalesced packets from the TUN device kind=\"{kind}\""),
        )?;
    }
    one_by_one(&pair, WRITTEN.0, WRITTEN.1)
}

/// The probe got through, and then the device refuses a coalesced packet, which has more than two pieces.
#[test]
fn tun_that_refuses_coalesced_packets_later() -> Result<()> {
    let refused = || Rule::new(libc::SYS_writev, libc::EINVAL);
    let mut rules = vec![refused().with(2, 3)];
    rules.extend((2..11).map(|bit| refused().with_bits(2, 1 << bit)));
    let pair = works(&rules, "")?;
    many_at_once(&pair, WRITTEN.0, WRITTEN.1)
}

/// Linux before 4.16: the driver chooses queues itself.
#[test]
fn tun_without_a_program_that_chooses_the_queue() -> Result<()> {
    let pair = works(&[Rule::ioctl(libc::TUNSETSTEERINGEBPF)], "--queues 2")?;
    ensure!(counter(&pair, "queues")? == 2);
    Ok(())
}

#[test]
fn a_device_whose_queue_cannot_be_made_longer() -> Result<()> {
    works(&[Rule::ioctl(libc::SIOCSIFTXQLEN)], "").map(drop)
}

/// Linux before 5.0.
#[test]
fn udp_without_gro() -> Result<()> {
    let pair = works(&[Rule::set_option(libc::SOL_UDP, UDP_GRO)], "")?;
    one_by_one(&pair, RECEIVED.0, RECEIVED.1)
}

/// Linux before 4.18.
#[test]
fn udp_without_gso() -> Result<()> {
    let pair = works(&[Rule::get_option(libc::SOL_UDP, UDP_SEGMENT)], "")?;
    ensure!(counter(&pair, "udp_gso_sends")? == 0);
    one_by_one(&pair, SENT.0, SENT.1)
}

#[test]
fn udp_without_its_options() -> Result<()> {
    let ip = [libc::IP_PKTINFO, libc::IP_RECVTOS, libc::IP_MTU_DISCOVER];
    let ipv6 = [libc::IPV6_RECVPKTINFO, libc::IPV6_RECVTCLASS];
    let buffers = [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE];
    let mut rules: Vec<_> = ip
        .map(|option| Rule::set_option(libc::IPPROTO_IP, option))
        .into();
    rules.extend(ipv6.map(|option| Rule::set_option(libc::IPPROTO_IPV6, option)));
    rules.extend(buffers.map(|option| Rule::set_option(libc::SOL_SOCKET, option)));
    let pair = works(&rules, "")?;
    ensure!(counter(&pair, "path_mtu_probes")? == 0);
    Ok(())
}

/// Before Linux 5.13, and where seccomp is switched off: the daemon says what it could not give up.
#[test]
fn without_anything_to_confine_with() -> Result<()> {
    const LANDLOCK_CREATE_RULESET: libc::c_long = 444;
    let rules = [
        Rule::new(LANDLOCK_CREATE_RULESET, libc::ENOSYS),
        Rule::new(libc::SYS_mlockall, libc::EPERM),
        // The last one: no further rule can follow it.
        Rule::new(libc::SYS_seccomp, libc::ENOSYS),
    ];
    let pair = works(&rules, "")?;
    said(&pair, "system calls are not limited")?;
    said(&pair, "keys may get into swap")
}

/// The left site lacks something of AF_XDP or eBPF that it is to receive by.
fn works_by_sockets(rules: &[Rule]) -> Result<Pair> {
    let (left, right) = (Namespace::new()?, Namespace::new()?);
    connect(&left, &right, 1)?;
    let left = Site::start(left, 1, 1420, &without(rules, "", NATIVE.environment)?)?;
    let right = Site::start(right, 2, 1420, &Options::default())?;
    for (site, peer) in [(&left, &right), (&right, &left)] {
        site.add_peer(peer, &format!("endpoint {}", peer.endpoint(Family::V4)))?;
    }
    let mut pair = Pair { left, right };
    pair.wait_connected()?;
    wait_until("the daemon says why", STEERING_LIMIT, || {
        values(&pair.left, "adit_datapath_note").is_ok_and(|notes| !notes.is_empty())
    })?;
    tcp_both_ways(&pair.left, &pair.right, Family::V4, 1 << 20)?;
    ensure!(receives_by(&pair.left, "socket"));
    ensure!(counter(&pair, "xsk_received_datagrams")? == 0);
    pair.check_running()?;
    Ok(pair)
}

#[test]
fn xdp_without_its_sockets() -> Result<()> {
    let none = Rule::new(libc::SYS_socket, libc::EAFNOSUPPORT).with(0, libc::AF_XDP);
    works_by_sockets(&[none])?;
    for option in [
        libc::XDP_UMEM_REG,
        libc::XDP_UMEM_FILL_RING,
        libc::XDP_RX_RING,
    ] {
        works_by_sockets(&[Rule::set_option(libc::SOL_XDP, option)])?;
    }
    works_by_sockets(&[Rule::get_option(libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)]).map(drop)
}

/// Linux before 5.9 has no links for XDP, and before 6.6 none for tc, whose filters do as well.
#[test]
fn xdp_without_links() -> Result<()> {
    let pair = works_by_sockets(&[Rule::new(libc::SYS_bpf, libc::EINVAL).with(0, LINK_CREATE)])?;
    let filters = pair
        .left
        .namespace
        .run(&format!("tc filter show dev {WAN} ingress"))?;
    ensure!(filters.contains("adit_tc"), "{filters:?}");
    Ok(())
}

/// What AF_XDP can do without.
#[test]
fn xdp_without_its_extras() -> Result<()> {
    const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
    let rules = [
        Rule::get_option(libc::SOL_XDP, libc::XDP_OPTIONS),
        Rule::set_option(libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET),
    ];
    let (left, right) = (Namespace::new()?, Namespace::new()?);
    connect(&left, &right, 2)?;
    // Made for two queues, and uses one: the other one's socket is refused.
    for end in [&left, &right] {
        end.run(&format!("ethtool -L {WAN} rx 1 tx 1"))?;
    }
    let environment: BTreeMap<_, _> = NATIVE.environment.iter().copied().collect();
    let mut environment: Vec<_> = environment.into_iter().collect();
    environment.push(("ADIT_XDP_TRANSMIT", "on"));
    let left = Site::start(left, 1, 1420, &without(&rules, "", &environment)?)?;
    let right = Site::start(right, 2, 1420, &Options::default())?;
    for (site, peer) in [(&left, &right), (&right, &left)] {
        site.add_peer(peer, &format!("endpoint {}", peer.endpoint(Family::V4)))?;
    }
    let mut pair = Pair { left, right };
    wait_steering(&pair.left)?;
    let state = values(&pair.left, "adit_xdp")?;
    ensure!(state == [format!("{WAN} native copy 1")], "{state:?}");
    pair.wait_connected()?;
    // Sent past the socket once the next hop is known.
    wait_until("packets by AF_XDP both ways", STEERING_LIMIT, || {
        let flows = tcp_both_ways(&pair.left, &pair.right, Family::V4, 4 << 20);
        let names = ["xsk_received_datagrams", "xsk_sent_datagrams"];
        let counted = |name| counter(&pair, name).is_ok_and(|count| count > 0);
        flows.is_ok() && names.into_iter().all(counted)
    })?;
    pair.check_running()
}

#[test]
fn without_ebpf() -> Result<()> {
    let pair = works(&[no_bpf()], "")?;
    said(&pair, "no eBPF")
}

#[test]
fn udp_without_filters() -> Result<()> {
    let pair = works(
        &[Rule::set_option(libc::SOL_SOCKET, libc::SO_ATTACH_BPF)],
        "",
    )?;
    said(&pair, "no filter in front of the UDP sockets")
}
