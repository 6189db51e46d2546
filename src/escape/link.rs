//! The state of one upstream's link: events in, actions out, time and random numbers handed in.
//!
//! ```text
//!   down     --Connected, backlog--> probing --Acknowledged--> draining --CaughtUp--> up
//!   fenced   --Connected, nothing to send-------------------------------------------> up
//!   draining, up --Slow--> degraded --nothing slow for `stable`--> draining, up
//!   any but fenced and down --Busy--> probing, then degraded for `stable`
//!   any --Lost--> down, or fenced when waiting alone will not mend it ([`fences`]); --Close--> fenced; --Stop--> down
//! ```
//! A peer that says "not now" (quota, busy) takes the link back to probing without closing it.

use std::time::Duration;

use smallvec::SmallVec;

use super::backoff::{Backoff, BackoffConfig};
use crate::component::LinkCause;
use crate::time::Monotonic;

/// State of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkState {
    /// Not connected, and waiting alone will not mend it: the peer refuses this node or everything that it sends, a certificate is not
    /// accepted, or an operator has closed the link. It is tried again slowly; clocks and accounts change.
    Fenced,
    /// Not connected.
    Down,
    /// Connected; one record is on its way to prove that the peer takes them.
    Probing,
    /// The backlog is being sent.
    Draining,
    /// Records go, but answers are slow or the peer was over its quota a moment ago; less is on its way at a time.
    Degraded,
    /// Everything is sent as it comes.
    Up,
}

impl LinkState {
    /// All of them, the worst first.
    pub const ALL: [Self; 6] = [Self::Fenced, Self::Down, Self::Probing, Self::Draining, Self::Degraded, Self::Up];

    /// The word used in metrics, logs and status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fenced => "fenced",
            Self::Down => "down",
            Self::Probing => "probing",
            Self::Draining => "draining",
            Self::Degraded => "degraded",
            Self::Up => "up",
        }
    }

    /// The number used in metrics: 0 is fenced, higher is better.
    #[must_use]
    pub fn level(self) -> i64 {
        match self {
            Self::Fenced => 0,
            Self::Down => 1,
            Self::Probing => 2,
            Self::Draining => 3,
            Self::Degraded => 4,
            Self::Up => 5,
        }
    }

    /// There is a connection.
    #[must_use]
    pub fn is_connected(self) -> bool {
        !matches!(self, Self::Fenced | Self::Down)
    }

    /// The peer has proved that it takes records.
    #[must_use]
    pub fn stands(self) -> bool {
        matches!(self, Self::Draining | Self::Degraded | Self::Up)
    }
}

/// Whether waiting alone does not mend what broke the link.
#[must_use]
pub fn fences(cause: LinkCause) -> bool {
    matches!(cause, LinkCause::Auth | LinkCause::TlsTime | LinkCause::TlsTrust | LinkCause::Refused | LinkCause::Operator)
}

/// What happened to the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkEvent {
    /// Begin. Also after [`LinkEvent::Close`].
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
    /// The peer has refused a record for good, and will not be sent it again.
    Refused,
    /// The peer takes nothing for now; the connection stands.
    Busy,
    /// An answer is slow, or overdue.
    Slow,
    /// Everything stored has been handed to the connection.
    CaughtUp,
    /// Nothing waits and nothing is on its way.
    Empty,
    /// The time asked for by [`LinkMachine::deadline`] may have come.
    Tick,
    /// An operator closes the link, until [`LinkEvent::Start`].
    Close,
    /// The node ends.
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
    /// Delays between attempts while the link is fenced.
    pub fenced: BackoffConfig,
    /// How long a link must have stood before the next loss counts as the first one, and how long nothing may be slow before a degraded
    /// link is well again (`heal`).
    pub stable: Duration,
}

impl Default for LinkConfig {
    /// 0.2 s to 30 s between attempts, 1 s to 30 s while fenced: whoever mends an account sees within half a minute that it works. 15 s
    /// make a link stable.
    fn default() -> Self {
        let fenced = BackoffConfig { first: Duration::from_secs(1), cap: Duration::from_secs(30) };
        Self { backoff: BackoffConfig::default(), fenced, stable: Duration::from_secs(15) }
    }
}

/// The state machine of one link.
#[derive(Debug, Clone)]
pub struct LinkMachine {
    stable: Duration,
    backoff: Backoff,
    fenced: Backoff,
    state: LinkState,
    since: Monotonic,
    cause: Option<LinkCause>,
    /// When the peer last proved that it takes records.
    proven: Option<Monotonic>,
    /// It has refused a record on this connection.
    refused: bool,
    /// When to act: connect while down or fenced, probe while probing, be well again while degraded.
    due: Option<Monotonic>,
    connecting: bool,
    /// Records wait that were there before the link stood.
    behind: bool,
    /// Why the link is degraded, or will be once it is proved.
    strain: Option<LinkCause>,
}

impl LinkMachine {
    /// A link that is down and waits for [`LinkEvent::Start`].
    #[must_use]
    pub fn new(config: LinkConfig, now: Monotonic) -> Self {
        Self {
            stable: config.stable,
            backoff: Backoff::new(config.backoff),
            fenced: Backoff::new(config.fenced),
            state: LinkState::Down,
            since: now,
            cause: None,
            proven: None,
            refused: false,
            due: None,
            connecting: false,
            behind: true,
            strain: None,
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

    /// The peer said "not now" and has not been asked again: nothing is sent.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.state == LinkState::Probing && self.due.is_some()
    }

    /// Records that were there before the link stood have not all gone. Always so while it does not stand.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.behind || !self.state.stands()
    }

