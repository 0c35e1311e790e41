//! Splitting: every rule of segmentation against a naive one, and nonsense of every kind.
#![allow(clippy::unwrap_used, reason = "helper functions of tests")]

mod common;

use adit_packet::split::{SplitError, Splitter};
use adit_packet::virtio::{
    F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, VirtioNetHeader,
};
use common::{ACK, CWR, ECE, FIN, PSH, Spec, finish, naive_checksum, naive_split, noise, pseudo};
use proptest::prelude::*;

fn gso_header(spec: &Spec, gso_size: usize) -> VirtioNetHeader {
    VirtioNetHeader {
        flags: F_NEEDS_CSUM,
        gso_type: match (spec.tcp, spec.ipv4) {
            (true, true) => GSO_TCPV4,
            (true, false) => GSO_TCPV6,
            (false, _) => GSO_UDP_L4,
        },
        // The kernel may say nearly anything here.
        hdr_len: 7,
        gso_size: u16::try_from(gso_size).unwrap(),
        csum_start: u16::try_from(spec.ip_len()).unwrap(),
        csum_offset: if spec.tcp { 16 } else { 6 },
    }
}

fn split(header: VirtioNetHeader, packet: &[u8]) -> Result<Vec<Vec<u8>>, SplitError> {
    let mut splitter = Splitter::new(header, packet)?;
    let mut slot = vec![0xee; 66_000];
    let mut packets = Vec::new();
    loop {
        let (expected, remaining) = (splitter.next_len(), splitter.remaining());
        assert_eq!(expected.is_some(), remaining > 0);
        if let Some(len) = expected {
            // Too small a slot consumes nothing.
            assert_eq!(splitter.write_next(&mut slot[..len - 1]), None);
            assert_eq!(splitter.remaining(), remaining);
        }
        let written = splitter.write_next(&mut slot);
        assert_eq!(written, expected);
        let Some(len) = written else { break };
        assert_eq!(slot[len], 0xee, "wrote past the packet");
        packets.push(slot[..len].to_vec());
        slot[..len].fill(0xee);
    }
    Ok(packets)
}

fn specs() -> impl Strategy<Value = Spec> {
    let fields = (
        any::<(bool, bool, u32, u32)>(),
        any::<(u16, u8, bool, u16)>(),
        0usize..=10,
        any::<u8>(),
    );
    fields.prop_map(
        |((ipv4, tcp, seq, ack), (window, tos, df, id), options, flags)| {
            let mut spec = Spec::new(ipv4, tcp);
            (spec.seq, spec.ack, spec.window, spec.tos, spec.df, spec.id) =
                (seq, ack, window, tos, df, id);
            spec.options = noise(seq.into(), options * 4);
            spec.flags = flags;
            spec
        },
    )
}

proptest! {
    #[test]
    fn equals_the_naive_one(spec in specs(), len in 1usize..20_000, gso_size in 1usize..9000) {
        let spec = spec.payload(noise(1, len));
        let header = gso_header(&spec, gso_size);
        prop_assert_eq!(split(header, &spec.build_partial()).unwrap(), naive_split(&spec, gso_size));
    }

    #[test]
    fn garbage_is_an_error_or_packets(
        header: [u8; 10],
        mut packet in prop::collection::vec(any::<u8>(), 0..300),
        version in prop::sample::select(vec![0x45u8, 0x60, 0x4f, 0x00]),
        kind in prop::sample::select(vec![0u8, 1, 3, 4, 5, 0x81, 0x84]),
        fitting: bool,
    ) {
        let mut header = VirtioNetHeader::decode(&header);
        header.gso_type = kind;
        header.csum_start %= 80;
        header.csum_offset %= 20;
        if let Some(first) = packet.first_mut() {
            *first = version;
        }
        if fitting && packet.len() >= 60 {
            let len = u16::try_from(packet.len()).unwrap();
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[6..8].fill(0);
            packet[9] = if kind == 5 { 17 } else { 6 };
            if version == 0x60 {
                packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
                packet[6] = packet[9];
            }
        }
        if let Ok(packets) = split(header, &packet) {
            prop_assert!(!packets.is_empty());
        }
    }
}

#[test]
fn flags_go_where_they_belong() {
    let mut spec = Spec::new(true, true).payload(noise(3, 3000));
    spec.flags = ACK | PSH | FIN | CWR | ECE;
    let mut header = gso_header(&spec, 1000);
    header.gso_type |= GSO_ECN;
    let flags: Vec<_> = split(header, &spec.build_partial())
        .unwrap()
        .iter()
        .map(|p| p[33])
        .collect();
    assert_eq!(flags, [ACK | ECE | CWR, ACK | ECE, ACK | ECE | PSH | FIN]);
}

#[test]
fn thousands_of_segments_all_go_out() {
    for (ipv4, tcp) in [(true, true), (false, true), (true, false), (false, false)] {
        let spec = Spec::new(ipv4, tcp).payload(noise(4, 40_000));
        let packets = split(gso_header(&spec, 8), &spec.build_partial()).unwrap();
        assert_eq!(packets.len(), 5000);
        assert_eq!(packets, naive_split(&spec, 8));
    }
}

