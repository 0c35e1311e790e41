//! Datagrams: what they claim to be, and the views over them.

use adit_protocol::message::{
    CookieReply, DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, Initiation, MessageError, MessageType,
    Response,
};
use adit_protocol::{InnerPacket, padded_len};

/// The bytes are a datagram, and an inner packet.
pub fn run(bytes: &[u8]) {
    let kind = MessageType::of(bytes);
    let expected = naive_type(bytes);
    assert_eq!(kind.ok(), expected, "type of {} bytes", bytes.len());
    if let Err(MessageError::WrongLength(claimed)) = kind {
        assert_eq!(u32::from(bytes[0]), claimed as u32);
    }

    let initiation = Initiation::parse(bytes);
    assert_eq!(
        initiation.is_some(),
        expected == Some(MessageType::Initiation)
    );
    if let Some(view) = initiation {
        let again = [
            &[1, 0, 0, 0],
            &view.sender_index().to_le_bytes()[..],
            view.ephemeral(),
            view.encrypted_static(),
            view.encrypted_timestamp(),
        ];
        assert_eq!(again.concat(), bytes[..116]);
    }
    let response = Response::parse(bytes);
    assert_eq!(response.is_some(), expected == Some(MessageType::Response));
    if let Some(view) = response {
        let again = [
            &[2, 0, 0, 0],
            &view.sender_index().to_le_bytes()[..],
            &view.receiver_index().to_le_bytes(),
            view.ephemeral(),
            view.encrypted_nothing(),
        ];
        assert_eq!(again.concat(), bytes[..60]);
    }
    let reply = CookieReply::parse(bytes);
    assert_eq!(reply.is_some(), expected == Some(MessageType::CookieReply));
    if let Some(view) = reply {
        let again = [
            &[3, 0, 0, 0],
            &view.receiver_index().to_le_bytes()[..],
            view.nonce(),
            view.encrypted_cookie(),
        ];
        assert_eq!(again.concat(), bytes);
    }
    let header = DataHeader::parse(bytes);
    assert_eq!(header.is_some(), expected == Some(MessageType::Data));
    if let Some(header) = header {
        assert_eq!(header.to_bytes(), bytes[..DATA_HEADER_LEN]);
    }

    if let Ok(inner) = InnerPacket::parse(bytes) {
        assert!(inner.length <= bytes.len());
        assert_eq!(inner.source.is_ipv4(), inner.destination.is_ipv4());
        let padded = padded_len(inner.length, 1420);
        assert!(padded >= inner.length && padded < inner.length + 16);
    }
}

fn naive_type(bytes: &[u8]) -> Option<MessageType> {
    let [kind, 0, 0, 0, ..] = bytes else {
        return None;
    };
    match (kind, bytes.len()) {
        (1, 148) => Some(MessageType::Initiation),
        (2, 92) => Some(MessageType::Response),
        (3, 64) => Some(MessageType::CookieReply),
        (4, DATA_OVERHEAD..) => Some(MessageType::Data),
        _ => None,
    }
}
