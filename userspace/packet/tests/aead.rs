//! The AEAD backends against each other, RFC 8439 and vectors for the edges of Poly1305's field.
#![allow(clippy::unwrap_used, reason = "helper functions of tests")]

use adit_packet::aead::{Backend, KEY_LEN, Key, Record, TAG_LEN, open_batch, seal_batch};

fn noise(seed: usize, len: usize) -> Vec<u8> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            state.to_be_bytes()[0]
        })
        .collect()
}

fn key(seed: usize) -> [u8; KEY_LEN] {
    noise(seed, KEY_LEN).try_into().unwrap()
}

fn record(counter: u64, body: &mut [u8]) -> Record<'_> {
    Record {
        counter,
        body,
        authentic: false,
    }
}

/// Seals or opens these (counter, body) pairs as one batch.
fn run(
    batch: fn(&Key, &mut [Record<'_>]),
    key: &Key,
    packets: &[(u64, Vec<u8>)],
) -> Vec<(bool, Vec<u8>)> {
    let mut bodies: Vec<_> = packets.to_vec();
    let mut records: Vec<_> = bodies
        .iter_mut()
        .map(|(counter, body)| record(*counter, body))
        .collect();
    batch(key, &mut records);
    let verdicts: Vec<_> = records.iter().map(|record| record.authentic).collect();
    verdicts
        .into_iter()
        .zip(bodies.into_iter().map(|(_, body)| body))
        .collect()
}

fn plaintext(seed: usize, len: usize) -> Vec<u8> {
    [noise(seed, len), vec![0xaa; TAG_LEN]].concat()
}

/// The backends this machine has.
fn backends() -> Vec<Backend> {
    let mut backends = Backend::ALL.to_vec();
    backends.retain(|backend| Key::new(*backend, &key(0)).backend() == *backend);
    backends
}

#[test]
fn every_backend_passes_its_self_test_and_has_a_name() {
    for backend in Backend::ALL {
        let here = has(backend);
        assert_eq!(backend.self_test(), here, "{backend}");
        assert_eq!(backends().contains(&backend), here, "{backend}");
        assert_eq!(Backend::from_name(backend.name()), Some(backend));
    }
    assert_eq!(Backend::from_name("rot13"), None);
    let best = [Backend::AwsLcRs, Backend::Auto][usize::from(has(Backend::Auto))];
    assert_eq!(Backend::detect(), best);
    assert_eq!(Backend::rejected().count(), 0);
}

/// Whether the processor has what the backend needs.
#[cfg(target_arch = "x86_64")]
fn has(backend: Backend) -> bool {
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl");
    match backend {
        Backend::Avx512Ifma => avx512 && is_x86_feature_detected!("avx512ifma"),
        Backend::Avx512 => avx512,
        Backend::Avx2 | Backend::Auto => is_x86_feature_detected!("avx2"),
        _ => true,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has(backend: Backend) -> bool {
    matches!(backend, Backend::AwsLcRs | Backend::Portable)
}

/// Seals with every backend, compares with the oracle, and opens again.
fn agree(secret: &[u8; KEY_LEN], packets: &[(u64, Vec<u8>)]) {
    let sealed = run(seal_batch, &Key::new(Backend::Portable, secret), packets);
    assert!(sealed.iter().all(|(authentic, _)| *authentic));
    let ciphertexts: Vec<_> = packets
        .iter()
        .zip(&sealed)
        .map(|((counter, _), (_, body))| (*counter, body.clone()))
        .collect();
    for backend in backends() {
        let key = Key::new(backend, secret);
        assert!(
            run(seal_batch, &key, packets) == sealed,
            "{backend} seals {} packets differently, the first of {} bytes",
            packets.len(),
            packets[0].1.len()
        );
        let opened = run(open_batch, &key, &ciphertexts);
        for ((_, plain), (authentic, body)) in packets.iter().zip(&opened) {
            let text = body.len() - TAG_LEN;
            assert!(
                *authentic && body[..text] == plain[..text],
                "{backend} opens {} packets, at {text} bytes",
                packets.len()
            );
        }
    }
}

/// Packets with counters that run across the boundary of 32 bits.
fn batch(size: usize, len: impl Fn(usize) -> usize) -> Vec<(u64, Vec<u8>)> {
    let first = u64::from(u32::MAX) - size as u64 / 2;
    (0..size)
        .map(|n| (first + n as u64, plaintext(n, len(n))))
        .collect()
}

#[test]
fn backends_agree_on_all_lengths() {
    let lengths = (0..=2100).chain([4095, 4096, 8928, 16_384, 34_816, 65_000]);
    let lengths: Vec<_> = lengths.collect();
    agree(&key(2), &batch(lengths.len(), |n| lengths[n]));
    for len in 0..=2100 {
        agree(&key(len), &batch(8 + len % 7, |_| len));
    }
}

#[test]
fn backends_agree_on_all_batch_sizes() {
    for size in 1..=70 {
        for len in [0, 1, 16, 63, 64, 80, 255, 256, 300, 1439, 1440] {
            agree(&key(size), &batch(size, |_| len));
        }
        // One length with a shorter last segment, two that alternate, few lengths in disorder, all different.
        agree(
            &key(size),
            &batch(size, |n| if n + 1 == size { 333 } else { 1424 }),
        );
        agree(&key(size), &batch(size, |n| [52, 1440][n % 2]));
        agree(
            &key(size),
            &batch(size, |n| [0, 64, 272, 528][n * n % 7 % 4]),
        );
        agree(&key(size), &batch(size, |n| n * 16));
    }
}

mod mixtures {
    use proptest::prelude::*;

    use super::{agree, batch, key};

    /// Lengths of a batch: one for all, one with a shorter last, few in disorder, or any.
    fn lengths() -> impl Strategy<Value = Vec<usize>> {
        let len = || prop_oneof![0usize..=9000, 0usize..=1500, 0usize..=200];
        let packets = || 1usize..=130;
        prop_oneof![
            (len(), packets()).prop_map(|(len, packets)| vec![len; packets]),
            (len(), len(), packets()).prop_map(|(len, last, packets)| {
                let mut lengths = vec![len; packets];
                lengths[packets - 1] = last.min(len);
                lengths
            }),
            prop::collection::vec(len(), 1..=4).prop_flat_map(move |few| {
                prop::collection::vec(prop::sample::select(few), packets())
            }),
            prop::collection::vec(len(), packets()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        #[test]
        fn backends_agree(lengths in lengths(), seed: u16) {
            agree(&key(seed.into()), &batch(lengths.len(), |n| lengths[n]));
        }
    }
}

#[test]
fn counters_of_64_bits_in_any_order() {
    let counters = [
        0,
        u64::MAX,
        1 << 63,
        1 << 32,
        u64::from(u32::MAX),
        7,
        3,
        1 << 40,
        (1 << 32) + 1,
    ];
    let packets: Vec<_> = counters
        .into_iter()
        .map(|counter| (counter, plaintext(7, 100)))
        .collect();
    agree(&key(7), &packets);
}

#[test]
fn nothing_is_written_around_a_body() {
    const GUARD: usize = 67;
    for backend in backends() {
        let key = Key::new(backend, &key(8));
        for len in [0, 1, 15, 16, 31, 64, 65, 127, 256, 301, 1424, 1439] {
            let stride = GUARD + len + TAG_LEN;
            let mut arena = vec![0xa5; stride * 9 + GUARD];
            for work in [seal_batch, open_batch, open_batch] {
                let mut records: Vec<_> = arena[..stride * 9]
                    .chunks_mut(stride)
                    .zip(0..)
                    .map(|(slot, counter)| record(counter, &mut slot[GUARD..]))
                    .collect();
                // The second opening finds plaintext, and wipes it.
                work(&key, &mut records);
                drop(records);
                for guarded in arena.chunks(stride) {
                    assert!(
                        guarded[..GUARD].iter().all(|byte| *byte == 0xa5),
                        "{backend}, {len} bytes"
                    );
                }
            }
        }
    }
}

#[test]
fn a_flipped_bit_fails_its_packet_and_no_other() {
    for (backend, len) in backends()
        .into_iter()
        .flat_map(|backend| [(backend, 65), (backend, 330)])
    {
        let key = Key::new(backend, &key(3));
        let packets: Vec<_> = (0..8).map(|n| (n, plaintext(3, len))).collect();
        let mut packets: Vec<_> = run(seal_batch, &key, &packets)
            .into_iter()
            .zip(0u64..)
            .map(|((_, body), n)| (n, body))
            .collect();
        for bit in 0..(len + TAG_LEN) * 8 {
            // Every lane has its turn with every bit position of a byte.
            let victim = (bit + bit / 8) % packets.len();
            let flip =
                |packets: &mut [(u64, Vec<u8>)]| packets[victim].1[bit / 8] ^= 1 << (bit % 8);
            flip(&mut packets);
            for (index, (authentic, body)) in run(open_batch, &key, &packets).iter().enumerate() {
                assert_eq!(*authentic, index != victim, "{backend}, bit {bit}");
                if !authentic {
                    assert!(body.iter().all(|byte| *byte == 0), "a forged body is wiped");
                }
            }
            flip(&mut packets);
        }
    }
}

#[test]
fn another_counter_or_key_does_not_open() {
    for backend in backends() {
        let right = Key::new(backend, &key(4));
        let sealed = run(seal_batch, &right, &[(1 << 32, plaintext(4, 100))])
            .remove(0)
            .1;
        for counter in [0, 1, (1 << 32) + 1, 1 << 40, 1 << 33] {
            assert!(!run(open_batch, &right, &[(counter, sealed.clone())])[0].0);
        }
        let wrong = Key::new(backend, &key(5));
        assert!(!run(open_batch, &wrong, &[(1 << 32, sealed.clone())])[0].0);
        assert!(run(open_batch, &right, &[(1 << 32, sealed)])[0].0);
    }
}

#[test]
fn bodies_too_short_for_a_tag() {
    for backend in backends() {
        let key = Key::new(backend, &key(6));
        for len in 0..TAG_LEN {
            for batch in [seal_batch, open_batch] {
                let results = run(batch, &key, &[(0, noise(6, len)), (1, plaintext(6, 0))]);
                assert_eq!(results[0], (false, vec![0; len]), "{backend}, {len} bytes");
            }
        }
        // Sixteen bytes are a keepalive.
        let sealed = run(seal_batch, &key, &[(9, vec![0; TAG_LEN])]).remove(0).1;
        assert!(run(open_batch, &key, &[(9, sealed)])[0].0);
    }
}

#[test]
fn debug_shows_no_key() {
    let secret = [0xab; KEY_LEN];
    for backend in backends() {
        let shown = format!("{:?}", Key::new(backend, &secret)).to_lowercase();
        assert!(
            !shown.contains("ab, ") && !shown.contains("171") && !shown.contains("abab"),
            "{shown}"
        );
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

/// Keys, counters and ciphertexts (0xff up to the last block, which is given) after which the Poly1305 accumulator
/// is exactly 0, 1, 4, 2^130 - 6, 2^128 or 2^128 - 1: where a missing final reduction or carry shows. Solved for
/// the last block with big integers, after RFC 8439 section 2.5.
const EDGES: [(&str, u64, usize, &str, &str); 24] = [
    (
        "c40fec8adc191f50ac584350dc5babab3fab905461a060a9498c18e95f64e48b",
        2,
        16,
        "5cc9aafb0384d64c2d0687753686677e",
        "392070e774c70ad46c5d5d59c2daee1b",
    ),
    (
        "ea4f9d0c1205b3cd83e64dfd837fa9c04658983387d07ba5dc83c0fca639561d",
        2,
        16,
        "52ba25ee92e15f6c15fd5938999a0bf9",
        "b45223d331182755b4c7a115521bf484",
    ),
    (
        "cb712c32a11b5a9f98d4846f5bf969251164493974709d9c509c1856be4b11db",
        1,
        16,
        "77a57802c7e283025b09aaa37f1ad417",
        "474a3d50462f9a6f7bcbbe9eeacb3a8a",
    ),
    (
        "3a9d81de1168f4db3b086276eb3d1460503c12a70f327f913ffcc4047940b54a",
        1,
        16,
        "ef27c93e97a2f745ae6a80c85f6f2b34",
        "61049a383dd06f67b5535ec1ba90323e",
    ),
    (
        "7219a25b0a819ffa2839e34211e9bc99a3542fcac5326679b09598b6010b6247",
        3,
        16,
        "135eb7ea3f9846e1a2cd14b9d6f10e0b",
        "cf059e7c9e97bb8b5249aa33a3bc6d6c",
    ),
    (
        "8102689a97a880e34616e7c68cadeca51374d0dea2a0b503366ebab4a745e6a0",
        7,
        16,
        "1dc073b054c85b3384f71dfd68d7c995",
        "3c1ec7088e226061759e4ca38626bcbd",
    ),
    (
        "7e7feaff53277b2988d3a518bfd84d9e6218977c59e2b19419dff7d705361703",
        0,
        80,
        "a73bc1cf645f1f57beebef9caba56e7a",
        "e5823c68aebc637b66a1b52e6d015641",
    ),
    (
        "0f2107bfe9d1262d0749246d71fa1cfef357b7aa5c942288f07f41bf836a1c57",
        4,
        80,
        "93c609bc7af29406f0e9ed9f265e77c5",
        "b37e9b4a19b8f6d427b18ec0f57c3803",
    ),
    (
        "8aa381dda7ce5f7dc73dc039771bba4f32e57d537dcd715e30fd7262ba0fcf0d",
        4,
        80,
        "ffd0678a07873bc85739edd4a97183ed",
        "292d8e7555e8e95c4af85dfbfb35d35c",
    ),
    (
        "db74ad0e54b29d5af28508c078597c57d5399e40b0ab87ef63adb115ba9bf69e",
        2,
        80,
        "3b33b1b8d9ad407b2d7f21e48c4e63b3",
        "14ea191b2d9ba7207dfb78ed610717fc",
    ),
    (
        "43cf32ec823409d9dc9bb8782c157ddd98797564d7d627b3de1d4ca52dd04fd7",
        1,
        80,
        "fe21ae50837d26c9dd2255571ae4484d",
        "dddabeb44e8fa909a9974434cd8d296e",
    ),
    (
        "b4594f6174449f745fbf74e95b8710292aee9dc5719e72fef27024ccc9103133",
        1,
        80,
        "4bd44217ad24a4b39a848aa07b5bc3fe",
        "83ab9819d2ff7e1e28021b03926516fa",
    ),
    (
        "b0dee726ecbd569ee48c75d88c0da8966f55181fcd74bdcc52da72b2034c749a",
        4,
        1040,
        "7c417a8d1567466dc35977044e011ca3",
        "a5e8e375951dafe8101fe1459a78070c",
    ),
    (
        "715bbb76e70c3fdcc946adcfb5d277aae26d1b60bf42be64cec227f7f4e0b150",
        1,
        1040,
        "c067d8f48ab2130d9259c29dcb585341",
        "8128180fbce9c750c637e9b7af8cc2f1",
    ),
    (
        "764d53c357a9e802756e517fab2960dfded8d0db1982596184ece37ae4bb8348",
        0,
        1040,
        "37b825c3c3a30d5eb627106d7d787b00",
        "812b006d14b003b4064364eee73e17e4",
    ),
    (
        "cb341eb89f82dc25a0276728ce9e04e552e0385dc902ad6c385d88c58dc02c17",
        5,
        1040,
        "51b614b02de4cf01173c0e85ee8baa21",
        "7309dd5d6058268f8bc87334e1bb0e85",
    ),
    (
        "d45f5036707efbddaa98ca6dc674921cae58757d68acfc02ebd9ca64a42cd339",
        0,
        1040,
        "9df38a08f2287d3ec631928bd45dd2dd",
        "f830887176936c3d7c78b187ceddd1bc",
    ),
    (
        "7fed8067fab0d7c5aeb67de9f5fb5f9401911d76cc843ee019e4d73b14480742",
        1,
        1040,
        "f71d9bba18b3dad2f42a0514af87ac1f",
        "576407f0760321d6f8938a574e010d2c",
    ),
    (
        "9bfb85ce351bf774f621489a6fa1c19a492daf3f46c1ed517f6fada4681f09a2",
        1,
        8944,
        "331cfe03eb418e230a97f99587a29ba9",
        "221f3d94d4f3917d33da9a7f69935261",
    ),
    (
        "0f4e5639b89138d8dffe7c2ba38db700a91d587dc72a7341d4e935cbce928308",
        14,
        8944,
        "749e795f5dfac2b284818cadf9d19e00",
        "252333ad7f93da8cbe08811406dc4888",
    ),
    (
        "60ebec20323264b369c24807ea7c7a209499d70059a7351b976ccd50bb293ab5",
        0,
        8944,
        "1442f5cbce4f3a63847201a8c364b424",
        "62fe4e4bc1d6c1882509c8425ee0f70a",
    ),
    (
        "37f966ef28dd0d5613769072015244cc067c315cc09c0f9ee5131cb5b0ec76cf",
        1,
        8944,
        "e0fdfc69af16a7474d167eb853d72af9",
        "5901928c491a9815d2eab4ebeb079817",
    ),
    (
        "6c7637d571e47f2170401032e9db4db255771b701561c4692af19f67f8095dd2",
        0,
        8944,
        "b77af52a1e25b0bbdc02b954018e2d09",
        "8e5400ef0ab391c950c8db90b9db7d54",
    ),
    (
        "ae855504e65f710eb98c0af734a9e2b223ff174a7895dc2165b9f560c1324031",
        2,
        8944,
        "46c1dbab5156fa48a6af6d11c65fe7bb",
        "8eaee84acb66894f5a0d058f8e2edfdd",
    ),
];

#[test]
fn the_edges_of_the_field() {
    for (key, counter, len, last, tag) in EDGES {
        let secret: [u8; KEY_LEN] = unhex(key).try_into().unwrap();
        let mut body = vec![0xff; len - 16];
        body.extend(unhex(last));
        body.extend(unhex(tag));
        for backend in backends() {
            let key = Key::new(backend, &secret);
            let (authentic, opened) = run(open_batch, &key, &[(counter, body.clone())]).remove(0);
            assert!(authentic, "{backend}, {len} bytes, counter {counter}");
            // Alone, and in every lane among others.
            for lane in 0..16 {
                let mut packets: Vec<_> = (0..16).map(|n| (100 + n, plaintext(9, len))).collect();
                packets[lane] = (counter, opened.clone());
                for packets in [&packets[lane..=lane], &packets] {
                    let sealed = run(seal_batch, &key, packets);
                    assert!(
                        sealed.iter().any(|(_, sealed)| *sealed == body),
                        "{backend}, {len} bytes, counter {counter}, lane {lane}"
                    );
                    let sealed: Vec<_> = sealed
                        .into_iter()
                        .zip(packets)
                        .map(|((_, body), (counter, _))| (*counter, body))
                        .collect();
                    let opened = run(open_batch, &key, &sealed);
                    assert!(opened.iter().all(|(authentic, _)| *authentic));
                }
            }
        }
    }
}

/// RFC 8439 has no vector with a counter nonce and without associated data; this one is from the implementation that
/// solved [`EDGES`], which reproduces the RFC's section 2.8.2.
#[test]
fn known_answer() {
    let expected = "9f56f15cb12fa91f21bfa4575e989788d56cf91d537e76badb7daf4091f5c3bb\
                    f86bf48fc0edf9acac02deb4a7a9b2427307b755c7b97061bd2dbb5b1eb955be\
                    582e022bd39c70a6829534bdc9c9d5b9";
    let secret: [u8; KEY_LEN] = (0..32).collect::<Vec<_>>().try_into().unwrap();
    let packet = (0..64).chain([0; TAG_LEN]).collect::<Vec<_>>();
    for backend in backends() {
        let sealed = run(
            seal_batch,
            &Key::new(backend, &secret),
            &[(1, packet.clone())],
        );
        assert_eq!(sealed, [(true, unhex(expected))], "{backend}");
    }
}
