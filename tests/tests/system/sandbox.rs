//! What SECURITY.md promises of the process, compared with running daemons: what they keep, what they are refused, and
//! that nothing which they need is refused.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use adit_tests::command::{Running, output};
use adit_tests::daemon::Options;
use adit_tests::ping::ping_all;
use adit_tests::tunnel::{Family, Pair, WAN};
use adit_tests::wait::wait_until;
use adit_tests::{Daemon, Implementation, Namespace};
use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::documents::{self, code_spans};
use crate::xdp::{NATIVE, STEERING_LIMIT, Wire, connect, receives_by, wait_steering};
use crate::xdp_tools::detach_link;

/// A thread of a daemon.
struct Thread {
    id: i32,
    name: String,
}

/// The threads of a daemon.
fn threads(daemon: &Daemon) -> Result<Vec<Thread>> {
    let pid = daemon.pid();
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        let id = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        found.push(Thread {
            id: id.context("no number")?,
            name: fs::read_to_string(path.join("comm"))?.trim_end().to_owned(),
        });
    }
    ensure!(found.len() >= 4, "only {} threads", found.len());
    Ok(found)
}

/// A line of a file below `/proc/PID/task/TID`, or all of it if it has but one.
fn field(pid: u32, thread: i32, file: &str, name: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/{file}"))
        .or_else(|_| fs::read_to_string(format!("/proc/{pid}/{file}")))?;
    if name == file {
        return Ok(text.trim_end().to_owned());
    }
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let value = value.with_context(|| format!("no {name} in {file}"))?;
    // `limits` has the soft limit first.
    let words = value.trim_start_matches(':').split_whitespace();
    Ok(words.take(1).collect())
}

fn status(daemon: &Daemon, thread: i32, name: &str) -> Result<String> {
    field(daemon.pid(), thread, "status", name)
}

/// A daemon with threads of every kind and a device that is down, once all of them are what they will be.
fn start(namespace: &Namespace, arguments: &[&str]) -> Result<Daemon> {
    let confined = arguments != ["--sandbox", "off"];
    let every_kind = ["--queues", "2", "--helpers", "always"];
    let arguments = every_kind.iter().chain(arguments);
    let options = Options {
        arguments: arguments.map(|&word| word.to_owned()).collect(),
        ..Options::default()
    };
    let daemon = Daemon::start(namespace, &options)?;
    wait_confined(&daemon, if confined { "2" } else { "0" })?;
    Ok(daemon)
}

/// Waits until all threads have this `Seccomp`.
fn wait_confined(daemon: &Daemon, wanted: &str) -> Result<()> {
    wait_until("threads confined", Duration::from_secs(10), || {
        threads(daemon).is_ok_and(|threads| {
            threads
                .iter()
                .all(|thread| status(daemon, thread.id, "Seccomp").is_ok_and(|mode| mode == wanted))
        })
    })
}

/// The rows of the table in SECURITY.md that begins with this heading.
fn table(heading: &str) -> Result<Vec<Vec<String>>> {
    documents::table("SECURITY.md", &[heading])
}

/// Number of a capability, `linux/capability.h`.
fn capability(name: &str) -> Result<u64> {
    Ok(match name {
        "CAP_NET_BIND_SERVICE" => 10,
        "CAP_NET_BROADCAST" => 11,
        "CAP_NET_ADMIN" => 12,
        "CAP_NET_RAW" => 13,
        "CAP_IPC_LOCK" => 14,
        "CAP_BPF" => 39,
        _ => bail!("{name} is not known here"),
    })
}

#[test]
fn capabilities_are_what_the_document_says() -> Result<()> {
    let namespace = Namespace::new()?;
    let rows = documents::table("SECURITY.md", &["thread", "data path"])?;
    let options: BTreeSet<_> = rows.iter().flat_map(|row| code_spans(&row[1])).collect();
    ensure!(options.len() >= 3, "{rows:?}");
    for option in options {
        let words: Vec<_> = option.split(' ').collect();
        let daemon = start(&namespace, &words)?;
        for thread in threads(&daemon)? {
            let row = rows.iter().find(|row| {
                let mut options = code_spans(&row[1]);
                is_of(&row[0], &thread) && (row[1] == "any" || options.any(|of| of == option))
            });
            let row = row.with_context(|| format!("no {} in {rows:?}", thread.name))?;
            let set = code_spans(&row[2])
                .try_fold(0, |set, name| anyhow::Ok(set | 1_u64 << capability(name)?))?;
            for name in ["CapEff", "CapPrm", "CapBnd"] {
                let found = status(&daemon, thread.id, name)?;
                ensure!(
                    found == format!("{set:016x}"),
                    "{option}, {} {name}: {found}, not {set:016x}",
                    thread.name
                );
            }
        }
    }
    Ok(())
}

