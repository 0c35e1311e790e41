//! The control thread's event loop.

use std::cell::RefCell;
use std::fmt;
use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use adit_kernel::netlink::LinkEvent;
use anyhow::Context as _;
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::Control;
use super::watcher::Happening;
use crate::dataplane::{HandshakeMessage, Notice, Queues};
use crate::instant;

/// Handshake messages handled before timers and configuration get their turn: about 10 ms.
const HANDSHAKES_AT_ONCE: usize = 32;

/// How often the attached programs are looked at: nobody tells when they are taken away.
const TICK: Duration = Duration::from_secs(1);

/// Why the tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM or SIGINT.
    Signal,
    /// The TUN device was deleted.
    DeviceGone,
    /// The configuration socket's file was removed.
    SocketRemoved,
    /// Another daemon has taken the device over.
    HandedOver,
    /// The daemon that ran before goes on: this one was too late.
    TooLate,
}

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Signal => "signal",
            Self::DeviceGone => "device deleted",
            Self::SocketRemoved => "configuration socket removed",
            Self::HandedOver => "handed over",
            Self::TooLate => "the daemon that ran before goes on",
        })
    }
}

/// The signals that end a tunnel in order.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Handles the signals from now on; to be called in a runtime, and before anything exists that
    /// a signal must not leave behind.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot handle SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot handle SIGINT")?,
        })
    }
}

/// What the loop hears.
#[derive(Debug)]
pub struct News {
    /// From the data threads.
    pub queues: Queues,
    /// From the host.
    pub happenings: mpsc::Receiver<Happening>,
    /// Clients of the configuration socket that want to take the device over.
    pub heirs: mpsc::Receiver<UnixStream>,
}

/// Why [`run`] has returned.
#[derive(Debug)]
pub enum Interruption {
    /// The tunnel ends.
    Ending(Ending),
    /// Somebody wants to take the device over; to be run again unless that succeeds.
    Heir(UnixStream),
}

/// Serves the device until it ends, or somebody wants to take it over.
pub async fn run(
    control: &Rc<RefCell<Control>>,
    news: &mut News,
    signals: &mut Signals,
) -> Interruption {
    let News {
        queues,
        happenings,
        heirs,
    } = news;
    let timers_changed = Arc::clone(&control.borrow().timers_changed);
    let Signals {
        terminate,
        interrupt,
    } = signals;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let deadline = control.borrow().device.poll_timeout();
        let timer = async {
            match deadline {
                Some(deadline) => sleep(deadline.saturating_duration_since(instant())).await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => return Interruption::Ending(Ending::Signal),
            _ = interrupt.recv() => return Interruption::Ending(Ending::Signal),
            () = timers_changed.notified() => {}
            _ = tick.tick() => control.borrow_mut().tick(),
            () = timer => control.borrow_mut().timeout(),
            Some(notice) = queues.notices.recv() => match notice {
                Notice::Attend(peer) => control.borrow_mut().attend(peer),
                Notice::NextHopWanted => control.borrow_mut().steerer.next_hops_wanted(),
                Notice::ReceiverFailed { ifindex } => control.borrow_mut().receiver_failed(ifindex),
                Notice::DeviceGone => return Interruption::Ending(Ending::DeviceGone),
            },
            Some(message) = queues.handshakes.recv() => {
                handshakes(&mut control.borrow_mut(), queues, message);
                // Configuration connections are tasks of their own and get their turn here.
                tokio::task::yield_now().await;
            }
            Some(happening) = happenings.recv() => {
                if let Some(ending) = follow(&mut control.borrow_mut(), happening) {
                    return Interruption::Ending(ending);
                }
            }
            Some(heir) = heirs.recv() => return Interruption::Heir(heir),
        }
    }
}

fn handshakes(control: &mut Control, queues: &mut Queues, first: HandshakeMessage) {
    control.handshake_message(first, queues.handshakes.len());
    for _ in 1..HANDSHAKES_AT_ONCE {
        let Ok(message) = queues.handshakes.try_recv() else {
            return;
        };
        control.handshake_message(message, queues.handshakes.len());
    }
}

fn follow(control: &mut Control, happening: Happening) -> Option<Ending> {
    match happening {
        Happening::Link(LinkEvent::Up) => control.set_up(true),
        Happening::Link(LinkEvent::Down) => control.set_up(false),
        Happening::Link(LinkEvent::Mtu(mtu)) => control.set_mtu(mtu),
        Happening::Link(LinkEvent::Moved) => tracing::info!("device moved to another namespace"),
        Happening::Link(LinkEvent::Gone) => return Some(Ending::DeviceGone),
        Happening::Routes => control.host_changed(),
        Happening::Neighbour(change) => control.steerer.neighbour_changed(change),
        Happening::SocketRemoved => return Some(Ending::SocketRemoved),
    }
    None
}
