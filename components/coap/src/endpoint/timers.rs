//! What has to happen when.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use selvedge::time::Monotonic;

use super::RequestId;

/// Something that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    /// The confirmable message in flight to this peer has not been acknowledged.
    Retransmit(SocketAddr),
    /// The request has waited for its answer for PROCESSING_DELAY.
    Acknowledge(RequestId),
    /// Look for peers that may be forgotten.
    Sweep,
}

/// Names a timer, so that it can be cancelled.
pub(super) type TimerKey = (Monotonic, u64);

/// Timers in order. Their number is bounded by what they belong to: one per peer, one per waiting request, one sweep.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeMap<TimerKey, Timer>,
    next: u64,
}

impl Timers {
    pub fn set(&mut self, at: Monotonic, timer: Timer) -> TimerKey {
        self.next += 1;
        self.due.insert((at, self.next), timer);
        (at, self.next)
    }

    pub fn cancel(&mut self, key: TimerKey) {
        self.due.remove(&key);
    }

    pub fn next(&self) -> Option<Monotonic> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    pub fn pop_due(&mut self, now: Monotonic) -> Option<Timer> {
        let entry = self.due.first_entry().filter(|e| e.key().0 <= now)?;
        Some(entry.remove())
    }
}
