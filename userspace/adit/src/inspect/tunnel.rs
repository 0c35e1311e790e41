//! A tunnel seen from outside: what its daemon tells, and what its eBPF programs count.

use adit_kernel::bpf::PinnedMaps;
use anyhow::Result;

use super::answer::{Device, Peer};
use super::client;
use super::flows::{self, Row};

/// A tunnel with the flows that its programs count, if they can be read.
#[derive(Clone, Debug)]
pub(crate) struct Tunnel {
    /// The device.
    pub(crate) name: String,
    /// What its daemon tells.
    pub(crate) device: Device,
    /// The flows that its programs count, most bytes first; `None` where that cannot be read.
    pub(crate) flows: Option<Vec<Row>>,
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
            flows: read_flows(name),
        })
    }

    /// The flows to and from a peer's endpoint.
    pub(crate) fn flows_of(&self, peer: &Peer) -> impl Iterator<Item = &Row> {
        // A scope says nothing here: the maps do not know it.
        let endpoint = peer
            .endpoint
            .map(|endpoint| (endpoint.ip(), endpoint.port()));
        self.flows
            .iter()
            .flatten()
            .filter(move |row| Some((row.remote.ip(), row.remote.port())) == endpoint)
    }

    /// Packets dropped, by reason, those that never were left out: by the eBPF programs (`ebpf_…`), by the threads of the
    /// daemon (`ingress_…`, `egress_…`, `handshake_…`).
    pub(crate) fn drops(&self) -> Vec<(String, u64)> {
        self.device
            .drops()
            .filter(|(_, count)| *count != 0)
            .map(|(reason, count)| (reason.to_owned(), count))
            .collect()
    }
}

/// Counters are an extra: without them, for whatever reason, the tunnel is shown all the same.
fn read_flows(interface: &str) -> Option<Vec<Row>> {
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
    Some(rows)
}
