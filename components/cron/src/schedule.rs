//! Schedules as people write them, and when they are due.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use selvedge::time::Timestamp;
use selvedge::units;

/// A text that is no schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleError {
    /// What would have been accepted, or what is wrong.
    pub accepted: String,
}

/// When something is due.
#[derive(Debug, Clone)]
pub enum Schedule {
    /// Every so often, counted from the start; whole seconds, at least one.
    Every(Duration),
    /// By the wall clock of a place.
    Pattern {
        /// The fields.
        cron: Box<Cron>,
        /// The place.
        zone: TimeZone,
        /// Its name, if the schedule gives one.
        zone_name: Option<String>,
    },
}

impl Schedule {
    /// Reads a schedule: five fields, or six with seconds in front; `@every DURATION`; `@yearly @annually @monthly @weekly @daily @midnight
    /// @hourly`. `TZ=NAME` or `CRON_TZ=NAME` in front sets the place, which is else `local`.
    ///
    /// # Errors
    /// Says what is wrong or what is accepted.
    pub fn parse(text: &str, local: &TimeZone) -> Result<Self, ScheduleError> {
        let fail = |accepted: String| ScheduleError { accepted };
        let text = text.trim();
        let (zone_name, rest) = match text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) {
            Some(named) => {
                let (name, rest) = named.split_once(char::is_whitespace).ok_or_else(|| fail("a schedule after the time zone".into()))?;
                (Some(name.to_owned()), rest.trim())
            }
            None => (None, text),
        };
        if let Some(every) = rest.strip_prefix("@every") {
            let every = units::parse_duration(every.trim()).map_err(|e| fail(format!("@every with {}", e.accepted)))?;
            return Ok(Self::Every(Duration::from_secs(every.as_secs().max(1))));
        }
        let fields = match rest {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other if other.starts_with('@') => {
                return Err(fail("@every, @yearly, @annually, @monthly, @weekly, @daily, @midnight or @hourly".into()));
            }
            other => other,
        };
        let zone = match &zone_name {
            Some(name) => TimeZone::get(name).map_err(|e| fail(format!("a time zone that this box knows ({e})")))?,
            None => local.clone(),
        };
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).sloppy_ranges(true).build();
        let cron = parser.parse(fields).map_err(|e| fail(format!("five or six cron fields, or a name such as @daily or @every 10s ({e})")))?;
        Ok(Self::Pattern { cron: Box::new(cron), zone, zone_name })
    }

    /// The first time after `now` at which a pattern is due, in whole seconds; none for a pattern that never is (30 February), and
    /// for intervals, which do not follow the wall clock.
    #[must_use]
    pub fn next_after(&self, now: Timestamp) -> Option<Timestamp> {
        let Self::Pattern { cron, zone, .. } = self else { return None };
        let now = jiff::Timestamp::from_second(i64::try_from(now.0 / 1000).ok()?).ok()?.to_zoned(zone.clone());
        let next = cron.find_next_occurrence(&now, false).ok()?;
        u64::try_from(next.timestamp().as_millisecond()).ok().map(Timestamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        Timestamp(u64::try_from(text.parse::<jiff::Timestamp>().unwrap().as_millisecond()).unwrap())
    }

    fn next(schedule: &str, now: &str) -> Option<String> {
        let schedule = Schedule::parse(schedule, &TimeZone::UTC).unwrap_or_else(|e| panic!("{schedule}: {}", e.accepted));
        schedule.next_after(time(now)).map(|t| t.to_rfc3339().replace(".000Z", "Z"))
    }

    #[test]
    fn fields_with_and_without_seconds() {
        for (schedule, now, due) in [
            ("*/5 * * * *", "2026-11-24T02:43:02Z", "2026-11-24T02:45:00Z"),
            ("*/15 * * * * *", "2026-11-24T02:43:02Z", "2026-11-24T02:43:15Z"),
            ("* * * * * *", "2026-11-24T02:43:02.500Z", "2026-11-24T02:43:03Z"),
            ("30 3 * * *", "2026-11-24T03:30:00Z", "2026-11-25T03:30:00Z"),
            ("0 0 1 1 *", "2026-11-24T02:43:02Z", "2027-01-01T00:00:00Z"),
            ("0 9 * * MON-FRI", "2026-11-27T10:00:00Z", "2026-11-30T09:00:00Z"),
            ("0/20 * * * *", "2026-11-24T02:43:02Z", "2026-11-24T03:00:00Z"),
            ("0 0 29 2 *", "2026-11-24T02:43:02Z", "2028-02-29T00:00:00Z"),
            ("0 0 ? * 1", "2026-11-24T02:43:02Z", "2026-11-30T00:00:00Z"),
            ("@daily", "2026-11-24T02:43:02Z", "2026-11-25T00:00:00Z"),
            ("@midnight", "2026-11-24T02:43:02Z", "2026-11-25T00:00:00Z"),
            ("@hourly", "2026-11-24T02:43:02Z", "2026-11-24T03:00:00Z"),
            ("@weekly", "2026-11-24T02:43:02Z", "2026-11-29T00:00:00Z"),
            ("@monthly", "2026-11-24T02:43:02Z", "2026-12-01T00:00:00Z"),
            ("@yearly", "2026-11-24T02:43:02Z", "2027-01-01T00:00:00Z"),
        ] {
            assert_eq!(next(schedule, now).as_deref(), Some(due), "{schedule}");
        }
    }

    #[test]
    fn a_day_that_never_comes_is_never_due() {
        assert_eq!(next("0 0 30 2 *", "2026-11-24T02:43:02Z"), None);
    }

    #[test]
    fn a_time_zone_in_front_moves_the_clock() {
        for prefix in ["TZ", "CRON_TZ"] {
            let due = next(&format!("{prefix}=Asia/Tokyo 30 4 * * *"), "2026-11-24T02:43:02Z");
            assert_eq!(due.as_deref(), Some("2026-11-24T19:30:00Z"));
        }
        let berlin = next("TZ=Europe/Berlin 30 2 * * *", "2026-03-28T12:00:00Z");
        assert!(berlin.is_some(), "a time that the change to summer time leaves out does not end the schedule");
    }

    #[test]
    fn intervals_are_whole_seconds_and_at_least_one() {
        for (text, seconds) in [("@every 1h30m", 5400), ("@every 1.9s", 1), ("@every 10ms", 1), ("TZ=UTC @every 2s", 2)] {
            assert!(matches!(Schedule::parse(text, &TimeZone::UTC), Ok(Schedule::Every(d)) if d.as_secs() == seconds), "{text}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for text in ["", "* * * *", "* * * * * * *", "61 * * * *", "@often", "@every", "@every soon", "TZ=UTC", "TZ=Nowhere/City @daily", "a b c d e"]
        {
            assert!(Schedule::parse(text, &TimeZone::UTC).is_err(), "{text:?}");
        }
    }
}
