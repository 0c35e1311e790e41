//! The threads that move packets, and what they share with the control thread.
//!
//! ```text
//!            egress thread                                   control thread
//!   TUN ──► read ─► split ─► seal ─► sendmmsg ──► network      handshakes, timers,
//!            (super-packet)        (UDP_SEGMENT)               configuration
//!                                                                ▲        │
//!            ingress thread                              notices │        │ snapshots
//!   TUN ◄── writev ◄─ coalesce ◄─ open ◄─ recvmmsg ◄── network   │        ▼
//!            (super-packet)              (UDP_GRO)             the data threads
//! ```
//! The data threads never wait for the control thread: they read snapshots (routes, sessions,
//! sockets, next hops) that it swaps, and leave notices that it finds.
//!
//! With several *queues* there is a pair of such threads for each, with a queue of the TUN device
//! and a pair of UDP sockets of its own. The kernel keeps the packets of one flow on one of them.

mod batch;
pub mod counters;
mod delivery;
mod egress;
mod gate;
pub mod helper;
mod ingress;
mod opening;
pub mod outbound;
pub mod path_mtu;
pub mod pulse;
pub mod queues;
pub(crate) mod setbacks;
pub mod transmit;
pub mod transport;
mod tun_writer;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use adit_kernel::event::EventFd;
use adit_kernel::tun::Tun;
use adit_kernel::udp::UdpGroup;
use adit_kernel::xsk::Receiver;
use adit_packet::coalesce::Offloads;
use adit_protocol::{Endpoint, PeerId};
use anyhow::Context as _;
use arc_swap::{ArcSwap, ArcSwapOption};
use arrayvec::ArrayVec;
use tokio::sync::mpsc;

pub(crate) use egress::send_staged;

use self::counters::Counters;
use self::gate::{Gate, Order};
use self::helper::Helpers;
use self::pulse::Pulse;
use self::transmit::TransmitterChange;
use self::transport::TransportKey;
use crate::sandbox::{Role, Sandbox};

/// A session whose keys are of the batch AEAD.
pub type Session = adit_protocol::Session<TransportKey>;
/// A peer as the data threads see it.
pub type PeerLink = adit_protocol::PeerLink<TransportKey>;
/// Allowed-ips of all peers.
pub type Routes = adit_protocol::Routes<TransportKey>;
/// Sessions by receiver index.
pub type SessionTable = adit_protocol::SessionTable<TransportKey>;

/// Handshake messages that may wait for the control thread, as many as the kernel module lets
/// wait (`MAX_QUEUED_INCOMING_HANDSHAKES`, drivers/net/wireguard/messages.h).
pub const HANDSHAKE_QUEUE: usize = 4096;
/// Bytes of the longest handshake message, the initiation.
const HANDSHAKE_LEN: usize = 148;

/// A handshake message or cookie reply, and where it came from.
#[derive(Debug)]
pub struct HandshakeMessage {
    /// The sender.
    pub from: Endpoint,
    /// The datagram.
    pub datagram: ArrayVec<u8, HANDSHAKE_LEN>,
}

impl HandshakeMessage {
    /// `None` if the datagram is longer than any such message.
    fn new(from: Endpoint, datagram: &[u8]) -> Option<Self> {
        Some(Self {
            from,
            datagram: datagram.try_into().ok()?,
        })
    }
}

/// What a data thread tells the control thread.
#[derive(Debug)]
pub enum Notice {
    /// A peer needs a handshake, or its timers need to be set.
    Attend(PeerId),
    /// There are endpoints to find the next hop for ([`transmit::Shared::take_wanted`]).
    NextHopWanted,
    /// The TUN device does not exist any more.
    DeviceGone,
    /// An AF_XDP socket of this interface cannot be used any more and was closed.
    ReceiverFailed {
        /// Index of the interface.
        ifindex: u32,
    },
}

/// What the control thread changes about the ingress threads' AF_XDP sockets.
#[derive(Debug)]
pub enum ReceiverChange {
    /// Receive from this one, too.
    Add(Box<Receiver>),
    /// Close those of an interface.
    Remove {
        /// Index of the interface.
        ifindex: u32,
    },
}

/// The control thread's end of the queues.
#[derive(Debug)]
pub struct Queues {
    /// Rare events; at most one per peer and need.
    pub notices: mpsc::UnboundedReceiver<Notice>,
    /// Handshake messages; bounded by [`HANDSHAKE_QUEUE`].
    pub handshakes: mpsc::Receiver<HandshakeMessage>,
}

/// Kinds of coalesced packets that the kernel does not take.
#[derive(Debug, Default)]
struct GroRefused {
    tcp: AtomicBool,
    udp: AtomicBool,
}

