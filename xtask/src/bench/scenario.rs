//! What is measured, and how.

use std::time::Duration;

use adit_tests::iperf::{Amount, Run};
use adit_tests::measure::{Measurement, Meter, Usage};
use adit_tests::process::resident_bytes;
use adit_tests::round_trip::{RoundTrips, round_trips};
use adit_tests::udp_flow::{Delivery, Flow};
use anyhow::{Result, anyhow, ensure};
use clap::ValueEnum;

use super::bed::Bed;
use super::contender::Contender;
use super::results::{MetricInfo, ScenarioInfo};
use super::{handshakes, peers};

/// Datagrams of a second of 200 Mbit/s in payloads of 1300 bytes.
const STEADY_RATE: u32 = 19_231;

/// UDP payload that fills a packet, with room for what applications put around it.
const LARGE: usize = 1300;

/// UDP payload of calls and games.
const SMALL: usize = 64;

/// Datagrams a second that every contender should carry without loss.
const FIXED_RATE: u32 = 30_000;

/// How long a TCP stream runs before and after round trips are measured beside it.
const AROUND: Duration = Duration::from_secs(1);

/// A measurement's values by their keys.
pub(crate) type Values = Vec<(&'static str, f64)>;

/// Something to measure; the names are those of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// One TCP stream
    Tcp,
    /// Four TCP streams
    #[value(name = "tcp-4")]
    Tcp4,
    /// A TCP stream in each direction
    TcpBoth,
    /// UDP, 30,000 datagrams of 1300 bytes a second
    #[value(name = "udp-1300")]
    Udp1300,
    /// UDP, 30,000 datagrams of 64 bytes a second
    #[value(name = "udp-64")]
    Udp64,
    /// UDP, 1300 bytes, as fast as the sender can
    #[value(name = "udp-1300-max")]
    Udp1300Max,
    /// UDP, 64 bytes, as fast as the sender can
    #[value(name = "udp-64-max")]
    Udp64Max,
    /// UDP, a steady 200 Mbit/s, round trips beside it
    #[value(name = "steady-200")]
    Steady200,
    /// Round trips of an idle tunnel
    Rtt,
    /// Round trips beside a TCP stream
    RttTcp,
    /// Handshakes answered
    Handshakes,
    /// With 1 peer
    #[value(name = "peers-1")]
    Peers1,
    /// With 1,000 peers
    #[value(name = "peers-1000")]
    Peers1000,
    /// With 10,000 peers
    #[value(name = "peers-10000")]
    Peers10000,
    /// Memory, idle and after traffic
    Memory,
}

/// What a value is called and whether more of it is better.
struct Metric(&'static str, &'static str, Better, Where);

enum Better {
    More,
    Less,
}

enum Where {
    Table,
    Json,
}

use Better::{Less, More};
use Where::{Json, Table};

const TCP: &[Metric] = &[
    Metric("throughput", "Gbit/s", More, Table),
    Metric("host_cpu_per_gb", "host CPU s/GB", Less, Table),
    Metric("daemon_cpu_per_gb", "daemons CPU s/GB", Less, Table),
    Metric("sender_cpu_per_gb", "sending daemon CPU s/GB", Less, Json),
    Metric(
        "receiver_cpu_per_gb",
        "receiving daemon CPU s/GB",
        Less,
        Json,
    ),
    Metric("retransmits", "segments sent again", Less, Json),
];

const UDP: &[Metric] = &[
    Metric("lost_percent", "lost %", Less, Table),
    Metric("host_cpu_per_packet", "host CPU µs/packet", Less, Table),
    Metric(
        "daemon_cpu_per_packet",
        "daemons CPU µs/packet",
        Less,
        Table,
    ),
    Metric("sent_per_second", "packets/s sent", More, Json),
    Metric("received_per_second", "packets/s received", More, Json),
    Metric("reordered", "packets out of order", Less, Json),
];

const UDP_MAX: &[Metric] = &[
    Metric("received_per_second", "packets/s received", More, Table),
    Metric("host_cpu_per_packet", "host CPU µs/packet", Less, Table),
    Metric("throughput", "Gbit/s", More, Table),
    Metric("daemon_cpu_per_packet", "daemons CPU µs/packet", Less, Json),
    Metric("lost_percent", "lost %", Less, Json),
    Metric("sent_per_second", "packets/s sent", More, Json),
    Metric("reordered", "packets out of order", Less, Json),
];

