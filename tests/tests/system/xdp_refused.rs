//! XDP that cannot be had: the tunnel runs over sockets and says why, unless XDP was demanded of an interface by name;
//! then the start fails in words that help.

use std::fs;
use std::process::Command;

use adit_tests::command::{Output, output, run};
use adit_tests::daemon::Options;
use adit_tests::ping::{ping_all, wait_reachable};
use adit_tests::tunnel::{Family, HANDSHAKE_LIMIT, Pair, Site, WAN};
use adit_tests::wait::wait_until;
use adit_tests::wg::KeyPair;
use adit_tests::{Implementation, Namespace, name, uapi};
use anyhow::{Context as _, Result, ensure};

use crate::xdp::{
    NATIVE, STEERING_LIMIT, Traffic, Wire, connect, receives, receives_by, values, wait_steering,
};
use crate::xdp_tools::{flows, pinned, prefixed, program_on};

const SOCKETS: Wire<'_> = Wire {
    environment: &[("ADIT_DATAPATH", "auto")],
    ..NATIVE
};

/// An ELF object with an XDP program of two instructions that passes everything: what a compiler makes of it, less the
/// compiler, which test machines need not have.
fn pass_all_object() -> Vec<u8> {
    // r0 = XDP_PASS; exit.
    const CODE: [u8; 16] = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    const NAMES: &[u8; 40] = b"\0.strtab\0xdp\0license\0.symtab\0pass_all\0\0\0";
    const LICENSE: &[u8; 8] = b"GPL\0\0\0\0\0";
    const HEADER: u64 = 64;
    let words = |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()).collect() };
    // A symbol: name, GLOBAL FUNC, section 2; value 0, size. The first one is empty.
    let symbol_head = 29_u64 | 0x12 << 32 | 2 << 48;
    let symbols = words(&[0, 0, 0, symbol_head, 0, CODE.len() as u64]);

    let names_at = HEADER;
    let code_at = names_at + NAMES.len() as u64;
    let license_at = code_at + CODE.len() as u64;
    let symbols_at = license_at + LICENSE.len() as u64;
    let sections_at = symbols_at + symbols.len() as u64;
    // name | type << 32, flags, address, offset, size, link | info << 32, alignment, entry size.
    let sections = [
        [0; 8],
        [1 | 3 << 32, 0, 0, names_at, NAMES.len() as u64, 0, 1, 0],
        [9 | 1 << 32, 6, 0, code_at, CODE.len() as u64, 0, 8, 0],
        [13 | 1 << 32, 3, 0, license_at, 4, 0, 1, 0],
        [
            21 | 2 << 32,
            0,
            0,
            symbols_at,
            symbols.len() as u64,
            1 | 1 << 32,
            8,
            24,
        ],
    ];
    let mut object = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Relocatable, for BPF, version 1; no entry, no program headers, the section headers; flags 0, header size; sizes
    // and numbers of program and section headers, and the section with the names.
    object.extend(words(&[
        1 | 247 << 16 | 1 << 32,
        0,
        0,
        sections_at,
        64 << 32,
    ]));
    object.extend(words(&[64 << 16 | 5 << 32 | 1 << 48]).iter());
    object.truncate(64);
    object.extend_from_slice(NAMES);
    object.extend_from_slice(&CODE);
    object.extend_from_slice(LICENSE);
    object.extend(symbols);
    object.extend(words(sections.as_flattened()));
    object
}

/// Puts a program of somebody else's on the wire's end, as `bpftool net attach` does, and returns its number.
fn attach_foreign(namespace: &Namespace, device: &str) -> Result<u64> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), pass_all_object())?;
    // The pin goes with the mount namespace; the program stays where it is attached.
    let script = format!(
        "mount -t bpf bpf /sys/fs/bpf
         bpftool prog load {} /sys/fs/bpf/pass_all type xdp
         bpftool net attach xdpdrv pinned /sys/fs/bpf/pass_all dev {device}",
        file.path().display()
    );
    run(namespace.command("sh").args(["-ec", &script]))?;
    program_on(namespace, device)?.context("the program is not there")
}

/// Starts a daemon that must fail, in `namespace`.
fn start_fails(
    namespace: &Namespace,
    program: &[&str],
    environment: &[(&str, &str)],
) -> Result<Output> {
    let interface = name::interface();
    let mut command = match program {
        [] => namespace.command(Implementation::Adit.program()?),
        [first, rest @ ..] => {
            let mut command = namespace.command(first);
            command.args(rest).arg(Implementation::Adit.program()?);
            command
        }
    };
    command.args(["-f", &interface]);
    let output = output(command.envs(environment.iter().copied()))?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(
        output.stderr.trim().lines().count() == 1,
        "not one line: {output:?}"
    );
    ensure!(
        !uapi::socket_path(&interface).exists(),
        "socket left behind"
    );
    ensure!(!namespace.has_interface(&interface), "device left behind");
    Ok(output)
}

