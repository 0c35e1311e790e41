//! The device state machine: two devices that talk, a third, an attacker on the wire, and somebody who reconfigures.
//!
//! Whatever happened, in the end the two must be able to talk again.

mod world;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use adit_protocol::message::{DATA_HEADER_LEN, DataHeader, MessageType, TAG_LEN};
use adit_protocol::{Limits, Prefix, PresharedKey, PublicKey, TransportKey as _};
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput as _, Update as _};
use blake2::{Blake2s256, Blake2sMac};

use self::world::{Datagram, NODES, World, host_prefix, public};
use crate::script::{Script, noise};

const STEPS: usize = 120;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLISECOND;
/// Keys to choose from; the last is nobody's.
const KEYS: usize = NODES + 1;

/// The bytes are a seed, the limits, and steps.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let setup = script.byte();
    let limits = if setup & 1 == 0 {
        Limits::default()
    } else {
        Limits {
            rekey_after_messages: 5,
            reject_after_messages: 12,
            ..Limits::default()
        }
    };
    let mut world = World::new((setup >> 1).into(), limits);
    let mut spoilt = false;
    for _ in 0..STEPS {
        if script.is_empty() {
            break;
        }
        match script.choice(16) {
            0 | 1 => {
                let (from, to) = pair(&mut script);
                world.send(from, to, script.below(1420));
            }
            // More likely than anything else, or nothing ever gets anywhere.
            2..=5 => {
                for _ in 0..1 + script.choice(4) {
                    if let Some(datagram) = world.wire.pop_front() {
                        world.remember(&datagram);
                        world.deliver(&datagram);
                    }
                }
            }
            6 => interfere(&mut world, &mut script),
            7 => replay(&mut world, &mut script),
            8 => {
                let datagram = invented(&world, &mut script);
                world.deliver(&datagram);
            }
            9 => spoilt |= forge(&mut world, &mut script),
            10 | 11 => pass(&mut world, &mut script),
            12 => {
                let node = script.choice(NODES);
                let length = script.byte().into();
                let packet = script.bytes(length).to_vec();
                let now = world.now();
                // Its source is whatever the script says, so the receiver may well refuse it.
                if world.nodes[node].device.send_packet(now, &packet).is_ok() {
                    world.forge_of(&packet);
                }
                world.drain(node);
            }
            _ => configure(&mut world, &mut script),
        }
    }
    settle(&mut world, spoilt);
}

fn pair(script: &mut Script<'_>) -> (usize, usize) {
    [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)][script.choice(6)]
}

/// Loses, changes, doubles or delays what is on the wire.
fn interfere(world: &mut World, script: &mut Script<'_>) {
    if world.wire.is_empty() {
        return;
    }
    let which = script.choice(world.wire.len());
    match script.choice(6) {
        0 => drop(world.wire.remove(which)),
        1 => {
            let bytes = &mut world.wire[which].bytes;
            let at = script.below(bytes.len());
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= script.byte();
            }
        }
        2 => {
            let copy = world.wire[which].clone();
            world.wire.push_back(copy);
        }
        3 => world.wire[which].from = anywhere(script),
        4 => {
            let length = script.below(world.wire[which].bytes.len() + 1);
            world.wire[which].bytes.truncate(length);
        }
        _ => {
            let last = world.wire.len() - 1;
            world.wire.swap(which, last);
        }
    }
}

/// An old datagram again, from wherever.
fn replay(world: &mut World, script: &mut Script<'_>) {
    if world.remembered.is_empty() {
        return;
    }
    let mut datagram = world.remembered[script.choice(world.remembered.len())].clone();
    if script.flag() {
        datagram.from = anywhere(script);
    }
    if script.flag() {
        datagram.to = world.nodes[script.choice(NODES)].address;
    }
    world.deliver(&datagram);
}

