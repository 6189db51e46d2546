//! Dapr's HTTP API: routes and encodings, nothing else.

mod configuration;
mod invoke;
mod publish;
mod state;
mod upgrade;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use http_body_util::{BodyExt as _, Limited};
use percent_encoding::percent_decode_str;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use self::upgrade::{Connections, Switch};
use super::door;
use super::error::{self, ApiError};
use crate::block::Blocks;
use crate::component::{Fut, InvokeRequest, Metadata};
use crate::supervise::contained;
use crate::telemetry::Metrics;

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Largest body; 0 = no limit (daprd's rule).
    pub max_body_bytes: u64,
    /// `DAPR_API_TOKEN`: what `dapr-api-token` must be.
    pub api_token: Option<String>,
    /// `--allowed-origins`: empty = no CORS.
    pub allowed_origins: Vec<String>,
    /// One log line for each call.
    pub api_logging: bool,
    /// Count errors by code (`metrics.recordErrorCodes`).
    pub record_error_codes: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorCode {
    app_id: String,
    category: &'static str,
    error_code: &'static str,
}

/// What the node's API is asked to do beside answering.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    /// Whether the node is ready.
    pub ready: watch::Receiver<bool>,
    /// Set when a caller asks for shutdown; `Some(true)` asks to skip the drain.
    pub shutdown: watch::Sender<Option<bool>>,
}

struct Server {
    blocks: Blocks,
    options: HttpOptions,
    lifecycle: Lifecycle,
    errors: Option<Family<ErrorCode, Counter>>,
}

/// One request, taken apart.
struct Call {
    method: Method,
    path: Vec<String>,
    query: Vec<(String, String)>,
    raw_query: String,
    headers: HeaderMap,
    body: Body,
    max_body_bytes: usize,
}

impl Call {
    /// `metadata.x=y` of the query; the first value counts.
    fn metadata(&self) -> Metadata {
        let mut metadata = BTreeMap::new();
        for (k, v) in &self.query {
            if let Some(name) = k.strip_prefix("metadata.") {
                metadata.entry(name.to_owned()).or_insert_with(|| v.clone());
            }
        }
        metadata
    }

    fn parameter(&self, name: &str) -> &str {
        self.query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str()).unwrap_or_default()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    async fn bytes(&mut self) -> Result<Bytes, String> {
        let body = std::mem::replace(&mut self.body, Body::empty());
        match Limited::new(body, self.max_body_bytes).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Err("stream too large".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn writes(&self) -> bool {
        self.method == Method::POST || self.method == Method::PUT
    }
}

type Answer = Result<Response, ApiError>;

/// Compared in full whatever differs, so that the time tells nothing.
pub(super) fn same_token(given: &[u8], token: &[u8]) -> bool {
    given.len() == token.len() && given.iter().zip(token).fold(0, |d, (a, b)| d | (a ^ b)) == 0
}

/// What stands for "no trace" in an event, as Dapr writes it when nothing is sampled.
const NO_TRACE: &str = "00-00000000000000000000000000000000-0000000000000000-00";

/// The caller's trace parent if it is one (W3C Trace Context, section 3.2).
pub(super) fn trace_parent(given: &str) -> String {
    let parts: Vec<&str> = given.split('-').collect();
    let hex = |text: &str, n: usize| text.len() == n && text.bytes().all(|b| b.is_ascii_hexdigit()) && text.bytes().any(|b| b != b'0');
    match parts.as_slice() {
        [version, trace, span, flags] if version.len() == 2 && hex(trace, 32) && hex(span, 16) && flags.len() == 2 => given.to_owned(),
        _ => NO_TRACE.to_owned(),
    }
}

fn no_content() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

fn json_response(status: u16, body: &Value) -> Response {
    json_text(status, crate::block::go_json(body))
}

fn json_text(status: u16, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn put_header(response: &mut Response, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
        response.headers_mut().insert(name, value);
    }
}

/// Marks an answer that comes from a cache since its source is gone.
fn aged(mut response: Response, age: Option<Duration>) -> Response {
    if let Some(age) = age {
        put_header(&mut response, super::CACHE_AGE, &age.as_secs().to_string());
    }
    response
}

/// Keys of a JSON object are found whatever their case (Go's rule).
fn field<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    let map = value.as_object()?;
    map.get(name).or_else(|| map.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v)).filter(|v| !v.is_null())
}

