//! `adit up` and `adit down` against stock `wg-quick` with the same file: the same addresses, routes, rules and firewall, the
//! same calls of `resolvconf` and the same order of hooks; and nothing left behind.

use adit_tests::{Namespace, name};
use anyhow::{Context as _, Result, ensure};

use crate::quick_bench::{Bench, Tool, keys};

/// Brings `settings` up and down with both tools, and compares. Returns what there was while it was up.
fn compare(settings: &str) -> Result<String> {
    compare_on(&Bench::new()?, settings)
}

fn compare_on(bench: &Bench, settings: &str) -> Result<String> {
    let mut seen = Vec::new();
    for tool in [Tool::WgQuick, Tool::Adit] {
        let before = bench.state()?;
        bench.write(settings)?;
        bench.succeed(tool, "up")?;
        let up = bench.state()?;
        bench.succeed(tool, "down")?;
        bench.wait_ended()?;
        ensure!(
            bench.state()? == before,
            "{tool:?} leaves something:\n{}\nbefore:\n{before}",
            bench.state()?
        );
        seen.push((up, bench.calls()?, bench.saved()?));
    }
    let [
        (theirs, their_calls, their_file),
        (ours, our_calls, our_file),
    ] = &seen[..]
    else {
        anyhow::bail!("two tools");
    };
    ensure!(theirs == ours, "wg-quick:\n{theirs}\nadit:\n{ours}");
    ensure!(
        their_calls == our_calls,
        "wg-quick:\n{their_calls}\nadit:\n{our_calls}"
    );
    ensure!(
        their_file == our_file,
        "wg-quick:\n{their_file}\nadit:\n{our_file}"
    );
    Ok(format!("{ours}{our_calls}"))
}

/// `[Interface]` with a key, a port and `more`, and one peer with these prefixes.
fn file(more: &str, allowed: &str) -> Result<String> {
    let (own, peer) = keys()?;
    Ok(format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 51820\nAddress = 10.9.0.1/24, fd09::1/64\n{more}\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = {allowed}\nEndpoint = 192.0.2.2:51820\n",
        own.private, peer.public
    ))
}

#[test]
fn addresses_and_routes() -> Result<()> {
    let prefixes = "10.9.0.2/32, 10.0.0.0/8, 172.16.5.0/24, 172.16.0.0/12, fd09::2/128, fd00::/8, 2001:db8:9::/48";
    let up = compare(&file(
        "Address = 10.8.0.1\nAddress = 10.7.0.1/255.255.0.0",
        prefixes,
    )?)?;
    // Covered by the subnet of an address.
    ensure!(!up.contains("\"10.9.0.2\""), "{up}");
    ensure!(up.contains("172.16.5.0/24"), "{up}");
    Ok(())
}

#[test]
fn default_routes() -> Result<()> {
    let up = compare(&file("", "0.0.0.0/0, ::/0, 10.5.0.0/16")?)?;
    ensure!(up.contains("fwmark 0xca6c"), "{up}");
    ensure!(up.contains("table ip wg-quick-"), "{up}");
    Ok(())
}

#[test]
fn default_route_of_one_family() -> Result<()> {
    compare(&file("", "0.0.0.0/0")?)?;
    compare(&file("", "::/0")?)?;
    Ok(())
}

#[test]
fn default_route_with_a_mark_of_ones_own() -> Result<()> {
    let up = compare(&file("FwMark = 0x1234", "0.0.0.0/0, ::/0")?)?;
    ensure!(up.contains("fwmark 0x1234"), "{up}");
    Ok(())
}

#[test]
fn default_route_where_the_first_table_is_in_use() -> Result<()> {
    let bench = Bench::new()?;
    bench
        .namespace
        .ip("route add 198.51.100.0/24 dev wan0 table 51820")?;
    let up = compare_on(&bench, &file("", "0.0.0.0/0")?)?;
    ensure!(up.contains("fwmark 0xca6d"), "{up}");
    Ok(())
}

