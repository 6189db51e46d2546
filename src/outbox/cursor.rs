//! Where a destination stands in a lane: pure bookkeeping, no IO.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::sides::Sides;

/// How a record ended for a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Delivered,
    Expired,
    Evicted,
    Aggregated,
}

/// A position plus what was finished ahead of it: single records in a small set, and for segments that were finished or thinned out of
/// order how many records in each. All questions about a range of sequences are about ranges between boundaries of segments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Next sequence to look at when reading on.
    next: u64,
    /// Handed out and not yet behind the cursor, in order, with "is finished".
    window: VecDeque<(u64, bool)>,
    /// Finished in an earlier run or before a rewind, and not yet passed again.
    ahead: BTreeSet<u64>,
    /// By base of a segment that begins at or after the position: records in it that are finished and stand in none of the sets above.
    /// There are never more than there are segments.
    in_segments: BTreeMap<u64, u64>,
    /// What is read and finished out of order, of a lane that is replayed newest first. While there is any, nothing is read at the position.
    pub sides: Sides,
    pub delivered: u64,
    pub expired: u64,
    pub evicted: u64,
    pub aggregated: u64,
}

impl Cursor {
    pub fn restore(low: u64, ahead: impl IntoIterator<Item = u64>, counts: [u64; 4]) -> Self {
        let [delivered, expired, evicted, aggregated] = counts;
        Self {
            next: low.max(1),
            window: VecDeque::new(),
            ahead: ahead.into_iter().filter(|s| *s >= low).collect(),
            in_segments: BTreeMap::new(),
            sides: Sides::default(),
            delivered,
            expired,
            evicted,
            aggregated,
        }
    }

    /// With what was finished in segments ahead of the position, by base.
    pub fn with_segments(mut self, segments: impl IntoIterator<Item = (u64, u64)>) -> Self {
        self.in_segments = segments.into_iter().filter(|(_, count)| *count > 0).collect();
        self
    }

    /// With what was finished out of order: first sequence, one past the last, and how many.
    pub fn with_runs(mut self, runs: impl IntoIterator<Item = (u64, u64, u64)>) -> Self {
        self.sides = Sides::restore(runs);
        self
    }

    /// All records before this sequence are finished.
    pub fn low(&self) -> u64 {
        self.window.front().map_or(self.next, |(s, _)| *s)
    }

    pub fn next(&self) -> u64 {
        self.next
    }

    pub fn set_next(&mut self, next: u64) {
        self.next = next;
    }

    /// Records finished in any way.
    pub fn finished(&self) -> u64 {
        self.delivered + self.expired + self.evicted + self.aggregated
    }

    /// Records finished that stand before `sequence`, which is a segment's boundary at or after what is handed out, or one that
    /// everything below has been finished up to.
    pub fn finished_before(&self, sequence: u64) -> u64 {
        self.finished().saturating_sub(self.finished_in(sequence, u64::MAX))
    }

    /// Records finished at or ahead of the position that stand in this range of whole segments.
    pub fn finished_in(&self, base: u64, end: u64) -> u64 {
        let window = self.window.iter().filter(|(s, done)| *done && (base..end).contains(s)).count();
        let counted: u64 = self.in_segments.range(base..end).map(|(_, count)| count).sum();
        window as u64 + self.ahead.range(base..end).count() as u64 + counted + self.sides.finished_in(base, end)
    }

    /// Whether records of this range are handed out, or the position stands between them.
    pub fn stands_in(&self, base: u64, end: u64) -> bool {
        (self.low() < end && self.next > base) || self.sides.touches(base, end)
    }

    /// So many more records of the segment ended in this way, ahead of the position, without having been handed out.
    pub fn finish_in(&mut self, base: u64, count: u64, how: End) {
        self.count(how, count);
        if count > 0 {
            *self.in_segments.entry(base).or_default() += count;
        }
    }

    /// The segments that begin in this range are one from now on, or are known by their count alone: what was finished in them, ahead
    /// of the position, becomes one number. Single records that `keep` wants are left single, since they still stand in the file.
    pub fn fold(&mut self, base: u64, end: u64, mut keep: impl FnMut(u64) -> bool) {
        let single: Vec<u64> = self.ahead.range(base..end).copied().filter(|s| !keep(*s)).collect();
        let mut count = single.len() as u64;
        for sequence in single {
            self.ahead.remove(&sequence);
        }
        let mut later = self.in_segments.split_off(&base);
        let mut beyond = later.split_off(&end);
        count += later.values().sum::<u64>();
        self.in_segments.append(&mut beyond);
        if count > 0 {
            self.in_segments.insert(base, count);
        }
    }

