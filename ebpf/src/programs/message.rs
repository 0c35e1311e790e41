//! What a WireGuard message says of itself in its first bytes and its length.

use adit_ebpf::{DATA_MESSAGE_MIN, DropReason, Handshake};

/// A message that may be what it says.
pub(crate) enum Message {
    /// An initiation, a response or a cookie reply.
    Handshake,
    /// A data message.
    Data,
}

/// Looks at a message of `length` bytes, at least four, that begins with `kind` (little-endian).
#[inline(always)]
pub(crate) fn classify(kind: u32, length: u32) -> Result<Message, DropReason> {
    if let Some(exact) = Handshake::length(kind) {
        return match length {
            _ if length < exact => Err(DropReason::TooShort),
            _ if length > exact => Err(DropReason::HandshakeLength),
            _ => Ok(Message::Handshake),
        };
    }
    match kind {
        4 if length < DATA_MESSAGE_MIN => Err(DropReason::TooShort),
        4 => Ok(Message::Data),
        _ if matches!(kind & 0xff, 1..=4) => Err(DropReason::Reserved),
        _ => Err(DropReason::UnknownType),
    }
}

/// Whether a handshake message of `length` bytes has a second MAC, and where: an initiation or a response ends with one.
/// WireGuard paper, section 5.4.4.
#[inline(always)]
pub(crate) fn second_mac(kind: u32, length: u32) -> Option<u32> {
    matches!(kind, 1 | 2).then(|| length - 16)
}
