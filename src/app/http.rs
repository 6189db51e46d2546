//! An application that speaks HTTP.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::{
    AppAddress, AppError, AppProtocol, BULK_TYPE, BindingAnswer, BulkEvent, MAX_ANSWER_BYTES, MethodAnswer, MethodCall, TopicEvent, Verdict, by_item,
    end_to_end, trace_of,
};
use crate::block::{cloudevent, go_json};
use crate::component::BindingReading;
use crate::resource::{BulkSubscribe, RouteRule, SubscriptionSpec};

/// An answer of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    /// HTTP status.
    status: u16,
    body: Bytes,
}

impl Answer {
    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

pub(super) struct HttpApp {
    host: String,
    port: u16,
    token: Option<String>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl HttpApp {
    pub fn new(address: &AppAddress) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).http2_only(address.protocol == AppProtocol::H2c).build(connector);
        Self { host: address.host.clone(), port: address.port, token: address.token.clone(), client }
    }

    /// One call.
    async fn call(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Bytes) -> Result<Answer, AppError> {
        let fail = |detail: String| AppError { address: format!("{}:{}{path}", self.host, self.port), detail };
        let separator = if path.starts_with('/') { "" } else { "/" };
        let uri = format!("http://{}:{}{separator}{path}", self.host, self.port);
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("dapr-api-token", token);
        }
        let request = request.body(Full::new(body)).map_err(|e| fail(e.to_string()))?;
        let response = self.client.request(request).await.map_err(|e| {
            let cause = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
            fail(format!("{e}{cause}"))
        })?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(|e| fail(e.to_string()))?.to_bytes();
        Ok(Answer { status, body })
    }

    pub async fn subscriptions(&self, app_id: &str) -> Result<Vec<SubscriptionSpec>, AppError> {
        let answer = self.call(Method::GET, "/dapr/subscribe", &[("dapr-app-id", app_id)], Bytes::new()).await?;
        match answer.status {
            200 => Ok(programmatic(&answer.body).unwrap_or_else(|error| {
                tracing::error!(error = %error, "the application's answer to /dapr/subscribe cannot be read");
                Vec::new()
            })),
            404 => Ok(Vec::new()),
            status => {
                tracing::error!(status, "the application refuses /dapr/subscribe");
                Ok(Vec::new())
            }
        }
    }

    pub async fn invoke(&self, call: MethodCall) -> Result<MethodAnswer, AppError> {
        let fail = |detail: String| AppError { address: format!("{}:{}/{}", self.host, self.port, call.path), detail };
        let question = if call.query.is_empty() { "" } else { "?" };
        let uri = format!("http://{}:{}/{}{question}{}", self.host, self.port, call.path, call.query);
        let mut request =
            Request::builder().method(call.verb.clone()).uri(uri).body(Full::new(call.body.clone())).map_err(|e| fail(e.to_string()))?;
        *request.headers_mut() = call.headers.clone();
        request.headers_mut().remove("host");
        request.headers_mut().remove("content-length");
        if let Some(token) = self.token.as_ref().and_then(|t| t.parse().ok()) {
            request.headers_mut().insert("dapr-api-token", token);
        }
        let response = self.client.request(request).await.map_err(|e| {
            let cause = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
            fail(format!("{e}{cause}"))
        })?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|e| fail(e.to_string()))?.to_bytes();
        let mut headers = end_to_end(&parts.headers);
        headers.remove("content-length");
        Ok(MethodAnswer { status: parts.status, headers, body })
    }

    pub async fn actor_types(&self, app_id: &str) -> Vec<String> {
        let Ok(answer) = self.call(Method::GET, "/dapr/config", &[("dapr-app-id", app_id)], Bytes::new()).await else { return Vec::new() };
        let config = serde_json::from_slice::<Value>(&answer.body).ok().filter(|_| answer.status == 200).unwrap_or_default();
        let entities = config.get("entities").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        entities.iter().filter_map(|e| e.as_str().map(str::to_owned)).collect()
    }

    pub async fn is_well(&self, path: &str) -> bool {
        self.call(Method::GET, path, &[], Bytes::new()).await.is_ok_and(|a| a.is_success())
    }

    pub async fn deliver(&self, event: TopicEvent<'_>) -> Result<Verdict, AppError> {
        let trace = trace_of(event.event);
        let mut headers = vec![("content-type", cloudevent::CONTENT_TYPE), ("pubsubName", event.pubsub)];
        if !trace.is_empty() {
            headers.push(("traceparent", trace));
        }
        let body = Bytes::from(go_json(&Value::Object(event.event.clone())));
        let answer = self.call(Method::POST, event.path, &headers, body).await?;
        Ok(verdict(&answer))
    }

    pub async fn deliver_bulk(&self, event: BulkEvent<'_>) -> Result<Vec<Verdict>, String> {
        let entries: Vec<Value> = event
            .items
            .iter()
            .map(|i| {
                let content = i.event.clone().map_or_else(|| json!(STANDARD.encode(&i.data)), Value::Object);
                json!({"entryId": i.entry_id, "event": content, "metadata": i.metadata, "contentType": i.content_type})
            })
            .collect();
        let envelope = json!({
            "id": uuid::Uuid::new_v4().to_string(), "entries": entries, "metadata": {"pubsubName": event.pubsub}, "topic": event.topic,
            "pubsubname": event.pubsub, "type": BULK_TYPE,
        });
        let headers = [("content-type", "application/json"), ("pubsubName", event.pubsub)];
        let answer = self.call(Method::POST, event.path, &headers, Bytes::from(go_json(&envelope))).await.map_err(|e| e.to_string())?;
        if answer.status == 404 {
            return Ok(vec![Verdict::Drop; event.items.len()]);
        }
        if !answer.is_success() {
            return Err(format!("retriable error returned from app while processing bulk pub/sub event: status code {}", answer.status));
        }
        let body: Value = serde_json::from_slice(&answer.body).map_err(|e| format!("failed unmarshalling app response for bulk subscribe: {e}"))?;
        Ok(by_item(event.items, bulk_verdicts(&body)))
    }

    pub async fn wants_binding(&self, path: &str) -> bool {
        self.call(Method::OPTIONS, path, &[], Bytes::new()).await.is_ok_and(|a| a.is_success() || a.status == 405)
    }

    pub async fn binding_event(&self, path: &str, reading: BindingReading) -> Result<BindingAnswer, String> {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(reading.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        let answer = self.call(Method::POST, path, &headers, reading.data).await.map_err(|e| e.to_string())?;
        if !answer.is_success() {
            return Err(format!("app returned http code {}", answer.status));
        }
        Ok(BindingAnswer { data: (!answer.body.is_empty()).then_some(answer.body), to: Vec::new() })
    }
}