    /// What was finished in segments ahead of the position, for the cursor file.
    pub fn in_segments(&self) -> Vec<(u64, u64)> {
        self.in_segments.iter().map(|(base, count)| (*base, *count)).collect()
    }

    /// Sequences finished at or after the position, for the cursor file.
    pub fn ahead(&self) -> Vec<u64> {
        let in_window = self.window.iter().filter(|(_, done)| *done).map(|(s, _)| *s);
        let mut all: Vec<u64> = in_window.chain(self.ahead.iter().copied()).chain(self.sides.singles()).collect();
        all.sort_unstable();
        all
    }

    /// As [`hand_out`](Self::hand_out), by a reader of this piece of the sides, or at the position.
    pub fn hand_out_in(&mut self, piece: Option<u64>, sequence: u64) -> bool {
        let Some(key) = piece else { return self.hand_out(sequence) };
        let done = self.ahead.remove(&sequence);
        self.sides.hand_out(key, sequence, done);
        !done
    }

    /// Where this piece of the sides, or the lane at the position, is read on.
    pub fn next_in(&self, piece: Option<u64>) -> u64 {
        piece.map_or(self.next, |key| self.sides.span(key).map_or(u64::MAX, |(next, _)| next))
    }

    /// Reads on from here, in this piece of the sides or at the position.
    pub fn set_next_in(&mut self, piece: Option<u64>, next: u64) {
        match piece {
            Some(key) => self.sides.set_next(key, next),
            None => self.set_next(next),
        }
    }

    /// What was handed out at the position becomes pieces, one for each segment; `bases` are where segments begin.
    pub fn park(&mut self, bases: impl Iterator<Item = u64>) {
        let (low, end) = (self.low(), self.next);
        self.next = low;
        let (mut window, mut start) = (std::mem::take(&mut self.window), low);
        for bound in bases.filter(|b| low < *b && *b < end).chain([end]) {
            let rest = window.split_off(window.partition_point(|(s, _)| *s < bound));
            self.sides.park(start, bound, std::mem::replace(&mut window, rest));
            start = bound;
        }
    }

    /// Moves the position past what the sides have finished from it on. When they have left nothing out, reading goes on in order.
    pub fn absorb(&mut self) {
        if self.sides.is_empty() {
            return;
        }
        self.next = self.sides.absorb(self.next);
        if let Some((next, window)) = self.sides.join(self.next) {
            (self.next, self.window) = (next, window);
        }
        self.slide();
    }

    /// The reader met this record; false when it is finished already and must not be handed out.
    pub fn hand_out(&mut self, sequence: u64) -> bool {
        self.next = sequence + 1;
        let done = self.ahead.remove(&sequence);
        self.window.push_back((sequence, done));
        self.slide();
        !done
    }

    /// Whether this record was handed out and has not ended.
    pub fn is_out(&self, sequence: u64) -> bool {
        let at = self.window.binary_search_by_key(&sequence, |(s, _)| *s);
        at.map_or_else(|_| self.sides.is_out(sequence), |at| !self.window[at].1)
    }

    /// A record that was handed out ended; false when it was not out (acknowledged twice, evicted meanwhile).
    pub fn finish(&mut self, sequence: u64, end: End) -> bool {
        let Ok(at) = self.window.binary_search_by_key(&sequence, |(s, _)| *s) else {
            let finished = self.sides.finish(sequence);
            self.count(end, u64::from(finished));
            return finished;
        };
        if std::mem::replace(&mut self.window[at].1, true) {
            return false;
        }
        self.count(end, 1);
        self.slide();
        true
    }

    fn count(&mut self, end: End, n: u64) {
        match end {
            End::Delivered => self.delivered += n,
            End::Expired => self.expired += n,
            End::Evicted => self.evicted += n,
            End::Aggregated => self.aggregated += n,
        }
    }

