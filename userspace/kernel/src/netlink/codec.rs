//! Netlink messages and attributes: `include/uapi/linux/netlink.h`.

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// `NLA_TYPE_MASK`: without the flags for nesting and byte order.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// A request under construction.
#[derive(Debug)]
pub(super) struct Request(Vec<u8>);

impl Request {
    /// Starts with the message's own header `body`.
    pub(super) fn new(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(body);
        pad(&mut bytes);
        Self(bytes)
    }

    /// Appends an attribute; `value` is short (an address, a name, a number).
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        pad(&mut self.0);
        self
    }

    /// The finished message.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(aligned(bytes.len()), 0);
}

/// `NLMSG_ALIGN`, `NLA_ALIGN`.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// One received message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) sequence: u32,
    /// Whom it answers; 0 for notifications of the kernel's own.
    pub(super) port: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Splits the payload into a header of `length` bytes and attributes.
    pub(super) fn body(&self, length: usize) -> Option<(&'a [u8], Attributes<'a>)> {
        let (header, attributes) = self.payload.split_at_checked(aligned(length))?;
        Some((&header[..length], Attributes(attributes)))
    }

    /// The errno of an `NLMSG_ERROR`, positive; 0 for an acknowledgement.
    pub(super) fn error(&self) -> Option<i32> {
        if i32::from(self.kind) != libc::NLMSG_ERROR {
            return None;
        }
        read_i32(self.payload).map(i32::saturating_abs)
    }
}

/// Iterates over the messages of one datagram; ends at the first that is cut short.
#[derive(Clone, Debug)]
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = read_u32(self.0)? as usize;
        let message = self
            .0
            .get(..length)
            .filter(|message| message.len() >= HEADER)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some(Message {
            kind: read_u16(&message[4..])?,
            sequence: read_u32(&message[8..])?,
            port: read_u32(&message[12..])?,
            payload: &message[HEADER..],
        })
    }
}

/// Iterates over attributes as (type, value); ends at the first that is cut short.
#[derive(Clone, Debug)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the first attribute of this type.
    pub(super) fn value_of(&self, wanted: u16) -> Option<&'a [u8]> {
        self.clone()
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(read_u16(self.0)?);
        let attribute = self
            .0
            .get(..length)
            .filter(|bytes| bytes.len() >= ATTRIBUTE_HEADER)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((
            read_u16(&attribute[2..])? & ATTRIBUTE_TYPE,
            &attribute[ATTRIBUTE_HEADER..],
        ))
    }
}

fn read_u16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().copied().map(u16::from_ne_bytes)
}

pub(super) fn read_u32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().copied().map(u32::from_ne_bytes)
}

pub(super) fn read_i32(bytes: &[u8]) -> Option<i32> {
    bytes.first_chunk().copied().map(i32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_reads_back_as_it_was_written() {
        let bytes = Request::new(26, 1, 7, &[2, 32, 0])
            .attribute(1, &[10, 0, 0, 1])
            .attribute(3 | 0x8000, b"odd")
            .attribute(4, &9_u32.to_ne_bytes())
            .into_bytes();
        let mut messages = Messages(&bytes);
        let message = messages.next().unwrap();
        assert!(messages.next().is_none());
        assert_eq!((message.kind, message.sequence, message.port), (26, 7, 0));
        let (header, attributes) = message.body(3).unwrap();
        assert_eq!(header, [2, 32, 0]);
        assert_eq!(attributes.value_of(1), Some(&[10, 0, 0, 1][..]));
        assert_eq!(attributes.value_of(3), Some(&b"odd"[..]));
        assert_eq!(attributes.value_of(4).and_then(read_u32), Some(9));
        assert_eq!(attributes.value_of(5), None);
    }

    proptest! {
        #[test]
        fn garbage_ends_the_iteration(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for message in Messages(&bytes).take(100) {
                let _ = message.error();
                if let Some((_, attributes)) = message.body(16) {
                    prop_assert!(attributes.count() <= bytes.len() / ATTRIBUTE_HEADER);
                }
            }
            prop_assert!(Messages(&bytes).count() <= bytes.len() / HEADER);
        }
    }
}
