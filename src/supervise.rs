//! Parts of the node that fail alone: a part that panics, or ends when it should not, is started again with back-off while all others go on.
//!
//! A part that blocks its thread cannot be contained from within: systemd's watchdog is for that.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::{Value, json};

use crate::escape::{Backoff, BackoffConfig, SplitMix};
use crate::telemetry::Metrics;
use crate::time::{Clock, Timestamp};

/// How long a part must run after a restart to count as well; its next failure waits as little as the first one.
const STABLE: Duration = Duration::from_secs(10);
/// Longest cause that is kept, in bytes.
const CAUSE_BYTES: usize = 500;
/// Files set aside that are remembered.
const MAX_SET_ASIDE: usize = 64;

/// A part that is not well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Degraded {
    /// Its name, for example `listener/devices`.
    pub part: String,
    /// When it failed for the first time.
    pub since: Timestamp,
    /// Failures since then.
    pub failures: u64,
    /// What happened last.
    pub cause: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Part {
    part: String,
}

struct Inner {
    clock: Arc<dyn Clock>,
    /// As many as there are parts, which the configuration bounds.
    degraded: Mutex<BTreeMap<String, Degraded>>,
    /// Damaged files that parts have set aside at the start, by their new names; at most [`MAX_SET_ASIDE`].
    set_aside: Mutex<Vec<PathBuf>>,
    failures: Family<Part, Counter>,
    gauge: Family<Part, Gauge>,
}

/// Starts parts and knows which ones are not well. Cheap to clone.
#[derive(Clone)]
pub struct Supervisor(Arc<Inner>);

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.degraded()).finish()
    }
}

/// What a panic said.
#[must_use]
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let said = said.unwrap_or("a panic without words");
    format!("panicked: {}", said.get(..said.floor_char_boundary(CAUSE_BYTES)).unwrap_or_default())
}

/// Runs a future; a panic in it is an error.
///
/// # Errors
/// What the panic said.
pub async fn contained<T>(future: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|panic| panic_text(&*panic))
}

impl Supervisor {
    /// One for a node.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, metrics: &Metrics) -> Self {
        let failures = metrics.shared("selvedge_part_failures", "Panics and unexpected ends of parts of the node", Family::default);
        let gauge =
            metrics.shared("selvedge_part_degraded", "1 while a part of the node is being started again, or has lost a file", Family::default);
        Self(Arc::new(Inner { clock, degraded: Mutex::default(), set_aside: Mutex::default(), failures, gauge }))
    }

    /// Parts that are not well, by name.
    #[must_use]
    pub fn degraded(&self) -> Vec<Degraded> {
        self.0.degraded.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The same as JSON: `part`, `since`, `failures`, `cause`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let one = |d: Degraded| json!({"part": d.part, "since": d.since.to_rfc3339(), "failures": d.failures, "cause": d.cause});
        self.degraded().into_iter().map(one).collect()
    }

    /// The books of one part whose loop catches its own panics.
    #[must_use]
    pub fn watch(&self, part: impl Into<String>) -> Watch {
        let backoff = Backoff::new(BackoffConfig::default());
        Watch { part: part.into(), supervisor: self.clone(), backoff, random: SplitMix::from_system(), failed: false }
    }

    /// Counts what a part failed at that goes on by itself, such as the handling of one message.
    pub fn count(&self, part: &str, cause: &str) {
        self.0.failures.get_or_create(&Part { part: part.to_owned() }).inc();
        tracing::error!(part, cause, "a part of the node met a defect; it goes on");
    }

    /// A part has found a file of its own damaged and begins with an empty one: it counts as degraded until the next start, since what was in
    /// the file is missing until somebody looks at it, and the node raises an alarm.
    pub fn set_aside(&self, part: &str, kept_as: PathBuf) {
        self.begin(part, &format!("a damaged file was set aside as {}; it began with an empty one", kept_as.display()));
        let mut files = self.0.set_aside.lock().unwrap_or_else(PoisonError::into_inner);
        if files.len() < MAX_SET_ASIDE {
            files.push(kept_as);
        }
    }

    /// A part has lost what it had in files and can go on without: degraded until the next start.
    pub fn has_lost(&self, part: &str, what: &str) {
        self.begin(part, what);
    }

    /// The files that parts have set aside since the start.
    #[must_use]
    pub fn files_set_aside(&self) -> Vec<PathBuf> {
        self.0.set_aside.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs a part until it returns `Ok`, or until `stop` resolves while it waits to be started again. An error, or a panic, starts it again
    /// after a pause (0.2 s at first, at most 30 s); each start is one call of `start`.
    pub async fn keep<F>(&self, part: impl Into<String>, stop: impl Future<Output = ()>, mut start: impl FnMut() -> F)
    where
        F: Future<Output = Result<(), String>>,
    {
        let mut watch = self.watch(part);
        tokio::pin!(stop);
        loop {
            let run = contained(async { start().await });
            tokio::pin!(run);
            let outcome = tokio::select! {
                outcome = &mut run => outcome,
                () = tokio::time::sleep(STABLE), if watch.failed => {
                    watch.well();
                    run.await
                }
            };
            let cause = match outcome {
                Ok(Ok(())) => return watch.well(),
                Ok(Err(cause)) | Err(cause) => cause,
            };
            tokio::select! {
                () = tokio::time::sleep(watch.failed(&cause)) => {}
                () = &mut stop => return,
            }
        }
    }

    fn note(&self, part: &str, cause: &str) {
        if self.begin(part, cause) {
            tracing::error!(part, cause, "a part of the node has failed; it is started again, the others go on");
        }
    }

    /// The part is not well. Returns whether that, or its cause, is new.
    fn begin(&self, part: &str, cause: &str) -> bool {
        let label = Part { part: part.to_owned() };
        self.0.failures.get_or_create(&label).inc();
        self.0.gauge.get_or_create(&label).set(1);
        let cause = cause.get(..cause.floor_char_boundary(CAUSE_BYTES)).unwrap_or_default();
        let mut all = self.0.degraded.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = all.entry(part.to_owned()).or_insert_with(|| Degraded {
            part: part.to_owned(),
            since: self.0.clock.now(),
            failures: 0,
            cause: String::new(),
        });
        entry.failures += 1;
        // Said when it begins and when it changes.
        let new = entry.cause != cause;
        if new {
            cause.clone_into(&mut entry.cause);
        }
        new
    }

    fn forget(&self, part: &str) {
        let gone = self.0.degraded.lock().unwrap_or_else(PoisonError::into_inner).remove(part);
        if let Some(degraded) = gone {
            self.0.gauge.get_or_create(&Part { part: part.to_owned() }).set(0);
            tracing::info!(part, failures = degraded.failures, "a part of the node is well again");
        }
    }
}