    fn slide(&mut self) {
        while self.window.front().is_some_and(|(_, done)| *done) {
            self.window.pop_front();
        }
        // What was skipped as finished is known for as long as the position stands before it: it may be rewound to there.
        let low = self.low();
        while self.ahead.first().is_some_and(|s| *s < low) {
            self.ahead.pop_first();
        }
        while self.in_segments.first_key_value().is_some_and(|(base, _)| *base < low) {
            self.in_segments.pop_first();
        }
    }

    /// Hands out again what was not finished.
    pub fn rewind(&mut self) {
        self.next = self.low();
        let finished = self.window.drain(..).filter(|(_, done)| *done).map(|(s, _)| s);
        self.ahead.extend(finished);
        self.sides.rewind(&mut self.ahead);
    }

    /// What stands from here to `end` in the segment that begins with `base` cannot be read; what was handed out before still counts.
    /// Returns how many are lost.
    pub fn skip_to(&mut self, base: u64, end: u64, accepted_before_end: u64) -> u64 {
        let out = self.window.iter().filter(|(s, done)| !done && *s < end).count() as u64;
        let lost = accepted_before_end.saturating_sub(self.finished_before(end) + out);
        if self.low() < base {
            // A rewind comes back to what stands before the segment, and has to know where these were lost.
            self.finish_in(base, lost, End::Evicted);
        } else {
            self.count(End::Evicted, lost);
        }
        self.next = self.next.max(end);
        self.slide();
        lost
    }

