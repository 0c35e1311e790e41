//! The handshake against `snow`, an independent implementation of Noise, in both roles.

use super::*;
use crate::testing::{SeededRng, unhex};
use crate::transport::{PortableKey, TransportKey};

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";

fn identity(byte: u8) -> Identity {
    Identity::new(PrivateKey::from_bytes([byte; 32]))
}

fn timestamp() -> Tai64n {
    Tai64n::from_unix(Duration::new(1_700_000_000, 123_456_789))
}

fn snow(
    local: &Identity,
    remote: Option<&Identity>,
    psk: &[u8; 32],
) -> Result<snow::HandshakeState, snow::Error> {
    let builder = snow::Builder::new(PATTERN.parse()?)
        .prologue(IDENTIFIER)?
        .local_private_key(local.private.as_bytes())?
        .psk(2, psk)?;
    match remote {
        Some(remote) => builder
            .remote_public_key(remote.public.as_bytes())?
            .build_initiator(),
        None => builder.build_responder(),
    }
}

/// Our keys and snow's agree in both directions.
fn assert_same_keys(keys: &SessionKeys, snow: snow::HandshakeState) {
    let snow = snow.into_stateless_transport_mode().unwrap();
    let text = b"inner packet";
    for counter in [0, 1, 1 << 40] {
        let mut ours = [0; 28];
        ours[..12].copy_from_slice(text);
        PortableKey::new(&keys.sending.0).seal_in_place(counter, &mut ours);
        let mut opened = [0; 12];
        assert_eq!(snow.read_message(counter, &ours, &mut opened), Ok(12));
        assert_eq!(&opened, text);

        let mut theirs = [0; 28];
        assert_eq!(snow.write_message(counter, text, &mut theirs), Ok(28));
        assert!(PortableKey::new(&keys.receiving.0).open_in_place(counter, &mut theirs));
        assert_eq!(&theirs[..12], text);
    }
}

#[test]
fn we_initiate_and_snow_responds() {
    for psk in [[0; 32], [9; 32]] {
        let (us, them) = (identity(1), identity(2));
        let mut rng = SeededRng(1);
        let static_static = us.static_static(&them.public).unwrap();
        let mut message = [0; INITIATION_LEN];
        let initiator = create_initiation(
            &mut rng,
            &us,
            &them.public,
            &static_static,
            timestamp(),
            0x0403_0201,
            &mut message,
        )
        .unwrap();
        assert_eq!(message[..8], [1, 0, 0, 0, 1, 2, 3, 4]);

        let mut snow = snow(&them, None, &psk).unwrap();
        let mut payload = [0; 12];
        assert_eq!(snow.read_message(&message[8..116], &mut payload), Ok(12));
        assert_eq!(payload, timestamp().0);
        assert_eq!(snow.get_remote_static(), Some(&us.public.as_bytes()[..]));

        let mut response = [0; RESPONSE_LEN];
        response[0] = 2;
        assert_eq!(snow.write_message(&[], &mut response[12..60]), Ok(48));
        let psk = PresharedKey::from_bytes(psk);
        let response = Response::parse(&response).unwrap();
        let keys = initiator
            .consume_response(&us, Some(&psk), response)
            .unwrap();
        assert_same_keys(&keys, snow);
    }
}

#[test]
fn snow_initiates_and_we_respond() {
    for psk in [[0; 32], [9; 32]] {
        let (us, them) = (identity(1), identity(2));
        let mut snow = snow(&them, Some(&us), &psk).unwrap();
        let mut message = [0; INITIATION_LEN];
        message[0] = 1;
        message[4..8].copy_from_slice(&77_u32.to_le_bytes());
        let length = snow.write_message(&timestamp().0, &mut message[8..116]);
        assert_eq!(length, Ok(108));

        let claimed = consume_initiation(&us, Initiation::parse(&message).unwrap()).unwrap();
        assert_eq!(claimed.remote, them.public);
        let static_static = us.static_static(&claimed.remote).unwrap();
        let (received, responder) = claimed.authenticate(&static_static).unwrap();
        assert_eq!(received, timestamp());
        assert_eq!(responder.remote_index, 77);

        let psk = PresharedKey::from_bytes(psk);
        let mut response = [0; RESPONSE_LEN];
        let keys = responder
            .create_response(&mut SeededRng(1), Some(&psk), 88, &mut response)
            .unwrap();
        assert_eq!(response[..12], [2, 0, 0, 0, 88, 0, 0, 0, 77, 0, 0, 0]);
        assert_eq!(snow.read_message(&response[12..60], &mut []), Ok(0));
        assert_same_keys(&keys, snow);
    }
}

