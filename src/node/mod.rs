//! The node: build, run, drain.
//!
//! Building starts nothing that sends or receives: configuration is read and checked, the store is opened, components are made,
//! sockets are bound. [`Node::run`] is the only place where tasks begin; it ends with the written order of [`Node::run`]'s drain.

mod budgets;
mod components;
mod encrypted;
mod escape;
mod inbound;
mod mode_store;
mod readings;
mod reload;
mod store;
mod tombstones;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::component::{BoundListener, BuildError, Fut, InheritedSockets, ListenerContext, PubSub, Registry, Table, Tables, Uplink};
use crate::escape::Handover;
use crate::forward::{ForwardMetrics, Forwarder, ForwarderConfig, ForwarderSettings, ForwarderStatus, StandIn};
use crate::hub::{Hub, NOTICES, QUARANTINE};
use crate::outbox::LaneId;
use crate::outbox::storage::Storage;
use crate::resource::{ComponentSpec, ConfigurationSpec, Resources, UpstreamRole, UpstreamSpec};
use crate::telemetry::Metrics;
use crate::time::{Clock, Timestamp};

pub use budgets::BudgetView;
pub use components::{Components, Loaded};
pub use escape::{EscapeHandle, EscapeOrder, EscapeSettings, MODE_TOPIC, ModeView};
pub use mode_store::MODE_STORE_TYPE;
pub use reload::{Reload, ReloadHandle};
pub use store::node_id;

/// Opens the node's own tables in the data folder.
pub type OpenTables = Arc<dyn Fn(PathBuf, Metrics) -> Fut<'static, Result<Arc<dyn Tables>, String>> + Send + Sync>;
/// Makes the built-in pub/sub: name, application id, exchange, metrics.
pub type MakeLocal = Arc<dyn Fn(&str, &str, Hub, &Metrics) -> Arc<dyn PubSub> + Send + Sync>;

/// What a target gives the node.
#[derive(Clone)]
pub struct Host {
    /// Component and listener factories.
    pub registry: Registry,
    /// Tables for retained messages and sessions.
    pub open_tables: OpenTables,
    /// The pub/sub `local`.
    pub make_local: MakeLocal,
    /// Files.
    pub storage: Arc<dyn Storage>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Metrics.
    pub metrics: Metrics,
    /// Sockets that the service manager handed over.
    pub sockets: InheritedSockets,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// What the node is to be.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// `--app-id`.
    pub app_id: String,
    /// `$NAMESPACE`.
    pub namespace: Option<String>,
    /// Where everything that lasts is kept.
    pub data_dir: PathBuf,
    /// Resources, checked.
    pub resources: Resources,
    /// `--config` files.
    pub configuration: ConfigurationSpec,
    /// Values of environment variables, for `envRef` and `{podName}`.
    pub environment: BTreeMap<String, String>,
}

/// Why a node was not built.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// daprd's words for components that stand twice.
    #[error("failed to load components: {0}")]
    Duplicates(String),
    /// The data folder cannot be used.
    #[error("the data directory {} cannot be used: {detail}; choose another with --data-dir", .path.display())]
    DataDir {
        /// Folder.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A component did not start.
    #[error("process component {name} error: {detail}")]
    Component {
        /// Component.
        name: String,
        /// daprd's error text.
        detail: String,
    },
    /// A listener did not start.
    #[error("listener {name}: {source}")]
    Listener {
        /// Listener.
        name: String,
        /// Why.
        source: BuildError,
    },
    /// A route cannot work.
    #[error("{0}")]
    Route(String),
}

/// A node whose sockets are bound and whose components are made.
pub struct Node {
    config: NodeConfig,
    host: Host,
    hub: Option<Hub>,
    /// Where events of state transactions stand until they are published.
    transactions: Option<Arc<dyn Table>>,
    components: Components,
    listeners: Vec<(String, Box<dyn BoundListener>)>,
    forwarders: Vec<Forwarder>,
    escape: Option<(escape::Escape, EscapeHandle)>,
    inbound: Option<inbound::InboundRoutes>,
    reload: ReloadHandle,
    readings: Vec<readings::Readings>,
    started: Timestamp,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("app_id", &self.config.app_id).finish_non_exhaustive()
    }
}

/// A cheap handle to what the node is doing.
#[derive(Clone)]
pub struct NodeStatus {
    app_id: String,
    started: Timestamp,
    clock: Arc<dyn Clock>,
    hub: Option<Hub>,
    upstreams: Vec<ForwarderStatus>,
    escape: Option<EscapeHandle>,
    listeners: Vec<(String, String)>,
}

