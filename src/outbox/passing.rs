//! What a `passthrough` lane has on its way: records that are in memory alone, until all their upstreams have acknowledged them or their
//! senders are refused (decision record 0018). Pure bookkeeping, no IO.

use std::collections::BTreeMap;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::{DestinationId, LaneId, RecordId};
use crate::time::Monotonic;

/// What a record takes in memory beside its encoded bytes, about: bounds how many small ones there are.
const ENTRY_BYTES: usize = 256;

/// Why a record of a `passthrough` lane did not get to its upstreams.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unpassed {
    /// The link of an upstream does not take records at present.
    #[error("the link of an upstream is not up")]
    Link,
    /// Its upstream still has records to get that the lane stored under other settings: they go first.
    #[error("an upstream has not got all yet that the lane stored before")]
    Behind,
    /// The lane's bound is reached: so much is on its way.
    #[error("{bytes} of {quota_bytes} bytes are on their way")]
    Full {
        /// Bytes in memory, with overhead.
        bytes: u64,
        /// The lane's quota.
        quota_bytes: u64,
    },
    /// The link broke, or was closed, with the record on its way. The upstream may have it.
    #[error("the link of an upstream broke with the record on its way; it may have arrived")]
    Broken,
    /// The upstream said "not now".
    #[error("an upstream takes nothing for now")]
    Busy,
    /// The upstreams did not all answer within the lane's time. They may have it.
    #[error("an upstream has not answered within {} s; the record may have arrived", .0.as_secs_f64())]
    Late(Duration),
    /// An upstream refuses it for good.
    #[error("an upstream refuses it: {0}")]
    Refused(String),
}

impl Unpassed {
    /// Whether another attempt may work.
    #[must_use]
    pub fn may_be_repeated(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

/// What the sender of one record waits for.
#[derive(Debug)]
#[must_use = "the sender may be answered only when it has been settled"]
pub struct Ticket {
    /// The record's id.
    pub id: RecordId,
    pub(super) answer: oneshot::Receiver<Result<(), Unpassed>>,
    /// When waiting ends.
    pub(super) until: tokio::time::Instant,
}

impl Ticket {
    /// The lane of the record.
    #[must_use]
    pub fn lane(&self) -> LaneId {
        self.id.lane
    }
}

/// A record on its way.
struct Entry {
    /// As a segment would have it.
    frame: Box<[u8]>,
    payload_bytes: usize,
    destinations: SmallVec<[DestinationId; 2]>,
    /// Those that have not acknowledged it.
    waits: SmallVec<[DestinationId; 2]>,
    since: Monotonic,
    answer: oneshot::Sender<Result<(), Unpassed>>,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.frame.len() + ENTRY_BYTES
    }
}

/// How an upstream takes the lane's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flow {
    /// As they come.
    Open,
    /// No more; what is on its way is waited for, and what has not been sent is withdrawn.
    Closing(Unpassed),
    /// Not at all: everything is withdrawn.
    Shut(Unpassed),
}

/// What is known of an upstream.
#[derive(Default)]
struct Link {
    open: bool,
    /// One past the last record that its reader was given.
    next: u64,
    /// Records that it has not acknowledged.
    waiting: u64,
}

/// A record that all its upstreams have.
pub(super) struct Passed {
    pub destinations: SmallVec<[DestinationId; 2]>,
    pub payload_bytes: usize,
    pub(super) answer: oneshot::Sender<Result<(), Unpassed>>,
}

impl Passed {
    /// Tells the sender. A sender that has gone away is told nothing.
    pub fn tell(self) {
        let _ = self.answer.send(Ok(()));
    }
}

/// The records of one lane.
#[derive(Default)]
pub(super) struct Passing {
    entries: BTreeMap<u64, Entry>,
    links: BTreeMap<DestinationId, Link>,
    next_sequence: u64,
    bytes: usize,
}

impl Passing {
    /// With this as the first sequence.
    pub fn new(next_sequence: u64) -> Self {
        Self { next_sequence, ..Self::default() }
    }

    /// Records on their way.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes that they take in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the links of all these upstreams are open.
    pub fn is_open(&self, destinations: &[DestinationId]) -> bool {
        destinations.iter().all(|d| self.links.get(d).is_some_and(|link| link.open))
    }

