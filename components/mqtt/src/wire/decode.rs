//! Packets from the peer, borrowed from the receive buffer.

use selvedge::topic;

use super::{kind, property};
use crate::settings::Version;

/// What the peer sent breaks the protocol. Says the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// A whole packet, not yet read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// First byte.
    pub first: u8,
    /// What follows the remaining length.
    pub body: &'a [u8],
    /// Bytes of all of it.
    pub bytes: usize,
}

/// A packet that a server may send to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    ConnAck {
        session_present: bool,
        code: u8,
        reason: Option<&'a str>,
        limits: PeerLimitsSeen,
    },
    Publish(Incoming<'a>),
    PubAck {
        id: u16,
        code: u8,
        reason: Option<&'a str>,
    },
    PubRec {
        id: u16,
        code: u8,
        reason: Option<&'a str>,
    },
    PubRel {
        id: u16,
    },
    PubComp {
        id: u16,
    },
    /// Codes in the order of the filters.
    SubAck {
        id: u16,
        codes: &'a [u8],
    },
    UnsubAck {
        id: u16,
    },
    PingResp,
    Disconnect {
        code: u8,
        reason: Option<&'a str>,
    },
}

/// What a CONNACK of MQTT 5 limits; the protocol's defaults where it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimitsSeen {
    pub receive_maximum: u16,
    pub maximum_packet_bytes: Option<u32>,
    pub maximum_qos: u8,
    pub retain_available: bool,
    pub keep_alive_seconds: Option<u16>,
}

impl Default for PeerLimitsSeen {
    fn default() -> Self {
        Self { receive_maximum: u16::MAX, maximum_packet_bytes: None, maximum_qos: 2, retain_available: true, keep_alive_seconds: None }
    }
}

/// A PUBLISH of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming<'a> {
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub qos: u8,
    /// 0 with quality 0.
    pub id: u16,
    pub retain: bool,
    pub dup: bool,
    pub content_type: Option<&'a str>,
    pub response_topic: Option<&'a str>,
    pub correlation_data: Option<&'a [u8]>,
    pub utf8: bool,
    pub expires_seconds: Option<u32>,
    /// Properties as they came; [`Incoming::user`] reads the user properties out of them.
    properties: &'a [u8],
}

impl<'a> Incoming<'a> {
    /// User properties in the sender's order.
    pub fn user(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let mut rest = Reader(self.properties);
        std::iter::from_fn(move || {
            // The properties were read once before, without an error.
            while let Ok(Some((id, value))) = rest.property() {
                if let (property::USER, Value::Pair(key, value)) = (id, value) {
                    return Some((key, value));
                }
            }
            None
        })
    }
}

/// Finds the first whole packet in `buffer`; `None` when more bytes are needed. `limit` is the largest packet taken.
///
/// # Errors
/// When the length is malformed or over the limit.
pub fn frame(buffer: &[u8], limit: usize) -> Result<Option<Frame<'_>>, Malformed> {
    let Some((first, rest)) = buffer.split_first() else { return Ok(None) };
    let mut remaining = 0usize;
    for at in 0..4 {
        let Some(byte) = rest.get(at) else { return Ok(None) };
        remaining |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            let bytes = 2 + at + remaining;
            if bytes > limit {
                return Err(Malformed("a packet is larger than this client takes"));
            }
            return Ok(buffer.get(2 + at..bytes).map(|body| Frame { first: *first, body, bytes }));
        }
    }
    Err(Malformed("a remaining length has more than four bytes"))
}

