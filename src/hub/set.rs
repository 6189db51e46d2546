//! A set: one destination of the store, several readers. What is stored for it is offered to each member, and done as soon as one of them
//! has it (decision record 0017).
//!
//! The store hands each record out once, to the set. It is kept here until it is done, and each member reads what is kept at a place of its
//! own before it reads on in the store: one that is behind passes over what others have finished, and holds nothing up. What is kept was
//! read by a member that has it on its way or has refused it, so it is bounded by the members' windows and by [`MOST_REFUSED`],
//! [`MOST_REFUSED_BYTES`], [`MOST_BEHIND`] and [`PART_BEHIND`], whatever waits in the store.

mod refusals;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use smallvec::SmallVec;
use tokio::sync::watch;

use self::refusals::{Met, Progress, Refusals};
use super::{Consumer, LaneRun};
use crate::component::Fut;
use crate::outbox::{LaneId, Outbox, OutboxError, Run};

/// Most members of a set.
pub const MAX_MEMBERS: usize = 16;
/// Records that some members have refused and that wait for the others; past it the oldest wait no longer.
pub const MOST_REFUSED: usize = 1_024;
/// The same in bytes; one that is larger is waited for alone.
pub const MOST_REFUSED_BYTES: usize = 1 << 20;
/// Records of a lane that may be read after one that was refused, before that one waits no longer: all of them stand in the cursor's memory
/// and in its file. As many as one link may have answered behind an unanswered one.
pub const MOST_BEHIND: u64 = 4_096;
/// The same in bytes: this part of the lane's quota. No segment behind such a record is freed, and one refusal must not fill a lane.
pub const PART_BEHIND: u64 = 8;
/// Places among what is kept: strict lanes, and the others.
const STRICT: usize = 0;
const SHARED: usize = 1;

/// What tells a record among those of a set.
type Key = (LaneId, u64);

/// Records that were read together and are not all done.
#[derive(Debug)]
struct Chunk {
    number: u64,
    lane: LaneId,
    run: Run,
    /// Sequence of each, growing, and whether it is still to be delivered.
    records: Vec<(u64, bool)>,
    open: usize,
}

impl Chunk {
    fn open_at(&self, sequence: u64) -> Option<usize> {
        self.records.binary_search_by_key(&sequence, |(s, _)| *s).ok().filter(|at| self.records[*at].1)
    }

    fn close(&mut self, place: usize) {
        self.open -= usize::from(std::mem::replace(&mut self.records[place].1, false));
    }
}

/// How far a member has read what is kept, on each side: the next chunk, and the next record in it.
#[derive(Debug, Clone, Copy, Default)]
struct Member {
    at: [(u64, usize); 2],
    /// It has been given records since it began anew, so some may be on their way.
    busy: bool,
}

/// What has been read of a lane.
fn read_of(read: &[(LaneId, Progress)], lane: LaneId) -> Progress {
    read.iter().find(|(l, _)| *l == lane).map_or_else(Progress::default, |(_, so_far)| *so_far)
}

struct Shared {
    consumer: Consumer,
    /// What is not done, in the order in which it was read.
    kept: [VecDeque<Chunk>; 2],
    /// Number of the chunk that came last.
    last_number: u64,
    members: Vec<Member>,
    refusals: Refusals,
    /// What has been read so far.
    read: SmallVec<[(LaneId, Progress); 4]>,
    /// For the quotas of its lanes.
    outbox: Outbox,
    /// Moves when members may find something new among what is kept.
    news: watch::Sender<u64>,
    /// Used again and again.
    places: Vec<usize>,
    asked: Vec<usize>,
    done: Vec<u64>,
}

impl Shared {
    /// Finds a record that is kept and not done.
    fn find(&self, (lane, sequence): Key) -> Option<(usize, usize, usize)> {
        (0..self.kept.len()).find_map(|side| {
            self.kept[side].iter().enumerate().filter(|(_, c)| c.lane == lane).find_map(|(at, c)| Some((side, at, c.open_at(sequence)?)))
        })
    }

