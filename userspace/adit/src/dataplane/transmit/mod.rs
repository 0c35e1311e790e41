//! Sending by AF_XDP: past the network stack, to where the control thread says the next hop is.
//!
//! ```text
//!   train ──► hop known, neighbour known, fits the MTU? ──► headers + copy into a frame ──► one kick a batch
//!                 │ no, or the device does not keep up
//!                 └──────────────────────────────────────► UDP socket
//! ```
//! Each train goes one way or the other. An endpoint that is met for the first time is put on a list
//! for the control thread and goes by the socket, which also makes the kernel look for the neighbour.
//!
//! A packet by the socket may overtake those that wait in a TX queue, or the other way round; that
//! happens when the way changes, and is no more than a route change does.

mod headers;
mod hops;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use adit_kernel::xsk::Transmitter;
use adit_protocol::Endpoint;
use arc_swap::ArcSwap;
use arrayvec::ArrayVec;

pub use headers::{Headers, Way};
pub use hops::{FlowCount, Hop, Hops};

use super::{Dataplane, Notice};

/// Endpoints that may wait for the control thread; others are asked for when it has been there.
const WANTED: usize = 64;
/// Devices at most; those beyond are served by the UDP socket.
const DEVICES: usize = 16;
/// How long a batch may wait for frames in all, as the UDP socket's does.
const PATIENCE: Duration = Duration::from_millis(5);
/// Free frames after which a device that did not keep up is used again: about a batch.
const RECOVERED: usize = 64;
/// When to look again after a device's queue that is full, and after a device that is down.
const RETRY_FULL: Duration = Duration::from_millis(1);
const RETRY_DOWN: Duration = Duration::from_millis(100);

/// What the control thread changes about the egress threads' AF_XDP sockets.
#[derive(Debug)]
pub enum TransmitterChange {
    /// Send by this one, too.
    Add {
        /// The queue whose egress thread it is for.
        queue: usize,
        /// The socket.
        transmitter: Box<Transmitter>,
    },
    /// Close those of an interface.
    Remove {
        /// Index of the interface.
        ifindex: u32,
    },
}

/// What is to be changed by one egress thread.
#[derive(Debug, Default)]
struct Changes {
    list: Mutex<Vec<TransmitterChange>>,
    any: AtomicBool,
}

impl Changes {
    fn push(&self, change: TransmitterChange) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push(change);
        self.any.store(true, Ordering::Release);
    }

    fn take(&self) -> Option<Vec<TransmitterChange>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        self.any.store(false, Ordering::Release);
        Some(std::mem::take(&mut *list))
    }
}

/// What the egress threads and the control thread share.
#[derive(Debug)]
pub struct Shared {
    hops: ArcSwap<Hops>,
    /// Routes or addresses have changed, and the hops are not yet those of after the change.
    suspended: AtomicBool,
    wanted: Mutex<ArrayVec<Endpoint, WANTED>>,
    /// One for each egress thread.
    changes: Box<[Changes]>,
}

impl Shared {
    /// For so many egress threads.
    pub fn new(queues: usize) -> Self {
        Self {
            hops: ArcSwap::default(),
            suspended: AtomicBool::new(false),
            wanted: Mutex::default(),
            changes: (0..queues).map(|_| Changes::default()).collect(),
        }
    }

    /// Puts other hops in the place of the current ones.
    pub fn replace_hops(&self, hops: Hops) {
        self.hops.store(Arc::new(hops));
    }

    /// Has everything go by the UDP socket until [`resume`](Self::resume).
    pub fn suspend(&self) {
        self.suspended.store(true, Ordering::Release);
    }

    /// To be called before the routes are looked at, so that a change meanwhile is not missed. Nothing
    /// may be known then.
    pub fn resume(&self) {
        self.suspended.store(false, Ordering::Release);
    }