/// Whether a cell of a table names the thread; those of further queues have a number behind that.
fn is_of(cell: &str, thread: &Thread) -> bool {
    code_spans(cell).any(|name| {
        let rest = thread.name.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })
}

/// Every value that the document gives, for every thread.
#[test]
fn the_process_is_what_the_document_says() -> Result<()> {
    let namespace = Namespace::new()?;
    let daemon = start(&namespace, &[])?;
    let free = start(&namespace, &["--sandbox", "off"])?;
    let own = std::process::id();
    let rows = table("in `/proc/PID`")?;
    ensure!(rows.len() >= 5, "{rows:?}");
    for row in rows {
        let mut names = code_spans(&row[0]);
        let file = names.next().context("no file")?;
        let mut names: Vec<_> = names.collect();
        if names.is_empty() {
            names.push(file);
        }
        let value = code_spans(&row[1]).next().context("no value")?;
        let other = row[1].starts_with("not ");
        for name in names {
            for thread in threads(&daemon)? {
                let found = field(daemon.pid(), thread.id, file, name)?;
                ensure!(
                    (found == value) != other,
                    "{}: {file} {name} is {found}, not as in {row:?}",
                    thread.name
                );
            }
            // A daemon that is left alone has what whoever started it has: the test run.
            let main = i32::try_from(free.pid())?;
            let left = field(free.pid(), main, file, name)?;
            let ours = field(own, i32::try_from(own)?, file, name)?;
            ensure!(left == ours, "without: {file} {name} is {left}, not {ours}");
        }
    }
    Ok(())
}

/// Under systemd the daemon has what it keeps, and may confine itself.
#[test]
fn the_unit_gives_what_the_daemon_keeps() -> Result<()> {
    let unit = documents::read("userspace/adit/packaging/adit@.service")?;
    let setting = |name: &str| -> BTreeSet<&str> {
        let lines = unit.lines().filter_map(|line| line.strip_prefix(name));
        lines.flat_map(|line| line[1..].split(' ')).collect()
    };
    let given = setting("CapabilityBoundingSet");
    for row in documents::table("SECURITY.md", &["thread", "data path"])? {
        for name in code_spans(&row[2]) {
            ensure!(given.contains(name), "the unit does not give {name}");
        }
    }
    let calls = setting("SystemCallFilter");
    for call in [
        "seccomp",
        "landlock_create_ruleset",
        "landlock_restrict_self",
    ] {
        ensure!(calls.contains(call), "the unit does not allow {call}");
    }

    let namespace = Namespace::new()?;
    let given: Vec<_> = given
        .iter()
        .filter_map(|name| name.strip_prefix("CAP_"))
        .map(|name| format!("+{}", name.to_lowercase()))
        .collect();
    let command = format!(
        "setpriv --bounding-set=-all,{} --inh-caps=-all {} %i",
        given.join(","),
        Implementation::Adit.program()?.display()
    );
    let options = Options {
        command: Some(command),
        ..Options::default()
    };
    let daemon = Daemon::start(&namespace, &options)?;
    wait_confined(&daemon, "2")?;
    let said = daemon.log_text();
    ensure!(!said.contains("WARN"), "{said}");
    let main = i32::try_from(daemon.pid())?;
    let (effective, bounding) = (
        status(&daemon, main, "CapEff")?,
        status(&daemon, main, "CapBnd")?,
    );
    ensure!(effective != bounding, "CAP_SETPCAP was there: no test");
    Ok(())
}

/// Another process of root's may look into processes with fewer capabilities than its own, unless they forbid it; then
/// it needs `CAP_SYS_PTRACE`, or to read only `CAP_PERFMON`.
#[test]
fn memory_cannot_be_read_by_lesser_processes() -> Result<()> {
    let namespace = Namespace::new()?;
    let daemon = start(&namespace, &[])?;
    let read = |pid: &str| {
        let script = format!("head -c 1 /proc/{pid}/environ | wc -c");
        let mut command = namespace.command("setpriv");
        command.args([
            "--bounding-set=-sys_ptrace,-perfmon,-sys_admin",
            "--inh-caps=-all",
            "sh",
            "-c",
        ]);
        output(command.arg(script))
    };
    // Of the shell, by its child.
    let other = read("$$")?;
    ensure!(other.stdout.trim() == "1", "{other:?}: no test");
    let ours = read(&daemon.pid().to_string())?;
    ensure!(ours.stdout.trim() == "0", "{ours:?}");
    ensure!(ours.stderr.contains("Permission denied"), "{ours:?}");
    Ok(())
}

