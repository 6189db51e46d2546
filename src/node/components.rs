//! Components: properties resolved, made in daprd's order, closed together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::cache::stores::{CachedConfiguration, CachedSecrets};
use super::cache::{Disk, SealedCache};
use super::mode_store::{MODE_STORE, MODE_STORE_TYPE, ModeStore};
use super::{Host, NodeConfig, NodeError, encrypted};
use crate::component::{
    Binding, BuildError, Category, ComponentContext, ConfigurationStore, Finding, Fut, InitError, Metadata, Properties, PubSub, SecretStore,
    StateStore, Tables,
};
use crate::hub::Hub;
use crate::resource::{ComponentSpec, PropertySource, read_keys};
use crate::seal::Seal;
use crate::supervise::Supervisor;

/// A component that was made.
#[derive(Debug)]
pub struct Loaded<T: ?Sized> {
    /// Name.
    pub name: String,
    /// Full type as written.
    pub type_name: String,
    /// Version as written.
    pub version: String,
    /// Resolved settings.
    pub properties: Properties,
    /// The component.
    pub item: Arc<T>,
}

impl<T: ?Sized> Clone for Loaded<T> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            type_name: self.type_name.clone(),
            version: self.version.clone(),
            properties: self.properties.clone(),
            item: self.item.clone(),
        }
    }
}

/// All components by name.
#[derive(Default, Clone)]
pub struct Components {
    /// State stores.
    pub state: BTreeMap<String, Loaded<dyn StateStore>>,
    /// Pub/subs.
    pub pubsub: BTreeMap<String, Loaded<dyn PubSub>>,
    /// Bindings.
    pub bindings: BTreeMap<String, Loaded<Binding>>,
    /// Secret stores.
    pub secrets: BTreeMap<String, Loaded<dyn SecretStore>>,
    /// Configuration stores.
    pub configuration: BTreeMap<String, Loaded<dyn ConfigurationStore>>,
    /// Names in the order in which they were made.
    pub order: Vec<String>,
}

impl std::fmt::Debug for Components {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.order).finish()
    }
}

impl Components {
    pub(super) fn add_local(&mut self, item: Arc<dyn PubSub>) {
        let loaded = Loaded {
            name: "local".to_owned(),
            type_name: "pubsub.local".to_owned(),
            version: "v1".to_owned(),
            properties: Properties::default(),
            item,
        };
        self.pubsub.insert("local".to_owned(), loaded);
        self.order.push("local".to_owned());
    }

    /// The store of the mode, under the names of the components that ask for it. Where nothing else is called so it is `selvedge` too.
    pub(super) fn add_mode_stores(&mut self, specs: &[ComponentSpec], store: &Arc<ModeStore>) {
        let mut add = |name: &str, version: &str| {
            let loaded: Loaded<dyn ConfigurationStore> = Loaded {
                name: name.to_owned(),
                type_name: MODE_STORE_TYPE.to_owned(),
                version: version.to_owned(),
                properties: Properties::default(),
                item: store.clone() as Arc<dyn ConfigurationStore>,
            };
            self.configuration.insert(name.to_owned(), loaded);
            self.order.push(name.to_owned());
        };
        for spec in specs.iter().filter(|s| is_mode_store(s)) {
            add(&spec.name, &spec.version);
        }
        if specs.iter().all(|s| s.name != MODE_STORE) {
            add(MODE_STORE, "v1");
        }
    }

    /// Closes all of them.
    pub async fn close(&self) {
        for binding in self.bindings.values() {
            if let Some(input) = &binding.item.input {
                input.close().await;
            }
            if let Some(output) = &binding.item.output {
                output.close().await;
            }
        }
        for pubsub in self.pubsub.values() {
            pubsub.item.close().await;
        }
        for state in self.state.values() {
            state.item.close().await;
        }
    }
}

/// What stores said last, where an escape policy wants it kept.
#[derive(Default)]
pub(super) struct Caches {
    secrets: Option<Arc<SealedCache>>,
    configuration: Option<Arc<SealedCache>>,
}

