//! Datagrams to messages and back: the rules of RFC 7252 that the packet library leaves open.

use std::fmt;

use bytes::Bytes;
use coap_lite::{CoapOption, MessageClass, MessageType, Packet};

/// A request or response code (RFC 7252, section 3).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u8);

impl Code {
    /// 2.04: taken, and as durable as its lane says.
    pub const CHANGED: Self = Self(0x44);
    /// 2.05.
    pub const CONTENT: Self = Self(0x45);
    /// 2.31: send the next block.
    pub const CONTINUE: Self = Self(0x5F);
    /// 4.00.
    pub const BAD_REQUEST: Self = Self(0x80);
    /// 4.02: a critical option is not understood.
    pub const BAD_OPTION: Self = Self(0x82);
    /// 4.03.
    pub const FORBIDDEN: Self = Self(0x83);
    /// 4.04.
    pub const NOT_FOUND: Self = Self(0x84);
    /// 4.05.
    pub const METHOD_NOT_ALLOWED: Self = Self(0x85);
    /// 4.06.
    pub const NOT_ACCEPTABLE: Self = Self(0x86);
    /// 4.08: blocks are missing.
    pub const INCOMPLETE: Self = Self(0x88);
    /// 4.13.
    pub const TOO_LARGE: Self = Self(0x8D);
    /// 5.02: an upstream refused it.
    pub const BAD_GATEWAY: Self = Self(0xA2);
    /// 5.03: try again after Max-Age.
    pub const UNAVAILABLE: Self = Self(0xA3);
    /// 5.05.
    pub const NO_PROXY: Self = Self(0xA5);

