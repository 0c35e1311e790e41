//! `wg-quick up` and `down` with the daemon as its userspace implementation.

use std::time::Duration;

use adit_tests::command::{output, run};
use adit_tests::daemon::Options;
use adit_tests::ping::{ping_all, wait_reachable};
use adit_tests::tunnel::{self, Family, HANDSHAKE_LIMIT, PORT, Site};
use adit_tests::wait::wait_until;
use adit_tests::wg::KeyPair;
use adit_tests::{Implementation, Namespace, name, uapi, wg};
use anyhow::{Result, ensure};

/// Runs `wg-quick ACTION CONF` in a namespace.
fn wg_quick(namespace: &Namespace, action: &str, config: &std::path::Path) -> Result<String> {
    let mut command = namespace.command("wg-quick");
    command.arg(action).arg(config);
    command.env(
        "WG_QUICK_USERSPACE_IMPLEMENTATION",
        Implementation::Adit.program()?,
    );
    command.env("ADIT_QUEUES", "4");
    run(&mut command)
}

/// Brings a tunnel up and down twice with `allowed` as what goes through it, and pings the other side between.
fn up_and_down(allowed: &str) -> Result<()> {
    let (near, far) = (Namespace::new()?, Namespace::new()?);
    tunnel::connect(&near, &far, 1500)?;
    let options = Options {
        arguments: vec!["--queues".to_owned(), "4".to_owned()],
        ..Options::default()
    };
    let far = Site::start(far, 2, 1420, &options)?;
    let keys = KeyPair::generate()?;
    far.wg_set(&format!(
        "peer {} allowed-ips 10.9.0.1/32,fd09::1/128",
        keys.public
    ))?;

    let interface = name::interface();
    let directory = tempfile::tempdir()?;
    let config = directory.path().join(format!("{interface}.conf"));
    let text = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\nAddress = 10.9.0.1/24, fd09::1/64\nMTU = 1400\n\
         PostUp = ip link set dev %i alias up\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = {allowed}\nEndpoint = {}\n",
        keys.private,
        far.keys.public,
        far.endpoint(Family::V4),
    );
    std::fs::write(&config, text)?;

    for _ in 0..2 {
        wg_quick(&near, "up", &config)?;
        wait_reachable(&near, far.inner(Family::V4), HANDSHAKE_LIMIT)?;
        ping_all(&near, far.inner(Family::V6), 3, 1400 - 48)?;
        let link = near.run(&format!("ip link show {interface}"))?;
        ensure!(
            link.contains("mtu 1400") && link.contains("alias up"),
            "{link}"
        );
        ensure!(wg::dump(&near, &interface)?.peers.len() == 1);

        wg_quick(&near, "down", &config)?;
        ensure!(!near.has_interface(&interface), "device left");
        // `down` deletes the device and does not wait for the daemon.
        wait_until("daemon and socket gone", Duration::from_secs(10), || {
            !uapi::socket_path(&interface).exists() && near.pids().is_empty()
        })?;
    }
    Ok(())
}

#[test]
fn one_subnet() -> Result<()> {
    up_and_down("10.9.0.0/24, fd09::/64")
}

/// Everything through the tunnel: `wg-quick` sets a mark on the outer packets, and routes by it.
#[test]
fn default_route() -> Result<()> {
    up_and_down("0.0.0.0/0, ::/0")
}

/// `wg-quick up` of a configuration that `wg` refuses takes everything down again.
#[test]
fn refused_configuration() -> Result<()> {
    let namespace = Namespace::new()?;
    let interface = name::interface();
    let directory = tempfile::tempdir()?;
    let config = directory.path().join(format!("{interface}.conf"));
    std::fs::write(
        &config,
        "[Interface]\nPrivateKey = short\nAddress = 10.9.0.1/24\n",
    )?;
    let mut command = namespace.command("wg-quick");
    command.arg("up").arg(&config);
    command.env(
        "WG_QUICK_USERSPACE_IMPLEMENTATION",
        Implementation::Adit.program()?,
    );
    let output = output(&mut command)?;
    ensure!(!output.status.success(), "{}", output.stdout);
    wait_until("nothing left", Duration::from_secs(10), || {
        !namespace.has_interface(&interface)
            && !uapi::socket_path(&interface).exists()
            && namespace.pids().is_empty()
    })
}
