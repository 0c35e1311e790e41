//! `adit show`, `flows` and `doctor`: looking at a running tunnel and at the machine.

use std::process::Command;

use adit_tests::command::{Output, output};
use adit_tests::daemon::{Options, adit_path};
use adit_tests::tunnel::{Family, PORT, Pair, PairOptions, WAN};
use adit_tests::wg::{self, wg};
use adit_tests::{Daemon, Implementation, Namespace};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Runs `adit` with blank-separated arguments in a namespace; it may fail.
fn adit(namespace: &Namespace, arguments: &str) -> Result<Output> {
    output(
        namespace
            .command(adit_path()?)
            .args(arguments.split_whitespace()),
    )
}

/// Runs `adit`, which must succeed and say nothing on standard error.
fn adit_succeeds(namespace: &Namespace, arguments: &str) -> Result<String> {
    let output = adit(namespace, arguments)?;
    ensure!(
        output.status.success() && output.stderr.is_empty(),
        "adit {arguments}: {output:?}"
    );
    Ok(output.stdout)
}

/// Runs `adit`, which must fail with one line on standard error and nothing on standard output; returns the line.
fn adit_fails(namespace: &Namespace, arguments: &str) -> Result<String> {
    let output = adit(namespace, arguments)?;
    ensure!(
        output.status.code() == Some(1)
            && output.stdout.is_empty()
            && output.stderr.lines().count() == 1,
        "adit {arguments}: {output:?}"
    );
    Ok(output.stderr)
}

fn adit_json(namespace: &Namespace, arguments: &str) -> Result<Value> {
    let text = adit_succeeds(namespace, arguments)?;
    serde_json::from_str(&text).with_context(|| text)
}

fn connected() -> Result<Pair> {
    let pair = Pair::connected(&PairOptions {
        preshared_key: Some(wg::preshared_key()?),
        ..PairOptions::default()
    })?;
    let other = &pair.right.keys.public;
    pair.left.wg_set(&format!(
        "fwmark 0x1234 peer {other} persistent-keepalive 3600"
    ))?;
    let stranger = wg::KeyPair::generate()?.public;
    pair.left.wg_set(&format!("peer {stranger}"))?;
    Ok(pair)
}

/// Lines that `wg show` does not have.
fn is_own(line: &str) -> bool {
    let own = [
        "data path",
        "no xdp",
        "xdp",
        "dropped packets",
        "round trip",
        "flow in",
        "flow out",
    ];
    let key = line.trim_start().split(": ").next().unwrap_or_default();
    own.contains(&key)
}

/// What changes from one second to the next is compared by key alone.
fn timeless(line: &str) -> &str {
    let key = line.split(": ").next().unwrap_or_default();
    match key.trim_start() {
        "latest handshake" | "transfer" => key,
        _ => line,
    }
}

/// But for lines of its own, `adit show` prints what `wg show` does.
#[test]
fn show_prints_what_wg_does() -> Result<()> {
    let mut pair = connected()?;
    let (namespace, interface) = (&pair.left.namespace, pair.left.interface());
    let theirs = wg(namespace, &format!("show {interface}"))?;
    let ours = adit_succeeds(namespace, &format!("show {interface}"))?;
    let expected: Vec<_> = theirs.lines().map(timeless).collect();
    let shown: Vec<_> = ours
        .lines()
        .filter(|line| !is_own(line))
        .map(timeless)
        .collect();
    ensure!(shown == expected, "{ours}\n--- wg:\n{theirs}");
    for key in ["fwmark: 0x1234", "preshared key: (hidden)", "data path: "] {
        ensure!(ours.contains(key), "no {key:?} in\n{ours}");
    }
    ensure!(
        !ours.contains('\x1b'),
        "colours without a terminal: {ours:?}"
    );

    let all = adit_succeeds(namespace, "show")?;
    ensure!(all.contains(&format!("interface: {interface}\n")), "{all}");
    let names = adit_succeeds(namespace, "show interfaces")?;
    ensure!(
        names.split_whitespace().any(|name| name == interface),
        "{names}"
    );
    pair.check_running()
}