/// A signal for the process comes to any of its threads, and its handler makes system calls there.
#[test]
fn every_thread_passes_a_signal_on() -> Result<()> {
    let namespace = Namespace::new()?;
    for name in ["adit", "egress", "ingress", "seal-0", "open-0", "events"] {
        let mut daemon = start(&namespace, &[])?;
        let threads = threads(&daemon)?;
        let thread = threads.iter().find(|thread| thread.name == name);
        let thread = thread.with_context(|| format!("no thread {name}"))?;
        // The kernel gives it to the thread that is named if that can have it.
        kill(Pid::from_raw(thread.id), Signal::SIGTERM)?;
        let status = daemon.wait().context(name)?;
        ensure!(status.success(), "{name}: {status}");
    }
    Ok(())
}

/// Access violations and `abort` end the daemon, also where their handling needs system calls.
#[test]
fn a_broken_daemon_ends() -> Result<()> {
    let namespace = Namespace::new()?;
    for signal in [Signal::SIGABRT, Signal::SIGSEGV] {
        let mut daemon = start(&namespace, &[])?;
        wait_until("daemon ends", Duration::from_secs(10), || {
            // The first access violation takes the handler away, in case it was a full stack; real ones repeat.
            daemon.signal(signal).is_err()
        })?;
        let status = daemon.wait()?;
        ensure!(!status.success(), "{status}");
    }
    Ok(())
}

/// Writes down the system calls of a daemon that fail, until it ends.
struct Failures {
    strace: Running,
    log: tempfile::NamedTempFile,
}

impl Failures {
    fn of(daemon: &Daemon) -> Result<Self> {
        let log = tempfile::NamedTempFile::new()?;
        let pid = daemon.pid().to_string();
        let mut command = Command::new("strace");
        command.args(["-f", "-Z", "-p", &pid, "-o"]).arg(log.path());
        let strace = Running::start(command.stdin(Stdio::null()))?;
        wait_until("strace is attached", Duration::from_secs(20), || {
            threads(daemon).is_ok_and(|threads| {
                let traced = |thread: &Thread| status(daemon, thread.id, "TracerPid");
                threads
                    .iter()
                    .all(|thread| traced(thread).is_ok_and(|pid| pid != "0"))
            })
        })?;
        Ok(Self { strace, log })
    }

    /// Those that were not permitted, once the daemon has ended.
    fn refused(self) -> Result<Vec<String>> {
        self.strace.finish(Duration::from_secs(20))?;
        let text = fs::read_to_string(self.log.path())?;
        // A socket without a packet is the most usual of failures.
        ensure!(text.contains("EAGAIN"), "nothing was written down: {text}");
        let refused = text
            .lines()
            .filter(|line| line.contains("EPERM") || line.contains("EACCES"))
            // No limit holds for a process with CAP_IPC_LOCK, so raising it may fail.
            .filter(|line| !line.contains("RLIMIT_MEMLOCK"));
        Ok(refused.map(str::to_owned).collect())
    }
}

/// Everything that changes while a tunnel runs, with AF_XDP in both directions: mark, port, MTU, the device's state, XDP
/// taken away, the underlay cut and laid again, the device moved to another namespace, and both kinds of end.
#[test]
fn nothing_that_is_needed_is_refused() -> Result<()> {
    let wire = Wire {
        environment: &[
            ("ADIT_DATAPATH", "xdp"),
            ("ADIT_XDP_MODE", "native"),
            ("ADIT_XDP_TRANSMIT", "on"),
        ],
        ..NATIVE
    };
    let mut pair = wire.pair()?;
    let failures = [&pair.left, &pair.right].map(|site| Failures::of(&site.daemon));
    wait_steering(&pair.left)?;
    wait_steering(&pair.right)?;
    change_everything(&pair)?;

    let inner = Namespace::new()?;
    let interface = pair.left.interface().to_owned();
    let to = format!("link set {interface} netns {}", inner.name());
    pair.left.namespace.ip(&to)?;
    inner.ip(&format!("link set {interface} mtu 1400 up"))?;
    wait_until("daemon follows its device", STEERING_LIMIT, || {
        pair.left.daemon.log_text().contains("device moved")
    })?;
    inner.ip(&format!("link delete {interface}"))?;
    pair.right.daemon.signal(Signal::SIGTERM)?;
    for (site, failures) in [&mut pair.left, &mut pair.right].into_iter().zip(failures) {
        let status = site.daemon.wait()?;
        ensure!(status.success(), "{status}");
        let refused = failures?.refused()?;
        ensure!(refused.is_empty(), "site {}: {refused:#?}", site.number);
    }
    Ok(())
}

