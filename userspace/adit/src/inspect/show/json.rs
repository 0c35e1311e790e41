//! What `--json` prints.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;

use super::{Tunnel, VERSION};
use crate::inspect::answer::{self, XdpDevice};
use crate::inspect::flows::Row;

#[derive(Serialize)]
pub(super) struct Report<'a> {
    version: u32,
    interfaces: Vec<Interface<'a>>,
}

#[derive(Serialize)]
struct Interface<'a> {
    name: &'a str,
    public_key: Option<String>,
    private_key_set: bool,
    listen_port: u16,
    fwmark: u32,
    datapath: Option<&'a str>,
    datapath_notes: &'a [String],
    xdp: Vec<Xdp<'a>>,
    xdp_transmit: Vec<Transmit<'a>>,
    /// By reason; those that never were are left out.
    drops: BTreeMap<String, u64>,
    /// All of the daemon's counters by name.
    counters: BTreeMap<&'a str, u64>,
    /// Whether `flows` of the peers are known.
    flows_counted: bool,
    peers: Vec<Peer<'a>>,
}

#[derive(Serialize)]
struct Xdp<'a> {
    device: &'a str,
    mode: &'a str,
    zero_copy: bool,
    queues: u32,
}

#[derive(Serialize)]
struct Transmit<'a> {
    device: &'a str,
    zero_copy: bool,
}

#[derive(Serialize)]
struct Peer<'a> {
    public_key: String,
    preshared_key_set: bool,
    endpoint: Option<SocketAddr>,
    allowed_ips: Vec<String>,
    /// Unix time in seconds; null if never.
    latest_handshake: Option<u64>,
    /// Seconds; null if not known.
    handshake_round_trip: Option<f64>,
    received_bytes: u64,
    sent_bytes: u64,
    /// Seconds; null if off.
    persistent_keepalive: Option<u16>,
    flows: Vec<&'a Row>,
}

impl<'a> Report<'a> {
    pub(super) fn new(tunnels: &'a [Tunnel]) -> Self {
        Self {
            version: VERSION,
            interfaces: tunnels.iter().map(Interface::new).collect(),
        }
    }
}

impl<'a> Interface<'a> {
    fn new(tunnel: &'a Tunnel) -> Self {
        let device = &tunnel.device;
        let xdp = |xdp: &'a XdpDevice| Xdp {
            device: &xdp.name,
            mode: &xdp.mode,
            zero_copy: xdp.zero_copy,
            queues: xdp.queues,
        };
        Self {
            name: &tunnel.name,
            public_key: device.public_key.map(|key| key.to_base64()),
            private_key_set: device.public_key.is_some(),
            listen_port: device.listen_port,
            fwmark: device.fwmark,
            datapath: device.datapath.as_deref(),
            datapath_notes: &device.datapath_notes,
            xdp: device.xdp.iter().map(xdp).collect(),
            xdp_transmit: device
                .transmit
                .iter()
                .map(|transmit| Transmit {
                    device: &transmit.name,
                    zero_copy: transmit.zero_copy,
                })
                .collect(),
            drops: tunnel.drops().into_iter().collect(),
            counters: device
                .counters
                .iter()
                .map(|(name, count)| (name.as_str(), *count))
                .collect(),
            flows_counted: tunnel.flows.is_some(),
            peers: device
                .peers
                .iter()
                .map(|peer| Peer::new(tunnel, peer))
                .collect(),
        }
    }
}

impl<'a> Peer<'a> {
    fn new(tunnel: &'a Tunnel, peer: &'a answer::Peer) -> Self {
        Self {
            public_key: peer.public_key.to_base64(),
            preshared_key_set: peer.preshared_key,
            endpoint: peer.endpoint,
            allowed_ips: peer
                .allowed_ips
                .iter()
                .map(|(address, length)| format!("{address}/{length}"))
                .collect(),
            latest_handshake: (peer.latest_handshake != 0).then_some(peer.latest_handshake),
            handshake_round_trip: peer.round_trip.map(|taken| taken.as_secs_f64()),
            received_bytes: peer.received,
            sent_bytes: peer.sent,
            persistent_keepalive: (peer.keepalive != 0).then_some(peer.keepalive),
            flows: tunnel.flows_of(peer).collect(),
        }
    }
}
