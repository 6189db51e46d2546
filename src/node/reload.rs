//! Other resources for a node that runs: what of them can be put in place without dropping a connection, and what needs a restart.
//!
//! [`plan`] decides and is pure: it makes the resources that the node is to run with from now on, out of those that it runs with and
//! those that are wanted. What differs between the first two changes live; what still differs from the last needs a restart and is named.
//! Nothing can be left out in silence: a difference that has no name of its own is called so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::Mutex;

use super::escape::{EscapeHandle, EscapeOrder, EscapeSettings};
use super::routes::{RouteTable, routes_towards};
use super::store;
use crate::component::ListenerReload;
use crate::forward::{ForwarderControl, ForwarderSettings};
use crate::hub::Hub;
use crate::outbox::Durability;
use crate::resource::{DrainSpec, EscapePolicySpec, ForwardingSpec, LaneSpec, ListenerSpec, Resources, RouteSpec, UpstreamRole, UpstreamSpec};

/// What came of a reload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reload {
    /// What has changed, a line each.
    pub live: Vec<String>,
    /// What is as it was until the next start, a line each.
    pub restart: Vec<String>,
}

/// What a running node can take.
#[derive(Debug, Clone, Default)]
struct Abilities {
    /// Listeners that can be changed while they serve.
    listeners: BTreeSet<String>,
    /// Pub/subs on the box.
    spaces: BTreeSet<String>,
    /// Upstreams that have a forwarder.
    upstreams: BTreeSet<String>,
    /// Sets of upstreams that are read.
    sets: BTreeSet<String>,
    /// All pub/subs that were made.
    pubsubs: BTreeSet<String>,
}

/// A decision.
struct Plan {
    /// What the node is to run with.
    next: Resources,
    outcome: Reload,
}

/// Whether a route can be served.
enum Served {
    Now,
    AfterRestart,
    Never(String),
}

fn served(route: &RouteSpec, wanted: &Resources, can: &Abilities) -> Served {
    let missing = |name: &String| !can.pubsubs.contains(name);
    if let Some(unknown) = std::iter::once(&route.from).chain(&route.to).find(|n| missing(n)) {
        let comes = *unknown == "local" || wanted.components.iter().any(|c| c.name == *unknown);
        return if comes {
            Served::AfterRestart
        } else {
            Served::Never(format!("a route names {unknown:?}, and no pub/sub component has that name"))
        };
    }
    // The forwarders of a set are given its readers when they are made.
    if route.set().is_some_and(|set| route.to.iter().all(|to| can.upstreams.contains(to)) && !can.sets.contains(&set)) {
        return Served::AfterRestart;
    }
    let inward = !can.spaces.contains(&route.from);
    for to in &route.to {
        match (inward, can.spaces.contains(to)) {
            (true, false) => return Served::Never(format!("the route from {:?} to {to:?} is not served: one end must be local", route.from)),
            (false, false) if !can.upstreams.contains(to) => {
                return Served::Never(format!("a route leads to {to:?}, which cannot be an upstream; accepted are pubsub.mqtt3 and pubsub.mqtt5"));
            }
            _ => {}
        }
    }
    Served::Now
}

fn next_listener(running: &ListenerSpec, wanted: &Resources, can: &Abilities) -> ListenerSpec {
    let mut next = running.clone();
    if let Some(w) = wanted.listeners.iter().find(|l| l.name == running.name)
        && can.listeners.contains(&running.name)
        && w.tls.is_some() == running.tls.is_some()
    {
        next.tls.clone_from(&w.tls);
        next.users_file.clone_from(&w.users_file);
        next.limits = w.limits;
    }
    next
}

fn lanes(resources: &Resources) -> impl Iterator<Item = &LaneSpec> {
    resources.forwardings.iter().flat_map(|f| &f.lanes)
}

