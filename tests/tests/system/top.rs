//! `adit top` on a pseudo-terminal: what it shows, what its keys do, and how it ends.

use std::process::Command;

use adit_tests::daemon::{Options, adit_path};
use adit_tests::terminal::Terminal;
use adit_tests::tunnel::{Family, PORT, Pair, PairOptions};
use adit_tests::wg::{KeyPair, apply};
use adit_tests::{Daemon, Namespace, Site, command};
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

/// The sizes that matter: the smallest terminal there is, and a usual one.
const SIZES: [(u16, u16); 2] = [(80, 24), (120, 40)];

/// `adit` in a namespace, with blank-separated arguments, and no say about colours.
fn adit(namespace: &Namespace, arguments: &str) -> Result<Command> {
    let mut command = namespace.command(adit_path()?);
    command.args(arguments.split_whitespace());
    Ok(plain(command))
}

fn plain(mut command: Command) -> Command {
    command.env("TERM", "xterm-256color");
    for variable in ["NO_COLOR", "CLICOLOR_FORCE", "WG_COLOR_MODE"] {
        command.env_remove(variable);
    }
    command
}

/// `adit` where the daemon's maps are to be seen: in its mount namespace.
fn adit_beside(site: &Site, arguments: &str) -> Result<Command> {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--mount=/proc/{}/ns/mnt", site.daemon.pid()))
        .arg(adit_path()?.canonicalize()?)
        .args(arguments.split_whitespace());
    Ok(plain(command))
}

/// The number of queues is shown, and would follow that of the cores.
fn one_queue() -> Options {
    Options {
        arguments: ["--queues", "1"].map(str::to_owned).into(),
        ..Options::default()
    }
}

/// A daemon whose peers have been told and never heard: nothing of it changes.
fn quiet(peers: usize) -> Result<(Daemon, Namespace)> {
    let namespace = Namespace::new()?;
    let daemon = Daemon::start(&namespace, &one_queue())?;
    let interface = daemon.interface();
    namespace.ip(&format!("link set {interface} up"))?;
    let mut config = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n",
        KeyPair::generate()?.private
    );
    for number in 0..peers {
        let (high, low) = (number / 256, number % 256);
        config.push_str(&format!(
            "[Peer]\nPublicKey = {}\nAllowedIPs = 10.{high}.{low}.0/24, fd00:{number:x}::/64\nEndpoint = 198.18.{high}.{low}:{PORT}\n",
            key(number)?
        ));
    }
    apply(&namespace, "setconf", interface, &config)?;
    Ok((daemon, namespace))
}

/// A public key that is the same in every run.
fn key(number: usize) -> Result<String> {
    use base64::Engine as _;
    let mut bytes = [0x5a; 32];
    bytes[..4].copy_from_slice(&u32::try_from(number)?.to_be_bytes());
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}

/// A screen without what differs from run to run: the name of the tunnel, how long it has been up, and what the kernel has
/// sent that nobody wanted.
fn stable(screen: &str, interface: &str) -> String {
    let mut lines: Vec<String> = screen.lines().map(str::to_owned).collect();
    if let Some(first) = lines.first_mut() {
        let mut words: Vec<&str> = first.split_whitespace().collect();
        if let Some(up) = words.iter().position(|word| *word == "up")
            && let Some(time) = words.get_mut(up + 1)
        {
            *time = "#";
        }
        *first = words.join(" ").replace(interface, "wg0");
    }
    for line in lines.iter_mut().filter(|line| line.starts_with(" drops ")) {
        " drops #".clone_into(line);
    }
    lines.join("\n")
}

