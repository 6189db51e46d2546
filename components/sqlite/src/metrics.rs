//! What the database threads count.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use selvedge::telemetry::Metrics;

type Labels = Vec<(&'static str, String)>;

/// Counters of one database; the label is the component's name, which comes from configuration.
#[derive(Clone, Debug)]
pub(crate) struct DatabaseMetrics {
    /// Changes that were committed.
    pub changes: Counter,
    /// Commits, each with one sync.
    pub commits: Counter,
    /// Requests refused because the queue was full.
    pub refused: Counter,
    /// Requests that wait or run.
    pub queued: Gauge,
}

impl DatabaseMetrics {
    pub fn new(metrics: &Metrics, database: &str) -> Self {
        let counter = |name, help| {
            let family = metrics.shared(name, help, Family::<Labels, Counter>::default);
            Counter::clone(&family.get_or_create(&vec![("database", database.to_owned())]))
        };
        let changes = counter("selvedge_sqlite_changes", "Changes committed to SQLite databases");
        let commits = counter("selvedge_sqlite_commits", "Commits of SQLite databases; each is one sync");
        let refused = counter("selvedge_sqlite_refused", "Requests refused because the queue of a SQLite database was full");
        let family = metrics.shared("selvedge_sqlite_queued", "Requests that wait for a SQLite database", Family::<Labels, Gauge>::default);
        let queued = Gauge::clone(&family.get_or_create(&vec![("database", database.to_owned())]));
        Self { changes, commits, refused, queued }
    }
}
