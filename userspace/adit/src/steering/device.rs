//! One underlay interface.

use std::fmt::Write as _;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::time::Duration;

use adit_kernel::bpf::{AttachError, LinkState, Steering, XdpMode};
use adit_kernel::ethtool;
use adit_kernel::netlink::{self, Link};
use adit_kernel::xsk::{
    FrameSize, Receiver, ReceiverOptions, TRANSMIT_FRAMES, Transmitter, Umem, XskError,
};
use adit_protocol::Instant;

use super::loss::{Loss, Losses};
use super::options::{self, Datapath, Options, XdpTransmit};
use crate::dataplane::transmit::TransmitterChange;
use crate::dataplane::{Dataplane, ReceiverChange};
use crate::{error_chain, instant};

/// Frames of each AF_XDP socket: what a few TCP windows of MTU-sized packets need.
const FRAMES: u32 = 4096;
/// RX queues that get a socket; packets of further ones go to the UDP socket.
const QUEUES: u32 = 64;
/// What was lost is tried again after so long, then after twice as long, up to
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// this.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// How an interface's packets come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// XDP steers to AF_XDP sockets.
    Attached {
        /// Where the program runs.
        mode: XdpMode,
        /// All sockets receive without a copy.
        zero_copy: bool,
        /// Sockets, one per RX queue.
        queues: u32,
        /// How packets go out by AF_XDP, if they do.
        transmit: Option<Transmit>,
    },
    /// By the UDP socket, as the options ask or as is faster.
    Unsteered {
        /// Why, unless the options say so.
        note: Option<&'static str>,
    },
    /// By the UDP socket, though AF_XDP was wanted.
    Refused {
        /// Why.
        reason: String,
        /// When to try again.
        retry_at: Instant,
        /// How long was waited for that.
        waited: Duration,
    },
}

/// A socket that sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transmit {
    /// The driver takes packets without a copy.
    pub(super) zero_copy: bool,
    /// Bytes of the longest packet, Ethernet header included.
    pub(super) capacity: usize,
}

/// What an interface is opened with.
struct Sockets {
    receivers: Vec<Receiver>,
    /// One for each egress thread, as far as there are RX queues.
    transmitters: Vec<Transmitter>,
}

/// Why an interface does not carry the tunnel any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// It was deleted.
    Gone,
    /// It is down.
    Down,
    /// The peers are elsewhere.
    Unused,
}

impl Departure {
    /// Judges by the interfaces there are.
    pub(super) fn of(index: u32, links: &[Link]) -> Self {
        match links.iter().find(|link| link.index == index) {
            None => Self::Gone,
            Some(link) if !link.up => Self::Down,
            Some(_) => Self::Unused,
        }
    }
}

/// An interface that carries the tunnel.
#[derive(Debug)]
pub(super) struct Device {
    link: Link,
    state: State,
}

/// Measured: a veth whose other end runs native XDP takes no GSO packets, so the sender's kernel
/// makes 45 packets out of one, which costs more than AF_XDP saves (ARCHITECTURE.md).
const VETH: &str =
    "the UDP socket is faster on veth, which loses GSO to XDP; --datapath xdp overrules this";

