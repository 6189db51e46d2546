//! The one thread that writes: group commit, rotation, what to do when the disk refuses, cursors, removal.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::codec::{self, Header};
use super::compact::{Pass, UNTOUCHABLE};
use super::files::{self, CursorEntry, CursorPage};
use super::lane::{Chunk, Lane, Segment};
use super::sealed::{self, Cover, Sealer};
use super::storage::StoredFile;
use super::{Durability, LaneConfig, OutboxConfig, Progress, Shared, THRIFT_BATCH, recover, vanished};
use crate::time::Monotonic;

/// Unsynced bytes of a batched lane at which it is synced early; bounds what is kept in memory for a failed sync.
const MAX_UNSYNCED_BYTES: usize = 1 << 20;
/// What flash writes at least, and whole multiples of.
const BLOCK: u64 = 4 << 10;
/// Cursors that say nothing about a file (a lane that keeps its records in memory) are written this much less often.
const QUIET: u32 = 300;
/// Cursors are written this much less often while flash is scarce.
const THRIFT_CURSORS: u32 = 30;
/// Blocks that a new file costs beside its content: its name, its inode, the map of free blocks (measured on ext4).
const FILE_BLOCKS: u64 = 3;
/// First and longest wait before a lane that could not be written is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Size at which a lane's segments are closed.
pub(crate) fn segment_bytes(config: &OutboxConfig, lane: &LaneConfig) -> u64 {
    config.segment_bytes.min(lane.quota_bytes / 8).clamp(64 << 10, 64 << 20)
}

struct Active {
    file: Arc<dyn StoredFile>,
    end: u64,
    /// End of what a sync has covered.
    synced: u64,
    /// Blocks before this one have been counted as written to flash.
    counted: u64,
    /// What seals its records. As it counts them, it belongs to this file alone.
    sealer: Option<Sealer>,
}

impl Active {
    /// How long encoded records become in the file.
    fn stored_bytes(&self, records: &[u8]) -> u64 {
        if self.sealer.is_some() { sealed::sealed_bytes(records) as u64 } else { records.len() as u64 }
    }

    /// Writes encoded records at the end, sealed if the file is. Returns how many bytes that were.
    fn append(&mut self, records: &[u8]) -> io::Result<u64> {
        let stored = match &mut self.sealer {
            Some(sealer) => sealer.seal(records)?,
            None => records,
        };
        self.file.write_at(self.end, stored)?;
        self.end += stored.len() as u64;
        Ok(stored.len() as u64)
    }

    /// Blocks that a write up to `end` makes the disk write, and that have not been counted since the last sync.
    fn new_blocks(&mut self, end: u64) -> u64 {
        let through = end.div_ceil(BLOCK);
        let new = through.saturating_sub(self.counted);
        self.counted = self.counted.max(through);
        new
    }
}

#[derive(Default)]
pub(super) struct LaneWriter {
    active: Option<Active>,
    /// Written to the active segment since its last sync, kept until that succeeds (not for memory lanes).
    unsynced: VecDeque<Chunk>,
    unsynced_since: Option<Monotonic>,
    /// Could not be written or synced: goes first, in order.
    stuck: VecDeque<Chunk>,
    retry_at: Option<Monotonic>,
    retry_wait: Duration,
    /// Distinguishes files that begin with the same sequence.
    pub attempt: u32,
    /// Segments that are being compacted.
    pub pass: Option<Pass>,
}

