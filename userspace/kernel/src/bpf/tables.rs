//! Typed access to the maps.

use std::borrow::Borrow;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use adit_ebpf::{
    DropCounters, EGRESS_XSK, Family, FlowCounters, FlowKey, SessionKey, SessionValue, map_ipv4,
    maps,
};
use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuHashMap};

pub use adit_ebpf::{Direction, DropReason};

use super::attach::io_error;
use super::steering::{MapError, missing};

/// One direction of an outer flow: data messages (type 4) only, whole WireGuard messages in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The peer.
    pub remote: SocketAddr,
    /// This host.
    pub local: SocketAddr,
    /// Which way the packets went.
    pub direction: Direction,
    /// Messages.
    pub packets: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// CLOCK_MONOTONIC_COARSE nanoseconds of the first message.
    pub first_seen_ns: u64,
    /// CLOCK_MONOTONIC_COARSE nanoseconds of the latest message.
    pub last_seen_ns: u64,
}

impl Flow {
    fn new(key: &FlowKey, per_cpu: &[FlowCounters]) -> Self {
        let total = sum(per_cpu);
        let ip = |address: [u8; 16]| {
            let address = Ipv6Addr::from(address);
            if key.family == Family::V4 as u16 {
                address.to_canonical()
            } else {
                IpAddr::V6(address)
            }
        };
        Self {
            remote: SocketAddr::new(ip(key.remote_address), key.remote_port),
            local: SocketAddr::new(ip(key.local_address), key.local_port),
            direction: if key.direction == Direction::Ingress as u16 {
                Direction::Ingress
            } else {
                Direction::Egress
            },
            packets: total.packets,
            bytes: total.bytes,
            first_seen_ns: total.first_seen_ns,
            last_seen_ns: total.last_seen_ns,
        }
    }
}

/// Adds up the counters of all CPUs; a CPU that has seen nothing has zero times.
fn sum(per_cpu: &[FlowCounters]) -> FlowCounters {
    let mut total = FlowCounters::default();
    for one in per_cpu.iter().filter(|one| one.packets > 0) {
        total.packets += one.packets;
        total.bytes += one.bytes;
        total.last_seen_ns = total.last_seen_ns.max(one.last_seen_ns);
        total.first_seen_ns = match total.first_seen_ns {
            0 => one.first_seen_ns,
            first => first.min(one.first_seen_ns),
        };
    }
    total
}

pub(super) type FlowMap = PerCpuHashMap<MapData, FlowKey, FlowCounters>;

/// All flows, in no order; what left by AF_XDP is added to what the programs saw leave.
pub(super) fn read_flows<T: Borrow<MapData>>(
    map: &PerCpuHashMap<T, FlowKey, FlowCounters>,
) -> io::Result<Vec<Flow>> {
    let mut flows = Vec::new();
    let mut sent = Vec::new();
    for entry in map.iter() {
        match entry {
            Ok((key, values)) if key.direction == EGRESS_XSK => {
                sent.push(Flow::new(&key, &values));
            }
            Ok((key, values)) => flows.push(Flow::new(&key, &values)),
            Err(error) => return Err(io_error(&error)),
        }
    }
    if !sent.is_empty() {
        add_sent(&mut flows, sent);
    }
    Ok(flows)
}

/// Adds flows that left by AF_XDP to those of the same ends.
fn add_sent(flows: &mut Vec<Flow>, sent: Vec<Flow>) {
    let leaving = flows.iter().enumerate();
    let leaving = leaving.filter(|(_, flow)| flow.direction == Direction::Egress);
    let places: std::collections::HashMap<_, _> = leaving
        .map(|(place, flow)| ((flow.local, flow.remote), place))
        .collect();
    for flow in sent {
        match places.get(&(flow.local, flow.remote)) {
            Some(place) => {
                let total = &mut flows[*place];
                total.packets += flow.packets;
                total.bytes += flow.bytes;
                total.first_seen_ns = total.first_seen_ns.min(flow.first_seen_ns);
                total.last_seen_ns = total.last_seen_ns.max(flow.last_seen_ns);
            }
            None => flows.push(flow),
        }
    }
}

/// Packets dropped for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropCount {
    /// Why.
    pub reason: DropReason,
    /// Packets.
    pub packets: u64,
    /// Bytes of UDP payload in them.
    pub bytes: u64,
}

/// Every reason, also those that never were.
pub(super) fn read_drops<T: Borrow<MapData>>(
    map: &PerCpuArray<T, DropCounters>,
) -> io::Result<[DropCount; DropReason::ALL.len()]> {
    let mut counts = DropReason::ALL.map(|reason| DropCount {
        reason,
        packets: 0,
        bytes: 0,
    });
    for count in &mut counts {
        let values = map
            .get(&(count.reason as u32), 0)
            .map_err(|error| io_error(&error))?;
        for value in values.iter() {
            count.packets += value.packets;
            count.bytes += value.bytes;
        }
    }
    Ok(counts)
}

/// The receiver indices XDP accepts. A handle of its own, for the thread that makes sessions.
///
/// An index has to be in before a peer can know it: a data message for any other is dropped.
#[derive(Debug)]
pub struct Sessions {
    pub(super) map: HashMap<MapData, SessionKey, SessionValue>,
    pub(super) epoch: Epoch,
}

