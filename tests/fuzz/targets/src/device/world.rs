//! Devices, a wire that only moves datagrams when told to, a clock, and what must hold at every moment.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use adit_protocol::message::DataHeader;
use adit_protocol::{
    Device, Endpoint, Event, InnerPacket, Instant, Limits, Now, Output, PeerId, Prefix, PrivateKey,
    PublicKey, STAGED_PACKETS, Session,
};
use rand_core::{TryCryptoRng, TryRng};

/// Devices: two that talk, and a third that both know.
pub(super) const NODES: usize = 3;
/// Datagrams on their way, and old ones an attacker remembers.
const WIRE: usize = 128;
/// Looks at due peers that may follow each other at one moment.
const LOOKS: usize = 40;
const UPTIME: u64 = 86_400_000_000_000;

/// SplitMix64, whose 32-bit numbers never repeat: indices of sessions come from them.
struct Random {
    state: u64,
    number: u32,
    node: u32,
}

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.number += 1;
        Ok((self.number * NODES as u32 + self.node).wrapping_mul(0x9e37_79b1))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
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

impl TryCryptoRng for Random {}

/// A datagram and the addresses on it.
#[derive(Clone, Debug)]
pub(super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// What was configured, to compare the device with.
pub(super) type Peers = BTreeMap<PublicKey, BTreeSet<Prefix>>;

/// One device and what is known about it.
pub(super) struct Node {
    pub(super) device: Device,
    pub(super) address: SocketAddr,
    pub(super) peers: Peers,
    /// Receiver indices announced and not withdrawn.
    live: BTreeSet<u32>,
    /// Bytes sent to each peer.
    sent: BTreeMap<PeerId, u64>,
    /// Receiver index and counter of all data ever sent.
    counters: HashSet<(u32, u64)>,
    /// Numbers of the honest packets that arrived.
    pub(super) arrived: BTreeSet<u64>,
}

/// All there is.
pub(super) struct World {
    pub(super) nodes: Vec<Node>,
    pub(super) wire: VecDeque<Datagram>,
    pub(super) remembered: Vec<Datagram>,
    /// Honest packets by number, with the receiving node.
    pub(super) honest: BTreeMap<u64, (usize, Vec<u8>)>,
    /// Packets sealed by a peer that does as it likes.
    pub(super) forged: HashSet<Vec<u8>>,
    now: u64,
    /// Unix time in nanoseconds, which may be set.
    pub(super) wall: u64,
}

/// Private keys that nodes may have; each begins with the one of its number.
pub(super) fn key(number: usize) -> PrivateKey {
    PrivateKey::from_bytes([number as u8 + 1; 32])
}

/// Its public key.
pub(super) fn public(number: usize) -> PublicKey {
    static KEYS: OnceLock<[PublicKey; NODES + 1]> = OnceLock::new();
    KEYS.get_or_init(|| std::array::from_fn(|number| key(number).public_key()))[number]
}

pub(super) fn inner(node: usize) -> [u8; 4] {
    [10, 0, 0, node as u8 + 1]
}

pub(super) fn host_prefix(node: usize) -> Prefix {
    Prefix::new(IpAddr::from(inner(node)), 32).unwrap()
}

impl World {
    pub(super) fn new(seed: u64, limits: Limits) -> Self {
        let nodes = (0..NODES).map(|number| {
            let random = Random {
                state: seed.wrapping_add(number as u64),
                number: 0,
                node: number as u32,
            };
            let mut device = Device::with_limits(Box::new(random), limits);
            device.set_private_key(Some(key(number)));
            device.up();
            Node {
                device,
                address: SocketAddr::from(([192, 0, 2, number as u8 + 1], 51820)),
                peers: Peers::new(),
                live: BTreeSet::new(),
                sent: BTreeMap::new(),
                counters: HashSet::new(),
                arrived: BTreeSet::new(),
            }
        });
        let mut world = Self {
            nodes: nodes.collect(),
            wire: VecDeque::new(),
            remembered: Vec::new(),
            honest: BTreeMap::new(),
            forged: HashSet::new(),
            now: UPTIME,
            wall: 1_700_000_000_000_000_000,
        };
        for here in 0..NODES {
            for there in (0..NODES).filter(|there| *there != here) {
                world.connect(here, there);
            }
        }
        world
    }

    /// Makes `there` a peer of `here`, with its address and prefix.
    pub(super) fn connect(&mut self, here: usize, there: usize) {
        let address = self.nodes[there].address;
        if let Some(peer) = self.add_peer(here, there) {
            self.nodes[here].device.set_endpoint(peer, address);
            self.add_prefix(here, peer, host_prefix(there));
        }
    }

    pub(super) fn add_peer(&mut self, here: usize, number: usize) -> Option<PeerId> {
        let node = &mut self.nodes[here];
        let public = public(number);
        let added = node.device.add_peer(public).ok();
        assert_eq!(added.is_none(), node.device.public_key() == Some(public));
        if added.is_some() {
            node.peers.entry(public).or_default();
        }
        added
    }

    pub(super) fn remove_peer(&mut self, here: usize, peer: PeerId) {
        let node = &mut self.nodes[here];
        let public = *node.device.link(peer).unwrap().public_key();
        assert!(node.device.remove_peer(peer));
        node.peers.remove(&public);
        node.sent.remove(&peer);
    }

    pub(super) fn add_prefix(&mut self, here: usize, peer: PeerId, prefix: Prefix) {
        let node = &mut self.nodes[here];
        let public = *node.device.link(peer).unwrap().public_key();
        for prefixes in node.peers.values_mut() {
            prefixes.remove(&prefix);
        }
        node.peers.entry(public).or_default().insert(prefix);
        node.device.add_allowed_ip(peer, prefix);
    }

    pub(super) fn set_key(&mut self, here: usize, number: Option<usize>) {
        let node = &mut self.nodes[here];
        if let Some(number) = number {
            let public = public(number);
            if let Some(peer) = node.device.peer_by_key(&public) {
                node.sent.remove(&peer);
            }
            node.peers.remove(&public);
        }
        node.device.set_private_key(number.map(key));
    }

    pub(super) fn now(&self) -> Now {
        Now {
            instant: Instant::from_nanos(self.now),
            unix: Duration::from_nanos(self.wall),
        }
    }

    /// What `here` calls the peer with key `number`.
    pub(super) fn peer(&self, here: usize, number: usize) -> Option<PeerId> {
        self.nodes[here].device.peer_by_key(&public(number))
    }

    /// The session that `here` sends on to the peer with key `number`.
    pub(super) fn session(
        &self,
        here: usize,
        number: usize,
    ) -> Option<Arc<Session<adit_protocol::PortableKey>>> {
        let link = self.nodes[here].device.link(self.peer(here, number)?)?;
        link.current().as_ref().cloned()
    }

    /// Sends a packet that carries its number.
    pub(super) fn send(&mut self, from: usize, to: usize, length: usize) -> u64 {
        let number = (self.honest.len() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut packet = vec![0x5a; length.max(28)];
        let total = packet.len() as u16;
        packet[..4].copy_from_slice(&[0x45, 0, 0, 0]);
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[12..16].copy_from_slice(&inner(from));
        packet[16..20].copy_from_slice(&inner(to));
        packet[20..28].copy_from_slice(&number.to_be_bytes());
        self.honest.insert(number, (to, packet.clone()));
        let now = self.now();
        // An error says that there is no way there, which the script may have seen to.
        let _ = self.nodes[from].device.send_packet(now, &packet);
        self.drain(from);
        number
    }

    /// Hands a datagram to whoever has the address.
    pub(super) fn deliver(&mut self, datagram: &Datagram) {
        let Some(to) = self
            .nodes
            .iter()
            .position(|node| node.address == datagram.to)
        else {
            return;
        };
        let now = self.now();
        let mut bytes = datagram.bytes.clone();
        let from = Endpoint::new(datagram.from);
        self.nodes[to].device.handle_datagram(now, from, &mut bytes);
        self.drain(to);
    }

    /// Lets time pass, timers included, but nothing arrive.
    pub(super) fn pass(&mut self, nanos: u64) {
        self.now = self.now.saturating_add(nanos);
        self.wall = self.wall.saturating_add(nanos);
        for node in 0..NODES {
            self.timers(node);
        }
    }

    /// Nanoseconds until a device has something to do.
    pub(super) fn next_timeout(&self) -> Option<u64> {
        let timeouts = self
            .nodes
            .iter()
            .filter_map(|node| node.device.poll_timeout());
        timeouts
            .min()
            .map(|at| at.as_nanos().saturating_sub(self.now))
    }

    fn timers(&mut self, number: usize) {
        let now = self.now();
        for look in 0.. {
            let timeout = self.nodes[number].device.poll_timeout();
            if timeout.is_none_or(|at| at > now.instant) {
                return;
            }
            assert!(look < LOOKS, "node {number} is due again and again");
            self.nodes[number].device.handle_timeout(now);
            self.drain(number);
        }
    }

    /// Carries out what a device wants, and checks it.
    pub(super) fn drain(&mut self, number: usize) {
        let now = self.now();
        let mut outputs = 0;
        while let Some(output) = self.nodes[number].device.poll_output() {
            outputs += 1;
            assert!(
                outputs < 4 * STAGED_PACKETS,
                "node {number} goes on for ever"
            );
            let node = &mut self.nodes[number];
            match output {
                Output::Transmit { to, peer, payload } => {
                    assert!(node.device.is_up(), "sends while it is down");
                    if let Some(header) = DataHeader::parse(&payload) {
                        let fresh = node
                            .counters
                            .insert((header.receiver_index, header.counter));
                        assert!(fresh, "a counter is used twice");
                    }
                    if let Some(peer) = peer {
                        *node.sent.entry(peer).or_default() += payload.len() as u64;
                    }
                    let datagram = Datagram {
                        from: node.address,
                        to: to.address,
                        bytes: payload.into(),
                    };
                    if self.wire.len() == WIRE {
                        self.wire.pop_front();
                    }
                    self.wire.push_back(datagram);
                }
                Output::SessionAdded { session } => {
                    assert!(node.live.insert(session.receiver_index()));
                }
                Output::SessionRemoved { receiver_index } => {
                    assert!(node.live.remove(&receiver_index));
                }
                Output::FlushStaged { peer } => node.device.flush_staged(now, peer),
                Output::Packet { peer, payload } => self.arrive(number, peer, &payload),
                Output::Event(Event::SelfPeerRemoved { public_key }) => {
                    assert_eq!(node.device.public_key(), Some(public_key));
                }
                Output::Event(event) => assert!(!event.to_string().is_empty()),
            }
        }
        self.check(number);
    }

    /// A packet came out: its peer must own the source, and it must be one that was sent, once.
    fn arrive(&mut self, number: usize, peer: PeerId, packet: &[u8]) {
        let node = &mut self.nodes[number];
        let inner = InnerPacket::parse(packet).unwrap();
        assert_eq!(inner.length, packet.len());
        let owner = node
            .peers
            .iter()
            .flat_map(|(key, prefixes)| prefixes.iter().map(move |prefix| (prefix, key)))
            .filter(|(prefix, _)| prefix.contains(inner.source))
            .max_by_key(|(prefix, _)| prefix.length())
            .map(|(_, key)| *key);
        let sender = node.device.link(peer).map(|link| *link.public_key());
        assert_eq!(sender, owner, "a source that the peer does not own");
        if self.forged.contains(packet) {
            return;
        }
        let id = u64::from_be_bytes(packet[20..28].try_into().unwrap());
        let (_, sent) = self.honest.get(&id).expect("nobody sent this");
        assert_eq!(sent, packet);
        assert!(node.arrived.insert(id), "delivered twice");
    }

    /// What holds at every moment.
    fn check(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let peers = node.device.peer_count();
        // Previous, current and next of each.
        assert!(node.live.len() <= 3 * peers, "{} sessions", node.live.len());
        let table = node.device.sessions();
        assert!(node.live.iter().all(|index| table.get(*index).is_some()));
        if !node.device.is_up() {
            assert!(node.live.is_empty() && node.device.poll_timeout().is_none());
        }
        let mut seen = 0;
        for info in node.device.peers() {
            seen += 1;
            let prefixes = node
                .peers
                .get(&info.public_key)
                .expect("a peer nobody made");
            assert!(info.allowed_ips.iter().eq(prefixes));
            assert!(info.staged <= STAGED_PACKETS);
            let sent = node.sent.get(&info.id).copied().unwrap_or_default();
            assert_eq!(info.tx_bytes, sent, "bytes counted and sent");
        }
        assert_eq!((seen, peers), (node.peers.len(), node.peers.len()));
    }
}

impl World {
    /// The attacker keeps a copy.
    pub(super) fn remember(&mut self, datagram: &Datagram) {
        if self.remembered.len() == WIRE {
            self.remembered.remove(0);
        }
        self.remembered.push(datagram.clone());
    }

    /// Whoever gets this packet, without its padding, need not wonder.
    pub(super) fn forge_of(&mut self, plaintext: &[u8]) {
        if let Ok(inner) = InnerPacket::parse(plaintext) {
            self.forged.insert(plaintext[..inner.length].to_vec());
        }
    }
}
