//! The node's metric registry.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::registry::{Metric, Registry};

/// A cheap handle to the one registry of the node. Rooms register their metrics at start and keep the typed handles; label
/// values must come from small closed sets or from configuration, never from what a peer sends.
///
/// Names: Dapr's own metrics begin with `dapr_`, all others with `selvedge_`; units come last (`_seconds`, `_bytes`), counters get
/// `_total` from the encoder.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    shared: Arc<Mutex<HashMap<&'static str, Box<dyn Any + Send>>>>,
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

    /// The metric of this name, registered on the first call: for what several components of one kind count together, told
    /// apart by labels (a name registered twice would make the whole text unreadable for scrapers). All callers of one name use one type.
    pub fn shared<M: Metric + Clone>(&self, name: &'static str, help: &'static str, make: impl FnOnce() -> M) -> M {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = shared.get(name).and_then(|metric| metric.downcast_ref::<M>()) {
            return there.clone();
        }
        let metric = make();
        if shared.insert(name, Box::new(metric.clone())).is_none() {
            self.register(|registry| registry.register(name, help, metric.clone()));
        }
        metric
    }

    /// Everything in Prometheus' older text format, which every scraper reads: there a counter's own name ends in `_total`.
    #[must_use]
    pub fn render_text(&self) -> String {
        let open = self.render();
        let mut out = String::with_capacity(open.len() + 1024);
        let mut help: Option<(&str, &str)> = None;
        for line in open.lines() {
            if let Some((name, text)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
                help = Some((name, text));
                continue;
            }
            if line == "# EOF" || line.starts_with("# UNIT ") {
                continue;
            }
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
                let suffix = if kind == "counter" { "_total" } else { "" };
                if let Some((_, text)) = help.take().filter(|(helped, _)| *helped == name) {
                    out.push_str(&format!("# HELP {name}{suffix} {text}\n"));
                }
                out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
                continue;
            }
            out.push_str(line);
            out.push('\n');
        }
        out
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

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn a_shared_metric_is_registered_once_and_counts_for_all_who_ask() {
        let metrics = Metrics::new();
        for _ in 0..2 {
            metrics.shared("selvedge_things", "Things", Counter::<u64>::default).inc();
        }
        let text = metrics.render();
        assert_eq!(text.matches("# TYPE selvedge_things").count(), 1);
        assert!(text.contains("selvedge_things_total 2"), "{text}");
    }
}
