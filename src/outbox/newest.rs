//! Replay that begins with the newest (decision record 0012): what is accepted from now on is read on one side, what waits is read on
//! the other, the newest segment first. Which piece is next is decided by the lane, without IO; the reader reads it.

use super::codec::Broken;
use super::cursor::End;
use super::lane::Lane;
use super::loss::{Loss, LossReason};
use super::reader::{Reader, Run, SegmentKey, Wanted};
use super::{DestinationId, Order, OutboxError, salvage, writer};

/// Read at once while two sides share the link, so that neither waits for long.
const TURN_BYTES: usize = 64 << 10;
/// Bytes that a side which had nothing to send is owed at most.
const CREDIT_BYTES: i64 = 64 << 10;

/// Share of the link in percent that live records get while a backlog waits, unless said.
pub const DEFAULT_LIVE_SHARE: u8 = 70;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Live,
    Backlog,
}

/// Divides what is read between the two sides, in bytes.
#[derive(Debug, Clone, Copy)]
struct Share {
    /// Percent for live records.
    live: u8,
    /// Hundredths of a byte that the live side is owed; less than 0 when the backlog is.
    owed: i64,
}

impl Share {
    fn first(self) -> Side {
        // A share of nothing comes last even when nobody is owed anything.
        if self.owed > 0 || (self.owed == 0 && self.live > 0) { Side::Live } else { Side::Backlog }
    }

    fn spend(&mut self, side: Side, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX / 200);
        let live = i64::from(self.live);
        let owed = match side {
            Side::Live => self.owed - bytes * (100 - live),
            Side::Backlog => self.owed + bytes * live,
        };
        // What nobody wanted to send is not made up for without end.
        self.owed = owed.clamp(-100 * CREDIT_BYTES, 100 * CREDIT_BYTES);
    }
}

/// What a reader remembers of the two sides.
#[derive(Debug)]
pub(super) struct SideReader {
    share: Share,
    /// Of the backlog, as [`Reader::place`] of the live side.
    place: Option<(SegmentKey, u64, u64)>,
}

impl Default for SideReader {
    fn default() -> Self {
        Self { share: Share { live: DEFAULT_LIVE_SHARE, owed: 0 }, place: None }
    }
}

impl SideReader {
    pub fn forget(&mut self) {
        self.place = None;
        self.share.owed = 0;
    }
}

/// Where to read next.
#[derive(Debug, Clone, Copy)]
struct Target {
    /// The piece.
    key: u64,
    /// The segment that it lies in.
    at: usize,
    next: u64,
    /// Not read from here on.
    limit: u64,
}

impl Lane {
    fn segment_at(&self, sequence: u64) -> Option<usize> {
        self.segments.partition_point(|s| s.base <= sequence).checked_sub(1)
    }

    /// Whether the destination is read on two sides.
    fn is_split(&self, destination: DestinationId) -> bool {
        self.places.get(&destination).is_some_and(|p| !p.cursor.sides.is_empty())
    }

    /// The same, or that it may come to be.
    pub(super) fn may_be_split(&self, destination: DestinationId) -> bool {
        self.config.order == Order::Newest || self.is_split(destination)
    }

    /// Starts again: at the lowest record that is not finished, or with what comes from now on.
    pub fn rewind(&mut self, destination: DestinationId, epoch: u32) {
        if let Some(place) = self.places.get_mut(&destination) {
            place.cursor.rewind();
        }
        self.tidy(destination, epoch);
        let waits = self.queued(destination) > 0;
        let (newest, settled) = (self.config.order == Order::Newest, self.settled);
        if let Some(cursor) = self.places.get_mut(&destination).map(|p| &mut p.cursor)
            && newest
            && waits
            && cursor.low() < settled
            && cursor.sides.has_room_for_live(false)
        {
            cursor.sides.open_live(settled);
        }
    }

    /// The backlog is read on from this record, if it waits there; returns whether it does.
    fn begin_with(&mut self, destination: DestinationId, sequence: u64) -> bool {
        let Some(at) = self.segment_at(sequence) else { return false };
        let (base, end) = (self.segments[at].base, self.segment_end(at));
        let Some(cursor) = self.places.get_mut(&destination).map(|p| &mut p.cursor) else { return false };
        let Some(live) = cursor.sides.live().filter(|_| cursor.sides.has_room_for_newest()) else { return false };
        let gap = cursor.sides.gaps(cursor.low(), live).find(|(from, to)| (*from..*to).contains(&sequence));
        let Some((from, to)) = gap else { return false };
        cursor.sides.open_backlog(sequence, to.min(end), sequence == base || sequence > from);
        true
    }

