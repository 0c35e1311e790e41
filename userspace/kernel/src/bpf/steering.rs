//! The programs as a whole.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use adit_ebpf::{
    Config, Device, DropCounters, DropReason, FlowCounters, FlowKey, LAYOUT_VERSION, ListenerKey,
    ListenerValue, MAX_SLOTS, maps, programs,
};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuHashMap, XskMap};
use aya::programs::{
    ProgramError, SchedClassifier, TestRun as _, TestRunOptions, TestRunResult, Xdp,
};
use aya::{Ebpf, EbpfLoader};
use thiserror::Error;

use super::attach::{AttachError, Link, LinkState, TcAttachment, TcMode, XdpMode, io_error};
use super::events::{EventLevel, Events};
use super::filter::SocketFilter;
use super::pin::{self, PinError, Pins};
use super::sent::SentFlows;
use super::sys::raise_locked_memory_limit;
use super::tables::{self, DropCount, Epoch, Flow, Sessions, map_address};

/// The object `cargo xtask build-ebpf` makes. The ELF reader wants it aligned, which `include_bytes` does not promise.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/adit.bpf.o");

/// Why the programs could not be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// No permission.
    #[error("loading eBPF programs needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN")]
    Permission(#[source] io::Error),
    /// The kernel cannot do something that the programs need.
    #[error("this kernel cannot run the eBPF programs")]
    Unsupported(#[source] io::Error),
    /// The kernel refused a program; its reasons.
    #[error("the kernel refused eBPF program {program}: {log}")]
    Refused {
        /// Which one.
        program: &'static str,
        /// The end of the verifier's log.
        log: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("loading the eBPF programs failed: {0}")]
    Other(String),
}

/// A map could not be read or written.
#[derive(Debug, Error)]
#[error("eBPF map {map}")]
pub struct MapError {
    /// Its name.
    pub map: &'static str,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

impl MapError {
    pub(super) fn new(map: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self {
            map,
            source: io_error(error),
        }
    }
}

/// How to load the programs.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Flows counted at the same time, both directions; the least recently used go first. Costs 32 bytes each per CPU.
    pub max_flows: u32,
    /// Live receiver indices, up to four per peer. Costs memory only when used.
    pub max_sessions: u32,
    /// What the programs log.
    pub events: EventLevel,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            max_flows: adit_ebpf::MAX_FLOWS,
            max_sessions: adit_ebpf::MAX_SESSIONS,
            events: EventLevel::Off,
        }
    }
}

/// Where the daemon's UDP socket can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Listener {
    /// One of this host's addresses.
    pub address: IpAddr,
    /// The UDP port.
    pub port: u16,
    /// Steer only what comes in on this interface, the one that has the address; `None` for any. Naming it keeps out packets
    /// whose VLAN tag the network card has taken off.
    pub ifindex: Option<u32>,
}

/// The limit on handshake messages per source (IPv4 /32, IPv6 /64) while under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Sustained messages per second.
    pub per_second: u32,
    /// Messages at once.
    pub burst: u32,
}

impl Default for RateLimit {
    /// Several times what userspace allows a source whose cookie is right (20 a second): here nothing is proven, and many peers
    /// may sit behind one address.
    fn default() -> Self {
        Self {
            per_second: 100,
            burst: 50,
        }
    }
}

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// In front of the network stack.
    Xdp,
    /// On the way in.
    TcIngress,
    /// On the way out.
    TcEgress,
}

/// An interface the programs are attached to.
#[derive(Debug)]
struct Slots {
    ifindex: u32,
    first: u32,
    queues: u32,
}

/// The loaded programs, their links, pins and maps. Dropping it detaches, unpins and unloads everything.
///
/// Interfaces are those of the calling thread's network namespace.
#[derive(Debug)]
pub struct Steering {
    // In the order in which things have to go: links, pins, then programs and maps.
    xdp: Vec<Link>,
    tc: Vec<TcAttachment>,
    pins: Option<Pins>,
    ebpf: Ebpf,
    events: Option<Events>,
    config: Config,
    epoch: Epoch,
    filter: SocketFilter,
    listeners: HashSet<Listener>,
    /// Where authentic messages have come.
    heard: HashSet<(IpAddr, u16)>,
    devices: Vec<Slots>,
}