/// Colours are those of `wg show`, too, where there are any.
#[test]
fn show_colours_as_wg_does() -> Result<()> {
    let pair = connected()?;
    let (namespace, interface) = (&pair.left.namespace, pair.left.interface());
    let coloured = |program: &std::path::Path| -> Result<String> {
        let mut command = namespace.command(program);
        command.args(["show", interface]);
        Ok(output(command.env("WG_COLOR_MODE", "always"))?.stdout)
    };
    let plain = |line: &str| {
        let mut parts = line.split("\x1b[");
        let first = parts.next().unwrap_or_default().to_owned();
        let rest = parts.filter_map(|part| part.split_once('m'));
        rest.fold(first, |line, (_, text)| line + text)
    };
    // wg sets one attribute at a time, and begins with none.
    let theirs = coloured("wg".as_ref())?.replace("\x1b[32m\x1b[1m", "\x1b[32;1m");
    let theirs = theirs.replace("\x1b[33m\x1b[1m", "\x1b[33;1m");
    let theirs = theirs.trim_start_matches("\x1b[0m");
    let ours = coloured(&adit_path()?)?;
    // Of times and counts, the units alone.
    let fixed = |line: &str| line.replace(|c: char| c.is_ascii_digit() || c == '.', "");
    let is_volatile = |line: &str| timeless(&plain(line)) != plain(line);
    let expected: Vec<_> = theirs.lines().filter(|line| !is_volatile(line)).collect();
    let shown: Vec<_> = ours
        .lines()
        .filter(|line| !is_own(&plain(line)) && !is_volatile(line))
        .collect();
    ensure!(shown == expected, "{ours:?}\n--- wg:\n{theirs:?}");
    let transfer = |text: &str| {
        let mut lines = text.lines().filter(|line| line.contains("transfer"));
        lines.next().map(fixed)
    };
    ensure!(
        transfer(&ours).is_some() && transfer(&ours) == transfer(theirs),
        "{ours:?}"
    );
    Ok(())
}

