//! Tunnels under mixed traffic for as long as one likes, while everything around them changes: peers come, go and roam,
//! sessions are renewed every few seconds, XDP is taken away, ports, marks, MTUs and keys change. Every byte is checked,
//! and memory and descriptors of the daemons are watched.
//!
//! ```text
//!  1 ── wan0, XDP ── 2, the hub ── relay that moves ── 3
//!                          └────── 4, which comes and goes
//! ```
//! All daemons' clocks run [`SPEED`] times faster than the machine's ([`crate::faults`]), and so do their timers: that
//! is what makes sessions short. The daemons are the ones that users run.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::bpftool::{detach_link, program_on_wire};
use crate::command::fail_if_interrupted;
use crate::faults::Faults;
use crate::ping::wait_reachable;
use crate::process::{open_files, resident_bytes};
use crate::relay::{Relay, Weather};
use crate::transfer::tcp_at_once;
use crate::tunnel::{Family, HANDSHAKE_LIMIT, PORT, Site, WAN, outer};
use crate::udp_flow::Flow;
use crate::weather::Dice;
use crate::wg::{preshared_key, random_public_keys};
use crate::{Namespace, link, uapi, wg};

/// The daemons' clocks: sessions are renewed every 6 s in place of every 120 s, handshakes tried again after 250 ms.
pub const SPEED: u64 = 20;

/// Memory that a daemon may take more in the second half than in the first: the allocator's slack.
const MEMORY_SLACK: u64 = 4 << 20;

/// Descriptors likewise: connections to the configuration socket that are open at the moment of counting.
const FILES_SLACK: usize = 4;

/// Bytes of a stream between the two sites by XDP, and of others.
const LONG: usize = 4 << 20;
const SHORT: usize = 256 << 10;

/// What the tunnels go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Soak {
    /// For how long.
    pub duration: Duration,
    /// What the dice start from that decide what happens next.
    pub seed: u64,
}

/// What happened.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// For how long.
    pub duration: Duration,
    /// Streams that arrived whole.
    pub streams: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Numbered datagrams sent, and those that arrived.
    pub datagrams: [u64; 2],
    /// Times that the session between sites 1 and 2 was seen renewed.
    pub renewals: u64,
    /// Times that site 4 came and went.
    pub visits: u64,
    /// Changes by their names.
    pub changes: Vec<(&'static str, u64)>,
    /// What sites 1, 2 and 3 used, once a second.
    pub usage: Vec<[Usage; 3]>,
}

/// What a process uses at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of resident memory.
    pub resident: u64,
    /// Open descriptors.
    pub files: usize,
}

/// What the threads of a soak share.
struct State {
    hub: Site,
    steered: Site,
    roamer: Site,
    relay: Relay,
    faults: Faults,
    end: Instant,
    failed: AtomicBool,
    streams: AtomicU64,
    bytes: AtomicU64,
    report: Mutex<Report>,
}

impl Soak {
    /// Runs it. Leaves nothing behind, also when it fails or is interrupted.
    ///
    /// # Errors
    /// A stream broke or was changed on its way, a peer was lost, a daemon ended or complained, or the programs needed
    /// are missing.
    pub fn run(&self) -> Result<Report> {
        let mut state = State::new(self)?;
        let mut dice = Dice::new(self.seed);
        std::thread::scope(|scope| -> Result<()> {
            let state = &state;
            let threads = [
                scope.spawn(|| state.unless_failed("streams by XDP", || state.steered_streams())),
                scope.spawn(|| state.unless_failed("datagrams", || state.datagrams())),
                scope.spawn(|| state.unless_failed("roaming peer", || state.roaming_streams())),
                scope.spawn(|| state.unless_failed("visiting peer", || state.visits())),
                scope.spawn(|| state.unless_failed("usage", || state.watch())),
            ];
            let changed = state.unless_failed("changes", || state.changes(&mut dice));
            let mut results = vec![changed];
            for thread in threads {
                results.push(thread.join().map_err(|_| anyhow!("a thread panicked"))?);
            }
            results.into_iter().collect()
        })?;
        state.check_daemons()?;
        let mut report = state
            .report
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        report.duration = self.duration;
        report.streams = state.streams.into_inner();
        report.bytes = state.bytes.into_inner();
        Ok(report)
    }
}

