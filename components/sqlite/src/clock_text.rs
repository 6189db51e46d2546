//! Times as SQLite's `CURRENT_TIMESTAMP` writes them, which is how Dapr's tables keep them: `YYYY-MM-DD HH:MM:SS`, UTC.
//!
//! The time is bound as a parameter instead of being read in SQL: logic gets its time from the node's clock.

use std::time::Duration;

use selvedge::time::Timestamp;

/// The text for a time; fractions of a second are cut.
pub(crate) fn text(time: Timestamp) -> String {
    // The clamp is the last second of year 9999: the text must keep its length, since times are compared as texts.
    let seconds = i64::try_from(time.0 / 1000).unwrap_or(i64::MAX).min(253_402_300_799);
    jiff::Timestamp::from_second(seconds).map(|t| t.strftime("%Y-%m-%d %H:%M:%S").to_string()).unwrap_or_else(|_| "9999-12-31 23:59:59".to_owned())
}

/// The text for the time `seconds` after `now`.
pub(crate) fn text_after(now: Timestamp, seconds: u32) -> String {
    text(now.plus(Duration::from_secs(u64::from(seconds))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_form_of_current_timestamp_and_sort_as_texts() {
        assert_eq!(text(Timestamp(0)), "1970-01-01 00:00:00");
        assert_eq!(text(Timestamp(1_795_488_182_999)), "2026-11-24 02:43:02");
        assert_eq!(text_after(Timestamp(1_795_488_182_999), 3600), "2026-11-24 03:43:02");
        assert_eq!(text(Timestamp(u64::MAX)), "9999-12-31 23:59:59");
    }
}
