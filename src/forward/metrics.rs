//! Metrics of all forwarders.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::component::LinkCause;
use crate::escape::LinkState;
use crate::hub::SetCounts;
use crate::telemetry::Metrics;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Upstream {
    upstream: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Change {
    upstream: String,
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    upstream: String,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InSet {
    set: String,
}

#[derive(Clone)]
struct LatencyBuckets;

impl MetricConstructor<Histogram> for LatencyBuckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0])
    }
}

/// Metrics that all forwarders of a node share; made once per node.
#[derive(Debug, Clone)]
pub struct ForwardMetrics {
    state: Family<Upstream, Gauge>,
    changes: Family<Change, Counter>,
    sent: Family<Upstream, Counter>,
    acknowledged: Family<Upstream, Counter>,
    first: Family<Upstream, Counter>,
    kept: Family<InSet, Gauge>,
    waiting: Family<InSet, Gauge>,
    refused: Family<Upstream, Counter>,
    defects: Family<Upstream, Counter>,
    bytes: Family<Upstream, Counter>,
    traffic: Family<Direction, Counter>,
    in_flight: Family<Upstream, Gauge>,
    window: Family<Upstream, Gauge>,
    latency: Family<Upstream, Histogram, LatencyBuckets>,
}

impl std::fmt::Debug for LatencyBuckets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LatencyBuckets")
    }
}

impl ForwardMetrics {
    /// Registers the metrics.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        let all = Self {
            state: Family::default(),
            changes: Family::default(),
            sent: Family::default(),
            acknowledged: Family::default(),
            first: Family::default(),
            kept: Family::default(),
            waiting: Family::default(),
            refused: Family::default(),
            defects: Family::default(),
            bytes: Family::default(),
            traffic: Family::default(),
            in_flight: Family::default(),
            window: Family::default(),
            latency: Family::new_with_constructor(LatencyBuckets),
        };
        metrics.register(|r| {
            r.register(
                "selvedge_link_state",
                "State of the link to an upstream: 0 fenced, 1 down, 2 probing, 3 draining, 4 degraded, 5 up",
                all.state.clone(),
            );
            r.register("selvedge_link_changes", "Changes of link state by cause (none: to the better)", all.changes.clone());
            r.register("selvedge_forward_sent", "Records handed to the upstream's connection, repeats included", all.sent.clone());
            r.register("selvedge_forward_acknowledged", "Records that the upstream took responsibility for", all.acknowledged.clone());
            r.register("selvedge_forward_first", "Records of sets that the upstream was the first of its set to acknowledge", all.first.clone());
            r.register("selvedge_set_kept", "Records of a set that were read and are not done", all.kept.clone());
            r.register("selvedge_set_refused", "Records that a part of a set has refused and the others may take", all.waiting.clone());
            r.register("selvedge_forward_refused", "Records that the upstream refused for good", all.refused.clone());
            r.register("selvedge_forward_defects", "Panics of a forwarder or its uplink; each opens the link anew", all.defects.clone());
            r.register("selvedge_forward_bytes", "Payload and topic bytes handed to the connection", all.bytes.clone());
            r.register(
                "selvedge_upstream_traffic_bytes",
                "Bytes on the wire of an upstream's connections, with what the protocols add",
                all.traffic.clone(),
            );
            r.register("selvedge_forward_inflight", "Records sent and not answered", all.in_flight.clone());
            r.register("selvedge_forward_window", "Records that may be on their way; smaller while answers are slow", all.window.clone());
            r.register("selvedge_forward_latency_seconds", "From sending a record to its acknowledgement", all.latency.clone());
        });
        all
    }

    /// The handles of one upstream.
    pub(super) fn of(&self, upstream: &str) -> UpstreamMetrics {
        let label = Upstream { upstream: upstream.to_owned() };
        UpstreamMetrics {
            upstream: upstream.to_owned(),
            state: self.state.get_or_create(&label).clone(),
            changes: self.changes.clone(),
            sent: self.sent.get_or_create(&label).clone(),
            acknowledged: self.acknowledged.get_or_create(&label).clone(),
            first: self.first.get_or_create(&label).clone(),
            kept: self.kept.clone(),
            waiting: self.waiting.clone(),
            refused: self.refused.get_or_create(&label).clone(),
            defects: self.defects.get_or_create(&label).clone(),
            bytes: self.bytes.get_or_create(&label).clone(),
            traffic: ["sent", "received"]
                .map(|direction| self.traffic.get_or_create(&Direction { upstream: upstream.to_owned(), direction }).clone()),
            in_flight: self.in_flight.get_or_create(&label).clone(),
            window: self.window.get_or_create(&label).clone(),
            latency: self.latency.get_or_create(&label).clone(),
        }
    }
}

/// Resolved handles: counting costs no look-up.
pub(super) struct UpstreamMetrics {
    upstream: String,
    state: Gauge,
    changes: Family<Change, Counter>,
    pub(super) sent: Counter,
    pub(super) acknowledged: Counter,
    pub(super) first: Counter,
    kept: Family<InSet, Gauge>,
    waiting: Family<InSet, Gauge>,
    pub(super) refused: Counter,
    pub(super) defects: Counter,
    pub(super) bytes: Counter,
    /// Sent, received.
    pub(super) traffic: [Counter; 2],
    in_flight: Gauge,
    window: Gauge,
    latency: Histogram,
}

impl UpstreamMetrics {
    pub(super) fn changed(&self, to: LinkState, cause: Option<LinkCause>) {
        self.state.set(to.level());
        self.changes.get_or_create(&Change { upstream: self.upstream.clone(), cause: cause.map_or("none", LinkCause::as_str) }).inc();
    }

    pub(super) fn set(&self, set: &str, counts: SetCounts) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.kept.get_or_create(&InSet { set: set.to_owned() }).set(number(counts.kept));
        self.waiting.get_or_create(&InSet { set: set.to_owned() }).set(number(counts.refused));
    }

    pub(super) fn in_flight(&self, n: usize) {
        self.in_flight.set(i64::try_from(n).unwrap_or(i64::MAX));
    }

    pub(super) fn window(&self, n: usize) {
        self.window.set(i64::try_from(n).unwrap_or(i64::MAX));
    }

    pub(super) fn latency(&self, took: Duration) {
        self.latency.observe(took.as_secs_f64());
    }
}
