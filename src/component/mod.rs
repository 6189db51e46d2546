//! The contracts a component implements, and how the node finds and builds components.
//!
//! A contract has few required methods; extras are declared as features and asked for before use. Dropping a future
//! that a contract returns means "outcome unknown". Calls may overlap. Nothing here knows a concrete component:
//! targets register factories in a [`Registry`] and hand it to the node.

mod binding;
mod configuration;
mod contained;
mod finding;
mod listener;
mod properties;
mod pubsub;
mod registry;
mod secret;
mod socket;
mod state;
mod table;
mod uplink;

pub use binding::{Binding, BindingError, BindingHandler, BindingReading, InputBinding, InvokeRequest, InvokeResponse, OutputBinding, ReadHandle};
pub use configuration::{
    ConfigurationError, ConfigurationHandle, ConfigurationHandler, ConfigurationItem, ConfigurationItems, ConfigurationSource, ConfigurationStore,
    NotTaken, changes, follow, pick,
};
pub use contained::Contained;
pub use finding::{Finding, FindingLevel};
pub use listener::{BoundListener, ListenerContext, ListenerReload, PreparedReload};
pub use properties::{Properties, PropertyError, is_truthy};
pub use pubsub::{
    BulkEntry, BulkFailure, Delivery, HandlerError, MessageHandler, PubSub, PubSubError, PubSubFeature, PublishRequest, Published, SubscribeRequest,
    SubscriptionHandle,
};
pub use registry::{BuildError, Category, Registry};
pub use secret::{Aged, Secret, SecretError, SecretStore};
pub use socket::{InheritedSocket, InheritedSockets, addresses};
pub use state::{
    BulkGetItem, Concurrency, Consistency, DeleteRequest, GetRequest, KeysLikePage, KeysLikeRequest, SetRequest, StateError, StateFeature, StateItem,
    StateOperation, StateStore, StateValue, item_metadata,
};
pub use table::{MemoryTables, Table, TableError, Tables};
pub use uplink::{LinkCause, LinkFailure, PeerLimits, Traffic, Uplink, UplinkAck, UplinkOutcome, UplinkPublish};

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use crate::supervise::Supervisor;
use crate::telemetry::Metrics;
use crate::time::Clock;

/// A future behind a contract.
pub type Fut<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Request and response metadata: names to texts, sorted.
pub type Metadata = BTreeMap<String, String>;

/// What a component is built from. `properties` are final: secrets, environment and templates are resolved.
#[derive(Clone)]
pub struct ComponentContext {
    /// `metadata.name` of the resource.
    pub name: String,
    /// Full type, for example `state.sqlite`.
    pub type_name: String,
    /// Version as written; empty means the first.
    pub version: String,
    /// The application's id (`--app-id`).
    pub app_id: String,
    /// `$NAMESPACE`, if set.
    pub namespace: Option<String>,
    /// `spec.metadata`.
    pub properties: Properties,
    /// The node's data directory; a component that keeps files makes its own folder in it.
    pub data_dir: PathBuf,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where to register metrics.
    pub metrics: Metrics,
    /// Starts background work again that fails, and shows it.
    pub supervisor: Supervisor,
    /// The node's exchange of messages; the pub/sub `local` is built on it. A node that stores nothing has none.
    pub hub: Option<crate::hub::Hub>,
}

impl std::fmt::Debug for ComponentContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Properties may hold secrets: only their names are shown.
        f.debug_struct("ComponentContext")
            .field("name", &self.name)
            .field("type_name", &self.type_name)
            .field("properties", &self.properties)
            .finish_non_exhaustive()
    }
}

/// Why a component did not start.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A setting is missing or wrong.
    #[error(transparent)]
    Property(#[from] PropertyError),
    /// Something outside refused or was not there.
    #[error("{0}")]
    Failed(String),
}

impl InitError {
    /// What was tried, and the cause.
    pub fn failed(what: impl std::fmt::Display, cause: impl std::fmt::Display) -> Self {
        Self::Failed(format!("{what}: {cause}"))
    }
}
