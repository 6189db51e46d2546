//! When to call and how long to sleep: time in, decisions out.

use std::time::Duration;

use selvedge::time::{Monotonic, Timestamp};

use crate::schedule::Schedule;

/// Longest sleep of a pattern, so that a wall clock that was set is noticed.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// A call that is later than this is not made: the clock was set, or the box slept.
const LATENESS: Duration = Duration::from_secs(60);

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Now {
    pub wall: Timestamp,
    pub steady: Monotonic,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// Call the handler.
    pub call: bool,
    /// Ask again after this.
    pub sleep: Duration,
}

#[derive(Debug)]
pub(crate) struct Ticker {
    schedule: Schedule,
    due: Option<Due>,
}

#[derive(Debug, Clone, Copy)]
enum Due {
    Steady(Monotonic),
    Wall(Timestamp),
    Never,
}

impl Ticker {
    pub fn new(schedule: Schedule) -> Self {
        Self { schedule, due: None }
    }

    pub fn step(&mut self, now: Now) -> Step {
        match (&self.schedule, self.due) {
            (Schedule::Every(every), None) => {
                let every = *every;
                self.due = Some(Due::Steady(now.steady.plus(every)));
                Step { call: false, sleep: every }
            }
            (Schedule::Every(every), Some(Due::Steady(at))) if at <= now.steady => {
                // Late ones are called once, and the beat is kept.
                let every = *every;
                let missed = now.steady.since(at).as_nanos() / every.as_nanos();
                let next = at.plus(every.saturating_mul(u32::try_from(missed).unwrap_or(u32::MAX).saturating_add(1)));
                self.due = Some(Due::Steady(next));
                Step { call: true, sleep: next.since(now.steady) }
            }
            (Schedule::Every(every), Some(Due::Steady(at))) => Step { call: false, sleep: at.since(now.steady).min(*every) },
            (Schedule::Pattern { .. }, Some(Due::Wall(at))) if at <= now.wall => {
                self.due = None;
                let call = now.wall.since(at) <= LATENESS;
                if !call {
                    tracing::warn!(late_s = now.wall.since(at).as_secs(), "a call of a schedule is left out: its time is long over");
                }
                Step { call, ..self.step(now) }
            }
            (Schedule::Pattern { .. }, due) => {
                // Worked out anew each time, since the wall clock may have been set back.
                let next = match (due, self.schedule.next_after(now.wall)) {
                    (Some(Due::Wall(at)), Some(next)) => Due::Wall(at.min(next)),
                    (_, Some(next)) => Due::Wall(next),
                    (_, None) => Due::Never,
                };
                self.due = Some(next);
                let sleep = match next {
                    Due::Wall(at) => at.since(now.wall).min(LOOK_AGAIN),
                    _ => LOOK_AGAIN,
                };
                Step { call: false, sleep }
            }
            (Schedule::Every(every), Some(_)) => Step { call: false, sleep: *every },
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    /// 2026-11-24T02:43:02Z.
    const START: u64 = 1_795_488_182_000;

    fn ticker(schedule: &str) -> Ticker {
        Ticker::new(Schedule::parse(schedule, &TimeZone::UTC).unwrap())
    }

    fn at(wall_ms: u64, steady_ms: u64) -> Now {
        Now { wall: Timestamp(wall_ms), steady: Monotonic(Duration::from_millis(steady_ms)) }
    }

    /// Follows the ticker's own sleeps for `ms`; returns when it called.
    fn calls(ticker: &mut Ticker, ms: u64) -> Vec<u64> {
        let (mut now, mut calls) = (0, Vec::new());
        while now <= ms {
            let step = ticker.step(at(START + now, now));
            if step.call {
                calls.push(now);
            }
            assert!(step.sleep > Duration::ZERO, "it never spins");
            now += u64::try_from(step.sleep.as_millis()).unwrap().max(1);
        }
        calls
    }

    #[test]
    fn an_interval_beats_from_the_start() {
        assert_eq!(calls(&mut ticker("@every 10s"), 35_000), [10_000, 20_000, 30_000]);
    }

    #[test]
    fn a_pattern_is_called_on_the_second() {
        assert_eq!(calls(&mut ticker("* * * * *"), 180_000), [58_000, 118_000, 178_000]);
        assert_eq!(calls(&mut ticker("*/2 * * * * *"), 5_000), [2_000, 4_000]);
    }

    #[test]
    fn an_interval_does_not_follow_the_wall_clock_and_makes_up_for_nothing() {
        let mut ticker = ticker("@every 10s");
        assert_eq!(ticker.step(at(0, 0)), Step { call: false, sleep: Duration::from_secs(10) });
        assert!(!ticker.step(at(START, 5_000)).call, "the clock was set");
        assert_eq!(ticker.step(at(START, 57_000)), Step { call: true, sleep: Duration::from_secs(3) }, "one call for five");
    }

    #[test]
    fn a_clock_that_is_set_forward_makes_no_call_for_what_it_skipped() {
        let mut ticker = ticker("0 * * * *");
        assert!(!ticker.step(at(0, 0)).call);
        let step = ticker.step(at(START, 30_000));
        assert_eq!(step, Step { call: false, sleep: LOOK_AGAIN });
        assert!(ticker.step(at(START + 1_018_000, 60_000)).call, "the next one by the new clock is called (03:00:00)");
    }

    #[test]
    fn a_clock_that_is_set_back_is_followed() {
        let mut ticker = ticker("0 * * * *");
        assert!(!ticker.step(at(START, 0)).call);
        let hour_before = START - 3_600_000;
        assert!(!ticker.step(at(hour_before, 30_000)).call);
        assert!(ticker.step(at(hour_before + 1_018_000, 60_000)).call, "02:00:00 comes again");
    }

    #[test]
    fn what_is_never_due_sleeps_on() {
        assert_eq!(ticker("0 0 30 2 *").step(at(START, 0)), Step { call: false, sleep: LOOK_AGAIN });
    }
}
