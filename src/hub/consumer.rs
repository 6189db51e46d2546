//! Reading what is stored for one destination: strict lanes first, the others lane after lane by weight.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::routing::LaneShare;
use crate::component::Fut;
use crate::outbox::{DestinationId, Flow, LaneId, Outbox, OutboxError, Reader, Run};

/// Records that a lane of weight 1 may hand out before the next lane has its turn.
const QUANTUM: usize = 32;

/// Reads a destination's records from all lanes. Order is kept within a lane, and so for each topic.
#[derive(Debug)]
pub struct Consumer {
    lanes: Vec<(LaneId, Arc<AtomicU32>, Reader)>,
    /// The first lanes, which go before all others.
    strict: usize,
    /// Whose turn it is among the others.
    turn: usize,
}

/// A run of records of one lane; reused from call to call.
#[derive(Debug, Default)]
pub struct LaneRun {
    /// The records.
    pub run: Run,
    lane: Option<LaneId>,
}

impl LaneRun {
    /// Its records stand in this lane.
    pub(super) fn set_lane(&mut self, lane: LaneId) {
        self.lane = Some(lane);
    }

    /// The lane that the records stand in; none before the first read.
    #[must_use]
    pub fn lane(&self) -> Option<LaneId> {
        self.lane
    }
}

impl Consumer {
    pub(super) fn new(outbox: &Outbox, shares: impl Iterator<Item = LaneShare>, destination: DestinationId) -> Self {
        let (first, others): (Vec<_>, Vec<_>) = shares.partition(|s| s.strict);
        let reading = |share: LaneShare| (share.lane, share.weight, outbox.reader(destination, share.lane));
        Self { strict: first.len(), lanes: first.into_iter().chain(others).map(reading).collect(), turn: 0 }
    }

    /// Reads the next records of one lane, at most `max_records` and about `max_bytes`; returns how many, 0 when caught up.
    ///
    /// # Errors
    /// When a lane cannot be read. The others can: calling again goes on with the next lane.
    pub fn next_run(&mut self, max_records: usize, max_bytes: usize, into: &mut LaneRun) -> Result<usize, OutboxError> {
        match self.next_strict_run(max_records, max_bytes, into)? {
            0 => self.next_shared_run(max_records, max_bytes, into),
            read => Ok(read),
        }
    }

    /// As [`next_run`](Self::next_run), of strict lanes alone.
    ///
    /// # Errors
    /// When a lane cannot be read.
    pub fn next_strict_run(&mut self, max_records: usize, max_bytes: usize, into: &mut LaneRun) -> Result<usize, OutboxError> {
        for at in 0..self.strict {
            let read = self.read(at, max_records, max_bytes, into)?;
            if read > 0 {
                return Ok(read);
            }
        }
        Ok(0)
    }

    /// As [`next_run`](Self::next_run), of lanes that are not strict alone.
    ///
    /// # Errors
    /// When a lane cannot be read. The others can: calling again goes on with the next lane.
    pub fn next_shared_run(&mut self, max_records: usize, max_bytes: usize, into: &mut LaneRun) -> Result<usize, OutboxError> {
        let shared = self.lanes.len() - self.strict;
        for _ in 0..shared {
            let at = self.strict + self.turn;
            self.turn = (self.turn + 1) % shared;
            let read = self.read(at, max_records, max_bytes, into)?;
            if read > 0 {
                return Ok(read);
            }
        }
        Ok(0)
    }

    fn read(&mut self, at: usize, max_records: usize, max_bytes: usize, into: &mut LaneRun) -> Result<usize, OutboxError> {
        let (lane, weight, reader) = &mut self.lanes[at];
        let read = reader.next_run(max_records.min(QUANTUM * weight.load(Ordering::Relaxed) as usize), max_bytes, &mut into.run)?;
        if read > 0 {
            into.lane = Some(*lane);
        }
        Ok(read)
    }

