//! The test bench: devices on a simulated network with its own clock.
//!
//! Time passes only from event to event, so an hour takes milliseconds. Latency, reordering, loss
//! and duplication come from a seeded generator: a failure repeats.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Weak;
use std::time::Duration;

use adit_protocol::message::{DataHeader, MessageType};
use adit_protocol::{
    Device, Endpoint, Event, Instant, Limits, Now, Output, PeerId, Prefix, PrivateKey, Session,
};
use rand_core::{Rng as _, TryCryptoRng, TryRng};

/// SplitMix64. Not secure, which a simulation does not need.
#[derive(Clone)]
pub(crate) struct SeededRng(pub(crate) u64);

impl TryRng for SeededRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64()
            .map(|word| u32::try_from(word >> 32).expect("32 bits are left"))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Ok(word ^ (word >> 31))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            let word = self.try_next_u64()?.to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for SeededRng {}

impl SeededRng {
    /// True `percent` times in a hundred.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.next_u64() % 100 < percent
    }
}

/// How bad the network is.
#[derive(Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) latency: Duration,
    /// Up to this much more, drawn per datagram: reorders when larger than the sending interval.
    pub(crate) jitter: Duration,
    pub(crate) loss_percent: u64,
    pub(crate) duplication_percent: u64,
}

pub(crate) const CALM: Weather = Weather {
    latency: Duration::from_millis(20),
    jitter: Duration::ZERO,
    loss_percent: 0,
    duplication_percent: 0,
};

/// A datagram as it left a device.
#[derive(Clone)]
pub(crate) struct Sent {
    pub(crate) at: Duration,
    pub(crate) from: SocketAddr,
    pub(crate) to: Endpoint,
    pub(crate) payload: Vec<u8>,
}

impl Sent {
    pub(crate) fn kind(&self) -> MessageType {
        MessageType::of(&self.payload).expect("a device sends well-formed messages")
    }

    pub(crate) fn is_keepalive(&self) -> bool {
        self.kind() == MessageType::Data && self.payload.len() == 32
    }

    pub(crate) fn header(&self) -> DataHeader {
        DataHeader::parse(&self.payload).expect("a data message")
    }
}

/// A device with its address and everything it ever did.
pub(crate) struct Node {
    pub(crate) device: Device,
    pub(crate) address: SocketAddr,
    pub(crate) inner: [u8; 4],
    pub(crate) sent: Vec<Sent>,
    /// Inner packets that arrived.
    pub(crate) received: Vec<Vec<u8>>,
    pub(crate) events: Vec<(Duration, Event)>,
    /// Receiver indices announced and not yet removed.
    pub(crate) live: Vec<u32>,
    /// All sessions there ever were.
    pub(crate) sessions: Vec<Weak<Session<adit_protocol::PortableKey>>>,
}

impl Node {
    pub(crate) fn sent_of(&self, kind: MessageType) -> Vec<&Sent> {
        self.sent
            .iter()
            .filter(|sent| sent.kind() == kind)
            .collect()
    }

    pub(crate) fn keepalives(&self) -> Vec<&Sent> {
        self.sent
            .iter()
            .filter(|sent| sent.is_keepalive())
            .collect()
    }

    pub(crate) fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.events
            .iter()
            .filter(|(_, event)| wanted(event))
            .count()
    }

    pub(crate) fn completed(&self) -> usize {
        self.count(|event| matches!(event, Event::HandshakeCompleted { .. }))
    }

    pub(crate) fn live_keys(&self) -> usize {
        self.sessions
            .iter()
            .filter(|session| session.strong_count() > 0)
            .count()
    }
}

/// Says which datagrams get through.
type Filter = Box<dyn FnMut(&Sent) -> bool>;

