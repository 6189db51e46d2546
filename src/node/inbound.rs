//! Routes that lead in: an upstream's messages become local ones, acknowledged to the upstream once they are safe here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::dedupe::{Dedupe, Deduped, ID_PROPERTY as ID};
use super::routes::RouteMetrics;
use crate::component::{Contained, Delivery, Fut, HandlerError, MessageHandler, PubSub, SubscribeRequest, SubscriptionHandle, Tables, is_truthy};
use crate::hub::{Hub, Payload, When};
use crate::message::{Attributes, Inbound};
use crate::outbox::DestinationId;
use crate::resource::RouteSpec;
use crate::supervise::Supervisor;
use crate::telemetry::Metrics;
use crate::topic;

/// Wait between attempts to subscribe.
const RETRY: Duration = Duration::from_secs(5);

/// A route that leads in, to a pub/sub of the box.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Inward {
    pub route: RouteSpec,
    /// The pub/sub of the box.
    pub to: String,
    /// The upstream that it comes from, if messages go there as well, and the sets of which it is a member: what comes in by the route is
    /// not sent back.
    pub origins: Vec<DestinationId>,
    /// The routes by which messages go there from `to`.
    pub back: Vec<RouteSpec>,
}

impl Inward {
    /// Whether the message is one of this node's own that the upstream gives back: it has an id of the node, and the topic under which the
    /// node sends what it would be here.
    fn is_own(&self, id_prefix: &str, message: &Delivery, topic: &str) -> bool {
        let sent_as = |r: &RouteSpec| r.topics.iter().any(|f| topic::matches(f, topic)) && r.map_topic(topic) == message.topic;
        message.metadata.get(ID).is_some_and(|id| id.starts_with(id_prefix)) && self.back.iter().any(sent_as)
    }
}

/// All routes that lead in: those that are wanted run, others end.
pub(super) struct InboundRoutes {
    wanted: watch::Receiver<Vec<Inward>>,
    sources: BTreeMap<String, Arc<dyn PubSub>>,
    hub: Hub,
    counts: RouteMetrics,
    ids: Ids,
}

/// Where ids of messages are remembered, and repeats counted.
#[derive(Clone)]
pub(super) struct Ids {
    pub tables: Arc<dyn Tables>,
    pub metrics: Metrics,
}

impl InboundRoutes {
    /// `sources` are the pub/subs that messages may come from, by name.
    pub(super) fn new(
        wanted: watch::Receiver<Vec<Inward>>,
        sources: BTreeMap<String, Arc<dyn PubSub>>,
        hub: Hub,
        counts: RouteMetrics,
        ids: Ids,
    ) -> Self {
        Self { wanted, sources, hub, counts, ids }
    }

    /// Runs until `stop` resolves.
    pub(super) async fn run(mut self, supervisor: Supervisor, mut stop: Fut<'static, ()>) {
        let mut tasks = JoinSet::new();
        let mut running: Vec<(Inward, oneshot::Sender<()>)> = Vec::new();
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            // Dropping its end stops a route.
            running.retain(|(way, _)| wanted.contains(way));
            for way in wanted {
                if running.iter().any(|(w, _)| *w == way) {
                    continue;
                }
                let Some(from) = self.sources.get(&way.route.from) else { continue };
                let (end, ended) = oneshot::channel();
                let when = match self.counts.when(&way.route) {
                    Ok(when) => when,
                    Err(error) => {
                        // It was read when the resources were.
                        tracing::error!(from = %way.route.from, error, "an inbound route is left out");
                        continue;
                    }
                };
                let (own, id_prefix) = (self.counts.own(&way.route), format!("{}/", self.hub.outbox().node()));
                let carrier = Arc::new(Carrier { way: way.clone(), when, hub: self.hub.clone(), own, id_prefix });
                let one = InboundRoute { carrier, from: from.clone(), supervisor: supervisor.clone(), ids: self.ids.clone() };
                let supervisor = supervisor.clone();
                let ended = ended.map(|_| ()).shared();
                tasks.spawn(async move {
                    supervisor.keep(one.part(), ended.clone(), || one.run(Box::pin(ended.clone()))).await;
                });
                running.push((way, end));
            }
            tokio::select! {
                () = &mut stop => break,
                changed = self.wanted.changed() => if changed.is_err() {
                    // Nobody can ask for others any more.
                    stop.await;
                    break;
                },
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            }
        }
        drop(running);
        while tasks.join_next().await.is_some() {}
    }
}