/// Writes for all lanes. [`step`](Self::step) does what is due; the thread around it only waits.
pub(crate) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) lanes: Vec<LaneWriter>,
    page: CursorPage,
    page_due: Option<Monotonic>,
    /// The cursors that were found know of records that no file has. They have to be safe before a segment counts on them.
    page_first: bool,
    /// When what is due late is looked at again: it may have become due sooner.
    page_look: Monotonic,
    /// How long work that is not urgent waits for more of it.
    linger: Duration,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, generation: u64) -> Self {
        let page_first = shared.lanes.iter().any(|l| l.lock().knows_more());
        let lanes = shared.lanes.iter().map(|_| LaneWriter::default()).collect();
        let linger = shared.lanes.iter().map(|l| l.lock().config.durability.linger()).filter(|l| !l.is_zero()).min().unwrap_or_default();
        Self {
            shared,
            lanes,
            page: CursorPage { generation, ..CursorPage::default() },
            page_due: None,
            page_first,
            page_look: Monotonic::default(),
            linger,
        }
    }

    /// Until closed: waits for work or for a deadline, then steps.
    pub fn run(&mut self) {
        let mut wait = Some(Duration::ZERO);
        loop {
            let due = wait.map(|wait| self.shared.clock.monotonic().plus(wait));
            let close = {
                let shared = self.shared.clone();
                let mut state = shared.signal.state.lock().unwrap_or_else(PoisonError::into_inner);
                while !state.work && !state.close {
                    match wait {
                        None => state = shared.signal.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                        Some(limit) => {
                            let (next, timeout) = shared.signal.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner);
                            state = next;
                            if timeout.timed_out() {
                                break;
                            }
                        }
                    }
                }
                // Readers do not wait for it, so a few milliseconds' records are written together; bytes that pile up end the wait, and so
                // does a sync that falls due.
                if state.work {
                    let linger = due.map_or(self.linger, |due| due.since(shared.clock.monotonic()).min(self.linger));
                    let more = |s: &mut super::SignalState| !s.urgent && !s.close;
                    state = shared.signal.changed.wait_timeout_while(state, linger, more).unwrap_or_else(PoisonError::into_inner).0;
                }
                state.work = false;
                state.urgent = false;
                state.close
            };
            wait = self.step(close);
            if close {
                return;
            }
        }
    }

    /// Does everything that is due; says how long nothing will be. `last` writes, syncs and seals whatever is there.
    pub fn step(&mut self, last: bool) -> Option<Duration> {
        let now = self.shared.clock.monotonic();
        let mut wait: Option<Duration> = None;
        let mut sooner = |d: Duration| wait = Some(wait.map_or(d, |w| w.min(d)));
        if std::mem::take(&mut self.page_first) {
            self.write_page(true);
        }
        for at in 0..self.lanes.len() {
            if let Some(d) = self.step_lane(at, now, last) {
                sooner(d);
            }
        }
        for at in 0..self.lanes.len() {
            if self.compact(at, last) {
                sooner(Duration::ZERO);
            }
        }
        let mut garbage: Vec<Segment> = Vec::new();
        let mut middle: Vec<Vec<Segment>> = Vec::new();
        let mut promised = false;
        for (cell, writer) in self.shared.lanes.iter().zip(&self.lanes) {
            let mut lane = cell.lock();
            let wall = self.shared.clock.now();
            // Nothing is written to the last segment any more once everything was finished in memory, or where nothing is stored.
            let ended = lane.gap || lane.passing.is_some();
            let keep = usize::from(!ended || writer.active.is_some());
            lane.trim(wall, keep);
            promised |= !lane.garbage.is_empty() && lane.config.durability.syncs();
            garbage.append(&mut lane.garbage);
            middle.push(std::mem::take(&mut lane.middle));
        }
        // Cursors go first, so that a restart in between counts the removed records as what they became: what stands in no file and is
        // not known as finished counts as lost. Synced, so that a power cut does not undo them alone; only a lane that syncs its
        // records is worth that.
        let due = self.page_due.is_some_and(|due| now >= due);
        let durable = last || promised || middle.iter().any(|m| !m.is_empty());
        let mut known = false;
        if durable || due || !garbage.is_empty() {
            known = self.write_page(durable);
            self.page_due = None;
        }
        for segment in garbage {
            self.remove(&segment);
        }
        for (cell, mut segments) in self.shared.lanes.iter().zip(middle) {
            if known {
                segments.iter().for_each(|segment| self.remove(segment));
            } else {
                // What stands before them is not finished, so nothing else would tell of them after a power cut.
                cell.lock().middle.append(&mut segments);
            }
        }
        if !last {
            self.schedule_page(now);
        }
        if let Some(due) = self.page_due {
            sooner(due.since(now));
        }
        // Expiry and cursor changes are looked for now and then even when nothing is appended.
        sooner(self.shared.config.cursor_interval);
        if last {
            for cell in &self.shared.lanes {
                cell.progress.send_modify(|p| p.closed = true);
            }
        }
        wait
    }

    fn step_lane(&mut self, at: usize, now: Monotonic, last: bool) -> Option<Duration> {
        let durability = self.shared.lanes[at].lock().config.durability;
        let in_queue = self.shared.clock.now();
        if let Some(retry_at) = self.lanes[at].retry_at
            && now < retry_at
            && !last
        {
            return Some(retry_at.since(now));
        }
        let mut moved = false;
        let mut failure: Option<io::Error> = None;
        loop {
            let before = self.shared.lanes[at].lock().written;
            let next = match self.lanes[at].stuck.pop_front() {
                Some(chunk) => Some(chunk),
                None => self.shared.lanes[at].lock().take_pending(in_queue, last),
            };
            let Some(chunk) = next else {
                moved |= self.shared.lanes[at].lock().written != before;
                break;
            };
            match self.write(at, &chunk) {
                Ok(()) => {
                    moved = true;
                    let writer = &mut self.lanes[at];
                    if matches!(durability, Durability::Memory | Durability::Passthrough) {
                        self.shared.lanes[at].lock().give_back(chunk.bytes);
                    } else {
                        writer.unsynced_since.get_or_insert(now);
                        writer.unsynced.push_back(chunk);
                    }
                }
                Err(error) => {
                    // A failed sync may have put older ones there.
                    let stuck = &mut self.lanes[at].stuck;
                    if let Some(chunk) = self.shared.lanes[at].lock().take_back(chunk) {
                        stuck.insert(stuck.partition_point(|c| c.first < chunk.first), chunk);
                    }
                    failure = Some(error);
                    break;
                }
            }
        }
        let mut wait = self.shared.lanes[at].lock().look_again();
        if failure.is_none() && !self.lanes[at].unsynced.is_empty() {
            let due = match durability {
                Durability::Memory | Durability::Passthrough => None,
                Durability::Fsync => Some(now),
                Durability::Batched(longest) => {
                    let bytes: usize = self.lanes[at].unsynced.iter().map(|c| c.bytes.len()).sum();
                    // The first record may have waited that long to be written.
                    let longest = if self.thrifty() { longest.max(THRIFT_BATCH) } else { longest };
                    let rest = longest.saturating_sub(durability.linger());
                    if bytes > MAX_UNSYNCED_BYTES { Some(now) } else { self.lanes[at].unsynced_since.map(|since| since.plus(rest)) }
                }
            };
            match due {
                Some(due) if due <= now || last => failure = self.sync(at).err(),
                Some(due) => wait = Some(due.since(now)),
                None => {}
            }
            moved = true;
        }
        let gap = self.shared.lanes[at].lock().gap;
        if (last || gap) && failure.is_none() {
            failure = self.seal(at).err();
        }
        let writer = &mut self.lanes[at];
        if let Some(error) = &failure {
            writer.retry_wait = (writer.retry_wait * 2).clamp(RETRY.0, RETRY.1);
            writer.retry_at = Some(now.plus(writer.retry_wait));
            wait = Some(writer.retry_wait);
            tracing::error!(lane = %self.shared.lanes[at].lock().config.name, error = %error, retry_in_ms = writer.retry_wait.as_millis() as u64, "the lane cannot be written; it takes nothing new until it can");
        } else {
            writer.retry_at = None;
            writer.retry_wait = Duration::ZERO;
        }
        let cleared = {
            let mut lane = self.shared.lanes[at].lock();
            let had = lane.failure.is_some();
            lane.failure = failure.as_ref().map(ToString::to_string);
            had && failure.is_none()
        };
        if moved || failure.is_some() || cleared || last {
            self.publish(at);
        }
        wait
    }

    /// Flash is scarce.
    fn thrifty(&self) -> bool {
        self.shared.thrift.load(Ordering::Relaxed)
    }

    fn publish(&self, at: usize) {
        let cell = &self.shared.lanes[at];
        let (written, progress, reader_waits) = {
            let mut lane = cell.lock();
            let writer = &self.lanes[at];
            let unsettled = writer.unsynced.front().or(writer.stuck.front());
            let durable = unsettled.map_or(lane.written, |c| c.first);
            if durable > lane.settled {
                lane.settled = durable;
                lane.settled_accepted = unsettled.map_or_else(|| lane.written_accepted.clone(), |c| c.accepted_before.clone());
            }
            let reader_waits = std::mem::take(&mut lane.reader_waits);
            (lane.written, Progress { durable, failure: lane.failure.clone(), closed: false }, reader_waits)
        };
        if reader_waits {
            cell.readable.send_modify(|n| *n += 1);
        }
        replace_if_new(&cell.written, written);
        replace_if_new(&cell.progress, progress);
    }

    fn write(&mut self, at: usize, chunk: &Chunk) -> io::Result<()> {
        let config = self.shared.lanes[at].lock().config.clone();
        let limit = segment_bytes(&self.shared.config, &config);
        let gap = self.shared.lanes[at].lock().gap;
        if gap || self.lanes[at].active.as_ref().is_some_and(|a| a.end + a.stored_bytes(&chunk.bytes) > limit) {
            self.seal(at)?;
        }
        loop {
            let tried = self.write_to_active(at, chunk, limit);
            match tried {
                Err(e) if is_full(&e) && config.when_full.gives_up_oldest() => {
                    let (evicted, garbage) = {
                        let mut lane = self.shared.lanes[at].lock();
                        (lane.evict_oldest(), std::mem::take(&mut lane.garbage))
                    };
                    if !evicted {
                        return Err(e);
                    }
                    for segment in garbage {
                        self.remove(&segment);
                    }
                    // There was no room to write them before.
                    self.page_due = Some(self.shared.clock.monotonic());
                }
                other => return other,
            }
        }
    }

    fn write_to_active(&mut self, at: usize, chunk: &Chunk, limit: u64) -> io::Result<()> {
        if self.lanes[at].active.is_none() {
            self.begin_segment(at, chunk, limit)?;
        }
        let Some(active) = &mut self.lanes[at].active else { return Err(io::Error::other("no segment is open")) };
        let stored = active.append(&chunk.bytes)?;
        let end = active.end;
        self.shared.stats.wrote(stored, BLOCK * active.new_blocks(end));
        let mut lane = self.shared.lanes[at].lock();
        lane.in_hand = lane.in_hand.saturating_sub(chunk.bytes.len());
        lane.written = lane.written.max(chunk.end);
        lane.filed = lane.filed.max(chunk.end);
        lane.written_accepted = chunk.accepted_after.clone();
        if let Some(segment) = lane.segments.back_mut() {
            segment.data_end = end;
            segment.disk_bytes = segment.disk_bytes.max(end);
        }
        Ok(())
    }

    fn begin_segment(&mut self, at: usize, chunk: &Chunk, limit: u64) -> io::Result<()> {
        let names = self.shared.manifest.lock().unwrap_or_else(PoisonError::into_inner).destinations.clone();
        let lane_name = self.shared.lanes[at].lock().config.name.clone();
        let created = self.shared.clock.now();
        let fresh = self.shared.lanes[at].lock().gap;
        let at_rest = &self.shared.config.at_rest;
        let sealing = at_rest.begin(&sealed::Place { lane: &lane_name, epoch: self.shared.epoch, base: chunk.first })?;
        let (sealed, sealer) = sealing.unzip();
        let header = codec::encode_header(&Header {
            epoch: self.shared.epoch,
            base: chunk.first,
            created,
            lane: lane_name.clone(),
            destinations: Lane::header_destinations(&chunk.accepted_before, &names),
            fresh,
            compacted: None,
            sealed,
        });
        let room = {
            let lane = self.shared.lanes[at].lock();
            lane.config.quota_bytes.saturating_sub(lane.disk_bytes())
        };
        let size = limit.min(room).max((header.len() + at_rest.stored_bytes(&chunk.bytes)) as u64);
        let dir = self.shared.config.dir.join(&lane_name);
        self.lanes[at].attempt += 1;
        let path = dir.join(recover::segment_name(chunk.first, self.shared.epoch, self.lanes[at].attempt));
        let file = self.shared.storage.create(&path, size)?;
        let prepared = file.write_at(0, &header).and_then(|()| self.shared.storage.sync_dir(&dir));
        if let Err(e) = prepared {
            let _ = self.shared.storage.remove(&path);
            return Err(e);
        }
        let cover = sealer.as_ref().map_or(Cover::Plain, Sealer::cover);
        let mut active = Active { file: file.clone(), end: header.len() as u64, synced: header.len() as u64, counted: 0, sealer };
        self.shared.stats.wrote(header.len() as u64, BLOCK * (active.new_blocks(header.len() as u64) + FILE_BLOCKS));
        let mut lane = self.shared.lanes[at].lock();
        lane.gap = false;
        // After a failed sync the new segment takes over from where the old one is no longer trusted.
        while lane.segments.back().is_some_and(|s| s.base >= chunk.first) {
            if let Some(superseded) = lane.segments.pop_back() {
                lane.garbage.push(superseded);
            }
        }
        lane.segments.push_back(Segment {
            base: chunk.first,
            epoch: self.shared.epoch,
            attempt: self.lanes[at].attempt,
            created,
            path,
            file: file.clone(),
            data_start: header.len() as u64,
            data_end: header.len() as u64,
            disk_bytes: size,
            accepted_before: chunk.accepted_before.clone(),
            corrupt: false,
            cover,
            epochs: smallvec::smallvec![(chunk.first, self.shared.epoch)],
            compacted: None,
            level: if fresh { UNTOUCHABLE } else { 0 },
        });
        let segments = lane.segments.len();
        lane.compaction.segment_begun(segments);
        self.lanes[at].active = Some(active);
        Ok(())
    }

    /// Makes what was written durable. When the disk refuses, the file is not trusted again: everything since the last good sync
    /// goes to a fresh segment, from memory.
    fn sync(&mut self, at: usize) -> io::Result<()> {
        let Some(active) = &mut self.lanes[at].active else { return Ok(()) };
        self.shared.stats.syncs.fetch_add(1, Ordering::Relaxed);
        match active.file.sync() {
            Ok(()) => {
                active.synced = active.end;
                // The last block is written again with what follows.
                active.counted = active.end / BLOCK;
                let writer = &mut self.lanes[at];
                writer.unsynced_since = None;
                let done = std::mem::take(&mut writer.unsynced);
                let mut lane = self.shared.lanes[at].lock();
                for chunk in done {
                    lane.give_back(chunk.bytes);
                }
                Ok(())
            }
            Err(error) => {
                self.shared.stats.sync_failures.fetch_add(1, Ordering::Relaxed);
                let synced = active.synced;
                let writer = &mut self.lanes[at];
                writer.active = None;
                writer.unsynced_since = None;
                let again = std::mem::take(&mut writer.unsynced);
                let mut lane = self.shared.lanes[at].lock();
                lane.in_hand += again.iter().map(|c| c.bytes.len()).sum::<usize>();
                // Readers stop where the file is no longer trusted.
                if let Some(first) = again.front() {
                    lane.written = first.first;
                    lane.written_accepted.clone_from(&first.accepted_before);
                    if let Some(segment) = lane.segments.back_mut() {
                        segment.data_end = synced;
                    }
                }
                for chunk in again.into_iter().rev() {
                    writer.stuck.push_front(chunk);
                }
                Err(error)
            }
        }
    }

    /// Closes the active segment: synced as the lane needs it, and cut to what it holds.
    fn seal(&mut self, at: usize) -> io::Result<()> {
        if !self.lanes[at].unsynced.is_empty() {
            self.sync(at)?;
        }
        if let Some(active) = self.lanes[at].active.take() {
            // A tail that cannot be cut costs room, nothing else.
            if active.file.set_len(active.end).is_ok()
                && let Some(segment) = self.shared.lanes[at].lock().segments.back_mut()
            {
                segment.disk_bytes = active.end;
            }
        }
        Ok(())
    }

    fn remove(&self, segment: &Segment) {
        let storage = &self.shared.storage;
        let result = if segment.corrupt { storage.rename(&segment.path, &corrupt_name(&segment.path)) } else { storage.remove(&segment.path) };
        if let Err(error) = result {
            // It is found again at the next start and its records are known to be finished there.
            tracing::warn!(path = %segment.path.display(), error = %error, "a finished segment could not be removed");
        }
    }

    fn current_page(&self) -> CursorPage {
        let mut page = CursorPage { generation: self.page.generation, ..CursorPage::default() };
        for cell in &self.shared.lanes {
            let lane = cell.lock();
            page.next.push((lane.config.name.clone(), lane.next_sequence));
            page.stood.extend(vanished::stood(&lane));
            let compacted = lane.segments.iter().filter_map(|s| Some((lane.config.name.clone(), s.base, s.compacted.as_ref()?.mark)));
            page.compacted.extend(compacted);
            for (id, place) in &lane.places {
                page.entries.push(CursorEntry {
                    lane: lane.config.name.clone(),
                    destination: id.0,
                    low: place.cursor.low(),
                    ahead: place.cursor.ahead(),
                    counts: [place.cursor.delivered, place.cursor.expired, place.cursor.evicted, place.cursor.aggregated],
                    dropped: place.dropped,
                    passed: place.passed,
                    segments: place.cursor.in_segments(),
                    runs: place.cursor.sides.runs(),
                });
            }
        }
        page
    }

    /// Decides when cursors are written next: within `cursor_interval` if they say what need not be read from a file again, far later
    /// if they tell of records that no file has.
    fn schedule_page(&mut self, now: Monotonic) {
        let interval = self.shared.config.cursor_interval;
        if self.page_due.is_some() && now < self.page_look {
            return;
        }
        let page = self.current_page();
        let due = if page == self.page {
            return;
        } else if self.is_quiet(&page) {
            now.plus(interval * QUIET)
        } else if self.thrifty() {
            now.plus(interval * THRIFT_CURSORS)
        } else {
            now.plus(interval)
        };
        self.page_look = now.plus(interval);
        self.page_due = Some(self.page_due.map_or(due, |before| before.min(due)));
    }

    /// Whether all that differs from the page on disk is about records that are in no file: losing it repeats nothing.
    fn is_quiet(&self, page: &CursorPage) -> bool {
        self.shared.lanes.iter().all(|cell| {
            let lane = cell.lock();
            let name = &lane.config.name;
            let entry_of = |page: &'_ CursorPage, destination| page.entries.iter().position(|e| e.lane == *name && e.destination == destination);
            page.entries.iter().filter(|e| e.lane == *name).all(|new| {
                let old = entry_of(&self.page, new.destination).map(|at| &self.page.entries[at]);
                let held = || lane.holds() && old.is_some_and(|old| old.low >= lane.filed);
                // What was passed on stands in no file either.
                let passed = || lane.passing.is_some() && old.is_some_and(|old| CursorEntry { passed: new.passed, ..old.clone() } == *new);
                old == Some(new) || held() || passed()
            }) && (lane.holds() || page.next.iter().find(|(n, _)| n == name) == self.page.next.iter().find(|(n, _)| n == name))
        })
    }

    /// Returns whether the page on the disk says what is so now.
    fn write_page(&mut self, durable: bool) -> bool {
        let mut page = self.current_page();
        if page == self.page && !durable {
            return true;
        }
        // Segments that were removed from between others are told of by the page alone, so none is left to chance meanwhile.
        let durable = durable || page.entries.iter().any(|e| !e.runs.is_empty());
        page.generation += 1;
        let path: PathBuf = self.shared.config.dir.join(recover::CURSORS[(page.generation % 2) as usize]);
        let bytes = files::encode(&page);
        match self.shared.storage.replace(&path, &bytes, durable) {
            Ok(()) => {
                let bytes = bytes.len() as u64;
                self.shared.stats.wrote(bytes, BLOCK * (bytes.div_ceil(BLOCK) + FILE_BLOCKS));
                self.page = page;
                true
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), error = %error, "cursors could not be written; after a restart some records are sent again");
                false
            }
        }
    }
}

/// Wakes those who watch only when there is something new to see.
fn replace_if_new<T: PartialEq>(watched: &tokio::sync::watch::Sender<T>, value: T) {
    watched.send_if_modified(|old| {
        let new = *old != value;
        if new {
            *old = value;
        }
        new
    });
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

pub(crate) fn corrupt_name(path: &std::path::Path) -> PathBuf {
    path.with_extension("corrupt")
}
