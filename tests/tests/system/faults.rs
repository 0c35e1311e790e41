//! Faults of the network below a tunnel, each alone and all together: whatever happens to datagrams, what is inside
//! arrives as it was sent, and nothing changes its order but the network.

use std::time::Duration;

use adit_tests::Namespace;
use adit_tests::daemon::Options;
use adit_tests::faults::{Call, Faults};
use adit_tests::ping::wait_reachable;
use adit_tests::relay::{Counts, Rate, Relay, Weather};
use adit_tests::transfer::tcp_at_once;
use adit_tests::tunnel::{Family, HANDSHAKE_LIMIT, PORT, Pair, Site, WAN};
use adit_tests::udp_flow::Flow;
use anyhow::{Context as _, Result, ensure};

use crate::system_call_faults::FAULTS as ERRORS;
use crate::xdp::{NATIVE, Traffic, wait_steering};

/// Two sites that reach each other through a relay on a third host.
pub(crate) struct Relayed {
    pub(crate) pair: Pair,
    pub(crate) relay: Relay,
    _middle: Namespace,
}

impl Relayed {
    /// Lays both wires, starts relay and daemons, and waits for the first handshake, in fair weather.
    pub(crate) fn connected(options: &Options, seed: u64) -> Result<Self> {
        let middle = Namespace::new()?;
        let site = |number: u8, network: &str| -> Result<Site> {
            let namespace = Namespace::new()?;
            namespace.ip(&format!(
                "link add {WAN} numrxqueues 1 numtxqueues 1 type veth peer name mid{number} numrxqueues 1 numtxqueues 1 netns {}
                 link set {WAN} up
                 address add {network}.{number}/24 dev {WAN}",
                middle.name()
            ))?;
            middle.ip(&format!(
                "link set mid{number} up\naddress add {network}.254/24 dev mid{number}"
            ))?;
            Site::start(namespace, number, 1420, options)
        };
        let (left, right) = (site(1, "198.51.100")?, site(2, "203.0.113")?);
        let far_end = format!("203.0.113.2:{PORT}").parse()?;
        let front = "198.51.100.254".parse()?;
        let relay = Relay::seeded(&middle, front, far_end, Weather::default(), seed)?;
        left.add_peer(&right, &format!("endpoint {}", relay.address()))?;
        right.add_peer(&left, "")?;
        let pair = Pair { left, right };
        pair.wait_connected()?;
        Ok(Self {
            pair,
            relay,
            _middle: middle,
        })
    }

    /// What happened to datagrams of both directions.
    pub(crate) fn counts(&self) -> Counts {
        let [right, left] = self.relay.counts();
        right.and(left)
    }
}

/// A fault, and how often it has happened.
struct Fault {
    name: &'static str,
    weather: Weather,
    happened: fn(&Counts) -> u64,
}

const FAIR: Weather = Weather {
    loss: 0,
    duplication: 0,
    reordering: 0,
    corruption: 0,
    truncation: 0,
    delay: Duration::ZERO,
    rate: None,
};

/// A queue that holds what arrives in a burst, and overflows under a stream that has not found its rate.
const BOTTLENECK: Rate = Rate {
    bytes_per_second: 4_000_000,
    queue: 60,
};

const FAULTS: [Fault; 7] = [
    Fault {
        name: "loss",
        weather: Weather { loss: 10, ..FAIR },
        happened: |counts| counts.lost,
    },
    Fault {
        name: "duplication",
        weather: Weather {
            duplication: 100,
            ..FAIR
        },
        happened: |counts| counts.duplicated,
    },
    Fault {
        name: "reordering",
        weather: Weather {
            reordering: 50,
            ..FAIR
        },
        happened: |counts| counts.reordered,
    },
    Fault {
        name: "corruption",
        weather: Weather {
            corruption: 10,
            ..FAIR
        },
        happened: |counts| counts.corrupted,
    },
    Fault {
        name: "truncation",
        weather: Weather {
            truncation: 10,
            ..FAIR
        },
        happened: |counts| counts.truncated,
    },
    Fault {
        name: "delay",
        weather: Weather {
            delay: Duration::from_millis(10),
            ..FAIR
        },
        happened: |counts| counts.delayed,
    },
    Fault {
        name: "rate limit",
        weather: Weather {
            rate: Some(BOTTLENECK),
            ..FAIR
        },
        happened: |counts| counts.overflowed,
    },
];

