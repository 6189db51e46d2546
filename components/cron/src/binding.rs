//! The binding: a timer loop around the ticker.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::tz::TimeZone;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use selvedge::component::{
    Binding, BindingError, BindingHandler, BindingReading, ComponentContext, Fut, InitError, InputBinding, Metadata, PropertyError, ReadHandle,
};
use selvedge::time::{Clock, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::schedule::Schedule;
use crate::ticker::{Now, Ticker};

/// Calls of one binding that may run at the same time; a call that finds that many is left out.
const CALLS: usize = 16;

struct CronBinding {
    name: String,
    schedule: Schedule,
    clock: Arc<dyn Clock>,
    skipped: Counter,
}

/// Builds a `bindings.cron`.
///
/// # Errors
/// When `schedule` is missing or is none.
pub async fn binding(context: ComponentContext) -> Result<Binding, InitError> {
    let text = context.properties.require("schedule", "cron fields or @every DURATION")?;
    let schedule = Schedule::parse(text, &TimeZone::system()).map_err(|e| PropertyError::invalid("schedule", text, e.accepted))?;
    let skipped = context.metrics.shared(
        "selvedge_cron_skipped",
        "Calls of cron bindings left out because earlier ones were still running",
        Family::<Vec<(&'static str, String)>, Counter>::default,
    );
    let skipped = Counter::clone(&skipped.get_or_create(&vec![("component", context.name.clone())]));
    let input = CronBinding { name: context.name, schedule, clock: context.clock, skipped };
    Ok(Binding { input: Some(Arc::new(input)), output: None })
}

impl InputBinding for CronBinding {
    fn read<'a>(&'a self, handler: Arc<dyn BindingHandler>) -> Fut<'a, Result<Box<dyn ReadHandle>, BindingError>> {
        let (stop, stopped) = watch::channel(());
        let (running, done) = watch::channel(());
        let zone = match &self.schedule {
            Schedule::Pattern { zone_name: Some(name), .. } => name.clone(),
            _ => "Local".to_owned(),
        };
        let reader = Reader {
            name: self.name.clone(),
            ticker: Ticker::new(self.schedule.clone()),
            clock: self.clock.clone(),
            skipped: self.skipped.clone(),
            zone,
            handler,
        };
        tokio::spawn(async move {
            reader.run(stopped).await;
            drop(running);
        });
        let handle = Handle { stop: Mutex::new(Some(stop)), done };
        Box::pin(std::future::ready(Ok(Box::new(handle) as Box<dyn ReadHandle>)))
    }
}

struct Reader {
    name: String,
    ticker: Ticker,
    clock: Arc<dyn Clock>,
    skipped: Counter,
    zone: String,
    handler: Arc<dyn BindingHandler>,
}

impl Reader {
    async fn run(mut self, mut stopped: watch::Receiver<()>) {
        let mut calls = JoinSet::new();
        loop {
            let now = Now { wall: self.clock.now(), steady: self.clock.monotonic() };
            let step = self.ticker.step(now);
            if step.call {
                self.call(&mut calls, now.wall);
            }
            let sleep = tokio::time::sleep(step.sleep);
            tokio::pin!(sleep);
            loop {
                tokio::select! {
                    biased;
                    _ = stopped.changed() => {
                        while calls.join_next().await.is_some() {}
                        return;
                    }
                    Some(_) = calls.join_next() => {}
                    () = &mut sleep => break,
                }
            }
        }
    }

    fn call(&self, calls: &mut JoinSet<()>, now: Timestamp) {
        if calls.len() >= CALLS {
            self.skipped.inc();
            tracing::warn!(component.name = %self.name, "a call is left out: {CALLS} earlier ones are still running");
            return;
        }
        let metadata = Metadata::from([("timeZone".to_owned(), self.zone.clone()), ("readTimeUTC".to_owned(), go_time(now))]);
        let reading = BindingReading { metadata, ..BindingReading::default() };
        let (handler, name) = (self.handler.clone(), self.name.clone());
        calls.spawn(async move {
            if let Err(error) = handler.handle(reading).await {
                tracing::warn!(component.name = %name, %error, "the application did not take a call of the schedule; it is not repeated");
            }
        });
    }
}

