//! A flow of numbered UDP datagrams: at a steady rate or as fast as the sender can, with what arrived of it counted.
//!
//! iperf3 paces UDP by the bits of whole intervals and counts in the sender's thread; here sender and receiver have a
//! thread each and nothing else to do.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use crate::Namespace;
use crate::command::fail_if_interrupted;

/// Datagrams due within one of these leave together, as applications do that are woken by a timer. iperf3 has the same.
const TICK: Duration = Duration::from_millis(1);

/// A sender that was kept from running for longer gives up what it should have sent meanwhile.
const LARGEST_BACKLOG: Duration = Duration::from_millis(20);

/// Datagrams between two looks at the clock when sending without a rate.
const UNPACED_BURST: u64 = 32;

/// A receiver stops when nothing came for so long after the sender did.
const SILENCE: Duration = Duration::from_millis(200);

/// Large enough that a receiver that was kept from running for a while loses nothing: what is lost is lost in the tunnel.
const RECEIVE_BUFFER: usize = 16 << 20;

/// Bytes of the number in front of each datagram.
const NUMBER_LENGTH: usize = 8;

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    /// Where the sender is.
    pub from: &'a Namespace,
    /// Where the receiver is.
    pub to: &'a Namespace,
    /// The receiver's address.
    pub address: IpAddr,
    /// Payload bytes of a datagram, at least 8.
    pub size: usize,
    /// Datagrams a second; `None` is as fast as the sender can.
    pub rate: Option<u32>,
    /// How long to send.
    pub duration: Duration,
}

/// What became of a flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Datagrams handed to the kernel.
    pub sent: u64,
    /// Datagrams that arrived.
    pub received: u64,
    /// Datagrams that arrived after one with a higher number.
    pub reordered: u64,
    /// Datagrams that arrived with the same number as the one before.
    pub repeated: u64,
    /// From the first datagram sent to the end of sending.
    pub sending: Duration,
    /// From the first arrival to the last.
    pub receiving: Duration,
}

impl Delivery {
    /// Datagrams that did not arrive.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// Datagrams arriving per second.
    #[must_use]
    pub fn received_per_second(&self) -> f64 {
        per_second(self.received.saturating_sub(1), self.receiving)
    }

    /// Datagrams sent per second.
    #[must_use]
    pub fn sent_per_second(&self) -> f64 {
        per_second(self.sent, self.sending)
    }
}

fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() {
        return 0.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "no flow has 2^53 datagrams")]
    let count = count as f64;
    count / time.as_secs_f64()
}

impl Flow<'_> {
    /// Sends the flow and waits for the last of it.
    ///
    /// # Errors
    /// No socket, no route, or the program was interrupted.
    pub fn run(&self) -> Result<Delivery> {
        let receiver = receiver(self.to, self.address)?;
        let sender = self.from.enter(|| UdpSocket::bind(any(self.address)))??;
        sender.connect(receiver.local_addr()?)?;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let counting = scope.spawn(|| receive(&receiver, &done));
            let sent = self.send(&sender);
            done.store(true, Ordering::Release);
            let counted = counting.join().map_err(|_| anyhow!("receiver panicked"))?;
            let (sent, sending) = sent?;
            Ok(Delivery {
                sent,
                sending,
                ..counted?
            })
        })
    }

    fn send(&self, socket: &UdpSocket) -> Result<(u64, Duration)> {
        // Or the kernel adds 50 µs to each sleep.
        nix::sys::prctl::set_timerslack(1)?;
        let mut datagram = vec![0; self.size.max(NUMBER_LENGTH)];
        let start = Instant::now();
        let (mut number, mut skipped) = (0_u64, 0_u64);
        loop {
            fail_if_interrupted()?;
            let elapsed = start.elapsed();
            if elapsed >= self.duration {
                return Ok((number, elapsed));
            }
            let burst = match self.rate {
                None => UNPACED_BURST,
                Some(rate) => {
                    let due = due(rate, elapsed).saturating_sub(number + skipped);
                    let most = due_in(rate, LARGEST_BACKLOG).max(1);
                    skipped += due.saturating_sub(most);
                    due.min(most)
                }
            };
            for _ in 0..burst {
                datagram[..NUMBER_LENGTH].copy_from_slice(&number.to_le_bytes());
                send_one(socket, &datagram).with_context(|| format!("to {}", self.address))?;
                number += 1;
            }
            if self.rate.is_some() {
                std::thread::sleep(next_tick(elapsed).saturating_sub(start.elapsed()));
            }
        }
    }
}

