//! What any tunnel needs: a TUN device and UDP sockets, and the offloads that make them fast.

use adit_kernel::ethtool;
use adit_kernel::netns::NetworkNamespace;
use adit_kernel::tun::{Tun, TunError, TunOffloads, TunOptions};
use adit_kernel::udp::{UdpOptions, UdpSocket, UdpSockets};

use super::check::{Check, GIVE_RIGHTS, forbidden};
use crate::error_chain;

/// What a throw-away device could do.
#[derive(Clone, Debug)]
struct TunFacts {
    vnet_header: bool,
    offloads: TunOffloads,
    /// Whether the kernel takes TCP and UDP super-packets; a reason if it was not tried.
    writes: Result<[Result<bool, String>; 2], &'static str>,
}

/// Looks at TUN devices, in `lab` if there is one, where nobody sees it.
pub(super) fn tun(lab: Option<&NetworkNamespace>) -> Vec<Check> {
    let facts = match lab {
        Some(lab) => lab.run_in(|| try_tun(true)).unwrap_or_else(|source| {
            Err(TunError::Io {
                action: "enter a private network namespace",
                source,
            })
        }),
        None => try_tun(false),
    };
    match facts {
        Ok(facts) => tun_checks(&facts),
        Err(error) => vec![no_tun(&error)],
    }
}

/// Makes a device that goes when this returns. It has to come up for super-packets to be written to it, which others would
/// notice in a namespace that is not `private`.
fn try_tun(private: bool) -> Result<TunFacts, TunError> {
    let name = format!("aditdr{}", std::process::id());
    let tun = Tun::create(&name, &TunOptions::default())?;
    let writes = if !private {
        Err("not tried: that needs CAP_SYS_ADMIN, for a network namespace of its own")
    } else if !tun.has_vnet_header() {
        Err("not tried: there is no virtio header")
    } else if ethtool::set_up(&name).is_err() {
        Err("not tried: the device could not be set up")
    } else {
        let answer = |result: std::io::Result<bool>| result.map_err(|error| error.to_string());
        Ok([
            answer(tun.probe_gro_write()),
            answer(tun.probe_udp_gro_write()),
        ])
    };
    Ok(TunFacts {
        vnet_header: tun.has_vnet_header(),
        offloads: tun.offloads(),
        writes,
    })
}

fn no_tun(error: &TunError) -> Check {
    let check = Check::blocking("tun", "TUN device", error_chain(error));
    match error {
        TunError::NoDriver(_) => check.change("modprobe tun (docker run: --device /dev/net/tun)"),
        TunError::Permission { .. } => check.change(GIVE_RIGHTS),
        _ => check,
    }
}

fn tun_checks(facts: &TunFacts) -> Vec<Check> {
    let mut checks = vec![
        Check::ok("tun", "TUN device", "/dev/net/tun makes devices"),
        offload(
            "tun_vnet_hdr",
            "IFF_VNET_HDR",
            facts.vnet_header,
            "the driver has no virtio header: one system call for each packet",
            "Linux 2.6.27 or later",
        ),
        offload(
            "tun_tso",
            "TUN TSO",
            facts.offloads.tso4 && facts.offloads.tso6,
            "TUNSETOFFLOAD refuses TUN_F_TSO4|TUN_F_TSO6: TCP leaves in MTU-sized packets",
            "Linux 2.6.27 or later",
        ),
        offload(
            "tun_uso",
            "TUN USO",
            facts.offloads.uso4 && facts.offloads.uso6,
            "TUNSETOFFLOAD refuses TUN_F_USO4|TUN_F_USO6: UDP leaves in single packets",
            "Linux 6.2 or later",
        ),
    ];
    let kinds = [
        ("tun_gro_write", "TUN GRO writes"),
        ("tun_udp_gro_write", "TUN UDP GRO writes"),
    ];
    for (index, (id, subject)) in kinds.into_iter().enumerate() {
        checks.push(match &facts.writes {
            Err(reason) => Check::missing(id, subject, *reason),
            Ok(results) => match &results[index] {
                Ok(true) => Check::ok(id, subject, "super-packets are taken"),
                Ok(false) => Check::missing(
                    id,
                    subject,
                    "EINVAL: this kernel refuses super-packets; received packets are written one by one",
                )
                .change("another kernel: 6.6.44, 6.10.3 and their neighbours have this bug"),
                Err(error) => Check::missing(id, subject, error.clone()),
            },
        });
    }
    checks
}

fn offload(
    id: &'static str,
    subject: &'static str,
    there: bool,
    otherwise: &str,
    change: &str,
) -> Check {
    if there {
        Check::ok(id, subject, "there")
    } else {
        Check::missing(id, subject, otherwise).change(change)
    }
}

/// What sockets on a port that the kernel picks could do.
#[derive(Clone, Copy, Debug)]
struct UdpFacts {
    v4: bool,
    v6: bool,
    gso: bool,
    gro: bool,
    equal_tail: bool,
    /// Bytes asked for and had.
    buffer: (usize, usize),
}