#[test]
fn lengths_at_the_top() {
    // The longest IPv6 packet has 65,535 bytes behind its header (65,575 in all), which 16 bits cannot count.
    let mut spec = Spec::new(false, true);
    spec.payload = noise(5, 65_535 - 20);
    assert_eq!(
        split(gso_header(&spec, 1400), &spec.build_partial()).unwrap(),
        naive_split(&spec, 1400)
    );
    // As one segment, too.
    assert_eq!(
        split(gso_header(&spec, 65_535), &spec.build_partial()).unwrap(),
        [spec.build()]
    );
    spec.ipv4 = true;
    spec.payload.truncate(65_535 - 40);
    assert_eq!(
        split(gso_header(&spec, 65_495), &spec.build_partial()).unwrap(),
        [spec.build()]
    );
    // A segment that no length field could describe.
    spec.payload.push(0);
    spec.payload.push(0);
    let header = gso_header(&spec, 65_535);
    assert_eq!(
        split(header, &spec.build_partial()),
        Err(SplitError::TooLong)
    );
    assert_eq!(
        split(gso_header(&spec, 1400), &spec.build_partial())
            .unwrap()
            .len(),
        47
    );
}

#[test]
fn payload_within_one_segment_or_none() {
    for tcp in [true, false] {
        let spec = Spec::new(true, tcp).payload(noise(6, 100));
        assert_eq!(
            split(gso_header(&spec, 100), &spec.build_partial()).unwrap(),
            [spec.build()]
        );
        let spec = spec.payload(vec![]);
        assert_eq!(
            split(gso_header(&spec, 100), &spec.build_partial()).unwrap(),
            [spec.build()]
        );
    }
}

#[test]
fn single_packets_pass_and_checksums_are_completed() {
    for (ipv4, tcp) in [(true, true), (false, true), (true, false), (false, false)] {
        for len in [0, 1, 2, 63, 1371, 1372] {
            let spec = Spec::new(ipv4, tcp).payload(noise(7, len));
            let header = VirtioNetHeader {
                gso_type: GSO_NONE,
                gso_size: 0,
                ..gso_header(&spec, 1)
            };
            assert_eq!(
                split(header, &spec.build_partial()).unwrap(),
                [spec.build()]
            );
            let plain = VirtioNetHeader::default();
            assert_eq!(
                split(plain, &spec.build_partial()).unwrap(),
                [spec.build_partial()]
            );
        }
    }
    // What is no IP packet at all is for others to judge.
    assert_eq!(split(VirtioNetHeader::default(), &[1]).unwrap(), [[1]]);
}