impl State {
    fn new(soak: &Soak) -> Result<Self> {
        let faults = Faults::new(soak.seed)?;
        faults.set_clock(SPEED)?;
        let (one, two) = (Namespace::new()?, Namespace::new()?);
        // Native XDP wants as many queues as the other end has.
        one.ip(&format!(
            "link add {WAN} numrxqueues 1 numtxqueues 1 type veth peer name {WAN} numrxqueues 1 numtxqueues 1 netns {}",
            two.name()
        ))?;
        for (namespace, number) in [(&one, 1), (&two, 2)] {
            namespace.ip(&format!(
                "link set {WAN} up\naddress add {}/24 dev {WAN}",
                outer(number, Family::V4)
            ))?;
        }
        let mut steered = faults.options(&[]);
        for (name, value) in [
            ("ADIT_DATAPATH", "xdp"),
            ("ADIT_XDP_MODE", "native"),
            ("ADIT_UNDERLAY", WAN),
        ] {
            steered
                .environment
                .insert(name.to_owned(), value.to_owned());
        }
        let hub = Site::start(two, 2, 1420, &steered)?;
        let steered = Site::start(one, 1, 1420, &steered)?;
        hub.add_peer(&steered, "")?;
        // Whoever moves has to speak first, or the hub would not hear of it.
        let speaking =
            |endpoint: SocketAddr| format!("endpoint {endpoint} persistent-keepalive 20");
        steered.add_peer(&hub, &speaking(hub.endpoint(Family::V4)))?;
        let three = Namespace::new()?;
        wire(&three, &hub.namespace, 3)?;
        let roamer = Site::start(three, 3, 1420, &faults.options(&[]))?;
        let far_end = hub.endpoint(Family::V4);
        let front = "198.51.3.2".parse()?;
        let relay = Relay::start(&hub.namespace, front, far_end, Weather::default())?;
        hub.add_peer(&roamer, "")?;
        roamer.add_peer(&hub, &speaking(relay.address()))?;
        for site in [&steered, &roamer] {
            wait_reachable(&site.namespace, hub.inner(Family::V4), HANDSHAKE_LIMIT)?;
        }
        Ok(Self {
            hub,
            steered,
            roamer,
            relay,
            faults,
            end: Instant::now() + soak.duration,
            failed: AtomicBool::new(false),
            streams: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            report: Mutex::default(),
        })
    }

    fn going_on(&self) -> bool {
        !self.failed.load(Ordering::Relaxed) && Instant::now() < self.end
    }

    /// Does its share; if that fails, all others end, too.
    fn unless_failed(&self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let result = work().with_context(|| name.to_owned());
        if result.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        result
    }