/// A datagram of an attacker without keys: any bytes, or a message that is right as far as it can be.
fn invented(world: &World, script: &mut Script<'_>) -> Datagram {
    let to = script.choice(NODES);
    let (kind, length) = [(1, 148), (2, 92), (3, 64), (4, 32), (4, 80), (0, 0)][script.choice(6)];
    let mut bytes = if kind == 0 {
        script.short_bytes().to_vec()
    } else {
        let mut bytes = noise(script.byte().into(), length);
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        bytes
    };
    // The index of a session or handshake, overheard: at 4 what comes to us, at 8 in a response.
    if script.flag()
        && let Some(old) = world.remembered.last()
        && let (Some(index), true) = (old.bytes.get(4..8), bytes.len() >= 12)
    {
        bytes[4..8].copy_from_slice(index);
        bytes[8..12].copy_from_slice(index);
    }
    if let Ok(kind @ (MessageType::Initiation | MessageType::Response)) = MessageType::of(&bytes) {
        let at = if kind == MessageType::Initiation {
            116
        } else {
            60
        };
        if let Some(public) = world.nodes[to].device.public_key() {
            let mac = mac1(&public, &bytes[..at]);
            bytes[at..at + 16].copy_from_slice(&mac);
        }
    }
    Datagram {
        from: anywhere(script),
        to: world.nodes[to].address,
        bytes,
    }
}

fn mac1(public: &PublicKey, message: &[u8]) -> [u8; 16] {
    let mut hash = Blake2s256::default();
    hash.update(b"mac1----");
    hash.update(public.as_bytes());
    let key: [u8; 32] = hash.finalize_fixed().into();
    let mut mac = <Blake2sMac<U16> as blake2::digest::KeyInit>::new_from_slice(&key).unwrap();
    mac.update(message);
    mac.finalize_fixed().into()
}

/// A peer seals what it likes, under the counter it likes. True if that can spoil its session.
fn forge(world: &mut World, script: &mut Script<'_>) -> bool {
    let (from, to) = pair(script);
    let Some(session) = world.session(from, to) else {
        return false;
    };
    let plaintext = script.short_bytes();
    let counter = match script.choice(3) {
        0 => script.byte().into(),
        1 => session.messages_sent() + u64::from(script.byte()),
        _ => script.u64(),
    };
    let header = DataHeader {
        receiver_index: session.peer_index(),
        counter,
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend(plaintext);
    bytes.extend([0; TAG_LEN]);
    session
        .sending_key()
        .seal_in_place(counter, &mut bytes[DATA_HEADER_LEN..]);
    world.forge_of(plaintext);
    let datagram = Datagram {
        from: if script.flag() {
            anywhere(script)
        } else {
            world.nodes[from].address
        },
        to: world.nodes[to].address,
        bytes,
    };
    world.remember(&datagram);
    world.deliver(&datagram);
    true
}

fn pass(world: &mut World, script: &mut Script<'_>) {
    let amount = u64::from(script.byte());
    match script.choice(5) {
        0 => world.pass(amount * MILLISECOND),
        1 => world.pass(amount * SECOND / 8),
        2 => world.pass(amount * 8 * SECOND),
        3 => {
            // To the next timer, exactly or nearly.
            if let Some(next) = world.next_timeout() {
                world.pass((next + amount).saturating_sub(1));
            }
        }
        _ => {
            // Somebody sets the wall clock.
            let change = (amount + 1) * 600 * SECOND;
            world.wall = if script.flag() {
                world.wall + change
            } else {
                world.wall - change
            };
        }
    }
}

fn configure(world: &mut World, script: &mut Script<'_>) {
    let here = script.choice(NODES);
    let there = script.choice(KEYS);
    let peer = world.peer(here, there);
    let now = world.now();
    match (script.choice(14), peer) {
        (0, Some(peer)) => world.remove_peer(here, peer),
        (0 | 1, _) if there < NODES => world.connect(here, there),
        (0 | 1, _) => drop(world.add_peer(here, there)),
        (2, Some(peer)) => {
            let secret = script.byte();
            let key = script
                .flag()
                .then(|| PresharedKey::from_bytes([secret; 32]));
            world.nodes[here].device.set_preshared_key(peer, key);
        }
        (3, Some(peer)) => {
            let address = anywhere(script);
            world.nodes[here].device.set_endpoint(peer, address);
        }
        (4, Some(peer)) => {
            let seconds = script.byte() % 31;
            world.nodes[here].device.set_keepalive(peer, seconds.into());
        }
        (5, Some(peer)) => {
            let prefix = prefix(script);
            world.add_prefix(here, peer, prefix);
        }
        (6, Some(peer)) => {
            let prefix = prefix(script);
            let node = &mut world.nodes[here];
            let had = node.peers.get_mut(&public(there)).unwrap().remove(&prefix);
            assert_eq!(node.device.remove_allowed_ip(peer, prefix), had);
        }
        (7, Some(peer)) => {
            let node = &mut world.nodes[here];
            node.device.replace_allowed_ips(peer);
            node.peers.get_mut(&public(there)).unwrap().clear();
        }
        (8, _) => {
            let number = script.flag().then_some(there);
            world.set_key(here, number);
        }
        (9, _) => world.nodes[here].device.down(),
        (10, _) => world.nodes[here].device.up(),
        (11, _) => world.nodes[here].device.note_backlog(now.instant, 512),
        (12, _) => world.nodes[here].device.set_mtu(script.u16().into()),
        (_, Some(peer)) => {
            let link = world.nodes[here].device.link(peer).unwrap();
            link.clear_source();
            world.nodes[here].device.attend(now, peer);
        }
        _ => {}
    }
    world.drain(here);
    world.pass(0);
}

fn prefix(script: &mut Script<'_>) -> Prefix {
    match script.choice(3) {
        0 => host_prefix(script.choice(KEYS)),
        1 => Prefix::new([10, 0, 0, script.byte()].into(), script.byte() % 33).unwrap(),
        _ => Prefix::new(IpAddr::from([0xfd; 16]), script.byte() % 129).unwrap(),
    }
}

fn anywhere(script: &mut Script<'_>) -> SocketAddr {
    let last = script.byte();
    if last < 128 {
        SocketAddr::from(([203, 0, 113, last], 1000))
    } else {
        SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)], 1000))
    }
}