/// Lanes stay the ones that there are, with the values that are wanted; drains are the wanted ones. So are routes, all of them or none: when
/// one has to wait for a restart, one that is not wanted any more may be what it replaces, and messages would find no way meanwhile.
fn next_forwardings(running: &Resources, wanted: &Resources, can: &Abilities) -> Result<Vec<ForwardingSpec>, Vec<String>> {
    if running.forwardings.is_empty() != wanted.forwardings.is_empty() {
        return Ok(running.forwardings.clone());
    }
    let (mut errors, mut wait) = (Vec::new(), false);
    for route in wanted.forwardings.iter().flat_map(|f| &f.routes) {
        match served(route, wanted, can) {
            Served::Now => {}
            Served::AfterRestart => wait = true,
            Served::Never(why) => errors.push(why),
        }
    }
    let mut next = wanted.forwardings.clone();
    for forwarding in &mut next {
        if wait {
            forwarding.routes.clear();
        }
        forwarding.lanes.retain_mut(|lane| match lanes(running).find(|l| l.name == lane.name) {
            Some(there) => {
                lane.strict = there.strict;
                // Senders may wait for the syncs of a lane that would have none any more, or for upstreams.
                let kinds = [lane.durability, there.durability];
                if kinds[0] != kinds[1] && kinds.contains(&Durability::Passthrough) {
                    *lane = LaneSpec { matches: lane.matches.clone(), weight: lane.weight, ..there.clone() };
                } else if !lane.durability.waits_as(there.durability) {
                    (lane.durability, lane.spill_after, lane.order) = (there.durability, there.spill_after, there.order);
                }
                true
            }
            None => false,
        });
    }
    for old in &running.forwardings {
        let at = next.iter().position(|f| f.name == old.name).unwrap_or(0);
        let Some(forwarding) = next.get_mut(at) else { continue };
        forwarding.lanes.extend(old.lanes.iter().filter(|lane| lanes(wanted).all(|l| l.name != lane.name)).cloned());
        if wait {
            forwarding.routes.extend(old.routes.iter().cloned());
        }
    }
    if errors.is_empty() { Ok(next) } else { Err(errors) }
}

fn next_policies(running: &Resources, wanted: &Resources) -> Vec<EscapePolicySpec> {
    let mut next = running.escape_policies.clone();
    for (policy, w) in next.iter_mut().zip(&wanted.escape_policies) {
        policy.modes = w.modes;
        policy.disk_free = w.disk_free;
        (policy.flash_per_day, policy.data_per_month) = (w.flash_per_day, w.data_per_month);
        for upstream in &mut policy.upstreams {
            if let Some(w) = w.upstreams.iter().find(|u| u.component == upstream.component) {
                (upstream.slow, upstream.stall, upstream.heal, upstream.failback_after) = (w.slow, w.stall, w.heal, w.failback_after);
                upstream.data_per_month = w.data_per_month;
            }
        }
    }
    next
}

fn plan(running: &Resources, wanted: &Resources, can: &Abilities) -> Result<Plan, Vec<String>> {
    let next = Resources {
        listeners: running.listeners.iter().map(|l| next_listener(l, wanted, can)).collect(),
        forwardings: next_forwardings(running, wanted, can)?,
        escape_policies: next_policies(running, wanted),
        ..running.clone()
    };
    // Listeners say themselves what has changed: their files may have, while the resource has not.
    let before = Resources { listeners: next.listeners.clone(), ..running.clone() };
    let outcome = Reload { live: differences(&before, &next), restart: differences(&next, wanted) };
    Ok(Plan { next, outcome })
}

/// Names of the keys whose values differ.
macro_rules! changed {
    ($a:expr, $b:expr, [$($name:literal: $($field:ident).+),* $(,)?]) => {{
        let mut keys: Vec<&str> = Vec::new();
        $(if $a.$($field).+ != $b.$($field).+ { keys.push($name); })*
        keys
    }};
}

/// Items of two lists by name: what is new, what is gone, and the keys that differ.
fn by_name<'r, T>(noun: &str, a: &'r [T], b: &'r [T], name: impl Fn(&T) -> &str, keys: impl Fn(&T, &T) -> Vec<&'static str>, out: &mut Vec<String>) {
    for old in a {
        match b.iter().find(|new| name(new) == name(old)) {
            None => out.push(format!("{noun} {} is gone", name(old))),
            Some(new) => {
                let keys = keys(old, new);
                if !keys.is_empty() {
                    out.push(format!("{noun} {}: {}", name(old), keys.join(", ")));
                }
            }
        }
    }
    out.extend(b.iter().filter(|new| a.iter().all(|old| name(old) != name(new))).map(|new| format!("{noun} {} is new", name(new))));
}