/// All of them at once, each rarer: together they make a stream slow.
const STORM: Weather = Weather {
    loss: 5,
    duplication: 50,
    reordering: 20,
    corruption: 5,
    truncation: 5,
    delay: Duration::from_millis(2),
    rate: Some(BOTTLENECK),
};

/// Bytes of each stream under a single fault.
const BYTES: usize = 2 << 20;

/// Bytes of each stream under all of them.
const STORM_BYTES: usize = 512 << 10;

/// A stream in each direction, at once, under each fault and under all, with the content checked.
fn streams(options: &Options, seed: u64) -> Result<Relayed> {
    let mut relayed = Relayed::connected(options, seed)?;
    for fault in &FAULTS {
        let Pair { left, right } = &relayed.pair;
        let before = (fault.happened)(&relayed.counts());
        relayed.relay.set_weather(fault.weather);
        tcp_at_once(left, right, Family::V4, BYTES)
            .with_context(|| format!("{}: {:?}", fault.name, relayed.counts()))?;
        ensure!(
            (fault.happened)(&relayed.counts()) > before,
            "{} has not happened",
            fault.name
        );
    }
    storm(&mut relayed)?;
    Ok(relayed)
}

/// All faults at once.
fn storm(relayed: &mut Relayed) -> Result<()> {
    let before = FAULTS.map(|fault| (fault.happened)(&relayed.counts()));
    relayed.relay.set_weather(STORM);
    let Pair { left, right } = &relayed.pair;
    for inner in [Family::V4, Family::V6] {
        tcp_at_once(left, right, inner, STORM_BYTES)
            .with_context(|| format!("storm: {:?}", relayed.counts()))?;
    }
    let counts = relayed.counts();
    for (fault, before) in FAULTS.iter().zip(before) {
        ensure!(
            (fault.happened)(&counts) > before,
            "{} has not happened in the storm: {counts:?}",
            fault.name
        );
    }
    relayed.relay.set_weather(FAIR);
    wait_reachable(
        &relayed.pair.right.namespace,
        relayed.pair.left.inner(Family::V4),
        HANDSHAKE_LIMIT,
    )?;
    relayed.pair.check_running()
}

#[test]
fn streams_arrive_by_the_socket() -> Result<()> {
    streams(&Options::default(), 1).map(drop)
}

#[test]
fn streams_arrive_by_af_xdp() -> Result<()> {
    let relayed = streams(&NATIVE.options(), 2)?;
    for site in [&relayed.pair.left, &relayed.pair.right] {
        wait_steering(site)?;
        let traffic = Traffic::of(site)?;
        ensure!(traffic.xsk > 1000, "{traffic:?}");
    }
    Ok(())
}

/// Bytes of each stream under a combination.
const COMBINED_BYTES: usize = 96 << 10;

impl Fault {
    /// Those whose bit in `set` is 1, more often than in the storm: the streams are short.
    fn combined(set: usize) -> Weather {
        let chosen = |name| {
            let place = FAULTS.iter().position(|fault| fault.name == name);
            place.is_some_and(|place| set >> place & 1 == 1)
        };
        let chance = |name, chance| if chosen(name) { 3 * chance } else { 0 };
        Weather {
            loss: chance("loss", STORM.loss),
            duplication: chance("duplication", STORM.duplication),
            reordering: chance("reordering", STORM.reordering),
            corruption: chance("corruption", STORM.corruption),
            truncation: chance("truncation", STORM.truncation),
            delay: if chosen("delay") {
                STORM.delay
            } else {
                FAIR.delay
            },
            rate: STORM.rate.filter(|_| chosen("rate limit")),
        }
    }
}

