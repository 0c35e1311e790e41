//! How to reach the peers by AF_XDP: routes and neighbours of the endpoints that the egress thread meets.
//!
//! What is known here is never older than the last change that netlink told of. Two things it does not
//! tell are looked after once a second, for hops in use: the path MTU, which may shrink, and stale
//! neighbours. The kernel confirms a neighbour that it sends to; of AF_XDP it knows nothing, so it is
//! asked to. A neighbour that does not answer becomes unknown, and packets go by the UDP socket, whose
//! kernel then looks for it anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;

use adit_kernel::bpf::SentFlows;
use adit_kernel::netlink::{self, Neighbour, NeighbourChange, NextHop, Outbound, Reachability};
use adit_protocol::Endpoint;

use super::Sockets;
use super::device::Transmit;
use crate::dataplane::Dataplane;
use crate::dataplane::transmit::{FlowCount, Headers, Hop, Hops, Way};

/// Endpoints with a next hop at most; those beyond are reached by the UDP socket.
const ENDPOINTS: usize = 4096;
/// Seconds after which an unused hop is forgotten, and one that is not to be had looked for again.
const UNUSED: u32 = 60;
const NOT_FOUND: u32 = 10;
/// Hops in use whose route is looked up again in one go: a few milliseconds.
const LOOK_UPS: usize = 32;
/// Flows that are remembered. The map of all flows is no larger.
const FLOWS: usize = 8192;
/// Ethernet header.
const ETHERNET: usize = 14;

/// What is known of an endpoint.
#[derive(Debug)]
struct Known {
    /// The route, if it is by a device that sends.
    route: Option<NextHop>,
    neighbour: Option<Neighbour>,
    hop: Option<Arc<Hop>>,
    /// Packets of the flow at the last look.
    packets: u64,
    /// Looks since it was used.
    idle: u32,
}

impl Known {
    fn neighbour_is(&self, interface: u32, address: std::net::IpAddr) -> bool {
        self.route
            .is_some_and(|route| route.interface == interface && route.neighbour == address)
    }
}

/// A flow's packets that left by AF_XDP.
#[derive(Debug, Default)]
struct Sent {
    count: Arc<FlowCount>,
    /// What was reported last.
    reported: (u64, u64),
}

/// This host's end and the peer's.
type Flow = (SocketAddr, SocketAddr);

/// The next hops, and the devices they may use.
#[derive(Debug)]
pub(super) struct NextHops {
    shared: Arc<Dataplane>,
    sockets: Option<Sockets>,
    devices: BTreeMap<u32, Transmit>,
    known: HashMap<Endpoint, Known>,
    flows: HashMap<Flow, Sent>,
    /// Makes flow labels that nobody can foretell.
    labels: RandomState,
    /// Whose turn it is to be looked up again.
    turn: usize,
}

impl NextHops {
    pub(super) fn new(shared: Arc<Dataplane>) -> Self {
        Self {
            shared,
            sockets: None,
            devices: BTreeMap::new(),
            known: HashMap::new(),
            flows: HashMap::new(),
            labels: RandomState::new(),
            turn: 0,
        }
    }

    /// Routes, addresses or sockets may have changed: begins anew. What is in use is asked for again by the
    /// next packet.
    pub(super) fn forget(&mut self, sockets: Option<Sockets>) {
        self.sockets = sockets;
        self.known.clear();
        self.publish();
        self.shared.transmit.resume();
    }

    /// Follows the devices that send.
    pub(super) fn set_devices(&mut self, devices: BTreeMap<u32, Transmit>) {
        if devices != self.devices {
            self.devices = devices;
            self.known.clear();
            self.publish();
        }
    }

    /// Looks for the endpoints that the egress thread has met.
    pub(super) fn find_wanted(&mut self) {
        let wanted = self.shared.transmit.take_wanted();
        for endpoint in wanted {
            if self.known.len() < ENDPOINTS {
                let known = self.find(&endpoint);
                self.known.insert(endpoint, known);
            }
        }
        self.publish();
    }

    /// Follows a neighbour.
    pub(super) fn neighbour_changed(&mut self, change: NeighbourChange) {
        let NeighbourChange::Is(neighbour) = change else {
            self.known.clear();
            return self.publish();
        };
        let concerned: Vec<Endpoint> = self
            .known
            .iter()
            .filter(|(_, known)| known.neighbour_is(neighbour.interface, neighbour.address))
            .filter(|(_, known)| known.neighbour != Some(neighbour))
            .map(|(endpoint, _)| *endpoint)
            .collect();
        let mut visible = false;
        for endpoint in concerned {
            visible |= self.update(&endpoint, |known| known.neighbour = Some(neighbour));
        }
        if visible {
            self.publish();
        }
    }

    /// Called once a second.
    pub(super) fn check(&mut self) {
        let mut used = Vec::new();
        let mut stale = BTreeSet::new();
        let before = self.known.len();
        self.known.retain(|endpoint, known| {
            let packets = known.hop.as_ref().map_or(0, |hop| hop.flow.get().0);
            if packets == known.packets {
                known.idle += 1;
            } else {
                (known.packets, known.idle) = (packets, 0);
                used.push(*endpoint);
                let neighbour = known
                    .neighbour
                    .filter(|neighbour| neighbour.reachability == Reachability::Stale);
                stale.extend(neighbour.map(|neighbour| (neighbour.interface, neighbour.address)));
            }
            known.idle
                <= if known.hop.is_some() {
                    UNUSED
                } else {
                    NOT_FOUND
                }
        });
        let mut visible = self.known.len() != before;
        for (interface, address) in stale {
            match netlink::confirm_neighbour(interface, address) {
                Ok(true) => {}
                // The socket's packets will do it.
                _ => visible |= self.lose_neighbour(interface, address),
            }
        }
        // All of them if they are few, else some at a time.
        used.sort_unstable_by_key(|endpoint| endpoint.address);
        let count = used.len().min(LOOK_UPS);
        for offset in 0..count {
            let endpoint = used[(self.turn + offset) % used.len()];
            let route = self.route(&endpoint);
            visible |= self.update(&endpoint, |known| {
                if known.route.map(|route| (route.interface, route.neighbour))
                    != route.map(|route| (route.interface, route.neighbour))
                {
                    known.neighbour = route.and_then(|route| neighbour_of(&route));
                }
                known.route = route;
            });
        }
        self.turn = self.turn.wrapping_add(count);
        if visible {
            self.publish();
        }
    }

