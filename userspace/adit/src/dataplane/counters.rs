//! What the data threads count. Each group is written by one thread, but for rare things that the
//! control thread adds to the first queue's, and read by anybody.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use adit_kernel::udp::SendReport;

use super::helper::Report;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`; nothing is touched for 0.
    pub fn add(&self, count: u64) {
        if count != 0 {
            self.0.fetch_add(count, Relaxed);
        }
    }

    /// Adds a length or number of items.
    pub fn add_len(&self, count: usize) {
        self.add(count as u64);
    }

    /// Overwrites the value; for numbers that are counted elsewhere.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value by now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! counters {
    ($(#[$outer:meta])* $group:ident { $($(#[$doc:meta])* $name:ident,)* }) => {
        $(#[$outer])*
        // Aligned so that no two threads write to one cache line, nor to a prefetched pair.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct $group { $($(#[$doc])* pub $name: Counter,)* }

        impl $group {
            /// Name and value of each counter.
            pub fn values(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name.get()),)*].into_iter()
            }

            /// Adds to each counter the one of `other`.
            pub fn absorb(&self, other: &Self) {
                $(self.$name.add(other.$name.get());)*
            }
        }
    };
}

counters! {
    /// From the TUN device to the network.
    Egress {
        /// System calls that read from the TUN device and returned a packet.
        tun_reads,
        /// Inner packets in what was read: a super-packet counts its segments.
        tun_read_packets,
        /// Messages the kernel took; one may carry many datagrams.
        udp_sends,
        /// Those of them that the kernel cuts up (UDP_SEGMENT).
        udp_gso_sends,
        /// Datagrams in those messages.
        udp_sent_datagrams,
        /// Datagrams that went out by AF_XDP instead.
        xsk_sent_datagrams,
        /// `sendmmsg` system calls.
        udp_send_calls,
        /// Messages sent one datagram at a time after the kernel refused to cut them up.
        udp_gso_refused,
        /// Times the kernel gave UDP_SEGMENT up for good (EIO).
        udp_gso_disabled,
        /// Times a cached source address had to be forgotten.
        udp_sources_forgotten,
        /// Waits for room in the socket's buffer or the device's queue.
        udp_send_waits,
        /// Datagrams larger than their path, which the kernel sends in fragments.
        udp_fragmented_datagrams,
        /// Datagrams sent with "don't fragment", to learn of narrow routers.
        path_mtu_probes,
        /// Senders of inner packets told (ICMP) that the path to the peer is narrower.
        path_mtu_told,
        /// Those that were not, because many had been.
        path_mtu_told_limited,
        /// TCP flows whose large packets seemed to be lost on the path.
        path_mtu_stalls,
        /// Sends repeated after an error that an earlier datagram may have left on the socket.
        udp_send_retries,
        /// Batches that a helper thread sealed.
        egress_helper_batches,
        /// Batches given to a helper that had not begun when the thread needed them.
        egress_helper_takeovers,
        /// Times a sleeping helper was woken.
        egress_helper_wakes,
        /// Heap allocations of this thread since its start-up was over.
        egress_allocations,
        /// Dropped: not IPv4 or IPv6, or lengths that contradict each other.
        drop_egress_malformed,
        /// Dropped: the offload header from the TUN device makes no sense.
        drop_egress_offload,
        /// Dropped: no peer has the destination among its allowed-ips.
        drop_egress_no_route,
        /// Dropped: the peer's endpoint is not known.
        drop_egress_no_endpoint,
        /// Dropped: the session's counter is used up.
        drop_egress_exhausted,
        /// Dropped: there is no UDP socket of the endpoint's family.
        drop_egress_no_socket,
        /// Datagrams that the kernel refused for good.
        drop_egress_send_error,
        /// Datagrams that the kernel took by AF_XDP, and dropped.
        drop_egress_xsk,
    }
}

counters! {
    /// From the network to the TUN device.
    Ingress {
        /// Messages from the UDP sockets; one may carry many datagrams (UDP_GRO).
        udp_receives,
        /// Datagrams in those messages.
        udp_received_datagrams,
        /// Those of them that are data messages of a live session.
        udp_received_data,
        /// Datagrams from AF_XDP sockets.
        xsk_received_datagrams,
        /// Those of them that are data messages of a live session.
        xsk_received_data,
        /// `recvmmsg` system calls that returned something.
        udp_receive_calls,
        /// Writes to the TUN device.
        tun_writes,
        /// Inner packets in those writes.
        tun_written_packets,
        /// Coalesced packets that the device refused, and that were written one by one.
        tun_writes_refused,
        /// Handshake messages passed on to the control thread.
        handshake_messages,
        /// Batches that a helper thread opened.
        ingress_helper_batches,
        /// Batches given to a helper that had not begun when the thread needed them.
        ingress_helper_takeovers,
        /// Times a sleeping helper was woken.
        ingress_helper_wakes,
        /// Heap allocations of this thread since its start-up was over.
        ingress_allocations,
        /// Dropped: datagrams of length zero.
        drop_ingress_empty,
        /// Dropped: longer than the receive buffer.
        drop_ingress_truncated,
        /// Dropped: no WireGuard message, or of a wrong length.
        drop_ingress_malformed,
        /// Dropped: more handshake messages than the control thread can take.
        drop_ingress_handshake_queue,
        /// Dropped: no session has the receiver index.
        drop_ingress_unknown_index,
        /// Dropped: the session is too old.
        drop_ingress_expired,
        /// Dropped: not sealed with the session's key.
        drop_ingress_unauthentic,
        /// Dropped: seen before, or too far behind.
        drop_ingress_replayed,
        /// Dropped: authentic, but no valid IP packet inside.
        drop_ingress_inner_malformed,
        /// Dropped: the inner source address is not the sending peer's.
        drop_ingress_inner_source,
        /// Dropped: congestion marked on a packet that cannot carry the mark (RFC 6040).
        drop_ingress_ecn,
        /// Dropped: the TUN device refused the packet.
        drop_ingress_tun_write,
        /// Dropped by the kernel: the ring of an AF_XDP socket was full.
        drop_ingress_xsk_ring,
        /// Dropped by the kernel: too long for a frame of an AF_XDP socket, or no memory. Or by us: not what
        /// the program sends there.
        drop_ingress_xsk_frame,
    }
}

impl Egress {
    /// Notes what became of the batches that a helper was offered.
    pub(super) fn note_help(&self, report: Report) {
        self.egress_helper_batches.set(report.helped);
        self.egress_helper_takeovers.set(report.takeovers);
        self.egress_helper_wakes.set(report.wakes);
    }

    /// Adds what one call of [`SendBatch::send`](adit_kernel::udp::SendBatch::send) reports, but
    /// for its drops.
    pub fn count_sends(&self, report: &SendReport) {
        self.udp_sends.add(report.messages);
        self.udp_gso_sends.add(report.gso_sends);
        self.udp_sent_datagrams.add(report.datagrams);
        self.path_mtu_probes.add(report.probes);
        self.udp_send_calls.add(report.syscalls);
        self.udp_gso_refused.add(report.gso_refused);
        self.udp_gso_disabled.add(report.gso_disabled);
        self.udp_sources_forgotten.add(report.sources_forgotten);
        self.udp_send_waits.add(report.waits);
        self.udp_send_retries.add(report.retries);
    }
}

impl Ingress {
    /// Notes what became of the batches that a helper was offered.
    pub(super) fn note_help(&self, report: Report) {
        self.ingress_helper_batches.set(report.helped);
        self.ingress_helper_takeovers.set(report.takeovers);
        self.ingress_helper_wakes.set(report.wakes);
    }
}

/// What the threads of one queue count.
#[derive(Debug, Default)]
pub struct Queue {
    /// Egress thread.
    pub egress: Egress,
    /// Ingress thread.
    pub ingress: Ingress,
}

/// All counters of one tunnel device.
#[derive(Debug)]
pub struct Counters {
    queues: Box<[Queue]>,
}

impl Counters {
    /// Zeroes for so many queues, at least one.
    pub fn new(queues: usize) -> Self {
        Self {
            queues: (0..queues.max(1)).map(|_| Queue::default()).collect(),
        }
    }

    /// Those of one queue's threads.
    ///
    /// # Panics
    /// If there are fewer queues.
    pub fn of(&self, queue: usize) -> &Queue {
        &self.queues[queue]
    }

    /// The sums over all queues by now.
    pub fn sum(&self) -> Queue {
        let sum = Queue::default();
        for queue in &self.queues {
            sum.egress.absorb(&queue.egress);
            sum.ingress.absorb(&queue.ingress);
        }
        sum
    }

    /// Appends one `adit_NAME=VALUE` line each, summed over the queues; wg(8) skips keys it does
    /// not know.
    pub fn describe(&self, answer: &mut String) {
        // Writing to a String cannot fail.
        let _ = writeln!(answer, "adit_queues={}", self.queues.len());
        let Queue { egress, ingress } = self.sum();
        let allocations = egress.egress_allocations.get() + ingress.ingress_allocations.get();
        let _ = writeln!(answer, "adit_data_thread_allocations={allocations}");
        for (name, value) in egress.values().chain(ingress.values()) {
            let _ = writeln!(answer, "adit_{name}={value}");
        }
        if self.queues.len() > 1 {
            for (number, queue) in self.queues.iter().enumerate() {
                let sent =
                    queue.egress.udp_sent_datagrams.get() + queue.egress.xsk_sent_datagrams.get();
                let received = queue.ingress.udp_received_datagrams.get()
                    + queue.ingress.xsk_received_datagrams.get();
                let _ = writeln!(answer, "adit_queue_{number}_sent_datagrams={sent}");
                let _ = writeln!(answer, "adit_queue_{number}_received_datagrams={received}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_described_by_name_and_summed() {
        let counters = Counters::new(2);
        counters.of(0).egress.tun_reads.add(2);
        counters.of(1).egress.tun_reads.add(3);
        counters.of(1).egress.udp_sent_datagrams.add(7);
        counters.of(1).ingress.drop_ingress_ecn.add_len(3);
        let mut text = String::new();
        counters.describe(&mut text);
        for line in [
            "adit_queues=2",
            "adit_tun_reads=5",
            "adit_drop_ingress_ecn=3",
            "adit_queue_0_sent_datagrams=0",
            "adit_queue_1_sent_datagrams=7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(text.lines().all(|line| line.starts_with("adit_")));
    }
}