/// What the daemon says about how it receives.
fn note(site: &Site) -> String {
    values(site, "adit_datapath_note")
        .unwrap_or_default()
        .join("; ")
}

/// Pings each way over sockets.
fn works_by_sockets(pair: &Pair) -> Result<()> {
    pair.wait_connected()?;
    let (left, right) = (&pair.left, &pair.right);
    ping_all(&left.namespace, right.inner(Family::V4), 10, 1000)?;
    ping_all(&right.namespace, left.inner(Family::V4), 10, 1000)?;
    let traffic = Traffic::of(right)?;
    ensure!(traffic.xsk == 0 && traffic.socket >= 20, "{traffic:?}");
    ensure!(receives_by(right, "socket"), "{}", note(right));
    Ok(())
}

/// Waits until the daemon tells of a foreign program, by number: its name is for processes with CAP_SYS_ADMIN, which a
/// daemon that is set up has not got.
fn wait_noted(site: &Site, program: u64) -> Result<()> {
    wait_until("the note tells its number", STEERING_LIMIT, || {
        note(site).ends_with(&format!("program {program}"))
    })
    .with_context(|| note(site))
}

/// The daemon comes to a wire that has a program of somebody else's, and steers as soon as that is gone.
#[test]
fn a_foreign_program_is_left_alone() -> Result<()> {
    let (left, right) = (Namespace::new()?, Namespace::new()?);
    connect(&left, &right, 1)?;
    let foreign = attach_foreign(&right, WAN)?;
    let left = Site::start(left, 1, 1420, &SOCKETS.options())?;
    let right = Site::start(right, 2, 1420, &NATIVE.options())?;
    let mut pair = Pair { left, right };
    for (site, peer) in [(&pair.left, &pair.right), (&pair.right, &pair.left)] {
        site.add_peer(peer, &format!("endpoint {}", peer.endpoint(Family::V4)))?;
    }
    wait_noted(&pair.right, foreign)?;
    works_by_sockets(&pair)?;
    let there = program_on(&pair.right.namespace, WAN)?;
    ensure!(there == Some(foreign), "{there:?}, not {foreign}");

    let site = &pair.right;
    site.namespace
        .run(&format!("bpftool net detach xdpdrv dev {WAN}"))?;
    // Tried again after up to half a minute.
    wait_until("daemon steers", STEERING_LIMIT * 3, || {
        receives_by(site, "xdp")
    })?;
    ensure!(note(site).is_empty(), "{}", note(site));
    let errors = site.daemon.log_text().matches("ERROR").count();
    ensure!(errors == 1, "said {errors} times");
    ping_all(&pair.left.namespace, site.inner(Family::V4), 10, 1000)?;
    ensure!(Traffic::of(site)?.xsk >= 10);
    pair.check_running()
}

#[test]
fn a_foreign_program_on_a_named_underlay() -> Result<()> {
    let (left, right) = (Namespace::new()?, Namespace::new()?);
    connect(&left, &right, 1)?;
    let foreign = attach_foreign(&right, WAN)?;
    let demanded = [("ADIT_DATAPATH", "xdp"), ("ADIT_UNDERLAY", WAN)];
    let said = start_fails(&right, &[], &demanded)?.stderr;
    ensure!(
        [WAN, "pass_all", &foreign.to_string()]
            .iter()
            .all(|word| said.contains(word)),
        "{said}"
    );

    let auto = Wire {
        environment: &[("ADIT_DATAPATH", "auto"), ("ADIT_UNDERLAY", WAN)],
        ..NATIVE
    };
    let left = Site::start(left, 1, 1420, &auto.options())?;
    let right = Site::start(right, 2, 1420, &auto.options())?;
    left.add_peer(&right, &format!("endpoint {}", right.endpoint(Family::V4)))?;
    right.add_peer(&left, "")?;
    let mut pair = Pair { left, right };
    works_by_sockets(&pair)?;
    let there = program_on(&pair.right.namespace, WAN)?;
    ensure!(there == Some(foreign), "{there:?}, not {foreign}");
    pair.check_running()
}