/// Reads a packet.
///
/// # Errors
/// When it breaks the protocol.
pub fn parse(version: Version, frame: Frame<'_>) -> Result<Packet<'_>, Malformed> {
    let mut body = Reader(frame.body);
    let v5 = version == Version::V5;
    let flags = frame.first & 0x0F;
    let packet_kind = frame.first & 0xF0;
    let expected = match packet_kind {
        kind::PUBLISH => flags,
        0x60 => 0x02,
        _ => 0,
    };
    if flags != expected {
        return Err(Malformed("the reserved flags of a packet are wrong"));
    }
    let packet = match packet_kind {
        kind::CONNACK => {
            let acknowledge = body.u8()?;
            if acknowledge > 1 {
                return Err(Malformed("the reserved flags of CONNACK are wrong"));
            }
            let code = body.u8()?;
            let (mut limits, mut reason) = (PeerLimitsSeen::default(), None);
            if v5 {
                let mut properties = body.properties()?;
                while let Some((id, value)) = properties.property()? {
                    match (id, value) {
                        (property::RECEIVE_MAXIMUM, Value::Two(0)) => return Err(Malformed("a Receive Maximum of 0")),
                        (property::RECEIVE_MAXIMUM, Value::Two(n)) => limits.receive_maximum = n,
                        (property::MAXIMUM_PACKET_SIZE, Value::Four(0)) => return Err(Malformed("a Maximum Packet Size of 0")),
                        (property::MAXIMUM_PACKET_SIZE, Value::Four(n)) => limits.maximum_packet_bytes = Some(n),
                        (property::MAXIMUM_QOS, Value::One(n @ 0..=1)) => limits.maximum_qos = n,
                        (property::MAXIMUM_QOS, _) => return Err(Malformed("a Maximum QoS over 1")),
                        (property::RETAIN_AVAILABLE, Value::One(n @ 0..=1)) => limits.retain_available = n == 1,
                        (property::RETAIN_AVAILABLE, _) => return Err(Malformed("a Retain Available that is neither 0 nor 1")),
                        (property::SERVER_KEEP_ALIVE, Value::Two(n)) => limits.keep_alive_seconds = Some(n),
                        (property::REASON_STRING, Value::Text(text)) => reason = Some(text),
                        (
                            property::SESSION_EXPIRY
                            | property::ASSIGNED_CLIENT_ID
                            | property::TOPIC_ALIAS_MAXIMUM
                            | property::USER
                            | property::WILDCARD_AVAILABLE
                            | property::SUBSCRIPTION_IDS_AVAILABLE
                            | property::SHARED_AVAILABLE
                            | property::RESPONSE_INFORMATION
                            | property::SERVER_REFERENCE
                            | property::AUTH_METHOD
                            | property::AUTH_DATA,
                            _,
                        ) => {}
                        _ => return Err(Malformed("CONNACK carries a property that it must not")),
                    }
                }
            }
            body.end()?;
            Packet::ConnAck { session_present: acknowledge == 1, code, reason, limits }
        }
        kind::PUBLISH => Packet::Publish(incoming(v5, flags, body)?),
        kind::PUBACK | kind::PUBREC | 0x60 | kind::PUBCOMP => {
            let id = body.packet_id()?;
            let (code, reason) = reason(v5, &mut body)?;
            match packet_kind {
                kind::PUBACK => Packet::PubAck { id, code, reason },
                kind::PUBREC => Packet::PubRec { id, code, reason },
                0x60 => Packet::PubRel { id },
                _ => Packet::PubComp { id },
            }
        }
        kind::SUBACK => {
            let id = body.packet_id()?;
            if v5 {
                body.reason_properties()?;
            }
            if body.0.is_empty() {
                return Err(Malformed("SUBACK without a code"));
            }
            Packet::SubAck { id, codes: body.0 }
        }
        kind::UNSUBACK => {
            let id = body.packet_id()?;
            if v5 {
                body.reason_properties()?;
            } else {
                body.end()?;
            }
            Packet::UnsubAck { id }
        }
        kind::PINGRESP => {
            body.end()?;
            Packet::PingResp
        }
        kind::DISCONNECT if v5 => {
            let (code, reason) = reason(true, &mut body)?;
            Packet::Disconnect { code, reason }
        }
        _ => return Err(Malformed("a packet that a server must not send")),
    };
    Ok(packet)
}

/// Reason code and reason string at the end of a packet, both optional (sections 3.4.2 and 3.14.2).
fn reason<'a>(v5: bool, body: &mut Reader<'a>) -> Result<(u8, Option<&'a str>), Malformed> {
    if body.0.is_empty() {
        return Ok((0, None));
    }
    if !v5 {
        return Err(Malformed("bytes after the end of a packet"));
    }
    let code = body.u8()?;
    let text = if body.0.is_empty() { None } else { body.reason_properties()? };
    body.end()?;
    Ok((code, text))
}

