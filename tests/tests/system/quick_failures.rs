//! `adit up` and `adit down` when something goes wrong: one clear message, and nothing left behind.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;

use adit_tests::command::Output;
use anyhow::{Result, ensure};

use crate::quick_bench::{Bench, Tool, keys};

/// A file with `more` in its `[Interface]` section, and everything through one peer.
fn file(more: &str) -> Result<String> {
    let (own, peer) = keys()?;
    Ok(format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 51820\nAddress = 10.9.0.1/24, fd09::1/64\n\
         PostDown = echo down >> $CALLS\n{more}\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = 0.0.0.0/0, ::/0, 10.5.0.0/16\nEndpoint = 192.0.2.2:51820\n",
        own.private, peer.public
    ))
}

/// One line that says which program and which tunnel, and has `words` in it.
fn check_message(bench: &Bench, output: &Output, words: &str) -> Result<()> {
    ensure!(output.status.code() == Some(1), "{}", output.status);
    let own: Vec<_> = output
        .stderr
        .lines()
        .filter(|line| line.starts_with("adit: "))
        .collect();
    let [line] = own[..] else {
        anyhow::bail!("not one line:\n{}", output.stderr);
    };
    ensure!(line.contains(words), "{line}");
    ensure!(line.contains(&bench.interface), "{line}");
    Ok(())
}

/// `adit up` fails with these words, and takes everything back.
fn fails(bench: &Bench, settings: &str, words: &str) -> Result<()> {
    let before = bench.state()?;
    bench.write(settings)?;
    let output = bench.run(Tool::Adit, "up")?;
    check_message(bench, &output, words)?;
    bench.wait_ended()?;
    let after = bench.state()?;
    ensure!(after == before, "left:\n{after}\nbefore:\n{before}");
    ensure!(!bench.calls()?.contains("down"), "hooks of `down` ran");
    ensure!(bench.namespace.pids().is_empty(), "a process is left");
    Ok(())
}

#[test]
fn a_hook_fails() -> Result<()> {
    let bench = Bench::new()?;
    fails(&bench, &file("PreUp = false")?, "a command of PreUp failed")?;
    fails(
        &bench,
        &file(
            "DNS = 9.9.9.9\nPostUp = echo one >> $CALLS\nPostUp = false; true\nPostUp = echo two >> $CALLS",
        )?,
        "a command of PostUp failed",
    )?;
    let calls = bench.calls()?;
    ensure!(calls.contains("one") && !calls.contains("two"), "{calls}");
    ensure!(calls.contains("resolvconf -d TUNNEL -f"), "{calls}");
    Ok(())
}

#[test]
fn a_secret_in_a_hook_is_not_repeated() -> Result<()> {
    let bench = Bench::new()?;
    bench.write(&file("PostUp = test sesame = open")?)?;
    let output = bench.run(Tool::Adit, "up")?;
    ensure!(
        !output.status.success() && !output.stderr.contains("sesame"),
        "{}",
        output.stderr
    );
    bench.wait_ended()
}

#[test]
fn the_kernel_refuses_an_address() -> Result<()> {
    let bench = Bench::new()?;
    fails(
        &bench,
        &file("Address = 10.9.0.1/24")?,
        "Address: cannot give the interface 10.9.0.1/24",
    )?;
    fails(
        &bench,
        &file("Address = ff02::9/64")?,
        "Address: cannot give the interface ff02::9/64",
    )
}

#[test]
fn a_name_is_not_found() -> Result<()> {
    let settings = file("")?.replace("192.0.2.2:", "no-such-host.invalid:");
    fails(
        &Bench::new()?,
        &settings,
        "Endpoint: cannot look up no-such-host.invalid:51820",
    )
}

#[test]
fn a_port_is_taken() -> Result<()> {
    let bench = Bench::new()?;
    let holder = bench
        .namespace
        .enter(|| UdpSocket::bind("0.0.0.0:51820"))??;
    fails(&bench, &file("")?, "the port to listen on is taken")?;
    drop(holder);
    Ok(())
}

#[test]
fn a_route_is_there_already() -> Result<()> {
    let bench = Bench::new()?;
    bench
        .namespace
        .ip("route add 10.5.0.0/16 dev wan0 table 1234")?;
    fails(
        &bench,
        &file("Table = 1234")?,
        "cannot add the route 10.5.0.0/16 to table 1234",
    )
}

#[test]
fn a_table_has_no_such_name() -> Result<()> {
    let bench = Bench::new()?;
    bench.write(&file("Table = nowhere\nPreUp = echo ran >> $CALLS")?)?;
    let output = bench.run(Tool::Adit, "up")?;
    ensure!(
        output.stderr.contains("there is no routing table nowhere"),
        "{}",
        output.stderr
    );
    ensure!(bench.calls()?.is_empty(), "a hook ran");
    Ok(())
}

