//! The exchange: every message that the node accepts passes here, once.
//!
//! [`Hub::accept`] decides in one place who gets a message: live subscribers at once, and durable destinations (an upstream, an
//! application's subscription, an absent device's session) through the outbox, where it is stored once. The decision is
//! made per topic and remembered, so that a busy topic costs one look-up per message.
//!
//! A pub/sub is a name space of topics: `local`, and each upstream by its component's name.

mod consumer;
mod passing;
mod quarantine;
mod retained;
mod routing;
mod set;
mod shard;
mod when;

pub use consumer::{Consumer, LaneRun};
pub use quarantine::{QUARANTINE, QUARANTINE_BYTES, Release};
pub use retained::RetainedError;
pub use routing::{HubRoute, LaneRule, LiveSink, LiveSubscription, RouteRule, Shard};
pub use set::{MAX_MEMBERS, Set, SetConsumer, SetCounts};
pub use shard::ShardKey;
pub use when::{Payload, When};

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, RwLock};

use smallvec::SmallVec;

use crate::component::{Fut, PubSubError, Table, TableError};
use crate::escape::Mode;
use crate::message::{Attributes, Inbound, Message};
use crate::outbox::{Bound, DestinationId, LaneId, NewRecord, Outbox, OutboxError, RecordId, Ticket, Unpassed};
use crate::time::Clock;
use crate::topic::{self, TopicError};
use quarantine::Quarantine;
use retained::Retained;
use routing::{LaneShare, Route, RouteCache, Routing};

/// The lane of what the node itself has to say upstream, and the source of its records. No pub/sub has this name on a node that has it.
pub const NOTICES: &str = "selvedge";

/// Why the hub did not take a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// The topic breaks MQTT's rules.
    #[error("topic {topic:?}: {source}")]
    Topic {
        /// The topic, cut to 256 characters.
        topic: String,
        /// The rule.
        source: TopicError,
    },
    /// The lane refused: full, failed, too large, or busy.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// A retained message could not be kept.
    #[error(transparent)]
    Retained(#[from] RetainedError),
}

impl AcceptError {
    /// Whether another attempt fails as well, whatever changes on the box.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Topic { .. } | Self::Outbox(OutboxError::TooLarge { .. }) => true,
            Self::Outbox(OutboxError::NotPassed { why, .. }) => !why.may_be_repeated(),
            Self::Outbox(_) | Self::Retained(_) => false,
        }
    }

    /// Seconds after which another attempt is worth it; none when it is not, or when the store is broken.
    #[must_use]
    pub fn retry_seconds(&self) -> Option<u32> {
        match self {
            Self::Outbox(OutboxError::Busy { .. } | OutboxError::NotPassed { why: Unpassed::Full { .. }, .. }) => Some(1),
            Self::Outbox(OutboxError::NotPassed { why, .. }) if why.may_be_repeated() => Some(5),
            Self::Outbox(OutboxError::Full { .. } | OutboxError::Shut { .. }) | Self::Retained(RetainedError::Full) => Some(60),
            Self::Outbox(_) | Self::Topic { .. } | Self::Retained(_) => None,
        }
    }
}

impl From<AcceptError> for PubSubError {
    fn from(error: AcceptError) -> Self {
        let text = error.to_string();
        match (&error, error.retry_seconds()) {
            (AcceptError::Topic { .. }, _) => Self::Invalid(text),
            (AcceptError::Outbox(OutboxError::TooLarge { .. } | OutboxError::NotPassed { why: Unpassed::Refused(_), .. }), _) => Self::Refused(text),
            // As daprd answers when the broker does not take it.
            (AcceptError::Outbox(OutboxError::NotPassed { why, .. }), _) if !matches!(why, Unpassed::Full { .. }) => Self::Unavailable(text),
            (_, Some(retry_seconds)) => Self::Full { text, retry_seconds },
            _ => Self::Unavailable(text),
        }
    }
}

/// Why a hub could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HubError {
    /// A rule names a lane that the outbox does not have.
    #[error("the outbox has no lane named {0}")]
    NoLane(String),
    /// The retained messages could not be read.
    #[error(transparent)]
    Retained(#[from] RetainedError),
    /// The store has no room for the quarantine.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
}

