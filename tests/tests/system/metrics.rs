//! `--metrics`: OpenMetrics over TCP and Unix sockets, and what hostile clients can do to the tunnel.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use adit_tests::command::output;
use adit_tests::daemon::{Options, adit_path};
use adit_tests::open_metrics::{Exposition, parse};
use adit_tests::ping::wait_reachable;
use adit_tests::tunnel::{Family, HANDSHAKE_LIMIT, Pair, PairOptions};
use adit_tests::wg::{apply, random_public_keys};
use adit_tests::{Daemon, Namespace, Site, process};
use anyhow::{Context as _, Result, ensure};

use crate::documents;

/// In a namespace of its own, any port is free.
const ADDRESS: &str = "127.0.0.1:9586";
const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
const LIMIT: Duration = Duration::from_secs(20);

fn options(arguments: &[&str]) -> Options {
    Options {
        arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
        ..Options::default()
    }
}

fn pair(arguments: &[&str]) -> Result<Pair> {
    Pair::connected(&PairOptions {
        left: options(arguments),
        ..PairOptions::default()
    })
}

fn connect(namespace: &Namespace) -> Result<TcpStream> {
    let address: SocketAddr = ADDRESS.parse()?;
    let stream = namespace.enter(|| TcpStream::connect_timeout(&address, LIMIT))??;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Sends a request and reads the answer to its end: its head, its body.
fn ask(mut stream: impl Read + Write) -> Result<(String, String)> {
    stream.write_all(REQUEST)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
    Ok((head.to_owned(), body.to_owned()))
}

fn scrape(namespace: &Namespace) -> Result<Exposition> {
    let (head, body) = ask(connect(namespace)?)?;
    ensure!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    ensure!(head.lines().any(|line| line == kind), "{head}");
    parse(&body).with_context(|| body)
}

fn value(exposition: &Exposition, name: &str, label: Option<(&str, &str)>) -> Result<f64> {
    let value = exposition.value(name, label);
    value.with_context(|| format!("no {name} {label:?}"))
}

/// What is told is what `wg show` tells, and what happened.
#[test]
fn over_tcp() -> Result<()> {
    let mut pair = pair(&["--metrics", ADDRESS])?;
    let left = &pair.left;
    left.namespace
        .ip(&format!("route add 10.77.0.0/16 dev {}", left.interface()))?;
    // Nobody has this address among their allowed-ips.
    let _ = left.namespace.run("ping -c 1 -W 1 10.77.0.1");
    let stranger = adit_tests::wg::KeyPair::generate()?.public;
    left.wg_set(&format!("peer {stranger}"))?;
    // An answer may be a quarter of a second old.
    std::thread::sleep(Duration::from_millis(500));
    let metrics = scrape(&left.namespace)?;
    for sample in &metrics.samples {
        let interface = sample.labels.iter().find(|(name, _)| name == "interface");
        ensure!(
            interface.is_some_and(|(_, value)| value == left.interface()),
            "{sample:?}"
        );
    }
    let shown = left.peer(&pair.right)?;
    let peer = Some(("public_key", pair.right.keys.public.as_str()));
    #[expect(clippy::cast_precision_loss, reason = "a few packets")]
    let told = [
        ("adit_peer_receive_bytes_total", shown.received as f64),
        ("adit_peer_transmit_bytes_total", shown.sent as f64),
    ];
    for (name, bytes) in told {
        ensure!((value(&metrics, name, peer)? - bytes).abs() < 0.5, "{name}");
    }
    let handshake = value(&metrics, "adit_peer_last_handshake_seconds", peer)?;
    #[expect(clippy::cast_precision_loss, reason = "a second counts")]
    let expected = shown.latest_handshake as f64;
    ensure!(
        (handshake - expected).abs() <= 1.0,
        "{handshake} {expected}"
    );
    let unheard = Some(("public_key", stranger.as_str()));
    ensure!(
        metrics
            .value("adit_peer_last_handshake_seconds", unheard)
            .is_none()
    );
    for (name, label, least) in [
        ("adit_up", None, 1.0),
        ("adit_peers", None, 2.0),
        ("adit_sessions", None, 1.0),
        ("adit_queues", None, 1.0),
        ("adit_data_path", Some(("path", "socket")), 1.0),
        ("adit_drops_total", Some(("reason", "egress_no_route")), 1.0),
        ("adit_udp_sent_datagrams_total", None, 1.0),
        ("process_cpu_seconds_total", None, 0.001),
        ("process_resident_memory_bytes", None, 1e6),
        ("process_start_time_seconds", None, 1.7e9),
        ("adit_info", None, 1.0),
    ] {
        let found = value(&metrics, name, label)?;
        ensure!(found >= least, "{name} {label:?} is {found}");
    }
    ensure!(value(&metrics, "adit_peers_omitted", None)? < 0.5);
    // Nothing else does.
    let private = &left.keys.private;
    let (_, body) = ask(connect(&left.namespace)?)?;
    ensure!(!body.contains(private) && !body.contains(&adit_tests::wg::hex(private)?));
    pair.check_running()
}

/// The file is for the daemon's user, and goes with the daemon.
#[test]
fn over_a_unix_socket() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("metrics.sock");
    let namespace = Namespace::new()?;
    let mut daemon = Daemon::start(
        &namespace,
        &options(&["--metrics", &format!("unix:{}", path.display())]),
    )?;
    let mode = std::fs::metadata(&path)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    let (head, body) = ask(UnixStream::connect(&path)?)?;
    ensure!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let metrics = parse(&body).context(body)?;
    ensure!(value(&metrics, "adit_up", None)? < 0.5);
    daemon.signal(nix::sys::signal::Signal::SIGTERM)?;
    ensure!(daemon.wait()?.success());
    ensure!(!path.exists(), "{} is left", path.display());
    Ok(())
}

