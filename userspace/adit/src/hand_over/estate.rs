//! What is handed over, as bytes: a header with descriptors, and behind its blank line the configuration.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// Longer than what a million peers make of a configuration.
const LONGEST_CONFIGURATION: usize = 1 << 30;
/// More queues and sockets than any device has.
const MOST_DESCRIPTORS: usize = 1024;

/// What is told beside the configuration: nothing secret. The descriptors come in the order of the fields about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// The name that the tunnel was started under.
    pub(super) interface: String,
    /// Process id of the daemon.
    pub(super) pid: u32,
    /// Queues of the TUN device.
    pub(super) tun_queues: usize,
    /// UDP sockets; none while the interface is down.
    pub(super) udp_sockets: usize,
    /// One descriptor each: the configuration socket, and standard error.
    pub(super) always: usize,
    /// Where metrics are answered, if they are; with a descriptor.
    pub(super) metrics: Option<String>,
    /// Whether there is a service manager, whose socket is among the descriptors.
    pub(super) manager: bool,
    /// The service manager's watchdog.
    pub(super) watchdog: Option<Duration>,
    /// Bytes of the configuration.
    pub(super) configuration: usize,
}

/// The configuration socket and standard error.
pub(super) const ALWAYS: usize = 2;

impl Header {
    /// Descriptors that have to come with it.
    pub(super) fn descriptors(&self) -> usize {
        let optional = usize::from(self.metrics.is_some()) + usize::from(self.manager);
        self.tun_queues + self.udp_sockets + self.always + optional
    }

    /// The lines, without the blank one that ends them.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{key}={value}");
        };
        line("interface", &self.interface);
        line("pid", &self.pid);
        line("tun_queues", &self.tun_queues);
        line("udp_sockets", &self.udp_sockets);
        if let Some(address) = &self.metrics {
            line("metrics", address);
        }
        line("manager", &self.manager);
        if let Some(watchdog) = self.watchdog {
            line("watchdog_usec", &watchdog.as_micros());
        }
        line("configuration", &self.configuration);
        text
    }

    /// Reads what [`text`](Self::text) gives.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut header = Self {
            always: ALWAYS,
            ..Self::default()
        };
        for line in text.lines() {
            let (key, value) = line
                .split_once('=')
                .with_context(|| format!("a line without '=': {line:?}"))?;
            let number = || {
                let number: usize = value.parse().with_context(|| line.to_owned())?;
                anyhow::Ok(number)
            };
            match key {
                "interface" => header.interface = value.to_owned(),
                "pid" => header.pid = value.parse().with_context(|| line.to_owned())?,
                "tun_queues" => header.tun_queues = number()?,
                "udp_sockets" => header.udp_sockets = number()?,
                "metrics" => header.metrics = Some(value.to_owned()),
                "manager" => header.manager = value == "true",
                "watchdog_usec" => {
                    let microseconds = value.parse().with_context(|| line.to_owned())?;
                    header.watchdog = Some(Duration::from_micros(microseconds));
                }
                "configuration" => header.configuration = number()?,
                // Of a later version.
                _ => {}
            }
        }
        ensure!(
            !header.interface.is_empty() && header.pid > 0 && header.tun_queues > 0,
            "something is missing"
        );
        ensure!(
            header.configuration <= LONGEST_CONFIGURATION
                && header.tun_queues <= MOST_DESCRIPTORS
                && header.udp_sockets <= MOST_DESCRIPTORS,
            "something is too large"
        );
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            interface: "wg0".to_owned(),
            pid: 7,
            tun_queues: 2,
            udp_sockets: 4,
            always: ALWAYS,
            metrics: Some("unix:/run/m=1".to_owned()),
            manager: true,
            watchdog: Some(Duration::from_secs(30)),
            configuration: 12_345,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Header::parse(&header().text()).unwrap(), header());
        assert_eq!(header().descriptors(), 2 + 4 + 2 + 2);
        let least = Header {
            udp_sockets: 0,
            metrics: None,
            manager: false,
            watchdog: None,
            ..header()
        };
        assert_eq!(Header::parse(&least.text()).unwrap(), least);
        assert_eq!(least.descriptors(), 2 + 2);
    }

    #[test]
    fn lines_of_later_versions_are_passed_over() {
        let text = format!("colour=blue\n{}weight=3\n", header().text());
        assert_eq!(Header::parse(&text).unwrap(), header());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (good, bad) in [
            ("interface=wg0", "interface="),
            ("pid=7", "pid=-1"),
            ("tun_queues=2", "tun_queues=0"),
            ("udp_sockets=4", "udp_sockets=100000"),
            ("configuration=12345", "configuration=99999999999999"),
            ("manager=true", "manager"),
        ] {
            let text = header().text().replace(good, bad);
            assert!(Header::parse(&text).is_err(), "{bad}");
        }
        assert!(Header::parse("").is_err());
    }
}
