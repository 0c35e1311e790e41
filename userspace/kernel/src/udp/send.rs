//! Sending many messages with one call, and recovering when the kernel refuses one.
//!
//! `sendmmsg` stops at the first message it cannot send. It then reports how many went before, and
//! only if that is none, the error. So an error is always about the first message of a call; all
//! recovery is: deal with that one, and go on exactly where it stands.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;

use super::memory::SegmentLimits;
use super::report::{Outcome, SendReport};
use super::socket::{Family, UdpSocket};
use super::transmit::{BATCH, Entry, Headers, Kernel, Shortage, Transmitter};

/// `UDP_MAX_SEGMENTS` before Linux 6.9; later kernels take twice as many.
const MAX_SEGMENTS: usize = 64;
/// 65,535 less IPv4 and UDP headers.
const MAX_DATAGRAM_V4: usize = 65_507;
/// 65,535 less IPv6 and UDP headers.
const MAX_DATAGRAM_V6: usize = 65_487;

/// How long one batch may wait for room in all. A data thread must not stand still for long, and
/// the packets behind would only grow old.
const PATIENCE: Duration = Duration::from_millis(5);

/// One message: a datagram, or several to the same place.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// From which local address; the interface counts for IPv6 link-local ones only.
    pub source: Option<(IpAddr, u32)>,
    /// ECN field of the outer header, 0 to 3.
    pub ecn: u8,
    /// Forbid routers to fragment its first datagram: one that is narrower then tells its MTU.
    pub probe: bool,
    /// Length of each datagram but the last, in bytes; 0 if `data` is a single one.
    pub segment_size: usize,
    /// The datagrams, one after the other.
    pub data: &'a [u8],
    /// What became of it; set by [`SendBatch::send`].
    pub outcome: Outcome,
}

impl Outgoing<'_> {
    /// Length of the datagrams, never 0.
    fn step(&self) -> usize {
        if self.segment_size == 0 {
            self.data.len().max(1)
        } else {
            self.segment_size
        }
    }

    /// Datagrams in `length` bytes of it.
    fn datagrams(&self, length: usize) -> u32 {
        u32::try_from(length.div_ceil(self.step()).max(1)).unwrap_or(u32::MAX)
    }
}

/// Storage to send with, made once and used for every batch.
#[derive(Debug)]
pub struct SendBatch {
    headers: Headers,
    limits: SegmentLimits,
}

impl Default for SendBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl SendBatch {
    /// Allocates the storage.
    #[must_use]
    pub fn new() -> Self {
        Self {
            headers: Headers::new(),
            limits: SegmentLimits::default(),
        }
    }

    /// Sends `messages` in order and sets the outcome of each.
    ///
    /// Each datagram is handed to the kernel exactly once or counted as dropped. A message that
    /// cannot be sent does not touch the others. May wait a few milliseconds for room.
    pub fn send(&mut self, socket: &UdpSocket, messages: &mut [Outgoing<'_>]) -> SendReport {
        let mut kernel = Kernel {
            socket,
            headers: &mut self.headers,
        };
        send_all(&mut kernel, &mut self.limits, messages)
    }
}

/// [`SendBatch::send`] over any kernel.
fn send_all<T: Transmitter>(
    transmitter: &mut T,
    limits: &mut SegmentLimits,
    messages: &mut [Outgoing<'_>],
) -> SendReport {
    let mut run = Run {
        transmitter,
        limits,
        messages,
        current: 0,
        offset: 0,
        progress: Progress::default(),
        stale: None,
        patience: None,
        report: SendReport::default(),
    };
    run.run();
    run.report
}

/// What has happened to the current message.
#[derive(Debug, Default)]
struct Progress {
    /// The kernel would not cut it up.
    packet_by_packet: bool,
    /// It has not been shown yet that packet by packet works better.
    suspicion: bool,
    /// It is sent without its source address.
    sourceless: bool,
    /// Its first datagram was tried with "don't fragment".
    probed: bool,
    /// The next datagram failed once already, for a reason that may be somebody else's.
    retried: bool,
    sent: u32,
    dropped: u32,
    errno: i32,
}

/// A part of a message, as given to the kernel.
#[derive(Clone, Copy, Debug)]
struct Part<'a> {
    entry: Entry<'a>,
    sourceless: bool,
}

/// One batch on its way. All messages before `current`, and `offset` bytes of that one, are done.
struct Run<'r, 'a, T> {
    transmitter: &'r mut T,
    limits: &'r mut SegmentLimits,
    messages: &'r mut [Outgoing<'a>],
    current: usize,
    offset: usize,
    progress: Progress,
    /// A source that was shown to be stale, and towards whom.
    stale: Option<(IpAddr, SocketAddr)>,
    /// Until when to wait for room.
    patience: Option<Instant>,
    report: SendReport,
}