fn incoming(v5: bool, flags: u8, mut body: Reader<'_>) -> Result<Incoming<'_>, Malformed> {
    let qos = (flags >> 1) & 0x03;
    if qos == 3 {
        return Err(Malformed("PUBLISH with quality of service 3"));
    }
    if qos == 0 && flags & 0x08 != 0 {
        return Err(Malformed("PUBLISH with quality of service 0 that is a duplicate"));
    }
    let topic = body.text()?;
    let id = if qos > 0 { body.packet_id()? } else { 0 };
    let mut incoming = Incoming {
        topic,
        payload: &[],
        qos,
        id,
        retain: flags & 1 != 0,
        dup: flags & 0x08 != 0,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        utf8: false,
        expires_seconds: None,
        properties: &[],
    };
    if v5 {
        let mut properties = body.properties()?;
        incoming.properties = properties.0;
        while let Some((id, value)) = properties.property()? {
            match (id, value) {
                (property::PAYLOAD_FORMAT, Value::One(n @ 0..=1)) => incoming.utf8 = n == 1,
                (property::PAYLOAD_FORMAT, _) => return Err(Malformed("a Payload Format Indicator over 1")),
                (property::MESSAGE_EXPIRY, Value::Four(n)) => incoming.expires_seconds = Some(n),
                (property::CONTENT_TYPE, Value::Text(text)) => incoming.content_type = Some(text),
                (property::RESPONSE_TOPIC, Value::Text(text)) => incoming.response_topic = Some(text),
                (property::CORRELATION_DATA, Value::Bytes(bytes)) => incoming.correlation_data = Some(bytes),
                (property::TOPIC_ALIAS, _) => return Err(Malformed("a topic alias, of which none is allowed")),
                (property::USER | property::SUBSCRIPTION_ID, _) => {}
                _ => return Err(Malformed("PUBLISH carries a property that it must not")),
            }
        }
    }
    topic::check_name(topic).map_err(|_| Malformed("PUBLISH to a topic that is none"))?;
    incoming.payload = body.0;
    Ok(incoming)
}

enum Value<'a> {
    One(u8),
    Two(u16),
    Four(u32),
    Number,
    Text(&'a str),
    Bytes(&'a [u8]),
    Pair(&'a str, &'a str),
}

#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

const SHORT: Malformed = Malformed("a packet ends before its fields do");

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*first)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(SHORT)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(SHORT)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*bytes))
    }

    fn packet_id(&mut self) -> Result<u16, Malformed> {
        match self.u16()? {
            0 => Err(Malformed("a packet id of 0")),
            id => Ok(id),
        }
    }

    fn varint(&mut self) -> Result<usize, Malformed> {
        let mut n = 0usize;
        for at in 0..4 {
            let byte = self.u8()?;
            n |= usize::from(byte & 0x7F) << (7 * at);
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(Malformed("a variable byte integer has more than four bytes"))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed("a text that is not UTF-8"))
    }

    fn properties(&mut self) -> Result<Reader<'a>, Malformed> {
        let length = self.varint()?;
        self.take(length).map(Reader)
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("bytes after the end of a packet")) }
    }

    /// The next property (section 2.2.2); the caller checks whether it belongs there.
    fn property(&mut self) -> Result<Option<(u8, Value<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let id = self.u8()?;
        let value = match id {
            property::PAYLOAD_FORMAT
            | property::MAXIMUM_QOS
            | property::RETAIN_AVAILABLE
            | property::WILDCARD_AVAILABLE
            | property::SUBSCRIPTION_IDS_AVAILABLE
            | property::SHARED_AVAILABLE => Value::One(self.u8()?),
            property::SERVER_KEEP_ALIVE | property::RECEIVE_MAXIMUM | property::TOPIC_ALIAS_MAXIMUM | property::TOPIC_ALIAS => {
                Value::Two(self.u16()?)
            }
            property::MESSAGE_EXPIRY | property::SESSION_EXPIRY | property::MAXIMUM_PACKET_SIZE => Value::Four(self.u32()?),
            property::SUBSCRIPTION_ID => {
                self.varint()?;
                Value::Number
            }
            property::CONTENT_TYPE
            | property::RESPONSE_TOPIC
            | property::ASSIGNED_CLIENT_ID
            | property::AUTH_METHOD
            | property::RESPONSE_INFORMATION
            | property::SERVER_REFERENCE
            | property::REASON_STRING => Value::Text(self.text()?),
            property::CORRELATION_DATA | property::AUTH_DATA => Value::Bytes(self.bytes()?),
            property::USER => Value::Pair(self.text()?, self.text()?),
            _ => return Err(Malformed("an unknown property")),
        };
        Ok(Some((id, value)))
    }

    /// Properties of an acknowledgement or DISCONNECT: only texts are of interest.
    fn reason_properties(&mut self) -> Result<Option<&'a str>, Malformed> {
        let mut properties = self.properties()?;
        let mut reason = None;
        while let Some((id, value)) = properties.property()? {
            match (id, value) {
                (property::REASON_STRING, Value::Text(text)) => reason = Some(text),
                (property::USER | property::SERVER_REFERENCE | property::SESSION_EXPIRY, _) => {}
                _ => return Err(Malformed("an acknowledgement carries a property that it must not")),
            }
        }
        Ok(reason)
    }
}
