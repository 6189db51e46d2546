//! Opening a store: what stands there, what is torn, who stands where. Reads every segment's header and the last segment of each
//! lane, not the backlog.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::codec::{self, Broken, Header};
use super::cursor::{Cursor, End};
use super::files::{self, CursorEntry, CursorPage, Manifest};
use super::lane::{Lane, Place, Segment};
use super::storage::{Storage, StoredFile};
use super::vanished::{self, Missing, Vanished};
use super::{DestinationId, LaneConfig, OutboxConfig, OutboxError, compact, salvage, sealed, writer};
use crate::time::{Clock, Timestamp};

pub(crate) const MANIFEST: &str = "manifest";
pub(crate) const CURSORS: [&str; 2] = ["cursors-a", "cursors-b"];
/// Extension of a segment that compaction has not finished.
pub(crate) const UNFINISHED: &str = "new";
const VERSION: u16 = 1;
const SCAN_BYTES: usize = 256 << 10;
/// No record is smaller than that: frame, sequence, time, flags, and lengths.
const SMALLEST: u64 = codec::FRAME_BYTES as u64 + 22;

/// What opening found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Segments kept.
    pub segments: usize,
    /// Records read from the last segments.
    pub scanned_records: u64,
    /// Segments whose last record was torn and cut.
    pub torn_tails: usize,
    /// Files that were set aside, by their new names.
    pub set_aside: Vec<PathBuf>,
    /// Keys that are not there, and what they keep shut.
    pub locked: Vec<Locked>,
    /// Records that were stored and stand in no file any more.
    pub vanished: Vec<Vanished>,
}

/// Segments that are sealed with a key that is not there. They are kept, and not sent until it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locked {
    /// The key's id.
    pub key: String,
    /// Lane.
    pub lane: String,
    /// How many segments.
    pub segments: usize,
}

pub(crate) struct Recovered {
    pub lanes: Vec<Lane>,
    pub manifest: Manifest,
    pub page_generation: u64,
    /// The latest time that the store knows.
    pub latest: Timestamp,
    pub report: Recovery,
}

/// Name of a segment's file; sorts by base, then by who came later.
pub(crate) fn segment_name(base: u64, epoch: u32, attempt: u32) -> String {
    format!("{base:020}-{epoch:010}-{attempt:010}.seg")
}

fn parse_segment_name(name: &str) -> Option<u64> {
    let mut parts = name.strip_suffix(".seg")?.split('-');
    let base = parts.next()?.parse().ok()?;
    parts.next()?.parse::<u32>().ok()?;
    parts.next()?.parse::<u32>().ok()?;
    parts.next().is_none().then_some(base)
}

fn set_aside(storage: &dyn Storage, path: &Path, report: &mut Recovery) {
    let to = writer::corrupt_name(path);
    match storage.rename(path, &to) {
        Ok(()) => {
            tracing::error!(path = %path.display(), kept_as = %to.display(), "a damaged file is set aside");
            report.set_aside.push(to);
        }
        Err(error) => tracing::error!(path = %path.display(), error = %error, "a damaged file cannot be set aside"),
    }
}

fn directory(what: &'static str, path: &Path, error: &io::Error) -> OutboxError {
    OutboxError::Directory { what, path: path.to_owned(), detail: error.to_string() }
}

fn load<T: for<'de> serde::Deserialize<'de>>(storage: &dyn Storage, path: &Path, report: &mut Recovery) -> Option<T> {
    match storage.read(path) {
        Ok(bytes) => {
            let value = files::decode(&bytes);
            if value.is_none() {
                set_aside(storage, path, report);
            }
            value
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::error!(path = %path.display(), error = %error, "cannot be read; going on without it");
            None
        }
    }
}

