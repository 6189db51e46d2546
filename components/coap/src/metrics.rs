//! What a listener counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use selvedge::telemetry::Metrics;

use crate::packet::Code;

type Labels = Vec<(&'static str, String)>;

/// Why something was dropped or refused before it was a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// A response, acknowledgement or reset that nothing waits for.
    Stray,
    /// No room for another peer, or too many requests wait.
    Overload,
    /// A duplicate may be taken for new: its exchange was forgotten to make room.
    Forgotten,
    /// A confirmable message was never acknowledged.
    TimedOut,
    /// A message to an observer gave way to a newer one.
    Replaced,
    /// More waited for a peer than may wait.
    QueueFull,
    /// A message did not fit the queue towards the observers.
    Lagging,
    /// The socket did not take a datagram.
    Socket,
}

impl Dropped {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stray => "stray",
            Self::Overload => "overload",
            Self::Forgotten => "exchange_forgotten",
            Self::TimedOut => "timed_out",
            Self::Replaced => "replaced",
            Self::QueueFull => "queue_full",
            Self::Lagging => "lagging",
            Self::Socket => "socket",
        }
    }
}

/// Counters of one listener; the label `listener` comes from configuration.
#[derive(Debug, Clone)]
pub struct CoapMetrics {
    listener: String,
    requests: Family<Labels, Counter>,
    dropped: Family<Labels, Counter>,
    pub(crate) duplicates: Counter,
    pub(crate) retransmissions: Counter,
    pub(crate) blocks: Counter,
    pub(crate) notifications: Counter,
    pub(crate) malformed: Counter,
    pub(crate) observers: Gauge,
    pub(crate) peers: Gauge,
    pub(crate) pending: Gauge,
}

fn method(code: u8) -> &'static str {
    match code {
        1 => "get",
        2 => "post",
        3 => "put",
        4 => "delete",
        5 => "fetch",
        6 => "patch",
        7 => "ipatch",
        _ => "other",
    }
}

impl CoapMetrics {
    /// Registers the metrics, or finds them again, for a listener of this name.
    #[must_use]
    pub fn new(metrics: &Metrics, listener: &str) -> Self {
        let label = || vec![("listener", listener.to_owned())];
        let family = |name, help| metrics.shared(name, help, Family::<Labels, Counter>::default);
        let counter = |name, help| Counter::clone(&family(name, help).get_or_create(&label()));
        let gauge = |name, help| Gauge::clone(&metrics.shared(name, help, Family::<Labels, Gauge>::default).get_or_create(&label()));
        Self {
            listener: listener.to_owned(),
            requests: family("selvedge_coap_requests", "CoAP requests by method and code of the answer"),
            dropped: family("selvedge_coap_dropped", "CoAP messages dropped, by reason"),
            duplicates: counter("selvedge_coap_duplicates", "Repeated CoAP requests that were not taken a second time"),
            retransmissions: counter("selvedge_coap_retransmissions", "Confirmable CoAP messages sent again"),
            blocks: counter("selvedge_coap_blocks", "Blocks of larger bodies, in and out"),
            notifications: counter("selvedge_coap_notifications", "Notifications to CoAP observers"),
            malformed: counter("selvedge_coap_malformed", "Datagrams that are no CoAP message"),
            observers: gauge("selvedge_coap_observers", "CoAP observers"),
            peers: gauge("selvedge_coap_peers", "CoAP peers whose state is kept"),
            pending: gauge("selvedge_coap_pending", "CoAP requests that wait for their answer"),
        }
    }

    pub(crate) fn answered(&self, request: u8, code: Code) {
        let labels = vec![("listener", self.listener.clone()), ("method", method(request).to_owned()), ("code", code.to_string())];
        self.requests.get_or_create(&labels).inc();
    }

    pub(crate) fn dropped(&self, reason: Dropped) {
        self.dropped.get_or_create(&vec![("listener", self.listener.clone()), ("reason", reason.as_str().to_owned())]).inc();
    }
}
