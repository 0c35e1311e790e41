//! Packets and checksums the slow and obvious way.

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// RFC 1071, not complemented: zero only if all is zero.
pub(crate) fn naive_sum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for piece in pieces {
        for pair in piece.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

pub(crate) fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The pseudo header of TCP or UDP; `packet` has a whole IP header.
pub(crate) fn pseudo(packet: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = if packet[0] >> 4 == 4 {
        packet[12..20].to_vec()
    } else {
        packet[8..40].to_vec()
    };
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// The fields of a TCP or UDP packet without IP options.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) ipv4: bool,
    pub(crate) tcp: bool,
    pub(crate) host: u8,
    pub(crate) port: u16,
    pub(crate) seq: u32,
    pub(crate) flags: u8,
    /// TCP options, a multiple of four bytes, at most 40.
    pub(crate) options: Vec<u8>,
    pub(crate) tos: u8,
    pub(crate) df: bool,
    pub(crate) id: u16,
    pub(crate) payload: Vec<u8>,
}

impl Spec {
    pub(crate) fn transport(&self) -> usize {
        if self.ipv4 { 20 } else { 40 }
    }

    pub(crate) fn protocol(&self) -> u8 {
        if self.tcp { TCP } else { UDP }
    }

    /// Offset of the checksum in the transport header.
    pub(crate) fn check(&self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    pub(crate) fn header_len(&self) -> usize {
        self.transport() + if self.tcp { 20 + self.options.len() } else { 8 }
    }

    /// The packet with all checksums right.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut packet = self.headers();
        packet.extend(&self.payload);
        finish(&mut packet, self.transport(), self.tcp);
        packet
    }

    /// The packet as a TUN device delivers it: the checksum field holds the sum of the pseudo header only.
    pub(crate) fn build_partial(&self) -> Vec<u8> {
        let mut packet = self.build();
        let at = self.transport();
        let sum = naive_sum(&[&pseudo(&packet, self.protocol(), packet.len() - at)]);
        put16(&mut packet, at + self.check(), sum);
        packet
    }

    fn headers(&self) -> Vec<u8> {
        let len = self.header_len() + self.payload.len();
        let mut packet = Vec::with_capacity(len);
        if self.ipv4 {
            packet.extend([0x45, self.tos]);
            packet.extend((len as u16).to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend([u8::from(self.df) << 6, 0, 64, self.protocol(), 0, 0]);
            packet.extend([10, 0, 0, self.host, 10, 0, 1, 2]);
        } else {
            packet.extend([0x60 | self.tos >> 4, self.tos << 4, 0x12, 0x34]);
            packet.extend(((len - 40) as u16).to_be_bytes());
            packet.extend([self.protocol(), 64]);
            packet.extend([0xfd; 15]);
            packet.push(self.host);
            packet.extend([0xfc; 16]);
        }
        packet.extend(self.port.to_be_bytes());
        packet.extend(443_u16.to_be_bytes());
        if self.tcp {
            packet.extend(self.seq.to_be_bytes());
            packet.extend([
                0,
                0,
                0,
                77,
                (5 + self.options.len() as u8 / 4) << 4,
                self.flags,
            ]);
            packet.extend([1, 0xf5, 0, 0, 0, 0]);
            packet.extend(&self.options);
        } else {
            packet.extend(((len - self.transport()) as u16).to_be_bytes());
            packet.extend([0, 0]);
        }
        packet
    }
}

/// Sets the checksums of IPv4 header and transport header; nothing where there is no room for them.
pub(crate) fn finish(packet: &mut [u8], transport: usize, tcp: bool) {
    let at = transport + if tcp { 16 } else { 6 };
    if packet.len() < at + 2 || packet.len() < 40 && packet[0] >> 4 != 4 {
        return;
    }
    if packet[0] >> 4 == 4 {
        put16(packet, 10, 0);
        let check = !naive_sum(&[&packet[..transport]]);
        put16(packet, 10, check);
    }
    put16(packet, at, 0);
    let protocol = if tcp { TCP } else { UDP };
    let pseudo = pseudo(packet, protocol, packet.len() - transport);
    let check = match !naive_sum(&[&pseudo, &packet[transport..]]) {
        0 if !tcp => 0xffff,
        check => check,
    };
    put16(packet, at, check);
}
