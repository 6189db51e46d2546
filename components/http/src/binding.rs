//! Sending.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use selvedge::component::{Binding, BindingError, ComponentContext, Fut, InitError, InvokeRequest, InvokeResponse, OutputBinding};

use crate::connect::Connector;
use crate::request::{OPERATIONS, Outgoing, answer_metadata};
use crate::settings::Settings;
use crate::tls;

/// Redirections that are followed (Go's number).
const REDIRECTIONS: usize = 10;
/// Requests under way at the same time; further ones wait.
const CALLS: usize = 256;
/// Idle connections kept per host, and for how long.
const IDLE_CONNECTIONS: usize = 8;
const IDLE_TIME: Duration = Duration::from_secs(90);

struct HttpBinding {
    settings: Settings,
    client: Client<Connector, Full<Bytes>>,
    calls: tokio::sync::Semaphore,
}

/// Builds a `bindings.http`.
///
/// # Errors
/// When a setting is wrong, or a certificate or key cannot be read.
pub async fn binding(context: ComponentContext) -> Result<Binding, InitError> {
    let settings = Settings::read(&context.properties)?;
    // A plain URL needs no TLS, and so does not load the system's certificates.
    let tls = if settings.is_https() || settings.root_ca.is_some() || settings.client_cert.is_some() {
        let (settings, clock) = (settings.clone(), context.clock.clone());
        let config = tokio::task::spawn_blocking(move || tls::config(&settings, clock)).await;
        Some(config.map_err(|e| InitError::failed("reading certificates", e))??)
    } else {
        None
    };
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIME)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .http1_title_case_headers(true)
        .build(Connector::new(tls));
    let output = HttpBinding { settings, client, calls: tokio::sync::Semaphore::new(CALLS) };
    Ok(Binding { input: None, output: Some(Arc::new(output)) })
}

impl OutputBinding for HttpBinding {
    fn operations(&self) -> &[&'static str] {
        &OPERATIONS
    }

    fn invoke<'a>(&'a self, request: InvokeRequest) -> Fut<'a, Result<InvokeResponse, BindingError>> {
        Box::pin(async move {
            let outgoing = Outgoing::build(&self.settings, request)?;
            match self.settings.response_timeout {
                None => self.send(outgoing).await,
                Some(limit) => tokio::time::timeout(limit, self.send(outgoing))
                    .await
                    .unwrap_or_else(|_| Err(BindingError::Unavailable(format!("no answer within {limit:?}")))),
            }
        })
    }
}

impl HttpBinding {
    async fn send(&self, mut outgoing: Outgoing) -> Result<InvokeResponse, BindingError> {
        let _place = self.calls.acquire().await.map_err(|e| BindingError::Unavailable(e.to_string()))?;
        for _ in 0..=REDIRECTIONS {
            let mut request = http::Request::new(Full::new(outgoing.body.clone()));
            *request.method_mut() = outgoing.method.clone();
            *request.uri_mut() = outgoing.uri.clone();
            *request.headers_mut() = outgoing.headers.clone();
            let failed = |cause: &dyn std::error::Error| unavailable(&outgoing, cause);
            let (head, body) = self.client.request(request).await.map_err(|e| failed(&e))?.into_parts();
            if let Some(next) = outgoing.redirected(head.status, &head.headers, &self.settings)? {
                outgoing = next;
                continue;
            }
            let data = read_body(body, self.settings.max_body_bytes).await.map_err(|e| failed(&e))?;
            let response = InvokeResponse {
                data: (!data.is_empty()).then_some(data),
                content_type: head.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(str::to_owned),
                metadata: answer_metadata(head.status, &head.headers),
            };
            if outgoing.error_if_not_2xx && !head.status.is_success() {
                let message = format!("received status code {}", head.status.as_u16());
                return Err(BindingError::Rejected { message, response: Box::new(response) });
            }
            return Ok(response);
        }
        Err(BindingError::Invalid(format!("stopped after {REDIRECTIONS} redirects")))
    }
}

/// The outermost error of the client says little; what it stems from says what happened.
fn unavailable(outgoing: &Outgoing, error: &dyn std::error::Error) -> BindingError {
    let mut text = format!("{} {}: {error}", outgoing.method, outgoing.uri);
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    BindingError::Unavailable(text)
}

/// Reads the body up to the limit; the rest is not read, and its connection not used again.
async fn read_body(mut body: Incoming, limit: Option<usize>) -> Result<Bytes, hyper::Error> {
    let limit = limit.unwrap_or(usize::MAX);
    let mut data = BytesMut::new();
    while data.len() < limit {
        let Some(frame) = body.frame().await else { break };
        if let Ok(part) = frame?.into_data() {
            let room = limit - data.len();
            data.extend_from_slice(&part[..part.len().min(room)]);
        }
    }
    Ok(data.freeze())
}

#[cfg(test)]
mod tests;
