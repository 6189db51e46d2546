//! The state of one upstream's link: events in, actions out, time and random numbers handed in.
//!
//! ```text
//!            Connected, backlog            CanaryAcknowledged          CaughtUp
//!   down ----------------------> probing ---------------------> draining ------> up
//!    ^  \-- Connected, nothing to send ---------- Empty ------------------------> /
//!    +------------ Lost (any state), Stop <------------------------------------+
//! ```
//! A peer that says "not now" (quota, busy) takes the link back to probing without closing it.

use std::time::Duration;

use smallvec::SmallVec;

use super::backoff::{Backoff, BackoffConfig};
use crate::component::LinkCause;
use crate::time::Monotonic;

/// State of a link. More will follow (slow but usable, closed by an operator), so matches keep a last arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LinkState {
    /// Not connected.
    Down,
    /// Connected; one record is on its way to prove that the peer takes them.
    Probing,
    /// The backlog is being sent.
    Draining,
    /// Everything is sent as it comes.
    Up,
}

impl LinkState {
    /// The word used in metrics, logs and status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Probing => "probing",
            Self::Draining => "draining",
            Self::Up => "up",
        }
    }

    /// The number used in metrics: 0 is down, higher is better.
    #[must_use]
    pub fn level(self) -> i64 {
        match self {
            Self::Down => 0,
            Self::Probing => 1,
            Self::Draining => 2,
            Self::Up => 3,
        }
    }
}

/// What happened to the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkEvent {
    /// Begin. Also after [`LinkEvent::Stop`].
    Start,
    /// The peer accepted the connection. `backlog` says whether records wait.
    Connected {
        /// There is something to send.
        backlog: bool,
    },
    /// The connection could not be opened, or broke.
    Lost(LinkCause),
    /// The peer acknowledged a record.
    Acknowledged,
    /// The peer takes nothing for now; the connection stands.
    Busy,
    /// Everything stored has been handed to the connection.
    CaughtUp,
    /// Nothing waits and nothing is on its way.
    Empty,
    /// The time asked for by [`LinkMachine::deadline`] may have come.
    Tick,
    /// Someone ordered the end.
    Stop,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkAction {
    /// Open the connection.
    Connect,
    /// Send one record, and nothing more before it is acknowledged.
    Probe,
    /// Send as the window and the drain's limits allow.
    Drain,
    /// Close the connection.
    Disconnect,
    /// The state changed: log it, count it.
    Changed {
        /// Before.
        from: LinkState,
        /// After.
        to: LinkState,
        /// Why, where the change has a cause.
        cause: Option<LinkCause>,
    },
}

/// Actions of one step, in order.
pub type LinkActions = SmallVec<[LinkAction; 2]>;

/// Settings of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkConfig {
    /// Delays between attempts.
    pub backoff: BackoffConfig,
    /// How long a link must have stood before the next loss counts as the first one (`heal`).
    pub stable: Duration,
}

impl Default for LinkConfig {
    /// 0.2 s to 30 s between attempts; 15 s make a link stable.
    fn default() -> Self {
        Self { backoff: BackoffConfig::default(), stable: Duration::from_secs(15) }
    }
}

/// The state machine of one link.
#[derive(Debug, Clone)]
pub struct LinkMachine {
    stable: Duration,
    backoff: Backoff,
    state: LinkState,
    since: Monotonic,
    cause: Option<LinkCause>,
    /// When the peer last proved that it takes records.
    proven: Option<Monotonic>,
    /// When to act: connect while down, probe while probing.
    due: Option<Monotonic>,
    connecting: bool,
}

impl LinkMachine {
    /// A link that is down and waits for [`LinkEvent::Start`].
    #[must_use]
    pub fn new(config: LinkConfig, now: Monotonic) -> Self {
        Self {
            stable: config.stable,
            backoff: Backoff::new(config.backoff),
            state: LinkState::Down,
            since: now,
            cause: None,
            proven: None,
            due: None,
            connecting: false,
        }
    }

    /// Another time that makes a link stable.
    pub fn set_stable(&mut self, stable: Duration) {
        self.stable = stable;
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.state
    }