/// What became of a batch.
#[derive(Debug)]
#[must_use = "the sender may be answered only when the receipt has settled"]
pub struct Accepted {
    /// Messages taken, from the first on; the rest was not touched. Fewer than were given without a refusal: a message of a lane that
    /// stores nothing comes alone, since its receipt is its own. Those behind it are given again.
    pub taken: usize,
    /// What has to become durable before the sender is answered.
    pub receipt: Receipt,
    /// Id of the last record stored; none when no durable destination wanted any of them.
    pub last: Option<RecordId>,
    /// Why the message after the taken ones was refused.
    pub refused: Option<AcceptError>,
}

/// The durable marks that a batch waits for.
#[derive(Default)]
pub struct Receipt {
    marks: SmallVec<[(LaneId, u64); 2]>,
    /// Records that nobody stores, until their upstreams have them.
    passing: Vec<Ticket>,
    retained: Vec<Fut<'static, Result<(), TableError>>>,
}

impl std::fmt::Debug for Receipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receipt").field("marks", &self.marks).field("passing", &self.passing.len()).field("retained", &self.retained.len()).finish()
    }
}

impl Receipt {
    fn mark(&mut self, lane: LaneId, sequence: u64) {
        match self.marks.iter_mut().find(|(l, _)| *l == lane) {
            Some((_, s)) => *s = (*s).max(sequence),
            None => self.marks.push((lane, sequence)),
        }
    }

    /// Adds what `other` waits for.
    pub fn merge(&mut self, other: Self) {
        for (lane, sequence) in other.marks {
            self.mark(lane, sequence);
        }
        self.passing.extend(other.passing);
        self.retained.extend(other.retained);
    }

    /// Whether it waits for an upstream: its sender may be refused after all, and nothing has been promised yet.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        !self.passing.is_empty()
    }
}