/// An address that cannot be had ends the start, in one line that names it.
#[test]
fn addresses_that_cannot_be_had() -> Result<()> {
    let namespace = Namespace::new()?;
    let taken = namespace.enter(|| std::net::TcpListener::bind(ADDRESS))??;
    let start = |address: &str| -> Result<(Option<i32>, String)> {
        let interface = adit_tests::name::interface();
        let mut command = namespace.command(adit_path()?);
        let output = output(command.args(["-f", "--metrics", address, &interface]))?;
        ensure!(!namespace.has_interface(&interface));
        Ok((output.status.code(), output.stderr))
    };
    for address in [ADDRESS, "192.0.2.77:9586", "unix:/nonexistent/x"] {
        let (code, line) = start(address)?;
        ensure!(code == Some(1) && line.lines().count() == 1, "{line}");
        ensure!(line.contains(&format!("--metrics {address}: ")), "{line}");
    }
    let (code, text) = start("localhost")?;
    ensure!(code == Some(2) && text.contains("127.0.0.1:9586"), "{text}");
    drop(taken);
    Ok(())
}

/// There are no more series than were allowed, and what is left out is counted.
#[test]
fn peers_are_bounded() -> Result<()> {
    let pair = pair(&["--metrics", ADDRESS, "--metrics-peers", "100"])?;
    let left = &pair.left;
    let config: String = random_public_keys(1000)?
        .iter()
        .map(|key| format!("[Peer]\nPublicKey = {key}\n"))
        .collect();
    apply(&left.namespace, "addconf", left.interface(), &config)?;
    std::thread::sleep(Duration::from_millis(500));
    let metrics = scrape(&left.namespace)?;
    let series = |name: &str| {
        let samples = metrics.samples.iter();
        samples.filter(|sample| sample.name == name).count()
    };
    ensure!(series("adit_peer_receive_bytes_total") == 100);
    ensure!((value(&metrics, "adit_peers", None)? - 1001.0).abs() < 0.5);
    ensure!((value(&metrics, "adit_peers_omitted", None)? - 901.0).abs() < 0.5);
    // Of those that are told, the one that was ever heard of is the first.
    let heard = Some(("public_key", pair.right.keys.public.as_str()));
    ensure!(
        metrics
            .value("adit_peer_receive_bytes_total", heard)
            .is_some()
    );
    Ok(())
}

/// The tunnel works, and metrics are answered.
fn check_alive(pair: &mut Pair) -> Result<()> {
    let to = pair.right.inner(Family::V4);
    wait_reachable(&pair.left.namespace, to, HANDSHAKE_LIMIT)?;
    scrape(&pair.left.namespace)?;
    pair.check_running()
}

