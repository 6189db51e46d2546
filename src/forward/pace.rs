//! How fast a backlog may leave.

use std::time::Duration;

use crate::resource::DrainSpec;
use crate::time::Monotonic;

/// Two token buckets, messages and bytes, each with room for a tenth of a second of its rate. A message is let go while both are
/// above zero and may overdraw them: large messages pass, and are paid for by the wait after them.
#[derive(Debug)]
pub(super) struct Pace {
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    per_second: f64,
    room: f64,
    level: f64,
    at: Monotonic,
}

impl Bucket {
    fn new(per_second: f64, now: Monotonic) -> Self {
        let room = (per_second / 10.0).max(1.0);
        Self { per_second, room, level: room, at: now }
    }

    fn refill(&mut self, now: Monotonic) {
        self.level = (self.level + now.since(self.at).as_secs_f64() * self.per_second).min(self.room);
        self.at = now;
    }

    /// When the level is above zero again.
    fn ready_at(&self) -> Option<Monotonic> {
        // A microsecond more than computed, so that rounding never gives a time at which it is still empty.
        (self.level <= 0.0).then(|| self.at.plus(Duration::from_secs_f64((-self.level / self.per_second).min(3_600.0)) + Duration::from_micros(1)))
    }
}

impl Pace {
    pub(super) fn new(drain: &DrainSpec, now: Monotonic) -> Self {
        Self {
            messages: drain.messages_per_second.filter(|n| *n > 0).map(|n| Bucket::new(f64::from(n), now)),
            bytes: drain.bytes_per_second.filter(|n| *n > 0).map(|n| Bucket::new(n as f64, now)),
        }
    }

    /// When the next message may go; `None` = now.
    pub(super) fn wait_until(&mut self, now: Monotonic) -> Option<Monotonic> {
        let mut until = None;
        for bucket in self.messages.iter_mut().chain(self.bytes.iter_mut()) {
            bucket.refill(now);
            until = until.max(bucket.ready_at());
        }
        until
    }

    /// A message has gone.
    pub(super) fn spend(&mut self, bytes: usize) {
        if let Some(bucket) = &mut self.messages {
            bucket.level -= 1.0;
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.level -= bytes as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages of `size` bytes that leave within `for_seconds` of simulated time.
    fn leave(drain: DrainSpec, size: usize, for_seconds: u64) -> u64 {
        let mut now = Monotonic::default();
        let mut pace = Pace::new(&drain, now);
        let mut sent = 0;
        loop {
            match pace.wait_until(now) {
                None => {
                    pace.spend(size);
                    sent += 1;
                }
                Some(until) => {
                    assert!(until > now);
                    now = until;
                    if now >= Monotonic(Duration::from_secs(for_seconds)) {
                        return sent;
                    }
                }
            }
        }
    }

    #[test]
    fn rates_hold_over_time_for_small_and_for_huge_messages() {
        let drain = |m, b| DrainSpec { messages_per_second: m, bytes_per_second: b, ..DrainSpec::default() };
        for (limits, size, seconds, expected) in [
            (drain(Some(100), None), 10, 10, 1_000..=1_012),
            (drain(None, Some(1_000)), 100, 10, 100..=103),
            (drain(None, Some(1_000)), 100_000, 1_000, 10..=12),
            (drain(Some(5), Some(1_000_000)), 100, 10, 50..=53),
            (drain(Some(1_000), Some(1_000)), 100, 10, 100..=103),
        ] {
            let sent = leave(limits, size, seconds);
            assert!(expected.contains(&sent), "{limits:?} with {size} bytes for {seconds} s let {sent} go");
        }
    }

    #[test]
    fn without_limits_nothing_waits() {
        let mut pace = Pace::new(&DrainSpec::default(), Monotonic::default());
        pace.spend(usize::MAX);
        assert_eq!(pace.wait_until(Monotonic::default()), None);
    }
}
