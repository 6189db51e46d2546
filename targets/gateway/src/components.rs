//! What this binary ships.

use std::path::PathBuf;
use std::sync::Arc;

use selvedge::component::{InheritedSockets, PubSub, Registry, Tables};
use selvedge::hub::Hub;
use selvedge::node::{Host, MODE_STORE_TYPE};
use selvedge::outbox::storage::DiskStorage;
use selvedge::telemetry::Metrics;
use selvedge::time::Clock;
use selvedge_local::LocalOptions;
use selvedge_sqlite::SqliteTables;

/// Everything that can be configured.
fn registry() -> Registry {
    let mut registry = Registry::new();
    #[cfg(feature = "coap")]
    selvedge_coap::register(&mut registry);
    #[cfg(feature = "configuration")]
    selvedge_configuration::register(&mut registry);
    #[cfg(feature = "cron")]
    selvedge_cron::register(&mut registry);
    #[cfg(feature = "http")]
    selvedge_http::register(&mut registry);
    selvedge_local::register(&mut registry);
    #[cfg(feature = "localstorage")]
    selvedge_localstorage::register(&mut registry);
    #[cfg(feature = "memory")]
    selvedge_memory::register(&mut registry);
    selvedge_mqtt::register(&mut registry);
    selvedge_mqtt_listener::register(&mut registry);
    #[cfg(feature = "secrets")]
    selvedge_secrets::register(&mut registry);
    #[cfg(feature = "sensors")]
    selvedge_sensors::register(&mut registry);
    selvedge_sqlite::register(&mut registry);
    registry
}

fn local(name: &str, app_id: &str, hub: Hub, metrics: &Metrics) -> Arc<dyn PubSub> {
    selvedge_local::local(name, app_id, hub, metrics, LocalOptions::default())
}

/// The host that nodes of this binary are built on.
pub fn host(clock: Arc<dyn Clock>, metrics: Metrics, sockets: InheritedSockets) -> Host {
    Host {
        registry: registry(),
        open_tables: Arc::new(|dir: PathBuf, metrics: Metrics| {
            Box::pin(async move {
                let tables = SqliteTables::open(&dir, &metrics).await.map_err(|e| e.to_string())?;
                Ok(Arc::new(tables) as Arc<dyn Tables>)
            })
        }),
        make_local: Arc::new(local),
        storage: Arc::new(DiskStorage::default()),
        clock,
        metrics,
        sockets,
    }
}

/// The cargo features that this binary is built with.
pub fn features() -> Vec<&'static str> {
    let all = [
        ("api", cfg!(feature = "api")),
        ("coap", cfg!(feature = "coap")),
        ("configuration", cfg!(feature = "configuration")),
        ("cron", cfg!(feature = "cron")),
        ("http", cfg!(feature = "http")),
        ("localstorage", cfg!(feature = "localstorage")),
        ("memory", cfg!(feature = "memory")),
        ("secrets", cfg!(feature = "secrets")),
        ("sensors", cfg!(feature = "sensors")),
    ];
    all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

/// Type names of all components.
pub fn types() -> Vec<String> {
    let mut all = registry().types();
    // The node makes this one itself.
    all.push(MODE_STORE_TYPE.to_owned());
    all.sort();
    all
}

/// Whether a component of this type is shipped.
pub fn ships(type_name: &str) -> bool {
    types().iter().any(|t| t == type_name)
}

/// Whether a listener for this protocol is shipped.
pub fn ships_listener(protocol: &str) -> bool {
    registry().protocols().iter().any(|p| p == protocol)
}
