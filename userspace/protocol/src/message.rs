//! Wire formats: the four messages, as views over the bytes of a datagram (paper, section 5.4;
//! kernel, `messages.h`).
//!
//! All integers are little-endian. The type is read as a 32-bit integer, so that the three reserved
//! bytes behind it must be zero.

use thiserror::Error;

/// Length of a Poly1305 tag, in bytes.
pub const TAG_LEN: usize = 16;
/// Length of a handshake initiation, in bytes.
pub const INITIATION_LEN: usize = 148;
/// Length of a handshake response, in bytes.
pub const RESPONSE_LEN: usize = 92;
/// Length of a cookie reply, in bytes.
pub const COOKIE_REPLY_LEN: usize = 64;
/// Length of the header of a data message: type, receiver index, counter.
pub const DATA_HEADER_LEN: usize = 16;
/// What a data message adds to the padded inner packet: header and tag. Also the length of a
/// keepalive, the shortest data message.
pub const DATA_OVERHEAD: usize = DATA_HEADER_LEN + TAG_LEN;
/// Length of `mac1` and of `mac2`, in bytes.
pub const MAC_LEN: usize = 16;
/// Inner packets are padded to a multiple of this many bytes.
pub const PADDING_MULTIPLE: usize = 16;

/// The kinds of datagrams, by the value of the type field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MessageType {
    /// Handshake initiation, 148 bytes.
    Initiation = 1,
    /// Handshake response, 92 bytes.
    Response = 2,
    /// Cookie reply, 64 bytes.
    CookieReply = 3,
    /// Transport data, at least 32 bytes.
    Data = 4,
}

/// Why a datagram is not a WireGuard message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Shorter than the type field, unknown type, or reserved bytes not zero.
    #[error("not a WireGuard message type")]
    UnknownType,
    /// The length does not belong to the type.
    #[error("wrong length for message type {0:?}")]
    WrongLength(MessageType),
}

impl MessageType {
    /// Tells what a datagram claims to be, by type field and length, before any cryptography.
    ///
    /// # Errors
    /// [`MessageError`] for everything that no WireGuard peer sends.
    #[inline]
    pub fn of(datagram: &[u8]) -> Result<Self, MessageError> {
        let (kind, fits) = match field::<4>(datagram, 0).map(u32::from_le_bytes) {
            Some(1) => (Self::Initiation, datagram.len() == INITIATION_LEN),
            Some(2) => (Self::Response, datagram.len() == RESPONSE_LEN),
            Some(3) => (Self::CookieReply, datagram.len() == COOKIE_REPLY_LEN),
            Some(4) => (Self::Data, datagram.len() >= DATA_OVERHEAD),
            _ => return Err(MessageError::UnknownType),
        };
        if fits {
            Ok(kind)
        } else {
            Err(MessageError::WrongLength(kind))
        }
    }
}

/// `N` bytes at `offset`, if they are there.
#[inline]
fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// `N` bytes at `offset` of a message whose length is part of its type.
#[inline]
fn fixed<const N: usize>(bytes: &[u8], offset: usize) -> &[u8; N] {
    bytes[offset..]
        .first_chunk()
        .expect("offsets lie within the fixed length of the message")
}

/// Header of a data message: the 16 bytes in front of the encrypted packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    /// The receiver's index for the session.
    pub receiver_index: u32,
    /// The nonce counter.
    pub counter: u64,
}

impl DataHeader {
    /// Reads the header of a data message; `None` if `datagram` is not one (type, reserved bytes,
    /// at least 32 bytes).
    #[must_use]
    #[inline]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        if datagram.len() < DATA_OVERHEAD
            || u32::from_le_bytes(field(datagram, 0)?) != MessageType::Data as u32
        {
            return None;
        }
        Some(Self {
            receiver_index: u32::from_le_bytes(field(datagram, 4)?),
            counter: u64::from_le_bytes(field(datagram, 8)?),
        })
    }

    /// The 16 bytes on the wire.
    #[must_use]
    #[inline]
    pub fn to_bytes(self) -> [u8; DATA_HEADER_LEN] {
        let mut bytes = [0; DATA_HEADER_LEN];
        bytes[..4].copy_from_slice(&(MessageType::Data as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.receiver_index.to_le_bytes());
        bytes[8..].copy_from_slice(&self.counter.to_le_bytes());
        bytes
    }

    /// Writes the header over the first 16 bytes of `out`.
    #[inline]
    pub fn write(self, out: &mut [u8; DATA_HEADER_LEN]) {
        *out = self.to_bytes();
    }
}

/// A handshake initiation:
///
/// ```text
/// 0 type=1 | 4 sender index | 8 ephemeral (32) | 40 static (32+16) | 88 timestamp (12+16)
/// 116 mac1 (16) | 132 mac2 (16)
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Initiation<'a>(&'a [u8; INITIATION_LEN]);

impl<'a> Initiation<'a> {
    pub(crate) const SENDER: usize = 4;
    pub(crate) const EPHEMERAL: usize = 8;
    pub(crate) const STATIC: usize = 40;
    pub(crate) const TIMESTAMP: usize = 88;
    pub(crate) const MAC1: usize = 116;

