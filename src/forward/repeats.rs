//! What was sent and never answered: when it is sent again it may have arrived before.

use std::collections::BTreeSet;

use super::feed::Origin;
use crate::outbox::LaneId;

/// Records that were on their way when a connection ended: what is sent newest first may wait for long until it is sent again. Past the bound
/// the oldest is forgotten, and then sent without the mark, as a new one; receivers that tell records by their ids lose nothing by it.
#[derive(Debug)]
pub(super) struct Repeats {
    known: BTreeSet<(u8, LaneId, u64)>,
    most: usize,
}

impl Repeats {
    /// At most so many.
    pub(super) fn new(most: usize) -> Self {
        Self { known: BTreeSet::new(), most }
    }

    /// It was sent, and will be sent again.
    pub(super) fn note(&mut self, origin: Origin, sequence: u64) {
        self.known.insert((origin.source, origin.lane, sequence));
        if self.known.len() > self.most {
            self.known.pop_first();
        }
    }

    /// It is sent now; tells whether it was before.
    pub(super) fn take(&mut self, origin: Origin, sequence: u64) -> bool {
        !self.known.is_empty() && self.known.remove(&(origin.source, origin.lane, sequence))
    }

    /// What is given back is sent by another upstream.
    pub(super) fn forget(&mut self, source: u8) {
        self.known.retain(|(of, _, _)| *of != source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_and_the_oldest_are_forgotten_first() {
        let origin = |source| Origin { source, lane: LaneId(3) };
        let mut repeats = Repeats::new(3);
        (1..=4).for_each(|n| repeats.note(origin(0), n));
        assert_eq!((1..=4).map(|n| repeats.take(origin(0), n)).collect::<Vec<_>>(), [false, true, true, true]);
        assert!(!repeats.take(origin(0), 4));
        repeats.note(origin(1), 1);
        assert!(!repeats.take(origin(0), 1));
        repeats.forget(1);
        assert!(!repeats.take(origin(1), 1));
    }
}
