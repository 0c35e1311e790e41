//! Coalescing: the rules one by one, and batches of everything at once taken apart again.
#![allow(clippy::unwrap_used, reason = "helper functions of tests")]

mod common;

use std::io::IoSlice;

use adit_packet::coalesce::{Coalescer, MAX_SUPER_PACKET, MAX_UDP_SEGMENTS, Offloads};
use adit_packet::split::Splitter;
use adit_packet::virtio::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VirtioNetHeader};
use common::{ACK, CWR, ECE, FIN, PSH, Spec, finish, naive_split, noise};
use proptest::prelude::*;

const ALL: Offloads = Offloads {
    tcp4: true,
    tcp6: true,
    udp4: true,
    udp6: true,
};

/// One write to the TUN device.
#[derive(Debug)]
struct Write {
    header: [u8; VirtioNetHeader::LEN],
    packet: Vec<u8>,
    merged: usize,
}

impl Write {
    fn split(&self) -> Vec<Vec<u8>> {
        let mut splitter =
            Splitter::new(VirtioNetHeader::decode(&self.header), &self.packet).unwrap();
        let mut packets = Vec::new();
        let mut slot = vec![0; 65_535];
        while let Some(len) = splitter.write_next(&mut slot) {
            packets.push(slot[..len].to_vec());
        }
        packets
    }
}

fn coalesce_with(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Vec<Write> {
    let mut bodies = packets.to_vec();
    let mut slices: Vec<&mut [u8]> = bodies.iter_mut().map(Vec::as_mut_slice).collect();
    let mut writes = Vec::new();
    coalescer.coalesce(&mut slices, |slices: &[IoSlice<'_>], merged| {
        assert_eq!(slices.len(), merged + 1);
        writes.push(Write {
            header: (&*slices[0]).try_into().unwrap(),
            packet: slices[1..]
                .iter()
                .flat_map(|slice| slice.to_vec())
                .collect(),
            merged,
        });
    });
    writes
}

fn coalesce(packets: &[Vec<u8>]) -> Vec<Write> {
    coalesce_with(&mut Coalescer::new(ALL), packets)
}

fn merged(packets: &[Vec<u8>]) -> Vec<usize> {
    coalesce(packets).iter().map(|write| write.merged).collect()
}

const KINDS: [(bool, bool); 4] = [(true, true), (false, true), (true, false), (false, false)];

/// `count` packets of `len` payload bytes each that follow one another.
fn train(spec: &Spec, count: usize, len: usize) -> Vec<Vec<u8>> {
    naive_split(&spec.clone().payload(noise(count as u64, count * len)), len)
}

#[test]
fn a_train_becomes_one_write_with_the_kernel_s_header() {
    for (ipv4, tcp) in KINDS {
        let mut spec = Spec::new(ipv4, tcp);
        spec.options = if tcp {
            vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]
        } else {
            vec![]
        };
        spec.flags |= PSH;
        let mut packets = train(&spec, 44, 1380);
        spec.seq = spec.seq.wrapping_add(44 * 1380);
        spec.id = spec.id.wrapping_add(44);
        // A PSH ends the run, so the last packet stays alone; in UDP the shorter one ends it.
        packets.push(spec.clone().payload(noise(9, 17)).build());
        let writes = coalesce(&packets);
        assert_eq!(
            writes.iter().map(|w| w.merged).collect::<Vec<_>>(),
            if tcp { vec![44, 1] } else { vec![45] }
        );
        let header = VirtioNetHeader::decode(&writes[0].header);
        let expected = VirtioNetHeader {
            flags: F_NEEDS_CSUM,
            gso_type: match (tcp, ipv4) {
                (true, true) => GSO_TCPV4,
                (true, false) => GSO_TCPV6,
                _ => GSO_UDP_L4,
            },
            hdr_len: u16::try_from(spec.header_len()).unwrap(),
            gso_size: 1380,
            csum_start: u16::try_from(spec.ip_len()).unwrap(),
            csum_offset: if tcp { 16 } else { 6 },
        };
        assert_eq!(header, expected);
        let again: Vec<_> = writes.iter().flat_map(Write::split).collect();
        assert!(again == packets);
    }
}