/// Replaces a program by one that fails.
fn broken(bench: &Bench, program: &str) -> Result<()> {
    let path = bench.programs().join(program);
    fs::write(&path, "#!/bin/sh\necho it is broken >&2\nexit 3\n")?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[test]
fn resolvconf_fails() -> Result<()> {
    let bench = Bench::new()?;
    broken(&bench, "resolvconf")?;
    fails(
        &bench,
        &file("DNS = 9.9.9.9")?,
        "-m 0 -x` failed: exit status: 3",
    )
}

#[test]
fn resolvconf_is_missing() -> Result<()> {
    let bench = Bench::new()?;
    fs::remove_file(bench.programs().join("resolvconf"))?;
    fails(&bench, &file("DNS = 9.9.9.9")?, "DNS needs resolvconf")
}

#[test]
fn the_firewall_fails() -> Result<()> {
    let bench = Bench::new()?;
    broken(&bench, "nft")?;
    // What cannot be set cannot be removed either, but by then nothing is there.
    fails(&bench, &file("")?, "`nft -f -` failed: it is broken")
}

/// Told to end while it works, it takes back what it has done.
#[test]
fn a_signal_comes() -> Result<()> {
    let hooks = "PostUp = kill -TERM $PPID; sleep 0.2\nPostUp = echo went on >> $CALLS";
    let bench = Bench::new()?;
    fails(&bench, &file(hooks)?, "interrupted")?;
    ensure!(!bench.calls()?.contains("went on"));
    Ok(())
}

#[test]
fn it_is_up_already() -> Result<()> {
    let bench = Bench::new()?;
    bench.write(&file("")?)?;
    bench.succeed(Tool::Adit, "up")?;
    let up = bench.state()?;
    check_message(&bench, &bench.run(Tool::Adit, "up")?, "already")?;
    ensure!(bench.state()? == up, "the running tunnel changed");
    bench.succeed(Tool::Adit, "down")?;
    check_message(&bench, &bench.run(Tool::Adit, "down")?, "is not up")
}

#[test]
fn a_hook_of_down_fails() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    bench.write(&file("PreDown = test -e $CALLS.go\nPostDown = false")?)?;
    bench.succeed(Tool::Adit, "up")?;
    let up = bench.state()?;
    check_message(
        &bench,
        &bench.run(Tool::Adit, "down")?,
        "a command of PreDown failed",
    )?;
    ensure!(bench.state()? == up, "as with wg-quick, it stays up");
    fs::write(bench.notes().with_extension("go"), "")?;
    check_message(
        &bench,
        &bench.run(Tool::Adit, "down")?,
        "a command of PostDown failed",
    )?;
    ensure!(bench.state()? == before, "something is left");
    Ok(())
}

#[test]
fn a_file_spoilt_since_goes_down_too() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    let settings = file("SaveConfig = true")?;
    bench.write(&settings)?;
    bench.succeed(Tool::Adit, "up")?;
    let spoilt = settings.replace("AllowedIPs = 0", "AllowedIPs = x0");
    bench.write(&spoilt)?;
    let output = bench.run(Tool::Adit, "down")?;
    ensure!(output.status.success(), "{}", output.stderr);
    ensure!(
        output.stderr.contains("is not an IP address"),
        "{}",
        output.stderr
    );
    ensure!(bench.saved()? == spoilt, "the file was written over");
    ensure!(bench.calls()?.contains("down"), "PostDown did not run");
    ensure!(bench.state()? == before, "something is left");
    Ok(())
}

#[test]
fn a_wrong_file_starts_nothing() -> Result<()> {
    let bench = Bench::new()?;
    let settings = file("PreUp = echo ran >> $CALLS\nMTU = big")?;
    let (private, short) = {
        let line = settings
            .lines()
            .find(|line| line.starts_with("PrivateKey"))
            .unwrap_or_default();
        let key = line.trim_start_matches("PrivateKey = ").to_owned();
        let short = settings.replace(&key, &key[..40]);
        (key, short)
    };
    bench.write(&short)?;
    let output = bench.run(Tool::Adit, "up")?;
    check_message(&bench, &output, ": 2 errors")?;
    let place = format!("{}:2:14", bench.config().display());
    ensure!(output.stderr.contains(&place), "{}", output.stderr);
    ensure!(!output.stderr.contains(&private[..8]), "the key is shown");
    ensure!(bench.calls()?.is_empty(), "a hook ran");
    Ok(())
}

#[test]
fn keys_that_everybody_can_read_are_warned_of() -> Result<()> {
    let bench = Bench::new()?;
    bench.write(&file("")?)?;
    let check = || bench.run(Tool::Adit, "check");
    let fine = check()?;
    ensure!(
        fine.status.success() && fine.stderr.is_empty(),
        "{}",
        fine.stderr
    );
    ensure!(fine.stdout.ends_with(": ok, 1 peer\n"), "{}", fine.stdout);
    let directory = bench.programs();
    let directory = directory.parent().unwrap_or(&directory);
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    fs::set_permissions(bench.config(), fs::Permissions::from_mode(0o644))?;
    ensure!(check()?.stderr.is_empty(), "the directory keeps others out");
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    let open = check()?;
    ensure!(
        open.status.success() && open.stderr.contains("everybody can read the keys"),
        "{}",
        open.stderr
    );
    Ok(())
}