impl Steering {
    /// Loads programs and maps. Nothing is attached, and nothing is steered before [`set_steering`](Self::set_steering).
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(options: &LoadOptions) -> Result<Self, LoadError> {
        raise_locked_memory_limit();
        let level = options.events.number();
        let mut loader = EbpfLoader::new();
        loader
            .override_global(aya_log::LEVEL, &level, true)
            .map_max_entries(maps::FLOWS, options.max_flows.max(1))
            .map_max_entries(maps::SESSIONS, options.max_sessions.max(1));
        if options.events == EventLevel::Off {
            // Nobody writes to the log's ring; one page is the least there can be.
            loader.map_max_entries("AYA_LOGS", 1);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| load_error(&error))?;
        program::<Xdp>(&mut ebpf, programs::XDP)?
            .load()
            .map_err(|error| refused(programs::XDP, &error))?;
        for name in [programs::TC_INGRESS, programs::TC_EGRESS] {
            program::<SchedClassifier>(&mut ebpf, name)?
                .load()
                .map_err(|error| refused(name, &error))?;
        }
        let filter = SocketFilter::load(&mut ebpf)?;
        let events = match options.events {
            EventLevel::Off => None,
            _ => Events::new(&mut ebpf),
        };
        let epoch =
            Epoch::new(&ebpf).map_err(|error| LoadError::Other(error.source.to_string()))?;
        let limit = RateLimit::default();
        let pid = std::process::id();
        let mut steering = Self {
            xdp: Vec::new(),
            tc: Vec::new(),
            pins: None,
            ebpf,
            events,
            config: Config {
                steer: 0,
                under_load: 0,
                handshakes_per_second: limit.per_second,
                handshake_burst: limit.burst,
                layout_version: LAYOUT_VERSION,
                owner_pid: pid,
                owner_started: pin::started(pid).unwrap_or(0),
            },
            epoch,
            filter,
            listeners: HashSet::new(),
            heard: HashSet::new(),
            devices: Vec::new(),
        };
        steering
            .write_config()
            .map_err(|error| LoadError::Other(error.source.to_string()))?;
        Ok(steering)
    }

    /// Pins the maps for tunnel `interface` and says where.
    ///
    /// # Errors
    /// See [`PinError`]; the tunnel works without pins.
    pub fn pin(&mut self, interface: &str) -> Result<&Path, PinError> {
        self.pin_after(interface, None)
    }

