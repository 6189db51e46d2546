//! Compaction: sealed segments that no reader stands in are read twice and written anew with less in them (decision record 0009).
//! It runs on the writer's thread in small steps, so that appends and syncs go on meanwhile.

mod choose;
mod output;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use smallvec::SmallVec;

use super::codec::{self, Broken, Compacted, Gone, Header, RawRecord};
use super::cursor::End;
use super::lane::{Epochs, Lane, Segment};
use super::loss::LossReason;
use super::merge::{Merge, Plan};
use super::reader::SegmentKey;
use super::sealed::{self, Cover, Sealer};
use super::storage::StoredFile;
use super::writer::{Writer, segment_bytes};
use super::{DestinationId, recover};
use crate::time::Timestamp;
use choose::select;
use output::Output;

/// Read in one step, between appends and syncs; what is written for it is less.
const STEP_BYTES: usize = 128 << 10;
/// Level of a segment that is not compacted: a damaged one, or one before which records were finished in memory.
pub(super) const UNTOUCHABLE: u8 = u8::MAX;

/// Why a pass ended early.
enum Stop {
    Io(io::Error),
    /// Records do not check out, or are not as many as they should be.
    Damaged(Vec<SegmentKey>),
    /// Somebody began to read there, or the segments are gone.
    Moved,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Where a destination stood when the pass began: before or behind all of it.
struct Stand {
    low: u64,
    /// Single records of the run that it had finished.
    ahead: BTreeSet<u64>,
}

/// A segment that is compacted.
struct Input {
    key: SegmentKey,
    base: u64,
    end: u64,
    file: Arc<dyn StoredFile>,
    cover: Cover,
    data_start: u64,
    data_end: u64,
    disk_bytes: u64,
    created: Timestamp,
    epochs: Epochs,
    accepted_before: BTreeMap<DestinationId, u64>,
    accepted_after: BTreeMap<DestinationId, u64>,
    gone: Vec<Gone>,
    /// Destinations that have finished all of it.
    done: BTreeSet<DestinationId>,
    /// What destinations before it had finished in it.
    finished: BTreeMap<DestinationId, u64>,
    /// Inputs of the same number become one segment; none stays as it is.
    output: Option<usize>,
}

/// One compaction of a run of segments: a survey of all, then the writing.
pub(super) struct Pass {
    plan: Plan,
    inputs: Vec<Input>,
    stands: BTreeMap<DestinationId, Stand>,
    limit: u64,
    largest: usize,
    writing: bool,
    /// Where it is: the input, and the offset in it (0 before its first step).
    at: usize,
    offset: u64,
    /// Bytes that the next record needs.
    need: usize,
    output: Option<Output>,
    buffer: Vec<u8>,
    saved: u64,
    /// What sealing adds to a record.
    overhead_bytes: usize,
}

impl Pass {
    fn begin(lane: &mut Lane, limit: u64) -> Option<Self> {
        let (run, merge) = select(lane, limit)?;
        let (base, end) = (lane.segments[run.start].base, lane.segment_end(run.end - 1));
        let stands: BTreeMap<DestinationId, Stand> = lane
            .places
            .iter()
            .map(|(d, p)| (*d, Stand { low: p.cursor.low(), ahead: p.cursor.ahead().into_iter().filter(|s| (base..end).contains(s)).collect() }))
            .collect();
        let inputs: Vec<Input> = run
            .map(|at| {
                let (s, end) = (&lane.segments[at], lane.segment_end(at));
                let before = |d: &DestinationId| s.accepted_before.get(d).copied().unwrap_or(0);
                Input {
                    key: (s.base, s.epoch, s.attempt),
                    base: s.base,
                    end,
                    file: s.file.clone(),
                    cover: s.cover.clone(),
                    data_start: s.data_start,
                    data_end: s.data_end,
                    disk_bytes: s.disk_bytes,
                    created: s.created,
                    epochs: s.epochs.clone(),
                    accepted_before: s.accepted_before.clone(),
                    accepted_after: stands.keys().map(|d| (*d, lane.accepted_through(at, *d).max(before(d)))).collect(),
                    gone: s.compacted.as_ref().map(|c| c.gone.clone()).unwrap_or_default(),
                    done: stands.keys().filter(|d| lane.unfinished_in(at, **d) == 0).copied().collect(),
                    finished: lane.places.iter().map(|(d, p)| (*d, p.cursor.finished_in(s.base, end))).collect(),
                    output: Some(0),
                }
            })
            .collect();
        Some(Self {
            plan: Plan::new(merge, inputs.len()),
            inputs,
            stands,
            limit,
            largest: limit as usize,
            writing: false,
            at: 0,
            offset: 0,
            need: 0,
            output: None,
            buffer: Vec::new(),
            saved: 0,
            overhead_bytes: lane.overhead_bytes,
        })
    }

