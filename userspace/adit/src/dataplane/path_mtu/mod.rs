//! What fits the paths to the peers, and what is done about packets that do not.
//!
//! ```text
//!   inner packet ──► fits what is known of the path? ──────────────────────────► sealed, sent
//!                        │ no: its sender is told (ICMP, as a router would)  ▲
//!                        └───────────────────────────────────────────────────┘ in fragments
//! ```
//! The kernel keeps the MTU of each path: of the interface, of the route, or what routers have said.
//! The control thread asks it, for endpoints that large datagrams go to, and publishes the answers.
//! Nothing is dropped for its size: outer packets that are too large go out in fragments, as with the
//! kernel's own WireGuard. Who sent the inner packet is told nevertheless, because fragments cost
//! twice and firewalls like to drop them; TCP then sends what fits.
//!
//! Over IPv4 "don't fragment" is left out, so that a router which drops large packets without a word
//! fragments them instead. One datagram in ten minutes carries it, a probe: routers that are
//! narrower and do say so are learnt from, at the price of that datagram. Over IPv6 every datagram
//! is a probe.
//!
//! What is left are paths that eat large packets and say nothing (IPv6 without ICMP, fragments
//! dropped by a firewall). They show as TCP segments that are repeated in vain while smaller packets
//! come through (`stalls`); the path is then taken to be as narrow as IPv6 allows, for ten minutes.

mod stalls;
mod too_big;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use adit_packet::aead::TAG_LEN;
use adit_protocol::message::DATA_HEADER_LEN;
use adit_protocol::{Endpoint, padded_len};
use arc_swap::ArcSwap;
use arrayvec::ArrayVec;

pub(super) use stalls::Stalls;
pub(super) use too_big::{Tokens, TooBig};

/// What every path takes: the least MTU of IPv6 (RFC 8200, section 5). Nobody asks about smaller ones.
pub const LEAST: u32 = 1280;
/// Endpoints that may wait for the control thread; others are noted when it has been there.
const WANTED: usize = 64;
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;

/// Bytes of the headers in front of a UDP payload to this endpoint.
pub(super) fn headers(endpoint: &Endpoint) -> usize {
    UDP + if endpoint.address.is_ipv4() {
        IPV4
    } else {
        IPV6
    }
}

/// Whether a datagram of `length` bytes may make a packet that not every path takes.
pub(super) fn may_be_large(length: usize) -> bool {
    IPV6 + UDP + length > LEAST as usize
}

/// What there is to say of datagrams about to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// The first of them is to be a probe.
    pub(super) probe: bool,
    /// They are larger than the path.
    pub(super) fragmented: bool,
}

/// One path, as the threads share it.
#[derive(Debug)]
pub struct PathMtu {
    /// Bytes of an outer packet that needs no fragmentation.
    mtu: AtomicU32,
    /// A large datagram has been sent to it since the control thread last looked.
    used: AtomicBool,
    /// The next large datagram is to be a probe.
    probe: AtomicBool,
    /// Large packets seem to be lost on it. Until the control thread has looked.
    suspect: AtomicBool,
}

impl PathMtu {
    /// A path of `mtu` bytes that is to be probed.
    pub fn new(mtu: u32) -> Self {
        Self {
            mtu: AtomicU32::new(mtu),
            used: AtomicBool::new(true),
            probe: AtomicBool::new(true),
            suspect: AtomicBool::new(false),
        }
    }

    /// Bytes of an outer packet that needs no fragmentation.
    pub fn mtu(&self) -> u32 {
        self.mtu.load(Relaxed)
    }

    /// Notes what the kernel knows by now.
    pub fn set_mtu(&self, mtu: u32) {
        self.mtu.store(mtu, Relaxed);
    }

    /// Has the next large datagram probe the path.
    pub fn ask_probe(&self) {
        self.probe.store(true, Relaxed);
    }

    /// Whether a large datagram was sent since the last call.
    pub fn take_used(&self) -> bool {
        self.used.swap(false, Relaxed)
    }

    /// Whether large packets seemed to be lost since the last call.
    pub fn take_suspect(&self) -> bool {
        self.suspect.swap(false, Relaxed)
    }

    /// Notes a large datagram; true if it is to be a probe.
    fn use_it(&self) -> bool {
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
        self.probe.load(Relaxed) && self.probe.swap(false, Relaxed)
    }

    /// Bytes of an inner packet and its padding, to this endpoint, that need no fragmentation.
    pub(super) fn room(&self, endpoint: &Endpoint) -> usize {
        (self.mtu() as usize).saturating_sub(headers(endpoint) + DATA_HEADER_LEN + TAG_LEN)
    }
}

/// The paths that are known.
pub type Paths = HashMap<Endpoint, Arc<PathMtu>>;

/// What the egress threads and the control thread share.
#[derive(Debug)]
pub struct Shared {
    paths: ArcSwap<Paths>,
    /// The least MTU of all paths, so that the usual packet is not looked up.
    narrowest: AtomicU32,
    /// Endpoints of large datagrams that have no path yet.
    wanted: Mutex<ArrayVec<Endpoint, WANTED>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            paths: ArcSwap::default(),
            narrowest: AtomicU32::new(u32::MAX),
            wanted: Mutex::default(),
        }
    }
}

