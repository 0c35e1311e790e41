//! A tunnel seen from outside: what its daemon tells, and what its eBPF programs count.

use adit_kernel::bpf::PinnedMaps;
use anyhow::Result;

use super::answer::{Device, Peer};
use super::client;
use super::flows::{self, Row};

/// A tunnel with what its programs count, if that can be read.
#[derive(Clone, Debug)]
pub(crate) struct Tunnel {
    /// The device.
    pub(crate) name: String,
    /// What its daemon tells.
    pub(crate) device: Device,
    /// What its programs count.
    pub(crate) counts: Option<Counts>,
}

/// What the eBPF programs count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Most bytes first.
    pub(crate) flows: Vec<Row>,
    /// Reason, packets.
    pub(crate) drops: Vec<(&'static str, u64)>,
}

impl Tunnel {
    /// Asks the daemon, and reads the counters.
    ///
    /// # Errors
    /// As [`client::describe`].
    pub(crate) fn read(name: &str) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            device: client::describe(name)?,
            counts: Counts::read(name),
        })
    }

    /// The flows to and from a peer's endpoint.
    pub(crate) fn flows_of(&self, peer: &Peer) -> impl Iterator<Item = &Row> {
        // A scope says nothing here: the maps do not know it.
        let endpoint = peer
            .endpoint
            .map(|endpoint| (endpoint.ip(), endpoint.port()));
        self.counts
            .iter()
            .flat_map(|counts| &counts.flows)
            .filter(move |row| Some((row.remote.ip(), row.remote.port())) == endpoint)
    }

    /// Packets dropped, by reason, those that never were left out: in XDP (`xdp_…`), by the threads of the daemon (`ingress_…`,
    /// `egress_…`, `handshake_…`).
    pub(crate) fn drops(&self) -> Vec<(String, u64)> {
        let in_xdp = self.counts.iter().flat_map(|counts| &counts.drops);
        self.device
            .drops(in_xdp.map(|(reason, count)| (reason, *count)))
            .filter(|(_, count)| *count != 0)
            .collect()
    }
}

impl Counts {
    /// Counters are an extra: without them, for whatever reason, the tunnel is shown all the same.
    fn read(interface: &str) -> Option<Self> {
        let maps = PinnedMaps::open(interface)
            .ok()
            .filter(|maps| maps.owner().1)?;
        let now = flows::monotonic_ns();
        let mut rows: Vec<Row> = maps
            .flows()
            .ok()?
            .iter()
            .map(|flow| flows::row(flow, now))
            .collect();
        flows::sort(&mut rows);
        let drops = maps.drops().ok()?;
        Some(Self {
            flows: rows,
            drops: drops
                .iter()
                .map(|drop| (drop.reason.name(), drop.packets))
                .collect(),
        })
    }
}