    /// The destinations of a record that have not finished it.
    fn needed(&self, at: usize, record: &RawRecord<'_>) -> SmallVec<[DestinationId; 4]> {
        let input = &self.inputs[at];
        let needs = |d: &DestinationId| {
            let stand = self.stands.get(d)?;
            (stand.low < input.end && !input.done.contains(d) && !stand.ahead.contains(&record.sequence)).then_some(())
        };
        record.destinations().filter(|d| needs(d).is_some()).collect()
    }

    /// Reads on in the current input and calls `each` with its records and the bytes of each. True at its end.
    fn read(&mut self, mut each: impl FnMut(&mut Self, &RawRecord<'_>, &[u8])) -> Result<bool, Stop> {
        let input = &self.inputs[self.at];
        let (file, end, data_end, key, cover) = (input.file.clone(), input.end, input.data_end, input.key, input.cover.clone());
        if self.offset == 0 {
            self.offset = input.data_start;
        }
        let want = STEP_BYTES.max(self.need).min(data_end.saturating_sub(self.offset) as usize);
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(want, 0);
        let filled = file.read_at(self.offset, &mut buffer)?;
        let (mut at, mut done) = (0, filled == 0);
        while at < filled {
            match codec::decode_record(&buffer[at..filled], self.largest) {
                Ok((record, _)) if record.sequence >= end => {
                    // After a failed sync the next segment holds it.
                    done = true;
                    break;
                }
                Ok((record, length)) => {
                    if record.sealed || !cover.is_plain() {
                        let frame = &mut buffer[at..at + length];
                        let Ok(plain) = cover.open(frame) else { return Err(Stop::Damaged(vec![key])) };
                        let Ok((record, _)) = codec::decode_record(&frame[..plain], self.largest) else { return Err(Stop::Damaged(vec![key])) };
                        each(self, &record, &frame[..plain]);
                    } else {
                        each(self, &record, &buffer[at..at + length]);
                    }
                    at += length;
                    self.need = 0;
                }
                // The rest of a file that could not be cut.
                Err(Broken::Unwritten) => {
                    done = true;
                    break;
                }
                Err(Broken::Incomplete(n)) if self.offset + (at + n) as u64 <= data_end && (at > 0 || n > filled) => {
                    self.need = n;
                    break;
                }
                Err(_) => return Err(Stop::Damaged(vec![key])),
            }
        }
        self.offset += at as u64;
        self.buffer = buffer;
        Ok(done || self.offset >= data_end)
    }

    fn next_input(&mut self) {
        self.at += 1;
        self.offset = 0;
        self.need = 0;
    }

    fn survey(&mut self) -> Result<(), Stop> {
        let output = self.inputs[self.at].output.unwrap_or(0);
        let done = self.read(|pass, record, bytes| {
            let needed = pass.needed(pass.at, record);
            let (at, bytes) = (pass.at, bytes.len() + pass.overhead_bytes);
            if needed.is_empty() {
                pass.plan.saves[at] += bytes as u64;
            } else {
                pass.plan.look(at, output, record, &needed, bytes);
            }
        })?;
        if !done {
            return Ok(());
        }
        self.next_input();
        if self.plan.merge != Merge::Latest {
            if self.plan.is_filling() {
                self.inputs.truncate(self.at);
            }
            // A segment of about the usual size, and the next one is begun.
            let held: u64 = (0..self.at).filter(|at| self.inputs[*at].output == Some(output)).map(|at| self.plan.leaves[at]).sum();
            if let Some(next) = self.inputs.get_mut(self.at) {
                next.output = Some(if held >= self.limit * 3 / 4 { output + 1 } else { output });
            }
        }
        if self.at == self.inputs.len() {
            if self.plan.merge == Merge::Latest {
                self.choose_outputs();
            }
            self.writing = true;
            self.at = 0;
        }
        Ok(())
    }

    /// Which segments become one: the survey knows what will stand in each. What is large and would hardly shrink stays as it is.
    fn choose_outputs(&mut self) {
        let (mut next, mut groups): (usize, Vec<Range<usize>>) = (0, Vec::new());
        while next < self.inputs.len() {
            let alone = |at: usize| self.plan.saves[at] < self.inputs[at].disk_bytes / 8 && self.inputs[at].disk_bytes > self.limit / 2;
            let (start, mut bytes) = (next, 0);
            while next < self.inputs.len() && !alone(next) && (next == start || bytes + self.plan.leaves[next] <= self.limit) {
                bytes += self.plan.leaves[next];
                next += 1;
            }
            let before: u64 = self.inputs[start..next].iter().map(|i| i.disk_bytes).sum();
            if next > start && worth_it(next - start, before, bytes) {
                groups.push(start..next);
            }
            next = next.max(start + 1);
        }
        for input in &mut self.inputs {
            input.output = None;
        }
        for (number, group) in groups.into_iter().enumerate() {
            for input in &mut self.inputs[group] {
                input.output = Some(number);
            }
        }
    }

    /// The output of the current input, as a range of inputs.
    fn range(&self, output: usize) -> Range<usize> {
        let first = self.inputs.iter().position(|i| i.output == Some(output)).unwrap_or(self.at);
        let count = self.inputs[first..].iter().take_while(|i| i.output == Some(output)).count();
        first..first + count
    }

    fn epoch_of(&self, at: usize, sequence: u64) -> u32 {
        let epochs = &self.inputs[at].epochs;
        epochs.get(epochs.partition_point(|(first, _)| *first <= sequence).saturating_sub(1)).map_or(0, |(_, epoch)| *epoch)
    }
}

/// Less by an eighth, or many small ones made one.
fn worth_it(inputs: usize, before: u64, after: u64) -> bool {
    after <= before - before / 8 || (inputs >= 4 && after <= before)
}

impl Writer {
    /// Does one step of what compaction the lane needs; true when there is more to do at once.
    pub(super) fn compact(&mut self, at: usize, last: bool) -> bool {
        if last {
            if let Some(pass) = self.lanes[at].pass.take() {
                self.abandon(at, pass);
            }
            return false;
        }
        let mut pass = match self.lanes[at].pass.take() {
            Some(pass) => pass,
            None => match self.begin_pass(at) {
                Some(pass) => pass,
                None => return false,
            },
        };
        match self.step_pass(at, &mut pass) {
            Ok(true) => self.lanes[at].pass = Some(pass),
            Ok(false) => {
                let mut lane = self.shared.lanes[at].lock();
                lane.compaction.bytes = 0;
                lane.compaction.gained |= pass.saved > 0;
                drop(lane);
                self.wake_senders(at);
            }
            Err(stop) => {
                let mut lane = self.shared.lanes[at].lock();
                let name = lane.config.name.clone();
                match stop {
                    // Tried again; while somebody reads there, room comes of that.
                    Stop::Moved => {}
                    Stop::Damaged(keys) => {
                        tracing::warn!(lane = %name, base = keys.first().map_or(0, |k| k.0), "a segment that was to be compacted is damaged; it stays as it is");
                        for segment in lane.segments.iter_mut().filter(|s| keys.contains(&(s.base, s.epoch, s.attempt))) {
                            segment.level = UNTOUCHABLE;
                        }
                    }
                    Stop::Io(error) => {
                        tracing::warn!(lane = %name, error = %error, "segments could not be compacted; the oldest goes instead");
                        lane.compaction.exhausted = true;
                    }
                }
                drop(lane);
                self.abandon(at, pass);
                self.wake_senders(at);
            }
        }
        true
    }

