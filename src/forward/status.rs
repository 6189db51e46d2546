//! What a forwarder tells about itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use tokio::sync::watch;

use crate::component::{LinkCause, Traffic};
use crate::escape::LinkState;
use crate::time::Timestamp;

/// A forwarder as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwarderSnapshot {
    /// The upstream's component name.
    pub upstream: String,
    /// State of its link.
    pub state: LinkState,
    /// Wall-clock time at which the state was entered.
    pub since: Timestamp,
    /// Records that were there before the link stood have not all gone.
    pub behind: bool,
    /// Why the link is not up.
    pub cause: Option<LinkCause>,
    /// The cause in words: the peer's name and what it said; empty when there is none.
    pub detail: String,
    /// Records handed to the connection since start, repeats included.
    pub sent: u64,
    /// Records that the peer took since start.
    pub acknowledged: u64,
    /// Records that the peer refused for good since start.
    pub refused: u64,
    /// Records that wait for the peer, those in flight included; at most a quarter of a second old.
    pub queued: u64,
    /// Connections opened since start.
    pub connects: u64,
}

#[derive(Debug, Clone)]
pub(super) struct LinkView {
    pub(super) state: LinkState,
    pub(super) since: Timestamp,
    pub(super) cause: Option<LinkCause>,
    pub(super) detail: String,
    pub(super) behind: bool,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) sent: AtomicU64,
    pub(super) acknowledged: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) queued: AtomicU64,
    pub(super) connects: AtomicU64,
    pub(super) bytes_sent: AtomicU64,
    pub(super) bytes_received: AtomicU64,
    /// Which sources it has: bit 0 its own lanes that may be lent, the others those of primaries.
    handed: AtomicU32,
    notices_refused: AtomicBool,
    /// Strict lanes alone are sent.
    paused: AtomicBool,
}

/// A cheap handle to a forwarder's status; outlives the forwarder.
#[derive(Debug, Clone)]
pub struct ForwarderStatus {
    upstream: Arc<str>,
    pub(super) counts: Arc<Counts>,
    link: watch::Receiver<LinkView>,
}

impl ForwarderStatus {
    pub(super) fn new(upstream: &str, now: Timestamp) -> (Self, watch::Sender<LinkView>) {
        let (sender, link) = watch::channel(LinkView { state: LinkState::Down, since: now, cause: None, detail: String::new(), behind: true });
        let this = Self { upstream: upstream.into(), counts: Arc::default(), link };
        this.set_handed(0, true);
        (this, sender)
    }

    /// The upstream's component name.
    #[must_use]
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// The status now.
    #[must_use]
    pub fn snapshot(&self) -> ForwarderSnapshot {
        let link = self.link.borrow().clone();
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        ForwarderSnapshot {
            upstream: self.upstream.to_string(),
            state: link.state,
            since: link.since,
            behind: link.behind,
            cause: link.cause,
            detail: link.detail,
            sent: read(&self.counts.sent),
            acknowledged: read(&self.counts.acknowledged),
            refused: read(&self.counts.refused),
            queued: read(&self.counts.queued),
            connects: read(&self.counts.connects),
        }
    }

    /// Whether the peer takes the node's own notices; not known to be so until it has refused one.
    #[must_use]
    pub fn takes_notices(&self) -> bool {
        !self.counts.notices_refused.load(Ordering::Relaxed)
    }

    pub(super) fn refuse_notices(&self) {
        self.counts.notices_refused.store(true, Ordering::Relaxed);
    }

    /// Whether it has the lanes of this number: 0 for its own that may be lent, `n + 1` for those of the primary `n` it may stand in for.
    #[must_use]
    pub fn handed(&self, number: usize) -> bool {
        self.counts.handed.load(Ordering::Acquire) & (1 << number) != 0
    }

    pub(super) fn set_handed(&self, number: usize, has: bool) {
        if has {
            self.counts.handed.fetch_or(1 << number, Ordering::AcqRel);
        } else {
            self.counts.handed.fetch_and(!(1 << number), Ordering::AcqRel);
        }
    }

    /// Bytes sent and received since start, with what the protocols add; at most a quarter of a second old.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        Traffic { sent: self.counts.bytes_sent.load(Ordering::Relaxed), received: self.counts.bytes_received.load(Ordering::Relaxed) }
    }

    /// Both together.
    #[must_use]
    pub fn traffic_bytes(&self) -> u64 {
        let Traffic { sent, received } = self.traffic();
        sent.saturating_add(received)
    }

    /// State of the link alone.
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.link.borrow().state
    }

    /// Whether all lanes but the strict ones wait, since the budget of the upstream is used up.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.counts.paused.load(Ordering::Relaxed)
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.counts.paused.store(paused, Ordering::Relaxed);
    }

    /// Whether a message that is accepted now has to wait: the link does not send as messages come.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.link.borrow().behind || self.is_paused()
    }

    /// Resolves when the link's state or cause has changed since the last call on this handle. `false` when the forwarder has ended.
    pub async fn changed(&mut self) -> bool {
        self.link.changed().await.is_ok()
    }
}