    fn report<T>(&self, work: impl FnOnce(&mut Report) -> T) -> T {
        work(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A stream in each direction at once.
    fn streams(&self, site: &Site, inner: Family, bytes: usize) -> Result<()> {
        fail_if_interrupted()?;
        tcp_at_once(site, &self.hub, inner, bytes)?;
        self.streams.fetch_add(2, Ordering::Relaxed);
        self.bytes.fetch_add(2 * bytes as u64, Ordering::Relaxed);
        Ok(())
    }

    fn steered_streams(&self) -> Result<()> {
        for inner in [Family::V4, Family::V6].into_iter().cycle() {
            if !self.going_on() {
                break;
            }
            self.streams(&self.steered, inner, LONG)?;
            rest(250);
        }
        Ok(())
    }

    fn roaming_streams(&self) -> Result<()> {
        while self.going_on() {
            self.streams(&self.roamer, Family::V4, SHORT)?;
            rest(100);
        }
        Ok(())
    }

    /// Datagrams may be lost or overtaken when their way changes, but not all of them, and none comes twice.
    fn datagrams(&self) -> Result<()> {
        while self.going_on() {
            let flow = Flow {
                from: &self.hub.namespace,
                to: &self.steered.namespace,
                address: self.steered.inner(Family::V4),
                size: 600,
                rate: Some(1000),
                duration: Duration::from_secs(2),
            };
            let delivery = flow.run()?;
            ensure!(delivery.repeated == 0, "{delivery:?}");
            ensure!(delivery.received > 0, "nothing arrives: {delivery:?}");
            self.report(|report| {
                report.datagrams[0] += delivery.sent;
                report.datagrams[1] += delivery.received;
            });
        }
        Ok(())
    }

    /// A fourth site comes, is heard, and goes, again and again.
    fn visits(&self) -> Result<()> {
        while self.going_on() {
            let namespace = Namespace::new()?;
            wire(&namespace, &self.hub.namespace, 4)?;
            let visitor = Site::start(namespace, 4, 1420, &self.faults.options(&[]))?;
            self.hub.add_peer(&visitor, "")?;
            visitor.add_peer(&self.hub, &format!("endpoint 198.51.4.2:{PORT}"))?;
            let hub = self.hub.inner(Family::V4);
            wait_reachable(&visitor.namespace, hub, HANDSHAKE_LIMIT)?;
            self.streams(&visitor, Family::V4, SHORT)?;
            self.hub
                .wg_set(&format!("peer {} remove", visitor.keys.public))?;
            // Not left to the end of the namespace, which the kernel takes its time for.
            self.hub.namespace.ip("link delete wan4")?;
            drop(visitor);
            self.report(|report| report.visits += 1);
            rest(1000);
        }
        Ok(())
    }

    /// Notes once a second what the daemons use, and whether the session is a new one.
    fn watch(&self) -> Result<()> {
        let mut last = None;
        while self.going_on() {
            let mut usage = [Usage::default(); 3];
            for (usage, site) in usage
                .iter_mut()
                .zip([&self.steered, &self.hub, &self.roamer])
            {
                *usage = Usage::of(site.daemon.pid())?;
            }
            let renewed = handshake(&self.hub, &self.steered)?;
            self.report(|report| {
                report.usage.push(usage);
                report.renewals += u64::from(last.is_some_and(|last| last != renewed));
            });
            last = Some(renewed);
            rest(1000);
        }
        Ok(())
    }

    /// Something changes, and something else a moment later.
    fn changes(&self, dice: &mut Dice) -> Result<()> {
        type Change = fn(&State, &mut Dice) -> Result<()>;
        const CHANGES: [(&str, Change); 9] = [
            ("XDP detached", State::detach),
            ("listen port", State::change_port),
            ("firewall mark", State::change_mark),
            ("MTU", State::change_mtu),
            ("roamed", State::roam),
            ("peers added and removed", State::change_peers),
            ("preshared key", State::change_preshared_key),
            ("keepalive", State::change_keepalive),
            ("asked", State::ask),
        ];
        let mut counts = CHANGES.map(|(name, _)| (name, 0));
        while self.going_on() {
            fail_if_interrupted()?;
            let which = dice.index(CHANGES.len());
            let (name, change) = CHANGES[which];
            change(self, dice).context(name)?;
            counts[which].1 += 1;
            rest(200 + dice.roll(800));
        }
        self.report(|report| report.changes = counts.into());
        Ok(())
    }

    fn either(&self, dice: &mut Dice) -> &Site {
        if dice.happens(500) {
            &self.hub
        } else {
            &self.steered
        }
    }

    fn detach(&self, dice: &mut Dice) -> Result<()> {
        let site = self.either(dice);
        // Perhaps it has not come back from the last time.
        if program_on_wire(&site.namespace)?.is_some() {
            // Or goes away at this moment.
            let _ = detach_link(site);
        }
        Ok(())
    }

    fn change_port(&self, dice: &mut Dice) -> Result<()> {
        let port = 20_000 + dice.roll(10_000);
        self.steered.wg_set(&format!("listen-port {port}"))
    }

    fn change_mark(&self, dice: &mut Dice) -> Result<()> {
        let mark = dice.roll(100);
        self.either(dice).wg_set(&format!("fwmark {mark}"))
    }

    fn change_mtu(&self, dice: &mut Dice) -> Result<()> {
        let mtu = [1280, 1380, 1420][dice.index(3)];
        let site = self.either(dice);
        site.namespace
            .ip(&format!("link set {} mtu {mtu}", site.interface()))
    }

    fn roam(&self, _: &mut Dice) -> Result<()> {
        let any = crate::relay::unspecified(self.hub.outer(Family::V4));
        self.relay.move_back(&self.hub.namespace, any).map(drop)
    }

    fn change_peers(&self, _: &mut Dice) -> Result<()> {
        let keys = random_public_keys(20)?;
        let each = |action: &str| -> String {
            keys.iter()
                .map(|key| format!("peer {key} {action} "))
                .collect()
        };
        self.hub
            .wg_set(&each("allowed-ips 10.66.0.0/16 endpoint 192.0.2.99:9"))?;
        self.hub.wg_set(&each("remove"))
    }

    fn change_preshared_key(&self, _: &mut Dice) -> Result<()> {
        let key = preshared_key()?;
        for (site, other) in [(&self.hub, &self.steered), (&self.steered, &self.hub)] {
            site.wg_set_secret(&format!("peer {} preshared-key", other.keys.public), &key)?;
        }
        Ok(())
    }

    fn change_keepalive(&self, dice: &mut Dice) -> Result<()> {
        let seconds = 1 + dice.roll(30);
        let hub = &self.hub.keys.public;
        self.steered
            .wg_set(&format!("peer {hub} persistent-keepalive {seconds}"))
    }

    fn ask(&self, _: &mut Dice) -> Result<()> {
        uapi::request(self.hub.interface(), "get=1").map(drop)
    }

    /// All daemons run, have nothing to complain of, and reach each other.
    fn check_daemons(&mut self) -> Result<()> {
        for site in [&self.steered, &self.roamer] {
            let hub = self.hub.inner(Family::V4);
            wait_reachable(&site.namespace, hub, HANDSHAKE_LIMIT)?;
        }
        for site in [&mut self.steered, &mut self.hub, &mut self.roamer] {
            let log = site.daemon.log_text();
            let mut errors = log.lines().filter(|line| line.contains("ERROR"));
            // Twenty times too early the old AF_XDP socket may still be there; it is tried again.
            let error = errors.find(|line| !line.contains("not AF_XDP"));
            ensure!(error.is_none(), "site {}: {error:?}", site.number);
            ensure!(site.daemon.running(), "site {} has ended", site.number);
        }
        Ok(())
    }
}

/// A wire from a site to the hub, with a network of its own.
fn wire(site: &Namespace, hub: &Namespace, number: u8) -> Result<()> {
    let interface = format!("wan{number}");
    let ends = [number, 2].map(|host| format!("198.51.{number}.{host}/24"));
    link::veth(
        link::End {
            namespace: site,
            interface: WAN,
            addresses: &[&ends[0]],
        },
        link::End {
            namespace: hub,
            interface: &interface,
            addresses: &[&ends[1]],
        },
        1500,
    )
}

/// When a site last shook hands with another, in the daemon's own words.
fn handshake(site: &Site, peer: &Site) -> Result<[String; 2]> {
    let key = wg::hex(&peer.keys.public)?;
    let answer = uapi::request(site.interface(), "get=1")?;
    let mut fields = answer
        .into_iter()
        .skip_while(|(name, value)| name != "public_key" || *value != key);
    let mut field = |wanted: &str| {
        let found = fields.find(|(name, _)| name == wanted);
        found.map(|(_, value)| value).context(wanted.to_owned())
    };
    Ok([
        field("last_handshake_time_sec")?,
        field("last_handshake_time_nsec")?,
    ])
}

fn rest(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

impl Usage {
    fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            resident: resident_bytes(pid)?,
            files: open_files(pid)?,
        })
    }