    /// How much of what is read of a lane that is replayed newest first, in percent of its bytes, is kept for live records while a backlog
    /// waits; [`DEFAULT_LIVE_SHARE`](crate::outbox::DEFAULT_LIVE_SHARE) unless said.
    pub fn set_live_share(&mut self, percent: u8) {
        self.lanes.iter_mut().for_each(|(_, _, reader)| reader.set_live_share(percent));
    }

    /// Resolves when there may be something new to read. Cancel-safe.
    pub fn readable(&self) -> impl Future<Output = ()> + Send + 'static {
        Self::any(&self.lanes)
    }

    /// The same of strict lanes alone.
    pub fn strict_readable(&self) -> impl Future<Output = ()> + Send + 'static {
        Self::any(&self.lanes[..self.strict])
    }

    fn any<W>(lanes: &[(LaneId, W, Reader)]) -> impl Future<Output = ()> + Send + use<W> {
        let all: Vec<Fut<'static, ()>> = lanes.iter().map(|(_, _, reader)| -> Fut<'static, ()> { Box::pin(reader.readable()) }).collect();
        async move {
            if all.is_empty() {
                std::future::pending::<()>().await;
            }
            futures_util::future::select_all(all).await;
        }
    }

    /// These records of the lane are delivered for good; any order.
    pub fn acknowledge(&self, lane: LaneId, sequences: &[u64]) {
        if let Some((_, _, reader)) = self.lanes.iter().find(|(l, _, _)| *l == lane) {
            reader.acknowledge(sequences);
        }
    }

    /// The destination refuses this record for good.
    pub fn reject(&self, lane: LaneId, sequence: u64, reason: &str) {
        if let Some((_, _, reader)) = self.lanes.iter().find(|(l, _, _)| *l == lane) {
            reader.reject(sequence, reason);
        }
    }

    /// How the destination takes records of lanes that store nothing: of strict ones, and of the others.
    pub fn flow(&mut self, strict: &Flow, others: &Flow) {
        for (at, (_, _, reader)) in self.lanes.iter_mut().enumerate() {
            reader.flow(if at < self.strict { strict } else { others });
        }
    }

    /// Whether this lane stores nothing.
    #[must_use]
    pub fn passes(&self, lane: LaneId) -> bool {
        self.lanes.iter().any(|(l, _, reader)| *l == lane && reader.passes())
    }

    /// Leaves those of these places in a run of the lane whose records are still to be delivered ([`Reader::retain_out`]).
    pub(super) fn retain_out(&self, lane: LaneId, run: &Run, places: &mut Vec<usize>) {
        match self.lanes.iter().find(|(l, _, _)| *l == lane) {
            Some((_, _, reader)) => reader.retain_out(run, places),
            None => places.clear(),
        }
    }

    /// Whether a record of the lane was handed out and has not ended.
    pub(super) fn is_out(&self, lane: LaneId, sequence: u64) -> bool {
        self.lanes.iter().find(|(l, _, _)| *l == lane).is_some_and(|(_, _, reader)| reader.is_out(sequence))
    }

    /// Starts again at the lowest record that is not acknowledged, in every lane.
    pub fn rewind(&mut self) {
        for (_, _, reader) in &mut self.lanes {
            reader.rewind();
        }
        self.turn = 0;
    }

    /// After a rewind: what is read next of this lane is this record, if it is not done, whatever the lane's order.
    pub fn begin_with(&mut self, lane: LaneId, sequence: u64) {
        if let Some((_, _, reader)) = self.lanes.iter_mut().find(|(l, _, _)| *l == lane) {
            reader.begin_with(sequence);
        }
    }

    /// Records stored for the destination, not done, and readable, in strict lanes or in all: what is sealed with a key that is not there is not.
    #[must_use]
    pub fn sendable(&self, strict_only: bool) -> u64 {
        let lanes = if strict_only { &self.lanes[..self.strict] } else { &self.lanes[..] };
        lanes.iter().map(|(_, _, reader)| reader.sendable()).sum()
    }

    /// Records stored for the destination and not done, over all lanes.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.lanes.iter().map(|(_, _, reader)| reader.queued()).sum()
    }
}
