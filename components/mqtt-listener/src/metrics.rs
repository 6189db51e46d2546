//! What the listener counts. Labels come from small closed sets.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use selvedge::telemetry::Metrics;

/// One label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    listener: String,
    reason: &'static str,
}

/// One label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Name {
    listener: String,
}

/// The listener's metrics.
#[derive(Debug, Clone)]
pub struct ListenerMetrics {
    name: String,
    /// Clients connected.
    pub connections: Gauge<i64, AtomicI64>,
    /// Sessions of clients that are away.
    pub sessions: Gauge<i64, AtomicI64>,
    /// Publishes taken.
    pub received: Counter,
    /// Publishes sent to clients.
    pub sent: Counter,
    refused: Family<Reason, Counter>,
    dropped: Family<Reason, Counter>,
    closed: Family<Reason, Counter>,
}

impl ListenerMetrics {
    /// Registers them.
    #[must_use]
    pub fn register(metrics: &Metrics, listener: &str) -> Self {
        let name = Name { listener: listener.to_owned() };
        let this = Self {
            name: listener.to_owned(),
            connections: Gauge::default(),
            sessions: Gauge::default(),
            received: Counter::default(),
            sent: Counter::default(),
            refused: Family::default(),
            dropped: Family::default(),
            closed: Family::default(),
        };
        metrics.register(|r| {
            let r = r.sub_registry_with_prefix("selvedge_mqtt_listener");
            let r = r.sub_registry_with_label(("listener".into(), name.listener.clone().into()));
            r.register("connections", "Clients connected", this.connections.clone());
            r.register("sessions", "Sessions of clients that are away", this.sessions.clone());
            r.register("received", "Publishes taken from clients", this.received.clone());
            r.register("sent", "Publishes sent to clients", this.sent.clone());
        });
        metrics.register(|r| {
            let r = r.sub_registry_with_prefix("selvedge_mqtt_listener");
            r.register("refused", "Connections and publishes refused", this.refused.clone());
            r.register("dropped", "Messages not delivered to a client", this.dropped.clone());
            r.register("closed", "Connections closed by the listener", this.closed.clone());
        });
        this
    }

    fn reason(&self, reason: &'static str) -> Reason {
        Reason { listener: self.name.clone(), reason }
    }

    /// A connection or publish was refused.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&self.reason(reason)).inc();
    }

    /// A message was not delivered to a client.
    pub fn dropped(&self, reason: &'static str) {
        self.dropped.get_or_create(&self.reason(reason)).inc();
    }

    /// The listener closed a connection.
    pub fn closed(&self, reason: &'static str) {
        self.closed.get_or_create(&self.reason(reason)).inc();
    }
}