const STEADY: &[Metric] = &[
    Metric("host_cpu_percent", "host CPU %", Less, Table),
    Metric("rtt_p99", "p99 µs", Less, Table),
    Metric("lost_percent", "lost %", Less, Table),
    Metric("rtt_p50", "p50 µs", Less, Json),
    Metric("probes_lost", "probes lost", Less, Json),
    Metric("daemon_cpu_percent", "daemons CPU %", Less, Json),
    Metric("sent_per_second", "packets/s sent", More, Json),
];

const RTT: &[Metric] = &[
    Metric("rtt_p50", "p50 µs", Less, Table),
    Metric("rtt_p99", "p99 µs", Less, Table),
    Metric("host_cpu_percent", "host CPU %", Less, Table),
    Metric("rtt_max", "longest µs", Less, Json),
    Metric("probes_lost", "probes lost", Less, Json),
    Metric("probes", "probes answered", More, Json),
];

const RTT_TCP: &[Metric] = &[
    Metric("rtt_p50", "p50 µs", Less, Table),
    Metric("rtt_p99", "p99 µs", Less, Table),
    Metric("throughput", "Gbit/s", More, Table),
    Metric("rtt_max", "longest µs", Less, Json),
    Metric("probes_lost", "probes lost", Less, Json),
    Metric("probes", "probes answered", More, Json),
];

const HANDSHAKES: &[Metric] = &[
    Metric("handshakes_per_second", "handshakes/s", More, Table),
    Metric(
        "daemon_cpu_per_handshake",
        "daemon CPU µs each",
        Less,
        Table,
    ),
    Metric("unanswered", "unanswered", Less, Table),
    Metric("cookies", "cookie replies", Less, Json),
];

const PEERS: &[Metric] = &[
    Metric("setconf_ms", "wg setconf ms", Less, Table),
    Metric("dump_ms", "wg show dump ms", Less, Table),
    Metric("syncconf_ms", "wg syncconf ms", Less, Table),
    Metric("throughput", "Gbit/s", More, Table),
    Metric("resident_mb", "memory MB", Less, Table),
];

const MEMORY: &[Metric] = &[
    Metric("resident_idle_mb", "idle MB", Less, Table),
    Metric("resident_used_mb", "after traffic MB", Less, Table),
];

impl Scenario {
    /// The name on the command line.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What the results tell of it.
    pub(crate) fn info(self) -> ScenarioInfo {
        let title = self.to_possible_value();
        let title = title.and_then(|value| value.get_help().map(ToString::to_string));
        ScenarioInfo {
            name: self.name(),
            title: title.unwrap_or_default(),
            metrics: self
                .metrics()
                .iter()
                .map(|Metric(key, title, better, place)| MetricInfo {
                    key: (*key).to_owned(),
                    title: (*title).to_owned(),
                    more_is_better: matches!(better, More),
                    shown: matches!(place, Table),
                })
                .collect(),
        }
    }

    fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Tcp | Self::Tcp4 | Self::TcpBoth => TCP,
            Self::Udp1300 | Self::Udp64 => UDP,
            Self::Udp1300Max | Self::Udp64Max => UDP_MAX,
            Self::Steady200 => STEADY,
            Self::Rtt => RTT,
            Self::RttTcp => RTT_TCP,
            Self::Handshakes => HANDSHAKES,
            Self::Peers1 | Self::Peers1000 | Self::Peers10000 => PEERS,
            Self::Memory => MEMORY,
        }
    }

    /// Does it make sense for this contender?
    pub(crate) fn applies_to(self, contender: &Contender) -> bool {
        match self {
            // They always come by the socket.
            Self::Handshakes => contender.is_tunnel() && contender.datapath != Some("xdp"),
            Self::Memory | Self::Peers1 | Self::Peers1000 | Self::Peers10000 => {
                contender.is_tunnel()
            }
            _ => true,
        }
    }

    /// Measures a contender once, and gives what there is to `values`, also of a measurement that fails in the end.
    ///
    /// # Errors
    /// The contender does not work, or not in this scenario.
    pub(crate) fn measure(
        self,
        contender: &Contender,
        seconds: u32,
        values: &mut Values,
    ) -> Result<()> {
        match self {
            Self::Peers1 => return peers::measure(contender, 1, seconds, values),
            Self::Peers1000 => return peers::measure(contender, 1_000, seconds, values),
            Self::Peers10000 => return peers::measure(contender, 10_000, seconds, values),
            Self::Handshakes => values.extend(handshakes::measure(contender, seconds)?),
            _ => values.extend(self.measure_bed(contender, seconds)?),
        }
        Ok(())
    }

    fn measure_bed(self, contender: &Contender, seconds: u32) -> Result<Values> {
        let mut bed = Bed::new(contender)?;
        let duration = Duration::from_secs(seconds.into());
        let values = match self {
            Self::Tcp4 => tcp(&bed, seconds, &["-P", "4"]),
            Self::TcpBoth => tcp(&bed, seconds, &["--bidir"]),
            Self::Udp1300 => udp(&bed, LARGE, Some(FIXED_RATE), duration),
            Self::Udp64 => udp(&bed, SMALL, Some(FIXED_RATE), duration),
            Self::Udp1300Max => udp(&bed, LARGE, None, duration),
            Self::Udp64Max => udp(&bed, SMALL, None, duration),
            Self::Steady200 => steady(&bed, duration),
            Self::Rtt => idle(&bed, duration),
            Self::RttTcp => beside_tcp(&bed, seconds),
            Self::Memory => memory(&bed, seconds),
            _ => tcp(&bed, seconds, &[]),
        }?;
        bed.check()?;
        Ok(values)
    }
}

/// A TCP run between the ends of a bed.
pub(crate) fn tcp_run<'a>(bed: &'a Bed, seconds: u32, options: &'a [&'a str]) -> Run<'a> {
    Run {
        client: bed.left(),
        server: bed.right(),
        to: bed.target(),
        amount: Amount::Seconds(seconds),
        options,
    }
}

fn tcp(bed: &Bed, seconds: u32, options: &[&str]) -> Result<Values> {
    let measured = Measurement::of(&tcp_run(bed, seconds, options), &bed.daemons())?;
    ensure!(measured.report.bytes > 0, "nothing arrived");
    let mut values = vec![
        ("throughput", measured.gigabits_per_second()),
        ("host_cpu_per_gb", measured.per_gigabyte(measured.host)),
        ("retransmits", number(measured.report.retransmits)),
    ];
    if let &[sender, receiver] = &*measured.processes {
        values.push((
            "daemon_cpu_per_gb",
            measured.per_gigabyte(sender + receiver),
        ));
        values.push(("sender_cpu_per_gb", measured.per_gigabyte(sender)));
        values.push(("receiver_cpu_per_gb", measured.per_gigabyte(receiver)));
    }
    Ok(values)
}

fn flow(bed: &Bed, size: usize, rate: Option<u32>, duration: Duration) -> Flow<'_> {
    Flow {
        from: bed.left(),
        to: bed.right(),
        address: bed.target(),
        size,
        rate,
        duration,
    }
}

fn udp(bed: &Bed, size: usize, rate: Option<u32>, duration: Duration) -> Result<Values> {
    let meter = Meter::start(&bed.daemons())?;
    let delivery = flow(bed, size, rate, duration).run()?;
    let usage = meter.stop()?;
    ensure!(delivery.received > 0, "nothing arrived");
    let each = |time: Duration| time.as_secs_f64() * 1e6 / number(delivery.received);
    let mut values = vec![
        ("lost_percent", lost_percent(&delivery)),
        ("host_cpu_per_packet", each(usage.host)),
        ("sent_per_second", delivery.sent_per_second()),
        ("received_per_second", delivery.received_per_second()),
        ("reordered", number(delivery.reordered)),
    ];
    if !usage.processes.is_empty() {
        values.push(("daemon_cpu_per_packet", each(usage.watched())));
    }
    if rate.is_none() {
        let bits = delivery.received_per_second() * number(size as u64 * 8);
        values.push(("throughput", bits / 1e9));
    }
    Ok(values)
}

