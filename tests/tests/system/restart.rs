//! One daemon in the place of another: the tunnel stays, and a restart that fails changes nothing.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use adit_kernel::descriptors;
use adit_tests::command::{Output, output, run};
use adit_tests::daemon::Options;
use adit_tests::ping::ping_all;
use adit_tests::process::{alive, listens_on_tcp, open_files};
use adit_tests::tunnel::{Family, Pair, PairOptions, Site, WAN};
use adit_tests::wait::wait_until;
use adit_tests::wg::{KeyPair, wg};
use adit_tests::{Daemon, Implementation, Namespace, name, uapi};
use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use crate::service::Manager;
use crate::xdp::{NATIVE, Traffic, connect, wait_steering};

const PATIENCE: Duration = Duration::from_secs(20);

/// Options of a daemon that this manager has started. One in the foreground is restarted only if there is somebody to name
/// the new process to.
fn managed(manager: &Manager, arguments: &[&str]) -> Options {
    Options {
        arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
        environment: manager.environment(),
        ..Options::default()
    }
}

/// Everything that a manager was told so far.
fn told(manager: &Manager) -> Vec<String> {
    let messages = manager.drain().into_iter();
    messages.map(|message| message.text).collect()
}

/// The process that serves the socket of a tunnel, as it says itself.
fn serving(interface: &str) -> Result<u32> {
    let answer = uapi::request(interface, "hand_over=options")?;
    let pid = answer.iter().find(|(key, _)| key == "pid");
    Ok(pid.context("no pid")?.1.parse()?)
}

/// In the network namespace only: `ip netns exec` gives each command mounts of its own, and so its own pins.
fn command(program: impl AsRef<OsStr>, namespace: &Namespace) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", namespace.name()));
    command.arg(program);
    command
}

fn adit(namespace: &Namespace, arguments: &[&str]) -> Result<Output> {
    let mut command = command(Implementation::Adit.program()?, namespace);
    output(command.args(arguments).env("LOG_LEVEL", "debug"))
}

/// `adit restart`, which must succeed; the new process. The old one has ended.
fn restart(namespace: &Namespace, interface: &str, options: &[&str]) -> Result<u32> {
    let before = serving(interface)?;
    let arguments = [&["restart"], options, &[interface]].concat();
    let restarted = adit(namespace, &arguments)?;
    ensure!(restarted.status.success(), "{}", restarted.stderr);
    let after = serving(interface)?;
    ensure!(after != before, "still process {before}");
    let listener = getsockopt(&uapi::connect(interface)?, PeerCredentials)?;
    ensure!(listener.pid().unsigned_abs() == after, "{listener:?}");
    wait_until("the old daemon has ended", PATIENCE, || !alive(before))?;
    Ok(after)
}

/// `adit restart` that must fail; what it says. The same process serves the tunnel.
fn failed_restart(namespace: &Namespace, interface: &str, options: &[&str]) -> Result<String> {
    let before = serving(interface)?;
    let arguments = [&["restart"], options, &[interface]].concat();
    let restarted = adit(namespace, &arguments)?;
    ensure!(!restarted.status.success(), "it was restarted");
    ensure!(serving(interface)? == before, "another process");
    Ok(restarted.stderr)
}

/// What a restart must not change: interfaces with their indices and queues, addresses, routes, rules.
fn host(namespace: &Namespace) -> Result<String> {
    let ip = |line: &str| namespace.run(&format!("ip {line}"));
    // The number of an attached program is no property of the interface.
    let links = ip("-oneline link show")?;
    let links = links.lines().map(|line| {
        let words = line.split_whitespace();
        let words = words.take_while(|word| !word.contains('\\'));
        let words: Vec<&str> = words.filter(|word| !word.starts_with("xdp")).collect();
        words.join(" ") + "\n"
    });
    Ok([
        links.collect(),
        ip("-oneline address show")?,
        ip("route show table all")?,
        ip("-6 route show table main")?,
        ip("rule show")?,
    ]
    .join("\n"))
}

/// Byte number `position` of a stream.
fn pattern(position: usize) -> u8 {
    u8::try_from(position % 251).unwrap_or(0)
}

const BLOCK: usize = 20_000;

fn echo_once(stream: &mut std::net::TcpStream, position: usize) -> Result<()> {
    let sent: Vec<u8> = (position..position + BLOCK).map(pattern).collect();
    let mut received = vec![0; BLOCK];
    stream.write_all(&sent)?;
    stream.read_exact(&mut received)?;
    ensure!(received == sent, "wrong bytes after {position}");
    Ok(())
}