    /// Everything before `end` is gone: `accepted_before_end` records of this destination stood there in all. Those that
    /// were not finished ended in this way; returns how many.
    pub fn drop_before(&mut self, end: u64, accepted_before_end: u64, how: End) -> u64 {
        let lost = accepted_before_end.saturating_sub(self.finished_before(end));
        self.window.retain(|(s, _)| *s >= end);
        self.ahead = self.ahead.split_off(&end);
        self.in_segments = self.in_segments.split_off(&end);
        self.sides.drop_before(end);
        self.next = self.next.max(end);
        self.count(how, lost);
        self.slide();
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_order_acknowledgements_wait_for_the_gap() {
        let mut c = Cursor::restore(1, [], [0; 4]);
        for s in [1, 3, 7] {
            assert!(c.hand_out(s));
        }
        assert!(c.finish(3, End::Delivered) && !c.finish(3, End::Delivered) && !c.finish(2, End::Delivered));
        assert_eq!((c.low(), c.ahead(), c.finished_before(2)), (1, vec![3], 0));
        assert!(c.finish(1, End::Delivered));
        assert_eq!((c.low(), c.ahead(), c.delivered), (7, vec![], 2));
        assert!(c.finish(7, End::Expired));
        assert_eq!((c.low(), c.finished()), (8, 3));
    }

    #[test]
    fn rewinding_hands_out_only_what_is_not_finished() {
        let mut c = Cursor::restore(1, [], [0; 4]);
        for s in 1..=4 {
            c.hand_out(s);
        }
        c.finish(2, End::Delivered);
        c.rewind();
        assert_eq!((c.next(), c.ahead()), (1, vec![2]));
        assert_eq!((1..=4).map(|s| c.hand_out(s)).collect::<Vec<_>>(), [true, false, true, true]);
        for s in [1, 3, 4] {
            assert!(c.finish(s, End::Delivered));
        }
        assert_eq!((c.low(), c.delivered), (5, 4));
    }

    #[test]
    fn dropping_a_range_counts_exactly_what_was_unfinished_in_it() {
        let mut c = Cursor::restore(1, [], [0; 4]);
        for s in [2, 4, 6, 8] {
            c.hand_out(s);
        }
        c.finish(4, End::Delivered);
        c.finish(8, End::Delivered);
        // Records 2, 4, 6 stand before 7.
        assert_eq!(c.drop_before(7, 3, End::Evicted), 2);
        assert_eq!((c.low(), c.delivered, c.evicted, c.finished()), (9, 2, 2, 4));
        assert!(!c.finish(6, End::Delivered), "a late acknowledgement changes nothing");
    }

    #[test]
    fn segments_finished_ahead_of_the_position_count_where_they_stand() {
        // Segments 1..10, 10..20, 20..30 with ten records each; two of the first are out, the last one is finished as a whole.
        let mut c = Cursor::restore(1, [], [0; 4]);
        c.hand_out(1);
        c.hand_out(2);
        c.finish(2, End::Delivered);
        c.finish_in(20, 6, End::Delivered);
        c.finish_in(20, 4, End::Expired);
        assert_eq!((c.finished_before(10), c.finished_before(20), c.finished_before(30)), (1, 1, 11));
        assert_eq!((c.finished_in(1, 10), c.finished_in(10, 20), c.finished_in(20, 30)), (1, 0, 10));
        assert!(c.stands_in(1, 10) && !c.stands_in(10, 20) && !c.stands_in(20, 30));
        // Seven of the second were merged into others, and it becomes one with the third.
        c.finish_in(10, 7, End::Aggregated);
        c.fold(10, 30, |_| true);
        assert_eq!((c.in_segments(), c.finished_before(10), c.finished_before(30)), (vec![(10, 17)], 1, 18));
        // What is given up counts what was unfinished there and nothing else.
        assert_eq!(c.drop_before(10, 9, End::Evicted), 8);
        assert_eq!(c.drop_before(30, 19 + 10, End::Evicted), 29 - 9 - 17);
        assert_eq!((c.delivered, c.expired, c.evicted, c.aggregated, c.low()), (7, 4, 11, 7, 30));
        assert!(c.in_segments().is_empty());
    }

    #[test]
    fn what_was_skipped_as_finished_is_still_finished_after_a_rewind_to_before_it() {
        let mut c = Cursor::restore(1, [11, 12], [2, 0, 0, 0]).with_segments([(20, 9)]);
        c.delivered += 9;
        c.hand_out(5);
        // 10..20 holds 11 and 12 alone, 20..30 nine records: all finished, both are skipped while 5 is out.
        assert_eq!((c.skip_to(10, 20, 3), c.skip_to(20, 30, 12)), (0, 0));
        c.hand_out(30);
        assert_eq!((c.finished_before(10), c.finished_before(20), c.finished_before(30)), (0, 2, 11));
        c.rewind();
        assert_eq!((c.next(), c.ahead(), c.in_segments()), (5, vec![11, 12], vec![(20, 9)]));
        c.hand_out(5);
        assert_eq!((c.skip_to(10, 20, 3), c.skip_to(20, 30, 12)), (0, 0));
        c.finish(5, End::Delivered);
        assert_eq!((c.low(), c.ahead(), c.in_segments(), c.finished_before(30)), (30, vec![], vec![], 12));
    }

    #[test]
    fn single_records_become_part_of_the_count_unless_they_still_stand_there() {
        let mut c = Cursor::restore(5, [12, 14, 25], [3, 0, 0, 0]).with_segments([(20, 2), (30, 0)]);
        c.delivered += 2;
        assert_eq!(c.in_segments(), [(20, 2)]);
        c.fold(10, 20, |s| s == 14);
        assert_eq!((c.ahead(), c.in_segments()), (vec![14, 25], vec![(10, 1), (20, 2)]));
        assert_eq!((c.finished_in(10, 20), c.finished_in(20, 30), c.finished_before(10)), (2, 3, 0));
        // A reader that cannot read the rest of 10..20 loses what is neither finished nor out.
        c.set_next(10);
        assert_eq!(c.skip_to(10, 20, 9 + 5), 14 - 2);
        assert_eq!((c.low(), c.evicted), (20, 12));
    }

    #[test]
    fn a_rewind_behind_what_was_passed_over_knows_what_was_finished_and_what_was_lost_there() {
        // Segments 1..10, 10..20 and 20..30 of nine, ten and ten; all of the second is finished singly, the third is damaged.
        let mut c = Cursor::restore(1, 10..20, [10, 0, 0, 0]);
        (1..10).for_each(|s| assert!(c.hand_out(s)));
        assert_eq!((c.skip_to(10, 20, 19), c.skip_to(20, 30, 29)), (0, 10));
        c.rewind();
        assert_eq!((c.finished_before(10), c.finished_before(20), c.finished_before(30), c.next()), (0, 10, 20, 1));
        (1..10).for_each(|s| assert!(c.hand_out(s)));
        assert!((10..20).all(|s| !c.hand_out(s)), "finished ones are not handed out again");
        assert_eq!(c.skip_to(20, 30, 29), 0);
        (1..10).for_each(|s| assert!(c.finish(s, End::Delivered)));
        assert_eq!((c.low(), c.delivered, c.evicted, c.ahead()), (30, 19, 10, vec![]));
    }
}