/// Configures the first two devices as at the beginning, and has them talk.
fn settle(world: &mut World, spoilt: bool) {
    world.wire.clear();
    world.nodes[2].device.down();
    world.drain(2);
    // Behind everything that was ever sent as a timestamp.
    world.wall = world.wall.max(1_700_000_000 * SECOND) + 120 * 256 * 600 * SECOND;
    for (here, there) in [(0, 1), (1, 0)] {
        world.set_key(here, Some(here));
        for other in (0..KEYS).filter(|other| *other != there) {
            if let Some(peer) = world.peer(here, other) {
                world.remove_peer(here, peer);
            }
        }
        world.connect(here, there);
        let peer = world.peer(here, there).unwrap();
        let device = &mut world.nodes[here].device;
        device.set_preshared_key(peer, None);
        device.set_keepalive(peer, 0);
        device.set_mtu(1420);
        device.up();
        world.drain(here);
    }
    if spoilt {
        // Counters were used that the session's owner does not know of: it has to end.
        let lifetime = Limits::default().reject_after_time.as_nanos() as u64;
        for _ in 0..lifetime / SECOND {
            world.pass(SECOND);
        }
        world.wire.clear();
    }
    let mut wanted = Vec::new();
    for second in 0..60 {
        if second < 45 {
            for (from, to) in [(0, 1), (1, 0)] {
                let number = world.send(from, to, 100);
                if second >= 30 {
                    wanted.push((to, number));
                }
            }
        }
        let end = SECOND;
        let mut passed = 0;
        while passed < end {
            while let Some(datagram) = world.wire.pop_front() {
                world.deliver(&datagram);
            }
            let step = world.next_timeout().unwrap_or(end).clamp(1, end - passed);
            world.pass(step);
            passed += step;
        }
    }
    for (to, number) in wanted {
        assert!(
            world.nodes[to].arrived.contains(&number),
            "a packet to {to} is lost"
        );
    }
    let (ours, theirs) = (world.session(0, 1).unwrap(), world.session(1, 0).unwrap());
    assert_eq!(ours.peer_index(), theirs.receiver_index());
    assert_eq!(ours.receiver_index(), theirs.peer_index());
    // What nobody asks for any more comes to rest.
    world.wire.clear();
    let hour = Duration::from_secs(3600).as_nanos() as u64;
    for _ in 0..200 {
        let Some(next) = world.next_timeout() else {
            return;
        };
        assert!(next <= hour, "a timer in {next} ns");
        world.pass(next);
        world.wire.clear();
    }
    panic!("two idle devices go on for ever");
}
