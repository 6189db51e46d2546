//! Records that the cursor file proves to have been stored and that stand in no file any more: a segment that a file system check or a
//! hand took, or that lost its end. They are lost, and the books say so: not delivered, and not as if they had never been taken.

use super::DestinationId;
use super::cursor::{Cursor, End};
use super::files::Stood;
use super::lane::{Lane, Place};
use super::loss::{Loss, LossReason};
use crate::time::Timestamp;

/// Records of a lane that were stored and stand in no file, found when the store was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vanished {
    /// Lane.
    pub lane: String,
    /// First and last sequence of the range. Records in it that were finished before are not lost.
    pub sequences: (u64, u64),
    /// How many of them the destination loses that loses most.
    pub records: u64,
}

/// What is known of a lane when its segments have been found, and what of it is missing.
pub(super) struct Missing {
    lane: String,
    front: Option<Vanished>,
    end: Option<Vanished>,
    noted: Vec<(DestinationId, Loss)>,
}

fn widen(known: &mut Option<Vanished>, lane: &str, loss: &Loss) {
    let found = known.get_or_insert_with(|| Vanished { lane: lane.to_owned(), sequences: loss.sequences, records: 0 });
    found.sequences = (found.sequences.0.min(loss.sequences.0), found.sequences.1.max(loss.sequences.1));
    found.records = found.records.max(loss.count);
}

impl Missing {
    pub fn new(lane: &str) -> Self {
        Self { lane: lane.to_owned(), front: None, end: None, noted: Vec::new() }
    }

    /// The first segment that stands begins at `base`, before which `accepted` records of the destination were stored. Cursors are
    /// saved before a segment is unlinked, so with a page that can be trusted (`how` is evicted) what it does not know as finished is lost.
    pub fn before(&mut self, id: DestinationId, cursor: &mut Cursor, base: u64, accepted: u64, how: End, at: Timestamp) {
        let from = cursor.low();
        let count = cursor.drop_before(base, accepted, how);
        if count > 0 && how == End::Evicted {
            let loss = Loss { count, sequences: (from, base - 1), times: (at, at) };
            widen(&mut self.front, &self.lane, &loss);
            self.noted.push((id, loss));
        }
    }

    /// The files end at `tail`, and everything before `stood.through` was synced once.
    pub fn behind(&mut self, id: DestinationId, place: &mut Place, stood: &Stood, tail: u64, at: Timestamp) {
        let accepted = stood.accepted.iter().find(|(d, _)| *d == id.0).map_or(0, |(_, n)| *n);
        let known = place.accepted.saturating_sub(place.cursor.finished_in(stood.through, u64::MAX));
        let count = accepted.saturating_sub(known);
        let from = tail.max(place.cursor.low());
        if count == 0 || from >= stood.through {
            return;
        }
        // Ahead of the position, like what was finished in memory: the files do not know it, the books do.
        place.cursor.finish_in(from, count, End::Evicted);
        place.accepted += count;
        let loss = Loss { count, sequences: (from, stood.through - 1), times: (at, at) };
        widen(&mut self.end, &self.lane, &loss);
        self.noted.push((id, loss));
    }

    /// Notes what is missing in the lane, for those who tell it; gives the ranges.
    pub fn note(self, lane: &mut Lane) -> impl Iterator<Item = Vanished> + use<> {
        for (id, loss) in self.noted {
            lane.losses.note_at_opening(id, LossReason::Damaged, loss);
            lane.corrupt_records += loss.count;
        }
        self.front.into_iter().chain(self.end)
    }
}

/// How records before the first segment ended that the cursor page does not know as finished. Before a segment that begins after a gap
/// (`fresh`) all were finished in memory, and a page that is not the latest does not know what was unlinked since: these count as
/// delivered.
pub(super) fn before_first(fresh: bool, latest_page: bool) -> End {
    if latest_page && !fresh { End::Evicted } else { End::Delivered }
}

/// What the cursor file says of the files of a lane that syncs. In a `memory` lane a power cut may take records, and nobody was
/// promised otherwise; a lane that stores nothing has none.
pub(super) fn stood(lane: &Lane) -> Option<Stood> {
    lane.config.durability.syncs().then(|| Stood {
        lane: lane.config.name.clone(),
        through: lane.settled,
        accepted: lane.settled_accepted.iter().filter(|(d, n)| **n > 0 && lane.places.contains_key(d)).map(|(d, n)| (d.0, *n)).collect(),
    })
}