#[test]
fn split_then_coalesce_is_the_identity() {
    for (ipv4, tcp) in KINDS {
        for (len, gso_size) in [
            (60_000, 1380),
            (1381, 1380),
            (2760, 1380),
            (500, 8),
            (65_400, 8900),
        ] {
            let mut spec = Spec::new(ipv4, tcp).payload(noise(2, len));
            spec.flags |= PSH;
            if tcp || len / gso_size < MAX_UDP_SEGMENTS {
                let writes = coalesce(&naive_split(&spec, gso_size));
                assert_eq!(writes.len(), 1);
                assert!(
                    writes[0].packet == spec.build_partial(),
                    "{ipv4} {tcp} {len} {gso_size}"
                );
            }
        }
    }
}

#[test]
fn only_offered_offloads_are_used() {
    for (ipv4, tcp) in KINDS {
        let packets = train(&Spec::new(ipv4, tcp), 10, 100);
        let none = coalesce_with(&mut Coalescer::new(Offloads::default()), &packets);
        assert!(
            none.iter()
                .zip(&packets)
                .all(|(write, packet)| write.header == [0; 10] && write.packet == *packet)
        );
        assert_eq!(none.len(), 10);
        let only = Offloads {
            tcp4: tcp && ipv4,
            tcp6: tcp && !ipv4,
            udp4: !tcp && ipv4,
            udp6: !tcp && !ipv4,
        };
        assert_eq!(coalesce_with(&mut Coalescer::new(only), &packets).len(), 1);
    }
}

#[test]
fn limits_of_one_write() {
    assert_eq!(merged(&train(&Spec::new(true, true), 200, 10)), [128, 72]);
    assert_eq!(
        merged(&train(&Spec::new(true, false), 200, 10)),
        [64, 64, 64, 8]
    );
    for ipv4 in [true, false] {
        let writes = coalesce(&train(&Spec::new(ipv4, true), 20, 8000));
        assert!(
            writes
                .iter()
                .all(|write| write.packet.len() <= MAX_SUPER_PACKET)
        );
        assert_eq!(
            writes.iter().map(|w| w.merged).collect::<Vec<_>>(),
            [8, 8, 4]
        );
    }
}

/// Two packets that merge, with the second one changed before it is built and after.
fn pair(
    kind: (bool, bool),
    spec: impl Fn(&mut Spec),
    bytes: impl Fn(&mut Vec<u8>),
) -> Vec<Vec<u8>> {
    let first = Spec::new(kind.0, kind.1).payload(noise(1, 100));
    let mut second = first.clone().payload(noise(2, 100));
    second.seq = second.seq.wrapping_add(100);
    second.id = second.id.wrapping_add(1);
    spec(&mut second);
    let mut packet = second.build();
    bytes(&mut packet);
    vec![first.build(), packet]
}

fn stays_apart(what: &str, packets: &[Vec<u8>]) {
    let writes = coalesce(packets);
    assert_eq!(writes.len(), packets.len(), "{what}");
    for (write, packet) in writes.iter().zip(packets) {
        assert_eq!((write.header, write.merged), ([0; 10], 1), "{what}");
        assert_eq!(&write.packet, packet, "{what}: untouched");
    }
}

