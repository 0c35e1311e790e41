//! Interfaces that carry tunnels: what XDP could do on each. Nothing is attached to them.

use std::fs;
use std::io;

use adit_kernel::bpf::{ForeignProgram, attached_program};
use adit_kernel::ethtool::{self, HashedFlow, XdpFeatures};
use adit_kernel::netlink::{self, Link};
use adit_kernel::xsk::FrameSize;

use super::check::Check;

/// The name of our own XDP program, which a running tunnel may have attached.
const OWN_PROGRAM: &str = "adit_xdp";
/// Ethernet header and two VLAN tags.
const LINK_HEADER: u32 = 22;

/// What is known about an interface.
#[derive(Debug)]
pub(super) struct Facts {
    link: Link,
    driver: Option<String>,
    queues: u32,
    features: io::Result<XdpFeatures>,
    program: io::Result<Option<ForeignProgram>>,
    lro: Option<bool>,
    gro: Option<bool>,
    /// Whether ports are hashed, for UDP over IPv4 and IPv6.
    hashes: [io::Result<bool>; 2],
}

/// Whether `--datapath auto` would take packets by AF_XDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Native {
    /// By all that is known.
    Likely(String),
    /// No, and why.
    No(String),
}

impl Facts {
    /// Asks about an interface.
    fn gather(link: Link) -> Self {
        let name = link.name.as_str();
        Self {
            driver: ethtool::driver(name).ok(),
            queues: ethtool::receive_queues(name)
                .ok()
                .filter(|count| *count > 0)
                .unwrap_or(link.rx_queues)
                .max(1),
            features: ethtool::xdp_features(link.index),
            program: attached_program(link.index),
            lro: ethtool::large_receive_offload(name).ok(),
            gro: ethtool::generic_receive_offload(name).ok(),
            hashes: [HashedFlow::Udp4, HashedFlow::Udp6]
                .map(|flow| ethtool::hashes_ports(name, flow)),
            link,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.link.name
    }

    /// Somebody else's program.
    fn foreign(&self) -> Option<&ForeignProgram> {
        let program = self.program.as_ref().ok()?.as_ref()?;
        (program.name != OWN_PROGRAM).then_some(program)
    }

    /// What `--datapath auto` would do, as far as the interface decides; the same rules as in `steering`.
    pub(super) fn native(&self) -> Native {
        let no = |reason: &str| Native::No(reason.to_owned());
        if self.link.loopback {
            return no("what arrives over loopback never left the host");
        }
        if let Some(program) = self.foreign() {
            return Native::No(format!("another XDP program is there: {program}"));
        }
        if self.link.kind.as_deref() == Some("veth") {
            return no(
                "the UDP socket is faster on veth, which loses GSO to XDP (--datapath xdp overrules this)",
            );
        }
        match &self.features {
            Ok(features) if features.native && features.redirect => Native::Likely(
                if features.zero_copy {
                    "native XDP, zero-copy"
                } else {
                    "native XDP, copy mode"
                }
                .to_owned(),
            ),
            Ok(_) => no("the driver has no native XDP, or not with its present settings"),
            Err(error) => Native::Likely(format!(
                "the kernel does not tell whether the driver has native XDP ({error}); it is tried"
            )),
        }
    }

    pub(super) fn checks(&self) -> Vec<Check> {
        let mut checks = vec![
            self.interface(),
            self.native_xdp(),
            self.transmit(),
            self.program(),
        ];
        if self.lro == Some(true) {
            checks.push(
                Check::missing(
                    "device_lro",
                    "LRO",
                    "on: most drivers refuse native XDP then",
                )
                .change(format!("ethtool -K {} lro off", self.name())),
            );
        }
        checks.push(self.generic_receive_offload());
        checks.push(self.frame_size());
        checks.extend(self.spreading());
        checks
    }

    fn interface(&self) -> Check {
        let driver = self.driver.as_deref().unwrap_or("unknown");
        let plural = if self.queues == 1 { "" } else { "s" };
        let state = if self.link.up { "up" } else { "down" };
        let found = format!(
            "{state}, driver {driver}, {} RX queue{plural}, MTU {}",
            self.queues, self.link.mtu
        );
        if self.link.up {
            Check::ok("device", "interface", found)
        } else {
            Check::missing("device", "interface", found)
                .change(format!("ip link set {} up", self.name()))
        }
    }

    fn native_xdp(&self) -> Check {
        const ID: &str = "device_native_xdp";
        const SUBJECT: &str = "native XDP";
        match &self.features {
            Ok(XdpFeatures {
                native: true,
                redirect: true,
                zero_copy,
            }) => Check::ok(
                ID,
                SUBJECT,
                if *zero_copy {
                    "the driver has it, and zero-copy AF_XDP"
                } else {
                    "the driver has it; AF_XDP copies"
                },
            ),
            Ok(XdpFeatures { native: true, .. }) => Check::missing(
                ID,
                SUBJECT,
                "the driver has it, but cannot redirect to AF_XDP",
            ),
            Ok(_) => {
                let check = Check::missing(
                    ID,
                    SUBJECT,
                    "the driver has none, or not with its present settings",
                );
                match self.driver.as_deref() {
                    // virtnet_xdp_set(), drivers/net/virtio_net.c.
                    Some("virtio_net") => check.change(format!(
                        "ethtool -K {} lro off gro-hw off, and as many queues as twice the CPUs",
                        self.name()
                    )),
                    _ => check,
                }
            }
            Err(error) => Check::missing(
                ID,
                SUBJECT,
                format!("the kernel does not tell ({error}); it shows when a tunnel starts"),
            ),
        }
    }

    /// What `--xdp-transmit auto` would do; the same rule as in `steering`.
    fn transmit(&self) -> Check {
        let found = match &self.features {
            Ok(XdpFeatures {
                zero_copy: true, ..
            }) => "by AF_XDP, without copies, where packets come in by it",
            Ok(_) => {
                "by the UDP socket: AF_XDP would copy each packet (--xdp-transmit on overrules this)"
            }
            Err(_) => {
                "by AF_XDP if the driver does without copies, which shows when a tunnel starts"
            }
        };
        Check::ok("device_transmit", "sending", found)
    }

    fn program(&self) -> Check {
        const ID: &str = "device_xdp_program";
        const SUBJECT: &str = "XDP program";
        match (&self.program, self.foreign()) {
            (_, Some(program)) => Check::missing(
                ID,
                SUBJECT,
                format!("{program} is there; Adit leaves it alone"),
            )
            .change(format!(
                "if nobody needs it: ip link set dev {} xdp off",
                self.name()
            )),
            (Ok(Some(_)), None) => Check::ok(ID, SUBJECT, "a running tunnel's own"),
            (Ok(None), _) => Check::ok(ID, SUBJECT, "none, the place is free"),
            (Err(error), None) => Check::missing(ID, SUBJECT, error.to_string()),
        }
    }

    fn generic_receive_offload(&self) -> Check {
        const ID: &str = "device_gro";
        const SUBJECT: &str = "GRO";
        match self.gro {
            Some(true) => Check::ok(ID, SUBJECT, "on"),
            Some(false) => Check::missing(
                ID,
                SUBJECT,
                "off: the UDP socket gets one datagram at a time",
            )
            .change(format!("ethtool -K {} gro on", self.name())),
            None => Check::missing(ID, SUBJECT, "the driver does not say"),
        }
    }

    fn frame_size(&self) -> Check {
        const ID: &str = "device_frame";
        const SUBJECT: &str = "frame size";
        let mtu = self.link.mtu;
        let room = FrameSize::for_mtu(mtu).capacity() - LINK_HEADER;
        if mtu <= room {
            Check::ok(
                ID,
                SUBJECT,
                format!("packets of MTU {mtu} fit AF_XDP frames"),
            )
        } else {
            Check::missing(
                ID,
                SUBJECT,
                format!(
                    "MTU {mtu}: packets above {room} bytes come in by the UDP socket, and drivers may refuse XDP"
                ),
            )
            .change(format!("ip link set {} mtu {room}", self.name()))
        }
    }

    /// One tunnel has one pair of addresses, so that without ports all of it is on one queue.
    fn spreading(&self) -> Vec<Check> {
        let families = [
            ("device_rss_udp4", "RSS over UDP/IPv4", "udp4"),
            ("device_rss_udp6", "RSS over UDP/IPv6", "udp6"),
        ];
        if self.queues == 1 {
            return Vec::new();
        }
        families
            .into_iter()
            .zip(&self.hashes)
            .map(|((id, subject, flow), hashes)| match hashes {
                Ok(true) => Check::ok(id, subject, "ports are hashed"),
                Ok(false) => Check::missing(
                    id,
                    subject,
                    "ports are left out: all packets between two hosts are on one queue",
                )
                .change(format!(
                    "ethtool -N {} rx-flow-hash {flow} sdfn",
                    self.name()
                )),
                Err(error) => Check::missing(
                    id,
                    subject,
                    format!("the driver does not say whether ports are hashed ({error})"),
                ),
            })
            .collect()
    }
}

/// What is known about the interfaces `named`, or else about those a tunnel is likely to use; and the names of interfaces that do
/// not exist.
///
/// # Errors
/// When netlink cannot be used.
pub(super) fn devices(named: Option<&[String]>) -> io::Result<(Vec<Facts>, Vec<String>)> {
    let links = netlink::links()?;
    let (wanted, gone) = match named {
        Some(names) => names
            .iter()
            .cloned()
            .partition(|name| links.iter().any(|link| link.name == *name)),
        None => {
            // Those of the thread; /proc/net is the main thread's.
            let read = |file| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
            let routes = (
                read("route").unwrap_or_default(),
                read("ipv6_route").unwrap_or_default(),
            );
            (likely(&links, &routes.0, &routes.1), Vec::new())
        }
    };
    let facts = links
        .into_iter()
        .filter(|link| wanted.contains(&link.name))
        .map(Facts::gather)
        .collect();
    Ok((facts, gone))
}

/// Interfaces with a default route; without any, those that are up and real.
fn likely(links: &[Link], ipv4: &str, ipv6: &str) -> Vec<String> {
    let has_default =
        |link: &Link| default_ipv4(ipv4, &link.name) || default_ipv6(ipv6, &link.name);
    let names = |wanted: &dyn Fn(&Link) -> bool| -> Vec<String> {
        links
            .iter()
            .filter(|link| !link.loopback && wanted(link))
            .map(|link| link.name.clone())
            .collect()
    };
    // A tunnel may have the default route; it is carried by something else.
    let with_default = names(&|link| {
        has_default(link) && !matches!(link.kind.as_deref(), Some("tun" | "wireguard"))
    });
    if with_default.is_empty() {
        // Network cards are of no kind in rtnetlink's sense.
        names(&|link| link.up && matches!(link.kind.as_deref(), None | Some("veth")))
    } else {
        with_default
    }
}

/// Lines of `/proc/net/route`: interface, destination, gateway, flags, three counters, mask; numbers in hexadecimal.
fn default_ipv4(table: &str, name: &str) -> bool {
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [device, "00000000", _, _, _, _, _, "00000000", ..] if device == name)
    })
}