#[test]
fn default_route_with_iptables() -> Result<()> {
    let bench = Bench::without_nft()?;
    let up = compare_on(&bench, &file("", "0.0.0.0/0, ::/0")?)?;
    ensure!(up.contains("wg-quick(8) rule for"), "{up}");
    Ok(())
}

#[test]
fn tables() -> Result<()> {
    let allowed = "0.0.0.0/0, ::/0, 10.5.0.0/16";
    let off = compare(&file("Table = off", allowed)?)?;
    ensure!(!off.contains("10.5.0.0/16"), "{off}");
    let numbered = compare(&file("Table = 1234", allowed)?)?;
    ensure!(
        numbered.contains("1234") && numbered.contains("10.5.0.0/16"),
        "{numbered}"
    );
    compare(&file("Table = auto", allowed)?)?;
    compare(&file("Table = main", "10.5.0.0/16, 10.9.0.7/32")?)?;
    Ok(())
}

#[test]
fn mtu_given() -> Result<()> {
    let up = compare(&file("MTU = 1381", "10.5.0.0/16")?)?;
    ensure!(up.contains("1381"), "{up}");
    Ok(())
}

#[test]
fn mtu_of_the_interface_that_leads_to_the_peer() -> Result<()> {
    let bench = Bench::new()?;
    bench.namespace.ip("link set wan0 mtu 1400")?;
    let up = compare_on(&bench, &file("", "10.5.0.0/16")?)?;
    ensure!(up.contains("1320"), "{up}");
    Ok(())
}

#[test]
fn mtu_of_the_route_to_the_peer() -> Result<()> {
    let bench = Bench::new()?;
    bench
        .namespace
        .ip("route add 192.0.2.2/32 dev wan0 mtu 1390")?;
    let up = compare_on(&bench, &file("", "10.5.0.0/16")?)?;
    ensure!(up.contains("1310"), "{up}");
    Ok(())
}

#[test]
fn mtu_without_an_endpoint() -> Result<()> {
    let settings = file("", "10.5.0.0/16")?.replace("Endpoint", "#");
    let up = compare(&settings)?;
    ensure!(up.contains("1420"), "{up}");
    let bench = Bench::new()?;
    bench
        .namespace
        .ip("link set wan0 mtu 1300\nroute add default via 192.0.2.2")?;
    let up = compare_on(&bench, &settings)?;
    ensure!(up.contains("1220"), "{up}");
    Ok(())
}

#[test]
fn name_servers() -> Result<()> {
    let servers = "DNS = 9.9.9.9, 2620:fe::fe\nDNS = a.example,b.example 149.112.112.112";
    let calls = compare(&file(servers, "10.5.0.0/16")?)?;
    ensure!(
        calls.contains("nameserver 149.112.112.112\nsearch a.example b.example"),
        "{calls}"
    );
    ensure!(calls.contains("-m 0 -x"), "{calls}");
    Ok(())
}

#[test]
fn hooks() -> Result<()> {
    // What each hook sees: its name, its arguments, the locale, and whether the device is there.
    let hook = |name: &str| {
        format!(
            "{name} = echo {name} %i $LC_ALL $(ip link show dev %i > /dev/null 2>&1 && echo there || echo gone) >> $CALLS\n{name} = echo {name} again \\; >> $CALLS\n"
        )
    };
    let all: String = ["PreUp", "PostUp", "PreDown", "PostDown"]
        .map(hook)
        .concat();
    let bash = "PostUp = [[ %i == +([a-z0-9]) ]] && x=(1 2) && echo ${x[1]} $INTERFACE >> $CALLS\n";
    let calls = compare(&file(
        &format!("DNS = 9.9.9.9\n{all}{bash}"),
        "10.5.0.0/16",
    )?)?;
    for name in ["PreUp", "PostUp", "PreDown", "PostDown"] {
        ensure!(calls.contains(&format!("{name} again ;")), "{calls}");
    }
    Ok(())
}