fn all_or_nothing<T: PartialEq>(a: &T, b: &T) -> Vec<&'static str> {
    if a == b { Vec::new() } else { vec!["has changed"] }
}

/// Without what says where a resource stands: a line that moves changes nothing.
fn settled(resources: &Resources) -> Resources {
    let mut settled = Resources { problems: Vec::new(), ..resources.clone() };
    for component in &mut settled.components {
        component.origin = String::new();
    }
    settled
}

fn differences(a: &Resources, b: &Resources) -> Vec<String> {
    let mut out = Vec::new();
    let (a, b) = (&settled(a), &settled(b));
    by_name("component", &a.components, &b.components, |c| &c.name, all_or_nothing, &mut out);
    by_name("subscription", &a.subscriptions, &b.subscriptions, |s| &s.name, all_or_nothing, &mut out);
    let listener = |a: &ListenerSpec, b: &ListenerSpec| changed!(a, b, ["protocol": protocol, "bind": bind, "pubsub": pubsub, "tls": tls, "users": users_file, "limits": limits]);
    by_name("listener", &a.listeners, &b.listeners, |l| &l.name, listener, &mut out);
    let lane = |a: &LaneSpec, b: &LaneSpec| {
        changed!(a, b, [
            "match": matches, "durability": durability, "quota": quota_bytes, "ttl": ttl, "onFull": when_full, "weight": weight, "strict": strict,
            "floor": floor_bytes, "spillAfter": spill_after, "order": order, "answerWithin": answer_within,
        ])
    };
    let (a_lanes, b_lanes): (Vec<_>, Vec<_>) = (lanes(a).cloned().collect(), lanes(b).cloned().collect());
    by_name("lane", &a_lanes, &b_lanes, |l| &l.name, lane, &mut out);
    let routes = |r: &Resources| r.forwardings.iter().flat_map(|f| f.routes.clone()).collect::<Vec<_>>();
    let (a_routes, b_routes) = (routes(a), routes(b));
    if a_routes != b_routes {
        let new = b_routes.iter().filter(|r| !a_routes.contains(r)).count();
        let gone = a_routes.iter().filter(|r| !b_routes.contains(r)).count();
        out.push(format!("routes: {new} new, {gone} gone"));
    }
    let drain = |r: &Resources| r.forwardings.first().map(|f| f.drain).unwrap_or_default();
    if drain(a) != drain(b) {
        out.push("drain".to_owned());
    }
    let upstream = |a: &UpstreamSpec, b: &UpstreamSpec| {
        changed!(a, b, [
            "role": role, "slow": slow, "stall": stall, "heal": heal, "lanes": lanes, "failbackAfter": failback_after,
            "data": data_per_month,
        ])
    };
    let upstreams = |r: &Resources| r.escape_policies.iter().flat_map(|p| p.upstreams.clone()).collect::<Vec<_>>();
    by_name("escape policy: upstream", &upstreams(a), &upstreams(b), |u| &u.component, upstream, &mut out);
    let policy = |a: &EscapePolicySpec, b: &EscapePolicySpec| {
        changed!(a, b, [
            "modes": modes, "budgets.diskFree": disk_free, "notices": notices, "modes.secretsMaxAge": secrets_max_age, "modes.configMaxAge": config_max_age,
            "budgets.flash": flash_per_day, "budgets.data": data_per_month, "atRest": at_rest, "atRest.messages": seal_messages, "atRest.lostKeys": lost_keys,
        ])
    };
    by_name("escape policy", &a.escape_policies, &b.escape_policies, |p| &p.name, policy, &mut out);
    if out.is_empty() && a != b {
        out.push("settings that have no name here (the order of resources, most likely)".to_owned());
    }
    out
}