    /// The endpoints that the egress thread has met and does not know.
    pub fn take_wanted(&self) -> ArrayVec<Endpoint, WANTED> {
        std::mem::take(&mut *self.wanted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives an egress thread an AF_XDP socket, or takes those of an interface away from all; they
    /// have to be woken afterwards.
    pub(super) fn change(&self, change: TransmitterChange) {
        match change {
            TransmitterChange::Add { queue, .. } => {
                if let Some(changes) = self.changes.get(queue) {
                    changes.push(change);
                }
            }
            TransmitterChange::Remove { ifindex } => {
                for changes in &self.changes {
                    changes.push(TransmitterChange::Remove { ifindex });
                }
            }
        }
    }

    /// Asks for an endpoint. True if the control thread has to be told.
    fn want(&self, endpoint: Endpoint) -> bool {
        // The control thread holds it for a moment only; the next packet asks again.
        let Ok(mut wanted) = self.wanted.try_lock() else {
            return false;
        };
        if wanted.contains(&endpoint) || wanted.try_push(endpoint).is_err() {
            return false;
        }
        wanted.len() == 1
    }
}

/// A transmitter, and how it fares.
#[derive(Debug)]
struct Port {
    transmitter: Box<Transmitter>,
    /// When to look again, while it does not keep up or is down.
    retry: Option<Duration>,
    /// No frame came back in time.
    stalled: bool,
    /// Packets were pushed since the last look.
    busy: bool,
}

impl Port {
    /// Whether it takes packets.
    fn is_usable(&mut self) -> bool {
        if self.retry.is_some() {
            self.submit();
        }
        self.retry.is_none()
    }

    /// Sends what was pushed, and sees how things stand.
    fn submit(&mut self) {
        self.busy = false;
        self.retry = match self.transmitter.submit() {
            Ok(0) if !self.stalled || self.transmitter.room(RECOVERED) >= RECOVERED => {
                self.stalled = false;
                None
            }
            Ok(_) => Some(RETRY_FULL),
            Err(error) => {
                tracing::trace!(%error, "AF_XDP transmit");
                Some(RETRY_DOWN)
            }
        };
    }

    /// A free frame, waited for if need be.
    fn has_room(&mut self) -> bool {
        if self.transmitter.room(1) > 0 {
            return true;
        }
        if !matches!(self.transmitter.wait(PATIENCE), Ok(true)) {
            self.stalled = true;
            self.retry = Some(RETRY_FULL);
            return false;
        }
        true
    }
}

/// An egress thread's side.
#[derive(Debug)]
pub struct Path {
    shared: Arc<Dataplane>,
    queue: usize,
    ports: ArrayVec<Port, DEVICES>,
    /// Of the last IPv4 packet that may be fragmented.
    identification: u16,
}

impl Path {
    /// That of one queue's thread, without devices.
    pub fn new(shared: Arc<Dataplane>, queue: usize) -> Self {
        Self {
            shared,
            queue,
            ports: ArrayVec::new(),
            identification: 0,
        }
    }

    /// Takes over what the control thread has changed. False if there is no device to send by.
    pub fn begin(&mut self) -> bool {
        let changes = &self.shared.transmit.changes[self.queue];
        for change in changes.take().into_iter().flatten() {
            match change {
                TransmitterChange::Add { transmitter, .. } => {
                    let port = Port {
                        transmitter,
                        retry: None,
                        stalled: false,
                        busy: false,
                    };
                    // Closed if there are too many.
                    drop(self.ports.try_push(port));
                }
                TransmitterChange::Remove { ifindex } => self
                    .ports
                    .retain(|port| port.transmitter.ifindex() != ifindex),
            }
        }
        !self.ports.is_empty()
    }

    /// Takes as many datagrams from the front of `train` as it can, and returns their bytes: all, or
    /// none, or those there was room for. `port` is that of the UDP socket. With `probe` the first must
    /// not be fragmented on the way.
    pub fn take(
        &mut self,
        endpoint: &Endpoint,
        port: u16,
        (ecn, probe): (u8, bool),
        segment_size: usize,
        train: &[u8],
    ) -> usize {
        let transmit = &self.shared.transmit;
        if transmit.suspended.load(Ordering::Acquire) {
            return 0;
        }
        let hops = transmit.hops.load();
        let hop = match hops.0.get(endpoint) {
            Some(Some(hop)) => hop,
            Some(None) => return 0,
            None => {
                if transmit.want(*endpoint) {
                    self.shared.notify(Notice::NextHopWanted);
                }
                return 0;
            }
        };
        // The socket may have been bound to another port a moment ago.
        if segment_size == 0 || segment_size > hop.largest || hop.port != port {
            return 0;
        }
        let mut ports = self.ports.iter_mut();
        let Some(port) = ports.find(|port| port.transmitter.ifindex() == hop.interface) else {
            return 0;
        };
        if !port.is_usable() {
            return 0;
        }
        let mut taken = 0;
        let mut packets = 0;
        for datagram in train.chunks(segment_size) {
            let length = hop.headers.length() + datagram.len();
            let identity = (!probe || packets > 0).then(|| {
                self.identification = self.identification.wrapping_add(1);
                self.identification
            });
            let write = |frame: &mut [u8]| hop.headers.write(frame, ecn, identity, datagram);
            if !port.has_room() || !port.transmitter.push(length, write) {
                break;
            }
            port.busy = true;
            taken += datagram.len();
            packets += 1;
        }
        hop.flow.add(packets, taken as u64);
        let counters = &self.shared.counters.of(self.queue).egress;
        counters.xsk_sent_datagrams.add(packets);
        let probes = probe && packets > 0 && endpoint.address.is_ipv4();
        counters.path_mtu_probes.add(u64::from(probes));
        taken
    }

    /// Has the kernel send what was taken.
    pub fn submit(&mut self) {
        let counters = &self.shared.counters.of(self.queue).egress;
        for port in self.ports.iter_mut().filter(|port| port.busy) {
            let before = port.transmitter.dropped();
            port.submit();
            counters
                .drop_egress_xsk
                .add(port.transmitter.dropped() - before);
        }
    }

    /// When to call [`retry`](Self::retry), if packets wait for their device.
    pub fn retry_after(&self) -> Option<Duration> {
        self.ports.iter().filter_map(|port| port.retry).min()
    }

    /// Tries again to send what waits.
    pub fn retry(&mut self) {
        self.begin();
        for port in self.ports.iter_mut().filter(|port| port.retry.is_some()) {
            port.submit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_asked_for_once_and_the_control_thread_told_once() {
        let shared = Shared::new(2);
        let endpoint = |port| Endpoint::new(([192, 0, 2, 1], port).into());
        assert!(shared.want(endpoint(1)));
        assert!(!shared.want(endpoint(1)));
        assert!(!shared.want(endpoint(2)));
        assert_eq!(shared.take_wanted()[..], [endpoint(1), endpoint(2)]);
        assert!(shared.want(endpoint(1)));
        // A full list takes no more, and nothing is lost by it.
        for port in 2..=1000 {
            shared.want(endpoint(port));
        }
        assert_eq!(shared.take_wanted().len(), WANTED);
        assert!(shared.want(endpoint(1000)));
    }

    #[test]
    fn changes_are_taken_once_and_in_order() {
        let shared = Shared::new(2);
        let [first, second] = &*shared.changes else {
            panic!("two threads");
        };
        assert!(first.take().is_none());
        shared.change(TransmitterChange::Remove { ifindex: 7 });
        shared.change(TransmitterChange::Remove { ifindex: 8 });
        assert_eq!(first.take().unwrap().len(), 2);
        assert!(first.take().is_none());
        assert_eq!(second.take().unwrap().len(), 2);
    }
}