    /// The record is not to be delivered any more. False when it was not kept.
    fn close(&mut self, key: Key) -> bool {
        self.refusals.forget(key);
        let Some((side, at, place)) = self.find(key) else { return false };
        self.kept[side][at].close(place);
        if self.kept[side][at].open == 0 {
            self.kept[side].remove(at);
        }
        true
    }

    /// Gives a member what is kept and it has not had.
    fn offer(&mut self, member: usize, side: usize, most: usize, most_bytes: usize, into: &mut LaneRun) -> usize {
        loop {
            let (number, place) = self.members[member].at[side];
            let at = self.kept[side].partition_point(|c| c.number < number);
            let Some(chunk) = self.kept[side].get(at) else { return 0 };
            let mut next = if chunk.number == number { place } else { 0 };
            let (lane, mut bytes) = (chunk.lane, 0);
            self.places.clear();
            while next < chunk.records.len() && self.places.len() < most && bytes < most_bytes {
                let (sequence, open) = chunk.records[next];
                if open && (self.refusals.is_empty() || !self.refusals.has(member, (lane, sequence))) {
                    self.places.push(next);
                    bytes += chunk.run.bytes_of(next);
                }
                next += 1;
            }
            let read_up = next == chunk.records.len();
            self.members[member].at[side] = if read_up { (chunk.number + 1, 0) } else { (chunk.number, next) };
            self.asked.clone_from(&self.places);
            // It may have been given up, or outlived, while it was kept.
            self.consumer.retain_out(lane, &chunk.run, &mut self.places);
            let offered = self.places.len();
            if offered > 0 {
                into.run.copy(&chunk.run, self.places.iter().copied());
                into.set_lane(lane);
                self.members[member].busy = true;
            }
            if offered < self.asked.len() {
                let gone: Vec<Key> =
                    self.asked.iter().filter(|p| self.places.binary_search(p).is_err()).map(|p| (lane, chunk.records[*p].0)).collect();
                for key in gone {
                    self.close(key);
                }
            }
            if offered > 0 {
                return offered;
            }
        }
    }

    /// Gives a member what comes next: of what is kept, else of the store.
    fn next(&mut self, member: usize, side: usize, most: usize, most_bytes: usize, into: &mut LaneRun) -> Result<usize, OutboxError> {
        loop {
            let offered = self.offer(member, side, most, most_bytes, into);
            if offered > 0 {
                return Ok(offered);
            }
            let read = match side {
                STRICT => self.consumer.next_strict_run(most, most_bytes, into)?,
                _ => self.consumer.next_shared_run(most, most_bytes, into)?,
            };
            let Some(lane) = into.lane().filter(|_| read > 0) else { return Ok(0) };
            self.keep(side, lane, &into.run);
            if self.refusals.is_empty() {
                // All of it is for this member.
                self.members[member].at[side] = (self.last_number + 1, 0);
                self.members[member].busy = true;
                return Ok(read);
            }
        }
    }

    /// Keeps what was read for all members.
    fn keep(&mut self, side: usize, lane: LaneId, from: &Run) {
        let mut run = Run::default();
        run.copy(from, 0..from.len());
        let records: Vec<(u64, bool)> = run.iter().map(|r| (r.id.sequence, true)).collect();
        let mut so_far = read_of(&self.read, lane);
        so_far.records += records.len() as u64;
        so_far.bytes += (0..records.len()).map(|place| run.bytes_of(place) as u64).sum::<u64>();
        match self.read.iter_mut().find(|(l, _)| *l == lane) {
            Some((_, before)) => *before = so_far,
            None => self.read.push((lane, so_far)),
        }
        self.refusals.read(lane, records.iter().map(|(sequence, _)| *sequence), so_far);
        self.last_number += 1;
        self.kept[side].push_back(Chunk { number: self.last_number, lane, run, open: records.len(), records });
        self.tell();
    }

