//! Batches of packets merged, and taken apart again: no packet changes, and none overtakes another of its flow.

use std::net::IpAddr;

use adit_packet::coalesce::{
    Coalescer, MAX_SUPER_PACKET, MAX_TCP_SEGMENTS, MAX_UDP_SEGMENTS, Offloads,
};
use adit_packet::split::Splitter;
use adit_packet::virtio::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VirtioNetHeader};

use crate::script::{Script, noise};
use crate::wire::{Spec, TCP, UDP, finish, get16};

/// Every kind of super-packet.
pub(crate) const ALL: Offloads = Offloads {
    tcp4: true,
    tcp6: true,
    udp4: true,
    udp6: true,
};

/// Packets of one batch, and batches for one coalescer.
const PACKETS: usize = 140;
const BATCHES: usize = 3;

/// The bytes say which packets there are and what is wrong with them.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let offered = script.byte();
    let offloads = Offloads {
        tcp4: offered & 1 == 0,
        tcp6: offered & 2 == 0,
        udp4: offered & 4 == 0,
        udp6: offered & 8 == 0,
    };
    let mut flows: [Spec; 6] = std::array::from_fn(|at| Spec {
        ipv4: at % 2 == 0,
        tcp: at < 4,
        host: 1,
        port: [5201, 5202][at / 2 % 2],
        seq: 0xffff_f000,
        flags: 0x10,
        options: vec![1; 12 * (at / 2 % 2)],
        tos: 0,
        df: at != 0,
        id: 0xfffe,
        payload: vec![],
    });
    let mut batches = vec![vec![]];
    let mut bytes = 0;
    while !script.is_empty() && bytes < 150_000 {
        let full = batches.last().is_some_and(|batch| batch.len() == PACKETS);
        if full || script.peek() == 0xff {
            if batches.len() == BATCHES {
                break;
            }
            script.byte();
            batches.push(vec![]);
            continue;
        }
        let batch = batches.last_mut().unwrap();
        let packet = match script.choice(16) {
            0 => script.short_bytes().to_vec(),
            1 => batch.last().cloned().unwrap_or_default(),
            action => {
                let flow = script.choice(flows.len());
                let spec = &mut flows[flow];
                let packet = next(spec, action, &mut script);
                if action == 15 {
                    // Several more of the same length.
                    for _ in 0..script.byte() % 80 {
                        batch.push(next(spec, 2, &mut Script::new(&[])));
                    }
                }
                packet
            }
        };
        bytes += packet.len();
        batch.push(packet);
    }
    check_batches(&batches, offloads);
}

/// The next packet of a flow, with what `action` does to it.
fn next(spec: &mut Spec, action: usize, script: &mut Script<'_>) -> Vec<u8> {
    if action >= 8 || spec.payload.is_empty() {
        let length = script.byte();
        let length = usize::from(length) * if length & 1 == 0 { 1 } else { 16 };
        spec.payload = noise(action as u64, length);
    }
    let mut this = spec.clone();
    match action {
        3 => this.flags = script.byte(),
        4 => this.flags |= 0x08,
        5 => this.id = this.id.wrapping_add(script.byte().into()),
        6 => this.tos = script.byte(),
        7 => spec.seq = script.u32(),
        _ => {}
    }
    let mut packet = this.build();
    if matches!(action, 12..=14) {
        for _ in 0..1 + script.choice(3) {
            let at = script.below(packet.len().min(90));
            packet[at] = script.byte();
        }
        if action == 13 {
            finish(&mut packet, spec.transport(), spec.tcp);
        }
        if action == 14 {
            packet.truncate(script.below(packet.len()));
        }
    }
    spec.seq = spec.seq.wrapping_add(spec.payload.len() as u32);
    spec.id = spec.id.wrapping_add(1);
    packet
}

/// One write to the TUN device.
struct Write {
    header: VirtioNetHeader,
    packet: Vec<u8>,
    count: usize,
}

/// Merges each batch by the same coalescer, and checks what comes out.
pub(crate) fn check_batches(batches: &[Vec<Vec<u8>>], offloads: Offloads) {
    let mut coalescer = Coalescer::new(offloads);
    for batch in batches {
        let mut copies = batch.clone();
        let mut packets: Vec<_> = copies.iter_mut().map(Vec::as_mut_slice).collect();
        let mut writes = Vec::new();
        coalescer.coalesce(&mut packets, |slices, count| {
            let header = VirtioNetHeader::decode(slices[0][..].try_into().unwrap());
            let packet: Vec<&[u8]> = slices[1..].iter().map(|slice| &slice[..]).collect();
            writes.push(Write {
                header,
                packet: packet.concat(),
                count,
            });
        });
        check(batch, &writes, offloads);
    }
}

