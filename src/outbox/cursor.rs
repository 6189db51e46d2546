//! Where a destination stands in a lane: pure bookkeeping, no IO.

use std::collections::{BTreeSet, VecDeque};

/// How a record ended for a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Delivered,
    Expired,
    Evicted,
}

/// A position plus the small set of records that were finished ahead of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Next sequence to look at when reading on.
    next: u64,
    /// Handed out and not yet behind the cursor, in order, with "is finished".
    window: VecDeque<(u64, bool)>,
    /// Finished in an earlier run or before a rewind, and not yet passed again.
    ahead: BTreeSet<u64>,
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
            delivered,
            expired,
            evicted,
            aggregated,
        }
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
        let ahead_of_it = self.window.iter().filter(|(s, done)| *done && *s >= sequence).count() as u64 + self.ahead.range(sequence..).count() as u64;
        self.finished() - ahead_of_it
    }

    /// Sequences finished at or after the position, for the cursor file.
    pub fn ahead(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.window.iter().filter(|(_, done)| *done).map(|(s, _)| *s).chain(self.ahead.iter().copied()).collect();
        all.sort_unstable();
        all
    }

    /// The reader met this record; false when it is finished already and must not be handed out.
    pub fn hand_out(&mut self, sequence: u64) -> bool {
        self.next = sequence + 1;
        let done = self.ahead.remove(&sequence);
        self.window.push_back((sequence, done));
        self.slide();
        !done
    }

    /// A record that was handed out ended; false when it was not out (acknowledged twice, evicted meanwhile).
    pub fn finish(&mut self, sequence: u64, end: End) -> bool {
        let Ok(at) = self.window.binary_search_by_key(&sequence, |(s, _)| *s) else { return false };
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
        }
    }

    fn slide(&mut self) {
        while self.window.front().is_some_and(|(_, done)| *done) {
            self.window.pop_front();
        }
    }

    /// Hands out again what was not finished.
    pub fn rewind(&mut self) {
        self.next = self.low();
        let finished = self.window.drain(..).filter(|(_, done)| *done).map(|(s, _)| s);
        self.ahead.extend(finished);
    }

    /// What stands from here to `end` cannot be read; what was handed out before still counts. Returns how many are lost.
    pub fn skip_to(&mut self, end: u64, accepted_before_end: u64) -> u64 {
        let out = self.window.iter().filter(|(s, done)| !done && *s < end).count() as u64;
        let lost = accepted_before_end.saturating_sub(self.finished_before(end) + out);
        self.ahead = self.ahead.split_off(&end);
        self.next = self.next.max(end);
        self.count(End::Evicted, lost);
        lost
    }

    /// Everything before `end` is gone: `accepted_before_end` records of this destination stood there in all. Those that
    /// were not finished ended in this way; returns how many.
    pub fn drop_before(&mut self, end: u64, accepted_before_end: u64, how: End) -> u64 {
        let lost = accepted_before_end.saturating_sub(self.finished_before(end));
        self.window.retain(|(s, _)| *s >= end);
        self.ahead = self.ahead.split_off(&end);
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
}
