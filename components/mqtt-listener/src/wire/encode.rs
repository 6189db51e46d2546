//! Packets to clients.

use selvedge::message::Attributes;

use super::{Version, reason};
fn put_varint(out: &mut Vec<u8>, mut n: usize) {
    loop {
        let byte = (n & 0x7f) as u8;
        n >>= 7;
        if n == 0 {
            out.push(byte);
            return;
        }
        out.push(byte | 0x80);
    }
}

fn varint_len(n: usize) -> usize {
    match n {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}

fn put_binary(out: &mut Vec<u8>, bytes: &[u8]) {
    let n = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&n.to_be_bytes());
    out.extend_from_slice(&bytes[..usize::from(n)]);
}

/// What CONNACK tells a version 5 client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnAckProperties {
    /// Publishes that this listener takes at a time.
    pub receive_maximum: u16,
    /// Largest packet that it takes.
    pub maximum_packet: u32,
    /// Topic aliases that it keeps.
    pub topic_alias_maximum: u16,
    /// The id that it gave.
    pub assigned_client_id: Option<String>,
}

/// CONNACK. `reason` is of version 5; version 3 gets its nearest return code (3.1.1, section 3.2.2.3).
pub fn connack(out: &mut Vec<u8>, version: Version, session_present: bool, reason: u8, properties: Option<&ConnAckProperties>) {
    out.push(0x20);
    if version == Version::V3 {
        let code = match reason {
            reason::SUCCESS => 0,
            reason::UNSUPPORTED_VERSION => 1,
            reason::CLIENT_ID => 2,
            reason::BAD_CREDENTIALS => 4,
            reason::NOT_AUTHORIZED => 5,
            _ => 3,
        };
        out.extend_from_slice(&[2, u8::from(session_present), code]);
        return;
    }
    let mut p = Vec::new();
    if let Some(properties) = properties {
        p.push(0x21);
        p.extend_from_slice(&properties.receive_maximum.to_be_bytes());
        p.push(0x27);
        p.extend_from_slice(&properties.maximum_packet.to_be_bytes());
        p.push(0x22);
        p.extend_from_slice(&properties.topic_alias_maximum.to_be_bytes());
        if let Some(id) = &properties.assigned_client_id {
            p.push(0x12);
            put_binary(&mut p, id.as_bytes());
        }
    }
    put_varint(out, 2 + varint_len(p.len()) + p.len());
    out.extend_from_slice(&[u8::from(session_present), reason]);
    put_varint(out, p.len());
    out.extend_from_slice(&p);
}

/// PUBACK (4), PUBREC (5), PUBREL (6) or PUBCOMP (7). The reason is left out where it is success or the version has none.
pub fn acknowledge(out: &mut Vec<u8>, version: Version, kind: u8, id: u16, reason: u8) {
    out.push(kind << 4 | if kind == 6 { 2 } else { 0 });
    let with_reason = version == Version::V5 && reason != reason::SUCCESS;
    out.push(if with_reason { 3 } else { 2 });
    out.extend_from_slice(&id.to_be_bytes());
    if with_reason {
        out.push(reason);
    }
}

/// SUBACK (9) or UNSUBACK (11) with its codes.
pub fn codes(out: &mut Vec<u8>, version: Version, kind: u8, id: u16, codes: &[u8]) {
    out.push(kind << 4);
    // UNSUBACK of version 3 has no payload.
    let body: &[u8] = if kind == 11 && version == Version::V3 { &[] } else { codes };
    put_varint(out, 2 + usize::from(version == Version::V5) + body.len());
    out.extend_from_slice(&id.to_be_bytes());
    if version == Version::V5 {
        out.push(0);
    }
    out.extend_from_slice(body);
}

/// PINGRESP.
pub fn pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xD0, 0]);
}

/// DISCONNECT; version 3 servers just close.
pub fn disconnect(out: &mut Vec<u8>, version: Version, reason: u8) {
    if version == Version::V5 {
        out.extend_from_slice(&[0xE0, 2, reason, 0]);
    }
}

/// A message to a client.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// Properties.
    pub attributes: Attributes<'a>,
    /// 0 to 2.
    pub qos: u8,
    /// Packet id for quality 1 and 2.
    pub id: u16,
    /// Sent before.
    pub dup: bool,
    /// Retain flag.
    pub retain: bool,
    /// Lifetime left in seconds.
    pub expiry: Option<u32>,
    /// Identifiers of the subscriptions it matches.
    pub subscriptions: &'a [u32],
}

/// PUBLISH. Nothing is written when it would pass the client's largest packet; says whether it was.
pub fn publish_to(out: &mut Vec<u8>, version: Version, message: &Outgoing<'_>, largest: u32) -> bool {
    let a = &message.attributes;
    let mut properties = 0;
    if version == Version::V5 {
        properties = usize::from(a.utf8) * 2
            + message.expiry.map_or(0, |_| 5)
            + a.content_type.map_or(0, |t| 3 + t.len())
            + a.response_topic.map_or(0, |t| 3 + t.len())
            + a.correlation_data.map_or(0, |d| 3 + d.len())
            + message.subscriptions.iter().map(|s| 1 + varint_len(*s as usize)).sum::<usize>()
            + a.user.iter().map(|(k, v)| 5 + k.len() + v.len()).sum::<usize>();
    }
    let properties_len = if version == Version::V5 { varint_len(properties) + properties } else { 0 };
    let length = 2 + message.topic.len() + if message.qos > 0 { 2 } else { 0 } + properties_len + message.payload.len();
    if length + 1 + varint_len(length) > largest as usize || length > 268_435_455 {
        return false;
    }
    out.push(0x30 | u8::from(message.dup) << 3 | message.qos << 1 | u8::from(message.retain));
    put_varint(out, length);
    put_binary(out, message.topic.as_bytes());
    if message.qos > 0 {
        out.extend_from_slice(&message.id.to_be_bytes());
    }
    if version == Version::V5 {
        put_varint(out, properties);
        if a.utf8 {
            out.extend_from_slice(&[0x01, 1]);
        }
        if let Some(seconds) = message.expiry {
            out.push(0x02);
            out.extend_from_slice(&seconds.to_be_bytes());
        }
        for (id, part) in [(0x03, a.content_type.map(str::as_bytes)), (0x08, a.response_topic.map(str::as_bytes)), (0x09, a.correlation_data)] {
            if let Some(part) = part {
                out.push(id);
                put_binary(out, part);
            }
        }
        for id in message.subscriptions {
            out.push(0x0B);
            put_varint(out, *id as usize);
        }
        for (k, v) in a.user {
            out.push(0x26);
            put_binary(out, k.as_bytes());
            put_binary(out, v.as_bytes());
        }
    }
    out.extend_from_slice(message.payload);
    true
}
