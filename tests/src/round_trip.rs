//! Round-trip times of single UDP datagrams, to the microsecond: ping(8) sleeps and prints too coarsely for a tunnel
//! that takes 100 µs.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use crate::Namespace;
use crate::command::fail_if_interrupted;
use crate::udp_flow::{any, receiver};

/// Payload bytes of a probe.
const SIZE: usize = 64;

/// From an answer to the next probe: everybody on the way has gone to sleep again, if it is idle.
const GAP: Duration = Duration::from_millis(1);

/// An answer that takes longer is lost.
const LIMIT: Duration = Duration::from_secs(1);

/// Round-trip times, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoundTrips {
    times: Vec<Duration>,
    /// Probes that were not answered within a second.
    pub lost: u64,
}

impl RoundTrips {
    /// The time that `percent` of the answers did not exceed.
    ///
    /// # Errors
    /// There was no answer.
    pub fn percentile(&self, percent: u32) -> Result<Duration> {
        let rank = (self.times.len() * percent as usize).div_ceil(100);
        let time = self.times.get(rank.saturating_sub(1));
        time.copied().context("no probe was answered")
    }

    /// Number of answers.
    #[must_use]
    pub fn answers(&self) -> usize {
        self.times.len()
    }
}

/// Sends probes from one namespace to an address in another, one at a time, for `duration`.
///
/// # Errors
/// No socket, no route, or the program was interrupted.
pub fn round_trips(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    duration: Duration,
) -> Result<RoundTrips> {
    let echo = receiver(to, address)?;
    echo.set_read_timeout(Some(Duration::from_millis(50)))?;
    let prober = from.enter(|| UdpSocket::bind(any(address)))??;
    prober.connect(echo.local_addr()?)?;
    prober.set_read_timeout(Some(LIMIT))?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| answer(&echo, &done));
        let probed = probe(&prober, duration);
        done.store(true, Ordering::Relaxed);
        answering.join().map_err(|_| anyhow!("echo panicked"))??;
        probed.with_context(|| format!("probing {address}"))
    })
}

fn answer(socket: &UdpSocket, done: &AtomicBool) -> Result<()> {
    let mut datagram = [0; SIZE];
    while !done.load(Ordering::Relaxed) {
        match socket.recv_from(&mut datagram) {
            Ok((length, from)) => {
                socket.send_to(&datagram[..length], from)?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn probe(socket: &UdpSocket, duration: Duration) -> Result<RoundTrips> {
    nix::sys::prctl::set_timerslack(1)?;
    let mut result = RoundTrips::default();
    let mut datagram = [0; SIZE];
    let start = Instant::now();
    for number in 0_u64.. {
        fail_if_interrupted()?;
        if start.elapsed() >= duration {
            break;
        }
        datagram[..8].copy_from_slice(&number.to_le_bytes());
        let sent = Instant::now();
        socket.send(&datagram)?;
        match await_answer(socket, number) {
            Ok(()) => result.times.push(sent.elapsed()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => result.lost += 1,
            Err(error) => return Err(error.into()),
        }
        std::thread::sleep(GAP);
    }
    result.times.sort_unstable();
    Ok(result)
}

/// Reads past late answers to earlier probes.
fn await_answer(socket: &UdpSocket, number: u64) -> std::io::Result<()> {
    let mut answer = [0; SIZE];
    loop {
        socket.recv(&mut answer)?;
        if answer[..8] == number.to_le_bytes() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let times = (1..=100).map(Duration::from_micros).collect();
        let result = RoundTrips { times, lost: 0 };
        for percent in [1, 50, 99, 100] {
            assert_eq!(
                result.percentile(percent).unwrap(),
                Duration::from_micros(percent.into())
            );
        }
        let one = RoundTrips {
            times: vec![Duration::from_micros(7)],
            lost: 0,
        };
        assert_eq!(one.percentile(50).unwrap(), Duration::from_micros(7));
        assert!(RoundTrips::default().percentile(50).is_err());
    }

    #[test]
    fn loopback_answers_every_probe() -> Result<()> {
        let namespace = Namespace::new()?;
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        let result = round_trips(&namespace, &namespace, address, Duration::from_millis(100))?;
        assert!(result.answers() > 0 && result.lost == 0);
        assert!(result.percentile(50)? <= result.percentile(99)?);
        Ok(())
    }
}