impl std::fmt::Debug for NodeStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeStatus").field("app_id", &self.app_id).finish_non_exhaustive()
    }
}

impl NodeStatus {
    /// Links of the upstreams.
    #[must_use]
    pub fn upstreams(&self) -> &[ForwarderStatus] {
        &self.upstreams
    }

    /// Whether messages for this upstream wait at the moment; `None` when it is no upstream.
    #[must_use]
    pub fn is_behind(&self, upstream: &str) -> Option<bool> {
        self.upstreams.iter().find(|u| u.snapshot().upstream == upstream).map(ForwarderStatus::is_behind)
    }

    /// The exchange; none on a node without a store.
    #[must_use]
    pub fn hub(&self) -> Option<&Hub> {
        self.hub.as_ref()
    }

    /// The controller of the mode; none on a node without a store.
    #[must_use]
    pub fn escape(&self) -> Option<&EscapeHandle> {
        self.escape.as_ref()
    }

    /// Everything as JSON: `id`, `mode`, `uptimeSeconds`, `listeners`, `upstreams`, `lanes`, `ledger`, `flash`, `budgets`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let now = self.clock.now();
        let upstreams: Vec<_> = self
            .upstreams
            .iter()
            .map(|u| {
                let s = u.snapshot();
                json!({
                    "name": s.upstream, "state": s.state.as_str(), "since": s.since.to_rfc3339(), "cause": s.cause.map(crate::component::LinkCause::as_str),
                    "detail": s.detail, "sent": s.sent, "acknowledged": s.acknowledged, "refused": s.refused, "queued": s.queued, "connects": s.connects,
                    "paused": u.is_paused(), "bytesSent": u.traffic().sent, "bytesReceived": u.traffic().received,
                    "lent": !u.handed(0), "standsIn": (1..=MAX_PRIMARIES).any(|n| u.handed(n)),
                })
            })
            .collect();
        let listeners: Vec<_> = self.listeners.iter().map(|(name, address)| json!({"name": name, "address": address})).collect();
        let mut status = json!({
            "id": self.app_id, "uptimeSeconds": now.since(self.started).as_secs(), "listeners": listeners, "upstreams": upstreams, "lanes": [], "ledger": [],
        });
        if let Some(escape) = &self.escape {
            status["mode"] = escape.to_json();
            status["budgets"] = json!(escape.budgets().iter().map(BudgetView::to_json).collect::<Vec<_>>());
        }
        if let Some(outbox) = self.hub.as_ref().map(Hub::outbox) {
            let lanes: Vec<_> = outbox
                .status()
                .into_iter()
                .map(|l| {
                    json!({
                        "name": l.lane, "diskBytes": l.disk_bytes, "quotaBytes": l.quota_bytes, "segments": l.segments, "lastSequence": l.last_sequence,
                        "acceptedBytes": l.accepted_bytes, "heldBytes": l.held_bytes, "spilledBytes": l.spilled_bytes, "sparedBytes": l.spared_bytes,
                        "corruptRecords": l.corrupt_records, "failure": l.failure,
                    })
                })
                .collect();
            let ledger: Vec<_> = outbox
                .ledger()
                .into_iter()
                .map(|r| {
                    json!({
                        "lane": r.lane, "destination": r.destination, "accepted": r.accepted, "delivered": r.delivered, "expired": r.expired,
                        "evicted": r.evicted, "aggregated": r.aggregated, "queued": r.queued,
                    })
                })
                .collect();
            let written = outbox.write_counts();
            status["lanes"] = json!(lanes);
            status["ledger"] = json!(ledger);
            status["flash"] = json!({
                "bytesWritten": written.bytes, "flashBytes": written.flash_bytes, "syncs": written.syncs, "failedSyncs": written.failed_syncs,
            });
        }
        status
    }
}

/// Primaries that a secondary may stand in for.
const MAX_PRIMARIES: usize = 31;

/// Name of an upstream's destination in the store.
#[must_use]
pub fn upstream_destination(component: &str) -> String {
    format!("upstream/{component}")
}

