//! Publishing: scopes, CloudEvents, the outbox before upstreams, many at once.

use bytes::Bytes;
use serde_json::Value;

use super::cloudevent::{self, Wrap};
use super::{Blocks, scope};
use crate::api::error::{ApiError, pubsub};
use crate::component::{Metadata, PubSub, PubSubError, PubSubFeature, PublishRequest, Published, is_truthy};
use crate::message::{Attributes, Inbound};
use crate::node::Loaded;

/// Most entries of a bulk publish that are on their way at a time.
const PARALLEL: usize = 100;

/// One message, as the transports give it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishCall {
    /// Pub/sub.
    pub pubsub: String,
    /// Topic.
    pub topic: String,
    /// Data.
    pub data: Bytes,
    /// Media type; may be empty.
    pub content_type: String,
    /// Request metadata.
    pub metadata: Metadata,
    /// W3C trace parent; empty when there is none.
    pub trace_parent: String,
    /// W3C trace state.
    pub trace_state: String,
}

/// One entry of a bulk publish.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BulkPublishEntry {
    /// The caller's name for it.
    pub entry_id: String,
    /// Event.
    pub event: Bytes,
    /// Media type.
    pub content_type: String,
    /// Its metadata.
    pub metadata: Metadata,
}

/// What became of a bulk publish: entries that failed and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BulkOutcome {
    /// Entry id and cause.
    pub failed: Vec<(String, String)>,
}

fn find<'m>(metadata: &'m Metadata, name: &str) -> Option<&'m str> {
    metadata.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
}

/// `rawPayload` as Go's `ParseBool` reads it.
fn is_raw(metadata: &Metadata) -> Result<bool, String> {
    match find(metadata, "rawPayload") {
        None | Some("") => Ok(false),
        Some(text) => match text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
            other => Err(format!("rawPayload value must be a valid boolean: actual is '{other}'")),
        },
    }
}

impl Blocks {
    fn pubsub(&self, name: &str, topic: &str) -> Result<&Loaded<dyn PubSub>, ApiError> {
        if name.is_empty() {
            return Err(pubsub::name_empty());
        }
        let loaded = self.inner.components.pubsub.get(name).ok_or_else(|| pubsub::not_found(name))?;
        if topic.is_empty() {
            return Err(pubsub::topic_empty(name));
        }
        Ok(loaded)
    }

    fn may_publish(&self, loaded: &Loaded<dyn PubSub>, topic: &str) -> bool {
        scope::allows(&loaded.properties, "publishingScopes", &self.inner.app_id, topic)
    }

    fn payload(&self, loaded: &Loaded<dyn PubSub>, call: &PublishCall) -> Result<(Bytes, String), ApiError> {
        let app = &self.inner.app_id;
        if is_raw(&call.metadata).map_err(|e| pubsub::metadata(&call.pubsub, app, e))? {
            return Ok((call.data.clone(), call.content_type.clone()));
        }
        let now = self.inner.clock.now();
        let wrapped = cloudevent::wrap(&Wrap {
            app_id: app,
            pubsub: &call.pubsub,
            topic: &call.topic,
            data: &call.data,
            content_type: &call.content_type,
            metadata: &call.metadata,
            trace_parent: &call.trace_parent,
            trace_state: &call.trace_state,
            now,
        })
        .map_err(|e| pubsub::cloud_event(&call.pubsub, app, e))?;
        let wrapped = match ttl_seconds(&call.metadata) {
            // A broker without lifetimes of its own: the event carries its end.
            Some(seconds) if !loaded.item.features().contains(&PubSubFeature::MessageTtl) && !self.is_stored(&call.pubsub) => {
                with_expiration(&wrapped, now.plus(std::time::Duration::from_secs(u64::from(seconds))))
            }
            _ => wrapped,
        };
        Ok((wrapped, cloudevent::CONTENT_TYPE.to_owned()))
    }

    fn is_stored(&self, name: &str) -> bool {
        self.inner.outboxed.contains(name)
    }

    async fn hand_over(&self, loaded: &Loaded<dyn PubSub>, call: &PublishCall, data: Bytes, content_type: String) -> Result<Published, PubSubError> {
        let Some(hub) = self.inner.hub.as_ref().filter(|_| self.is_stored(&call.pubsub)) else {
            let mut metadata = call.metadata.clone();
            // A CloudEvent carries the trace itself; beside a raw payload it travels as metadata.
            if content_type != cloudevent::CONTENT_TYPE {
                for (name, value) in [("traceparent", &call.trace_parent), ("tracestate", &call.trace_state)] {
                    if !value.is_empty() {
                        metadata.entry(name.to_owned()).or_insert_with(|| value.clone());
                    }
                }
            }
            let request = PublishRequest { topic: call.topic.clone(), data, content_type: Some(content_type), metadata };
            return loaded.item.publish(request).await;
        };
        let message = Inbound {
            attributes: Attributes { content_type: Some(&content_type), utf8: false, ..Attributes::default() },
            retain: find(&call.metadata, "retain").is_some_and(is_truthy),
            ttl_seconds: ttl_seconds(&call.metadata),
            ..Inbound::new(&call.topic, &data)
        };
        let record = hub.accept_one(&call.pubsub, &message).await?;
        Ok(Published {
            record_id: record.map(|id| hub.outbox().record_id_text(id)),
            // What its lane does not store is with the upstream.
            queued: self.inner.status.is_behind(&call.pubsub).unwrap_or(false) && record.is_none_or(|id| !hub.outbox().passes(id.lane)),
        })
    }

