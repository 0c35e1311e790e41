//! A thread that waits for what the event loop cannot wait for itself: netlink and inotify.
//!
//! The runtime's `AsyncFd` is an unsafe interface; three descriptors and `ppoll` need none.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use adit_kernel::event::EventFd;
use adit_kernel::inotify::FileWatch;
use adit_kernel::netlink::{
    LinkEvent, LinkMonitor, NeighbourChange, NeighbourMonitor, RouteMonitor,
};
use adit_kernel::poll::{Interest, PollFd, poll};
use anyhow::Context as _;
use tokio::sync::mpsc;

use crate::dataplane::Dataplane;
use crate::dataplane::setbacks::Setbacks;
use crate::sandbox::Role;

/// Routes often change many at a time; that they changed is told when so much time has passed.
const ROUTES_SETTLE: Duration = Duration::from_millis(200);

/// Happenings that may wait for the control thread. When there are more, this thread waits, and what the kernel cannot
/// tell it meanwhile it reports as lost.
const HAPPENINGS: usize = 1024;

/// Something that happened around the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// To the TUN device.
    Link(LinkEvent),
    /// Addresses or routes of the namespace that the UDP sockets are in have changed.
    Routes,
    /// A neighbour table of that namespace has changed.
    Neighbour(NeighbourChange),
    /// The configuration socket's file was removed.
    SocketRemoved,
}

/// What the thread watches.
#[derive(Debug)]
pub struct Sources {
    /// The TUN device's state.
    pub link: LinkMonitor,
    /// Addresses and routes.
    pub routes: RouteMonitor,
    /// Neighbours; only if anybody wants to know.
    pub neighbours: Option<NeighbourMonitor>,
    /// The configuration socket's file.
    pub socket: FileWatch,
}

/// The running thread; dropping it stops it.
#[derive(Debug)]
pub struct Watcher {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts to watch. The first happenings tell the device's state.
    ///
    /// # Errors
    /// When the system gives no more threads or file descriptors.
    pub fn start(
        shared: Arc<Dataplane>,
        sources: Sources,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Happening>)> {
        let stop = Arc::new(EventFd::new().context("cannot make an event descriptor")?);
        let (happenings, received) = mpsc::channel(HAPPENINGS);
        let watching = Watching {
            shared,
            sources,
            stop: Arc::clone(&stop),
            happenings,
        };
        let thread = thread::Builder::new()
            .name("events".to_owned())
            .spawn(|| watching.run())
            .context("cannot start the events thread")?;
        Ok((
            Self {
                stop,
                thread: Some(thread),
            },
            received,
        ))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watching {
    shared: Arc<Dataplane>,
    sources: Sources,
    stop: Arc<EventFd>,
    happenings: mpsc::Sender<Happening>,
}

impl Watching {
    fn run(mut self) {
        self.shared.sandbox.confine(Role::Events);
        if let Err(error) = self.watch() {
            tracing::error!(%error, "cannot watch device, routes and socket any more");
        }
    }

    fn watch(&mut self) -> io::Result<()> {
        let mut routes_told_at: Option<Instant> = None;
        let mut setbacks = Setbacks::default();
        // Events that were there before the first wait are read first.
        self.follow_link();
        loop {
            let timeout = routes_told_at.map(|at| at.saturating_duration_since(Instant::now()));
            let neighbours = self
                .sources
                .neighbours
                .as_ref()
                .map(|monitor| monitor.as_fd());
            let mut fds = [
                self.stop.as_fd(),
                self.sources.link.as_fd(),
                self.sources.routes.as_fd(),
                self.sources.socket.as_fd(),
                // Without a monitor one of the others stands in.
                neighbours.unwrap_or(self.stop.as_fd()),
            ]
            .map(|fd| PollFd::new(fd, Interest::Read));
            if let Err(error) = poll(&mut fds, timeout) {
                setbacks.after(error)?;
                continue;
            }
            let mut failed = false;
            let [stop, link, routes, socket, neighbours] = fds.map(|fd| fd.readable());
            if stop {
                return Ok(());
            }
            if link {
                failed |= !self.follow_link();
            }
            let changed = routes.then(|| self.sources.routes.changed());
            failed |= matches!(changed, Some(Err(_)));
            // An error means that messages were lost: then something has changed.
            if changed.is_some_and(|changed| changed.unwrap_or(true)) {
                // Before the next packet, which the kernel would send the new way.
                self.shared.transmit.suspend();
                routes_told_at.get_or_insert_with(|| Instant::now() + ROUTES_SETTLE);
            }
            if routes_told_at.is_some_and(|at| at <= Instant::now()) {
                routes_told_at = None;
                self.tell(Happening::Routes);
            }
            if neighbours {
                failed |= !self.follow_neighbours();
            }
            match socket.then(|| self.sources.socket.removed()) {
                Some(Ok(true)) => self.tell(Happening::SocketRemoved),
                Some(Err(error)) => {
                    setbacks.after(error)?;
                    continue;
                }
                _ => {}
            }
            // What could not be read is still there, and would be reported again at once.
            if failed {
                setbacks.endure();
            } else {
                setbacks.over();
            }
        }
    }

    /// Tells what happened to the device; false if that could not be read.
    fn follow_link(&mut self) -> bool {
        loop {
            match self.sources.link.next_event(&self.shared.tun) {
                Ok(Some(event)) => self.tell(Happening::Link(event)),
                Ok(None) => return true,
                Err(error) => {
                    tracing::warn!(%error, "device events");
                    return false;
                }
            }
        }
    }

    /// Tells what happened to neighbours; false if that could not be read.
    fn follow_neighbours(&mut self) -> bool {
        let Some(monitor) = &mut self.sources.neighbours else {
            return true;
        };
        let happenings = &self.happenings;
        let tell = |change| {
            // Fails only when the control thread is about to stop this one.
            let _ = happenings.blocking_send(Happening::Neighbour(change));
        };
        let Err(error) = monitor.read(tell) else {
            return true;
        };
        tracing::debug!(%error, "neighbours");
        self.tell(Happening::Neighbour(NeighbourChange::Lost));
        false
    }

    fn tell(&self, happening: Happening) {
        // Fails only when the control thread is about to stop this one.
        let _ = self.happenings.blocking_send(happening);
    }
}