/// On a driver where `auto` takes XDP (a tap's, whose other end nobody has opened), a foreign program decides.
#[test]
fn auto_steers_where_no_foreign_program_is() -> Result<()> {
    const TAP: &str = "over0";
    let namespace = Namespace::new()?;
    namespace.ip(&format!(
        "tuntap add dev {TAP} mode tap
         link set {TAP} up
         address add 192.0.2.2/24 dev {TAP}"
    ))?;
    let foreign = attach_foreign(&namespace, TAP)?;
    let site = Site::start(namespace, 2, 1420, &SOCKETS.options())?;
    site.wg_set(&format!(
        "peer {} allowed-ips 10.9.0.1/32 endpoint 192.0.2.1:51820",
        KeyPair::generate()?.public
    ))?;
    wait_noted(&site, foreign)?;
    ensure!(receives_by(&site, "socket"), "{}", note(&site));
    let there = program_on(&site.namespace, TAP)?;
    ensure!(there == Some(foreign), "{there:?}, not {foreign}");

    site.namespace
        .run(&format!("bpftool net detach xdpdrv dev {TAP}"))?;
    // Tried again after up to half a minute.
    wait_until("daemon steers", STEERING_LIMIT * 3, || {
        receives_by(&site, "xdp")
    })?;
    let state = values(&site, "adit_xdp")?;
    ensure!(state == [format!("{TAP} native copy 1")], "{state:?}");
    Ok(())
}

/// Two tunnels over one interface: the second one leaves the first one's program alone.
#[test]
fn a_second_tunnel_on_the_same_interface_uses_sockets() -> Result<()> {
    let mut pair = NATIVE.steering_pair()?;
    pair.wait_connected()?;
    let demanded = [("ADIT_DATAPATH", "xdp"), ("ADIT_UNDERLAY", WAN)];
    let said = start_fails(&pair.right.namespace, &[], &demanded)?.stderr;
    ensure!(said.contains("adit_xdp"), "{said}");
    receives(&pair.right, (10, 0), || {
        ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 10, 100)
    })?;
    pair.check_running()
}

/// Both sites' daemons start by way of `prefix`.
fn pair_by(prefix: &str, wire: &Wire<'_>) -> Result<(tempfile::TempDir, Pair)> {
    let (script, options) = prefixed(prefix, wire.options())?;
    Ok((script, start_pair(&options)?))
}

fn start_pair(options: &Options) -> Result<Pair> {
    let (left, right) = (Namespace::new()?, Namespace::new()?);
    connect(&left, &right, 1)?;
    let left = Site::start(left, 1, 1420, options)?;
    let right = Site::start(right, 2, 1420, options)?;
    for (site, peer) in [(&left, &right), (&right, &left)] {
        site.add_peer(peer, &format!("endpoint {}", peer.endpoint(Family::V4)))?;
    }
    Ok(Pair { left, right })
}

#[test]
fn without_the_right_to_load_programs() -> Result<()> {
    const PREFIX: [&str; 2] = ["setpriv", "--bounding-set=-bpf,-sys_admin"];
    let (_script, mut pair) = pair_by(&PREFIX.join(" "), &SOCKETS)?;
    works_by_sockets(&pair)?;
    ensure!(
        note(&pair.right).contains("CAP_BPF"),
        "{}",
        note(&pair.right)
    );
    pair.check_running()?;

    let namespace = &pair.right.namespace;
    for environment in [
        &[("ADIT_DATAPATH", "xdp")][..],
        &[("ADIT_DATAPATH", "xdp"), ("ADIT_UNDERLAY", WAN)],
    ] {
        let said = start_fails(namespace, &PREFIX, environment)?.stderr;
        ensure!(
            said.contains("--datapath xdp") && said.contains("CAP_BPF"),
            "{said}"
        );
    }
    Ok(())
}

/// No BPF file system, and no right to mount one: packets are steered, only the counters are not for others to read.
#[test]
fn without_a_bpf_file_system() -> Result<()> {
    let prefix = "setpriv --bounding-set=-sys_admin";
    let (_script, mut pair) = pair_by(prefix, &NATIVE)?;
    for site in [&pair.left, &pair.right] {
        wait_steering(site)?;
        ensure!(!pinned(site, "flows").exists(), "there are pins");
        let log = site.daemon.log_text();
        ensure!(log.contains("not pinned"), "{log}");
    }
    pair.wait_connected()?;
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 10, 1000)?;
    let traffic = Traffic::of(&pair.right)?;
    ensure!(traffic.xsk >= 10 && traffic.socket == 0, "{traffic:?}");
    pair.check_running()
}