fn read_header(file: &dyn StoredFile) -> io::Result<Result<(Header, usize), Broken>> {
    let mut buffer = vec![0; 4096];
    loop {
        let filled = file.read_at(0, &mut buffer)?;
        match codec::decode_header(&buffer[..filled]) {
            Err(Broken::Incomplete(n)) if n > buffer.len() && n <= codec::MAX_HEADER_BYTES + 64 => buffer.resize(n, 0),
            other => return Ok(other),
        }
    }
}

/// What the records of a segment say.
struct Scan {
    /// End of the last good one.
    end: u64,
    /// One past its sequence.
    next: u64,
    counts: BTreeMap<DestinationId, u64>,
    records: u64,
    /// When the latest one was accepted.
    latest: Timestamp,
    /// Something that is no record follows, where a preallocated tail would have zeros.
    torn: bool,
    /// Records between the others do not check out. They are counted for the destinations of the one behind them.
    damaged: bool,
}

/// Whether there is nothing but zeros from `offset` on: a preallocated tail.
fn is_blank(file: &dyn StoredFile, mut offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
    loop {
        let filled = file.read_at(offset, buffer)?;
        if buffer[..filled].iter().any(|b| *b != 0) {
            return Ok(false);
        }
        if filled < buffer.len() {
            return Ok(true);
        }
        offset += filled as u64;
    }
}

/// Walks the records of a file from `start` to `end`. What does not check out is the torn end of the last write, unless records follow
/// that do.
fn scan(file: &dyn StoredFile, start: u64, end: u64, first: u64, largest: usize) -> io::Result<Scan> {
    let (mut offset, mut next, mut counts, mut records, mut torn, mut damaged) = (start, first, BTreeMap::new(), 0, false, false);
    let mut latest = Timestamp::default();
    let mut buffer = vec![0; SCAN_BYTES];
    // Most records that the damage before the next one can have held.
    let mut held = 0;
    loop {
        let filled = file.read_at(offset, &mut buffer)?;
        let mut at = 0;
        let stop = loop {
            match codec::decode_record(&buffer[at..filled], largest) {
                Ok((record, length)) if record.sequence >= next => {
                    let lost = (record.sequence - next).min(std::mem::take(&mut held));
                    next = record.sequence + 1;
                    records += 1;
                    latest = latest.max(record.accepted.at);
                    for d in record.destinations() {
                        *counts.entry(d).or_default() += 1 + lost;
                    }
                    at += length;
                }
                Err(Broken::Incomplete(n)) if filled == buffer.len() && at == 0 && n > buffer.len() => {
                    buffer.resize(n, 0);
                    break false;
                }
                Err(Broken::Incomplete(_)) if filled == buffer.len() && at > 0 => break false,
                Err(Broken::Unwritten) => break true,
                _ => {
                    torn = at < filled;
                    break true;
                }
            }
        };
        offset += at as u64;
        if !stop {
            continue;
        }
        let rest = end.saturating_sub(offset);
        if rest > 0 && !is_blank(file, offset, &mut buffer)? {
            let sequences = next..next + 1 + rest / SMALLEST;
            if let Some(found) = salvage::next_record(file, offset, end, largest, &sequences)? {
                held = (found - offset).div_ceil(SMALLEST);
                (offset, damaged) = (found, true);
                continue;
            }
        }
        return Ok(Scan { end: offset, next, counts, records, latest, torn: torn && !damaged, damaged });
    }
}

/// A lane that is no longer configured keeps draining, by rules that lose nothing.
fn orphan(name: &str) -> LaneConfig {
    LaneConfig { quota_bytes: 1 << 40, ..LaneConfig::new(name) }
}

/// Seconds since 1970 above which a clock names no epoch (the year 2097): a counter must have room left.
const LATEST_EPOCH: u64 = 0xF000_0000;

/// The epoch after this one: the second in which it begins, as far as the clock knows it, so that a folder that was put back from a copy
/// gives no id twice; one more than before at least.
fn next_epoch(previous: u32, now: Timestamp) -> u32 {
    previous.saturating_add(1).max(u32::try_from((now.0 / 1_000).min(LATEST_EPOCH)).unwrap_or(u32::MAX))
}

