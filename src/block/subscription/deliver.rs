//! One message on its way to a subscriber: unwrapped, routed, delivered, and where it goes when that fails.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::routes::Routes;
use crate::app::{AppChannel, TopicEvent, Verdict};
use crate::block::{Blocks, PublishCall, cloudevent};
use crate::component::{Delivery, Fut, HandlerError, MessageHandler, Metadata, is_truthy};
use crate::resource::SubscriptionSpec;

/// Where events of a subscription go.
pub(crate) trait Outlet: Send + Sync + 'static {
    /// Hands one event over and waits for what became of it.
    fn deliver<'a>(&'a self, event: TopicEvent<'a>) -> Fut<'a, Verdict>;
}

impl Outlet for AppChannel {
    fn deliver<'a>(&'a self, event: TopicEvent<'a>) -> Fut<'a, Verdict> {
        Box::pin(async move {
            let verdict = Self::deliver(self, event).await.unwrap_or_else(|e| Verdict::Retry(e.to_string()));
            if verdict == Verdict::Drop {
                tracing::warn!(topic = %event.topic, "DROP status returned from app while processing pub/sub event");
            }
            verdict
        })
    }
}

/// The handler of a subscription whose messages go one by one.
pub(super) struct Delivering {
    pub blocks: Blocks,
    pub outlet: Arc<dyn Outlet>,
    pub spec: SubscriptionSpec,
    pub routes: Routes,
}

impl Delivering {
    pub fn is_raw(&self) -> bool {
        self.spec.metadata.iter().any(|(k, v)| k.eq_ignore_ascii_case("rawPayload") && is_truthy(v))
    }

    /// The event as the subscriber gets it.
    ///
    /// # Errors
    /// When the payload is no CloudEvent and the subscription is not for raw payloads.
    fn event(&self, message: &Delivery) -> Result<Map<String, Value>, String> {
        if self.is_raw() {
            let mut event = json!({
                "id": uuid::Uuid::new_v4().to_string(), "specversion": "1.0", "source": "Dapr", "type": "com.dapr.event.sent",
                "datacontenttype": "application/octet-stream", "topic": message.topic, "pubsubname": self.spec.pubsub,
                "data_base64": STANDARD.encode(&message.data),
            });
            for name in ["traceparent", "tracestate"] {
                if let Some(value) = message.metadata.get(name) {
                    event[name] = json!(value);
                }
            }
            return Ok(event.as_object().cloned().unwrap_or_default());
        }
        match serde_json::from_slice::<Value>(&message.data) {
            Ok(Value::Object(event)) => Ok(event),
            Ok(_) | Err(_) => Err("the payload is no CloudEvent; subscribe with rawPayload: \"true\" to get it as it is".to_owned()),
        }
    }

    /// The event and its path, or what becomes of the message without the subscriber being asked.
    pub fn prepare(&self, message: &Delivery) -> Result<(Map<String, Value>, &str), Verdict> {
        let event = self.event(message).map_err(Verdict::Retry)?;
        let id = || event.get("id").and_then(Value::as_str).unwrap_or_default();
        if cloudevent::has_expired(&event, self.blocks.inner.clock.now()) {
            tracing::warn!("dropping expired pub/sub event {}", id());
            return Err(Verdict::Drop);
        }
        match self.routes.path(&event) {
            Ok(Some(path)) => Ok((event, path)),
            Ok(None) => {
                tracing::warn!("no matching route for event {} in pubsub {} and topic {}; skipping", id(), self.spec.pubsub, message.topic);
                Err(Verdict::Drop)
            }
            Err(cause) => Err(Verdict::Retry(cause)),
        }
    }

    /// What the verdict means for the message: `Ok` acknowledges it.
    pub async fn settle(&self, message: &Delivery, verdict: Verdict) -> Result<(), HandlerError> {
        let has_letters = !self.spec.dead_letter_topic.is_empty();
        match verdict {
            Verdict::Done | Verdict::Unwanted => Ok(()),
            Verdict::Drop if !has_letters => Ok(()),
            Verdict::Retry(cause) if !has_letters => Err(HandlerError::Retry(cause)),
            Verdict::Drop | Verdict::Retry(_) => self.dead_letter(message).await.map_err(HandlerError::Retry),
        }
    }

    async fn dead_letter(&self, message: &Delivery) -> Result<(), String> {
        let call = PublishCall {
            pubsub: self.spec.pubsub.clone(),
            topic: self.spec.dead_letter_topic.clone(),
            data: message.data.clone(),
            metadata: Metadata::from([("rawPayload".to_owned(), "true".to_owned())]),
            ..PublishCall::default()
        };
        self.blocks.publish(call).await.map(|_| ()).map_err(|e| e.message)
    }
}

impl MessageHandler for Delivering {
    fn handle<'a>(&'a self, message: Delivery) -> Fut<'a, Result<(), HandlerError>> {
        Box::pin(async move {
            let verdict = match self.prepare(&message) {
                Ok((event, path)) => self.outlet.deliver(TopicEvent { pubsub: &self.spec.pubsub, topic: &message.topic, path, event: &event }).await,
                Err(verdict) => verdict,
            };
            self.settle(&message, verdict).await
        })
    }
}
