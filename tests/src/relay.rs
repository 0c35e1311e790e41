//! A bad network: a UDP relay that loses, repeats and reorders datagrams, and changes the address they come from.
//!
//! ```text
//!  left ──> front:PORT ─ relay ─ back ──> right:PORT
//! ```
//! The left side takes `front` for its peer; the right side sees whatever socket `back` is at the moment.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use crate::Namespace;

/// How a relay treats datagrams; chances are per thousand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Not passed on.
    pub loss: u64,
    /// Passed on twice.
    pub duplication: u64,
    /// Passed on after the next one.
    pub reordering: u64,
}

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
    weather: Weather,
    random: AtomicU64,
    passed: AtomicU64,
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
        let front = bind(namespace, address)?;
        let back = bind(namespace, unspecified(right.ip()))?;
        let local = front.local_addr()?;
        let shared = Arc::new(Shared {
            front,
            back: Mutex::new(Arc::new(back)),
            right,
            left: Mutex::new(None),
            weather,
            random: AtomicU64::new(0x9e37_79b9_7f4a_7c15),
            passed: AtomicU64::new(0),
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

    /// Number of datagrams passed on in both directions.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::Relaxed)
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
        let mut held = None;
        let mut buffer = vec![0; 1 << 16];
        while !self.stop.load(Ordering::Relaxed) {
            let Ok((length, from)) = self.front.recv_from(&mut buffer) else {
                continue;
            };
            *lock(&self.left) = Some(from);
            let back = Arc::clone(&lock(&self.back));
            self.pass(&buffer[..length], &mut held, |datagram| {
                back.send_to(datagram, self.right)
            });
        }
    }

    fn pass_left(&self) {
        let mut held = None;
        let mut buffer = vec![0; 1 << 16];
        while !self.stop.load(Ordering::Relaxed) {
            let back = Arc::clone(&lock(&self.back));
            let Ok((length, _)) = back.recv_from(&mut buffer) else {
                continue;
            };
            let Some(left) = *lock(&self.left) else {
                continue;
            };
            self.pass(&buffer[..length], &mut held, |datagram| {
                self.front.send_to(datagram, left)
            });
        }
    }

    fn pass(
        &self,
        datagram: &[u8],
        held: &mut Option<Vec<u8>>,
        mut send: impl FnMut(&[u8]) -> std::io::Result<usize>,
    ) {
        let mut send = |datagram: &[u8]| match send(datagram) {
            Ok(_) => drop(self.passed.fetch_add(1, Ordering::Relaxed)),
            // A full or momentarily unreachable next hop loses datagrams: that is what a network does.
            Err(error) => debug_assert!(error.kind() != ErrorKind::InvalidInput, "{error}"),
        };
        if self.happens(self.weather.loss) {
            return;
        }
        if held.is_none() && self.happens(self.weather.reordering) {
            *held = Some(datagram.to_vec());
            return;
        }
        send(datagram);
        if self.happens(self.weather.duplication) {
            send(datagram);
        }
        if let Some(earlier) = held.take() {
            send(&earlier);
        }
    }

    fn happens(&self, per_thousand: u64) -> bool {
        if per_thousand == 0 {
            return false;
        }
        // xorshift64: repeatable, and good enough to roll dice.
        let roll = |mut x: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^ (x << 17)
        };
        let drawn = self
            .random
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |x| Some(roll(x)));
        drawn.is_ok_and(|x| (x >> 20) % 1000 < per_thousand)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A socket that wakes up now and then, so that its thread sees the end of the relay.
fn bind(namespace: &Namespace, address: IpAddr) -> Result<UdpSocket> {
    let socket = namespace.enter(|| UdpSocket::bind(SocketAddr::new(address, 0)))??;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
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