/// A packet whose transport checksum computes to zero.
fn checksum_zero(ipv4: bool, tcp: bool) -> Spec {
    let mut spec = Spec::new(ipv4, tcp).payload(vec![0; 4]);
    let mut packet = spec.build();
    let at = spec.ip_len() + if tcp { 16 } else { 6 };
    packet[at..at + 2].fill(0);
    let mut data = pseudo(&packet, spec.ip_len(), tcp, packet.len() - spec.ip_len());
    data.extend(&packet[spec.ip_len()..]);
    spec.payload[..2].copy_from_slice(&naive_checksum(&data).to_be_bytes());
    spec
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_ffff() {
    for ipv4 in [true, false] {
        for (tcp, expected) in [(false, [0xff, 0xff]), (true, [0, 0])] {
            let spec = checksum_zero(ipv4, tcp);
            let at = spec.ip_len() + if tcp { 16 } else { 6 };
            for header in [
                VirtioNetHeader {
                    gso_type: GSO_NONE,
                    ..gso_header(&spec, 1)
                },
                gso_header(&spec, 1000),
            ] {
                let packets = split(header, &spec.build_partial()).unwrap();
                assert_eq!(packets[0][at..at + 2], expected, "tcp {tcp}");
            }
        }
    }
}

/// Puts a destination-options or routing header between IPv6 and transport header.
fn with_extension(packet: &[u8], kind: u8) -> Vec<u8> {
    let mut extended = packet.to_vec();
    let next_header = extended[6];
    extended[6] = kind;
    extended.splice(
        40..40,
        [next_header, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    let len = u16::try_from(extended.len() - 40).unwrap();
    extended[4..6].copy_from_slice(&len.to_be_bytes());
    extended
}

#[test]
fn ipv6_extension_headers_are_repeated() {
    for tcp in [true, false] {
        for kind in [60, 43, 0] {
            let spec = Spec::new(false, tcp).payload(noise(8, 2500));
            // The transport header and its checksum do not know of the extension header.
            let expected: Vec<_> = naive_split(&spec, 1000)
                .iter()
                .map(|packet| with_extension(packet, kind))
                .collect();
            let header = VirtioNetHeader {
                csum_start: 56,
                ..gso_header(&spec, 1000)
            };
            let packet = with_extension(&spec.build_partial(), kind);
            assert_eq!(split(header, &packet).unwrap(), expected);
        }
    }
    // UDP behind an extension header, as a single packet with a checksum of zero.
    let spec = checksum_zero(false, false);
    let header = VirtioNetHeader {
        gso_type: GSO_NONE,
        csum_start: 56,
        ..gso_header(&spec, 1)
    };
    let packets = split(header, &with_extension(&spec.build_partial(), 60)).unwrap();
    assert_eq!(packets[0][62..64], [0xff, 0xff]);
}

#[test]
fn ipv4_options_are_repeated() {
    let spec = Spec::new(true, true).payload(noise(9, 2500));
    let with_options = |packet: &[u8], seed: bool| {
        let mut packet = packet.to_vec();
        packet[0] = 0x46;
        packet.splice(20..20, [1, 1, 1, 0]);
        let len = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        if !seed {
            finish(&mut packet, 24, true);
        }
        packet
    };
    let expected: Vec<_> = naive_split(&spec, 1000)
        .iter()
        .map(|packet| with_options(packet, false))
        .collect();
    let header = VirtioNetHeader {
        csum_start: 24,
        ..gso_header(&spec, 1000)
    };
    assert_eq!(
        split(header, &with_options(&spec.build_partial(), true)).unwrap(),
        expected
    );
}

#[test]
fn without_partial_checksum_it_is_computed_all_the_same() {
    for tcp in [true, false] {
        let spec = Spec::new(false, tcp).payload(noise(10, 2500));
        let header = VirtioNetHeader {
            flags: 0,
            csum_start: 0,
            csum_offset: 0,
            ..gso_header(&spec, 999)
        };
        assert_eq!(
            split(header, &spec.build()).unwrap(),
            naive_split(&spec, 999)
        );
    }
}

#[test]
fn nonsense_is_named() {
    let spec = Spec::new(true, true).payload(noise(11, 3000));
    let packet = spec.build_partial();
    let header = gso_header(&spec, 1000);
    let change = |at: usize, byte: u8| {
        let mut packet = packet.clone();
        packet[at] = byte;
        packet
    };
    let checksum = |start, offset| SplitError::Checksum { start, offset };
    let none = VirtioNetHeader {
        gso_type: GSO_NONE,
        ..header
    };
    let ipv6 = Spec::new(false, true)
        .payload(noise(12, 3000))
        .build_partial();
    let cases: [(VirtioNetHeader, &[u8], SplitError); 19] = [
        (none, &[], SplitError::Truncated),
        (header, &[], SplitError::Truncated),
        (header, &packet[..19], SplitError::Truncated),
        (header, &packet[..40], SplitError::Headers),
        (
            VirtioNetHeader {
                gso_size: 0,
                ..header
            },
            &packet,
            SplitError::GsoSize,
        ),
        (
            VirtioNetHeader {
                gso_type: GSO_UDP,
                ..header
            },
            &packet,
            SplitError::GsoType(3),
        ),
        (
            VirtioNetHeader {
                gso_type: 2,
                ..header
            },
            &packet,
            SplitError::GsoType(2),
        ),
        (
            VirtioNetHeader {
                gso_type: GSO_TCPV6,
                ..header
            },
            &packet,
            SplitError::Headers,
        ),
        (
            VirtioNetHeader {
                gso_type: GSO_UDP_L4,
                csum_offset: 6,
                ..header
            },
            &packet,
            SplitError::Headers,
        ),
        (
            VirtioNetHeader {
                csum_offset: 6,
                ..header
            },
            &packet,
            checksum(20, 6),
        ),
        (
            VirtioNetHeader {
                csum_start: 24,
                ..header
            },
            &packet,
            checksum(24, 16),
        ),
        (
            VirtioNetHeader {
                csum_start: 65_535,
                csum_offset: 65_535,
                ..none
            },
            &packet,
            checksum(65_535, 65_535),
        ),
        (
            VirtioNetHeader {
                csum_start: 20,
                csum_offset: 3019,
                ..none
            },
            &packet,
            checksum(20, 3019),
        ),
        (
            VirtioNetHeader {
                csum_start: 0,
                ..gso_header(&Spec::new(false, true), 9)
            },
            &ipv6,
            checksum(0, 16),
        ),
        (
            VirtioNetHeader {
                csum_start: 48,
                ..gso_header(&Spec::new(false, true), 9)
            },
            &ipv6,
            SplitError::Headers,
        ),
        (header, &change(0, 0x44), SplitError::Headers),
        (header, &change(6, 0x20), SplitError::Headers),
        (header, &change(32, 0x40), SplitError::Headers),
        (header, &change(9, 17), SplitError::Headers),
    ];
    for (case, (header, packet, error)) in cases.into_iter().enumerate() {
        assert_eq!(split(header, packet), Err(error), "case {case}");
    }
    // A TCP header that claims to be longer than the packet.
    let short = Spec::new(true, true).payload(vec![1; 4]);
    let mut packet = short.build_partial();
    packet[32] = 0xf0;
    assert_eq!(
        split(gso_header(&short, 2), &packet),
        Err(SplitError::Truncated)
    );
}
