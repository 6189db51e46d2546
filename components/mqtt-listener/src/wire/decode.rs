//! Packets of clients. Reading borrows from the buffer.

use selvedge::message::Attributes;

use super::{Read, Version, WireError, malformed, reason, violation};
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(malformed("a field is longer than its packet"))?;
        self.0 = tail;
        Ok(head)
    }
    fn u8(&mut self) -> Read<u8> {
        Ok(self.take(1)?[0])
    }
    fn u16(&mut self) -> Read<u16> {
        let b = self.take(2)?;
        Ok(u16::from_be_bytes([b[0], b[1]]))
    }
    fn u32(&mut self) -> Read<u32> {
        let b = self.take(4)?;
        Ok(u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }
    fn binary(&mut self) -> Read<&'a [u8]> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }
    fn text(&mut self) -> Read<&'a str> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| malformed("a text is not UTF-8"))?;
        if text.contains('\0') { Err(malformed("a text holds U+0000")) } else { Ok(text) }
    }
    fn varint(&mut self) -> Read<u32> {
        let mut value = 0u32;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("a length has more than four bytes"))
    }
    fn packet_id(&mut self) -> Read<u16> {
        match self.u16()? {
            0 => Err(violation("packet identifier 0")),
            id => Ok(id),
        }
    }
    fn properties(&mut self, version: Version) -> Read<Bytes<'a>> {
        if version == Version::V3 {
            return Ok(Bytes(&[]));
        }
        let n = self.varint()? as usize;
        Ok(Bytes(self.take(n)?))
    }
}

/// A property of 5.0, section 2.2.2.2, as far as clients send them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Property<'a> {
    PayloadFormat(u8),
    MessageExpiry(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    SubscriptionId(u32),
    SessionExpiry(u32),
    AuthMethod(&'a str),
    WillDelay(u32),
    ReceiveMaximum(u16),
    TopicAlias(u16),
    User(&'a str, &'a str),
    MaximumPacket(u32),
    /// Known, of no meaning here.
    Other,
}

fn property<'a>(bytes: &mut Bytes<'a>) -> Read<Property<'a>> {
    Ok(match bytes.varint()? {
        0x01 => Property::PayloadFormat(bytes.u8()?),
        0x02 => Property::MessageExpiry(bytes.u32()?),
        0x03 => Property::ContentType(bytes.text()?),
        0x08 => Property::ResponseTopic(bytes.text()?),
        0x09 => Property::CorrelationData(bytes.binary()?),
        0x0B => match bytes.varint()? {
            0 => return Err(violation("subscription identifier 0")),
            id => Property::SubscriptionId(id),
        },
        0x11 => Property::SessionExpiry(bytes.u32()?),
        0x15 => Property::AuthMethod(bytes.text()?),
        0x16 => {
            bytes.binary()?;
            Property::Other
        }
        0x17 | 0x19 => {
            bytes.u8()?;
            Property::Other
        }
        0x18 => Property::WillDelay(bytes.u32()?),
        0x1F => {
            bytes.text()?;
            Property::Other
        }
        0x21 => match bytes.u16()? {
            0 => return Err(violation("receive maximum 0")),
            n => Property::ReceiveMaximum(n),
        },
        0x22 => {
            bytes.u16()?;
            Property::Other
        }
        0x23 => match bytes.u16()? {
            0 => return Err(WireError { reason: reason::TOPIC_ALIAS, what: "topic alias 0" }),
            n => Property::TopicAlias(n),
        },
        0x26 => Property::User(bytes.text()?, bytes.text()?),
        0x27 => match bytes.u32()? {
            0 => return Err(violation("maximum packet size 0")),
            n => Property::MaximumPacket(n),
        },
        _ => return Err(malformed("an unknown property")),
    })
}

