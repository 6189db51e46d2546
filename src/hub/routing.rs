//! Who wants a topic: lane rules, durable bindings, live subscriptions.

use std::collections::HashMap;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};

use smallvec::SmallVec;

use super::Hub;
use super::shard::ShardKey;
use super::when::{Payload, When};
use crate::escape::Mode;
use crate::message::{Inbound, Message};
use crate::outbox::{DestinationId, LaneId};
use crate::topic::{self, TopicTree};

/// Topics whose route is remembered. Past it the memory starts anew, so a flood of random topics costs time, not memory.
const REMEMBERED_ROUTES: usize = 8_192;

/// Puts topics into a lane; the first rule that matches counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneRule {
    /// Name of the lane.
    pub lane: String,
    /// Topic filters; none for a rule that only gives the lane its weight.
    pub filters: Vec<String>,
    /// Share of a destination's reading relative to other lanes, at least 1.
    pub weight: u32,
    /// It is read before all lanes that are not strict.
    pub strict: bool,
}

/// How a lane is read beside the others.
#[derive(Debug, Clone)]
pub(super) struct LaneShare {
    pub(super) lane: LaneId,
    /// Shared with everyone who reads the lane.
    pub(super) weight: Arc<AtomicU32>,
    pub(super) strict: bool,
}

/// Receives messages while it is subscribed. Must not block: a slow sink drops or disconnects, and counts it.
pub trait LiveSink: Send + Sync + 'static {
    /// One message, shared with the other sinks.
    fn deliver(&self, token: u64, message: &Arc<Message>);
}

#[derive(Clone)]
pub(super) struct Live {
    id: u64,
    pub(super) token: u64,
    pub(super) sink: Arc<dyn LiveSink>,
}

/// Where a route leads, and when.
#[derive(Debug)]
pub struct RouteRule {
    /// Without it the route is always taken.
    pub when: Option<When>,
    /// Who gets what takes it.
    pub destinations: SmallVec<[DestinationId; 2]>,
    /// Beside these, one of several upstreams.
    pub shard: Option<Shard>,
}

/// Upstreams that share the messages of a route.
#[derive(Debug)]
pub struct Shard {
    /// By what.
    pub key: ShardKey,
    /// Name and destination of each.
    pub members: Vec<(String, DestinationId)>,
}

impl RouteRule {
    /// Whether topic and mode alone do not decide.
    fn asks_each(&self) -> bool {
        self.when.as_ref().is_some_and(When::reads_payload) || self.shard.as_ref().is_some_and(|s| s.key != ShardKey::Topic)
    }

    /// Adds who gets a message that takes the route.
    fn add_to(&self, all: &mut Destinations, message: &Inbound<'_>, payload: &Payload<'_>) {
        add(all, &self.destinations);
        if let Some(shard) = &self.shard
            && let Some(at) = shard.key.pick(message, payload, shard.members.iter().map(|(name, _)| name.as_str()))
        {
            add(all, &[shard.members[at].1]);
        }
    }
}

/// A route, as the hub knows it.
#[derive(Debug, Clone)]
pub struct HubRoute {
    /// The pub/sub that messages come from.
    pub from: String,
    /// Topic filters.
    pub topics: Vec<String>,
    /// Where it leads.
    pub rule: Arc<RouteRule>,
}

/// Destinations of one message; each once.
pub(super) type Destinations = SmallVec<[DestinationId; 4]>;

pub(super) fn add(all: &mut Destinations, more: &[DestinationId]) {
    for destination in more {
        if !all.contains(destination) {
            all.push(*destination);
        }
    }
}

/// The decision for one topic.
pub(super) struct Route {
    pub(super) lane: LaneId,
    /// The lane stores nothing; these are the destinations that it goes to all the same.
    pub(super) links: Option<Arc<[DestinationId]>>,
    pub(super) destinations: Destinations,
    pub(super) live: Vec<Live>,
    /// What has to be decided for each message; most often nothing.
    rules: SmallVec<[Arc<RouteRule>; 1]>,
    mode: Mode,
}

