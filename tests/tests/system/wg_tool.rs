//! The stock `wg` against the daemon: every subcommand, every field, and refusals.

use adit_tests::daemon::Options;
use adit_tests::wg::{self, KeyPair, apply, dump, preshared_key, random_public_keys};
use adit_tests::{Daemon, Namespace};
use anyhow::{Result, ensure};

fn daemon() -> Result<(Daemon, Namespace)> {
    let namespace = Namespace::new()?;
    Ok((Daemon::start(&namespace, &Options::default())?, namespace))
}

/// A temporary file with a secret, as `wg set` wants them.
fn secret(text: &str) -> Result<tempfile::TempPath> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), text)?;
    Ok(file.into_temp_path())
}

/// Sets every field and reads it back in every way `wg show` has.
#[test]
fn set_and_show() -> Result<()> {
    let (daemon, namespace) = daemon()?;
    let interface = daemon.interface();
    let show = |what: &str| wg::wg(&namespace, &format!("show {interface} {what}"));
    let fresh = dump(&namespace, interface)?;
    ensure!(
        fresh.private_key.is_none() && fresh.fwmark == 0 && fresh.peers.is_empty(),
        "{fresh:?}"
    );

    let (own, psk) = (KeyPair::generate()?, preshared_key()?);
    let peers = random_public_keys(2)?;
    let (own_file, psk_file) = (secret(&own.private)?, secret(&psk)?);
    wg::wg(
        &namespace,
        &format!(
            "set {interface} private-key {} listen-port 34567 fwmark 0x1234 \
             peer {} preshared-key {} endpoint 192.0.2.7:1234 persistent-keepalive 25 allowed-ips 10.1.0.0/16,fd01::/32,0.0.0.0/0 \
             peer {} endpoint [2001:db8::7]:4321 allowed-ips 10.2.3.4",
            own_file.display(),
            peers[0],
            psk_file.display(),
            peers[1],
        ),
    )?;
    let state = dump(&namespace, interface)?;
    ensure!(
        state.private_key.as_ref() == Some(&own.private)
            && state.public_key.as_ref() == Some(&own.public)
    );
    ensure!(
        state.listen_port == 34567 && state.fwmark == 0x1234,
        "{state:?}"
    );
    let (first, second) = (&state.peers[&peers[0]], &state.peers[&peers[1]]);
    ensure!(
        first.preshared_key.as_ref() == Some(&psk)
            && first.endpoint == Some("192.0.2.7:1234".parse()?)
    );
    ensure!(
        first.allowed_ips == ["0.0.0.0/0", "10.1.0.0/16", "fd01::/32"]
            && first.keepalive == Some(25),
        "{first:?}"
    );
    ensure!(
        second.preshared_key.is_none() && second.endpoint == Some("[2001:db8::7]:4321".parse()?)
    );
    ensure!(
        second.allowed_ips == ["10.2.3.4/32"] && second.keepalive.is_none(),
        "{second:?}"
    );
    ensure!((first.latest_handshake, first.received) == (0, 0));

    ensure!(show("public-key")?.trim() == own.public && show("private-key")?.trim() == own.private);
    ensure!(show("listen-port")?.trim() == "34567" && show("fwmark")?.trim() == "0x1234");
    ensure!(show("peers")?.lines().count() == 2 && show("preshared-keys")?.contains(&psk));
    ensure!(
        show("endpoints")?.contains("[2001:db8::7]:4321")
            && show("allowed-ips")?.contains("fd01::/32")
    );
    ensure!(
        show("persistent-keepalive")?.contains("25")
            && show("latest-handshakes")?.lines().count() == 2
    );
    ensure!(show("transfer")?.lines().count() == 2);
    let human = show("")?;
    for text in [
        "listening port: 34567",
        "fwmark: 0x1234",
        "persistent keepalive: every 25 seconds",
        "10.2.3.4/32",
    ] {
        ensure!(human.contains(text), "{human}");
    }

    // Other daemons on the machine are shown too, so only our lines count.
    let all = wg::wg(&namespace, "show all dump")?;
    ensure!(
        all.lines()
            .filter(|line| line.starts_with(&format!("{interface}\t")))
            .count()
            == 3,
        "{all}"
    );
    ensure!(
        wg::wg(&namespace, "show interfaces")?
            .split_whitespace()
            .any(|name| name == interface)
    );

    let null = secret("")?;
    wg::wg(
        &namespace,
        &format!(
            "set {interface} private-key {0} fwmark 0 peer {1} preshared-key {0} persistent-keepalive off allowed-ips 10.3.0.0/16 peer {2} remove",
            null.display(),
            peers[0],
            peers[1]
        ),
    )?;
    let state = dump(&namespace, interface)?;
    ensure!(
        state.private_key.is_none() && state.fwmark == 0 && state.peers.len() == 1,
        "{state:?}"
    );
    let first = &state.peers[&peers[0]];
    ensure!(
        first.preshared_key.is_none()
            && first.keepalive.is_none()
            && first.allowed_ips == ["10.3.0.0/16"],
        "{first:?}"
    );
    Ok(())
}