/// The properties of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MessageProperties<'a> {
    /// Media type.
    pub content_type: Option<&'a str>,
    /// Topic for an answer.
    pub response_topic: Option<&'a str>,
    /// Ties an answer to this.
    pub correlation_data: Option<&'a [u8]>,
    /// Payload is text.
    pub utf8: bool,
    /// User properties.
    pub user: Vec<(&'a str, &'a str)>,
    /// Lifetime in seconds.
    pub expiry: Option<u32>,
    /// Topic alias.
    pub alias: Option<u16>,
    /// Will delay in seconds.
    pub will_delay: u32,
}

impl<'a> MessageProperties<'a> {
    fn read(mut bytes: Bytes<'a>) -> Read<Self> {
        let mut all = Self::default();
        while !bytes.0.is_empty() {
            match property(&mut bytes)? {
                Property::PayloadFormat(n) => all.utf8 = n == 1,
                Property::MessageExpiry(n) => all.expiry = Some(n),
                Property::ContentType(t) => all.content_type = Some(t),
                Property::ResponseTopic(t) => all.response_topic = Some(t),
                Property::CorrelationData(d) => all.correlation_data = Some(d),
                Property::User(k, v) => all.user.push((k, v)),
                Property::TopicAlias(n) => all.alias = Some(n),
                Property::WillDelay(n) => all.will_delay = n,
                _ => return Err(violation("a property that does not belong here")),
            }
        }
        Ok(all)
    }

    /// As the node's own type.
    #[must_use]
    pub fn attributes(&self) -> Attributes<'_> {
        Attributes {
            content_type: self.content_type,
            response_topic: self.response_topic,
            correlation_data: self.correlation_data,
            utf8: self.utf8,
            user: &self.user,
        }
    }
}

/// PUBLISH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Sent before.
    pub dup: bool,
    /// 0 to 2.
    pub qos: u8,
    /// Retain.
    pub retain: bool,
    /// Topic; empty with an alias.
    pub topic: &'a str,
    /// Packet id; 0 with quality 0.
    pub id: u16,
    /// Properties.
    pub properties: MessageProperties<'a>,
    /// Payload.
    pub payload: &'a [u8],
}

/// The will in a CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// 0 to 2.
    pub qos: u8,
    /// Retain.
    pub retain: bool,
    /// Properties.
    pub properties: MessageProperties<'a>,
}

/// CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect<'a> {
    /// Version.
    pub version: Version,
    /// Clean session / clean start.
    pub clean: bool,
    /// Seconds; 0 = off.
    pub keep_alive: u16,
    /// Client id; may be empty.
    pub client_id: &'a str,
    /// Will.
    pub will: Option<Will<'a>>,
    /// User name.
    pub user: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
    /// Seconds that the session lives after the connection.
    pub session_expiry: u32,
    /// Publishes that the client takes at a time.
    pub receive_maximum: u16,
    /// Largest packet that the client takes.
    pub maximum_packet: Option<u32>,
    /// The client wants an extended authentication.
    pub auth_method: bool,
}

/// Session expiry that means "for ever".
pub const NEVER: u32 = u32::MAX;

/// One filter of a SUBSCRIBE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter<'a> {
    /// Filter, with `$share/` if it has one.
    pub filter: &'a str,
    /// Wanted quality.
    pub qos: u8,
    /// Not what this client publishes itself.
    pub no_local: bool,
    /// Keep the retain flag.
    pub retain_as_published: bool,
    /// 0 send retained, 1 only for a new subscription, 2 never.
    pub retain_handling: u8,
}

