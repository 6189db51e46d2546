//! The pub/sub contract.

use std::sync::Arc;

use bytes::Bytes;

use super::{Finding, Fut, Metadata, Uplink};
use crate::time::Timestamp;

/// What a pub/sub can do beyond publish and subscribe. The order is the one that Dapr's metadata shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PubSubFeature {
    /// The broker expires messages by itself.
    MessageTtl,
    /// Subscriptions may use the broker's wildcards.
    SubscribeWildcards,
    /// [`PubSub::bulk_publish`] is one call to the broker.
    BulkPublish,
}

impl PubSubFeature {
    /// Dapr's name of the feature.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MessageTtl => "MESSAGE_TTL",
            Self::SubscribeWildcards => "SUBSCRIBE_WILDCARDS",
            Self::BulkPublish => "BULK_PUBSUB",
        }
    }
}

/// One message to publish.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublishRequest {
    /// Topic.
    pub topic: String,
    /// Payload as it goes to the broker (a CloudEvent's JSON, or the raw bytes).
    pub data: Bytes,
    /// Media type of `data`.
    pub content_type: Option<String>,
    /// Request metadata (`ttlInSeconds`, `retain`, ...).
    pub metadata: Metadata,
}

/// What the sender may be told about a message that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Published {
    /// Record id, when the message went through the outbox.
    pub record_id: Option<String>,
    /// The message is stored and waits for its destination (the link is down or behind).
    pub queued: bool,
}

/// One entry of a bulk publish.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BulkEntry {
    /// The caller's name for the entry, unique in its request.
    pub entry_id: String,
    /// Payload.
    pub data: Bytes,
    /// Media type.
    pub content_type: String,
    /// Entry metadata.
    pub metadata: Metadata,
}

/// An entry that was not published.
#[derive(Debug)]
pub struct BulkFailure {
    /// Which entry.
    pub entry_id: String,
    /// Why.
    pub error: PubSubError,
}

/// What to receive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubscribeRequest {
    /// Topic, or filter where the pub/sub has wildcards.
    pub topic: String,
    /// Subscription metadata (`rawPayload`, `qos`, ...).
    pub metadata: Metadata,
}

/// A message for a subscriber.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Delivery {
    /// Topic.
    pub topic: String,
    /// Payload as the broker had it.
    pub data: Bytes,
    /// Media type, where the broker carries one.
    pub content_type: Option<String>,
    /// Broker metadata.
    pub metadata: Metadata,
}

/// The subscriber could not take the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandlerError {
    /// Deliver again.
    #[error("{0}")]
    Retry(String),
    /// The subscription is closing; leave the message unacknowledged.
    #[error("subscription is closed")]
    Closed,
}

/// Takes messages of a subscription. Returning `Ok` acknowledges: the message is done, whatever the application said.
pub trait MessageHandler: Send + Sync + 'static {
    /// Handles one message. Calls may overlap.
    fn handle<'a>(&'a self, message: Delivery) -> Fut<'a, Result<(), HandlerError>>;
}

/// A running subscription. Dropping it stops the delivery of new messages.
pub trait SubscriptionHandle: Send + Sync {
    /// Stops the delivery of new messages and waits for handlers that run.
    fn close<'a>(&'a self) -> Fut<'a, ()>;

    /// Resolves when the delivery has ended without [`SubscriptionHandle::close`], by a defect: the node subscribes anew. Never where that
    /// cannot happen.
    fn ended<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(std::future::pending())
    }
}

/// Why a pub/sub could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PubSubError {
    /// The request makes no sense (bad metadata, bad topic): another attempt fails as well.
    #[error("{0}")]
    Invalid(String),
    /// Refused for good by the peer.
    #[error("{0}")]
    Refused(String),
    /// What stores it has no room now: another attempt may work after this time.
    #[error("{text}")]
    Full {
        /// For people.
        text: String,
        /// Seconds.
        retry_seconds: u32,
    },
    /// Not reachable, full or timed out: another attempt may work.
    #[error("{0}")]
    Unavailable(String),
    /// The component is closed.
    #[error("component is closed")]
    Closed,
}

/// Publishes to topics and delivers from them.
pub trait PubSub: Send + Sync + 'static {
    /// What this pub/sub can do, in [`PubSubFeature`]'s order.
    fn features(&self) -> &[PubSubFeature];

    /// Publishes one message; returns when the pub/sub has taken responsibility for it (broker acknowledged, or durable in the outbox).
    fn publish<'a>(&'a self, request: PublishRequest) -> Fut<'a, Result<Published, PubSubError>>;

    /// Publishes many in one call. Only with [`PubSubFeature::BulkPublish`]; the block does it one by one otherwise.
    fn bulk_publish<'a>(&'a self, topic: String, entries: Vec<BulkEntry>, metadata: Metadata) -> Fut<'a, Vec<BulkFailure>> {
        let _ = (topic, metadata);
        Box::pin(async move {
            entries
                .into_iter()
                .map(|e| BulkFailure { entry_id: e.entry_id, error: PubSubError::Invalid("bulk publish is not supported".into()) })
                .collect()
        })
    }

    /// Starts a subscription; returns when the broker has granted it.
    fn subscribe<'a>(
        &'a self,
        request: SubscribeRequest,
        handler: Arc<dyn MessageHandler>,
    ) -> Fut<'a, Result<Box<dyn SubscriptionHandle>, PubSubError>>;

    /// Whether a bulk subscription waits for its time or its number of messages before it delivers. Without it each message is a batch
    /// of its own, at once: where the next message of a topic is handed out when the one before is done, a wait brings nothing.
    fn bulk_waits(&self) -> bool {
        false
    }

    /// The way by which the outbox may send through this pub/sub; `None` for those that cannot be an upstream. Asked once, at start;
    /// what it returns shares the component's connection.
    fn uplink(&self) -> Option<Box<dyn Uplink>> {
        None
    }

    /// Examines the way to the peer, stage by stage, without touching what the component does or has at the peer: `selvedge doctor` asks
    /// beside a node that runs. Bounded by the component's own time to connect.
    fn diagnose<'a>(&'a self, now: Timestamp) -> Fut<'a, Vec<Finding>> {
        let _ = now;
        Box::pin(async { Vec::new() })
    }

    /// Closes connections and ends background work.
    fn close<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(async {})
    }
}
