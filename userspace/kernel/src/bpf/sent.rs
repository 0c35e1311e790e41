//! Counting what leaves by AF_XDP, which no program sees.
//!
//! It is in `flows` like everything else, under keys of a direction of its own ([`EGRESS_XSK`]): the programs write to
//! other keys, so that nobody adds to a value while it is written. Readers add both up.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;

use adit_ebpf::{EGRESS_XSK, Family, FlowCounters, FlowKey, maps};
use aya::maps::{Map, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;

use super::attach::io_error;
use super::steering::{MapError, missing};
use super::tables::{FlowMap, duplicate, map_address};
use crate::sys;

/// Writes the flows that leave by AF_XDP. A handle of its own, for the thread that knows their counts.
pub struct SentFlows {
    map: FlowMap,
    processors: usize,
    /// When each was first reported.
    first_seen_ns: HashMap<FlowKey, u64>,
}

impl fmt::Debug for SentFlows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SentFlows").finish_non_exhaustive()
    }
}

impl SentFlows {
    /// A second handle of the map.
    pub(super) fn new(map: Option<&Map>) -> Result<Self, MapError> {
        let Some(Map::PerCpuLruHashMap(map)) = map else {
            return Err(missing(maps::FLOWS));
        };
        let map = duplicate(map, maps::FLOWS)?;
        let map = PerCpuHashMap::try_from(Map::PerCpuLruHashMap(map))
            .map_err(|error| MapError::new(maps::FLOWS, &error))?;
        let processors = nr_cpus().map_err(|(_, source)| MapError {
            map: maps::FLOWS,
            source,
        })?;
        Ok(Self {
            map,
            processors,
            first_seen_ns: HashMap::new(),
        })
    }

    /// Says how many data messages have left in a flow so far, and how many bytes they had. The latest is taken to
    /// have left now.
    ///
    /// # Errors
    /// As `bpf(2)`.
    pub fn set(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        packets: u64,
        bytes: u64,
    ) -> io::Result<()> {
        let key = key(local, remote);
        let now = sys::clock_gettime(libc::CLOCK_MONOTONIC_COARSE).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let counters = FlowCounters {
            packets,
            bytes,
            first_seen_ns: *self.first_seen_ns.entry(key).or_insert(now),
            last_seen_ns: now,
        };
        // The sum is what counts, so one CPU may have all of it.
        let mut values = vec![FlowCounters::default(); self.processors];
        if let Some(first) = values.first_mut() {
            *first = counters;
        }
        self.map
            .insert(key, PerCpuValues::try_from(values)?, 0)
            .map_err(|error| io_error(&error))
    }

    /// Takes a flow out.
    pub fn forget(&mut self, local: SocketAddr, remote: SocketAddr) {
        let key = key(local, remote);
        self.first_seen_ns.remove(&key);
        // It may have made room for others already.
        let _ = self.map.remove(&key);
    }
}

fn key(local: SocketAddr, remote: SocketAddr) -> FlowKey {
    let family = if remote.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    };
    FlowKey {
        remote_address: map_address(remote.ip()),
        local_address: map_address(local.ip()),
        remote_port: remote.port(),
        local_port: local.port(),
        direction: EGRESS_XSK,
        family: family as u16,
    }
}
