//! The books: what became of the records of each lane and destination, and what the store has written.

use std::sync::atomic::{AtomicU64, Ordering};

use super::lane::{Lane, Place};
use super::{Bound, DestinationId, Unpassed};

/// One line of the books.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerRow {
    /// Lane.
    pub lane: String,
    /// Destination.
    pub destination: String,
    /// Records accepted for it.
    pub accepted: u64,
    /// Acknowledged by it.
    pub delivered: u64,
    /// Outlived.
    pub expired: u64,
    /// Given up: by quota, by refusal of the peer, by corruption.
    pub evicted: u64,
    /// Merged into others.
    pub aggregated: u64,
    /// Waiting.
    pub queued: u64,
}

/// Why a lane does not take a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is at its quota.
    Full,
    /// It is at a bound below its quota.
    Held,
    /// It takes nothing for now.
    Shut,
    /// The record would not fit a segment.
    TooLarge,
    /// The disk cannot be written, or there is no key to seal with.
    Failed,
    /// Of a lane that stores nothing: the link of an upstream does not take records.
    Link,
    /// The same: the link broke with the record on its way, or its peer said "not now".
    Withdrawn,
    /// The same: the upstreams have not answered in time.
    Late,
    /// The same: an upstream refused it for good.
    Peer,
}

impl Refusal {
    /// All of them, in the order of [`LaneStatus::refused`].
    pub const ALL: [Self; 9] =
        [Self::Full, Self::Held, Self::Shut, Self::TooLarge, Self::Failed, Self::Link, Self::Withdrawn, Self::Late, Self::Peer];

    /// What a record of a lane that stores nothing is counted as.
    pub(super) fn of(why: &Unpassed) -> Self {
        match why {
            Unpassed::Link | Unpassed::Behind => Self::Link,
            Unpassed::Full { .. } => Self::Full,
            Unpassed::Broken | Unpassed::Busy => Self::Withdrawn,
            Unpassed::Late(_) => Self::Late,
            Unpassed::Refused(_) => Self::Peer,
        }
    }

    /// The metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Held => "held",
            Self::Shut => "shut",
            Self::TooLarge => "too-large",
            Self::Failed => "failed",
            Self::Link => "link",
            Self::Withdrawn => "withdrawn",
            Self::Late => "late",
            Self::Peer => "peer",
        }
    }
}

/// A lane as operators see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneStatus {
    /// Name.
    pub lane: String,
    /// Bytes on disk, preallocation included.
    pub disk_bytes: u64,
    /// Its quota.
    pub quota_bytes: u64,
    /// Segments.
    pub segments: usize,
    /// Records accepted, the last sequence.
    pub last_sequence: u64,
    /// Payload bytes accepted since start.
    pub accepted_bytes: u64,
    /// Bytes of records that wait in memory.
    pub held_bytes: u64,
    /// Whether it stores nothing ([`Durability::Passthrough`](super::Durability::Passthrough)).
    pub passthrough: bool,
    /// Records of such a lane that are on their way to its upstreams.
    pub passing: u64,
    /// Of a lane with [`spill_after`](super::LaneConfig::spill_after): bytes of records, with overhead, that were written after all, since start.
    pub spilled_bytes: u64,
    /// The same of records that all had before they were written.
    pub spared_bytes: u64,
    /// What bounds it beside its quota.
    pub bound: Bound,
    /// Records refused since start, by [`Refusal::ALL`]. One that has to wait for the disk is not refused.
    pub refused: [u64; Refusal::ALL.len()],
    /// Stretches that are read or finished out of order, of all destinations (`order: newest`).
    pub pieces: u64,
    /// Records lost to corruption.
    pub corrupt_records: u64,
    /// Segments that are sealed with a key that is not there: kept, and not sent.
    pub locked_segments: usize,
    /// Why it takes nothing, if so.
    pub failure: Option<String>,
}

/// Counts since start.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(super) bytes_written: AtomicU64,
    pub(super) flash_bytes: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) sync_failures: AtomicU64,
    pub(super) compactions: AtomicU64,
    pub(super) bytes_saved: AtomicU64,
    pub(super) aggregated: AtomicU64,
}

impl Stats {
    /// Bytes were written, for which the disk writes so many in whole blocks.
    pub(crate) fn wrote(&self, bytes: u64, in_blocks: u64) {
        self.bytes_written.fetch_add(bytes, Ordering::Relaxed);
        self.flash_bytes.fetch_add(in_blocks, Ordering::Relaxed);
    }

    /// A segment was compacted.
    pub(crate) fn compacted(&self, saved: u64, aggregated: u64) {
        self.compactions.fetch_add(1, Ordering::Relaxed);
        self.bytes_saved.fetch_add(saved, Ordering::Relaxed);
        self.aggregated.fetch_add(aggregated, Ordering::Relaxed);
    }
}

/// What the store has written since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteCounts {
    /// Bytes of segments, their headers and cursors.
    pub bytes: u64,
    /// The same in whole blocks of 4 KiB, as often as each is written, with the names of files: what the medium wears by. The file
    /// system's own journal is not in it.
    pub flash_bytes: u64,
    /// Syncs of segments.
    pub syncs: u64,
    /// Syncs that failed.
    pub failed_syncs: u64,
}

/// A line of the books.
pub(super) fn row(lane: &Lane, id: DestinationId, name: &str) -> LedgerRow {
    let empty = Place::default();
    let place = lane.places.get(&id).unwrap_or(&empty);
    LedgerRow {
        lane: lane.config.name.clone(),
        destination: name.to_owned(),
        accepted: place.accepted + place.dropped + place.passed,
        delivered: place.cursor.delivered + place.passed,
        expired: place.cursor.expired,
        evicted: place.cursor.evicted + place.dropped,
        aggregated: place.cursor.aggregated,
        queued: lane.queued(id),
    }
}
