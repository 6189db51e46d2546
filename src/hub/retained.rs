//! Retained messages: the last one of each topic, kept for those who subscribe later (OASIS MQTT 5.0, section 3.3.1.3).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::component::{Fut, Table, TableError};
use crate::message::{Inbound, Message, OwnedAttributes};
use crate::time::{Clock, Timestamp};
use crate::topic;

/// Most retained messages of the node.
const MAX_MESSAGES: usize = 10_000;
/// Most bytes of retained payloads of the node.
const MAX_BYTES: usize = 32 << 20;

/// A retained message could not be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RetainedError {
    /// No room for another topic.
    #[error("no room for another retained message (at most {MAX_MESSAGES} of {MAX_BYTES} bytes together)")]
    Full,
    /// The table failed.
    #[error(transparent)]
    Table(#[from] TableError),
}

struct Kept {
    message: Arc<Message>,
    at: Timestamp,
}

#[derive(Default)]
struct State {
    by_pubsub: BTreeMap<String, BTreeMap<String, Kept>>,
    messages: usize,
    bytes: usize,
}

impl State {
    fn remove(&mut self, pubsub: &str, topic: &str) {
        if let Some(gone) = self.by_pubsub.get_mut(pubsub).and_then(|topics| topics.remove(topic)) {
            self.messages -= 1;
            self.bytes -= gone.message.payload.len();
        }
    }

    fn insert(&mut self, pubsub: &str, kept: Kept) -> Result<(), RetainedError> {
        let (old_count, old_bytes) =
            self.by_pubsub.get(pubsub).and_then(|t| t.get(&kept.message.topic)).map_or((0, 0), |old| (1, old.message.payload.len()));
        let bytes = self.bytes - old_bytes + kept.message.payload.len();
        let messages = self.messages - old_count + 1;
        if messages > MAX_MESSAGES || bytes > MAX_BYTES {
            return Err(RetainedError::Full);
        }
        self.messages = messages;
        self.bytes = bytes;
        self.by_pubsub.entry(pubsub.to_owned()).or_default().insert(kept.message.topic.clone(), kept);
        Ok(())
    }
}

pub(super) struct Retained {
    table: Arc<dyn Table>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

/// A row of the table. Binary parts are base64, so that the row is JSON that people can read.
#[derive(Serialize, Deserialize)]
struct Row {
    pubsub: String,
    topic: String,
    payload: String,
    at: u64,
    qos: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl_seconds: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    response_topic: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation_data: Option<String>,
    #[serde(default)]
    utf8: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    user: Vec<(String, String)>,
}

fn key(pubsub: &str, topic: &str) -> String {
    // A pub/sub's name has no slash (resource names may not), so the key is unambiguous.
    format!("{pubsub}/{topic}")
}

fn encode(pubsub: &str, kept: &Kept) -> Bytes {
    let m = &kept.message;
    let row = Row {
        pubsub: pubsub.to_owned(),
        topic: m.topic.clone(),
        payload: STANDARD.encode(&m.payload),
        at: kept.at.0,
        qos: m.qos,
        ttl_seconds: m.ttl_seconds,
        content_type: m.attributes.content_type.clone(),
        response_topic: m.attributes.response_topic.clone(),
        correlation_data: m.attributes.correlation_data.as_ref().map(|d| STANDARD.encode(d)),
        utf8: m.attributes.utf8,
        user: m.attributes.user.clone(),
    };
    serde_json::to_vec(&row).map(Bytes::from).unwrap_or_default()
}

fn decode(row: &[u8]) -> Option<(String, Kept)> {
    let row: Row = serde_json::from_slice(row).ok()?;
    topic::check_name(&row.topic).ok()?;
    let correlation_data = match row.correlation_data {
        Some(text) => Some(Bytes::from(STANDARD.decode(text).ok()?)),
        None => None,
    };
    let message = Message {
        payload: Bytes::from(STANDARD.decode(row.payload).ok()?),
        attributes: OwnedAttributes {
            content_type: row.content_type,
            response_topic: row.response_topic,
            correlation_data,
            utf8: row.utf8,
            user: row.user,
        },
        topic: row.topic,
        qos: row.qos.min(2),
        retain: true,
        ttl_seconds: row.ttl_seconds,
    };
    Some((row.pubsub, Kept { message: Arc::new(message), at: Timestamp(row.at) }))
}

impl Retained {
    pub(super) async fn load(table: Arc<dyn Table>, clock: Arc<dyn Clock>) -> Result<Self, RetainedError> {
        let mut state = State::default();
        for (key, row) in table.load().await? {
            match decode(&row) {
                Some((pubsub, kept)) => {
                    if state.insert(&pubsub, kept).is_err() {
                        tracing::warn!(row = %key, "retained message left out: no room");
                    }
                }
                None => tracing::warn!(row = %key, "retained message left out: unreadable row"),
            }
        }
        Ok(Self { table, clock, state: Mutex::new(state) })
    }

    /// Keeps the message, or forgets its topic when the payload is empty. The returned future resolves when that is durable.
    pub(super) fn keep(&self, pubsub: &str, message: &Inbound<'_>) -> Result<Fut<'static, Result<(), TableError>>, RetainedError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(pubsub, message.topic);
        if message.payload.is_empty() {
            state.remove(pubsub, message.topic);
            return Ok(self.table.delete(&key));
        }
        let kept = Kept { message: Arc::new(Message::from(message)), at: self.clock.now() };
        let row = encode(pubsub, &kept);
        state.insert(pubsub, kept)?;
        // The write takes its place in line while the lock is held, so that memory and table agree on which one is the last.
        Ok(self.table.put(&key, row))
    }

    pub(super) fn matching(&self, pubsub: &str, filter: &str) -> Vec<Arc<Message>> {
        let now = self.clock.now();
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(topics) = state.by_pubsub.get(pubsub) else { return Vec::new() };
        let alive = |kept: &&Kept| kept.message.ttl_seconds.is_none_or(|ttl| now.since(kept.at).as_secs() < u64::from(ttl));
        if !filter.contains(['+', '#']) {
            return topics.get(filter).filter(alive).map(|kept| kept.message.clone()).into_iter().collect();
        }
        topics.iter().filter(|(name, _)| topic::matches(filter, name)).map(|(_, kept)| kept).filter(alive).map(|kept| kept.message.clone()).collect()
    }
}
