//! Names of the metrics, and the text that is read.
//!
//! Names follow <https://prometheus.io/docs/practices/naming/>: `adit_`, what, unit, `_total` for what only grows. What is
//! said of the process has the names that Prometheus' own libraries use.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::process::Figures;
use super::snapshot::Snapshot;

/// Longer than the text of a tunnel without peers.
const USUAL_LENGTH: usize = 16 << 10;
/// Longer than the lines of a peer.
const LENGTH_PER_PEER: usize = 640;

/// The daemon's counters by their names in `get=1`, and what they count. One that is not listed is called after its name.
const COUNTERS: [(&str, &str); 48] = [
    (
        "tun_reads",
        "System calls that read a packet from the TUN device.",
    ),
    (
        "tun_read_packets",
        "Inner packets read from the TUN device; a super-packet counts its segments.",
    ),
    ("tun_writes", "Writes to the TUN device."),
    (
        "tun_written_packets",
        "Inner packets written to the TUN device.",
    ),
    (
        "udp_sends",
        "UDP messages that the kernel took; one may carry many datagrams.",
    ),
    (
        "udp_gso_sends",
        "UDP messages that the kernel cuts up (UDP_SEGMENT).",
    ),
    ("udp_sent_datagrams", "Datagrams sent by the UDP socket."),
    (
        "udp_send_calls",
        "System calls that send by the UDP socket.",
    ),
    (
        "udp_gso_refused",
        "Messages sent one datagram at a time after the kernel refused to cut them up.",
    ),
    (
        "udp_gso_disabled",
        "Times the kernel gave UDP_SEGMENT up for good.",
    ),
    (
        "udp_sources_forgotten",
        "Times a cached source address had to be forgotten.",
    ),
    (
        "udp_send_waits",
        "Waits for room in the socket's buffer or the device's queue.",
    ),
    (
        "udp_receives",
        "Messages from the UDP socket; one may carry many datagrams (UDP_GRO).",
    ),
    (
        "udp_received_datagrams",
        "Datagrams received by the UDP socket.",
    ),
    (
        "udp_received_data",
        "Data messages of a live session received by the UDP socket.",
    ),
    (
        "udp_receive_calls",
        "System calls that receive by the UDP socket.",
    ),
    ("xsk_sent_datagrams", "Datagrams sent by AF_XDP."),
    ("xsk_received_datagrams", "Datagrams received by AF_XDP."),
    (
        "xsk_received_data",
        "Data messages of a live session received by AF_XDP.",
    ),
    (
        "xdp_lost_detached",
        "Times packets of an interface went back to the UDP socket since somebody detached XDP.",
    ),
    (
        "xdp_lost_replaced",
        "The same since another XDP program was put in its place.",
    ),
    (
        "xdp_lost_interface_gone",
        "The same since the interface was deleted.",
    ),
    (
        "xdp_lost_interface_down",
        "The same since the interface was set down.",
    ),
    (
        "xdp_lost_stalled",
        "The same since packets were steered and did not arrive.",
    ),
    (
        "xdp_lost_unclaimed",
        "The same since an AF_XDP socket was taken out of its map.",
    ),
    ("xdp_lost_socket", "The same since an AF_XDP socket failed."),
    (
        "handshake_messages",
        "Handshake messages given to the control thread.",
    ),
    (
        "data_thread_allocations",
        "Heap allocations of the data threads since their start-up was over.",
    ),
    (
        "egress_allocations",
        "Heap allocations of the egress threads since their start-up was over.",
    ),
    (
        "ingress_allocations",
        "Heap allocations of the ingress threads since their start-up was over.",
    ),
    (
        "egress_helper_batches",
        "Batches that a helper thread sealed.",
    ),
    (
        "udp_fragmented_datagrams",
        "Datagrams larger than their path, which the kernel sends in fragments.",
    ),
    (
        "path_mtu_probes",
        "Datagrams sent with \"don't fragment\", to learn of narrow routers.",
    ),
    (
        "path_mtu_told",
        "Senders of inner packets told that the path to the peer is narrower.",
    ),
    (
        "path_mtu_told_limited",
        "Senders that were not told because many had been.",
    ),
    (
        "path_mtu_stalls",
        "TCP flows whose large packets seemed to be lost on the path.",
    ),
    (
        "udp_send_retries",
        "Sends repeated after an error that an earlier datagram may have left.",
    ),
    (
        "tun_writes_refused",
        "Coalesced packets that the TUN device refused, and that were written one by one.",
    ),
    (
        "log_lines_omitted",
        "Lines left out of the log because there were many like them.",
    ),
    (
        "egress_helper_takeovers",
        "Batches that a helper had not begun to seal in time.",
    ),
    (
        "egress_helper_wakes",
        "Times a sleeping helper was woken to seal.",
    ),
    (
        "ingress_helper_batches",
        "Batches that a helper thread opened.",
    ),
    (
        "ingress_helper_takeovers",
        "Batches that a helper had not begun to open in time.",
    ),
    (
        "ingress_helper_wakes",
        "Times a sleeping helper was woken to open.",
    ),
    (
        "queue_sent_datagrams",
        "Datagrams sent by the threads of each queue.",
    ),
    (
        "queue_received_datagrams",
        "Datagrams received by the threads of each queue.",
    ),
    ("drops", "Packets dropped, by reason."),
    ("metrics_answers", "Times these metrics were computed."),
];