/// `setconf` replaces, `addconf` adds, `syncconf` makes equal, and `showconf` gives back what `setconf` takes.
#[test]
fn configuration_files() -> Result<()> {
    let (daemon, namespace) = daemon()?;
    let interface = daemon.interface();
    let own = KeyPair::generate()?;
    let peers = random_public_keys(4)?;
    let psk = preshared_key()?;
    let head = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 34568\nFwMark = 0x7\n",
        own.private
    );
    let peer = |i: usize, more: &str| {
        format!(
            "[Peer]\nPublicKey = {}\nAllowedIPs = 10.{i}.0.0/16, fd0{i}::/16\n{more}\n",
            peers[i]
        )
    };
    let keys =
        || -> Result<Vec<String>> { Ok(dump(&namespace, interface)?.peers.into_keys().collect()) };
    let has = |wanted: &[usize]| -> Result<()> {
        let found = keys()?;
        ensure!(
            found.len() == wanted.len() && wanted.iter().all(|&i| found.contains(&peers[i])),
            "{found:?}"
        );
        Ok(())
    };

    let full = format!("PresharedKey = {psk}\nEndpoint = 192.0.2.9:9\nPersistentKeepalive = 11");
    apply(
        &namespace,
        "setconf",
        interface,
        &format!("{head}{}{}", peer(0, &full), peer(1, "")),
    )?;
    has(&[0, 1])?;
    let shown = wg::wg(&namespace, &format!("showconf {interface}"))?;
    let before = dump(&namespace, interface)?;
    ensure!(before.peers[&peers[0]].keepalive == Some(11) && before.fwmark == 7);

    apply(&namespace, "addconf", interface, &peer(2, ""))?;
    has(&[0, 1, 2])?;
    apply(
        &namespace,
        "syncconf",
        interface,
        &format!(
            "{head}{}{}",
            peer(2, "PersistentKeepalive = 3"),
            peer(3, "")
        ),
    )?;
    has(&[2, 3])?;
    ensure!(dump(&namespace, interface)?.peers[&peers[2]].keepalive == Some(3));
    apply(
        &namespace,
        "setconf",
        interface,
        &format!("{head}{}", peer(3, "")),
    )?;
    has(&[3])?;

    apply(&namespace, "setconf", interface, &shown)?;
    ensure!(
        dump(&namespace, interface)? == before,
        "showconf does not give back what was set"
    );
    Ok(())
}

/// What `wg` cannot do it says, and the daemon is as it was.
#[test]
fn refusals() -> Result<()> {
    let (mut daemon, namespace) = daemon()?;
    let interface = daemon.interface().to_owned();
    let own = KeyPair::generate()?;
    apply(
        &namespace,
        "setconf",
        &interface,
        &format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 34569\n",
            own.private
        ),
    )?;
    let before = dump(&namespace, &interface)?;
    let key = &random_public_keys(1)?[0];
    let refused = |arguments: String, words: &str| -> Result<()> {
        let error = wg::wg(&namespace, &arguments);
        ensure!(
            error
                .as_ref()
                .is_err_and(|e| format!("{e:#}").contains(words)),
            "{arguments}: {error:?}"
        );
        Ok(())
    };
    refused(
        format!("set {interface} peer {key} allowed-ips 10.0.0.0/33"),
        "10.0.0.0/33",
    )?;
    refused(format!("set {interface} listen-port nonsense"), "nonsense")?;
    refused(
        format!("set {interface} peer short"),
        "Key is not the correct length or format",
    )?;
    refused(
        "set adnone listen-port 1".to_owned(),
        "Unable to modify interface",
    )?;
    refused("show adnone".to_owned(), "Unable to access interface")?;
    // A device that is down holds no port, and cannot tell that one is taken.
    namespace.ip(&format!("link set {interface} up"))?;
    let taken = namespace.enter(|| std::net::UdpSocket::bind("[::]:34570"))??;
    refused(
        format!("set {interface} listen-port 34570"),
        "Unable to modify interface",
    )?;
    drop(taken);
    ensure!(
        dump(&namespace, &interface)? == before,
        "a refused change changed something"
    );

    // Our own public key as a peer is ignored.
    wg::wg(
        &namespace,
        &format!("set {interface} peer {} allowed-ips 10.0.0.0/8", own.public),
    )?;
    ensure!(dump(&namespace, &interface)? == before);
    ensure!(daemon.running());
    Ok(())
}