fn text_field(value: &Value, name: &str) -> Result<String, String> {
    match field(value, name) {
        None => Ok(String::new()),
        Some(Value::String(s)) => Ok(s.clone()),
        Some(other) => Err(format!("field {name} must be a text, found {other}")),
    }
}

fn metadata_field(value: &Value) -> Result<Metadata, String> {
    match field(value, "metadata") {
        None => Ok(Metadata::new()),
        Some(Value::Object(map)) => map
            .iter()
            .map(|(k, v)| match v {
                Value::String(s) => Ok((k.clone(), s.clone())),
                other => Err(format!("metadata {k} must be a text, found {other}")),
            })
            .collect(),
        Some(other) => Err(format!("metadata must be an object, found {other}")),
    }
}

/// A path parameter as Go's `url.QueryUnescape` reads it.
fn unescape(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn split_query(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|pair| {
            let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
            (unescape(k), unescape(v))
        })
        .collect()
}

/// Serves the API on these sockets until `stop` resolves; calls that run may end.
pub async fn serve(
    blocks: Blocks,
    listeners: Vec<TcpListener>,
    options: HttpOptions,
    lifecycle: Lifecycle,
    metrics: &Metrics,
    stop: Fut<'static, ()>,
) {
    let errors = options.record_error_codes.then(|| {
        let family = Family::<ErrorCode, Counter>::default();
        metrics.register(|r| r.register("dapr_error_code", "Errors by code", family.clone()));
        family
    });
    let server = Arc::new(Server { blocks, options, lifecycle, errors });
    let (stopping, stopped) = watch::channel(false);
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        let (server, stopped) = (server.clone(), stopped.clone());
        tasks.spawn(async move {
            let supervisor = server.blocks.node_status().supervisor().clone();
            door::keep(&supervisor, "api/http", listener, stopped, |listener, stop| {
                let (connections, switch) = Connections::new(listener);
                let router = Router::new().fallback(handle).with_state((server.clone(), switch));
                async move { axum::serve(connections, router).with_graceful_shutdown(stop).await.map_err(|e| e.to_string()) }
            })
            .await;
        });
    }
    stop.await;
    stopping.send_replace(true);
    while tasks.join_next().await.is_some() {}
}

/// Serves the metrics in the OpenMetrics text format, on any path.
pub async fn serve_metrics(listener: TcpListener, metrics: Metrics) {
    let render = move || {
        let metrics = metrics.clone();
        async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render_text()) }
    };
    // The same kind of connection as the API's: one server in the binary.
    let (connections, _) = Connections::new(listener);
    if let Err(error) = axum::serve(connections, Router::new().fallback(render)).await {
        tracing::error!(error = %error, "the metrics endpoint has ended");
    }
}

async fn handle(State((server, switch)): State<(Arc<Server>, Switch)>, mut request: Request) -> Response {
    if let Some(switching) = switch.take(&mut request) {
        return switching;
    }
    let begun = server.blocks.now();
    let (parts, body) = request.into_parts();
    let raw_path = parts.uri.path().to_owned();
    // Double and trailing slashes count for nothing.
    let path: Vec<String> = raw_path.split('/').filter(|s| !s.is_empty()).map(unescape).collect();
    let limit = if server.options.max_body_bytes == 0 { usize::MAX } else { usize::try_from(server.options.max_body_bytes).unwrap_or(usize::MAX) };
    let call = Call {
        method: parts.method,
        path,
        query: split_query(parts.uri.query().unwrap_or_default()),
        raw_query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body,
        max_body_bytes: limit,
    };
    let (method, origin, agent) = (call.method.clone(), call.header("origin").to_owned(), call.header("user-agent").to_owned());
    let allowed = server.allowed_origin(&origin);
    // As daprd: a preflight is answered before the token is looked at, whatever the origin.
    let preflight =
        !server.options.allowed_origins.is_empty() && method == Method::OPTIONS && call.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if preflight {
        let mut response = StatusCode::OK.into_response();
        put_header(&mut response, "access-control-allow-methods", call.header("access-control-request-method"));
        let wanted = call.header("access-control-request-headers");
        if !wanted.is_empty() {
            put_header(&mut response, "access-control-allow-headers", wanted);
        }
        response
    } else if let Some(refusal) = server.unauthorized(&call) {
        refusal
    } else {
        server.contained(call).await.unwrap_or_else(|error| server.render(&error))
    };
    if !server.options.allowed_origins.is_empty() {
        put_header(&mut response, "vary", "Origin");
    }
    if let Some(allowed) = allowed {
        put_header(&mut response, "access-control-allow-origin", &allowed);
    }
    if server.options.api_logging {
        let duration = server.blocks.now().since(begun).as_millis() as u64;
        let (code, size) =
            (u64::from(response.status().as_u16()), response.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).unwrap_or("-1"));
        tracing::info!(scope = "dapr.runtime.http-info", method = %format!("{method} {raw_path}"), useragent = %agent, duration, code, size, "HTTP API Called");
    }
    response
}

