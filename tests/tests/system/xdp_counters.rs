//! Four counts of the same packets agree: the eBPF map, the daemon's own, `wg show`, and the number that was sent. Over
//! AF_XDP, over the socket, and across a change from one to the other.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use adit_tests::command::run;
use adit_tests::ping::ping_all;
use adit_tests::transfer::tcp_both_ways;
use adit_tests::tunnel::{Family, Pair, Site};
use adit_tests::wait::{wait_for, wait_until};
use adit_tests::{Implementation, uapi};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::xdp::{NATIVE, STEERING_LIMIT, Traffic, Wire, receives_by, wait_steering};
use crate::xdp_tools::{Count, bpftool, detach_link, flows, pinned};

/// Lengths of the handshake messages in bytes.
const INITIATION: u64 = 148;
const RESPONSE: u64 = 92;

/// Data bytes of a ping, and of the message that carries it: 28 bytes of headers, padded to 16, and 32 around.
const PING: usize = 101;
const MESSAGE: u64 = 144 + 32;

/// What is counted at a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    /// The `flows` map.
    flow_in: Count,
    flow_out: Count,
    /// `wg show transfer`: data and handshakes.
    wg_in: u64,
    wg_out: u64,
    /// The daemon's counters: data, and handshake messages received.
    traffic: Traffic,
    handshakes_in: u64,
}

impl Account {
    fn of(site: &Site, peer: &Site) -> Result<Self> {
        let flows = flows(&pinned(site, "flows"))?;
        let direction = |wanted| {
            let flows = flows.iter().filter(|flow| flow.direction == wanted);
            flows.map(|flow| flow.count).sum()
        };
        let transfer = site.peer(peer)?;
        Ok(Self {
            flow_in: direction(0),
            flow_out: direction(1),
            wg_in: transfer.received,
            wg_out: transfer.sent,
            traffic: Traffic::of(site)?,
            handshakes_in: uapi::number(site.interface(), "adit_handshake_messages")?,
        })
    }

    fn received(&self) -> u64 {
        self.traffic.xsk + self.traffic.socket
    }
}

/// Both accounts of a pair, `packets` messages of [`MESSAGE`] bytes having gone each way, and nothing but handshakes
/// beside them.
fn agree(pair: &Pair, packets: u64) -> Result<(Account, Account)> {
    let (left, right) = (&pair.left, &pair.right);
    // The daemon counts after it has passed the packet on.
    let settled = wait_for("all is counted", Duration::from_secs(5), || {
        let accounts = (
            Account::of(left, right).ok()?,
            Account::of(right, left).ok()?,
        );
        (accounts.0.received() >= packets && accounts.1.received() >= packets).then_some(accounts)
    });
    let (at_left, at_right) = match settled {
        Ok(accounts) => accounts,
        Err(_) => (Account::of(left, right)?, Account::of(right, left)?),
    };
    let data = Count {
        packets,
        bytes: packets * MESSAGE,
    };
    for (here, there) in [(&at_left, &at_right), (&at_right, &at_left)] {
        let context = || format!("{packets} packets: {here:#?}, opposite {there:#?}");
        ensure!(here.flow_in == data, "flows in, {}", context());
        ensure!(here.flow_out == data, "flows out, {}", context());
        ensure!(here.received() == packets, "received, {}", context());
        ensure!(here.traffic.sent == packets, "sent, {}", context());
    }
    // The left side makes the handshakes.
    let initiations = at_right.handshakes_in * INITIATION;
    let responses = at_left.handshakes_in * RESPONSE;
    let transfer = [
        (at_left.wg_out, data.bytes + initiations),
        (at_right.wg_in, data.bytes + initiations),
        (at_right.wg_out, data.bytes + responses),
        (at_left.wg_in, data.bytes + responses),
    ];
    ensure!(
        transfer.iter().all(|(told, expected)| told == expected),
        "wg show transfer: {transfer:?}, {at_left:#?} {at_right:#?}"
    );
    for (site, account) in [(left, &at_left), (right, &at_right)] {
        let told = adit_flows(site)?;
        ensure!(
            told == (account.flow_in, account.flow_out),
            "adit flows: {told:?}, {account:#?}"
        );
    }
    Ok((at_left, at_right))
}

