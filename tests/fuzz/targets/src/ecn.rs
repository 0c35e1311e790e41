//! Congestion marks: RFC 6040 on any bytes.

use adit_packet::ecn::{CE, ECT_0, ECT_1, NOT_ECT, Verdict, decapsulate, encapsulate};

use crate::wire::naive_sum;

/// The first byte is the outer traffic class, the others are the inner packet.
pub fn run(bytes: &[u8]) {
    let Some((outer, packet)) = bytes.split_first() else {
        return;
    };
    let inner = encapsulate(packet);
    assert!(inner <= CE);
    let mut after = packet.to_vec();
    let verdict = decapsulate(*outer, &mut after);
    assert_eq!(after.len(), packet.len());
    let version = packet.first().map_or(0, |first| first >> 4);
    let whole = packet.len() >= if version == 4 { 20 } else { 40 };
    let expected = match (inner, outer & CE) {
        (NOT_ECT, CE) => {
            assert_eq!((verdict, &after[..]), (Verdict::Drop, packet));
            return;
        }
        (ECT_0 | ECT_1, CE) => CE,
        (ECT_0, ECT_1) => ECT_1,
        (inner, _) => inner,
    };
    assert_eq!(verdict, Verdict::Keep);
    if !whole || !matches!(version, 4 | 6) {
        assert_eq!(after, packet);
        return;
    }
    assert_eq!(encapsulate(&after), expected);
    // Nothing else changes, and a header checksum that was right stays right.
    let mut undone = after.clone();
    undone[1] = packet[1];
    if version == 4 {
        undone[10..12].copy_from_slice(&packet[10..12]);
        let right = |packet: &[u8]| naive_sum(&[&packet[..20]]) == 0xffff;
        assert!(!right(packet) || right(&after));
    }
    assert_eq!(undone, packet);
    if expected == inner {
        assert_eq!(after, packet);
    }
}