impl Caches {
    /// Opens them. Without a key, or a store, they last as long as the process.
    pub(super) async fn open(config: &NodeConfig, host: &Host, tables: Option<&Arc<dyn Tables>>) -> Self {
        let Some(policy) = config.resources.escape_policies.first() else { return Self::default() };
        let environment = |name: &str| config.environment.get(name).cloned();
        let keys = read_keys(&policy.at_rest, &environment).unwrap_or_else(|error| {
            tracing::error!("{error}; what stores say is kept in memory only");
            Vec::new()
        });
        let open = async |name: &'static str, max_age: Duration| {
            if max_age.is_zero() {
                return None;
            }
            let disk = match (Seal::derive(&keys, name), tables) {
                (Some(seal), Some(tables)) => match tables.open(&format!("cache_{name}")).await {
                    Ok(table) => Some(Disk { table, seal }),
                    Err(error) => {
                        tracing::error!(cache = name, %error, "a cache is kept in memory only");
                        None
                    }
                },
                _ => None,
            };
            Some(Arc::new(SealedCache::open(name, max_age, disk, host.clock.clone(), &host.metrics).await))
        };
        Self { secrets: open("secrets", policy.secrets_max_age).await, configuration: open("configuration", policy.config_max_age).await }
    }
}

/// Whether this is the node's own store of its mode, which no factory makes.
pub(super) fn is_mode_store(spec: &ComponentSpec) -> bool {
    spec.type_name.eq_ignore_ascii_case(MODE_STORE_TYPE)
}

/// Environment variables that a component may not see (daprd's rule).
fn is_hidden(variable: &str) -> bool {
    variable == "APP_API_TOKEN" || variable.to_ascii_uppercase().starts_with("DAPR_") || variable.contains(' ')
}

async fn resolve(spec: &ComponentSpec, config: &NodeConfig, secrets: &BTreeMap<String, Loaded<dyn SecretStore>>) -> Result<Properties, String> {
    let mut resolved = Vec::with_capacity(spec.properties.len());
    for property in &spec.properties {
        let value = match &property.source {
            PropertySource::Literal(text) => templates(text, config)?,
            PropertySource::Environment(variable) if is_hidden(variable) => {
                tracing::warn!(component = %spec.name, property = %property.name, variable, "the environment variable may not be used by a component");
                String::new()
            }
            PropertySource::Environment(variable) => config.environment.get(variable).cloned().unwrap_or_default(),
            PropertySource::Secret { name, key } => secret(spec, name, key, secrets).await?,
        };
        resolved.push((property.name.clone(), value));
    }
    Ok(resolved.into_iter().collect())
}

async fn secret(spec: &ComponentSpec, name: &str, key: &str, secrets: &BTreeMap<String, Loaded<dyn SecretStore>>) -> Result<String, String> {
    let Some(store_name) = &spec.secret_store else {
        tracing::warn!(component = %spec.name, secret = name, "a secretKeyRef without auth.secretStore has no value");
        return Ok(String::new());
    };
    let Some(store) = secrets.get(store_name) else {
        return Err(format!("the secret store {store_name:?} of auth.secretStore is not loaded"));
    };
    match store.item.get(name, &Metadata::new()).await {
        Ok(values) => Ok(values.get(key).cloned().unwrap_or_default()),
        Err(error) => {
            tracing::error!(component = %spec.name, secret = name, store = %store_name, error = %error, "a secret could not be read");
            Ok(String::new())
        }
    }
}

/// `{uuid}`, `{podName}`, `{namespace}`, `{appID}`.
fn templates(text: &str, config: &NodeConfig) -> Result<String, String> {
    if !text.contains('{') {
        return Ok(text.to_owned());
    }
    let mut out = text.replace("{appID}", &config.app_id);
    if out.contains("{uuid}") {
        out = out.replace("{uuid}", &uuid::Uuid::new_v4().to_string());
    }
    if out.contains("{namespace}") {
        out = out.replace("{namespace}", &format!("{}.{}", config.namespace.as_deref().unwrap_or_default(), config.app_id));
    }
    if out.contains("{podName}") {
        let name = config.environment.get("POD_NAME").filter(|n| !n.is_empty()).ok_or("POD_NAME is not set, and a property uses {podName}")?;
        out = out.replace("{podName}", name);
    }
    Ok(out)
}