/// The application's answer to an event (Dapr's rules).
fn verdict(answer: &Answer) -> Verdict {
    if answer.status == 404 {
        return Verdict::Drop;
    }
    if !answer.is_success() {
        return Verdict::Retry(format!("retriable error returned from app while processing pub/sub event: status code {}", answer.status));
    }
    let status = serde_json::from_slice::<Value>(&answer.body).ok().and_then(|v| v.get("status").and_then(Value::as_str).map(str::to_owned));
    match status.as_deref() {
        None | Some("" | "SUCCESS") => Verdict::Done,
        Some("DROP") => Verdict::Drop,
        Some(other) => Verdict::Retry(format!("{other} status returned from app while processing pub/sub event")),
    }
}

/// The application's answer to a batch: `{"statuses": [{"entryId", "status"}]}`. No status is no success here.
fn bulk_verdicts(body: &Value) -> HashMap<String, Verdict> {
    let statuses = body.get("statuses").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |v: &Value, k: &str| v.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
    statuses
        .iter()
        .map(|s| {
            let verdict = match text(s, "status").as_str() {
                "SUCCESS" => Verdict::Done,
                "DROP" => Verdict::Drop,
                "" => Verdict::Retry("the application gave no status for the entry".to_owned()),
                other => Verdict::Retry(format!("{other} status returned from app while processing pub/sub event")),
            };
            (text(s, "entryId"), verdict)
        })
        .collect()
}