/// The books of one part.
#[derive(Debug)]
pub struct Watch {
    part: String,
    supervisor: Supervisor,
    backoff: Backoff,
    random: SplitMix,
    failed: bool,
}

impl Watch {
    /// It failed: noted. Returns how long to wait before it is started again.
    pub fn failed(&mut self, cause: &str) -> Duration {
        self.failed = true;
        self.supervisor.note(&self.part, cause);
        self.backoff.next(self.random.draw())
    }

    /// It is well.
    pub fn well(&mut self) {
        self.failed = false;
        self.backoff.reset();
        self.supervisor.forget(&self.part);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // A part that is taken away is no longer degraded.
        if self.failed {
            self.supervisor.forget(&self.part);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::time::ManualClock;

    fn supervisor() -> (Supervisor, Metrics) {
        let metrics = Metrics::new();
        (Supervisor::new(Arc::new(ManualClock::at(Timestamp(1_795_488_182_500))), &metrics), metrics)
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_panics_or_fails_is_started_again_and_is_well_after_some_time() {
        let (supervisor, metrics) = supervisor();
        let starts = AtomicUsize::new(0);
        let part = supervisor.keep("listener/devices", std::future::pending(), || async {
            match starts.fetch_add(1, Ordering::SeqCst) {
                0 => panic!("defect {}", 1),
                1 => Err("the address is taken".to_owned()),
                _ => {
                    tokio::time::sleep(STABLE * 3).await;
                    Ok(())
                }
            }
        });
        let look = async {
            while starts.load(Ordering::SeqCst) < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let first = &supervisor.to_json()[0];
            assert_eq!((&first["part"], &first["cause"]), (&json!("listener/devices"), &json!("the address is taken")));
            while starts.load(Ordering::SeqCst) < 3 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!((supervisor.degraded().len(), supervisor.degraded()[0].failures), (1, 2));
            assert!(metrics.render_text().contains("selvedge_part_degraded{part=\"listener/devices\"} 1"));
            tokio::time::sleep(STABLE + Duration::from_secs(1)).await;
            assert_eq!(supervisor.degraded(), []);
        };
        tokio::join!(part, look);
        assert_eq!(starts.load(Ordering::SeqCst), 3);
        let text = metrics.render_text();
        assert!(text.contains("selvedge_part_failures_total{part=\"listener/devices\"} 2"), "{text}");
        assert!(text.contains("selvedge_part_degraded{part=\"listener/devices\"} 0"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_fails_for_ever_is_tried_at_a_bounded_rate_and_ends_when_it_is_told_to() {
        let (supervisor, _) = supervisor();
        let starts = AtomicUsize::new(0);
        let began = tokio::time::Instant::now();
        let stop = tokio::time::sleep(Duration::from_secs(3_600));
        supervisor
            .keep("x", stop, || {
                starts.fetch_add(1, Ordering::SeqCst);
                // The panic may come before there is a future, too.
                assert!(starts.load(Ordering::SeqCst) > 1_000_000, "never");
                std::future::ready(Ok(()))
            })
            .await;
        assert_eq!(began.elapsed().as_secs(), 3_600);
        let starts = starts.load(Ordering::SeqCst);
        assert!((100..1_000).contains(&starts), "{starts} starts in an hour");
        assert_eq!(supervisor.degraded(), [], "what has ended is not degraded");
    }
}
