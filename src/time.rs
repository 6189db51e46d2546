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

/// When this was written, 2025-11-24: a clock that shows less has not been set.
const WRITTEN: Timestamp = Timestamp(1_763_942_400_000);

/// What the wall clock shows, or the time that is known to have passed when it has not been set. One that shows more than it should is
/// believed: nothing tells it from one that is right.
fn plausible(shown: Timestamp, known: Timestamp) -> Timestamp {
    if shown >= WRITTEN { shown } else { shown.max(known) }
}

/// The machine's clocks. A wall clock that has not been set (a box without a battery clock begins in 1970, and would find every
/// certificate "not yet valid") begins at the last time that is known.
#[derive(Debug)]
pub struct SystemClock {
    start: std::time::Instant,
    floor: Timestamp,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[must_use]
    pub fn new() -> Self {
        Self::with_floor(Timestamp::default())
    }

    /// The same; while the machine's wall clock has not been set, it runs on from `floor`, the last time that is known to have been.
    #[must_use]
    pub fn with_floor(floor: Timestamp) -> Self {
        Self { start: std::time::Instant::now(), floor: floor.max(WRITTEN) }
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
        plausible(Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)), self.floor.plus(self.start.elapsed()))
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic(self.start.elapsed())
    }
}

/// The clock that lifetimes of stored records are counted with: begins at the wall clock, or at the latest time that the store knows if
/// that is later, and then runs with the monotonic clock alone. So nothing expires because the wall clock jumps while the box runs.
#[derive(Clone)]
pub struct QueueClock {
    clock: std::sync::Arc<dyn Clock>,
    base: Timestamp,
    begun: Monotonic,
}

impl std::fmt::Debug for QueueClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueClock").field("base", &self.base).finish_non_exhaustive()
    }
}

impl QueueClock {
    /// Begins now. `known` is a time that has been.
    #[must_use]
    pub fn new(clock: std::sync::Arc<dyn Clock>, known: Timestamp) -> Self {
        let (base, begun) = (clock.now().max(known), clock.monotonic());
        Self { clock, base, begun }
    }

    /// The time on this clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.base.plus(self.clock.monotonic().since(self.begun))
    }

    /// What the wall clock shows, or would have shown had it been right then, at a time on this clock since it began.
    #[must_use]
    pub fn wall(&self, at: Timestamp) -> Timestamp {
        let ago = self.now().since(at);
        Timestamp(self.clock.now().0.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Time for intervals.
    #[must_use]
    pub fn monotonic(&self) -> Monotonic {
        self.clock.monotonic()
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_clock_that_was_not_set_begins_at_the_last_time_that_is_known() {
        let (known, later) = (WRITTEN.plus(DAY), WRITTEN.plus(DAY * 9));
        assert_eq!(plausible(Timestamp(5_000), known), known, "1970");
        assert_eq!(plausible(later, known), later);
        assert_eq!(plausible(WRITTEN, known), WRITTEN, "set, and behind a time that was wrong");
        assert!(SystemClock::new().now() >= WRITTEN);
    }

    #[test]
    fn the_stores_clock_runs_on_whatever_the_wall_clock_does() {
        let wall = Arc::new(ManualClock::at(Timestamp(1_000)));
        // The box begins in 1970; the store knows better.
        let queue = QueueClock::new(wall.clone(), WRITTEN);
        let accepted = queue.now();
        assert_eq!(accepted, WRITTEN);
        wall.advance(DAY);
        wall.set_wall(WRITTEN.plus(DAY * 30));
        assert_eq!(queue.now(), WRITTEN.plus(DAY), "a day has passed, whatever was set");
        assert_eq!(queue.wall(accepted), WRITTEN.plus(DAY * 29), "by the clock that is right now");
        wall.set_wall(Timestamp(0));
        assert_eq!(queue.now(), WRITTEN.plus(DAY));
        // A store whose latest record is older than the wall clock's time begins at that.
        wall.set_wall(WRITTEN.plus(DAY * 40));
        assert_eq!(QueueClock::new(wall, WRITTEN).now(), WRITTEN.plus(DAY * 40));
    }
}