impl Shared {
    /// Puts other paths in the place of the current ones; also to be called when an MTU has changed.
    pub fn replace(&self, paths: Paths) {
        let narrowest = paths.values().map(|path| path.mtu()).min();
        self.paths.store(Arc::new(paths));
        self.narrowest.store(narrowest.unwrap_or(u32::MAX), Relaxed);
    }

    /// The endpoints of large datagrams that have no path.
    pub fn take_wanted(&self) -> ArrayVec<Endpoint, WANTED> {
        std::mem::take(&mut *self.wanted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that datagrams of `length` bytes are about to be sent.
    pub(super) fn note(&self, endpoint: &Endpoint, length: usize) -> Note {
        let packet = headers(endpoint) + length;
        if packet <= LEAST as usize {
            return Note::default();
        }
        if let Some(path) = self.paths.load().get(endpoint) {
            return Note {
                probe: path.use_it(),
                fragmented: packet > path.mtu() as usize,
            };
        }
        // The control thread holds it for a moment only; the next datagram is noted as well.
        if let Ok(mut wanted) = self.wanted.try_lock()
            && !wanted.contains(endpoint)
        {
            // A full list is dealt with within a second.
            let _ = wanted.try_push(*endpoint);
        }
        Note::default()
    }

    /// The path to an endpoint, if it is known.
    pub(super) fn get(&self, endpoint: &Endpoint) -> Option<Arc<PathMtu>> {
        self.paths.load().get(endpoint).map(Arc::clone)
    }

    /// The path to an endpoint, if an inner packet of `length` bytes does not fit every path.
    pub(super) fn narrow(
        &self,
        endpoint: impl FnOnce() -> Option<Endpoint>,
        length: usize,
        mtu: usize,
    ) -> Option<(Endpoint, Arc<PathMtu>)> {
        let outer = padded_len(length, mtu) + IPV6 + UDP + DATA_HEADER_LEN + TAG_LEN;
        if outer <= self.narrowest.load(Relaxed) as usize {
            return None;
        }
        let endpoint = endpoint()?;
        Some((endpoint, self.get(&endpoint)?))
    }

    /// Takes note that large packets on this path are lost.
    pub(super) fn suspect(&self, path: &PathMtu) {
        path.mtu.fetch_min(LEAST, Relaxed);
        path.suspect.store(true, Relaxed);
        self.narrowest.fetch_min(LEAST, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::new(text.parse().unwrap())
    }

    #[test]
    fn only_large_datagrams_are_noted_and_each_endpoint_once() {
        let shared = Shared::default();
        let (v4, v6) = (endpoint("192.0.2.1:7"), endpoint("[2001:db8::1]:7"));
        let note = |endpoint, length| assert_eq!(shared.note(endpoint, length), Note::default());
        note(&v4, 1252);
        note(&v6, 1232);
        assert!(shared.take_wanted().is_empty());
        for _ in 0..3 {
            note(&v4, 1253);
            note(&v6, 1233);
        }
        assert_eq!(shared.take_wanted()[..], [v4, v6]);
        for port in 1..=1000 {
            shared.note(&Endpoint::new(([192, 0, 2, 1], port).into()), 1400);
        }
        assert_eq!(shared.take_wanted().len(), WANTED);
    }

    #[test]
    fn a_path_is_probed_when_asked_for_and_once() {
        let shared = Shared::default();
        let to = endpoint("192.0.2.1:7");
        let path = Arc::new(PathMtu::new(1500));
        shared.replace([(to, Arc::clone(&path))].into());
        assert!(path.take_used() && !path.take_used());
        let probes = |length| shared.note(&to, length).probe;
        assert!(!probes(100) && !path.take_used());
        assert!(probes(1452) && !probes(1452));
        assert!(path.take_used());
        path.ask_probe();
        assert!(probes(1452));
        assert!(!shared.note(&to, 1472).fragmented && shared.note(&to, 1473).fragmented);
        assert!(shared.take_wanted().is_empty());
    }

    #[test]
    fn packets_that_fit_all_paths_are_not_looked_up() {
        let shared = Shared::default();
        let (wide, narrow) = (endpoint("192.0.2.1:7"), endpoint("192.0.2.2:7"));
        let find = |length| shared.narrow(|| Some(narrow), length, 1420);
        assert!(find(1420).is_none());
        shared.replace(
            [
                (wide, Arc::new(PathMtu::new(1500))),
                (narrow, Arc::new(PathMtu::new(1400))),
            ]
            .into(),
        );
        let (_, path) = find(1420).unwrap();
        assert_eq!(path.room(&narrow), 1340);
        assert!(find(1312).is_none());
        let nobody = shared.narrow(|| None, 1420, 1420);
        assert!(nobody.is_none());
        shared.suspect(&path);
        assert!(path.take_suspect() && !path.take_suspect());
        assert_eq!(path.mtu(), LEAST);
        assert!(find(1220).is_some());
        shared.replace(Paths::new());
        assert!(find(1420).is_none());
    }
}
