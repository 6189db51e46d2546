//! The mode of the whole box, derived from its links, its store and its disk: events in, actions out, time handed in.
//!
//! ```text
//!  bootstrap --a link stands--> normal <--up for `heal`-- recover <--a link stands-- island
//!                                 |  \--primary lost, secondary stands--> failover      |  conserve  (long, or much stored)
//!                                 +---------no link for `settle`----------------------> +  survive   (disk short or failing, or store nearly full)
//! ```
//! A worse mode is entered when its reason has held for `settle`, `normal` when the link has held for `heal`, both longer when it did not
//! hold before: a link that flaps does not make the box flap. The rules stand in [`ModeMachine::wanted`] and [`ModeMachine::hold`], nowhere else.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::LinkState;
use crate::component::LinkCause;
use crate::time::Monotonic;

/// How long the box must have done without an island before it forgets that the link did not hold.
const FORGET: Duration = Duration::from_secs(600);
/// Relapses that count: the longest doubt is twelve times `settle`.
const RELAPSES: u32 = 4;

/// What the box is up to. The order is that of the metric: 0 is normal, higher is worse. The numbers stand in files ([`Mode::number`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A primary upstream takes records as they come, slowly perhaps (or there is no upstream at all).
    Normal,
    /// A link stands again; the backlog goes out.
    Recover,
    /// No primary upstream, a secondary one takes its place.
    Failover,
    /// No upstream has ever been reached.
    Bootstrap,
    /// No upstream; the box works alone.
    Island,
    /// An island for long, or with much stored: spend less.
    Conserve,
    /// The disk is short or cannot be written, or the store nearly full: only what is protected may grow.
    Survive,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Normal, Self::Recover, Self::Failover, Self::Bootstrap, Self::Island, Self::Conserve, Self::Survive];

    /// The word used in topics, headers, metrics, logs and commands.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Recover => "recover",
            Self::Failover => "failover",
            Self::Bootstrap => "bootstrap",
            Self::Island => "island",
            Self::Conserve => "conserve",
            Self::Survive => "survive",
        }
    }

    /// The mode of this word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.as_str() == word)
    }

    /// The number that stored records carry, from 1. It stands in files, so that of a mode never changes.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8 + 1
    }

    /// The mode of this number; none for 0 and for numbers of later versions.
    #[must_use]
    pub fn numbered(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.number() == number)
    }

    /// The box works alone.
    #[must_use]
    pub fn is_island(self) -> bool {
        matches!(self, Self::Island | Self::Conserve | Self::Survive)
    }
}

/// Some of the modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModeSet(u8);

impl ModeSet {
    /// Reads a list of words separated by commas; `island` stands for all modes in which the box works alone.
    ///
    /// # Errors
    /// The word that is no mode, and what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut set = Self::default();
        for word in text.split(',').map(str::trim) {
            let unknown = || format!("found {word:?}; accepted is a list of {}", Mode::ALL.map(Mode::as_str).join(", "));
            let mode = Mode::parse(word).ok_or_else(unknown)?;
            for also in Mode::ALL.into_iter().filter(|m| *m == mode || (mode == Mode::Island && m.is_island())) {
                set.0 |= 1 << also as u8;
            }
        }
        Ok(set)
    }

    /// Whether the mode is one of them.
    #[must_use]
    pub fn contains(self, mode: Mode) -> bool {
        self.0 & (1 << mode as u8) != 0
    }
}

/// When modes change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeConfig {
    /// How long the reason for a worse mode must hold (`modes.islandAfter`).
    pub settle: Duration,
    /// How long a link must hold for `normal` (`modes.normalAfter`).
    pub heal: Duration,
    /// How long an island goes on before it saves (`modes.conserveAfter`).
    pub conserve_after: Duration,
    /// Percentage of the lanes' quotas in use from which an island saves (`modes.highWater`).
    pub high_water: u8,
    /// Percentage from which it survives (`modes.criticalWater`).
    pub critical_water: u8,
}

impl Default for ModeConfig {
    /// 5 s, 10 s, 6 h, 70 %, 90 %.
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(5),
            heal: Duration::from_secs(10),
            conserve_after: Duration::from_secs(6 * 3_600),
            high_water: 70,
            critical_water: 90,
        }
    }
}

/// One upstream, as the controller sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkSight {
    /// It stands by for others.
    pub secondary: bool,
    /// State of its link.
    pub state: LinkState,
    /// Records that were there before the link stood have not all gone.
    pub behind: bool,
    /// Why it is not up.
    pub cause: Option<LinkCause>,
}

impl LinkSight {
    /// The peer has proved that it takes records.
    fn stands(&self) -> bool {
        self.state.stands()
    }
}

