//! One lane's state in memory: what waits to be written, which segments there are, who stands where. Pure bookkeeping;
//! files are touched by the writer and the reader only.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use smallvec::SmallVec;

use super::codec::{self, Accepted, AcceptedBefore, Compacted};
use super::cursor::{Cursor, End};
use super::hold::{self, Hold};
use super::loss::{Loss, LossReason, Losses};
use super::passing::Passing;
use super::reader::SegmentKey;
use super::sealed::Cover;
use super::storage::StoredFile;
use super::{Bound, DestinationId, Durability, LaneConfig, NewRecord, Order, OutboxError, Refusal, Unpassed, WhenFull};
use crate::time::Timestamp;

/// Bytes of encoded records that may wait for the writer; past it the lane says `Busy`.
pub(crate) const MAX_PENDING_BYTES: usize = 4 << 20;

/// Kept free of the quota for the header of the next segment.
const HEADER_ALLOWANCE: u64 = 4 << 10;

/// A segment on disk.
pub(crate) struct Segment {
    pub base: u64,
    pub epoch: u32,
    /// Distinguishes files of an epoch that begin with the same sequence; 0 for those of earlier ones.
    pub attempt: u32,
    pub created: Timestamp,
    pub path: PathBuf,
    pub file: Arc<dyn StoredFile>,
    /// Where the first record stands.
    pub data_start: u64,
    /// End of what is written (the active one) or of the file.
    pub data_end: u64,
    /// Bytes taken on disk, preallocation included.
    pub disk_bytes: u64,
    /// Accepted per destination before the first record.
    pub accepted_before: BTreeMap<DestinationId, u64>,
    /// A record in it does not check out: set aside instead of removed.
    pub corrupt: bool,
    /// How its records are to be read.
    pub cover: Cover,
    /// From which sequence on its records are of which epoch; one entry unless segments of several runs were merged.
    pub epochs: Epochs,
    /// What its header says when it was written by compaction.
    pub compacted: Option<Compacted>,
    /// How far it has been downsampled, or need not be tried (0 for not at all).
    pub level: u8,
}

/// From which sequence on records are of which epoch.
pub(crate) type Epochs = SmallVec<[(u64, u32); 1]>;

/// Where compaction of the lane stands.
#[derive(Debug, Default)]
pub(crate) struct Compaction {
    /// Nothing more is to be gained at present: the oldest goes.
    pub exhausted: bool,
    /// Segments begun since then.
    pub begun: usize,
    /// `keep-latest-per-key` goes on from this sequence.
    pub from: u64,
    /// It has gained something since it began at the front.
    pub gained: bool,
    /// Bytes of the file that is being written.
    pub bytes: u64,
    /// Compactions of this run.
    pub marks: u32,
}

impl Compaction {
    /// What could not be compacted may be now: asked again when an eighth of the segments is new, since asking reads them all.
    pub fn segment_begun(&mut self, segments: usize) {
        self.begun += 1;
        if self.begun * 8 >= segments {
            self.begun = 0;
            self.exhausted = false;
        }
    }
}

/// Encoded records on their way to disk.
pub(crate) struct Chunk {
    pub bytes: Vec<u8>,
    pub first: u64,
    /// One past the last sequence.
    pub end: u64,
    /// When the first record was accepted.
    pub since: Timestamp,
    /// Accepted per destination before the first record.
    pub accepted_before: BTreeMap<DestinationId, u64>,
    /// The same after the last record.
    pub accepted_after: BTreeMap<DestinationId, u64>,
}

/// A destination's side of the lane.
#[derive(Default)]
pub(crate) struct Place {
    pub cursor: Cursor,
    /// Stored records accepted for it, ever.
    pub accepted: u64,
    /// Accepted and dropped at once (`drop-newest`).
    pub dropped: u64,
    /// Accepted and delivered at once: acknowledged by the upstreams without having been stored (`passthrough`).
    pub passed: u64,
}