impl Node {
    /// Reads nothing, sends nothing: opens the store, makes the components, binds the listeners.
    ///
    /// # Errors
    /// The first thing that keeps the node from being what it is configured to be.
    pub async fn build(config: NodeConfig, host: Host) -> Result<Self, NodeError> {
        if let Some(text) = &config.resources.duplicate_components {
            return Err(NodeError::Duplicates(text.clone()));
        }
        let (hub, tables, set_aside) = match store::open(&config, &host).await? {
            Some(store) => (Some(store.hub), Some(store.tables), store.set_aside),
            None => (None, None, Vec::new()),
        };
        let mut components = components::build(&config, &host, hub.as_ref()).await?;
        if let Some(hub) = &hub
            && config.resources.needs_local()
        {
            let local = (host.make_local)("local", &config.app_id, hub.clone(), &host.metrics);
            components.add_local(local);
        }
        let (forwarders, inbound) = match &hub {
            Some(hub) => routes(&config, &host, hub, &components)?,
            None => (Vec::new(), Vec::new()),
        };
        let (inbound_wanted, wanted) = watch::channel(inbound);
        let sources = components.pubsub.iter().map(|(name, p)| (name.clone(), p.item.clone())).collect();
        let inbound = hub.as_ref().map(|hub| inbound::InboundRoutes::new(wanted, sources, hub.clone()));
        let escape = hub.as_ref().map(|hub| escape(&config, &host, hub, &forwarders, &components, set_aside));
        if let Some((_, handle)) = &escape {
            let store = mode_store::ModeStore::new(handle, forwarders.iter().map(Forwarder::status).collect());
            components.add_mode_stores(&config.resources.components, &Arc::new(store));
        }
        let outboxed: BTreeSet<String> = forwarders.iter().map(|f| f.status().snapshot().upstream).collect();
        let readings = readings(&components, hub.as_ref(), &outboxed, escape.as_ref().map(|(_, handle)| handle))?;
        let mut listeners = Vec::new();
        if let (Some(hub), Some(tables)) = (&hub, &tables) {
            for spec in &config.resources.listeners {
                let context = ListenerContext {
                    name: spec.name.clone(),
                    spec: spec.clone(),
                    hub: hub.clone(),
                    tables: tables.clone(),
                    clock: host.clock.clone(),
                    metrics: host.metrics.clone(),
                    sockets: host.sockets.clone(),
                };
                let bound = host.registry.bind_listener(context).await.map_err(|source| NodeError::Listener { name: spec.name.clone(), source })?;
                tracing::info!(listener = %spec.name, protocol = spec.protocol.as_str(), address = %bound.address(), "listening for devices");
                listeners.push((spec.name.clone(), bound));
            }
        }
        let started = host.clock.now();
        let transactions = match &tables {
            Some(tables) if config.resources.components.iter().any(ComponentSpec::has_outbox) => {
                let opened = tables.open("state_outbox").await;
                Some(opened.map_err(|e| NodeError::DataDir { path: config.data_dir.clone(), detail: e.to_string() })?)
            }
            _ => None,
        };
        let spaces = components.pubsub.iter().filter(|(name, p)| is_space(name, p)).map(|(name, _)| name.clone()).collect();
        let reload = ReloadHandle::new(reload::Parts {
            running: Resources { problems: Vec::new(), ..config.resources.clone() },
            hub: hub.clone(),
            listeners: listeners.iter().filter_map(|(name, bound)| Some((name.clone(), bound.reload()?))).collect(),
            forwarders: forwarders.iter().map(|f| (f.status().upstream().to_owned(), (f.destination(), f.control()))).collect(),
            spaces,
            pubsubs: components.pubsub.keys().cloned().collect(),
            inbound: inbound_wanted,
            escape: escape.as_ref().map(|(_, handle)| handle.clone()),
        });
        Ok(Self { config, host, reload, hub, transactions, components, listeners, forwarders, escape, inbound, readings, started })
    }

