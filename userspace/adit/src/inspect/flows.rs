//! `adit flows`: what the eBPF programs count for each outer flow, read from the pinned maps.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use adit_kernel::bpf::{Direction, Flow, PinError, PinnedMaps};
use anyhow::{Context as _, Result, anyhow, bail};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::client;
use super::style::{Style, bit_rate, print, table};

/// Version of what `--json` prints. Fields may be added under the same number.
const VERSION: u32 = 1;
/// Home, and clear what follows: ECMA-48 sections 8.3.21 and 8.3.39.
const CLEAR: &str = "\x1b[H\x1b[J";

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The tunnel.
    pub interface: String,
    /// Print again and again, with this pause.
    pub watch: Option<Duration>,
    /// For programs.
    pub json: bool,
}

/// A flow as it is printed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    /// This host.
    pub(crate) local: SocketAddr,
    /// The peer.
    pub(crate) remote: SocketAddr,
    /// `in` or `out`.
    pub(crate) direction: &'static str,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    /// Seconds since the latest packet.
    pub(crate) last_seen_seconds: f64,
    /// Since the output before; only when watching.
    #[serde(skip_serializing_if = "Option::is_none")]
    bits_per_second: Option<f64>,
}

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    interface: &'a str,
    flows: &'a [Row],
}

/// The bytes of each flow at an instant, to compute rates from.
struct Sample {
    at: Instant,
    bytes: HashMap<Key, u64>,
}

type Key = (SocketAddr, SocketAddr, &'static str);

/// Prints the flows of a tunnel, once or until nobody reads on or the tunnel ends.
///
/// # Errors
/// In one line: no such tunnel, no counters, or what the system says.
pub fn run(options: &Options) -> Result<()> {
    let interface = options.interface.as_str();
    client::check_name(interface)?;
    let maps = open(interface)?;
    let style = Style::for_stdout();
    let mut before = None;
    loop {
        let at = Instant::now();
        let flows = maps
            .flows()
            .with_context(|| format!("cannot read the flows of {interface}"))?;
        let rows = rows(&flows, monotonic_ns(), before.as_ref(), at);
        let text = if options.json {
            let report = Report {
                version: VERSION,
                interface,
                flows: &rows,
            };
            let mut line =
                serde_json::to_string(&report).context("cannot write the flows as JSON")?;
            line.push('\n');
            line
        } else {
            listing(&rows, options.watch.is_some(), style)
        };
        let Some(pause) = options.watch else {
            print(&text)?;
            return Ok(());
        };
        let separator = match before {
            _ if options.json => "",
            _ if std::io::stdout().is_terminal() => CLEAR,
            // One table after the other.
            Some(_) => "\n",
            None => "",
        };
        if !print(&format!("{separator}{text}"))? {
            return Ok(());
        }
        before = Some(Sample {
            at,
            bytes: rows.iter().map(|row| (key(row), row.bytes)).collect(),
        });
        thread::sleep(pause);
        if !maps.owner().1 {
            bail!("the daemon of {interface} has ended");
        }
    }
}

/// The pinned maps, or why there are none.
fn open(interface: &str) -> Result<PinnedMaps> {
    let error = match PinnedMaps::open(interface) {
        Ok(maps) if maps.owner().1 => return Ok(maps),
        // What a killed daemon has left behind; the next one of that name removes it.
        Ok(_) => None,
        Err(error) => Some(error),
    };
    // Whether there is such a tunnel decides what to say.
    client::describe(interface)?;
    Err(match error {
        Some(PinError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            anyhow!("not allowed to read the counters of {interface}: run this as root")
        }
        Some(error @ PinError::Layout { .. }) => {
            anyhow!(error).context(format!("{interface} runs another version of adit"))
        }
        // `ip netns exec` gives every program a mount namespace of its own, and with it a /sys.
        _ => match client::daemon_elsewhere(interface) {
            Some(pid) => anyhow!(
                "tunnel {interface} has no counters in this mount namespace; look in that of its daemon: \
                 nsenter --mount=/proc/{pid}/ns/mnt adit flows {interface}"
            ),
            None => anyhow!(
                "tunnel {interface} has no counters: its daemon could not load or pin the eBPF programs; \
                 `adit doctor` says why"
            ),
        },
    })
}

/// `CLOCK_MONOTONIC`, which `bpf_ktime_get_ns` reads.
pub(crate) fn monotonic_ns() -> u64 {
    // The clock exists on every Linux; an age of 0 is what a failure would show.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .ok()
        .and_then(|time| u64::try_from(Duration::from(time).as_nanos()).ok())
        .unwrap_or(0)
}

/// Flows as they are printed, most bytes first.
fn rows(flows: &[Flow], now_ns: u64, before: Option<&Sample>, at: Instant) -> Vec<Row> {
    let mut rows: Vec<Row> = flows.iter().map(|flow| row(flow, now_ns)).collect();
    sort(&mut rows);
    if let Some(before) = before {
        let seconds = at.duration_since(before.at).as_secs_f64();
        for row in &mut rows {
            let new = row
                .bytes
                .saturating_sub(*before.bytes.get(&key(row)).unwrap_or(&0));
            #[expect(
                clippy::cast_precision_loss,
                reason = "a rate of three digits is shown"
            )]
            let rate = new as f64 * 8.0 / seconds.max(f64::EPSILON);
            row.bits_per_second = Some(rate);
        }
    }
    rows
}

/// A flow as it is printed.
pub(crate) fn row(flow: &Flow, now_ns: u64) -> Row {
    Row {
        local: flow.local,
        remote: flow.remote,
        direction: match flow.direction {
            Direction::Ingress => "in",
            Direction::Egress => "out",
        },
        packets: flow.packets,
        bytes: flow.bytes,
        last_seen_seconds: Duration::from_nanos(now_ns.saturating_sub(flow.last_seen_ns))
            .as_secs_f64(),
        bits_per_second: None,
    }
}