impl<'a, T: Transmitter> Run<'_, 'a, T> {
    fn run(&mut self) {
        let mut parts = ArrayVec::<Part<'a>, BATCH>::new();
        let mut entries = ArrayVec::<Entry<'a>, BATCH>::new();
        while let Some(message) = self.messages.get(self.current) {
            if !self.is_of_our_family(message) {
                let rest = message.data.len() - self.offset;
                self.lose(rest, libc::EAFNOSUPPORT);
                continue;
            }
            parts.clear();
            self.plan(&mut parts);
            entries.clear();
            entries.extend(parts.iter().map(|part| part.entry));
            self.report.syscalls += 1;
            let probing = self.probes();
            self.progress.probed |= probing;
            match self.transmitter.transmit(&entries, probing) {
                Ok(0) => self.refused(&entries[0], libc::EAGAIN),
                Ok(count) => {
                    self.report.probes += u64::from(probing);
                    parts.iter().take(count).for_each(|part| self.sent(part));
                }
                Err(error) => self.refused(&entries[0], errno(&error)),
            }
        }
    }

    fn is_of_our_family(&self, message: &Outgoing<'_>) -> bool {
        message.to.is_ipv4() == (self.transmitter.family() == Family::V4)
    }

    /// Whether what comes next is a datagram to be sent with "don't fragment". Tried once.
    fn probes(&self) -> bool {
        let message = self.messages.get(self.current);
        message.is_some_and(|message| message.probe)
            && self.offset == 0
            && !self.progress.probed
            && self.transmitter.can_probe()
    }

    /// Lists what comes next, as much as one call takes: at least one part.
    fn plan(&mut self, parts: &mut ArrayVec<Part<'a>, BATCH>) {
        let mut offset = self.offset;
        let probing = self.probes();
        for index in self.current..self.messages.len() {
            let message = self.messages[index];
            let first = index == self.current;
            if !self.is_of_our_family(&message) || !first && message.probe {
                return;
            }
            let sourceless = first && self.progress.sourceless
                || message.source.map(|(source, _)| (source, message.to)) == self.stale
                    && self.stale.is_some();
            let step = message.step();
            let whole = self.segments(
                &message,
                first && (probing || self.progress.packet_by_packet),
            );
            loop {
                if parts.is_full() {
                    return;
                }
                let left = message.data.len() - offset;
                let mut length = left.min(whole.map_or(step, |segments| segments * step));
                if length.is_multiple_of(step) && !self.transmitter.equal_tail() {
                    length = length.min(step);
                }
                let segment_size = whole
                    .filter(|_| length > step)
                    .and_then(|_| u16::try_from(step).ok());
                let entry = Entry {
                    to: message.to,
                    source: message.source.filter(|_| !sourceless),
                    ecn: message.ecn,
                    segment_size,
                    data: &message.data[offset..offset + length],
                };
                parts.push(Part { entry, sourceless });
                if probing {
                    return;
                }
                offset += length;
                if offset >= message.data.len() {
                    break;
                }
            }
            offset = 0;
        }
    }

    /// How many datagrams of `message` the kernel may be given at once to cut up; `None` for one
    /// by one.
    fn segments(&mut self, message: &Outgoing<'_>, packet_by_packet: bool) -> Option<usize> {
        let step = message.step();
        if packet_by_packet || message.data.len() <= step || !self.transmitter.gso() {
            return None;
        }
        let now = || self.transmitter.now();
        if self.limits.refuses(&message.to, step, now) {
            return None;
        }
        let largest = if message.to.is_ipv4() {
            MAX_DATAGRAM_V4
        } else {
            MAX_DATAGRAM_V6
        };
        Some((largest / step).min(MAX_SEGMENTS)).filter(|segments| *segments > 1)
    }

    fn sent(&mut self, part: &Part<'a>) {
        let Some(message) = self.messages.get(self.current) else {
            return;
        };
        let entry = &part.entry;
        let datagrams = message.datagrams(entry.data.len());
        self.report.datagrams += u64::from(datagrams);
        self.report.messages += 1;
        self.report.gso_sends += u64::from(entry.segment_size.is_some());
        self.progress.sent += datagrams;
        self.progress.sourceless = part.sourceless;
        if part.sourceless {
            self.stale = message.source.map(|(source, _)| (source, message.to));
        }
        if self.progress.suspicion && entry.segment_size.is_none() {
            self.progress.suspicion = false;
            self.limits
                .remember(message.to, message.step(), self.transmitter.now());
        }
        self.advance(entry.data.len());
    }

    /// The kernel would not take `entry`. Either something is changed that has not been tried for
    /// this message yet, or it is dropped; so this ends.
    fn refused(&mut self, entry: &Entry<'_>, errno: i32) {
        let segmented = entry.segment_size.is_some();
        match errno {
            libc::EAGAIN if self.wait(Shortage::Buffer) => {}
            libc::ENOBUFS | libc::ENOMEM if self.wait(Shortage::Queue) => {}
            // No checksum offload on the way out: that will not change.
            libc::EIO if segmented && self.transmitter.gso() => {
                self.transmitter.disable_gso();
                self.report.gso_disabled += 1;
            }
            // The outer packet exceeds the route MTU. Also a stale source, see below.
            libc::EINVAL | libc::EMSGSIZE if segmented => {
                self.progress.packet_by_packet = true;
                self.progress.suspicion = true;
                self.report.gso_refused += 1;
            }
            _ if blames_source(errno) && entry.source.is_some() => {
                self.progress.sourceless = true;
                self.report.sources_forgotten += 1;
                // A packet on its own was refused as well: it was not the cutting up.
                if self.progress.suspicion {
                    self.progress.suspicion = false;
                    self.progress.packet_by_packet = false;
                }
            }
            _ if may_be_of_an_earlier_send(errno) && !self.progress.retried => {
                self.progress.retried = true;
                self.report.retries += 1;
            }
            _ => self.lose(entry.data.len(), errno),
        }
    }

    /// Waits for room; false when this batch has waited long enough.
    fn wait(&mut self, shortage: Shortage) -> bool {
        let now = self.transmitter.now();
        let until = *self.patience.get_or_insert(now + PATIENCE);
        let left = until.saturating_duration_since(now);
        if left.is_zero() {
            return false;
        }
        self.report.waits += 1;
        self.transmitter.wait(shortage, left);
        true
    }

    /// Drops the next `length` bytes of the current message.
    fn lose(&mut self, length: usize, errno: i32) {
        let Some(message) = self.messages.get(self.current) else {
            return;
        };
        let datagrams = message.datagrams(length);
        self.report.count_drop(errno, datagrams.into());
        self.progress.dropped += datagrams;
        self.progress.errno = errno;
        self.advance(length);
    }

    /// Moves on by `length` bytes, and to the next message at the end of this one.
    fn advance(&mut self, length: usize) {
        self.progress.retried = false;
        self.offset += length;
        let Some(message) = self.messages.get_mut(self.current) else {
            return;
        };
        if self.offset < message.data.len() {
            return;
        }
        let Progress {
            sourceless,
            sent,
            dropped,
            errno,
            ..
        } = std::mem::take(&mut self.progress);
        message.outcome = match (dropped, sourceless) {
            (0, false) => Outcome::Sent,
            (0, true) => Outcome::SentAfterForgettingSource,
            (datagrams, sourceless) => Outcome::Dropped {
                datagrams,
                errno,
                forget_source: sourceless && sent > 0,
            },
        };
        self.current += 1;
        self.offset = 0;
    }
}

/// Errors a source address or interface that is no longer ours gives (seen on Linux 6.18):
/// `ENETUNREACH` for IPv4, `EINVAL` for IPv6, `ENODEV` when the interface is gone.
fn blames_source(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENETUNREACH | libc::EINVAL | libc::ENODEV | libc::EADDRNOTAVAIL
    )
}

/// Errors an ICMP answer to an earlier datagram leaves on the socket; reading them clears them.
fn may_be_of_an_earlier_send(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNREFUSED
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::ENOPROTOOPT
            | libc::EPROTO
            | libc::EINTR
    )
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests;