fn stream(
    (from, to, address): (&Namespace, &Namespace, IpAddr),
    rounds: &AtomicUsize,
    stop: &AtomicBool,
) -> Result<()> {
    let listener = to.enter(|| std::net::TcpListener::bind((address, 0)))??;
    let target = listener.local_addr()?;
    let mut client = from.enter(|| std::net::TcpStream::connect_timeout(&target, PATIENCE))??;
    let (mut server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_read_timeout(Some(PATIENCE))?;
        end.set_write_timeout(Some(PATIENCE))?;
    }
    thread::scope(|scope| {
        let echo = scope.spawn(move || -> Result<()> {
            let mut block = vec![0; 1 << 16];
            loop {
                match server.read(&mut block)? {
                    0 => return Ok(()),
                    length => server.write_all(&block[..length])?,
                }
            }
        });
        let mut position = 0;
        while !stop.load(Ordering::Relaxed) {
            echo_once(&mut client, position)?;
            position += BLOCK;
            rounds.fetch_add(1, Ordering::Relaxed);
        }
        client.shutdown(std::net::Shutdown::Write)?;
        echo.join().map_err(|_| anyhow::anyhow!("echo panicked"))?
    })
}

/// Does `work` while checked TCP streams run in both directions; it can wait until they have carried more.
fn under_traffic<T>(
    pair: &Pair,
    work: impl FnOnce(&dyn Fn() -> Result<()>) -> Result<T>,
) -> Result<T> {
    let (left, right) = (&pair.left, &pair.right);
    let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let (stop, counts) = (&AtomicBool::new(false), &counts);
    let ways = [
        (&left.namespace, &right.namespace, right.inner(Family::V4)),
        (&right.namespace, &left.namespace, left.inner(Family::V4)),
    ];
    thread::scope(|scope| {
        let threads: Vec<_> = ways
            .into_iter()
            .zip(counts)
            .map(|(way, count)| scope.spawn(move || stream(way, count, stop)))
            .collect();
        let go_on = || -> Result<()> {
            let before = counts.each_ref().map(|count| count.load(Ordering::Relaxed));
            let more = || {
                let mut now = counts.iter().zip(before);
                now.all(|(count, before)| count.load(Ordering::Relaxed) >= before + 10)
            };
            let ended = || threads.iter().any(thread::ScopedJoinHandle::is_finished);
            wait_until("the streams go on", PATIENCE, || more() || ended())?;
            ensure!(!ended(), "a stream has ended");
            Ok(())
        };
        let result = go_on().and_then(|()| work(&go_on));
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            let ended = thread.join();
            ended.map_err(|_| anyhow::anyhow!("a stream panicked"))??;
        }
        result
    })
}

/// Restarts the left daemon under traffic.
fn survives(pair: &Pair, manager: &Manager, options: &[&str]) -> Result<()> {
    let (left, right) = (&pair.left, &pair.right);
    let before = host(&left.namespace)?;
    let (pid, counted) = under_traffic(pair, |go_on| {
        let counted = left.peer(right)?;
        let pid = restart(&left.namespace, left.interface(), options)?;
        go_on()?;
        Ok((pid, counted))
    })?;
    ensure!(host(&left.namespace)? == before, "something has changed");
    let told = told(manager);
    let stopping = told.iter().any(|told| told.contains("STOPPING"));
    ensure!(
        told.contains(&format!("MAINPID={pid}")) && !stopping,
        "{told:?}"
    );
    let peer = left.peer(right)?;
    ensure!(
        peer.sent > counted.sent && peer.received > counted.received,
        "counted anew: {peer:?}"
    );
    ensure!(daemons(&left.namespace) == [pid]);
    Ok(())
}

/// The processes in a namespace.
fn daemons(namespace: &Namespace) -> Vec<u32> {
    let pids = namespace.pids().into_iter();
    pids.map(i32::unsigned_abs).collect()
}

fn pair(manager: &Manager, right: Implementation, options: &[&str]) -> Result<Pair> {
    let right = Options {
        implementation: right,
        ..Options::default()
    };
    Pair::connected(&PairOptions {
        left: managed(manager, &[&["--datapath", "socket"], options].concat()),
        right,
        preshared_key: Some(KeyPair::generate()?.private),
        ..PairOptions::default()
    })
}