/// Most bytes first; equals by address, so that a watched table does not flicker.
pub(crate) fn sort(rows: &mut [Row]) {
    rows.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| key(a).cmp(&key(b))));
}

fn key(row: &Row) -> Key {
    (row.local, row.remote, row.direction)
}

/// The table. Rates have a column when watching, though there are none in the first output.
fn listing(rows: &[Row], watching: bool, style: Style) -> String {
    if rows.is_empty() {
        return "no flows\n".to_owned();
    }
    let mut header = vec!["LOCAL", "", "REMOTE", "PACKETS", "BYTES"];
    if watching {
        header.push("RATE");
    }
    header.push("LAST SEEN");
    let mut lines = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for row in rows {
        let mut line = vec![
            row.local.to_string(),
            if row.direction == "in" { "<-" } else { "->" }.to_owned(),
            row.remote.to_string(),
            row.packets.to_string(),
            // Cells are plain: the table counts characters.
            Style::PLAIN.bytes(row.bytes),
        ];
        if watching {
            line.push(row.bits_per_second.map_or_else(String::new, bit_rate));
        }
        line.push(ago(row.last_seen_seconds, Style::PLAIN));
        lines.push(line);
    }
    let text = table(&lines, &[3, 4, if watching { 5 } else { 4 }]);
    match text.split_once('\n') {
        Some((header, rest)) => {
            format!("{}\n{rest}", style.paint(super::style::Tone::Bold, header))
        }
        None => text,
    }
}

/// `3 seconds ago`, cut to whole seconds.
pub(crate) fn ago(seconds: f64, style: Style) -> String {
    style.ago(Duration::from_secs_f64(seconds).as_secs(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(remote: &str, direction: Direction, packets: u64, last_seen_ns: u64) -> Flow {
        Flow {
            remote: remote.parse().unwrap(),
            local: "192.0.2.1:51820".parse().unwrap(),
            direction,
            packets,
            bytes: packets * 1000,
            first_seen_ns: 1,
            last_seen_ns,
        }
    }

    fn three() -> [Flow; 3] {
        [
            flow("[fd00::2]:7", Direction::Ingress, 5, 2_000_000_000),
            flow("192.0.2.2:51820", Direction::Ingress, 5, 9_000_000_000),
            flow("192.0.2.2:51820", Direction::Egress, 1_000_000, 0),
        ]
    }

    #[test]
    fn most_bytes_come_first_and_equals_keep_an_order() {
        let now = Instant::now();
        let rows = rows(&three(), 10_000_000_000, None, now);
        let order: Vec<_> = rows
            .iter()
            .map(|row| (row.direction, row.remote.port()))
            .collect();
        assert_eq!(order, [("out", 51820), ("in", 51820), ("in", 7)]);
    }

    #[test]
    fn a_table_for_people() {
        let rows = rows(&three(), 10_000_000_000, None, Instant::now());
        assert_eq!(
            listing(&rows, false, Style::PLAIN),
            "\
LOCAL                REMOTE           PACKETS       BYTES  LAST SEEN
192.0.2.1:51820  ->  192.0.2.2:51820  1000000  953.67 MiB  10 seconds ago
192.0.2.1:51820  <-  192.0.2.2:51820        5    4.88 KiB  1 second ago
192.0.2.1:51820  <-  [fd00::2]:7            5    4.88 KiB  8 seconds ago
"
        );
        assert_eq!(listing(&[], false, Style::PLAIN), "no flows\n");
    }

    #[test]
    fn rates_are_those_since_the_sample_before() {
        let start = Instant::now();
        let first = rows(&three(), 0, None, start);
        let before = Sample {
            at: start,
            bytes: first.iter().map(|row| (key(row), row.bytes)).collect(),
        };
        let mut flows = three();
        flows[2].bytes += 1_000_000;
        let later = rows(&flows, 0, Some(&before), start + Duration::from_secs(2));
        assert_eq!(later[0].bits_per_second, Some(4_000_000.0));
        assert_eq!(later[1].bits_per_second, Some(0.0));
        let text = listing(&later, true, Style::PLAIN);
        assert!(text.contains("4.00 Mbit/s"), "{text}");
    }

    #[test]
    fn a_counter_that_went_back_has_no_rate() {
        let start = Instant::now();
        let mut flows = three();
        let before = Sample {
            at: start,
            bytes: rows(&flows, 0, None, start)
                .iter()
                .map(|row| (key(row), row.bytes))
                .collect(),
        };
        // Evicted and made anew.
        flows[2].bytes = 1;
        let later = rows(&flows, 0, Some(&before), start);
        assert!(later.iter().all(|row| row.bits_per_second == Some(0.0)));
    }

    #[test]
    fn numbers_are_numbers_in_json_and_addresses_are_strings() {
        let rows = rows(&three()[..1], 3_500_000_000, None, Instant::now());
        let report = Report {
            version: VERSION,
            interface: "wg0",
            flows: &rows,
        };
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"version":1,"interface":"wg0","flows":[{"local":"192.0.2.1:51820","remote":"[fd00::2]:7","direction":"in","packets":5,"bytes":5000,"last_seen_seconds":1.5}]}"#
        );
    }

    #[test]
    fn the_clock_runs() {
        assert!(monotonic_ns() > 0);
    }

    #[test]
    fn a_tunnel_that_is_not_there_is_one_line() {
        let error = format!("{:#}", open("adit-not-there").unwrap_err());
        assert!(error.starts_with("no tunnel adit-not-there:"), "{error}");
    }
}
