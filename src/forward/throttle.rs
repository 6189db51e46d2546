//! How many publishes may be on their way, by how long their answers take: doubles from a small window while answers are quick, halves
//! when they are slow, then grows by one a round (additive increase, multiplicative decrease, as TCP does; RFC 5681, section 3.1). On a
//! link of a few KiB a second a full window would take minutes to answer and look like silence. What is slow is seen beside the quickest
//! answer of the connection: a link that is far away is not a slow one. One that becomes far away is found by a publish that was alone on
//! its way: nothing waited on it, so what it took is what the way takes now.

use std::time::Duration;

use crate::time::Monotonic;

/// The window that a connection begins with.
const FIRST: usize = 16;

/// The limit of one connection.
#[derive(Debug)]
pub(super) struct Throttle {
    /// Answers that take longer are slow, unless the link is far away.
    slow: Duration,
    /// The quickest answer of this connection, since one that was alone on its way was slow: what the way takes when nothing waits on it.
    quickest: Option<Duration>,
    /// Most publishes; none when the full window may be used.
    limit: Option<usize>,
    /// Until the first slow answer the window doubles in each round.
    doubling: bool,
    /// Answers since the window grew last.
    answers: usize,
    /// When the window became smaller last; it takes a while to show.
    since: Option<Monotonic>,
    /// When the present period began, which is as long as `slow`; answers in it and in the one before.
    period: Monotonic,
    counts: (usize, usize),
}

impl Throttle {
    pub(super) fn new(slow: Duration) -> Self {
        Self { slow, quickest: None, limit: Some(FIRST), doubling: true, answers: 0, since: None, period: Monotonic::default(), counts: (0, 0) }
    }

    /// Another bound for what is slow; the window begins anew.
    pub(super) fn set_slow(&mut self, slow: Duration) {
        *self = Self::new(slow);
    }

    /// A new connection.
    pub(super) fn begin(&mut self) {
        *self = Self::new(self.slow);
    }

    /// How many may be on their way, of a window of `full`.
    pub(super) fn allow(&self, full: usize) -> usize {
        self.limit.map_or(full, |limit| limit.min(full))
    }

    /// What is slow on this connection: over a satellite every answer takes its time, however few are on their way.
    fn bound(&self) -> Duration {
        self.slow.max(self.quickest.unwrap_or_default() * 2)
    }

    /// An answer of this age is slow.
    pub(super) fn is_slow(&self, age: Duration) -> bool {
        age > self.bound()
    }

    /// When an answer to what was sent at this time is slow.
    pub(super) fn overdue_at(&self, sent_at: Monotonic) -> Monotonic {
        sent_at.plus(self.bound() + Duration::from_millis(1))
    }

    /// The peer is over its quota: as after a slow answer.
    pub(super) fn refused(&mut self, now: Monotonic, full: usize) {
        self.limit = Some((self.allow(full) / 2).max(1));
        (self.doubling, self.answers, self.since) = (false, 0, Some(now));
    }