/// Devices, the wires between them, and the time.
pub(crate) struct Net {
    /// Since the start of the simulation.
    pub(crate) time: Duration,
    pub(crate) nodes: Vec<Node>,
    pub(crate) weather: Weather,
    pub(crate) rng: SeededRng,
    /// On the way, by arrival: to, from, datagram.
    flying: BTreeMap<(Duration, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sequence: u64,
    /// Datagrams this refuses are lost.
    pub(crate) filter: Option<Filter>,
}

/// The clock's origin lies a day before the simulation begins, as after some uptime.
const UPTIME: Duration = Duration::from_secs(86_400);
const UNIX: Duration = Duration::from_secs(1_700_000_000);

impl Net {
    /// `count` devices with keys, all down and without peers.
    pub(crate) fn new(seed: u64, count: u8, limits: Limits) -> Self {
        let nodes = (0..count)
            .map(|number| {
                let rng = Box::new(SeededRng(seed.wrapping_mul(1000) + u64::from(number)));
                let mut device = Device::with_limits(rng, limits);
                device.set_private_key(Some(PrivateKey::from_bytes([number + 1; 32])));
                Node {
                    device,
                    address: SocketAddr::from(([192, 0, 2, number + 1], 51820)),
                    inner: [10, 0, 0, number + 1],
                    sent: Vec::new(),
                    received: Vec::new(),
                    events: Vec::new(),
                    live: Vec::new(),
                    sessions: Vec::new(),
                }
            })
            .collect();
        Self {
            time: Duration::ZERO,
            nodes,
            weather: CALM,
            rng: SeededRng(seed),
            flying: BTreeMap::new(),
            sequence: 0,
            filter: None,
        }
    }

    /// Two devices that know each other, up.
    pub(crate) fn pair(seed: u64) -> Self {
        let mut net = Self::new(seed, 2, Limits::default());
        net.connect(0, 1);
        for node in &mut net.nodes {
            node.device.up();
        }
        net
    }

    /// Two devices with a session, a second after its handshake.
    pub(crate) fn connected(seed: u64) -> Self {
        let mut net = Self::pair(seed);
        net.send(0, 1, 100).unwrap();
        net.run(Duration::from_secs(1));
        assert_eq!(net.nodes[1].received.len(), 1);
        net
    }

    /// Makes two devices peers of each other.
    pub(crate) fn connect(&mut self, a: usize, b: usize) {
        for (here, there) in [(a, b), (b, a)] {
            let address = self.nodes[there].address;
            let key = self.nodes[there].device.public_key().unwrap();
            let inner = Prefix::new(self.nodes[there].inner.into(), 32).unwrap();
            let device = &mut self.nodes[here].device;
            let peer = device.add_peer(key).unwrap();
            device.set_endpoint(peer, address);
            device.add_allowed_ip(peer, inner);
        }
    }

    /// What device `here` calls device `there`.
    pub(crate) fn peer(&self, here: usize, there: usize) -> PeerId {
        let key = self.nodes[there].device.public_key().unwrap();
        self.nodes[here].device.peer_by_key(&key).unwrap()
    }

    pub(crate) fn now(&self) -> Now {
        Now {
            instant: Instant::from_nanos(0) + UPTIME + self.time,
            unix: UNIX + self.time,
        }
    }

    pub(crate) fn instant(&self) -> Instant {
        self.now().instant
    }

    /// Sends an IPv4 packet of `length` bytes through the tunnel.
    pub(crate) fn send(
        &mut self,
        from: usize,
        to: usize,
        length: usize,
    ) -> Result<(), adit_protocol::SendError> {
        self.sequence += 1;
        let packet = ipv4(
            self.nodes[from].inner,
            self.nodes[to].inner,
            length,
            self.sequence,
        );
        let now = self.now();
        let result = self.nodes[from].device.send_packet(now, &packet);
        self.drain(from);
        result
    }

