//! The outbox: a durable store-and-forward log on disk.
//!
//! One log per lane, one cursor per destination. A record is stored once, however many destinations it has, and the
//! segment it stands in is unlinked when every destination is past it or when the lane's policy says so.
//! Memory is constant whatever the backlog, and opening does not read the backlog.
//!
//! Appending is synchronous and cheap (encode into the lane's buffer); a single writer thread writes and syncs for
//! everyone (group commit) and then raises the lane's durable sequence, which is the one number that senders wait for.
//!
//! Invariant, per lane and destination, at every moment and over restarts:
//! `accepted = delivered + expired + evicted + aggregated + queued`.

mod again;
mod aggregate;
mod books;
mod codec;
mod compact;
mod config;
mod cursor;
mod files;
mod hold;
mod lane;
mod loss;
mod merge;
mod metrics;
mod newest;
mod pass;
mod passing;
mod peek;
mod reader;
mod recover;
mod salvage;
mod sealed;
mod sides;
#[cfg(any(test, feature = "test-support"))]
pub mod sim;
pub mod storage;
#[cfg(test)]
mod tests;
mod vanished;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
#[cfg(any(test, feature = "test-support"))]
use std::time::Duration;

use tokio::sync::watch;

use crate::message::Attributes;
use crate::time::{Clock, QueueClock, Timestamp};
pub use books::Refusal;
pub use books::{LaneStatus, LedgerRow, WriteCounts};
use books::{Stats, row};
use config::LINGER_BYTES;
pub use config::{Bound, DEFAULT_ANSWER_WITHIN, Durability, LaneConfig, MIN_QUOTA_BYTES, Order, OutboxConfig, THRIFT_BATCH, WhenFull, Windows};
use cursor::{Cursor, End};
use files::Manifest;
use lane::{Lane, Place};
pub use loss::{Loss, LossReason};
pub use newest::DEFAULT_LIVE_SHARE;
pub use passing::{Flow, Ticket, Unpassed};
pub use peek::Peeker;
pub use reader::{Reader, Record, Run};
pub use recover::{Locked, Recovery};
pub use sealed::AtRest;
use storage::Storage;
pub use vanished::Vanished;
use writer::Writer;

/// Most destinations over the life of a store; their numbers are not used again.
pub const MAX_DESTINATIONS: usize = 16_384;

/// A lane of this store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub(crate) u16);

/// A destination of this store, by a number that is its own for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DestinationId(pub(crate) u16);

/// What names a record on this node; [`Outbox::record_id_text`] makes it unique beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId {
    /// Lane.
    pub lane: LaneId,
    /// Which opening of the store accepted it. A record that was never durable thus shares its id with no other.
    pub epoch: u32,
    /// Place in the lane, growing by one per record.
    pub sequence: u64,
}

/// A record to store.
#[derive(Debug, Clone, Copy)]
pub struct NewRecord<'a> {
    /// Pub/sub that the message was published to; at most 255 bytes.
    pub source: &'a str,
    /// Topic.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// Properties.
    pub attributes: Attributes<'a>,
    /// Quality of service of the sender.
    pub qos: u8,
    /// Retain flag of the sender.
    pub retain: bool,
    /// Lifetime in seconds.
    pub ttl_seconds: Option<u32>,
    /// Who gets it. Decided once, here.
    pub destinations: &'a [DestinationId],
}

