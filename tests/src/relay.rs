//! A bad network: a UDP relay under some [`Weather`], which also changes the address that datagrams come from.
//!
//! ```text
//!  left ──> front:PORT ─ relay ─ back ──> right:PORT
//! ```
//! The left side takes `front` for its peer; the right side sees whatever socket `back` is at the moment.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::Namespace;
use crate::weather::Sky;
pub use crate::weather::{Counts, Rate, Weather};

/// How often a thread looks whether the relay has ended.
const INTERVAL: Duration = Duration::from_millis(50);

/// Datagrams received in one go, before those that are due are looked after.
const BURST: usize = 64;

/// What the kernel keeps for the relay, so that all loss is the weather's.
const BUFFER: usize = 16 << 20;

/// A running relay; it ends when dropped.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    front: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    front: UdpSocket,
    back: Mutex<Arc<UdpSocket>>,
    right: SocketAddr,
    left: Mutex<Option<SocketAddr>>,
    weather: Mutex<Weather>,
    /// Over what goes right, and what goes left.
    skies: [Mutex<Sky>; 2],
    stop: AtomicBool,
}

impl Relay {
    /// Starts a relay in `namespace` between whoever writes to `address` (a free port is taken) and `right`.
    ///
    /// # Errors
    /// The sockets cannot be had.
    pub fn start(
        namespace: &Namespace,
        address: IpAddr,
        right: SocketAddr,
        weather: Weather,
    ) -> Result<Self> {
        Self::seeded(namespace, address, right, weather, 0)
    }

    /// [`Relay::start`] with dice that fall as `seed` says.
    ///
    /// # Errors
    /// As [`Relay::start`].
    pub fn seeded(
        namespace: &Namespace,
        address: IpAddr,
        right: SocketAddr,
        weather: Weather,
        seed: u64,
    ) -> Result<Self> {
        let front = bind(namespace, address)?;
        let back = bind(namespace, unspecified(right.ip()))?;
        let local = front.local_addr()?;
        let shared = Arc::new(Shared {
            front,
            back: Mutex::new(Arc::new(back)),
            right,
            left: Mutex::new(None),
            weather: Mutex::new(weather),
            // The directions do not share their fate.
            skies: [2 * seed, 2 * seed + 1].map(|seed| Mutex::new(Sky::new(seed))),
            stop: AtomicBool::new(false),
        });
        let (inbound, outbound) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            std::thread::spawn(move || outbound.pass_right()),
            std::thread::spawn(move || inbound.pass_left()),
        ];
        Ok(Self {
            shared,
            front: local,
            threads,
        })
    }

    /// Where the left side has to send to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.front
    }

    /// Continues from a new port, optionally of another address of the relay, as a NAT that forgot its mapping does.
    /// Returns the new local address.
    ///
    /// # Errors
    /// The socket cannot be had.
    pub fn move_back(&self, namespace: &Namespace, address: IpAddr) -> Result<SocketAddr> {
        let socket = bind(namespace, address)?;
        let local = socket.local_addr()?;
        *lock(&self.shared.back) = Arc::new(socket);
        Ok(local)
    }

    /// Changes the weather for what comes from now on.
    pub fn set_weather(&self, weather: Weather) {
        *lock(&self.shared.weather) = weather;
    }

    /// What became of all datagrams so far: of those that went right, and of those that went left.
    #[must_use]
    pub fn counts(&self) -> [Counts; 2] {
        [0, 1].map(|direction| lock(&self.shared.skies[direction]).counts())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn pass_right(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let back = Arc::clone(&lock(&self.back));
            self.pass(0, &self.front, |datagram| {
                back.send_to(datagram, self.right)
            });
        }
    }

    fn pass_left(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let back = Arc::clone(&lock(&self.back));
            let left = *lock(&self.left);
            self.pass(1, &back, |datagram| match left {
                Some(left) => self.front.send_to(datagram, left),
                None => Ok(0),
            });
        }
    }

    /// Waits until there is something to do in one direction, and does it.
    fn pass(
        &self,
        direction: usize,
        from: &UdpSocket,
        mut send: impl FnMut(&[u8]) -> std::io::Result<usize>,
    ) {
        let next = lock(&self.skies[direction]).next();
        let wait = next.map_or(INTERVAL, |next| {
            next.saturating_duration_since(Instant::now())
        });
        let mut sources = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        // An interruption only makes it look earlier.
        let _ = ppoll(&mut sources, Some(wait.min(INTERVAL).into()), None);
        let weather = *lock(&self.weather);
        let mut sky = lock(&self.skies[direction]);
        let mut buffer = [0; 1 << 16];
        for _ in 0..BURST {
            let Ok((length, sender)) = from.recv_from(&mut buffer) else {
                break;
            };
            if direction == 0 {
                *lock(&self.left) = Some(sender);
            }
            sky.take(&weather, Instant::now(), &buffer[..length]);
        }
        while let Some(datagram) = sky.pass(Instant::now()) {
            // A full or momentarily unreachable next hop loses datagrams: that is what a network does.
            if let Err(error) = send(&datagram) {
                debug_assert!(error.kind() != ErrorKind::InvalidInput, "{error}");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bind(namespace: &Namespace, address: IpAddr) -> Result<UdpSocket> {
    let socket = namespace.enter(|| UdpSocket::bind(SocketAddr::new(address, 0)))??;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    Ok(socket)
}

/// The unspecified address of the same family.
#[must_use]
pub fn unspecified(address: IpAddr) -> IpAddr {
    if address.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    }
}
