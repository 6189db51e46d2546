//! From stored records and retained messages to what a handler gets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use selvedge::component::{Delivery, Metadata};
use selvedge::message::{Attributes, Message};

/// What is told about a message beside its attributes.
pub(crate) struct Facts<'a> {
    pub topic: &'a str,
    pub payload: Bytes,
    pub qos: u8,
    pub retained: bool,
    pub record_id: Option<String>,
}

/// MQTT's properties as metadata: user properties under their own names (the first of two equal ones), the others as
/// `responseTopic`, `correlationData` (base64), `qos`, `retained` and `recordId`.
pub(crate) fn delivery(facts: Facts<'_>, attributes: &Attributes<'_>) -> Delivery {
    let mut metadata = Metadata::new();
    let mut note = |name: &str, value: String| {
        metadata.entry(name.to_owned()).or_insert(value);
    };
    note("qos", facts.qos.to_string());
    if facts.retained {
        note("retained", "true".to_owned());
    }
    if let Some(id) = facts.record_id {
        note("recordId", id);
    }
    if let Some(topic) = attributes.response_topic {
        note("responseTopic", topic.to_owned());
    }
    if let Some(data) = attributes.correlation_data {
        note("correlationData", STANDARD.encode(data));
    }
    for (name, value) in attributes.user {
        note(name, (*value).to_owned());
    }
    Delivery { topic: facts.topic.to_owned(), data: facts.payload, content_type: attributes.content_type.map(str::to_owned), metadata }
}

/// A retained message for someone who has just subscribed.
pub(crate) fn retained(message: &Message) -> Delivery {
    let user: Vec<(&str, &str)> = message.attributes.user.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let attributes = Attributes {
        content_type: message.attributes.content_type.as_deref(),
        response_topic: message.attributes.response_topic.as_deref(),
        correlation_data: message.attributes.correlation_data.as_deref(),
        utf8: message.attributes.utf8,
        user: &user,
    };
    let facts = Facts { topic: &message.topic, payload: message.payload.clone(), qos: message.qos, retained: true, record_id: None };
    delivery(facts, &attributes)
}