    fn begin_pass(&mut self, at: usize) -> Option<Pass> {
        let mut guard = self.shared.lanes[at].lock();
        let lane = &mut *guard;
        if !lane.compacts() || lane.failure.is_some() {
            return None;
        }
        let limit = segment_bytes(&self.shared.config, &lane.config);
        if !lane.wants_compaction(limit) {
            lane.compaction.from = 0;
            lane.compaction.gained = false;
            return None;
        }
        let pass = Pass::begin(lane, limit);
        if pass.is_none() {
            lane.compaction.exhausted = true;
            lane.compaction.begun = 0;
            drop(guard);
            self.wake_senders(at);
        }
        pass
    }

    /// Those who were told to wait look again.
    fn wake_senders(&self, at: usize) {
        self.shared.lanes[at].written.send_modify(|_| {});
    }

    fn abandon(&self, at: usize, pass: Pass) {
        if let Some(output) = pass.output {
            let _ = self.shared.storage.remove(&output.temporary);
        }
        self.shared.lanes[at].lock().compaction.bytes = 0;
    }

    /// True when there is more to do.
    fn step_pass(&mut self, at: usize, pass: &mut Pass) -> Result<bool, Stop> {
        if !pass.writing {
            pass.survey()?;
            return Ok(true);
        }
        let number = pass.inputs.get(pass.at).and_then(|i| i.output);
        if let Some(output) = &pass.output
            && output.inputs.end <= pass.at
        {
            self.finish_output(at, pass)?;
            return Ok(true);
        }
        if pass.at >= pass.inputs.len() {
            return Ok(false);
        }
        let Some(number) = number else {
            pass.next_input();
            return Ok(true);
        };
        if pass.output.is_none() {
            pass.output = Some(self.begin_output(at, pass, number)?);
        }
        let Some(mut output) = pass.output.take() else { return Ok(false) };
        let (epoch, clock) = (self.shared.epoch, self.shared.clock.clone());
        let read = pass.read(|pass, record, bytes| {
            let needed = pass.needed(pass.at, record);
            // As the forwarder tells it: by the wall clock as it is now, if the record is of this run.
            let own = pass.epoch_of(pass.at, record.sequence) == epoch;
            let told = |t: Timestamp| if own { clock.wall(t).to_rfc3339() } else { t.to_rfc3339() };
            output.take(&mut pass.plan, number, record, &needed, bytes, told);
        });
        let flushed = if read.is_ok() { output.flush() } else { Ok(()) };
        self.shared.lanes[at].lock().compaction.bytes = output.end;
        pass.output = Some(output);
        flushed?;
        if read? {
            pass.next_input();
        }
        Ok(true)
    }