    /// Publishes events as they are, in order, up to the first that is refused; scopes were checked when they were promised. Gives how many
    /// were published, and why not all.
    pub(super) async fn publish_events(&self, call: &PublishCall, events: &[Bytes], content_type: &str) -> (usize, Result<(), String>) {
        let loaded = match self.pubsub(&call.pubsub, &call.topic) {
            Ok(loaded) => loaded,
            Err(error) => return (0, Err(error.message)),
        };
        if let Some(hub) = self.inner.hub.as_ref().filter(|_| self.is_stored(&call.pubsub)) {
            let attributes = Attributes { content_type: Some(content_type), ..Attributes::default() };
            let messages: Vec<Inbound<'_>> = events.iter().map(|event| Inbound { attributes, ..Inbound::new(&call.topic, event) }).collect();
            let accepted = hub.accept(&call.pubsub, &messages);
            return match hub.settled(accepted.receipt).await {
                Ok(()) => (accepted.taken, accepted.refused.map_or(Ok(()), |e| Err(e.to_string()))),
                Err(error) => (0, Err(error.to_string())),
            };
        }
        for (at, event) in events.iter().enumerate() {
            if let Err(error) = self.hand_over(loaded, call, event.clone(), content_type.to_owned()).await {
                return (at, Err(error.to_string()));
            }
        }
        (events.len(), Ok(()))
    }

    /// Publishes one message. To an upstream: answered when the message is as safe as its lane declares, whatever the link does.
    ///
    /// # Errors
    /// No such pub/sub or topic, not allowed, no CloudEvent, or refused.
    pub async fn publish(&self, call: PublishCall) -> Result<Published, ApiError> {
        let loaded = self.pubsub(&call.pubsub, &call.topic)?;
        if !self.may_publish(loaded, &call.topic) {
            return Err(pubsub::forbidden(&call.pubsub, &call.topic, &self.inner.app_id));
        }
        let (data, content_type) = self.payload(loaded, &call)?;
        self.hand_over(loaded, &call, data, content_type).await.map_err(|e| pubsub::publish(&call.pubsub, &call.topic, &e))
    }

    /// Whether a publish to this topic would be taken, before its body is read.
    ///
    /// # Errors
    /// No such pub/sub or topic, or not allowed.
    pub fn check_publish(&self, name: &str, topic: &str) -> Result<(), ApiError> {
        let loaded = self.pubsub(name, topic)?;
        if self.may_publish(loaded, topic) { Ok(()) } else { Err(pubsub::forbidden(name, topic, &self.inner.app_id)) }
    }

    /// Publishes many; each entry succeeds or fails on its own. `like` gives pub/sub, topic, metadata and trace.
    ///
    /// # Errors
    /// What concerns the request as a whole: names, scopes, entry ids.
    pub async fn bulk_publish(&self, like: &PublishCall, entries: Vec<BulkPublishEntry>) -> Result<BulkOutcome, ApiError> {
        let loaded = self.pubsub(&like.pubsub, &like.topic)?;
        let app = &self.inner.app_id;
        if !self.may_publish(loaded, &like.topic) {
            return Err(pubsub::forbidden(&like.pubsub, &like.topic, app));
        }
        let mut seen = std::collections::BTreeSet::new();
        for entry in &entries {
            if entry.entry_id.is_empty() || !seen.insert(&entry.entry_id) {
                let text = format!("entryId is duplicated or not present for entry: {}", entry.entry_id);
                return Err(pubsub::entries(&like.pubsub, &like.topic, app, text));
            }
        }
        let mut prepared = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut metadata = entry.metadata;
            if !metadata.is_empty() {
                // Dapr's rule: the request's metadata reaches an entry that has some of its own.
                for (k, v) in &like.metadata {
                    metadata.entry(k.clone()).or_insert_with(|| v.clone());
                }
            }
            let call = PublishCall { data: entry.event, content_type: entry.content_type, metadata, ..like.clone() };
            let raw = PublishCall { metadata: like.metadata.clone(), ..call.clone() };
            let (data, content_type) =
                if is_raw(&like.metadata).unwrap_or(false) { self.payload(loaded, &raw)? } else { self.payload(loaded, &call)? };
            prepared.push((entry.entry_id, call, data, content_type));
        }
        let mut outcome = BulkOutcome::default();
        // In order; a hundred at a time so that group commit serves them together.
        while !prepared.is_empty() {
            let rest = prepared.split_off(PARALLEL.min(prepared.len()));
            let batch = std::mem::replace(&mut prepared, rest);
            let sent =
                batch.into_iter().map(|(id, call, data, content_type)| async move { (id, self.hand_over(loaded, &call, data, content_type).await) });
            for (id, result) in futures_util::future::join_all(sent).await {
                if let Err(cause) = result {
                    outcome.failed.push((id, cause.to_string()));
                }
            }
        }
        Ok(outcome)
    }
}

fn ttl_seconds(metadata: &Metadata) -> Option<u32> {
    find(metadata, "ttlInSeconds").or_else(|| find(metadata, "ttl")).and_then(|t| t.trim().parse().ok()).filter(|n| *n > 0)
}

fn with_expiration(event: &Bytes, end: crate::time::Timestamp) -> Bytes {
    let Ok(Value::Object(mut map)) = serde_json::from_slice::<Value>(event) else { return event.clone() };
    map.insert("expiration".into(), Value::String(end.to_rfc3339()));
    Bytes::from(super::go_json(&Value::Object(map)))
}
