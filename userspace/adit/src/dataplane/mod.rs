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

pub mod counters;
mod egress;
mod ingress;
pub mod outbound;
pub mod transmit;
pub mod transport;
mod tun_writer;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use adit_kernel::event::EventFd;
use adit_kernel::tun::Tun;
use adit_kernel::udp::UdpSockets;
use adit_kernel::xsk::Receiver;
use adit_packet::coalesce::Offloads;
use adit_protocol::{Endpoint, PeerId};
use anyhow::Context as _;
use arc_swap::{ArcSwap, ArcSwapOption};
use arrayvec::ArrayVec;
use tokio::sync::mpsc;

pub(crate) use egress::send_staged;

use self::counters::Counters;
use self::transmit::TransmitterChange;
use self::transport::TransportKey;

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

/// What the control thread changes about the ingress thread's AF_XDP sockets.
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
    /// The TUN device.
    pub tun: Tun,
    /// What the data threads count.
    pub counters: Counters,
    /// The UDP sockets; none while the interface is down.
    pub sockets: ArcSwapOption<UdpSockets>,
    /// Allowed-ips.
    pub routes: ArcSwap<Routes>,
    /// Sending by AF_XDP.
    pub transmit: transmit::Shared,
    sessions: Arc<SessionTable>,
    mtu: AtomicU32,
    receiver_changes: Mutex<Vec<ReceiverChange>>,
    gro_refused: GroRefused,
    notices: mpsc::UnboundedSender<Notice>,
    handshakes: mpsc::Sender<HandshakeMessage>,
    wake_egress: EventFd,
    wake_ingress: EventFd,
    stopping: AtomicBool,
}

impl Dataplane {
    /// Shared state for a device whose threads are not running yet.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new(
        tun: Tun,
        mtu: u32,
        sessions: Arc<SessionTable>,
        routes: Arc<Routes>,
    ) -> io::Result<(Arc<Self>, Queues)> {
        let (notices, notices_out) = mpsc::unbounded_channel();
        let (handshakes, handshakes_out) = mpsc::channel(HANDSHAKE_QUEUE);
        let shared = Self {
            tun,
            counters: Counters::default(),
            sockets: ArcSwapOption::empty(),
            routes: ArcSwap::new(routes),
            transmit: transmit::Shared::default(),
            sessions,
            mtu: AtomicU32::new(mtu),
            receiver_changes: Mutex::default(),
            gro_refused: GroRefused::default(),
            notices,
            handshakes,
            wake_egress: EventFd::new()?,
            wake_ingress: EventFd::new()?,
            stopping: AtomicBool::new(false),
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

    /// Puts other sockets in the place of the current ones.
    pub fn replace_sockets(&self, sockets: Option<Arc<UdpSockets>>) {
        self.sockets.store(sockets);
        self.wake_ingress.signal();
    }

    /// Gives the ingress thread an AF_XDP socket, or takes some away.
    pub fn change_receivers(&self, change: ReceiverChange) {
        self.receiver_changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(change);
        self.wake_ingress.signal();
    }

    /// Gives the egress thread an AF_XDP socket, or takes one away.
    pub fn change_transmitters(&self, change: TransmitterChange) {
        self.transmit.change(change);
        self.wake_egress.signal();
    }

    fn take_receiver_changes(&self) -> Vec<ReceiverChange> {
        std::mem::take(
            &mut *self
                .receiver_changes
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
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

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
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
        let egress = egress::Egress::new(Arc::clone(shared));
        let ingress = ingress::Ingress::new(Arc::clone(shared));
        let mut started = Self {
            shared: Arc::clone(shared),
            threads: Vec::new(),
        };
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(work)
                .with_context(|| format!("cannot start the {name} thread"))
        };
        started
            .threads
            .push(spawn("egress", Box::new(|| egress.run()))?);
        started
            .threads
            .push(spawn("ingress", Box::new(|| ingress.run()))?);
        Ok(started)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake_egress.signal();
        self.shared.wake_ingress.signal();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
