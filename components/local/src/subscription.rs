//! An application's subscriptions: durable destinations, and the loop that serves each.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use selvedge::component::{Fut, HandlerError, MessageHandler, PubSubError, SubscriptionHandle};
use selvedge::hub::{Consumer, Hub, LaneRun};
use selvedge::outbox::DestinationId;
use selvedge::supervise::contained;
use selvedge::time::Monotonic;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::LocalOptions;
use crate::delivery::{self, Facts, delivery};
use crate::dispatch::{Backoff, Dispatcher, Job, Offer, Origin};

/// Records read at once.
const RUN_RECORDS: usize = 64;
/// Bytes read at once.
const RUN_BYTES: usize = 256 << 10;
/// Pause after a lane could not be read.
const READ_PAUSE: Duration = Duration::from_secs(1);
/// Retained messages that a new subscription is given.
const RETAINED_MESSAGES: usize = 256;

/// A durable subscription of the application, held by someone or not.
struct Standing {
    destination: DestinationId,
    /// Whoever has it serves the subscription; others wait for it.
    turn: Arc<tokio::sync::Mutex<()>>,
    holders: usize,
    /// Ends the subscription when nobody has come by then.
    forgetting: Option<AbortHandle>,
}

pub(crate) struct Subscriptions {
    pubsub: String,
    /// Beginning of the names of this application's destinations.
    prefix: String,
    hub: Hub,
    options: LocalOptions,
    failures: Counter,
    standing: Mutex<HashMap<String, Standing>>,
    /// Set to end all loops.
    closing: watch::Sender<bool>,
    closed: AtomicBool,
}

impl Subscriptions {
    pub fn new(pubsub: &str, app_id: &str, hub: Hub, options: LocalOptions, failures: Counter) -> Arc<Self> {
        Arc::new(Self {
            pubsub: pubsub.to_owned(),
            prefix: format!("app/{app_id}/{pubsub}/"),
            hub,
            options,
            failures,
            standing: Mutex::default(),
            closing: watch::channel(false).0,
            closed: AtomicBool::new(false),
        })
    }

    fn standing(&self) -> MutexGuard<'_, HashMap<String, Standing>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Binds again what the outbox knows of this application, so that nothing is missed until it comes back.
    pub fn restore(self: &Arc<Self>) {
        let mut filters: Vec<String> =
            self.hub.outbox().ledger().into_iter().filter_map(|row| row.destination.strip_prefix(&self.prefix).map(str::to_owned)).collect();
        filters.sort();
        filters.dedup();
        for filter in filters {
            match self.stand(&filter) {
                Ok(_) => self.left(&filter),
                Err(error) => tracing::warn!(mqtt.topic = %filter, %error, "a stored subscription cannot be taken up again"),
            }
        }
    }

    /// Finds or makes the durable subscription and counts one holder more. Returns whether it is new.
    fn stand(self: &Arc<Self>, filter: &str) -> Result<(DestinationId, Arc<tokio::sync::Mutex<()>>, bool), PubSubError> {
        let mut standing = self.standing();
        if let Some(there) = standing.get_mut(filter) {
            there.holders += 1;
            if let Some(forgetting) = there.forgetting.take() {
                forgetting.abort();
            }
            return Ok((there.destination, there.turn.clone(), false));
        }
        selvedge::topic::check_filter(filter).map_err(|e| PubSubError::Invalid(format!("topic {filter:?}: {e}")))?;
        let destination = self.hub.destination(&format!("{}{filter}", self.prefix)).map_err(|e| PubSubError::Unavailable(e.to_string()))?;
        self.hub.bind(destination, &self.pubsub, filter).map_err(|e| PubSubError::Invalid(format!("topic {filter:?}: {e}")))?;
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        standing.insert(filter.to_owned(), Standing { destination, turn: turn.clone(), holders: 1, forgetting: None });
        Ok((destination, turn, true))
    }