/// What the data threads and the control thread share.
#[derive(Debug)]
pub struct Dataplane {
    /// The TUN device, by its first queue.
    pub tun: Tun,
    further_tuns: Box<[Tun]>,
    /// What the data threads count.
    pub counters: Counters,
    /// The UDP sockets; none while the interface is down.
    pub sockets: ArcSwapOption<UdpGroup>,
    /// Allowed-ips.
    pub routes: ArcSwap<Routes>,
    /// What fits the paths to the peers.
    pub paths: path_mtu::Shared,
    /// Sending by AF_XDP.
    pub transmit: transmit::Shared,
    sessions: Arc<SessionTable>,
    mtu: AtomicU32,
    gro_refused: GroRefused,
    notices: mpsc::UnboundedSender<Notice>,
    handshakes: mpsc::Sender<HandshakeMessage>,
    inboxes: Box<[Inbox]>,
    helpers: Helpers,
    /// What threads give up.
    pub sandbox: Sandbox,
    gate: Gate,
}

/// How the control thread reaches the threads of one queue.
#[derive(Debug)]
struct Inbox {
    wake_egress: EventFd,
    wake_ingress: EventFd,
    egress_pulse: Pulse,
    ingress_pulse: Pulse,
    receiver_changes: Mutex<Vec<ReceiverChange>>,
}

impl Inbox {
    fn new() -> io::Result<Self> {
        Ok(Self {
            wake_egress: EventFd::new()?,
            wake_ingress: EventFd::new()?,
            egress_pulse: Pulse::default(),
            ingress_pulse: Pulse::default(),
            receiver_changes: Mutex::default(),
        })
    }

    fn change_receivers(&self, change: ReceiverChange) {
        self.receiver_changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(change);
        self.wake_ingress.signal();
    }

