//! Inner MTUs from the smallest IPv6 allows to far beyond the wire, and a path narrower than the outer packets.

use std::net::IpAddr;

use adit_tests::Namespace;
use adit_tests::ping::ping_with;
use adit_tests::transfer::{tcp_both_ways, udp_echo};
use adit_tests::tunnel::{Family, Pair, PairOptions, Site, WAN};
use anyhow::{Result, bail};

/// Packets that hosts may fragment: where the path is narrower than the tunnel, they are told so (see `path_mtu`).
fn echo(from: &Namespace, to: IpAddr, size: usize) -> Result<()> {
    for _ in 0..3 {
        if ping_with(from, to, 3, size, &["-M", "dont"])? == 3 {
            return Ok(());
        }
    }
    bail!("echo requests of {size} bytes to {to}");
}

/// What must fit, fits; what crosses in both directions is what was sent.
fn carry(left: &Site, right: &Site, mtu: usize) -> Result<()> {
    echo(&left.namespace, right.inner(Family::V4), mtu - 28)?;
    echo(&right.namespace, left.inner(Family::V4), mtu - 28)?;
    echo(&left.namespace, right.inner(Family::V6), mtu - 48)?;
    let lengths = [0, 1, 15, 16, 17, 1000, mtu - 29, mtu - 28];
    udp_echo(
        &left.namespace,
        &right.namespace,
        right.inner(Family::V4),
        &lengths,
    )?;
    tcp_both_ways(left, right, Family::V4, 2 << 20)?;
    tcp_both_ways(left, right, Family::V6, 2 << 20)
}

fn with_mtu(mtu: u32, wire_mtu: u32) -> Result<()> {
    for outer in [Family::V4, Family::V6] {
        let mut pair = Pair::connected(&PairOptions {
            mtu,
            wire_mtu,
            outer,
            ..PairOptions::default()
        })?;
        carry(&pair.left, &pair.right, mtu as usize)?;
        pair.check_running()?;
    }
    Ok(())
}

#[test]
fn mtu_1280() -> Result<()> {
    with_mtu(1280, 1500)
}

#[test]
fn mtu_1420() -> Result<()> {
    with_mtu(1420, 1500)
}

/// The outer packets do not fit the wire and go out in fragments.
#[test]
fn mtu_1500() -> Result<()> {
    with_mtu(1500, 1500)
}

#[test]
fn mtu_9000_on_a_jumbo_wire() -> Result<()> {
    with_mtu(9000, 9100)
}

#[test]
fn mtu_9000_on_an_ordinary_wire() -> Result<()> {
    with_mtu(9000, 1500)
}

#[test]
fn mtu_34816() -> Result<()> {
    with_mtu(34_816, 65_535)
}

#[test]
fn mtu_34816_on_an_ordinary_wire() -> Result<()> {
    with_mtu(34_816, 1500)
}

/// A route narrower than the outer packets: segmentation offload fails there with an error, and must not black-hole.
#[test]
fn route_narrower_than_the_outer_packet() -> Result<()> {
    for outer in [Family::V4, Family::V6] {
        let mut pair = Pair::connected(&PairOptions {
            outer,
            ..PairOptions::default()
        })?;
        let (left, right) = (&pair.left, &pair.right);
        carry(left, right, 1420)?;
        for (site, other) in [(left, right), (right, left)] {
            site.namespace.ip(&format!(
                "route add {} dev {WAN} mtu lock 1300",
                other.outer(outer)
            ))?;
        }
        carry(left, right, 1420)?;
        pair.check_running()?;
    }
    Ok(())
}

/// The MTU of a live device changes up and down.
#[test]
fn mtu_changes_live() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    for mtu in [1280_u16, 9000, 1420, 34_816, 1300] {
        for site in [&pair.left, &pair.right] {
            site.namespace
                .ip(&format!("link set {} mtu {mtu}", site.interface()))?;
        }
        carry(&pair.left, &pair.right, mtu.into())?;
    }
    pair.check_running()
}
