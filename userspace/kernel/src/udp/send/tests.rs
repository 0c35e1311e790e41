//! Recovery of sends, against a kernel that fails on demand.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// A kernel that records what went out, and refuses by rules and by script.
struct FakeKernel {
    family: Family,
    gso: bool,
    clock: Instant,
    /// Addresses that are no longer ours, and the error for them.
    stale_sources: HashMap<IpAddr, i32>,
    /// Destinations without a route.
    unreachable: HashSet<SocketAddr>,
    /// Largest segment by destination, and the error for larger ones.
    route_limits: HashMap<SocketAddr, (usize, i32)>,
    /// No checksum offload: segmented sends give `EIO`.
    no_checksum_offload: bool,
    /// False for a kernel that corrupts messages without a shorter rest.
    equal_tail: bool,
    /// Errors of the next attempts to send a message, in order; 0 is success.
    script: Vec<i32>,
    /// Messages a call takes at most, by call.
    appetite: Vec<usize>,
    calls: usize,
    segmented: usize,
    /// Address in memory and length of each datagram, its destination and source.
    sent: Vec<(usize, usize, SocketAddr, Option<IpAddr>)>,
    waits: Vec<Shortage>,
    /// Address in memory of each datagram sent with "don't fragment".
    probes: Vec<usize>,
}

impl FakeKernel {
    fn new() -> Self {
        Self {
            family: Family::V4,
            gso: true,
            clock: Instant::now(),
            stale_sources: HashMap::new(),
            unreachable: HashSet::new(),
            route_limits: HashMap::new(),
            no_checksum_offload: false,
            equal_tail: true,
            script: Vec::new(),
            appetite: Vec::new(),
            calls: 0,
            segmented: 0,
            sent: Vec::new(),
            waits: Vec::new(),
            probes: Vec::new(),
        }
    }

    fn v6() -> Self {
        Self {
            family: Family::V6,
            ..Self::new()
        }
    }

    fn script(mut self, errors: impl IntoIterator<Item = i32>) -> Self {
        self.script = errors.into_iter().collect();
        self.script.reverse();
        self
    }