#[test]
fn what_keeps_packets_apart() {
    let nothing = |_: &mut Vec<u8>| {};
    for kind in KINDS {
        assert_eq!(merged(&pair(kind, |_| {}, nothing)), [2]);
        stays_apart("port", &pair(kind, |s| s.port += 1, nothing));
        stays_apart("address", &pair(kind, |s| s.host += 1, nothing));
        stays_apart("DSCP", &pair(kind, |s| s.tos = 0xb8, nothing));
        stays_apart("ECN", &pair(kind, |s| s.tos = 3, nothing));
        stays_apart("TTL", &pair(kind, |s| s.ttl -= 1, nothing));
        stays_apart(
            "longer than the first",
            &pair(kind, |s| s.payload.push(0), nothing),
        );
        stays_apart("no payload", &pair(kind, |s| s.payload.clear(), nothing));
        stays_apart("trailing byte", &pair(kind, |_| {}, |p| p.push(0)));
        stays_apart(
            "missing byte",
            &pair(kind, |_| {}, |p| p.truncate(p.len() - 1)),
        );
        stays_apart(
            "corrupt payload",
            &pair(kind, |_| {}, |p| *p.last_mut().unwrap() ^= 1),
        );
        let at = if kind.0 { 20 } else { 40 } + if kind.1 { 16 } else { 6 };
        stays_apart("wrong checksum", &pair(kind, |_| {}, |p| p[at] ^= 1));
        // The first packet's checksum is only looked at when the second arrives.
        let mut first_corrupt = pair(kind, |_| {}, nothing);
        *first_corrupt[0].last_mut().unwrap() ^= 1;
        stays_apart("corrupt first", &first_corrupt);
    }
}

#[test]
fn what_keeps_ip_packets_apart() {
    let nothing = |_: &mut Vec<u8>| {};
    for tcp in [true, false] {
        let v4 = (true, tcp);
        stays_apart("DF", &pair(v4, |s| s.df = false, nothing));
        stays_apart(
            "reserved bit",
            &pair(
                v4,
                |_| {},
                |p| {
                    p[6] |= 0x80;
                    finish(p, 20, tcp);
                },
            ),
        );
        stays_apart(
            "more fragments",
            &pair(
                v4,
                |_| {},
                |p| {
                    p[6] = 0x20;
                    finish(p, 20, tcp);
                },
            ),
        );
        stays_apart(
            "fragment offset",
            &pair(
                v4,
                |_| {},
                |p| {
                    p[7] = 1;
                    finish(p, 20, tcp);
                },
            ),
        );
        stays_apart("IPv4 header checksum", &pair(v4, |_| {}, |p| p[10] ^= 1));
        stays_apart(
            "IPv4 options",
            &pair(
                v4,
                |_| {},
                |p| {
                    p[0] = 0x46;
                    p.splice(20..20, [1, 1, 1, 0]);
                    p[3] += 4;
                    finish(p, 24, tcp);
                },
            ),
        );
        // Without DF the ids must count up; with it they mean nothing (RFC 6864).
        let mut packets = train(
            &Spec {
                df: false,
                ..Spec::new(true, tcp)
            },
            2,
            100,
        );
        assert_eq!(merged(&packets), [2]);
        packets[1][5] ^= 4;
        finish(&mut packets[1], 20, tcp);
        stays_apart("id", &packets);
        assert_eq!(merged(&pair(v4, |s| s.id = 0, nothing)), [2]);
        let v6 = (false, tcp);
        stays_apart("flow label", &pair(v6, |_| {}, |p| p[3] ^= 1));
        stays_apart(
            "extension header",
            &pair(
                v6,
                |_| {},
                |p| {
                    let next_header = std::mem::replace(&mut p[6], 60);
                    p.splice(40..40, [next_header, 0, 1, 4, 0, 0, 0, 0]);
                    p[5] += 8;
                },
            ),
        );
        stays_apart("unknown version", &pair(v6, |_| {}, |p| p[0] = 0x50));
    }
}

