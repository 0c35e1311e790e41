//! One TCP super-packet, as a TUN device with offloads delivers it, split into packets of the size of the wire, and put
//! together again on the other side.
//!
//! `cargo run --package adit-packet --example super_packet`
#![expect(clippy::print_stdout, reason = "it shows what happens")]

use std::error::Error;

use adit_packet::checksum;
use adit_packet::coalesce::{Coalescer, Offloads};
use adit_packet::split::Splitter;
use adit_packet::virtio::{F_NEEDS_CSUM, GSO_TCPV4, VirtioNetHeader};

/// Bytes of an IPv4 and of a TCP header without options.
const IP: usize = 20;
const TCP: usize = 20;
/// Payload bytes of each packet: an MTU of 1420.
const SEGMENT: u16 = 1380;

/// A super-packet from 10.0.0.1 to 10.0.0.2 with `payload` bytes, and the header that the kernel puts in front of it.
fn super_packet(payload: usize) -> Result<(VirtioNetHeader, Vec<u8>), Box<dyn Error>> {
    let (source, destination) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let total = u16::try_from(IP + TCP + payload)?;
    let mut packet = vec![0; IP];
    (packet[0], packet[6], packet[8], packet[9]) = (0x45, 0x40, 64, 6);
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&destination);
    let sum = checksum::finish(checksum::sum(&packet));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());

    let mut tcp = [0; TCP];
    tcp[0..2].copy_from_slice(&40_000_u16.to_be_bytes());
    tcp[2..4].copy_from_slice(&443_u16.to_be_bytes());
    // Five words of header; ACK and PSH.
    (tcp[12], tcp[13], tcp[15]) = (5 << 4, 0x18, 1);
    // The kernel leaves the sum of the pseudo header, to be completed in each segment.
    let length = total - u16::try_from(IP)?;
    let seed = checksum::fold(checksum::pseudo_v4(source, destination, 6, length));
    tcp[16..18].copy_from_slice(&seed.to_be_bytes());
    packet.extend(tcp);
    packet.extend((0..payload).map(|at| (at % 251).to_le_bytes()[0]));

    let header = VirtioNetHeader {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        gso_size: SEGMENT,
        csum_start: u16::try_from(IP)?,
        csum_offset: 16,
        ..VirtioNetHeader::default()
    };
    Ok((header, packet))
}

fn main() -> Result<(), Box<dyn Error>> {
    let (header, original) = super_packet(20_000)?;
    println!("super-packet of {} bytes", original.len());

    // To the network: each packet is written where it would be sealed.
    let mut splitter = Splitter::new(header, &original)?;
    let mut packets = Vec::new();
    while let Some(length) = splitter.next_len() {
        let mut slot = vec![0; length];
        splitter
            .write_next(&mut slot)
            .ok_or("the slot is too small")?;
        packets.push(slot);
    }
    let lengths: Vec<_> = packets.iter().map(Vec::len).collect();
    println!("split into {} packets of {lengths:?} bytes", packets.len());

    // From the network: what was opened goes to the TUN device in as few writes as can be.
    let mut coalescer = Coalescer::new(Offloads {
        tcp4: true,
        ..Offloads::default()
    });
    let mut writes = Vec::new();
    let mut opened: Vec<_> = packets.iter_mut().map(Vec::as_mut_slice).collect();
    coalescer.coalesce(&mut opened, |slices, count| {
        let (header, packet) = (&slices[0], &slices[1..]);
        println!("one write of {count} packets, {} slices", slices.len());
        let packet: Vec<u8> = packet.iter().flat_map(|slice| slice.to_vec()).collect();
        writes.push((header.to_vec(), packet));
    });

    let [(written_header, written)] = &writes[..] else {
        return Err("expected one write".into());
    };
    let encoded: &[u8; VirtioNetHeader::LEN] = written_header.as_slice().try_into()?;
    let merged = VirtioNetHeader::decode(encoded);
    println!("{} bytes, segments of {}", written.len(), merged.gso_size);
    if *written != original || merged.gso_size != header.gso_size {
        return Err("it is not what was split".into());
    }
    Ok(())
}
