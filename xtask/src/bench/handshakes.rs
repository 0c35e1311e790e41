//! How many handshakes a second does a daemon answer, each of another of a thousand peers?

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddrV4};
use std::time::Duration;

use adit_tests::Namespace;
use adit_tests::initiators::{Initiators, SOURCES};
use adit_tests::measure::Meter;
use adit_tests::tunnel::{Family, PORT, Site, connect, outer};
use adit_tests::wg::apply;
use anyhow::{Result, bail, ensure};
use base64::Engine as _;

use super::bed::{TUNNEL_MTU, WIRE_MTU};
use super::contender::Contender;
use super::scenario::{Values, number};

/// So many that none of them comes near the 50 handshakes a second that one peer may make.
const PEERS: u16 = 1000;

/// How long the first handshake of all of them may take.
const FIRST: Duration = Duration::from_secs(30);

/// Measures a contender once.
///
/// # Errors
/// The daemon does not start, or does not answer.
pub(crate) fn measure(contender: &Contender, seconds: u32) -> Result<Values> {
    let (left, right) = (Namespace::new()?, Namespace::new()?);
    connect(&left, &right, WIRE_MTU)?;
    let site = Site::start(right, 2, TUNNEL_MTU, &contender.options())?;
    let (IpAddr::V4(from), IpAddr::V4(to)) = (outer(1, Family::V4), outer(2, Family::V4)) else {
        bail!("outer addresses are not IPv4");
    };
    site.namespace
        .ip(&format!("route add {SOURCES} via {from}"))?;

    let key = base64::engine::general_purpose::STANDARD.decode(&site.keys.public)?;
    let Ok(key) = <[u8; 32]>::try_from(key) else {
        bail!("not a key: {}", site.keys.public);
    };
    let mut initiators = Initiators::new(&left, key, SocketAddrV4::new(to, PORT), PEERS)?;
    let mut config = String::new();
    for (n, key) in initiators.public_keys().enumerate() {
        let (high, low) = (n / 256, n % 256);
        write!(
            config,
            "[Peer]\nPublicKey = {key}\nAllowedIPs = 10.77.{high}.{low}/32\n"
        )?;
    }
    apply(&site.namespace, "addconf", site.interface(), &config)?;

    let introduced = initiators.introduce(FIRST)?;
    ensure!(
        introduced == usize::from(PEERS),
        "only {introduced} of {PEERS} peers had their first handshake within {FIRST:?}"
    );
    let meter = Meter::start(&[site.daemon.pid()])?;
    let answers = initiators.ask(Duration::from_secs(seconds.into()))?;
    let usage = meter.stop()?;
    ensure!(answers.responses > 0, "no handshake was answered");
    let responses = number(answers.responses);
    Ok(vec![
        (
            "handshakes_per_second",
            responses / answers.elapsed.as_secs_f64(),
        ),
        (
            "daemon_cpu_per_handshake",
            usage.watched().as_secs_f64() * 1e6 / responses,
        ),
        ("unanswered", number(answers.unanswered)),
        ("cookies", number(answers.cookies)),
    ])
}