#[test]
fn what_keeps_tcp_apart() {
    let nothing = |_: &mut Vec<u8>| {};
    for kind in [(true, true), (false, true)] {
        for flags in [
            0,
            ACK | FIN,
            ACK | ECE,
            ACK | CWR,
            ACK | 2,
            ACK | 4,
            ACK | 0x20,
            PSH,
        ] {
            stays_apart("flags", &pair(kind, |s| s.flags = flags, nothing));
        }
        stays_apart("gap", &pair(kind, |s| s.seq += 1, nothing));
        stays_apart("repetition", &pair(kind, |s| s.seq -= 100, nothing));
        stays_apart("acknowledgement", &pair(kind, |s| s.ack += 1, nothing));
        stays_apart("window", &pair(kind, |s| s.window += 1, nothing));
        stays_apart("options", &pair(kind, |s| s.options = vec![1; 4], nothing));
        let at = if kind.0 { 20 } else { 40 };
        stays_apart(
            "urgent pointer",
            &pair(
                kind,
                |_| {},
                |p| {
                    p[at + 19] = 1;
                    finish(p, at, true);
                },
            ),
        );
        stays_apart(
            "reserved bits",
            &pair(
                kind,
                |_| {},
                |p| {
                    p[at + 12] |= 1;
                    finish(p, at, true);
                },
            ),
        );
        stays_apart(
            "short TCP header",
            &pair(
                kind,
                |_| {},
                |p| {
                    p[at + 12] = 0x40;
                    finish(p, at, true);
                },
            ),
        );
        stays_apart(
            "TCP header past the end",
            &pair(
                kind,
                |s| s.payload.truncate(9),
                |p| {
                    p[at + 12] = 0xf0;
                    finish(p, at, true);
                },
            ),
        );
        // After a PSH or a short segment nothing follows.
        let mut train = train(&Spec::new(kind.0, true), 3, 100);
        train[1][at + 13] |= PSH;
        finish(&mut train[1], at, true);
        assert_eq!(merged(&train), [2, 1]);
        let mut spec = Spec::new(kind.0, true);
        let mut packets = vec![];
        for len in [100, 50, 100] {
            packets.push(spec.clone().payload(noise(1, len)).build());
            spec.seq = spec.seq.wrapping_add(u32::try_from(len).unwrap());
        }
        assert_eq!(merged(&packets), [2, 1]);
    }
}

#[test]
fn what_keeps_udp_apart() {
    for kind in [(true, false), (false, false)] {
        let at = if kind.0 { 24 } else { 44 };
        stays_apart("UDP length", &pair(kind, |_| {}, |p| p[at + 1] ^= 1));
        stays_apart(
            "no checksum",
            &pair(kind, |_| {}, |p| p[at + 2..at + 4].fill(0)),
        );
        let mut both = pair(kind, |_| {}, |p| p[at + 2..at + 4].fill(0));
        both[0][at + 2..at + 4].fill(0);
        stays_apart("no checksum in either", &both);
    }
}

#[test]
fn truncated_packets_of_every_length_pass_untouched() {
    for kind in KINDS {
        let [first, second] = pair(kind, |_| {}, |_| {}).try_into().unwrap();
        for len in 1..second.len() {
            stays_apart("truncated", &[first.clone(), second[..len].to_vec()]);
        }
        assert_eq!(
            merged(&[first, vec![], second]),
            [2],
            "empty slices are nothing"
        );
    }
}

#[test]
fn a_packet_of_the_same_flow_ends_its_run() {
    for kind in KINDS {
        let spec = Spec::new(kind.0, kind.1);
        let train = train(&spec, 4, 100);
        let mut other_port = spec.clone();
        other_port.port += 1;
        let bare = Spec {
            payload: vec![],
            ..spec.clone()
        }
        .build();
        let mut fragment = other_port.clone().payload(vec![1; 8]).build();
        if kind.0 {
            fragment[7] = 1;
        } else {
            fragment[6] = 44;
        }
        let mut icmp = fragment.clone();
        icmp[if kind.0 { 9 } else { 6 }] = 1;
        // (what comes in between, whether it splits the train)
        let cases = [
            (bare, true),
            (fragment, true),
            (icmp, true),
            (vec![0x50, 1, 2], true),
            (other_port.payload(vec![1]).build(), false),
            (
                Spec {
                    host: 9,
                    ..spec.clone()
                }
                .payload(vec![1])
                .build(),
                false,
            ),
        ];
        for (case, (between, splits)) in cases.into_iter().enumerate() {
            let mut packets = train.clone();
            packets.insert(2, between);
            let expected = if splits { vec![2, 1, 2] } else { vec![4, 1] };
            assert_eq!(merged(&packets), expected, "{kind:?}, case {case}");
        }
    }
}