/// What the controller sees at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation<'a> {
    /// All upstreams.
    pub links: &'a [LinkSight],
    /// Percentage of the lanes' quotas in use.
    pub fill_percent: u8,
    /// The file system has less free than its floor.
    pub disk_short: bool,
    /// A lane cannot be written.
    pub lane_fails: bool,
}

/// What happens to the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModeEvent<'a> {
    /// Time has passed, or something has changed.
    Look(&'a Situation<'a>),
    /// An operator closes all links until [`ModeEvent::Leave`].
    Enter,
    /// Back to what the links say; ends a pin too.
    Leave,
    /// An operator sets the mode for a time, whatever the links say; they go on.
    Pin {
        /// The mode.
        mode: Mode,
        /// For how long.
        lasting: Duration,
    },
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModeAction {
    /// The mode changed: save it, tell everyone.
    Changed {
        /// Before.
        from: Mode,
        /// After.
        to: Mode,
    },
    /// All links are gone, since this time.
    OutageBegan(Monotonic),
    /// One of them stands again.
    OutageEnded,
    /// Close all links and keep them closed, or let them open.
    Fence(bool),
}

/// Actions of one step, in order.
pub type ModeActions = SmallVec<[ModeAction; 4]>;

/// What outlives a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SavedMode {
    /// Mode.
    pub mode: Mode,
    /// An upstream has been reached once.
    pub ever_connected: bool,
    /// Milliseconds that the outage had lasted, if there was one.
    pub offline_ms: Option<u64>,
    /// An operator has closed the links.
    pub fenced: bool,
    /// A pinned mode and the milliseconds that it had left.
    pub pin: Option<(Mode, u64)>,
}

