//! Putting decrypted packets together: runs of packets of one flow become TSO/USO super-packets for the TUN device,
//! described as iovecs over the decrypted buffers, so that no payload is copied.
//!
//! A packet joins a run only if the kernel, segmenting the super-packet again, would give back that very packet; the
//! rules are those of `tcp_gro_receive` and `udp_gro_receive_segment`, made stricter where GRO forgives. What this
//! gives to the kernel, [`crate::split`] takes apart into the original packets, byte for byte, with one exception:
//!
//! **IPv4 identification.** Segmentation numbers the packets of a super-packet consecutively. Packets that may be
//! fragmented are merged only if they are numbered so. The id of a packet with DF set has no meaning (RFC 6864
//! section 4.1: atomic datagrams), and several systems send a constant one, so it is not compared.
//!
//! **UDP without checksum** (allowed in IPv4, usual for VXLAN) is never merged: the kernel accepts UDP super-packets
//! only with a checksum to complete and writes one into every segment, so the datagrams would change on their way.
//! Its own GRO refuses them for the same reason.

mod classify;
mod table;

use std::io::IoSlice;

use arrayvec::ArrayVec;

use self::classify::{Candidate, Class, Kind, checksums_right, classify, same_headers};
use self::table::FlowTable;
use crate::checksum;
use crate::header::{IPV4_CHECK, IPV4_DF, IPV6_LEN, TCP_PSH, get16, get32, pseudo_sum, put16};
use crate::virtio::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VirtioNetHeader};

/// Most segments in one TCP super-packet: as many as 65,535 bytes hold at the smallest MSS in use (536), and a bound
/// for the iovecs of one write (`UIO_MAXIOV` is 1024).
pub const MAX_TCP_SEGMENTS: usize = 128;
/// Most datagrams in one UDP super-packet: `UDP_MAX_SEGMENTS` of the kernels before 6.9, which refuse more.
pub const MAX_UDP_SEGMENTS: usize = 64;
/// Most bytes in one super-packet, IP header included: what the IPv4 total length can say.
pub const MAX_SUPER_PACKET: usize = 65_535;

/// The kinds of super-packet the TUN device accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// TSO over IPv4.
    pub tcp4: bool,
    /// TSO over IPv6.
    pub tcp6: bool,
    /// USO over IPv4.
    pub udp4: bool,
    /// USO over IPv6.
    pub udp6: bool,
}

/// Merges batches of packets. Keeps its memory between batches: once it has seen the largest batch, nothing is
/// allocated.
#[derive(Debug)]
pub struct Coalescer {
    offloads: Offloads,
    flows: FlowTable,
    /// In the order of their first packets.
    runs: Vec<Run>,
    /// For each packet of the batch the next one of its run, or [`LAST`].
    next: Vec<usize>,
}

/// Packets that leave in one write.
#[derive(Debug)]
struct Run {
    first: usize,
    last: usize,
    count: usize,
    /// `None` if the first packet goes alone in any case.
    open: Option<Open>,
}

/// What a run needs to know to grow.
#[derive(Debug)]
struct Open {
    candidate: Candidate,
    /// The first packet's checksums have been verified.
    verified: bool,
    /// Nothing may follow: a PSH, a short segment or a full super-packet.
    closed: bool,
    /// The run ends with a PSH, which the super-packet's header must show.
    push: bool,
    /// Payload bytes of the first packet, and so of every one but the last.
    gso_size: usize,
    /// Bytes of the super-packet so far.
    len: usize,
    next_seq: u32,
}

const LAST: usize = usize::MAX;

impl Coalescer {
    /// A coalescer for a device with these offloads.
    #[must_use]
    pub fn new(offloads: Offloads) -> Self {
        const USUAL_BATCH: usize = 256;
        Self {
            offloads,
            flows: FlowTable::new(),
            runs: Vec::with_capacity(USUAL_BATCH),
            next: Vec::with_capacity(USUAL_BATCH),
        }
    }