/// Everything there is to say, as OpenMetrics text.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) interface: String,
    pub(super) snapshot: Snapshot,
    pub(super) process: Figures,
    /// Reports made before this one.
    pub(super) answers: u64,
}

impl Report {
    /// The text, up to and including its `# EOF`.
    ///
    /// # Errors
    /// Never: writing to a string cannot fail.
    pub(super) fn text(self) -> Result<String, fmt::Error> {
        let peers = self.snapshot.peers.len();
        let mut text = String::with_capacity(USUAL_LENGTH + LENGTH_PER_PEER * peers);
        let labels = [("interface".into(), self.interface.clone().into())];
        let mut registry = Registry::with_labels(labels.into_iter());
        registry.register_collector(Box::new(self));
        encode(&mut text, &registry)?;
        Ok(text)
    }

    fn device(&self, to: &mut Writer<'_>) -> fmt::Result {
        let snapshot = &self.snapshot;
        let device = &snapshot.device;
        let version = env!("CARGO_PKG_VERSION");
        to.one(
            "adit",
            "Version of the daemon.",
            &Info::new([("version", version)]),
        )?;
        to.gauge("up", "Whether the interface is up.", u64::from(snapshot.up))?;
        let paths = ["xdp", "socket", "none"].map(|path| {
            let taken = device.datapath.as_deref() == Some(path);
            ([("path", path)], u64::from(taken))
        });
        to.gauges(
            "data_path",
            "How packets come in: 1 for the path in use.",
            paths,
        )?;
        let queues = device.xdp.iter().map(|xdp| {
            let copy = if xdp.zero_copy { "true" } else { "false" };
            let labels = [
                ("device", xdp.name.as_str()),
                ("mode", xdp.mode.as_str()),
                ("zero_copy", copy),
            ];
            (labels, u64::from(xdp.queues))
        });
        to.gauges(
            "xdp_queues",
            "RX queues whose packets come in by AF_XDP.",
            queues,
        )?;
        if let Some(queues) = self.snapshot.device.counter("queues") {
            to.gauge(
                "queues",
                "Queues of the TUN device, with a thread each way.",
                queues,
            )?;
        }
        to.gauge(
            "sessions",
            "Peers with a session to send on.",
            snapshot.sessions as u64,
        )?;
        to.gauge(
            "handshakes_pending",
            "Peers that a handshake is under way or scheduled with.",
            snapshot.handshakes_pending as u64,
        )?;
        to.gauge(
            "staged_packets",
            "Packets that wait for a session.",
            snapshot.staged_packets as u64,
        )
    }