    /// An answer came, `full` being the window that is possible. Returns whether it was slow.
    pub(super) fn answered(&mut self, sent_at: Monotonic, now: Monotonic, full: usize) -> bool {
        let took = now.since(sent_at);
        self.quickest = Some(self.quickest.map_or(took, |quickest| quickest.min(took)));
        if took > self.bound() && self.limit == Some(1) && self.since.is_some_and(|at| sent_at >= at) {
            // It was sent alone, so nothing but the way has made it slow: the way has become longer, and the window is looked for anew. A
            // minimum over some time would not tell that from a link that is busy, whose window must not grow.
            *self = Self { quickest: Some(took), since: Some(now), ..Self::new(self.slow) };
            return true;
        }
        let bound = self.bound();
        if now.since(self.period) >= bound {
            self.counts = (0, if now.since(self.period) < bound * 2 { self.counts.0 } else { 0 });
            self.period = now;
        }
        self.counts.0 += 1;
        if took > bound {
            if self.since.is_none_or(|at| now.since(at) >= bound) {
                // Half of what the link has just carried in the time that an answer may take is not too much, however long the answers
                // of a window that was too large still take.
                let carried = self.counts.0.max(self.counts.1);
                self.limit = Some((self.allow(full) / 2).max(carried / 2).clamp(1, full));
                self.doubling = false;
                self.answers = 0;
                self.since = Some(now);
            }
            return true;
        }
        let Some(limit) = &mut self.limit else { return false };
        // Between the two the window is right.
        if took > (self.slow / 2).max(self.quickest.unwrap_or_default() * 5 / 4) {
            return false;
        }
        self.answers += 1;
        if self.doubling || self.answers >= *limit {
            *limit += 1;
            self.answers = 0;
        }
        if *limit >= full {
            self.limit = None;
            self.doubling = false;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_millis(1_500);

    /// A link that takes `per_second` publishes a second, for some seconds of simulated time: how many it took, and how long the slowest
    /// answer of the second half was away.
    fn link(throttle: &mut Throttle, per_second: u64, seconds: u64, start: Monotonic) -> (u64, Duration) {
        let every = Duration::from_micros(1_000_000 / per_second);
        let (mut now, end) = (start, start.plus(Duration::from_secs(seconds)));
        let (mut waiting, mut answered, mut worst) = (std::collections::VecDeque::new(), 0, Duration::ZERO);
        while now < end {
            while waiting.len() < throttle.allow(512) {
                waiting.push_back(now);
            }
            now = now.plus(every);
            if let Some(sent_at) = waiting.pop_front() {
                answered += 1;
                if now.since(start) > end.since(start) / 2 {
                    worst = worst.max(now.since(sent_at));
                }
                throttle.answered(sent_at, now, 512);
            }
        }
        (answered, worst)
    }

    #[test]
    fn a_slow_link_is_kept_busy_without_long_waits_and_a_fast_one_is_not_limited() {
        for per_second in [2, 4, 20, 100] {
            let mut throttle = Throttle::new(SLOW);
            let (answered, worst) = link(&mut throttle, per_second, 120, Monotonic::default());
            assert!(answered >= 118 * per_second && worst <= SLOW * 2, "{per_second}/s: {answered} in 120 s, the slowest {worst:?}");
        }
        let mut throttle = Throttle::new(SLOW);
        link(&mut throttle, 10_000, 1, Monotonic::default());
        assert_eq!(throttle.allow(512), 512);
    }

    #[test]
    fn a_link_that_is_far_away_is_not_a_slow_one() {
        let (mut throttle, way) = (Throttle::new(SLOW), Duration::from_secs(6));
        let mut now = Monotonic::default();
        for _ in 0..8 {
            // A round: all that may be on their way is answered when it has been there and back.
            let (sent_at, sent) = (now, throttle.allow(512));
            now = now.plus(way);
            for _ in 0..sent {
                assert!(!throttle.answered(sent_at, now, 512));
            }
        }
        assert!(throttle.allow(512) == 512 && !throttle.is_slow(way) && throttle.is_slow(way * 3), "{throttle:?}");
    }

    #[test]
    fn a_link_that_becomes_far_away_gets_its_window_back_and_a_busy_one_does_not() {
        let (mut throttle, way) = (Throttle::new(SLOW), Duration::from_secs(10));
        link(&mut throttle, 10_000, 1, Monotonic::default());
        assert_eq!(throttle.allow(512), 512);
        let mut now = Monotonic(Duration::from_secs(1));
        let mut least = 512;
        for _ in 0..24 {
            let (sent_at, sent) = (now, throttle.allow(512));
            least = least.min(sent);
            now = now.plus(way);
            for _ in 0..sent {
                throttle.answered(sent_at, now, 512);
            }
        }
        assert!(least == 1 && throttle.allow(512) == 512 && !throttle.is_slow(way) && throttle.is_slow(way * 3), "{throttle:?}");
        // Back where it was, the first answers say so.
        link(&mut throttle, 10_000, 1, now);
        assert!(throttle.is_slow(way), "{throttle:?}");

        // One publish takes longer than `slow` here: the window stays about one, it does not run away with the waits that it makes.
        let mut busy = Throttle::new(Duration::from_millis(300));
        link(&mut busy, 10_000, 1, Monotonic::default());
        link(&mut busy, 2, 600, Monotonic(Duration::from_secs(1)));
        assert!(busy.allow(512) <= 4, "{busy:?}");
    }

    #[test]
    fn a_link_that_becomes_slow_and_quick_again_is_followed() {
        let mut throttle = Throttle::new(SLOW);
        link(&mut throttle, 10_000, 1, Monotonic::default());
        link(&mut throttle, 4, 200, Monotonic(Duration::from_secs(1)));
        assert!(throttle.allow(512) < 16, "{throttle:?}");
        link(&mut throttle, 10_000, 60, Monotonic(Duration::from_secs(201)));
        assert!(throttle.allow(512) == 512, "{throttle:?}");
    }
}