/// Why there are no sockets for an interface.
#[derive(Debug, thiserror::Error)]
enum AttachFailure {
    #[error("no memory for packets")]
    Memory(#[source] std::io::Error),
    #[error("AF_XDP socket for RX queue {queue}")]
    Socket {
        queue: u32,
        #[source]
        source: XskError,
    },
    #[error(transparent)]
    Map(#[from] adit_kernel::bpf::MapError),
    #[error(transparent)]
    Program(#[from] AttachError),
}

impl Device {
    /// Attaches the counting programs and, if the options ask for it, XDP.
    pub(super) fn attach(
        steering: &mut Steering,
        shared: &Dataplane,
        options: &Options,
        link: &Link,
    ) -> Self {
        if let Err(error) = steering.attach_tc(link.index, shared.tun.name(), None) {
            tracing::info!(
                device = link.name,
                error = error_chain(&error),
                "flows are not counted"
            );
        }
        let mut device = Self {
            link: link.clone(),
            state: State::Unsteered { note: None },
        };
        match options.datapath {
            Datapath::Socket => {}
            Datapath::Auto if link.kind.as_deref() == Some("veth") => {
                device.state = State::Unsteered { note: Some(VETH) };
            }
            Datapath::Auto | Datapath::Xdp => {
                device.state = device.steer(steering, shared, options, None);
            }
        }
        device
    }

    /// An interface that cannot be attached to for a reason of the host's.
    pub(super) fn refused(link: &Link, reason: String) -> Self {
        let retry_at = instant() + LAST_RETRY;
        let state = State::Refused {
            reason,
            retry_at,
            waited: LAST_RETRY,
        };
        Self {
            link: link.clone(),
            state,
        }
    }

    pub(super) fn is_attached(&self) -> bool {
        matches!(self.state, State::Attached { .. })
    }

    /// How packets go out by AF_XDP, if they do.
    pub(super) fn transmit(&self) -> Option<Transmit> {
        match self.state {
            State::Attached { transmit, .. } => transmit,
            _ => None,
        }
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Tries native and generic mode as far as the options allow. `previous` is why it was not
    /// steered until now, and how long was waited for this try.
    fn steer(
        &self,
        steering: &mut Steering,
        shared: &Dataplane,
        options: &Options,
        previous: Option<(&str, Duration)>,
    ) -> State {
        let modes: &[XdpMode] = match (options.xdp_mode, options.datapath) {
            (options::XdpMode::Native, _) | (options::XdpMode::Auto, Datapath::Auto) => {
                &[XdpMode::Native]
            }
            (options::XdpMode::Generic, _) => &[XdpMode::Generic],
            (options::XdpMode::Auto, _) => &[XdpMode::Native, XdpMode::Generic],
        };
        let mut reason = String::new();
        for &mode in modes {
            match self.attach_mode(steering, shared, mode, options.xdp_transmit) {
                Ok(state) => {
                    tracing::info!(device = self.link.name, ?mode, "packets come in by AF_XDP");
                    return state;
                }
                Err(error) => {
                    tracing::debug!(
                        device = self.link.name,
                        ?mode,
                        error = error_chain(&error),
                        "XDP"
                    );
                    reason = error_chain(&error);
                }
            }
        }
        let waited = match previous {
            Some((before, waited)) if before == reason => (waited * 2).min(LAST_RETRY),
            _ => FIRST_RETRY,
        };
        State::Refused {
            reason,
            retry_at: instant() + waited,
            waited,
        }
    }

    /// Says so if AF_XDP was wanted and is not to be had.
    pub(super) fn report_refusal(&self, options: &Options) {
        let State::Refused { reason, .. } = &self.state else {
            return;
        };
        let device = &self.link.name;
        if options.datapath == Datapath::Xdp {
            tracing::error!(
                device,
                reason,
                "packets come in by the UDP socket, not AF_XDP"
            );
        } else {
            tracing::info!(device, reason, "packets come in by the UDP socket");
        }
    }

    fn attach_mode(
        &self,
        steering: &mut Steering,
        shared: &Dataplane,
        mode: XdpMode,
        transmit: XdpTransmit,
    ) -> Result<State, AttachFailure> {
        let ifindex = self.link.index;
        // The program comes first: it passes everything while it knows of no sockets, and closing
        // sockets for a program that is refused leaves their queues busy for a moment, too long
        // for the other mode to be tried.
        steering.attach_xdp(ifindex, mode)?;
        let opened = self.open_sockets(steering, mode, transmit, shared.queues());
        let Sockets {
            receivers,
            transmitters,
        } = opened.inspect_err(|_| {
            steering.detach_xdp(ifindex);
            // Nothing to be done about it: what is left there leads nowhere.
            let _ = steering.remove_device(ifindex);
        })?;
        let queues = u32::try_from(receivers.len()).unwrap_or(QUEUES);
        let zero_copy = receivers
            .iter()
            .all(|receiver| receiver.is_zero_copy().unwrap_or(false));
        for receiver in receivers {
            shared.change_receivers(ReceiverChange::Add(Box::new(receiver)));
        }
        let transmit = transmitters.first().map(|first| Transmit {
            zero_copy: transmitters.iter().all(Transmitter::is_zero_copy),
            capacity: first.capacity(),
        });
        for (queue, transmitter) in transmitters.into_iter().enumerate() {
            let transmitter = Box::new(transmitter);
            shared.change_transmitters(TransmitterChange::Add { queue, transmitter });
        }
        Ok(State::Attached {
            mode,
            zero_copy,
            queues,
            transmit,
        })
    }

    /// Opens the sockets and tells the program of them.
    fn open_sockets(
        &self,
        steering: &mut Steering,
        mode: XdpMode,
        transmit: XdpTransmit,
        threads: usize,
    ) -> Result<Sockets, AttachFailure> {
        let ifindex = self.link.index;
        let frame_size = FrameSize::for_mtu(self.link.mtu);
        let senders = match self.wants_transmitter(transmit) {
            true => u32::try_from(threads).unwrap_or(QUEUES),
            false => 0,
        };
        let (receivers, spare) = self.receivers(frame_size, mode, senders)?;
        let queues = u32::try_from(receivers.len()).unwrap_or(QUEUES);
        steering.add_device(ifindex, queues, frame_size.capacity())?;
        for receiver in &receivers {
            steering.set_socket(ifindex, receiver.options().queue, receiver.as_fd())?;
        }
        let frames = spare.clone().step_by(TRANSMIT_FRAMES as usize);
        let transmitters = receivers.iter().zip(frames).map_while(|(receiver, start)| {
            let transmitter = self.transmitter(receiver, start..start + TRANSMIT_FRAMES)?;
            let pays = transmit == XdpTransmit::On || transmitter.is_zero_copy();
            pays.then_some(transmitter)
        });
        let transmitters = transmitters.collect();
        Ok(Sockets {
            receivers,
            transmitters,
        })
    }

    /// Whether memory is to be set aside for sending.
    fn wants_transmitter(&self, transmit: XdpTransmit) -> bool {
        match transmit {
            XdpTransmit::Off => false,
            XdpTransmit::On => true,
            // What an older kernel does not tell shows when the socket is open.
            XdpTransmit::Auto => {
                ethtool::xdp_features(self.link.index).map_or(true, |features| features.zero_copy)
            }
        }
    }

    /// A socket for one thread to send by. It is an extra: without it packets go out by the UDP socket.
    fn transmitter(&self, receiver: &Receiver, frames: Range<u32>) -> Option<Transmitter> {
        Transmitter::open(receiver, frames)
            .inspect_err(|error| {
                tracing::info!(
                    device = self.link.name,
                    error = error_chain(error),
                    "packets go out by the UDP socket"
                );
            })
            .ok()
    }

    /// A socket for each RX queue that is in use, and the frames that are left for sending.
    fn receivers(
        &self,
        frame_size: FrameSize,
        mode: XdpMode,
        senders: u32,
    ) -> Result<(Vec<Receiver>, Range<u32>), AttachFailure> {
        let queues = self.link.rx_queues.clamp(1, QUEUES);
        let spare = senders.min(queues) * TRANSMIT_FRAMES;
        let spare = queues * FRAMES..queues * FRAMES + spare;
        let umem = Umem::new(spare.end, frame_size).map_err(AttachFailure::Memory)?;
        let mut receivers: Vec<Receiver> = Vec::new();
        for queue in 0..queues {
            let options = ReceiverOptions {
                ifindex: self.link.index,
                queue,
                frames: queue * FRAMES..(queue + 1) * FRAMES,
                generic: mode == XdpMode::Generic,
            };
            let opened = match receivers.first() {
                Some(first) => first.open_shared(options),
                None => Receiver::open(&umem, options),
            };
            match opened {
                Ok(receiver) => receivers.push(receiver),
                // An interface may have been made for more queues than it uses.
                Err(_) if queue > 0 => break,
                Err(source) => return Err(AttachFailure::Socket { queue, source }),
            }
        }
        Ok((receivers, spare))
    }

    /// Notices that XDP was taken away, and tries again what was refused or lost.
    pub(super) fn check(
        &mut self,
        now: Instant,
        steering: &mut Steering,
        shared: &Dataplane,
        options: &Options,
        losses: &mut Losses,
    ) {
        match &self.state {
            State::Unsteered { .. } => {}
            State::Attached { .. } => match steering.xdp_state(self.link.index) {
                Ok(LinkState::Attached) => {}
                Ok(LinkState::Detached) => {
                    let loss = if self.is_gone() {
                        Loss::InterfaceGone
                    } else {
                        Loss::Detached
                    };
                    self.lose(now, steering, shared, losses, loss);
                }
                Ok(LinkState::Replaced(_)) => {
                    self.lose(now, steering, shared, losses, Loss::Replaced);
                }
                Err(error) => tracing::debug!(%error, "state of the XDP link"),
            },
            State::Refused { retry_at, .. } if *retry_at > now => {}
            State::Refused { reason, waited, .. } => {
                let state = self.steer(steering, shared, options, Some((reason, *waited)));
                let said = matches!(&state, State::Refused { reason: now, .. } if now == reason);
                self.state = state;
                if !said {
                    self.report_refusal(options);
                }
            }
        }
    }

    /// Goes back to the UDP socket for a while.
    pub(super) fn lose(
        &mut self,
        now: Instant,
        steering: &mut Steering,
        shared: &Dataplane,
        losses: &mut Losses,
        loss: Loss,
    ) {
        if !matches!(self.state, State::Attached { .. }) {
            return;
        }
        self.report_loss(losses, loss);
        self.unsteer(steering, shared);
        self.state = State::Refused {
            reason: loss.to_string(),
            retry_at: now + FIRST_RETRY,
            waited: FIRST_RETRY,
        };
    }

    fn is_gone(&self) -> bool {
        netlink::links()
            .is_ok_and(|links| Departure::of(self.link.index, &links) == Departure::Gone)
    }

    fn report_loss(&self, losses: &mut Losses, loss: Loss) {
        losses.note(loss);
        tracing::warn!(
            device = self.link.name,
            reason = %loss,
            "packets come in by the UDP socket for now"
        );
    }

    /// Takes everything of ours off the interface, and says why unless that has been said.
    pub(super) fn detach(
        mut self,
        steering: &mut Steering,
        shared: &Dataplane,
        losses: &mut Losses,
        why: Option<Departure>,
    ) {
        match why.filter(|_| self.is_attached()) {
            Some(Departure::Gone) => self.report_loss(losses, Loss::InterfaceGone),
            Some(Departure::Down) => self.report_loss(losses, Loss::InterfaceDown),
            Some(Departure::Unused) => {
                tracing::info!(device = self.link.name, "leads to no peer any more");
            }
            None => {}
        }
        self.unsteer(steering, shared);
        steering.detach_tc(self.link.index);
    }

    fn unsteer(&mut self, steering: &mut Steering, shared: &Dataplane) {
        steering.detach_xdp(self.link.index);
        if let Err(error) = steering.remove_device(self.link.index) {
            tracing::debug!(error = error_chain(&error), "XDP device");
        }
        let ifindex = self.link.index;
        shared.change_transmitters(TransmitterChange::Remove { ifindex });
        shared.change_receivers(ReceiverChange::Remove { ifindex });
    }

    /// Appends the interface to the answer of `get=1`.
    pub(super) fn describe(&self, answer: &mut String) {
        let name = &self.link.name;
        // Writing to a String cannot fail.
        let _ = match &self.state {
            State::Attached {
                mode,
                zero_copy,
                queues,
                transmit,
            } => {
                let mode = match mode {
                    XdpMode::Native => "native",
                    XdpMode::Generic => "generic",
                };
                let copy = if *zero_copy { "zerocopy" } else { "copy" };
                let _ = writeln!(answer, "adit_xdp={name} {mode} {copy} {queues}");
                match transmit {
                    Some(Transmit { zero_copy, .. }) => {
                        let copy = if *zero_copy { "zerocopy" } else { "copy" };
                        writeln!(answer, "adit_xdp_transmit={name} {copy}")
                    }
                    None => Ok(()),
                }
            }
            State::Unsteered { note: None } => Ok(()),
            State::Unsteered { note: Some(note) } => {
                writeln!(answer, "adit_datapath_note={name}: {note}")
            }
            State::Refused { reason, .. } => {
                writeln!(
                    answer,
                    "adit_datapath_note={name}: {}",
                    reason.replace('\n', " ")
                )
            }
        };
    }
}