    /// Views `datagram` as an initiation if type and length say so.
    #[must_use]
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        match MessageType::of(datagram) {
            Ok(MessageType::Initiation) => datagram.first_chunk().map(Self),
            _ => None,
        }
    }

    /// The initiator's index for the session.
    #[must_use]
    pub fn sender_index(&self) -> u32 {
        u32::from_le_bytes(*fixed(self.0, Self::SENDER))
    }

    /// The initiator's ephemeral public key, in the clear.
    #[must_use]
    pub fn ephemeral(&self) -> &'a [u8; 32] {
        fixed(self.0, Self::EPHEMERAL)
    }

    /// The initiator's static public key, encrypted.
    #[must_use]
    pub fn encrypted_static(&self) -> &'a [u8; 32 + TAG_LEN] {
        fixed(self.0, Self::STATIC)
    }

    /// The TAI64N timestamp, encrypted.
    #[must_use]
    pub fn encrypted_timestamp(&self) -> &'a [u8; 12 + TAG_LEN] {
        fixed(self.0, Self::TIMESTAMP)
    }
}

/// A handshake response:
///
/// ```text
/// 0 type=2 | 4 sender index | 8 receiver index | 12 ephemeral (32) | 44 nothing (0+16)
/// 60 mac1 (16) | 76 mac2 (16)
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Response<'a>(&'a [u8; RESPONSE_LEN]);

impl<'a> Response<'a> {
    pub(crate) const SENDER: usize = 4;
    pub(crate) const RECEIVER: usize = 8;
    pub(crate) const EPHEMERAL: usize = 12;
    pub(crate) const EMPTY: usize = 44;
    pub(crate) const MAC1: usize = 60;

    /// Views `datagram` as a response if type and length say so.
    #[must_use]
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        match MessageType::of(datagram) {
            Ok(MessageType::Response) => datagram.first_chunk().map(Self),
            _ => None,
        }
    }

    /// The responder's index for the session.
    #[must_use]
    pub fn sender_index(&self) -> u32 {
        u32::from_le_bytes(*fixed(self.0, Self::SENDER))
    }

    /// The initiator's index, from the initiation this answers.
    #[must_use]
    pub fn receiver_index(&self) -> u32 {
        u32::from_le_bytes(*fixed(self.0, Self::RECEIVER))
    }

    /// The responder's ephemeral public key, in the clear.
    #[must_use]
    pub fn ephemeral(&self) -> &'a [u8; 32] {
        fixed(self.0, Self::EPHEMERAL)
    }

    /// The tag over nothing, which proves the responder's keys.
    #[must_use]
    pub fn encrypted_nothing(&self) -> &'a [u8; TAG_LEN] {
        fixed(self.0, Self::EMPTY)
    }
}

/// A cookie reply:
///
/// ```text
/// 0 type=3 | 4 receiver index | 8 nonce (24) | 32 cookie (16+16)
/// ```
#[derive(Clone, Copy, Debug)]
pub struct CookieReply<'a>(&'a [u8; COOKIE_REPLY_LEN]);

impl<'a> CookieReply<'a> {
    pub(crate) const RECEIVER: usize = 4;
    pub(crate) const NONCE: usize = 8;
    pub(crate) const COOKIE: usize = 32;

    /// Views `datagram` as a cookie reply if type and length say so.
    #[must_use]
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        match MessageType::of(datagram) {
            Ok(MessageType::CookieReply) => datagram.first_chunk().map(Self),
            _ => None,
        }
    }

    /// The sender index of the message this answers.
    #[must_use]
    pub fn receiver_index(&self) -> u32 {
        u32::from_le_bytes(*fixed(self.0, Self::RECEIVER))
    }

    /// The XChaCha20 nonce.
    #[must_use]
    pub fn nonce(&self) -> &'a [u8; 24] {
        fixed(self.0, Self::NONCE)
    }

    /// The cookie, encrypted.
    #[must_use]
    pub fn encrypted_cookie(&self) -> &'a [u8; 16 + TAG_LEN] {
        fixed(self.0, Self::COOKIE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(kind: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        if let Some(first) = bytes.first_mut() {
            *first = kind;
        }
        bytes
    }

    #[test]
    fn exact_lengths() {
        for (kind, length) in [(1, 148), (2, 92), (3, 64)] {
            assert!(MessageType::of(&datagram(kind, length)).is_ok());
            for wrong in [0, 1, 3, 4, length - 1, length + 1, 65_535] {
                assert!(
                    MessageType::of(&datagram(kind, wrong)).is_err(),
                    "{kind} {wrong}"
                );
            }
        }
        for length in [32, 33, 48, 65_535] {
            assert_eq!(MessageType::of(&datagram(4, length)), Ok(MessageType::Data));
        }
        for length in [0, 1, 4, 16, 31] {
            assert!(MessageType::of(&datagram(4, length)).is_err());
            assert!(DataHeader::parse(&datagram(4, length)).is_none());
        }
    }

    #[test]
    fn reserved_bytes_must_be_zero() {
        for (kind, length) in [(1, 148), (2, 92), (3, 64), (4, 64)] {
            for reserved in 1..4 {
                let mut bytes = datagram(kind, length);
                bytes[reserved] = 1;
                assert_eq!(MessageType::of(&bytes), Err(MessageError::UnknownType));
                assert!(DataHeader::parse(&bytes).is_none());
            }
        }
        for kind in [0, 5, 255] {
            assert_eq!(
                MessageType::of(&datagram(kind, 148)),
                Err(MessageError::UnknownType)
            );
        }
    }

    #[test]
    fn data_header_on_the_wire() {
        let header = DataHeader {
            receiver_index: 0x0403_0201,
            counter: 0x0807_0605_0403_0201,
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes, [4, 0, 0, 0, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8]);
        let mut message = [0; 32];
        message[..16].copy_from_slice(&bytes);
        assert_eq!(DataHeader::parse(&message), Some(header));
    }
}