/// A kernel that does not tell its types: the programs need only their own.
#[test]
fn without_the_types_of_the_kernel() -> Result<()> {
    let prefix = r#"unshare --mount sh -c 'mount -t tmpfs none /sys/kernel/btf; exec "$@"' adit"#;
    let (_script, mut pair) = pair_by(prefix, &NATIVE)?;
    for site in [&pair.left, &pair.right] {
        let types = format!("/proc/{}/root/sys/kernel/btf", site.daemon.pid());
        ensure!(fs::read_dir(&types)?.next().is_none(), "{types} is there");
        wait_steering(site)?;
    }
    pair.wait_connected()?;
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 10, 1000)?;
    let traffic = Traffic::of(&pair.right)?;
    ensure!(traffic.xsk >= 10 && traffic.socket == 0, "{traffic:?}");
    let flows = flows(&pinned(&pair.right, "flows"))?;
    ensure!(flows.len() == 2, "{flows:?}");
    pair.check_running()
}

/// macvlan has no native XDP. The right site is a container on one, whose host is on the wire.
#[test]
fn a_driver_without_native_xdp() -> Result<()> {
    let (left, host, right) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
    connect(&left, &host, 1)?;
    host.ip(&format!(
        "address flush dev {WAN}
         link add link {WAN} name over0 netns {} type macvlan mode bridge",
        right.name()
    ))?;
    right.ip("link set over0 up\naddress add 192.0.2.2/24 dev over0")?;
    let demanded = [
        ("ADIT_DATAPATH", "xdp"),
        ("ADIT_UNDERLAY", "over0"),
        ("ADIT_XDP_MODE", "native"),
    ];
    let said = start_fails(&right, &[], &demanded)?.stderr;
    ensure!(
        said.contains("over0") && said.contains("native XDP"),
        "{said}"
    );

    let left = Site::start(left, 1, 1420, &SOCKETS.options())?;
    let right = Site::start(right, 2, 1420, &SOCKETS.options())?;
    for (site, peer) in [(&left, &right), (&right, &left)] {
        site.add_peer(peer, &format!("endpoint {}", peer.endpoint(Family::V4)))?;
    }
    let mut pair = Pair { left, right };
    wait_until("daemon says why", STEERING_LIMIT, || {
        note(&pair.right).contains("native XDP")
    })
    .with_context(|| note(&pair.right))?;
    works_by_sockets(&pair)?;
    pair.check_running()?;

    // Who demands XDP, and leaves the mode open, gets generic mode.
    let (left, right) = (pair.left, pair.right.namespace);
    drop(pair.right.daemon);
    let demanded = Wire {
        environment: &[("ADIT_DATAPATH", "xdp"), ("ADIT_UNDERLAY", "over0")],
        ..NATIVE
    };
    let right = Site::start(right, 2, 1420, &demanded.options())?;
    left.add_peer(&right, &format!("endpoint {}", right.endpoint(Family::V4)))?;
    right.add_peer(&left, &format!("endpoint {}", left.endpoint(Family::V4)))?;
    wait_steering(&right)?;
    let state = values(&right, "adit_xdp")?;
    ensure!(state == ["over0 generic copy 1"], "{state:?}");
    wait_reachable(&left.namespace, right.inner(Family::V4), HANDSHAKE_LIMIT)?;
    ping_all(&left.namespace, right.inner(Family::V4), 10, 100)?;
    let traffic = Traffic::of(&right)?;
    ensure!(traffic.xsk >= 10 && traffic.socket == 0, "{traffic:?}");
    Ok(())
}

#[test]
fn an_underlay_that_does_not_exist() -> Result<()> {
    let namespace = Namespace::new()?;
    let demanded = [("ADIT_DATAPATH", "xdp"), ("ADIT_UNDERLAY", "none0")];
    let said = start_fails(&namespace, &[], &demanded)?.stderr;
    ensure!(said.contains("none0"), "{said}");
    Ok(())
}

/// The object itself, which the tests above rely on.
#[test]
fn the_foreign_program_passes_packets() -> Result<()> {
    let (left, right) = (Namespace::new()?, Namespace::new()?);
    connect(&left, &right, 1)?;
    attach_foreign(&right, WAN)?;
    let shown = run(Command::new("ip").args(["-n", right.name(), "-d", "link", "show", WAN]))?;
    ensure!(shown.contains("xdp"), "{shown}");
    ping_all(&left, adit_tests::tunnel::outer(2, Family::V4), 5, 100)
}