    /// As [`pin`](Self::pin), in the place of the pins of process `predecessor`, which is alive and
    /// has [left](Self::leave_pins) them.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn pin_after(
        &mut self,
        interface: &str,
        predecessor: Option<u32>,
    ) -> Result<&Path, PinError> {
        self.pins = None;
        let known = maps::ALL
            .iter()
            .filter_map(|name| self.ebpf.map(name).map(|map| (*name, map)));
        let pins = Pins::new(interface, predecessor, known)?;
        Ok(self.pins.insert(pins).directory())
    }

    /// Leaves the pins where they are, for the process that takes the tunnel over.
    pub fn leave_pins(&mut self) {
        if let Some(pins) = self.pins.take() {
            pins.leave();
        }
    }

    /// Where the maps are pinned.
    #[must_use]
    pub fn pinned_at(&self) -> Option<&Path> {
        self.pins.as_ref().map(Pins::directory)
    }

    /// What the programs log; `None` when that is off, or taken already.
    pub fn take_events(&mut self) -> Option<Events> {
        self.events.take()
    }

    /// A handle to the live receiver indices, for whichever thread makes sessions.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub fn sessions(&self) -> Result<Sessions, MapError> {
        let map = match self.ebpf.map(maps::SESSIONS) {
            Some(Map::HashMap(map)) => tables::duplicate(map, maps::SESSIONS)?,
            _ => return Err(missing(maps::SESSIONS)),
        };
        let map = HashMap::try_from(Map::HashMap(map))
            .map_err(|error| MapError::new(maps::SESSIONS, &error))?;
        Ok(Sessions {
            map,
            epoch: self.epoch.clone(),
        })
    }

    /// The program for UDP sockets. It drops data messages for receiver indices that are not live, so sockets may have it only
    /// while [`sessions`](Self::sessions) has all of them.
    #[must_use]
    pub fn socket_filter(&self) -> SocketFilter {
        self.filter.clone()
    }

    /// A handle to the flows, for counting what leaves by AF_XDP.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub fn sent_flows(&self) -> Result<SentFlows, MapError> {
        SentFlows::new(self.ebpf.map(maps::FLOWS))
    }

    /// Makes `wanted` the listeners, in place of the ones before.
    ///
    /// # Errors
    /// `E2BIG` for more than 1,024. What could be done has been done then.
    pub fn set_listeners(
        &mut self,
        wanted: impl IntoIterator<Item = Listener>,
    ) -> Result<(), MapError> {
        const MAP: &str = maps::LISTENERS;
        let wanted: HashSet<Listener> = wanted.into_iter().collect();
        let mut map: HashMap<&mut MapData, ListenerKey, ListenerValue> =
            map_mut(&mut self.ebpf, MAP)?;
        let key = |listener: &Listener| listener_key(listener.address, listener.port);
        // Old ones go first: two may differ only in the interface, which is not part of the key.
        for gone in self.listeners.difference(&wanted) {
            match map.remove(&key(gone)).map_err(|error| io_error(&error)) {
                Err(source) if source.raw_os_error() != Some(libc::ENOENT) => {
                    return Err(MapError { map: MAP, source });
                }
                _ => {}
            }
        }
        self.listeners.retain(|listener| wanted.contains(listener));
        for new in wanted {
            if !self.listeners.contains(&new) {
                let value = ListenerValue {
                    ifindex: new.ifindex.unwrap_or(0),
                };
                map.insert(key(&new), value, 0)
                    .map_err(|error| MapError::new(MAP, &error))?;
                self.listeners.insert(new);
            }
        }
        self.forget_where_nobody_listens()?;
        self.epoch.end()
    }

    /// Notes that an authentic message has come to one of our addresses at `port`. What comes elsewhere may be for another
    /// host, by a rule of the firewall, and is not dropped by XDP whatever it is.
    ///
    /// # Errors
    /// `E2BIG` for more than 1,024.
    pub fn hear(&mut self, address: IpAddr, port: u16) -> Result<(), MapError> {
        const MAP: &str = maps::HEARD;
        if self.heard.contains(&(address, port)) {
            return Ok(());
        }
        let mut map: HashMap<&mut MapData, ListenerKey, u32> = map_mut(&mut self.ebpf, MAP)?;
        map.insert(listener_key(address, port), 0, 0)
            .map_err(|error| MapError::new(MAP, &error))?;
        self.heard.insert((address, port));
        Ok(())
    }

    /// Forgets what was heard where nobody listens any more.
    fn forget_where_nobody_listens(&mut self) -> Result<(), MapError> {
        let listening: HashSet<(IpAddr, u16)> = self
            .listeners
            .iter()
            .map(|listener| (listener.address, listener.port))
            .collect();
        let mut map: HashMap<&mut MapData, ListenerKey, u32> =
            map_mut(&mut self.ebpf, maps::HEARD)?;
        for (address, port) in self.heard.extract_if(|heard| !listening.contains(heard)) {
            map.remove(&listener_key(address, port))
                .map_err(|error| MapError::new(maps::HEARD, &error))?;
        }
        Ok(())
    }

    /// Switches steering. While it is off, data messages go up the stack whatever their index is.
    ///
    /// # Errors
    /// As `bpf(2)`.
    pub fn set_steering(&mut self, on: bool) -> Result<(), MapError> {
        self.config.steer = on.into();
        self.write_config()
    }

    /// Starts or stops limiting handshake messages per source and all together. `limit` is for those with a second MAC; those
    /// without have a limit of their own.
    ///
    /// # Errors
    /// As `bpf(2)`.
    pub fn set_under_load(&mut self, limit: Option<RateLimit>) -> Result<(), MapError> {
        self.config.under_load = limit.is_some().into();
        if let Some(limit) = limit {
            self.config.handshakes_per_second = limit.per_second;
            self.config.handshake_burst = limit.burst;
        }
        self.write_config()
    }

    fn write_config(&mut self) -> Result<(), MapError> {
        let config = self.config;
        let mut map: Array<&mut MapData, Config> = map_mut(&mut self.ebpf, maps::CONFIG)?;
        map.set(0, config, 0)
            .map_err(|error| MapError::new(maps::CONFIG, &error))
    }

    /// Makes room for the sockets of an interface's RX queues. `max_frame` is
    /// [`FrameSize::capacity`](crate::xsk::FrameSize::capacity) of their UMEM. Done again, it forgets the sockets of before.
    ///
    /// # Errors
    /// `ENOSPC` when all slots (1,024) are taken; otherwise as `bpf(2)`.
    pub fn add_device(
        &mut self,
        ifindex: u32,
        queues: u32,
        max_frame: u32,
    ) -> Result<(), MapError> {
        self.remove_device(ifindex)?;
        let first = self.free_slots(queues).ok_or(MapError {
            map: maps::XSKS,
            source: io::Error::from_raw_os_error(libc::ENOSPC),
        })?;
        let device = Device {
            first_slot: first,
            queues,
            max_frame,
        };
        let mut map: HashMap<&mut MapData, u32, Device> = map_mut(&mut self.ebpf, maps::DEVICES)?;
        map.insert(ifindex, device, 0)
            .map_err(|error| MapError::new(maps::DEVICES, &error))?;
        self.devices.push(Slots {
            ifindex,
            first,
            queues,
        });
        Ok(())
    }

    /// The first of `count` slots in a row that nobody has.
    fn free_slots(&self, count: u32) -> Option<u32> {
        let mut taken: Vec<(u32, u32)> = self
            .devices
            .iter()
            .map(|device| (device.first, device.first + device.queues))
            .collect();
        taken.sort_unstable();
        let mut candidate = 0;
        for (start, end) in taken {
            if count <= start.saturating_sub(candidate) {
                break;
            }
            candidate = end;
        }
        (count <= MAX_SLOTS && candidate <= MAX_SLOTS - count).then_some(candidate)
    }

    /// Forgets an interface and its sockets; packets from it go up the stack.
    ///
    /// # Errors
    /// As `bpf(2)`.
    pub fn remove_device(&mut self, ifindex: u32) -> Result<(), MapError> {
        let Some(position) = self
            .devices
            .iter()
            .position(|device| device.ifindex == ifindex)
        else {
            return Ok(());
        };
        let device = self.devices.swap_remove(position);
        let mut map: HashMap<&mut MapData, u32, Device> = map_mut(&mut self.ebpf, maps::DEVICES)?;
        map.remove(&ifindex)
            .map_err(|error| MapError::new(maps::DEVICES, &error))?;
        let mut xsks: XskMap<&mut MapData> = map_mut(&mut self.ebpf, maps::XSKS)?;
        for slot in device.first..device.first + device.queues {
            // A slot whose socket was closed is empty already.
            let _ = xsks.unset(slot);
        }
        self.epoch.end()
    }

    /// Puts the AF_XDP socket of RX queue `queue` in its slot; until then the program passes the queue's packets up the stack.
    ///
    /// # Errors
    /// `ENOENT` for an interface or queue that was not added; otherwise as `bpf(2)`.
    pub fn set_socket(
        &mut self,
        ifindex: u32,
        queue: u32,
        socket: BorrowedFd<'_>,
    ) -> Result<(), MapError> {
        let slot = self
            .devices
            .iter()
            .find(|device| device.ifindex == ifindex && queue < device.queues)
            .map(|device| device.first + queue)
            .ok_or_else(|| missing(maps::XSKS))?;
        let mut map: XskMap<&mut MapData> = map_mut(&mut self.ebpf, maps::XSKS)?;
        map.set(slot, socket.as_raw_fd(), 0)
            .map_err(|error| MapError::new(maps::XSKS, &error))
    }

    /// Attaches the XDP program. A program that is there already, whoever's it is, is left alone.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach_xdp(&mut self, ifindex: u32, mode: XdpMode) -> Result<(), AttachError> {
        self.detach_xdp(ifindex);
        let program: &mut Xdp = program(&mut self.ebpf, programs::XDP)
            .map_err(|error| AttachError::Io(io::Error::other(error)))?;
        let fd = program
            .fd()
            .map_err(|error| AttachError::Io(io_error(&error)))?;
        self.xdp.push(Link::xdp(fd.as_fd(), ifindex, mode)?);
        Ok(())
    }

    /// Detaches the XDP program; fine if it was not attached.
    pub fn detach_xdp(&mut self, ifindex: u32) {
        self.xdp.retain(|link| link.ifindex != ifindex);
    }

    /// Whether the XDP program still is on an interface; `Detached` if it never was.
    ///
    /// # Errors
    /// As `bpf(2)`.
    pub fn xdp_state(&self, ifindex: u32) -> io::Result<LinkState> {
        self.xdp
            .iter()
            .find(|link| link.ifindex == ifindex)
            .map_or(Ok(LinkState::Detached), Link::state)
    }

    /// Attaches the counting programs, by TCX where the kernel has it unless `mode` says otherwise. They are needed beside XDP
    /// too: for what is sent, and for what XDP passes. `tunnel` tells our clsact filters from another tunnel's.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach_tc(
        &mut self,
        ifindex: u32,
        tunnel: &str,
        mode: Option<TcMode>,
    ) -> Result<TcMode, AttachError> {
        self.detach_tc(ifindex);
        let missing = |name| AttachError::Io(missing(name).source);
        let mut ingress = None;
        let mut egress = None;
        for (name, program) in self.ebpf.programs_mut() {
            let Ok(program) = <&mut SchedClassifier>::try_from(program) else {
                continue;
            };
            if name == programs::TC_INGRESS {
                ingress = Some(program);
            } else {
                egress = Some(program);
            }
        }
        let ingress = ingress.ok_or_else(|| missing(programs::TC_INGRESS))?;
        let egress = egress.ok_or_else(|| missing(programs::TC_EGRESS))?;
        let attachment = TcAttachment::new(ingress, egress, ifindex, mode, tag(tunnel))?;
        let mode = attachment.mode;
        self.tc.push(attachment);
        Ok(mode)
    }

    /// Detaches the counting programs; fine if they were not attached.
    pub fn detach_tc(&mut self, ifindex: u32) {
        self.tc.retain(|attachment| attachment.ifindex != ifindex);
    }

    /// Whether the counting programs still are on an interface; with clsact that is not known and taken for granted.
    ///
    /// # Errors
    /// As `bpf(2)`.
    pub fn tc_state(&self, ifindex: u32) -> io::Result<LinkState> {
        self.tc
            .iter()
            .find(|attachment| attachment.ifindex == ifindex)
            .map_or(Ok(LinkState::Detached), TcAttachment::state)
    }

    /// Runs a program on one Ethernet frame without a network (`BPF_PROG_TEST_RUN`), as if it came in on queue 0 of the
    /// loopback interface, and returns its verdict. Counters change as they would.
    ///
    /// # Errors
    /// `EINVAL` for a frame shorter than an Ethernet header; otherwise as `bpf(2)`.
    pub fn try_frame(&mut self, hook: Hook, frame: &[u8]) -> io::Result<u32> {
        self.test_run(hook, frame, 1)
            .map(|result| result.return_value)
    }

    /// [`try_frame`](Self::try_frame) so many times in a row, and how long one run took on average: what the program costs
    /// with everything it reads in the cache.
    ///
    /// # Errors
    /// As [`try_frame`](Self::try_frame).
    pub fn time_frame(&mut self, hook: Hook, frame: &[u8], runs: u32) -> io::Result<Duration> {
        self.test_run(hook, frame, runs)
            .map(|result| result.duration)
    }

    fn test_run(&mut self, hook: Hook, frame: &[u8], runs: u32) -> io::Result<TestRunResult> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = runs;
        let result = match hook {
            Hook::Xdp => program::<Xdp>(&mut self.ebpf, programs::XDP)
                .map_err(io::Error::other)?
                .test_run(options),
            Hook::TcIngress => program::<SchedClassifier>(&mut self.ebpf, programs::TC_INGRESS)
                .map_err(io::Error::other)?
                .test_run(options),
            Hook::TcEgress => program::<SchedClassifier>(&mut self.ebpf, programs::TC_EGRESS)
                .map_err(io::Error::other)?
                .test_run(options),
        };
        result.map_err(|error| io_error(&error))
    }

    /// All flows, in no order.
    ///
    /// # Errors
    /// As `bpf(2)`.
    pub fn flows(&self) -> Result<Vec<Flow>, MapError> {
        let map: PerCpuHashMap<&MapData, FlowKey, FlowCounters> = map(&self.ebpf, maps::FLOWS)?;
        tables::read_flows(&map).map_err(|source| MapError {
            map: maps::FLOWS,
            source,
        })
    }

    /// A number that grows while data messages go up the stack because their RX queue, though it was added, has no socket:
    /// there was none yet, or somebody has taken it out of the map.
    ///
    /// # Errors
    /// As `bpf(2)`.
    pub fn unclaimed(&self) -> Result<u64, MapError> {
        const MAP: &str = maps::UNCLAIMED;
        let map: Array<&MapData, u64> = map(&self.ebpf, MAP)?;
        map.get(&0, 0).map_err(|error| MapError::new(MAP, &error))
    }

    /// Dropped packets by reason.
    ///
    /// # Errors
    /// As `bpf(2)`.
    pub fn drops(&self) -> Result<[DropCount; DropReason::ALL.len()], MapError> {
        let map: PerCpuArray<&MapData, DropCounters> = map(&self.ebpf, maps::DROPS)?;
        tables::read_drops(&map).map_err(|source| MapError {
            map: maps::DROPS,
            source,
        })
    }
}