    fn max(self, other: Self) -> Self {
        Self {
            resident: self.resident.max(other.resident),
            files: self.files.max(other.files),
        }
    }
}

impl Report {
    /// The most that sites 1, 2 and 3 used in the first half of the time, and in the second.
    #[must_use]
    pub fn halves(&self) -> [[Usage; 3]; 2] {
        let (first, second) = self.usage.split_at(self.usage.len() / 2);
        [first, second].map(|half| {
            half.iter().fold([Usage::default(); 3], |most, usage| {
                std::array::from_fn(|site| most[site].max(usage[site]))
            })
        })
    }

    /// Everything has happened that was to, and nothing grows.
    ///
    /// # Errors
    /// Says what has not, or what grows.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.streams > 0 && self.renewals > 1 && self.visits > 0,
            "{self}"
        );
        let [first, second] = self.halves();
        for (site, (first, second)) in (1..).zip(first.into_iter().zip(second)) {
            ensure!(
                second.resident <= first.resident + MEMORY_SLACK,
                "memory of site {site} grows: {self}"
            );
            ensure!(
                second.files <= first.files + FILES_SLACK,
                "site {site} opens more and more files: {self}"
            );
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [sent, received] = self.datagrams;
        writeln!(
            formatter,
            "{} s: {} streams of {} MiB in all, whole; {received} of {sent} datagrams; {} renewals seen; {} visits",
            self.duration.as_secs(),
            self.streams,
            self.bytes >> 20,
            self.renewals,
            self.visits
        )?;
        for (name, count) in &self.changes {
            writeln!(formatter, "{name}: {count}")?;
        }
        let [first, second] = self.halves();
        for (site, (first, second)) in (1..).zip(first.into_iter().zip(second)) {
            writeln!(
                formatter,
                "site {site}: at most {} KiB and {} descriptors in the first half, {} KiB and {} in the second",
                first.resident >> 10,
                first.files,
                second.resident >> 10,
                second.files
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_seen() {
        let flat = Usage {
            resident: 50 << 20,
            files: 30,
        };
        let mut report = Report {
            streams: 1,
            renewals: 2,
            visits: 1,
            usage: vec![[flat; 3]; 10],
            ..Report::default()
        };
        report.check().unwrap();
        report.usage[9][1].resident += MEMORY_SLACK + 1;
        let error = format!("{:#}", report.check().unwrap_err());
        assert!(error.contains("memory of site 2 grows"), "{error}");
        report.usage[9][1] = flat;
        report.usage[7][2].files += FILES_SLACK + 1;
        assert!(report.check().is_err());
    }
}