#[test]
fn many_flows_in_turn() {
    let trains: Vec<_> = (0..60)
        .map(|port| {
            train(
                &Spec {
                    port: 1000 + port,
                    ..Spec::new(true, true)
                },
                5,
                100,
            )
        })
        .collect();
    let packets: Vec<_> = (0..5)
        .flat_map(|n| trains.iter().map(move |train| train[n].clone()))
        .collect();
    let mut coalescer = Coalescer::new(ALL);
    let writes = coalesce_with(&mut coalescer, &packets);
    assert!(writes.len() < 80, "{} writes for 60 flows", writes.len());
    // Nothing of one batch is left in the next.
    let again = coalesce_with(&mut coalescer, &packets[300..]);
    assert!(again.is_empty());
    let last = coalesce_with(&mut coalescer, &trains[0]);
    assert_eq!((last.len(), last[0].merged), (1, 5));
}

/// One packet of an arbitrary batch: the flow it belongs to and what is odd about it.
#[derive(Clone, Debug)]
struct Event {
    flow: usize,
    oddity: u8,
    len: usize,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    // Two thirds are ordinary, so that runs come about.
    let oddity = prop_oneof![2 => Just(0u8), 1 => 1u8..20];
    let event = (
        0usize..6,
        oddity,
        prop::sample::select(vec![1usize, 100, 100, 100, 100, 300]),
    )
        .prop_map(|(flow, oddity, len)| Event { flow, oddity, len });
    // Runs of the same event make trains.
    prop::collection::vec((event, 1usize..6), 1..60).prop_map(|groups| {
        groups
            .into_iter()
            .flat_map(|(event, times)| vec![event; times])
            .collect()
    })
}

/// Builds the batch. Flows 0 to 3 are of the four kinds; 4 and 5 share their addresses with 0 and 3.
fn build(events: &[Event]) -> Vec<Vec<u8>> {
    let mut flows: Vec<_> = [0, 1, 2, 3, 0, 3]
        .iter()
        .enumerate()
        .map(|(port, kind)| {
            let (ipv4, tcp) = KINDS[*kind];
            Spec {
                port: 1000 + u16::try_from(port).unwrap(),
                df: port != 0,
                ..Spec::new(ipv4, tcp)
            }
        })
        .collect();
    let mut packets = Vec::new();
    for (index, event) in events.iter().enumerate() {
        let flow = &mut flows[event.flow];
        let mut spec = flow.clone().payload(noise(index as u64, event.len));
        match event.oddity {
            1 => spec.flags |= PSH,
            2 => spec.payload.clear(),
            3 => spec.flags |= FIN,
            4 => flow.ack += 1,
            5 => flow.tos ^= 2,
            6 => flow.ttl ^= 1,
            7 => flow.df ^= true,
            8 => spec.id = spec.id.wrapping_add(77),
            9 => spec.seq = spec.seq.wrapping_sub(5),
            10 if spec.tcp => {
                flow.options = if flow.options.is_empty() {
                    vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]
                } else {
                    vec![]
                }
            }
            11 => flow.window ^= 9,
            12 => spec.flags |= ECE,
            _ => {}
        }
        let len = u32::try_from(spec.payload.len()).unwrap();
        flow.seq = flow.seq.wrapping_add(len);
        flow.id = flow.id.wrapping_add(1);
        let mut packet = spec.build();
        let at = spec.ip_len();
        match event.oddity {
            13 => *packet.last_mut().unwrap() ^= 0x10,
            14 if spec.ipv4 => packet[11] ^= 1,
            15 if spec.ipv4 => {
                packet[7] = 3;
                finish(&mut packet, at, spec.tcp);
            }
            15 => packet[6] = 44,
            16 if !spec.tcp => packet[at + 6..at + 8].fill(0),
            17 => packet = noise(index as u64, event.len),
            18 => packet.truncate(packet.len() / 2),
            19 => packet.extend([0, 0]),
            _ => {}
        }
        packets.push(packet);
    }
    packets
}