    fn counters(&self, to: &mut Writer<'_>) -> fmt::Result {
        let counters = &self.snapshot.device.counters;
        for (name, count) in counters {
            let elsewhere = ["queues", "uptime_seconds"].contains(&name.as_str())
                || name.starts_with("drop_")
                || queue_counter(name).is_some();
            if !elsewhere {
                to.counter(name, *count)?;
            }
        }
        for direction in ["sent_datagrams", "received_datagrams"] {
            let queues = counters.iter().filter_map(|(name, count)| {
                let (queue, what) = queue_counter(name)?;
                (what == direction).then_some(([("queue", queue)], *count))
            });
            to.counters(&format!("queue_{direction}"), queues)?;
        }
        let drops = self.snapshot.device.drops();
        to.counters(
            "drops",
            drops.map(|(reason, count)| ([("reason", reason)], count)),
        )?;
        to.counter("metrics_answers", self.answers)
    }

    fn peers(&self, to: &mut Writer<'_>) -> fmt::Result {
        let snapshot = &self.snapshot;
        to.gauge("peers", "Peers that there are.", snapshot.peer_count as u64)?;
        let omitted = snapshot.peer_count.saturating_sub(snapshot.peers.len());
        to.gauge(
            "peers_omitted",
            "Peers without metrics of their own, since there are more than --metrics-peers.",
            omitted as u64,
        )?;
        let peers: Vec<_> = snapshot
            .peers
            .iter()
            .map(|peer| (peer.public_key.to_base64(), peer))
            .collect();
        let labelled = || {
            peers
                .iter()
                .map(|(key, peer)| ([("public_key", key.as_str())], *peer))
        };
        to.family(
            "peer_receive_bytes",
            "UDP payload received from the peer.",
            labelled().map(|(label, peer)| (label, ConstCounter::new(peer.received))),
        )?;
        to.family(
            "peer_transmit_bytes",
            "UDP payload sent to the peer.",
            labelled().map(|(label, peer)| (label, ConstCounter::new(peer.sent))),
        )?;
        let handshakes = labelled().filter_map(|(label, peer)| {
            let seconds = peer.latest_handshake?.as_secs_f64();
            Some((label, ConstGauge::new(seconds)))
        });
        to.family(
            "peer_last_handshake_seconds",
            "Unix time of the latest handshake with the peer; absent if there was none.",
            handshakes,
        )?;
        let round_trips = labelled().filter_map(|(label, peer)| {
            let seconds = peer.round_trip?.as_secs_f64();
            Some((label, ConstGauge::new(seconds)))
        });
        to.family(
            "peer_handshake_round_trip_seconds",
            "What the latest handshake took to the peer and back; absent if there was none.",
            round_trips,
        )?;
        to.family(
            "peer_session",
            "Whether there is a session to send to the peer on.",
            labelled().map(|(label, peer)| (label, ConstGauge::new(u64::from(peer.session)))),
        )
    }

    fn process(&self, to: &mut Writer<'_>) -> fmt::Result {
        let figures = &self.process;
        if let Some(seconds) = figures.cpu_seconds {
            to.one(
                "process_cpu_seconds",
                "User and system processor time.",
                &ConstCounter::new(seconds),
            )?;
        }
        if let Some(bytes) = figures.resident_bytes {
            to.one(
                "process_resident_memory_bytes",
                "Memory in use.",
                &ConstGauge::new(bytes),
            )?;
        }
        if let Some(threads) = figures.threads {
            to.one("process_threads", "Threads.", &ConstGauge::new(threads))?;
        }
        to.one(
            "process_start_time_seconds",
            "Unix time of the start.",
            &ConstGauge::new(figures.start_time),
        )
    }
}

impl Collector for Report {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Writer(encoder);
        self.device(&mut to)?;
        self.counters(&mut to)?;
        self.peers(&mut to)?;
        self.process(&mut to)
    }
}

/// `queue_3_sent_datagrams`: number, rest.
fn queue_counter(name: &str) -> Option<(&str, &str)> {
    let (queue, rest) = name.strip_prefix("queue_")?.split_once('_')?;
    queue.parse::<u16>().ok()?;
    Some((queue, rest))
}

