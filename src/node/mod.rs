//! The node: build, run, drain.
//!
//! Building starts nothing that sends or receives: configuration is read and checked, the store is opened, components are made,
//! sockets are bound. [`Node::run`] is the only place where tasks begin; it ends with the written order of [`Node::run`]'s drain.

mod budgets;
mod cache;
mod components;
mod dedupe;
mod encrypted;
mod escape;
mod inbound;
mod keep;
mod local_routes;
mod mode_store;
mod readings;
mod reload;
mod routes;
mod store;
#[cfg(test)]
mod tests;
mod tombstones;
mod version;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::component::{BuildError, Fut, InheritedSockets, ListenerContext, PubSub, Registry, Table, Tables};
use crate::escape::Handover;
use crate::forward::{Forwarder, ForwarderStatus};
use crate::hub::Hub;
use crate::outbox::storage::Storage;
use crate::outbox::{Locked, Vanished};
use crate::resource::{ComponentSpec, ConfigurationSpec, Resources};
use crate::supervise::Supervisor;
use crate::telemetry::Metrics;
use crate::time::{Clock, Timestamp};

pub use budgets::BudgetView;
pub use components::{Components, Loaded, diagnose};
pub use escape::{EscapeHandle, EscapeOrder, EscapeSettings, MODE_TOPIC, ModeView};
pub use mode_store::MODE_STORE_TYPE;
pub use reload::{Reload, ReloadHandle};
pub use store::node_id;
pub use version::STORE_VERSION;

use keep::KeptListener;

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
    listeners: Vec<KeptListener>,
    routes: routes::Routes,
    escape: Option<(escape::Escape, EscapeHandle)>,
    reload: ReloadHandle,
    readings: Vec<readings::Readings>,
    supervisor: Supervisor,
    started: Timestamp,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("app_id", &self.config.app_id).finish_non_exhaustive()
    }
}

/// Records that wait for an upstream that there is not: it was taken away or has another name now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// The destination in the books, `upstream/NAME`.
    pub destination: String,
    /// Records that wait, over all lanes.
    pub queued: u64,
}

/// A cheap handle to what the node is doing.
#[derive(Clone)]
pub struct NodeStatus {
    app_id: String,
    started: Timestamp,
    clock: Arc<dyn Clock>,
    hub: Option<Hub>,
    upstreams: Vec<ForwarderStatus>,
    sets: Vec<routes::UpstreamSet>,
    escape: Option<EscapeHandle>,
    listeners: Vec<(String, String)>,
    supervisor: Supervisor,
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

    /// What waits for upstreams that there are not, by destination.
    #[must_use]
    pub fn orphans(&self) -> Vec<Orphan> {
        let Some(hub) = &self.hub else { return Vec::new() };
        let served: BTreeSet<String> =
            self.upstreams.iter().map(ForwarderStatus::upstream).chain(self.sets.iter().map(|s| s.name.as_str())).map(upstream_destination).collect();
        let mut waits: BTreeMap<String, u64> = BTreeMap::new();
        for row in
            hub.outbox().ledger().into_iter().filter(|r| r.queued > 0 && r.destination.starts_with(UPSTREAM) && !served.contains(&r.destination))
        {
            *waits.entry(row.destination).or_default() += row.queued;
        }
        waits.into_iter().map(|(destination, queued)| Orphan { destination, queued }).collect()
    }

    /// Drops what waits for an upstream that there is not; its lines leave the books. Gives the number of records.
    ///
    /// # Errors
    /// When there is no such [`Orphan`], or that cannot be noted.
    pub fn drop_orphan(&self, destination: &str) -> Result<u64, String> {
        let orphans = self.orphans();
        let Some((hub, orphan)) = self.hub.as_ref().zip(orphans.iter().find(|o| o.destination == destination)) else {
            let known: Vec<&str> = orphans.iter().map(|o| o.destination.as_str()).collect();
            let accepted = if known.is_empty() { "nothing: every upstream with records that wait is there".to_owned() } else { known.join(", ") };
            return Err(format!("found {destination:?}; accepted is {accepted}"));
        };
        hub.destination(destination).and_then(|id| hub.forget(id)).map_err(|e| e.to_string())?;
        tracing::warn!(destination, records = orphan.queued, "an operator drops what waited for an upstream that is not there");
        Ok(orphan.queued)
    }

    /// The exchange; none on a node without a store.
    #[must_use]
    pub fn hub(&self) -> Option<&Hub> {
        self.hub.as_ref()
    }

    /// What starts failed parts again.
    #[must_use]
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// The controller of the mode; none on a node without a store.
    #[must_use]
    pub fn escape(&self) -> Option<&EscapeHandle> {
        self.escape.as_ref()
    }