pub(crate) fn recover(config: &OutboxConfig, storage: &dyn Storage, clock: &dyn Clock) -> Result<Recovered, OutboxError> {
    let dir = &config.dir;
    // Before anything is touched. What cannot be understood is damage, and looked at below.
    let stamp = storage.read(&dir.join(MANIFEST)).ok().and_then(|bytes| files::decode::<files::ManifestVersion>(&bytes));
    if let Some(stamp) = stamp.filter(|s| s.version > VERSION) {
        return Err(OutboxError::Newer { found: stamp.version, known: VERSION });
    }
    storage.make_dir(dir).map_err(|e| directory("cannot make the folder", dir, &e))?;
    storage.lock(dir).map_err(|e| directory("cannot lock the folder", dir, &e))?;
    let mut report = Recovery::default();
    let manifest: Option<Manifest> = load(storage, &dir.join(MANIFEST), &mut report);
    let mut manifest = manifest.filter(|m| m.version == VERSION).unwrap_or_default();
    let damaged = report.set_aside.len();
    let pages = CURSORS.map(|name| load::<CursorPage>(storage, &dir.join(name), &mut report));
    // They are written in turn. One that is not there, or is set aside, may have been the later one.
    let both = pages.iter().flatten().count() == 2;
    let page = pages.into_iter().flatten().max_by_key(|p| p.generation).unwrap_or_default();
    let found = Found { latest: both || (page.generation == 1 && report.set_aside.len() == damaged), page: &page, now: clock.now() };

    let mut configs = config.lanes.clone();
    let names = storage.list(dir).map_err(|e| directory("cannot list the folder", dir, &e))?;
    for name in names {
        let known =
            configs.iter().any(|c| c.name == name) || name == MANIFEST || name == "lock" || name.contains('.') || CURSORS.contains(&name.as_str());
        if !known && storage.list(&dir.join(&name)).is_ok_and(|files| files.iter().any(|f| parse_segment_name(f).is_some())) {
            tracing::warn!(lane = %name, "the lane is no longer configured; what it holds is still delivered");
            configs.push(orphan(&name));
        }
    }

    let mut lanes = Vec::with_capacity(configs.len());
    let mut latest = Timestamp::default();
    for lane_config in configs {
        let lane = recover_lane(config, lane_config, storage, &found, &mut manifest, &mut latest, &mut report)?;
        lanes.push(lane);
    }
    // Every destination has a place in every lane from the start.
    for lane in &mut lanes {
        let next = lane.next_sequence;
        for (at, name) in manifest.destinations.iter().enumerate() {
            let id = DestinationId(at as u16);
            if name.is_empty() {
                lane.places.remove(&id);
            } else {
                lane.places.entry(id).or_insert_with(|| Place { cursor: Cursor::restore(next, [], [0; 4]), ..Place::default() });
            }
        }
        lane.trim(clock.now().max(latest), 0);
    }
    manifest.version = VERSION;
    manifest.node.clone_from(&config.node);
    manifest.epoch = next_epoch(manifest.epoch, clock.now());
    let path = dir.join(MANIFEST);
    storage.replace(&path, &files::encode(&manifest), true).map_err(|e| directory("cannot write", &path, &e))?;
    for lane in &mut lanes {
        lane.overhead_bytes = config.at_rest.overhead_bytes();
        lane.no_key = config.at_rest.no_key();
        let locked = sealed::locked(lane);
        lane.locks = !locked.is_empty();
        report.locked.extend(locked);
    }
    report.segments = lanes.iter().map(|l| l.segments.len()).sum();
    Ok(Recovered { lanes, manifest, page_generation: page.generation, latest, report })
}

fn restored(entry: &CursorEntry) -> Cursor {
    Cursor::restore(entry.low, entry.ahead.iter().copied(), entry.counts)
        .with_segments(entry.segments.iter().copied())
        .with_runs(entry.runs.iter().copied())
}