fn change_everything(pair: &Pair) -> Result<()> {
    let (left, right) = (&pair.left, &pair.right);
    let works = || ping_all(&left.namespace, right.inner(Family::V4), 10, 1000);
    pair.wait_connected()?;
    works()?;

    left.wg_set("fwmark 0x10")?;
    for port in [443, 0, 51821] {
        left.wg_set(&format!("listen-port {port}"))?;
        pair.wait_connected()?;
    }
    let interface = left.interface();
    let ip = |line: &str| left.namespace.ip(line);
    ip(&format!("link set {interface} mtu 1300"))?;
    works()?;
    ip(&format!("link set {interface} down"))?;
    ip(&format!("link set {interface} up"))?;
    wait_steering(left)?;
    pair.wait_connected()?;

    let steered = || left.daemon.log_text().matches("come in by AF_XDP").count();
    let before = steered();
    detach_link(left)?;
    wait_until("daemon steers again", STEERING_LIMIT, || {
        steered() > before && receives_by(left, "xdp")
    })?;
    ip(&format!("link delete {WAN}"))?;
    wait_until("both notice", STEERING_LIMIT, || {
        receives_by(left, "socket") && receives_by(right, "socket")
    })?;
    connect(&left.namespace, &right.namespace, 1)?;
    wait_steering(left)?;
    wait_steering(right)?;
    pair.wait_connected()?;
    works()
}

/// Every test that SECURITY.md names is there, and it names those of this file.
#[test]
fn promises_are_enforced_by_tests() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut named = BTreeSet::new();
    for heading in ["promise", "fault or attack"] {
        let rows = table(heading)?;
        ensure!(rows.len() >= 5, "{heading}: only {} rows", rows.len());
        for row in rows {
            let tests: Vec<_> = code_spans(&row[1]).collect();
            ensure!(!tests.is_empty(), "no test in {row:?}");
            for test in tests {
                check_test(&root, test).with_context(|| row.join(" | "))?;
                named.insert(test.to_owned());
            }
        }
    }
    for wrong in ["sandbox::no_such_test", "no_such_module::test", "sandbox"] {
        ensure!(check_test(&root, wrong).is_err(), "{wrong}");
    }
    let own = include_str!("sandbox.rs");
    for function in tests_in(own) {
        let name = format!("sandbox::{function}");
        ensure!(named.contains(&name), "SECURITY.md does not name {name}");
    }
    Ok(())
}

/// `MODULE::NAME` is one of the system tests, `PATH/FILE.rs::NAME` any other.
fn check_test(root: &Path, test: &str) -> Result<()> {
    let (place, name) = test.rsplit_once("::").context("no name of a test")?;
    let path = if place.contains('/') {
        root.join(place)
    } else {
        root.join(format!("tests/tests/system/{place}.rs"))
    };
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    ensure!(tests_in(&text).contains(name), "{test} is no test");
    Ok(())
}

/// Names of the functions that stand below `#[test]`.
fn tests_in(text: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let mut lines = text.lines().map(str::trim_start);
    while lines.by_ref().any(|line| line == "#[test]") {
        let name = lines.by_ref().find_map(|line| line.strip_prefix("fn "));
        names.extend(name.and_then(|rest| rest.split(['(', '<']).next()));
    }
    names
}

/// What somebody who has taken over a thread could make it do.
#[cfg(target_arch = "x86_64")]
mod injected {
    use nix::libc::{self, c_long};

    use super::*;
    use crate::system_call::{call, call_with_path};

    const EPERM: i64 = -(libc::EPERM as i64);
    const EACCES: i64 = -(libc::EACCES as i64);

