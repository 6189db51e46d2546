//! Routes that stay on the box: what one name space accepts comes into another, or into the same one under another topic.
//!
//! Such a route is a destination of the store like any other: what it has to carry is as safe as its lane says, waits when its target is
//! full, and is counted in the books. Its message is accepted anew, so everything that wants it gets it, upstreams included.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt as _;
use prometheus_client::metrics::counter::Counter;
use smallvec::SmallVec;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::routes::RouteMetrics;
use crate::component::Fut;
use crate::hub::{AcceptError, Accepted, Consumer, Hub, LaneRun, Receipt};
use crate::message::Inbound;
use crate::outbox::{DestinationId, LaneId, OutboxError, Record};
use crate::resource::RouteSpec;
use crate::supervise::Supervisor;

/// Records and bytes that are carried at a time.
const MOST: usize = 256;
const MOST_BYTES: usize = 256 << 10;
/// Pause after a lane that could not be read, and after a target that takes nothing.
const RETRY: Duration = Duration::from_secs(1);
/// User property that counts the routes a message has taken. Routes that feed themselves are refused at the start; applications that
/// publish again what they get can close a circle all the same.
const HOPS: &str = "selvedge-hops";
/// Routes that a message may take.
const MAX_HOPS: u32 = 8;

/// A route that is wanted.
#[derive(Debug, Clone)]
pub(super) struct Inside {
    pub route: RouteSpec,
    /// The pub/subs of the box that it leads to.
    pub to: Vec<String>,
    pub destination: DestinationId,
}

/// All routes that stay on the box: those that are wanted run, others end.
pub(super) struct LocalRoutes {
    wanted: watch::Receiver<Vec<Inside>>,
    hub: Hub,
    counts: RouteMetrics,
}

impl LocalRoutes {
    pub(super) fn new(wanted: watch::Receiver<Vec<Inside>>, hub: Hub, counts: RouteMetrics) -> Self {
        Self { wanted, hub, counts }
    }

    /// Runs until `stop` resolves.
    pub(super) async fn run(mut self, supervisor: Supervisor, mut stop: Fut<'static, ()>) {
        let mut tasks = JoinSet::new();
        let mut running: BTreeMap<DestinationId, Option<oneshot::Sender<()>>> = BTreeMap::new();
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            for (destination, end) in &mut running {
                if wanted.iter().all(|w| w.destination != *destination) {
                    // Dropping its end stops a route.
                    end.take();
                }
            }
            for inside in wanted {
                let destination = inside.destination;
                // One that ends at the moment begins again when it has: two must not read a destination.
                if running.contains_key(&destination) {
                    continue;
                }
                let (end, ended) = oneshot::channel();
                let ended = ended.map(|_| ()).shared();
                let (supervisor, hub, counts) = (supervisor.clone(), self.hub.clone(), self.counts.clone());
                tasks.spawn(async move {
                    let part = format!("route/{}/{}", inside.route.from, inside.to.join(","));
                    let start = || {
                        let route = LocalRoute::new(inside.clone(), hub.clone(), &counts);
                        route.run(Box::pin(ended.clone())).map(Ok)
                    };
                    supervisor.keep(part, ended.clone(), start).await;
                    destination
                });
                running.insert(destination, Some(end));
            }
            tokio::select! {
                () = &mut stop => break,
                changed = self.wanted.changed() => if changed.is_err() {
                    // Nobody can ask for others any more.
                    stop.await;
                    break;
                },
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    if let Ok(destination) = ended {
                        running.remove(&destination);
                    }
                }
            }
        }
        drop(running);
        while tasks.join_next().await.is_some() {}
    }
}

/// One route.
struct LocalRoute {
    route: RouteSpec,
    to: Vec<String>,
    hub: Hub,
    consumer: Consumer,
    dropped: Counter,
}

/// What became of a record.
enum Carried {
    /// Accepted by every target.
    Yes,
    /// It never will be.
    Never(String),
    /// Not now.
    Later(AcceptError),
}

impl LocalRoute {
    fn new(inside: Inside, hub: Hub, counts: &RouteMetrics) -> Self {
        let Inside { route, to, destination } = inside;
        Self { consumer: hub.consumer(destination), dropped: counts.dropped(&route), route, to, hub }
    }

