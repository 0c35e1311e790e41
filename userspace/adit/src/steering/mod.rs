//! The eBPF half of the data path, from the control thread's side: which interfaces carry the
//! tunnel, whether XDP steers their packets to AF_XDP sockets, and what to do when that ends.
//!
//! Nothing here is needed for the tunnel to work. Whatever is missing or lost, packets reach the
//! UDP socket by themselves; this module notices, says so once, and tries again.
//!
//! - [`options`]: what the command line asks for.
//! - `device`: one underlay interface: attaching, watching, detaching.
//! - `loss`: why packets go back to the UDP socket.
//! - `next_hops`: how to reach the peers by AF_XDP.
//! - `paths`: what fits the paths to the peers.
//! - `watchdog`: packets that are steered and never arrive.

mod device;
mod loss;
mod next_hops;
pub mod options;
mod paths;
mod watchdog;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use adit_kernel::bpf::{
    Direction, DropReason, EventLevel, Events, Listener, LoadOptions, RateLimit, SentFlows,
    Sessions, Steering,
};
use adit_kernel::netlink::{self, Link, NeighbourChange};
use adit_kernel::udp::UdpGroup;
use adit_protocol::{Endpoint, Instant, PeerId};
use anyhow::{Context as _, Result};
use tracing::level_filters::LevelFilter;

use self::device::{Departure, Device, State};
use self::loss::{Loss, Losses};
use self::next_hops::NextHops;
use self::options::{Datapath, Options, Underlay};
use self::paths::Paths;
use self::watchdog::Watchdog;
use crate::dataplane::Dataplane;
use crate::error_chain;

/// What the tunnel's UDP sockets look like to the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// The listen port.
    pub port: u16,
    /// The firewall mark, for route look-ups.
    pub mark: u32,
}

/// The loaded programs and the interfaces they are on.
#[derive(Debug)]
pub struct Steerer {
    options: Options,
    shared: Arc<Dataplane>,
    programs: Option<Programs>,
    devices: BTreeMap<u32, Device>,
    /// Interfaces that led to the peers at the last look, usable ones and others.
    leading: BTreeSet<u32>,
    listeners: Vec<Listener>,
    under_load: bool,
    /// Handshake messages refused for their rate at the last look.
    refused: u64,
    sockets: Option<Sockets>,
    watchdog: Watchdog,
    losses: Losses,
    next_hops: NextHops,
    paths: Paths,
    /// Why there are no programs.
    note: Option<String>,
}

#[derive(Debug)]
struct Programs {
    steering: Steering,
    sessions: Sessions,
    events: Option<Events>,
    /// For counting what leaves by AF_XDP.
    sent: Option<SentFlows>,
    /// XDP does not know every session: steering would drop the packets of the others.
    sessions_incomplete: bool,
}

impl Steerer {
    /// Loads the programs. Their maps are [pinned](Self::pin) when it is certain that they will be used.
    ///
    /// # Errors
    /// Only when the options demand XDP: then what it lacks is said at the start.
    pub fn start(options: Options, shared: Arc<Dataplane>) -> Result<Self> {
        let loaded = Programs::load();
        let (programs, note) = match loaded {
            Ok(programs) => (Some(programs), None),
            Err(error) if options.datapath == Datapath::Xdp => {
                return Err(error.context("--datapath xdp cannot be had"));
            }
            Err(error) => {
                let reason = format!("{error:#}");
                tracing::info!(
                    reason,
                    "no eBPF: packets come in by the UDP socket, uncounted and unfiltered"
                );
                (None, Some(reason))
            }
        };
        let mut steerer = Self {
            options,
            programs,
            devices: BTreeMap::new(),
            leading: BTreeSet::new(),
            listeners: Vec::new(),
            under_load: false,
            refused: 0,
            sockets: None,
            watchdog: Watchdog::default(),
            losses: Losses::default(),
            next_hops: NextHops::new(Arc::clone(&shared)),
            paths: Paths::new(Arc::clone(&shared)),
            shared,
            note,
        };
        steerer.demand_named_devices()?;
        Ok(steerer)
    }

    /// Pins the maps for tunnel `interface`, in the place of those that process `predecessor` has left.
    pub fn pin(&mut self, interface: &str, predecessor: Option<u32>) {
        if let Some(programs) = &mut self.programs
            && let Err(error) = programs.steering.pin_after(interface, predecessor)
        {
            tracing::info!(
                error = error_chain(&error),
                "counters cannot be read with bpftool: not pinned"
            );
        }
    }

    /// Leaves the pins to the process that takes the tunnel over.
    pub fn leave_pins(&mut self) {
        if let Some(programs) = &mut self.programs {
            programs.steering.leave_pins();
        }
    }