impl Sessions {
    /// Makes an index live; `peer` is for people who read the map.
    ///
    /// # Errors
    /// `E2BIG` when the map is full: then steering has to be switched off, or messages for this index are dropped.
    pub fn insert(&mut self, index: u32, peer: u32) -> io::Result<()> {
        self.map
            .insert(index, SessionValue { peer }, 0)
            .map_err(|error| io_error(&error))
    }

    /// Makes an index dead; one that is not live is fine.
    ///
    /// # Errors
    /// As `bpf(2)`.
    pub fn remove(&mut self, index: u32) -> io::Result<()> {
        match self.map.remove(&index).map_err(|error| io_error(&error)) {
            Ok(()) => self.epoch.end().map_err(|error| error.source),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The live indices, in no order.
    ///
    /// # Errors
    /// As `bpf(2)`.
    pub fn indices(&self) -> io::Result<Vec<u32>> {
        self.map
            .keys()
            .collect::<Result<_, _>>()
            .map_err(|error| io_error(&error))
    }
}

/// The number that vouches for what the XDP program remembers of `listeners`, `sessions` and `devices`.
#[derive(Clone)]
pub(super) struct Epoch(Arc<Mutex<Count>>);

impl fmt::Debug for Epoch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Epoch").finish_non_exhaustive()
    }
}

struct Count {
    map: Array<MapData, u64>,
    now: u64,
}

impl Epoch {
    /// Starts the first one.
    pub(super) fn new(ebpf: &Ebpf) -> Result<Self, MapError> {
        let map = match ebpf.map(maps::EPOCH) {
            Some(Map::Array(map)) => duplicate(map, maps::EPOCH)?,
            _ => return Err(missing(maps::EPOCH)),
        };
        let map =
            Array::try_from(Map::Array(map)).map_err(|error| MapError::new(maps::EPOCH, &error))?;
        let epoch = Self(Arc::new(Mutex::new(Count { map, now: 0 })));
        epoch.end()?;
        Ok(epoch)
    }

    /// Starts the next one: what the program remembers counts no more. To be called after one of the maps has changed.
    pub(super) fn end(&self) -> Result<(), MapError> {
        // Nothing panics while it holds the lock, and a number is always whole.
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What was taken out is out, for every CPU, before the number says so.
        fence(Ordering::SeqCst);
        count.now += 1;
        let now = count.now;
        count
            .map
            .set(0, now, 0)
            .map_err(|error| MapError::new(maps::EPOCH, &error))
    }
}

/// A second descriptor of a map.
pub(super) fn duplicate(map: &MapData, name: &'static str) -> Result<MapData, MapError> {
    let fd = map.fd().as_fd().try_clone_to_owned();
    let fd = fd.map_err(|source| MapError { map: name, source })?;
    MapData::from_fd(fd).map_err(|error| MapError::new(name, &error))
}

/// An address in the form the maps use.
pub(super) fn map_address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => map_ipv4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_that_saw_nothing_do_not_spoil_the_sum() {
        let counters = |packets, first_seen_ns, last_seen_ns| FlowCounters {
            packets,
            bytes: packets * 100,
            first_seen_ns,
            last_seen_ns,
        };
        let key = FlowKey {
            remote_address: map_ipv4([192, 0, 2, 1]),
            local_address: map_ipv4([198, 51, 100, 2]),
            remote_port: 7000,
            local_port: 51820,
            direction: Direction::Egress as u16,
            family: Family::V4 as u16,
        };
        let flow = Flow::new(
            &key,
            &[counters(0, 0, 0), counters(3, 50, 90), counters(2, 40, 70)],
        );
        assert_eq!(flow.remote, "192.0.2.1:7000".parse().unwrap());
        assert_eq!(flow.local, "198.51.100.2:51820".parse().unwrap());
        assert_eq!(flow.direction, Direction::Egress);
        assert_eq!((flow.packets, flow.bytes), (5, 500));
        assert_eq!((flow.first_seen_ns, flow.last_seen_ns), (40, 90));
    }

    #[test]
    fn what_left_by_af_xdp_is_added_to_its_flow() {
        let flow = |remote: &str, direction, packets, first_seen_ns, last_seen_ns| Flow {
            remote: remote.parse().unwrap(),
            local: "192.0.2.9:51820".parse().unwrap(),
            direction,
            packets,
            bytes: packets * 100,
            first_seen_ns,
            last_seen_ns,
        };
        let (into, out) = (Direction::Ingress, Direction::Egress);
        let mut flows = vec![
            flow("192.0.2.1:1", into, 5, 1, 1),
            flow("192.0.2.1:1", out, 7, 10, 20),
        ];
        let sent = vec![
            flow("192.0.2.1:1", out, 30, 15, 40),
            flow("192.0.2.2:1", out, 4, 2, 3),
        ];
        add_sent(&mut flows, sent);
        let expected = [
            flow("192.0.2.1:1", into, 5, 1, 1),
            flow("192.0.2.1:1", out, 37, 10, 40),
            flow("192.0.2.2:1", out, 4, 2, 3),
        ];
        assert_eq!(flows, expected);
    }

    #[test]
    fn ipv6_addresses_stay_ipv6() {
        let address = map_address("fd00::1".parse().unwrap());
        let key = FlowKey {
            remote_address: address,
            local_address: address,
            remote_port: 1,
            local_port: 2,
            direction: Direction::Ingress as u16,
            family: Family::V6 as u16,
        };
        let flow = Flow::new(&key, &[FlowCounters::default()]);
        assert_eq!(flow.remote, "[fd00::1]:1".parse().unwrap());
        assert_eq!((flow.packets, flow.first_seen_ns), (0, 0));
    }
}
