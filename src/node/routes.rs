//! Routes set up: who forwards to which upstream, what comes in, what stays on the box, and who stands in for whom.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use smallvec::SmallVec;
use tokio::sync::watch;

use super::inbound::{Ids, InboundRoutes, Inward};
use super::local_routes::{Inside, LocalRoutes};
use super::{Components, Host, MAX_PRIMARIES, NodeConfig, NodeError, is_space, upstream_destination};
use crate::component::{Tables, Uplink};
use crate::forward::{ForwardMetrics, Forwarder, ForwarderConfig, ForwarderSettings, SetShare, StandIn};
use crate::hub::{Hub, HubRoute, NOTICES, QUARANTINE, RouteRule, Shard, When};
use crate::outbox::{DestinationId, LaneId};
use crate::resource::{Deliver, Resources, RouteSpec, SET_SEPARATOR, UpstreamRole, UpstreamSpec};
use crate::telemetry::Metrics;

/// Destinations of routes that stay on the box begin so.
const LOCAL_ROUTES: &str = "route/";

/// Everything that routes ask for.
#[derive(Default)]
pub(super) struct Routes {
    pub forwarders: Vec<Forwarder>,
    pub inbound: Option<InboundRoutes>,
    pub local: Option<LocalRoutes>,
    pub table: Option<RouteTable>,
    pub sets: Vec<UpstreamSet>,
}

/// Upstreams that records are stored for together: each is done when the first of them has it.
#[derive(Debug, Clone)]
pub(super) struct UpstreamSet {
    pub name: String,
    pub destination: DestinationId,
    /// Those of its members that are upstreams of this node, by name.
    pub members: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

/// Counts that routes share.
#[derive(Debug, Clone, Default)]
pub(super) struct RouteMetrics {
    undecided: Family<RouteLabel, Counter>,
    dropped: Family<RouteLabel, Counter>,
    own: Family<RouteLabel, Counter>,
}

impl RouteMetrics {
    fn register(metrics: &Metrics) -> Self {
        let all = Self::default();
        metrics.register(|r| {
            r.register("selvedge_route_undecided", "Messages for which a route's condition could not be decided", all.undecided.clone());
            r.register("selvedge_route_dropped", "Messages that a route on the box could never put into its target", all.dropped.clone());
            r.register("selvedge_route_own", "Messages that came back from an upstream to which the node had sent them itself", all.own.clone());
        });
        all
    }

    fn label(route: &RouteSpec) -> RouteLabel {
        RouteLabel { route: route.origin.to_string() }
    }

    /// The condition of a route.
    pub(super) fn when(&self, route: &RouteSpec) -> Result<Option<When>, String> {
        if route.when.is_empty() {
            return Ok(None);
        }
        When::parse(&route.when, self.undecided.get_or_create(&Self::label(route)).clone()).map(Some)
    }

    /// Counts what comes back.
    pub(super) fn own(&self, route: &RouteSpec) -> Counter {
        self.own.get_or_create(&Self::label(route)).clone()
    }