/// Both messages, made by us, with what is needed to check them.
fn handshake(psk: Option<&PresharedKey>) -> (Initiator, [u8; 148], [u8; 92], SessionKeys) {
    let (us, them) = (identity(1), identity(2));
    let mut rng = SeededRng(3);
    let static_static = us.static_static(&them.public).unwrap();
    let mut initiation = [0; INITIATION_LEN];
    let initiator = create_initiation(
        &mut rng,
        &us,
        &them.public,
        &static_static,
        timestamp(),
        5,
        &mut initiation,
    )
    .unwrap();
    let (_, responder) = consume_initiation(&them, Initiation::parse(&initiation).unwrap())
        .unwrap()
        .authenticate(&static_static)
        .unwrap();
    let mut response = [0; RESPONSE_LEN];
    let keys = responder
        .create_response(&mut rng, psk, 6, &mut response)
        .unwrap();
    (initiator, initiation, response, keys)
}

#[test]
fn no_bit_of_either_message_can_be_changed() {
    let (us, them) = (identity(1), identity(2));
    let static_static = us.static_static(&them.public).unwrap();
    let (initiator, initiation, response, _) = handshake(None);
    // The bytes in front are type and indices, which the macs protect.
    for byte in 8..116 {
        let mut changed = initiation;
        changed[byte] ^= 0x40;
        let accepted = consume_initiation(&them, Initiation::parse(&changed).unwrap())
            .and_then(|claimed| claimed.authenticate(&static_static));
        assert!(accepted.is_none(), "byte {byte}");
    }
    for byte in 12..60 {
        let mut changed = response;
        changed[byte] ^= 0x40;
        let response = Response::parse(&changed).unwrap();
        assert!(initiator.consume_response(&us, None, response).is_none());
    }
    // After all these forgeries the real one still counts.
    let response = Response::parse(&response).unwrap();
    assert!(initiator.consume_response(&us, None, response).is_some());
}

#[test]
fn both_sides_need_the_same_preshared_key() {
    let us = identity(1);
    let right = PresharedKey::from_bytes([1; 32]);
    let wrong = PresharedKey::from_bytes([2; 32]);
    let (initiator, _, response, theirs) = handshake(Some(&right));
    let response = Response::parse(&response).unwrap();
    assert!(initiator.consume_response(&us, None, response).is_none());
    assert!(
        initiator
            .consume_response(&us, Some(&wrong), response)
            .is_none()
    );
    let ours = initiator
        .consume_response(&us, Some(&right), response)
        .unwrap();
    assert_eq!(ours.sending.0, theirs.receiving.0);
    assert_eq!(ours.receiving.0, theirs.sending.0);
}

/// The points of small order, and what is congruent to them (RFC 7748, section 6.1).
fn low_order_points() -> [[u8; 32]; 5] {
    let mut one = [0; 32];
    one[0] = 1;
    let mut prime = [0xff; 32];
    (prime[0], prime[31]) = (0xed, 0x7f);
    [
        [0; 32],
        one,
        prime,
        unhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        unhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    ]
}

#[test]
fn an_all_zero_dh_result_is_rejected_everywhere() {
    let (us, them) = (identity(1), identity(2));
    for point in low_order_points() {
        let remote = PublicKey::from_bytes(point);
        assert!(us.static_static(&remote).is_none());

        let static_static = Secret([0; 32]);
        let mut rng = SeededRng(1);
        let mut message = [0; INITIATION_LEN];
        let made = create_initiation(
            &mut rng,
            &us,
            &remote,
            &static_static,
            timestamp(),
            1,
            &mut message,
        );
        assert!(made.is_none());

        let (initiator, mut initiation, mut response, _) = handshake(None);
        initiation[8..40].copy_from_slice(&point);
        assert!(consume_initiation(&them, Initiation::parse(&initiation).unwrap()).is_none());

        response[12..44].copy_from_slice(&point);
        let response = Response::parse(&response).unwrap();
        assert!(initiator.consume_response(&us, None, response).is_none());

        let responder = Responder {
            symmetric: Symmetric::new(&us.public),
            remote: them.public,
            remote_ephemeral: point,
            remote_index: 1,
        };
        let response = responder.create_response(&mut rng, None, 1, &mut [0; RESPONSE_LEN]);
        assert!(response.is_none());
    }
}

#[test]
fn timestamps_are_rounded_and_ordered() {
    let label = |seconds, nanos| Tai64n::from_unix(Duration::new(seconds, nanos));
    assert_eq!(
        label(1_700_000_000, 123_456_789).0,
        unhex("400000006553f10a07000000")
    );
    assert_eq!(label(0, 0).0, unhex("400000000000000a00000000"));
    assert_eq!(
        label(1_700_000_000, 999_999_999).0,
        unhex("400000006553f10a3b000000")
    );
    // Less than 1/59 s apart reads as the same moment.
    assert_eq!(label(5, 1), label(5, 16_777_215));
    assert!(label(5, 16_777_216) > label(5, 16_777_215));
    assert!(label(6, 0) > label(5, 999_999_999));
}

#[test]
fn the_successor_is_the_next_rounded_label() {
    let label = |seconds, nanos| Tai64n::from_unix(Duration::new(seconds, nanos));
    assert_eq!(label(5, 0).successor(), label(5, 16_777_216));
    assert_eq!(label(5, 999_999_999).successor(), label(6, 0));
}