pub(crate) struct Lane {
    pub config: LaneConfig,
    pub segments: VecDeque<Segment>,
    /// Segments whose file the writer has to remove.
    pub garbage: Vec<Segment>,
    /// The same, but others stand before them: only once the cursor file says durably that they are finished.
    pub middle: Vec<Segment>,
    /// Segments in the middle may be finished.
    pub middle_due: bool,
    pub places: BTreeMap<DestinationId, Place>,
    pub next_sequence: u64,
    /// The last sequence since the store was opened whose record was not dropped at once; 0 for none.
    pub last_stored: u64,
    /// One past the last sequence that can be read from a file, or that nobody needs to read any more.
    pub written: u64,
    /// One past the last sequence whose place in a file is final: a sync that fails moves what is behind it.
    pub settled: u64,
    /// Accepted per destination before `settled`.
    pub settled_accepted: BTreeMap<DestinationId, u64>,
    /// Accepted per destination before `written`.
    pub written_accepted: BTreeMap<DestinationId, u64>,
    /// One past the last sequence that ever stood in a file.
    pub filed: u64,
    /// Records were done with before they were written, since the last one that was: the next one begins a segment, and everything
    /// before it is finished.
    pub gap: bool,
    pub hold: Hold,
    pending: Vec<u8>,
    pending_first: u64,
    pending_since: Timestamp,
    pending_before: BTreeMap<DestinationId, u64>,
    /// Bytes taken by the writer and not yet written.
    pub in_hand: usize,
    /// A reader has come to records that are in the writer's hand; it waits for them to be written.
    pub reader_waits: bool,
    pub failure: Option<String>,
    /// The mode that the box is in, by the number that records carry.
    pub mode: u8,
    pub corrupt_records: u64,
    pub accepted_bytes: u64,
    /// What bounds it beside its quota.
    pub bound: Bound,
    /// Bytes that may be used at most under the bound.
    pub cap: Option<u64>,
    /// Records refused since start, by [`Refusal::ALL`].
    pub refused: [u64; Refusal::ALL.len()],
    pub losses: Losses,
    pub compaction: Compaction,
    /// Bytes that sealing adds to a record when it is written.
    pub overhead_bytes: usize,
    /// Segments were found whose key is not there.
    pub locks: bool,
    /// Why nothing can be sealed, if records are to be and there is no key.
    pub no_key: Option<String>,
    /// What is on its way, of a lane that stores nothing.
    pub passing: Option<Box<Passing>>,
}

impl Lane {
    pub fn new(config: LaneConfig) -> Self {
        Self {
            config,
            segments: VecDeque::new(),
            garbage: Vec::new(),
            middle: Vec::new(),
            middle_due: false,
            places: BTreeMap::new(),
            next_sequence: 1,
            last_stored: 0,
            written: 1,
            settled: 1,
            settled_accepted: BTreeMap::new(),
            written_accepted: BTreeMap::new(),
            filed: 1,
            gap: false,
            hold: Hold::default(),
            pending: Vec::new(),
            pending_first: 1,
            pending_since: Timestamp::default(),
            pending_before: BTreeMap::new(),
            in_hand: 0,
            reader_waits: false,
            failure: None,
            mode: 0,
            corrupt_records: 0,
            accepted_bytes: 0,
            bound: Bound::Quota,
            cap: None,
            refused: [0; Refusal::ALL.len()],
            losses: Losses::default(),
            compaction: Compaction::default(),
            overhead_bytes: 0,
            locks: false,
            no_key: None,
            passing: None,
        }
    }

