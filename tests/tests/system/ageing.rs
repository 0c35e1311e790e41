//! What minutes do to a tunnel: sessions are renewed after 120 s, with every implementation, and nobody notices.
//!
//! The name sorts first on purpose: the test takes two minutes of waiting, and starts while others do the work.

use std::time::Duration;

use adit_tests::command::Running;
use adit_tests::daemon::{Implementation, Options};
use adit_tests::ping::answered;
use adit_tests::tunnel::{Family, Pair, PairOptions};
use adit_tests::wg::preshared_key;
use anyhow::{Context as _, Result, anyhow, ensure};

use crate::live_changes::handshake_time;

/// The initiator renews a session when it sends after this many seconds (REKEY-AFTER-TIME).
const REKEY_AFTER: u32 = 120;

/// One tunnel to grow old.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    left: Implementation,
    right: Implementation,
    /// Change the preshared key right after the first handshake: the renewal must use it.
    change_key: bool,
}

const CASES: [Case; 5] = [
    Case {
        name: "adit to wireguard-go",
        left: Implementation::Adit,
        right: Implementation::WireguardGo,
        change_key: false,
    },
    Case {
        name: "wireguard-go to adit",
        left: Implementation::WireguardGo,
        right: Implementation::Adit,
        change_key: false,
    },
    Case {
        name: "adit to boringtun",
        left: Implementation::Adit,
        right: Implementation::Boringtun,
        change_key: false,
    },
    Case {
        name: "boringtun to adit",
        left: Implementation::Boringtun,
        right: Implementation::Adit,
        change_key: false,
    },
    Case {
        name: "adit to adit, key changed",
        left: Implementation::Adit,
        right: Implementation::Adit,
        change_key: true,
    },
];

fn grow_old(case: Case) -> Result<()> {
    let options = |implementation| Options {
        implementation,
        ..Options::default()
    };
    let mut pair = Pair::connected(&PairOptions {
        left: options(case.left),
        right: options(case.right),
        right_knows_left: false,
        ..PairOptions::default()
    })?;
    // boringtun tells the time since the last handshake in place of the time of it.
    let handshake = |pair: &Pair| match case.right {
        Implementation::Boringtun => handshake_time(&pair.left, &pair.right),
        _ => handshake_time(&pair.right, &pair.left),
    };
    let first = handshake(&pair)?;
    if case.change_key {
        pair.set_preshared_key(&preshared_key()?)?;
    }
    let requests = (REKEY_AFTER + 10) * 2;
    let mut command = pair.left.namespace.command("ping");
    command.args([
        "-n",
        "-q",
        "-i",
        "0.5",
        "-W",
        "5",
        "-c",
        &requests.to_string(),
    ]);
    let pinging = Running::start(command.arg(pair.right.inner(Family::V4).to_string()))?;
    let output = pinging.finish(Duration::from_secs((REKEY_AFTER + 60).into()))?;

    let received = answered(&output.stdout).with_context(|| output.stdout.clone())?;
    ensure!(
        received == requests,
        "{} of {requests} requests lost",
        requests - received
    );
    let renewed = handshake(&pair)?;
    let age = Duration::from_nanos(u64::try_from(renewed - first)?);
    // The other implementations' clocks tick on their own.
    let least = Duration::from_secs((REKEY_AFTER - 1).into());
    ensure!(age >= least, "renewed after {age:?}, or not at all");
    pair.check_running()
}

#[test]
fn sessions_are_renewed() -> Result<()> {
    std::thread::scope(|scope| {
        let cases: Vec<_> = CASES
            .map(|case| (case.name, scope.spawn(move || grow_old(case))))
            .into();
        for (name, case) in cases {
            let result = case.join().map_err(|_| anyhow!("panicked"));
            result.and_then(|result| result).with_context(|| name)?;
        }
        Ok(())
    })
}