impl Server {
    fn allowed_origin(&self, origin: &str) -> Option<String> {
        if origin.is_empty() {
            return None;
        }
        let allowed = &self.options.allowed_origins;
        if allowed.iter().any(|o| o == "*") {
            return Some("*".to_owned());
        }
        allowed.iter().any(|o| o == origin).then(|| origin.to_owned())
    }

    fn unauthorized(&self, call: &Call) -> Option<Response> {
        let token = self.options.api_token.as_deref()?;
        let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
        let exempt = matches!(path.as_slice(), ["v1.0", "healthz"] | ["v1.0", "healthz", "outbound"]);
        let same = same_token(call.header("dapr-api-token").as_bytes(), token.as_bytes());
        (!exempt && !same).then(|| (StatusCode::UNAUTHORIZED, "invalid api token").into_response())
    }

    fn render(&self, error: &ApiError) -> Response {
        if let Some(errors) = &self.errors {
            let label = ErrorCode { app_id: self.blocks.app_id().to_owned(), category: error.category(), error_code: error.code };
            errors.get_or_create(&label).inc();
        }
        let mut response = json_response(error.status, &error.to_json());
        for (name, value) in &error.headers {
            put_header(&mut response, name, value);
        }
        response
    }

    /// A defect over one call is an answer to that call.
    async fn contained(&self, call: Call) -> Answer {
        contained(self.dispatch(call)).await.unwrap_or_else(|cause| {
            self.blocks.node_status().supervisor().count("api/http", &cause);
            Err(error::defect())
        })
    }

