//! The channel to the application: HTTP calls, with its token and a bound on how many run at a time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::Semaphore;

/// Longest answer that is read.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// How often a closed port is tried.
const DIAL: Duration = Duration::from_millis(100);

/// Where the application is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppAddress {
    /// `--app-channel-address`.
    pub host: String,
    /// `--app-port`.
    pub port: u16,
    /// `--app-max-concurrency`; none = no bound.
    pub max_concurrency: Option<usize>,
    /// `APP_API_TOKEN`.
    pub token: Option<String>,
}

/// An answer of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppAnswer {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: Bytes,
}

impl AppAnswer {
    /// 2xx.
    #[must_use]
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Calls the application. Cheap to clone.
#[derive(Clone)]
pub struct AppChannel {
    address: Arc<AppAddress>,
    client: Client<HttpConnector, Full<Bytes>>,
    permits: Option<Arc<Semaphore>>,
}

impl std::fmt::Debug for AppChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppChannel").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The application could not be reached, or broke off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("error invoking app at {address}: {detail}")]
pub struct AppError {
    address: String,
    detail: String,
}

impl AppChannel {
    /// A channel; connects when it is used.
    #[must_use]
    pub fn new(address: AppAddress) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let permits = address.max_concurrency.map(|n| Arc::new(Semaphore::new(n)));
        Self { address: Arc::new(address), client: Client::builder(TokioExecutor::new()).build(connector), permits }
    }

    /// Resolves when the application's port is open.
    pub async fn wait_for_port(&self) {
        let address = (self.address.host.as_str(), self.address.port);
        let mut tries = 0u64;
        while tokio::net::TcpStream::connect(address).await.is_err() {
            if tries == 0 {
                tracing::info!(
                    "application protocol: http. waiting on port {}.  This will block until the app is listening on that port.",
                    self.address.port
                );
            } else if tries.is_multiple_of(100) {
                tracing::info!("waiting for application to listen on port {}", self.address.port);
            }
            tries += 1;
            tokio::time::sleep(DIAL).await;
        }
    }

    /// One call. The permit of `--app-max-concurrency` is held until the answer's body is read.
    ///
    /// # Errors
    /// When the application cannot be reached or its answer not be read.
    pub async fn call(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Bytes) -> Result<AppAnswer, AppError> {
        let fail = |detail: String| AppError { address: format!("{}:{}{path}", self.address.host, self.address.port), detail };
        let _permit = match &self.permits {
            Some(permits) => Some(permits.acquire().await.map_err(|e| fail(e.to_string()))?),
            None => None,
        };
        let separator = if path.starts_with('/') { "" } else { "/" };
        let uri = format!("http://{}:{}{separator}{path}", self.address.host, self.address.port);
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.address.token {
            request = request.header("dapr-api-token", token);
        }
        let request = request.body(Full::new(body)).map_err(|e| fail(e.to_string()))?;
        let response = self.client.request(request).await.map_err(|e| {
            let cause = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
            fail(format!("{e}{cause}"))
        })?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(|e| fail(e.to_string()))?.to_bytes();
        Ok(AppAnswer { status, body })
    }
}