/// [`stable`], also without all figures of traffic.
fn without_figures(screen: &str, interface: &str, connected: &str) -> String {
    let known = format!("{}…", &connected[..10]);
    let stable = stable(screen, interface);
    let mut flows = Vec::new();
    let mut lines = Vec::new();
    for line in stable.lines() {
        if let Some(rest) = line.strip_prefix(&known) {
            let endpoint = rest.split_whitespace().next().unwrap_or_default();
            let prefixes = rest.split_once("   10.").map_or("", |(_, rest)| rest);
            lines.push(format!("PEER        {endpoint} # 10.{prefixes}"));
        } else if line.contains(" <- ") || line.contains(" -> ") {
            let words: Vec<&str> = line.split_whitespace().take(3).collect();
            flows.push(format!("{} #", words.join(" ")));
        } else if line.starts_with(" in ") || line.starts_with(" out ") {
            let kept = line.split_once("   peers").or(line.split_once("   by"));
            let (_, kept) = kept.unwrap_or_default();
            lines.push(format!("{} #  {kept}", &line[..4]));
        } else {
            lines.push(line.to_owned());
        }
    }
    flows.sort();
    lines.extend(flows);
    lines.join("\n")
}

fn shows_peers(screen: &str, count: usize) -> bool {
    screen.contains(&format!("   peers {count}  active"))
}

#[test]
fn no_peer() -> Result<()> {
    let (daemon, namespace) = quiet(0)?;
    let interface = daemon.interface();
    for (columns, lines) in SIZES {
        let command = adit(&namespace, &format!("top {interface}"))?;
        let terminal = Terminal::start(&command, columns, lines)?;
        // From the second reading on there are rates.
        let screen = terminal.wait_screen("rates", |screen| screen.contains("0 packets/s"))?;
        insta::assert_snapshot!(format!("top_none_{columns}"), stable(&screen, interface));
    }
    Ok(())
}

#[test]
fn a_thousand_peers() -> Result<()> {
    let (daemon, namespace) = quiet(1000)?;
    let interface = daemon.interface();
    for (columns, lines) in SIZES {
        let command = adit(&namespace, &format!("top {interface}"))?;
        let mut terminal = Terminal::start(&command, columns, lines)?;
        let screen = terminal.wait_screen("rates", |screen| {
            shows_peers(screen, 1000) && screen.contains("0 packets/s")
        })?;
        insta::assert_snapshot!(
            format!("top_thousand_{columns}"),
            stable(&screen, interface)
        );
        // Up from the first is the first; End is the last.
        terminal.keys("\x1b[B\x1b[A\x1b[F")?;
        let whole = format!(" peer {}", key(999)?);
        let screen = terminal.wait_screen("the last peer", |screen| screen.contains(&whole))?;
        ensure!(screen.contains("198.18.3.231:51820"), "{screen}");
    }
    Ok(())
}

#[test]
fn two_peers() -> Result<()> {
    let mut pair = Pair::connected(&PairOptions {
        left: one_queue(),
        ..PairOptions::default()
    })?;
    let left = &pair.left;
    let interface = left.interface();
    let silent = key(0)?;
    left.wg_set(&format!("peer {silent} allowed-ips 10.77.0.0/16"))?;
    for (columns, lines) in SIZES {
        let command = adit_beside(left, &format!("top {interface} --every 0.5"))?;
        let terminal = Terminal::start(&command, columns, lines)?;
        let to = pair.right.inner(Family::V4);
        left.namespace.run(&format!("ping -c 3 -i 0.2 {to}"))?;
        let screen = terminal.wait_screen("peers and flows", |screen| {
            shows_peers(screen, 2)
                && [" <- ", " -> ", " packets/s "]
                    .iter()
                    .all(|part| screen.contains(part))
        })?;
        insta::assert_snapshot!(
            format!("top_two_{columns}"),
            without_figures(&screen, interface, &pair.right.keys.public)
        );
        ensure!(terminal.coloured(), "no colours");
    }
    pair.check_running()
}