    fn tell(&self) {
        self.news.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn acknowledge(&mut self, lane: LaneId, sequences: &[u64]) -> u64 {
        let mut done = std::mem::take(&mut self.done);
        done.clear();
        done.extend(sequences.iter().copied().filter(|s| self.close((lane, *s))));
        self.consumer.acknowledge(lane, &done);
        let first = done.len() as u64;
        self.done = done;
        first
    }

    fn refuse(&mut self, member: usize, lane: LaneId, sequence: u64, reason: &str) {
        let Some((side, at, place)) = self.find((lane, sequence)) else { return };
        let met = Met { bytes: self.kept[side][at].run.bytes_of(place), strict: side == STRICT, read: read_of(&self.read, lane) };
        self.refusals.note(member, (lane, sequence), reason, met);
    }

    /// Records that nobody takes, for this member to set aside.
    fn unwanted(&mut self, member: usize, into: &mut Vec<(LaneId, u64, String)>) {
        if !self.refusals.take_look() {
            return;
        }
        for key in self.refusals.gone(|(lane, sequence)| self.consumer.is_out(lane, sequence)) {
            self.close(key);
        }
        let Self { refusals, read, members, outbox, .. } = self;
        let most = |lane| Progress { records: MOST_BEHIND, bytes: outbox.quota_bytes(lane) / PART_BEHIND };
        refusals.unwanted(member, members.len(), |lane| (read_of(read, lane), most(lane)), into);
    }

    fn rewind(&mut self, member: usize) {
        self.members[member] = Member::default();
        self.refusals.let_go(member);
        if self.is_idle() {
            self.kept.iter_mut().for_each(VecDeque::clear);
            self.refusals.begin_anew();
            self.consumer.rewind();
        }
        self.tell();
    }

    /// Nobody has anything on its way.
    fn is_idle(&self) -> bool {
        self.members.iter().all(|m| !m.busy)
    }

    fn sendable(&self, member: usize, strict_only: bool) -> u64 {
        self.consumer.sendable(strict_only).saturating_sub(self.refusals.of(member, strict_only))
    }
}

/// A set. Clones share it.
#[derive(Clone)]
pub struct Set {
    shared: Arc<Mutex<Shared>>,
}

impl std::fmt::Debug for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Set").finish_non_exhaustive()
    }
}

/// What a set has in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetCounts {
    /// Records that were read and are not done.
    pub kept: usize,
    /// Of these, what some members have refused and others may take.
    pub refused: usize,
}

impl Set {
    /// So many members (at most [`MAX_MEMBERS`]) of what this consumer reads.
    pub(super) fn new(consumer: Consumer, members: usize, outbox: Outbox) -> Self {
        let shared = Shared {
            consumer,
            kept: Default::default(),
            last_number: 0,
            members: vec![Member::default(); members.min(MAX_MEMBERS)],
            refusals: Refusals::default(),
            read: SmallVec::new(),
            outbox,
            news: watch::channel(0).0,
            places: Vec::new(),
            asked: Vec::new(),
            done: Vec::new(),
        };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reader of a member, from 0; one at a time for each.
    ///
    /// # Panics
    /// When there is no such member.
    #[must_use]
    pub fn member(&self, member: usize) -> SetConsumer {
        let shared = self.lock();
        assert!(member < shared.members.len(), "a set of {} has no member {member}", shared.members.len());
        let news = shared.news.subscribe();
        drop(shared);
        SetConsumer { set: self.clone(), member, news }
    }

    /// What it has in memory.
    #[must_use]
    pub fn counts(&self) -> SetCounts {
        let shared = self.lock();
        SetCounts { kept: shared.kept.iter().flatten().map(|c| c.open).sum(), refused: shared.refusals.len() }
    }
}

/// One member's reader of a set: a [`Consumer`] whose records others are offered as well.
#[derive(Debug)]
pub struct SetConsumer {
    set: Set,
    member: usize,
    news: watch::Receiver<u64>,
}

impl SetConsumer {
    fn next(&mut self, side: usize, most: usize, most_bytes: usize, into: &mut LaneRun) -> Result<usize, OutboxError> {
        let mut shared = self.set.lock();
        let read = shared.next(self.member, side, most, most_bytes, into);
        if read.is_err() {
            // What could not be read by this one may be read by another.
            shared.tell();
        }
        self.news.borrow_and_update();
        read
    }