    /// A holder has gone.
    fn left(self: &Arc<Self>, filter: &str) {
        let mut standing = self.standing();
        let Some(there) = standing.get_mut(filter) else { return };
        there.holders = there.holders.saturating_sub(1);
        if there.holders > 0 || self.options.forget_after.is_zero() || self.is_closed() {
            return;
        }
        let (subscriptions, filter, after) = (Arc::downgrade(self), filter.to_owned(), self.options.forget_after);
        let task = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if let Some(subscriptions) = subscriptions.upgrade() {
                subscriptions.forget(&filter);
            }
        });
        there.forgetting = Some(task.abort_handle());
    }

    fn forget(&self, filter: &str) {
        let mut standing = self.standing();
        let Some(there) = standing.get(filter).filter(|s| s.holders == 0) else { return };
        match self.hub.forget(there.destination) {
            Ok(()) => tracing::warn!(mqtt.topic = %filter, "nobody has held this subscription for long: it is forgotten, with what waited for it"),
            Err(error) => tracing::error!(mqtt.topic = %filter, %error, "a subscription that nobody holds could not be forgotten"),
        }
        standing.remove(filter);
    }

    pub fn subscribe(self: &Arc<Self>, filter: &str, handler: Arc<dyn MessageHandler>) -> Result<Box<dyn SubscriptionHandle>, PubSubError> {
        let (destination, turn, new) = self.stand(filter)?;
        // Who subscribes for the first time is given what is retained; who comes back has had it.
        let retained = if new { self.hub.retained(&self.pubsub, filter) } else { Vec::new() };
        let backoff = Backoff { first: self.options.retry_first, max: self.options.retry_max };
        let mut dispatcher = Dispatcher::new(self.options.concurrency, backoff);
        for (number, message) in (0..).zip(retained.iter().take(RETAINED_MESSAGES)) {
            dispatcher.offer(Origin::Retained(number), delivery::retained(message), None);
        }
        let (stop, stopped) = watch::channel(());
        let (running, done) = watch::channel(());
        let server = Server { subscriptions: self.clone(), destination, handler, dispatcher, started: Instant::now() };
        let closing = self.closing.subscribe();
        let (subscriptions, name) = (self.clone(), filter.to_owned());
        tokio::spawn(async move {
            // A defect ends this subscription like any end: its holder, who waits for `ended`, subscribes anew.
            if let Err(cause) = contained(server.run(turn, stopped, closing)).await {
                tracing::error!(mqtt.topic = %name, cause, "a subscription met a defect");
            }
            subscriptions.left(&name);
            drop(running); // tells those who wait in `close` and `ended`
        });
        Ok(Box::new(Handle { stop: Mutex::new(Some(stop)), done }))
    }

    /// Ends all subscriptions; what is queued stays queued.
    pub async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.closing.send_replace(true);
        for standing in self.standing().values_mut() {
            if let Some(forgetting) = standing.forgetting.take() {
                forgetting.abort();
            }
        }
        self.closing.closed().await; // each loop holds a receiver until its handlers are done
    }
}

struct Handle {
    /// Dropped to stop.
    stop: Mutex<Option<watch::Sender<()>>>,
    done: watch::Receiver<()>,
}

impl SubscriptionHandle for Handle {
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

/// The loop of one subscription.
struct Server {
    subscriptions: Arc<Subscriptions>,
    destination: DestinationId,
    handler: Arc<dyn MessageHandler>,
    dispatcher: Dispatcher,
    /// Intervals are measured from here with the runtime's clock, which its timers follow too.
    started: Instant,
}

type Outcome = (String, Origin, Result<(), HandlerError>);

impl Server {
    async fn run(mut self, turn: Arc<tokio::sync::Mutex<()>>, mut stopped: watch::Receiver<()>, mut closing: watch::Receiver<bool>) {
        let _turn = tokio::select! {
            biased;
            _ = stopped.changed() => return,
            _ = closing.wait_for(|closing| *closing) => return,
            turn = turn.lock() => turn,
        };
        let mut consumer = self.subscriptions.hub.consumer(self.destination);
        let mut jobs: JoinSet<Outcome> = JoinSet::new();
        // Which message a task has, for the case that its handler panics.
        let mut doing: HashMap<tokio::task::Id, (String, Origin)> = HashMap::new();
        let mut run = LaneRun::default();
        let mut unreadable_until = None;
        loop {
            let caught_up = self.read(&mut consumer, &mut run, &mut unreadable_until);
            while let Some(job) = self.dispatcher.start(self.now(), self.subscriptions.hub.outbox().now()) {
                let (topic, origin) = (job.delivery.topic.clone(), job.origin);
                let task = jobs.spawn(handle(self.handler.clone(), job));
                doing.insert(task.id(), (topic, origin));
            }
            if self.dispatcher.take_rewind() {
                consumer.rewind();
                continue;
            }
            let wake = [self.dispatcher.next_due().map(|at| self.started + at.0), unreadable_until].into_iter().flatten().min();
            tokio::select! {
                biased;
                _ = stopped.changed() => break,
                _ = closing.wait_for(|closing| *closing) => break,
                Some(outcome) = jobs.join_next_with_id() => {
                    self.done(&consumer, outcome, &mut doing);
                    while let Some(outcome) = jobs.try_join_next_with_id() {
                        self.done(&consumer, outcome, &mut doing);
                    }
                }
                () = consumer.readable(), if caught_up => {}
                () = sleep_until(wake), if wake.is_some() => {}
            }
            if self.dispatcher.take_rewind() {
                consumer.rewind();
            }
        }
        while let Some(outcome) = jobs.join_next_with_id().await {
            self.done(&consumer, outcome, &mut doing);
        }
    }