    fn take_receiver_changes(&self) -> Vec<ReceiverChange> {
        std::mem::take(
            &mut *self
                .receiver_changes
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

impl Dataplane {
    /// Shared state for a device whose threads are not running yet: one pair of threads for each
    /// of the device's queues, `tun` and `further_tuns`.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new(
        tun: Tun,
        further_tuns: Vec<Tun>,
        helpers: Helpers,
        sandbox: Sandbox,
        mtu: u32,
        sessions: Arc<SessionTable>,
        routes: Arc<Routes>,
    ) -> io::Result<(Arc<Self>, Queues)> {
        let (notices, notices_out) = mpsc::unbounded_channel();
        let (handshakes, handshakes_out) = mpsc::channel(HANDSHAKE_QUEUE);
        let queues = 1 + further_tuns.len();
        let inboxes: io::Result<Box<[Inbox]>> = (0..queues).map(|_| Inbox::new()).collect();
        let shared = Self {
            tun,
            further_tuns: further_tuns.into(),
            counters: Counters::new(queues),
            sockets: ArcSwapOption::empty(),
            routes: ArcSwap::new(routes),
            paths: path_mtu::Shared::default(),
            transmit: transmit::Shared::new(queues),
            sessions,
            mtu: AtomicU32::new(mtu),
            gro_refused: GroRefused::default(),
            notices,
            handshakes,
            inboxes: inboxes?,
            helpers,
            sandbox,
            gate: Gate::default(),
        };
        let queues = Queues {
            notices: notices_out,
            handshakes: handshakes_out,
        };
        Ok((Arc::new(shared), queues))
    }

    /// Bytes; inner packets are not padded beyond it.
    pub fn mtu(&self) -> usize {
        self.mtu.load(Ordering::Relaxed) as usize
    }

    /// Follows the TUN device's MTU.
    pub fn set_mtu(&self, mtu: u32) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// How many pairs of data threads there are.
    pub fn queues(&self) -> usize {
        self.inboxes.len()
    }

    /// The queues of the TUN device.
    pub fn tun_queues(&self) -> impl Iterator<Item = &Tun> {
        (0..self.queues()).map(|queue| self.tun_queue(queue))
    }

    /// A queue of the TUN device.
    fn tun_queue(&self, queue: usize) -> &Tun {
        let further = queue
            .checked_sub(1)
            .and_then(|at| self.further_tuns.get(at));
        further.unwrap_or(&self.tun)
    }

    /// Puts other sockets in the place of the current ones.
    pub fn replace_sockets(&self, sockets: Option<Arc<UdpGroup>>) {
        self.sockets.store(sockets);
        for inbox in &self.inboxes {
            inbox.wake_ingress.signal();
        }
    }

    /// Gives an ingress thread an AF_XDP socket, or takes some away from all of them. RX queues go
    /// to the threads in turn, so that one thread has all that comes in by a queue.
    pub fn change_receivers(&self, change: ReceiverChange) {
        match change {
            ReceiverChange::Add(receiver) => {
                let queue = receiver.options().queue as usize % self.queues();
                self.inboxes[queue].change_receivers(ReceiverChange::Add(receiver));
            }
            ReceiverChange::Remove { ifindex } => {
                for inbox in &self.inboxes {
                    inbox.change_receivers(ReceiverChange::Remove { ifindex });
                }
            }
        }
    }

    /// Gives an egress thread an AF_XDP socket, or takes those of an interface away from all.
    pub fn change_transmitters(&self, change: TransmitterChange) {
        self.transmit.change(change);
        for inbox in &self.inboxes {
            inbox.wake_egress.signal();
        }
    }

    /// Finds out whether this kernel takes coalesced packets from us, which some do not (6.6.44,
    /// 6.10.3). Only possible while the device is up.
    pub fn probe_gro(&self) {
        let refused = |probe: io::Result<bool>, kind| {
            let refused = matches!(probe, Ok(false));
            if refused {
                tracing::info!(
                    kind,
                    "the kernel takes no coalesced packets from the TUN device"
                );
            }
            refused
        };
        let tcp = refused(self.tun.probe_gro_write(), "TCP");
        self.gro_refused.tcp.store(tcp, Ordering::Relaxed);
        let udp = refused(self.tun.probe_udp_gro_write(), "UDP");
        self.gro_refused.udp.store(udp, Ordering::Relaxed);
    }

    /// What may be coalesced on the way to the TUN device.
    fn write_offloads(&self) -> Offloads {
        let granted = self.tun.offloads();
        let tcp = !self.gro_refused.tcp.load(Ordering::Relaxed);
        let udp = !self.gro_refused.udp.load(Ordering::Relaxed);
        Offloads {
            tcp4: granted.tso4 && tcp,
            tcp6: granted.tso6 && tcp,
            udp4: granted.uso4 && udp,
            udp6: granted.uso6 && udp,
        }
    }

    /// Has the data threads stand still as soon as they are done with what they have in hand:
    /// nothing is read from the device or the sockets any more. AF_XDP sockets that were taken away
    /// before are closed when they stand.
    pub fn stand_still(&self) {
        self.order(Order::Stand);
    }

    /// Whether all data threads stand.
    pub fn stands_still(&self) -> bool {
        self.gate.count() == 2 * self.queues()
    }

    /// Lets the data threads move packets.
    pub fn go_on(&self) {
        self.order(Order::Go);
    }

    fn order(&self, order: Order) {
        self.gate.set(order);
        for inbox in &self.inboxes {
            inbox.wake_egress.signal();
            inbox.wake_ingress.signal();
        }
    }

    /// Whether a data thread is to go on. If it is to stand it does so here, once it has
    /// `put_down` what it was told to give back.
    fn goes_on(&self, put_down: impl FnOnce()) -> bool {
        if self.gate.order() == Order::Stand {
            put_down();
            self.gate.stand();
        }
        self.gate.order() != Order::End
    }

    /// Whether a data thread that has more to do is to look at [`goes_on`](Self::goes_on) first.
    fn is_interrupted(&self) -> bool {
        self.gate.order() != Order::Go
    }

    fn notify(&self, notice: Notice) {
        // Fails only when the control thread has ended, and the process with it.
        let _ = self.notices.send(notice);
    }

    /// `false` if the control thread has more to do than it can.
    fn queue_handshake(&self, message: HandshakeMessage) -> bool {
        self.handshakes.try_send(message).is_ok()
    }
}

/// The running data threads; dropping them stops them.
#[derive(Debug)]
pub struct Threads {
    shared: Arc<Dataplane>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts the data threads.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start(shared: &Arc<Dataplane>) -> anyhow::Result<Self> {
        let mut started = Self {
            shared: Arc::clone(shared),
            threads: Vec::new(),
        };
        for queue in 0..shared.queues() {
            let egress = egress::Egress::new(Arc::clone(shared), queue)?;
            started.spawn("egress", queue, || egress.run())?;
            let ingress = ingress::Ingress::new(Arc::clone(shared), queue)?;
            started.spawn("ingress", queue, || ingress.run())?;
        }
        Ok(started)
    }

    /// The threads of further queues have its number in their name.
    fn spawn(
        &mut self,
        direction: &str,
        queue: usize,
        work: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<()> {
        let name = match queue {
            0 => direction.to_owned(),
            _ => format!("{direction}-{queue}"),
        };
        let sandbox = self.shared.sandbox.clone();
        let thread = thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                sandbox.confine(Role::Data);
                work();
            })
            .with_context(|| format!("cannot start the {name} thread"))?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.order(Order::End);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