    /// As [`Consumer::next_strict_run`]; what another member has finished is left out, and so is what this one has refused.
    ///
    /// # Errors
    /// When a lane cannot be read.
    pub fn next_strict_run(&mut self, max_records: usize, max_bytes: usize, into: &mut LaneRun) -> Result<usize, OutboxError> {
        self.next(STRICT, max_records, max_bytes, into)
    }

    /// As [`Consumer::next_shared_run`], in the same way.
    ///
    /// # Errors
    /// When a lane cannot be read.
    pub fn next_shared_run(&mut self, max_records: usize, max_bytes: usize, into: &mut LaneRun) -> Result<usize, OutboxError> {
        self.next(SHARED, max_records, max_bytes, into)
    }

    /// Resolves when there may be something new to read, in the store or left by another member. Cancel-safe.
    pub fn readable(&self, strict_only: bool) -> impl Future<Output = ()> + Send + 'static {
        let stored: Fut<'static, ()> = {
            let shared = self.set.lock();
            if strict_only { Box::pin(shared.consumer.strict_readable()) } else { Box::pin(shared.consumer.readable()) }
        };
        let mut news = self.news.clone();
        async move {
            tokio::select! {
                () = stored => {}
                told = news.changed() => if told.is_err() { std::future::pending::<()>().await },
            }
        }
    }

    /// This member has taken these records of the lane: they are done for all. Returns how many it was the first to take.
    pub fn acknowledge(&self, lane: LaneId, sequences: &[u64]) -> u64 {
        self.set.lock().acknowledge(lane, sequences)
    }

    /// This member refuses the record for good. The others are asked; once all have refused it, or it has waited for as long as it may, it is
    /// [unwanted](Self::unwanted).
    pub fn refuse(&self, lane: LaneId, sequence: u64, reason: &str) {
        self.set.lock().refuse(self.member, lane, sequence, reason);
    }

    /// Adds records that nobody takes, with why: this member sets them aside and then [rejects](Self::reject) them. Others are not given them
    /// unless this one begins anew first.
    pub fn unwanted(&self, into: &mut Vec<(LaneId, u64, String)>) {
        self.set.lock().unwanted(self.member, into);
    }

    /// Nobody takes the record: it is done, and counted as evicted.
    pub fn reject(&self, lane: LaneId, sequence: u64, reason: &str) {
        let mut shared = self.set.lock();
        if shared.close((lane, sequence)) {
            shared.consumer.reject(lane, sequence, reason);
        }
    }

    /// This member has nothing on its way any more, and begins again at the first record that is not done. When none has, the store is asked
    /// anew where to begin.
    pub fn rewind(&mut self) {
        self.set.lock().rewind(self.member);
    }

    /// As [`Consumer::begin_with`], if no other member has anything on its way. Otherwise what is kept comes first anyway, in the order in
    /// which it was read.
    pub fn begin_with(&mut self, lane: LaneId, sequence: u64) {
        let mut shared = self.set.lock();
        if shared.is_idle() {
            shared.consumer.begin_with(lane, sequence);
        }
    }

    /// As [`Consumer::set_live_share`], for all members.
    pub fn set_live_share(&mut self, percent: u8) {
        self.set.lock().consumer.set_live_share(percent);
    }

    /// As [`Consumer::sendable`], without what this member has refused.
    #[must_use]
    pub fn sendable(&self, strict_only: bool) -> u64 {
        self.set.lock().sendable(self.member, strict_only)
    }

    /// Records stored for the set and not done.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.set.lock().consumer.queued()
    }

    /// What the set has in memory.
    #[must_use]
    pub fn counts(&self) -> SetCounts {
        self.set.counts()
    }
}

impl Drop for SetConsumer {
    /// A member that is gone has nothing on its way.
    fn drop(&mut self) {
        self.rewind();
    }
}

#[cfg(test)]
mod tests;
