//! `adit show`: what `wg show` prints, in its layout, and how the packets come in.

mod json;

use std::fmt::Write as _;

use adit_kernel::clock;
use anyhow::{Context as _, Result};
use serde::Serialize;

use super::answer::Peer;
use super::style::{Style, Tone, print, printable};
use super::tunnel::Tunnel;
use super::{client, flows};

/// Version of what `--json` prints. Fields may be added under the same number.
const VERSION: u32 = 1;

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// A tunnel, or `all`, or `interfaces` for their names alone.
    pub interface: String,
    /// For programs.
    pub json: bool,
}

/// Prints one tunnel, all of them, or their names.
///
/// # Errors
/// In one line: no such tunnel, not allowed, or what the system says.
pub fn run(options: &Options) -> Result<()> {
    let text = match options.interface.as_str() {
        "interfaces" => interfaces(&client::tunnels()?, options.json)?,
        "all" => {
            // One that ends meanwhile is not worth hiding the others for, unless it is the only one.
            let mut tunnels = Vec::new();
            let mut failure = None;
            for name in client::tunnels()? {
                match Tunnel::read(&name) {
                    Ok(tunnel) => tunnels.push(tunnel),
                    Err(error) => failure = Some(error),
                }
            }
            match failure {
                Some(error) if tunnels.is_empty() => return Err(error),
                _ => describe(&tunnels, options.json)?,
            }
        }
        name => describe(&[Tunnel::read(name)?], options.json)?,
    };
    print(&text)?;
    Ok(())
}

fn interfaces(names: &[String], json: bool) -> Result<String> {
    #[derive(Serialize)]
    struct Names<'a> {
        version: u32,
        interfaces: &'a [String],
    }
    if json {
        return to_json(&Names {
            version: VERSION,
            interfaces: names,
        });
    }
    Ok(if names.is_empty() {
        String::new()
    } else {
        format!("{}\n", names.join(" "))
    })
}

fn describe(tunnels: &[Tunnel], json: bool) -> Result<String> {
    if json {
        return to_json(&json::Report::new(tunnels));
    }
    let style = Style::for_stdout();
    let now = clock::unix_time().as_secs();
    let texts: Vec<String> = tunnels
        .iter()
        .map(|tunnel| listing(tunnel, now, style))
        .collect();
    Ok(texts.join("\n"))
}

fn to_json(report: &impl Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(report).context("cannot write JSON")?;
    text.push('\n');
    Ok(text)
}

/// A tunnel in the layout of `wg show`.
fn listing(tunnel: &Tunnel, now: u64, style: Style) -> String {
    let mut text = String::new();
    let name = printable(&tunnel.name);
    heading(&mut text, style, Tone::Good, "interface", &name);
    let device = &tunnel.device;
    let mut line = |key: &str, value: &str| entry(&mut text, style, key, value);
    if let Some(key) = &device.public_key {
        line("public key", &key.to_base64());
        line("private key", "(hidden)");
    }
    if device.listen_port != 0 {
        line("listening port", &device.listen_port.to_string());
    }
    if device.fwmark != 0 {
        line("fwmark", &format!("0x{:x}", device.fwmark));
    }
    if let Some(path) = &device.datapath {
        line("data path", &printable(path));
    }
    for xdp in &device.xdp {
        let copy = if xdp.zero_copy { "zero-copy" } else { "copy" };
        let plural = if xdp.queues == 1 { "" } else { "s" };
        line(
            "xdp",
            &format!(
                "{} ({}, {copy}, {} queue{plural})",
                printable(&xdp.name),
                xdp.mode,
                xdp.queues
            ),
        );
    }
    // Elsewhere, and where nothing is said, packets go out by the UDP socket.
    for transmit in &device.transmit {
        let copy = if transmit.zero_copy {
            "zero-copy"
        } else {
            "copy"
        };
        line(
            "sends by xdp",
            &format!("{} ({copy})", printable(&transmit.name)),
        );
    }
    for note in &device.datapath_notes {
        line("no xdp", &printable(note));
    }
    let drops = tunnel.drops();
    if !drops.is_empty() {
        let parts: Vec<String> = drops
            .iter()
            .map(|(reason, count)| format!("{count} {}", printable(reason).replace('_', " ")))
            .collect();
        line("dropped packets", &parts.join(", "));
    }
    let mut peers: Vec<&Peer> = device.peers.iter().collect();
    // As wg does: who shook hands last comes first.
    peers.sort_by_key(|peer| std::cmp::Reverse(peer.latest_handshake));
    for peer in peers {
        text.push('\n');
        peer_listing(&mut text, tunnel, peer, now, style);
    }
    text
}

