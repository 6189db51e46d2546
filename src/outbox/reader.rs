//! Reading a destination's records, a run at a time: from segment files, and the newest from what waits to be written.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::codec::{self, Broken, RawRecord};
use super::cursor::Cursor;
use super::lane::Epochs;
use super::loss::{Loss, LossReason};
use super::newest::SideReader;
use super::sealed::Cover;
use super::storage::StoredFile;
use super::{DestinationId, End, Flow, LaneId, OutboxError, RecordId, Shared, Unpassed, salvage, writer};
use crate::message::Attributes;
use crate::time::Timestamp;

/// Least that is read at once: the page cache hands it out for the price of the call.
const READ_BYTES: usize = 32 << 10;

/// Records read together; keeps its buffers from run to run.
#[derive(Debug, Default)]
pub struct Run {
    pub(super) buffer: Vec<u8>,
    pub(super) filled: usize,
    pub(super) bodies: Vec<(u32, u32)>,
    pub(super) epochs: Epochs,
    pub(super) lane: Option<LaneId>,
    /// How the records in the buffer are to be read.
    pub(super) cover: Cover,
    /// Those that were for the destination and did not open.
    pub(super) unopened: Option<Loss>,
}

impl Run {
    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bodies.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bodies.is_empty()
    }

    /// The records, in the lane's order.
    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        self.bodies.iter().filter_map(|(start, end)| {
            let raw = codec::decode_body(&self.buffer[*start as usize..*end as usize]).ok()?;
            Some(Record { id: RecordId { lane: self.lane?, epoch: self.epoch_of(raw.sequence), sequence: raw.sequence }, raw })
        })
    }

    fn epoch_of(&self, sequence: u64) -> u32 {
        let at = self.epochs.partition_point(|(first, _)| *first <= sequence).saturating_sub(1);
        self.epochs.get(at).map_or(0, |(_, epoch)| *epoch)
    }

    /// Takes records that stand in no file, of this epoch, as `give` hands them over.
    pub(super) fn take_frames(&mut self, epoch: u32, give: impl FnOnce(&mut dyn FnMut(&[u8]))) {
        self.epochs = Epochs::from_slice(&[(0, epoch)]);
        self.cover = Cover::Plain;
        let (buffer, bodies) = (&mut self.buffer, &mut self.bodies);
        let mut end = 0;
        give(&mut |frame| {
            let start = end;
            end += frame.len();
            if buffer.len() < end {
                buffer.resize(end, 0);
            }
            buffer[start..end].copy_from_slice(frame);
            bodies.push(((start + codec::FRAME_BYTES) as u32, end as u32));
        });
        self.filled = end;
    }

    pub(super) fn clear(&mut self) {
        self.bodies.clear();
        self.filled = 0;
        self.cover = Cover::Plain;
    }

    /// Reads what stands at this offset, at least a whole record if there is one; says why there is none.
    ///
    /// # Errors
    /// `Directory` when it cannot be read.
    pub(super) fn fill(
        &mut self,
        (file, path): (&dyn StoredFile, &Path),
        offset: u64,
        data_end: u64,
        max_bytes: usize,
        largest: usize,
    ) -> Result<Option<Broken>, OutboxError> {
        let mut want = max_bytes.max(READ_BYTES).min((data_end - offset) as usize);
        loop {
            if self.buffer.len() < want {
                self.buffer.resize(want, 0);
            }
            self.filled = file.read_at(offset, &mut self.buffer[..want]).map_err(|e| OutboxError::Directory {
                what: "cannot read",
                path: path.to_owned(),
                detail: e.to_string(),
            })?;
            match codec::decode_record(&self.buffer[..self.filled], largest) {
                Err(Broken::Incomplete(n)) if n as u64 <= data_end - offset && n > want => want = n,
                Err(broken) => return Ok(Some(broken)),
                Ok(_) => return Ok(None),
            }
        }
    }

    /// Takes what is wanted out of the buffer and notes it as handed out; records whose life is over are counted and left out. Returns
    /// how many bytes that took, and what was left out.
    pub(super) fn hand_out(&mut self, cursor: &mut Cursor, wanted: &Wanted) -> (usize, Option<Loss>) {
        let Wanted { destination, piece, limit, max_records, largest, now, ttl } = *wanted;
        let (mut at, mut expired) = (0, None::<Loss>);
        while at < self.filled && self.bodies.len() < max_records {
            let Ok((record, length)) = codec::decode_record(&self.buffer[at..self.filled], largest) else { break };
            let sequence = record.sequence;
            if sequence >= limit {
                cursor.set_next_in(piece, limit);
                break;
            }
            if sequence >= cursor.next_in(piece) {
                if record.destinations().any(|d| d == destination) {
                    let over = record.is_over(now, ttl);
                    if cursor.hand_out_in(piece, sequence) {
                        if over {
                            cursor.finish(sequence, End::Expired);
                            let one = Loss::one(sequence, record.accepted.at);
                            expired = Some(expired.map_or(one, |mut all| {
                                all.merge(one);
                                all
                            }));
                        } else if record.sealed || !self.cover.is_plain() {
                            self.open(cursor, at, length);
                        } else {
                            self.bodies.push(((at + codec::FRAME_BYTES) as u32, (at + length) as u32));
                        }
                    }
                } else {
                    cursor.set_next_in(piece, sequence + 1);
                }
            }
            at += length;
        }
        (at, expired)
    }
}

