//! The building blocks of the Dapr API, free of any transport: HTTP and gRPC call the same functions and map the same errors.

mod binding;
pub mod cloudevent;
mod configuration;
mod invoke;
mod json;
mod metadata;
mod publish;
mod scope;
mod secret;
mod state;
mod subscription;
mod transactional;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::watch;

use crate::app::AppChannel;
use crate::hub::Hub;
use crate::node::{Components, Node, NodeStatus};
use crate::resource::{ConfigurationSpec, SubscriptionSpec};
use crate::time::Clock;

pub(crate) use configuration::items_json;
pub use json::go_json;
pub use publish::{BulkOutcome, BulkPublishEntry, PublishCall};
pub use state::{SetItem, TransactionItem};
pub(crate) use subscription::Outlet;
pub use subscription::check_routes;
pub use transactional::Trace;

/// Everything the API works on. Cheap to clone.
#[derive(Clone)]
pub struct Blocks {
    inner: Arc<Inner>,
}

struct ServedApp {
    channel: AppChannel,
    /// Whether it is well.
    well: watch::Receiver<bool>,
}

struct Inner {
    app_id: String,
    namespace: Option<String>,
    version: String,
    components: Components,
    hub: Option<Hub>,
    /// Pub/subs that stand behind the outbox.
    outboxed: BTreeSet<String>,
    status: NodeStatus,
    configuration: ConfigurationSpec,
    subscriptions: Vec<SubscriptionSpec>,
    /// Stores whose transactions are told of.
    transactional: transactional::Transactional,
    /// What is subscribed, by whom.
    active: subscription::ActiveSubscriptions,
    configuration_subscriptions: configuration::ConfigurationSubscriptions,
    clock: Arc<dyn Clock>,
    extended: Mutex<BTreeMap<String, String>>,
    /// The application, once it is there.
    app: OnceLock<ServedApp>,
    skip: SkipInit,
}

/// What the application is not asked at the start (`--disable-init-endpoints`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SkipInit {
    /// `subscribe`: what it subscribes to.
    pub subscribe: bool,
    /// `config`: what it hosts.
    pub config: bool,
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocks").field("app_id", &self.inner.app_id).finish_non_exhaustive()
    }
}

impl Blocks {
    /// The blocks of a node. `version` is what metadata shows as the runtime's; `skip` says what the application is not asked.
    #[must_use]
    pub fn new(node: &Node, version: &str, skip: SkipInit) -> Self {
        let config = node.config();
        let status = node.status();
        let active = subscription::ActiveSubscriptions::default();
        let declared: Vec<_> = config.resources.subscriptions.iter().map(|s| (subscription::SubscriptionKind::Declarative, s.clone())).collect();
        active.replace_app(&declared);
        Self {
            inner: Arc::new(Inner {
                app_id: config.app_id.clone(),
                namespace: config.namespace.clone(),
                version: version.to_owned(),
                transactional: transactional::Transactional::new(&node.components().state, node.transactions(), node.metrics()),
                components: node.components().clone(),
                hub: node.hub().cloned(),
                outboxed: status.upstreams().iter().map(|u| u.snapshot().upstream).collect(),
                status,
                configuration: config.configuration.clone(),
                subscriptions: config.resources.subscriptions.clone(),
                active,
                configuration_subscriptions: configuration::ConfigurationSubscriptions::default(),
                clock: node.clock(),
                extended: Mutex::default(),
                app: OnceLock::new(),
                skip,
            }),
        }
    }

    /// Time for intervals.
    #[must_use]
    pub fn now(&self) -> crate::time::Monotonic {
        self.inner.clock.monotonic()
    }

    /// What the node is doing.
    #[must_use]
    pub fn node_status(&self) -> &NodeStatus {
        &self.inner.status
    }

    /// The mode that the box is in; none on a node without a store.
    #[must_use]
    pub fn mode(&self) -> Option<crate::escape::Mode> {
        self.inner.status.escape().map(crate::node::EscapeHandle::mode)
    }

    /// The application's id.
    #[must_use]
    pub fn app_id(&self) -> &str {
        &self.inner.app_id
    }
}
