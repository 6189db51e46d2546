//! What some members of a set have refused, and the others may take: pure bookkeeping.

use std::collections::BTreeMap;

use super::{Key, MOST_REFUSED, MOST_REFUSED_BYTES};
use crate::outbox::LaneId;

/// Letters of a peer's reason that are kept.
const REASON: usize = 256;
/// Records given out at once as those that nobody takes.
const UNWANTED_AT_ONCE: usize = 64;

/// A record that some members have refused.
#[derive(Debug)]
struct Refused {
    /// A bit for each member that has.
    by: u32,
    reason: String,
    bytes: usize,
    strict: bool,
    /// Grows with each.
    number: u64,
    /// What had been read of its lane when it was; none while it has to be read again.
    read_at: Option<Progress>,
    /// The member that sets it aside.
    taken_by: Option<usize>,
}

/// What has been read of a lane, or may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Progress {
    pub records: u64,
    pub bytes: u64,
}

impl Progress {
    fn is_beyond(self, since: Self, most: Self) -> bool {
        self.records.saturating_sub(since.records) > most.records || self.bytes.saturating_sub(since.bytes) > most.bytes
    }
}

/// All of them; most often none. They outlive new beginnings: what a member has refused is not sent to it again.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    all: BTreeMap<Key, Refused>,
    last_number: u64,
    /// Something may have come that nobody takes.
    look: bool,
}

/// What is known of a record when it is refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Met {
    pub bytes: usize,
    /// It stands in a strict lane.
    pub strict: bool,
    /// What has been read of its lane so far.
    pub read: Progress,
}

impl Refusals {
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether this member has refused it.
    pub fn has(&self, member: usize, key: Key) -> bool {
        self.all.get(&key).is_some_and(|r| r.by & (1 << member) != 0)
    }

    /// How many this member has refused, of strict lanes alone or of all.
    pub fn of(&self, member: usize, strict_only: bool) -> u64 {
        self.all.values().filter(|r| r.by & (1 << member) != 0 && (r.strict || !strict_only)).count() as u64
    }

    /// This member refuses it.
    pub fn note(&mut self, member: usize, key: Key, reason: &str, met: Met) {
        let reason: String = reason.chars().take(REASON).collect();
        self.look = true;
        if let Some(refused) = self.all.get_mut(&key) {
            refused.by |= 1 << member;
            refused.reason = reason;
            return;
        }
        self.last_number += 1;
        let refused = Refused {
            by: 1 << member,
            reason,
            bytes: met.bytes,
            strict: met.strict,
            number: self.last_number,
            read_at: Some(met.read),
            taken_by: None,
        };
        self.all.insert(key, refused);
    }

    /// It is done.
    pub fn forget(&mut self, key: Key) {
        self.all.remove(&key);
    }

    /// Records of the lane were read, so much of it so far: those that are known were met again, and the others wait behind them.
    pub fn read(&mut self, lane: LaneId, sequences: impl Iterator<Item = u64>, so_far: Progress) {
        if self.all.is_empty() {
            return;
        }
        for sequence in sequences {
            if let Some(refused) = self.all.get_mut(&(lane, sequence)) {
                refused.read_at = Some(so_far);
            }
        }
        self.look = true;
    }

    /// This member sets nothing aside any more.
    pub fn let_go(&mut self, member: usize) {
        for refused in self.all.values_mut().filter(|r| r.taken_by == Some(member)) {
            refused.taken_by = None;
            self.look = true;
        }
    }

    /// All of it will be read again.
    pub fn begin_anew(&mut self) {
        self.all.values_mut().for_each(|r| (r.read_at, r.taken_by) = (None, None));
    }

    /// Whether it is worth looking for what nobody takes; asked once for each thing that happens.
    pub fn take_look(&mut self) -> bool {
        std::mem::take(&mut self.look)
    }

    /// Those that are not out any more: given up, or outlived.
    pub fn gone(&self, is_out: impl Fn(Key) -> bool) -> Vec<Key> {
        self.all.iter().filter(|(key, r)| r.read_at.is_some() && !is_out(**key)).map(|(key, _)| *key).collect()
    }