    fn now(&self) -> Monotonic {
        Monotonic(self.started.elapsed())
    }

    /// Reads while there is room. Returns whether everything stored has been read, so that new records are worth waiting for.
    fn read(&mut self, consumer: &mut Consumer, run: &mut LaneRun, unreadable_until: &mut Option<Instant>) -> bool {
        if unreadable_until.take_if(|at| *at <= Instant::now()).is_none() && unreadable_until.is_some() {
            return false;
        }
        while self.dispatcher.wants_more() {
            match consumer.next_run(RUN_RECORDS, RUN_BYTES, run) {
                Ok(0) => return true,
                Ok(_) => self.take_run(consumer, run),
                Err(error) => {
                    tracing::error!(%error, "a lane cannot be read; trying again");
                    *unreadable_until = Some(Instant::now() + READ_PAUSE);
                    return false;
                }
            }
        }
        false
    }

    fn take_run(&mut self, consumer: &Consumer, run: &LaneRun) {
        let Some(lane) = run.lane() else { return };
        let outbox = self.subscriptions.hub.outbox();
        let now = outbox.now();
        let mut done = Vec::new();
        for record in run.run.iter() {
            let expires = record.remaining_seconds(now).map(|left| now.plus(Duration::from_secs(u64::from(left))));
            let facts = Facts {
                topic: record.topic(),
                payload: Bytes::copy_from_slice(record.payload()),
                qos: record.qos(),
                retained: false,
                record_id: Some(outbox.record_id_text(record.id)),
            };
            let delivery = record.with_attributes(|attributes| delivery(facts, &attributes));
            if self.dispatcher.offer(Origin::Stored(lane, record.id.sequence), delivery, expires) == Offer::Done {
                done.push(record.id.sequence);
            }
        }
        if !done.is_empty() {
            consumer.acknowledge(lane, &done);
        }
    }

    fn done(
        &mut self,
        consumer: &Consumer,
        outcome: Result<(tokio::task::Id, Outcome), tokio::task::JoinError>,
        doing: &mut HashMap<tokio::task::Id, (String, Origin)>,
    ) {
        let (topic, origin, result) = match outcome {
            Ok((id, outcome)) => {
                doing.remove(&id);
                outcome
            }
            Err(error) => {
                let Some((topic, origin)) = doing.remove(&error.id()) else { return };
                (topic, origin, Err(HandlerError::Retry(format!("the handler broke off: {error}"))))
            }
        };
        if let Err(error) = &result {
            self.subscriptions.failures.inc();
            tracing::debug!(mqtt.topic = %topic, %error, "a message was not handled; it will be tried again");
        }
        if self.dispatcher.finished(&topic, origin, result.is_ok(), self.now())
            && let Origin::Stored(lane, sequence) = origin
        {
            consumer.acknowledge(lane, &[sequence]);
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn handle(handler: Arc<dyn MessageHandler>, job: Job) -> Outcome {
    if job.attempt == 2 {
        tracing::warn!(mqtt.topic = %job.delivery.topic, "the handler failed on a message of this topic; it is tried again until it takes it");
    }
    let topic = job.delivery.topic.clone();
    let result = handler.handle(job.delivery).await;
    (topic, job.origin, result)
}
