//! Giving the device to another process, and taking it over from one.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use adit_kernel::udp::UdpGroup;
use adit_protocol::{Endpoint, PeerHistory, PublicKey, Source};
use anyhow::{Context as _, Result};
use zeroize::Zeroizing;

use super::Control;
use super::describe::hex_line;
use crate::dataplane::Dataplane;
use crate::instant;
use crate::sandbox::Needs;
use crate::service::ServiceManager;
use crate::uapi::request::{Parser, Setting};

impl Control {
    /// Stops moving packets and steering, and refuses changes, until [`go_on`](Self::go_on).
    pub(crate) fn stand_still(&mut self) {
        self.standing = true;
        // A successor that knows of no filter would be left with ours, and with sessions that are not its own.
        self.steerer.take_filter_off();
        self.steerer.refresh(None, &[]);
        self.shared.stand_still();
    }

    /// Whether all data threads stand.
    pub(crate) fn stands_still(&self) -> bool {
        self.shared.stands_still()
    }

    /// Goes on where [`stand_still`](Self::stand_still) stopped.
    pub(crate) fn go_on(&mut self) {
        self.standing = false;
        self.steerer.put_filter_on();
        self.shared.go_on();
        self.underlay_changed = true;
        self.refresh_underlay();
        self.settle();
    }

    /// Pins what the eBPF programs count, in the place of what process `predecessor` has left.
    pub(crate) fn pin(&mut self, interface: &str, predecessor: Option<u32>) {
        self.steerer.pin(interface, predecessor);
    }

    /// Leaves the pins to the process that serves the device from now on.
    pub(crate) fn leave_pins(&mut self) {
        self.steerer.leave_pins();
    }

    /// What the control thread still needs once everything is set up; `socket` and `metrics` are files.
    pub(crate) fn needs<'a>(&'a self, socket: &'a Path, metrics: Option<&'a Path>) -> Needs<'a> {
        Needs {
            socket,
            metrics,
            programs: self.steerer.has_programs(),
            pins: self.steerer.pinned_at(),
            af_xdp: self.steerer.may_steer(),
        }
    }

    /// Names the process that serves the device from now on to the service manager.
    pub(crate) fn name_successor(&self, successor: Option<u32>) {
        if let (Some(manager), Some(successor)) = (self.service_manager(), successor) {
            manager.continued_as(successor);
        }
    }

    /// What the data threads share.
    pub(crate) fn dataplane(&self) -> &Dataplane {
        &self.shared
    }

    /// The service manager, if there is one.
    pub(crate) fn service_manager(&self) -> Option<&ServiceManager> {
        self.reports.as_ref().map(super::service::Reports::manager)
    }

    /// Tells the manager that the daemon is alive while it stands still.
    pub(crate) fn report_alive(&self) {
        if let Some(manager) = self.service_manager()
            && manager.watchdog().is_some()
        {
            manager.alive();
        }
    }

    /// Device and peers, to be read by [`inherit`](Self::inherit): the lines of a `set` operation, and behind them others
    /// that begin with `adit_`.
    pub(crate) fn describe_estate(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::new());
        // Grown at once: a string that grows leaves copies of the keys behind.
        text.reserve(1024 + self.device.peer_count() * 768 + self.device.allowed_ip_count() * 64);
        if let Some(key) = self.device.private_key() {
            hex_line(&mut text, "private_key", key.as_bytes());
        }
        // Writing to a String cannot fail.
        let _ = writeln!(text, "listen_port={}\nfwmark={}", self.port, self.mark);
        let now = instant();
        for peer in self.device.peers() {
            hex_line(&mut text, "public_key", peer.public_key.as_bytes());
            if let Some(key) = &peer.preshared_key {
                hex_line(&mut text, "preshared_key", key.as_bytes());
            }
            if let Some(endpoint) = peer.endpoint {
                let _ = writeln!(text, "endpoint={}", endpoint.address);
            }
            if peer.keepalive != 0 {
                let _ = writeln!(text, "persistent_keepalive_interval={}", peer.keepalive);
            }
            for prefix in &peer.allowed_ips {
                let (address, length) = (prefix.address(), prefix.length());
                let _ = writeln!(text, "allowed_ip={address}/{length}");
            }
            if let Some(history) = self.device.history(now, peer.id) {
                describe_history(&mut text, &history);
            }
        }
        text
    }

    /// Takes over what [`describe_estate`](Self::describe_estate) has written. Lines that
    /// begin with `adit_` and are of later versions are passed over.
    ///
    /// # Errors
    /// A line that makes no sense, or a setting that the system refuses.
    pub(crate) fn inherit(&mut self, configuration: &[u8]) -> Result<()> {
        let text = std::str::from_utf8(configuration).context("the configuration is not text")?;
        let mut parser = Parser::default();
        let mut settings = Vec::new();
        let mut histories: Vec<(PublicKey, PeerHistory)> = Vec::new();
        for line in text.lines() {
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            if let Some(key) = key.strip_prefix("adit_") {
                if let Some((_, history)) = histories.last_mut() {
                    read_history(history, key, value)
                        .with_context(|| format!("of the configuration, adit_{key}"))?;
                }
                continue;
            }
            let setting = parser
                .line(line)
                .with_context(|| format!("of the configuration, {key}"))?;
            match &setting {
                Setting::Peer(key) => histories.push((*key, PeerHistory::default())),
                Setting::Endpoint(address) => {
                    if let Some((_, history)) = histories.last_mut() {
                        history.endpoint = Some(Endpoint {
                            address: *address,
                            source: history.endpoint.and_then(|endpoint| endpoint.source),
                        });
                    }
                }
                _ => {}
            }
            settings.push(setting);
        }
        self.configure(settings).context("the configuration")?;
        for (key, history) in &histories {
            if let Some(peer) = self.device.peer_by_key(key) {
                self.device.restore(peer, history);
            }
        }
        self.settle();
        Ok(())
    }

    /// The process that had the sockets has ended.
    pub(crate) fn be_alone(&mut self) {
        self.alone = true;
        self.steerer.put_filter_on();
    }

    /// Takes over open sockets, for when the interface is seen to be up.
    pub(crate) fn inherit_sockets(&mut self, sockets: Option<UdpGroup>) {
        self.alone = sockets.is_none();
        self.inherited = sockets;
    }
}