/// Which records are taken out of a run's buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub destination: DestinationId,
    /// The piece of its sides that is read; none for its position.
    pub piece: Option<u64>,
    /// None from this sequence on.
    pub limit: u64,
    pub max_records: usize,
    /// Most bytes of one.
    pub largest: usize,
    pub now: Timestamp,
    pub ttl: Option<Duration>,
}

impl Run {
    /// Opens the record that was handed out. One that does not open ends as a damaged one does.
    fn open(&mut self, cursor: &mut Cursor, at: usize, length: usize) {
        let frame = &mut self.buffer[at..at + length];
        // What opens a record may leave nothing of it.
        let one = codec::decode_record(frame, length).map(|(record, _)| Loss::one(record.sequence, record.accepted.at));
        match (self.cover.open(frame), one) {
            (Ok(plain), _) => self.bodies.push(((at + codec::FRAME_BYTES) as u32, (at + plain) as u32)),
            (Err(_), Ok(one)) => {
                cursor.finish(one.sequences.0, End::Evicted);
                match &mut self.unopened {
                    Some(all) => all.merge(one),
                    None => self.unopened = Some(one),
                }
            }
            // It was decoded just now.
            (Err(_), Err(_)) => {}
        }
    }
}

/// A stored record, in the run's buffer.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Its id.
    pub id: RecordId,
    raw: RawRecord<'a>,
}

impl<'a> Record<'a> {
    /// When the node accepted it.
    #[must_use]
    pub fn accepted_at(&self) -> Timestamp {
        self.raw.accepted.at
    }

    /// The number of the mode that the box was in then, as [`Outbox::set_mode`](super::Outbox::set_mode) was told; 0 when it was told none.
    #[must_use]
    pub fn mode(&self) -> u8 {
        self.raw.accepted.mode
    }

    /// Pub/sub that it was published to.
    #[must_use]
    pub fn source(&self) -> &'a str {
        self.raw.source
    }

    /// Topic.
    #[must_use]
    pub fn topic(&self) -> &'a str {
        self.raw.topic
    }

    /// Payload.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.raw.payload
    }

    /// Quality of service of the sender.
    #[must_use]
    pub fn qos(&self) -> u8 {
        self.raw.qos
    }

    /// Retain flag of the sender.
    #[must_use]
    pub fn retain(&self) -> bool {
        self.raw.retain
    }

    /// Seconds it has left at `now`; none when it does not expire.
    #[must_use]
    pub fn remaining_seconds(&self, now: Timestamp) -> Option<u32> {
        self.raw.ttl_seconds.map(|ttl| ttl.saturating_sub(u32::try_from(now.since(self.raw.accepted.at).as_secs()).unwrap_or(u32::MAX)))
    }

    /// Calls `f` with its properties.
    pub fn with_attributes<R>(&self, f: impl FnOnce(Attributes<'_>) -> R) -> R {
        self.raw.with_attributes(f)
    }
}

/// A segment's base, the epoch and the attempt of its file.
pub(super) type SegmentKey = (u64, u32, u32);

