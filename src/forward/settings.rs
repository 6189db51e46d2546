//! What a forwarder is told: at its start, while it runs, and about its link.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::escape::LinkConfig;
use crate::hub::{QUARANTINE_BYTES, Set};
use crate::outbox::{DestinationId, LaneId};
use crate::resource::{DrainSpec, RouteSpec, UpstreamSpec};

/// How long a link that stands again waits for the notice that goes first.
pub const NOTICE_WAIT: Duration = Duration::from_secs(2);

/// Settings of a forwarder.
#[derive(Debug, Clone)]
pub struct ForwarderConfig {
    /// The upstream's component name.
    pub name: String,
    /// Routes that lead to it.
    pub routes: Vec<RouteSpec>,
    /// Its destination, bound in the hub already.
    pub destination: DestinationId,
    /// Limits while a backlog is drained.
    pub drain: DrainSpec,
    /// A publish that is unanswered for longer breaks the link.
    pub stall: Duration,
    /// An answer that takes longer makes the window smaller.
    pub slow: Duration,
    /// Bytes refused without a record taken between them, after which the link is fenced: a peer that refuses everything must not push out
    /// of the quarantine what was set aside first. Each attempt after that sets one record aside.
    pub poison_bytes: u64,
    /// Most publishes on their way; the peer's own maximum lowers it. At least 1.
    pub window: u16,
    /// Back-off and stability.
    pub link: LinkConfig,
    /// Seed of the jitter; `None` draws one.
    pub seed: Option<u64>,
    /// Lanes that another upstream may take over; most often none.
    pub lends: Vec<LaneId>,
    /// Primaries whose lanes this upstream takes over when it is told to; at most 32.
    pub stands_in_for: Vec<StandIn>,
    /// Sets that it is a member of.
    pub sets: Vec<SetShare>,
}

/// An upstream's part in a set: of what is stored for the set, each record is done when one member has it.
#[derive(Debug, Clone)]
pub struct SetShare {
    /// Name of the set.
    pub name: String,
    /// The set, which its members share.
    pub set: Set,
    /// Which of its members this one is.
    pub member: usize,
    /// Routes that lead to the set: topics are the same at each member.
    pub routes: Vec<RouteSpec>,
}

/// What a secondary upstream takes over of a primary.
#[derive(Debug, Clone)]
pub struct StandIn {
    /// The primary's component name.
    pub name: String,
    /// Its destination.
    pub destination: DestinationId,
    /// Routes that lead to it: topics at the secondary are the same.
    pub routes: Vec<RouteSpec>,
    /// The lanes.
    pub lanes: Vec<LaneId>,
}

impl ForwarderConfig {
    /// No routes, no drain limits, 20 s stall, 1.5 s are slow, half the quarantine is poison, window 512: past that the measured cost per
    /// message hardly falls, and a loss repeats at most that many.
    #[must_use]
    pub fn new(name: impl Into<String>, destination: DestinationId) -> Self {
        let settings = ForwarderSettings::of(None);
        Self {
            name: name.into(),
            routes: Vec::new(),
            destination,
            drain: settings.drain,
            stall: settings.stall,
            slow: settings.slow,
            poison_bytes: QUARANTINE_BYTES / 2,
            window: 512,
            link: LinkConfig::default(),
            seed: None,
            lends: Vec::new(),
            stands_in_for: Vec::new(),
            sets: Vec::new(),
        }
    }
}

/// What may change while a forwarder runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwarderSettings {
    /// Routes by the upstream, or set, that records were accepted for: its own, those of primaries that it stands in for, and of its sets.
    pub routes: Vec<(String, Vec<RouteSpec>)>,
    /// Limits while a backlog is drained.
    pub drain: DrainSpec,
    /// A publish that is unanswered for longer breaks the link.
    pub stall: Duration,
    /// An answer that takes longer makes the window smaller.
    pub slow: Duration,
    /// How long a link must have stood to be stable.
    pub heal: Duration,
}

impl ForwarderSettings {
    /// As the policy says of the upstream; no routes, no drain limits.
    #[must_use]
    pub fn of(policy: Option<&UpstreamSpec>) -> Self {
        let default = ForwarderSettings {
            routes: Vec::new(),
            drain: DrainSpec::default(),
            stall: UpstreamSpec::STALL,
            slow: UpstreamSpec::SLOW,
            heal: UpstreamSpec::HEAL,
        };
        policy.map_or(default.clone(), |p| Self { stall: p.stall, slow: p.slow, heal: p.heal, ..default })
    }
}

/// Gives a forwarder other settings; it takes them at its next turn, without touching the connection.
#[derive(Debug, Clone)]
pub struct ForwarderControl {
    pub(super) settings: Arc<Mutex<Option<ForwarderSettings>>>,
    pub(super) orders: watch::Sender<LinkOrders>,
}

impl ForwarderControl {
    /// From the next turn on.
    pub fn set(&self, settings: ForwarderSettings) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
        // Wakes it.
        self.orders.send_modify(|_| {});
    }
}

/// What others ask of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkOrders {
    /// Keep it closed; records go on to be stored.
    pub closed: bool,
    /// Once the peer takes records, a notice will be stored that goes before the backlog: wait for it, [`NOTICE_WAIT`] at most.
    pub notice_follows: bool,
    /// Leave the lanes that may be lent to another upstream.
    pub lent: bool,
    /// Take over the lanes of these primaries (bit by place in [`ForwarderConfig::stands_in_for`]).
    pub borrow: u32,
    /// Send strict lanes alone: what else waits goes on waiting.
    pub strict_only: bool,
}