    /// Adds those that this member is to set aside, with why: all of so many members have refused them, or they have waited for as long as
    /// they may. `read_of` says what has been read of a lane, and how much may be behind such a record.
    pub fn unwanted(
        &mut self,
        member: usize,
        members: usize,
        read_of: impl Fn(LaneId) -> (Progress, Progress),
        into: &mut Vec<(LaneId, u64, String)>,
    ) {
        let by_all = ((1u64 << members) - 1) as u32;
        let (mut due, mut waiting) = (Vec::new(), Vec::new());
        for (key, refused) in self.all.iter().filter(|(_, r)| r.taken_by.is_none()) {
            let beyond = |at| {
                let (read, most) = read_of(key.0);
                read.is_beyond(at, most)
            };
            if refused.read_at.is_some_and(|at| refused.by == by_all || beyond(at)) {
                due.push(*key);
            } else {
                waiting.push((refused.number, *key, refused.bytes));
            }
        }
        waiting.sort_unstable();
        let (mut left, mut bytes) = (waiting.len(), waiting.iter().map(|(_, _, bytes)| bytes).sum::<usize>());
        for (_, key, size) in waiting {
            // One that is larger than all may be is waited for alone.
            if left <= 1 || (left <= MOST_REFUSED && bytes <= MOST_REFUSED_BYTES) {
                break;
            }
            (left, bytes) = (left - 1, bytes - size);
            if self.all.get(&key).is_some_and(|r| r.read_at.is_some()) {
                due.push(key);
            } else {
                // It waits in the store, and whoever has refused it is asked again.
                self.forget(key);
            }
        }
        self.look = due.len() > UNWANTED_AT_ONCE;
        for key in due.into_iter().take(UNWANTED_AT_ONCE) {
            let Some(refused) = self.all.get_mut(&key) else { continue };
            refused.taken_by = Some(member);
            let who = if refused.by == by_all {
                "refused by each of its set, the last one said"
            } else {
                "refused by a part of its set, and the others did not take it in time"
            };
            into.push((key.0, key.1, format!("{who}: {}", refused.reason)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Progress = Progress { records: 100, bytes: 5_000 };

    fn read(records: u64) -> Progress {
        Progress { records, bytes: 10 * records }
    }

    fn unwanted(refusals: &mut Refusals, so_far: Progress) -> Vec<u64> {
        let mut found = Vec::new();
        refusals.unwanted(0, 2, |_| (so_far, MOST), &mut found);
        found.into_iter().map(|(_, sequence, _)| sequence).collect()
    }

    #[test]
    fn a_record_larger_than_all_may_be_is_waited_for_alone_and_of_two_the_older_one_goes() {
        let mut refusals = Refusals::default();
        let met = Met { bytes: MOST_REFUSED_BYTES + 1, strict: false, read: read(0) };
        refusals.note(0, (LaneId(0), 7), "too large", met);
        assert!(unwanted(&mut refusals, read(0)).is_empty());
        refusals.note(0, (LaneId(0), 3), "too large", met);
        assert_eq!(unwanted(&mut refusals, read(0)), [7]);
    }

    #[test]
    fn what_has_to_be_read_again_is_nobodys_to_set_aside_and_is_forgotten_past_the_bound() {
        let mut refusals = Refusals::default();
        for sequence in 0..=MOST_REFUSED as u64 {
            refusals.note(1, (LaneId(0), sequence), &"no".repeat(1_000), Met { bytes: 1, strict: sequence == 0, read: read(0) });
        }
        assert_eq!((refusals.of(1, false), refusals.of(1, true), refusals.of(0, false)), (MOST_REFUSED as u64 + 1, 1, 0));
        assert!(refusals.all.values().all(|r| r.reason.len() == REASON));
        refusals.begin_anew();
        assert!(unwanted(&mut refusals, read(900)).is_empty());
        assert!(!refusals.has(1, (LaneId(0), 0)) && refusals.has(1, (LaneId(0), 1)), "asked again");
        refusals.read(LaneId(0), 1..3, read(10));
        assert!(refusals.take_look() && !refusals.take_look());
        assert_eq!(unwanted(&mut refusals, read(110)), [0; 0]);
        assert_eq!(unwanted(&mut refusals, read(111)), [1, 2]);
        assert!(unwanted(&mut refusals, read(111)).is_empty(), "somebody has them");
        refusals.let_go(0);
        assert_eq!(unwanted(&mut refusals, Progress { records: 11, bytes: 5_101 }), [1, 2], "bytes count as well");
    }
}
