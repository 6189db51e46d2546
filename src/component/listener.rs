//! The contract of a device listener: what lets devices in.

use std::sync::Arc;

use super::{Fut, InheritedSockets, InitError, Tables};
use crate::hub::Hub;
use crate::resource::ListenerSpec;
use crate::telemetry::Metrics;
use crate::time::Clock;

/// What a listener is built from.
#[derive(Clone)]
pub struct ListenerContext {
    /// `metadata.name` of the resource.
    pub name: String,
    /// The resource.
    pub spec: ListenerSpec,
    /// Where messages go and come from.
    pub hub: Hub,
    /// Durable bookkeeping (sessions).
    pub tables: Arc<dyn Tables>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Metrics.
    pub metrics: Metrics,
    /// Sockets that the service manager handed over; a listener asks these for what its `bind` names.
    pub sockets: InheritedSockets,
}

impl std::fmt::Debug for ListenerContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ListenerContext").field("name", &self.name).field("spec", &self.spec).finish_non_exhaustive()
    }
}

/// A listener whose socket is bound: the node is ready for connections, which wait until `serve` runs.
pub trait BoundListener: Send {
    /// Address it listens at, as text (the real port when 0 was asked for); several are separated by commas.
    fn address(&self) -> String;

    /// Its hold on what can change while it serves; none when nothing can.
    fn reload(&self) -> Option<Arc<dyn ListenerReload>> {
        None
    }

    /// Serves until `stop` resolves, then stops accepting, lets acknowledgements that are owed go out, tells clients goodbye
    /// and returns; bounded by the node's grace period.
    fn serve(self: Box<Self>, stop: Fut<'static, ()>) -> Fut<'static, ()>;
}

/// Changes a listener that serves. Its address, protocol and pub/sub, and whether it speaks TLS, stay.
pub trait ListenerReload: Send + Sync {
    /// Reads what the resource names now: users, certificates. Changes nothing yet, so that a mistake in one listener leaves all as
    /// they are.
    ///
    /// # Errors
    /// What cannot be read or understood.
    fn prepare(&self, spec: &ListenerSpec) -> Result<PreparedReload, InitError>;
}

/// Puts what was prepared in place, and says what has changed, a line each.
pub type PreparedReload = Box<dyn FnOnce() -> Vec<String> + Send>;