    /// What the kernel says to one message.
    fn attempt(&mut self, entry: &Entry<'_>) -> Result<(), i32> {
        assert_eq!(
            entry.to.is_ipv4(),
            self.family == Family::V4,
            "family of the destination"
        );
        if let Some(size) = entry.segment_size {
            let size = usize::from(size);
            assert!(self.gso, "GSO after it was switched off");
            let whole = entry.data.len().is_multiple_of(size);
            assert!(size > 0 && size < entry.data.len(), "nothing to cut up");
            assert!(self.equal_tail || !whole, "equal tail");
            assert!(entry.data.len().div_ceil(size) <= 64, "too many segments");
            let largest = if entry.to.is_ipv4() { 65_507 } else { 65_487 };
            assert!(entry.data.len() <= largest, "too large for a datagram");
        }
        match self.script.pop() {
            None | Some(0) => {}
            Some(errno) => return Err(errno),
        }
        if let Some(errno) = entry
            .source
            .and_then(|(source, _)| self.stale_sources.get(&source))
        {
            return Err(*errno);
        }
        if self.unreachable.contains(&entry.to) {
            return Err(libc::ENETUNREACH);
        }
        if let Some(size) = entry.segment_size {
            if self.no_checksum_offload {
                return Err(libc::EIO);
            }
            match self.route_limits.get(&entry.to) {
                Some((limit, errno)) if usize::from(size) > *limit => return Err(*errno),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Transmitter for FakeKernel {
    fn transmit(&mut self, entries: &[Entry<'_>], probe: bool) -> io::Result<usize> {
        assert!(!entries.is_empty() && entries.len() <= BATCH);
        if probe {
            assert!(entries.len() == 1 && entries[0].segment_size.is_none());
            self.probes.push(entries[0].data.as_ptr().addr());
        }
        self.calls += 1;
        let appetite = self.appetite.pop().unwrap_or(usize::MAX).max(1);
        for (index, entry) in entries.iter().enumerate().take(appetite) {
            if let Err(errno) = self.attempt(entry) {
                return if index == 0 {
                    Err(io::Error::from_raw_os_error(errno))
                } else {
                    Ok(index)
                };
            }
            self.segmented += usize::from(entry.segment_size.is_some());
            let step = entry
                .segment_size
                .map_or(entry.data.len().max(1), usize::from);
            let source = entry.source.map(|(source, _)| source);
            if entry.data.is_empty() {
                self.sent
                    .push((entry.data.as_ptr().addr(), 0, entry.to, source));
            }
            for datagram in entry.data.chunks(step) {
                self.sent
                    .push((datagram.as_ptr().addr(), datagram.len(), entry.to, source));
            }
        }
        Ok(entries.len().min(appetite))
    }

    fn family(&self) -> Family {
        self.family
    }

    fn gso(&self) -> bool {
        self.gso
    }

    fn equal_tail(&self) -> bool {
        self.equal_tail
    }

    fn disable_gso(&mut self) {
        self.gso = false;
    }

    fn wait(&mut self, shortage: Shortage, limit: Duration) {
        assert!(limit <= PATIENCE);
        self.waits.push(shortage);
        self.clock += Duration::from_millis(1);
    }

    fn now(&self) -> Instant {
        self.clock
    }
}

const SOURCE: [u8; 4] = [192, 0, 2, 1];

fn to(last: u8) -> SocketAddr {
    ([198, 51, 100, last], 51820).into()
}

fn v6(last: u16) -> SocketAddr {
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 51820).into()
}

fn message(to: SocketAddr, segment_size: usize, data: &[u8]) -> Outgoing<'_> {
    Outgoing {
        to,
        source: None,
        ecn: 0,
        probe: false,
        segment_size,
        data,
        outcome: Outcome::Pending,
    }
}

fn from<'a>(source: impl Into<IpAddr>, message: Outgoing<'a>) -> Outgoing<'a> {
    Outgoing {
        source: Some((source.into(), 2)),
        ..message
    }
}

fn send(kernel: &mut FakeKernel, messages: &mut [Outgoing<'_>]) -> SendReport {
    send_all(kernel, &mut SegmentLimits::default(), messages)
}

/// The datagrams of `messages`, in order, as address and length.
fn datagrams(messages: &[Outgoing<'_>]) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    for message in messages {
        if message.data.is_empty() {
            all.push((message.data.as_ptr().addr(), 0));
        }
        let chunks = message.data.chunks(message.step());
        all.extend(chunks.map(|chunk| (chunk.as_ptr().addr(), chunk.len())));
    }
    all
}

fn usize_of(count: u64) -> usize {
    usize::try_from(count).unwrap()
}

fn assert_all_sent(kernel: &FakeKernel, messages: &[Outgoing<'_>]) {
    let sent: Vec<_> = kernel.sent.iter().map(|sent| (sent.0, sent.1)).collect();
    assert_eq!(sent, datagrams(messages));
    for message in messages {
        assert!(
            matches!(
                message.outcome,
                Outcome::Sent | Outcome::SentAfterForgettingSource
            ),
            "{:?}",
            message.outcome
        );
    }
}

#[test]
fn one_call_for_a_whole_batch() {
    let data = vec![0; 14_000];
    let mut messages = [message(to(1), 1400, &data), message(to(2), 0, &data[..100])];
    let mut kernel = FakeKernel::new();
    let report = send(&mut kernel, &mut messages);
    assert_all_sent(&kernel, &messages);
    assert_eq!(
        (report.syscalls, report.gso_sends, report.datagrams),
        (1, 1, 11)
    );
    assert_eq!(send(&mut kernel, &mut []), SendReport::default());
}

#[test]
fn a_probe_is_one_datagram_and_its_first() {
    let data = vec![0; 14_000];
    let probe = |message| Outgoing {
        probe: true,
        ..message
    };
    let mut messages = [
        message(to(1), 1400, &data),
        probe(message(to(2), 1400, &data)),
        probe(message(to(3), 0, &data[..1400])),
        message(to(4), 1400, &data),
    ];
    let mut kernel = FakeKernel::new();
    let report = send(&mut kernel, &mut messages);
    assert_all_sent(&kernel, &messages);
    let first = data.as_ptr().addr();
    assert_eq!(kernel.probes, [first, first]);
    // The rest of the second one is cut up.
    assert_eq!((report.syscalls, report.gso_sends), (5, 3));
    assert_eq!(report.probes, 2);

    // One that cannot be sent is not tried as a probe again.
    let mut kernel = FakeKernel::new();
    kernel.stale_sources.insert(SOURCE.into(), libc::EINVAL);
    let mut messages = [probe(from(SOURCE, message(to(1), 1400, &data)))];
    send(&mut kernel, &mut messages);
    assert_all_sent(&kernel, &messages);
    assert_eq!(kernel.probes.len(), 1);
}

#[test]
fn no_more_than_64_segments_and_one_datagram_at_once() {
    let data = vec![0; 131_072];
    for (step, segments) in [
        (100, 64),
        (1000, 64),
        (1320, 49),
        (1023, 64),
        (1024, 63),
        (32_000, 2),
    ] {
        let mut messages = [message(to(1), step, &data)];
        let mut kernel = FakeKernel::new();
        let report = send(&mut kernel, &mut messages);
        assert_all_sent(&kernel, &messages);
        let expected = data.len().div_ceil(step * segments) as u64;
        assert!(
            report.gso_sends.abs_diff(expected) <= 1,
            "{step}: {report:?}"
        );
        let mut messages = [message(v6(1), step, &data)];
        let mut kernel = FakeKernel::v6();
        send(&mut kernel, &mut messages);
        assert_all_sent(&kernel, &messages);
    }
}

#[test]
fn odd_shapes_are_sent_as_they_are() {
    let data = vec![0; 70_000];
    let mut messages = [
        message(to(1), 0, &[]),
        message(to(1), 1400, &[]),
        message(to(1), 1400, &data[..1]),
        message(to(1), 1400, &data[..1400]),
        message(to(1), 1400, &data[..1401]),
        message(to(1), 66_000, &data),
        message(to(1), usize::MAX, &data[..10]),
        message(to(1), 1, &data[..200]),
    ];
    let mut kernel = FakeKernel::new();
    let report = send(&mut kernel, &mut messages);
    assert_all_sent(&kernel, &messages);
    assert_eq!(usize_of(report.datagrams), datagrams(&messages).len());
}

/// Nebula 705a8f60 and followers: a partial `sendmmsg` lost or repeated the rest.
#[test]
fn partial_sends_go_on_with_exactly_the_rest() {
    let data = vec![0; 9000];
    let mut messages: Vec<_> = (0..200)
        .map(|index| message(to(1), 100, &data[index * 40..][..150]))
        .collect();
    for appetite in [1, 2, 7, 127] {
        let mut kernel = FakeKernel {
            appetite: vec![appetite; 500],
            ..FakeKernel::new()
        };
        let report = send(&mut kernel, &mut messages);
        assert_all_sent(&kernel, &messages);
        assert_eq!(usize_of(report.syscalls), kernel.calls);
    }
}

/// A batch larger than one call, whose messages straddle the border between calls.
#[test]
fn batches_larger_than_one_call_stay_in_order() {
    let data = vec![0; 1000];
    let mut messages = vec![message(to(1), 10, &data); 7];
    let mut kernel = FakeKernel {
        gso: false,
        ..FakeKernel::new()
    };
    let report = send(&mut kernel, &mut messages);
    assert_all_sent(&kernel, &messages);
    assert_eq!(report.syscalls, 700_u64.div_ceil(BATCH as u64));
}

#[test]
fn eio_switches_gso_off_for_good() {
    let data = vec![0; 4200];
    let mut kernel = FakeKernel {
        no_checksum_offload: true,
        ..FakeKernel::new()
    };
    let mut messages = [message(to(1), 1400, &data), message(to(2), 1400, &data)];
    let report = send(&mut kernel, &mut messages);
    assert_all_sent(&kernel, &messages);
    assert!(!kernel.gso);
    assert_eq!((report.gso_disabled, report.syscalls), (1, 2));
    let report = send(&mut kernel, &mut messages);
    assert_eq!((report.gso_disabled, report.syscalls), (0, 1));
}

/// wireguard-go bug (a): GSO was kept on after `EMSGSIZE` and `EINVAL` (outer packet larger than
/// the route MTU), and the traffic went nowhere.
#[test]
fn a_narrow_route_is_served_packet_by_packet() {
    for errno in [libc::EMSGSIZE, libc::EINVAL] {
        let data = vec![0; 4200];
        let mut kernel = FakeKernel::new();
        kernel.route_limits.insert(to(1), (1200, errno));
        let mut limits = SegmentLimits::default();
        let mut messages = [message(to(1), 1400, &data), message(to(2), 1400, &data)];
        let report = send_all(&mut kernel, &mut limits, &mut messages);
        assert_all_sent(&kernel, &messages);
        assert!(kernel.gso, "off for the destination only");
        assert_eq!((report.gso_refused, report.gso_sends), (1, 1));

        // The next batches do not pay for a failing call, until the memory fades.
        kernel.sent.clear();
        let report = send_all(&mut kernel, &mut limits, &mut messages);
        assert_all_sent(&kernel, &messages);
        assert_eq!(
            (report.syscalls, report.gso_refused, report.gso_sends),
            (1, 0, 1)
        );
        kernel.route_limits.clear();
        kernel.clock += Duration::from_secs(60);
        let report = send_all(&mut kernel, &mut limits, &mut messages);
        assert_eq!((report.syscalls, report.gso_sends), (1, 2));
    }
}

/// Firezone: on a refusal in the middle, exactly the unsent rest of that message goes out alone.
#[test]
fn a_refusal_in_the_middle_of_a_split_message_keeps_what_was_sent() {
    let data = vec![0; 100_000];
    let mut messages = [message(to(1), 1000, &data)];
    let mut kernel = FakeKernel::new().script([0, libc::EMSGSIZE, libc::EMSGSIZE]);
    let report = send(&mut kernel, &mut messages);
    assert_all_sent(&kernel, &messages);
    assert_eq!((report.gso_sends, report.gso_refused), (1, 1));
}

/// Linux 7.0 to 7.1.4 corrupt messages of equal datagrams.
#[test]
fn equal_datagrams_go_one_by_one_where_the_kernel_corrupts_them() {
    let data = vec![0; 100_001];
    for (length, gso_sends) in [(10_000, 0), (10_001, 1), (64_000, 0), (100_001, 1)] {
        let mut messages = [message(to(1), 1000, &data[..length])];
        let mut kernel = FakeKernel {
            equal_tail: false,
            ..FakeKernel::new()
        };
        let report = send(&mut kernel, &mut messages);
        assert_all_sent(&kernel, &messages);
        assert_eq!(report.gso_sends, gso_sends, "{length}");
    }
}

#[test]
fn stale_sources_are_forgotten_and_the_message_sent_again() {
    let source = IpAddr::from(SOURCE);
    for errno in [libc::ENETUNREACH, libc::ENODEV, libc::EINVAL] {
        for data in [&vec![0; 100], &vec![0; 4200]] {
            let mut kernel = FakeKernel::new();
            kernel.stale_sources.insert(source, errno);
            let plain = from([192, 0, 2, 2], message(to(2), 1400, data));
            let mut messages = [plain, from(source, message(to(1), 1400, data)), plain];
            let report = send(&mut kernel, &mut messages);
            assert_all_sent(&kernel, &messages);
            assert_eq!(messages[1].outcome, Outcome::SentAfterForgettingSource);
            assert_eq!(messages[0].outcome, Outcome::Sent);
            assert_eq!(messages[2].outcome, Outcome::Sent);
            assert_eq!(report.sources_forgotten, 1);
            assert!(kernel.sent.iter().all(|sent| sent.3 != Some(source)));
            // The source was to blame, so segmenting goes on.
            assert!(
                data.len() == 100 || report.gso_sends == 3,
                "{errno}: {report:?}"
            );
        }
    }
}

#[test]
fn one_stale_source_costs_one_failing_call_per_batch() {
    let source = IpAddr::from(SOURCE);
    let data = vec![0; 1000];
    let mut kernel = FakeKernel::new();
    kernel.stale_sources.insert(source, libc::ENETUNREACH);
    let mut messages = vec![from(source, message(to(1), 0, &data)); 64];
    let report = send(&mut kernel, &mut messages);
    assert_all_sent(&kernel, &messages);
    assert!(
        messages
            .iter()
            .all(|m| m.outcome == Outcome::SentAfterForgettingSource)
    );
    assert!(report.syscalls <= 3, "{report:?}");
}

/// `EINVAL` for a segmented IPv6 message with a source may mean either.
#[test]
fn a_narrow_route_and_a_stale_source_at_once() {
    let source: IpAddr = "2001:db8::1".parse().unwrap();
    let data = vec![0; 4200];
    let mut kernel = FakeKernel::v6();
    kernel.stale_sources.insert(source, libc::EINVAL);
    kernel.route_limits.insert(v6(1), (1200, libc::EINVAL));
    let mut messages = [from(source, message(v6(1), 1400, &data))];
    let report = send(&mut kernel, &mut messages);
    assert_all_sent(&kernel, &messages);
    assert_eq!(messages[0].outcome, Outcome::SentAfterForgettingSource);
    assert_eq!(report.datagrams, 3);
}

/// The source survives a route that is merely narrow.
#[test]
fn a_narrow_route_does_not_cost_the_source() {
    let source: IpAddr = "2001:db8::1".parse().unwrap();
    let data = vec![0; 4200];
    let mut kernel = FakeKernel::v6();
    kernel.route_limits.insert(v6(1), (1200, libc::EINVAL));
    let mut messages = [from(source, message(v6(1), 1400, &data))];
    send(&mut kernel, &mut messages);
    assert_all_sent(&kernel, &messages);
    assert_eq!(messages[0].outcome, Outcome::Sent);
    assert!(kernel.sent.iter().all(|sent| sent.3 == Some(source)));
}

/// One destination of the wrong family, or without a route, poisoned a whole batch elsewhere.
#[test]
fn bad_destinations_do_not_touch_their_neighbours() {
    let data = vec![0; 4200];
    let mut kernel = FakeKernel::new();
    kernel.unreachable.insert(to(9));
    let mut messages = [
        message(v6(1), 1400, &data),
        message(to(1), 1400, &data),
        from(SOURCE, message(to(9), 1400, &data)),
        message(v6(1), 0, &data),
        message(to(2), 1400, &data),
        message(to(9), 0, &[]),
    ];
    let report = send(&mut kernel, &mut messages);
    let good = [messages[1], messages[4]];
    assert_all_sent(&kernel, &good);
    let dropped = |datagrams, errno| Outcome::Dropped {
        datagrams,
        errno,
        forget_source: false,
    };
    assert_eq!(messages[0].outcome, dropped(3, libc::EAFNOSUPPORT));
    assert_eq!(messages[2].outcome, dropped(3, libc::ENETUNREACH));
    assert_eq!(messages[3].outcome, dropped(1, libc::EAFNOSUPPORT));
    assert_eq!(messages[5].outcome, dropped(1, libc::ENETUNREACH));
    assert_eq!(report.dropped(), 8);
}

#[test]
fn shortages_are_waited_out() {
    let data = vec![0; 4200];
    for (errno, shortage) in [
        (libc::EAGAIN, Shortage::Buffer),
        (libc::ENOBUFS, Shortage::Queue),
        (libc::ENOMEM, Shortage::Queue),
    ] {
        let mut messages = [message(to(1), 1400, &data), message(to(2), 1400, &data)];
        let mut kernel = FakeKernel::new().script([0, errno, errno, errno, 0]);
        let report = send(&mut kernel, &mut messages);
        assert_all_sent(&kernel, &messages);
        assert_eq!(kernel.waits, [shortage; 2], "the first is a partial send");
        assert_eq!((report.waits, report.dropped()), (2, 0));
    }
}

#[test]
fn waiting_ends_and_the_rest_is_counted() {
    let data = vec![0; 4200];
    let mut messages = [message(to(1), 1400, &data), message(to(2), 1400, &data)];
    let mut kernel = FakeKernel::new().script(vec![libc::ENOBUFS; 100]);
    let report = send(&mut kernel, &mut messages);
    assert!(kernel.sent.is_empty());
    assert_eq!(kernel.waits.len(), 5, "5 ms for the batch, not for each");
    let dropped = Outcome::Dropped {
        datagrams: 3,
        errno: libc::ENOBUFS,
        forget_source: false,
    };
    assert!(messages.iter().all(|message| message.outcome == dropped));
    assert_eq!(report.dropped(), 6);
}

/// An ICMP answer to an earlier datagram shows as an error of this one, once.
#[test]
fn pending_errors_are_read_past() {
    let data = vec![0; 100];
    for errno in [
        libc::ECONNREFUSED,
        libc::EHOSTUNREACH,
        libc::EPROTO,
        libc::EINTR,
    ] {
        let mut messages = [message(to(1), 0, &data), message(to(2), 0, &data)];
        let mut kernel = FakeKernel::new().script([errno, 0, errno, errno]);
        let report = send(&mut kernel, &mut messages);
        assert_eq!(messages[0].outcome, Outcome::Sent);
        assert!(matches!(
            messages[1].outcome,
            Outcome::Sent | Outcome::Dropped { .. }
        ));
        assert_eq!(report.datagrams + report.dropped(), 2);
        assert!(report.retries >= 1);
    }
}

#[test]
fn errors_that_stay_drop_one_datagram_each() {
    let data = vec![0; 300];
    for errno in [
        libc::EPERM,
        libc::EACCES,
        libc::EMSGSIZE,
        libc::EIO,
        libc::EBADF,
    ] {
        let mut messages = [message(to(1), 0, &data), message(to(2), 0, &data)];
        let mut kernel = FakeKernel::new().script([errno]);
        let report = send(&mut kernel, &mut messages);
        let dropped = Outcome::Dropped {
            datagrams: 1,
            errno,
            forget_source: false,
        };
        assert_eq!(
            (messages[0].outcome, messages[1].outcome),
            (dropped, Outcome::Sent)
        );
        assert_eq!(report.drops().next().map(|drop| drop.errno), Some(errno));
        assert!(
            kernel.gso,
            "EIO of a message that is not segmented says nothing about GSO"
        );
    }
}

const ERRORS: [i32; 15] = [
    libc::EIO,
    libc::EINVAL,
    libc::EMSGSIZE,
    libc::ENOBUFS,
    libc::EAGAIN,
    libc::ENOMEM,
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::ENODEV,
    libc::EADDRNOTAVAIL,
    libc::ECONNREFUSED,
    libc::EPERM,
    libc::EINTR,
    libc::EACCES,
    libc::EBADF,
];

#[derive(Clone, Debug)]
struct Plan {
    to: u8,
    v6: bool,
    source: Option<u8>,
    segment_size: usize,
    length: usize,
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let sizes = prop_oneof![Just(0_usize), 1..20_usize, 100..1500_usize];
    let lengths = prop_oneof![0..50_usize, 0..5000_usize, 0..100_000_usize];
    let plan = (
        0..4_u8,
        prop::bool::weighted(0.1),
        prop::option::of(0..3_u8),
        sizes,
        lengths,
    )
        .prop_map(|(to, v6, source, segment_size, length)| {
            // Keeps the number of datagrams per case within bounds.
            let length = if segment_size == 0 {
                length
            } else {
                length.min(segment_size * 300)
            };
            Plan {
                to,
                v6,
                source,
                segment_size,
                length,
            }
        });
    prop::collection::vec(plan, 0..12)
}

fn scripts() -> impl Strategy<Value = Vec<i32>> {
    let step = prop_oneof![3 => Just(0), 2 => prop::sample::select(ERRORS.to_vec())];
    prop::collection::vec(step, 0..60)
}

proptest! {
    /// Whatever the kernel answers: every datagram goes out once or is counted as dropped, in
    /// order, and it ends.
    #[test]
    fn every_datagram_is_sent_once_or_counted(
        plans in plans(),
        script in scripts(),
        appetite in prop::collection::vec(1..20_usize, 0..40),
        narrow in prop::option::of((0..4_u8, 1..1500_usize, any::<bool>())),
        stale in prop::option::of((0..3_u8, 0..3_usize)),
        unreachable in prop::option::of(0..4_u8),
        no_checksum_offload in prop::bool::weighted(0.2),
        gso in any::<bool>(),
        equal_tail in prop::bool::weighted(0.8),
    ) {
        let sources = |source: u8| IpAddr::from([192, 0, 2, source]);
        let data: Vec<Vec<u8>> = plans.iter().map(|plan| vec![0; plan.length]).collect();
        let mut messages: Vec<_> = plans.iter().zip(&data).map(|(plan, data)| {
            let to = if plan.v6 { v6(plan.to.into()) } else { to(plan.to) };
            let message = message(to, plan.segment_size, data);
            match plan.source {
                Some(source) => from(sources(source), message),
                None => message,
            }
        }).collect();
        let mut kernel = FakeKernel { appetite, no_checksum_offload, gso, equal_tail, ..FakeKernel::new() }.script(script);
        if let Some((last, limit, invalid)) = narrow {
            let errno = if invalid { libc::EINVAL } else { libc::EMSGSIZE };
            kernel.route_limits.insert(to(last), (limit, errno));
        }
        if let Some((source, error)) = stale {
            let errors = [libc::ENETUNREACH, libc::EINVAL, libc::ENODEV];
            kernel.stale_sources.insert(sources(source), errors[error]);
        }
        kernel.unreachable.extend(unreachable.map(to));

        let report = send(&mut kernel, &mut messages);

        // Messages lie apart in memory, so address and length identify a datagram (empty ones
        // excepted, which are counted below).
        let sent: Vec<_> = kernel.sent.iter().filter(|s| s.1 > 0).map(|s| (s.0, s.1)).collect();
        let mut expected = datagrams(&messages).into_iter();
        for datagram in &sent {
            prop_assert!(expected.any(|next| next == *datagram), "sent twice, out of order or cut");
        }
        let mut dropped = 0;
        for message in &messages {
            let total = datagrams(&[*message]).len();
            let range = message.data.as_ptr_range();
            let range = range.start.addr()..range.end.addr();
            let mine = sent.iter().filter(|sent| range.contains(&sent.0)).count();
            match message.outcome {
                Outcome::Pending => prop_assert!(false, "left pending"),
                Outcome::Sent | Outcome::SentAfterForgettingSource => {
                    prop_assert!(message.data.is_empty() || mine == total);
                }
                Outcome::Dropped { datagrams, .. } => {
                    prop_assert!(message.data.is_empty() || mine + datagrams as usize == total);
                    dropped += u64::from(datagrams);
                }
            }
            prop_assert!(message.source.is_some() || message.outcome != Outcome::SentAfterForgettingSource);
        }
        prop_assert_eq!(report.dropped(), dropped);
        prop_assert_eq!(usize_of(report.datagrams), kernel.sent.len());
        prop_assert_eq!(usize_of(report.datagrams + report.dropped()), datagrams(&messages).len());
        prop_assert_eq!(usize_of(report.gso_sends), kernel.segmented);
        prop_assert_eq!(usize_of(report.syscalls), kernel.calls);
    }
}
