//! Many WireGuard peers in one thread that do nothing but ask for handshakes: how many a second does a daemon answer?
//!
//! Each peer has a key and a source address of its own, so that neither the limit per peer (50 initiations a second) nor
//! the one per source under load (20 a second) bounds what is measured; cookies are taken and used. A fixed number of
//! initiations is under way at any time. The first response to each peer is verified by the protocol's own code, later
//! ones are known by the random index they carry: verifying all of them would cost this side as much processor time as
//! answering costs the other.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit_protocol::message::{CookieReply, Initiation, MessageType, Response};
use adit_protocol::{Device, Endpoint, Now, Output, PeerId, PrivateKey, PublicKey};
use anyhow::{Context as _, Result, anyhow};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg, setsockopt, sockopt};

use crate::Namespace;
use crate::command::fail_if_interrupted;

/// The sources: 198.18.0.0/15 is for benchmarks (RFC 2544).
pub const SOURCES: &str = "198.18.0.0/16";

/// Initiations under way, below the backlog of 512 that other implementations take for an attack.
const WINDOW: usize = 64;

/// An initiation without an answer for so long is given up.
const PATIENCE: Duration = Duration::from_millis(500);

/// A peer's initiations are at least so far apart, as 50 a second are accepted.
const INTERVAL: Duration = Duration::from_millis(25);

/// Persistent keepalive interval of the peers in seconds; any will do.
const KEEPALIVE: u16 = 25;

/// What came of asking for handshakes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answers {
    /// Responses.
    pub responses: u64,
    /// Of these, verified in full.
    pub verified: u64,
    /// Cookie replies.
    pub cookies: u64,
    /// Initiations without an answer.
    pub unanswered: u64,
    /// How long it was asked for them.
    pub elapsed: Duration,
}

/// Peers of one daemon.
#[derive(Debug)]
pub struct Initiators {
    socket: UdpSocket,
    responder: SocketAddrV4,
    peers: Vec<Initiating>,
    /// Peers without an initiation under way, the one that waits longest first.
    idle: VecDeque<usize>,
    /// Initiations under way by sender index.
    waiting: HashMap<u32, usize>,
    /// The same by age.
    sent: VecDeque<(Instant, u32)>,
    clock: Instant,
}

#[derive(Debug)]
struct Initiating {
    device: Device,
    daemon: PeerId,
    source: Ipv4Addr,
    last: Option<Instant>,
    verified: bool,
}

