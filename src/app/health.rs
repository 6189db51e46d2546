//! Whether the application is well (`--enable-app-health-check`): asked again and again, answered by a rule of its own.

use std::time::Duration;

use tokio::sync::watch;

use super::AppChannel;

/// How the application is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Path of an HTTP application; one that speaks gRPC has the service `AppCallbackHealthCheck`.
    pub path: String,
    /// Between two questions.
    pub interval: Duration,
    /// Longest wait for an answer; at most the interval.
    pub timeout: Duration,
    /// Bad answers in a row that make it unwell.
    pub threshold: u32,
}

/// The rule: unwell at first; one good answer makes it well, `threshold` bad ones in a row make it unwell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Health {
    well: bool,
    bad: u32,
}

impl Health {
    fn note(&mut self, good: bool, threshold: u32) {
        self.bad = if good { 0 } else { self.bad.saturating_add(1) };
        self.well = good || (self.well && self.bad < threshold);
    }
}

impl AppChannel {
    /// Asks until nobody wants to know any more; `well` is told of each change.
    pub async fn watch_health(self, check: HealthCheck, well: watch::Sender<bool>) {
        let mut health = Health::default();
        loop {
            let good = tokio::time::timeout(check.timeout, self.is_well(&check.path)).await.unwrap_or(false);
            health.note(good, check.threshold);
            well.send_if_modified(|before| {
                let changed = *before != health.well;
                *before = health.well;
                changed
            });
            tokio::select! {
                () = tokio::time::sleep(check.interval) => {}
                () = well.closed() => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_good_answer_makes_it_well_and_the_threshold_of_bad_ones_unwell() {
        let mut health = Health::default();
        let mut after = |answers: &str| {
            answers.chars().for_each(|a| health.note(a == '+', 3));
            health.well
        };
        assert_eq!(["-", "+", "--", "+--", "-", "+"].map(&mut after), [false, true, true, true, false, true]);
    }
}
