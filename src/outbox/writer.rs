//! The one thread that writes: group commit, rotation, what to do when the disk refuses, cursors, removal.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::codec::{self, Header};
use super::files::{self, CursorEntry, CursorPage};
use super::lane::{Chunk, Lane, Segment};
use super::storage::StoredFile;
use super::{Durability, LaneConfig, OutboxConfig, Progress, Shared, WhenFull, recover};
use crate::time::Monotonic;

/// Unsynced bytes of a batched lane at which it is synced early; bounds what is kept in memory for a failed sync.
const MAX_UNSYNCED_BYTES: usize = 1 << 20;
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
}

#[derive(Default)]
struct LaneWriter {
    active: Option<Active>,
    /// Written to the active segment since its last sync, kept until that succeeds (not for memory lanes).
    unsynced: VecDeque<Chunk>,
    unsynced_since: Option<Monotonic>,
    /// Could not be written or synced: goes first, in order.
    stuck: VecDeque<Chunk>,
    retry_at: Option<Monotonic>,
    retry_wait: Duration,
    /// Distinguishes files that begin with the same sequence.
    attempt: u32,
}

/// Writes for all lanes. [`step`](Self::step) does what is due; the thread around it only waits.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    lanes: Vec<LaneWriter>,
    page: CursorPage,
    page_due: Option<Monotonic>,
    /// How long work that is not urgent waits for more of it.
    linger: Duration,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, generation: u64) -> Self {
        let lanes = shared.lanes.iter().map(|_| LaneWriter::default()).collect();
        let linger = shared.lanes.iter().map(|l| l.lock().config.durability.linger()).filter(|l| !l.is_zero()).min().unwrap_or_default();
        Self { shared, lanes, page: CursorPage { generation, ..CursorPage::default() }, page_due: None, linger }
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
        for at in 0..self.lanes.len() {
            if let Some(d) = self.step_lane(at, now, last) {
                sooner(d);
            }
        }
        let mut garbage: Vec<Segment> = Vec::new();
        for cell in &self.shared.lanes {
            let mut lane = cell.lock();
            let wall = self.shared.clock.now();
            lane.trim(wall, 1);
            garbage.append(&mut lane.garbage);
        }
        // Cursors go first, so that a restart in between counts the removed records as what they became.
        let due = self.page_due.is_some_and(|due| now >= due);
        if last || due || !garbage.is_empty() {
            self.write_page(last);
            self.page_due = None;
        }
        for segment in garbage {
            self.remove(&segment);
        }
        if self.page_due.is_none() && !last && self.page_changed() {
            self.page_due = Some(now.plus(self.shared.config.cursor_interval));
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
        if let Some(retry_at) = self.lanes[at].retry_at
            && now < retry_at
            && !last
        {
            return Some(retry_at.since(now));
        }
        let mut moved = false;
        let mut failure: Option<io::Error> = None;
        loop {
            let chunk = match self.lanes[at].stuck.pop_front() {
                Some(chunk) => chunk,
                None => match self.shared.lanes[at].lock().take_pending() {
                    Some(chunk) => chunk,
                    None => break,
                },
            };
            match self.write(at, &chunk) {
                Ok(()) => {
                    moved = true;
                    let writer = &mut self.lanes[at];
                    if durability == Durability::Memory {
                        self.shared.lanes[at].lock().give_back(chunk.bytes);
                    } else {
                        writer.unsynced_since.get_or_insert(now);
                        writer.unsynced.push_back(chunk);
                    }
                }
                Err(error) => {
                    // A failed sync may have put older ones there.
                    let stuck = &mut self.lanes[at].stuck;
                    stuck.insert(stuck.partition_point(|c| c.first < chunk.first), chunk);
                    failure = Some(error);
                    break;
                }
            }
        }
        let mut wait = None;
        if failure.is_none() && !self.lanes[at].unsynced.is_empty() {
            let due = match durability {
                Durability::Memory => None,
                Durability::Fsync => Some(now),
                Durability::Batched(longest) => {
                    let bytes: usize = self.lanes[at].unsynced.iter().map(|c| c.bytes.len()).sum();
                    // The first record may have waited that long to be written.
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
        if last && failure.is_none() {
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

    fn publish(&self, at: usize) {
        let cell = &self.shared.lanes[at];
        let (written, progress, reader_waits) = {
            let mut lane = cell.lock();
            let writer = &self.lanes[at];
            let durable = writer.unsynced.front().or(writer.stuck.front()).map_or(lane.written, |c| c.first);
            // Sequences that were dropped at once have nothing to wait for.
            let idle = writer.unsynced.is_empty() && writer.stuck.is_empty() && lane.is_idle();
            let durable = if idle { lane.next_sequence } else { durable };
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
        if self.lanes[at].active.as_ref().is_some_and(|a| a.end + chunk.bytes.len() as u64 > limit) {
            self.seal(at)?;
        }
        loop {
            let tried = self.write_to_active(at, chunk, limit);
            match tried {
                Err(e) if is_full(&e) && config.when_full == WhenFull::DropOldest => {
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
        active.file.write_at(active.end, &chunk.bytes)?;
        active.end += chunk.bytes.len() as u64;
        let end = active.end;
        self.shared.stats.bytes_written.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
        let mut lane = self.shared.lanes[at].lock();
        lane.in_hand = lane.in_hand.saturating_sub(chunk.bytes.len());
        lane.written = lane.written.max(chunk.end);
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
        let header = codec::encode_header(&Header {
            epoch: self.shared.epoch,
            base: chunk.first,
            created,
            lane: lane_name.clone(),
            destinations: Lane::header_destinations(chunk, &names),
        });
        let room = {
            let lane = self.shared.lanes[at].lock();
            lane.config.quota_bytes.saturating_sub(lane.disk_bytes())
        };
        let size = limit.min(room).max((header.len() + chunk.bytes.len()) as u64);
        let dir = self.shared.config.dir.join(&lane_name);
        self.lanes[at].attempt += 1;
        let path = dir.join(recover::segment_name(chunk.first, self.shared.epoch, self.lanes[at].attempt));
        let file = self.shared.storage.create(&path, size)?;
        let prepared = file.write_at(0, &header).and_then(|()| self.shared.storage.sync_dir(&dir));
        if let Err(e) = prepared {
            let _ = self.shared.storage.remove(&path);
            return Err(e);
        }
        self.shared.stats.bytes_written.fetch_add(header.len() as u64, Ordering::Relaxed);
        let mut lane = self.shared.lanes[at].lock();
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
        });
        self.lanes[at].active = Some(Active { file, end: header.len() as u64, synced: header.len() as u64 });
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
            for (id, place) in &lane.places {
                page.entries.push(CursorEntry {
                    lane: lane.config.name.clone(),
                    destination: id.0,
                    low: place.cursor.low(),
                    ahead: place.cursor.ahead(),
                    counts: [place.cursor.delivered, place.cursor.expired, place.cursor.evicted, place.cursor.aggregated],
                    dropped: place.dropped,
                    segments: place.cursor.in_segments(),
                });
            }
        }
        page
    }

    fn page_changed(&self) -> bool {
        self.current_page() != self.page
    }

    fn write_page(&mut self, durable: bool) {
        let mut page = self.current_page();
        if page == self.page && !durable {
            return;
        }
        page.generation += 1;
        let path: PathBuf = self.shared.config.dir.join(recover::CURSORS[(page.generation % 2) as usize]);
        match self.shared.storage.replace(&path, &files::encode(&page), durable) {
            Ok(()) => self.page = page,
            Err(error) => {
                tracing::warn!(path = %path.display(), error = %error, "cursors could not be written; after a restart some records are sent again")
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
