//! Next hops as the egress thread sees them: what to write in front of a datagram, and by which device.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use adit_protocol::Endpoint;

use super::headers::Headers;

/// Data messages that left by AF_XDP, in one flow. Outlives the hops of the flow.
#[derive(Debug, Default)]
pub struct FlowCount {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl FlowCount {
    pub(super) fn add(&self, packets: u64, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.packets.fetch_add(packets, Relaxed);
    }

    /// Packets, and bytes of UDP payload in them.
    pub fn get(&self) -> (u64, u64) {
        (self.packets.load(Relaxed), self.bytes.load(Relaxed))
    }
}

/// How to reach one endpoint by AF_XDP.
#[derive(Debug)]
pub struct Hop {
    /// Index of the interface.
    pub interface: u32,
    /// Our UDP port, as the headers have it.
    pub port: u16,
    /// Bytes of the longest UDP payload that needs no fragmentation.
    pub largest: usize,
    /// What stands in front of it.
    pub headers: Headers,
    /// What left this way.
    pub flow: Arc<FlowCount>,
}

/// The endpoints that were asked for. Those without a hop are reached by the UDP socket.
#[derive(Clone, Debug, Default)]
pub struct Hops(pub HashMap<Endpoint, Option<Arc<Hop>>>);