/// In and out as `adit flows --json` has them. It looks for pins in the daemon's mount namespace.
fn adit_flows(site: &Site) -> Result<(Count, Count)> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--mount=/proc/{}/ns/mnt", site.daemon.pid()));
    command.arg(Implementation::Adit.program()?.canonicalize()?);
    let text = run(command.args(["flows", site.interface(), "--json"]))?;
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let rows = report.get("flows").and_then(Value::as_array);
    let rows = rows.with_context(|| text.clone())?;
    let direction = |wanted: &str| -> Option<Count> {
        let rows = rows
            .iter()
            .filter(|row| row.get("direction").and_then(Value::as_str) == Some(wanted));
        rows.map(|row| {
            let number = |name| row.get(name)?.as_u64();
            Some(Count {
                packets: number("packets")?,
                bytes: number("bytes")?,
            })
        })
        .sum()
    };
    direction("in").zip(direction("out")).context(text)
}

/// Waits until the counting programs are attached, of which the daemon does not tell.
fn wait_counting(site: &Site) -> Result<()> {
    let attached = || -> Result<bool> {
        let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64);
        let list = |value: Value| value.as_array().cloned().unwrap_or_default();
        let map = pinned(site, "flows").display().to_string();
        let map = bpftool_here(&format!("map show pinned {map}"))?;
        let map = number(&map, "id").context("no id")?;
        let programs: Vec<u64> = list(bpftool(&site.namespace, "prog show")?)
            .iter()
            .filter(|program| {
                let name = program.get("name").and_then(Value::as_str);
                let maps = program.get("map_ids").and_then(Value::as_array);
                name.is_some_and(|name| name.starts_with("adit_tc"))
                    && maps.is_some_and(|maps| maps.iter().any(|id| id.as_u64() == Some(map)))
            })
            .filter_map(|program| number(program, "id"))
            .collect();
        let links = list(bpftool(&site.namespace, "link show")?);
        let linked = |program: &u64| links.iter().any(|l| number(l, "prog_id") == Some(*program));
        Ok(programs.len() == 2 && programs.iter().all(linked))
    };
    wait_until("packets are counted", STEERING_LIMIT, || {
        attached().unwrap_or(false)
    })
}

/// bpftool in this process's mount namespace, where paths into other processes' namespaces lead.
fn bpftool_here(arguments: &str) -> Result<Value> {
    let text = run(Command::new("bpftool")
        .arg("-j")
        .args(arguments.split_whitespace()))?;
    serde_json::from_str(&text).context(text)
}

#[test]
fn counts_agree_on_the_xdp_path() -> Result<()> {
    for outer in [Family::V4, Family::V6] {
        let mut pair = Wire { outer, ..NATIVE }.steering_pair()?;
        ping_all(
            &pair.left.namespace,
            pair.right.inner(Family::V4),
            100,
            PING,
        )?;
        let (at_left, at_right) = agree(&pair, 100)?;
        ensure!(at_left.traffic.socket == 0 && at_right.traffic.socket == 0);
        let flows = flows(&pinned(&pair.right, "flows"))?;
        ensure!(flows.len() == 2, "{flows:?}");
        for flow in &flows {
            let expected = match outer {
                Family::V4 => ("::ffff:192.0.2.1".parse()?, 51820, 51820, 4),
                Family::V6 => ("2001:db8::1".parse()?, 51820, 51820, 6),
            };
            let told = (flow.remote, flow.remote_port, flow.local_port, flow.family);
            ensure!(told == expected, "{flow:?}");
        }
        pair.check_running()?;
    }
    Ok(())
}

