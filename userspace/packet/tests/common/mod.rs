//! Packets to test with, built and taken apart the slow and obvious way.
#![allow(
    dead_code,
    clippy::cast_possible_truncation,
    reason = "each test binary uses its part; lengths in tests are small"
)]

pub(crate) const ACK: u8 = 0x10;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const FIN: u8 = 0x01;
pub(crate) const CWR: u8 = 0x80;
pub(crate) const ECE: u8 = 0x40;

/// RFC 1071 over a list of pieces that each start at an even offset, complemented.
pub(crate) fn naive_checksum(data: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in data.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The fields of a TCP or UDP packet.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) ipv4: bool,
    pub(crate) tcp: bool,
    pub(crate) host: u8,
    pub(crate) port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) df: bool,
    pub(crate) id: u16,
    pub(crate) payload: Vec<u8>,
}

impl Spec {
    pub(crate) fn new(ipv4: bool, tcp: bool) -> Self {
        Self {
            ipv4,
            tcp,
            host: 1,
            port: 5201,
            seq: 0xffff_f000,
            ack: 77,
            flags: ACK,
            window: 501,
            options: vec![],
            tos: 0,
            ttl: 64,
            df: true,
            id: 0xfffe,
            payload: vec![],
        }
    }

    pub(crate) fn payload(mut self, payload: Vec<u8>) -> Self {
        self.payload = payload;
        self
    }

    pub(crate) fn ip_len(&self) -> usize {
        if self.ipv4 { 20 } else { 40 }
    }

    pub(crate) fn header_len(&self) -> usize {
        self.ip_len() + if self.tcp { 20 + self.options.len() } else { 8 }
    }

    /// The packet with all checksums right.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut packet = self.build_headers();
        packet.extend(&self.payload);
        finish(&mut packet, self.ip_len(), self.tcp);
        packet
    }

    fn build_headers(&self) -> Vec<u8> {
        let len = self.header_len() + self.payload.len();
        let mut packet = Vec::with_capacity(len);
        let protocol = if self.tcp { 6 } else { 17 };
        if self.ipv4 {
            packet.extend([0x45, self.tos]);
            packet.extend((len as u16).to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend([if self.df { 0x40 } else { 0 }, 0, self.ttl, protocol, 0, 0]);
            packet.extend([10, 0, 0, self.host, 10, 0, 1, 2]);
        } else {
            packet.extend([0x60 | self.tos >> 4, self.tos << 4, 0x12, 0x34]);
            packet.extend(((len - 40) as u16).to_be_bytes());
            packet.extend([protocol, self.ttl]);
            packet.extend([0xfd; 15]);
            packet.push(self.host);
            packet.extend([0xfc; 16]);
        }
        packet.extend(self.port.to_be_bytes());
        packet.extend(443u16.to_be_bytes());
        if self.tcp {
            packet.extend(self.seq.to_be_bytes());
            packet.extend(self.ack.to_be_bytes());
            packet.push((5 + self.options.len() as u8 / 4) << 4);
            packet.push(self.flags);
            packet.extend(self.window.to_be_bytes());
            packet.extend([0; 4]);
            packet.extend(&self.options);
        } else {
            packet.extend(((len - self.ip_len()) as u16).to_be_bytes());
            packet.extend([0; 2]);
        }
        packet
    }

    /// The packet as a TUN device delivers it: the checksum field holds the folded pseudo header only.
    pub(crate) fn build_partial(&self) -> Vec<u8> {
        let mut packet = self.build();
        let at = self.ip_len() + if self.tcp { 16 } else { 6 };
        let transport_len = packet.len() - self.ip_len();
        let seed = !naive_checksum(&pseudo(&packet, self.ip_len(), self.tcp, transport_len));
        packet[at..at + 2].copy_from_slice(&seed.to_be_bytes());
        packet
    }
}

pub(crate) fn pseudo(packet: &[u8], transport: usize, tcp: bool, len: usize) -> Vec<u8> {
    let mut pseudo = if packet[0] >> 4 == 4 {
        packet[12..20].to_vec()
    } else {
        packet[8..40].to_vec()
    };
    assert!(transport >= 20);
    pseudo.extend((len as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, if tcp { 6 } else { 17 }]);
    pseudo
}

/// Sets lengths' dependants: the IPv4 header checksum and the transport checksum.
pub(crate) fn finish(packet: &mut [u8], transport: usize, tcp: bool) {
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let check = naive_checksum(&packet[..transport]);
        packet[10..12].copy_from_slice(&check.to_be_bytes());
    }
    let at = transport + if tcp { 16 } else { 6 };
    packet[at..at + 2].fill(0);
    let mut data = pseudo(packet, transport, tcp, packet.len() - transport);
    data.extend(&packet[transport..]);
    let check = match naive_checksum(&data) {
        0 if !tcp => 0xffff,
        check => check,
    };
    packet[at..at + 2].copy_from_slice(&check.to_be_bytes());
}

/// What segmentation must give for a super-packet with these fields.
pub(crate) fn naive_split(spec: &Spec, gso_size: usize) -> Vec<Vec<u8>> {
    let chunks: Vec<_> = spec.payload.chunks(gso_size).collect();
    let last = chunks.len() - 1;
    let each = chunks.iter().enumerate().map(|(index, chunk)| {
        let mut segment = spec.clone().payload(chunk.to_vec());
        segment.id = spec.id.wrapping_add(index as u16);
        segment.seq = spec.seq.wrapping_add((index * gso_size) as u32);
        if index != last {
            segment.flags &= !(FIN | PSH);
        }
        if index != 0 {
            segment.flags &= !CWR;
        }
        segment.build()
    });
    each.collect()
}

/// Bytes that differ from place to place.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 56) as u8
        })
        .collect()
}