fn listener_key(address: IpAddr, port: u16) -> ListenerKey {
    ListenerKey {
        address: map_address(address),
        port: port.into(),
    }
}

/// A number for a tunnel's clsact filters: FNV-1a of its name, folded to 16 bits, never 0.
fn tag(tunnel: &str) -> u16 {
    let hash = tunnel.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let [a, b, c, d] = hash.to_ne_bytes();
    u16::from_ne_bytes([a ^ c, b ^ d]).max(1)
}

/// A map of the loaded object as its type.
fn map<'a, M>(ebpf: &'a Ebpf, name: &'static str) -> Result<M, MapError>
where
    M: TryFrom<&'a Map, Error = aya::maps::MapError>,
{
    let map = ebpf.map(name).ok_or_else(|| missing(name))?;
    M::try_from(map).map_err(|error| MapError::new(name, &error))
}

/// [`map`], for writing.
fn map_mut<'a, M>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<M, MapError>
where
    M: TryFrom<&'a mut Map, Error = aya::maps::MapError>,
{
    let map = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    M::try_from(map).map_err(|error| MapError::new(name, &error))
}

/// Only an object that is not ours lacks a map or program.
pub(super) fn missing(map: &'static str) -> MapError {
    MapError {
        map,
        source: io::Error::from_raw_os_error(libc::ENOENT),
    }
}

pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| LoadError::Other(format!("the object has no program {name}")))?
        .try_into()
        .map_err(|error: ProgramError| LoadError::Other(error.to_string()))
}

fn load_error(error: &aya::EbpfError) -> LoadError {
    let source = io_error(error);
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => LoadError::Permission(source),
        Some(_) => LoadError::Unsupported(source),
        None => LoadError::Other(source.to_string()),
    }
}

pub(super) fn refused(program: &'static str, error: &ProgramError) -> LoadError {
    let source = io_error(error);
    match (error, source.raw_os_error()) {
        (_, Some(libc::EPERM)) => LoadError::Permission(source),
        (ProgramError::LoadError { verifier_log, .. }, _) => {
            let log = verifier_log.to_string();
            // The reason stands at the end, before a few lines of statistics.
            let tail: Vec<&str> = log.lines().rev().take(12).collect();
            LoadError::Refused {
                program,
                log: tail.into_iter().rev().collect::<Vec<_>>().join("\n"),
                source,
            }
        }
        (_, Some(_)) => LoadError::Unsupported(source),
        (_, None) => LoadError::Other(error.to_string()),
    }
}