    /// Whether the eBPF programs are loaded.
    pub fn has_programs(&self) -> bool {
        self.programs.is_some()
    }

    /// Whether AF_XDP sockets may be opened, now or later.
    pub fn may_steer(&self) -> bool {
        self.has_programs() && self.options.datapath != Datapath::Socket
    }

    /// Where the maps are pinned.
    pub fn pinned_at(&self) -> Option<&Path> {
        self.programs.as_ref()?.steering.pinned_at()
    }

    /// `--datapath xdp --underlay DEV`: what is demanded of a device that is named is tried before
    /// anything depends on it.
    fn demand_named_devices(&mut self) -> Result<()> {
        let Underlay::Devices(names) = &self.options.underlay else {
            return Ok(());
        };
        if self.options.datapath != Datapath::Xdp {
            return Ok(());
        }
        for name in names.clone() {
            let link = netlink::link_by_name(&name)
                .with_context(|| format!("--underlay {name}"))?
                .with_context(|| format!("--underlay {name}: there is no such interface"))?;
            let device = self.attach(&link);
            if let State::Refused { reason, .. } = device.state() {
                anyhow::bail!("--datapath xdp cannot be had on {name}: {reason}");
            }
            self.devices.insert(link.index, device);
        }
        Ok(())
    }

    fn attach(&mut self, link: &Link) -> Device {
        match &mut self.programs {
            Some(programs) => {
                Device::attach(&mut programs.steering, &self.shared, &self.options, link)
            }
            None => Device::refused(link, "the programs are not loaded".to_owned()),
        }
    }

    /// Makes a session's index known to XDP. Called before the peer can know it.
    pub fn session_added(&mut self, receiver_index: u32, peer: PeerId) {
        let Some(programs) = &mut self.programs else {
            return;
        };
        // The map names peers by 32 bits; only people read it.
        let peer = u32::try_from(peer.as_u64() & u64::from(u32::MAX)).unwrap_or(0);
        if let Err(error) = programs.sessions.insert(receiver_index, peer) {
            if !std::mem::replace(&mut programs.sessions_incomplete, true) {
                let error = error_chain(&error);
                tracing::warn!(
                    error,
                    "XDP cannot hold all sessions; packets come in by the UDP socket"
                );
            }
            self.take_filter_off();
            self.steer();
        }
    }

    /// Notes that an authentic message has come to this address of ours.
    pub fn heard_at(&mut self, address: IpAddr) {
        if let (Some(programs), Some(sockets)) = (&mut self.programs, self.sockets)
            && let Err(error) = programs.steering.hear(address, sockets.port)
        {
            tracing::debug!(error = error_chain(&error), "XDP drops nothing there");
        }
    }

    /// Takes a session's index back.
    pub fn session_removed(&mut self, receiver_index: u32) {
        if let Some(programs) = &mut self.programs
            && let Err(error) = programs.sessions.remove(receiver_index)
        {
            tracing::debug!(error = error_chain(&error), "session not removed from XDP");
        }
    }

    /// Chooses the filter for sockets that are about to be used.
    pub fn choose_filter(&self, sockets: &mut UdpGroup) {
        let programs = self.programs.as_ref();
        sockets.set_filter(programs.map(|programs| programs.steering.socket_filter()));
    }

    /// Keeps what nobody needs out of the sockets.
    pub fn put_filter_on(&self) {
        let programs = self.programs.as_ref();
        if programs.is_some_and(|programs| programs.sessions_incomplete) {
            self.take_filter_off();
        } else if let Some(sockets) = self.shared.sockets.load().as_ref()
            && let Err(error) = sockets.put_filter_on()
        {
            tracing::info!(%error, "no filter in front of the UDP sockets");
        }
    }

    /// Lets everything through to the sockets.
    pub fn take_filter_off(&self) {
        if let Some(sockets) = self.shared.sockets.load().as_ref() {
            sockets.take_filter_off();
        }
    }

    /// Handshake messages that the programs have refused for their rate since the last call.
    pub fn refused_handshakes(&mut self) -> usize {
        // Without load nothing is refused.
        let programs = self.programs.as_ref().filter(|_| self.under_load);
        let Some(drops) = programs.and_then(|programs| programs.steering.drops().ok()) else {
            return 0;
        };
        let refused = drops[DropReason::RateLimited as usize].packets;
        let before = std::mem::replace(&mut self.refused, refused);
        usize::try_from(refused.saturating_sub(before)).unwrap_or(usize::MAX)
    }

    /// Limits handshake messages in front of the sockets, or stops doing so.
    pub fn set_under_load(&mut self, under_load: bool) {
        if self.under_load == under_load {
            return;
        }
        self.under_load = under_load;
        if let Some(programs) = &mut self.programs {
            let limit = under_load.then(RateLimit::default);
            if let Err(error) = programs.steering.set_under_load(limit) {
                tracing::debug!(error = error_chain(&error), "no handshake limit by eBPF");
            }
        }
    }

