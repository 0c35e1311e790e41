//! Pins, and what a process leaves behind or cannot do. Needs root, and mounts the BPF file system if it is not there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod packets;
mod wire;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use adit_kernel::bpf::{LoadOptions, PinnedMaps, Steering, XdpMode, attached_program};
use common::PATIENCE;
use wire::{Wire, bpftool, collect, ifindex, ingress, messages, prepare};

/// Pins under `name` in a namespace of its own, with one flow of `packets` keepalives in it.
fn pinned(name: &str, packets: u64) -> (Wire, Steering) {
    let wire = Wire::new(1);
    let steering = wire.here(|| {
        let (mut steering, mut receivers) = prepare(1, false);
        steering.pin(name).unwrap();
        steering.attach_xdp(ifindex(), XdpMode::Native).unwrap();
        wire.send(7000, &messages(packets, 32));
        assert_eq!(
            collect(&mut receivers[0], usize::try_from(packets).unwrap()).len() as u64,
            packets
        );
        steering
    });
    (wire, steering)
}

#[test]
fn pinned_maps_are_read_by_name() {
    use std::os::unix::fs::PermissionsExt;

    let name = "aditk.pin";
    let (_wire, mut steering) = pinned(name, 23);
    let directory = steering.pinned_at().unwrap().to_owned();
    assert_eq!(directory, Path::new("/sys/fs/bpf/adit/aditk%2epin/v1"));
    let mode = std::fs::metadata(&directory).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);

    // bpftool prints fields by name, which takes BTF.
    let at = |map: &str| directory.join(map).to_str().unwrap().to_owned();
    for map in [
        "flows",
        "sessions",
        "listeners",
        "drops",
        "config",
        "devices",
        "sources",
    ] {
        let show = bpftool(&["-j", "map", "show", "pinned", &at(map)]);
        assert!(show.contains("\"btf_id\":"), "{map}: {show}");
        assert!(show.contains(&format!("\"name\":\"{map}\"")), "{show}");
    }
    let dump = bpftool(&["-j", "map", "dump", "pinned", &at("flows")]);
    let formatted = dump.split("\"formatted\":").nth(1).unwrap();
    for field in [
        "\"remote_port\":7000",
        "\"local_port\":51820",
        "\"direction\":0",
        "\"family\":4",
        "\"packets\":23",
        "\"bytes\":736",
    ] {
        assert!(formatted.contains(field), "{field} in {formatted}");
    }
    let config = bpftool(&["-j", "map", "dump", "pinned", &at("config")]);
    assert!(
        config.contains(&format!("\"owner_pid\":{}", std::process::id())),
        "{config}"
    );

    let maps = PinnedMaps::open(name).unwrap();
    assert_eq!(maps.owner(), (std::process::id(), true));
    assert_eq!(maps.flows().unwrap(), steering.flows().unwrap());
    assert_eq!(ingress(&maps.flows().unwrap()), (23, 736));

    // Pinning again replaces; dropping removes.
    steering.pin(name).unwrap();
    assert!(PinnedMaps::open(name).is_ok());
    drop(steering);
    assert!(!directory.parent().unwrap().exists());
    assert!(PinnedMaps::open(name).is_err());
}

#[test]
fn tunnels_of_one_name_in_two_namespaces_have_pins_of_their_own() {
    let name = "aditk-twin";
    let (first_wire, first) = pinned(name, 3);
    let (second_wire, second) = pinned(name, 5);
    assert_ne!(first.pinned_at(), second.pinned_at());
    let packets =
        |wire: &Wire| wire.here(|| ingress(&PinnedMaps::open(name).unwrap().flows().unwrap()).0);
    assert_eq!(packets(&first_wire), 3);
    assert_eq!(packets(&second_wire), 5);
}

/// Not a test: what the next one runs under other circumstances.
#[test]
fn loads_and_pins_as_told() {
    let Ok(expected) = std::env::var("ADIT_TEST_LOAD") else {
        return;
    };
    let outcome = match Steering::load(&LoadOptions::default()) {
        Ok(mut steering) => match steering.pin("aditk-load") {
            Ok(_) => "pinned".to_owned(),
            Err(error) => format!("{error:?}"),
        },
        Err(error) => format!("{error:?}"),
    };
    assert!(outcome.starts_with(&expected), "{outcome}");
}

#[test]
fn missing_permission_and_missing_file_system_are_told() {
    let run = |command: &str, expected: &str| {
        let status = Command::new("sh")
            .args(["-c", command, "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "loads_and_pins_as_told"])
            .env("ADIT_TEST_LOAD", expected)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{command}: {expected}");
    };
    let without = "-sys_admin,-bpf,-net_admin";
    run(
        &format!("exec setpriv --inh-caps={without} --bounding-set={without} \"$@\""),
        "Permission",
    );
    // Mounted if it is not there …
    let bare = "umount -l /sys/fs/bpf; mount -t tmpfs none /sys/fs/bpf && ";
    run(
        &format!("exec unshare --mount sh -c '{bare} exec \"$@\"' sh \"$@\""),
        "pinned",
    );
    // … unless there is no place for it.
    let nowhere = "umount -l /sys/fs/bpf; mount -t tmpfs none /sys/fs && ";
    run(
        &format!("exec unshare --mount sh -c '{nowhere} exec \"$@\"' sh \"$@\""),
        "NoBpffs",
    );
}

/// Not a test: what the next one kills.
#[test]
fn held_until_killed() {
    let Ok(name) = std::env::var("ADIT_TEST_HOLD") else {
        return;
    };
    let (mut steering, _receivers) = prepare(1, false);
    steering.pin(&name).unwrap();
    steering.attach_xdp(ifindex(), XdpMode::Native).unwrap();
    steering.attach_tc(ifindex(), &name, None).unwrap();
    println!("holding");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_killed_process_leaves_nothing_that_harms_the_next() {
    let name = "aditk-killed";
    let wire = Wire::new(1);
    wire.here(|| {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "held_until_killed", "--nocapture"])
            .env("ADIT_TEST_HOLD", name)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        while PinnedMaps::open(name).is_err() || attached_program(ifindex()).unwrap().is_none() {
            assert!(Instant::now() < deadline, "the child did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while attached_program(ifindex()).unwrap().is_some() {
            assert!(Instant::now() < deadline, "the program is still attached");
            std::thread::sleep(Duration::from_millis(10));
        }
        // Only pins are left, and they say so.
        let stale = PinnedMaps::open(name).unwrap();
        assert!(!stale.owner().1);

        let (mut steering, _receivers) = prepare(1, false);
        steering.pin(name).unwrap();
        assert_eq!(
            PinnedMaps::open(name).unwrap().owner(),
            (std::process::id(), true)
        );
        steering.attach_xdp(ifindex(), XdpMode::Native).unwrap();
        steering.attach_tc(ifindex(), name, None).unwrap();
    });
}