/// One route.
struct InboundRoute {
    carrier: Arc<Carrier>,
    from: Arc<dyn PubSub>,
    supervisor: Supervisor,
    ids: Ids,
}

struct Carrier {
    way: Inward,
    when: Option<When>,
    hub: Hub,
    /// What begins the ids of this node's records.
    id_prefix: String,
    /// Messages that were the node's own.
    own: Counter,
}

impl MessageHandler for Carrier {
    fn handle<'a>(&'a self, message: Delivery) -> Fut<'a, Result<(), HandlerError>> {
        Box::pin(async move {
            if self.when.as_ref().is_some_and(|when| !when.holds(self.hub.mode(), &message.topic, &Payload::new(&message.data))) {
                return Ok(());
            }
            let topic = self.way.route.map_topic(&message.topic);
            if self.way.is_own(&self.id_prefix, &message, &topic) {
                self.own.inc();
                return Ok(());
            }
            let user: Vec<(&str, &str)> =
                message.metadata.iter().filter(|(k, _)| k.as_str() != "retained").map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let inbound = Inbound {
                attributes: Attributes { content_type: message.content_type.as_deref(), user: &user, ..Attributes::default() },
                retain: message.metadata.get("retained").is_some_and(|r| is_truthy(r)),
                ..Inbound::new(&topic, &message.data)
            };
            self.hub.carry_in(&self.way.to, &inbound, &self.way.origins).await.map(|_| ()).map_err(|e| HandlerError::Retry(e.to_string()))
        })
    }
}

impl InboundRoute {
    /// Its name as a part of the node.
    fn part(&self) -> String {
        format!("route/{}/{}", self.carrier.way.route.from, self.carrier.way.to)
    }

    /// Subscribes to one topic, however long that takes. All topics of a route are asked for at once: none waits for another one that the
    /// broker does not grant.
    async fn subscribe(&self, topic: &str, handler: Arc<dyn MessageHandler>) -> Box<dyn SubscriptionHandle> {
        let handler = Arc::new(Contained::new(handler, self.part(), &self.supervisor));
        loop {
            let request = SubscribeRequest { topic: topic.to_owned(), ..SubscribeRequest::default() };
            match self.from.subscribe(request, handler.clone()).await {
                Ok(handle) => return handle,
                Err(error) => {
                    tracing::warn!(from = %self.carrier.way.route.from, topic, error = %error, "an inbound route could not subscribe; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Subscribes, and stays subscribed until `stop` resolves.
    ///
    /// # Errors
    /// When a subscription has ended by itself, or the ids of before cannot be read.
    async fn run(&self, stop: Fut<'static, ()>) -> Result<(), String> {
        let mut handler: Arc<dyn MessageHandler> = self.carrier.clone();
        if let Some(spec) = self.carrier.way.route.dedupe {
            let (route, to, hub) = (&self.carrier.way.route, &self.carrier.way.to, self.carrier.hub.clone());
            let dedupe = Dedupe::open(spec, route, to, &*self.ids.tables, &self.ids.metrics, hub.outbox().now()).await?;
            handler = Arc::new(Deduped { handler, dedupe: Arc::new(dedupe), hub });
        }
        let (handles, mut subscribed) = (Mutex::new(Vec::new()), FuturesUnordered::new());
        let opened = &handles;
        for topic in &self.carrier.way.route.topics {
            let handler = handler.clone();
            subscribed.push(async move {
                let handle = Arc::<dyn SubscriptionHandle>::from(self.subscribe(topic, handler).await);
                opened.lock().unwrap_or_else(PoisonError::into_inner).push(handle.clone());
                handle.ended().await;
                topic
            });
        }
        let ended = tokio::select! {
            topic = subscribed.next() => topic.map(|t| format!("the subscription to {t} has ended by itself")),
            () = stop => None,
        };
        drop(subscribed);
        for handle in handles.into_inner().unwrap_or_else(PoisonError::into_inner) {
            handle.close().await;
        }
        ended.map_or(Ok(()), Err)
    }
}