impl Initiators {
    /// Makes `count` peers (at most 65,024) in a namespace that will talk to the daemon with this key and address.
    /// The daemon's host needs a route to [`SOURCES`] that leads here.
    ///
    /// # Errors
    /// No randomness, no socket, or `ip` failed.
    pub fn new(
        namespace: &Namespace,
        daemon: [u8; 32],
        address: SocketAddrV4,
        count: u16,
    ) -> Result<Self> {
        // Every address in there is ours, without naming each.
        namespace.ip(&format!("route add local {SOURCES} dev lo"))?;
        let socket =
            namespace.enter(|| UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)))??;
        setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20))?;
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        let peers = (0..count)
            .map(|number| Initiating::new(PublicKey::from_bytes(daemon), address, number))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            socket,
            responder: address,
            idle: (0..peers.len()).collect(),
            peers,
            waiting: HashMap::new(),
            sent: VecDeque::new(),
            clock: Instant::now(),
        })
    }

    /// The peers' public keys in base64.
    pub fn public_keys(&self) -> impl Iterator<Item = String> {
        let keys = self.peers.iter().map(|peer| peer.device.public_key());
        keys.flatten().map(|key| key.to_base64())
    }

    /// An initiation of each peer, as it would send it now, to be sent by somebody else.
    ///
    /// # Errors
    /// The wall clock is before 1970.
    pub fn initiations(&mut self) -> Result<Vec<Vec<u8>>> {
        let now = self.now()?;
        let message = |peer: &mut Initiating| Ok(peer.initiation(now)?.into_vec());
        self.peers.iter_mut().map(message).collect()
    }

    /// Asks for handshakes as fast as they are answered.
    ///
    /// # Errors
    /// The socket failed, or the program was interrupted.
    pub fn ask(&mut self, duration: Duration) -> Result<Answers> {
        let mut answers = Answers::default();
        let start = Instant::now();
        while start.elapsed() < duration {
            fail_if_interrupted()?;
            self.give_up(&mut answers);
            self.fill()?;
            self.receive(&mut answers)?;
        }
        answers.elapsed = start.elapsed();
        Ok(answers)
    }

    /// Asks until each peer had its first response, or for `limit` at most, and returns how many had.
    ///
    /// # Errors
    /// As [`Initiators::ask`].
    pub fn introduce(&mut self, limit: Duration) -> Result<usize> {
        let start = Instant::now();
        let introduced = |peers: &[Initiating]| peers.iter().filter(|peer| peer.verified).count();
        while start.elapsed() < limit && introduced(&self.peers) < self.peers.len() {
            self.ask(Duration::from_millis(100))?;
        }
        Ok(introduced(&self.peers))
    }

    fn give_up(&mut self, answers: &mut Answers) {
        while let Some(&(sent, index)) = self.sent.front() {
            // Answered ones may lie in front of older ones that wait.
            match self.waiting.get(&index) {
                Some(_) if sent.elapsed() < PATIENCE => return,
                Some(&peer) => {
                    answers.unanswered += 1;
                    self.waiting.remove(&index);
                    self.idle.push_back(peer);
                }
                None => {}
            }
            self.sent.pop_front();
        }
    }

    fn fill(&mut self) -> Result<()> {
        while self.waiting.len() < WINDOW {
            let Some(&peer) = self.idle.front() else {
                return Ok(());
            };
            let rested = self.peers[peer]
                .last
                .is_none_or(|last| last.elapsed() >= INTERVAL);
            if !rested {
                return Ok(());
            }
            self.idle.pop_front();
            self.initiate(peer)?;
        }
        Ok(())
    }

    fn initiate(&mut self, number: usize) -> Result<()> {
        let now = self.now()?;
        let peer = &mut self.peers[number];
        let message = peer.initiation(now)?;
        let index = Initiation::parse(&message)
            .context("the first message is no initiation")?
            .sender_index();
        send_from(&self.socket, peer.source, self.responder, &message)?;
        peer.last = Some(Instant::now());
        self.waiting.insert(index, number);
        self.sent.push_back((Instant::now(), index));
        Ok(())
    }

    /// Waits a moment for one datagram.
    fn receive(&mut self, answers: &mut Answers) -> Result<()> {
        let mut datagram = [0; 256];
        let length = match self.socket.recv(&mut datagram) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            // The kernel of the daemon's host answers while the daemon does not listen.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let datagram = &mut datagram[..length];
        let index = match MessageType::of(datagram) {
            Ok(MessageType::Response) => Response::parse(datagram).map(|m| m.receiver_index()),
            Ok(MessageType::CookieReply) => {
                CookieReply::parse(datagram).map(|m| m.receiver_index())
            }
            _ => None,
        };
        let Some(number) = index.and_then(|index| self.waiting.remove(&index)) else {
            return Ok(());
        };
        let now = self.now()?;
        let peer = &mut self.peers[number];
        if matches!(MessageType::of(datagram), Ok(MessageType::CookieReply)) {
            peer.take(now, self.responder, datagram);
            answers.cookies += 1;
            // With the cookie in hand there is no reason to wait.
            return self.initiate(number);
        }
        if !peer.verified && peer.take(now, self.responder, datagram) {
            peer.verified = true;
            answers.verified += 1;
        }
        answers.responses += u64::from(peer.verified);
        self.idle.push_back(number);
        Ok(())
    }

    fn now(&self) -> Result<Now> {
        let nanos = u64::try_from(self.clock.elapsed().as_nanos())?;
        Ok(Now {
            instant: adit_protocol::Instant::from_nanos(nanos),
            unix: SystemTime::now().duration_since(UNIX_EPOCH)?,
        })
    }
}