    /// The handle to what the node is doing.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        NodeStatus {
            app_id: self.config.app_id.clone(),
            started: self.started,
            clock: self.host.clock.clone(),
            hub: self.hub.clone(),
            upstreams: self.forwarders.iter().map(Forwarder::status).collect(),
            escape: self.escape.as_ref().map(|(_, handle)| handle.clone()),
            listeners: self.listeners.iter().map(|(name, bound)| (name.clone(), bound.address())).collect(),
        }
    }

    /// What changes the node while it runs.
    #[must_use]
    pub fn reload(&self) -> ReloadHandle {
        self.reload.clone()
    }

    /// The exchange, when anything needs one.
    #[must_use]
    pub fn hub(&self) -> Option<&Hub> {
        self.hub.as_ref()
    }

    /// The table of events that state transactions are told of by, when a store has an outbox and the node a folder.
    #[must_use]
    pub fn transactions(&self) -> Option<Arc<dyn Table>> {
        self.transactions.clone()
    }

    /// Where the node counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.host.metrics
    }

    /// The components.
    #[must_use]
    pub fn components(&self) -> &Components {
        &self.components
    }

    /// Time.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.host.clock.clone()
    }

    /// What the node is.
    #[must_use]
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Serves until `stop` resolves, then drains within `grace`: listeners stop accepting and answer what is safe, inbound routes
    /// end, forwarders wait for answers on their way, components close, the store is synced. Returns who did not end in time.
    pub async fn run(self, stop: Fut<'static, ()>, grace: Duration) -> Vec<String> {
        let (stopping, stopped) = watch::channel(0u8);
        let after = |phase: u8| -> Fut<'static, ()> {
            let mut stopped = stopped.clone();
            Box::pin(async move {
                let _ = stopped.wait_for(|p| *p >= phase).await;
            })
        };
        let mut listeners: JoinSet<()> = JoinSet::new();
        for (_, bound) in self.listeners {
            listeners.spawn(bound.serve(after(1)));
        }
        let mut routes: JoinSet<()> = JoinSet::new();
        if let Some(inbound) = self.inbound {
            routes.spawn(inbound.run(after(2)));
        }
        for reading in self.readings {
            routes.spawn(reading.run(after(2)));
        }
        let mut forwarders: JoinSet<()> = JoinSet::new();
        if let Some((escape, _)) = self.escape {
            forwarders.spawn(escape.run(after(2)));
        }
        for forwarder in self.forwarders {
            forwarders.spawn(forwarder.run(after(3)));
        }
        stop.await;
        let mut late = Vec::new();
        let deadline = tokio::time::Instant::now() + grace;
        for (phase, name, tasks) in
            [(1, "listeners", &mut listeners), (2, "input bindings and inbound routes", &mut routes), (3, "forwarders", &mut forwarders)]
        {
            stopping.send_replace(phase);
            let ended = tokio::time::timeout_at(deadline, async { while tasks.join_next().await.is_some() {} }).await;
            if ended.is_err() {
                late.push(name.to_owned());
                tasks.abort_all();
            }
        }
        if tokio::time::timeout_at(deadline, self.components.close()).await.is_err() {
            late.push("components".to_owned());
        }
        if let Some(hub) = self.hub {
            // The last sync is worth waiting for, whatever the grace period says: it is bounded by the disk.
            let outbox = hub.outbox().clone();
            let _ = tokio::task::spawn_blocking(move || outbox.close()).await;
        }
        late
    }
}

/// Input bindings with `publishTo`: their readings become messages without an application in between.
fn readings(
    components: &Components,
    hub: Option<&Hub>,
    upstreams: &BTreeSet<String>,
    escape: Option<&EscapeHandle>,
) -> Result<Vec<readings::Readings>, NodeError> {
    let mut all = Vec::new();
    for (name, binding) in &components.bindings {
        let (Some(to), Some(source)) = (binding.properties.get("publishTo").filter(|t| !t.is_empty()), &binding.item.input) else { continue };
        let topic = binding.properties.get("publishTopic").filter(|t| !t.is_empty()).unwrap_or(name).to_owned();
        if let Err(error) = crate::topic::check_name(&topic) {
            return Err(NodeError::Route(format!("binding {name}: publishTopic {topic:?}: {error}")));
        }
        let when = match (binding.properties.get("publishWhen").filter(|t| !t.is_empty()), escape) {
            (Some(text), Some(escape)) => {
                Some(readings::When::parse(text, escape).map_err(|e| NodeError::Route(format!("binding {name}: publishWhen: {e}")))?)
            }
            (Some(_), None) => return Err(NodeError::Route(format!("binding {name}: publishWhen: this node has no upstream and so no modes"))),
            (None, _) => None,
        };
        let target = match (hub, components.pubsub.get(to)) {
            // A name space of the box, or an upstream behind the outbox: accepted here, whatever the link does.
            (Some(hub), Some(pubsub)) if pubsub.type_name == "pubsub.local" || upstreams.contains(to) => {
                readings::Target::Hub(hub.clone(), to.to_owned())
            }
            (_, Some(pubsub)) => readings::Target::PubSub(pubsub.item.clone()),
            (_, None) => return Err(NodeError::Route(format!("binding {name}: publishTo names the pub/sub {to:?}, and no component has that name"))),
        };
        all.push(readings::Readings { name: name.clone(), topic, source: source.clone(), target, when });
    }
    Ok(all)
}

/// Whether a pub/sub is a name space of the box itself.
fn is_space(name: &str, pubsub: &Loaded<dyn PubSub>) -> bool {
    name == "local" || pubsub.type_name == "pubsub.local"
}

/// The secondary upstream of the policy, if there is one.
fn secondary(config: &NodeConfig) -> Option<&UpstreamSpec> {
    config.resources.escape_policies.iter().flat_map(|p| &p.upstreams).find(|u| u.role == UpstreamRole::Secondary)
}