    /// Brings interfaces and addresses in line with the host's: attaches to what leads to the
    /// peers, detaches from the rest. Without sockets (the tunnel is down) nothing is steered.
    pub fn refresh(&mut self, sockets: Option<Sockets>, endpoints: &[Endpoint]) {
        self.sockets = sockets;
        self.next_hops.forget(sockets);
        self.paths.host_changed(sockets);
        if self.programs.is_none() {
            return;
        }
        let links = match netlink::links() {
            Ok(links) => links,
            Err(error) => return tracing::warn!(%error, "cannot list interfaces"),
        };
        let wanted = match sockets {
            Some(sockets) => self.underlay(&links, endpoints, sockets.mark),
            None => BTreeSet::new(),
        };
        let unwanted: Vec<u32> = self
            .devices
            .keys()
            .copied()
            .filter(|index| !wanted.contains(index))
            .collect();
        for index in unwanted {
            // That the tunnel is down has been said.
            let why = sockets.map(|_| Departure::of(index, &links));
            self.detach(index, why);
        }
        self.set_listeners(sockets);
        for source in endpoints.iter().filter_map(|endpoint| endpoint.source) {
            self.heard_at(source.address);
        }
        for link in links.iter().filter(|link| wanted.contains(&link.index)) {
            if !self.devices.contains_key(&link.index) {
                let device = self.attach(link);
                device.report_refusal(&self.options);
                self.devices.insert(link.index, device);
            }
        }
        self.steer();
    }

    /// The egress thread has met endpoints that it does not know.
    pub fn next_hops_wanted(&mut self) {
        self.next_hops.find_wanted();
    }

    /// Follows neighbours that come, move and go.
    pub fn neighbour_changed(&mut self, change: NeighbourChange) {
        self.next_hops.neighbour_changed(change);
    }

    /// Whether nothing is to be gained from another look at this interface.
    pub fn covers(&self, ifindex: u32) -> bool {
        self.programs.is_none()
            || self.options.underlay != Underlay::Auto
            || self.leading.contains(&ifindex)
    }

    /// Watches over what is attached, and tries again where it was refused or lost.
    pub fn check(&mut self, now: Instant) {
        self.paths.check();
        let Some(programs) = &mut self.programs else {
            return;
        };
        if let Some(events) = &mut programs.events {
            events.drain(|level, line| match level {
                EventLevel::Trace => tracing::trace!(line, "eBPF"),
                _ => tracing::debug!(line, "eBPF"),
            });
        }
        let steered = self.devices.values().any(Device::is_attached);
        let counters = self.shared.counters.sum().ingress;
        let received =
            counters.xsk_received_datagrams.get() + counters.udp_received_datagrams.get();
        let counted = || {
            let flows = programs.steering.flows().ok()?;
            let ingress = flows
                .iter()
                .filter(|flow| flow.direction == Direction::Ingress);
            Some(ingress.map(|flow| flow.packets).sum())
        };
        let fault = if !steered {
            self.watchdog.rest();
            None
        } else if self.watchdog.is_stalled(received, counted) {
            Some(Loss::Stalled)
        } else if self
            .watchdog
            .is_unclaimed(programs.steering.unclaimed().ok())
        {
            Some(Loss::Unclaimed)
        } else {
            None
        };
        if let Some(loss) = fault {
            for device in self.devices.values_mut() {
                let steering = &mut programs.steering;
                device.lose(now, steering, &self.shared, &mut self.losses, loss);
            }
        }
        for device in self.devices.values_mut() {
            device.check(
                now,
                &mut programs.steering,
                &self.shared,
                &self.options,
                &mut self.losses,
            );
        }
        self.next_hops.check();
        if let Some(sent) = &mut programs.sent {
            self.next_hops.report(sent);
        }
        self.steer();
    }

    /// The ingress thread could not go on with an AF_XDP socket of this interface.
    pub fn receiver_failed(&mut self, now: Instant, ifindex: u32) {
        if let (Some(programs), Some(device)) = (&mut self.programs, self.devices.get_mut(&ifindex))
        {
            device.lose(
                now,
                &mut programs.steering,
                &self.shared,
                &mut self.losses,
                Loss::Socket,
            );
        }
        self.steer();
    }

    fn detach(&mut self, ifindex: u32, why: Option<Departure>) {
        if let (Some(programs), Some(device)) = (&mut self.programs, self.devices.remove(&ifindex))
        {
            device.detach(&mut programs.steering, &self.shared, &mut self.losses, why);
        }
    }

