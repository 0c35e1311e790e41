//! The MTU of the paths to the peers: asked of the kernel, once a second, for endpoints that large datagrams
//! go to.
//!
//! Asked, because the kernel tells of it in one other way only: by errors on the socket that sends. Anybody
//! who can forge an ICMP message could fill its error queue, whose memory is that of received packets, and
//! have its sends fail.

use std::collections::HashMap;
use std::sync::Arc;

use adit_kernel::netlink::{self, Outbound};
use adit_protocol::Endpoint;

use super::Sockets;
use crate::dataplane::Dataplane;
use crate::dataplane::path_mtu::{LEAST, PathMtu};

/// Endpoints at most; packets to others are not told of.
const ENDPOINTS: usize = 4096;
/// Paths asked for in one go: a few milliseconds.
const LOOK_UPS: usize = 32;
/// Seconds after which nobody needs to know an unused path,
const QUIET: u32 = 5;
/// and after which it is forgotten when it was probed.
const UNUSED: u32 = 900;
/// Seconds between probes: what a router does not say for lack of "don't fragment" is learnt within
/// this. A path that eats probes loses one datagram each time.
const PROBE: u32 = 60;
/// After a change of routes the path may be another one, and is probed sooner.
const PROBE_AFTER_CHANGE: u32 = 5;
/// Seconds for which a path is taken to eat large packets, as long as the kernel keeps what routers say
/// (RFC 8201, section 5.3).
const SUSPECTED: u32 = 600;

/// What is known of a path.
#[derive(Debug)]
struct Known {
    path: Arc<PathMtu>,
    /// Seconds since it was used.
    idle: u32,
    /// Seconds since a probe was asked for.
    probed: u32,
    /// Seconds for which it is still taken to eat large packets.
    suspected: u32,
}

impl Known {
    fn is_told(&self) -> bool {
        self.idle <= QUIET
    }
}

/// The paths in use.
#[derive(Debug)]
pub(super) struct Paths {
    shared: Arc<Dataplane>,
    sockets: Option<Sockets>,
    known: HashMap<Endpoint, Known>,
    /// Routes have changed since the last look.
    changed: bool,
    /// Whose turn it is.
    turn: usize,
}

impl Paths {
    pub(super) fn new(shared: Arc<Dataplane>) -> Self {
        Self {
            shared,
            sockets: None,
            known: HashMap::new(),
            changed: false,
            turn: 0,
        }
    }

    /// Routes, addresses or sockets may have changed.
    pub(super) fn host_changed(&mut self, sockets: Option<Sockets>) {
        self.sockets = sockets;
        self.changed = true;
    }

    /// Called once a second.
    pub(super) fn check(&mut self) {
        let mut visible = self.meet();
        let changed = std::mem::take(&mut self.changed);
        let mut used = Vec::new();
        self.known.retain(|endpoint, known| {
            let told = known.is_told();
            known.idle = if known.path.take_used() {
                0
            } else {
                known.idle.saturating_add(1)
            };
            known.probed = known.probed.saturating_add(1);
            if known.probed >= PROBE || changed && known.probed >= PROBE_AFTER_CHANGE {
                known.path.ask_probe();
                known.probed = 0;
            }
            known.suspected = known.suspected.saturating_sub(1);
            if known.path.take_suspect() {
                tracing::debug!(endpoint = %endpoint.address, "large packets seem to be lost");
                known.suspected = SUSPECTED;
            }
            visible |= told != known.is_told();
            if known.is_told() {
                used.push(*endpoint);
            }
            known.idle <= UNUSED
        });
        // All of them if they are few, else some at a time.
        used.sort_unstable_by_key(|endpoint| endpoint.address);
        let count = used.len().min(LOOK_UPS);
        for offset in 0..count {
            visible |= self.measure(&used[(self.turn + offset) % used.len()]);
        }
        self.turn = self.turn.wrapping_add(count);
        if visible {
            self.publish();
        }
    }

    /// Takes in the endpoints that the egress threads have met; true if there are any.
    fn meet(&mut self) -> bool {
        let mut any = false;
        for endpoint in self.shared.paths.take_wanted() {
            if let Some(known) = self.known.get_mut(&endpoint) {
                known.idle = 0;
            } else if self.has_room() {
                let known = Known {
                    path: Arc::new(PathMtu::new(u32::MAX)),
                    idle: 0,
                    probed: 0,
                    suspected: 0,
                };
                self.known.insert(endpoint, known);
            } else {
                continue;
            }
            any = true;
        }
        any
    }

    /// Makes room by forgetting what is not in use, if need be.
    fn has_room(&mut self) -> bool {
        if self.known.len() >= ENDPOINTS {
            self.known.retain(|_, known| known.is_told());
        }
        self.known.len() < ENDPOINTS
    }

    /// Asks for a path; true if it is not as wide as it was.
    fn measure(&mut self, endpoint: &Endpoint) -> bool {
        let (Some(sockets), Some(known)) = (self.sockets, self.known.get(endpoint)) else {
            return false;
        };
        let datagram = Outbound {
            to: endpoint.address,
            source: endpoint.source.map(|source| source.address),
            port: sockets.port,
            mark: sockets.mark,
        };
        let asked =
            netlink::path_mtu(&datagram).inspect_err(|error| tracing::debug!(%error, "path MTU"));
        let Ok(Some(mut mtu)) = asked else {
            return false;
        };
        if known.suspected > 0 {
            mtu = mtu.min(LEAST);
        }
        let before = known.path.mtu();
        if mtu == before {
            return false;
        }
        known.path.set_mtu(mtu);
        tracing::debug!(endpoint = %endpoint.address, before, mtu, "path MTU");
        true
    }

    fn publish(&self) {
        let told = self.known.iter().filter(|(_, known)| known.is_told());
        let paths = told.map(|(endpoint, known)| (*endpoint, Arc::clone(&known.path)));
        self.shared.paths.replace(paths.collect());
    }
}