    fn begin_output(&mut self, at: usize, pass: &Pass, number: usize) -> Result<Output, Stop> {
        let inputs = pass.range(number);
        let (first, last) = (&pass.inputs[inputs.start], &pass.inputs[inputs.end - 1]);
        let names = self.shared.manifest.lock().unwrap_or_else(PoisonError::into_inner).destinations.clone();
        let (lane_name, mark) = {
            let mut lane = self.shared.lanes[at].lock();
            lane.compaction.marks += 1;
            (lane.config.name.clone(), u64::from(self.shared.epoch) << 32 | u64::from(lane.compaction.marks))
        };
        let mut epochs: Vec<(u64, u32)> = pass.inputs[inputs.clone()].iter().flat_map(|i| i.epochs.iter().copied()).collect();
        epochs.dedup_by_key(|(_, epoch)| *epoch);
        let before = |d: &DestinationId| first.accepted_before.get(d).copied().unwrap_or(0);
        let with_records = pass.stands.keys().filter(|d| last.accepted_after.get(d).copied().unwrap_or(0) > before(d));
        let sealing = self.shared.config.at_rest.begin(&sealed::Place { lane: &lane_name, epoch: self.shared.epoch, base: first.base })?;
        let (sealed, sealer) = sealing.unzip();
        let header = Header {
            epoch: self.shared.epoch,
            base: first.base,
            created: first.created,
            lane: lane_name.clone(),
            destinations: Lane::header_destinations(&first.accepted_before, &names),
            fresh: false,
            compacted: Some(Compacted {
                mark,
                end: last.end,
                level: if let Merge::Window { level, .. } = pass.plan.merge { level } else { 0 },
                epochs,
                // The counts are filled in at the end, in the same length.
                gone: with_records.map(|d| Gone { id: *d, finished: 0, aggregated: 0, left: 0 }).collect(),
            }),
            sealed,
        };
        let data_start = codec::encode_header(&header).len() as u64;
        self.lanes[at].attempt += 1;
        let attempt = self.lanes[at].attempt;
        let path = self.shared.config.dir.join(&lane_name).join(recover::segment_name(first.base, self.shared.epoch, attempt));
        let temporary = path.with_extension(recover::UNFINISHED);
        let file = self.shared.storage.create(&temporary, 0)?;
        Ok(Output {
            inputs,
            path,
            temporary,
            file,
            attempt,
            header,
            data_start,
            end: data_start,
            unsynced: 0,
            pending: Vec::new(),
            sealer,
            gone: BTreeMap::new(),
            losses: BTreeMap::new(),
        })
    }

