//! Interim in-memory outbox with the real one's interface; replaced as a whole by the durable one.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::message::{Attributes, OwnedAttributes};
use crate::time::{Clock, Timestamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    Memory,
    Batched(Duration),
    Fsync,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    Reject,
    DropOldest,
    DropNewest,
}

#[derive(Debug, Clone)]
pub struct LaneConfig {
    pub name: String,
    pub durability: Durability,
    pub quota_bytes: u64,
    pub ttl: Option<Duration>,
    pub when_full: WhenFull,
    pub weight: u32,
}

#[derive(Debug, Clone)]
pub struct OutboxConfig {
    pub dir: PathBuf,
    pub node: String,
    pub lanes: Vec<LaneConfig>,
    pub segment_bytes: u64,
    pub cursor_interval: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub(crate) u16);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DestinationId(pub(crate) u16);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId {
    pub lane: LaneId,
    pub epoch: u32,
    pub sequence: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutboxError {
    #[error("lane {lane} is full ({used_bytes} of {quota_bytes} bytes)")]
    Full { lane: String, used_bytes: u64, quota_bytes: u64 },
    #[error("lane {lane} has too much waiting to be written")]
    Busy { lane: String },
    #[error("a record of {bytes} bytes is larger than {limit}")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("lane {lane} failed: {detail}")]
    Failed { lane: String, detail: String },
    #[error("{0}")]
    Other(String),
}

#[derive(Debug, Clone, Copy)]
pub struct NewRecord<'a> {
    pub source: &'a str,
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub attributes: Attributes<'a>,
    pub qos: u8,
    pub retain: bool,
    pub ttl_seconds: Option<u32>,
    pub destinations: &'a [DestinationId],
}

#[derive(Debug)]
pub struct Appended {
    pub taken: usize,
    pub first: RecordId,
    pub last: RecordId,
    pub refused: Option<OutboxError>,
}

#[derive(Debug, Clone)]
struct Stored {
    id: RecordId,
    accepted_at: Timestamp,
    source: String,
    topic: String,
    payload: Vec<u8>,
    attributes: OwnedAttributes,
    qos: u8,
    retain: bool,
    ttl_seconds: Option<u32>,
    destinations: Vec<DestinationId>,
}

#[derive(Debug, Clone)]
pub struct Record<'a> {
    pub id: RecordId,
    pub accepted_at: Timestamp,
    pub source: &'a str,
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub attributes: Attributes<'a>,
    pub qos: u8,
    pub retain: bool,
    pub ttl_seconds: Option<u32>,
}

#[derive(Debug, Default)]
pub struct Run {
    records: Vec<Stored>,
}

impl Run {
    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        self.records.iter().map(|r| Record {
            id: r.id,
            accepted_at: r.accepted_at,
            source: &r.source,
            topic: &r.topic,
            payload: &r.payload,
            attributes: Attributes {
                content_type: r.attributes.content_type.as_deref(),
                response_topic: r.attributes.response_topic.as_deref(),
                correlation_data: r.attributes.correlation_data.as_deref(),
                utf8: r.attributes.utf8,
                user: &[],
            },
            qos: r.qos,
            retain: r.retain,
            ttl_seconds: r.ttl_seconds,
        })
    }
    pub fn len(&self) -> usize {
        self.records.len()
    }
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerRow {
    pub lane: String,
    pub destination: String,
    pub accepted: u64,
    pub delivered: u64,
    pub expired: u64,
    pub evicted: u64,
    pub aggregated: u64,
    pub queued: u64,
}

#[derive(Debug, Default)]
struct State {
    lanes: Vec<String>,
    logs: Vec<VecDeque<Stored>>,
    next: Vec<u64>,
    destinations: Vec<String>,
    done: BTreeMap<(u16, u16), BTreeSet<u64>>,
    accepted: BTreeMap<(u16, u16), u64>,
}

