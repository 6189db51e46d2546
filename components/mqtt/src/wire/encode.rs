//! Packets to the peer, appended to a send buffer.

use selvedge::message::Attributes;

use super::{kind, property};
use crate::settings::Version;

/// Largest remaining length (section 1.5.5).
const MAX_REMAINING: usize = 268_435_455;

/// A packet that the protocol cannot express.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A text or binary field has a 16-bit length.
    #[error("{0} is longer than 65,535 bytes")]
    FieldTooLong(&'static str),
    /// Section 1.5.5.
    #[error("the packet is longer than 268,435,455 bytes")]
    PacketTooLong,
    /// The peer's own limit.
    #[error("the packet has {bytes} bytes, the peer takes {limit}")]
    OverPeerLimit {
        /// Size of the packet.
        bytes: usize,
        /// The peer's Maximum Packet Size.
        limit: u32,
    },
}

/// CONNECT.
#[derive(Debug, Clone, Copy)]
pub struct Connect<'a> {
    pub version: Version,
    pub client_id: &'a str,
    pub credentials: Option<(&'a str, &'a str)>,
    pub clean: bool,
    pub keep_alive_seconds: u16,
    /// MQTT 5: how long the broker keeps the session after the connection.
    pub session_expiry_seconds: u32,
    /// MQTT 5: most messages that the broker may have unanswered towards us.
    pub receive_maximum: u16,
    /// MQTT 5: largest packet that we take.
    pub maximum_packet_bytes: u32,
}

/// PUBLISH.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub attributes: Attributes<'a>,
    /// User properties beside those of the message.
    pub marks: &'a [(&'a str, &'a str)],
    pub expires_seconds: Option<u32>,
    pub qos: u8,
    pub retain: bool,
    pub dup: bool,
}

fn put_u16(out: &mut Vec<u8>, n: u16) {
    out.extend_from_slice(&n.to_be_bytes());
}

/// The caller has checked the length.
fn put_field(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u16(out, bytes.len() as u16);
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut n: usize) {
    loop {
        let low = (n % 128) as u8;
        n /= 128;
        out.push(if n > 0 { low | 0x80 } else { low });
        if n == 0 {
            return;
        }
    }
}

fn varint_bytes(n: usize) -> usize {
    match n {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        _ => 4,
    }
}

fn check(name: &'static str, bytes: &[u8]) -> Result<(), EncodeError> {
    if bytes.len() > usize::from(u16::MAX) { Err(EncodeError::FieldTooLong(name)) } else { Ok(()) }
}

/// Begins a packet; the remaining length has been checked.
fn begin(out: &mut Vec<u8>, first: u8, remaining: usize) {
    out.reserve(remaining + 5);
    out.push(first);
    put_varint(out, remaining);
}

/// Appends CONNECT (section 3.1). Without a will: what this client says is in the messages it sends.
///
/// # Errors
/// When a field is too long.
pub fn connect(out: &mut Vec<u8>, c: &Connect<'_>) -> Result<(), EncodeError> {
    check("the client id", c.client_id.as_bytes())?;
    let mut properties = Vec::new();
    if c.version == Version::V5 {
        if c.session_expiry_seconds > 0 {
            properties.push(property::SESSION_EXPIRY);
            properties.extend_from_slice(&c.session_expiry_seconds.to_be_bytes());
        }
        properties.push(property::RECEIVE_MAXIMUM);
        put_u16(&mut properties, c.receive_maximum);
        properties.push(property::MAXIMUM_PACKET_SIZE);
        properties.extend_from_slice(&c.maximum_packet_bytes.to_be_bytes());
    }
    let mut remaining = 10 + 2 + c.client_id.len();
    if c.version == Version::V5 {
        remaining += 1 + properties.len(); // fewer than 128
    }
    let mut flags = if c.clean { 0x02 } else { 0 };
    if let Some((user, password)) = c.credentials {
        check("the user name", user.as_bytes())?;
        check("the password", password.as_bytes())?;
        flags |= 0x80;
        remaining += 2 + user.len();
        if !password.is_empty() {
            flags |= 0x40;
            remaining += 2 + password.len();
        }
    }
    begin(out, kind::CONNECT, remaining);
    put_field(out, b"MQTT");
    out.push(if c.version == Version::V5 { 5 } else { 4 });
    out.push(flags);
    put_u16(out, c.keep_alive_seconds);
    if c.version == Version::V5 {
        put_varint(out, properties.len());
        out.extend_from_slice(&properties);
    }
    put_field(out, c.client_id.as_bytes());
    if let Some((user, password)) = c.credentials {
        put_field(out, user.as_bytes());
        if !password.is_empty() {
            put_field(out, password.as_bytes());
        }
    }
    Ok(())
}

/// Bytes of the properties of a PUBLISH, without their own length.
fn publish_properties(p: &Outgoing<'_>) -> Result<usize, EncodeError> {
    let mut bytes = 0;
    let a = &p.attributes;
    if a.utf8 {
        bytes += 2;
    }
    if p.expires_seconds.is_some() {
        bytes += 5;
    }
    for (name, field) in [
        ("the content type", a.content_type.map(str::as_bytes)),
        ("the response topic", a.response_topic.map(str::as_bytes)),
        ("the correlation data", a.correlation_data),
    ] {
        if let Some(field) = field {
            check(name, field)?;
            bytes += 3 + field.len();
        }
    }
    for (key, value) in a.user.iter().chain(p.marks) {
        check("a user property's name", key.as_bytes())?;
        check("a user property", value.as_bytes())?;
        bytes += 5 + key.len() + value.len();
    }
    Ok(bytes)
}

