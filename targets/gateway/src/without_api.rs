//! In the place of `serve_api` where the gateway is built without the feature `api`: no ports, no application. What asks for them is
//! refused with a clear word.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use selvedge::component::InheritedSockets;
use selvedge::node::Node;
use selvedge::resource::SubscriptionSpec;
use selvedge::telemetry::Metrics;
use selvedge::time::Clock;
use tokio::sync::{oneshot, watch};

use crate::flags::{Flags, UsageError};

const ABSENT: &str = "this gateway is built without Dapr's API (cargo feature `api`)";
/// Flags that ask for what is not there.
const ASKING: &[&str] = &["app-port", "dapr-http-port", "dapr-grpc-port", "metrics-port"];

/// Stands for what is there with the API only.
#[derive(Clone)]
pub struct Absent;

/// Stands for what an application would not be asked.
#[derive(Clone, Copy)]
pub struct Nothing;

/// Nothing is said of the API.
pub struct Doors {
    /// No application, no health.
    pub health: Absent,
    /// Nothing is asked.
    pub skip: Nothing,
}

/// The channel to the application, which there is none of.
pub struct App(Infallible);

impl App {
    /// Never called.
    pub async fn wait_for_port(&self) {
        match self.0 {}
    }
}

/// No servers.
pub struct Api {
    /// Nobody can ask for shutdown.
    pub shutdown: watch::Receiver<Option<bool>>,
    _ask: watch::Sender<Option<bool>>,
}

impl Doors {
    /// Reads the flags.
    pub fn from_flags(flags: &Flags) -> Result<Self, UsageError> {
        for flag in ASKING {
            if flags.port(flag, None)?.is_some() {
                return Err(UsageError(format!("--{flag}: {ABSENT}; leave it out")));
            }
        }
        Ok(Self { health: Absent, skip: Nothing })
    }

    /// Wants no address.
    pub fn addresses(&self) -> Vec<(&'static str, &'static str, SocketAddr)> {
        Vec::new()
    }

    /// Binds nothing.
    pub async fn bind(&self, _: &Arc<dyn Clock>, _: &InheritedSockets) -> Result<Absent, String> {
        Ok(Absent)
    }

    /// No application.
    pub fn app(&self) -> Result<Option<App>, Infallible> {
        Ok(None)
    }

    /// No HTTP.
    pub fn http_options(&self, _: &Node) -> Absent {
        Absent
    }
}

/// A subscription has nobody to be delivered to.
pub fn check_routes(subscription: &SubscriptionSpec) -> Result<(), String> {
    Err(format!("subscription {}: {ABSENT}, so there is no application to deliver to", subscription.name))
}

/// Starts nothing.
pub fn start(_: &Node, _: Absent, _: Absent, _: &Metrics, _: Nothing) -> Api {
    tracing::info!("{ABSENT}: there is no HTTP, gRPC or metrics port");
    let (ask, shutdown) = watch::channel(None);
    Api { shutdown, _ask: ask }
}

impl Api {
    /// Nobody asks for health.
    pub fn ready(&self) {}

    /// Never called.
    pub fn serve_app(&mut self, app: App, _: Absent) -> oneshot::Receiver<()> {
        match app.0 {}
    }

    /// Nothing to stop.
    pub async fn stop(self, _: Duration) {}
}
