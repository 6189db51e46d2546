//! The input binding: a thread that reads, a task that keeps the schedule and hands readings on.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::mpsc as sync_mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use selvedge::component::{BindingError, BindingHandler, BindingReading, Fut, HandlerError, InputBinding, Metadata, ReadHandle};
use selvedge::time::Clock;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::host::{Failure, Host, Sample};
use crate::metrics::SensorMetrics;
use crate::reading::Reading;
use crate::schedule::Schedule;
use crate::settings::Settings;

/// Readings of one sample that are handed on at a time: they share a sync of the store.
const CONCURRENT: usize = 16;
/// A sample that takes longer is told of in the log.
const SLOW_SAMPLE: Duration = Duration::from_secs(30);
/// Failing sensors that are remembered, so that each is logged once.
const MAX_REMEMBERED_FAILURES: usize = 512;

/// The box's sensors.
pub(crate) struct Sensors {
    name: String,
    settings: Settings,
    clock: Arc<dyn Clock>,
    metrics: SensorMetrics,
}

impl Sensors {
    pub(crate) fn new(name: String, settings: Settings, clock: Arc<dyn Clock>, metrics: SensorMetrics) -> Self {
        Self { name, settings, clock, metrics }
    }
}

impl InputBinding for Sensors {
    fn read<'a>(&'a self, handler: Arc<dyn BindingHandler>) -> Fut<'a, Result<Box<dyn ReadHandle>, BindingError>> {
        Box::pin(async move {
            // One sample is asked for at a time, so neither channel holds more than one.
            let (ask, asked) = sync_mpsc::sync_channel(1);
            let (tell, told) = mpsc::channel(1);
            let mut host = Host::new(self.settings.root.clone());
            let groups = self.settings.groups.clone();
            std::thread::Builder::new()
                .name("sensors".into())
                .spawn(move || {
                    // Ends when the task below is gone.
                    while asked.recv().is_ok() {
                        if tell.blocking_send(host.sample(&groups)).is_err() {
                            break;
                        }
                    }
                })
                .map_err(|e| BindingError::Unavailable(format!("cannot start the thread that reads sensors: {e}")))?;
            let (stop, stopped) = watch::channel(false);
            let sampler = Sampler {
                name: self.name.clone(),
                settings: self.settings.clone(),
                clock: self.clock.clone(),
                metrics: self.metrics.clone(),
                handler,
                ask,
                told,
                stopped,
                failing: HashSet::new(),
                refusing: false,
            };
            let (running, done) = watch::channel(());
            let task = tokio::spawn(async move {
                sampler.run().await;
                drop(running);
            });
            Ok(Box::new(RunningRead { stop, task: Mutex::new(Some(task)), done }) as Box<dyn ReadHandle>)
        })
    }
}

/// A running read. Dropping it drops `stop`, which ends the task as well.
struct RunningRead {
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
    /// Closed when the task is over, by a panic too.
    done: watch::Receiver<()>,
}

impl ReadHandle for RunningRead {
    fn close<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(async move {
            self.stop.send_replace(true);
            let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(task) = task {
                // A task that panicked is over as well.
                let _ = task.await;
            }
        })
    }

    fn ended<'a>(&'a self) -> Fut<'a, ()> {
        let mut done = self.done.clone();
        Box::pin(async move { while done.changed().await.is_ok() {} })
    }
}

struct Sampler {
    name: String,
    settings: Settings,
    clock: Arc<dyn Clock>,
    metrics: SensorMetrics,
    handler: Arc<dyn BindingHandler>,
    ask: sync_mpsc::SyncSender<()>,
    told: mpsc::Receiver<Sample>,
    stopped: watch::Receiver<bool>,
    failing: HashSet<PathBuf>,
    refusing: bool,
}

