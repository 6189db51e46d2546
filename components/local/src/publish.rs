//! The pub/sub contract on the exchange.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use selvedge::component::{
    BulkEntry, BulkFailure, Fut, MessageHandler, Metadata, PubSub, PubSubError, PubSubFeature, PublishRequest, Published, SubscribeRequest,
    SubscriptionHandle,
};
use selvedge::hub::{AcceptError, Hub};
use selvedge::message::{Attributes, Inbound};
use selvedge::outbox::OutboxError;
use selvedge::telemetry::Metrics;
use tokio::time::Instant;

use crate::LocalOptions;
use crate::subscription::Subscriptions;

const FEATURES: [PubSubFeature; 3] = [PubSubFeature::MessageTtl, PubSubFeature::SubscribeWildcards, PubSubFeature::BulkPublish];

/// How long a publish waits for a disk that is behind.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest pause between two tries meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The pub/sub of the box: topics by MQTT's rules, wildcards `+` and `#`.
///
/// A publish that was answered is as safe as its lane says; request metadata `ttlInSeconds` (or `ttl`) and `retain` are honoured.
/// A subscription is durable: it belongs to the application and collects messages while nobody holds it. Of several holders of the
/// same subscription one gets the messages, and the next takes over when that one ends.
pub struct LocalPubSub {
    name: String,
    hub: Hub,
    subscriptions: Arc<Subscriptions>,
}

impl std::fmt::Debug for LocalPubSub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalPubSub").field("name", &self.name).finish_non_exhaustive()
    }
}

