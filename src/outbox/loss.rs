//! What a destination lost, for those who tell it: ranges of one reason are merged until they are taken.

use std::collections::{BTreeMap, BTreeSet};

use super::DestinationId;
use crate::time::Timestamp;

/// Why records did not reach their destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LossReason {
    /// They outlived their lifetime.
    Expired,
    /// The lane was full and gave its oldest up.
    Quota,
    /// The lane was full and did not store them.
    Newest,
    /// The destination refused them for good.
    Refused,
    /// Their file is damaged.
    Damaged,
    /// The lane was full and merged them into others.
    Aggregated,
}

impl LossReason {
    /// The word in tombstones.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Quota => "quota",
            Self::Newest => "dropped-newest",
            Self::Refused => "refused",
            Self::Damaged => "damaged",
            Self::Aggregated => "aggregated",
        }
    }
}

/// Records of one reason. The ranges say between which records and times they lie; others may lie between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// How many.
    pub count: u64,
    /// First and last sequence of the range.
    pub sequences: (u64, u64),
    /// Between when they were accepted (of refused ones: when they were refused).
    pub times: (Timestamp, Timestamp),
}

impl Loss {
    /// One record.
    pub(super) fn one(sequence: u64, at: Timestamp) -> Self {
        Self { count: 1, sequences: (sequence, sequence), times: (at, at) }
    }

    /// Adds another range of the same reason.
    pub fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.sequences = (self.sequences.0.min(other.sequences.0), self.sequences.1.max(other.sequences.1));
        self.times = (self.times.0.min(other.times.0), self.times.1.max(other.times.1));
    }
}

/// The losses of one lane, of the destinations that somebody tells them.
#[derive(Debug, Default)]
pub(super) struct Losses {
    watched: BTreeSet<DestinationId>,
    noted: BTreeMap<(DestinationId, LossReason), Loss>,
}

impl Losses {
    pub(super) fn watch(&mut self, destination: DestinationId) {
        self.watched.insert(destination);
    }

    pub(super) fn note(&mut self, destination: DestinationId, reason: LossReason, loss: Loss) {
        if loss.count > 0 && self.watched.contains(&destination) {
            self.noted.entry((destination, reason)).and_modify(|l| l.merge(loss)).or_insert(loss);
        }
    }

    /// What was found before anybody could say that they tell it.
    pub(super) fn note_at_opening(&mut self, destination: DestinationId, reason: LossReason, loss: Loss) {
        self.noted.entry((destination, reason)).and_modify(|l| l.merge(loss)).or_insert(loss);
    }

    pub(super) fn take(&mut self, destination: DestinationId) -> Vec<(LossReason, Loss)> {
        let mut taken = Vec::new();
        self.noted.retain(|(d, reason), loss| {
            if *d == destination {
                taken.push((*reason, *loss));
            }
            *d != destination
        });
        taken
    }
}
