//! The channel to the application: one set of questions and events, asked and delivered over HTTP or gRPC, with the application's
//! token and a bound on how many calls run at a time.

mod grpc;
mod health;
mod http;

use std::sync::Arc;
use std::time::Duration;

use ::http as http_types;
use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::component::{BindingReading, Metadata};
use crate::resource::SubscriptionSpec;

pub(crate) use grpc::{status_verdict, topic_event};
pub use health::HealthCheck;

/// Longest answer that is read.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// How often a closed port is tried.
const DIAL: Duration = Duration::from_millis(100);

/// What the application speaks (`--app-protocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppProtocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
    /// gRPC: the service `AppCallback`.
    Grpc,
}

impl AppProtocol {
    /// As written in the flag.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::H2c => "h2c",
            Self::Grpc => "grpc",
        }
    }
}

/// Where the application is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppAddress {
    /// `--app-channel-address`.
    pub host: String,
    /// `--app-port`.
    pub port: u16,
    /// `--app-protocol`.
    pub protocol: AppProtocol,
    /// `--app-max-concurrency`; none = no bound.
    pub max_concurrency: Option<usize>,
    /// `APP_API_TOKEN`.
    pub token: Option<String>,
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Handled.
    Done,
    /// Not wanted: to the dead letters, if there are any, and acknowledged.
    Drop,
    /// The application cannot take events like this one at all: acknowledged, whatever dead letters there are (a gRPC application
    /// without `OnTopicEvent`).
    Unwanted,
    /// Once more, and why.
    Retry(String),
}

/// One event on its way to the application.
#[derive(Debug, Clone, Copy)]
pub struct TopicEvent<'a> {
    /// Pub/sub.
    pub pubsub: &'a str,
    /// Topic as the pub/sub delivered it.
    pub topic: &'a str,
    /// Path that the subscription's routes chose; may be empty over gRPC.
    pub path: &'a str,
    /// CloudEvent.
    pub event: &'a Map<String, Value>,
}

/// One message of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct BulkItem {
    /// Unique in its batch.
    pub entry_id: String,
    /// The CloudEvent; `None` for raw payloads.
    pub event: Option<Map<String, Value>>,
    /// The payload as it came.
    pub data: Bytes,
    /// Media type of `data`.
    pub content_type: String,
    /// Broker metadata.
    pub metadata: Metadata,
}

/// A batch on its way to the application.
#[derive(Debug, Clone, Copy)]
pub struct BulkEvent<'a> {
    /// Pub/sub.
    pub pubsub: &'a str,
    /// Topic of the subscription.
    pub topic: &'a str,
    /// Path.
    pub path: &'a str,
    /// Messages.
    pub items: &'a [&'a BulkItem],
}

/// Kind of a batch, in its `type`.
const BULK_TYPE: &str = "com.dapr.event.sent.bulk";

/// The application's answer to an input binding's event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BindingAnswer {
    /// Answer for the source, and what goes to `to`.
    pub data: Option<Bytes>,
    /// Output bindings that `data` is to go to.
    pub to: Vec<String>,
}

/// A call of one of the application's methods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MethodCall {
    /// HTTP verb.
    pub verb: http_types::Method,
    /// Method: a path without the first `/`, percent-encoded where a URI wants it.
    pub path: String,
    /// Query as it came, without `?`.
    pub query: String,
    /// Headers that belong to the whole way (no hop-by-hop ones).
    pub headers: http_types::HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// What the application answers to a method call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MethodAnswer {
    /// HTTP status.
    pub status: http_types::StatusCode,
    /// Headers, without hop-by-hop ones.
    pub headers: http_types::HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// Leaves out headers that are for one connection only (RFC 9110, section 7.6.1), those that `Connection` names among them.
pub fn end_to_end(headers: &http_types::HeaderMap) -> http_types::HeaderMap {
    const HOP: [&str; 9] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let named = headers.get_all("connection").iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let named: Vec<String> = named.map(|n| n.trim().to_ascii_lowercase()).collect();
    let stays = |name: &str| !HOP.contains(&name) && !named.iter().any(|n| n == name);
    headers.iter().filter(|(name, _)| stays(name.as_str())).map(|(n, v)| (n.clone(), v.clone())).collect()
}

/// The application could not be reached, or broke off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("error invoking app at {address}: {detail}")]
pub struct AppError {
    address: String,
    detail: String,
}

enum Transport {
    Http(Box<http::HttpApp>),
    Grpc(grpc::GrpcApp),
}

struct Inner {
    address: AppAddress,
    transport: Transport,
    permits: Option<Semaphore>,
}

/// Calls the application. Cheap to clone.
#[derive(Clone)]
pub struct AppChannel {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for AppChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppChannel").field("address", &self.inner.address).finish_non_exhaustive()
    }
}