    /// Takes all outputs of a device and puts what it sends on the wire.
    pub(crate) fn drain(&mut self, number: usize) {
        let now = self.now();
        while let Some(output) = self.nodes[number].device.poll_output() {
            let node = &mut self.nodes[number];
            match output {
                Output::Transmit { to, payload, .. } => {
                    let sent = Sent {
                        at: self.time,
                        from: node.address,
                        to,
                        payload: payload.into(),
                    };
                    node.sent.push(sent.clone());
                    self.transmit(&sent);
                }
                Output::FlushStaged { peer } => node.device.flush_staged(now, peer),
                Output::Packet { payload, .. } => node.received.push(payload.into()),
                Output::SessionAdded { session } => {
                    assert!(!node.live.contains(&session.receiver_index()));
                    node.live.push(session.receiver_index());
                    node.sessions.push(std::sync::Arc::downgrade(&session));
                }
                Output::SessionRemoved { receiver_index } => {
                    assert!(node.live.contains(&receiver_index));
                    node.live.retain(|&index| index != receiver_index);
                }
                Output::Event(event) => node.events.push((self.time, event)),
            }
        }
    }

    fn transmit(&mut self, sent: &Sent) {
        if let Some(filter) = &mut self.filter
            && !filter(sent)
        {
            return;
        }
        if self.rng.chance(self.weather.loss_percent) {
            return;
        }
        let copies = 1 + u32::from(self.rng.chance(self.weather.duplication_percent));
        for _ in 0..copies {
            let jitter = u64::try_from(self.weather.jitter.as_nanos()).unwrap();
            let jitter = Duration::from_nanos(match jitter {
                0 => 0,
                jitter => self.rng.next_u64() % jitter,
            });
            self.inject(
                sent.from,
                sent.to.address,
                sent.payload.clone(),
                self.weather.latency + jitter,
            );
        }
    }

    /// Puts a datagram on the wire, whoever it claims to be from.
    pub(crate) fn inject(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        payload: Vec<u8>,
        delay: Duration,
    ) {
        self.sequence += 1;
        self.flying
            .insert((self.time + delay, self.sequence), (to, from, payload));
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.time + duration;
        for number in 0..self.nodes.len() {
            self.drain(number);
        }
        loop {
            let arrival = self.flying.first_key_value().map(|(&(at, _), _)| at);
            let timeout = self
                .nodes
                .iter()
                .filter_map(|node| node.device.poll_timeout())
                .min()
                .map(|at| since_start(at).max(self.time));
            let next = match (arrival, timeout) {
                (Some(arrival), Some(timeout)) => arrival.min(timeout),
                (Some(at), None) | (None, Some(at)) => at,
                (None, None) => break,
            };
            if next > end {
                break;
            }
            self.time = next;
            if arrival == Some(next) {
                self.arrive();
            } else {
                self.time_out();
            }
        }
        self.time = end;
    }

    fn arrive(&mut self) {
        let Some((_, (to, from, mut payload))) = self.flying.pop_first() else {
            return;
        };
        let now = self.now();
        // An address nobody has any more swallows what is sent to it.
        let Some(number) = self.nodes.iter().position(|node| node.address == to) else {
            return;
        };
        let device = &mut self.nodes[number].device;
        device.handle_datagram(now, Endpoint::new(from), &mut payload);
        self.drain(number);
    }

    fn time_out(&mut self) {
        let now = self.now();
        for number in 0..self.nodes.len() {
            let device = &mut self.nodes[number].device;
            if device.poll_timeout().is_some_and(|at| at <= now.instant) {
                device.handle_timeout(now);
                // Work for ever at one moment would hang the simulation, and the daemon.
                self.drain(number);
            }
        }
    }
}

fn since_start(at: Instant) -> Duration {
    at.saturating_duration_since(Instant::from_nanos(0) + UPTIME)
}

/// An IPv4 packet that carries its number.
pub(crate) fn ipv4(source: [u8; 4], destination: [u8; 4], length: usize, number: u64) -> Vec<u8> {
    let mut packet = vec![0; length.max(28)];
    packet[0] = 0x45;
    let total = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&destination);
    packet[20..28].copy_from_slice(&number.to_be_bytes());
    packet
}

/// The number in a packet made by [`ipv4`].
pub(crate) fn number_of(packet: &[u8]) -> u64 {
    u64::from_be_bytes(packet[20..28].try_into().unwrap())
}

pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