    /// Counts what a route on the box drops.
    pub(super) fn dropped(&self, route: &RouteSpec) -> Counter {
        self.dropped.get_or_create(&Self::label(route)).clone()
    }
}

/// Puts routes in place, at the start and while the node runs.
pub(super) struct RouteTable {
    hub: Hub,
    counts: RouteMetrics,
    upstreams: BTreeMap<String, DestinationId>,
    sets: Vec<UpstreamSet>,
    spaces: BTreeSet<String>,
    inbound: watch::Sender<Vec<Inward>>,
    local: watch::Sender<Vec<Inside>>,
}

impl RouteTable {
    /// The routes of these resources are in place from now on.
    ///
    /// # Errors
    /// What keeps one from being set up.
    pub(super) fn apply(&self, resources: &Resources) -> Result<(), String> {
        let (mut routes, mut inside) = (Vec::new(), Vec::<Inside>::new());
        for route in resources.forwardings.iter().flat_map(|f| &f.routes).filter(|r| self.spaces.contains(&r.from)) {
            let fail = |e: &dyn std::fmt::Display| format!("the route from {:?} to {:?} cannot be set up: {e}", route.from, route.to);
            let upstreams = route.to.iter().filter_map(|to| self.upstreams.get(to).map(|id| (to.clone(), *id)));
            let (mut destinations, shard): (SmallVec<[DestinationId; 2]>, Option<Shard>) = match &route.deliver {
                Deliver::Both => (upstreams.map(|(_, id)| id).collect(), None),
                Deliver::Shard(key) => (SmallVec::new(), Some(Shard { key: key.clone(), members: upstreams.collect() })),
                Deliver::FirstAck => {
                    let set = route.set().and_then(|name| self.sets.iter().find(|s| s.name == name)).map(|s| s.destination);
                    (SmallVec::from_iter([set.ok_or_else(|| fail(&"there is no such set"))?]), None)
                }
            };
            let to: Vec<String> = route.to.iter().filter(|t| self.spaces.contains(*t)).cloned().collect();
            if !to.is_empty() {
                let destination = self.hub.destination(&local_destination(route)).map_err(|e| fail(&e))?;
                destinations.push(destination);
                // Two routes that differ in their conditions alone are one destination.
                if inside.iter().all(|i| i.destination != destination) {
                    inside.push(Inside { route: route.clone(), to, destination });
                }
            }
            let when = self.counts.when(route).map_err(|e| fail(&e))?;
            routes.push(HubRoute { from: route.from.clone(), topics: route.topics.clone(), rule: Arc::new(RouteRule { when, destinations, shard }) });
        }
        self.hub.set_routes(&routes).map_err(|e| e.to_string())?;
        self.local.send_replace(inside);
        self.inbound.send_replace(inward(resources, &self.spaces, &self.upstreams, &self.sets));
        Ok(())
    }