fn steady(bed: &Bed, duration: Duration) -> Result<Values> {
    let flow = flow(bed, LARGE, Some(STEADY_RATE), duration);
    let meter = Meter::start(&bed.daemons())?;
    let (delivery, trips) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| flow.run());
        let trips = round_trips(bed.left(), bed.right(), bed.target(), duration);
        let delivery = sending.join().map_err(|_| anyhow!("sender panicked"))?;
        Ok::<_, anyhow::Error>((delivery?, trips?))
    })?;
    let usage = meter.stop()?;
    let mut values = vec![
        ("host_cpu_percent", 100.0 * usage.busy()),
        ("lost_percent", lost_percent(&delivery)),
        ("sent_per_second", delivery.sent_per_second()),
    ];
    if !usage.processes.is_empty() {
        values.push(("daemon_cpu_percent", daemons_percent(&usage)));
    }
    values.extend(rtt(&trips)?.into_iter().take(3));
    Ok(values)
}

/// Share of the machine that the daemons used.
fn daemons_percent(usage: &Usage) -> f64 {
    let daemons = Usage {
        host: usage.watched(),
        ..usage.clone()
    };
    100.0 * daemons.busy()
}

fn idle(bed: &Bed, duration: Duration) -> Result<Values> {
    let meter = Meter::start(&bed.daemons())?;
    let trips = round_trips(bed.left(), bed.right(), bed.target(), duration)?;
    let usage = meter.stop()?;
    let mut values = rtt(&trips)?;
    values.push(("host_cpu_percent", 100.0 * usage.busy()));
    Ok(values)
}

fn beside_tcp(bed: &Bed, seconds: u32) -> Result<Values> {
    let around = u32::try_from(2 * AROUND.as_secs())?;
    let run = tcp_run(bed, seconds + around, &[]);
    let server = run.start_server()?;
    let client = run.start_client()?;
    std::thread::sleep(AROUND);
    let duration = Duration::from_secs(seconds.into());
    let trips = round_trips(bed.left(), bed.right(), bed.target(), duration)?;
    let report = run.finish(client)?;
    drop(server);
    let mut values = rtt(&trips)?;
    values.push(("throughput", report.bits_per_second / 1e9));
    Ok(values)
}

/// The first three are those that every scenario with round trips has.
fn rtt(trips: &RoundTrips) -> Result<Values> {
    let microseconds =
        |percent| Ok::<_, anyhow::Error>(trips.percentile(percent)?.as_secs_f64() * 1e6);
    Ok(vec![
        ("rtt_p50", microseconds(50)?),
        ("rtt_p99", microseconds(99)?),
        ("probes_lost", number(trips.lost)),
        ("rtt_max", microseconds(100)?),
        ("probes", number(trips.answers() as u64)),
    ])
}

fn memory(bed: &Bed, seconds: u32) -> Result<Values> {
    let idle = resident_mb(bed)?;
    tcp_run(bed, seconds, &["-P", "4"]).run()?;
    tcp_run(bed, seconds, &["-P", "4", "-R"]).run()?;
    Ok(vec![
        ("resident_idle_mb", idle),
        ("resident_used_mb", resident_mb(bed)?),
    ])
}

/// Resident memory of the larger of the two daemons, in 10^6 bytes.
pub(crate) fn resident_mb(bed: &Bed) -> Result<f64> {
    let mut largest = 0;
    for pid in bed.daemons() {
        largest = largest.max(resident_bytes(pid)?);
    }
    Ok(number(largest) / 1e6)
}

fn lost_percent(delivery: &Delivery) -> f64 {
    100.0 * number(delivery.lost()) / number(delivery.sent.max(1))
}

/// Counts of a measurement are far below 2^53.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts of a measurement are small"
)]
pub(crate) fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_title_and_its_metrics_differ() {
        for scenario in Scenario::value_variants() {
            let info = scenario.info();
            assert!(!info.title.is_empty() && info.metrics[0].shown, "{info:?}");
            let keys: std::collections::HashSet<_> = info.metrics.iter().map(|m| &m.key).collect();
            assert_eq!(keys.len(), info.metrics.len(), "{info:?}");
        }
    }

    #[test]
    fn the_steady_rate_is_200_megabits() {
        let bits = f64::from(STEADY_RATE) * number(8 * LARGE as u64);
        assert!((bits / 2e8 - 1.0).abs() < 0.001, "{bits}");
    }
}