    /// Everything as JSON: `id`, `mode`, `uptimeSeconds`, `degraded`, `listeners`, `upstreams`, `sets`, `lanes`, `ledger`, `orphans`, `flash`, `budgets`, `compaction`.
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
            "id": self.app_id, "uptimeSeconds": now.since(self.started).as_secs(), "listeners": listeners, "upstreams": upstreams, "sets": [], "lanes": [], "ledger": [],
            "degraded": self.supervisor.to_json(),
        });
        if let Some(escape) = &self.escape {
            status["mode"] = escape.to_json();
            status["budgets"] = json!(escape.budgets().iter().map(BudgetView::to_json).collect::<Vec<_>>());
        }
        if let Some(outbox) = self.hub.as_ref().map(Hub::outbox) {
            let queued = |set: &routes::UpstreamSet| outbox.ledger_of(set.destination).iter().map(|row| row.queued).sum::<u64>();
            status["sets"] = self.sets.iter().map(|s| json!({"name": s.name, "members": s.members, "queued": queued(s)})).collect();
            let lanes: Vec<_> = outbox
                .status()
                .into_iter()
                .map(|l| {
                    json!({
                        "name": l.lane, "diskBytes": l.disk_bytes, "quotaBytes": l.quota_bytes, "segments": l.segments, "lastSequence": l.last_sequence,
                        "acceptedBytes": l.accepted_bytes, "heldBytes": l.held_bytes, "spilledBytes": l.spilled_bytes, "sparedBytes": l.spared_bytes,
                        "passthrough": l.passthrough, "passing": l.passing, "corruptRecords": l.corrupt_records, "lockedSegments": l.locked_segments, "failure": l.failure,
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
            status["orphans"] = json!(self.orphans().iter().map(|o| json!({"destination": o.destination, "queued": o.queued})).collect::<Vec<_>>());
            status["flash"] = json!({
                "bytesWritten": written.bytes, "flashBytes": written.flash_bytes, "syncs": written.syncs, "failedSyncs": written.failed_syncs,
            });
            let (compactions, saved, aggregated) = outbox.compaction_counts();
            status["compaction"] = json!({"segments": compactions, "bytesSaved": saved, "aggregated": aggregated});
        }
        status
    }
}

/// Destinations of upstreams begin so.
const UPSTREAM: &str = "upstream/";
/// What the store is called among the parts of the node.
const STORE: &str = "store";
/// Primaries that a secondary may stand in for.
const MAX_PRIMARIES: usize = 31;

/// Name of an upstream's destination in the store.
#[must_use]
pub fn upstream_destination(component: &str) -> String {
    format!("{UPSTREAM}{component}")
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
        let (hub, tables, set_aside, locked, vanished) = match store::open(&config, &host).await? {
            Some(store) => (Some(store.hub), Some(store.tables), store.set_aside, store.locked, store.vanished),
            None => (None, None, Vec::new(), Vec::new(), Vec::new()),
        };
        let supervisor = Supervisor::new(host.clock.clone(), &host.metrics);
        set_aside.iter().for_each(|file| supervisor.set_aside(STORE, file.clone()));
        for Vanished { lane, sequences: (first, last), .. } in &vanished {
            supervisor.has_lost(STORE, &format!("of lane {lane}, messages {first} to {last} were stored and stand in no file any more"));
        }
        let mut components =
            components::build(&config, &host, &supervisor, hub.as_ref(), &components::Caches::open(&config, &host, tables.as_ref()).await).await?;
        if let Some(hub) = &hub
            && config.resources.needs_local()
        {
            let local = (host.make_local)("local", &config.app_id, hub.clone(), &host.metrics);
            components.add_local(local);
        }
        let mut routes = match hub.as_ref().zip(tables.as_ref()) {
            Some((hub, tables)) => routes::set_up(&config, &host, hub, tables, &components)?,
            None => routes::Routes::default(),
        };
        let escape = hub.as_ref().map(|hub| escape(&config, &host, hub, &routes, &components, (supervisor.files_set_aside(), locked, vanished)));
        if let Some((_, handle)) = &escape {
            let store = mode_store::ModeStore::new(handle, routes.forwarders.iter().map(Forwarder::status).collect());
            components.add_mode_stores(&config.resources.components, &Arc::new(store));
        }
        let outboxed: BTreeSet<String> = routes.forwarders.iter().map(|f| f.status().snapshot().upstream).collect();
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
                let bound =
                    KeptListener::bind(&host.registry, context).await.map_err(|source| NodeError::Listener { name: spec.name.clone(), source })?;
                tracing::info!(listener = %spec.name, protocol = spec.protocol.as_str(), address = %bound.address(), "listening for devices");
                listeners.push(bound);
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
        let reload = ReloadHandle::new(reload::Parts {
            running: Resources { problems: Vec::new(), ..config.resources.clone() },
            hub: hub.clone(),
            listeners: listeners.iter().filter_map(|l| Some((l.name().to_owned(), l.reload()?))).collect(),
            forwarders: routes.forwarders.iter().map(|f| (f.status().upstream().to_owned(), f.control())).collect(),
            sets: routes.sets.iter().map(|s| s.name.clone()).collect(),
            spaces: components.pubsub.iter().filter(|(name, p)| is_space(name, p)).map(|(name, _)| name.clone()).collect(),
            pubsubs: components.pubsub.keys().cloned().collect(),
            routes: routes.table.take(),
            escape: escape.as_ref().map(|(_, handle)| handle.clone()),
        });
        let this = Self { config, host, reload, hub, transactions, components, listeners, routes, escape, readings, supervisor, started };
        for orphan in this.status().orphans() {
            tracing::warn!(
                destination = orphan.destination,
                records = orphan.queued,
                "records wait for an upstream that there is not: give a component that name again, or drop them with `selvedge queue drop`"
            );
        }
        Ok(this)
    }

    /// The handle to what the node is doing.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        NodeStatus {
            app_id: self.config.app_id.clone(),
            started: self.started,
            clock: self.host.clock.clone(),
            hub: self.hub.clone(),
            upstreams: self.routes.forwarders.iter().map(Forwarder::status).collect(),
            sets: self.routes.sets.clone(),
            escape: self.escape.as_ref().map(|(_, handle)| handle.clone()),
            listeners: self.listeners.iter().map(|l| (l.name().to_owned(), l.address())).collect(),
            supervisor: self.supervisor.clone(),
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
        let after = |number: u8| phase(&stopped, number);
        let supervisor = self.supervisor;
        let mut listeners: JoinSet<()> = JoinSet::new();
        for listener in self.listeners {
            listeners.spawn(listener.run(supervisor.clone(), self.host.registry.clone(), stopped.clone()));
        }
        let mut routes: JoinSet<()> = JoinSet::new();
        if let Some(inbound) = self.routes.inbound {
            routes.spawn(inbound.run(supervisor.clone(), after(2)));
        }
        if let Some(local) = self.routes.local {
            routes.spawn(local.run(supervisor.clone(), after(2)));
        }
        for reading in self.readings {
            let (supervisor, stop, stopped) = (supervisor.clone(), after(2), stopped.clone());
            routes.spawn(async move {
                supervisor.keep(reading.part(), stop, || reading.run(&supervisor, phase(&stopped, 2))).await;
            });
        }
        let mut forwarders: JoinSet<()> = JoinSet::new();
        if let Some((escape, _)) = self.escape {
            forwarders.spawn(escape.run(supervisor.watch("escape"), after(2)));
        }
        for forwarder in self.routes.forwarders {
            forwarders.spawn(forwarder.run(after(3)));
        }
        stop.await;
        let mut late = Vec::new();
        let deadline = tokio::time::Instant::now() + grace;
        for (phase, name, tasks) in
            [(1, "listeners", &mut listeners), (2, "input bindings and routes on the box", &mut routes), (3, "forwarders", &mut forwarders)]
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

/// Resolves when the drain has come to this phase.
fn phase(stopped: &watch::Receiver<u8>, number: u8) -> Fut<'static, ()> {
    let mut stopped = stopped.clone();
    Box::pin(async move {
        let _ = stopped.wait_for(|p| *p >= number).await;
    })
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

/// The controller of the mode.
fn escape(
    config: &NodeConfig,
    host: &Host,
    hub: &Hub,
    routes: &routes::Routes,
    components: &Components,
    (set_aside, locked, vanished): (Vec<PathBuf>, Vec<Locked>, Vec<Vanished>),
) -> (escape::Escape, EscapeHandle) {
    let policy = config.resources.escape_policies.first();
    let standby = routes::secondary(config);
    let modes = policy.map(|p| p.modes).unwrap_or_default();
    let upstreams: Vec<escape::Watched> = routes
        .forwarders
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
    let place = |name: &String| upstreams.iter().position(|u| u.status.upstream() == name);
    let set = |s: &routes::UpstreamSet| escape::WatchedSet { destination: s.destination, members: s.members.iter().filter_map(place).collect() };
    let sets = routes.sets.iter().map(set).collect();
    let node = hub.outbox().node().to_owned();
    let surroundings = escape::Surroundings {
        notices: config.resources.notices().map(|topic| topic.replace("{node}", &node)),
        node,
        set_aside,
        locked,
        vanished,
        dir: config.data_dir.clone(),
        hub: hub.clone(),
        storage: host.storage.clone(),
        clock: host.clock.clone(),
        upstreams,
        sets,
        modes,
        policy: policy.cloned(),
        disk_free: policy.map(|p| p.disk_free).unwrap_or_default(),
        local: components.pubsub.contains_key("local"),
    };
    escape::Escape::new(surroundings, &host.metrics)
}
