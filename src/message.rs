//! Messages as they travel through the node, in MQTT 5's vocabulary, which is the widest of the protocols served.

use bytes::Bytes;

/// What a message carries beside topic and payload: the MQTT 5 publish properties that a bridge must pass on
/// (OASIS MQTT 5.0, section 3.3.2.3). Borrowed from the buffer that the message was read into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// Media type of the payload (MQTT content type, CoAP content format, HTTP content type).
    pub content_type: Option<&'a str>,
    /// Topic that an answer is expected on.
    pub response_topic: Option<&'a str>,
    /// Bytes that tie an answer to this request.
    pub correlation_data: Option<&'a [u8]>,
    /// The sender declares the payload to be UTF-8 text (payload format indicator 1).
    pub utf8: bool,
    /// User properties in the sender's order; names may repeat.
    pub user: &'a [(&'a str, &'a str)],
}

/// A message on its way in: borrowed, so that a batch read from one socket is handed on without a copy per message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inbound<'a> {
    /// Topic name, at most 65,535 bytes of UTF-8, no wildcards.
    pub topic: &'a str,
    /// Payload, passed on unchanged.
    pub payload: &'a [u8],
    /// Properties to pass on.
    pub attributes: Attributes<'a>,
    /// Quality of service of the sender, 0 to 2. What did not come over MQTT is 1.
    pub qos: u8,
    /// The sender asked for the message to be retained. Keeping it is the ingress's job; the flag travels on.
    pub retain: bool,
    /// How long the message is of use, in seconds from now (MQTT 5 message expiry, Dapr `ttlInSeconds`).
    pub ttl_seconds: Option<u32>,
}

impl<'a> Inbound<'a> {
    /// A message of quality 1 without properties.
    #[must_use]
    pub fn new(topic: &'a str, payload: &'a [u8]) -> Self {
        Self { topic, payload, attributes: Attributes::default(), qos: 1, retain: false, ttl_seconds: None }
    }
}

/// The owned form of [`Attributes`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnedAttributes {
    /// Media type of the payload.
    pub content_type: Option<String>,
    /// Topic that an answer is expected on.
    pub response_topic: Option<String>,
    /// Bytes that tie an answer to this request.
    pub correlation_data: Option<Bytes>,
    /// The payload is declared to be UTF-8 text.
    pub utf8: bool,
    /// User properties in the sender's order.
    pub user: Vec<(String, String)>,
}

impl From<Attributes<'_>> for OwnedAttributes {
    fn from(a: Attributes<'_>) -> Self {
        Self {
            content_type: a.content_type.map(str::to_owned),
            response_topic: a.response_topic.map(str::to_owned),
            correlation_data: a.correlation_data.map(Bytes::copy_from_slice),
            utf8: a.utf8,
            user: a.user.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }
}

/// A message for subscribers on the box: owned, its payload shared by reference count between all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Topic name.
    pub topic: String,
    /// Payload, shared.
    pub payload: Bytes,
    /// Properties.
    pub attributes: OwnedAttributes,
    /// Quality of service of the sender.
    pub qos: u8,
    /// The sender asked for retention.
    pub retain: bool,
    /// Lifetime in seconds from acceptance.
    pub ttl_seconds: Option<u32>,
}

impl From<&Inbound<'_>> for Message {
    fn from(m: &Inbound<'_>) -> Self {
        Self {
            topic: m.topic.to_owned(),
            payload: Bytes::copy_from_slice(m.payload),
            attributes: m.attributes.into(),
            qos: m.qos,
            retain: m.retain,
            ttl_seconds: m.ttl_seconds,
        }
    }
}