/// Clients that keep silent, are slow, never end their request, never read, or come by the thousand.
#[test]
fn hostile_clients() -> Result<()> {
    let mut pair = pair(&["--metrics", ADDRESS])?;
    let config: String = random_public_keys(1000)?
        .iter()
        .map(|key| format!("[Peer]\nPublicKey = {key}\n"))
        .collect();
    apply(
        &pair.left.namespace,
        "addconf",
        pair.left.interface(),
        &config,
    )?;
    let files = process::open_files(pair.left.daemon.pid())?;
    let namespace = |pair: &Pair| -> Result<TcpStream> { connect(&pair.left.namespace) };

    let mut held = Vec::new();
    for beginning in [&b""[..], b"G", b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: "] {
        let mut stream = namespace(&pair)?;
        stream.write_all(beginning)?;
        held.push(stream);
    }
    check_alive(&mut pair)?;

    // A head, a line and a body without an end: cut off, whatever the client wants to send.
    for beginning in [
        "GET /metrics HTTP/1.1\r\nHost: x\r\nX-",
        "",
        "POST /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let mut stream = namespace(&pair)?;
        stream.write_all(beginning.as_bytes())?;
        let junk = [b'x'; 1 << 16];
        let cut = (0..1024).any(|_| stream.write_all(&junk).is_err());
        ensure!(cut, "64 MiB were taken after {beginning:?}");
    }
    check_alive(&mut pair)?;

    // One that asks and never reads: a thousand peers make a longer answer than a socket's buffers hold.
    let mut deaf = namespace(&pair)?;
    deaf.write_all(REQUEST)?;
    check_alive(&mut pair)?;

    // Other bytes than HTTP.
    let mut stream = namespace(&pair)?;
    stream.write_all(&[0xff; 4096])?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    ensure!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"));

    // A thousand at once; they take the place of those before them, and few files.
    for _ in 0..1000 {
        let mut stream = namespace(&pair)?;
        // Its place may be another's already.
        let _ = stream.write_all(b"GET /");
        held.push(stream);
    }
    check_alive(&mut pair)?;
    let more = process::open_files(pair.left.daemon.pid())?.saturating_sub(files);
    ensure!(more <= 20, "{more} more open files");

    // As many questions as one client can ask.
    let asking = &pair.left.namespace;
    for _ in 0..200 {
        let (head, _) = ask(connect(asking)?)?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    let metrics = scrape(asking)?;
    let answers = value(&metrics, "adit_metrics_answers_total", None)?;
    ensure!(answers >= 1.0);
    drop((held, deaf));
    check_alive(&mut pair)
}

/// Names of metrics in a query: words that start as ours do.
fn metrics_in(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words.filter(|word| word.starts_with("adit_") || word.starts_with("process_"))
}

/// Dashboard, alerts and the document name metrics that there are; the document names all of them.
#[test]
fn what_documents_name_exists() -> Result<()> {
    const FOLDER: &str = "userspace/adit";
    // Two queues, and a drop, for those that are left out where there is nothing to tell.
    let pair = pair(&["--metrics", ADDRESS, "--queues", "2"])?;
    let mut known: Vec<String> = names(&pair.left)?;
    // Only where there is XDP.
    known.push("adit_xdp_queues".to_owned());
    let dashboard = documents::read(&format!("{FOLDER}/packaging/grafana-dashboard.json"))?;
    serde_json::from_str::<serde_json::Value>(&dashboard).context("the dashboard is not JSON")?;
    let alerts = documents::read(&format!("{FOLDER}/packaging/alerts.yml"))?;
    let document = documents::read(&format!("{FOLDER}/docs/metrics.md"))?;
    for (file, text, least) in [
        ("the dashboard", &dashboard, 8),
        ("the alerts", &alerts, 5),
        ("the document", &document, 30),
    ] {
        let mut found = 0;
        for name in metrics_in(text) {
            let complete = known.iter().any(|known| known == name);
            ensure!(complete, "{file} names {name}, and there is no such metric");
            found += 1;
        }
        ensure!(found >= least, "{file} names {found} metrics only");
    }
    for name in &known {
        ensure!(
            metrics_in(&document).any(|word| word == name),
            "the document does not tell of {name}"
        );
    }
    let expressions = alerts
        .lines()
        .filter(|line| line.trim_start().starts_with("expr:"));
    ensure!(expressions.count() >= 5, "{alerts}");
    Ok(())
}

/// Names of all samples of a daemon.
fn names(site: &Site) -> Result<Vec<String>> {
    let metrics = scrape(&site.namespace)?;
    let mut names: Vec<String> = metrics
        .samples
        .into_iter()
        .map(|sample| sample.name)
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Where there is no `--metrics`, nothing listens.
#[test]
fn nothing_listens_unasked() -> Result<()> {
    let namespace = Namespace::new()?;
    let daemon = Daemon::start(&namespace, &Options::default())?;
    let table = std::fs::read_to_string(
        Path::new("/proc")
            .join(daemon.pid().to_string())
            .join("net/tcp"),
    )?;
    ensure!(table.lines().count() == 1, "{table}");
    Ok(())
}
