use std::path::Path;
use std::sync::Arc;

use selvedge::component::{ComponentContext, MemoryTables, Tables as _};
use selvedge::hub::Hub;
use selvedge::outbox::Outbox;
use selvedge::supervise::Supervisor;
use selvedge::telemetry::Metrics;
use selvedge::time::{ManualClock, Timestamp};

/// What components are built from in tests: a data directory that goes with it, a clock moved by hand, an exchange.
pub struct Bench {
    dir: tempfile::TempDir,
    /// Shows 2026-11-24T02:43:02.500Z at first.
    pub clock: Arc<ManualClock>,
    /// Metrics of all components built here.
    pub metrics: Metrics,
    /// The exchange; its outbox has one lane, `default`.
    pub hub: Hub,
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").field("dir", &self.dir.path()).finish_non_exhaustive()
    }
}

impl Bench {
    /// A fresh one.
    pub async fn new() -> Self {
        let clock = Arc::new(ManualClock::at(Timestamp(1_795_488_182_500)));
        let outbox = Outbox::simulated(&["default"], clock.clone());
        let retained = MemoryTables::default().open("retained").await.unwrap();
        let hub = Hub::new(outbox, Vec::new(), retained, clock.clone()).await.unwrap();
        Self { dir: tempfile::tempdir().unwrap(), clock, metrics: Metrics::new(), hub }
    }

    /// The data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A context for a component named `part` of the application `app`.
    #[must_use]
    pub fn context(&self, type_name: &str, settings: &[(&str, &str)]) -> ComponentContext {
        ComponentContext {
            name: "part".into(),
            type_name: type_name.into(),
            version: "v1".into(),
            app_id: "app".into(),
            namespace: None,
            properties: settings.iter().copied().collect(),
            data_dir: self.dir.path().to_owned(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            supervisor: Supervisor::new(self.clock.clone(), &self.metrics),
            hub: Some(self.hub.clone()),
        }
    }
}
