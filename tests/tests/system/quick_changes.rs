//! `adit set`, `sync` and `reresolve` on running tunnels.

use std::fs;
use std::time::Duration;

use adit_tests::command::{Output, Running, output, run};
use adit_tests::ping::ping_all;
use adit_tests::tunnel::Family;
use adit_tests::wg::{self, KeyPair};
use adit_tests::{Implementation, Pair, PairOptions, Site};
use anyhow::{Result, ensure};

use crate::quick_bench::{Bench, Tool, keys};

/// Runs `adit` with blank-separated arguments where a site is.
fn adit(site: &Site, arguments: &str) -> Result<Output> {
    let mut command = site
        .namespace
        .command(Implementation::Adit.program()?.canonicalize()?);
    command.env("WG_ENDPOINT_RESOLUTION_RETRIES", "0");
    output(command.args(arguments.split_whitespace()))
}

fn succeed(site: &Site, arguments: &str) -> Result<()> {
    let output = adit(site, arguments)?;
    ensure!(
        output.status.success(),
        "adit {arguments}: {}",
        output.stderr
    );
    ensure!(
        output.stderr.is_empty() && output.stdout.is_empty(),
        "{}",
        output.stderr
    );
    Ok(())
}

/// The same arguments do the same as with `wg set`.
#[test]
fn set_as_wg_does() -> Result<()> {
    let pair = Pair::new(&PairOptions::default())?;
    let directory = tempfile::tempdir()?;
    let (private, shared) = (
        directory.path().join("private"),
        directory.path().join("shared"),
    );
    fs::write(&private, format!("{}\n", KeyPair::generate()?.private))?;
    fs::write(&shared, wg::preshared_key()?)?;
    let (one, two) = (KeyPair::generate()?.public, KeyPair::generate()?.public);
    let (private, shared) = (private.display(), shared.display());
    for arguments in [
        format!("listen-port 51900 fwmark 0x55 private-key {private}"),
        format!(
            "peer {one} preshared-key {shared} endpoint 192.0.2.9:7 persistent-keepalive 9 allowed-ips 10.1.0.1/16,fd01::/64"
        ),
        format!(
            "fwmark off peer {two} allowed-ips 10.2.0.0/16 peer {one} endpoint [2001:db8::9]:8 persistent-keepalive off"
        ),
        format!("peer {one} allowed-ips 10.3.0.0/16,10.2.0.0/16"),
        format!("peer {one} preshared-key /dev/null allowed-ips 10.4.0.0/16"),
        format!("peer {two} remove"),
    ] {
        pair.right.wg_set(&arguments)?;
        succeed(
            &pair.left,
            &format!("set {} {arguments}", pair.left.interface()),
        )?;
        let (mut theirs, mut ours) = (pair.right.dump()?, pair.left.dump()?);
        // Each side's own peer is the other side.
        theirs.peers.remove(&pair.left.keys.public);
        ours.peers.remove(&pair.right.keys.public);
        if !arguments.contains("private-key") && theirs.private_key != ours.private_key {
            theirs.private_key.clone_from(&ours.private_key);
            theirs.public_key.clone_from(&ours.public_key);
        }
        ensure!(theirs == ours, "{arguments}:\n{theirs:?}\n{ours:?}");
    }
    // Signs: more than `wg set` of this version has.
    succeed(
        &pair.left,
        &format!(
            "set {} peer {one} allowed-ips +10.5.0.0/16,-10.4.0.0/16",
            pair.left.interface()
        ),
    )?;
    ensure!(pair.left.dump()?.peers[&one].allowed_ips == ["10.5.0.0/16"]);
    Ok(())
}

#[test]
fn set_says_what_is_wrong() -> Result<()> {
    let pair = Pair::new(&PairOptions::default())?;
    let before = pair.left.dump()?;
    let name = pair.left.interface();
    for (arguments, code, words) in [
        (
            format!("set {name} listen-port 70000"),
            1,
            "`70000` is not a port",
        ),
        (format!("set {name} fwmark 7 peer"), 1, "peer wants a value"),
        (format!("set {name}"), 2, "required"),
        (
            "set no-such-tunnel fwmark 1".to_owned(),
            1,
            "no-such-tunnel is not up",
        ),
    ] {
        let output = adit(&pair.left, &arguments)?;
        ensure!(
            output.status.code() == Some(code),
            "{arguments}: {}",
            output.status
        );
        ensure!(output.stderr.contains(words), "{}", output.stderr);
    }
    ensure!(pair.left.dump()? == before, "something was changed");
    Ok(())
}