    fn number(name: &str) -> Result<c_long> {
        Ok(match name {
            "bpf" => libc::SYS_bpf,
            "clone3" => libc::SYS_clone3,
            "connect" => libc::SYS_connect,
            "execve" => libc::SYS_execve,
            "ioctl" => libc::SYS_ioctl,
            "kill" => libc::SYS_kill,
            "memfd_create" => libc::SYS_memfd_create,
            "mount" => libc::SYS_mount,
            "openat" => libc::SYS_openat,
            "process_vm_readv" => libc::SYS_process_vm_readv,
            "setns" => libc::SYS_setns,
            "setuid" => libc::SYS_setuid,
            "socket" => libc::SYS_socket,
            "unshare" => libc::SYS_unshare,
            _ => bail!("{name} is not known here"),
        })
    }

    /// Each call that the document says is refused, made by each thread with zeros for arguments. Where nothing is
    /// refused, none of them says `EPERM`.
    #[test]
    fn calls_that_are_not_allowed_are_refused() -> Result<()> {
        let namespace = Namespace::new()?;
        let rows = table("confined")?;
        for (mode, refused) in [("on", true), ("log", false)] {
            let mut daemon = start(&namespace, &["--sandbox", mode])?;
            for thread in threads(&daemon)? {
                let row = rows.iter().find(|row| is_of(&row[0], &thread));
                let row = row.with_context(|| format!("no {} in {rows:?}", thread.name))?;
                let names: Vec<_> = code_spans(&row[2]).collect();
                ensure!(names.len() >= 5, "{names:?}");
                for name in names {
                    let result = call(Pid::from_raw(thread.id), number(name)?, [0; 4])?;
                    ensure!(
                        (result == EPERM) == refused,
                        "{mode}: {name} by {} returned {result}",
                        thread.name
                    );
                }
                let result = call(Pid::from_raw(thread.id), libc::SYS_getpid, [0; 4])?;
                ensure!(result == i64::from(daemon.pid()), "getpid: {result}");
            }
            ensure!(daemon.running(), "{}", daemon.log_text());
        }
        Ok(())
    }

    /// `mmap` and `mprotect` are allowed, but no memory can be made executable.
    #[test]
    fn nothing_becomes_executable() -> Result<()> {
        let namespace = Namespace::new()?;
        let daemon = start(&namespace, &[])?;
        let protection = u64::try_from(libc::PROT_READ | libc::PROT_EXEC)?;
        for thread in threads(&daemon)? {
            let thread = Pid::from_raw(thread.id);
            let result = call(thread, libc::SYS_mmap, [0, 4096, protection, 0])?;
            ensure!(result == EPERM, "mmap: {result}");
            let result = call(thread, libc::SYS_mprotect, [0, 4096, protection, 0])?;
            ensure!(result == EPERM, "mprotect: {result}");
            // Memory without code in it gets as far as the kernel, which finds nothing there.
            let result = call(thread, libc::SYS_mprotect, [0, 4096, 0, 0])?;
            ensure!(result == -i64::from(libc::ENOMEM), "mprotect: {result}");
        }
        Ok(())
    }

    #[test]
    fn files_elsewhere_cannot_be_opened() -> Result<()> {
        let namespace = Namespace::new()?;
        let here = u64::from_ne_bytes(i64::from(libc::AT_FDCWD).to_ne_bytes());
        let write = u64::try_from(libc::O_WRONLY)?;
        let files = [
            ("/sys/devices/system/cpu/possible", true),
            ("/proc/sys/net/ipv4/ip_default_ttl", true),
            ("/etc/passwd", false),
            ("/proc/self/mem", false),
            ("/var/run/wireguard", false),
            ("/", false),
        ];
        for mode in ["on", "off"] {
            let daemon = start(&namespace, &["--sandbox", mode])?;
            let main = Pid::from_raw(i32::try_from(daemon.pid())?);
            for (path, allowed) in files {
                let result = call_with_path(main, libc::SYS_openat, here, path, 0)?;
                let opened = result >= 0;
                ensure!(
                    if mode == "on" && !allowed {
                        result == EACCES
                    } else {
                        opened
                    },
                    "{mode}: {path}: {result}"
                );
            }
            if mode == "on" {
                let path = "/proc/sys/net/ipv4/ip_default_ttl";
                let result = call_with_path(main, libc::SYS_openat, here, path, write)?;
                ensure!(result == EPERM, "for writing: {result}");
                let result = call_with_path(main, libc::SYS_unlinkat, here, "/etc/passwd", 0)?;
                ensure!(result == EACCES, "unlinkat: {result}");
            }
        }
        Ok(())
    }
}