impl Initiating {
    fn new(daemon: PublicKey, address: SocketAddrV4, number: u16) -> Result<Self> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|e| anyhow!("getrandom: {e}"))?;
        let rng = Box::new(rand_core::UnwrapErr(getrandom::SysRng));
        let mut device = Device::new(rng);
        device.set_private_key(Some(PrivateKey::from_bytes(secret)));
        let daemon = device.add_peer(daemon)?;
        device.set_endpoint(daemon, SocketAddr::V4(address));
        // Due at every start of the device, which makes a handshake of it.
        device.set_keepalive(daemon, KEEPALIVE);
        let [high, low] = (number + 256).to_be_bytes();
        Ok(Self {
            device,
            daemon,
            source: Ipv4Addr::new(198, 18, high, low),
            last: None,
            verified: false,
        })
    }

    /// A first message, made as after a start: no session, but the cookie and the last timestamp are remembered.
    fn initiation(&mut self, now: Now) -> Result<Box<[u8]>> {
        self.device.down();
        self.device.up();
        self.device.handle_timeout(now);
        let mut message = None;
        while let Some(output) = self.device.poll_output() {
            if let Output::Transmit { payload, .. } = output {
                message = Some(payload);
            }
        }
        message.context("the device sends no initiation")
    }

    /// Takes an answer; is there a session?
    fn take(&mut self, now: Now, from: SocketAddrV4, datagram: &mut [u8]) -> bool {
        let from = Endpoint::new(SocketAddr::V4(from));
        self.device.handle_datagram(now, from, datagram);
        while self.device.poll_output().is_some() {}
        let link = self.device.link(self.daemon);
        link.is_some_and(|link| link.current().is_some())
    }
}

/// Sends from one of our many addresses.
fn send_from(socket: &UdpSocket, source: Ipv4Addr, to: SocketAddrV4, payload: &[u8]) -> Result<()> {
    let information = nix::libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: nix::libc::in_addr {
            s_addr: u32::from(source).to_be(),
        },
        ipi_addr: nix::libc::in_addr { s_addr: 0 },
    };
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(payload)],
        &[ControlMessage::Ipv4PacketInfo(&information)],
        MsgFlags::empty(),
        Some(&SockaddrIn::from(to)),
    )
    .with_context(|| format!("sending from {source} to {to}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn secret(byte: u8) -> PrivateKey {
        PrivateKey::from_bytes([byte; 32])
    }

    /// Answers as a daemon would, until told to stop.
    fn respond(socket: &UdpSocket, mut device: Device, stop: &AtomicBool, under_load: bool) {
        let clock = Instant::now();
        let mut datagram = [0; 256];
        while !stop.load(Ordering::Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut datagram) else {
                continue;
            };
            let nanos = u64::try_from(clock.elapsed().as_nanos()).unwrap();
            let now = Now {
                instant: adit_protocol::Instant::from_nanos(nanos),
                unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap(),
            };
            if under_load {
                device.note_backlog(now.instant, 1 << 20);
            }
            device.handle_datagram(now, Endpoint::new(from), &mut datagram[..length]);
            while let Some(output) = device.poll_output() {
                if let Output::Transmit { to, payload, .. } = output {
                    socket.send_to(&payload, to.address).unwrap();
                }
            }
        }
    }

    fn handshakes(under_load: bool) -> Result<Answers> {
        let namespace = Namespace::new()?;
        let socket = namespace.enter(|| UdpSocket::bind("127.0.0.1:0"))??;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let SocketAddr::V4(address) = socket.local_addr()? else {
            anyhow::bail!("not IPv4");
        };
        let mut device = Device::new(Box::new(rand_core::UnwrapErr(getrandom::SysRng)));
        device.set_private_key(Some(secret(7)));
        device.up();
        let key = *secret(7).public_key().as_bytes();
        let mut initiators = Initiators::new(&namespace, key, address, 50)?;
        for peer in &initiators.peers {
            device.add_peer(peer.device.public_key().context("no key")?)?;
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| respond(&socket, device, &stop, under_load));
            let introduced = initiators.introduce(Duration::from_secs(20));
            let answers = initiators.ask(Duration::from_millis(300));
            stop.store(true, Ordering::Relaxed);
            anyhow::ensure!(introduced? == 50, "not all were answered");
            answers
        })
    }

    #[test]
    fn every_peer_is_answered_again_and_again() -> Result<()> {
        let answers = handshakes(false)?;
        assert!(answers.responses > 0 && answers.cookies == 0, "{answers:?}");
        Ok(())
    }

    #[test]
    fn cookies_are_used() -> Result<()> {
        let answers = handshakes(true)?;
        assert!(answers.responses > 0, "{answers:?}");
        Ok(())
    }
}