/// Peers that stay keep their sessions; what a file no longer says is taken away; the rest is as `wg syncconf` leaves it.
#[test]
fn sync_keeps_sessions() -> Result<()> {
    let pair = Pair::connected(&PairOptions::default())?;
    let interface = pair.left.interface();
    let (gone, new) = (KeyPair::generate()?.public, KeyPair::generate()?.public);
    pair.left
        .wg_set(&format!("peer {gone} allowed-ips 10.77.0.0/16"))?;
    pair.left.wg_set(&format!(
        "peer {} persistent-keepalive 25",
        pair.right.keys.public
    ))?;
    let session = pair.left.peer(&pair.right)?.latest_handshake;
    ensure!(session > 0);

    let directory = tempfile::tempdir()?;
    let config = directory.path().join("any-name");
    let text = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 51820\nAddress = 10.9.0.1/24\nPostUp = false\nSaveConfig = true\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = 10.9.0.2/32, fd09::2/128\nEndpoint = {}\n\
         [Peer]\nPublicKey = {new}\nAllowedIPs = 10.78.0.0/16\n",
        pair.left.keys.private,
        pair.right.keys.public,
        pair.right.endpoint(Family::V4),
    );
    fs::write(&config, text)?;
    succeed(
        &pair.left,
        &format!("sync {interface} {}", config.display()),
    )?;
    let dump = pair.left.dump()?;
    ensure!(
        !dump.peers.contains_key(&gone) && dump.peers.contains_key(&new),
        "{dump:?}"
    );
    let kept = pair.left.peer(&pair.right)?;
    ensure!(
        kept.latest_handshake == session && kept.keepalive.is_none(),
        "{kept:?}"
    );
    ping_all(&pair.left.namespace, pair.right.inner(Family::V4), 3, 100)?;
    ensure!(
        pair.left.peer(&pair.right)?.latest_handshake == session,
        "a new session"
    );

    fs::write(&config, "[Peer]\nAllowedIPs = x\n")?;
    let output = adit(
        &pair.left,
        &format!("sync {interface} {}", config.display()),
    )?;
    ensure!(
        output.status.code() == Some(1) && output.stderr.contains(": 2 errors"),
        "{}",
        output.stderr
    );
    ensure!(pair.left.dump()?.peers.len() == 2);
    Ok(())
}

/// A bench with a tunnel to a peer that is given by name.
fn named() -> Result<(Bench, String)> {
    let bench = Bench::new()?;
    let (own, peer) = keys()?;
    bench.write(&format!(
        "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nEndpoint = localhost:51999\n",
        own.private, peer.public
    ))?;
    bench.succeed(Tool::Adit, "up")?;
    Ok((bench, peer.public))
}

fn endpoint(bench: &Bench, peer: &str) -> Result<String> {
    let dump = wg::dump(&bench.namespace, &bench.interface)?;
    Ok(dump.peers[peer]
        .endpoint
        .map(|e| e.to_string())
        .unwrap_or_default())
}

#[test]
fn names_are_looked_up_again() -> Result<()> {
    let (bench, peer) = named()?;
    let first = endpoint(&bench, &peer)?;
    ensure!(first.ends_with(":51999"), "{first}");
    // It moves, and is not heard of.
    wg::wg(
        &bench.namespace,
        &format!("set {} peer {peer} endpoint 192.0.2.2:7", bench.interface),
    )?;
    bench.succeed(Tool::Adit, "reresolve")?;
    ensure!(endpoint(&bench, &peer)? == first);
    // A peer that was removed stays away.
    wg::wg(
        &bench.namespace,
        &format!("set {} peer {peer} remove", bench.interface),
    )?;
    bench.succeed(Tool::Adit, "reresolve")?;
    ensure!(
        wg::dump(&bench.namespace, &bench.interface)?
            .peers
            .is_empty()
    );
    bench.succeed(Tool::Adit, "down")
}

#[test]
fn names_are_looked_up_until_the_tunnel_ends() -> Result<()> {
    let (bench, peer) = named()?;
    let first = endpoint(&bench, &peer)?;
    let mut command = bench.command(Implementation::Adit.program()?.canonicalize()?);
    command
        .args(["reresolve", "--every", "0.1"])
        .arg(bench.config());
    let watcher = Running::start(&mut command)?;
    for port in [7, 8] {
        wg::wg(
            &bench.namespace,
            &format!(
                "set {} peer {peer} endpoint 192.0.2.2:{port}",
                bench.interface
            ),
        )?;
        adit_tests::wait::wait_until(
            "the name's address is back",
            Duration::from_secs(10),
            || endpoint(&bench, &peer).is_ok_and(|now| now == first),
        )?;
    }
    bench.succeed(Tool::Adit, "down")?;
    let output = watcher.finish(Duration::from_secs(10))?;
    ensure!(output.status.success(), "{}", output.stderr);
    Ok(())
}

/// A peer that answers is left where it is, whatever its name says.
#[test]
fn peers_that_answer_are_not_moved() -> Result<()> {
    let pair = Pair::connected(&PairOptions::default())?;
    let directory = tempfile::tempdir()?;
    let config = directory
        .path()
        .join(format!("{}.conf", pair.left.interface()));
    fs::write(
        &config,
        format!(
            "[Peer]\nPublicKey = {}\nEndpoint = localhost:9\n",
            pair.right.keys.public
        ),
    )?;
    succeed(&pair.left, &format!("reresolve {}", config.display()))?;
    ensure!(pair.left.peer(&pair.right)?.endpoint == Some(pair.right.endpoint(Family::V4)));
    Ok(())
}

#[test]
fn checking_many_files() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for (name, text) in [
        ("a", "[Interface]\nMTU = 1\n"),
        ("b", "[Peer]\n"),
        ("c", ""),
    ] {
        fs::write(directory.path().join(format!("{name}.conf")), text)?;
    }
    let mut command = std::process::Command::new(Implementation::Adit.program()?);
    command
        .current_dir(&directory)
        .args(["check", "./a.conf", "./b.conf", "./c.conf", "./d.conf"]);
    let result = output(&mut command)?;
    ensure!(result.status.code() == Some(1));
    ensure!(
        result.stdout == "./c.conf: ok, 0 peers\n",
        "{}",
        result.stdout
    );
    for words in [
        "--> ./a.conf:2:7",
        "./a.conf: 1 error",
        "./b.conf: 1 error",
        "cannot read ./d.conf",
    ] {
        ensure!(result.stderr.contains(words), "{}", result.stderr);
    }
    let mut command = std::process::Command::new(Implementation::Adit.program()?);
    run(command.current_dir(&directory).args(["check", "./c.conf"])).map(drop)
}