/// Lines of `/proc/net/ipv6_route`: destination, its length, source, its length, next hop, metric, two counters, flags, interface.
fn default_ipv6(table: &str, name: &str) -> bool {
    const REJECT: u32 = 0x200;
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [destination, "00", _, _, _, _, _, _, flags, device] = fields[..] else {
            return false;
        };
        let rejects = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & REJECT != 0);
        device == name && !rejects && destination.bytes().all(|digit| digit == b'0')
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;

    fn link(name: &str, kind: Option<&str>) -> Link {
        Link {
            index: 7,
            name: name.to_owned(),
            up: true,
            loopback: name == "lo",
            mtu: 1500,
            rx_queues: 4,
            kind: kind.map(str::to_owned),
        }
    }

    fn card() -> Facts {
        Facts {
            link: link("eth0", None),
            driver: Some("ixgbe".to_owned()),
            queues: 4,
            features: Ok(XdpFeatures {
                native: true,
                redirect: true,
                zero_copy: true,
            }),
            program: Ok(None),
            lro: Some(false),
            gro: Some(true),
            hashes: [Ok(true), Ok(true)],
        }
    }

    fn missing(facts: &Facts) -> Vec<&'static str> {
        let checks = facts.checks();
        assert!(checks.iter().all(|check| check.status != Status::Blocking));
        checks
            .iter()
            .filter(|check| check.status != Status::Ok)
            .map(|check| check.id)
            .collect()
    }

    #[test]
    fn a_good_card_takes_xdp() {
        assert!(missing(&card()).is_empty());
        assert_eq!(
            card().native(),
            Native::Likely("native XDP, zero-copy".to_owned())
        );
    }

    #[test]
    fn everything_that_is_wrong_is_said() {
        let program = ForeignProgram {
            id: 5,
            name: "fw".to_owned(),
        };
        let mut bad = Facts {
            program: Ok(Some(program)),
            lro: Some(true),
            gro: Some(false),
            hashes: [Ok(false), Err(io::Error::from_raw_os_error(95))],
            ..card()
        };
        bad.link.mtu = 9000;
        assert_eq!(
            missing(&bad),
            [
                "device_xdp_program",
                "device_lro",
                "device_gro",
                "device_frame",
                "device_rss_udp4",
                "device_rss_udp6"
            ]
        );
        let changes: Vec<String> = bad
            .checks()
            .into_iter()
            .filter_map(|check| check.change)
            .collect();
        assert!(changes.contains(&"ethtool -N eth0 rx-flow-hash udp4 sdfn".to_owned()));
        assert_eq!(
            bad.native(),
            Native::No("another XDP program is there: fw (program 5)".to_owned())
        );
    }

    #[test]
    fn our_own_program_is_not_foreign() {
        let program = ForeignProgram {
            id: 5,
            name: OWN_PROGRAM.to_owned(),
        };
        let facts = Facts {
            program: Ok(Some(program)),
            ..card()
        };
        assert!(missing(&facts).is_empty());
        assert!(matches!(facts.native(), Native::Likely(_)));
    }

    #[test]
    fn veth_loopback_and_plain_drivers_stay_with_the_socket() {
        for name in ["lo", "veth0"] {
            let kind = name.starts_with("veth").then_some("veth");
            let facts = Facts {
                link: link(name, kind),
                ..card()
            };
            assert!(matches!(facts.native(), Native::No(_)), "{name}");
        }
        let none = XdpFeatures {
            native: false,
            redirect: false,
            zero_copy: false,
        };
        let plain = Facts {
            features: Ok(none),
            driver: Some("virtio_net".to_owned()),
            ..card()
        };
        assert!(matches!(plain.native(), Native::No(_)));
        assert_eq!(missing(&plain), ["device_native_xdp"]);
        let unknown = Facts {
            features: Err(io::Error::from_raw_os_error(2)),
            ..card()
        };
        assert!(matches!(unknown.native(), Native::Likely(_)));
    }

    #[test]
    fn one_queue_has_nothing_to_spread() {
        let facts = Facts {
            queues: 1,
            hashes: [Ok(false), Ok(false)],
            ..card()
        };
        assert!(missing(&facts).is_empty());
    }

    #[test]
    fn devices_with_a_default_route_come_first() {
        let links = [
            link("lo", None),
            link("eth0", None),
            link("wg0", Some("tun")),
            link("br0", Some("bridge")),
        ];
        let ipv4 = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                    wg0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n\
                    br0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(likely(&links, ipv4, ""), ["br0"]);
        let zeros = "0".repeat(32);
        let ipv6 = |flags: &str, device: &str| {
            format!("{zeros} 00 {zeros} 00 {zeros} 00000400 00000001 00000000 {flags} {device}\n")
        };
        assert_eq!(likely(&links, "", &ipv6("00000003", "eth0")), ["eth0"]);
        // The reject route every host has.
        assert!(!default_ipv6(&ipv6("00200200", "lo"), "lo"));
        assert_eq!(likely(&links, "", ""), ["eth0"]);
        assert_eq!(likely(&links, "odd", "odd\n\n"), ["eth0"]);
    }

    #[test]
    fn loopback_can_be_asked_about_and_nonsense_is_named() {
        let names = ["lo".to_owned(), "no-such-device".to_owned()];
        let (facts, gone) = devices(Some(&names)).unwrap();
        assert_eq!((facts[0].name(), facts.len()), ("lo", 1));
        assert_eq!(gone, ["no-such-device"]);
        assert!(!facts[0].checks().is_empty());
    }
}