/// All subsets of the faults, one after the other, under streams in both directions.
#[test]
fn streams_arrive_through_every_combination() -> Result<()> {
    let mut relayed = Relayed::connected(&Options::default(), 8)?;
    let all = 1 << FAULTS.len();
    ensure!(Fault::combined(0) == FAIR);
    let before = FAULTS.map(|fault| (fault.happened)(&relayed.counts()));
    let Pair { left, right } = &relayed.pair;
    for set in 1..all {
        relayed.relay.set_weather(Fault::combined(set));
        tcp_at_once(left, right, Family::V4, COMBINED_BYTES)
            .with_context(|| format!("{:?}: {:?}", Fault::combined(set), relayed.counts()))?;
    }
    let counts = relayed.counts();
    for (fault, before) in FAULTS.iter().zip(before) {
        let happened = (fault.happened)(&counts) - before;
        ensure!(happened >= 10, "{}: only {happened} times", fault.name);
    }
    relayed.pair.check_running()
}

/// All faults of the network at once, and all system calls failing at once, each in every way.
#[test]
fn streams_arrive_through_a_storm_with_failing_calls() -> Result<()> {
    /// So many in a thousand calls fail, of each kind.
    const RATE: u64 = 20;
    let faults = Faults::new(9)?;
    let mut relayed = Relayed::connected(&faults.options(&[]), 9)?;
    relayed.relay.set_weather(STORM);
    for turn in 0..ERRORS.len() {
        let mut before = Vec::new();
        for (place, call) in Call::ALL.into_iter().enumerate() {
            let (_, errno) = ERRORS[(turn + place) % ERRORS.len()];
            before.push(faults.count(call)?.injected);
            faults.set(call, errno, RATE)?;
        }
        let Pair { left, right } = &relayed.pair;
        tcp_at_once(left, right, Family::V6, STORM_BYTES)
            .with_context(|| format!("turn {turn}: {:?}", relayed.counts()))?;
        relayed.pair.check_running()?;
        let mut injected = 0;
        for (call, before) in Call::ALL.into_iter().zip(before) {
            injected += u64::from(faults.count(call)?.injected > before);
        }
        ensure!(
            injected >= 4,
            "turn {turn}: only {injected} kinds of calls failed"
        );
    }
    for call in Call::ALL {
        faults.set(call, 0, 0)?;
    }
    storm(&mut relayed)
}

/// How daemons are started whose order is looked at.
fn with(arguments: &[&str]) -> Options {
    Options {
        arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
        ..Options::default()
    }
}

#[test]
fn a_storm_with_queues_and_helpers() -> Result<()> {
    let options = with(&["--queues", "2", "--helpers", "always"]);
    storm(&mut Relayed::connected(&options, 3)?)
}

/// Everything but what changes the order.
const ORDERLY: Weather = Weather {
    reordering: 0,
    duplication: 100,
    rate: None,
    ..STORM
};

/// Numbered datagrams through a network that loses, repeats and damages, but keeps the order: so they come.
fn in_order(options: &Options, seed: u64) -> Result<()> {
    let mut relayed = Relayed::connected(options, seed)?;
    relayed.relay.set_weather(ORDERLY);
    let Pair { left, right } = &relayed.pair;
    for (from, to) in [(left, right), (right, left)] {
        let flow = Flow {
            from: &from.namespace,
            to: &to.namespace,
            address: to.inner(Family::V4),
            size: 700,
            rate: Some(20_000),
            duration: Duration::from_millis(600),
        };
        let delivery = flow.run()?;
        ensure!(
            delivery.reordered == 0 && delivery.repeated == 0,
            "{delivery:?}"
        );
        ensure!(
            delivery.received > delivery.sent / 2,
            "{delivery:?}, {:?}",
            relayed.counts()
        );
    }
    let counts = relayed.counts();
    ensure!(
        counts.reordered == 0 && counts.duplicated > 0 && counts.corrupted > 0,
        "{counts:?}"
    );
    relayed.pair.check_running()
}

#[test]
fn order_is_kept_without_helpers() -> Result<()> {
    in_order(&with(&["--helpers", "off"]), 4)
}

#[test]
fn order_is_kept_with_helpers() -> Result<()> {
    in_order(&with(&["--helpers", "always"]), 5)
}

#[test]
fn order_is_kept_with_two_queues() -> Result<()> {
    in_order(&with(&["--queues", "2", "--helpers", "always"]), 6)
}

#[test]
fn order_is_kept_by_af_xdp() -> Result<()> {
    in_order(&NATIVE.options(), 7)
}