/// Reads one destination's records from one lane.
pub struct Reader {
    pub(super) shared: Arc<Shared>,
    pub(super) destination: DestinationId,
    pub(super) lane: LaneId,
    seen: tokio::sync::watch::Receiver<u64>,
    /// Segment (base, epoch and attempt of its file), and the offset of the record with this sequence or a later one.
    pub(super) place: Option<(SegmentKey, u64, u64)>,
    /// How far what waits to be written has been read: its first sequence (which no other such buffer has) and an offset.
    tail: Option<(u64, usize)>,
    /// A segment in which records were lost: how many is known at its end.
    damaged: Option<SegmentKey>,
    /// The same of what is read out of order.
    pub(super) sides: SideReader,
    /// The lane stores nothing, and whether the destination takes its records now.
    pub(super) passes: bool,
    pub(super) flows: bool,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("destination", &self.destination).field("lane", &self.lane).finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, destination: DestinationId, lane: LaneId) -> Self {
        let cell = &shared.lanes[usize::from(lane.0)];
        let (seen, passes) = (cell.readable.subscribe(), cell.lock().passing.is_some());
        let sides = SideReader::default();
        let mut reader = Self { shared, destination, lane, seen, place: None, tail: None, damaged: None, sides, passes, flows: false };
        reader.rewind();
        reader
    }

    pub(super) fn cell(&self) -> &super::LaneCell {
        &self.shared.lanes[usize::from(self.lane.0)]
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, super::Lane> {
        self.cell().lock()
    }

    /// Reads the next records for the destination: at most `max_records`, stopping at about `max_bytes`. Returns how many; 0 means caught
    /// up. Records whose life is over are counted and left out.
    ///
    /// # Errors
    /// `Directory` when a segment cannot be read (it stays, and is tried again at the next call).
    pub fn next_run(&mut self, max_records: usize, max_bytes: usize, run: &mut Run) -> Result<usize, OutboxError> {
        // What the lane stored under other settings goes first; nothing comes in before all of it has gone.
        match self.next_stored_run(max_records, max_bytes, run)? {
            0 if self.passes => Ok(self.next_passing(max_records, max_bytes, run)),
            read => Ok(read),
        }
    }

    fn next_stored_run(&mut self, max_records: usize, max_bytes: usize, run: &mut Run) -> Result<usize, OutboxError> {
        run.clear();
        run.lane = Some(self.lane);
        self.seen.borrow_and_update();
        let mut in_order = false;
        loop {
            // Where to read: decided under the lock, read without it.
            let (file, key, epochs, offset, data_end, largest, path, ttl) = {
                let mut lane = self.lock();
                if !in_order && lane.may_be_split(self.destination) {
                    drop(lane);
                    if let Some(read) = self.next_of_sides(max_records, max_bytes, run)? {
                        return Ok(read);
                    }
                    in_order = true;
                    continue;
                }
                if let Some(key) = self.damaged
                    && let Some(next) = lane.places.get(&self.destination).map(|p| p.cursor.next())
                {
                    let at = lane.segments.binary_search_by_key(&key, |s| (s.base, s.epoch, s.attempt)).ok();
                    let passed = at.filter(|at| lane.segment_end(*at) <= next);
                    if let Some(at) = passed {
                        lane.pass_segment(at, self.destination);
                    }
                    if passed.is_some() || at.is_none() {
                        drop(lane);
                        self.damaged = None;
                        continue;
                    }
                }
                let written = lane.written;
                let Some(next) = lane.places.get(&self.destination).map(|p| p.cursor.next()) else { return Ok(0) };
                if next >= written || lane.segments.is_empty() {
                    drop(lane);
                    match self.read_tail(max_records, max_bytes, run) {
                        Some(read) => return Ok(read),
                        None => continue,
                    }
                }
                let at = lane.segments.partition_point(|s| s.base <= next).saturating_sub(1);
                if lane.segments[at].base > next {
                    // What stood before is gone; normally nothing of this destination was left in it.
                    let (base, accepted) = (lane.segments[at].base, lane.segments[at].accepted_before.get(&self.destination).copied().unwrap_or(0));
                    if let Some(place) = lane.places.get_mut(&self.destination) {
                        let count = place.cursor.skip_to(next, base, accepted);
                        let now = self.shared.clock.now();
                        lane.losses.note(self.destination, LossReason::Damaged, Loss { count, sequences: (next, base - 1), times: (now, now) });
                    }
                    continue;
                }
                let end = lane.segment_end(at);
                let segment = &lane.segments[at];
                let sealed = lane.is_sealed(at, self.shared.epoch);
                if sealed && next <= segment.base && lane.unfinished_in(at, self.destination) == 0 {
                    // Finished as a whole before the position came to it, though its records may still stand there.
                    lane.pass_segment(at, self.destination);
                    continue;
                }
                if segment.cover.is_locked() {
                    // It waits for its key, and what comes later waits behind it.
                    return Ok(0);
                }
                if segment.cover.is_lost() {
                    lane.pass_segment(at, self.destination);
                    continue;
                }
                run.cover = segment.cover.clone();
                let key = (segment.base, segment.epoch, segment.attempt);
                let offset = match self.place {
                    Some((place, offset, sequence)) if place == key && sequence <= next => offset,
                    _ => segment.data_start,
                };
                if offset >= segment.data_end {
                    if sealed && end > next {
                        lane.pass_segment(at, self.destination);
                        continue;
                    }
                    if let Some(place) = lane.places.get_mut(&self.destination) {
                        place.cursor.set_next(end.max(next));
                    }
                    if end > next {
                        continue;
                    }
                    return Ok(0);
                }
                let largest = writer::segment_bytes(&self.shared.config, &lane.config);
                (segment.file.clone(), key, segment.epochs.clone(), offset, segment.data_end, largest as usize, segment.path.clone(), lane.config.ttl)
            };
            let broken = run.fill((file.as_ref(), &path), offset, data_end, max_bytes, largest)?;
            let now = self.shared.clock.now();
            let mut lane = self.lock();
            let Ok(at) = lane.segments.binary_search_by_key(&key, |s| (s.base, s.epoch, s.attempt)) else {
                // Given up or rewritten while it was read: what stood in it is counted already.
                drop(lane);
                self.place = None;
                continue;
            };
            if let Some(broken) = broken {
                if lane.is_sealed(at, self.shared.epoch) {
                    // What can be read behind it is read; what is lost is counted at the end of the segment, where it is known.
                    let next = lane.places.get(&self.destination).map_or(0, |p| p.cursor.next());
                    let sequences = next..lane.segment_end(at);
                    lane.segments[at].corrupt = true;
                    drop(lane);
                    let found = salvage::next_record(file.as_ref(), offset, data_end, largest, &sequences);
                    let found = found.map_err(|e| OutboxError::Directory { what: "cannot read", path: path.clone(), detail: e.to_string() })?;
                    tracing::error!(path = %path.display(), offset, goes_on_at = found, cause = ?broken, "a segment is damaged; what checks out in it is read");
                    self.place = Some((key, found.unwrap_or(data_end), next));
                    self.damaged = Some(key);
                    continue;
                }
                let lost = lane.skip_corrupt(at, self.destination);
                drop(lane);
                tracing::error!(path = %path.display(), offset, lost, cause = ?broken, "a segment is damaged; the rest of it is set aside");
                self.place = None;
                continue;
            }
            run.epochs = epochs;
            let Some(place) = lane.places.get_mut(&self.destination) else { return Ok(0) };
            let (at, expired) = run
                .hand_out(&mut place.cursor, &Wanted { destination: self.destination, piece: None, limit: u64::MAX, max_records, largest, now, ttl });
            let next = place.cursor.next();
            lane.note_expired(self.destination, expired);
            lane.note_unopened(self.destination, key, run.unopened.take());
            drop(lane);
            self.place = Some((key, offset + at as u64, next));
            if !run.bodies.is_empty() {
                return Ok(run.bodies.len());
            }
        }
    }

    /// The newest records, which wait to be written: a slow disk does not hold them up. None when they have been written meanwhile.
    fn read_tail(&mut self, max_records: usize, max_bytes: usize, run: &mut Run) -> Option<usize> {
        let now = self.shared.clock.now();
        let shared = self.shared.clone();
        let mut lane = shared.lanes[usize::from(self.lane.0)].lock();
        let largest = writer::segment_bytes(&self.shared.config, &lane.config) as usize;
        let ttl = lane.config.ttl;
        loop {
            let Some(next) = lane.places.get(&self.destination).map(|p| p.cursor.next()) else { return Some(0) };
            if next < lane.written && !lane.segments.is_empty() {
                return None;
            }
            let Some((first, end, bytes)) = lane.tail(next) else {
                lane.reader_waits |= lane.in_hand > 0;
                return Some(0);
            };
            let offset = self.tail.filter(|(f, _)| *f == first).map_or(0, |(_, offset)| offset);
            let rest = &bytes[offset..];
            if rest.is_empty() {
                let Some(end) = end else { return Some(0) };
                // Its last sequences were dropped at once; more may stand in the next piece.
                if let Some(place) = lane.places.get_mut(&self.destination) {
                    place.cursor.set_next(end);
                }
                continue;
            }
            let whole = match codec::decode_record(&rest[..rest.len().min(max_bytes.max(READ_BYTES))], largest) {
                Err(Broken::Incomplete(n)) => n,
                _ => max_bytes.max(READ_BYTES),
            };
            run.filled = rest.len().min(whole);
            if run.buffer.len() < run.filled {
                run.buffer.resize(run.filled, 0);
            }
            run.buffer[..run.filled].copy_from_slice(&rest[..run.filled]);
            run.epochs = Epochs::from_slice(&[(0, self.shared.epoch)]);
            run.cover = Cover::Plain;
            let Some(place) = lane.places.get_mut(&self.destination) else { return Some(0) };
            let (at, expired) = run
                .hand_out(&mut place.cursor, &Wanted { destination: self.destination, piece: None, limit: u64::MAX, max_records, largest, now, ttl });
            lane.note_expired(self.destination, expired);
            self.tail = Some((first, offset + at));
            if !run.bodies.is_empty() || at == 0 {
                return Some(run.bodies.len());
            }
        }
    }

    /// Resolves when something was accepted or written since the last [`next_run`](Self::next_run). Cancel-safe.
    pub fn readable(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut seen = self.seen.clone();
        async move {
            // A closed store writes nothing more.
            if seen.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// These records are delivered for good, in any order; others are ignored.
    pub fn acknowledge(&self, sequences: &[u64]) {
        self.finish(sequences, End::Delivered);
        if self.passes {
            self.passed(sequences);
        }
    }

    /// The destination refuses this record for good; it is counted as evicted.
    pub fn reject(&self, sequence: u64, reason: &str) {
        tracing::debug!(sequence, reason, "record refused by its destination");
        self.finish(&[sequence], End::Evicted);
        if self.passes {
            self.refuse_passing(sequence, reason);
        }
    }

    fn finish(&self, sequences: &[u64], how: End) {
        let mut lane = self.lock();
        let Some(place) = lane.places.get_mut(&self.destination) else { return };
        let mut refused = Vec::new();
        for sequence in sequences {
            if place.cursor.finish(*sequence, how) && how == End::Evicted {
                refused.push(*sequence);
            }
        }
        let low = place.cursor.low();
        if !refused.is_empty() {
            let now = self.shared.clock.now();
            for sequence in refused {
                lane.losses.note(self.destination, LossReason::Refused, Loss::one(sequence, now));
            }
        }
        let trim = lane.segments.get(1).is_some_and(|next| low >= next.base);
        lane.tidy(self.destination, self.shared.epoch);
        let trim = trim || lane.middle_due;
        drop(lane);
        if trim {
            self.shared.signal.raise(false);
        }
    }

    /// Starts again at the lowest record that is not finished. What has been read of a lane that stores nothing is not read again: its
    /// senders are refused.
    pub fn rewind(&mut self) {
        self.flow(&Flow::Shut(Unpassed::Broken));
        self.place = None;
        self.tail = None;
        self.damaged = None;
        self.sides.forget();
        self.lock().rewind(self.destination, self.shared.epoch);
    }

    /// Of those in [`queued`](Self::queued), the ones that do not wait for a key.
    #[must_use]
    pub fn sendable(&self) -> u64 {
        let lane = self.lock();
        lane.queued(self.destination).saturating_sub(lane.waiting_for_key(self.destination)) + lane.waits_to_pass(self.destination)
    }

    /// Records stored for the destination and not finished.
    #[must_use]
    pub fn queued(&self) -> u64 {
        let lane = self.lock();
        lane.queued(self.destination) + lane.waits_to_pass(self.destination)
    }
}