/// Looks at UDP sockets.
pub(super) fn udp() -> Vec<Check> {
    let options = UdpOptions::default();
    match UdpSockets::bind(0, &options) {
        Ok(sockets) => udp_checks(&UdpFacts {
            v4: sockets.v4.is_some(),
            v6: sockets.v6.is_some(),
            gso: sockets.iter().all(UdpSocket::gso),
            gro: sockets.iter().all(UdpSocket::gro),
            equal_tail: sockets.iter().all(UdpSocket::equal_tail),
            buffer: (
                options.receive_buffer,
                // The kernel says twice what it granted (socket(7)).
                sockets
                    .iter()
                    .map(|socket| socket.receive_buffer().unwrap_or(0) / 2)
                    .min()
                    .unwrap_or(0),
            ),
        }),
        Err(error) => vec![Check::blocking("udp", "UDP sockets", error_chain(&error))],
    }
}

fn udp_checks(facts: &UdpFacts) -> Vec<Check> {
    let mut checks = vec![match (facts.v4, facts.v6) {
        (true, true) => Check::ok("udp", "UDP sockets", "IPv4 and IPv6"),
        (true, false) => Check::missing("udp", "UDP sockets", "IPv4 only: this host has no IPv6"),
        _ => Check::missing("udp", "UDP sockets", "IPv6 only: this host has no IPv4"),
    }];
    checks.push(offload(
        "udp_segment",
        "UDP_SEGMENT",
        facts.gso,
        "the kernel does not know it: one datagram goes through the stack at a time",
        "Linux 4.18 or later",
    ));
    checks.push(offload(
        "udp_gro",
        "UDP_GRO",
        facts.gro,
        "the kernel does not know it: one datagram comes in at a time",
        "Linux 5.0 or later",
    ));
    if !facts.equal_tail {
        checks.push(
            Check::missing(
                "udp_equal_tail",
                "UDP_SEGMENT bug",
                "this kernel corrupts equal datagrams that it cuts; those are sent one by one",
            )
            .change("Linux 7.1.5 or later, or before 7.0"),
        );
    }
    let (wanted, had) = facts.buffer;
    checks.push(if had >= wanted {
        Check::ok(
            "udp_buffers",
            "socket buffers",
            format!("{had} bytes, whatever net.core.rmem_max and wmem_max say (SO_RCVBUFFORCE)"),
        )
    } else {
        Check::missing(
            "udp_buffers",
            "socket buffers",
            format!("{had} bytes instead of {wanted}: no CAP_NET_ADMIN, and net.core.rmem_max is in the way"),
        )
        .change(format!("sysctl -w net.core.rmem_max={wanted} net.core.wmem_max={wanted}"))
    });
    checks
}

/// Whether an error of making a private namespace is only a lack of rights.
pub(super) fn lab() -> Result<NetworkNamespace, Check> {
    NetworkNamespace::new_private().map_err(|error| {
        let found = format!("cannot make a network namespace to try things out in: {error}");
        let check = Check::missing("lab", "private namespace", found);
        if forbidden(&error) {
            check.change("run adit doctor as root to have everything tried")
        } else {
            check
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;

    fn facts() -> TunFacts {
        TunFacts {
            vnet_header: true,
            offloads: TunOffloads::ALL,
            writes: Ok([Ok(true), Ok(true)]),
        }
    }

    fn missing(checks: &[Check]) -> Vec<&'static str> {
        checks
            .iter()
            .filter(|check| check.status != Status::Ok)
            .map(|check| check.id)
            .collect()
    }

    #[test]
    fn each_offload_is_judged_by_itself() {
        assert!(missing(&tun_checks(&facts())).is_empty());
        let old = TunFacts {
            offloads: TunOffloads::ALL.without_udp(),
            writes: Ok([Ok(false), Err("boom".to_owned())]),
            ..facts()
        };
        let checks = tun_checks(&old);
        assert_eq!(
            missing(&checks),
            ["tun_uso", "tun_gro_write", "tun_udp_gro_write"]
        );
        assert!(checks.iter().all(|check| check.status != Status::Blocking));
        assert_eq!(checks[5].found, "boom");
        let untried = TunFacts {
            writes: Err("not tried"),
            ..facts()
        };
        assert_eq!(tun_checks(&untried)[4].found, "not tried");
    }

    #[test]
    fn without_a_tun_device_there_is_no_tunnel() {
        let gone = TunError::NoDriver(std::io::Error::from_raw_os_error(2));
        let check = no_tun(&gone);
        assert_eq!(check.status, Status::Blocking);
        assert!(check.found.contains("os error 2"), "{check:?}");
        assert!(check.change.unwrap().starts_with("modprobe tun"));
    }

    #[test]
    fn udp_is_judged_by_what_sockets_can_do() {
        let all = UdpFacts {
            v4: true,
            v6: true,
            gso: true,
            gro: true,
            equal_tail: true,
            buffer: (100, 100),
        };
        assert!(missing(&udp_checks(&all)).is_empty());
        let old = UdpFacts {
            v6: false,
            gso: false,
            gro: false,
            equal_tail: false,
            buffer: (100, 50),
            ..all
        };
        assert_eq!(
            missing(&udp_checks(&old)),
            [
                "udp",
                "udp_segment",
                "udp_gro",
                "udp_equal_tail",
                "udp_buffers"
            ]
        );
    }

    #[test]
    fn this_machine_has_udp() {
        assert!(udp().iter().all(|check| check.status != Status::Blocking));
    }
}