    /// Takes an event. `random` is any 64 random bits, used for jitter. Events that make no sense in the state are ignored: a loop may
    /// report a loss twice.
    pub fn step(&mut self, now: Monotonic, event: LinkEvent, random: u64) -> LinkActions {
        let mut actions = LinkActions::new();
        match event {
            LinkEvent::Start => {
                if !self.state.is_connected() && !self.connecting && self.due.is_none() {
                    self.connect(&mut actions);
                }
            }
            LinkEvent::Connected { backlog } => {
                if self.connecting {
                    self.connecting = false;
                    self.behind = backlog;
                    (self.strain, self.refused) = (None, false);
                    if backlog {
                        self.enter(now, LinkState::Probing, self.cause, &mut actions);
                        actions.push(LinkAction::Probe);
                    } else {
                        self.stand(now, &mut actions);
                    }
                }
            }
            LinkEvent::Lost(cause) => {
                if self.state.is_connected() || self.connecting {
                    self.forget_if_stable(now);
                    self.break_off(&mut actions);
                    let fenced = fences(cause);
                    let delay = if fenced { self.fenced.next(random) } else { self.backoff.next(random) };
                    self.due = Some(now.plus(delay));
                    self.enter(now, if fenced { LinkState::Fenced } else { LinkState::Down }, Some(cause), &mut actions);
                }
            }
            LinkEvent::Acknowledged => {
                if self.state == LinkState::Probing && self.due.is_none() {
                    self.stand(now, &mut actions);
                }
            }
            LinkEvent::Refused => self.refused = true,
            LinkEvent::Busy => {
                if self.state.is_connected() {
                    self.forget_if_stable(now);
                    self.due = Some(now.plus(self.backoff.next(random)));
                    (self.behind, self.strain) = (true, Some(LinkCause::Quota));
                    self.enter(now, LinkState::Probing, Some(LinkCause::Quota), &mut actions);
                }
            }
            LinkEvent::Slow => {
                if self.state.stands() {
                    let cause = *self.strain.get_or_insert(LinkCause::Slow);
                    self.due = Some(now.plus(self.stable));
                    self.enter(now, LinkState::Degraded, Some(cause), &mut actions);
                }
            }
            LinkEvent::CaughtUp | LinkEvent::Empty => {
                let proves = event == LinkEvent::Empty && self.state == LinkState::Probing && self.due.is_none();
                if self.state.stands() || proves {
                    self.behind = false;
                }
                if proves {
                    self.stand(now, &mut actions);
                } else if self.state == LinkState::Draining {
                    self.enter(now, LinkState::Up, None, &mut actions);
                }
            }
            LinkEvent::Tick => {
                if self.due.is_some_and(|due| due <= now) {
                    self.due = None;
                    match self.state {
                        LinkState::Down | LinkState::Fenced => self.connect(&mut actions),
                        LinkState::Probing => actions.push(LinkAction::Probe),
                        LinkState::Degraded => {
                            self.strain = None;
                            self.enter(now, if self.behind { LinkState::Draining } else { LinkState::Up }, None, &mut actions);
                        }
                        LinkState::Draining | LinkState::Up => {}
                    }
                }
            }
            LinkEvent::Close | LinkEvent::Stop => {
                self.break_off(&mut actions);
                let to = if event == LinkEvent::Close { LinkState::Fenced } else { LinkState::Down };
                self.enter(now, to, Some(LinkCause::Operator), &mut actions);
            }
        }
        actions
    }

    fn connect(&mut self, actions: &mut LinkActions) {
        self.due = None;
        self.connecting = true;
        actions.push(LinkAction::Connect);
    }

    /// The peer has proved that it takes records.
    fn stand(&mut self, now: Monotonic, actions: &mut LinkActions) {
        self.proven.get_or_insert(now);
        let to = match self.strain {
            Some(_) => LinkState::Degraded,
            None if self.behind => LinkState::Draining,
            None => LinkState::Up,
        };
        self.due = self.strain.map(|_| now.plus(self.stable));
        self.enter(now, to, self.strain, actions);
        actions.push(LinkAction::Drain);
    }

    /// A link that stood for long enough starts its back-off anew. So does one whose peer took records and refused others: some brokers
    /// (mosquitto 2.0 for one) close the connection over each record that they do not allow, and it is done with.
    fn forget_if_stable(&mut self, now: Monotonic) {
        let refused = std::mem::take(&mut self.refused);
        if self.proven.take().is_some_and(|at| refused || now.since(at) >= self.stable) {
            self.backoff.reset();
            self.fenced.reset();
        }
    }

    /// The connection ends, or the attempt to open one.
    fn break_off(&mut self, actions: &mut LinkActions) {
        if self.state.is_connected() || self.connecting {
            actions.push(LinkAction::Disconnect);
        }
        (self.connecting, self.due, self.proven, self.strain) = (false, None, None, None);
    }

    /// Enters a state; a new cause is a change as well, since the remedy differs.
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
