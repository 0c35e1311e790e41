//! The launch contract that `wg-quick` and service managers rely on, and what a person sees when it fails.

use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adit_kernel::tun::{Tun, TunOptions};
use adit_tests::command::{Output, Running, output, run, run_with_input};
use adit_tests::wait::{wait_for, wait_until};
use adit_tests::{Implementation, Namespace, name, process, uapi, wg};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A command that runs the daemon's program in a namespace.
fn adit(namespace: &Namespace, arguments: &[&str]) -> Result<Command> {
    let mut command = namespace.command(Implementation::Adit.program()?);
    command.args(arguments);
    Ok(command)
}

/// Threads that keep every core busy until dropped.
struct Load(Arc<AtomicBool>);

impl Load {
    fn new() -> Self {
        let running = Arc::new(AtomicBool::new(true));
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..2 * cores {
            let running = Arc::clone(&running);
            std::thread::spawn(move || {
                while running.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(running)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The only process in a namespace.
fn only_pid(namespace: &Namespace) -> Result<i32> {
    let pids = namespace.pids();
    ensure!(pids.len() == 1, "one daemon expected: {pids:?}");
    Ok(pids[0])
}

fn end(namespace: &Namespace, pid: i32, interface: &str) -> Result<()> {
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    wait_until("daemon ends", Duration::from_secs(20), || {
        namespace.pids().is_empty() && !uapi::socket_path(interface).exists()
    })
}

/// The parent returns success only when device and socket are there and answer, however busy the machine is.
#[test]
fn returns_when_ready_also_with_every_core_busy() -> Result<()> {
    let namespace = Namespace::new()?;
    let load = Load::new();
    for round in 0..20 {
        let interface = name::interface();
        run(adit(&namespace, &[&interface])?.env("LOG_LEVEL", "error"))
            .with_context(|| format!("start {round}"))?;
        let connected = UnixStream::connect(uapi::socket_path(&interface));
        ensure!(connected.is_ok(), "start {round}: socket: {connected:?}");
        ensure!(
            namespace.has_interface(&interface),
            "start {round}: no device"
        );
        wg::wg(&namespace, &format!("set {interface} listen-port 0"))?;
        end(&namespace, only_pid(&namespace)?, &interface)?;
    }
    drop(load);
    Ok(())
}

/// The daemon leads a session of its own, holds no directory, and does not keep its starter's pipes open.
#[test]
fn daemon_lets_go_of_its_starter() -> Result<()> {
    let namespace = Namespace::new()?;
    let interface = name::interface();
    let started = adit(&namespace, &[&interface])?
        .env("LOG_LEVEL", "silent")
        .stdout(Stdio::piped())
        .spawn()?;
    let status = started.wait_with_output()?.status;
    ensure!(status.success(), "{status}");
    let pid = only_pid(&namespace)?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let session = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(3))
        .context("stat")?;
    ensure!(
        session == pid.to_string(),
        "session {session}, process {pid}"
    );
    end(&namespace, pid, &interface)
}

#[test]
fn foreground_by_environment() -> Result<()> {
    let namespace = Namespace::new()?;
    let interface = name::interface();
    let daemon =
        Running::start(adit(&namespace, &[&interface])?.env("WG_PROCESS_FOREGROUND", "1"))?;
    wait_until("socket", Duration::from_secs(20), || {
        uapi::connect(&interface).is_ok()
    })?;
    let pid = i32::try_from(daemon.pid())?;
    ensure!(namespace.pids() == [pid], "{:?}", namespace.pids());
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    ensure!(daemon.finish(Duration::from_secs(20))?.status.success());
    Ok(())
}

/// A TUN device and a listening socket handed over by their numbers.
#[test]
fn inherited_tun_and_socket() -> Result<()> {
    for offload in [true, false] {
        let namespace = Namespace::new()?;
        let interface = name::interface();
        let tun = namespace.enter(|| {
            Tun::create(
                &interface,
                &TunOptions {
                    offload,
                    ..TunOptions::default()
                },
            )
        })??;
        let tun_fd = std::os::fd::AsFd::as_fd(&tun).try_clone_to_owned()?;
        std::fs::create_dir_all(uapi::DIRECTORY)?;
        let listener = UnixListener::bind(uapi::socket_path(&interface))?;

        // Descriptors of ours are closed in children but for the standard ones, so they travel as those.
        let program = Implementation::Adit.program()?;
        let mut command = namespace.command("sh");
        command
            .args(["-c", "exec \"$0\" -f \"$1\" 3<&0 4<&1 0</dev/null 1>&2"])
            .arg(program)
            .arg(&interface);
        command
            .env("WG_TUN_FD", "3")
            .env("WG_UAPI_FD", "4")
            .env("LOG_LEVEL", "error");
        let log = tempfile::tempfile()?;
        command
            .stdin(tun_fd)
            .stdout(std::os::fd::OwnedFd::from(listener))
            .stderr(log.try_clone()?);
        let mut daemon = command.spawn()?;
        drop((tun, command));

        let pid = daemon.id();
        let answer = wait_for("the daemon answers", Duration::from_secs(20), || {
            uapi::request(&interface, "get=1").ok()
        });
        let checked = answer.and_then(|_| {
            wg::wg(&namespace, &format!("set {interface} listen-port 33333"))?;
            ensure!(wg::dump(&namespace, &interface)?.listen_port == 33333);
            namespace.ip(&format!("link set {interface} up"))?;
            kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
            Ok(())
        });
        if checked.is_err() {
            daemon.kill()?;
        }
        let status = daemon.wait()?;
        let _ = std::fs::remove_file(uapi::socket_path(&interface));
        checked?;
        ensure!(status.success(), "{status}");
        wait_until("device gone", Duration::from_secs(5), || {
            !namespace.has_interface(&interface)
        })?;
    }
    Ok(())
}

#[test]
fn log_levels() -> Result<()> {
    for (level, speaks) in [
        ("silent", false),
        ("error", false),
        ("verbose", true),
        ("debug", true),
        ("trace", true),
    ] {
        let namespace = Namespace::new()?;
        let interface = name::interface();
        let daemon =
            Running::start(adit(&namespace, &["-f", &interface])?.env("LOG_LEVEL", level))?;
        wait_until("socket", Duration::from_secs(20), || {
            uapi::connect(&interface).is_ok()
        })?;
        kill(Pid::from_raw(i32::try_from(daemon.pid())?), Signal::SIGTERM)?;
        let Output {
            status,
            stdout,
            stderr,
        } = daemon.finish(Duration::from_secs(20))?;
        ensure!(
            status.success() && stdout.is_empty(),
            "{level}: {status} {stdout}"
        );
        ensure!(stderr.is_empty() != speaks, "{level}: {stderr}");
    }
    Ok(())
}

/// It failed with code 1 and said why in one line that contains `words`.
fn failed(output: &Output, words: &[&str]) -> Result<()> {
    let lines: Vec<_> = output
        .stderr
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    ensure!(
        output.status.code() == Some(1),
        "{}: {}",
        output.status,
        output.stderr
    );
    ensure!(lines.len() == 1, "one line expected:\n{}", output.stderr);
    for word in words {
        ensure!(lines[0].contains(word), "'{word}' expected: {}", lines[0]);
    }
    Ok(())
}

#[test]
fn wrong_names() -> Result<()> {
    let namespace = Namespace::new()?;
    for wrong in [
        "",
        ".",
        "..",
        "a/b",
        "../../x",
        "with blank",
        "sixteen-bytes-xx",
        "tab\there",
        "new\nline",
    ] {
        for mode in [&["-f"][..], &[]] {
            let mut command = adit(&namespace, mode)?;
            failed(&output(command.arg(wrong))?, &["name"])
                .with_context(|| format!("{wrong:?}"))?;
        }
    }
    ensure!(namespace.pids().is_empty());
    Ok(())
}

#[test]
fn busy_names() -> Result<()> {
    let namespace = Namespace::new()?;
    let interface = name::interface();
    namespace.ip(&format!("link add {interface} type bridge"))?;
    failed(
        &output(&mut adit(&namespace, &["-f", &interface])?)?,
        &[&interface],
    )?;
    failed(
        &output(&mut adit(&namespace, &[&interface])?)?,
        &[&interface],
    )?;
    ensure!(!uapi::socket_path(&interface).exists(), "socket file left");
    failed(&output(&mut adit(&namespace, &["-f", "lo"])?)?, &["lo"])
}

#[test]
fn missing_permissions() -> Result<()> {
    let namespace = Namespace::new()?;
    let program = Implementation::Adit.program()?;
    for mode in [&["-f"][..], &[]] {
        let interface = name::interface();
        let mut command = namespace.command("setpriv");
        command
            .args(["--bounding-set=-all", "--inh-caps=-all"])
            .arg(&program)
            .args(mode)
            .arg(&interface);
        failed(&output(&mut command)?, &["CAP_NET_ADMIN"])?;
        ensure!(!uapi::socket_path(&interface).exists(), "socket file left");
    }
    Ok(())
}

/// No TUN driver, and no place for the socket.
#[test]
fn missing_surroundings() -> Result<()> {
    let namespace = Namespace::new()?;
    let program = Implementation::Adit.program()?;
    let cases = [
        ("mount -t tmpfs none /dev/net", "/dev/net/tun"),
        (
            "mount -t tmpfs -o ro none /var/run/wireguard",
            "/var/run/wireguard",
        ),
    ];
    std::fs::create_dir_all(uapi::DIRECTORY)?;
    for (preparation, words) in cases {
        let interface = name::interface();
        let mut command = namespace.command("unshare");
        let script = format!("{preparation} && exec \"$0\" -f \"$1\"");
        command
            .args(["--mount", "sh", "-c", &script])
            .arg(&program)
            .arg(&interface);
        failed(&output(&mut command)?, &[words])?;
        wait_until("device gone", Duration::from_secs(5), || {
            !namespace.has_interface(&interface)
        })?;
    }
    Ok(())
}

#[test]
fn nonsense_in_the_environment() -> Result<()> {
    let namespace = Namespace::new()?;
    for (variable, value) in [
        ("WG_TUN_FD", "x"),
        ("WG_TUN_FD", "987"),
        ("WG_TUN_FD", "0"),
        ("WG_UAPI_FD", "-1"),
        ("WG_UAPI_FD", "987"),
        ("LOG_LEVEL", "loud"),
    ] {
        let interface = name::interface();
        let mut command = adit(&namespace, &["-f", &interface])?;
        failed(&output(command.env(variable, value))?, &[variable])
            .with_context(|| format!("{variable}={value}"))?;
        wait_until("device gone", Duration::from_secs(5), || {
            !namespace.has_interface(&interface)
        })?;
    }
    Ok(())
}

#[test]
fn wrong_usage() -> Result<()> {
    let namespace = Namespace::new()?;
    for arguments in [&[][..], &["--no-such-option", "adx"], &["adx", "ady"]] {
        let output = output(&mut adit(&namespace, arguments)?)?;
        ensure!(
            output.status.code() == Some(2),
            "{arguments:?}: {}",
            output.status
        );
        ensure!(output.stderr.contains("Usage"), "{}", output.stderr);
    }
    for arguments in [["--help"], ["--version"]] {
        ensure!(run(&mut adit(&namespace, &arguments)?)?.contains("adit"));
    }
    Ok(())
}

#[test]
fn keys_agree_with_wg() -> Result<()> {
    // In a namespace, in case another program takes the subcommand for an interface name.
    let namespace = Namespace::new()?;
    let program = Implementation::Adit.program()?;
    let adit = |argument: &str| {
        let mut command = namespace.command(&program);
        command.arg(argument);
        command
    };
    for _ in 0..3 {
        let private = run(&mut adit("genkey"))?;
        ensure!(
            private.len() == 45 && private.ends_with("=\n"),
            "{private:?}"
        );
        let public = run_with_input(&mut adit("pubkey"), &private)?;
        ensure!(public == run_with_input(Command::new("wg").arg("pubkey"), &private)?);
    }
    ensure!(run(&mut adit("genpsk"))? != run(&mut adit("genpsk"))?);
    ensure!(run(&mut adit("genpsk"))?.len() == 45);
    for wrong in [
        "",
        "short\n",
        "not base64 at all, but as long as a key is....\n",
    ] {
        let refused = run_with_input(&mut adit("pubkey"), wrong);
        ensure!(refused.is_err(), "{wrong:?} taken for a key");
    }
    Ok(())
}

/// Starting and ending leaves no descriptor, thread or memory behind that a second look would find.
#[test]
fn descriptors_do_not_grow() -> Result<()> {
    let namespace = Namespace::new()?;
    let daemon = adit_tests::Daemon::start(&namespace, &adit_tests::daemon::Options::default())?;
    let interface = daemon.interface();
    let change = |i: u32| -> Result<()> {
        wg::wg(
            &namespace,
            &format!("set {interface} listen-port {} fwmark {i}", 41_000 + i),
        )?;
        namespace.ip(&format!(
            "link set {interface} up\nlink set {interface} down"
        ))
    };
    for i in 0..5 {
        change(i)?;
    }
    let before = process::open_files(daemon.pid())?;
    for i in 0..40 {
        change(i)?;
    }
    wait_until("connections closed", Duration::from_secs(5), || {
        process::open_files(daemon.pid()).is_ok_and(|now| now <= before)
    })
}