    pub fn disk_bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.disk_bytes).sum::<u64>() + self.compaction.bytes
    }

    /// Bytes that may be used now.
    fn quota(&self) -> u64 {
        self.cap.map_or(self.config.quota_bytes, |cap| cap.min(self.config.quota_bytes))
    }

    /// Whether segments are compacted. Where records may be finished in memory and never written, segments do not hold all that their
    /// counts know, so there the oldest go; so do they while segments are finished out of order.
    pub fn compacts(&self) -> bool {
        let in_order = self.config.order == Order::Oldest && self.places.values().all(|p| p.cursor.sides.is_empty());
        self.config.when_full.compacts() && !self.holds() && in_order
    }

    /// Compaction begins early enough that appending seldom has to wait for it: with two segments' room left.
    pub fn wants_compaction(&self, segment_bytes: u64) -> bool {
        let used = self.used_bytes() + self.waiting_bytes() as u64 + self.waiting_overhead();
        self.compacts() && !self.compaction.exhausted && used + 2 * segment_bytes > self.quota()
    }

    /// Like [`disk_bytes`](Self::disk_bytes), but of the last segment only what is written: the rest of it is room.
    fn used_bytes(&self) -> u64 {
        self.disk_bytes() - self.segments.back().map_or(0, |s| s.disk_bytes - s.data_end.min(s.disk_bytes))
    }

    /// Whether cursors tell of records that never stood in a file.
    pub fn knows_more(&self) -> bool {
        self.places.values().any(|p| p.cursor.low() > self.filed || p.cursor.finished_in(self.filed, u64::MAX) > 0)
    }

    /// Whether records wait in memory in the hope that they need not be written.
    pub fn holds(&self) -> bool {
        self.config.durability == Durability::Memory && !self.config.spill_after.is_zero()
    }

    /// Bytes that may wait in memory before the oldest are written.
    pub fn hold_limit(&self) -> u64 {
        if self.holds() { hold::HOLD_BYTES.min(self.config.quota_bytes / 8) } else { 0 }
    }

    /// Bytes of records that are in no file yet.
    fn waiting_bytes(&self) -> usize {
        self.pending.len() + self.hold.bytes() + self.in_hand
    }

    /// Bytes that sealing will add to what waits.
    fn waiting_overhead(&self) -> u64 {
        self.overhead_bytes as u64 * (self.next_sequence - self.written.min(self.next_sequence))
    }

    /// Another bound from now on. What the lane uses at this moment is what it may use; what only waits in memory is no growth.
    pub fn set_bound(&mut self, bound: Bound) {
        // What bounds a lane beside its quota spares the disk, which a lane that stores nothing does not use.
        if bound == self.bound || self.passing.is_some() {
            return;
        }
        let held = if self.holds() { self.hold_limit() + HEADER_ALLOWANCE } else { 0 };
        let used = (self.disk_bytes() + held).max(self.config.floor_bytes);
        self.cap = match bound {
            Bound::Quota | Bound::Shut => None,
            Bound::Short => Some(used),
            // Two segments at least: giving up the oldest one must leave one to write.
            Bound::Held => Some(used.max(self.config.quota_bytes / 4)),
        };
        self.bound = bound;
    }

    /// Counts a record that was not taken, and why.
    pub fn note_refusal(&mut self, error: &OutboxError) {
        let why = match error {
            OutboxError::Full { .. } if self.cap.is_some_and(|cap| cap < self.config.quota_bytes) => Refusal::Held,
            OutboxError::Full { .. } => Refusal::Full,
            OutboxError::Shut { .. } => Refusal::Shut,
            OutboxError::TooLarge { .. } => Refusal::TooLarge,
            OutboxError::NotPassed { why, .. } => Refusal::of(why),
            // Its sender waits and has another try.
            OutboxError::Busy { .. } => return,
            _ => Refusal::Failed,
        };
        self.refused[why as usize] += 1;
    }

    /// Takes one record into the pending buffer; gives its sequence.
    pub fn append(&mut self, record: &NewRecord<'_>, now: Timestamp, largest: u64) -> Result<u64, OutboxError> {
        let size = codec::record_bytes(record) + self.overhead_bytes;
        if size as u64 > largest {
            return Err(OutboxError::TooLarge { bytes: size as u64, limit: largest });
        }
        if self.bound == Bound::Shut {
            return Err(OutboxError::Shut { lane: self.config.name.clone() });
        }
        if self.passing.is_some() {
            return Err(OutboxError::NotPassed { lane: self.config.name.clone(), why: Unpassed::Link });
        }
        // Before room is made for it. A lane that holds records back needs no file as long as they are taken in time.
        let no_key = self.no_key.as_ref().filter(|_| !self.holds());
        if let Some(detail) = self.failure.as_ref().or(no_key) {
            return Err(OutboxError::Failed { lane: self.config.name.clone(), detail: detail.clone() });
        }
        if self.waiting_bytes() + size > MAX_PENDING_BYTES {
            return Err(OutboxError::Busy { lane: self.config.name.clone() });
        }
        let mut dropped = false;
        let waiting = self.waiting_bytes() as u64 + self.waiting_overhead();
        let quota = self.quota();
        while self.used_bytes() + waiting + size as u64 + HEADER_ALLOWANCE > quota {
            if self.free_middle() {
                continue;
            }
            if self.config.when_full == WhenFull::DropNewest {
                dropped = true;
                break;
            }
            // The writer has been at it for two segments' length, so this is short.
            if self.compacts() && !self.compaction.exhausted {
                return Err(OutboxError::Busy { lane: self.config.name.clone() });
            }
            // Reject, or nothing more can be given up: the segment in use stays.
            if self.config.when_full == WhenFull::Reject || !self.evict_oldest() {
                return Err(OutboxError::Full { lane: self.config.name.clone(), used_bytes: self.used_bytes() + waiting, quota_bytes: quota });
            }
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.accepted_bytes += record.payload.len() as u64;
        if dropped {
            for d in record.destinations {
                self.places.entry(*d).or_default().dropped += 1;
                self.losses.note(*d, LossReason::Newest, Loss::one(sequence, now));
            }
            return Ok(sequence);
        }
        if self.pending.is_empty() {
            self.pending_first = sequence;
            self.pending_since = now;
            self.pending_before = self.accepted();
        }
        self.last_stored = sequence;
        codec::encode_record(&mut self.pending, sequence, Accepted { at: now, mode: self.mode }, record);
        for d in record.destinations {
            self.places.entry(*d).or_default().accepted += 1;
        }
        Ok(sequence)
    }

    fn accepted(&self) -> BTreeMap<DestinationId, u64> {
        self.places.iter().map(|(d, p)| (*d, p.accepted)).collect()
    }

    fn pending_chunk(&mut self) -> Option<Chunk> {
        if self.pending.is_empty() {
            return None;
        }
        Some(Chunk {
            bytes: std::mem::take(&mut self.pending),
            first: self.pending_first,
            end: self.next_sequence,
            since: self.pending_since,
            accepted_before: std::mem::take(&mut self.pending_before),
            accepted_after: self.accepted(),
        })
    }

    /// Hands records to the writer: all that wait, or in a lane that holds them back those that have waited for long enough. `last`: all.
    pub fn take_pending(&mut self, now: Timestamp, last: bool) -> Option<Chunk> {
        let chunk = if self.holds() || !self.hold.is_empty() {
            // A lane that held records back until its settings were changed writes them now.
            let all = last || !self.holds();
            self.hold_pending(now, all);
            self.spare_held();
            self.hold.pop_due(now, self.config.spill_after, self.hold_limit(), all)
        } else {
            self.pending_chunk()
        }?;
        self.in_hand += chunk.bytes.len();
        Some(chunk)
    }

    fn hold_pending(&mut self, now: Timestamp, last: bool) {
        let old = now.since(self.pending_since) >= hold::piece_age(self.config.spill_after);
        if (last || old || self.pending.len() > hold::PIECE_BYTES || self.hold.must_write(self.pending_first))
            && let Some(chunk) = self.pending_chunk()
        {
            self.hold.push(chunk);
        }
    }

    /// Drops what waits in memory and nobody needs any more. What stands before it is finished then, too.
    fn spare_held(&mut self) {
        while self.in_hand == 0 && self.hold.front().is_some_and(|chunk| self.is_finished(chunk)) {
            if let Some(chunk) = self.hold.pop_spared() {
                self.spare(chunk);
            }
        }
    }

    /// Whether all records up to the end of a chunk are finished for all destinations.
    fn is_finished(&self, chunk: &Chunk) -> bool {
        self.places.iter().all(|(d, p)| p.cursor.finished_before(chunk.end) >= chunk.accepted_after.get(d).copied().unwrap_or(0))
    }

    /// A chunk that is finished is never written.
    fn spare(&mut self, chunk: Chunk) {
        for (d, place) in &mut self.places {
            place.cursor.drop_before(chunk.end, chunk.accepted_after.get(d).copied().unwrap_or(0), End::Delivered);
        }
        self.written = self.written.max(chunk.end);
        self.written_accepted = chunk.accepted_after;
        self.gap = true;
        self.give_back(chunk.bytes);
    }

    /// A chunk that could not be written: a lane that holds records back takes it back, so that readers do not wait for the disk.
    pub fn take_back(&mut self, chunk: Chunk) -> Option<Chunk> {
        if !self.holds() {
            return Some(chunk);
        }
        self.in_hand = self.in_hand.saturating_sub(chunk.bytes.len());
        self.hold.push_front(chunk);
        None
    }

    /// When the writer has to look at what waits in memory again; none when nothing does.
    pub fn look_again(&self) -> Option<std::time::Duration> {
        let waits = self.holds() && !(self.pending.is_empty() && self.hold.is_empty());
        waits.then(|| hold::piece_age(self.config.spill_after))
    }

    /// Whether the writer must be told of what was just appended; `idle`: nothing waited before.
    pub fn wakes_writer(&self, idle: bool) -> bool {
        !self.holds() || idle || self.pending.len() > hold::PIECE_BYTES
    }

    /// What the sender of a record waits for: the record itself, or when it was dropped at once the last one that was stored before it.
    pub fn awaited(&self, sequence: u64) -> u64 {
        sequence.min(self.last_stored)
    }

    /// Bytes that wait for the writer.
    pub fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// The records that are in no file yet, for a reader that stands at `next`: the first one's sequence, one past the last one's if no
    /// more are added to them, and all their bytes. None when there are none, or when others stand before them that are in the
    /// writer's hand.
    pub fn tail(&self, next: u64) -> Option<(u64, Option<u64>, &[u8])> {
        let first = self.hold.front().map_or(self.pending_first, |c| c.first);
        let reached = self.in_hand == 0 || first <= next;
        if (next < self.written && !self.segments.is_empty()) || !reached {
            return None;
        }
        match self.hold.at(next) {
            Some(chunk) => Some((chunk.first, Some(chunk.end), &chunk.bytes)),
            None => (!self.pending.is_empty()).then_some((self.pending_first, None, &self.pending[..])),
        }
    }

    /// Nothing waits to be written.
    pub fn is_idle(&self) -> bool {
        self.waiting_bytes() == 0
    }

    /// A buffer that the writer is done with comes back, so that steady traffic allocates nothing.
    pub fn give_back(&mut self, mut buffer: Vec<u8>) {
        if self.pending.capacity() == 0 && buffer.capacity() <= 256 << 10 {
            buffer.clear();
            self.pending = buffer;
        }
    }

    /// Records of a destination that stand before the end of segment `at`.
    pub fn accepted_through(&self, at: usize, destination: DestinationId) -> u64 {
        let counts = self.segments.get(at + 1).map_or(&self.written_accepted, |next| &next.accepted_before);
        counts.get(&destination).copied().unwrap_or(0)
    }

    /// Records of a destination in segment `at` that are not finished.
    pub fn unfinished_in(&self, at: usize, destination: DestinationId) -> u64 {
        let (Some(segment), Some(place)) = (self.segments.get(at), self.places.get(&destination)) else { return 0 };
        let (end, through) = (self.segment_end(at), self.accepted_through(at, destination));
        if place.cursor.low() >= end {
            return 0;
        }
        // Up to the position all is finished, so before it the count of all that came is the count of what is finished.
        let before = segment.accepted_before.get(&destination).copied().unwrap_or(0);
        let finished =
            if place.cursor.low() > segment.base { place.cursor.finished_before(end) } else { before + place.cursor.finished_in(segment.base, end) };
        through.saturating_sub(finished)
    }

    /// A reader has come to the end of a sealed segment: what it met nothing of there cannot be read any more (a file was set aside).
    pub fn pass_segment(&mut self, at: usize, destination: DestinationId) {
        let (end, accepted) = (self.segment_end(at), self.accepted_through(at, destination));
        let (base, created, whole) = self.segments.get(at).map(|s| (s.base, s.created, !s.corrupt && !s.cover.is_lost())).unwrap_or_default();
        let Some(place) = self.places.get_mut(&destination) else { return };
        // All of the segment checks out and has been read: what is missing stood behind it.
        let from = if whole { place.cursor.next().clamp(base, end.saturating_sub(1).max(base)) } else { base };
        let lost = place.cursor.skip_to(base, end, accepted);
        let sequences = (from, end.saturating_sub(1));
        self.losses.note(destination, LossReason::Damaged, Loss { count: lost, sequences, times: (created, created) });
        self.corrupt_records += lost;
        if lost > 0 && whole {
            tracing::error!(
                lane = %self.config.name, first = sequences.0, last = sequences.1, lost,
                "messages that were stored stand in no file any more: a segment has vanished; they are counted as lost"
            );
        }
    }

    /// Nothing is written to this segment any more: another one follows it, or it is of an earlier run.
    pub fn is_sealed(&self, at: usize, epoch: u32) -> bool {
        at + 1 < self.segments.len() || self.segments.get(at).is_some_and(|s| s.epoch != epoch)
    }

    /// One past the last sequence of a segment that is not the active one.
    pub fn segment_end(&self, at: usize) -> u64 {
        self.segments.get(at + 1).map_or(self.written, |next| next.base)
    }

    /// Gives up the oldest segment, unless it is the one being written.
    pub fn evict_oldest(&mut self) -> bool {
        if self.segments.len() < 2 {
            return false;
        }
        self.drop_front(End::Evicted);
        true
    }

    fn drop_front(&mut self, how: End) {
        let end = self.segment_end(0);
        let reason = if how == End::Expired { LossReason::Expired } else { LossReason::Quota };
        let begun = self.segments.front().map(|s| (s.base, s.created)).unwrap_or_default();
        let last = self.segments.get(1).map_or(begun.1, |next| next.created);
        let through: Vec<(DestinationId, u64)> = self.places.keys().map(|d| (*d, self.accepted_through(0, *d))).collect();
        for (d, accepted) in through {
            if let Some(place) = self.places.get_mut(&d) {
                let count = place.cursor.drop_before(end, accepted, how);
                self.losses.note(d, reason, Loss { count, sequences: (begun.0, end.saturating_sub(1)), times: (begun.1, last) });
            }
        }
        if let Some(gone) = self.segments.pop_front() {
            self.garbage.push(gone);
        }
    }

    /// Moves segments that nobody needs any more, or whose records have all expired, to the garbage, oldest first; `keep` of them
    /// stay in any case (1 while the last one is being written).
    pub fn trim(&mut self, now: Timestamp, keep: usize) {
        while self.segments.len() > keep {
            let needed = self.places.iter().any(|(d, p)| p.cursor.finished_before(self.segment_end(0)) < self.accepted_through(0, *d));
            // Every record of the segment was accepted before the next one was made.
            let expired = self.segments.get(1).zip(self.config.ttl).is_some_and(|(next, ttl)| now.since(next.created) > ttl);
            if needed && !expired {
                break;
            }
            self.drop_front(if needed { End::Expired } else { End::Delivered });
        }
        self.free_middle();
    }

    /// Records stored for a destination and not finished.
    pub fn queued(&self, destination: DestinationId) -> u64 {
        self.places.get(&destination).map_or(0, |p| p.accepted.saturating_sub(p.cursor.finished()))
    }

    /// The rest of a segment cannot be read: counts what this destination loses and moves it past.
    pub fn skip_corrupt(&mut self, at: usize, destination: DestinationId) -> u64 {
        let end = self.segment_end(at);
        let accepted = self.accepted_through(at, destination);
        let (base, created) = self.segments.get_mut(at).map_or_else(Default::default, |segment| {
            segment.corrupt = true;
            (segment.base, segment.created)
        });
        let Some(place) = self.places.get_mut(&destination) else { return 0 };
        let from = place.cursor.next();
        let lost = place.cursor.skip_to(base, end, accepted);
        self.losses.note(destination, LossReason::Damaged, Loss { count: lost, sequences: (from, end.saturating_sub(1)), times: (created, created) });
        self.corrupt_records += lost;
        lost
    }

    /// Records that did not open with the key of their segment: it is set aside when nobody needs it any more.
    pub fn note_unopened(&mut self, destination: DestinationId, key: SegmentKey, unopened: Option<Loss>) {
        let Some(loss) = unopened else { return };
        self.losses.note(destination, LossReason::Damaged, loss);
        self.corrupt_records += loss.count;
        if let Some(segment) = self.segments.iter_mut().find(|s| (s.base, s.epoch, s.attempt) == key) {
            segment.corrupt = true;
            tracing::error!(path = %segment.path.display(), lost = loss.count, first = loss.sequences.0, last = loss.sequences.1, "sealed records do not open");
        }
    }

    /// Records of a destination that wait for a key that is not there, or behind such in a lane that is read in order.
    pub fn waiting_for_key(&self, destination: DestinationId) -> u64 {
        let locked = |at: &usize| self.segments[*at].cover.is_locked() && self.unfinished_in(*at, destination) > 0;
        if self.locks && self.config.order == Order::Newest {
            return (0..self.segments.len()).filter(locked).map(|at| self.unfinished_in(at, destination)).sum();
        }
        let first = if self.locks { (0..self.segments.len()).find(locked) } else { None };
        first.map_or(0, |at| {
            let before: u64 = (0..at).map(|at| self.unfinished_in(at, destination)).sum();
            self.queued(destination).saturating_sub(before)
        })
    }

    /// Segments whose key is not there.
    pub fn locked_segments(&self) -> usize {
        self.segments.iter().filter(|s| s.cover.is_locked()).count()
    }

    /// Records whose life was over when they were read.
    pub fn note_expired(&mut self, destination: DestinationId, expired: Option<Loss>) {
        if let Some(expired) = expired {
            self.losses.note(destination, LossReason::Expired, expired);
        }
    }

    /// Header entries for a segment before whose first record so many were accepted.
    pub fn header_destinations(accepted_before: &BTreeMap<DestinationId, u64>, names: &[String]) -> Vec<AcceptedBefore> {
        accepted_before
            .iter()
            .map(|(id, accepted)| AcceptedBefore { id: *id, name: names.get(usize::from(id.0)).cloned().unwrap_or_default(), accepted: *accepted })
            .collect()
    }
}
