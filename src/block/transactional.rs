//! The transactional outbox: a state transaction and the events that tell of it happen together or not at all, with the broker up or down.
//!
//! Switched on by a state component's `outboxPublishPubsub` and `outboxPublishTopic`, as in Dapr; each upsert of a transaction becomes a
//! CloudEvent there. Dapr hands the events to a broker first and refuses the transaction when that fails. Here they are noted in the
//! node's own table first; a marker row that joins the transaction then says whether it took place, so a restart at any point tells
//! of what was committed and of nothing else (ADR 0006). An event may be told twice after a crash, with the same id.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::cloudevent::{self, Wrap};
use super::{Blocks, PublishCall, SetItem, TransactionItem, go_json};
use crate::api::error::{ApiError, pubsub, state};
use crate::component::{
    Concurrency, Consistency, DeleteRequest, GetRequest, Metadata, SetRequest, StateOperation, StateStore, StateValue, Table, is_truthy,
};
use crate::node::Loaded;
use crate::supervise::contained;
use crate::time::Timestamp;

/// Events of committed transactions that may wait to be published, for each store, those of before the start among them. At the bound
/// transactions wait. One with more events than this waits until none waits.
const MAX_WAITING: usize = 1_000;
/// Events that are published together: one wait for the disk, one transaction that takes their markers away.
const BATCH: usize = 64;
/// First and longest wait before an event that could not be published is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// W3C trace context of a call; empty texts when there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// `traceparent`.
    pub parent: String,
    /// `tracestate`.
    pub state: String,
}

/// An event that is to be published if its marker stands in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Intent {
    store: String,
    /// Key of the marker, and the event's id.
    marker: String,
    pubsub: String,
    topic: String,
    /// The CloudEvent as JSON text.
    event: String,
}

#[derive(Debug, Clone)]
struct Waiting {
    /// Its row in the table.
    row: String,
    intent: Intent,
    /// Whether the transaction took place is not known: the marker says so.
    doubtful: bool,
    published: bool,
    /// It holds a permit of its line's room.
    has_room: bool,
}

/// One store with an outbox.
struct Line {
    pubsub: String,
    topic: String,
    /// [`MAX_WAITING`] permits, one for each event that may wait; whoever has told of it gives it back.
    room: Arc<Semaphore>,
    sender: mpsc::UnboundedSender<Waiting>,
    receiver: Mutex<Option<mpsc::UnboundedReceiver<Waiting>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreLabel {
    store: String,
}

/// All stores with an outbox.
pub(super) struct Transactional {
    lines: BTreeMap<String, Line>,
    /// Where intents survive a restart; without one nothing on this node does.
    table: Option<Arc<dyn Table>>,
    /// Whether the rows of before the start are read: until then no new one is written among them.
    loaded: watch::Sender<bool>,
    next: AtomicU64,
    waiting: Family<StoreLabel, Gauge>,
}

impl Transactional {
    pub fn new(stores: &BTreeMap<String, Loaded<dyn StateStore>>, table: Option<Arc<dyn Table>>, metrics: &crate::telemetry::Metrics) -> Self {
        let mut lines = BTreeMap::new();
        for (name, loaded) in stores {
            let get = |key| loaded.properties.get_exact(key).filter(|v| !v.is_empty());
            let (Some(pubsub), Some(topic)) = (get("outboxPublishPubsub"), get("outboxPublishTopic")) else { continue };
            let (sender, receiver) = mpsc::unbounded_channel();
            let line = Line {
                pubsub: pubsub.to_owned(),
                topic: topic.to_owned(),
                room: Arc::new(Semaphore::new(MAX_WAITING)),
                sender,
                receiver: Mutex::new(Some(receiver)),
            };
            lines.insert(name.clone(), line);
        }
        let waiting = if lines.is_empty() {
            Family::default()
        } else {
            metrics.shared("selvedge_state_outbox_waiting", "Events of committed state transactions that are not published yet", Family::default)
        };
        Self { lines, table, loaded: watch::Sender::new(false), next: AtomicU64::new(0), waiting }
    }

    pub fn has(&self, store: &str) -> bool {
        self.lines.contains_key(store)
    }

    fn gauge(&self, store: &str) -> Gauge {
        self.waiting.get_or_create(&StoreLabel { store: store.to_owned() }).clone()
    }