    /// 2.xx.
    #[must_use]
    pub fn is_success(self) -> bool {
        self.0 >> 5 == 2
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 >> 5, self.0 & 0x1F)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A token: up to 8 bytes that the peer chose (RFC 7252, section 5.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Token {
    bytes: [u8; 8],
    length: u8,
}

impl Token {
    /// The first of all tokens in their order.
    pub(crate) const FIRST: Self = Self { bytes: [0; 8], length: 0 };

    pub(crate) fn of(packet: &Packet) -> Self {
        let token = packet.get_token();
        let length = token.len().min(8);
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(&token[..length]);
        Self { bytes, length: length as u8 }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// A datagram that is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// The message id to reset, when it was confirmable (RFC 7252, section 4.2).
    pub reset: Option<u16>,
}

/// Reads a datagram. What is not version 1, or too short to tell, is malformed without a reset: it is ignored
/// (RFC 7252, section 3).
pub(crate) fn decode(datagram: &[u8]) -> Result<Packet, Malformed> {
    let &[first, code, id_high, id_low, ..] = datagram else { return Err(Malformed { reset: None }) };
    if first >> 6 != 1 {
        return Err(Malformed { reset: None });
    }
    let confirmable = first & 0x30 == 0;
    let malformed = Malformed { reset: confirmable.then(|| u16::from_be_bytes([id_high, id_low])) };
    if code == 0 && (datagram.len() > 4 || first & 0x0F != 0) {
        return Err(malformed); // section 4.1
    }
    let packet = Packet::from_bytes(datagram).map_err(|_| malformed)?;
    // A payload marker with nothing behind it is an error (section 3). The library drops it, so writing the message anew,
    // which is unambiguous, gives one byte less.
    if packet.payload.is_empty() && datagram.last() == Some(&0xFF) && packet.to_bytes_unlimited().is_ok_and(|again| again.len() != datagram.len()) {
        return Err(malformed);
    }
    Ok(packet)
}

/// The message as a datagram. What this crate builds (tokens of at most 8 bytes, options shorter than 64 KiB) always has one.
pub(crate) fn encode(packet: &Packet) -> Bytes {
    packet.to_bytes_unlimited().map(Bytes::from).unwrap_or_default()
}

/// An empty acknowledgement.
pub(crate) fn empty_ack(message_id: u16) -> Bytes {
    empty(MessageType::Acknowledgement, message_id)
}

/// A reset.
pub(crate) fn reset(message_id: u16) -> Bytes {
    empty(MessageType::Reset, message_id)
}

fn empty(kind: MessageType, message_id: u16) -> Bytes {
    let [high, low] = message_id.to_be_bytes();
    Bytes::copy_from_slice(&[0x40 | type_bits(kind) << 4, 0, high, low])
}

fn type_bits(kind: MessageType) -> u8 {
    match kind {
        MessageType::Confirmable => 0,
        MessageType::NonConfirmable => 1,
        MessageType::Acknowledgement => 2,
        MessageType::Reset => 3,
    }
}

/// A message with a code and a token.
pub(crate) fn message(kind: MessageType, message_id: u16, code: Code, token: &[u8]) -> Packet {
    let mut packet = Packet::new();
    packet.header.set_version(1);
    packet.header.set_type(kind);
    packet.header.code = MessageClass::from(code.0);
    packet.header.message_id = message_id;
    packet.set_token(token.to_vec());
    packet
}

/// Adds an option whose value is a number, in its shortest form (RFC 7252, section 3.2).
pub(crate) fn add_uint(packet: &mut Packet, option: CoapOption, value: u32) {
    let bytes = value.to_be_bytes();
    let zeros = bytes.iter().take_while(|b| **b == 0).count();
    packet.add_option(option, bytes[zeros..].to_vec());
}

/// The number in an option's value; none when it has more than four bytes.
pub(crate) fn uint(value: &[u8]) -> Option<u32> {
    (value.len() <= 4).then(|| value.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_datagrams_are_told_apart() {
        for (bytes, reset) in [
            (&[][..], None),
            (&[0x40, 1, 0], None),
            (&[0x80, 1, 0, 7], None),                // version 2
            (&[0x00, 1, 0, 7], None),                // version 0
            (&[0x49, 1, 0, 7], Some(7)),             // token of 9
            (&[0x42, 1, 0, 7, 1], Some(7)),          // token cut off
            (&[0x41, 0, 0, 7, 1], Some(7)),          // empty message with a token
            (&[0x40, 0, 0, 7, 1], Some(7)),          // empty message with more
            (&[0x40, 1, 0, 7, 0xFF], Some(7)),       // marker without payload
            (&[0x40, 1, 0, 7, 0xB5, b'a'], Some(7)), // option cut off
            (&[0x40, 1, 0, 7, 0xF1, b'a'], Some(7)), // reserved delta
            (&[0x50, 1, 0, 7, 0xFF], None),          // the same, not confirmable
        ] {
            assert_eq!(decode(bytes).unwrap_err(), Malformed { reset }, "{bytes:02x?}");
        }
        // An option whose last byte looks like a marker is none.
        assert!(decode(&[0x40, 1, 0, 7, 0xB1, 0xFF]).is_ok());
        assert_eq!(decode(&[0x40, 1, 0, 7, 0xFF, 0xFF]).unwrap().payload, [0xFF]);
    }

    #[test]
    fn numbers_are_written_short_and_read_back() {
        for (value, length) in [(0, 0), (1, 1), (255, 1), (256, 2), (0x00FF_FFFF, 3), (u32::MAX, 4)] {
            let mut packet = message(MessageType::Confirmable, 1, Code::CONTENT, &[1, 2]);
            add_uint(&mut packet, CoapOption::MaxAge, value);
            let read = decode(&encode(&packet)).unwrap();
            let bytes = read.get_first_option(CoapOption::MaxAge).unwrap();
            assert_eq!((bytes.len(), uint(bytes)), (length, Some(value)));
        }
        assert_eq!(uint(&[0; 5]), None);
        assert_eq!(Code::TOO_LARGE.to_string(), "4.13");
        assert_eq!(reset(0x1234).as_ref(), [0x70, 0, 0x12, 0x34]);
        assert_eq!(empty_ack(1).as_ref(), [0x60, 0, 0, 1]);
    }
}
