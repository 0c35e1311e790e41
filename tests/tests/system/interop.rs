//! With the other implementations, each side initiating in turn.

use adit_tests::daemon::{Implementation, Options};
use adit_tests::ping::ping_all;
use adit_tests::transfer::{tcp_both_ways, udp_echo};
use adit_tests::tunnel::{Family, Pair, PairOptions};
use adit_tests::wg::preshared_key;
use anyhow::{Result, ensure};

fn by(implementation: Implementation) -> Options {
    Options {
        implementation,
        ..Options::default()
    }
}

/// The left side initiates; the right side learns where it is from that.
fn interoperate(left: Implementation, right: Implementation) -> Result<()> {
    for (outer, preshared_key) in [(Family::V4, None), (Family::V6, Some(preshared_key()?))] {
        let mut pair = Pair::connected(&PairOptions {
            left: by(left),
            right: by(right),
            outer,
            right_knows_left: false,
            preshared_key,
            ..PairOptions::default()
        })?;
        let (a, b) = (&pair.left, &pair.right);
        for inner in [Family::V4, Family::V6] {
            for size in [0, 1, 1000, 1420 - 48] {
                ping_all(&a.namespace, b.inner(inner), 3, size)?;
                ping_all(&b.namespace, a.inner(inner), 3, size)?;
            }
            tcp_both_ways(a, b, inner, 4 << 20)?;
            udp_echo(
                &a.namespace,
                &b.namespace,
                b.inner(inner),
                &[0, 1, 100, 1300],
            )?;
        }
        let (seen, own) = (b.peer(a)?.endpoint, a.endpoint(outer));
        ensure!(seen == Some(own), "{seen:?}, not {own}");
        pair.check_running()?;
    }
    Ok(())
}

#[test]
fn adit_to_wireguard_go() -> Result<()> {
    interoperate(Implementation::Adit, Implementation::WireguardGo)
}

#[test]
fn wireguard_go_to_adit() -> Result<()> {
    interoperate(Implementation::WireguardGo, Implementation::Adit)
}

#[test]
fn adit_to_boringtun() -> Result<()> {
    interoperate(Implementation::Adit, Implementation::Boringtun)
}

#[test]
fn boringtun_to_adit() -> Result<()> {
    interoperate(Implementation::Boringtun, Implementation::Adit)
}