    /// Rows sort by the time at which they were made; the marker keeps them apart when a clock starts in 1970 again.
    fn row_key(&self, now: Timestamp, marker: &str) -> String {
        format!("{:016}-{:010}-{marker}", now.0, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Waits until what was left of before the start is known, and there is room for so many more events.
    async fn make_room(&self, room: &Semaphore, events: usize) -> Result<(), String> {
        self.loaded.subscribe().wait_for(|loaded| *loaded).await.map_err(|e| e.to_string())?;
        let permits = u32::try_from(events.min(MAX_WAITING)).unwrap_or(u32::MAX);
        room.acquire_many(permits).await.map_err(|e| e.to_string())?.forget();
        Ok(())
    }

    async fn note(&self, waiting: &[Waiting]) -> Result<(), String> {
        let Some(table) = &self.table else { return Ok(()) };
        let mut writes = Vec::with_capacity(waiting.len());
        for w in waiting {
            let row = serde_json::to_vec(&w.intent).map_err(|e| e.to_string())?;
            writes.push(table.put(&w.row, row.into()));
        }
        for write in writes {
            write.await.map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    async fn forget(&self, row: &str) -> Result<(), String> {
        match &self.table {
            Some(table) => table.delete(row).await.map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }
}

/// The value as an event's data, and its media type. HTTP gives JSON: Dapr prints it, so that a text loses its quotes; what it prints
/// of objects and lists nobody can read, so they stay JSON here.
fn data(item: &SetItem) -> (Bytes, String) {
    let given = item.metadata.get("contentType").map_or("", String::as_str);
    let bytes = item.value.bytes.clone();
    if !item.value.json || given.eq_ignore_ascii_case("application/json") {
        return (bytes, given.to_owned());
    }
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(Value::String(text)) => (text.into(), given.to_owned()),
        Ok(Value::Object(_) | Value::Array(_)) if given.is_empty() => (bytes, "application/json".to_owned()),
        _ => (bytes, given.to_owned()),
    }
}

/// The operations that are stored, and by key the items that only give an event its data (`outbox.projection`).
fn projections(items: Vec<TransactionItem>) -> (Vec<TransactionItem>, BTreeMap<String, SetItem>) {
    let (mut stored, mut projected) = (Vec::with_capacity(items.len()), BTreeMap::new());
    for item in items {
        match item {
            TransactionItem::Upsert(item) if item.metadata.get("outbox.projection").is_some_and(|v| is_truthy(v)) => {
                projected.insert(item.key.clone(), item);
            }
            other => stored.push(other),
        }
    }
    (stored, projected)
}

impl Blocks {
    fn intent(&self, store: &str, line: &Line, item: &SetItem, payload: &SetItem, trace: &Trace) -> Result<Intent, ApiError> {
        let app = &self.inner.app_id;
        let marker = format!("outbox-{}", uuid::Uuid::new_v4());
        let (data, content_type) = data(payload);
        let wrapped = cloudevent::wrap(&Wrap {
            app_id: app,
            pubsub: &line.pubsub,
            topic: &line.topic,
            data: &data,
            content_type: &content_type,
            metadata: &Metadata::from([("cloudevent.id".to_owned(), marker.clone())]),
            trace_parent: &trace.parent,
            trace_state: &trace.state,
            now: self.inner.clock.now(),
        })
        .map_err(|e| pubsub::outbox(&line.pubsub, app, e))?;
        let mut event: Value = serde_json::from_slice(&wrapped).map_err(|e| pubsub::outbox(&line.pubsub, app, e))?;
        if let Value::Object(event) = &mut event {
            event.insert("id".into(), Value::String(marker.clone()));
            for (name, value) in item.metadata.iter().filter(|(name, _)| *name != "data" && *name != "id") {
                event.insert(name.clone(), Value::String(value.clone()));
            }
        }
        Ok(Intent { store: store.to_owned(), marker, pubsub: line.pubsub.clone(), topic: line.topic.clone(), event: go_json(&event) })
    }

    /// A transaction of a store that has an outbox. `operations` makes the store's requests of the items that are stored.
    pub(super) async fn transact_and_tell(
        &self,
        store: &Loaded<dyn StateStore>,
        items: Vec<TransactionItem>,
        operations: impl FnOnce(Vec<TransactionItem>) -> Result<Vec<StateOperation>, ApiError>,
        metadata: Metadata,
        trace: &Trace,
    ) -> Result<(), ApiError> {
        let Some(line) = self.inner.transactional.lines.get(&store.name) else {
            return store.item.transact(operations(items)?, metadata).await.map_err(|e| state::transaction(&e));
        };
        let fail = |cause: String| pubsub::outbox(&line.pubsub, &self.inner.app_id, cause);
        // A transaction that could never be told of is refused.
        self.check_publish(&line.pubsub, &line.topic).map_err(|e| fail(e.message.clone()))?;
        let (stored, projected) = projections(items);
        let mut waiting = Vec::new();
        for item in &stored {
            if let TransactionItem::Upsert(item) = item {
                let intent = self.intent(&store.name, line, item, projected.get(&item.key).unwrap_or(item), trace)?;
                let row = self.inner.transactional.row_key(self.inner.clock.now(), &intent.marker);
                waiting.push(Waiting { row, intent, doubtful: false, published: false, has_room: waiting.len() < MAX_WAITING });
            }
        }
        let mut operations = operations(stored)?;
        operations.extend(waiting.iter().map(|w| {
            StateOperation::Set(SetRequest {
                key: w.intent.marker.clone(),
                value: StateValue { bytes: Bytes::from_static(b"0"), json: true },
                etag: None,
                ttl_seconds: None,
                concurrency: Concurrency::LastWrite,
                consistency: Consistency::Unspecified,
                metadata: Metadata::new(),
            })
        }));
        let (item, sender, room) = (store.item.clone(), line.sender.clone(), line.room.clone());
        let (blocks, gauge) = (self.clone(), self.inner.transactional.gauge(&store.name));
        // A caller that goes away must not leave a commit that nobody tells of.
        let whole = tokio::spawn(async move {
            let transactional = &blocks.inner.transactional;
            transactional.make_room(&room, waiting.len()).await.map_err(Failure::Note)?;
            if let Err(cause) = transactional.note(&waiting).await {
                give_back(&room, &waiting);
                return Err(Failure::Note(cause));
            }
            let done = item.transact(operations, metadata).await;
            for w in waiting {
                gauge.inc();
                // After an error the marker tells whether the store has it all the same.
                if sender.send(Waiting { doubtful: done.is_err(), ..w }).is_err() {
                    tracing::warn!("a committed transaction is told of after the next start");
                }
            }
            done.map_err(Failure::Store)
        });
        match whole.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Failure::Note(cause))) => Err(fail(cause)),
            Ok(Err(Failure::Store(error))) => Err(state::transaction(&error)),
            Err(error) => Err(fail(error.to_string())),
        }
    }

    /// Publishes the events of committed transactions until `stop` resolves; first those of before the start.
    pub async fn serve_transactions(self, stop: impl Future<Output = ()>) {
        let transactional = &self.inner.transactional;
        let mut workers = JoinSet::new();
        let mut left: BTreeMap<String, Vec<Waiting>> = BTreeMap::new();
        if let Some(table) = transactional.table.as_ref().filter(|_| !transactional.lines.is_empty()) {
            let mut rows = table.load().await.unwrap_or_else(|error| {
                tracing::error!(error = %error, "transactions of before the start cannot be told of until the next one");
                Vec::new()
            });
            rows.sort_by(|a, b| a.0.cmp(&b.0));
            for (row, bytes) in rows {
                match serde_json::from_slice::<Intent>(&bytes) {
                    Ok(intent) => {
                        left.entry(intent.store.clone()).or_default().push(Waiting {
                            row,
                            intent,
                            doubtful: true,
                            published: false,
                            has_room: false,
                        });
                    }
                    Err(error) => tracing::error!(row, error = %error, "an event of a transaction cannot be read; its row is left"),
                }
            }
        }
        for (name, line) in &transactional.lines {
            let receiver = line.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
            let (mut before, blocks, gauge) = (left.remove(name).unwrap_or_default(), self.clone(), transactional.gauge(name));
            gauge.inc_by(before.len() as i64);
            let room = line.room.clone();
            // More may have been left than there is room for.
            room.forget_permits(before.len());
            before.iter_mut().rev().take(MAX_WAITING).for_each(|w| w.has_room = true);
            if let Some(mut receiver) = receiver {
                workers.spawn(async move {
                    while !before.is_empty() {
                        let rest = before.split_off(BATCH.min(before.len()));
                        blocks.tell_and_count(std::mem::replace(&mut before, rest), &gauge, &room).await;
                    }
                    let mut next = Vec::with_capacity(BATCH);
                    while receiver.recv_many(&mut next, BATCH).await > 0 {
                        blocks.tell_and_count(std::mem::take(&mut next), &gauge, &room).await;
                    }
                });
            }
        }
        transactional.loaded.send_replace(true);
        for (store, rows) in left {
            tracing::warn!(store, events = rows.len(), "events of a store that has no outbox any more are kept, not published");
        }
        stop.await;
    }

    async fn tell_and_count(&self, batch: Vec<Waiting>, gauge: &Gauge, room: &Semaphore) {
        self.tell_contained(&batch).await;
        gauge.dec_by(batch.len() as i64);
        give_back(room, &batch);
    }

    /// A defect over one event holds up no other: its row stays, and is told of after the next start.
    async fn tell_contained(&self, batch: &[Waiting]) {
        let Err(cause) = contained(self.tell(batch.to_vec())).await else { return };
        self.inner.status.supervisor().count("transactions", &cause);
        // Which one it was shows when they are told of alone. What was published already has no marker any more, or comes twice.
        for one in batch {
            if let Err(cause) = contained(self.tell(vec![Waiting { doubtful: true, ..one.clone() }])).await {
                self.inner.status.supervisor().count("transactions", &cause);
            }
        }
    }

    /// Publishes them in order, however long that takes: the next ones wait.
    async fn tell(&self, mut batch: Vec<Waiting>) {
        let mut pause = RETRY.0;
        let mut said = false;
        while !batch.is_empty() {
            let Err(cause) = self.try_to_tell(&mut batch).await else { continue };
            if let Some(Waiting { intent: Intent { store, pubsub, topic, .. }, .. }) = batch.first()
                && !std::mem::replace(&mut said, true)
            {
                tracing::warn!(store, pubsub, topic, cause, "an event of a transaction cannot be published yet; it is tried again");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Publishes as many of a batch as it can, from the first on, and takes them out of it.
    async fn try_to_tell(&self, batch: &mut Vec<Waiting>) -> Result<(), String> {
        let Some(intent) = batch.first().map(|w| w.intent.clone()) else { return Ok(()) };
        let store = self.inner.components.state.get(&intent.store).ok_or_else(|| format!("there is no state store {}", intent.store))?;
        let mut at = 0;
        while let Some(waiting) = batch.get_mut(at) {
            if std::mem::take(&mut waiting.doubtful) {
                let request = GetRequest { key: waiting.intent.marker.clone(), consistency: Consistency::Strong, metadata: Metadata::new() };
                let marker = store.item.get(request).await.inspect_err(|_| waiting.doubtful = true).map_err(|e| e.to_string())?;
                if marker.is_none() {
                    // It did not take place.
                    self.inner.transactional.forget(&waiting.row).await.inspect_err(|_| waiting.doubtful = true)?;
                    batch.remove(at);
                    continue;
                }
            }
            at += 1;
        }
        // One that was noted under other settings goes there, and alone.
        let same = |w: &&Waiting| (&w.intent.pubsub, &w.intent.topic) == (&intent.pubsub, &intent.topic);
        let alike = batch.iter().take_while(same).count().max(1).min(batch.len());
        let published = batch[..alike].iter().take_while(|w| w.published).count();
        let events: Vec<Bytes> = batch[published..alike].iter().map(|w| Bytes::from(w.intent.event.clone())).collect();
        let mut result = Ok(());
        if let Some(first) = batch.get(published).filter(|_| !events.is_empty()) {
            let call = PublishCall { pubsub: first.intent.pubsub.clone(), topic: first.intent.topic.clone(), ..PublishCall::default() };
            let (taken, ended) = self.publish_events(&call, &events, cloudevent::CONTENT_TYPE).await;
            batch[published..].iter_mut().take(taken).for_each(|w| w.published = true);
            result = ended;
        }
        let done = batch.iter().take_while(|w| w.published).count();
        if done == 0 {
            return result;
        }
        let marker = |w: &Waiting| {
            StateOperation::Delete(DeleteRequest {
                key: w.intent.marker.clone(),
                etag: None,
                concurrency: Concurrency::LastWrite,
                consistency: Consistency::Unspecified,
                metadata: Metadata::new(),
            })
        };
        // The rows go last: without a marker they say that there is nothing to tell.
        store.item.transact(batch[..done].iter().map(marker).collect(), Metadata::new()).await.map_err(|e| e.to_string())?;
        for forgotten in futures_util::future::join_all(batch[..done].iter().map(|w| self.inner.transactional.forget(&w.row))).await {
            forgotten?;
        }
        batch.drain(..done);
        result
    }
}

/// The room that these events had is there again.
fn give_back(room: &Semaphore, events: &[Waiting]) {
    room.add_permits(events.iter().filter(|w| w.has_room).count());
}

enum Failure {
    Note(String),
    Store(crate::component::StateError),
}