    /// What is read in order has fallen behind by more than a segment: that is a backlog, too.
    fn split_if_behind(&mut self, destination: DestinationId) -> bool {
        if self.config.order == Order::Oldest {
            return false;
        }
        let settled = self.settled;
        let Some(next) = self.places.get(&destination).map(|p| p.cursor.next()) else { return false };
        let behind = self.segment_at(next).is_some_and(|at| at + 2 < self.segments.len()) && next < settled;
        if !behind || self.queued(destination) == 0 {
            return false;
        }
        let segments = &self.segments;
        if let Some(place) = self.places.get_mut(&destination) {
            place.cursor.park(segments.iter().map(|s| s.base));
            place.cursor.sides.open_live(settled);
        }
        true
    }

    /// After pieces were done with: joins them, counts what could not be read in a segment that is done with as a whole, and moves the
    /// position.
    pub fn tidy(&mut self, destination: DestinationId, epoch: u32) {
        let Some(place) = self.places.get_mut(&destination) else { return };
        if !place.cursor.sides.take_changed() {
            return;
        }
        let segments = &self.segments;
        place.cursor.sides.merge(|sequence| segments.binary_search_by_key(&sequence, |s| s.base).is_ok());
        let low = place.cursor.low();
        let done: Vec<(u64, u64)> = place.cursor.sides.done().collect();
        for (start, end) in done {
            let Some(at) = self.segment_at(start) else { continue };
            let (base, created) = (self.segments[at].base, self.segments[at].created);
            if end != self.segment_end(at) || !self.is_sealed(at, epoch) || (start != base && start > low) {
                continue;
            }
            self.middle_due = true;
            let lost = self.unfinished_in(at, destination);
            if lost > 0
                && let Some(place) = self.places.get_mut(&destination)
            {
                place.cursor.evicted += lost;
                place.cursor.sides.finish_in(start, lost);
                let loss = Loss { count: lost, sequences: (base, end.saturating_sub(1)), times: (created, created) };
                self.losses.note(destination, LossReason::Damaged, loss);
                self.corrupt_records += lost;
            }
        }
        if let Some(place) = self.places.get_mut(&destination) {
            place.cursor.absorb();
        }
    }

    /// Moves segments that nobody needs any more, but before which others stand, out of the way. Returns whether there were any.
    pub fn free_middle(&mut self) -> bool {
        if !std::mem::take(&mut self.middle_due) {
            return false;
        }
        let (mut at, mut freed) = (1, false);
        while at + 1 < self.segments.len() {
            if self.places.keys().any(|d| self.unfinished_in(at, *d) > 0) {
                at += 1;
            } else if let Some(segment) = self.segments.remove(at) {
                self.middle.push(segment);
                freed = true;
            }
        }
        if freed {
            // Pieces on both sides of such a segment can be joined now.
            self.places.values_mut().for_each(|p| p.cursor.sides.touch());
        }
        freed
    }

    fn target(&mut self, destination: DestinationId, side: Side, epoch: u32) -> Option<Target> {
        match side {
            Side::Live => self.live_target(destination, epoch),
            Side::Backlog => self.backlog_target(destination),
        }
    }

    /// Where live records are read on. Such a piece ends with its segment; one that has fallen behind by more than a segment is left to the
    /// backlog.
    fn live_target(&mut self, destination: DestinationId, epoch: u32) -> Option<Target> {
        loop {
            let settled = self.settled;
            let newest = self.config.order == Order::Newest;
            let sides = &mut self.places.get_mut(&destination)?.cursor.sides;
            let Some(key) = sides.live() else {
                // At the bound what was left out is read first, in order, until there is room again.
                if !newest || !sides.has_room_for_live(true) {
                    return None;
                }
                sides.open_live(settled);
                continue;
            };
            let (next, _) = sides.span(key)?;
            if next >= settled {
                self.reader_waits |= settled < self.next_sequence;
                return None;
            }
            let Some(at) = self.segment_at(next) else {
                // Nothing stands here any more.
                let to = self.segments.front().map_or(settled, |s| s.base.min(settled));
                self.places.get_mut(&destination)?.cursor.sides.set_next(key, to);
                continue;
            };
            let base = self.segments[at].base;
            let behind = at + 2 < self.segments.len();
            let sides = &mut self.places.get_mut(&destination)?.cursor.sides;
            if behind || base > key {
                sides.close_live();
                if sides.has_room_for_live(false) {
                    sides.open_live(if behind { settled } else { base });
                }
                continue;
            }
            let limit = if self.is_sealed(at, epoch) { self.segment_end(at).min(settled) } else { settled };
            return Some(Target { key, at, next, limit });
        }
    }