/// The same as JSON, without secrets.
#[test]
fn show_as_json() -> Result<()> {
    let mut pair = connected()?;
    let (left, right) = (&pair.left, &pair.right);
    let arguments = format!("show {} --json", left.interface());
    let text = adit_succeeds(&left.namespace, &arguments)?;
    let dump = left.dump()?;
    let preshared = dump.peers[&right.keys.public].preshared_key.clone();
    for secret in [Some(left.keys.private.clone()), preshared] {
        let secret = secret.context("a key is not set")?;
        ensure!(!text.contains(&secret), "a secret in {text}");
        ensure!(!text.contains(&wg::hex(&secret)?), "a secret in {text}");
    }
    let value: Value = serde_json::from_str(&text)?;
    ensure!(value["version"] == 1, "{text}");
    let interface = &value["interfaces"][0];
    ensure!(interface["name"] == left.interface(), "{text}");
    ensure!(
        interface["public_key"] == left.keys.public.as_str(),
        "{text}"
    );
    ensure!(interface["private_key_set"] == true, "{text}");
    ensure!(interface["listen_port"] == PORT, "{text}");
    ensure!(interface["datapath"].is_string(), "{text}");
    let sent = interface["counters"]["udp_sent_datagrams"].as_u64();
    ensure!(sent.is_some_and(|sent| sent > 0), "{text}");
    let peers = interface["peers"].as_array().context("no peers")?;
    let peer = peers
        .iter()
        .find(|peer| peer["public_key"] == right.keys.public.as_str())
        .context("the peer is missing")?;
    ensure!(peer["preshared_key_set"] == true, "{text}");
    ensure!(
        peer["endpoint"] == right.endpoint(Family::V4).to_string(),
        "{text}"
    );
    ensure!(peer["persistent_keepalive"] == 3600, "{text}");
    ensure!(
        peer["latest_handshake"]
            .as_u64()
            .is_some_and(|time| time > 0),
        "{text}"
    );
    ensure!(
        peer["handshake_round_trip"]
            .as_f64()
            .is_some_and(|seconds| seconds > 0.0 && seconds < 10.0),
        "{text}"
    );
    ensure!(
        peer["received_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 0),
        "{text}"
    );
    ensure!(
        peer["allowed_ips"]
            .as_array()
            .is_some_and(|ips| ips.len() == 2),
        "{text}"
    );
    pair.check_running()
}

/// What was dropped is said with its reason; what never was is not.
#[test]
fn show_says_what_was_dropped() -> Result<()> {
    let pair = Pair::connected(&PairOptions::default())?;
    let left = &pair.left;
    let show = format!("show {}", left.interface());
    let dropped = || -> Result<u64> {
        let json = adit_json(&left.namespace, &format!("{show} --json"))?;
        let drops = &json["interfaces"][0]["drops"];
        ensure!(
            drops.is_object() && drops.get("ingress_replayed").is_none(),
            "{json}"
        );
        Ok(drops["egress_no_route"].as_u64().unwrap_or(0))
    };
    let before = dropped()?;
    left.namespace
        .ip(&format!("route add 10.77.0.0/16 dev {}", left.interface()))?;
    // Nobody has this address among their allowed-ips.
    let _ = left.namespace.run("ping -c 1 -W 1 10.77.0.1");
    ensure!(dropped()? > before);
    let text = adit_succeeds(&left.namespace, &show)?;
    ensure!(text.contains(" egress no route"), "{text}");
    ensure!(!text.contains("ingress replayed"), "{text}");
    Ok(())
}

/// Another implementation's tunnel is shown as far as it goes, and has no counters.
#[test]
fn tunnels_of_others_are_shown_and_have_no_flows() -> Result<()> {
    let namespace = Namespace::new()?;
    let options = Options {
        implementation: Implementation::WireguardGo,
        ..Options::default()
    };
    let daemon = Daemon::start(&namespace, &options)?;
    let interface = daemon.interface();
    let theirs = wg(&namespace, &format!("show {interface}"))?;
    let ours = adit_succeeds(&namespace, &format!("show {interface}"))?;
    ensure!(ours == theirs, "{ours}\n--- wg:\n{theirs}");
    let json = adit_json(&namespace, &format!("show {interface} --json"))?;
    ensure!(json["interfaces"][0]["datapath"].is_null(), "{json}");
    for arguments in ["", "--json", "--watch 1"] {
        let arguments = format!("flows {interface} {arguments}");
        // `ip netns exec` has put the daemon in a mount namespace of its own.
        let line = adit_fails(&namespace, &arguments)?;
        let there = format!("nsenter --mount=/proc/{}/ns/mnt", daemon.pid());
        ensure!(
            line.contains("has no counters") && line.contains(&there),
            "{line}"
        );
        let words = there.split_whitespace().chain(["--"]);
        let mut command = Command::new("nsenter");
        command
            .args(words.skip(1))
            .arg(adit_path()?.canonicalize()?);
        let told = output(command.args(arguments.split_whitespace()))?;
        ensure!(told.status.code() == Some(1), "{told:?}");
        ensure!(told.stderr.contains("`adit doctor` says why"), "{told:?}");
    }
    Ok(())
}

/// A tunnel that is not there, or was killed, is one line that says so.
#[test]
fn tunnels_that_are_not_there() -> Result<()> {
    let namespace = Namespace::new()?;
    for command in ["show", "flows"] {
        let line = adit_fails(&namespace, &format!("{command} adit-nowhere"))?;
        ensure!(line.starts_with("adit: no tunnel adit-nowhere: "), "{line}");
        let line = adit_fails(&namespace, &format!("{command} ../../etc/x"))?;
        ensure!(line.contains("is not the name of an interface"), "{line}");
    }
    let line = adit_fails(&namespace, "show lo")?;
    ensure!(line.contains("there is such an interface"), "{line}");
    let daemon = Daemon::start(&namespace, &Options::default())?;
    let interface = daemon.interface().to_owned();
    let socket = adit_tests::uapi::socket_path(&interface);
    drop(daemon);
    // As after kill -9: the file stays, nobody listens.
    drop(std::os::unix::net::UnixListener::bind(&socket)?);
    let line = adit_fails(&namespace, &format!("show {interface}"));
    let names = adit_succeeds(&namespace, "show interfaces");
    std::fs::remove_file(&socket)?;
    ensure!(line?.starts_with("adit: no tunnel "), "a stale socket");
    let names = names?;
    ensure!(
        !names.split_whitespace().any(|name| name == interface),
        "{names}"
    );
    Ok(())
}

/// Every check has a status, and the verdict follows from them.
fn check_report(report: &Value) -> Result<()> {
    ensure!(report["version"] == 1, "{report}");
    let sections = report["sections"].as_array().context("no sections")?;
    let mut blocking = 0;
    for check in sections
        .iter()
        .filter_map(|s| s["checks"].as_array())
        .flatten()
    {
        let status = check["status"].as_str().context("no status")?;
        ensure!(["ok", "missing", "blocking"].contains(&status), "{check}");
        for field in ["id", "subject", "found"] {
            ensure!(
                check[field].as_str().is_some_and(|text| !text.is_empty()),
                "{check}"
            );
        }
        blocking += usize::from(status == "blocking");
    }
    ensure!(report["tunnel_possible"] == (blocking == 0), "{report}");
    Ok(())
}

fn path_of<'a>(report: &'a Value, device: &str) -> Option<&'a Value> {
    let devices = report["auto"]["devices"].as_array()?;
    devices.iter().find(|entry| entry["device"] == device)
}