#[test]
fn counts_agree_on_the_socket_path() -> Result<()> {
    for outer in [Family::V4, Family::V6] {
        let wire = Wire {
            outer,
            environment: &[("ADIT_DATAPATH", "socket")],
            ..NATIVE
        };
        let mut pair = wire.pair()?;
        wait_counting(&pair.left)?;
        wait_counting(&pair.right)?;
        ping_all(
            &pair.left.namespace,
            pair.right.inner(Family::V4),
            100,
            PING,
        )?;
        let (at_left, at_right) = agree(&pair, 100)?;
        ensure!(at_left.traffic.xsk == 0 && at_right.traffic.xsk == 0);
        pair.check_running()?;
    }
    Ok(())
}

/// From XDP to the socket and back while packets flow: each is counted once, by whichever program sees it.
#[test]
fn counts_agree_across_a_change_of_path() -> Result<()> {
    let mut pair = NATIVE.steering_pair()?;
    let (from, to) = (&pair.left.namespace, pair.right.inner(Family::V4));
    std::thread::scope(|scope| -> Result<()> {
        let pinging = scope.spawn(|| ping_all(from, to, 250, PING));
        let changed = wait_until("data flows", STEERING_LIMIT, || {
            Traffic::of(&pair.right).is_ok_and(|traffic| traffic.xsk >= 20)
        })
        .and_then(|()| detach_link(&pair.right));
        match pinging.join() {
            Ok(result) => result.and(changed),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    wait_steering(&pair.right)?;
    let (_, at_right) = agree(&pair, 250)?;
    let traffic = at_right.traffic;
    ensure!(traffic.xsk > 0 && traffic.socket > 0, "{traffic:?}");
    pair.check_running()
}

/// Under load packets may be lost between the counts, but none is made up, and what is sent is counted before it can be
/// lost: super-packets as the datagrams that they stand for.
#[test]
fn counts_of_super_packets_agree() -> Result<()> {
    for path in ["xdp", "socket"] {
        let wire = Wire {
            environment: &[("ADIT_DATAPATH", path)],
            ..NATIVE
        };
        let mut pair = wire.pair()?;
        for site in [&pair.left, &pair.right] {
            wait_counting(site)?;
            wait_until("daemon is there", STEERING_LIMIT, || {
                receives_by(site, path)
            })?;
        }
        tcp_both_ways(&pair.left, &pair.right, Family::V4, 8 << 20)?;
        // The last acknowledgements are on their way when the transfer ends.
        std::thread::sleep(Duration::from_millis(500));
        let at_left = Account::of(&pair.left, &pair.right)?;
        let at_right = Account::of(&pair.right, &pair.left)?;
        let handshakes = [
            at_right.handshakes_in * INITIATION,
            at_left.handshakes_in * RESPONSE,
        ];
        let sides = [(&at_left, &at_right), (&at_right, &at_left)];
        for ((here, there), handshakes) in sides.into_iter().zip(handshakes) {
            let context = || format!("{path}: {here:#?}, opposite {there:#?}");
            let out = here.flow_out;
            ensure!(out.packets == here.traffic.sent, "{}", context());
            ensure!(out.bytes + handshakes == here.wg_out, "{}", context());
            ensure!(there.flow_in.packets <= out.packets, "{}", context());
            ensure!(there.received() <= there.flow_in.packets, "{}", context());
            ensure!(
                there.wg_in <= there.flow_in.bytes + handshakes,
                "{}",
                context()
            );
            ensure!(out.packets > 100, "{}", context());
        }
        pair.check_running()?;
    }
    Ok(())
}

#[test]
fn pinned_maps_carry_their_types() -> Result<()> {
    let mut pair = NATIVE.steering_pair()?;
    for map in ["flows", "sessions", "listeners", "drops", "config"] {
        let path = pinned(&pair.right, map);
        let shown = bpftool_here(&format!("map show pinned {}", path.display()))?;
        let number = shown.get("btf_id").and_then(Value::as_u64);
        ensure!(number.is_some_and(|number| number > 0), "{shown}");
    }
    ensure!(
        Path::new("/proc")
            .join(pair.right.daemon.pid().to_string())
            .exists()
    );
    pair.check_running()
}