    /// Writes the counts that have changed to where the programs count.
    pub(super) fn report(&mut self, sent: &mut SentFlows) {
        for ((local, remote), flow) in &mut self.flows {
            let count = flow.count.get();
            if count != flow.reported && sent.set(*local, *remote, count.0, count.1).is_ok() {
                flow.reported = count;
            }
        }
        if self.flows.len() > FLOWS / 2 {
            // Whom no hop refers to any more is in the map for as long as there is room, like any flow.
            self.flows.retain(|(local, remote), flow| {
                let kept = Arc::strong_count(&flow.count) > 1;
                if !kept {
                    sent.forget(*local, *remote);
                }
                kept
            });
        }
    }

    fn lose_neighbour(&mut self, interface: u32, address: std::net::IpAddr) -> bool {
        let concerned: Vec<Endpoint> = self
            .known
            .iter()
            .filter(|(_, known)| known.neighbour_is(interface, address))
            .map(|(endpoint, _)| *endpoint)
            .collect();
        let mut visible = false;
        for endpoint in concerned {
            visible |= self.update(&endpoint, |known| known.neighbour = None);
        }
        visible
    }

    /// Changes what is known of an endpoint; true if the egress thread has to know.
    fn update(&mut self, endpoint: &Endpoint, change: impl FnOnce(&mut Known)) -> bool {
        let Some(mut known) = self.known.remove(endpoint) else {
            return false;
        };
        let key = |known: &Known| {
            let neighbour = known
                .neighbour
                .filter(|neighbour| neighbour.reachability.is_usable());
            (
                known.route,
                neighbour.and_then(|neighbour| neighbour.ethernet),
            )
        };
        let before = key(&known);
        change(&mut known);
        let visible = key(&known) != before;
        if visible {
            known.hop = self.build(endpoint, known.route.as_ref(), known.neighbour.as_ref());
            known.packets = known.hop.as_ref().map_or(0, |hop| hop.flow.get().0);
        }
        self.known.insert(*endpoint, known);
        visible
    }

    fn find(&mut self, endpoint: &Endpoint) -> Known {
        let route = self.route(endpoint);
        let neighbour = route.as_ref().and_then(neighbour_of);
        let hop = self.build(endpoint, route.as_ref(), neighbour.as_ref());
        Known {
            packets: hop.as_ref().map_or(0, |hop| hop.flow.get().0),
            route,
            neighbour,
            hop,
            idle: 0,
        }
    }

    /// The route to an endpoint, if it is by a device that sends.
    fn route(&self, endpoint: &Endpoint) -> Option<NextHop> {
        let sockets = self.sockets?;
        let datagram = Outbound {
            to: endpoint.address,
            source: endpoint.source.map(|source| source.address),
            port: sockets.port,
            mark: sockets.mark,
        };
        netlink::next_hop(&datagram)
            .inspect_err(|error| tracing::debug!(%error, "next hop"))
            .ok()
            .flatten()
            .filter(|route| self.devices.contains_key(&route.interface))
    }

    fn build(
        &mut self,
        endpoint: &Endpoint,
        route: Option<&NextHop>,
        neighbour: Option<&Neighbour>,
    ) -> Option<Arc<Hop>> {
        let (sockets, route) = (self.sockets?, route?);
        let device = self.devices.get(&route.interface)?;
        let neighbour = neighbour.filter(|neighbour| neighbour.reachability.is_usable())?;
        let local = SocketAddr::new(route.source, sockets.port);
        let label = self.labels.hash_one((local, endpoint.address));
        let headers = Headers::new(&Way {
            ethernet: [route.ethernet, neighbour.ethernet?],
            from: local,
            to: endpoint.address,
            hop_limit: route.hop_limit,
            flow_label: u32::try_from(label >> 32).unwrap_or(0),
        })?;
        let packet = (route.mtu as usize).min(device.capacity.saturating_sub(ETHERNET));
        // Scopes and flow information are no part of a flow's name.
        let remote = SocketAddr::new(endpoint.address.ip(), endpoint.address.port());
        let flow = self.flows.entry((local, remote)).or_default();
        Some(Arc::new(Hop {
            interface: route.interface,
            port: sockets.port,
            largest: packet.saturating_sub(headers.in_mtu()),
            headers,
            flow: Arc::clone(&flow.count),
        }))
    }

    fn publish(&self) {
        let hops = self.known.iter();
        let hops = hops.map(|(endpoint, known)| (*endpoint, known.hop.clone()));
        self.shared.transmit.replace_hops(Hops(hops.collect()));
    }
}

fn neighbour_of(route: &NextHop) -> Option<Neighbour> {
    netlink::neighbour(route.interface, route.neighbour)
        .inspect_err(|error| tracing::debug!(%error, "neighbour"))
        .ok()
        .flatten()
}