fn logged_type(spec: &ComponentSpec) -> String {
    if spec.version.is_empty() { spec.type_name.clone() } else { format!("{}/{}", spec.type_name, spec.version) }
}

/// Asks every pub/sub what it finds of its way to its peer. Makes these components and the secret stores that they need, and nothing else:
/// a node that runs on the same folder is not disturbed.
pub async fn diagnose(config: &NodeConfig, host: &Host) -> Vec<Finding> {
    let mut components = Components::default();
    let mut findings = Vec::new();
    let supervisor = Supervisor::new(host.clock.clone(), &host.metrics);
    // What a store said last is the running node's.
    let caches = Caches::default();
    let of = |wanted: Category| config.resources.components.iter().filter(move |c| Category::of(&c.type_name) == Some(wanted));
    let pubsubs = of(Category::PubSub).filter(|c| !c.type_name.eq_ignore_ascii_case("pubsub.local"));
    for spec in of(Category::SecretStores).chain(pubsubs) {
        if let Err(detail) = build_one(spec, config, host, &supervisor, None, &caches, &mut components).await {
            let remedy = format!("mend the component ({}); `selvedge check` names keys", spec.origin);
            findings.push(Finding::problem(format!("component {}", spec.name), detail, remedy));
        }
    }
    let now = host.clock.now();
    for pubsub in components.pubsub.values() {
        findings.extend(pubsub.item.diagnose(now).await);
    }
    components.close().await;
    findings
}

/// Makes the components: secret stores first, then in the order of the files, one at a time.
pub(super) async fn build(
    config: &NodeConfig,
    host: &Host,
    supervisor: &Supervisor,
    hub: Option<&Hub>,
    caches: &Caches,
) -> Result<Components, NodeError> {
    let mut components = Components::default();
    let is_secret = |c: &&ComponentSpec| Category::of(&c.type_name) == Some(Category::SecretStores);
    let specs: Vec<&ComponentSpec> = config.resources.components.iter().filter(|c| !is_mode_store(c)).collect();
    let ordered = specs.iter().copied().filter(is_secret).chain(specs.iter().copied().filter(|c| !is_secret(c)));
    for spec in ordered {
        match build_one(spec, config, host, supervisor, hub, caches, &mut components).await {
            Ok(()) => {
                components.order.push(spec.name.clone());
                tracing::info!("Component loaded: {} ({})", spec.name, logged_type(spec));
            }
            Err(detail) if spec.ignore_errors => tracing::error!("Ignoring error processing component: {detail}"),
            Err(detail) => {
                tracing::warn!("Error processing component, daprd will exit gracefully: process component {} error: {detail}", spec.name);
                return Err(NodeError::Component { name: spec.name.clone(), detail });
            }
        }
    }
    Ok(components)
}