/// Whether a destination has come further than a compacted segment knows: then it was never put in the place of the old ones.
fn is_stale(header: &Header, page: &CursorPage) -> bool {
    let Some(c) = &header.compacted else { return false };
    c.gone.iter().any(|gone| {
        let Some(entry) = page.entries.iter().find(|e| e.lane == header.lane && e.destination == gone.id.0) else { return false };
        let cursor = restored(entry);
        match cursor.low() {
            low if low >= c.end => false,
            low if low > header.base => gone.left > 0,
            _ => cursor.finished_in(header.base, c.end) > gone.count(),
        }
    })
}

/// The cursor page is older than this compacted segment: what does not stand there any more ended as the segment says.
fn catch_up(lane: &Lane, at: usize, places: &mut BTreeMap<DestinationId, Place>, accepted: &BTreeMap<DestinationId, u64>) {
    let segment = &lane.segments[at];
    let Some(c) = &segment.compacted else { return };
    let through = lane.segments.get(at + 1).map_or(accepted, |next| &next.accepted_before);
    for gone in &c.gone {
        let Some(cursor) = places.get_mut(&gone.id).map(|p| &mut p.cursor) else { continue };
        match cursor.low() {
            low if low >= c.end => {}
            // A segment is compacted while nobody stands in it, so by then the destination was past it.
            low if low > segment.base => {
                cursor.drop_before(c.end, through.get(&gone.id).copied().unwrap_or(0), End::Delivered);
            }
            _ => {
                let missing = gone.count().saturating_sub(cursor.finished_in(segment.base, c.end));
                let aggregated = missing.min(gone.aggregated);
                cursor.finish_in(segment.base, aggregated, End::Aggregated);
                cursor.finish_in(segment.base, missing - aggregated, End::Delivered);
                cursor.fold(segment.base, c.end, |_| false);
            }
        }
    }
}

/// The cursors that were found.
struct Found<'a> {
    page: &'a CursorPage,
    /// No later ones were saved.
    latest: bool,
    now: Timestamp,
}

