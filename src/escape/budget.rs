//! Budgets of bytes per day or month: how much of one is used, and what follows. Pure arithmetic; time is handed in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

const DAY: Duration = Duration::from_secs(86_400);

/// How long a budget lasts before it begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// 24 hours by the store's clock, which no jump of the wall clock moves.
    Day,
    /// A calendar month (UTC) by the wall clock. After a wall clock that was set back, 30 days by the store's clock.
    Month,
}

impl Period {
    /// The word in settings and status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

/// How far a budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum BudgetLevel {
    /// Less than 80 %.
    #[default]
    Well,
    /// From 80 % on: it is said, and nothing else changes.
    Warned,
    /// From 95 % on.
    Scarce,
    /// All of it.
    Spent,
}

impl BudgetLevel {
    /// The word in status and notices.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Warned => "warned",
            Self::Scarce => "scarce",
            Self::Spent => "spent",
        }
    }
}

/// What of a budget outlives a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedBudget {
    /// Bytes used in the period.
    pub used: u64,
    /// When the period began, by the store's clock.
    pub started: u64,
    /// Months since the year 0, of a month's budget.
    pub month: u32,
    /// Since when it is used up as far as it is (its level), by the wall clock; 0 = not known.
    pub level_since: u64,
}

/// The time by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct BothClocks {
    /// By the store's clock ([`crate::time::QueueClock`]).
    pub queue: Timestamp,
    /// By the wall clock.
    pub wall: Timestamp,
}

/// A budget.
#[derive(Debug, Clone)]
pub struct Budget {
    limit: u64,
    period: Period,
    saved: SavedBudget,
}

fn month_of(wall: Timestamp) -> u32 {
    let millis = i64::try_from(wall.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).map_or(u32::MAX, |t| {
        let date = t.to_zoned(jiff::tz::TimeZone::UTC);
        u32::try_from(i32::from(date.year()) * 12 + i32::from(date.month())).unwrap_or(0)
    })
}

impl Budget {
    /// A budget of `limit` bytes, which goes on with what was saved.
    #[must_use]
    pub fn new(limit: u64, period: Period, saved: Option<SavedBudget>, now: BothClocks) -> Self {
        let fresh = SavedBudget { used: 0, started: now.queue.0, month: month_of(now.wall), level_since: now.wall.0 };
        let mut this = Self { limit: limit.max(1), period, saved: saved.unwrap_or(fresh) };
        // A store that was made anew begins with an older clock than the one that this was counted by.
        this.saved.started = this.saved.started.min(now.queue.0);
        let before = this.level();
        this.turn(now);
        this.note_level(before, now);
        this
    }

    /// Begins the next period if it is time.
    fn turn(&mut self, now: BothClocks) {
        let ran = now.queue.since(Timestamp(self.saved.started));
        let month = month_of(now.wall);
        match self.period {
            Period::Day if ran >= DAY => {
                let days = u64::try_from(ran.as_millis() / DAY.as_millis()).unwrap_or(u64::MAX);
                self.saved.started = self.saved.started.saturating_add(days.saturating_mul(86_400_000));
                self.saved.used = 0;
            }
            // A clock that was set back to the right month must not wait for the wrong one to pass.
            Period::Month if month > self.saved.month || (month < self.saved.month && ran >= 30 * DAY) => {
                self.saved = SavedBudget { used: 0, started: now.queue.0, month, ..self.saved };
            }
            Period::Day | Period::Month => {}
        }
    }

    /// So many bytes more were used. Gives the level from now on.
    pub fn spend(&mut self, now: BothClocks, bytes: u64) -> BudgetLevel {
        let before = self.level();
        self.turn(now);
        self.saved.used = self.saved.used.saturating_add(bytes);
        self.note_level(before, now);
        self.level()
    }

    /// Another limit from now on; what was used counts on.
    pub fn set_limit(&mut self, limit: u64, now: BothClocks) {
        let before = self.level();
        self.limit = limit.max(1);
        self.note_level(before, now);
    }

    fn note_level(&mut self, before: BudgetLevel, now: BothClocks) {
        if self.level() != before || self.saved.level_since == 0 {
            self.saved.level_since = now.wall.0;
        }
    }

    /// Since when it is used up as far as it is, by the wall clock.
    #[must_use]
    pub fn level_since(&self) -> Timestamp {
        Timestamp(self.saved.level_since)
    }

    /// How far it is used up.
    #[must_use]
    pub fn level(&self) -> BudgetLevel {
        match self.percent() {
            0..80 => BudgetLevel::Well,
            80..95 => BudgetLevel::Warned,
            95..100 => BudgetLevel::Scarce,
            _ => BudgetLevel::Spent,
        }
    }

    /// Percent used, rounded down.
    #[must_use]
    pub fn percent(&self) -> u64 {
        u64::try_from(u128::from(self.saved.used) * 100 / u128::from(self.limit)).unwrap_or(u64::MAX)
    }

    /// Bytes of the period.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Its period.
    #[must_use]
    pub fn period(&self) -> Period {
        self.period
    }

