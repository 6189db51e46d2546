//! What a target ships: factories by type and version.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::{Binding, BoundListener, ComponentContext, ConfigurationStore, Fut, InitError, ListenerContext, PubSub, SecretStore, StateStore};

/// A building block's family of components, by the first part of the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Category {
    /// `state.*`
    State,
    /// `pubsub.*`
    PubSub,
    /// `bindings.*`
    Bindings,
    /// `secretstores.*`
    SecretStores,
    /// `configuration.*`
    Configuration,
}

impl Category {
    /// The family of a full type.
    #[must_use]
    pub fn of(type_name: &str) -> Option<Self> {
        match type_name.split_once('.')?.0 {
            "state" => Some(Self::State),
            "pubsub" => Some(Self::PubSub),
            "bindings" => Some(Self::Bindings),
            "secretstores" => Some(Self::SecretStores),
            "configuration" => Some(Self::Configuration),
            _ => None,
        }
    }

    /// Dapr's words for the family in error texts.
    #[must_use]
    pub fn noun(self) -> &'static str {
        match self {
            Self::State => "state store",
            Self::PubSub => "message bus",
            Self::Bindings => "binding",
            Self::SecretStores => "secret store",
            Self::Configuration => "configuration store",
        }
    }
}

/// Why a component could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No factory of this type and version.
    #[error("couldn't find {noun} {type_name}/{version}")]
    Unknown {
        /// Family.
        noun: &'static str,
        /// Full type.
        type_name: String,
        /// Version, `v1` when none was written.
        version: String,
    },
    /// The factory failed.
    #[error(transparent)]
    Init(#[from] InitError),
}

type Factory<T> = Arc<dyn Fn(ComponentContext) -> Fut<'static, Result<T, InitError>> + Send + Sync>;
type ListenerFactory = Arc<dyn Fn(ListenerContext) -> Fut<'static, Result<Box<dyn BoundListener>, InitError>> + Send + Sync>;
type Shelf<T> = HashMap<(String, String), Factory<T>>;

/// The factories that a target ships.
#[derive(Default, Clone)]
pub struct Registry {
    state: Shelf<Arc<dyn StateStore>>,
    pubsub: Shelf<Arc<dyn PubSub>>,
    bindings: Shelf<Binding>,
    secrets: Shelf<Arc<dyn SecretStore>>,
    configuration: Shelf<Arc<dyn ConfigurationStore>>,
    listeners: HashMap<String, ListenerFactory>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.types()).finish()
    }
}

/// Versions none, `v0` and `v1` are the same, the first one (Dapr's rule).
fn normal_version(version: &str) -> String {
    match version.to_ascii_lowercase().as_str() {
        "" | "v0" | "v1" => "v1".to_owned(),
        other => other.to_owned(),
    }
}

macro_rules! shelf {
    ($add:ident, $build:ident, $shelf:ident, $output:ty, $category:expr, $doc:literal) => {
        #[doc = concat!("Registers a factory for ", $doc, " under each of the full type names.")]
        pub fn $add<F, R>(&mut self, types: &[&str], version: &str, factory: F) -> &mut Self
        where
            F: Fn(ComponentContext) -> R + Send + Sync + 'static,
            R: Future<Output = Result<$output, InitError>> + Send + 'static,
        {
            let factory: Factory<$output> = Arc::new(move |context| Box::pin(factory(context)));
            for name in types {
                self.$shelf.insert((name.to_ascii_lowercase(), normal_version(version)), factory.clone());
            }
            self
        }

        #[doc = concat!("Builds ", $doc, ".")]
        ///
        /// # Errors
        /// `Unknown` when nothing is registered under the type and version, else what the factory says.
        pub async fn $build(&self, context: ComponentContext) -> Result<$output, BuildError> {
            let key = (context.type_name.to_ascii_lowercase(), normal_version(&context.version));
            let Some(factory) = self.$shelf.get(&key) else {
                return Err(BuildError::Unknown { noun: $category.noun(), type_name: context.type_name, version: key.1 });
            };
            Ok(factory(context).await?)
        }
    };
}

impl Registry {
    /// Nothing registered.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    shelf!(add_state_store, build_state_store, state, Arc<dyn StateStore>, Category::State, "a state store");
    shelf!(add_pubsub, build_pubsub, pubsub, Arc<dyn PubSub>, Category::PubSub, "a pub/sub");
    shelf!(add_binding, build_binding, bindings, Binding, Category::Bindings, "a binding");
    shelf!(add_secret_store, build_secret_store, secrets, Arc<dyn SecretStore>, Category::SecretStores, "a secret store");
    shelf!(
        add_configuration_store,
        build_configuration_store,
        configuration,
        Arc<dyn ConfigurationStore>,
        Category::Configuration,
        "a configuration store"
    );

    /// Registers a listener for a protocol of the `Listener` resource. The factory binds the socket.
    pub fn add_listener<F, R>(&mut self, protocol: &str, factory: F) -> &mut Self
    where
        F: Fn(ListenerContext) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Box<dyn BoundListener>, InitError>> + Send + 'static,
    {
        self.listeners.insert(protocol.to_owned(), Arc::new(move |context| Box::pin(factory(context))));
        self
    }

    /// Binds a listener.
    ///
    /// # Errors
    /// `Unknown` when the protocol has no factory, else why it could not be bound.
    pub async fn bind_listener(&self, context: ListenerContext) -> Result<Box<dyn BoundListener>, BuildError> {
        let protocol = context.spec.protocol.as_str().to_owned();
        let Some(factory) = self.listeners.get(&protocol) else {
            return Err(BuildError::Unknown { noun: "listener", type_name: protocol, version: "v1".to_owned() });
        };
        Ok(factory(context).await?)
    }

    /// Protocols that have a listener, sorted.
    #[must_use]
    pub fn protocols(&self) -> Vec<String> {
        let mut all: Vec<String> = self.listeners.keys().cloned().collect();
        all.sort();
        all
    }

    /// All full type names, sorted.
    #[must_use]
    pub fn types(&self) -> Vec<String> {
        let mut all: Vec<String> = self
            .state
            .keys()
            .chain(self.pubsub.keys())
            .chain(self.bindings.keys())
            .chain(self.secrets.keys())
            .chain(self.configuration.keys())
            .map(|(name, version)| if version == "v1" { name.clone() } else { format!("{name}/{version}") })
            .collect();
        all.sort();
        all
    }
}
