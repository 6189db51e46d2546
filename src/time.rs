//! Time as it is handed to logic.
//!
//! No decision in the core reads a clock: it receives a [`Timestamp`] or a [`Monotonic`] from a [`Clock`] that the
//! target hands in (the executor and clock boundary decision record). Tests use [`ManualClock`].

use std::sync::Mutex;
use std::time::Duration;

/// Wall-clock time in whole milliseconds since 1970-01-01T00:00:00Z. A box without a battery clock may say 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time `later` after this one, saturating.
    #[must_use]
    pub fn plus(self, later: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(later.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero when it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// RFC 3339 text in UTC with milliseconds, for example `2026-11-24T02:43:02.123Z`.
    #[must_use]
    pub fn to_rfc3339(self) -> String {
        let millis = i64::try_from(self.0).unwrap_or(i64::MAX);
        jiff::Timestamp::from_millisecond(millis).map_or_else(|_| "9999-12-31T23:59:59.999Z".to_owned(), |t| format!("{t:.3}"))
    }
}

/// Time since an arbitrary start that never jumps: what timers and intervals are measured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Monotonic(pub Duration);

impl Monotonic {
    /// The time `later` after this one, saturating.
    #[must_use]
    pub fn plus(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }

    /// How long after `earlier` this is; zero when it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Where logic gets the time from.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time. May jump either way.
    fn now(&self) -> Timestamp;
    /// Time for intervals. Never goes back.
    fn monotonic(&self) -> Monotonic;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: std::time::Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[must_use]
    pub fn new() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic(self.start.elapsed())
    }
}

/// A clock that tests move by hand.
#[derive(Debug, Default)]
pub struct ManualClock {
    state: Mutex<(Timestamp, Monotonic)>,
}

impl ManualClock {
    /// A clock that shows `wall` and a monotonic time of zero.
    #[must_use]
    pub fn at(wall: Timestamp) -> Self {
        Self { state: Mutex::new((wall, Monotonic::default())) }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.0 = state.0.plus(by);
        state.1 = state.1.plus(by);
    }

    /// Sets the wall clock alone, as a time server does: it may jump either way.
    pub fn set_wall(&self, wall: Timestamp) {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0 = wall;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0
    }

    fn monotonic(&self) -> Monotonic {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1
    }
}
