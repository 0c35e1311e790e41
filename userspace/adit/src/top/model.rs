//! What is shown, computed from two readings of a tunnel. Nothing here asks or draws.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use adit_protocol::PublicKey;

use crate::inspect::answer;
use crate::inspect::tunnel::Tunnel;

/// Seconds after a handshake in which its session is good (`Reject-After-Time`, paper section 6.1).
const SESSION_LIFE: u64 = 180;

/// A tunnel at one moment.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// When, for rates.
    pub(super) at: Instant,
    /// When, Unix time in seconds, for ages.
    pub(super) unix: u64,
    /// What was found.
    pub(super) tunnel: Tunnel,
}

/// A tunnel at one moment, with rates since the moment before.
#[derive(Clone, Debug)]
pub(super) struct Picture {
    /// The later moment.
    pub(super) reading: Reading,
    /// One for each peer of the reading, in its order.
    pub(super) peers: Vec<PeerRates>,
    /// One for each flow of the reading, in its order: bits per second.
    pub(super) flows: Vec<Option<f64>>,
    /// Packets dropped.
    pub(super) drops: Vec<Drops>,
    /// From the network.
    pub(super) received: Total,
    /// To the network.
    pub(super) sent: Total,
}

/// How fast a peer's counters grow, in bits per second; `None` while they are known at one moment only.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct PeerRates {
    pub(super) received: Option<f64>,
    pub(super) sent: Option<f64>,
}

/// Packets dropped for one reason.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Drops {
    /// As `adit show` names it.
    pub(super) reason: String,
    /// Since the daemon started.
    pub(super) packets: u64,
    /// Since the moment before.
    pub(super) per_second: Option<f64>,
}

/// One direction of the whole tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Total {
    /// Of all peers that there are.
    pub(super) bytes: u64,
    pub(super) bits_per_second: Option<f64>,
    /// Datagrams; only Adit counts them.
    pub(super) packets_per_second: Option<f64>,
}

impl Picture {
    /// Compares a reading with the one before, if that is of the same tunnel.
    pub(super) fn new(reading: Reading, before: Option<&Reading>) -> Self {
        let before = before.filter(|before| before.tunnel.name == reading.tunnel.name);
        let seconds = before.map_or(0.0, |before| (reading.at - before.at).as_secs_f64());
        let rate = |count: u64, before: Option<u64>| rate(count, before?, seconds);
        let tunnel = &reading.tunnel;

        let known: HashMap<PublicKey, (u64, u64)> = before
            .iter()
            .flat_map(|before| &before.tunnel.device.peers)
            .map(|peer| (peer.public_key, (peer.received, peer.sent)))
            .collect();
        let peers: Vec<PeerRates> = tunnel
            .device
            .peers
            .iter()
            .map(|peer| {
                let before = known.get(&peer.public_key);
                PeerRates {
                    received: rate(peer.received, before.map(|before| before.0)).map(bits),
                    sent: rate(peer.sent, before.map(|before| before.1)).map(bits),
                }
            })
            .collect();

        let known: HashMap<FlowKey, u64> = before
            .iter()
            .flat_map(|before| &before.tunnel.flows)
            .flatten()
            .map(|flow| ((flow.local, flow.remote, flow.direction), flow.bytes))
            .collect();
        let flows = tunnel
            .flows
            .iter()
            .flatten()
            .map(|flow| {
                let key = (flow.local, flow.remote, flow.direction);
                // One that was not there has sent all its bytes since.
                let before = before.map(|_| known.get(&key).copied().unwrap_or(0));
                rate(flow.bytes, before).map(bits)
            })
            .collect();

        let known: Option<HashMap<String, u64>> =
            before.map(|before| before.tunnel.drops().into_iter().collect());
        let drops = tunnel.drops().into_iter();
        let drops = drops
            .map(|(reason, packets)| {
                // Reasons that never were are left out of a reading.
                let before = known
                    .as_ref()
                    .map(|known| known.get(&reason).copied().unwrap_or(0));
                Drops {
                    per_second: rate(packets, before),
                    reason,
                    packets,
                }
            })
            .collect();

        let total = |bytes: fn(&answer::Peer) -> u64,
                     bits: fn(&PeerRates) -> Option<f64>,
                     names: [&str; 2]| Total {
            bytes: tunnel
                .device
                .peers
                .iter()
                .map(bytes)
                .fold(0, u64::saturating_add),
            // Of those peers that were there before: what another has counted is not of now.
            bits_per_second: before.map(|_| peers.iter().filter_map(bits).sum()),
            packets_per_second: datagrams(tunnel, names).and_then(|count| {
                rate(
                    count,
                    before.and_then(|before| datagrams(&before.tunnel, names)),
                )
            }),
        };
        let received = total(
            |peer| peer.received,
            |rates| rates.received,
            ["udp_received_datagrams", "xsk_received_datagrams"],
        );
        let sent = total(
            |peer| peer.sent,
            |rates| rates.sent,
            ["udp_sent_datagrams", "xsk_sent_datagrams"],
        );
        Self {
            peers,
            flows,
            drops,
            received,
            sent,
            reading,
        }
    }