/// Why the store could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutboxError {
    /// The quota is used up and the lane's policy is to refuse.
    #[error("lane {lane} is full ({used_bytes} of {quota_bytes} bytes)")]
    Full {
        /// Lane.
        lane: String,
        /// Bytes on disk and on their way to it.
        used_bytes: u64,
        /// The quota.
        quota_bytes: u64,
    },
    /// More waits for the disk than may wait: try again when some of it is written.
    #[error("lane {lane} waits for the disk")]
    Busy {
        /// Lane.
        lane: String,
    },
    /// The record can never be stored.
    #[error("a record of {bytes} bytes is larger than {limit}")]
    TooLarge {
        /// Its size with overhead.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The lane takes nothing for now: [`Bound::Shut`].
    #[error("lane {lane} takes nothing while an operator pins `survive`: strict lanes and those with a floor do")]
    Shut {
        /// Lane.
        lane: String,
    },
    /// The lane could not be written: nothing new is taken until it can.
    #[error("lane {lane} cannot be written: {detail}")]
    Failed {
        /// Lane.
        lane: String,
        /// What the disk said.
        detail: String,
    },
    /// The lane stores nothing, and the record did not get to all its upstreams.
    #[error("lane {lane} stores nothing, and {why}")]
    NotPassed {
        /// Lane.
        lane: String,
        /// Why.
        why: Unpassed,
    },
    /// The destination's number or name cannot be noted.
    #[error("no room for another destination (at most {MAX_DESTINATIONS})")]
    TooManyDestinations,
    /// The folder cannot be used.
    #[error("{what} {}: {detail}", .path.display())]
    Directory {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// A newer program wrote the store; nothing was changed.
    #[error("the outbox is of version {found}, and this program knows versions up to {known}: start the newer program again; nothing was changed")]
    Newer {
        /// The version that stands there.
        found: u16,
        /// The newest one that is known.
        known: u16,
    },
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// What became of a batch.
#[derive(Debug)]
pub struct Appended {
    /// Records taken, from the first on.
    pub taken: usize,
    /// Id of the last one taken (of no meaning when none was).
    pub last: RecordId,
    /// Why the one after them was refused.
    pub refused: Option<OutboxError>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Progress {
    /// One past what is durable.
    durable: u64,
    failure: Option<String>,
    closed: bool,
}

struct LaneCell {
    state: Mutex<Lane>,
    /// Moves when a reader may find something new. Apart from what senders wait for: each move wakes all who wait, and senders need
    /// to know of syncs only.
    readable: watch::Sender<u64>,
    /// One past what is written.
    written: watch::Sender<u64>,
    progress: watch::Sender<Progress>,
}

impl LaneCell {
    fn lock(&self) -> MutexGuard<'_, Lane> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Signal {
    state: Mutex<SignalState>,
    changed: Condvar,
}

#[derive(Default)]
struct SignalState {
    /// There is something to do, within the linger.
    work: bool,
    /// There is something to do at once.
    urgent: bool,
    close: bool,
}

impl Signal {
    fn raise(&self, urgent: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.work || (urgent && !state.urgent) {
            state.work = true;
            state.urgent |= urgent;
            self.changed.notify_one();
        }
    }
}

struct Shared {
    config: OutboxConfig,
    storage: Arc<dyn Storage>,
    clock: QueueClock,
    epoch: u32,
    lanes: Vec<LaneCell>,
    manifest: Mutex<Manifest>,
    signal: Signal,
    stats: Stats,
    /// Flash is scarce.
    thrift: AtomicBool,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// A cheap handle to the store.
#[derive(Clone)]
pub struct Outbox {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("dir", &self.shared.config.dir).finish_non_exhaustive()
    }
}

impl Outbox {
    /// Opens the store and starts its writer thread. Damaged files are set aside and told of in [`Recovery`]; they never keep
    /// the store from opening.
    ///
    /// # Errors
    /// When the folder cannot be made, locked or written at all.
    pub fn open(config: OutboxConfig, storage: Arc<dyn Storage>, clock: Arc<dyn Clock>) -> Result<(Self, Recovery), OutboxError> {
        let (outbox, mut writer, recovery) = Self::open_without_thread(config, storage, clock)?;
        let dir = outbox.shared.config.dir.clone();
        let thread = std::thread::Builder::new().name("outbox".into()).spawn(move || writer.run()).map_err(|e| OutboxError::Directory {
            what: "cannot start the writer of",
            path: dir,
            detail: e.to_string(),
        })?;
        *outbox.shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok((outbox, recovery))
    }

    /// A store on the simulated file layer, for tests: lanes of this name that sync at once, 64 MiB each.
    ///
    /// # Panics
    /// When the writer thread cannot be started.
    #[cfg(any(test, feature = "test-support"))]
    #[must_use]
    pub fn simulated(lanes: &[&str], clock: Arc<dyn Clock>) -> Self {
        let lane = |name: &&str| LaneConfig { durability: Durability::Fsync, quota_bytes: 64 << 20, ..LaneConfig::new(*name) };
        let config = OutboxConfig {
            dir: "/outbox".into(),
            node: "test".into(),
            lanes: lanes.iter().map(lane).collect(),
            segment_bytes: 4 << 20,
            cursor_interval: Duration::from_secs(1),
            at_rest: AtRest::default(),
        };
        Self::open(config, Arc::new(sim::SimStorage::default()), clock).expect("the simulated file layer refuses nothing by itself").0
    }

    /// The store, and its writer for the caller to step.
    pub(crate) fn open_without_thread(
        config: OutboxConfig,
        storage: Arc<dyn Storage>,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Writer, Recovery), OutboxError> {
        let recovered = recover::recover(&config, storage.as_ref(), clock.as_ref())?;
        let clock = QueueClock::new(clock, recovered.latest);
        let lanes = recovered
            .lanes
            .into_iter()
            .map(|mut lane| {
                lane.begin_passing();
                let progress = Progress { durable: lane.next_sequence, failure: None, closed: false };
                LaneCell {
                    readable: watch::channel(0).0,
                    written: watch::channel(lane.written).0,
                    progress: watch::channel(progress).0,
                    state: Mutex::new(lane),
                }
            })
            .collect();
        let shared = Arc::new(Shared {
            epoch: recovered.manifest.epoch,
            config,
            storage,
            clock,
            lanes,
            manifest: Mutex::new(recovered.manifest),
            signal: Signal::default(),
            stats: Stats::default(),
            thrift: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        let writer = Writer::new(shared.clone(), recovered.page_generation);
        Ok((Self { shared }, writer, recovered.report))
    }

    /// The node's id that a store in this folder was opened with last, if its manifest checks out.
    #[must_use]
    pub fn known_node(dir: &std::path::Path, storage: &dyn Storage) -> Option<String> {
        let manifest: Manifest = files::decode(&storage.read(&dir.join(recover::MANIFEST)).ok()?)?;
        Some(manifest.node)
    }

    /// The node's id, first part of every record id.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.shared.config.node
    }

    fn cell(&self, lane: LaneId) -> &LaneCell {
        &self.shared.lanes[usize::from(lane.0)]
    }

    /// The lane of this name.
    #[must_use]
    pub fn lane(&self, name: &str) -> Option<LaneId> {
        self.lanes().into_iter().find(|(_, n)| n == name).map(|(id, _)| id)
    }

    /// All lanes: those of the configuration, then those that are only found on disk and drain.
    #[must_use]
    pub fn lanes(&self) -> Vec<(LaneId, String)> {
        self.shared.lanes.iter().enumerate().map(|(i, cell)| (LaneId(i as u16), cell.lock().config.name.clone())).collect()
    }

    /// The time that lifetimes of records are counted with ([`QueueClock`]).
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// When a record was accepted, by the wall clock. What was accepted since the start is told by the wall clock as it is now, which may
    /// have been set since.
    #[must_use]
    pub fn accepted_at(&self, record: &Record<'_>) -> Timestamp {
        if record.id.epoch == self.shared.epoch { self.shared.clock.wall(record.accepted_at()) } else { record.accepted_at() }
    }

    /// A lane's name.
    #[must_use]
    pub fn lane_name(&self, lane: LaneId) -> String {
        self.cell(lane).lock().config.name.clone()
    }

    /// A lane's quota, in bytes on disk.
    #[must_use]
    pub fn quota_bytes(&self, lane: LaneId) -> u64 {
        self.cell(lane).lock().config.quota_bytes
    }

    /// Sequence of the record that the lane took last; 0 when it never took one.
    #[must_use]
    pub fn last_sequence(&self, lane: LaneId) -> u64 {
        self.cell(lane).lock().next_sequence - 1
    }

    /// A record's id as text: `node/epoch/lane/sequence`.
    #[must_use]
    pub fn record_id_text(&self, id: RecordId) -> String {
        format!("{}/{}/{}/{}", self.shared.config.node, id.epoch, self.cell(id.lane).lock().config.name, id.sequence)
    }

    /// The destination of this name; its number is noted durably when it is new.
    ///
    /// # Errors
    /// `TooManyDestinations`, or `Directory` when the number cannot be noted.
    pub fn destination(&self, name: &str) -> Result<DestinationId, OutboxError> {
        let mut manifest = self.shared.manifest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = manifest.destinations.iter().position(|d| d == name) {
            return Ok(DestinationId(at as u16));
        }
        if manifest.destinations.len() >= MAX_DESTINATIONS {
            return Err(OutboxError::TooManyDestinations);
        }
        let mut changed = manifest.clone();
        changed.destinations.push(name.to_owned());
        self.save(&changed)?;
        *manifest = changed;
        let id = DestinationId((manifest.destinations.len() - 1) as u16);
        for cell in &self.shared.lanes {
            let mut lane = cell.lock();
            let place = Place { cursor: Cursor::restore(lane.next_sequence, [], [0; 4]), ..Place::default() };
            lane.places.insert(id, place);
        }
        Ok(id)
    }

    fn save(&self, manifest: &Manifest) -> Result<(), OutboxError> {
        let path = self.shared.config.dir.join(recover::MANIFEST);
        self.shared.storage.replace(&path, &files::encode(manifest), true).map_err(|e| OutboxError::Directory {
            what: "cannot write",
            path,
            detail: e.to_string(),
        })
    }

    /// Ends a destination: what is queued for it is dropped and its line leaves the books.
    ///
    /// # Errors
    /// `Directory` when that cannot be noted.
    pub fn forget_destination(&self, id: DestinationId) -> Result<(), OutboxError> {
        let mut manifest = self.shared.manifest.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = manifest.clone();
        if let Some(name) = changed.destinations.get_mut(usize::from(id.0)) {
            name.clear();
        }
        self.save(&changed)?;
        *manifest = changed;
        for cell in &self.shared.lanes {
            cell.lock().places.remove(&id);
        }
        self.shared.signal.raise(false);
        Ok(())
    }

    /// Appends a batch in order: all of it, or the first records up to one that is refused.
    ///
    /// A lane that stores nothing takes nothing here: see [`pass`](Self::pass).
    pub fn append(&self, lane: LaneId, batch: &[NewRecord<'_>]) -> Appended {
        let now = self.shared.clock.now();
        let cell = self.cell(lane);
        let mut state = cell.lock();
        let largest = writer::segment_bytes(&self.shared.config, &state.config) / 2;
        let idle = state.is_idle();
        let (mut taken, mut last, mut refused) = (0, 0, None);
        for record in batch {
            match state.append(record, now, largest) {
                Ok(sequence) => {
                    taken += 1;
                    last = sequence;
                }
                Err(error) => {
                    state.note_refusal(&error);
                    refused = Some(error);
                    break;
                }
            }
        }
        let urgent = state.config.durability == Durability::Fsync || state.pending_bytes() > LINGER_BYTES;
        let wakes = state.wakes_writer(idle);
        drop(state);
        if taken > 0 {
            cell.readable.send_modify(|n| *n += 1);
        }
        if wakes {
            self.shared.signal.raise(urgent);
        }
        Appended { taken, last: RecordId { lane, epoch: self.shared.epoch, sequence: last }, refused }
    }

    /// Gives a lane other values from now on, found by its name. A smaller quota is kept from the next record on. Whether it is a
    /// `memory` lane must stay: senders may wait for syncs. Returns whether there is such a lane.
    pub fn reconfigure(&self, config: LaneConfig) -> bool {
        let Some(lane) = self.lane(&config.name) else { return false };
        self.cell(lane).lock().config = config;
        self.shared.signal.raise(false);
        true
    }

    /// Bounds the lanes beside their quotas. A lane whose bound stays is left as it is: what it used when the bound came counts.
    pub fn bound_lanes(&self, bound: impl Fn(LaneId, &LaneConfig) -> Bound) {
        for (at, cell) in self.shared.lanes.iter().enumerate() {
            let mut lane = cell.lock();
            let bound = bound(LaneId(at as u16), &lane.config);
            lane.set_bound(bound);
        }
    }

    /// While flash is scarce, records of batched lanes wait for up to [`THRIFT_BATCH`] before they are synced, if their lane's own time is
    /// less, and cursors are written half a minute apart. Lanes that sync each record keep their promise.
    pub fn spare_flash(&self, scarce: bool) {
        self.shared.thrift.store(scarce, Ordering::Relaxed);
    }

    /// Whether flash is scarce, as [`spare_flash`](Self::spare_flash) was told.
    #[must_use]
    pub fn spares_flash(&self) -> bool {
        self.shared.thrift.load(Ordering::Relaxed)
    }

    /// Whether the record is as durable as the lane declares.
    #[must_use]
    pub fn is_durable(&self, lane: LaneId, sequence: u64) -> bool {
        let cell = self.cell(lane);
        if cell.progress.borrow().durable > sequence {
            return true;
        }
        let state = cell.lock();
        state.config.durability == Durability::Memory || cell.progress.borrow().durable > state.awaited(sequence)
    }

    /// Resolves when the record is as durable as the lane declares. Cancel-safe.
    ///
    /// # Errors
    /// When the lane cannot be written or the store was closed first: the record may be lost, its sender must not be answered.
    pub fn durable(&self, lane: LaneId, sequence: u64) -> impl Future<Output = Result<(), OutboxError>> + Send + 'static {
        let cell = self.cell(lane);
        let (name, memory, sequence) = {
            let state = cell.lock();
            (state.config.name.clone(), state.config.durability == Durability::Memory, state.awaited(sequence))
        };
        let mut progress = cell.progress.subscribe();
        async move {
            if memory {
                return Ok(());
            }
            let settled = progress.wait_for(|p| p.durable > sequence || p.failure.is_some() || p.closed).await;
            match settled {
                Ok(p) if p.durable > sequence => Ok(()),
                Ok(p) => Err(p.failure.as_ref().map_or(OutboxError::Closed, |detail| OutboxError::Failed { lane: name, detail: detail.clone() })),
                Err(_) => Err(OutboxError::Closed),
            }
        }
    }

    /// Resolves when the record stands in a file, synced or not; one that waits in memory is written for it.
    ///
    /// # Errors
    /// When the lane cannot be written or the store was closed first.
    pub fn written(&self, lane: LaneId, sequence: u64) -> impl Future<Output = Result<(), OutboxError>> + Send + 'static {
        let cell = self.cell(lane);
        let (name, sequence) = {
            let mut lane = cell.lock();
            let sequence = lane.awaited(sequence);
            lane.hold.spill(sequence);
            (lane.config.name.clone(), sequence)
        };
        self.shared.signal.raise(true);
        let (mut written, mut progress) = (cell.written.subscribe(), cell.progress.subscribe());
        async move {
            let settled = tokio::select! {
                biased;
                _ = written.wait_for(|w| *w > sequence) => return Ok(()),
                settled = progress.wait_for(|p| p.failure.is_some() || p.closed) => settled.map(|p| p.failure.clone()),
            };
            Err(settled.ok().flatten().map_or(OutboxError::Closed, |detail| OutboxError::Failed { lane: name, detail }))
        }
    }

    /// Resolves when the lane may take more after it said `Busy`.
    pub fn writable(&self, lane: LaneId) -> impl Future<Output = ()> + Send + 'static {
        let cell = self.cell(lane);
        let (mut written, mut progress) = (cell.written.subscribe(), cell.progress.subscribe());
        async move {
            tokio::select! {
                _ = written.changed() => {}
                _ = progress.changed() => {}
            }
        }
    }

    /// Reads what is stored for a destination in a lane, from its cursor on. One reader at a time for each pair: making one starts
    /// again at the lowest record that is not finished.
    #[must_use]
    pub fn reader(&self, destination: DestinationId, lane: LaneId) -> Reader {
        Reader::new(self.shared.clone(), destination, lane)
    }

    /// Reads single records of a lane again.
    #[must_use]
    pub fn peeker(&self, lane: LaneId) -> Peeker {
        Peeker::new(self.shared.clone(), lane)
    }

    /// The books: a line for each lane and destination.
    #[must_use]
    pub fn ledger(&self) -> Vec<LedgerRow> {
        let names = self.shared.manifest.lock().unwrap_or_else(PoisonError::into_inner).destinations.clone();
        let mut rows = Vec::new();
        for cell in &self.shared.lanes {
            let lane = cell.lock();
            rows.extend(lane.places.keys().map(|id| row(&lane, *id, names.get(usize::from(id.0)).map_or("", String::as_str))));
        }
        rows
    }

    /// The lines of one destination.
    #[must_use]
    pub fn ledger_of(&self, destination: DestinationId) -> Vec<LedgerRow> {
        let name = self.shared.manifest.lock().unwrap_or_else(PoisonError::into_inner).destinations.get(usize::from(destination.0)).cloned();
        let name = name.unwrap_or_default();
        let of = |cell: &LaneCell| {
            let lane = cell.lock();
            lane.places.contains_key(&destination).then(|| row(&lane, destination, &name))
        };
        self.shared.lanes.iter().filter_map(of).collect()
    }

    /// The box is in another mode: records that are accepted from now on carry this number. The store does not know what it means.
    pub fn set_mode(&self, number: u8) {
        for cell in &self.shared.lanes {
            cell.lock().mode = number;
        }
    }

    /// From now on the losses of this destination are noted for [`take_losses`](Self::take_losses).
    pub fn watch_losses(&self, destination: DestinationId) {
        for cell in &self.shared.lanes {
            cell.lock().losses.watch(destination);
        }
    }

    /// What the destination has lost since the last call, by lane. Kept in memory only: the ledger is what counts.
    #[must_use]
    pub fn take_losses(&self, destination: DestinationId) -> Vec<(String, LossReason, Loss)> {
        let mut all = Vec::new();
        for cell in &self.shared.lanes {
            let mut lane = cell.lock();
            let taken = lane.losses.take(destination);
            all.extend(taken.into_iter().map(|(reason, loss)| (lane.config.name.clone(), reason, loss)));
        }
        all
    }

    /// The lanes as operators see them.
    #[must_use]
    pub fn status(&self) -> Vec<LaneStatus> {
        self.shared
            .lanes
            .iter()
            .map(|cell| {
                let lane = cell.lock();
                LaneStatus {
                    lane: lane.config.name.clone(),
                    disk_bytes: lane.disk_bytes(),
                    quota_bytes: lane.config.quota_bytes,
                    segments: lane.segments.len(),
                    last_sequence: lane.next_sequence - 1,
                    accepted_bytes: lane.accepted_bytes,
                    held_bytes: (lane.hold.bytes() + lane.passing.as_ref().map_or(0, |p| p.bytes())) as u64,
                    passthrough: lane.passing.is_some(),
                    passing: lane.passing.as_ref().map_or(0, |p| p.len() as u64),
                    spilled_bytes: lane.hold.spilled,
                    spared_bytes: lane.hold.spared,
                    bound: lane.bound,
                    refused: lane.refused,
                    pieces: lane.places.values().map(|p| p.cursor.sides.len() as u64).sum(),
                    corrupt_records: lane.corrupt_records,
                    locked_segments: lane.locked_segments(),
                    failure: lane.failure.clone().or_else(|| lane.no_key.clone()),
                }
            })
            .collect()
    }

    /// What has been written since start.
    #[must_use]
    pub fn write_counts(&self) -> WriteCounts {
        let s = &self.shared.stats;
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        WriteCounts { bytes: read(&s.bytes_written), flash_bytes: read(&s.flash_bytes), syncs: read(&s.syncs), failed_syncs: read(&s.sync_failures) }
    }

    /// Segments written by compaction, the bytes that this saved, and records merged into others (once for each destination), since start.
    #[must_use]
    pub fn compaction_counts(&self) -> (u64, u64, u64) {
        let s = &self.shared.stats;
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (read(&s.compactions), read(&s.bytes_saved), read(&s.aggregated))
    }

    /// Writes and syncs everything and ends the writer thread. Appending after it is refused as `Busy` at some point and never becomes
    /// durable. Blocks until the disk is done.
    pub fn close(&self) {
        {
            let mut state = self.shared.signal.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.close = true;
            self.shared.signal.changed.notify_one();
        }
        let thread = self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic in the writer has been reported by the panic hook; what is on disk is recovered at the next start.
            let _ = thread.join();
        }
    }
}