impl AppChannel {
    /// A channel; connects when it is used.
    ///
    /// # Errors
    /// When host and port make no address.
    pub fn new(address: AppAddress) -> Result<Self, AppError> {
        let transport = match address.protocol {
            AppProtocol::Http | AppProtocol::H2c => Transport::Http(Box::new(http::HttpApp::new(&address))),
            AppProtocol::Grpc => Transport::Grpc(grpc::GrpcApp::new(&address)?),
        };
        let permits = address.max_concurrency.map(Semaphore::new);
        Ok(Self { inner: Arc::new(Inner { address, transport, permits }) })
    }

    /// Resolves when the application's port is open.
    pub async fn wait_for_port(&self) {
        let address = &self.inner.address;
        let mut tries = 0u64;
        while tokio::net::TcpStream::connect((address.host.as_str(), address.port)).await.is_err() {
            if tries == 0 {
                tracing::info!(
                    "application protocol: {}. waiting on port {}.  This will block until the app is listening on that port.",
                    address.protocol.as_str(),
                    address.port
                );
            } else if tries.is_multiple_of(100) {
                tracing::info!("waiting for application to listen on port {}", address.port);
            }
            tries += 1;
            tokio::time::sleep(DIAL).await;
        }
    }

    /// Held while a call runs, its answer included (`--app-max-concurrency`).
    async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        match &self.inner.permits {
            // Nobody closes the semaphore.
            Some(permits) => permits.acquire().await.ok(),
            None => None,
        }
    }

    /// What the application subscribes to. An application that knows no subscriptions has none.
    ///
    /// # Errors
    /// When it cannot be asked; another attempt may work.
    pub async fn subscriptions(&self, app_id: &str) -> Result<Vec<SubscriptionSpec>, AppError> {
        let _permit = self.permit().await;
        match &self.inner.transport {
            Transport::Http(app) => app.subscriptions(app_id).await,
            Transport::Grpc(app) => app.subscriptions().await,
        }
    }

    /// Calls one of its methods.
    ///
    /// # Errors
    /// When the application cannot be reached; what it answers itself is no error.
    pub async fn invoke(&self, call: MethodCall) -> Result<MethodAnswer, AppError> {
        let _permit = self.permit().await;
        match &self.inner.transport {
            Transport::Http(app) => app.invoke(call).await,
            Transport::Grpc(app) => Ok(app.invoke(call).await),
        }
    }

    /// Actor types that an HTTP application says it hosts (`/dapr/config`); none when it does not say.
    pub async fn actor_types(&self, app_id: &str) -> Vec<String> {
        let _permit = self.permit().await;
        match &self.inner.transport {
            Transport::Http(app) => app.actor_types(app_id).await,
            Transport::Grpc(_) => Vec::new(),
        }
    }

    /// Whether the application says that it is well. Needs no permit: one that is busy may still be well.
    async fn is_well(&self, path: &str) -> bool {
        match &self.inner.transport {
            Transport::Http(app) => app.is_well(path).await,
            Transport::Grpc(app) => app.is_well().await,
        }
    }

    /// Delivers an event.
    ///
    /// # Errors
    /// When the application cannot be reached.
    pub async fn deliver(&self, event: TopicEvent<'_>) -> Result<Verdict, AppError> {
        let _permit = self.permit().await;
        match &self.inner.transport {
            Transport::Http(app) => app.deliver(event).await,
            Transport::Grpc(app) => Ok(app.deliver(event).await),
        }
    }

    /// Delivers a batch; one verdict per item, in their order.
    ///
    /// # Errors
    /// When the batch as a whole was not taken.
    pub async fn deliver_bulk(&self, event: BulkEvent<'_>) -> Result<Vec<Verdict>, String> {
        let _permit = self.permit().await;
        match &self.inner.transport {
            Transport::Http(app) => app.deliver_bulk(event).await,
            Transport::Grpc(app) => app.deliver_bulk(event).await,
        }
    }

    /// Whether the application takes the events of this input binding.
    pub async fn wants_binding(&self, name: &str, path: &str) -> bool {
        let _permit = self.permit().await;
        match &self.inner.transport {
            Transport::Http(app) => app.wants_binding(path).await,
            Transport::Grpc(app) => app.wants_binding(name).await,
        }
    }

    /// Hands an input binding's event over.
    ///
    /// # Errors
    /// When the application cannot be reached or refuses it.
    pub async fn binding_event(&self, name: &str, path: &str, reading: BindingReading) -> Result<BindingAnswer, String> {
        let _permit = self.permit().await;
        match &self.inner.transport {
            Transport::Http(app) => app.binding_event(path, reading).await,
            Transport::Grpc(app) => app.binding_event(name, reading).await,
        }
    }
}

/// The trace that an event carries; empty when there is none.
fn trace_of(event: &Map<String, Value>) -> &str {
    event.get("traceparent").or_else(|| event.get("traceid")).and_then(Value::as_str).unwrap_or_default()
}

/// One verdict per item: what the application did not mention is to be retried.
fn by_item(items: &[&BulkItem], mut answers: std::collections::HashMap<String, Verdict>) -> Vec<Verdict> {
    items
        .iter()
        .map(|i| {
            answers.remove(&i.entry_id).unwrap_or_else(|| Verdict::Retry(format!("the application's answer does not mention entry {}", i.entry_id)))
        })
        .collect()
}