    /// Seconds since the latest handshake with a peer; `None` if there was none, 0 if the clock was set back.
    pub(super) fn handshake_age(&self, peer: &answer::Peer) -> Option<u64> {
        (peer.latest_handshake != 0)
            .then(|| self.reading.unix.saturating_sub(peer.latest_handshake))
    }

    /// Whether the latest handshake with a peer is young enough for its session to be good.
    pub(super) fn is_active(&self, peer: &answer::Peer) -> bool {
        self.handshake_age(peer)
            .is_some_and(|age| age < SESSION_LIFE)
    }

    /// Indices of the peers that `choice` lets through, in its order.
    pub(super) fn choose_peers(&self, choice: &Choice) -> Vec<usize> {
        let peers = &self.reading.tunnel.device.peers;
        let filter = choice.filter.as_str();
        let mut chosen: Vec<usize> = (0..peers.len())
            .filter(|&index| !choice.active_only || self.is_active(&peers[index]))
            .filter(|&index| filter.is_empty() || matches_peer(&peers[index], filter))
            .collect();
        let compare = |&a: &usize, &b: &usize| {
            let ordering = self.compare_peers(choice.sort, a, b);
            let ordering = if choice.reversed {
                ordering.reverse()
            } else {
                ordering
            };
            // Equals keep an order of their own, or the table would flicker.
            ordering
                .then_with(|| {
                    Reverse(peers[a].latest_handshake).cmp(&Reverse(peers[b].latest_handshake))
                })
                .then_with(|| peers[a].public_key.cmp(&peers[b].public_key))
        };
        chosen.sort_unstable_by(compare);
        chosen
    }

    /// The way round that a person expects: largest first, youngest first, names by alphabet.
    fn compare_peers(&self, sort: Sort, a: usize, b: usize) -> Ordering {
        let peers = &self.reading.tunnel.device.peers;
        let (peer_a, peer_b) = (&peers[a], &peers[b]);
        let (rates_a, rates_b) = (&self.peers[a], &self.peers[b]);
        let fastest =
            |a: Option<f64>, b: Option<f64>| b.unwrap_or(0.0).total_cmp(&a.unwrap_or(0.0));
        match sort {
            Sort::Rate => fastest(rates_a.sum(), rates_b.sum()),
            Sort::RateIn => fastest(rates_a.received, rates_b.received),
            Sort::RateOut => fastest(rates_a.sent, rates_b.sent),
            Sort::Received => peer_b.received.cmp(&peer_a.received),
            Sort::Sent => peer_b.sent.cmp(&peer_a.sent),
            Sort::Handshake => peer_b.latest_handshake.cmp(&peer_a.latest_handshake),
            // The slowest is what one looks for.
            Sort::RoundTrip => peer_b.round_trip.cmp(&peer_a.round_trip),
            // Those that have one come first.
            Sort::Endpoint => peer_a
                .endpoint
                .is_none()
                .cmp(&peer_b.endpoint.is_none())
                .then_with(|| peer_a.endpoint.cmp(&peer_b.endpoint)),
            Sort::Peer => peer_a
                .public_key
                .to_base64()
                .cmp(&peer_b.public_key.to_base64()),
        }
    }

