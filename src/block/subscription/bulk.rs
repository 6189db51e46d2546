//! Bulk subscriptions: messages are collected and go to the application as one call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::deliver::Delivering;
use crate::app::{AppChannel, BulkEvent, BulkItem, Verdict};
use crate::block::cloudevent;
use crate::component::{Delivery, Fut, HandlerError, MessageHandler};
use crate::resource::BulkSubscribe;

/// Messages of a batch when nothing is said (Dapr's figure).
const DEFAULT_MESSAGES: u32 = 100;
/// Most messages of a batch; what asks for more gets this.
const MAX_MESSAGES: u32 = 1_000;
/// Wait from a batch's first message when nothing is said (Dapr's figure).
const DEFAULT_WAIT_MS: u32 = 1_000;

type Answer = oneshot::Sender<Result<(), HandlerError>>;

/// The handler of a bulk subscription: a message is handled when its batch is.
pub(super) struct Batching {
    queue: mpsc::Sender<(Delivery, Answer)>,
}

impl Batching {
    /// Starts to collect; ends when the handler is dropped. Unless the pub/sub `waits`, each message is a batch of its own, at once
    /// ([`PubSub::bulk_waits`](crate::component::PubSub::bulk_waits)).
    pub fn start(delivering: Delivering, app: AppChannel, settings: BulkSubscribe, waits: bool) -> Self {
        let or = |n: u32, default: u32| if n == 0 { default } else { n };
        let most = if waits { or(settings.max_messages, DEFAULT_MESSAGES).min(MAX_MESSAGES) as usize } else { 1 };
        let wait = Duration::from_millis(u64::from(or(settings.max_await_ms, DEFAULT_WAIT_MS)));
        let (queue, messages) = mpsc::channel(most);
        tokio::spawn(collect(messages, Arc::new(delivering), app, most, wait));
        Self { queue }
    }
}

impl MessageHandler for Batching {
    fn handle<'a>(&'a self, message: Delivery) -> Fut<'a, Result<(), HandlerError>> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            self.queue.send((message, answer)).await.map_err(|_| HandlerError::Closed)?;
            answered.await.unwrap_or(Err(HandlerError::Closed))
        })
    }
}

async fn collect(mut messages: mpsc::Receiver<(Delivery, Answer)>, delivering: Arc<Delivering>, app: AppChannel, most: usize, wait: Duration) {
    while let Some(first) = messages.recv().await {
        let mut batch = vec![first];
        let due = Instant::now() + wait;
        while batch.len() < most {
            match tokio::time::timeout_at(due, messages.recv()).await {
                Ok(Some(message)) => batch.push(message),
                Ok(None) | Err(_) => break,
            }
        }
        deliver(&delivering, &app, batch).await;
    }
}

/// One call per path; each message gets the verdict of its entry.
async fn deliver(delivering: &Delivering, app: &AppChannel, batch: Vec<(Delivery, Answer)>) {
    let raw = delivering.is_raw();
    let mut verdicts: Vec<Option<Verdict>> = Vec::with_capacity(batch.len());
    let mut items: BTreeMap<&str, Vec<(usize, BulkItem)>> = BTreeMap::new();
    for (index, (message, _)) in batch.iter().enumerate() {
        match delivering.prepare(message) {
            Ok((event, path)) => {
                let default_type = if raw { "application/octet-stream" } else { cloudevent::CONTENT_TYPE };
                let item = BulkItem {
                    entry_id: uuid::Uuid::new_v4().to_string(),
                    event: (!raw).then_some(event),
                    data: message.data.clone(),
                    content_type: message.content_type.clone().filter(|t| !t.is_empty()).unwrap_or_else(|| default_type.to_owned()),
                    metadata: message.metadata.clone(),
                };
                items.entry(path).or_default().push((index, item));
                verdicts.push(None);
            }
            Err(verdict) => verdicts.push(Some(verdict)),
        }
    }
    for (path, entries) in items {
        let list: Vec<&BulkItem> = entries.iter().map(|(_, item)| item).collect();
        let event = BulkEvent { pubsub: &delivering.spec.pubsub, topic: &delivering.spec.topic, path, items: &list };
        let answers = app.deliver_bulk(event).await.unwrap_or_else(|cause| vec![Verdict::Retry(cause); entries.len()]);
        for ((index, _), verdict) in entries.iter().zip(answers) {
            verdicts[*index] = Some(verdict);
        }
    }
    for ((message, answer), verdict) in batch.into_iter().zip(verdicts) {
        let verdict = verdict.unwrap_or_else(|| Verdict::Retry("the message was not delivered".to_owned()));
        let outcome = delivering.settle(&message, verdict).await;
        // The subscription may have ended meanwhile; the message is delivered again then.
        let _ = answer.send(outcome);
    }
}