    /// What waits for a route that is gone would keep its segments for nobody.
    fn forget_others(&self) {
        let wanted: Vec<DestinationId> = self.local.borrow().iter().map(|i| i.destination).collect();
        for name in self.hub.outbox().ledger().into_iter().map(|row| row.destination).filter(|d| d.starts_with(LOCAL_ROUTES)) {
            let forgotten = self.hub.destination(&name).and_then(|id| if wanted.contains(&id) { Ok(()) } else { self.hub.forget(id) });
            if let Err(error) = forgotten {
                tracing::warn!(destination = name, %error, "a route that is gone cannot be forgotten");
            }
        }
    }
}

/// The routes that lead in, by the pub/sub of the box that they lead to.
fn inward(resources: &Resources, spaces: &BTreeSet<String>, upstreams: &BTreeMap<String, DestinationId>, sets: &[UpstreamSet]) -> Vec<Inward> {
    let routes = || resources.forwardings.iter().flat_map(|f| &f.routes);
    let each = routes().filter(|r| !spaces.contains(&r.from));
    let each = each.flat_map(|route| route.to.iter().filter(|to| spaces.contains(*to)).map(move |to| (route, to)));
    each.map(|(route, to)| {
        let sets = sets.iter().filter(|s| s.members.contains(&route.from)).map(|s| s.destination);
        Inward {
            route: route.clone(),
            to: to.clone(),
            origins: upstreams.get(&route.from).copied().into_iter().chain(sets).collect(),
            back: routes().filter(|r| r.from == *to && r.to.contains(&route.from)).cloned().collect(),
        }
    })
    .collect()
}

/// The routes that lead to an upstream, or to a set by its name. To a set that none leads to any more: those that lead to its members, whose
/// topics are the same most often.
pub(super) fn routes_towards(resources: &Resources, upstream: &str) -> Vec<RouteSpec> {
    let all = || resources.forwardings.iter().flat_map(|f| &f.routes);
    let leads = |r: &&RouteSpec| r.set().map_or_else(|| r.to.iter().any(|t| t == upstream), |set| set == upstream);
    let routes: Vec<RouteSpec> = all().filter(leads).cloned().collect();
    if !routes.is_empty() || !upstream.contains(SET_SEPARATOR) {
        return routes;
    }
    all().filter(|r| r.to.iter().any(|to| upstream.split(SET_SEPARATOR).any(|member| member == to))).cloned().collect()
}

/// Sets that routes lead to, and those of earlier settings that something waits for: it goes to the members that are still there.
fn sets(config: &NodeConfig, hub: &Hub, spaces: &BTreeSet<String>, forwarders: &mut [Draft]) -> Result<Vec<UpstreamSet>, NodeError> {
    let wanted = config.resources.forwardings.iter().flat_map(|f| &f.routes).filter(|r| spaces.contains(&r.from)).filter_map(RouteSpec::set);
    let mut names: BTreeSet<String> = wanted.collect();
    let rows = hub.outbox().ledger().into_iter().filter(|row| row.queued > 0);
    names.extend(
        rows.filter_map(|row| row.destination.strip_prefix(&upstream_destination("")).map(str::to_owned)).filter(|n| n.contains(SET_SEPARATOR)),
    );
    let mut sets = Vec::new();
    for name in names {
        let members: Vec<usize> = name.split(SET_SEPARATOR).filter_map(|m| forwarders.iter().position(|(f, _)| f.name == m)).collect();
        // An upstream that is called like a set is one.
        if members.is_empty() || forwarders.iter().any(|(f, _)| f.name == name) {
            continue;
        }
        let fail = |e: &dyn std::fmt::Display| NodeError::Route(format!("the set of upstreams {name} cannot be set up: {e}"));
        let destination = hub.destination(&upstream_destination(&name)).map_err(|e| fail(&e))?;
        let set = hub.set(destination, members.len());
        let routes = routes_towards(&config.resources, &name);
        for (member, at) in members.iter().enumerate() {
            forwarders[*at].0.sets.push(SetShare { name: name.clone(), set: set.clone(), member, routes: routes.clone() });
        }
        sets.push(UpstreamSet { destination, members: members.iter().map(|at| forwarders[*at].0.name.clone()).collect(), name });
    }
    Ok(sets)
}

/// The secondary upstream of the policy, if there is one.
pub(super) fn secondary(config: &NodeConfig) -> Option<&UpstreamSpec> {
    config.resources.escape_policies.iter().flat_map(|p| &p.upstreams).find(|u| u.role == UpstreamRole::Secondary)
}

/// The secondary takes lanes of the policy's primaries over, as the primaries' forwarders lend them.
fn stand_ins(config: &NodeConfig, hub: &Hub, forwarders: &mut [Draft]) -> Result<(), NodeError> {
    let Some(spec) = secondary(config) else { return Ok(()) };
    let known = hub.outbox().lanes();
    if let Some(unknown) = spec.lanes.iter().find(|name| known.iter().all(|(_, n)| n != *name)) {
        return Err(NodeError::Route(format!(
            "EscapePolicy: upstream {} takes over the lane {unknown:?}, and there is none of that name",
            spec.component
        )));
    }
    // Notices are about an upstream and stay with it.
    let wanted = |name: &String| name != NOTICES && name != QUARANTINE && (spec.lanes.is_empty() || spec.lanes.contains(name));
    let lanes: Vec<LaneId> = known.iter().filter(|(_, name)| wanted(name)).map(|(id, _)| *id).collect();
    let mut stands_in_for = Vec::new();
    for (primary, _) in forwarders.iter_mut() {
        let named = config
            .resources
            .escape_policies
            .iter()
            .flat_map(|p| &p.upstreams)
            .any(|u| u.component == primary.name && u.role == UpstreamRole::Primary);
        if named && stands_in_for.len() < MAX_PRIMARIES {
            primary.lends.clone_from(&lanes);
            stands_in_for.push(StandIn {
                name: primary.name.clone(),
                destination: primary.destination,
                routes: primary.routes.clone(),
                lanes: lanes.clone(),
            });
        }
    }
    match forwarders.iter_mut().find(|(f, _)| f.name == spec.component) {
        Some((f, _)) => f.stands_in_for = stands_in_for,
        None => {
            return Err(NodeError::Route(format!(
                "EscapePolicy: the secondary upstream {} cannot be an upstream; accepted are pubsub.mqtt3 and pubsub.mqtt5",
                spec.component
            )));
        }
    }
    Ok(())
}

/// Forwarders for the pub/subs that stand behind the outbox, and everything that routes ask for.
pub(super) fn set_up(config: &NodeConfig, host: &Host, hub: &Hub, tables: &Arc<dyn Tables>, components: &Components) -> Result<Routes, NodeError> {
    let spaces: BTreeSet<String> = components.pubsub.iter().filter(|(name, p)| is_space(name, p)).map(|(name, _)| name.clone()).collect();
    let mut drafts = drafts(config, hub, components, &spaces)?;
    stand_ins(config, hub, &mut drafts)?;
    let sets = sets(config, hub, &spaces, &mut drafts)?;
    let counts = RouteMetrics::register(&host.metrics);
    let metrics = ForwardMetrics::register(&host.metrics);
    let (inbound, inbound_wanted) = watch::channel(Vec::new());
    let (local, local_wanted) = watch::channel(Vec::new());
    let upstreams = drafts.iter().map(|(f, _)| (f.name.clone(), f.destination)).collect();
    let table = RouteTable { hub: hub.clone(), counts: counts.clone(), upstreams, sets: sets.clone(), spaces, inbound, local };
    table.apply(&config.resources).map_err(NodeError::Route)?;
    if let Some(Inward { route, .. }) = table.inbound.borrow().iter().find(|way| !components.pubsub.contains_key(&way.route.from)) {
        return Err(NodeError::Route(format!("a route comes from {:?}, and no pub/sub component has that name", route.from)));
    }
    table.forget_others();
    let sources = components.pubsub.iter().map(|(name, p)| (name.clone(), p.item.clone())).collect();
    let ids = Ids { tables: tables.clone(), metrics: host.metrics.clone() };
    Ok(Routes {
        forwarders: drafts.into_iter().map(|(f, uplink)| Forwarder::new(f, hub.clone(), uplink, host.clock.clone(), &metrics)).collect(),
        inbound: Some(InboundRoutes::new(inbound_wanted, sources, hub.clone(), counts.clone(), ids)),
        local: Some(LocalRoutes::new(local_wanted, hub.clone(), counts)),
        table: Some(table),
        sets,
    })
}

/// Name of a local route's destination in the store: the same for the same mapping, wherever it stands among the others.
fn local_destination(route: &RouteSpec) -> String {
    let parts = [route.from.as_str(), &route.topics.join(","), &route.to.join(","), &route.strip_prefix, &route.prefix];
    format!("{LOCAL_ROUTES}{}-{:08x}", route.from, crc32fast::hash(parts.join("\n").as_bytes()))
}

/// A forwarder that is not made yet.
type Draft = (ForwarderConfig, Box<dyn Uplink>);

/// A forwarder for each pub/sub that can be one.
fn drafts(config: &NodeConfig, hub: &Hub, components: &Components, spaces: &BTreeSet<String>) -> Result<Vec<Draft>, NodeError> {
    let drain = config.resources.forwardings.first().map(|f| f.drain).unwrap_or_default();
    let mut drafts = Vec::new();
    for (name, loaded) in components.pubsub.iter().filter(|(name, _)| !spaces.contains(*name)) {
        let towards = routes_towards(&config.resources, name);
        let named = |r: &RouteSpec| r.to.iter().any(|to| to == name);
        let Some(uplink) = loaded.item.uplink() else {
            if config.resources.forwardings.iter().flat_map(|f| &f.routes).any(named) {
                return Err(NodeError::Route(format!(
                    "a route leads to {name:?} ({}), which cannot be an upstream; accepted are pubsub.mqtt3 and pubsub.mqtt5",
                    loaded.type_name
                )));
            }
            continue;
        };
        if let Some(route) = towards.iter().find(|r| !spaces.contains(&r.from)) {
            return Err(NodeError::Route(format!("the route from {:?} to {name:?} is not served: one end must be local", route.from)));
        }
        let fail = |e: &dyn std::fmt::Display| NodeError::Route(format!("the upstream {name} cannot be set up: {e}"));
        let destination = hub.destination(&upstream_destination(name)).map_err(|e| fail(&e))?;
        hub.add_link(destination);
        hub.bind(destination, name, "#").map_err(|e| fail(&e))?;
        let policy = config.resources.escape_policies.iter().flat_map(|p| &p.upstreams).find(|u| u.component == *name);
        let mut forwarder = ForwarderConfig::new(name.clone(), destination);
        forwarder.routes = towards;
        forwarder.drain = drain;
        let settings = ForwarderSettings::of(policy);
        (forwarder.stall, forwarder.slow, forwarder.link.stable) = (settings.stall, settings.slow, settings.heal);
        drafts.push((forwarder, uplink));
    }
    Ok(drafts)
}
