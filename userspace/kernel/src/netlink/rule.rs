//! Policy routing rules: which table a packet is routed by (`include/uapi/linux/fib_rules.h`).

use std::io;

use super::codec::{Attributes, Message, Request, read_u32};
use super::interface::{CREATE, change};
use super::socket::RouteSocket;
use crate::sys::narrow;

/// Length of `struct fib_rule_hdr`.
const RULE_HEADER: usize = 12;
/// `FR_ACT_TO_TBL`: look the packet up in a table.
const TO_TABLE: u8 = 1;
/// `FIB_RULE_INVERT`: the rule is for packets that do not match.
const INVERT: u32 = 2;
/// `FRA_PRIORITY`.
const PRIORITY: u16 = 6;
/// `FRA_FWMARK`.
const MARK: u16 = 10;
/// `FRA_SUPPRESS_PREFIXLEN`.
const SUPPRESS_PREFIX_LENGTH: u16 = 14;
/// `FRA_TABLE`.
const TABLE: u16 = 15;
/// The kernel's answer where no suppressing was asked for.
const NO_SUPPRESSING: u32 = u32::MAX;

/// What a rule asks of a packet, and what it does then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// For IPv4, or for IPv6.
    pub ipv4: bool,
    /// The table packets are looked up in.
    pub table: u32,
    /// Only packets that do **not** carry this firewall mark.
    pub unless_mark: Option<u32>,
    /// Routes found with a prefix of at most this many bits do not count.
    pub suppress_prefix_length: Option<u32>,
}

/// Adds a rule before all those there are, as `ip rule add` does.
///
/// # Errors
/// `EEXIST` when there is the same; when netlink cannot be used.
pub fn add_rule(rule: &Rule) -> io::Result<()> {
    change(libc::RTM_NEWRULE, CREATE, &header(rule), |request| {
        attributes(request, rule)
    })
}

/// Deletes the rule that has this priority and says the same.
///
/// # Errors
/// `ENOENT` when there is none; when netlink cannot be used.
pub fn delete_rule(rule: &Rule, priority: u32) -> io::Result<()> {
    change(
        libc::RTM_DELRULE,
        libc::NLM_F_ACK,
        &header(rule),
        |request| attributes(request, rule).attribute(PRIORITY, &priority.to_ne_bytes()),
    )
}

/// The rules of one family that look packets up in a table, with their priorities, first the rule
/// that is asked first. Of conditions this knows those of [`Rule`] alone; rules with others are
/// left out.
///
/// # Errors
/// When netlink cannot be used.
pub fn rules(ipv4: bool) -> io::Result<Vec<(u32, Rule)>> {
    let mut header = [0; RULE_HEADER];
    header[0] = family(ipv4);
    RouteSocket::dump(libc::RTM_GETRULE, &header, |message| read(message, ipv4))
}

/// struct fib_rule_hdr: family, destination bits, source bits, TOS, table, two reserved, action,
/// flags (4).
fn header(rule: &Rule) -> [u8; RULE_HEADER] {
    let mut header = [0; RULE_HEADER];
    header[0] = family(rule.ipv4);
    header[4] = u8::try_from(rule.table).unwrap_or(libc::RT_TABLE_UNSPEC);
    header[7] = TO_TABLE;
    if rule.unless_mark.is_some() {
        header[8..].copy_from_slice(&INVERT.to_ne_bytes());
    }
    header
}

fn attributes(request: Request, rule: &Rule) -> Request {
    let mut request = request.attribute(TABLE, &rule.table.to_ne_bytes());
    if let Some(mark) = rule.unless_mark {
        request = request.attribute(MARK, &mark.to_ne_bytes());
    }
    if let Some(length) = rule.suppress_prefix_length {
        request = request.attribute(SUPPRESS_PREFIX_LENGTH, &length.to_ne_bytes());
    }
    request
}

fn read(message: &Message<'_>, ipv4: bool) -> Option<(u32, Rule)> {
    if message.kind != libc::RTM_NEWRULE {
        return None;
    }
    let (header, attributes) = message.body(RULE_HEADER)?;
    let conditions = header[1..4].iter().any(|byte| *byte != 0) || selects_more(&attributes);
    if header[0] != family(ipv4) || header[7] != TO_TABLE || conditions {
        return None;
    }
    let inverted = read_u32(&header[8..])? & INVERT != 0;
    let number = |kind| attributes.value_of(kind).and_then(read_u32);
    let mark = number(MARK);
    if inverted != mark.is_some() {
        return None;
    }
    let rule = Rule {
        ipv4,
        table: number(TABLE).unwrap_or(header[4].into()),
        unless_mark: mark,
        suppress_prefix_length: number(SUPPRESS_PREFIX_LENGTH)
            .filter(|length| *length != NO_SUPPRESSING),
    };
    Some((number(PRIORITY).unwrap_or(0), rule))
}

/// Whether the rule has conditions on interfaces, users, protocols, ports, flow labels or DSCP.
fn selects_more(attributes: &Attributes<'_>) -> bool {
    const OTHERS: [u16; 11] = [3, 11, 12, 17, 19, 20, 22, 23, 24, 25, 26];
    /// `FRA_SUPPRESS_IFGROUP`, which is always there: -1 for none.
    const SUPPRESS_GROUP: u16 = 13;
    OTHERS
        .iter()
        .any(|kind| attributes.value_of(*kind).is_some())
        || attributes
            .value_of(SUPPRESS_GROUP)
            .and_then(read_u32)
            .is_some_and(|group| group != u32::MAX)
}

fn family(ipv4: bool) -> u8 {
    let family = if ipv4 { libc::AF_INET } else { libc::AF_INET6 };
    narrow(family).to_le_bytes()[0]
}