#[test]
fn saved_configuration() -> Result<()> {
    let bench = Bench::new()?;
    let change =
        "PreDown = wg set %i fwmark 0x77 listen-port 51999\nPreDown = ip link set %i mtu 1333";
    let more = format!(
        "MTU = 1400\nTable = 77\nSaveConfig = true\nDNS = 9.9.9.9\nPreUp = true\nPostUp = true = $CALLS\n{change}"
    );
    let (_, peer) = keys()?;
    let settings = file(&more, "10.5.0.0/16, fd05::/64")?
        + &format!(
            "PersistentKeepalive = 25\n[Peer]\nPublicKey = {}\n",
            peer.public
        );
    compare_on(&bench, &settings)?;
    let saved = bench.saved()?;
    ensure!(
        saved.contains("FwMark = 0x77") && saved.contains("MTU = 1333"),
        "{saved}"
    );
    Ok(())
}

#[test]
fn sloppy_writing() -> Result<()> {
    let settings = file(
        "mtu=1382 # bytes\n dns =9.9.9.9,,\nSAVECONFIG = false",
        "10.5.0.0/16",
    )?;
    let settings = settings
        .replace("PrivateKey = ", "privatekey=")
        .replace("ListenPort", "Listen Port")
        .replace("[Peer]", "[ PEER ]  # the other one")
        .replace('\n', "\r\n");
    compare(&settings)?;
    Ok(())
}

/// Each takes down what the other brought up.
#[test]
fn mixed_with_wg_quick() -> Result<()> {
    let bench = Bench::new()?;
    let settings = file(
        "DNS = 9.9.9.9\nPostDown = echo down >> $CALLS",
        "0.0.0.0/0, ::/0, 10.5.0.0/16",
    )?;
    let before = bench.state()?;
    bench.write(&settings)?;
    for (up, down) in [(Tool::WgQuick, Tool::Adit), (Tool::Adit, Tool::WgQuick)] {
        bench.succeed(up, "up")?;
        bench.succeed(down, "down")?;
        bench.wait_ended()?;
        let after = bench.state()?;
        ensure!(after == before, "{up:?}, {down:?}:\n{after}");
    }
    Ok(())
}

/// The rules of one tunnel stay when another one goes; `wg-quick` deletes those of all.
#[test]
fn two_default_routes() -> Result<()> {
    let bench = Bench::new()?;
    let second = bench.another()?;
    bench.write(&file("", "0.0.0.0/0")?)?;
    let alone = {
        bench.succeed(Tool::Adit, "up")?;
        let state = bench.state()?;
        second.write(&file("", "0.0.0.0/0")?.replace("51820", "51821"))?;
        second.succeed(Tool::Adit, "up")?;
        second.succeed(Tool::Adit, "down")?;
        second.wait_ended()?;
        state
    };
    let after = bench.state()?;
    ensure!(after == alone, "before:\n{alone}\nafter:\n{after}");
    second.succeed(Tool::Adit, "up")?;
    bench.succeed(Tool::Adit, "down")?;
    let rules = bench.namespace.run("ip rule")?;
    ensure!(
        rules.matches("suppress_prefixlength 0").count() == 1 && rules.contains("fwmark 0xca6d"),
        "{rules}"
    );
    second.succeed(Tool::Adit, "down")
}

#[test]
fn names_found_in_the_usual_place() -> Result<()> {
    let namespace = Namespace::new()?;
    let interface = name::interface();
    let program = adit_tests::Implementation::Adit.program()?;
    // /etc/wireguard is the machine's own: hide it, in a mount namespace that ends with the script.
    let script = format!(
        "set -e; mount -t tmpfs none /etc/wireguard
         printf '[Interface]\\nPrivateKey = %s\\n' $({adit} genkey) > /etc/wireguard/{interface}.conf
         chmod 600 /etc/wireguard/{interface}.conf
         {adit} up {interface}; ip link show {interface}; {adit} down {interface}",
        adit = program.canonicalize()?.display(),
    );
    let mut command = namespace.command("unshare");
    adit_tests::command::run(command.args(["--mount", "bash", "-c", &script]))
        .context("up and down by name")?;
    ensure!(!namespace.has_interface(&interface));
    Ok(())
}
