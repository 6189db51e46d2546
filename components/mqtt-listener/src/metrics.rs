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
        // Shared: there may be several listeners, and one that failed is made anew.
        let gauge = |what, help| metrics.shared(what, help, Family::<Name, Gauge<i64, AtomicI64>>::default).get_or_create(&name).clone();
        let counter = |what, help| metrics.shared(what, help, Family::<Name, Counter>::default).get_or_create(&name).clone();
        let reasons = |what, help| metrics.shared(what, help, Family::<Reason, Counter>::default);
        let this = Self {
            name: listener.to_owned(),
            connections: gauge("selvedge_mqtt_listener_connections", "Clients connected"),
            sessions: gauge("selvedge_mqtt_listener_sessions", "Sessions of clients that are away"),
            received: counter("selvedge_mqtt_listener_received", "Publishes taken from clients"),
            sent: counter("selvedge_mqtt_listener_sent", "Publishes sent to clients"),
            refused: reasons("selvedge_mqtt_listener_refused", "Connections and publishes refused"),
            dropped: reasons("selvedge_mqtt_listener_dropped", "Messages not delivered to a client"),
            closed: reasons("selvedge_mqtt_listener_closed", "Connections closed by the listener"),
        };
        // Those of before a failure are gone.
        this.connections.set(0);
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