/// Subscriptions in the answer of `/dapr/subscribe`.
fn programmatic(body: &[u8]) -> Result<Vec<SubscriptionSpec>, String> {
    if body.is_empty() {
        return Ok(Vec::new());
    }
    let Value::Array(list) = serde_json::from_slice(body).map_err(|e| e.to_string())? else { return Err("a list is accepted".to_owned()) };
    let text = |v: &Value, k: &str| v.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut subscriptions = Vec::new();
    for item in &list {
        let routes = item.get("routes").cloned().unwrap_or(Value::Null);
        let default = text(&routes, "default");
        let rules = routes.get("rules").and_then(Value::as_array).cloned().unwrap_or_default();
        let bulk = item.get("bulkSubscribe").cloned().unwrap_or(Value::Null);
        let number = |k: &str| bulk.get(k).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        let spec = SubscriptionSpec {
            name: String::new(),
            pubsub: text(item, "pubsubname"),
            topic: text(item, "topic"),
            rules: rules.iter().map(|r| RouteRule { matches: text(r, "match"), path: text(r, "path") }).collect(),
            default_path: if default.is_empty() { text(item, "route") } else { default },
            metadata: item
                .get("metadata")
                .and_then(Value::as_object)
                .map(|m| m.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect())
                .unwrap_or_default(),
            dead_letter_topic: text(item, "deadLetterTopic"),
            bulk: BulkSubscribe {
                enabled: bulk.get("enabled").and_then(Value::as_bool).unwrap_or(false),
                max_messages: number("maxMessagesCount"),
                max_await_ms: number("maxAwaitDurationMs"),
            },
            scopes: Vec::new(),
        };
        if spec.default_path.is_empty() && spec.rules.is_empty() {
            tracing::warn!("topic {} has an empty routes. removing from subscriptions list", spec.topic);
        } else {
            subscriptions.push(spec);
        }
    }
    Ok(subscriptions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_application() {
        let check = |status, body: &str| verdict(&Answer { status, body: Bytes::from(body.to_owned()) });
        for body in ["", "{}", "no json", r#"{"status":"SUCCESS"}"#, r#"{"status":""}"#] {
            assert_eq!(check(200, body), Verdict::Done, "{body}");
        }
        assert_eq!((check(200, r#"{"status":"DROP"}"#), check(404, "")), (Verdict::Drop, Verdict::Drop));
        for (status, body) in [(200, r#"{"status":"RETRY"}"#), (200, r#"{"status":"WHAT"}"#), (500, ""), (302, "")] {
            assert!(matches!(check(status, body), Verdict::Retry(_)), "{status} {body}");
        }
    }

    #[test]
    fn answers_to_a_batch_stand_by_entry_and_silence_is_a_retry() {
        let body = json!({"statuses": [
            {"entryId": "a", "status": "SUCCESS"}, {"entryId": "b", "status": "DROP"}, {"entryId": "c"}, {"entryId": "unknown", "status": "SUCCESS"},
        ]});
        let item = |id: &str| super::super::BulkItem {
            entry_id: id.to_owned(),
            event: None,
            data: Bytes::new(),
            content_type: String::new(),
            metadata: crate::component::Metadata::new(),
        };
        let items = ["a", "b", "c", "d"].map(item);
        let verdicts = by_item(&items.iter().collect::<Vec<_>>(), bulk_verdicts(&body));
        assert_eq!(verdicts[..2], [Verdict::Done, Verdict::Drop]);
        assert!(verdicts[2..].iter().all(|v| matches!(v, Verdict::Retry(_))), "{verdicts:?}");
    }

    #[test]
    fn the_list_of_the_application() {
        let list = r#"[{"pubsubname":"p","topic":"a","route":"/a","bulkSubscribe":{"enabled":true,"maxMessagesCount":7}},
            {"pubsubname":"p","topic":"b","routes":{"rules":[{"match":"","path":"/r"}],"default":"/d"}},{"topic":"c"}]"#;
        let found = programmatic(list.as_bytes()).unwrap();
        assert_eq!(
            found.iter().map(|s| (s.topic.as_str(), s.default_path.as_str(), s.rules.len(), s.bulk.max_messages)).collect::<Vec<_>>(),
            [("a", "/a", 0, 7), ("b", "/d", 1, 0)]
        );
        assert!(programmatic(b"{}").is_err() && programmatic(b"").unwrap().is_empty());
    }
}