fn peer_listing(text: &mut String, tunnel: &Tunnel, peer: &Peer, now: u64, style: Style) {
    heading(
        text,
        style,
        Tone::Notice,
        "peer",
        &peer.public_key.to_base64(),
    );
    let mut line = |key: &str, value: &str| entry(text, style, key, value);
    if peer.preshared_key {
        line("preshared key", "(hidden)");
    }
    if let Some(endpoint) = peer.endpoint {
        line("endpoint", &endpoint.to_string());
    }
    let prefixes: Vec<String> = peer
        .allowed_ips
        .iter()
        .map(|(address, length)| {
            let slash = style.paint(Tone::Unit, "/");
            format!("{address}{slash}{length}")
        })
        .collect();
    if prefixes.is_empty() {
        line("allowed ips", "(none)");
    } else {
        line("allowed ips", &prefixes.join(", "));
    }
    if peer.latest_handshake != 0 {
        line("latest handshake", &style.ago(now, peer.latest_handshake));
    }
    if let Some(taken) = peer.round_trip {
        line("round trip", &style.milliseconds(taken));
    }
    if peer.received != 0 || peer.sent != 0 {
        let (received, sent) = (style.bytes(peer.received), style.bytes(peer.sent));
        line("transfer", &format!("{received} received, {sent} sent"));
    }
    if peer.keepalive != 0 {
        let span = style.span(peer.keepalive.into());
        line("persistent keepalive", &format!("every {span}"));
    }
    for row in tunnel.flows_of(peer) {
        let arrow = if row.direction == "in" { "<-" } else { "->" };
        line(
            &format!("flow {}", row.direction),
            &format!(
                "{} {arrow} {}, {} packets, {}, {}",
                row.local,
                row.remote,
                row.packets,
                style.bytes(row.bytes),
                flows::ago(row.last_seen_seconds, style)
            ),
        );
    }
}

fn heading(text: &mut String, style: Style, tone: Tone, key: &str, value: &str) {
    let (key, value) = (style.paint_bold(tone, key), style.paint(tone, value));
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{key}: {value}");
}

fn entry(text: &mut String, style: Style, key: &str, value: &str) {
    let key = style.paint(Tone::Bold, key);
    let _ = writeln!(text, "  {key}: {value}");
}

#[cfg(test)]
mod tests {
    use adit_kernel::bpf::{Direction, Flow};

    use super::*;
    use crate::inspect::answer::Device;

    const PRIVATE: &str = "77076d0a7318a57d3c16c17251b26645c6c2f6c929f6a0a6c6f3a7ff2c3b2a2a";
    const FIRST: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";
    const SECOND: &str = "58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376";

    fn tunnel() -> Tunnel {
        let answer = format!(
            "private_key={PRIVATE}\nlisten_port=51820\nfwmark=4660\nadit_datapath=xdp\n\
             adit_xdp=eth0 native copy 2\nadit_datapath_note=eth1: \x1b[2J\nadit_tun_reads=7\n\
             adit_drop_ebpf_dead_index=12\nadit_drop_ebpf_reserved=0\n\
             adit_drop_ingress_replayed=3\nadit_drop_egress_malformed=0\n\
             public_key={FIRST}\nallowed_ip=10.0.0.9/32\n\
             public_key={SECOND}\npreshared_key={FIRST}\nendpoint=192.0.2.2:51820\n\
             last_handshake_time_sec=1000\nadit_round_trip_us=12345\ntx_bytes=2048\nrx_bytes=12\npersistent_keepalive_interval=25\n\
             allowed_ip=10.0.0.2/32\nallowed_ip=fd00::/64\nerrno=0\n\n"
        );
        let flow = |remote: &str, direction| Flow {
            remote: remote.parse().unwrap(),
            local: "192.0.2.1:51820".parse().unwrap(),
            direction,
            packets: 3,
            bytes: 1536,
            first_seen_ns: 0,
            last_seen_ns: 0,
        };
        let rows = [
            flow("192.0.2.2:51820", Direction::Ingress),
            flow("192.0.2.2:51821", Direction::Ingress),
        ];
        Tunnel {
            name: "wg0".to_owned(),
            device: Device::parse(answer.as_bytes()).unwrap(),
            flows: Some(
                rows.iter()
                    .map(|flow| flows::row(flow, 2_000_000_000))
                    .collect(),
            ),
        }
    }

