//! Nonsense written to the TUN device from inside: bad versions, lengths, checksums. The tunnel goes on.

use std::io::IoSlice;
use std::time::Duration;

use adit_kernel::tun::{Tun, TunOptions};
use adit_tests::link::forward;
use adit_tests::packet_socket::PacketSocket;
use adit_tests::ping::ping_all;
use adit_tests::tunnel::{Family, Pair, PairOptions};
use anyhow::{Result, ensure};

/// Repeatable dice.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 20).unwrap_or(0) % sides
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.roll(256)).unwrap_or(0)
    }
}

/// Good packets from left to right, to be spoilt: IPv4 and IPv6, TCP and UDP, checksums wrong from the start.
fn templates() -> Vec<Vec<u8>> {
    let v4 = |protocol: u8, payload: &[u8]| {
        let length = u16::try_from(20 + payload.len())
            .unwrap_or(20)
            .to_be_bytes();
        let mut packet = vec![
            0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 9, 0, 1, 10, 9,
            0, 2,
        ];
        packet.extend_from_slice(payload);
        packet
    };
    let v6 = |protocol: u8, payload: &[u8]| {
        let length = u16::try_from(payload.len()).unwrap_or(0).to_be_bytes();
        let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], protocol, 64];
        for last in [1, 2] {
            packet.extend_from_slice(&[0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        packet.extend_from_slice(payload);
        packet
    };
    let tcp = [
        &[
            0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0xab, 0xcd, 0, 0,
        ][..],
        &[7; 600],
    ]
    .concat();
    let udp = [&[0x10, 0, 0x20, 0, 0x02, 0x60, 0x12, 0x34][..], &[7; 600]].concat();
    vec![
        v4(6, &tcp),
        v4(17, &udp),
        v6(6, &tcp),
        v6(17, &udp),
        v4(50, &[1; 40]),
        v6(44, &[6, 0, 0, 1, 0, 0, 0, 9]),
    ]
}

fn spoil(dice: &mut Dice, packet: &mut Vec<u8>) {
    for _ in 0..=dice.roll(3) {
        match dice.roll(5) {
            0 => packet.truncate(dice.roll(packet.len() + 1)),
            1 => packet.extend((0..dice.roll(200)).map(|_| 0x55)),
            2 if !packet.is_empty() => packet[0] = dice.byte(),
            _ if !packet.is_empty() => {
                let header = packet.len().min(60);
                packet[dice.roll(header)] = dice.byte();
            }
            _ => {}
        }
    }
}

#[test]
fn bad_versions_lengths_and_checksums() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let tun = PacketSocket::open(&pair.left.namespace, pair.left.interface())?;
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 1, 56)?;
    tun.find("a packet on the device", Duration::from_secs(10), |_| {
        Some(())
    })?;
    let mut dice = Dice(0x1234_5678_9abc_def1);
    let templates = templates();
    let mut taken = 0_u32;
    for round in 0..6000 {
        let mut packet = templates[round % templates.len()].clone();
        if round >= 100 {
            spoil(&mut dice, &mut packet);
        }
        // The kernel refuses an empty packet and one above the MTU; the rest goes to the daemon.
        taken += u32::from(tun.send(&packet).is_ok());
        if round % 1000 == 0 {
            ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 2, 1000)?;
        }
    }
    ensure!(taken > 5000, "only {taken} packets reached the device");
    for family in [Family::V4, Family::V6] {
        ping_all(&pair.left.namespace, pair.right.inner(family), 3, 1000)?;
        ping_all(&pair.right.namespace, pair.left.inner(family), 3, 1000)?;
    }
    adit_tests::transfer::tcp_both_ways(&pair.left, &pair.right, Family::V4, 4 << 20)?;
    pair.check_running()
}

/// Packets for nobody: addresses of no peer, and of a peer without an endpoint.
#[test]
fn packets_for_nobody() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let key = &adit_tests::wg::random_public_keys(1)?[0];
    pair.left
        .wg_set(&format!("peer {key} allowed-ips 10.9.0.77/32"))?;
    for target in ["10.9.0.77", "10.9.0.99", "fd09::99"] {
        let received = adit_tests::ping::ping_with(
            &pair.left.namespace,
            target.parse()?,
            200,
            1000,
            &["-i", "0.002", "-W", "0.1"],
        );
        ensure!(
            received.as_ref().map_or(true, |n| *n == 0),
            "{target}: {received:?}"
        );
    }
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 3, 1000)?;
    pair.check_running()
}

