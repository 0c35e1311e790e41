//! The fastest way for each group of packets: side by side where that is measurably not slower, one by one otherwise.

use std::sync::OnceLock;

use super::groups::by_length;
use super::lanes::Common;
use super::{Backend, KEY_LEN, Record, TAG_LEN, avx2, aws_lc, each, wide};

/// A key, in every form that a group may need.
pub(super) struct Cipher {
    sixteen: Option<wide::Cipher>,
    eight: avx2::Cipher,
    single: aws_lc::Cipher,
}

impl Cipher {
    /// `None` on a processor without AVX2, or if AWS-LC cannot allocate its context.
    pub(super) fn new(key: &[u8; KEY_LEN]) -> Option<Self> {
        // Without IFMA nobody has measured it, and the first processors of that kind slow down for wide multiplications.
        static SIXTEEN: OnceLock<bool> = OnceLock::new();
        let sixteen = *SIXTEEN.get_or_init(|| Backend::Avx512Ifma.self_test());
        Some(Self {
            sixteen: sixteen.then(|| wide::Cipher::new(key, true)).flatten(),
            eight: avx2::Cipher::new(key)?,
            single: aws_lc::Cipher::new(key)?,
        })
    }

    pub(super) fn seal(&self, records: &mut [Record<'_>]) {
        let eight = |group: &mut [&mut Record<'_>]| self.eight.seal(Common::WIREGUARD, group);
        let single = |nonce, text: &mut [u8], tag: &mut [u8; TAG_LEN]| {
            self.single.seal(nonce, &[], text, tag)
        };
        match &self.sixteen {
            Some(sixteen) => by_sixteen(
                records,
                |group| sixteen.seal(Common::WIREGUARD, group),
                eight,
                single,
            ),
            None => by_eight(records, eight, single),
        }
    }

    pub(super) fn open(&self, records: &mut [Record<'_>]) {
        let eight = |group: &mut [&mut Record<'_>]| self.eight.open(Common::WIREGUARD, group);
        let single = |nonce, text: &mut [u8], tag: &mut [u8; TAG_LEN]| {
            self.single.open(nonce, &[], text, tag)
        };
        match &self.sixteen {
            Some(sixteen) => by_sixteen(
                records,
                |group| sixteen.open(Common::WIREGUARD, group),
                eight,
                single,
            ),
            None => by_eight(records, eight, single),
        }
    }
}

fn by_eight(
    records: &mut [Record<'_>],
    eight: impl Fn(&mut [&mut Record<'_>]),
    single: impl Fn([u8; 12], &mut [u8], &mut [u8; TAG_LEN]) -> bool,
) {
    if records.len() < avx2::FEWEST {
        return each(records, single);
    }
    by_length::<{ avx2::LANES }>(records, |group| few(group, &eight, &single));
}

fn by_sixteen(
    records: &mut [Record<'_>],
    sixteen: impl Fn(&mut [&mut Record<'_>]),
    eight: impl Fn(&mut [&mut Record<'_>]),
    single: impl Fn([u8; 12], &mut [u8], &mut [u8; TAG_LEN]) -> bool,
) {
    if records.len() < wide::FEWEST {
        return each(records, single);
    }
    by_length::<{ wide::LANES }>(records, |group| {
        if wide::pays(group.len(), body(group)) {
            return sixteen(group);
        }
        for group in group.chunks_mut(avx2::LANES) {
            few(group, &eight, &single);
        }
    });
}

/// A group for AVX2, or for nobody.
fn few(
    group: &mut [&mut Record<'_>],
    eight: impl Fn(&mut [&mut Record<'_>]),
    single: impl Fn([u8; 12], &mut [u8], &mut [u8; TAG_LEN]) -> bool,
) {
    if avx2::pays(group.len(), body(group)) {
        eight(group);
    } else {
        each(group.iter_mut().map(|record| &mut **record), single);
    }
}

fn body(group: &[&mut Record<'_>]) -> usize {
    group.first().map_or(0, |record| record.body.len())
}