impl Route {
    /// The decision for one message of the topic.
    pub(super) fn decide(self: Arc<Self>, message: &Inbound<'_>) -> Arc<Self> {
        if self.rules.is_empty() {
            return self;
        }
        let payload = Payload::new(message.payload);
        let mut destinations = self.destinations.clone();
        for rule in &self.rules {
            if rule.when.as_ref().is_none_or(|when| when.holds(self.mode, message.topic, &payload)) {
                rule.add_to(&mut destinations, message, &payload);
            }
        }
        Arc::new(Self { lane: self.lane, links: self.links.clone(), destinations, live: self.live.clone(), rules: SmallVec::new(), mode: self.mode })
    }

    /// The decision for a message that comes from these destinations: they have it.
    pub(super) fn without(self: Arc<Self>, origins: &[DestinationId]) -> Arc<Self> {
        if !origins.iter().any(|o| self.destinations.contains(o)) {
            return self;
        }
        let destinations = self.destinations.iter().copied().filter(|d| !origins.contains(d)).collect();
        Arc::new(Self { lane: self.lane, links: self.links.clone(), destinations, live: self.live.clone(), rules: SmallVec::new(), mode: self.mode })
    }
}

#[derive(Default)]
struct Space {
    durable: TopicTree<DestinationId>,
    routes: TopicTree<Arc<RouteRule>>,
    live: TopicTree<Live>,
}

pub(super) struct Routing {
    rules: Vec<(LaneId, Vec<String>)>,
    default: LaneId,
    /// Lanes that store nothing.
    passing: Vec<LaneId>,
    /// Destinations that lie behind a link.
    links: Arc<[DestinationId]>,
    spaces: HashMap<String, Space>,
    bindings: HashMap<DestinationId, Vec<(String, String)>>,
    next_live: u64,
    mode: Mode,
}

impl Routing {
    pub(super) fn new(rules: Vec<(LaneId, Vec<String>)>, default: LaneId, passing: Vec<LaneId>) -> Self {
        Self { rules, default, passing, links: Arc::new([]), spaces: HashMap::new(), bindings: HashMap::new(), next_live: 0, mode: Mode::Bootstrap }
    }

    pub(super) fn set_rules(&mut self, rules: Vec<(LaneId, Vec<String>)>) {
        self.rules = rules;
    }

    pub(super) fn resolve(&self, pubsub: &str, topic: &str) -> Route {
        let lane = self.rules.iter().find(|(_, filters)| filters.iter().any(|f| topic::matches(f, topic))).map_or(self.default, |(lane, _)| *lane);
        let links = self.passing.contains(&lane).then(|| self.links.clone());
        let mut route = Route { lane, links, destinations: SmallVec::new(), live: Vec::new(), rules: SmallVec::new(), mode: self.mode };
        if let Some(space) = self.spaces.get(pubsub) {
            space.durable.each_match(topic, |d| add(&mut route.destinations, &[*d]));
            let nothing = Payload::new(&[]);
            space.routes.each_match(topic, |rule| {
                if rule.asks_each() {
                    // Several filters of a route may cover the topic.
                    if !route.rules.iter().any(|r| Arc::ptr_eq(r, rule)) {
                        route.rules.push(rule.clone());
                    }
                } else if rule.when.as_ref().is_none_or(|when| when.holds(self.mode, topic, &nothing)) {
                    rule.add_to(&mut route.destinations, &Inbound::new(topic, &[]), &nothing);
                }
            });
            space.live.each_match(topic, |l| route.live.push(l.clone()));
        }
        route
    }

    pub(super) fn add_live(&mut self, pubsub: &str, filter: &str, token: u64, sink: Arc<dyn LiveSink>) -> u64 {
        self.next_live += 1;
        let id = self.next_live;
        self.space(pubsub).live.insert(filter, Live { id, token, sink });
        id
    }

