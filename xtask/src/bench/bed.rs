//! What a measurement runs on: two namespaces, a wire, and a daemon in each if the contender has one.

use std::net::IpAddr;
use std::time::Duration;

use adit_tests::tunnel::{Family, Pair, PairOptions, Site, connect, outer};
use adit_tests::wait::wait_until;
use adit_tests::{Namespace, uapi};
use anyhow::{Context as _, Result, ensure};

use super::contender::Contender;

/// MTU of the wire.
pub(crate) const WIRE_MTU: u32 = 1500;

/// MTU of the tunnel devices: what fits the wire over IPv6 as well.
pub(crate) const TUNNEL_MTU: u32 = 1420;

/// How long Adit may take until it receives by XDP.
const STEERING_LIMIT: Duration = Duration::from_secs(20);

/// Two ends that reach each other, made for one measurement.
#[derive(Debug)]
pub(crate) enum Bed {
    /// Through a tunnel.
    Tunnel {
        /// The sites.
        pair: Box<Pair>,
        /// Where XDP is measured: data messages that came to left and right by the socket before it took over.
        by_socket: Option<(u64, u64)>,
    },
    /// Over the bare wire.
    Wire {
        /// Sends.
        left: Namespace,
        /// Receives.
        right: Namespace,
    },
}

impl Bed {
    /// Makes a bed and waits until the ends reach each other.
    ///
    /// # Errors
    /// Any of it failed.
    pub(crate) fn new(contender: &Contender) -> Result<Self> {
        if !contender.is_tunnel() {
            let (left, right) = (Namespace::new()?, Namespace::new()?);
            connect(&left, &right, WIRE_MTU)?;
            return Ok(Self::Wire { left, right });
        }
        let pair = Pair::connected(&PairOptions {
            left: contender.options(),
            right: contender.options(),
            mtu: TUNNEL_MTU,
            wire_mtu: WIRE_MTU,
            ..PairOptions::default()
        })?;
        Self::of(pair, contender)
    }

    /// A bed of two sites that reach each other.
    ///
    /// # Errors
    /// Adit was to receive by XDP and does not.
    pub(crate) fn of(pair: Pair, contender: &Contender) -> Result<Self> {
        let by_socket = if contender.datapath == Some("xdp") {
            wait_steering(&pair.left)?;
            wait_steering(&pair.right)?;
            Some((
                received_by_socket(&pair.left)?,
                received_by_socket(&pair.right)?,
            ))
        } else {
            None
        };
        Ok(Self::Tunnel {
            pair: Box::new(pair),
            by_socket,
        })
    }

    /// The end that sends.
    pub(crate) fn left(&self) -> &Namespace {
        match self {
            Self::Tunnel { pair, .. } => &pair.left.namespace,
            Self::Wire { left, .. } => left,
        }
    }

    /// The end that receives.
    pub(crate) fn right(&self) -> &Namespace {
        match self {
            Self::Tunnel { pair, .. } => &pair.right.namespace,
            Self::Wire { right, .. } => right,
        }
    }

    /// Address of the end that receives.
    pub(crate) fn target(&self) -> IpAddr {
        match self {
            Self::Tunnel { pair, .. } => pair.right.inner(Family::V4),
            Self::Wire { .. } => outer(2, Family::V4),
        }
    }

    /// The daemons, the sending one first.
    pub(crate) fn daemons(&self) -> Vec<u32> {
        match self {
            Self::Tunnel { pair, .. } => vec![pair.left.daemon.pid(), pair.right.daemon.pid()],
            Self::Wire { .. } => Vec::new(),
        }
    }

    /// What was measured was what should be: the daemons still run, and what came to Adit came by XDP if it should.
    ///
    /// # Errors
    /// It was not.
    pub(crate) fn check(&mut self) -> Result<()> {
        let Self::Tunnel { pair, by_socket } = self else {
            return Ok(());
        };
        pair.check_running()?;
        if let Some((left, right)) = *by_socket {
            for (site, before) in [(&pair.left, left), (&pair.right, right)] {
                let stray = received_by_socket(site)?.saturating_sub(before);
                let steered = uapi::number(site.interface(), "adit_xsk_received_data")?;
                ensure!(
                    // Nothing else was going on, so not even one in a hundred should.
                    stray * 100 <= steered,
                    "meant for XDP, but {stray} packets came by the socket and {steered} by XDP"
                );
            }
        }
        Ok(())
    }
}

fn received_by_socket(site: &Site) -> Result<u64> {
    uapi::number(site.interface(), "adit_udp_received_data")
}

fn wait_steering(site: &Site) -> Result<()> {
    let value = |key: &str| -> Result<Option<String>> {
        let answer = uapi::request(site.interface(), "get=1")?;
        Ok(answer
            .into_iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value))
    };
    wait_until(
        "adit receives by XDP",
        STEERING_LIMIT,
        || matches!(value("adit_datapath"), Ok(Some(path)) if path == "xdp"),
    )
    .with_context(|| {
        let note = value("adit_datapath_note").ok().flatten();
        note.unwrap_or_else(|| "adit does not say why".to_owned())
    })
}