#[test]
fn streams_survive_by_the_socket() -> Result<()> {
    for queues in ["1", "2"] {
        let manager = Manager::new()?;
        let pair = pair(&manager, Implementation::Adit, &["--queues", queues])?;
        survives(&pair, &manager, &[]).with_context(|| format!("{queues} queues"))?;
    }
    Ok(())
}

#[test]
fn streams_survive_by_xdp() -> Result<()> {
    for queues in [1, 2] {
        let manager = Manager::new()?;
        let (left, right) = (Namespace::new()?, Namespace::new()?);
        connect(&left, &right, queues)?;
        let number = queues.to_string();
        let words = ["--queues", &number, "--underlay", WAN, "--datapath", "xdp"];
        let left = Site::start(left, 1, 1420, &managed(&manager, &words))?;
        let right = Site::start(right, 2, 1420, &NATIVE.options())?;
        for (site, peer) in [(&left, &right), (&right, &left)] {
            site.add_peer(peer, &format!("endpoint {}", peer.endpoint(Family::V4)))?;
        }
        let pair = Pair { left, right };
        wait_steering(&pair.left)?;
        pair.wait_connected()?;
        // A successor that dies: the daemon attaches again what it had given up.
        drop(heir(pair.left.interface(), &["1"])?);
        wait_steering(&pair.left)?;
        let before = Traffic::of(&pair.left)?;
        under_traffic(&pair, |go_on| go_on())?;
        let since = Traffic::of(&pair.left)?.since(before);
        ensure!(since.xsk > 0, "nothing came by AF_XDP: {since:?}");
        survives(&pair, &manager, &[]).with_context(|| format!("{queues} queues"))?;
        wait_steering(&pair.left)?;
        under_traffic(&pair, |go_on| go_on())?;
        ensure!(Traffic::of(&pair.left)?.xsk > 0, "nothing came by AF_XDP");
    }
    Ok(())
}

/// A peer that keeps its session would wait for 15 s before it asks for another one.
#[test]
fn wireguard_go_goes_on_at_once() -> Result<()> {
    let manager = Manager::new()?;
    let pair = pair(&manager, Implementation::WireguardGo, &[])?;
    survives(&pair, &manager, &["--no-gso"])
}

/// The new daemon has the options of the old one and those that are given; what both tell is the same.
#[test]
fn options_are_kept_unless_others_are_given() -> Result<()> {
    let manager = Manager::new()?;
    let options = [
        "--no-gro",
        "--helpers",
        "off",
        "--metrics",
        "127.0.0.1:9586",
    ];
    let pair = pair(&manager, Implementation::Adit, &options)?;
    let (namespace, interface) = (&pair.left.namespace, pair.left.interface());
    let told = || -> Result<BTreeSet<String>> {
        let answer = uapi::request(interface, "hand_over=options")?;
        let options = answer.into_iter().filter(|(key, _)| key == "option");
        Ok(options.map(|(_, value)| value).collect())
    };
    let before = told()?;
    ensure!(before.contains("ADIT_NO_GRO=true") && before.contains("ADIT_HELPERS=off"));
    let pid = restart(namespace, interface, &[])?;
    // The level of the log is that of whoever restarts, if it is given there.
    let without_level = |mut told: BTreeSet<String>| {
        told.retain(|option| !option.starts_with("LOG_LEVEL"));
        told
    };
    ensure!(without_level(told()?) == without_level(before.clone()));
    ensure!(listens_on_tcp(pid, 9586));

    let pid = restart(
        namespace,
        interface,
        &["--helpers", "always", "--metrics", "127.0.0.1:9587"],
    )?;
    let after = told()?;
    ensure!(
        after.contains("ADIT_NO_GRO=true") && after.contains("ADIT_HELPERS=always"),
        "{after:?}"
    );
    ensure!(listens_on_tcp(pid, 9587) && !listens_on_tcp(pid, 9586));
    ping_all(namespace, pair.right.inner(Family::V4), 3, 56)
}

