//! The last step of ingress: inner packets, coalesced, into the TUN device.

use std::io::{self, IoSlice};
use std::sync::Arc;

use adit_kernel::tun::Tun;
use adit_packet::coalesce::{Coalescer, Offloads};
use adit_packet::split::Splitter;
use adit_packet::virtio::VirtioNetHeader;

use super::Dataplane;
use super::delivery::Packets;

/// Writes batches of inner packets to the TUN device.
#[derive(Debug)]
pub(super) struct TunWriter {
    shared: Arc<Dataplane>,
    queue: usize,
    offloads: Offloads,
    coalescer: Coalescer,
    fallback: Fallback,
    device_gone: bool,
}

impl TunWriter {
    pub(super) fn new(shared: Arc<Dataplane>, queue: usize) -> Self {
        let offloads = shared.write_offloads();
        let coalescer = Coalescer::new(offloads);
        Self {
            shared,
            queue,
            offloads,
            coalescer,
            fallback: Fallback::new(),
            device_gone: false,
        }
    }

    /// Whether a write found the device deleted.
    pub(super) fn is_device_gone(&self) -> bool {
        self.device_gone
    }

    /// Writes the packets and empties the list.
    pub(super) fn write(&mut self, packets: &mut Packets<'_>) {
        if packets.is_empty() {
            return;
        }
        let offloads = self.shared.write_offloads();
        if offloads != self.offloads {
            self.offloads = offloads;
            self.coalescer = Coalescer::new(offloads);
        }
        let Self {
            shared,
            queue,
            coalescer,
            fallback,
            device_gone,
            ..
        } = self;
        let counters = &shared.counters.of(*queue).ingress;
        let tun = shared.tun_queue(*queue);
        let mut refused = false;
        coalescer.coalesce(packets, |parts, merged| {
            counters.tun_writes.add(1);
            let Err(error) = write_parts(tun, parts) else {
                return counters.tun_written_packets.add_len(merged);
            };
            *device_gone |= !tun.attached();
            if merged > 1 && error.kind() == io::ErrorKind::InvalidInput {
                refused = true;
                counters.tun_writes_refused.add(1);
                let written = fallback.write_singly(tun, parts);
                counters.tun_written_packets.add_len(written);
                counters
                    .drop_ingress_tun_write
                    .add_len(merged.saturating_sub(written));
                return;
            }
            tracing::trace!(%error, "TUN write");
            counters.drop_ingress_tun_write.add_len(merged);
        });
        packets.clear();
        if refused {
            // Was it this packet, or does the kernel take none at all?
            shared.probe_gro();
        }
    }
}

fn write_parts(tun: &Tun, parts: &[IoSlice<'_>]) -> io::Result<()> {
    let skipped = usize::from(!tun.has_vnet_header());
    tun.write_vectored(&parts[skipped..]).map(drop)
}

/// Takes a super-packet apart again.
#[derive(Debug)]
struct Fallback {
    super_packet: Vec<u8>,
    segment: Box<[u8]>,
}

impl Fallback {
    fn new() -> Self {
        Self {
            super_packet: Vec::with_capacity(65_536),
            segment: vec![0; 65_536].into_boxed_slice(),
        }
    }

    /// Writes each segment on its own; the number that the device took.
    fn write_singly(&mut self, tun: &Tun, parts: &[IoSlice<'_>]) -> usize {
        let Some((header, packets)) = parts.split_first() else {
            return 0;
        };
        let Some(header) = header.first_chunk() else {
            return 0;
        };
        self.super_packet.clear();
        for part in packets {
            self.super_packet.extend_from_slice(part);
        }
        let Ok(mut splitter) = Splitter::new(VirtioNetHeader::decode(header), &self.super_packet)
        else {
            return 0;
        };
        let single = VirtioNetHeader::default().encode();
        let mut written = 0;
        while let Some(len) = splitter.write_next(&mut self.segment) {
            let parts = [IoSlice::new(&single), IoSlice::new(&self.segment[..len])];
            written += usize::from(write_parts(tun, &parts).is_ok());
        }
        written
    }
}
