//! What the binding counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use selvedge::telemetry::Metrics;

use crate::reading::Group;

type Labels = Vec<(&'static str, String)>;

/// Counters of one binding; the label `binding` comes from configuration.
#[derive(Debug, Clone)]
pub(crate) struct SensorMetrics {
    binding: String,
    failures: Family<Labels, Counter>,
    /// Readings handed on.
    pub readings: Counter,
    /// Readings that were not taken.
    pub refused: Counter,
    /// Times at which no sample was taken, since the one before was still under way.
    pub skipped: Counter,
    /// Sensors left out because there are more than may be.
    pub beyond_limit: Counter,
    /// Sensors of the last sample.
    pub sensors: Gauge,
}

impl SensorMetrics {
    pub(crate) fn new(metrics: &Metrics, binding: &str) -> Self {
        let label = || vec![("binding", binding.to_owned())];
        let family = |name, help| metrics.shared(name, help, Family::<Labels, Counter>::default);
        let counter = |name, help| Counter::clone(&family(name, help).get_or_create(&label()));
        let sensors = metrics.shared("selvedge_sensors", "Sensors of the last sample", Family::<Labels, Gauge>::default);
        Self {
            binding: binding.to_owned(),
            failures: family("selvedge_sensors_failures", "Sensors that could not be read, by group"),
            readings: counter("selvedge_sensors_readings", "Sensor readings handed on"),
            refused: counter("selvedge_sensors_refused", "Sensor readings that were not taken"),
            skipped: counter("selvedge_sensors_skipped", "Samples passed over because the one before was under way"),
            beyond_limit: counter("selvedge_sensors_beyond_limit", "Sensors left out of a sample because there are too many"),
            sensors: Gauge::clone(&sensors.get_or_create(&label())),
        }
    }

    pub(crate) fn failed(&self, group: Group) {
        self.failures.get_or_create(&vec![("binding", self.binding.clone()), ("group", group.as_str().to_owned())]).inc();
    }
}