    /// Indices of the flows whose addresses contain the filter, fastest first.
    pub(super) fn choose_flows(&self, choice: &Choice) -> Vec<usize> {
        let Some(flows) = &self.reading.tunnel.flows else {
            return Vec::new();
        };
        let filter = choice.filter.to_lowercase();
        let mut chosen: Vec<usize> = (0..flows.len())
            .filter(|&index| {
                let flow = &flows[index];
                filter.is_empty()
                    || flow.remote.to_string().contains(&filter)
                    || flow.local.to_string().contains(&filter)
            })
            .collect();
        // A stable sort: equals stay in the order of the reading, most bytes first.
        chosen.sort_by(|&a, &b| {
            let rate = |index: usize| self.flows[index].unwrap_or(0.0);
            rate(b).total_cmp(&rate(a))
        });
        chosen
    }
}

impl PeerRates {
    fn sum(&self) -> Option<f64> {
        Some(self.received? + self.sent?)
    }
}

type FlowKey = (SocketAddr, SocketAddr, &'static str);

/// Growth per second; none if the counter went back, since it was made anew.
fn rate(count: u64, before: u64, seconds: f64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let growth = count.checked_sub(before)? as f64;
    (seconds > 0.0).then(|| growth / seconds)
}

fn bits(bytes: f64) -> f64 {
    bytes * 8.0
}

/// The sum of these counters; none if the daemon has none of them.
fn datagrams(tunnel: &Tunnel, names: [&str; 2]) -> Option<u64> {
    let counters = tunnel.device.counters.iter();
    let counts = counters.filter(|(name, _)| names.contains(&name.as_str()));
    counts.map(|(_, count)| *count).reduce(u64::saturating_add)
}

/// Whether a peer's key, endpoint or prefixes contain `filter`. Letter case counts for keys if there is a capital in it, as
/// it does where a whole key is given: others differ from it in case alone.
fn matches_peer(peer: &answer::Peer, filter: &str) -> bool {
    let mut key = peer.public_key.to_base64();
    if !filter.contains(|c: char| c.is_ascii_uppercase()) {
        key.make_ascii_lowercase();
    }
    let lower = filter.to_ascii_lowercase();
    let in_endpoint = || {
        let endpoint = peer.endpoint.map(|endpoint| endpoint.to_string());
        endpoint.is_some_and(|endpoint| endpoint.contains(&lower))
    };
    let in_prefixes = || {
        let mut prefixes = peer.allowed_ips.iter();
        prefixes.any(|(address, length)| format!("{address}/{length}").contains(&lower))
    };
    key.contains(filter) || in_endpoint() || in_prefixes()
}

/// What peers are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// Both directions together.
    #[default]
    Rate,
    RateIn,
    RateOut,
    Received,
    Sent,
    Handshake,
    RoundTrip,
    Peer,
    Endpoint,
}

impl Sort {
    const ALL: [Self; 9] = [
        Self::Rate,
        Self::RateIn,
        Self::RateOut,
        Self::Received,
        Self::Sent,
        Self::Handshake,
        Self::RoundTrip,
        Self::Peer,
        Self::Endpoint,
    ];

    /// The one so many steps on, round and round.
    pub(super) fn step(self, forward: bool) -> Self {
        let place = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        let step = if forward { 1 } else { Self::ALL.len() - 1 };
        Self::ALL[(place + step) % Self::ALL.len()]
    }

    /// For a person.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::RateIn => "rate in",
            Self::RateOut => "rate out",
            Self::Received => "received",
            Self::Sent => "sent",
            Self::Handshake => "handshake",
            Self::RoundTrip => "round trip",
            Self::Peer => "peer",
            Self::Endpoint => "endpoint",
        }
    }
}