    /// Merges `packets`, the inner packets of one batch in arrival order, each exactly as long as its IP header says,
    /// and calls `emit` once for every write to the TUN device, with how many packets are in it. The first slice is
    /// the encoded virtio header, the others are the packet; one `writev` sends them all.
    ///
    /// Writes come in the order of the first packet of each, and packets of one flow are never reordered. A packet
    /// that goes alone has an all-zero virtio header and is not changed. In a merged run the headers of the first
    /// packet are rewritten in place. Empty slices are skipped.
    pub fn coalesce(
        &mut self,
        packets: &mut [&mut [u8]],
        mut emit: impl FnMut(&[IoSlice<'_>], usize),
    ) {
        self.runs.clear();
        self.next.clear();
        self.next.resize(packets.len(), LAST);
        // Run numbers of the last batch mean nothing in this one.
        self.flows.end_all();
        for index in 0..packets.len() {
            if !packets[index].is_empty() {
                self.place(packets, index);
            }
        }
        for run in &self.runs {
            match &run.open {
                Some(open) if run.count > 1 => {
                    let header = open.rewrite(packets[run.first]).encode();
                    self.emit_merged(run, open, &header, packets, &mut emit);
                }
                _ => {
                    let header = [0; VirtioNetHeader::LEN];
                    let slices = [IoSlice::new(&header), IoSlice::new(packets[run.first])];
                    emit(&slices, 1);
                }
            }
        }
    }

    /// Adds one packet to the run of its flow, or starts a new one.
    fn place(&mut self, packets: &[&mut [u8]], index: usize) {
        let packet = &*packets[index];
        let candidate = match classify(packet, self.offloads) {
            Class::Mergeable(candidate) => candidate,
            other => {
                match other {
                    Class::Alone(flow) => self.flows.end(flow),
                    Class::Unclear(addresses) => self.flows.end_between(addresses),
                    Class::Opaque => self.flows.end_all(),
                    Class::Free | Class::Mergeable(_) => {}
                }
                self.start(index, None);
                return;
            }
        };
        let found = self.flows.find(candidate.flow, candidate.addresses);
        if let Some(run) = found.map(|at| &mut self.runs[at]) {
            match run.judge(packets, &candidate, packet) {
                Fit::Joins => {
                    self.next[run.last] = index;
                    run.append(index, packet);
                    return;
                }
                Fit::Corrupt => {
                    self.flows.end(candidate.flow);
                    self.start(index, None);
                    return;
                }
                Fit::StartsAnew => {}
            }
        }
        let open = Open::new(candidate, packet);
        self.flows.insert(candidate.flow, self.runs.len());
        self.start(index, Some(open));
    }

    fn start(&mut self, index: usize, open: Option<Open>) {
        self.runs.push(Run {
            first: index,
            last: index,
            count: 1,
            open,
        });
    }

    fn emit_merged(
        &self,
        run: &Run,
        open: &Open,
        header: &[u8],
        packets: &[&mut [u8]],
        emit: &mut impl FnMut(&[IoSlice<'_>], usize),
    ) {
        let mut slices = ArrayVec::<IoSlice<'_>, { MAX_TCP_SEGMENTS + 1 }>::new();
        slices.push(IoSlice::new(header));
        slices.push(IoSlice::new(packets[run.first]));
        let mut at = self.next[run.first];
        while at != LAST {
            slices.push(IoSlice::new(&packets[at][open.candidate.header_len..]));
            at = self.next[at];
        }
        emit(&slices, run.count);
    }
}

/// How a packet relates to the open run of its flow.
enum Fit {
    Joins,
    StartsAnew,
    /// Its checksum is wrong: it goes alone.
    Corrupt,
}

impl Run {
    fn judge(&mut self, packets: &[&mut [u8]], next: &Candidate, packet: &[u8]) -> Fit {
        let Some(open) = &mut self.open else {
            return Fit::StartsAnew;
        };
        let first = &*packets[self.first];
        if open.closed || !open.continues(self.count, first, next, packet) {
            return Fit::StartsAnew;
        }
        if !open.verified {
            if !checksums_right(open.candidate.kind, first) {
                open.closed = true;
                return Fit::StartsAnew;
            }
            open.verified = true;
        }
        if checksums_right(next.kind, packet) {
            Fit::Joins
        } else {
            Fit::Corrupt
        }
    }

    fn append(&mut self, index: usize, packet: &[u8]) {
        self.last = index;
        self.count += 1;
        if let Some(open) = &mut self.open {
            let payload = packet.len() - open.candidate.header_len;
            open.len += payload;
            open.note_end(packet, payload);
        }
    }
}

impl Open {
    fn new(candidate: Candidate, packet: &[u8]) -> Self {
        let payload = packet.len() - candidate.header_len;
        let mut open = Self {
            candidate,
            verified: false,
            closed: false,
            push: false,
            gso_size: payload,
            len: packet.len(),
            next_seq: 0,
        };
        open.note_end(packet, payload);
        open
    }

    /// Takes note of what the packet that now ends the run means for the next one.
    fn note_end(&mut self, packet: &[u8], payload: usize) {
        let Kind { tcp, .. } = self.candidate.kind;
        if tcp {
            let at = self.candidate.kind.transport();
            self.push = packet[at + 13] & TCP_PSH != 0;
            self.next_seq = get32(packet, at + 4).wrapping_add(low32(payload));
        }
        self.closed = self.push || payload < self.gso_size;
    }

    /// Whether `packet` may be the next segment of this run of `count` packets, checksums apart.
    fn continues(&self, count: usize, first: &[u8], next: &Candidate, packet: &[u8]) -> bool {
        let Candidate {
            kind, header_len, ..
        } = self.candidate;
        if (next.kind, next.header_len) != (kind, header_len) {
            return false;
        }
        let payload = packet.len() - header_len;
        let most = if kind.tcp {
            MAX_TCP_SEGMENTS
        } else {
            MAX_UDP_SEGMENTS
        };
        if payload > self.gso_size || self.len + payload > MAX_SUPER_PACKET || count >= most {
            return false;
        }
        if kind.tcp && get32(packet, kind.transport() + 4) != self.next_seq {
            return false;
        }
        if kind.ipv4 && get16(packet, 6) & IPV4_DF == 0 {
            let numbered = get16(first, 4).wrapping_add(low16(count));
            if get16(packet, 4) != numbered {
                return false;
            }
        }
        same_headers(kind, header_len, first, packet)
    }

    /// Turns the headers of the first packet into those of the super-packet and returns the virtio header for it.
    fn rewrite(&self, packet: &mut [u8]) -> VirtioNetHeader {
        let Candidate {
            kind, header_len, ..
        } = self.candidate;
        let at = kind.transport();
        if kind.ipv4 {
            put16(packet, 2, low16(self.len));
            put16(packet, IPV4_CHECK, 0);
            let check = checksum::finish(checksum::sum(&packet[..at]));
            put16(packet, IPV4_CHECK, check);
        } else {
            put16(packet, 4, low16(self.len - IPV6_LEN));
        }
        let transport_len = self.len - at;
        if self.push {
            packet[at + 13] |= TCP_PSH;
        }
        if !kind.tcp {
            put16(packet, at + 4, low16(transport_len));
        }
        // Not complemented: the partial sum that whoever completes the checksum starts from.
        let seed = pseudo_sum(packet, kind.ipv4, kind.protocol()) + transport_len as u64;
        put16(packet, at + kind.check(), checksum::fold(seed));
        VirtioNetHeader {
            flags: F_NEEDS_CSUM,
            gso_type: match (kind.tcp, kind.ipv4) {
                (true, true) => GSO_TCPV4,
                (true, false) => GSO_TCPV6,
                (false, _) => GSO_UDP_L4,
            },
            hdr_len: low16(header_len),
            gso_size: low16(self.gso_size),
            csum_start: low16(at),
            csum_offset: low16(kind.check()),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "lengths are at most MAX_SUPER_PACKET"
)]
const fn low16(value: usize) -> u16 {
    value as u16
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "lengths are at most MAX_SUPER_PACKET"
)]
const fn low32(value: usize) -> u32 {
    value as u32
}