impl LocalPubSub {
    pub(crate) fn new(name: &str, app_id: &str, hub: Hub, metrics: &Metrics, options: LocalOptions) -> Self {
        let failures = metrics.shared(
            "selvedge_local_handler_failures",
            "Messages of the local pub/sub whose handler failed; each is tried again",
            Family::<Vec<(&'static str, String)>, Counter>::default,
        );
        let failures = Counter::clone(&failures.get_or_create(&vec![("pubsub", name.to_owned())]));
        let subscriptions = Subscriptions::new(name, app_id, hub.clone(), options, failures);
        subscriptions.restore();
        Self { name: name.to_owned(), hub, subscriptions }
    }

    async fn publish_one(&self, request: PublishRequest) -> Result<Published, PubSubError> {
        self.check_open()?;
        let Wishes { ttl_seconds, retain } = Wishes::read(&request.metadata, None)?;
        let attributes = Attributes { content_type: request.content_type.as_deref(), ..Attributes::default() };
        let message = Inbound { attributes, retain, ttl_seconds, ..Inbound::new(&request.topic, &request.data) };
        let start = Instant::now();
        let stored = loop {
            match self.hub.accept_one(&self.name, &message).await {
                Err(AcceptError::Outbox(OutboxError::Busy { lane })) if start.elapsed() < BUSY_TIMEOUT => self.room(&lane).await,
                outcome => break outcome?,
            }
        };
        let outbox = self.hub.outbox();
        Ok(Published { record_id: stored.map(|id| outbox.record_id_text(id)), queued: stored.is_some_and(|id| !outbox.passes(id.lane)) })
    }

    async fn publish_many(&self, topic: &str, entries: Vec<BulkEntry>, metadata: &Metadata) -> Vec<BulkFailure> {
        let mut failures = Vec::new();
        let mut failed = |entry: &BulkEntry, error: PubSubError| failures.push(BulkFailure { entry_id: entry.entry_id.clone(), error });
        if let Err(error) = self.check_open() {
            entries.iter().for_each(|entry| failed(entry, error.clone()));
            return failures;
        }
        let mut batch = Vec::with_capacity(entries.len());
        for entry in &entries {
            match Wishes::read(&entry.metadata, Some(metadata)) {
                Ok(Wishes { ttl_seconds, retain }) => {
                    let content_type = Some(entry.content_type.as_str()).filter(|t| !t.is_empty());
                    let attributes = Attributes { content_type, ..Attributes::default() };
                    batch.push((entry, Inbound { attributes, retain, ttl_seconds, ..Inbound::new(topic, &entry.data) }));
                }
                Err(error) => failed(entry, error),
            }
        }
        let messages: Vec<Inbound<'_>> = batch.iter().map(|(_, message)| *message).collect();
        let (mut at, start, mut passing) = (0, Instant::now(), Vec::new());
        while at < messages.len() {
            let accepted = self.hub.accept(&self.name, &messages[at..]);
            let taken = &batch[at..at + accepted.taken];
            if accepted.receipt.is_passing() {
                // Its upstreams answer while the others are handed over.
                passing.push((taken, accepted.receipt));
            } else if let Err(error) = self.hub.settled(accepted.receipt).await {
                let error = PubSubError::from(error);
                taken.iter().for_each(|(entry, _)| failed(entry, error.clone()));
            }
            at += accepted.taken;
            match accepted.refused {
                Some(AcceptError::Outbox(OutboxError::Busy { lane })) if start.elapsed() < BUSY_TIMEOUT => self.room(&lane).await,
                // The one that was refused fails; those behind it have their own try.
                Some(error) => {
                    failed(batch[at].0, error.into());
                    at += 1;
                }
                None => {}
            }
        }
        // Each has its time since it was handed over, however long those before it took.
        for (taken, receipt) in passing {
            if let Err(error) = self.hub.settled(receipt).await {
                let error = PubSubError::from(error);
                taken.iter().for_each(|(entry, _)| failed(entry, error.clone()));
            }
        }
        failures
    }

    /// Waits until a lane that has too much to write may take more.
    async fn room(&self, lane: &str) {
        if let Some(lane) = self.hub.outbox().lane(lane) {
            // Asked again after a while in any case: the lane may have written just before the wait began.
            let _ = tokio::time::timeout(LOOK_AGAIN, self.hub.outbox().writable(lane)).await;
        }
    }

    fn check_open(&self) -> Result<(), PubSubError> {
        if self.subscriptions.is_closed() { Err(PubSubError::Closed) } else { Ok(()) }
    }
}

/// What request metadata asks for.
#[derive(Debug, PartialEq, Eq)]
struct Wishes {
    ttl_seconds: Option<u32>,
    retain: bool,
}

impl Wishes {
    /// Reads metadata; what `own` does not say, `shared` may.
    fn read(own: &Metadata, shared: Option<&Metadata>) -> Result<Self, PubSubError> {
        let find = |names: &[&str]| {
            let in_one =
                |metadata: &'_ Metadata| metadata.iter().find(|(k, _)| names.iter().any(|n| k.eq_ignore_ascii_case(n))).map(|(_, v)| v.clone());
            in_one(own).or_else(|| shared.and_then(in_one)).filter(|text| !text.is_empty())
        };
        let ttl_seconds = match find(&["ttlInSeconds", "ttl"]) {
            None => None,
            Some(text) => match text.trim().parse::<i64>() {
                Ok(-1) => None,
                Ok(seconds) if seconds > 0 => Some(u32::try_from(seconds).unwrap_or(u32::MAX)),
                _ => return Err(PubSubError::Invalid(format!("ttlInSeconds is {text:?}; accepted is a number of seconds above zero, or -1"))),
            },
        };
        let retain = match find(&["retain"]) {
            None => false,
            Some(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "t" | "1" => true,
                "false" | "f" | "0" => false,
                _ => return Err(PubSubError::Invalid(format!("retain is {text:?}; accepted is true or false"))),
            },
        };
        Ok(Self { ttl_seconds, retain })
    }
}

impl PubSub for LocalPubSub {
    fn features(&self) -> &[PubSubFeature] {
        &FEATURES
    }

    fn publish<'a>(&'a self, request: PublishRequest) -> Fut<'a, Result<Published, PubSubError>> {
        Box::pin(self.publish_one(request))
    }

    fn bulk_publish<'a>(&'a self, topic: String, entries: Vec<BulkEntry>, metadata: Metadata) -> Fut<'a, Vec<BulkFailure>> {
        Box::pin(async move { self.publish_many(&topic, entries, &metadata).await })
    }

    fn subscribe<'a>(
        &'a self,
        request: SubscribeRequest,
        handler: Arc<dyn MessageHandler>,
    ) -> Fut<'a, Result<Box<dyn SubscriptionHandle>, PubSubError>> {
        Box::pin(async move {
            self.check_open()?;
            self.subscriptions.subscribe(&request.topic, handler)
        })
    }

    fn close<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(self.subscriptions.close())
    }
}

#[cfg(test)]
mod tests;
