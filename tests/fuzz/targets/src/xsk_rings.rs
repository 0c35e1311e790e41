//! AF_XDP rings whose other end, the kernel's, is honest for a while and then writes anything.

use std::collections::BTreeSet;
use std::ops::Range;

use adit_kernel::fuzzing::{ReceivingRings, TransmittingRings};
use adit_kernel::xsk::FrameSize;

use crate::script::Script;

/// Entries of each ring: fewer than a receiver takes at once, or more.
const CAPACITIES: [u32; 3] = [4, 32, 512];
const STEPS: usize = 400;

/// The bytes are steps of both sides.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let capacity = CAPACITIES[script.choice(CAPACITIES.len())];
    let first = [0, capacity, 3 * capacity][script.choice(3)];
    let frames = first..first + capacity;
    let size = [FrameSize::Bytes2048, FrameSize::Bytes4096][script.choice(2)];
    let start = [0, u32::MAX - 5][script.choice(2)];
    if script.flag() {
        receive(&mut script, frames, size, start);
    } else {
        transmit(&mut script, frames, size, start);
    }
}

/// Offset and length that a descriptor may carry.
fn descriptor(script: &mut Script<'_>, frames: &Range<u32>, size: FrameSize) -> (u64, u32) {
    let size = u64::from(size.bytes());
    let offset = match script.choice(3) {
        0 => script.u64(),
        1 => u64::from(script.byte()) * size,
        _ => {
            let frame = u64::from(frames.start) + u64::from(script.byte());
            frame * size + u64::from(script.u16())
        }
    };
    let length = if script.flag() {
        script.u32()
    } else {
        script.u16().into()
    };
    (offset, length)
}

fn receive(script: &mut Script<'_>, frames: Range<u32>, size: FrameSize, start: u32) {
    let bytes = size.bytes() as usize;
    let ours = frames.start as usize * bytes..frames.end as usize * bytes;
    let mut rings = ReceivingRings::new(frames.clone(), size, start);
    let count = frames.end - frames.start;
    assert_eq!(rings.filled().len(), count as usize);
    // The kernel's cursors.
    let (mut produced, mut consumed) = (start, start);
    let mut held = BTreeSet::new();
    let mut refused = 0;
    for _ in 0..STEPS {
        if script.is_empty() {
            break;
        }
        match script.choice(8) {
            0..=2 => {
                // An honest kernel: a frame from the fill ring, with a packet in it.
                let filled = rings.filled();
                let Some(offset) = filled.first() else {
                    continue;
                };
                consumed = consumed.wrapping_add(1);
                rings.consume(consumed);
                let within = u64::from(script.byte());
                rings.write(produced, offset + within, script.byte().into());
                produced = produced.wrapping_add(1);
                rings.produce(produced);
            }
            3 => {
                let (offset, length) = descriptor(script, &frames, size);
                rings.write(produced.wrapping_add(script.byte().into()), offset, length);
            }
            4 => {
                produced = cursor(script, produced);
                rings.produce(produced);
            }
            5 => {
                consumed = cursor(script, consumed);
                rings.consume(consumed);
            }
            6 => {
                let taken = rings.take();
                assert!(taken.len() <= adit_kernel::xsk::BATCH);
                for (offset, length) in taken {
                    assert!(ours.contains(&offset), "memory of somebody else");
                    assert!(offset % bytes + length <= bytes, "beyond the frame");
                    assert!(held.insert(offset / bytes), "a frame that is ours already");
                }
                assert!(rings.bad() >= refused);
                assert!(
                    rings.bad() - refused <= u64::from(count),
                    "more than the ring holds"
                );
                refused = rings.bad();
            }
            _ => {
                rings.give_back();
                held.clear();
            }
        }
    }
}

fn transmit(script: &mut Script<'_>, frames: Range<u32>, size: FrameSize, start: u32) {
    let bytes = size.bytes() as usize;
    let ours = frames.start as usize * bytes..frames.end as usize * bytes;
    let count = frames.end - frames.start;
    let mut rings = TransmittingRings::new(frames.clone(), size, start);
    let (mut produced, mut consumed) = (start, start);
    // What the slots of the completion ring say, and the frames that are on their way.
    let mut completions = vec![0_u64; count as usize];
    let mut away = BTreeSet::new();
    let mut refused = 0;
    let mut honest = true;
    for _ in 0..STEPS {
        if script.is_empty() {
            break;
        }
        match script.choice(8) {
            0 | 1 => {
                let length = script.below(bytes + 2) as u32;
                let frame = rings.send(length);
                if let Some(offset) = frame
                    && (1..=size.bytes()).contains(&length)
                {
                    assert!(ours.contains(&offset) && offset % bytes == 0);
                    assert!(away.insert(offset / bytes), "a frame that is on its way");
                }
            }
            2 => rings.publish(),
            3 => {
                // An honest kernel: it has read a packet and sent it.
                if let Some((offset, length)) = rings.sent().first() {
                    let sendable = (1..=size.bytes()).contains(length);
                    assert!(sendable || !honest, "{length} bytes at {offset}");
                    consumed = consumed.wrapping_add(1);
                    rings.consume(consumed);
                    rings.complete(produced, *offset);
                    completions[(produced % count) as usize] = *offset;
                    produced = produced.wrapping_add(1);
                    rings.produce(produced);
                }
            }
            4 => {
                let (offset, _) = descriptor(script, &frames, size);
                let slot = produced.wrapping_add(script.byte().into());
                rings.complete(slot, offset);
                completions[(slot % count) as usize] = offset;
            }
            5 => {
                produced = cursor(script, produced);
                rings.produce(produced);
            }
            6 => {
                honest = false;
                consumed = cursor(script, consumed);
                rings.consume(consumed);
            }
            _ => {
                rings.reclaim();
                for offset in &completions {
                    away.remove(&((*offset / bytes as u64) as usize));
                }
                assert!(rings.bad() >= refused);
                assert!(
                    rings.bad() - refused <= u64::from(count),
                    "more than the ring holds"
                );
                refused = rings.bad();
            }
        }
        assert!(rings.room() <= count as usize);
        rings.pending();
    }
}

/// A step ahead or back, or anywhere.
fn cursor(script: &mut Script<'_>, from: u32) -> u32 {
    match script.choice(3) {
        0 => from.wrapping_add(script.byte().into()),
        1 => from.wrapping_sub(script.byte().into()),
        _ => script.u32(),
    }
}
