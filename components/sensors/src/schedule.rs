//! When samples are taken.

use std::time::Duration;

use selvedge::time::Monotonic;

/// Times at whole multiples of the interval after the start: what a sample takes does not shift those after it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    start: Monotonic,
    interval: Duration,
    /// Number of the next time.
    next: u32,
}

impl Schedule {
    /// Begins at `start`; the interval is at least a millisecond.
    pub(crate) fn new(start: Monotonic, interval: Duration) -> Self {
        Self { start, interval: interval.max(Duration::from_millis(1)), next: 0 }
    }

    /// When the next sample is due.
    pub(crate) fn due(&self) -> Monotonic {
        self.start.plus(self.interval.saturating_mul(self.next))
    }

    /// The sample that was due is done: on to the first time that is not past. Returns how many times were passed over.
    pub(crate) fn advance(&mut self, now: Monotonic) -> u32 {
        let passed = now.since(self.start).as_nanos() / self.interval.as_nanos();
        let first = u32::try_from(passed).unwrap_or(u32::MAX - 1).saturating_add(1);
        let skipped = first.saturating_sub(self.next.saturating_add(1));
        self.next = first.max(self.next.saturating_add(1));
        skipped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic(Duration::from_millis(ms))
    }

    #[test]
    fn times_do_not_drift_with_what_samples_take() {
        let mut schedule = Schedule::new(at(500), Duration::from_secs(1));
        assert_eq!(schedule.due(), at(500));
        for n in 1..100 {
            assert_eq!(schedule.advance(schedule.due().plus(Duration::from_millis(n * 9))), 0);
            assert_eq!(schedule.due(), at(500 + n * 1_000));
        }
    }

    #[test]
    fn times_that_a_slow_sample_missed_are_passed_over_and_counted() {
        let mut schedule = Schedule::new(at(0), Duration::from_secs(1));
        assert_eq!(schedule.advance(at(3_500)), 3);
        assert_eq!(schedule.due(), at(4_000));
        // A timer that fires a little early does not give the same time twice.
        assert_eq!(schedule.advance(at(3_999)), 0);
        assert_eq!(schedule.due(), at(5_000));
    }
}