    /// Indices of the interfaces that carry the tunnel's packets.
    fn underlay(&mut self, links: &[Link], endpoints: &[Endpoint], mark: u32) -> BTreeSet<u32> {
        let suitable: BTreeSet<u32> = links
            .iter()
            // What arrives over loopback never left the host, and there is nothing to gain.
            .filter(|link| !link.loopback)
            .map(|link| link.index)
            .collect();
        let wanted: BTreeSet<u32> = match &self.options.underlay {
            Underlay::Devices(names) => links
                .iter()
                .filter(|link| names.contains(&link.name))
                .map(|link| link.index)
                .collect(),
            Underlay::Auto => {
                let mut looked_up: BTreeMap<IpAddr, Option<u32>> = BTreeMap::new();
                endpoints
                    .iter()
                    .filter_map(|endpoint| match endpoint.source {
                        Some(source) => Some(source.interface),
                        None => *looked_up.entry(endpoint.address.ip()).or_insert_with(|| {
                            netlink::route_interface(endpoint.address.ip(), None, mark)
                                .ok()
                                .flatten()
                        }),
                    })
                    .collect()
            }
        };
        let used = wanted.intersection(&suitable).copied().collect();
        self.leading = wanted;
        used
    }

    fn set_listeners(&mut self, sockets: Option<Sockets>) {
        let Some(programs) = &mut self.programs else {
            return;
        };
        let addresses = match sockets {
            Some(_) => netlink::local_addresses().unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot list addresses");
                Vec::new()
            }),
            None => Vec::new(),
        };
        let port = sockets.map_or(0, |sockets| sockets.port);
        let mut listeners: Vec<Listener> = addresses
            .into_iter()
            .map(|local| Listener {
                address: local.address,
                port,
                ifindex: Some(local.interface),
            })
            .collect();
        listeners.sort_unstable_by_key(|listener| (listener.address, listener.ifindex));
        if listeners == self.listeners {
            return;
        }
        if let Err(error) = programs.steering.set_listeners(listeners.iter().copied()) {
            tracing::warn!(
                error = error_chain(&error),
                "XDP does not know all of our addresses"
            );
        }
        self.listeners = listeners;
    }

    /// Steers if there is somewhere to steer to.
    fn steer(&mut self) {
        let sending = self.devices.iter();
        let sending = sending.filter_map(|(index, device)| Some((*index, device.transmit()?)));
        self.next_hops.set_devices(sending.collect());
        let anywhere = self.devices.values().any(Device::is_attached);
        if let Some(programs) = &mut self.programs
            && let Err(error) = programs
                .steering
                .set_steering(anywhere && !programs.sessions_incomplete)
        {
            tracing::warn!(error = error_chain(&error), "cannot switch steering");
        }
    }

    /// Packets that the programs dropped, by reason; nothing where there are none or they cannot be read.
    pub fn drops(&self) -> Vec<(&'static str, u64)> {
        let programs = self.programs.as_ref();
        let drops = programs.and_then(|programs| programs.steering.drops().ok());
        drops
            .iter()
            .flatten()
            .map(|drop| (drop.reason.name(), drop.packets))
            .collect()
    }

    /// Appends the data path in use to the answer of `get=1`.
    pub fn describe(&self, answer: &mut String) {
        let attached = self
            .devices
            .values()
            .filter(|device| device.is_attached())
            .count();
        let path = match self.sockets {
            None => "none",
            Some(_) if attached > 0 => "xdp",
            Some(_) => "socket",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(answer, "adit_datapath={path}");
        for device in self.devices.values() {
            device.describe(answer);
        }
        if let Some(note) = &self.note {
            let _ = writeln!(answer, "adit_datapath_note={}", note.replace('\n', " "));
        }
        self.losses.describe(answer);
    }
}

impl Drop for Steerer {
    fn drop(&mut self) {
        let indices: Vec<u32> = self.devices.keys().copied().collect();
        for index in indices {
            self.detach(index, None);
        }
    }
}

impl Programs {
    fn load() -> Result<Self> {
        let events = match LevelFilter::current() {
            LevelFilter::TRACE => EventLevel::Trace,
            LevelFilter::DEBUG => EventLevel::Debug,
            _ => EventLevel::Off,
        };
        let options = LoadOptions {
            events,
            ..LoadOptions::default()
        };
        let mut steering = Steering::load(&options).context("cannot load the eBPF programs")?;
        let sessions = steering
            .sessions()
            .context("cannot reach the sessions map")?;
        let events = steering.take_events();
        let sent = steering
            .sent_flows()
            .inspect_err(|error| tracing::info!(error = error_chain(error), "sent flows"))
            .ok();
        Ok(Self {
            steering,
            sessions,
            events,
            sent,
            sessions_incomplete: false,
        })
    }
}
