//! What is asked of the store and of its lanes.

use std::path::PathBuf;
use std::time::Duration;

use super::AtRest;

/// How safe a record is when its sender is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// In this process's memory; written to disk without waiting for it, or only when its destinations have not taken it within
    /// [`LaneConfig::spill_after`]. A `kill -9` can lose what was accepted in that time (without it, the last milliseconds) and not
    /// delivered.
    Memory,
    /// On disk, at most this long after it was accepted; one sync serves everyone who came meanwhile.
    Batched(Duration),
    /// On disk, as soon as the disk can.
    Fsync,
    /// With its upstreams: all of them have acknowledged it. Nothing is stored; who wants it on the box is served from another lane.
    Passthrough,
}

impl Durability {
    /// Whether a lane that is of one may become of the other while it runs: senders wait for the same kind of thing.
    #[must_use]
    pub fn waits_as(self, other: Self) -> bool {
        let kind = |d| match d {
            Self::Memory => 0,
            Self::Batched(_) | Self::Fsync => 1,
            Self::Passthrough => 2,
        };
        kind(self) == kind(other)
    }
}

/// What happens to a record that would pass the lane's quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// Its sender is refused.
    Reject,
    /// The oldest segment is given up for it.
    DropOldest,
    /// It is accepted and dropped.
    DropNewest,
    /// Of records of the same topic only the newest are kept; when that is not enough, as `DropOldest` (decision record 0009).
    KeepLatest,
    /// Numbers of a topic are reduced in windows, longer ones for what is older; when that is not enough, as `DropOldest`.
    Downsample(Windows),
}

impl WhenFull {
    /// Whether the oldest segment is given up when nothing else helps.
    pub(crate) fn gives_up_oldest(self) -> bool {
        matches!(self, Self::DropOldest | Self::KeepLatest | Self::Downsample(_))
    }

    /// Whether segments are compacted before that.
    pub(crate) fn compacts(self) -> bool {
        matches!(self, Self::KeepLatest | Self::Downsample(_))
    }
}

/// Windows of downsampling, one to four, each longer than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    seconds: [u32; 4],
    count: u8,
}

impl Windows {
    /// Windows of these lengths: whole seconds, one second to 366 days, increasing. None when they are not.
    #[must_use]
    pub fn new(lengths: &[Duration]) -> Option<Self> {
        let mut windows = Self { seconds: [0; 4], count: u8::try_from(lengths.len()).ok().filter(|n| (1..=4).contains(n))? };
        let mut before = 0;
        for (slot, length) in windows.seconds.iter_mut().zip(lengths) {
            let seconds = u32::try_from(length.as_secs()).ok().filter(|s| *s > before && *s <= 366 * 86_400 && length.subsec_nanos() == 0)?;
            *slot = seconds;
            before = seconds;
        }
        Some(windows)
    }

    /// Seconds of each window.
    pub(crate) fn seconds(&self) -> &[u32] {
        &self.seconds[..usize::from(self.count)]
    }
}

/// What bounds a lane beside its quota. At the bound it does what it does at its quota ([`WhenFull`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Bound {
    /// Nothing.
    #[default]
    Quota,
    /// What it uses when the bound comes, or a quarter of its quota if that is more.
    Held,
    /// The disk is short: what it uses when the bound comes, or its floor if that is more.
    Short,
    /// It takes nothing.
    Shut,
}

/// What is sent first of what waits, when a link stands again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// What was accepted first. Order is kept.
    #[default]
    Oldest,
    /// What is accepted from then on, and what was accepted last, a segment at a time (decision record 0012).
    Newest,
}

/// One lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneConfig {
    /// Name, `[a-z0-9-]+`, also the name of its folder.
    pub name: String,
    /// How safe an answered record is.
    pub durability: Durability,
    /// Bytes on disk, all overhead included; at least [`MIN_QUOTA_BYTES`]. Of a [`Durability::Passthrough`] lane: bytes in memory that
    /// may be on their way.
    pub quota_bytes: u64,
    /// Longest life of a record.
    pub ttl: Option<Duration>,
    /// What happens at the quota.
    pub when_full: WhenFull,
    /// Bytes that the lane may use even while the disk is [short](Bound::Short).
    pub floor_bytes: u64,
    /// Of a [`Durability::Memory`] lane: how long a record waits in memory for its destinations before it is written; zero writes it
    /// without waiting. Ignored in other lanes.
    pub spill_after: Duration,
    /// What is sent first of what waits. [`Order::Newest`] compacts nothing, and keeps nothing out of the files:
    /// [`spill_after`](Self::spill_after) is zero.
    pub order: Order,
    /// Of a [`Durability::Passthrough`] lane: how long a sender waits for the upstreams' answers. Ignored in other lanes.
    pub answer_within: Duration,
}

/// How long the sender of a [`Durability::Passthrough`] lane waits for its answer unless said: as long as Dapr's MQTT component does.
pub const DEFAULT_ANSWER_WITHIN: Duration = Duration::from_secs(10);

impl LaneConfig {
    /// A lane of this name: `batched(20ms)`, 128 MiB, no lifetime, refuses when full, no floor, oldest first.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            durability: Durability::Batched(Duration::from_millis(20)),
            quota_bytes: 128 << 20,
            ttl: None,
            when_full: WhenFull::Reject,
            floor_bytes: 0,
            spill_after: Duration::ZERO,
            order: Order::Oldest,
            answer_within: DEFAULT_ANSWER_WITHIN,
        }
    }
}

/// Longest time that records wait for others to be written with them.
const LINGER: Duration = Duration::from_millis(5);
/// As long as no more bytes than this wait.
pub(super) const LINGER_BYTES: usize = 64 << 10;

impl Durability {
    /// How long records of such a lane may wait to be written. Readers see them meanwhile (ADR 0002).
    pub(crate) fn linger(self) -> Duration {
        match self {
            Self::Memory => Duration::from_millis(2),
            Self::Batched(longest) => (longest / 4).min(LINGER),
            Self::Fsync | Self::Passthrough => Duration::ZERO,
        }
    }

    /// Whether senders are answered only when their records are synced.
    pub(crate) fn syncs(self) -> bool {
        matches!(self, Self::Batched(_) | Self::Fsync)
    }
}

/// How long records of batched lanes wait for others at most while flash is scarce ([`spare_flash`](super::Outbox::spare_flash)).
pub const THRIFT_BATCH: Duration = Duration::from_secs(1);

/// Smallest quota of a lane.
pub const MIN_QUOTA_BYTES: u64 = 1 << 20;

/// The store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxConfig {
    /// Folder; made if need be. One process at a time.
    pub dir: PathBuf,
    /// The node's id, first part of every record id.
    pub node: String,
    /// Lanes.
    pub lanes: Vec<LaneConfig>,
    /// Size at which a segment is closed, 64 KiB to 64 MiB; an eighth of the quota at most. Larger records are refused.
    pub segment_bytes: u64,
    /// How often cursors are written when they have moved. Losing them repeats messages and nothing else.
    pub cursor_interval: Duration,
    /// What seals the records on the disk, and opens sealed ones.
    pub at_rest: AtRest,
}