    /// When the state was entered.
    #[must_use]
    pub fn since(&self) -> Monotonic {
        self.since
    }

    /// Why the link is not up; none when it is, or has not been tried.
    #[must_use]
    pub fn cause(&self) -> Option<LinkCause> {
        self.cause
    }

    /// When [`LinkEvent::Tick`] is wanted.
    #[must_use]
    pub fn deadline(&self) -> Option<Monotonic> {
        self.due
    }

    /// Takes an event. `random` is any 64 random bits, used for jitter. Events that make no sense in the state are ignored: a loop may
    /// report a loss twice.
    pub fn step(&mut self, now: Monotonic, event: LinkEvent, random: u64) -> LinkActions {
        let mut actions = LinkActions::new();
        match event {
            LinkEvent::Start => {
                if self.state == LinkState::Down && !self.connecting && self.due.is_none() {
                    self.connect(&mut actions);
                }
            }
            LinkEvent::Connected { backlog } => {
                if self.connecting {
                    self.connecting = false;
                    if backlog {
                        self.enter(now, LinkState::Probing, self.cause, &mut actions);
                        actions.push(LinkAction::Probe);
                    } else {
                        self.proven = Some(now);
                        self.enter(now, LinkState::Up, None, &mut actions);
                        actions.push(LinkAction::Drain);
                    }
                }
            }
            LinkEvent::Lost(cause) => {
                let stood = self.state != LinkState::Down;
                if stood || self.connecting {
                    if self.proven.take().is_some_and(|at| now.since(at) >= self.stable) {
                        self.backoff.reset();
                    }
                    self.connecting = false;
                    self.due = Some(now.plus(self.backoff.next(random)));
                    if stood {
                        actions.push(LinkAction::Disconnect);
                    }
                    self.enter(now, LinkState::Down, Some(cause), &mut actions);
                }
            }
            LinkEvent::Acknowledged => {
                if self.state == LinkState::Probing && self.due.is_none() {
                    self.proven.get_or_insert(now);
                    self.enter(now, LinkState::Draining, None, &mut actions);
                    actions.push(LinkAction::Drain);
                }
            }
            LinkEvent::Busy => {
                if self.state != LinkState::Down {
                    if self.proven.take().is_some_and(|at| now.since(at) >= self.stable) {
                        self.backoff.reset();
                    }
                    self.due = Some(now.plus(self.backoff.next(random)));
                    self.enter(now, LinkState::Probing, Some(LinkCause::Quota), &mut actions);
                }
            }
            LinkEvent::CaughtUp => {
                if self.state == LinkState::Draining {
                    self.enter(now, LinkState::Up, None, &mut actions);
                }
            }
            LinkEvent::Empty => {
                if self.state == LinkState::Draining || (self.state == LinkState::Probing && self.due.is_none()) {
                    self.proven.get_or_insert(now);
                    self.enter(now, LinkState::Up, None, &mut actions);
                    actions.push(LinkAction::Drain);
                }
            }
            LinkEvent::Tick => {
                if self.due.is_some_and(|due| due <= now) {
                    self.due = None;
                    match self.state {
                        LinkState::Down => self.connect(&mut actions),
                        LinkState::Probing => actions.push(LinkAction::Probe),
                        _ => {}
                    }
                }
            }
            LinkEvent::Stop => {
                self.due = None;
                self.proven = None;
                if self.connecting || self.state != LinkState::Down {
                    actions.push(LinkAction::Disconnect);
                }
                self.connecting = false;
                self.enter(now, LinkState::Down, Some(LinkCause::Operator), &mut actions);
            }
        }
        actions
    }

    fn connect(&mut self, actions: &mut LinkActions) {
        self.due = None;
        self.connecting = true;
        actions.push(LinkAction::Connect);
    }

    /// Enters a state; a new cause of being down is a change as well, since the remedy differs.
    fn enter(&mut self, now: Monotonic, to: LinkState, cause: Option<LinkCause>, actions: &mut LinkActions) {
        let from = self.state;
        if from != to {
            self.since = now;
        }
        if from != to || self.cause != cause {
            actions.push(LinkAction::Changed { from, to, cause });
        }
        self.state = to;
        self.cause = cause;
    }
}