/// Writes metric families. Names are given without `adit_` but by [`Writer::one`].
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn one(&mut self, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
        let kind = metric.metric_type();
        metric.encode(self.0.encode_descriptor(name, help, None, kind)?)
    }

    /// A family, unless it is empty.
    fn family<L: EncodeLabelSet, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        metrics: impl IntoIterator<Item = (L, M)>,
    ) -> fmt::Result {
        let mut metrics = metrics.into_iter().peekable();
        let Some((_, first)) = metrics.peek() else {
            return Ok(());
        };
        let name = format!("adit_{name}");
        let kind = first.metric_type();
        let mut family = self.0.encode_descriptor(&name, help, None, kind)?;
        for (labels, metric) in metrics {
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.one(&format!("adit_{name}"), help, &ConstGauge::new(value))
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let values = values.into_iter();
        self.family(
            name,
            help,
            values.map(|(labels, value)| (labels, ConstGauge::new(value))),
        )
    }

    fn counter(&mut self, name: &str, count: u64) -> fmt::Result {
        self.one(
            &format!("adit_{name}"),
            &help(name),
            &ConstCounter::new(count),
        )
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        counts: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let counts = counts.into_iter();
        self.family(
            name,
            &help(name),
            counts.map(|(labels, count)| (labels, ConstCounter::new(count))),
        )
    }
}

fn help(counter: &str) -> String {
    let known = COUNTERS.iter().find(|(name, _)| *name == counter);
    known.map_or_else(
        || format!("Counter {counter} of the daemon."),
        |(_, help)| (*help).to_owned(),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use adit_protocol::PublicKey;

    use super::super::snapshot::Peer;
    use super::*;
    use crate::inspect::answer::Device;

    pub(in crate::metrics) fn snapshot() -> Snapshot {
        let answer = "adit_uptime_seconds=7\nadit_datapath=xdp\nadit_xdp=eth0 native copy 2\nadit_queues=2\n\
            adit_tun_reads=17\nadit_some_day=3\nadit_drop_ebpf_dead_index=12\nadit_drop_ingress_ecn=4\n\
            adit_queue_0_sent_datagrams=5\nadit_queue_1_sent_datagrams=6\nerrno=0\n\n";
        let peer = |number: u8, handshake: Option<f64>| Peer {
            public_key: PublicKey::from_bytes([number; 32]),
            received: 1000,
            sent: u64::MAX,
            latest_handshake: handshake.map(Duration::from_secs_f64),
            round_trip: handshake.map(|_| Duration::from_micros(12_500)),
            session: handshake.is_some(),
        };
        Snapshot {
            up: true,
            device: Device::parse(answer.as_bytes()).unwrap(),
            peer_count: 3,
            sessions: 1,
            handshakes_pending: 1,
            staged_packets: 5,
            peers: vec![peer(1, Some(1_700_000_000.5)), peer(2, None)],
        }
    }

    #[test]
    fn the_text_is_that_of_openmetrics() {
        let report = Report {
            interface: "wg\"0".to_owned(),
            snapshot: snapshot(),
            process: Figures {
                cpu_seconds: Some(1.5),
                resident_bytes: Some(4096),
                threads: None,
                start_time: 1.0e9,
            },
            answers: 2,
        };
        let text = report.text().unwrap();
        insta::assert_snapshot!(text.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    }

    #[test]
    fn a_device_without_anything_is_fine() {
        let report = Report {
            interface: "wg0".to_owned(),
            snapshot: Snapshot::default(),
            process: Figures::default(),
            answers: 0,
        };
        let text = report.text().unwrap();
        assert!(text.ends_with("# EOF\n"));
        assert!(!text.contains("adit_peer_receive") && !text.contains("process_threads"));
    }

    #[test]
    fn counters_of_queues_are_recognised() {
        assert_eq!(
            queue_counter("queue_12_sent_datagrams"),
            Some(("12", "sent_datagrams"))
        );
        assert_eq!(queue_counter("queue_depth_max"), None);
        assert_eq!(queue_counter("queues"), None);
    }
}