async fn build_one(
    spec: &ComponentSpec,
    config: &NodeConfig,
    host: &Host,
    supervisor: &Supervisor,
    hub: Option<&Hub>,
    caches: &Caches,
    components: &mut Components,
) -> Result<(), String> {
    let Some(category) = Category::of(&spec.type_name) else {
        return Err(format!("incorrect type {}", spec.type_name));
    };
    let shown = format!("{} ({})", spec.name, logged_type(spec));
    let code = |code: &str, cause: String| {
        let text = format!("[{code}]: initialization error occurred for {shown}: {cause}");
        tracing::error!("Failed to init component {shown}: {text}");
        format!("[INIT_COMPONENT_FAILURE]: initialization error occurred for {shown}: {text}")
    };
    let properties = resolve(spec, config, &components.secrets).await.map_err(|e| code("INIT_COMPONENT_FAILURE", e))?;
    let context = ComponentContext {
        name: spec.name.clone(),
        type_name: spec.type_name.clone(),
        version: spec.version.clone(),
        app_id: config.app_id.clone(),
        namespace: config.namespace.clone(),
        properties: properties.clone(),
        data_dir: config.data_dir.clone(),
        clock: host.clock.clone(),
        metrics: host.metrics.clone(),
        supervisor: supervisor.clone(),
        hub: hub.cloned(),
    };
    let name = spec.name.clone();
    let loaded = (spec.name.clone(), spec.type_name.to_ascii_lowercase(), spec.version.clone(), properties);
    macro_rules! make {
        ($build:ident, $shelf:ident, $wrap:expr) => {{
            let made = tokio::time::timeout(spec.init_timeout, host.registry.$build(context)).await;
            let made = match made {
                Err(_) => return Err(code("INIT_COMPONENT_FAILURE", format!("init timeout for component {shown}"))),
                Ok(Err(error @ BuildError::Unknown { .. })) => return Err(code("CREATE_COMPONENT_FAILURE", error.to_string())),
                Ok(Err(error)) => return Err(code("INIT_COMPONENT_FAILURE", error.to_string())),
                Ok(Ok(made)) => made,
            };
            let (name_, type_name, version, properties) = loaded;
            components.$shelf.insert(name, Loaded { name: name_, type_name, version, properties, item: $wrap(made) });
        }};
    }
    match category {
        Category::State => {
            let keys = encrypted::keys(spec, &loaded.3).map_err(|e| code("INIT_COMPONENT_FAILURE", e))?;
            make!(build_state_store, state, |m| encrypted::wrap(m, keys));
        }
        Category::PubSub => make!(build_pubsub, pubsub, |m| m),
        Category::Bindings => make!(build_binding, bindings, Arc::new),
        Category::SecretStores => {
            let item = secret_store(spec, host, context, caches.secrets.as_ref()).await.map_err(|(kind, cause)| code(kind, cause))?;
            let (name_, type_name, version, properties) = loaded;
            components.secrets.insert(name, Loaded { name: name_, type_name, version, properties, item });
        }
        Category::Configuration => make!(build_configuration_store, configuration, |m| match &caches.configuration {
            Some(cache) => Arc::new(CachedConfiguration::new(&spec.name, cache.clone(), m)) as Arc<dyn ConfigurationStore>,
            None => m,
        }),
    }
    Ok(())
}

/// A secret store, with its cache if there is one. A store whose source is gone is made without it, as long as the cache knows something.
///
/// The error is daprd's code and the cause.
async fn secret_store(
    spec: &ComponentSpec,
    host: &Host,
    context: ComponentContext,
    cache: Option<&Arc<SealedCache>>,
) -> Result<Arc<dyn SecretStore>, (&'static str, String)> {
    const INIT: &str = "INIT_COMPONENT_FAILURE";
    let made = match tokio::time::timeout(spec.init_timeout, host.registry.build_secret_store(context.clone())).await {
        Err(_) => Err(format!("init timeout for component {} ({})", spec.name, logged_type(spec))),
        Ok(Ok(made)) => Ok(made),
        Ok(Err(error @ BuildError::Unknown { .. })) => return Err(("CREATE_COMPONENT_FAILURE", error.to_string())),
        // A setting that is wrong does not get right by waiting.
        Ok(Err(error @ BuildError::Init(InitError::Property(_)))) => return Err((INIT, error.to_string())),
        Ok(Err(error)) => Err(error.to_string()),
    };
    let Some(cache) = cache else { return made.map_err(|cause| (INIT, cause)) };
    match &made {
        Ok(store) if !store.can_be_gone() => return Ok(store.clone()),
        Err(cause) if cache.all(&spec.name).is_empty() => return Err((INIT, cause.clone())),
        Err(cause) => tracing::warn!(component.name = %spec.name, cause, "a secret store is gone at the start: it is answered from the cache"),
        Ok(_) => {}
    }
    let registry = host.registry.clone();
    let make = move || -> Fut<'static, Result<Arc<dyn SecretStore>, String>> {
        let (registry, context) = (registry.clone(), context.clone());
        Box::pin(async move { registry.build_secret_store(context).await.map_err(|e| e.to_string()) })
    };
    Ok(Arc::new(CachedSecrets::new(&spec.name, cache.clone(), host.clock.clone(), made, Box::new(make))))
}