/// A cheap handle to the exchange.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    outbox: Outbox,
    shares: Vec<LaneShare>,
    routing: RwLock<Routing>,
    cache: RouteCache,
    retained: Retained,
    quarantine: Option<Quarantine>,
    /// What is for the box itself of topics whose lane stores nothing is stored here.
    default: LaneId,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub over an outbox. `lanes` are tried in order; the outbox must have a lane for each, and one named `default`.
    /// `retained` keeps retained messages over restarts.
    ///
    /// # Errors
    /// When the table cannot be read, or a rule names a lane that the outbox does not have.
    pub async fn new(outbox: Outbox, lanes: Vec<LaneRule>, retained: Arc<dyn Table>, clock: Arc<dyn Clock>) -> Result<Self, HubError> {
        let lane = |name: &str| outbox.lane(name).ok_or_else(|| HubError::NoLane(name.to_owned()));
        let default = lane("default")?;
        let mut shares: Vec<LaneShare> = outbox
            .lanes()
            .into_iter()
            .filter(|(_, name)| name != QUARANTINE)
            .map(|(lane, _)| LaneShare { lane, weight: Arc::new(AtomicU32::new(1)), strict: false })
            .collect();
        let mut rules = Vec::with_capacity(lanes.len());
        for rule in lanes {
            let id = lane(&rule.lane)?;
            if let Some(share) = shares.iter_mut().find(|s| s.lane == id) {
                share.weight.store(rule.weight.max(1), Ordering::Relaxed);
                share.strict = rule.strict;
            }
            rules.push((id, rule.filters));
        }
        let retained = Retained::load(retained, clock).await?;
        let quarantine = Quarantine::open(&outbox)?;
        let passing = outbox.lanes().into_iter().map(|(lane, _)| lane).filter(|lane| outbox.passes(*lane)).collect();
        Ok(Self {
            shared: Arc::new(Shared {
                outbox,
                shares,
                default,
                routing: RwLock::new(Routing::new(rules, default, passing)),
                cache: RouteCache::default(),
                retained,
                quarantine,
            }),
        })
    }

    /// The store behind the hub.
    #[must_use]
    pub fn outbox(&self) -> &Outbox {
        &self.shared.outbox
    }

    /// Accepts a batch for one pub/sub, in order. Live subscribers have each taken message when this returns; the sender may be
    /// answered once the receipt has [settled](Self::settled). A message that no durable destination wants is not stored.
    pub fn accept(&self, pubsub: &str, batch: &[Inbound<'_>]) -> Accepted {
        self.accept_but(pubsub, batch, &[])
    }

    fn accept_but(&self, pubsub: &str, batch: &[Inbound<'_>], origins: &[DestinationId]) -> Accepted {
        let mut done = Accepted { taken: 0, receipt: Receipt::default(), last: None, refused: None };
        let mut routes: SmallVec<[Arc<Route>; 64]> = SmallVec::with_capacity(batch.len());
        for message in batch {
            if let Err(source) = topic::check_name(message.topic) {
                done.refused = Some(AcceptError::Topic { topic: message.topic.chars().take(256).collect(), source });
                break; // those before it are taken below
            }
            routes.push(self.route(pubsub, message.topic).decide(message).without(origins));
        }
        // Neighbours that go to the same lane are one append.
        let mut start = 0;
        while start < routes.len() {
            if routes[start].links.is_some() {
                if start > 0 {
                    done.refused = None; // what is behind it is looked at when it is given again
                    return done;
                }
                done.refused = self.accept_passing(pubsub, &batch[0], &routes[0], &mut done);
                return done;
            }
            let lane = routes[start].lane;
            let end = start + routes[start..].iter().take_while(|r| r.lane == lane && r.links.is_none()).count();
            let stop = self.accept_run(pubsub, lane, &batch[start..end], &routes[start..end], &mut done);
            if let Some(refusal) = stop {
                done.refused = Some(refusal); // it stands before the bad topic, if there was one
                break;
            }
            start = end;
        }
        done
    }

    fn accept_run(&self, pubsub: &str, lane: LaneId, batch: &[Inbound<'_>], routes: &[Arc<Route>], done: &mut Accepted) -> Option<AcceptError> {
        let records: SmallVec<[NewRecord<'_>; 64]> = batch
            .iter()
            .zip(routes)
            .filter(|(_, route)| !route.destinations.is_empty())
            .map(|(m, route)| passing::record(pubsub, m, &route.destinations))
            .collect();
        let mut stored = 0;
        let mut refusal = None;
        if !records.is_empty() {
            let appended = self.shared.outbox.append(lane, &records);
            stored = appended.taken;
            if stored > 0 {
                done.receipt.mark(lane, appended.last.sequence);
                done.last = Some(appended.last);
            }
            refusal = appended.refused.map(AcceptError::Outbox);
        }
        for (message, route) in batch.iter().zip(routes) {
            if !route.destinations.is_empty() {
                if stored == 0 {
                    return refusal;
                }
                stored -= 1;
            }
            if let Err(error) = self.hand_on(pubsub, message, route, done) {
                return Some(error);
            }
        }
        refusal
    }

    /// The message is taken: those who are there get it, and it is kept if it is to be.
    fn hand_on(&self, pubsub: &str, message: &Inbound<'_>, route: &Route, done: &mut Accepted) -> Result<(), AcceptError> {
        if message.retain {
            done.receipt.retained.push(self.shared.retained.keep(pubsub, message)?);
        }
        if !route.live.is_empty() {
            let shared = Arc::new(Message::from(message));
            for sink in &route.live {
                sink.sink.deliver(sink.token, &shared);
            }
        }
        done.taken += 1;
        Ok(())
    }

    /// Resolves when everything in the receipt is as durable as its lane declares, or where its lane says so with its upstreams.
    /// Cancel-safe towards the store: what was accepted stays accepted.
    ///
    /// # Errors
    /// When a lane or the retained table failed, or an upstream did not take what nobody stores: the sender must not be told that its
    /// message is safe.
    pub async fn settled(&self, receipt: Receipt) -> Result<(), AcceptError> {
        for (lane, sequence) in receipt.marks {
            if !self.shared.outbox.is_durable(lane, sequence) {
                self.shared.outbox.durable(lane, sequence).await?;
            }
        }
        for ticket in receipt.passing {
            self.shared.outbox.passed(ticket).await?;
        }
        for write in receipt.retained {
            write.await.map_err(RetainedError::from)?;
        }
        Ok(())
    }

    /// Whether the receipt has settled already, so that the caller may answer without waiting.
    #[must_use]
    pub fn is_settled(&self, receipt: &Receipt) -> bool {
        receipt.retained.is_empty()
            && receipt.passing.is_empty()
            && receipt.marks.iter().all(|(lane, sequence)| self.shared.outbox.is_durable(*lane, *sequence))
    }

    /// Accepts one message and waits until it is safe: what an application's publish needs.
    ///
    /// # Errors
    /// Why it was refused, or why it is not safe.
    pub async fn accept_one(&self, pubsub: &str, message: &Inbound<'_>) -> Result<Option<RecordId>, AcceptError> {
        self.carry_in(pubsub, message, &[]).await
    }

    /// As [`accept_one`](Self::accept_one), for a message that an upstream has sent: it goes to everyone but that upstream, and its sets.
    ///
    /// # Errors
    /// Why it was refused, or why it is not safe.
    pub async fn carry_in(&self, pubsub: &str, message: &Inbound<'_>, origins: &[DestinationId]) -> Result<Option<RecordId>, AcceptError> {
        let accepted = self.accept_but(pubsub, std::slice::from_ref(message), origins);
        if let Some(refused) = accepted.refused {
            return Err(refused);
        }
        self.settled(accepted.receipt).await?;
        Ok(accepted.last)
    }

    /// Stores a notice of the node itself for these destinations, before everything else that waits for them. Resolves when it is as
    /// durable as its lane declares.
    ///
    /// # Errors
    /// When the lane does not take it, or there is none ([`NOTICES`]).
    pub async fn notice(&self, destinations: &[DestinationId], topic: &str, payload: &[u8]) -> Result<RecordId, AcceptError> {
        let outbox = &self.shared.outbox;
        let lane = outbox.lane(NOTICES).ok_or_else(|| OutboxError::Failed { lane: NOTICES.to_owned(), detail: "there is none".to_owned() })?;
        let attributes = Attributes { content_type: Some("application/json"), utf8: true, ..Attributes::default() };
        let record = NewRecord { source: NOTICES, topic, payload, attributes, qos: 1, retain: false, ttl_seconds: None, destinations };
        let appended = outbox.append(lane, &[record]);
        if let Some(refused) = appended.refused {
            return Err(refused.into());
        }
        outbox.durable(lane, appended.last.sequence).await?;
        Ok(appended.last)
    }

    /// Other rules for which topics belong to which lane, and other weights. Rules of lanes that are not there are left out. Whether a
    /// lane is strict stays as it was.
    pub fn set_lane_rules(&self, rules: &[LaneRule]) {
        let mut known = Vec::with_capacity(rules.len());
        for rule in rules {
            let Some(lane) = self.shared.outbox.lane(&rule.lane) else { continue };
            if let Some(share) = self.shared.shares.iter().find(|s| s.lane == lane) {
                share.weight.store(rule.weight.max(1), Ordering::Relaxed);
            }
            known.push((lane, rule.filters.clone()));
        }
        self.change_routing(|routing| routing.set_rules(known));
    }

    /// Bounds lanes beside their quotas: those that are protected (strict, or with a floor, or the node's own), and the others.
    pub fn bound_lanes(&self, protected: Bound, others: Bound) {
        let strict = |lane| self.shared.shares.iter().any(|s| s.lane == lane && s.strict);
        self.shared.outbox.bound_lanes(|lane, config| {
            let kept = config.floor_bytes > 0 || config.name == NOTICES || config.name == QUARANTINE || strict(lane);
            if kept { protected } else { others }
        });
    }

    fn route(&self, pubsub: &str, topic: &str) -> Arc<Route> {
        self.shared
            .cache
            .get_or_make(pubsub, topic, || self.shared.routing.read().unwrap_or_else(std::sync::PoisonError::into_inner).resolve(pubsub, topic))
    }

    fn change_routing<T>(&self, change: impl FnOnce(&mut Routing) -> T) -> T {
        let mut routing = self.shared.routing.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let result = change(&mut routing);
        drop(routing);
        self.shared.cache.clear();
        result
    }

    /// Subscribes a live sink: it gets messages while it is there, and nothing is kept for it. `token` comes back with every delivery.
    /// Retained messages are not delivered here, see [`retained`](Self::retained).
    ///
    /// # Errors
    /// When the filter breaks MQTT's rules.
    pub fn subscribe(&self, pubsub: &str, filter: &str, token: u64, sink: Arc<dyn LiveSink>) -> Result<LiveSubscription, TopicError> {
        topic::check_filter(filter)?;
        let id = self.change_routing(|routing| routing.add_live(pubsub, filter, token, sink));
        Ok(LiveSubscription::new(self.clone(), pubsub, filter, id))
    }

    pub(crate) fn unsubscribe(&self, pubsub: &str, filter: &str, id: u64) {
        self.change_routing(|routing| routing.remove_live(pubsub, filter, id));
    }

    /// Registers a durable destination (or finds it again) by a name that is unique on the node, such as `upstream/cloud`.
    ///
    /// # Errors
    /// When the store has no room for another.
    pub fn destination(&self, name: &str) -> Result<DestinationId, OutboxError> {
        self.shared.outbox.destination(name)
    }

    /// From now on messages of `pubsub` that `filter` covers are stored for the destination. The same pair twice counts once.
    ///
    /// # Errors
    /// When the filter breaks MQTT's rules.
    pub fn bind(&self, destination: DestinationId, pubsub: &str, filter: &str) -> Result<(), TopicError> {
        topic::check_filter(filter)?;
        self.change_routing(|routing| routing.bind(destination, pubsub, filter));
        Ok(())
    }

    /// The destination lies behind a link: of what a lane that stores nothing takes, it gets the records themselves.
    pub fn add_link(&self, destination: DestinationId) {
        self.change_routing(|routing| routing.add_link(destination));
    }

    /// These are the routes from now on, instead of those before: messages take them if their conditions hold when they are accepted.
    ///
    /// # Errors
    /// The filter that breaks MQTT's rules; then the routes are as they were.
    pub fn set_routes(&self, routes: &[HubRoute]) -> Result<(), TopicError> {
        for filter in routes.iter().flat_map(|r| &r.topics) {
            topic::check_filter(filter)?;
        }
        self.change_routing(|routing| routing.set_routes(routes));
        Ok(())
    }

    /// The mode of the box has changed: routes may be taken now that were not, and the other way round; records carry it.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.outbox.set_mode(mode.number());
        self.change_routing(|routing| routing.set_mode(mode));
    }

    /// The mode of the box, as routes see it.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.shared.routing.read().unwrap_or_else(std::sync::PoisonError::into_inner).mode()
    }

    /// Undoes [`bind`](Self::bind). What is stored already stays queued.
    pub fn unbind(&self, destination: DestinationId, pubsub: &str, filter: &str) {
        self.change_routing(|routing| routing.unbind(destination, pubsub, filter));
    }

    /// Ends a destination: undoes its bindings and drops what is queued for it (counted as evicted).
    ///
    /// # Errors
    /// When the store cannot note it.
    pub fn forget(&self, destination: DestinationId) -> Result<(), OutboxError> {
        self.change_routing(|routing| routing.unbind_all(destination));
        self.shared.outbox.forget_destination(destination)
    }

    /// Reads what is stored for a destination, over all lanes by weight. One consumer per destination at a time.
    #[must_use]
    pub fn consumer(&self, destination: DestinationId) -> Consumer {
        Consumer::new(&self.shared.outbox, self.shared.shares.iter().cloned(), destination)
    }

    /// The same over some of the lanes. Two consumers of one destination must have no lane in common while both read.
    #[must_use]
    pub fn consumer_of(&self, destination: DestinationId, wanted: impl Fn(LaneId) -> bool) -> Consumer {
        Consumer::new(&self.shared.outbox, self.shared.shares.iter().filter(|s| wanted(s.lane)).cloned(), destination)
    }

    /// Reads what is stored for a destination by several members: what one of them has acknowledged is done. Instead of
    /// [`consumer`](Self::consumer).
    #[must_use]
    pub fn set(&self, destination: DestinationId, members: usize) -> Set {
        Set::new(self.consumer(destination), members, self.outbox().clone())
    }

    /// Retained messages of a pub/sub that `filter` covers, with their quality of service as published.
    #[must_use]
    pub fn retained(&self, pubsub: &str, filter: &str) -> Vec<Arc<Message>> {
        self.shared.retained.matching(pubsub, filter)
    }
}

#[cfg(test)]
mod tests;