#[derive(Clone)]
pub struct Outbox {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
    changed: Arc<tokio::sync::watch::Sender<u64>>,
    node: String,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl Outbox {
    /// The interim outbox.
    pub fn interim(lanes: &[&str], clock: Arc<dyn Clock>) -> Self {
        let state = State {
            lanes: lanes.iter().map(|l| (*l).to_owned()).collect(),
            logs: lanes.iter().map(|_| VecDeque::new()).collect(),
            next: vec![1; lanes.len()],
            ..State::default()
        };
        Self { state: Arc::new(Mutex::new(state)), clock, changed: Arc::new(tokio::sync::watch::channel(0).0), node: "node".into() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn lane(&self, name: &str) -> Option<LaneId> {
        self.state().lanes.iter().position(|l| l == name).map(|i| LaneId(i as u16))
    }

    pub fn lanes(&self) -> Vec<(LaneId, String)> {
        self.state().lanes.iter().enumerate().map(|(i, n)| (LaneId(i as u16), n.clone())).collect()
    }

    pub fn record_id_text(&self, id: RecordId) -> String {
        format!("{}/{}/{}/{}", self.node, id.epoch, self.state().lanes[id.lane.0 as usize], id.sequence)
    }

    pub fn destination(&self, name: &str) -> Result<DestinationId, OutboxError> {
        let mut state = self.state();
        if let Some(i) = state.destinations.iter().position(|d| d == name) {
            return Ok(DestinationId(i as u16));
        }
        state.destinations.push(name.to_owned());
        Ok(DestinationId((state.destinations.len() - 1) as u16))
    }

    pub fn forget_destination(&self, _id: DestinationId) -> Result<(), OutboxError> {
        Ok(())
    }

    pub fn append(&self, lane: LaneId, batch: &[NewRecord<'_>]) -> Appended {
        let now = self.clock.now();
        let mut state = self.state();
        let first = state.next[lane.0 as usize];
        for r in batch {
            let sequence = state.next[lane.0 as usize];
            state.next[lane.0 as usize] += 1;
            for d in r.destinations {
                *state.accepted.entry((lane.0, d.0)).or_default() += 1;
            }
            state.logs[lane.0 as usize].push_back(Stored {
                id: RecordId { lane, epoch: 1, sequence },
                accepted_at: now,
                source: r.source.into(),
                topic: r.topic.into(),
                payload: r.payload.to_vec(),
                attributes: r.attributes.into(),
                qos: r.qos,
                retain: r.retain,
                ttl_seconds: r.ttl_seconds,
                destinations: r.destinations.to_vec(),
            });
        }
        let last = state.next[lane.0 as usize] - 1;
        drop(state);
        self.changed.send_modify(|v| *v += 1);
        Appended {
            taken: batch.len(),
            first: RecordId { lane, epoch: 1, sequence: first },
            last: RecordId { lane, epoch: 1, sequence: last },
            refused: None,
        }
    }

    pub fn is_durable(&self, _lane: LaneId, _sequence: u64) -> bool {
        true
    }

    pub fn durable(&self, _lane: LaneId, _sequence: u64) -> impl Future<Output = Result<(), OutboxError>> + Send + 'static {
        std::future::ready(Ok(()))
    }

    pub fn reader(&self, destination: DestinationId, lane: LaneId) -> Reader {
        Reader { outbox: self.clone(), destination, lane, next: 0, seen: self.changed.subscribe() }
    }

    pub fn ledger(&self) -> Vec<LedgerRow> {
        let state = self.state();
        state
            .accepted
            .iter()
            .map(|((l, d), n)| {
                let delivered = state.done.get(&(*l, *d)).map_or(0, |s| s.len() as u64);
                LedgerRow {
                    lane: state.lanes[*l as usize].clone(),
                    destination: state.destinations[*d as usize].clone(),
                    accepted: *n,
                    delivered,
                    queued: n - delivered,
                    ..LedgerRow::default()
                }
            })
            .collect()
    }

    pub fn close(self) {}
}

#[derive(Debug)]
pub struct Reader {
    outbox: Outbox,
    destination: DestinationId,
    lane: LaneId,
    next: u64,
    seen: tokio::sync::watch::Receiver<u64>,
}

impl Reader {
    pub fn next_run(&mut self, max_records: usize, max_bytes: usize, run: &mut Run) -> Result<usize, OutboxError> {
        run.records.clear();
        self.seen.borrow_and_update();
        let state = self.outbox.state();
        let done = state.done.get(&(self.lane.0, self.destination.0));
        let mut bytes = 0;
        for r in &state.logs[self.lane.0 as usize] {
            if run.records.len() >= max_records || bytes >= max_bytes {
                break;
            }
            if r.id.sequence >= self.next && r.destinations.contains(&self.destination) && !done.is_some_and(|d| d.contains(&r.id.sequence)) {
                bytes += r.payload.len();
                run.records.push(r.clone());
            }
        }
        drop(state);
        if let Some(last) = run.records.last() {
            self.next = last.id.sequence + 1;
        }
        Ok(run.records.len())
    }

    pub fn readable(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut seen = self.seen.clone();
        async move {
            let _ = seen.changed().await;
        }
    }

    pub fn acknowledge(&self, sequences: &[u64]) {
        self.outbox.state().done.entry((self.lane.0, self.destination.0)).or_default().extend(sequences);
    }

    pub fn reject(&self, sequence: u64, _reason: &str) {
        self.acknowledge(&[sequence]);
    }

    pub fn rewind(&mut self) {
        self.next = 0;
    }

    pub fn queued(&self) -> u64 {
        let state = self.outbox.state();
        state.accepted.get(&(self.lane.0, self.destination.0)).copied().unwrap_or(0)
            - state.done.get(&(self.lane.0, self.destination.0)).map_or(0, |d| d.len() as u64)
    }
}