/// Where tunnels run, the doctor says that they can, and which way their packets come in; nothing is left behind.
#[test]
fn doctor_says_which_path_auto_takes() -> Result<()> {
    let pair = Pair::connected(&PairOptions::default())?;
    let namespace = &pair.left.namespace;
    let links = namespace.run("ip -o link")?;
    let report = adit_json(namespace, "doctor --json")?;
    check_report(&report)?;
    ensure!(report["tunnel_possible"] == true, "{report}");
    // The only interface that is up and real.
    let wan = path_of(&report, WAN).context("the wire is not looked at")?;
    ensure!(wan["path"] == "socket", "{report}");
    ensure!(
        wan["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("veth")),
        "{report}"
    );
    ensure!(
        namespace.run("ip -o link")? == links,
        "the doctor changed the interfaces"
    );

    let text = adit_succeeds(namespace, &format!("doctor --underlay {WAN},nowhere0"))?;
    for words in [
        "  ok  TUN device",
        "there is no such interface",
        "What --datapath auto would do",
        "--datapath socket",
        "tcpdump",
    ] {
        ensure!(text.contains(words), "no {words:?} in\n{text}");
    }
    ensure!(!text.contains("!!"), "{text}");
    Ok(())
}

/// Without rights the doctor says what is missing and how to get it, and fails.
#[test]
fn doctor_without_rights() -> Result<()> {
    let namespace = Namespace::new()?;
    let mut command = namespace.command("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all"]);
    let run = |command: &mut Command| output(command);
    let text = run(command.arg(adit_path()?).arg("doctor"))?;
    ensure!(
        text.status.code() == Some(1) && text.stderr.is_empty(),
        "{text:?}"
    );
    ensure!(text.stdout.contains("  !!  CAP_NET_ADMIN"), "{text:?}");
    ensure!(
        text.stdout.contains("=> run adit as root, or: setcap "),
        "{text:?}"
    );
    let json = run(command.arg("--json"))?;
    ensure!(json.status.code() == Some(1), "{json:?}");
    let report: Value = serde_json::from_str(&json.stdout)?;
    check_report(&report)?;
    ensure!(report["auto"]["path"] == "none", "{report}");
    Ok(())
}
