//! The verdict.

use std::fmt::Write as _;
use std::fs;

use serde::Serialize;

use super::super::style::{Style, Tone, printable};
use super::check::{Check, Section, Status};
use super::underlay::Native;

/// Version of what `--json` prints. Fields and checks may be added under the same number.
const VERSION: u32 = 1;

/// Checks without which packets cannot come in by AF_XDP.
const NEEDED_FOR_XDP: [&str; 2] = ["bpf_programs", "af_xdp"];

/// What is not to be seen of data packets that XDP takes.
const BYPASSED: [&str; 4] = [
    "nftables and iptables INPUT rules",
    "conntrack",
    "rp_filter",
    "tcpdump",
];
const SWITCH_OFF: &str = "--datapath socket (or ADIT_DATAPATH=socket)";

/// A way for packets to come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Path {
    /// AF_XDP.
    Xdp,
    /// The UDP socket.
    Socket,
    /// None: there will be no tunnel.
    None,
}

impl Path {
    const fn words(self) -> &'static str {
        match self {
            Self::Xdp => "AF_XDP",
            Self::Socket => "the UDP socket",
            Self::None => "none",
        }
    }
}

/// What `--datapath auto` would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Auto {
    path: Path,
    reason: String,
    devices: Vec<DevicePath>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct DevicePath {
    device: String,
    path: Path,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Bypass {
    not_seen_by: [&'static str; 4],
    switch_off: &'static str,
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    version: u32,
    adit: &'static str,
    kernel: String,
    tunnel_possible: bool,
    auto: Auto,
    xdp_bypass: Bypass,
    sections: Vec<Section>,
}

impl Report {
    /// `devices`: what each interface would let `auto` do.
    pub(super) fn new(sections: Vec<Section>, devices: Vec<(String, Native)>) -> Self {
        let auto = Auto::new(&sections, devices);
        Self {
            version: VERSION,
            adit: env!("CARGO_PKG_VERSION"),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            tunnel_possible: auto.path != Path::None,
            auto,
            xdp_bypass: Bypass {
                not_seen_by: BYPASSED,
                switch_off: SWITCH_OFF,
            },
            sections,
        }
    }

    pub(super) fn tunnel_possible(&self) -> bool {
        self.tunnel_possible
    }

    /// For people.
    pub(super) fn text(&self, style: Style) -> String {
        let mut text = format!("Adit {} on Linux {}\n", self.adit, printable(&self.kernel));
        for section in &self.sections {
            let title = style.paint(Tone::Bold, &printable(&section.title));
            // Writing to a String cannot fail.
            let _ = writeln!(text, "\n{title}");
            for check in &section.checks {
                write_check(&mut text, check, style);
            }
        }
        let _ = writeln!(
            text,
            "\n{}\n  {}: {}",
            style.paint(Tone::Bold, "What --datapath auto would do"),
            self.auto.path.words(),
            printable(&self.auto.reason)
        );
        for device in &self.auto.devices {
            let (name, reason) = (printable(&device.device), printable(&device.reason));
            let _ = writeln!(text, "  {name}: {} ({reason})", device.path.words());
        }
        let _ = writeln!(
            text,
            "\n{}\n  Data packets that come in by AF_XDP are not seen by {}.\n  Handshakes are: a firewall that blocks a \
             peer's handshakes ends its tunnel at the next one.\n  {SWITCH_OFF} gives it all back; adit show says which \
             path is in use.",
            style.paint(Tone::Bold, "What XDP bypasses"),
            listed(&BYPASSED),
        );
        text
    }
}

fn write_check(text: &mut String, check: &Check, style: Style) {
    const SUBJECT: usize = 20;
    let tone = match check.status {
        Status::Ok => Tone::Good,
        Status::Missing => Tone::Notice,
        Status::Blocking => Tone::Bad,
    };
    let mark = style.paint(tone, check.status.mark());
    let found = printable(&check.found);
    let _ = writeln!(text, "  {mark}  {:SUBJECT$}  {found}", check.subject);
    if let Some(change) = &check.change {
        let _ = writeln!(text, "      {:SUBJECT$}  => {}", "", printable(change));
    }
}

/// `a, b or c`.
fn listed(words: &[&str]) -> String {
    match words {
        [start @ .., last] if !start.is_empty() => format!("{} or {last}", start.join(", ")),
        _ => words.concat(),
    }
}

/// A check as the reason of something else; what is long has been read above.
fn reason(check: &Check) -> String {
    const LONGEST: usize = 120;
    if check.found.len() <= LONGEST {
        format!("{}: {}", check.subject, check.found)
    } else {
        format!("{}: see there", check.subject)
    }
}

impl Auto {
    fn new(sections: &[Section], devices: Vec<(String, Native)>) -> Self {
        let checks = || sections.iter().flat_map(|section| &section.checks);
        if let Some(check) = checks().find(|check| check.status == Status::Blocking) {
            return Self {
                path: Path::None,
                reason: reason(check),
                devices: Vec::new(),
            };
        }
        // One that failed is the reason for all interfaces.
        let host =
            checks().find(|check| check.status != Status::Ok && NEEDED_FOR_XDP.contains(&check.id));
        let devices: Vec<DevicePath> = devices
            .into_iter()
            .map(|(device, native)| {
                let (path, reason) = match (host, native) {
                    (Some(check), Native::Likely(_)) => (Path::Socket, reason(check)),
                    (_, Native::No(reason)) => (Path::Socket, reason),
                    (None, Native::Likely(reason)) => (Path::Xdp, reason),
                };
                DevicePath {
                    device,
                    path,
                    reason,
                }
            })
            .collect();
        let xdp = devices.iter().any(|device| device.path == Path::Xdp);
        let why = match (xdp, host) {
            (true, _) => "on the interfaces below that have native XDP".to_owned(),
            (false, Some(check)) => reason(check),
            (false, None) if devices.is_empty() => {
                "no interface to look at; name one with --underlay".to_owned()
            }
            (false, None) => "no interface below lets XDP do better".to_owned(),
        };
        Self {
            path: if xdp { Path::Xdp } else { Path::Socket },
            reason: why,
            devices,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections(checks: Vec<Check>) -> Vec<Section> {
        vec![Section {
            title: "Things".to_owned(),
            checks,
        }]
    }

    fn likely(name: &str) -> (String, Native) {
        (name.to_owned(), Native::Likely("native XDP".to_owned()))
    }

    fn unlikely(name: &str) -> (String, Native) {
        (name.to_owned(), Native::No("no XDP".to_owned()))
    }

    #[test]
    fn one_device_with_xdp_is_enough() {
        let good = vec![Check::ok("af_xdp", "AF_XDP sockets", "there")];
        let report = Report::new(sections(good), vec![unlikely("eth0"), likely("eth1")]);
        assert!(report.tunnel_possible());
        assert_eq!(report.auto.path, Path::Xdp);
        let paths: Vec<_> = report.auto.devices.iter().map(|d| d.path).collect();
        assert_eq!(paths, [Path::Socket, Path::Xdp]);
    }

    #[test]
    fn what_the_host_lacks_holds_for_all_devices() {
        let bad = vec![Check::missing("af_xdp", "AF_XDP sockets", "EPERM")];
        let report = Report::new(sections(bad), vec![likely("eth0"), unlikely("eth1")]);
        assert!(report.tunnel_possible());
        assert_eq!(report.auto.path, Path::Socket);
        assert_eq!(report.auto.reason, "AF_XDP sockets: EPERM");
        assert_eq!(report.auto.devices[0].reason, "AF_XDP sockets: EPERM");
        assert_eq!(report.auto.devices[1].reason, "no XDP");
    }

    #[test]
    fn a_verifier_log_is_not_said_twice() {
        let long = Check::missing("bpf_programs", "eBPF programs", "x".repeat(500));
        let report = Report::new(sections(vec![long]), Vec::new());
        assert_eq!(report.auto.reason, "eBPF programs: see there");
    }

    #[test]
    fn what_else_is_missing_does_not_matter_to_xdp() {
        let missing = vec![Check::missing("btf", "kernel BTF", "none")];
        let report = Report::new(sections(missing), vec![likely("eth0")]);
        assert_eq!(report.auto.path, Path::Xdp);
    }

    #[test]
    fn something_in_the_way_is_the_verdict() {
        let checks = vec![Check::blocking("tun", "TUN device", "none")];
        let report = Report::new(sections(checks), vec![likely("eth0")]);
        assert!(!report.tunnel_possible());
        assert_eq!(report.auto.path, Path::None);
        assert_eq!(report.auto.reason, "TUN device: none");
    }

    #[test]
    fn text_for_people() {
        let checks = vec![
            Check::ok("a", "first", "fine"),
            Check::missing("b", "second", "not\x1bthere").change("apt install it"),
            Check::blocking("c", "third", "gone"),
        ];
        let mut report = Report::new(sections(checks), Vec::new());
        report.kernel = "6.1".to_owned();
        let text = report.text(Style::PLAIN);
        let expected = format!(
            "\
Adit {} on Linux 6.1

Things
  ok  first                 fine
  --  second                not?there
                            => apt install it
  !!  third                 gone

What --datapath auto would do
  none: third: gone

What XDP bypasses
  Data packets that come in by AF_XDP are not seen by nftables and iptables INPUT rules, conntrack, rp_filter or tcpdump.
",
            env!("CARGO_PKG_VERSION")
        );
        assert!(text.starts_with(&expected), "{text}");
        assert!(text.contains("--datapath socket"));
    }

    #[test]
    fn json_for_programs() {
        let checks = vec![Check::missing("af_xdp", "AF_XDP sockets", "EPERM").change("be root")];
        let report = Report::new(sections(checks), vec![likely("eth0")]);
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value["version"], 1);
        assert_eq!(value["tunnel_possible"], true);
        assert_eq!(value["auto"]["path"], "socket");
        assert_eq!(value["auto"]["devices"][0]["device"], "eth0");
        let check = &value["sections"][0]["checks"][0];
        assert_eq!(check["status"], "missing");
        assert_eq!(check["change"], "be root");
        assert_eq!(value["xdp_bypass"]["not_seen_by"][3], "tcpdump");
    }
}
