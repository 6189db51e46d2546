//! The node's metric registry.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::registry::Registry;

/// A cheap handle to the one registry of the node. Rooms register their metrics at start and keep the typed handles; label
/// values must come from small closed sets or from configuration, never from what a peer sends.
///
/// Names: Dapr's own metrics begin with `dapr_`, all others with `selvedge_`; units come last (`_seconds`, `_bytes`), counters get
/// `_total` from the encoder.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers metrics.
    pub fn register<T>(&self, add: impl FnOnce(&mut Registry) -> T) -> T {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything in the OpenMetrics text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String does not fail; a collector that does leaves what came before it.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}