/// The parts of a running node that take changes.
pub(super) struct Parts {
    pub running: Resources,
    pub hub: Option<Hub>,
    pub listeners: BTreeMap<String, Arc<dyn ListenerReload>>,
    pub forwarders: BTreeMap<String, ForwarderControl>,
    pub sets: BTreeSet<String>,
    pub spaces: BTreeSet<String>,
    pub pubsubs: BTreeSet<String>,
    pub routes: Option<RouteTable>,
    pub escape: Option<EscapeHandle>,
}

/// Changes a running node. Clones share it.
#[derive(Clone)]
pub struct ReloadHandle {
    parts: Arc<Mutex<Parts>>,
}

impl std::fmt::Debug for ReloadHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReloadHandle").finish_non_exhaustive()
    }
}

impl ReloadHandle {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(Mutex::new(parts)) }
    }

    /// Puts in place what can be without dropping a connection, and says what cannot.
    ///
    /// # Errors
    /// Everything that is wrong; the node then goes on as it was.
    pub async fn apply(&self, wanted: &Resources) -> Result<Reload, Vec<String>> {
        let mut parts = self.parts.lock().await;
        let can = Abilities {
            listeners: parts.listeners.keys().cloned().collect(),
            spaces: parts.spaces.clone(),
            upstreams: parts.forwarders.keys().cloned().collect(),
            sets: parts.sets.clone(),
            pubsubs: parts.pubsubs.clone(),
        };
        let Plan { next, mut outcome } = plan(&parts.running, wanted, &can)?;
        let mut errors = Vec::new();
        let mut prepared = Vec::new();
        for (spec, hold) in next.listeners.iter().filter_map(|spec| parts.listeners.get(&spec.name).map(|hold| (spec, hold))) {
            match hold.prepare(spec) {
                Ok(ready) => prepared.push((spec.name.clone(), ready)),
                Err(error) => errors.push(format!("listener {}: {error}", spec.name)),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        for (name, ready) in prepared {
            outcome.live.extend(ready().into_iter().map(|line| format!("listener {name}: {line}")));
        }
        parts.apply(&next).await?;
        parts.running = next;
        Ok(outcome)
    }
}

impl Parts {
    async fn apply(&self, next: &Resources) -> Result<(), Vec<String>> {
        let Some(hub) = &self.hub else { return Ok(()) };
        for spec in lanes(next) {
            hub.outbox().reconfigure(store::lane(spec));
        }
        hub.set_lane_rules(&store::lane_rules(next));
        let policies = || next.escape_policies.iter().flat_map(|p| &p.upstreams);
        for (name, control) in &self.forwarders {
            let policy = policies().find(|u| u.component == *name);
            let drain: DrainSpec = next.forwardings.first().map(|f| f.drain).unwrap_or_default();
            let routes = self.forwarders.keys().chain(&self.sets).map(|owner| (owner.clone(), routes_towards(next, owner))).collect();
            control.set(ForwarderSettings { routes, drain, ..ForwarderSettings::of(policy) });
        }
        if let Some(routes) = &self.routes {
            routes.apply(next).map_err(|e| vec![e])?;
        }
        if let (Some(escape), Some(policy)) = (&self.escape, next.escape_policies.first()) {
            let secondary = policies().find(|u| u.role == UpstreamRole::Secondary);
            let settings =
                EscapeSettings { policy: policy.clone(), failback_after: secondary.map_or(UpstreamSpec::FAILBACK_AFTER, |u| u.failback_after) };
            escape.order(EscapeOrder::Configure(Box::new(settings))).await.map_err(|e| vec![e])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::resource::Deliver;

    fn read(yaml: &str) -> Resources {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), yaml).unwrap();
        let resources = crate::resource::load(&[dir.path().to_owned()], "a", None, &|_: &str| None).unwrap();
        assert!(resources.problems.is_empty(), "{:?}", resources.problems);
        resources
    }

    fn yaml(component: &str, listener: &str, routes: &str, lanes: &str, drain: &str, policy: &str) -> Resources {
        read(&format!(
            "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: cloud}}\nspec: {{type: pubsub.mqtt5, version: v1, metadata: [{component}]}}\n---\n\
             apiVersion: selvedge/v1alpha1\nkind: Listener\nmetadata: {{name: devices}}\nspec: {{protocol: mqtt, {listener}}}\n---\n\
             apiVersion: selvedge/v1alpha1\nkind: Forwarding\nmetadata: {{name: up}}\nspec: {{routes: [{routes}], lanes: [{lanes}], drain: {{{drain}}}}}\n---\n\
             apiVersion: selvedge/v1alpha1\nkind: EscapePolicy\nmetadata: {{name: e}}\nspec: {{{policy}}}\n"
        ))
    }

    fn can() -> Abilities {
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect();
        Abilities {
            listeners: names(&["devices"]),
            spaces: names(&["local"]),
            upstreams: names(&["cloud"]),
            sets: BTreeSet::new(),
            pubsubs: names(&["local", "cloud"]),
        }
    }

    const URL: &str = "{name: url, value: \"mqtt://a\"}";
    const ROUTE: &str = "{from: local, topics: [\"a/#\"], to: [cloud]}";
    const LANE: &str = "{name: one, match: [\"a/#\"], ttl: 1h}";

    fn base() -> Resources {
        yaml(URL, "bind: \"127.0.0.1:1883\"", ROUTE, LANE, "", "upstreams: [{component: cloud}]")
    }

    #[test]
    fn each_change_is_either_live_or_named_as_one_that_needs_a_restart() {
        let listener = "bind: \"127.0.0.1:1883\"";
        let policy = "upstreams: [{component: cloud}]";
        let cases: [(Resources, &[&str], &[&str]); 18] = [
            (yaml(URL, listener, ROUTE, "{name: one, match: [\"a/#\"], ttl: 1h, durability: fsync}", "", policy), &["lane one: durability"], &[]),
            (
                yaml(URL, listener, ROUTE, "{name: one, match: [\"a/#\"], durability: passthrough}", "", policy),
                &[],
                &["lane one: durability, quota, ttl, onFull"],
            ),
            (
                yaml(URL, listener, ROUTE, "{name: one, match: [\"a/#\"], ttl: 1h, durability: memory, spillAfter: 0s}", "", policy),
                &[],
                &["lane one: durability"],
            ),
            (base(), &[], &[]),
            (yaml("{name: url, value: \"mqtt://b\"}", listener, ROUTE, LANE, "", policy), &[], &["component cloud: has changed"]),
            (yaml(URL, "bind: \"127.0.0.1:1884\"", ROUTE, LANE, "", policy), &[], &["listener devices: bind"]),
            (yaml(URL, "bind: \"127.0.0.1:1883\", users: {file: u.yaml}", ROUTE, LANE, "", policy), &[], &[]),
            (yaml(URL, "bind: \"127.0.0.1:1883\", tls: {certFile: c, keyFile: k}", ROUTE, LANE, "", policy), &[], &["listener devices: tls"]),
            (yaml(URL, listener, "{from: local, topics: [\"b/#\"], to: [cloud]}", LANE, "", policy), &["routes: 1 new, 1 gone"], &[]),
            (
                yaml(URL, listener, &format!("{ROUTE}, {{from: cloud, topics: [\"c/#\"], to: [local]}}"), LANE, "", policy),
                &["routes: 1 new, 0 gone"],
                &[],
            ),
            (
                yaml(URL, listener, ROUTE, "{name: one, match: [\"b/#\"], ttl: 2h, quota: 4MiB, weight: 3}", "", policy),
                &["lane one: match, quota, ttl, weight"],
                &[],
            ),
            (yaml(URL, listener, ROUTE, "{name: one, match: [\"a/#\"], ttl: 1h, strict: true}", "", policy), &[], &["lane one: strict"]),
            (yaml(URL, listener, ROUTE, "{name: two, match: [\"a/#\"], ttl: 1h}", "", policy), &[], &["lane one is gone", "lane two is new"]),
            (yaml(URL, listener, ROUTE, LANE, "jitter: 3s", policy), &["drain"], &[]),
            (
                yaml(URL, listener, ROUTE, LANE, "", "upstreams: [{component: cloud, stall: 3s}], modes: {islandAfter: 1s}"),
                &["escape policy: upstream cloud: stall", "escape policy e: modes"],
                &[],
            ),
            (
                yaml(URL, listener, ROUTE, LANE, "", "upstreams: [{component: cloud, data: 1MB/month}], budgets: {flash: 1MB/day, data: 2MB/month}"),
                &["escape policy: upstream cloud: data", "escape policy e: budgets.flash, budgets.data"],
                &[],
            ),
            (
                yaml(URL, listener, ROUTE, LANE, "", "upstreams: [{component: local}, {component: cloud, role: secondary}]"),
                &[],
                &["escape policy: upstream cloud: role", "escape policy: upstream local is new"],
            ),
            (yaml(URL, listener, ROUTE, LANE, "", "upstreams: [{component: cloud}], notices: {topic: x}"), &[], &["escape policy e: notices"]),
        ];
        for (wanted, live, restart) in cases {
            let Plan { next, outcome } = plan(&base(), &wanted, &can()).map_err(|e| e.join("; ")).unwrap();
            assert_eq!(
                (outcome.live, outcome.restart.clone()),
                (live.iter().map(|l| (*l).to_owned()).collect(), restart.iter().map(|l| (*l).to_owned()).collect())
            );
            // Whatever is put in place, what is left is what was named.
            assert_eq!(plan(&next, &wanted, &can()).ok().unwrap().outcome, Reload { live: Vec::new(), restart: outcome.restart });
        }
    }

    #[test]
    fn a_set_that_has_its_readers_changes_live_and_a_new_one_waits_for_the_next_start() {
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect();
        let mut can = Abilities { upstreams: names(&["a", "b"]), pubsubs: names(&["local", "a", "b"]), ..can() };
        let mut wanted = base();
        wanted.forwardings[0].routes[0].to = vec!["b".to_owned(), "a".to_owned()];
        wanted.forwardings[0].routes[0].deliver = Deliver::FirstAck;
        let outcome = plan(&base(), &wanted, &can).ok().unwrap().outcome;
        assert_eq!((outcome.live, outcome.restart), (Vec::new(), vec!["routes: 1 new, 1 gone".to_owned()]));
        can.sets = names(&["a|b"]);
        let outcome = plan(&base(), &wanted, &can).ok().unwrap().outcome;
        assert_eq!((outcome.live, outcome.restart), (vec!["routes: 1 new, 1 gone".to_owned()], Vec::new()));
    }

    #[test]
    fn routes_wait_for_components_that_are_new_and_mistakes_change_nothing() {
        let mut wanted = base();
        wanted.forwardings[0].routes[0].to = vec!["next".to_owned()];
        let Err(errors) = plan(&base(), &wanted, &can()) else { panic!("refused") };
        assert_eq!(errors, ["a route names \"next\", and no pub/sub component has that name"]);
        wanted.components.push(crate::resource::ComponentSpec { name: "next".into(), ..wanted.components[0].clone() });
        let Plan { next, outcome } = plan(&base(), &wanted, &can()).ok().unwrap();
        assert!(lanes(&next).all(|l| l.ttl == Some(Duration::from_secs(3_600))));
        assert_eq!(outcome.restart, ["component next is new", "routes: 1 new, 1 gone"]);
        assert_eq!((outcome.live, &next.forwardings[0].routes), (Vec::<String>::new(), &base().forwardings[0].routes), "messages still find a way");
        // One that waits keeps all others as they are.
        let there = base().forwardings[0].routes[0].clone();
        wanted.forwardings[0].routes.push(there);
        let Plan { next, outcome } = plan(&base(), &wanted, &can()).ok().unwrap();
        assert_eq!((next.forwardings.len(), &next.forwardings[0].routes), (1, &base().forwardings[0].routes));
        assert_eq!(outcome.live, Vec::<String>::new());
        assert!(outcome.restart.contains(&"routes: 1 new, 0 gone".to_owned()), "{:?}", outcome.restart);
    }
}