/// The secondary takes lanes of the policy's primaries over, as the primaries' forwarders lend them.
fn stand_ins(config: &NodeConfig, hub: &Hub, forwarders: &mut [(ForwarderConfig, Box<dyn Uplink>)]) -> Result<(), NodeError> {
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

/// The controller of the mode.
fn escape(
    config: &NodeConfig,
    host: &Host,
    hub: &Hub,
    forwarders: &[Forwarder],
    components: &Components,
    set_aside: Vec<PathBuf>,
) -> (escape::Escape, EscapeHandle) {
    let policy = config.resources.escape_policies.first();
    let standby = secondary(config);
    let modes = policy.map(|p| p.modes).unwrap_or_default();
    let upstreams = forwarders
        .iter()
        .map(|f| {
            let status = f.status();
            escape::Watched {
                secondary: standby.is_some_and(|s| s.component == status.upstream()),
                destination: f.destination(),
                handover: standby.filter(|_| f.lends()).map(|s| Handover::new(modes.settle, s.failback_after)),
                orders: f.orders(),
                status,
            }
        })
        .collect();
    let node = hub.outbox().node().to_owned();
    let surroundings = escape::Surroundings {
        notices: config.resources.notices().map(|topic| topic.replace("{node}", &node)),
        node,
        set_aside,
        dir: config.data_dir.clone(),
        hub: hub.clone(),
        storage: host.storage.clone(),
        clock: host.clock.clone(),
        upstreams,
        modes,
        policy: policy.cloned(),
        disk_free: policy.map(|p| p.disk_free).unwrap_or_default(),
        local: components.pubsub.contains_key("local"),
    };
    escape::Escape::new(surroundings, &host.metrics)
}

/// Forwarders for the pub/subs that routes lead to or that stand behind the outbox, and routes that lead in.
fn routes(config: &NodeConfig, host: &Host, hub: &Hub, components: &Components) -> Result<(Vec<Forwarder>, Vec<inbound::Inward>), NodeError> {
    let metrics = ForwardMetrics::register(&host.metrics);
    let drain = config.resources.forwardings.first().map(|f| f.drain).unwrap_or_default();
    let is_name_space = |name: &str| name == "local" || components.pubsub.get(name).is_some_and(|p| is_space(name, p));
    let mut drafts = Vec::new();
    for (name, loaded) in &components.pubsub {
        let towards = reload::routes_towards(&config.resources, name);
        if is_name_space(name) {
            continue;
        }
        let Some(uplink) = loaded.item.uplink() else {
            if !towards.is_empty() {
                return Err(NodeError::Route(format!(
                    "a route leads to {name:?} ({}), which cannot be an upstream; accepted are pubsub.mqtt3 and pubsub.mqtt5",
                    loaded.type_name
                )));
            }
            continue;
        };
        let fail = |e: &dyn std::fmt::Display| NodeError::Route(format!("the upstream {name} cannot be set up: {e}"));
        let destination = hub.destination(&upstream_destination(name)).map_err(|e| fail(&e))?;
        hub.bind(destination, name, "#").map_err(|e| fail(&e))?;
        for route in &towards {
            if !is_name_space(&route.from) {
                return Err(NodeError::Route(format!("the route from {:?} to {name:?} is not served: one end must be local", route.from)));
            }
            for filter in &route.topics {
                hub.bind(destination, &route.from, filter).map_err(|e| fail(&e))?;
            }
        }
        let policy = config.resources.escape_policies.iter().flat_map(|p| &p.upstreams).find(|u| u.component == *name);
        let mut forwarder = ForwarderConfig::new(name.clone(), destination);
        forwarder.routes = towards;
        forwarder.drain = drain;
        let settings = ForwarderSettings::of(policy);
        (forwarder.stall, forwarder.slow, forwarder.link.stable) = (settings.stall, settings.slow, settings.heal);
        drafts.push((forwarder, uplink));
    }
    stand_ins(config, hub, &mut drafts)?;
    let forwarders = drafts.into_iter().map(|(f, uplink)| Forwarder::new(f, hub.clone(), uplink, host.clock.clone(), &metrics)).collect();
    let inward = reload::inward(&config.resources, is_name_space);
    if let Some((route, _)) = inward.iter().find(|(route, _)| !components.pubsub.contains_key(&route.from)) {
        return Err(NodeError::Route(format!("a route comes from {:?}, and no pub/sub component has that name", route.from)));
    }
    Ok((forwarders, inward))
}