    /// Carries until `stop` resolves. What is not carried then waits for the next start.
    async fn run(mut self, mut stop: Fut<'static, ()>) {
        let mut run = LaneRun::default();
        loop {
            let pause = match self.consumer.next_run(MOST, MOST_BYTES, &mut run) {
                Ok(0) => {
                    let readable = self.consumer.readable();
                    tokio::select! {
                        () = &mut stop => return,
                        () = readable => {}
                    }
                    continue;
                }
                Ok(_) => self.carry(&run).await,
                Err(error) => {
                    tracing::warn!(from = %self.route.from, %error, "a lane cannot be read");
                    true
                }
            };
            if pause {
                tokio::select! {
                    () = &mut stop => return,
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }

    /// Carries a run, in order. Returns whether to pause: what was not carried is read again.
    async fn carry(&mut self, run: &LaneRun) -> bool {
        let Some(lane) = run.lane() else { return false };
        let (mut receipt, mut done, mut later) = (Receipt::default(), Vec::with_capacity(run.run.len()), None);
        for record in run.run.iter() {
            let mut own = Receipt::default();
            let carried = match self.carry_one(&record, &mut own) {
                // What nobody stores is carried when its upstream has it, or never when that refuses it.
                Carried::Yes if own.is_passing() => match self.hub.settled(own).await {
                    Ok(()) => Carried::Yes,
                    Err(error) if error.is_final() => Carried::Never(error.to_string()),
                    Err(error) => Carried::Later(error),
                },
                carried => {
                    receipt.merge(own);
                    carried
                }
            };
            match carried {
                Carried::Yes => done.push(record.id.sequence),
                Carried::Never(reason) => self.drop_one(lane, &record, &reason),
                Carried::Later(error) => {
                    later = Some(error);
                    break;
                }
            }
        }
        // Only what is safe in its target is gone from here.
        if let Err(error) = self.hub.settled(receipt).await {
            done.clear();
            later = Some(error);
        }
        self.consumer.acknowledge(lane, &done);
        let Some(error) = later else { return false };
        self.consumer.rewind();
        match error {
            // More waits for the disk than may wait: at its pace.
            AcceptError::Outbox(OutboxError::Busy { lane }) => {
                if let Some(lane) = self.hub.outbox().lane(&lane) {
                    let _ = tokio::time::timeout(RETRY, self.hub.outbox().writable(lane)).await;
                }
                false
            }
            error => {
                tracing::warn!(from = %self.route.from, to = ?self.to, %error, "a route on the box waits for its target");
                true
            }
        }
    }

    fn carry_one(&self, record: &Record<'_>, receipt: &mut Receipt) -> Carried {
        let topic = self.route.map_topic(record.topic());
        let ttl_seconds = record.remaining_seconds(self.hub.outbox().now());
        record.with_attributes(|attributes| {
            let hops = attributes.user.iter().find(|(name, _)| *name == HOPS).and_then(|(_, n)| n.parse::<u32>().ok()).unwrap_or(0);
            if hops >= MAX_HOPS {
                return Carried::Never(format!("it has taken {hops} routes"));
            }
            let next = (hops + 1).to_string();
            let mut user: SmallVec<[(&str, &str); 8]> = attributes.user.iter().copied().filter(|(name, _)| *name != HOPS).collect();
            user.push((HOPS, &next));
            let mut attributes = attributes;
            attributes.user = &user;
            let message = Inbound { attributes, qos: record.qos(), retain: record.retain(), ttl_seconds, ..Inbound::new(&topic, record.payload()) };
            for to in &self.to {
                let Accepted { receipt: marks, refused, .. } = self.hub.accept(to, std::slice::from_ref(&message));
                receipt.merge(marks);
                match refused {
                    None => {}
                    Some(error) if error.is_final() => return Carried::Never(error.to_string()),
                    Some(error) => return Carried::Later(error),
                }
            }
            Carried::Yes
        })
    }

    fn drop_one(&self, lane: LaneId, record: &Record<'_>, reason: &str) {
        self.dropped.inc();
        tracing::error!(
            from = %self.route.from, to = ?self.to, mqtt.topic = record.topic(), outbox.seq = record.id.sequence, error = reason,
            "a route on the box drops a message"
        );
        self.consumer.reject(lane, record.id.sequence, reason);
    }
}