/// The controller of the mode.
#[derive(Debug, Clone)]
pub struct ModeMachine {
    config: ModeConfig,
    mode: Mode,
    since: Monotonic,
    /// The mode that the situation asks for, and since when.
    candidate: Option<(Mode, Monotonic)>,
    ever_connected: bool,
    /// Since when no link stands, and how long that had lasted before the start.
    offline: Option<(Monotonic, Duration)>,
    /// The outage has been told of.
    outage: bool,
    fenced: bool,
    pin: Option<(Mode, Monotonic)>,
    /// When the box was an island last.
    left_island: Option<Monotonic>,
    /// How often it became one again soon after.
    relapses: u32,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl ModeMachine {
    /// The mode at the start: what was saved, else `bootstrap`.
    #[must_use]
    pub fn new(config: ModeConfig, saved: Option<SavedMode>, now: Monotonic) -> Self {
        let saved = saved.unwrap_or(SavedMode { mode: Mode::Bootstrap, ever_connected: false, offline_ms: None, fenced: false, pin: None });
        Self {
            config,
            mode: saved.mode,
            since: now,
            candidate: None,
            ever_connected: saved.ever_connected,
            offline: saved.offline_ms.map(|ms| (now, Duration::from_millis(ms))),
            outage: saved.offline_ms.is_some(),
            fenced: saved.fenced,
            pin: saved.pin.map(|(mode, ms)| (mode, now.plus(Duration::from_millis(ms)))),
            left_island: None,
            relapses: 0,
        }
    }

    /// Other thresholds from the next step on.
    pub fn configure(&mut self, config: ModeConfig) {
        self.config = config;
    }

    /// What outlives a restart.
    #[must_use]
    pub fn saved(&self, now: Monotonic) -> SavedMode {
        SavedMode {
            mode: self.mode,
            ever_connected: self.ever_connected,
            offline_ms: self.offline_for(now).filter(|_| self.outage).map(millis),
            fenced: self.fenced,
            pin: self.pin.map(|(mode, until)| (mode, millis(until.since(now)))),
        }
    }

    /// The mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// When it was entered.
    #[must_use]
    pub fn since(&self) -> Monotonic {
        self.since
    }

    /// Whether an operator has closed the links.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// How long a pin still holds.
    #[must_use]
    pub fn pinned_for(&self, now: Monotonic) -> Option<Duration> {
        self.pin.map(|(_, until)| until.since(now))
    }

    /// How long no link has stood; none when one does.
    #[must_use]
    pub fn offline_for(&self, now: Monotonic) -> Option<Duration> {
        self.offline.map(|(since, before)| now.since(since) + before)
    }

    /// Whether an outage is going on.
    #[must_use]
    pub fn in_outage(&self) -> bool {
        self.outage
    }

    /// Takes an event.
    pub fn step(&mut self, now: Monotonic, event: ModeEvent<'_>) -> ModeActions {
        let mut actions = ModeActions::new();
        match event {
            ModeEvent::Enter => {
                self.fenced = true;
                actions.push(ModeAction::Fence(true));
            }
            ModeEvent::Leave => {
                self.pin = None;
                self.fenced = false;
                (self.candidate, self.left_island, self.relapses) = (None, None, 0);
                actions.push(ModeAction::Fence(false));
            }
            ModeEvent::Pin { mode, lasting } => {
                self.pin = Some((mode, now.plus(lasting)));
                self.change(now, mode, &mut actions);
            }
            ModeEvent::Look(situation) => self.look(now, situation, &mut actions),
        }
        actions
    }

    fn look(&mut self, now: Monotonic, situation: &Situation<'_>, actions: &mut ModeActions) {
        if situation.links.iter().any(LinkSight::stands) {
            self.ever_connected = true;
            self.offline = None;
            if std::mem::take(&mut self.outage) {
                actions.push(ModeAction::OutageEnded);
            }
        } else if !situation.links.is_empty() {
            self.offline.get_or_insert((now, Duration::ZERO));
        }
        if self.pin.take_if(|(_, until)| *until <= now).is_some() {
            self.candidate = None;
        }
        if !self.mode.is_island() && self.left_island.is_some_and(|at| now.since(at) >= FORGET) {
            self.relapses = 0;
        }
        let wanted = self.wanted(now, situation);
        if wanted == self.mode && self.pin.is_none() {
            self.candidate = None;
        } else if self.pin.is_none() {
            let since = match self.candidate {
                Some((mode, since)) if mode == wanted => since,
                _ => now,
            };
            self.candidate = Some((wanted, since));
            if now.since(since) >= self.hold(wanted, situation) {
                self.change(now, wanted, actions);
            }
        }
        // The outage is the links', whatever the mode is called.
        if let Some((since, _)) = self.offline
            && self.ever_connected
            && !self.outage
            && (self.fenced || now.since(since) >= self.config.settle)
        {
            self.outage = true;
            actions.push(ModeAction::OutageBegan(since));
        }
    }

    /// What the situation asks for.
    fn wanted(&self, now: Monotonic, situation: &Situation<'_>) -> Mode {
        let primary = |behind: bool| situation.links.iter().any(|l| !l.secondary && l.stands() && l.behind == behind);
        if situation.disk_short || situation.lane_fails {
            return Mode::Survive;
        }
        if situation.links.is_empty() {
            return Mode::Normal;
        }
        if situation.links.iter().any(LinkSight::stands) {
            return if primary(false) {
                // What was an island shows first that the link holds.
                if self.mode.is_island() { Mode::Recover } else { Mode::Normal }
            } else if primary(true) {
                Mode::Recover
            } else {
                Mode::Failover
            };
        }
        if !self.ever_connected {
            return Mode::Bootstrap;
        }
        let long = self.offline_for(now).is_some_and(|time| time >= self.config.conserve_after);
        if situation.fill_percent >= self.config.critical_water {
            Mode::Survive
        } else if long || situation.fill_percent >= self.config.high_water {
            Mode::Conserve
        } else {
            Mode::Island
        }
    }

    /// How long the situation must ask for this mode before it is entered.
    fn hold(&self, to: Mode, situation: &Situation<'_>) -> Duration {
        match (self.mode, to) {
            (_, Mode::Survive) if situation.disk_short => Duration::ZERO,
            // An operator has waited long enough.
            (_, to) if self.fenced && to.is_island() => Duration::ZERO,
            // The first link, or one after an outage: the peer has proved itself.
            (Mode::Bootstrap, Mode::Normal | Mode::Recover | Mode::Failover) => Duration::ZERO,
            (from, Mode::Recover | Mode::Failover) if from.is_island() => self.doubt(),
            (_, Mode::Normal) => self.config.heal + self.doubt(),
            (from, to) if to < from => self.config.heal,
            _ => self.config.settle,
        }
    }

    /// How much longer a link must hold that has not held before: nothing at first, then 1, 3, 7, 12 times `settle`.
    fn doubt(&self) -> Duration {
        self.config.settle * (2u32.pow(self.relapses) - 1).min(12)
    }

    fn change(&mut self, now: Monotonic, to: Mode, actions: &mut ModeActions) {
        self.candidate = None;
        if self.mode != to {
            let from = std::mem::replace(&mut self.mode, to);
            self.since = now;
            if from.is_island() && !to.is_island() {
                self.left_island = Some(now);
            } else if to.is_island() && !from.is_island() && self.left_island.is_some_and(|at| now.since(at) < FORGET) {
                // What an operator orders says nothing about the link.
                let ordered = self.fenced || self.pin.is_some();
                self.relapses = (self.relapses + u32::from(!ordered)).min(RELAPSES);
            }
            actions.push(ModeAction::Changed { from, to });
        }
    }
}

#[cfg(test)]
mod tests;