/// What fails when the device was handed over already, and a successor that dies then: the daemon has its sessions as before.
#[test]
fn a_restart_that_fails_changes_nothing() -> Result<()> {
    let manager = Manager::new()?;
    let metrics = manager.directory.path().join("metrics");
    let address = format!("unix:{}", metrics.display());
    let options = ["--queues", "2", "--metrics", &address];
    let pair = pair(&manager, Implementation::Adit, &options)?;
    let (left, right) = (&pair.left, &pair.right);
    let (namespace, interface) = (&left.namespace, left.interface());
    let taken = namespace.enter(|| std::net::TcpListener::bind("127.0.0.1:0"))??;
    let taken = taken.local_addr()?.to_string();
    let handshake = left.peer(right)?.latest_handshake;
    let before = host(namespace)?;
    under_traffic(&pair, |go_on| {
        let said = failed_restart(namespace, interface, &["--metrics", &taken])?;
        ensure!(said.contains(&taken) && said.lines().count() == 1, "{said}");
        go_on()?;
        let words = ["--datapath", "xdp", "--underlay", "nowhere"];
        let said = failed_restart(namespace, interface, &words)?;
        ensure!(said.contains("nowhere"), "{said}");
        go_on()?;
        // Out of descriptors, as they arrive and later.
        for limit in ["12", "20"] {
            let before = serving(interface)?;
            let mut command = command("prlimit", namespace);
            command.arg(format!("--nofile={limit}"));
            command.arg(Implementation::Adit.program()?);
            let restarted = output(command.args(["restart", interface]))?;
            ensure!(!restarted.status.success() && serving(interface)? == before);
            go_on().with_context(|| restarted.stderr)?;
        }
        // As if killed, at each step.
        for steps in [&["1"][..], &["1", "ready"], &["1", "nonsense"]] {
            drop(heir(interface, steps)?);
            go_on().with_context(|| format!("{steps:?}"))?;
        }
        Ok(())
    })?;
    ensure!(
        left.peer(right)?.latest_handshake == handshake,
        "another session"
    );
    ensure!(host(namespace)? == before, "something has changed");
    ensure!(
        UnixStream::connect(&metrics).is_ok(),
        "nobody answers for metrics"
    );
    ensure!(!told(&manager).iter().any(|told| told.contains("MAINPID")));
    // And then one that does not.
    under_traffic(&pair, |go_on| {
        restart(namespace, interface, &[])?;
        go_on()
    })?;
    ensure!(
        UnixStream::connect(&metrics).is_ok(),
        "nobody answers for metrics"
    );
    // What is not wanted any more goes.
    restart(namespace, interface, &["--metrics", "127.0.0.1:9588"])?;
    ensure!(!metrics.exists(), "the old socket is still there");
    Ok(())
}

/// Asks for the device and goes so many steps; each but the last is answered.
fn heir(interface: &str, steps: &[&str]) -> Result<UnixStream> {
    let mut stream = uapi::connect(interface)?;
    for step in steps {
        write!(stream, "hand_over={step}\n\n")?;
        if *step == "1" {
            let (mut read, mut files) = (vec![0; 1 << 16], Vec::new());
            while !String::from_utf8_lossy(&read).contains("allowed_ip=") {
                let start = read.iter().position(|&byte| byte == 0).unwrap_or(0);
                let length = descriptors::receive(stream.as_fd(), &mut read[start..], &mut files)?;
                ensure!(length > 0, "{}", String::from_utf8_lossy(&read[..start]));
            }
            ensure!(files.len() >= 4, "{} descriptors", files.len());
        }
    }
    Ok(stream)
}

/// Whoever asks for the device and then says nothing is given up; changes are refused as long, and the tunnel goes on.
#[test]
fn a_silent_heir_is_given_up() -> Result<()> {
    let manager = Manager::new()?;
    let pair = pair(&manager, Implementation::Adit, &[])?;
    let (left, right) = (&pair.left, &pair.right);
    let handshake = left.peer(right)?.latest_handshake;
    let early = uapi::connect(left.interface())?;
    // Served before, so that it is not one of those that wait for whoever has the device then.
    uapi::request_on(&early, "get=1")?;
    under_traffic(&pair, |go_on| {
        let mut silent = heir(left.interface(), &["1", "ready"])?;
        let refused = uapi::request_on(&early, "set=1\nfwmark=7")?;
        ensure!(uapi::errno(&refused)? == -16, "{refused:?}");
        let mut said = String::new();
        silent.read_to_string(&mut said)?;
        ensure!(said == "errno=0\n\nerrno=-110\n\n", "{said}");
        go_on()
    })?;
    ensure!(
        left.peer(right)?.latest_handshake == handshake,
        "another session"
    );
    let told = told(&manager);
    ensure!(told.iter().any(|told| told == "WATCHDOG=1"), "{told:?}");
    left.wg_set("fwmark 7")
}