    /// Puts the new segment in the place of the old ones, or drops it when it is not worth it.
    fn finish_output(&mut self, at: usize, pass: &mut Pass) -> Result<(), Stop> {
        let Some(mut output) = pass.output.take() else { return Ok(()) };
        let done = self.replace_segments(at, pass, &mut output);
        if !matches!(done, Ok(true)) {
            let _ = self.shared.storage.remove(&output.temporary);
        }
        self.shared.lanes[at].lock().compaction.bytes = 0;
        done.map(|_| ())
    }

    fn replace_segments(&mut self, at: usize, pass: &mut Pass, output: &mut Output) -> Result<bool, Stop> {
        let inputs = &pass.inputs[output.inputs.clone()];
        let before: u64 = inputs.iter().map(|i| i.disk_bytes).sum();
        if !worth_it(inputs.len(), before, output.end) {
            let mut lane = self.shared.lanes[at].lock();
            let level = output.header.compacted.as_ref().map_or(0, |c| c.level);
            for segment in lane.segments.iter_mut().filter(|s| inputs.iter().any(|i| i.key == (s.base, s.epoch, s.attempt))) {
                segment.level = segment.level.max(level);
            }
            return Ok(false);
        }
        let Some(compacted) = &mut output.header.compacted else { return Ok(false) };
        for gone in &mut compacted.gone {
            let new = output.gone.get(&gone.id).copied().unwrap_or(Gone { id: gone.id, finished: 0, aggregated: 0, left: 0 });
            let earlier = || inputs.iter().flat_map(|i| &i.gone).filter(|g| g.id == gone.id);
            gone.finished = new.finished + earlier().map(|g| g.finished).sum::<u64>();
            gone.aggregated = new.aggregated + earlier().map(|g| g.aggregated).sum::<u64>();
            gone.left = new.left;
            let after = inputs.last().and_then(|i| i.accepted_after.get(&gone.id)).copied().unwrap_or(0);
            let accepted = after - inputs.first().and_then(|i| i.accepted_before.get(&gone.id)).copied().unwrap_or(0).min(after);
            if gone.count() + gone.left != accepted {
                return Err(Stop::Damaged(inputs.iter().map(|i| i.key).collect()));
            }
        }
        if !fits(&self.shared.lanes[at].lock(), inputs, &pass.stands) {
            return Err(Stop::Moved);
        }
        let compacted = compacted.clone();
        let header = codec::encode_header(&output.header);
        output.file.write_at(0, &header)?;
        output.file.sync()?;
        let storage = &self.shared.storage;
        storage.rename(&output.temporary, &output.path)?;
        let dir = self.shared.config.dir.join(&output.header.lane);
        if let Err(error) = storage.sync_dir(&dir) {
            let _ = storage.remove(&output.path);
            return Err(error.into());
        }
        let mut guard = self.shared.lanes[at].lock();
        let lane = &mut *guard;
        if !fits(lane, inputs, &pass.stands) {
            // Should the removal be lost with the power, recovery sees that a destination has come further than this file knows.
            drop(guard);
            let _ = storage.remove(&output.path);
            return Err(Stop::Moved);
        }
        let (base, end) = (output.header.base, compacted.end);
        let mut aggregated = 0;
        for gone in &compacted.gone {
            let new = output.gone.get(&gone.id).map_or(0, |g| g.aggregated);
            if let Some(place) = lane.places.get_mut(&gone.id)
                && place.cursor.low() <= base
            {
                place.cursor.finish_in(base, new, End::Aggregated);
                // The file holds what is unfinished and nothing else.
                place.cursor.fold(base, end, |_| false);
                aggregated += new;
            }
            if let Some(loss) = output.losses.get(&gone.id) {
                lane.losses.note(gone.id, LossReason::Aggregated, *loss);
            }
        }
        let Some(first) = lane.segments.iter().position(|s| inputs.first().is_some_and(|i| i.key == (s.base, s.epoch, s.attempt))) else {
            return Err(Stop::Moved);
        };
        let old: Vec<Segment> = lane.segments.drain(first..first + inputs.len()).collect();
        lane.segments.insert(
            first,
            Segment {
                base,
                epoch: self.shared.epoch,
                attempt: output.attempt,
                created: output.header.created,
                path: output.path.clone(),
                file: output.file.clone(),
                data_start: output.data_start,
                data_end: output.end,
                disk_bytes: output.end,
                accepted_before: inputs[0].accepted_before.clone(),
                corrupt: false,
                cover: output.sealer.as_ref().map_or(Cover::Plain, Sealer::cover),
                epochs: compacted.epochs.iter().copied().collect(),
                level: compacted.level,
                compacted: Some(compacted),
            },
        );
        lane.garbage.extend(old);
        drop(guard);
        let saved = before.saturating_sub(output.end);
        pass.saved += saved;
        let stats = &self.shared.stats;
        stats.wrote(output.end, output.end.next_multiple_of(4096));
        stats.compacted(saved, aggregated);
        self.wake_senders(at);
        Ok(true)
    }
}

/// Whether the segments are still those that were read, and nobody has come into them or finished anything there since.
fn fits(lane: &Lane, inputs: &[Input], stands: &BTreeMap<DestinationId, Stand>) -> bool {
    let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else { return false };
    let Some(at) = lane.segments.iter().position(|s| (s.base, s.epoch, s.attempt) == first.key) else { return false };
    let same = inputs.iter().enumerate().all(|(n, i)| lane.segments.get(at + n).is_some_and(|s| (s.base, s.epoch, s.attempt) == i.key));
    let (base, end) = (first.base, last.end);
    same && at + inputs.len() < lane.segments.len()
        && lane.segment_end(at + inputs.len() - 1) == end
        && lane.places.iter().all(|(d, place)| match stands.get(d) {
            Some(stand) if stand.low < end => {
                let finished: u64 = inputs.iter().filter_map(|i| i.finished.get(d)).sum();
                place.cursor.low() <= base && !place.cursor.stands_in(base, end) && place.cursor.finished_in(base, end) == finished
            }
            _ => true,
        })
}