/// Which rows, and in what order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// Peers by this.
    pub(super) sort: Sort,
    /// The other way round.
    pub(super) reversed: bool,
    /// Part of a key, endpoint, or prefix.
    pub(super) filter: String,
    /// Only peers with a session.
    pub(super) active_only: bool,
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::inspect::answer::Device;
    use crate::inspect::flows::Row;

    /// A peer's lines in an answer; its key is the number over and over.
    pub(in crate::top) fn peer(number: u8, received: u64, sent: u64, handshake: u64) -> String {
        let key = format!("{number:02x}").repeat(32);
        format!(
            "public_key={key}\nendpoint=192.0.2.{number}:51820\nlast_handshake_time_sec={handshake}\n\
             tx_bytes={sent}\nrx_bytes={received}\nallowed_ip=10.0.{number}.0/24\n"
        )
    }

    pub(in crate::top) fn reading(
        start: Instant,
        second: u64,
        answer: &str,
        flows: Option<Vec<Row>>,
    ) -> Reading {
        Reading {
            at: start + Duration::from_secs(second),
            unix: 10_000 + second,
            tunnel: Tunnel {
                name: "wg0".to_owned(),
                device: Device::parse(format!("{answer}errno=0\n\n").as_bytes()).unwrap(),
                flows,
            },
        }
    }

    pub(in crate::top) fn flow(remote: &str, bytes: u64) -> Row {
        crate::inspect::flows::row(
            &adit_kernel::bpf::Flow {
                remote: remote.parse().unwrap(),
                local: "192.0.2.1:51820".parse().unwrap(),
                direction: adit_kernel::bpf::Direction::Ingress,
                packets: bytes / 1000,
                bytes,
                first_seen_ns: 0,
                last_seen_ns: 0,
            },
            3_000_000_000,
        )
    }

    fn two() -> Picture {
        let start = Instant::now();
        let before = reading(
            start,
            0,
            &format!(
                "adit_udp_received_datagrams=100\nadit_xsk_received_datagrams=0\nadit_drop_ebpf_dead_index=2\nadit_drop_ingress_ecn=1\n{}{}",
                peer(1, 1000, 500, 9_900),
                peer(2, 77, 0, 0)
            ),
            Some(vec![flow("192.0.2.2:1", 5000), flow("192.0.2.2:2", 4000)]),
        );
        let now = reading(
            start,
            2,
            &format!(
                "adit_udp_received_datagrams=100\nadit_xsk_received_datagrams=50\nadit_drop_ebpf_dead_index=2\nadit_drop_ingress_ecn=5\n{}{}{}",
                peer(1, 3000, 400, 9_900) + "adit_round_trip_us=1000\n",
                peer(2, 77, 1000, 0) + "adit_round_trip_us=2000\n",
                peer(3, 9, 9, 10_002)
            ),
            Some(vec![
                flow("192.0.2.2:1", 5000),
                flow("192.0.2.2:2", 4500),
                flow("192.0.2.2:3", 100),
            ]),
        );
        Picture::new(now, Some(&before))
    }

    #[test]
    fn rates_are_growth_by_time() {
        let picture = two();
        assert_eq!(picture.peers[0].received, Some(8000.0));
        // Went back: the peer was removed and added meanwhile.
        assert_eq!(picture.peers[0].sent, None);
        assert_eq!(picture.peers[1].received, Some(0.0));
        assert_eq!(picture.peers[1].sent, Some(4000.0));
        assert_eq!(picture.peers[2], PeerRates::default());
        assert_eq!(picture.flows, [Some(0.0), Some(2000.0), Some(400.0)]);
        assert_eq!(picture.received.bits_per_second, Some(8000.0));
        assert_eq!(picture.received.bytes, 3086);
        assert_eq!(picture.received.packets_per_second, Some(25.0));
        assert_eq!(picture.sent.packets_per_second, None);
        let drops: Vec<_> = picture
            .drops
            .iter()
            .map(|drops| (drops.reason.as_str(), drops.packets, drops.per_second))
            .collect();
        assert_eq!(
            drops,
            [
                ("ebpf_dead_index", 2, Some(0.0)),
                ("ingress_ecn", 5, Some(2.0))
            ]
        );
    }

    #[test]
    fn a_first_reading_and_another_tunnel_have_no_rates() {
        let picture = two();
        let first = Picture::new(picture.reading.clone(), None);
        assert!(
            first
                .peers
                .iter()
                .all(|rates| *rates == PeerRates::default())
        );
        assert!(first.flows.iter().all(Option::is_none));
        assert_eq!(first.received.bits_per_second, None);
        assert!(first.drops.iter().all(|drops| drops.per_second.is_none()));
        let mut other = picture.reading.clone();
        other.tunnel.name = "wg1".to_owned();
        let mixed = Picture::new(picture.reading.clone(), Some(&other));
        assert_eq!(mixed.peers, first.peers);
        // The same moment twice is no division by zero.
        let same = Picture::new(picture.reading.clone(), Some(&picture.reading));
        assert_eq!(same.peers, first.peers);
    }

    #[test]
    fn every_column_sorts_both_ways() {
        let picture = two();
        let order = |sort, reversed| {
            picture.choose_peers(&Choice {
                sort,
                reversed,
                ..Choice::default()
            })
        };
        assert_eq!(order(Sort::RateIn, false), [0, 2, 1]);
        assert_eq!(order(Sort::RateOut, false), [1, 2, 0]);
        assert_eq!(order(Sort::Received, false), [0, 1, 2]);
        assert_eq!(order(Sort::Received, true), [2, 1, 0]);
        assert_eq!(order(Sort::Sent, false), [1, 0, 2]);
        assert_eq!(order(Sort::Handshake, false), [2, 0, 1]);
        assert_eq!(order(Sort::Handshake, true), [1, 0, 2]);
        assert_eq!(order(Sort::RoundTrip, false), [1, 0, 2]);
        assert_eq!(order(Sort::Peer, false), [0, 1, 2]);
        assert_eq!(order(Sort::Endpoint, true), [2, 1, 0]);
        let mut sort = Sort::default();
        for _ in Sort::ALL {
            assert_eq!(sort.step(true).step(false), sort);
            sort = sort.step(true);
        }
        assert_eq!(sort, Sort::default());
    }

    #[test]
    fn filters_look_at_keys_endpoints_and_prefixes() {
        let picture = two();
        let chosen = |filter: &str, active_only| {
            picture.choose_peers(&Choice {
                filter: filter.to_owned(),
                active_only,
                sort: Sort::Peer,
                ..Choice::default()
            })
        };
        assert_eq!(chosen("", false), [0, 1, 2]);
        assert_eq!(chosen("", true), [0, 2]);
        assert_eq!(chosen("192.0.2.2", false), [1]);
        assert_eq!(chosen("10.0.3.0/24", false), [2]);
        let key = picture.reading.tunnel.device.peers[0]
            .public_key
            .to_base64();
        assert_eq!(chosen(&key, false), [0]);
        assert_eq!(chosen(&key.to_lowercase(), false), [0]);
        assert!(chosen(&key.replace('Q', "q"), false).is_empty());
        assert!(chosen("nowhere", false).is_empty());
        let flows = |filter: &str| {
            picture.choose_flows(&Choice {
                filter: filter.to_owned(),
                ..Choice::default()
            })
        };
        assert_eq!(flows(""), [1, 2, 0]);
        assert_eq!(flows("2:3"), [2]);
    }

    #[test]
    fn a_session_is_good_for_three_minutes() {
        let start = Instant::now();
        let answer = [9_821, 9_820, 0, 10_005]
            .iter()
            .zip(1..)
            .map(|(handshake, number)| peer(number, 0, 0, *handshake))
            .collect::<String>();
        let picture = Picture::new(reading(start, 0, &answer, None), None);
        let active: Vec<bool> = picture
            .reading
            .tunnel
            .device
            .peers
            .iter()
            .map(|peer| picture.is_active(peer))
            .collect();
        assert_eq!(active, [true, false, false, true]);
    }
}
