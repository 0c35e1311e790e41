//! Groups of packets with one length, gathered out of a batch of any lengths.

use arrayvec::ArrayVec;

use super::Record;

/// Lengths gathered at the same time. A power of two; real traffic has few lengths in one batch, and one that finds
/// its place taken only ends a group early.
const PLACES: usize = 16;

struct Gathering<const LANES: usize> {
    len: usize,
    /// Places in the batch, ascending.
    members: ArrayVec<usize, LANES>,
}

/// Calls `work` with every record in one group or another: up to `LANES` records whose bodies are equally long. Takes
/// time in proportion to the batch, moves no record and allocates nothing.
pub(super) fn by_length<const LANES: usize>(
    records: &mut [Record<'_>],
    mut work: impl FnMut(&mut [&mut Record<'_>]),
) {
    let mut gatherings: [Gathering<LANES>; PLACES] = std::array::from_fn(|_| Gathering {
        len: 0,
        members: ArrayVec::new(),
    });
    for index in 0..records.len() {
        let len = records[index].body.len();
        // Sealed bodies are usually multiples of 16 long, so that the low bits alone say little.
        let gathering = &mut gatherings[(len ^ (len >> 4)) % PLACES];
        if gathering.len != len || gathering.members.is_full() {
            gathering.finish(records, &mut work);
            gathering.len = len;
        }
        gathering.members.push(index);
    }
    for mut gathering in gatherings {
        gathering.finish(records, &mut work);
    }
}

impl<const LANES: usize> Gathering<LANES> {
    fn finish(
        &mut self,
        records: &mut [Record<'_>],
        work: &mut impl FnMut(&mut [&mut Record<'_>]),
    ) {
        if self.members.is_empty() {
            return;
        }
        let mut group: ArrayVec<&mut Record<'_>, LANES> = ArrayVec::new();
        let mut rest = records.iter_mut();
        let mut passed = 0;
        for index in self.members.drain(..) {
            group.extend(rest.nth(index - passed));
            passed = index + 1;
        }
        work(&mut group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_in_one_group_of_its_length() {
        // Lengths that share a place, long runs, and runs that are interrupted.
        for seed in 0..200usize {
            let lengths: Vec<usize> = (0..seed)
                .map(|n| match seed % 4 {
                    0 => 100,
                    1 => (n * seed) % 40 * 17,
                    2 => [64, 1440][usize::from(n % 5 == 0)],
                    _ => n,
                })
                .collect();
            let mut bodies: Vec<Vec<u8>> = lengths.iter().map(|len| vec![0; *len]).collect();
            let mut records: Vec<_> = (0..)
                .zip(&mut bodies)
                .map(|(counter, body)| super::super::record(counter, body))
                .collect();
            let mut groups = 0;
            by_length::<8>(&mut records, |group| {
                groups += 1;
                assert!(!group.is_empty() && group.len() <= 8);
                for record in group.iter_mut() {
                    assert!(!record.authentic, "seen twice");
                    record.authentic = true;
                }
                assert!(
                    group
                        .windows(2)
                        .all(|two| two[0].body.len() == two[1].body.len())
                );
                assert!(group.windows(2).all(|two| two[0].counter < two[1].counter));
            });
            assert!(records.iter().all(|record| record.authentic));
            if seed % 4 == 0 {
                assert_eq!(groups, seed.div_ceil(8), "full groups first");
            }
        }
    }
}