    /// Where the backlog is read on while the segment that would be next waits for its key: in another one, unless the lane is in order.
    fn beside_locked(&self, destination: DestinationId, newest: bool) -> Option<(u64, u64, usize)> {
        if self.config.order == Order::Oldest {
            return None;
        }
        let cursor = &self.places.get(&destination)?.cursor;
        let gaps = cursor.sides.gaps(cursor.low(), cursor.sides.live().unwrap_or(self.settled));
        let mut open: Vec<(u64, u64, usize)> = gaps
            .flat_map(|(from, to)| {
                let first = self.segments.partition_point(|s| s.base <= from).saturating_sub(1);
                let last = self.segments.partition_point(|s| s.base < to);
                (first..last).map(move |at| (from, to, at))
            })
            .filter(|(_, _, at)| !self.segments[*at].cover.is_locked())
            .collect();
        if !cursor.sides.has_room() {
            return None;
        }
        if newest { open.pop() } else { open.drain(..).next() }
    }

    /// Where the backlog is read on: the newest stretch that is left out; the oldest while nothing is read as it comes, or there is no
    /// room for more pieces.
    fn backlog_target(&mut self, destination: DestinationId) -> Option<Target> {
        loop {
            let settled = self.settled;
            let newest = self.config.order == Order::Newest;
            let cursor = &mut self.places.get_mut(&destination)?.cursor;
            if let Some(key) = cursor.sides.backlog()
                && let Some((next, limit)) = cursor.sides.span(key).filter(|(next, end)| next < end)
                && let Some(at) = self.segment_at(next)
            {
                return Some(Target { key, at, next, limit });
            }
            let cursor = &mut self.places.get_mut(&destination)?.cursor;
            cursor.sides.close_backlog();
            let live = cursor.sides.live();
            let mut gaps = cursor.sides.gaps(cursor.low(), live.unwrap_or(settled));
            let newest = newest && live.is_some() && cursor.sides.has_room_for_newest();
            let (low, room) = (cursor.low(), cursor.sides.has_room());
            let (from, to) = if newest { gaps.next_back() } else { gaps.next() }?;
            drop(gaps);
            if !room && from > low {
                return None;
            }
            let first = self.segments.front()?;
            let Some(at) = self.segment_at(if newest { to - 1 } else { from }) else {
                // What stood before is gone; normally nothing of this destination was left in it.
                let (base, accepted) = (first.base, first.accepted_before.get(&destination).copied().unwrap_or(0));
                let created = first.created;
                let lost = self.places.get_mut(&destination)?.cursor.drop_before(base, accepted, End::Evicted);
                let loss = Loss { count: lost, sequences: (from, base - 1), times: (created, created) };
                self.losses.note(destination, LossReason::Damaged, loss);
                continue;
            };
            let (from, to, at) = if self.segments[at].cover.is_locked() { self.beside_locked(destination, newest)? } else { (from, to, at) };
            let base = self.segments[at].base;
            let (start, end) = (from.max(base), to.min(self.segment_end(at)));
            let finished = self.unfinished_in(at, destination) == 0;
            let sides = &mut self.places.get_mut(&destination)?.cursor.sides;
            sides.open_backlog(start, end, start == base);
            if finished && let Some(key) = sides.backlog() {
                sides.set_next(key, end);
            }
        }
    }
}

impl Reader {
    /// How much of what is read, in percent of its bytes, is kept for live records while a backlog waits, in a lane that is replayed newest
    /// first.
    pub fn set_live_share(&mut self, percent: u8) {
        self.sides.share.live = percent.min(100);
    }

    /// After a rewind: what is read next is this record, if it is not finished, and what follows it in its segment. A lane that is read in
    /// order begins with its lowest anyway.
    pub fn begin_with(&mut self, sequence: u64) {
        if self.lock().begin_with(self.destination, sequence) {
            self.sides.share.owed = -1;
        }
    }

