//! Wycheproof's vectors for ChaCha20-Poly1305, with their associated data and nonces of twelve arbitrary bytes, neither
//! of which WireGuard has: hence below the public interface.

#![allow(clippy::unwrap_used, reason = "helper functions of tests")]

use wycheproof::TestResult;
use wycheproof::aead::{Test, TestName, TestSet};

use super::lanes::Common;
use super::{Backend, KEY_LEN, Record, TAG_LEN, avx2, aws_lc, portable, record, wide};

/// Seals or opens a group of packets of one length.
type Run<'a> = &'a dyn Fn(Common<'_>, &mut [&mut Record<'_>]);

struct Vector<'a> {
    key: [u8; KEY_LEN],
    nonce: [u8; 12],
    test: &'a Test,
}

impl Vector<'_> {
    fn sealed(&self) -> Vec<u8> {
        [&self.test.ct[..], &self.test.tag[..]].concat()
    }

    fn is_valid(&self) -> bool {
        match self.test.result {
            TestResult::Valid => true,
            TestResult::Invalid => false,
            TestResult::Acceptable => panic!("not a verdict"),
        }
    }

    /// One packet at a time.
    fn single(
        &self,
        seal: impl Fn([u8; 12], &[u8], &mut [u8], &mut [u8; TAG_LEN]) -> bool,
        open: impl Fn([u8; 12], &[u8], &mut [u8], &mut [u8; TAG_LEN]) -> bool,
    ) {
        let id = self.test.tc_id;
        let (mut text, mut tag) = (self.test.pt.to_vec(), [0; TAG_LEN]);
        assert!(seal(self.nonce, &self.test.aad, &mut text, &mut tag));
        assert_eq!(
            [&text[..], &tag].concat() == self.sealed(),
            self.is_valid(),
            "{id}"
        );
        let mut text = self.test.ct.to_vec();
        let mut tag = self.test.tag[..].try_into().unwrap();
        let authentic = open(self.nonce, &self.test.aad, &mut text, &mut tag);
        assert_eq!(authentic, self.is_valid(), "{id}");
        assert!(!authentic || text == self.test.pt[..], "{id}");
    }

    /// In every lane of a group, among packets with other counters and texts; and alone.
    fn lanes(&self, lanes: usize, seal: Run<'_>, open: Run<'_>) {
        let salt = u32::from_le_bytes(self.nonce[..4].try_into().unwrap());
        let counter = u64::from_le_bytes(self.nonce[4..].try_into().unwrap());
        let common = Common {
            salt,
            associated_data: &self.test.aad,
        };
        let run = |run: Run<'_>, packets: usize, lane: usize, body: &[u8]| {
            let mut bodies = vec![vec![0x77; body.len()]; packets];
            bodies[lane].copy_from_slice(body);
            let mut records: Vec<_> = bodies
                .iter_mut()
                .zip(0u64..)
                .map(|(body, at)| record(counter.wrapping_add(at).wrapping_sub(lane as u64), body))
                .collect();
            run(common, &mut records.iter_mut().collect::<Vec<_>>());
            let authentic = records[lane].authentic;
            (authentic, bodies.swap_remove(lane))
        };
        let plain = [&self.test.pt[..], &[0; TAG_LEN]].concat();
        let shapes = (0..lanes)
            .map(|lane| (lanes, lane))
            .chain([(1, 0), (lanes - 1, 2)]);
        for (packets, lane) in shapes {
            let at = format!("{} in lane {lane} of {packets}", self.test.tc_id);
            let (sealed, body) = run(seal, packets, lane, &plain);
            assert!(sealed, "{at}");
            assert_eq!(body == self.sealed(), self.is_valid(), "{at}");
            let (authentic, body) = run(open, packets, lane, &self.sealed());
            assert_eq!(authentic, self.is_valid(), "{at}");
            let text = &body[..self.test.pt.len()];
            assert!(!authentic || *text == self.test.pt[..], "{at}");
            assert!(authentic || body.iter().all(|byte| *byte == 0), "{at}");
        }
    }
}

/// Calls `work` with every vector. Those with nonces of other lengths are left out: there is no way to ask for one.
fn each_vector(mut work: impl FnMut(&Vector<'_>)) {
    let set = TestSet::load(TestName::ChaCha20Poly1305).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in set
        .test_groups
        .iter()
        .filter(|group| group.nonce_size == 96)
    {
        assert_eq!((group.key_size, group.tag_size), (256, 128));
        for test in &group.tests {
            let vector = Vector {
                key: test.key[..].try_into().unwrap(),
                nonce: test.nonce[..].try_into().unwrap(),
                test,
            };
            *[&mut invalid, &mut valid][usize::from(vector.is_valid())] += 1;
            work(&vector);
        }
    }
    assert!(
        valid >= 256 && invalid >= 50,
        "{valid} and {invalid} vectors"
    );
}

#[test]
fn portable_and_aws_lc() {
    each_vector(|vector| {
        let cipher = portable::Cipher::new(&vector.key);
        vector.single(
            |nonce, aad, text, tag| cipher.seal(nonce, aad, text, tag),
            |nonce, aad, text, tag| cipher.open(nonce, aad, text, tag),
        );
        let cipher = aws_lc::Cipher::new(&vector.key).unwrap();
        vector.single(
            |nonce, aad, text, tag| cipher.seal(nonce, aad, text, tag),
            |nonce, aad, text, tag| cipher.open(nonce, aad, text, tag),
        );
    });
}

#[test]
fn eight_lanes() {
    each_vector(|vector| {
        // Without the instructions there is nothing to test.
        let Some(cipher) = avx2::Cipher::new(&vector.key) else {
            assert!(!Backend::Avx2.is_available());
            return;
        };
        vector.lanes(
            avx2::LANES,
            &|common, group| cipher.seal(common, group),
            &|common, group| cipher.open(common, group),
        );
    });
}

#[test]
fn sixteen_lanes() {
    each_vector(|vector| {
        for fused in [false, true] {
            let Some(cipher) = wide::Cipher::new(&vector.key, fused) else {
                continue;
            };
            vector.lanes(
                wide::LANES,
                &|common, group| cipher.seal(common, group),
                &|common, group| cipher.open(common, group),
            );
        }
    });
}

#[test]
fn sixteen_emulated_lanes() {
    each_vector(|vector| {
        for fused in [false, true] {
            let cipher = wide::Emulated::new(&vector.key, fused);
            vector.lanes(
                wide::LANES,
                &|common, group| cipher.seal(common, group),
                &|common, group| cipher.open(common, group),
            );
        }
    });
}