/// Rates move with the traffic.
#[test]
fn traffic_is_seen() -> Result<()> {
    let pair = Pair::connected(&PairOptions::default())?;
    let left = &pair.left;
    let command = adit(&left.namespace, &format!("top {}", left.interface()))?;
    let terminal = Terminal::start(&command, 80, 24)?;
    let to = pair.right.inner(Family::V4);
    let mut ping = left.namespace.command("ping");
    ping.args([
        "-q",
        "-i",
        "0.01",
        "-s",
        "1200",
        "-w",
        "20",
        &to.to_string(),
    ]);
    let running = command::Running::start(&mut ping)?;
    // 100 packets a second with 1,268 bytes each are about 1 Mbit/s.
    terminal.wait_screen("traffic", |screen| {
        let line = |start: &str| screen.lines().find(|line| line.starts_with(start));
        let fast = |line: &str| line.contains(" kbit/s ") || line.contains(" Mbit/s ");
        line(" in ").is_some_and(fast) && line(" out ").is_some_and(fast)
    })?;
    drop(running);
    Ok(())
}

/// Each key does what the help says.
#[test]
fn keys() -> Result<()> {
    let (daemon, namespace) = quiet(3)?;
    let command = adit(&namespace, &format!("top {}", daemon.interface()))?;
    let mut terminal = Terminal::start(&command, 80, 24)?;
    let first = |screen: &str, number| {
        let start = key(number).map(|key| key[..10].to_owned());
        let row = screen.lines().nth(5).unwrap_or_default().to_owned();
        start.is_ok_and(|start| row.starts_with(&start))
    };
    terminal.wait_screen("peers", |screen| shows_peers(screen, 3) && first(screen, 0))?;
    terminal.keys("r")?;
    terminal.wait_screen("the reverse", |screen| screen.contains("by rate, reversed"))?;
    terminal.keys("rS")?;
    terminal.wait_screen("by endpoint", |screen| {
        screen.contains("by endpoint\n") && first(screen, 0)
    })?;
    terminal.keys("r")?;
    terminal.wait_screen("the last first", |screen| first(screen, 2))?;
    terminal.keys("/198.18.0.1\r")?;
    terminal.wait_screen("one", |screen| {
        screen.contains("shown 1") && screen.contains("filter: 198.18.0.1 ") && first(screen, 1)
    })?;
    terminal.keys("a")?;
    terminal.wait_screen("none active", |screen| {
        screen.contains("no peer passes the filter")
    })?;
    terminal.keys("\x1b")?;
    terminal.wait_screen("all", |screen| {
        !screen.contains("shown") && first(screen, 2)
    })?;
    terminal.keys("p")?;
    terminal.wait_screen("a pause", |screen| screen.contains("  PAUSED"))?;
    terminal.keys(" -")?;
    terminal.wait_screen("slower", |screen| screen.contains("  every 2 s"))?;
    terminal.keys("v")?;
    terminal.wait_screen("peers alone", |screen| !screen.contains("FLOWS"))?;
    terminal.keys("vv")?;
    terminal.wait_screen("drops", |screen| screen.contains("DROPPED PACKETS"))?;
    terminal.keys("?")?;
    terminal.wait_screen("help", |screen| screen.contains("Any key closes this."))?;
    terminal.keys("qv")?;
    terminal.wait_screen("help gone", |screen| screen.contains("FLOWS"))?;
    terminal.keys("\x1b[B")?;
    let whole = format!(" peer {}", key(2)?);
    terminal.wait_screen("details", |screen| screen.contains(&whole))?;
    terminal.resize(120, 40)?;
    terminal.wait_screen("more room", |screen| screen.contains("ALLOWED IPS"))?;
    terminal.keys("q")?;
    ensure!(terminal.wait()?.success() && terminal.is_restored()?);
    Ok(())
}

/// However it ends, the terminal is as it was.
#[test]
fn every_end_restores_the_terminal() -> Result<()> {
    let (mut daemon, namespace) = quiet(1)?;
    let interface = daemon.interface().to_owned();
    let start = || -> Result<Terminal> {
        let terminal = Terminal::start(&adit(&namespace, &format!("top {interface}"))?, 80, 24)?;
        terminal.wait_screen("a peer", |screen| shows_peers(screen, 1))?;
        ensure!(!terminal.is_restored()?, "it does not draw");
        Ok(terminal)
    };
    for keys in ["q", "\x03", "/abc\x03"] {
        let mut terminal = start()?;
        terminal.keys(keys)?;
        ensure!(terminal.wait()?.success() && terminal.is_restored()?);
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut terminal = start()?;
        terminal.signal(signal)?;
        ensure!(terminal.wait()?.success(), "{signal}");
        ensure!(terminal.is_restored()?, "{signal}");
    }
    let mut terminal = start()?;
    daemon.signal(Signal::SIGTERM)?;
    ensure!(terminal.wait()?.code() == Some(1));
    ensure!(terminal.is_restored()?);
    let line = format!("adit: the tunnel has ended: no tunnel {interface}: ");
    terminal.wait_screen("why", |screen| screen.starts_with(&line))?;
    Ok(())
}