    #[test]
    fn the_layout_is_that_of_wg_show() {
        let mut tunnel = tunnel();
        let public = tunnel.device.public_key.unwrap().to_base64();
        let [first, second] = [0, 1].map(|index| tunnel.device.peers[index].public_key.to_base64());
        let expected = format!(
            "\
interface: wg0
  public key: {public}
  private key: (hidden)
  listening port: 51820
  fwmark: 0x1234
  data path: xdp
  xdp: eth0 (native, copy, 2 queues)
  no xdp: eth1: ?[2J
  dropped packets: 12 ebpf dead index, 3 ingress replayed

peer: {second}
  preshared key: (hidden)
  endpoint: 192.0.2.2:51820
  allowed ips: 10.0.0.2/32, fd00::/64
  latest handshake: 1 minute, 3 seconds ago
  round trip: 12.3 ms
  transfer: 12 B received, 2.00 KiB sent
  persistent keepalive: every 25 seconds
  flow in: 192.0.2.1:51820 <- 192.0.2.2:51820, 3 packets, 1.50 KiB, 2 seconds ago

peer: {first}
  allowed ips: 10.0.0.9/32
"
        );
        assert_eq!(listing(&tunnel, 1063, Style::PLAIN), expected);
        tunnel.device.peers[0].allowed_ips.clear();
        let text = listing(&tunnel, 1063, Style::PLAIN);
        assert!(text.ends_with("  allowed ips: (none)\n"), "{text}");
    }

    #[test]
    fn another_implementation_shows_what_it_has() {
        let device = Device::parse(b"listen_port=0\nfwmark=0\nerrno=0\n\n").unwrap();
        let tunnel = Tunnel {
            name: "wg0".to_owned(),
            device,
            flows: None,
        };
        assert_eq!(listing(&tunnel, 0, Style::PLAIN), "interface: wg0\n");
    }

    #[test]
    fn names_and_units_are_coloured() {
        let text = listing(&tunnel(), 1063, Style::COLOURED);
        assert!(text.starts_with("\x1b[32;1minterface\x1b[0m: \x1b[32mwg0\x1b[0m\n"));
        assert!(text.contains("10.0.0.2\x1b[36m/\x1b[0m32"));
    }

    #[test]
    fn json_has_no_secrets_and_typed_values() {
        let tunnels = [tunnel()];
        let text = to_json(&json::Report::new(&tunnels)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["version"], 1);
        let interface = &value["interfaces"][0];
        assert_eq!(interface["private_key_set"], true);
        assert_eq!(interface["listen_port"], 51820);
        assert_eq!(interface["xdp"][0]["queues"], 2);
        assert_eq!(interface["drops"]["ebpf_dead_index"], 12);
        assert_eq!(interface["drops"].as_object().unwrap().len(), 2);
        assert_eq!(interface["counters"]["tun_reads"], 7);
        assert!(interface["peers"][0]["endpoint"].is_null());
        let peer = &interface["peers"][1];
        assert_eq!(peer["endpoint"], "192.0.2.2:51820");
        assert_eq!(peer["preshared_key_set"], true);
        assert_eq!(peer["flows"][0]["packets"], 3);
        assert!(interface.get("private_key").is_none() && peer.get("preshared_key").is_none());
        assert!(!text.contains(&PRIVATE[..8]));
    }

    #[test]
    fn names_of_tunnels_are_one_line_or_json() {
        let names = ["a".to_owned(), "b".to_owned()];
        assert_eq!(interfaces(&names, false).unwrap(), "a b\n");
        assert_eq!(interfaces(&[], false).unwrap(), "");
        let value: serde_json::Value =
            serde_json::from_str(&interfaces(&names, true).unwrap()).unwrap();
        assert_eq!(value["interfaces"][1], "b");
    }
}