/// The packet with the id of an atomic datagram, and the checksum over it, cleared.
fn normal(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet.len() >= 20 && packet[0] == 0x45 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// Who may not overtake whom: packets of one flow; anything between the same addresses if one of the two is not a
/// whole TCP or UDP packet; and everything if one is no IP packet.
fn may_share_a_flow(a: &[u8], b: &[u8]) -> bool {
    let known = |packet: &[u8]| match packet {
        [0x45, ..] if packet.len() >= 20 => Some(packet[12..20].to_vec()),
        [first, ..] if first >> 4 == 4 && packet.len() >= 20 => Some(packet[12..20].to_vec()),
        [first, ..] if first >> 4 == 6 && packet.len() >= 40 => Some(packet[8..40].to_vec()),
        _ => None,
    };
    let ports = |packet: &[u8]| {
        let whole = match packet[0] >> 4 {
            4 => {
                packet[0] == 0x45
                    && usize::from(u16::from_be_bytes([packet[2], packet[3]])) == packet.len()
                    && packet[6] & 0x3f == 0
                    && packet[7] == 0
                    && matches!(packet[9], 6 | 17)
            }
            _ => {
                usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40 == packet.len()
                    && matches!(packet[6], 6 | 17)
            }
        };
        let at = if packet[0] >> 4 == 4 { 20 } else { 40 };
        (whole && packet.len() >= at + 4).then(|| packet[at..at + 4].to_vec())
    };
    match (known(a), known(b)) {
        (Some(x), Some(y)) if x == y => match (ports(a), ports(b)) {
            (Some(x), Some(y)) => x == y,
            _ => true,
        },
        (Some(_), Some(_)) => false,
        _ => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_mixes_come_apart_as_they_were(events in events()) {
        let packets = build(&events);
        let writes = coalesce(&packets);
        // Find for each outgoing packet the earliest original that looks so and is not yet taken.
        let mut free: Vec<_> = packets.iter().map(|packet| Some(normal(packet))).collect();
        let mut order = Vec::new();
        let mut first_of_last_write = None;
        for write in &writes {
            let parts = write.split();
            prop_assert_eq!(parts.len(), write.merged);
            prop_assert!(write.packet.len() <= MAX_SUPER_PACKET);
            if write.merged == 1 {
                prop_assert_eq!(write.header, [0; 10]);
                prop_assert!(packets.contains(&write.packet), "a lone packet is untouched");
            }
            let mut first = None;
            for part in &parts {
                let part = normal(part);
                let original = free.iter().position(|packet| packet.as_ref() == Some(&part));
                prop_assert!(original.is_some(), "a packet that never came in");
                let original = original.unwrap();
                free[original] = None;
                order.push(original);
                first.get_or_insert(original);
            }
            prop_assert!(first_of_last_write < first, "writes in order of their first packets");
            first_of_last_write = first;
        }
        prop_assert!(free.iter().all(Option::is_none), "a packet was lost");
        for (place, earlier) in order.iter().enumerate() {
            for later in &order[place + 1..] {
                prop_assert!(
                    earlier < later || !may_share_a_flow(&packets[*earlier], &packets[*later]),
                    "{} overtook {}", earlier, later
                );
            }
        }
    }

    #[test]
    fn garbage_passes_untouched(packets in prop::collection::vec(
        (prop::collection::vec(any::<u8>(), 1..100), prop::sample::select(vec![0x45u8, 0x60, 0x46, 0])), 1..30
    )) {
        let packets: Vec<_> = packets
            .into_iter()
            .map(|(mut packet, version)| {
                packet[0] = version;
                packet
            })
            .collect();
        let writes = coalesce(&packets);
        prop_assert!(writes.iter().map(|write| &write.packet).eq(&packets));
    }
}