/// Size of the whole packet, and of its properties.
///
/// # Errors
/// When the protocol cannot express it.
pub fn publish_bytes(version: Version, p: &Outgoing<'_>) -> Result<(usize, usize), EncodeError> {
    check("the topic", p.topic.as_bytes())?;
    let mut remaining = 2 + p.topic.len() + p.payload.len() + if p.qos > 0 { 2 } else { 0 };
    let mut properties = 0;
    if version == Version::V5 {
        properties = publish_properties(p)?;
        remaining += varint_bytes(properties) + properties;
    }
    if remaining > MAX_REMAINING {
        return Err(EncodeError::PacketTooLong);
    }
    Ok((1 + varint_bytes(remaining) + remaining, properties))
}

/// Appends PUBLISH (section 3.3). `sizes` are those of [`publish_bytes`] for the same packet.
pub fn publish(out: &mut Vec<u8>, version: Version, p: &Outgoing<'_>, id: u16, (total, properties): (usize, usize)) {
    let remaining = 2 + p.topic.len() + p.payload.len() + if p.qos > 0 { 2 } else { 0 };
    let remaining = if version == Version::V5 { remaining + varint_bytes(properties) + properties } else { remaining };
    out.reserve(total);
    out.push(kind::PUBLISH | u8::from(p.dup && p.qos > 0) << 3 | p.qos << 1 | u8::from(p.retain));
    put_varint(out, remaining);
    put_field(out, p.topic.as_bytes());
    if p.qos > 0 {
        put_u16(out, id);
    }
    if version == Version::V5 {
        let a = &p.attributes;
        put_varint(out, properties);
        if a.utf8 {
            out.extend_from_slice(&[property::PAYLOAD_FORMAT, 1]);
        }
        if let Some(seconds) = p.expires_seconds {
            out.push(property::MESSAGE_EXPIRY);
            out.extend_from_slice(&seconds.to_be_bytes());
        }
        for (name, field) in [
            (property::CONTENT_TYPE, a.content_type.map(str::as_bytes)),
            (property::RESPONSE_TOPIC, a.response_topic.map(str::as_bytes)),
            (property::CORRELATION_DATA, a.correlation_data),
        ] {
            if let Some(field) = field {
                out.push(name);
                put_field(out, field);
            }
        }
        for (key, value) in a.user.iter().chain(p.marks) {
            out.push(property::USER);
            put_field(out, key.as_bytes());
            put_field(out, value.as_bytes());
        }
    }
    out.extend_from_slice(p.payload);
}

/// Appends PUBACK, PUBREC, PUBREL or PUBCOMP with success (sections 3.4 to 3.7).
pub fn respond(out: &mut Vec<u8>, first: u8, id: u16) {
    out.extend_from_slice(&[first, 2]);
    put_u16(out, id);
}

/// Appends SUBSCRIBE (section 3.8). With MQTT 5 retained messages come only with a subscription that is new to the session.
///
/// # Errors
/// When a filter is too long.
pub fn subscribe(out: &mut Vec<u8>, version: Version, id: u16, filters: &[(&str, u8)]) -> Result<(), EncodeError> {
    let mut remaining = 2 + usize::from(version == Version::V5);
    for (filter, _) in filters {
        check("the topic filter", filter.as_bytes())?;
        remaining += 3 + filter.len();
    }
    if remaining > MAX_REMAINING {
        return Err(EncodeError::PacketTooLong);
    }
    begin(out, kind::SUBSCRIBE, remaining);
    put_u16(out, id);
    if version == Version::V5 {
        out.push(0);
    }
    for (filter, qos) in filters {
        put_field(out, filter.as_bytes());
        // Retain handling 1, bits 4 and 5; retain as published, bit 3.
        out.push(if version == Version::V5 { qos | 0x10 | 0x08 } else { *qos });
    }
    Ok(())
}

/// Appends UNSUBSCRIBE of one filter (section 3.10).
///
/// # Errors
/// When the filter is too long.
pub fn unsubscribe(out: &mut Vec<u8>, version: Version, id: u16, filter: &str) -> Result<(), EncodeError> {
    check("the topic filter", filter.as_bytes())?;
    begin(out, kind::UNSUBSCRIBE, 4 + filter.len() + usize::from(version == Version::V5));
    put_u16(out, id);
    if version == Version::V5 {
        out.push(0);
    }
    put_field(out, filter.as_bytes());
    Ok(())
}

/// Appends PINGREQ (section 3.12).
pub fn ping(out: &mut Vec<u8>) {
    out.extend_from_slice(&[kind::PINGREQ, 0]);
}

/// Appends DISCONNECT with the normal reason (section 3.14).
pub fn disconnect(out: &mut Vec<u8>) {
    out.extend_from_slice(&[kind::DISCONNECT, 0]);
}