fn recover_lane(
    config: &OutboxConfig,
    lane_config: LaneConfig,
    storage: &dyn Storage,
    &Found { page, latest: latest_page, now }: &Found<'_>,
    manifest: &mut Manifest,
    latest: &mut Timestamp,
    report: &mut Recovery,
) -> Result<Lane, OutboxError> {
    let dir = config.dir.join(&lane_config.name);
    storage.make_dir(&dir).map_err(|e| directory("cannot make the folder", &dir, &e))?;
    let mut names: Vec<String> = storage.list(&dir).map_err(|e| directory("cannot list the folder", &dir, &e))?;
    for unfinished in names.iter().filter(|n| n.ends_with(".new")) {
        let _ = storage.remove(&dir.join(unfinished));
    }
    names.retain(|n| parse_segment_name(n).is_some());
    names.sort();
    let largest = writer::segment_bytes(config, &lane_config).max(64 << 20) as usize;
    let mut lane = Lane::new(lane_config);
    // Bases of compacted segments that are newer than the cursor page.
    let mut news = Vec::new();
    // The first one begins after a gap.
    let mut fresh_first = false;

    for name in names {
        let path = dir.join(&name);
        let opened = storage.open(&path).and_then(|file| Ok((read_header(file.as_ref())?, file.size()?, file)));
        let (header, len, file): (_, u64, Arc<dyn StoredFile>) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(path = %path.display(), error = %error, "a segment cannot be opened; it is left where it is");
                continue;
            }
        };
        let Ok((header, data_start)) = header else {
            set_aside(storage, &path, report);
            continue;
        };
        manifest.epoch = manifest.epoch.max(header.epoch);
        for d in &header.destinations {
            let at = usize::from(d.id.0);
            if manifest.destinations.len() <= at && at < super::MAX_DESTINATIONS {
                manifest.destinations.resize(at + 1, String::new());
                manifest.destinations[at].clone_from(&d.name);
            }
        }
        let covered = lane.segments.back().is_some_and(|s| s.compacted.as_ref().is_some_and(|c| header.base > s.base && header.base < c.end));
        let known = header.compacted.as_ref().is_none_or(|c| page.compacted.contains(&(lane.config.name.clone(), header.base, c.mark)));
        let stale = !known && lane.segments.back().is_some_and(|s| s.base == header.base) && is_stale(&header, page);
        if !known && !stale {
            news.push(header.base);
        }
        let fresh = header.fresh;
        let cover = config.at_rest.cover(&header);
        let segment = Segment {
            base: header.base,
            epoch: header.epoch,
            attempt: 0,
            created: header.created,
            path,
            file,
            data_start: data_start as u64,
            data_end: len,
            disk_bytes: len,
            accepted_before: header.destinations.iter().map(|d| (d.id, d.accepted)).collect(),
            // Kept as a damaged file is, in case the key is found after all.
            corrupt: cover.is_lost(),
            cover,
            epochs: header
                .compacted
                .as_ref()
                .map_or_else(|| smallvec::smallvec![(header.base, header.epoch)], |c| c.epochs.iter().copied().collect()),
            level: header.compacted.as_ref().map_or(if fresh { compact::UNTOUCHABLE } else { 0 }, |c| c.level),
            compacted: header.compacted,
        };
        // What was compacted stands in the segment before; or the other way round, one that was given up while it was written.
        if covered || stale {
            lane.garbage.push(segment);
            continue;
        }
        // A later file with the same or a lower base takes over; so does one before which everything is finished.
        while lane.segments.back().is_some_and(|s| fresh || s.base >= segment.base) {
            if let Some(superseded) = lane.segments.pop_back() {
                lane.garbage.push(superseded);
            }
        }
        if lane.segments.is_empty() {
            fresh_first = fresh;
        }
        lane.segments.push_back(segment);
    }

    let mut accepted: BTreeMap<DestinationId, u64> = BTreeMap::new();
    if let Some(last) = lane.segments.back_mut() {
        let Scan { end, next, counts, records, latest: accepted_last, torn, damaged } =
            scan(last.file.as_ref(), last.data_start, last.data_end, last.base, largest).map_err(|e| directory("cannot read", &last.path, &e))?;
        *latest = (*latest).max(accepted_last).max(last.created);
        report.scanned_records += records;
        report.torn_tails += usize::from(torn);
        if end < last.data_end && last.file.set_len(end).is_ok() {
            last.disk_bytes = end;
        }
        last.data_end = end;
        last.corrupt |= damaged;
        accepted.clone_from(&last.accepted_before);
        for (d, n) in &counts {
            *accepted.entry(*d).or_default() += n;
        }
        let mut next = next;
        if let Some(c) = &last.compacted {
            // What stood behind it was lost; otherwise it would not be the last.
            next = next.max(c.end);
            for gone in &c.gone {
                // It knows how many were left in it; here sequences say nothing.
                let found = counts.get(&gone.id).copied().unwrap_or(0);
                let here = accepted.entry(gone.id).or_default();
                *here = *here - found + gone.count() + gone.left;
            }
        }
        lane.next_sequence = next;
        lane.written = next;
        lane.filed = next;
    }
    if let Some((_, next)) = page.next.iter().find(|(name, _)| *name == lane.config.name) {
        // With segments at hand the page may be older or, after a power cut, newer than them; a gap does no harm, a repeat would.
        lane.next_sequence = lane.next_sequence.max(*next);
    }
    let entries = page.entries.iter().filter(|e| e.lane == lane.config.name).map(|e| (DestinationId(e.destination), e));
    let mut places: BTreeMap<DestinationId, Place> =
        entries.map(|(id, e)| (id, Place { cursor: restored(e), accepted: 0, dropped: e.dropped, passed: e.passed })).collect();
    for id in accepted.keys() {
        places.entry(*id).or_insert_with(|| Place { cursor: Cursor::restore(1, [], [0; 4]), ..Place::default() });
    }
    // Removed from between others, which a power cut has undone: what was finished there is told with what stands before it.
    for at in (0..lane.segments.len().saturating_sub(1)).rev() {
        let base = lane.segments[at].base;
        if places.values().any(|p| p.cursor.sides.crosses(base))
            && let Some(segment) = lane.segments.remove(at)
        {
            lane.garbage.push(segment);
        }
    }
    let first = lane.segments.front().map(|s| (s.base, s.accepted_before.clone()));
    let last = lane.segments.back().map(|s| (s.base, s.accepted_before.clone()));
    let tail = lane.written;
    let (found_at, how) = (lane.segments.front().map_or(now, |s| s.created), vanished::before_first(fresh_first, latest_page));
    let stood = page.stood.iter().find(|s| s.lane == lane.config.name).filter(|_| latest_page);
    let forgotten = |id: DestinationId| manifest.destinations.get(usize::from(id.0)).is_none_or(String::is_empty);
    let mut missing = Missing::new(&lane.config.name);
    for (id, place) in &mut places {
        place.cursor.sides.move_behind(tail);
        let ends = place.cursor.sides.runs().last().map_or(0, |(_, end, _)| *end);
        lane.next_sequence = lane.next_sequence.max(place.cursor.low()).max(ends);
        lane.middle_due |= ends > 0;
        // Records that were finished before they were written: the file does not know them, the books do.
        place.accepted = accepted.get(id).copied().unwrap_or(0);
        if place.cursor.low() < tail {
            place.accepted += place.cursor.finished_in(tail, u64::MAX);
        }
        if let Some((base, before)) = last.as_ref().filter(|(base, _)| place.cursor.low() <= *base) {
            // The same in a segment that was finished as a whole and lost its end with the power.
            let (there, finished) =
                (accepted.get(id).copied().unwrap_or(0) - before.get(id).copied().unwrap_or(0), place.cursor.finished_in(*base, tail));
            place.accepted += finished.saturating_sub(there);
        }
        if let Some((base, before)) = &first {
            // One that was forgotten has nothing to lose.
            let how = if forgotten(*id) { End::Delivered } else { how };
            missing.before(*id, &mut place.cursor, *base, before.get(id).copied().unwrap_or(0), how, found_at);
        }
        // The same when all that the file knows is finished.
        place.accepted = place.accepted.max(place.cursor.finished());
        if let Some(stood) = stood.filter(|_| !forgotten(*id)) {
            missing.behind(*id, place, stood, tail, found_at);
        }
    }
    // What stood between the files and here was finished in memory, or went with the process.
    lane.gap = lane.next_sequence > tail && places.values().all(|p| p.accepted == p.cursor.finished());
    for at in 0..lane.segments.len() {
        if news.contains(&lane.segments[at].base) {
            catch_up(&lane, at, &mut places, &accepted);
        }
    }
    lane.written = lane.next_sequence;
    lane.settled = lane.written;
    report.vanished.extend(missing.note(&mut lane));
    lane.written_accepted = places.iter().map(|(d, p)| (*d, p.accepted)).collect();
    lane.settled_accepted.clone_from(&lane.written_accepted);
    lane.places = places;
    Ok(lane)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_later_than_the_one_before_whatever_the_clock_says_and_another_one_in_each_life_of_a_copy() {
        let at = |seconds: u64| Timestamp(seconds * 1_000 + 999);
        assert_eq!(next_epoch(2, at(1_764_081_234)), 1_764_081_234);
        assert_ne!(next_epoch(2, at(1_764_081_234)), next_epoch(2, at(1_764_081_235)));
        for (previous, clock) in [(2, 0), (1_764_081_234, 0), (1_764_081_234, 1_764_081_234), (4_026_531_840, u64::MAX / 2_000)] {
            assert_eq!(next_epoch(previous, at(clock)), previous + 1);
        }
    }
}
