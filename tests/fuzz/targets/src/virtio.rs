//! The virtio header: any bytes in front of packets that are in order.

use adit_packet::virtio::VirtioNetHeader;

use crate::script::{Script, noise};
use crate::split;
use crate::wire::Spec;

/// The bytes are a packet's kind, its payload's length and a header.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let kind = script.byte();
    let length = script.below(2000);
    let mut header = [0; VirtioNetHeader::LEN];
    let given = script.bytes(VirtioNetHeader::LEN);
    header[..given.len()].copy_from_slice(given);
    let decoded = VirtioNetHeader::decode(&header);
    assert_eq!(decoded.encode(), header);
    let spec = Spec {
        ipv4: kind & 1 != 0,
        tcp: kind & 2 != 0,
        host: 1,
        port: 53,
        seq: u32::MAX,
        flags: 0x99,
        options: vec![1; usize::from(kind >> 6) * 4],
        tos: 0,
        df: true,
        id: u16::MAX,
        payload: noise(3, length),
    };
    let packet = if kind & 4 != 0 {
        spec.build()
    } else {
        spec.build_partial()
    };
    split::check(decoded, &packet);
}