/// A virtio header: flags, GSO type, header length, GSO size, checksum start, checksum offset; little-endian.
fn virtio(flags: u8, kind: u8, fields: [u16; 4]) -> Vec<u8> {
    let mut header = vec![flags, kind];
    header.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    header
}

/// Super-packets whose offload fields a careless or hostile guest made up. They come in by another TUN device, as from a
/// virtual machine, and are routed into the tunnel; what the kernel lets through the daemon has to stand.
#[test]
fn offload_fields_made_up_by_a_guest() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions::default())?;
    let namespace = &pair.left.namespace;
    let guest = adit_tests::name::interface();
    let tun = namespace.enter(|| Tun::create(&guest, &TunOptions::default()))??;
    ensure!(
        tun.has_vnet_header(),
        "no virtio header to write nonsense into"
    );
    forward(namespace)?;
    namespace.ip(&format!(
        "link set {guest} mtu 65535 up
         route add 10.55.0.0/24 dev {guest}
         route add fd55::/64 dev {guest}"
    ))?;
    let mut dice = Dice(0xfeed_beef_1234_5671);
    let (mut taken, before) = (
        0_u32,
        adit_tests::uapi::number(pair.left.interface(), "adit_tun_read_packets")?,
    );
    // Types: none, TCP over IPv4, UDP fragmentation, TCP over IPv6, UDP segmentation; with and without the ECN bit.
    let kinds = [0, 1, 3, 4, 5, 0x81, 0x84, 9];
    for round in 0..6000 {
        let mut packet = templates()[round % 4].clone();
        let v4 = packet[0] >> 4 == 4;
        // From the guest's own address, with an IPv4 header checksum that is right.
        if v4 {
            packet[12..16].copy_from_slice(&[10, 55, 0, 2]);
            packet[10..12].copy_from_slice(&[0, 0]);
            let sum = internet_checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            packet[8..10].copy_from_slice(&[0xfd, 0x55]);
        }
        let head = if v4 { 20 } else { 40 };
        let tcp = packet[if v4 { 9 } else { 6 }] == 6;
        let offset = if tcp { 16 } else { 6 };
        let sane = virtio(
            1,
            if !tcp {
                5
            } else if v4 {
                1
            } else {
                4
            },
            [head + 20, 100, head, offset],
        );
        let any = |dice: &mut Dice| {
            u16::try_from([0, 1, 7, 8, 19, 20, 40, 60, 100, 600, 1400, 65_535][dice.roll(12)])
                .unwrap_or(0)
        };
        let header = match round % 3 {
            0 => sane,
            1 => virtio(
                1,
                kinds[dice.roll(kinds.len())],
                [any(&mut dice), any(&mut dice), head, offset],
            ),
            _ => virtio(
                dice.byte() & 3,
                kinds[dice.roll(kinds.len())],
                [0; 4].map(|_| any(&mut dice)),
            ),
        };
        if round >= 600 && dice.roll(2) == 0 {
            // Beyond the addresses, so that it is still routed to the tunnel.
            let at = usize::from(head) + dice.roll(20);
            packet[at] = dice.byte();
        }
        // The device refuses what contradicts itself.
        taken += u32::from(
            tun.write_vectored(&[IoSlice::new(&header), IoSlice::new(&packet)])
                .is_ok(),
        );
    }
    ensure!(taken > 2000, "the kernel took only {taken} packets");
    let read = adit_tests::uapi::number(pair.left.interface(), "adit_tun_read_packets")? - before;
    ensure!(read > 2000, "only {read} packets reached the daemon");
    for family in [Family::V4, Family::V6] {
        ping_all(&pair.left.namespace, pair.right.inner(family), 3, 1000)?;
    }
    adit_tests::transfer::tcp_both_ways(&pair.left, &pair.right, Family::V4, 4 << 20)?;
    pair.check_running()
}

/// The Internet checksum of an even number of bytes.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}