    /// What has to outlive a restart.
    #[must_use]
    pub fn saved(&self) -> SavedBudget {
        self.saved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-24T00:00:00Z.
    const NOW: u64 = 1_795_478_400_000;

    fn at(queue: Duration, wall: Duration) -> BothClocks {
        BothClocks { queue: Timestamp(NOW).plus(queue), wall: Timestamp(NOW).plus(wall) }
    }

    fn both(time: Duration) -> BothClocks {
        at(time, time)
    }

    #[test]
    fn levels_follow_what_is_used_and_a_larger_budget_frees_at_once() {
        let mut budget = Budget::new(1_000, Period::Day, None, both(Duration::ZERO));
        let levels: Vec<_> = [799, 1, 149, 1, 49, 1].into_iter().map(|n| budget.spend(both(Duration::ZERO), n)).collect();
        use BudgetLevel::{Scarce, Spent, Warned, Well};
        assert_eq!(levels, [Well, Warned, Warned, Scarce, Scarce, Spent]);
        let raised = Budget::new(2_000, Period::Day, Some(budget.saved()), both(Duration::from_secs(60)));
        assert_eq!((raised.level(), raised.percent()), (Well, 50));
        assert_eq!(Budget::new(0, Period::Day, None, both(Duration::ZERO)).spend(both(Duration::ZERO), u64::MAX), Spent);
    }

    #[test]
    fn since_when_a_level_holds_is_known_over_restarts_and_follows_another_limit() {
        let minute = |n: u64| both(Duration::from_secs(60 * n));
        let mut budget = Budget::new(1_000, Period::Day, None, minute(0));
        budget.spend(minute(1), 1_000);
        budget.spend(minute(2), 10);
        assert_eq!(budget.level_since(), minute(1).wall);
        let mut budget = Budget::new(1_000, Period::Day, Some(budget.saved()), minute(3));
        assert_eq!((budget.level(), budget.level_since()), (BudgetLevel::Spent, minute(1).wall));
        budget.set_limit(2_000, minute(4));
        assert_eq!((budget.level(), budget.level_since(), budget.saved().used), (BudgetLevel::Well, minute(4).wall, 1_010));
        budget.set_limit(1_000, minute(5));
        assert_eq!((budget.level(), budget.level_since()), (BudgetLevel::Spent, minute(5).wall));
        assert_eq!(budget.spend(both(DAY), 0), BudgetLevel::Well);
        assert_eq!(budget.level_since(), both(DAY).wall);
        // A file of a version that did not keep it.
        let old = SavedBudget { level_since: 0, ..budget.saved() };
        assert_eq!(Budget::new(1_000, Period::Day, Some(old), both(DAY * 5 / 4)).level_since(), both(DAY * 5 / 4).wall);
    }

    #[test]
    fn a_day_is_a_day_of_the_stores_clock_whatever_the_wall_clock_does() {
        let mut budget = Budget::new(1_000, Period::Day, None, both(Duration::ZERO));
        budget.spend(both(Duration::ZERO), 900);
        assert_eq!(budget.spend(at(DAY - Duration::from_secs(1), 400 * DAY), 0), BudgetLevel::Warned);
        assert_eq!(budget.spend(at(DAY, Duration::ZERO), 10), BudgetLevel::Well);
        // The days keep their hour, however long the box was off.
        let later = Budget::new(1_000, Period::Day, Some(budget.saved()), both(DAY * 9 / 2));
        assert_eq!((later.saved().used, later.saved().started), (0, Timestamp(NOW).plus(4 * DAY).0));
        // A store that was made anew by a box that thinks it is 1970.
        let mut early = Budget::new(1_000, Period::Day, Some(budget.saved()), BothClocks { queue: Timestamp(5), wall: Timestamp(5) });
        assert_eq!(early.saved().used, 10);
        early.spend(BothClocks { queue: Timestamp(5).plus(DAY), wall: Timestamp(5) }, 0);
        assert_eq!(early.saved().used, 0);
    }

    #[test]
    fn a_month_is_the_calendars_and_a_clock_that_was_set_back_waits_for_thirty_days_at_most() {
        let mut budget = Budget::new(1_000, Period::Month, None, both(Duration::ZERO));
        budget.spend(both(Duration::ZERO), 960);
        assert_eq!(budget.spend(both(6 * DAY), 0), BudgetLevel::Scarce, "the 30th of November");
        assert_eq!(budget.spend(both(7 * DAY), 1), BudgetLevel::Well, "the 1st of December");
        // The clock jumps to 2082, which is believed, and is set right again.
        budget.spend(at(8 * DAY, 20_000 * DAY), 950);
        assert_eq!(budget.spend(at(9 * DAY, 9 * DAY), 0), BudgetLevel::Scarce);
        assert_eq!(budget.spend(at(37 * DAY, 37 * DAY), 0), BudgetLevel::Scarce);
        assert_eq!(budget.spend(at(38 * DAY, 38 * DAY), 0), BudgetLevel::Well);
    }
}