    /// Reads the next records of a destination that is read on two sides; none when it is read in order.
    pub(super) fn next_of_sides(&mut self, max_records: usize, max_bytes: usize, run: &mut Run) -> Result<Option<usize>, OutboxError> {
        let (destination, epoch) = (self.destination, self.shared.epoch);
        loop {
            let (side, target, file, segment_key, epochs, offset, data_end, largest, path, ttl) = {
                let mut lane = self.lock();
                lane.tidy(destination, epoch);
                if !lane.is_split(destination) && !lane.split_if_behind(destination) {
                    return Ok(None);
                }
                let sides = if self.sides.share.first() == Side::Live { [Side::Live, Side::Backlog] } else { [Side::Backlog, Side::Live] };
                let found = sides.into_iter().find_map(|side| Some((side, lane.target(destination, side, epoch)?)));
                let Some((side, target)) = found else {
                    lane.tidy(destination, epoch);
                    return Ok(lane.is_split(destination).then_some(0));
                };
                let segment = &lane.segments[target.at];
                if segment.cover.is_lost() {
                    // What is lost is counted when the segment is done with.
                    if let Some(place) = lane.places.get_mut(&destination) {
                        place.cursor.sides.set_next(target.key, target.limit);
                    }
                    continue;
                }
                run.cover = segment.cover.clone();
                let key = (segment.base, segment.epoch, segment.attempt);
                let place = if side == Side::Live { self.place } else { self.sides.place };
                let offset = match place {
                    Some((place, offset, sequence)) if place == key && sequence <= target.next => offset,
                    _ => segment.data_start,
                };
                if offset >= segment.data_end {
                    if let Some(place) = lane.places.get_mut(&destination) {
                        place.cursor.sides.set_next(target.key, target.limit);
                    }
                    continue;
                }
                let largest = writer::segment_bytes(&self.shared.config, &lane.config) as usize;
                (
                    side,
                    target,
                    segment.file.clone(),
                    key,
                    segment.epochs.clone(),
                    offset,
                    segment.data_end,
                    largest,
                    segment.path.clone(),
                    lane.config.ttl,
                )
            };
            let max_bytes = max_bytes.min(TURN_BYTES);
            let broken = run.fill((file.as_ref(), &path), offset, data_end, max_bytes, largest)?;
            let now = self.shared.clock.now();
            let mut lane = self.lock();
            let there = lane.segments.binary_search_by_key(&segment_key, |s| (s.base, s.epoch, s.attempt)).ok();
            let cursor = lane.places.get(&destination).map(|p| &p.cursor);
            let stands = cursor.and_then(|c| c.sides.span(target.key)).is_some_and(|(next, _)| next == target.next);
            let Some(at) = there.filter(|_| stands) else {
                // Given up while it was read: what stood in it is counted already.
                drop(lane);
                self.sides.forget();
                self.place = None;
                continue;
            };
            if let Some(broken) = broken {
                lane.segments[at].corrupt = true;
                drop(lane);
                let sequences = target.next..target.limit;
                let found = salvage::next_record(file.as_ref(), offset, data_end, largest, &sequences);
                let found = found.map_err(|e| OutboxError::Directory { what: "cannot read", path: path.clone(), detail: e.to_string() })?;
                if !matches!(broken, Broken::Unwritten) {
                    tracing::error!(path = %path.display(), offset, goes_on_at = found, cause = ?broken, "a segment is damaged; what checks out in it is read");
                }
                // What is lost is counted when the segment is done with.
                self.note_place(side, found.map(|found| (segment_key, found, target.next)));
                if found.is_none()
                    && let Some(place) = self.lock().places.get_mut(&destination)
                {
                    place.cursor.sides.set_next(target.key, target.limit);
                }
                continue;
            }
            run.epochs = epochs;
            let Some(place) = lane.places.get_mut(&destination) else { return Ok(Some(0)) };
            let wanted = Wanted { destination, piece: Some(target.key), limit: target.limit, max_records, largest, now, ttl };
            let (read, expired) = run.hand_out(&mut place.cursor, &wanted);
            let next = place.cursor.next_in(Some(target.key));
            lane.note_expired(destination, expired);
            lane.note_unopened(destination, segment_key, run.unopened.take());
            drop(lane);
            self.note_place(side, Some((segment_key, offset + read as u64, next)));
            if !run.is_empty() {
                let bytes = run.bodies.iter().map(|(start, end)| (end - start) as usize).sum();
                self.sides.share.spend(side, bytes);
                return Ok(Some(run.len()));
            }
        }
    }

    fn note_place(&mut self, side: Side, place: Option<(SegmentKey, u64, u64)>) {
        match side {
            Side::Live => self.place = place,
            Side::Backlog => self.sides.place = place,
        }
    }
}