/// Datagrams due `elapsed` after the start, the first at once.
fn due(rate: u32, elapsed: Duration) -> u64 {
    due_in(rate, elapsed) + 1
}

fn due_in(rate: u32, time: Duration) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX)
}

/// The first tick after `elapsed`.
fn next_tick(elapsed: Duration) -> Duration {
    let ticks = elapsed.as_nanos() / TICK.as_nanos() + 1;
    TICK * u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// A full queue on the way out loses the datagram, as one further on would.
fn send_one(socket: &UdpSocket, datagram: &[u8]) -> std::io::Result<()> {
    match socket.send(datagram) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(()),
        result => result.map(drop),
    }
}

fn receive(socket: &UdpSocket, done: &AtomicBool) -> Result<Delivery> {
    let mut delivery = Delivery::default();
    let mut arrivals: Option<(Instant, Instant)> = None;
    let mut highest = None;
    let mut datagram = [0; 1 << 16];
    loop {
        // Before the wait: silence counts only if the sender was done when it began.
        let sender_done = done.load(Ordering::Acquire);
        match socket.recv(&mut datagram) {
            Ok(length) => {
                let Some(number) = datagram[..length].first_chunk() else {
                    continue;
                };
                let (number, now) = (u64::from_le_bytes(*number), Instant::now());
                arrivals = Some((arrivals.map_or(now, |(first, _)| first), now));
                delivery.received += 1;
                delivery.reordered += u64::from(highest.is_some_and(|highest| number < highest));
                delivery.repeated += u64::from(highest == Some(number));
                highest = highest.max(Some(number));
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                fail_if_interrupted()?;
                if sender_done {
                    break;
                }
            }
            // With a timeout set, a process that was frozen and thawed is told so.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    delivery.receiving = arrivals.map_or(Duration::ZERO, |(first, last)| last - first);
    Ok(delivery)
}

/// A socket on a free port of `address` whose reads give up after [`SILENCE`].
pub(crate) fn receiver(namespace: &Namespace, address: IpAddr) -> Result<UdpSocket> {
    let socket = namespace.enter(|| UdpSocket::bind(SocketAddr::new(address, 0)))??;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    socket.set_read_timeout(Some(SILENCE))?;
    Ok(socket)
}

/// Any address of the family, any port.
pub(crate) fn any(like: IpAddr) -> SocketAddr {
    match like {
        IpAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_over_any_time() {
        assert_eq!(due(30_000, Duration::ZERO), 1);
        assert_eq!(due(30_000, Duration::from_secs(2)), 60_001);
        assert_eq!(due(3, Duration::from_millis(999)), 3);
        assert_eq!(next_tick(Duration::ZERO), TICK);
        assert_eq!(next_tick(Duration::from_micros(1001)), 2 * TICK);
        assert_eq!(next_tick(Duration::from_millis(2)), 3 * TICK);
    }

    #[test]
    fn nothing_received_is_no_rate() {
        let nothing = Delivery {
            sent: 3,
            ..Delivery::default()
        };
        assert_eq!(nothing.lost(), 3);
        assert!(nothing.received_per_second().abs() < f64::EPSILON);
    }

    #[test]
    fn over_loopback_everything_arrives() -> Result<()> {
        let namespace = Namespace::new()?;
        let flow = Flow {
            from: &namespace,
            to: &namespace,
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            size: 100,
            rate: Some(5_000),
            duration: Duration::from_millis(300),
        };
        let paced = flow.run()?;
        assert!(paced.sent > 0 && paced.lost() == 0 && paced.reordered == 0);
        assert!(paced.sent <= 1_600, "{paced:?}");
        let unpaced = Flow { rate: None, ..flow }.run()?;
        assert!(unpaced.received > 0 && unpaced.received <= unpaced.sent);
        Ok(())
    }
}