/// A packet of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'a> {
    /// CONNECT.
    Connect(Box<Connect<'a>>),
    /// PUBLISH.
    Publish(Publish<'a>),
    /// PUBACK.
    PubAck(u16),
    /// PUBREC, and whether it refuses.
    PubRec(u16, bool),
    /// PUBREL.
    PubRel(u16),
    /// PUBCOMP.
    PubComp(u16),
    /// SUBSCRIBE.
    Subscribe {
        /// Packet id.
        id: u16,
        /// Subscription identifier.
        subscription: Option<u32>,
        /// Filters.
        filters: Vec<Filter<'a>>,
    },
    /// UNSUBSCRIBE.
    Unsubscribe {
        /// Packet id.
        id: u16,
        /// Filters.
        filters: Vec<&'a str>,
    },
    /// PINGREQ.
    PingReq,
    /// DISCONNECT.
    Disconnect {
        /// Reason.
        reason: u8,
        /// A new session expiry.
        session_expiry: Option<u32>,
    },
}

/// The first packet of `buffer` and its length; nothing when it is not complete. `version` is the connection's, `None` before CONNECT.
///
/// # Errors
/// When the bytes break the protocol; the connection must be closed.
pub fn decode(buffer: &[u8], version: Option<Version>, limit: u32) -> Read<Option<(Packet<'_>, usize)>> {
    let Some((&first, rest)) = buffer.split_first() else { return Ok(None) };
    let mut bytes = Bytes(rest);
    let length = match bytes.varint() {
        Ok(n) => n,
        // Fewer than four bytes are there, and all say that more follow.
        Err(_) if rest.len() < 4 => return Ok(None),
        Err(e) => return Err(e),
    };
    if length > limit {
        return Err(WireError { reason: reason::TOO_LARGE, what: "a packet is larger than this listener takes" });
    }
    let Some(body) = bytes.0.get(..length as usize) else { return Ok(None) };
    let total = buffer.len() - bytes.0.len() + length as usize;
    let mut b = Bytes(body);
    let (kind, flags) = (first >> 4, first & 0x0f);
    let wanted_flags = match kind {
        3 => flags,
        6 | 8 | 10 => 2,
        _ => 0,
    };
    if flags != wanted_flags {
        return Err(malformed("reserved flags are set"));
    }
    let Some(version) = version else {
        if kind != 1 {
            return Err(violation("the first packet must be CONNECT"));
        }
        return Ok(Some((Packet::Connect(Box::new(connect(b)?)), total)));
    };
    let packet = match kind {
        1 => return Err(violation("a second CONNECT")),
        3 => Packet::Publish(publish(flags, b, version)?),
        4..=7 => {
            let id = b.packet_id()?;
            let refused = !b.0.is_empty() && b.u8()? >= 0x80;
            match kind {
                4 => Packet::PubAck(id),
                5 => Packet::PubRec(id, refused),
                6 => Packet::PubRel(id),
                _ => Packet::PubComp(id),
            }
        }
        8 => {
            let id = b.packet_id()?;
            let mut properties = b.properties(version)?;
            let mut subscription = None;
            while !properties.0.is_empty() {
                match property(&mut properties)? {
                    Property::SubscriptionId(n) => subscription = Some(n),
                    Property::User(..) => {}
                    _ => return Err(violation("a property that does not belong here")),
                }
            }
            let mut filters = Vec::new();
            while !b.0.is_empty() {
                let (filter, options) = (b.text()?, b.u8()?);
                let qos = options & 3;
                let reserved = if version == Version::V5 { options & 0xC0 } else { options & 0xFC };
                if qos == 3 || reserved != 0 || (options >> 4) & 3 == 3 {
                    return Err(malformed("subscription options"));
                }
                filters.push(Filter {
                    filter,
                    qos,
                    no_local: options & 4 != 0,
                    retain_as_published: options & 8 != 0,
                    retain_handling: (options >> 4) & 3,
                });
            }
            if filters.is_empty() {
                return Err(violation("SUBSCRIBE without a filter"));
            }
            Packet::Subscribe { id, subscription, filters }
        }
        10 => {
            let id = b.packet_id()?;
            b.properties(version)?;
            let mut filters = Vec::new();
            while !b.0.is_empty() {
                filters.push(b.text()?);
            }
            if filters.is_empty() {
                return Err(violation("UNSUBSCRIBE without a filter"));
            }
            Packet::Unsubscribe { id, filters }
        }
        12 => Packet::PingReq,
        14 => {
            let mut session_expiry = None;
            let mut reason = reason::SUCCESS;
            if version == Version::V5 && !b.0.is_empty() {
                reason = b.u8()?;
                if !b.0.is_empty() {
                    let mut properties = b.properties(version)?;
                    while !properties.0.is_empty() {
                        if let Property::SessionExpiry(n) = property(&mut properties)? {
                            session_expiry = Some(n);
                        }
                    }
                }
            }
            Packet::Disconnect { reason, session_expiry }
        }
        15 => return Err(violation("AUTH without an authentication method")),
        _ => return Err(malformed("a packet that only servers send, or type 0")),
    };
    Ok(Some((packet, total)))
}

fn publish(flags: u8, mut b: Bytes<'_>, version: Version) -> Read<Publish<'_>> {
    let qos = (flags >> 1) & 3;
    if qos == 3 {
        return Err(malformed("quality of service 3"));
    }
    let topic = b.text()?;
    let id = if qos > 0 { b.packet_id()? } else { 0 };
    let properties = MessageProperties::read(b.properties(version)?)?;
    if topic.is_empty() && properties.alias.is_none() {
        return Err(violation("PUBLISH without a topic"));
    }
    Ok(Publish { dup: flags & 8 != 0, qos, retain: flags & 1 != 0, topic, id, properties, payload: b.0 })
}

fn connect(mut b: Bytes<'_>) -> Read<Connect<'_>> {
    let (name, level) = (b.text()?, b.u8()?);
    let version = match (name, level) {
        ("MQTT", 5) => Version::V5,
        ("MQTT", 4) | ("MQIsdp", 3) => Version::V3,
        ("MQTT" | "MQIsdp", _) => return Err(WireError { reason: reason::UNSUPPORTED_VERSION, what: "accepted are MQTT 3.1, 3.1.1 and 5" }),
        _ => return Err(malformed("this is no MQTT")),
    };
    let flags = b.u8()?;
    if flags & 1 != 0 {
        return Err(malformed("reserved flag in CONNECT"));
    }
    let keep_alive = b.u16()?;
    let mut connect = Connect {
        version,
        clean: flags & 2 != 0,
        keep_alive,
        client_id: "",
        will: None,
        user: None,
        password: None,
        session_expiry: 0,
        receive_maximum: u16::MAX,
        maximum_packet: None,
        auth_method: false,
    };
    let mut properties = b.properties(version)?;
    while !properties.0.is_empty() {
        match property(&mut properties)? {
            Property::SessionExpiry(n) => connect.session_expiry = n,
            Property::ReceiveMaximum(n) => connect.receive_maximum = n,
            Property::MaximumPacket(n) => connect.maximum_packet = Some(n),
            Property::AuthMethod(_) => connect.auth_method = true,
            Property::User(..) | Property::Other => {}
            _ => return Err(violation("a property that does not belong here")),
        }
    }
    if version == Version::V3 && !connect.clean {
        connect.session_expiry = NEVER;
    }
    connect.client_id = b.text()?;
    let will_qos = (flags >> 3) & 3;
    if flags & 4 != 0 {
        if will_qos == 3 {
            return Err(malformed("quality of service 3"));
        }
        let properties = MessageProperties::read(b.properties(version)?)?;
        connect.will = Some(Will { topic: b.text()?, payload: b.binary()?, qos: will_qos, retain: flags & 0x20 != 0, properties });
    } else if flags & 0x38 != 0 {
        return Err(malformed("will flags without a will"));
    }
    if flags & 0x80 != 0 {
        connect.user = Some(b.text()?);
    }
    if flags & 0x40 != 0 {
        if version == Version::V3 && connect.user.is_none() {
            return Err(malformed("a password without a user name"));
        }
        connect.password = Some(b.binary()?);
    }
    Ok(connect)
}