    async fn dispatch(&self, mut call: Call) -> Answer {
        let path = std::mem::take(&mut call.path);
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let (get, writes) = (call.method == Method::GET, call.writes());
        match path.as_slice() {
            ["v1.0", "healthz"] if get => self.health(&call),
            ["v1.0", "healthz", "outbound"] if get => Ok(no_content()),
            ["v1.0", "healthz", "upstream"] if get => Ok(self.upstream_health()),
            ["v1.0", "state", store, "bulk"] if writes => state::bulk(&self.blocks, store, call).await,
            ["v1.0", "state", store, "transaction"] if writes => state::transaction(&self.blocks, store, call).await,
            ["v1.0", "state", store] if writes => state::save(&self.blocks, store, call).await,
            ["v1.0", "state", store, key] if get => state::get(&self.blocks, store, key, call).await,
            ["v1.0", "state", store, key] if call.method == Method::DELETE => state::delete(&self.blocks, store, key, call).await,
            ["v1.0-alpha1", "state", store, "query"] if writes => {
                self.blocks.check_store(store)?;
                Err(error::state::no_queries(store))
            }
            ["v1.0" | "v1.0-alpha1", "publish", "bulk", pubsub, topic @ ..] if writes && !topic.is_empty() => {
                publish::bulk(&self.blocks, pubsub, &topic.join("/"), call).await
            }
            ["v1.0", "publish", pubsub, topic @ ..] if writes && !topic.is_empty() => {
                publish::one(&self.blocks, pubsub, &topic.join("/"), call).await
            }
            ["v1.0", "bindings", name] if writes => self.binding(name, call).await,
            ["v1.0", "secrets", store, "bulk"] if get => {
                let all = self.blocks.bulk_secret(store, &call.metadata()).await?;
                Ok(aged(json_response(200, &json!(all.value)), all.age))
            }
            ["v1.0", "secrets", store, name @ ..] if get && !name.is_empty() => {
                let secret = self.blocks.secret(store, &name.join("/"), &call.metadata()).await?;
                Ok(aged(json_response(200, &json!(secret.value)), secret.age))
            }
            ["v1.0" | "v1.0-alpha1", "configuration", store] if get => configuration::get(&self.blocks, store, call).await,
            ["v1.0" | "v1.0-alpha1", "configuration", store, "subscribe"] if get => configuration::subscribe(&self.blocks, store, call).await,
            ["v1.0" | "v1.0-alpha1", "configuration", store, id, "unsubscribe"] if get => configuration::unsubscribe(&self.blocks, store, id).await,
            ["v1.0", "metadata"] if get => Ok(json_response(200, &self.blocks.metadata())),
            ["v1.0", "metadata", key] if call.method == Method::PUT => {
                let body = call.bytes().await.map_err(|e| ApiError::plain(400, 3, "ERR_BODY_READ", e))?;
                self.blocks.set_metadata(key, &String::from_utf8_lossy(&body));
                Ok(no_content())
            }
            ["v1.0", "invoke", id, "method", method @ ..] => invoke::call(&self.blocks, id, method, call).await,
            ["v1.0", "shutdown"] if call.method == Method::POST => {
                let force = call.header("dapr-force-shutdown").eq_ignore_ascii_case("true");
                self.lifecycle.shutdown.send_replace(Some(force));
                Ok(no_content())
            }
            _ => Err(error::no_target()),
        }
    }

    fn health(&self, call: &Call) -> Answer {
        let wanted = call.parameter("appid");
        if !wanted.is_empty() && wanted != self.blocks.app_id() {
            return Err(ApiError::plain(500, 13, "ERR_HEALTH_APPID_NOT_MATCH", format!("dapr app-id does not match: {wanted}")));
        }
        if *self.lifecycle.ready.borrow() {
            Ok(no_content())
        } else {
            Err(ApiError::plain(500, 13, "ERR_HEALTH_NOT_READY", "dapr is not ready: [runtime]"))
        }
    }

    /// 204 when every upstream is up, else 503 with each one's state: readiness is another question.
    fn upstream_health(&self) -> Response {
        let status = self.blocks.node_status().to_json();
        let upstreams = &status["upstreams"];
        let all_up = upstreams.as_array().is_none_or(|all| all.iter().all(|u| u["state"] == "up"));
        if all_up { no_content() } else { json_response(503, &json!({"upstreams": upstreams})) }
    }

    async fn binding(&self, name: &str, mut call: Call) -> Answer {
        let mut metadata = BTreeMap::new();
        for key in ["traceparent", "tracestate", "baggage"] {
            if !call.header(key).is_empty() {
                metadata.insert(key.to_owned(), call.header(key).to_owned());
            }
        }
        let malformed = |e: String| ApiError::plain(400, 3, "ERR_MALFORMED_REQUEST", format!("failed deserializing HTTP body: {e}"));
        let body = call.bytes().await.map_err(malformed)?;
        let parsed: Value = serde_json::from_slice(&body).map_err(|e| malformed(e.to_string()))?;
        metadata.extend(metadata_field(&parsed).map_err(malformed)?);
        let request = InvokeRequest {
            operation: text_field(&parsed, "operation").map_err(malformed)?,
            data: field(&parsed, "data").map(|d| Bytes::from(crate::block::go_json(d))).unwrap_or_default(),
            metadata,
        };
        let answer = self.blocks.invoke_binding(name, request).await?;
        let mut response = match answer.data {
            Some(data) if !data.is_empty() => {
                let mut response = Response::new(Body::from(data));
                put_header(&mut response, "content-type", answer.content_type.as_deref().unwrap_or("application/json"));
                response
            }
            _ => no_content(),
        };
        for (k, v) in &answer.metadata {
            put_header(&mut response, &format!("metadata.{k}"), v);
        }
        Ok(response)
    }
}