/// Twenty in a row under traffic: nothing of the daemons before is left.
#[test]
fn restarts_leave_nothing_behind() -> Result<()> {
    let manager = Manager::new()?;
    let pair = pair(&manager, Implementation::Adit, &["--queues", "2"])?;
    let (namespace, interface) = (&pair.left.namespace, pair.left.interface());
    let state = |pid: u32| -> Result<_> {
        let threads = fs::read_dir(format!("/proc/{pid}/task"))?.count();
        let pins = Path::new("/sys/fs/bpf/adit").join(interface).join("v1");
        Ok((open_files(pid)?, threads, fs::read_dir(pins)?.count()))
    };
    let before = host(namespace)?;
    let first = restart(namespace, interface, &[])?;
    under_traffic(&pair, |go_on| {
        // Its connections have ended, and everything is attached.
        go_on()?;
        let usual = state(first)?;
        for round in 0..20 {
            let pid = restart(namespace, interface, &[])?;
            go_on().with_context(|| format!("round {round}"))?;
            wait_until("as much as at first", PATIENCE, || {
                state(pid).is_ok_and(|now| now == usual)
            })
            .with_context(|| format!("round {round}: {:?} and {usual:?}", state(pid)))?;
            ensure!(daemons(namespace) == [pid], "round {round}");
        }
        Ok(())
    })?;
    ensure!(host(namespace)? == before, "something has changed");
    namespace.ip(&format!("link delete {interface}"))?;
    wait_until("the daemon ends", PATIENCE, || {
        daemons(namespace).is_empty()
    })?;
    ensure!(!uapi::socket_path(interface).exists());
    ensure!(!Path::new("/sys/fs/bpf/adit").join(interface).exists());
    Ok(())
}

/// Tunnels from files, by `adit up` and `wg-quick`: the daemon is in the background, and the tunnel is taken down as ever.
#[test]
fn tunnels_from_files_go_on() -> Result<()> {
    for by in ["adit", "wg-quick"] {
        let namespace = Namespace::new()?;
        let (interface, directory) = (name::interface(), tempfile::tempdir()?);
        let config = directory.path().join(format!("{interface}.conf"));
        let (private, peer) = (KeyPair::generate()?.private, KeyPair::generate()?.public);
        let text = format!(
            "[Interface]\nPrivateKey = {private}\nAddress = 10.9.0.1/24\n\
             [Peer]\nPublicKey = {peer}\nAllowedIPs = 10.7.0.0/16\nEndpoint = 127.0.0.1:9\n"
        );
        fs::write(&config, text)?;
        let program = Implementation::Adit.program()?;
        let quick = |action: &str| {
            let mut command = match by {
                "adit" => namespace.command(&program),
                _ => namespace.command("wg-quick"),
            };
            command.env("WG_QUICK_USERSPACE_IMPLEMENTATION", &program);
            run(command.arg(action).arg(&config))
        };
        quick("up").with_context(|| by.to_owned())?;
        let before = (
            host(&namespace)?,
            wg(&namespace, &format!("showconf {interface}"))?,
        );
        let pid = restart(&namespace, &interface, &[])?;
        let after = (
            host(&namespace)?,
            wg(&namespace, &format!("showconf {interface}"))?,
        );
        ensure!(before == after, "{by}: something has changed: {after:?}");
        ensure!(daemons(&namespace) == [pid]);
        quick("down").with_context(|| by.to_owned())?;
        wait_until("the daemon ends", PATIENCE, || {
            daemons(&namespace).is_empty()
        })?;
    }
    Ok(())
}

/// Each in one line that says what is the matter.
#[test]
fn what_cannot_be_restarted_says_why() -> Result<()> {
    let namespace = Namespace::new()?;
    let said = |interface: &str| -> Result<String> {
        let restarted = adit(&namespace, &["restart", interface])?;
        ensure!(restarted.status.code() == Some(1) && restarted.stderr.lines().count() == 1);
        Ok(restarted.stderr)
    };
    let nobody = name::interface();
    ensure!(said(&nobody)?.contains(&format!("{nobody} is not up")));
    let foreground = Daemon::start(&namespace, &Options::default())?;
    ensure!(said(foreground.interface())?.contains("in the foreground"));
    let go = Options {
        implementation: Implementation::WireguardGo,
        ..Options::default()
    };
    let mut other = Daemon::start(&namespace, &go)?;
    let text = said(other.interface())?;
    ensure!(text.contains("not adit"), "{text}");
    ensure!(other.running());
    Ok(())
}