/// A time in UTC as Go's `Time.String` writes it, which is what applications of Dapr's binding parse.
fn go_time(time: Timestamp) -> String {
    let text = time.to_rfc3339().replace('T', " ").replace('Z', "");
    // Zeros at the end of the fraction are left out, and the point with them.
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} +0000 UTC")
}

struct Handle {
    /// Dropped to stop.
    stop: Mutex<Option<watch::Sender<()>>>,
    done: watch::Receiver<()>,
}

impl ReadHandle for Handle {
    fn close<'a>(&'a self) -> Fut<'a, ()> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut done = self.done.clone();
        // Nothing is ever sent: the wait ends when the loop does.
        Box::pin(async move { while done.changed().await.is_ok() {} })
    }

    fn ended<'a>(&'a self) -> Fut<'a, ()> {
        let mut done = self.done.clone();
        Box::pin(async move { while done.changed().await.is_ok() {} })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use selvedge::component::HandlerError;
    use selvedge::time::Monotonic;
    use selvedge_conformance::Bench;

    use super::*;

    /// Follows the runtime's clock, which tests pause.
    struct RuntimeClock(tokio::time::Instant);

    impl Clock for RuntimeClock {
        fn now(&self) -> Timestamp {
            Timestamp(1_795_488_182_000).plus(self.0.elapsed())
        }
        fn monotonic(&self) -> Monotonic {
            Monotonic(self.0.elapsed())
        }
    }

    #[derive(Default)]
    struct Calls {
        readings: Mutex<Vec<BindingReading>>,
        hold: bool,
    }

    impl BindingHandler for Calls {
        fn handle<'a>(&'a self, reading: BindingReading) -> Fut<'a, Result<Option<Bytes>, HandlerError>> {
            self.readings.lock().unwrap().push(reading);
            Box::pin(async move {
                if self.hold {
                    tokio::time::sleep(Duration::from_secs(1000)).await;
                }
                Err(HandlerError::Retry("failures are not repeated".into()))
            })
        }
    }

    async fn open(bench: &Bench, schedule: &str) -> Arc<dyn InputBinding> {
        let mut context = bench.context("bindings.cron", &[("schedule", schedule)]);
        context.clock = Arc::new(RuntimeClock(tokio::time::Instant::now()));
        binding(context).await.unwrap().input.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn it_passes_the_shared_suite() {
        let bench = Bench::new().await;
        selvedge_conformance::input_binding(open(&bench, "@every 1s").await).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_has_no_data_and_tells_the_time() {
        let bench = Bench::new().await;
        let calls = Arc::new(Calls::default());
        let handle = open(&bench, "TZ=UTC 0 * * * * *").await.read(calls.clone()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(61)).await;
        handle.close().await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        let readings = calls.readings.lock().unwrap();
        assert_eq!(readings.len(), 1, "none after the close");
        assert!(readings[0].data.is_empty());
        assert_eq!(readings[0].metadata["timeZone"], "UTC");
        assert_eq!(readings[0].metadata["readTimeUTC"], "2026-11-24 02:44:00 +0000 UTC");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_do_not_end_are_bounded() {
        let bench = Bench::new().await;
        let calls = Arc::new(Calls { hold: true, ..Calls::default() });
        let handle = open(&bench, "@every 1s").await.read(calls.clone()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30_500)).await;
        assert_eq!(calls.readings.lock().unwrap().len(), CALLS);
        assert!(bench.metrics.render().contains("selvedge_cron_skipped_total{component=\"part\"} 14"), "{}", bench.metrics.render());
        drop(handle);
    }

    #[test]
    fn times_look_as_go_writes_them() {
        assert_eq!(go_time(Timestamp(1_795_488_182_120)), "2026-11-24 02:43:02.12 +0000 UTC");
        assert_eq!(go_time(Timestamp(1_795_488_180_000)), "2026-11-24 02:43:00 +0000 UTC");
    }

    #[tokio::test]
    async fn a_schedule_is_required_and_checked() {
        let bench = Bench::new().await;
        for settings in [&[][..], &[("schedule", "")], &[("schedule", "now and then")]] {
            let error = binding(bench.context("bindings.cron", settings)).await.err().unwrap();
            assert!(error.to_string().contains("schedule"), "{error}");
        }
    }
}