    /// Takes a record, unless it would pass the quota. `frame` makes its bytes for the sequence it gets.
    pub fn add(
        &mut self,
        destinations: &[DestinationId],
        payload_bytes: usize,
        quota_bytes: u64,
        now: Monotonic,
        frame: impl FnOnce(u64) -> Vec<u8>,
    ) -> Result<(u64, oneshot::Receiver<Result<(), Unpassed>>), Unpassed> {
        let frame = frame(self.next_sequence).into_boxed_slice();
        if (self.bytes + frame.len() + ENTRY_BYTES) as u64 > quota_bytes {
            return Err(Unpassed::Full { bytes: self.bytes as u64, quota_bytes });
        }
        let (answer, receiver) = oneshot::channel();
        let destinations: SmallVec<[DestinationId; 2]> = destinations.into();
        let entry = Entry { frame, payload_bytes, waits: destinations.clone(), destinations, since: now, answer };
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.bytes += entry.bytes();
        for destination in &entry.waits {
            self.links.entry(*destination).or_default().waiting += 1;
        }
        self.entries.insert(sequence, entry);
        Ok((sequence, receiver))
    }

    fn remove(&mut self, sequence: u64) -> Option<Entry> {
        let entry = self.entries.remove(&sequence)?;
        self.bytes -= entry.bytes();
        for destination in &entry.waits {
            self.no_longer_waits(*destination);
        }
        Some(entry)
    }

    fn no_longer_waits(&mut self, destination: DestinationId) {
        if let Some(link) = self.links.get_mut(&destination) {
            link.waiting = link.waiting.saturating_sub(1);
        }
    }

    /// Takes a record back and refuses its sender. False when it is not there any more.
    pub fn withdraw(&mut self, sequence: u64, why: Unpassed) -> bool {
        let entry = self.remove(sequence);
        let found = entry.is_some();
        if let Some(entry) = entry {
            let _ = entry.answer.send(Err(why));
        }
        found
    }

    /// Takes back what has been on its way for longer than `limit`. Returns how many.
    pub fn expire(&mut self, now: Monotonic, limit: Duration) -> u64 {
        let mut count = 0;
        while let Some((sequence, _)) = self.entries.first_key_value().filter(|(_, e)| now.since(e.since) > limit) {
            let sequence = *sequence;
            count += u64::from(self.withdraw(sequence, Unpassed::Late(limit)));
        }
        count
    }

    /// How an upstream takes records from now on. Returns how many senders were refused by it.
    pub fn flow(&mut self, destination: DestinationId, flow: &Flow) -> u64 {
        let (all, why) = match flow {
            Flow::Open => {
                self.links.entry(destination).or_default().open = true;
                return 0;
            }
            Flow::Closing(why) => (false, why),
            Flow::Shut(why) => (true, why),
        };
        // Most destinations never are links.
        let Some(link) = self.links.get_mut(&destination) else { return 0 };
        link.open = false;
        if link.waiting == 0 {
            return 0;
        }
        let from = if all { 0 } else { link.next };
        let all: Vec<u64> = self.entries.range(from..).filter(|(_, e)| e.waits.contains(&destination)).map(|(s, _)| *s).collect();
        all.into_iter().filter(|sequence| self.withdraw(*sequence, why.clone())).count() as u64
    }

    /// Records that wait for an upstream, on the link or before it.
    pub fn waiting(&self, destination: DestinationId) -> u64 {
        self.links.get(&destination).map_or(0, |link| link.waiting)
    }

    /// Gives the next records for an upstream, in order, to `take`, until it wants no more.
    pub fn read(&mut self, destination: DestinationId, mut take: impl FnMut(&[u8]) -> bool) {
        let Some(link) = self.links.get_mut(&destination) else { return };
        for (sequence, entry) in self.entries.range(link.next..) {
            if entry.waits.contains(&destination) && !take(&entry.frame) {
                link.next = *sequence;
                return;
            }
        }
        link.next = self.next_sequence;
    }

    /// An upstream has acknowledged a record that it was given; gives it when it was the last one that had to.
    pub fn acknowledge(&mut self, destination: DestinationId, sequence: u64) -> Option<Passed> {
        let given = self.links.get(&destination).is_some_and(|link| sequence < link.next);
        let entry = self.entries.get_mut(&sequence).filter(|_| given)?;
        let waited = entry.waits.len();
        entry.waits.retain(|d| *d != destination);
        let (left, acknowledged) = (entry.waits.len(), entry.waits.len() < waited);
        if acknowledged {
            self.no_longer_waits(destination);
        }
        if left > 0 {
            return None;
        }
        let entry = self.remove(sequence)?;
        Some(Passed { destinations: entry.destinations, payload_bytes: entry.payload_bytes, answer: entry.answer })
    }
}
