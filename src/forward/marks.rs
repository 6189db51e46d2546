//! What the node says about a record beside the record: where it was accepted, when, and how long it waited.

use std::fmt::Write as _;

use crate::escape::Mode;
use crate::outbox::{LaneId, Outbox, Record};
use crate::time::Timestamp;

/// Record id, stable over restarts: receivers drop repeats and prove gaps with it.
pub(super) const ID: &str = "selvedge-id";
/// Time of acceptance, RFC 3339 with milliseconds, UTC.
pub(super) const TIME: &str = "selvedge-time";
/// Milliseconds between acceptance and this sending; only on records that waited for the link.
pub(super) const DELAY_MS: &str = "selvedge-delay-ms";
/// The mode that the box was in at acceptance; only on records that waited for the link.
pub(super) const MODE: &str = "selvedge-mode";

/// Writes marks into buffers that are used again from record to record.
#[derive(Debug, Default)]
pub(super) struct Marks {
    id: String,
    /// The id's text before the sequence, and whose it is.
    id_prefix: Option<(LaneId, u32, usize)>,
    time: String,
    /// The second that `time` shows.
    second: Option<u64>,
    delay: String,
}

impl Marks {
    /// The marks of a record; `delayed` adds the delay until `now` on the store's clock and the mode at acceptance. At most four.
    pub(super) fn of<'a>(&'a mut self, outbox: &Outbox, record: &Record<'_>, now: Timestamp, delayed: bool) -> ([(&'a str, &'a str); 4], usize) {
        self.write_id(outbox, record);
        self.write_time(outbox.accepted_at(record));
        let mut mode = "";
        let count = if delayed {
            self.delay.clear();
            // Writing into a String does not fail.
            let _ = write!(self.delay, "{}", now.since(record.accepted_at()).as_millis());
            // Records of older versions have none.
            Mode::numbered(record.mode()).map_or(3, |m| {
                mode = m.as_str();
                4
            })
        } else {
            2
        };
        ([(ID, &self.id), (TIME, &self.time), (DELAY_MS, &self.delay), (MODE, mode)], count)
    }

    /// Ids of one lane differ in their last part only; the part before is made once.
    fn write_id(&mut self, outbox: &Outbox, record: &Record<'_>) {
        match self.id_prefix {
            Some((lane, epoch, length)) if lane == record.id.lane && epoch == record.id.epoch => {
                self.id.truncate(length);
                let _ = write!(self.id, "{}", record.id.sequence);
            }
            _ => {
                self.id = outbox.record_id_text(record.id);
                let mut digits = String::new();
                let _ = write!(digits, "{}", record.id.sequence);
                self.id_prefix = self.id.strip_suffix(&digits).map(|prefix| (record.id.lane, record.id.epoch, prefix.len()));
            }
        }
    }

    fn write_time(&mut self, at: Timestamp) {
        let (second, millis) = (at.0 / 1_000, at.0 % 1_000);
        // Past the year 9999 all times have one text.
        if self.second == Some(second) && at.0 < 253_402_300_800_000 && self.time.len() == "2026-11-24T02:43:02.123Z".len() {
            self.time.truncate("2026-11-24T02:43:02.".len());
            let _ = write!(self.time, "{millis:03}Z");
        } else {
            self.time = at.to_rfc3339();
            self.second = Some(second);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_within_a_second_are_written_as_the_full_conversion_writes_them() {
        let mut marks = Marks::default();
        for at in [0, 7, 999, 1_000, 1_764_000_000_123, 1_764_000_000_001, 1_764_000_001_999, 999_999_999_999_999, u64::MAX, u64::MAX - 1] {
            marks.write_time(Timestamp(at));
            assert_eq!(marks.time, Timestamp(at).to_rfc3339());
        }
    }
}