/// Several tunnels: one after the other.
#[test]
fn the_next_tunnel() -> Result<()> {
    let (first, namespace) = quiet(1)?;
    let second = Daemon::start(&namespace, &Options::default())?;
    let names = [first.interface(), second.interface()];
    let command = adit(&namespace, &format!("top {}", names[0]))?;
    let mut terminal = Terminal::start(&command, 80, 24)?;
    terminal.wait_screen("the first", |screen| screen.contains(names[0]))?;
    // Other tests have tunnels of their own in the same directory, some of which are about to end.
    for _ in 0..200 {
        terminal.keys("\t")?;
        std::thread::sleep(std::time::Duration::from_millis(50));
        if terminal.screen().contains(names[1]) {
            return Ok(());
        }
    }
    anyhow::bail!("never came to {}: {}", names[1], terminal.screen())
}

/// No colours where none are wanted; everything is there all the same.
#[test]
fn without_colours() -> Result<()> {
    let (daemon, namespace) = quiet(1)?;
    let mut command = adit(&namespace, &format!("top {}", daemon.interface()))?;
    let terminal = Terminal::start(&command, 80, 24)?;
    terminal.wait_screen("a peer", |screen| shows_peers(screen, 1))?;
    ensure!(terminal.coloured());
    command.env("NO_COLOR", "1");
    let terminal = Terminal::start(&command, 80, 24)?;
    terminal.wait_screen("a peer", |screen| shows_peers(screen, 1))?;
    ensure!(!terminal.coloured());
    Ok(())
}

/// What cannot be watched is one line that says so, on the terminal as it was.
#[test]
fn nothing_to_watch() -> Result<()> {
    let namespace = Namespace::new()?;
    let mut terminal = Terminal::start(&adit(&namespace, "top adit-nowhere")?, 80, 24)?;
    ensure!(terminal.wait()?.code() == Some(1) && terminal.is_restored()?);
    terminal.wait_screen("why", |screen| {
        screen.starts_with("adit: no tunnel adit-nowhere: ")
    })?;
    ensure!(!terminal.bytes().contains(&0x1b), "{:?}", terminal.screen());

    let daemon = Daemon::start(&namespace, &Options::default())?;
    let mut command = adit(&namespace, &format!("top {}", daemon.interface()))?;
    let output = command::output(&mut command)?;
    ensure!(
        output.status.code() == Some(1)
            && output.stdout.is_empty()
            && output
                .stderr
                .starts_with("adit: adit top needs a terminal; "),
        "{output:?}"
    );
    Ok(())
}

/// Ten thousand peers: keys are answered, and the right ones are found.
#[test]
fn ten_thousand_peers() -> Result<()> {
    let (mut daemon, namespace) = quiet(10_000)?;
    let command = adit(&namespace, &format!("top {}", daemon.interface()))?;
    let mut terminal = Terminal::start(&command, 120, 40)?;
    terminal.wait_screen("peers", |screen| shows_peers(screen, 10_000))?;
    let wanted = key(9_999)?;
    terminal.keys(&format!("/{wanted}\r\x1b[B"))?;
    let whole = format!(" peer {wanted}");
    let screen = terminal.wait_screen("one", |screen| screen.contains(&whole))?;
    ensure!(screen.contains("shown 1\n"), "{screen}");
    terminal.keys("q")?;
    ensure!(terminal.wait()?.success(), "{}", terminal.screen());
    ensure!(daemon.running());
    Ok(())
}