/// Resolves when the read is to end: said so, or the handle dropped.
async fn ended(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

impl Sampler {
    async fn run(mut self) {
        let mut schedule = Schedule::new(self.clock.monotonic(), self.settings.interval);
        loop {
            let wait = schedule.due().since(self.clock.monotonic());
            tokio::select! {
                biased;
                () = ended(&mut self.stopped) => return,
                () = tokio::time::sleep(wait) => {}
            }
            let Some(sample) = self.sample().await else { return };
            self.note(&sample);
            if !self.hand_on(sample.readings).await {
                return;
            }
            let skipped = schedule.advance(self.clock.monotonic());
            self.metrics.skipped.inc_by(u64::from(skipped));
        }
    }

    /// One sample from the thread; none when the read ends.
    async fn sample(&mut self) -> Option<Sample> {
        if self.ask.try_send(()).is_err() {
            tracing::error!(component.name = %self.name, "the thread that reads sensors is gone; no more readings");
            return None;
        }
        let mut slow = false;
        loop {
            tokio::select! {
                biased;
                () = ended(&mut self.stopped) => return None,
                sample = self.told.recv() => return sample,
                () = tokio::time::sleep(SLOW_SAMPLE), if !slow => {
                    slow = true;
                    tracing::warn!(component.name = %self.name, "sensors have not been read for 30 s: a device hangs");
                }
            }
        }
    }

    /// Counts, and logs what begins to fail or works again.
    fn note(&mut self, sample: &Sample) {
        self.metrics.sensors.set(i64::try_from(sample.readings.len()).unwrap_or(i64::MAX));
        if sample.beyond_limit > 0 {
            if self.metrics.beyond_limit.get() == 0 {
                tracing::warn!(component.name = %self.name, left_out = sample.beyond_limit, "more sensors than are sampled; use `exclude`");
            }
            self.metrics.beyond_limit.inc_by(sample.beyond_limit as u64);
        }
        let mut failing = HashSet::new();
        for Failure { group, file, cause } in sample.failures.iter().take(MAX_REMEMBERED_FAILURES) {
            self.metrics.failed(*group);
            if !self.failing.contains(file) {
                tracing::warn!(component.name = %self.name, file = %file.display(), error = %cause, "sensor cannot be read and is left out");
            }
            failing.insert(file.clone());
        }
        self.failing = failing;
    }

    /// Hands readings to the node. False when it wants no more.
    async fn hand_on(&mut self, readings: Vec<Reading>) -> bool {
        let at = self.clock.now();
        let (handler, format) = (&self.handler, self.settings.format);
        let results: Vec<Result<(), HandlerError>> = stream::iter(readings)
            .map(|reading| {
                let (data, content_type) = reading.encode(at, format);
                let metadata = Metadata::from([("topic".to_owned(), reading.topic), ("unit".to_owned(), reading.unit.to_owned())]);
                let reading = BindingReading { data: data.into(), metadata, content_type: Some(content_type.to_owned()) };
                async move { handler.handle(reading).await.map(|_| ()) }
            })
            .buffer_unordered(CONCURRENT)
            .collect()
            .await;
        let mut refused = None;
        for result in results {
            match result {
                Ok(()) => {
                    self.metrics.readings.inc();
                }
                Err(HandlerError::Closed) => return false,
                Err(error) => {
                    self.metrics.refused.inc();
                    refused = Some(error);
                }
            }
        }
        // The next sample is newer, so what was refused is not offered again.
        if let Some(error) = refused.as_ref().filter(|_| !self.refusing) {
            tracing::warn!(component.name = %self.name, %error, "sensor readings are not taken");
        }
        self.refusing = refused.is_some();
        true
    }
}

#[cfg(test)]
mod tests {
    use selvedge::component::Properties;
    use selvedge::telemetry::Metrics;
    use selvedge::time::SystemClock;

    use super::*;

    struct Collect {
        seen: mpsc::UnboundedSender<BindingReading>,
        answer: Result<(), HandlerError>,
    }

    impl BindingHandler for Collect {
        fn handle<'a>(&'a self, reading: BindingReading) -> Fut<'a, Result<Option<bytes::Bytes>, HandlerError>> {
            let _ = self.seen.send(reading);
            let answer = self.answer.clone().map(|()| None);
            Box::pin(async move { answer })
        }
    }

    fn sensors(root: &std::path::Path, metrics: &Metrics) -> Sensors {
        let properties: Properties = [("interval", "100ms"), ("include", "load"), ("rootPath", root.to_str().unwrap())].into_iter().collect();
        let settings = Settings::from_properties(&properties).unwrap();
        Sensors::new("host".into(), settings, Arc::new(SystemClock::new()), SensorMetrics::new(metrics, "host"))
    }

    async fn next(seen: &mut mpsc::UnboundedReceiver<BindingReading>) -> Option<BindingReading> {
        tokio::time::timeout(Duration::from_secs(20), seen.recv()).await.expect("in time")
    }

    #[tokio::test]
    async fn readings_come_until_the_read_is_closed() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc")).unwrap();
        std::fs::write(root.path().join("proc/loadavg"), "1 2 3 1/1 1").unwrap();
        let metrics = Metrics::new();
        let (send, mut seen) = mpsc::unbounded_channel();
        let handle = sensors(root.path(), &metrics).read(Arc::new(Collect { seen: send, answer: Ok(()) })).await.unwrap();
        let mut topics = Vec::new();
        for _ in 0..6 {
            let reading = next(&mut seen).await.unwrap();
            assert_eq!(reading.content_type.as_deref(), Some("application/json"));
            assert!(reading.data.starts_with(b"{\"value\":"));
            topics.push(reading.metadata["topic"].clone());
        }
        topics.sort();
        assert_eq!(topics, ["load/15m", "load/15m", "load/1m", "load/1m", "load/5m", "load/5m"]);
        // A sensor that fails is counted, and comes back when it works again.
        std::fs::write(root.path().join("proc/loadavg"), "?").unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !metrics.render().contains("selvedge_sensors_failures_total{binding=\"host\",group=\"load\"}") {
            assert!(std::time::Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
        std::fs::write(root.path().join("proc/loadavg"), "4 5 6 1/1 1").unwrap();
        while !next(&mut seen).await.unwrap().data.starts_with(b"{\"value\":4") {}
        handle.close().await;
        while next(&mut seen).await.is_some() {} // ends: nobody holds the handler any more
    }

    #[tokio::test]
    async fn a_handler_that_is_closed_or_a_dropped_handle_ends_the_read() {
        let metrics = Metrics::new();
        for answer in [Err(HandlerError::Closed), Ok(()), Err(HandlerError::Retry("full".into()))] {
            let (send, mut seen) = mpsc::unbounded_channel();
            let handle = sensors(std::path::Path::new("/"), &metrics).read(Arc::new(Collect { seen: send, answer: answer.clone() })).await.unwrap();
            assert!(next(&mut seen).await.is_some());
            if answer == Err(HandlerError::Closed) {
                while next(&mut seen).await.is_some() {}
            }
            drop(handle);
            while next(&mut seen).await.is_some() {}
        }
        assert!(metrics.render().contains("selvedge_sensors_refused_total{binding=\"host\"} "));
    }
}