fn check(batch: &[Vec<u8>], writes: &[Write], offloads: Offloads) {
    let mut places: Vec<Option<(usize, usize)>> = vec![None; batch.len()];
    let mut latest_first = None;
    for (number, write) in writes.iter().enumerate() {
        let pieces = taken_apart(write, offloads);
        let merged = pieces.len() > 1;
        for (at, piece) in pieces.iter().enumerate() {
            let found = (0..batch.len())
                .find(|index| places[*index].is_none() && same(&batch[*index], piece, merged))
                .unwrap_or_else(|| panic!("write {number} has a packet that was not there"));
            places[found] = Some((number, at));
            if at == 0 {
                assert!(
                    Some(found) > latest_first,
                    "writes in the order of their first packets"
                );
                latest_first = Some(found);
            }
        }
    }
    let flows: Vec<_> = batch.iter().map(|packet| Flow::of(packet)).collect();
    for (index, packet) in batch.iter().enumerate() {
        assert_eq!(places[index].is_none(), packet.is_empty(), "packet {index}");
        if packet.is_empty() {
            continue;
        }
        for earlier in 0..index {
            if flows[earlier].may_be(&flows[index]) && !batch[earlier].is_empty() {
                assert!(places[earlier] < places[index], "{earlier} before {index}");
            }
        }
    }
}

/// The packets in a write, as the kernel's segmentation would give them.
fn taken_apart(write: &Write, offloads: Offloads) -> Vec<Vec<u8>> {
    if write.count == 1 {
        assert_eq!(write.header, VirtioNetHeader::default());
        return vec![write.packet.clone()];
    }
    let ipv4 = write.packet[0] >> 4 == 4;
    let (offered, most) = match write.header.gso_type {
        GSO_TCPV4 => (offloads.tcp4, MAX_TCP_SEGMENTS),
        GSO_TCPV6 => (offloads.tcp6, MAX_TCP_SEGMENTS),
        GSO_UDP_L4 if ipv4 => (offloads.udp4, MAX_UDP_SEGMENTS),
        GSO_UDP_L4 => (offloads.udp6, MAX_UDP_SEGMENTS),
        other => panic!("GSO type {other}"),
    };
    assert!(offered && write.count <= most && write.packet.len() <= MAX_SUPER_PACKET);
    let mut splitter = Splitter::new(write.header, &write.packet).unwrap();
    assert_eq!(splitter.remaining(), write.count);
    let mut pieces = Vec::new();
    while let Some(length) = splitter.next_len() {
        let mut piece = vec![0; length];
        splitter.write_next(&mut piece).unwrap();
        pieces.push(piece);
    }
    pieces
}

/// Equal, but for the id of a merged IPv4 packet that cannot be fragmented, which means nothing.
fn same(before: &[u8], after: &[u8], merged: bool) -> bool {
    if before == after || before.len() != after.len() {
        return before == after;
    }
    let atomic = merged && before.len() >= 20 && before[0] == 0x45 && before[6] & 0x40 != 0;
    // Id at 4, header checksum at 10.
    atomic
        && before[..4] == after[..4]
        && before[6..10] == after[6..10]
        && before[12..] == after[12..]
}

/// What is certain about a packet's flow.
#[derive(Debug, PartialEq)]
enum Flow {
    Unknown,
    /// Addresses only: a fragment, say.
    Between(IpAddr, IpAddr),
    Known(IpAddr, IpAddr, u8, [u8; 4]),
}

impl Flow {
    fn of(packet: &[u8]) -> Self {
        let (source, destination, protocol, transport, plain): (IpAddr, IpAddr, _, _, _) =
            match packet.first().map(|first| first >> 4) {
                Some(4) if packet.len() >= 20 => {
                    let address = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).unwrap();
                    let plain = get16(packet, 6) & 0x3fff == 0
                        && usize::from(get16(packet, 2)) == packet.len()
                        && packet[0] & 15 >= 5;
                    let transport = usize::from(packet[0] & 15) * 4;
                    let (from, to) = (address(12).into(), address(16).into());
                    (from, to, packet[9], transport, plain)
                }
                Some(6) if packet.len() >= 40 => {
                    let address = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).unwrap();
                    let plain = usize::from(get16(packet, 4)) + 40 == packet.len();
                    (address(8).into(), address(24).into(), packet[6], 40, plain)
                }
                _ => return Self::Unknown,
            };
        let ports = packet.get(transport..transport + 4);
        match ports {
            Some(ports) if plain && matches!(protocol, TCP | UDP) => {
                Self::Known(source, destination, protocol, ports.try_into().unwrap())
            }
            _ => Self::Between(source, destination),
        }
    }

    /// Whether both may be of one flow.
    fn may_be(&self, other: &Self) -> bool {
        let addresses = |flow: &Self| match flow {
            Self::Unknown => None,
            Self::Between(from, to) | Self::Known(from, to, ..) => Some((*from, *to)),
        };
        match (self, other) {
            (Self::Unknown, _) | (_, Self::Unknown) => true,
            (Self::Known(..), Self::Known(..)) => self == other,
            _ => addresses(self) == addresses(other),
        }
    }
}