    pub(super) fn remove_live(&mut self, pubsub: &str, filter: &str, id: u64) {
        if let Some(space) = self.spaces.get_mut(pubsub) {
            space.live.remove(filter, |l| l.id == id);
        }
    }

    pub(super) fn bind(&mut self, destination: DestinationId, pubsub: &str, filter: &str) {
        let pair = (pubsub.to_owned(), filter.to_owned());
        let bound = self.bindings.entry(destination).or_default();
        if !bound.contains(&pair) {
            bound.push(pair);
            self.space(pubsub).durable.insert(filter, destination);
        }
    }

    pub(super) fn set_routes(&mut self, routes: &[HubRoute]) {
        for space in self.spaces.values_mut() {
            space.routes = TopicTree::new();
        }
        for route in routes {
            for filter in &route.topics {
                self.space(&route.from).routes.insert(filter, route.rule.clone());
            }
        }
    }

    pub(super) fn add_link(&mut self, destination: DestinationId) {
        self.links = self.links.iter().copied().filter(|d| *d != destination).chain([destination]).collect();
    }

    pub(super) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn unbind(&mut self, destination: DestinationId, pubsub: &str, filter: &str) {
        if let Some(bound) = self.bindings.get_mut(&destination) {
            bound.retain(|(p, f)| p != pubsub || f != filter);
        }
        if let Some(space) = self.spaces.get_mut(pubsub) {
            space.durable.remove(filter, |d| *d == destination);
        }
    }

    pub(super) fn unbind_all(&mut self, destination: DestinationId) {
        for (pubsub, filter) in self.bindings.remove(&destination).unwrap_or_default() {
            if let Some(space) = self.spaces.get_mut(&pubsub) {
                space.durable.remove(&filter, |d| *d == destination);
            }
        }
    }

    fn space(&mut self, pubsub: &str) -> &mut Space {
        self.spaces.entry(pubsub.to_owned()).or_default()
    }
}

/// Decisions already made, by pub/sub and topic.
#[derive(Default)]
pub(super) struct RouteCache {
    state: Mutex<Remembered>,
}

#[derive(Default)]
struct Remembered {
    /// Grows with every change of the routing: a route that was made before a change is not entered after it.
    generation: u64,
    by_pubsub: HashMap<String, HashMap<String, Arc<Route>>>,
}

impl RouteCache {
    pub(super) fn get_or_make(&self, pubsub: &str, topic: &str, make: impl FnOnce() -> Route) -> Arc<Route> {
        let lock = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = {
            let state = lock();
            if let Some(route) = state.by_pubsub.get(pubsub).and_then(|topics| topics.get(topic)) {
                return route.clone();
            }
            state.generation
        };
        let route = Arc::new(make());
        let mut state = lock();
        if state.generation == generation {
            let topics = state.by_pubsub.entry(pubsub.to_owned()).or_default();
            if topics.len() >= REMEMBERED_ROUTES {
                topics.clear();
            }
            topics.insert(topic.to_owned(), route.clone());
        }
        route
    }

    /// Called after the routing has changed.
    pub(super) fn clear(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.generation += 1;
        state.by_pubsub.clear();
    }
}

/// A live subscription; dropping it ends it.
pub struct LiveSubscription {
    hub: Hub,
    pubsub: String,
    filter: String,
    id: u64,
}

impl std::fmt::Debug for LiveSubscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveSubscription").field("pubsub", &self.pubsub).field("filter", &self.filter).finish_non_exhaustive()
    }
}

impl LiveSubscription {
    pub(super) fn new(hub: Hub, pubsub: &str, filter: &str, id: u64) -> Self {
        Self { hub, pubsub: pubsub.to_owned(), filter: filter.to_owned(), id }
    }
}

impl Drop for LiveSubscription {
    fn drop(&mut self) {
        self.hub.unsubscribe(&self.pubsub, &self.filter, self.id);
    }
}