fn describe_history(text: &mut String, history: &PeerHistory) {
    // Writing to a String cannot fail.
    if let Some(source) = history.endpoint.and_then(|endpoint| endpoint.source) {
        let _ = writeln!(text, "adit_source={}%{}", source.address, source.interface);
    }
    let _ = writeln!(text, "adit_tx_bytes={}", history.tx_bytes);
    let _ = writeln!(text, "adit_rx_bytes={}", history.rx_bytes);
    if let Some(at) = history.last_handshake {
        let _ = writeln!(
            text,
            "adit_last_handshake={}.{:09}",
            at.as_secs(),
            at.subsec_nanos()
        );
    }
    for (key, label) in [
        ("adit_latest_timestamp", &history.latest_timestamp),
        ("adit_sent_timestamp", &history.sent_timestamp),
    ] {
        let number = label
            .iter()
            .fold(0, |number, &byte| number << 8 | u128::from(byte));
        let _ = writeln!(text, "{key}={number:024x}");
    }
    let _ = writeln!(text, "adit_live={}", history.live);
}

/// Reads one line. One that is not known is of a later version.
fn read_history(history: &mut PeerHistory, key: &str, value: &str) -> Result<()> {
    let timestamp = || -> Result<[u8; 12]> {
        let number = u128::from_str_radix(value, 16)?;
        let [0, 0, 0, 0, label @ ..] = number.to_be_bytes() else {
            anyhow::bail!("{value}: longer than a timestamp");
        };
        Ok(label)
    };
    match key {
        "source" => {
            let (address, interface) = value.split_once('%').context("no interface")?;
            let address: IpAddr = address.parse()?;
            let source = Source {
                address,
                interface: interface.parse()?,
            };
            if let Some(endpoint) = &mut history.endpoint {
                endpoint.source = Some(source);
            }
        }
        "tx_bytes" => history.tx_bytes = value.parse()?,
        "rx_bytes" => history.rx_bytes = value.parse()?,
        "last_handshake" => {
            let (seconds, nanoseconds) = value.split_once('.').context("no nanoseconds")?;
            let nanoseconds: u32 = nanoseconds.parse()?;
            let nanoseconds = Duration::from_nanos(nanoseconds.into());
            history.last_handshake = Some(Duration::from_secs(seconds.parse()?) + nanoseconds);
        }
        "latest_timestamp" => history.latest_timestamp = timestamp()?,
        "sent_timestamp" => history.sent_timestamp = timestamp()?,
        "live" => history.live = value == "true",
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_as_it_was_written() {
        let endpoint = Endpoint {
            address: "[2001:db8::2]:51820".parse().unwrap(),
            source: Some(Source {
                address: "2001:db8::1".parse().unwrap(),
                interface: 7,
            }),
        };
        let history = PeerHistory {
            endpoint: Some(endpoint),
            tx_bytes: u64::MAX,
            rx_bytes: 1,
            last_handshake: Some(Duration::new(1_700_000_000, 5)),
            latest_timestamp: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
            sent_timestamp: [0xff; 12],
            live: true,
        };
        let mut text = String::new();
        describe_history(&mut text, &history);
        let mut read = PeerHistory {
            endpoint: Some(Endpoint::new(endpoint.address)),
            ..PeerHistory::default()
        };
        for line in text.lines() {
            let (key, value) = line.strip_prefix("adit_").unwrap().split_once('=').unwrap();
            read_history(&mut read, key, value).unwrap();
        }
        assert_eq!(read, history);
        read_history(&mut read, "colour", "blue").unwrap();
        assert_eq!(read, history);
        for (key, value) in [
            ("tx_bytes", "-1"),
            ("source", "1.2.3.4"),
            ("last_handshake", "1"),
            ("sent_timestamp", "x"),
            ("sent_timestamp", "1ffffffffffffffffffffffff"),
        ] {
            assert!(
                read_history(&mut read, key, value).is_err(),
                "{key}={value}"
            );
        }
    }
}
