//! The application's subscriptions and input bindings: found at start, delivered over the application channel.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::Method;
use serde_json::{Map, Value, json};

use super::{Blocks, PublishCall, cloudevent, go_json, scope};
use crate::app::{AppAnswer, AppChannel};
use crate::component::{
    BindingHandler, BindingReading, Delivery, Fut, HandlerError, MessageHandler, Metadata, ReadHandle, SubscribeRequest, SubscriptionHandle,
    is_truthy,
};
use crate::resource::{BulkSubscribe, SubscriptionSpec};

/// First and longest wait before something that failed at start is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Done,
    Drop,
    Retry(String),
}

/// The application's answer to an event (Dapr's rules).
fn verdict(answer: &AppAnswer) -> Verdict {
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
        let spec = SubscriptionSpec {
            name: String::new(),
            pubsub: text(item, "pubsubname"),
            topic: text(item, "topic"),
            rules: rules.iter().map(|r| crate::resource::RouteRule { matches: text(r, "match"), path: text(r, "path") }).collect(),
            default_path: if default.is_empty() { text(item, "route") } else { default },
            metadata: item
                .get("metadata")
                .and_then(Value::as_object)
                .map(|m| m.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect())
                .unwrap_or_default(),
            dead_letter_topic: text(item, "deadLetterTopic"),
            bulk: BulkSubscribe::default(),
            scopes: Vec::new(),
        };
        if spec.default_path.is_empty() && spec.rules.is_empty() {
            tracing::warn!(topic = %spec.topic, "a subscription without a route is left out");
        } else {
            subscriptions.push(spec);
        }
    }
    Ok(subscriptions)
}

struct Delivering {
    blocks: Blocks,
    app: AppChannel,
    spec: SubscriptionSpec,
    path: String,
}

impl Delivering {
    /// The event as the application gets it; `None` when it is no CloudEvent and the subscription is not for raw payloads.
    fn event(&self, message: &Delivery) -> Result<Map<String, Value>, String> {
        let raw = self.spec.metadata.iter().any(|(k, v)| k.eq_ignore_ascii_case("rawPayload") && is_truthy(v));
        if raw {
            let event = json!({
                "id": uuid::Uuid::new_v4().to_string(), "specversion": "1.0", "source": "Dapr", "type": "com.dapr.event.sent",
                "datacontenttype": "application/octet-stream", "topic": message.topic, "pubsubname": self.spec.pubsub,
                "data_base64": STANDARD.encode(&message.data),
            });
            return Ok(event.as_object().cloned().unwrap_or_default());
        }
        match serde_json::from_slice::<Value>(&message.data) {
            Ok(Value::Object(event)) => Ok(event),
            Ok(_) | Err(_) => Err("the payload is no CloudEvent; subscribe with rawPayload: \"true\" to get it as it is".to_owned()),
        }
    }

    async fn deliver(&self, message: &Delivery) -> Result<Verdict, String> {
        let event = match self.event(message) {
            Ok(event) => event,
            Err(cause) => return Ok(Verdict::Retry(cause)),
        };
        if cloudevent::has_expired(&event, self.blocks.inner.clock.now()) {
            return Ok(Verdict::Drop);
        }
        let trace = event.get("traceparent").or_else(|| event.get("traceid")).and_then(Value::as_str).unwrap_or_default().to_owned();
        let body = Bytes::from(go_json(&Value::Object(event)));
        let mut headers = vec![("content-type", cloudevent::CONTENT_TYPE), ("pubsubName", self.spec.pubsub.as_str())];
        if !trace.is_empty() {
            headers.push(("traceparent", trace.as_str()));
        }
        let answer = self.app.call(Method::POST, &self.path, &headers, body).await.map_err(|e| e.to_string())?;
        Ok(verdict(&answer))
    }

    async fn dead_letter(&self, message: &Delivery) -> Result<(), String> {
        let call = PublishCall {
            pubsub: self.spec.pubsub.clone(),
            topic: self.spec.dead_letter_topic.clone(),
            data: message.data.clone(),
            metadata: Metadata::from([("rawPayload".to_owned(), "true".to_owned())]),
            ..PublishCall::default()
        };
        self.blocks.publish(call).await.map(|_| ()).map_err(|e| e.message)
    }
}

impl MessageHandler for Delivering {
    fn handle<'a>(&'a self, message: Delivery) -> Fut<'a, Result<(), HandlerError>> {
        Box::pin(async move {
            let verdict = self.deliver(&message).await.unwrap_or_else(Verdict::Retry);
            let has_letters = !self.spec.dead_letter_topic.is_empty();
            match verdict {
                Verdict::Done => Ok(()),
                Verdict::Drop if !has_letters => {
                    tracing::warn!(topic = %message.topic, "DROP status returned from app while processing pub/sub event");
                    Ok(())
                }
                Verdict::Retry(cause) if !has_letters => Err(HandlerError::Retry(cause)),
                Verdict::Drop | Verdict::Retry(_) => self.dead_letter(&message).await.map_err(HandlerError::Retry),
            }
        })
    }
}

struct BindingToApp {
    app: AppChannel,
    path: String,
}

impl BindingHandler for BindingToApp {
    fn handle<'a>(&'a self, reading: BindingReading) -> Fut<'a, Result<Option<Bytes>, HandlerError>> {
        Box::pin(async move {
            let mut headers = vec![("content-type", "application/json")];
            headers.extend(reading.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())));
            let answer = self.app.call(Method::POST, &self.path, &headers, reading.data).await.map_err(|e| HandlerError::Retry(e.to_string()))?;
            if answer.is_success() {
                Ok((!answer.body.is_empty()).then_some(answer.body))
            } else {
                Err(HandlerError::Retry(format!("app returned http code {}", answer.status)))
            }
        })
    }
}

impl Blocks {
    /// Finds what the application wants and delivers it until `stop` resolves. The caller has waited for the application's port.
    /// `attached` resolves (or is dropped) when the subscriptions stand.
    pub async fn serve_app(&self, app: AppChannel, attached: tokio::sync::oneshot::Sender<()>, mut stop: Fut<'static, ()>) {
        let mut subscriptions: Vec<Box<dyn SubscriptionHandle>> = Vec::new();
        let mut reads: Vec<Box<dyn ReadHandle>> = Vec::new();
        tokio::select! {
            () = self.attach(&app, &mut subscriptions, &mut reads) => {
                // Nobody may wait for it any more.
                let _ = attached.send(());
                stop.await;
            }
            () = &mut stop => {}
        }
        for read in &reads {
            read.close().await;
        }
        for subscription in &subscriptions {
            subscription.close().await;
        }
    }

    async fn attach(&self, app: &AppChannel, subscriptions: &mut Vec<Box<dyn SubscriptionHandle>>, reads: &mut Vec<Box<dyn ReadHandle>>) {
        let ask = !self.inner.components.pubsub.is_empty() && !self.inner.skip_subscribe;
        if self.inner.skip_subscribe {
            tracing::info!("Skipping programmatic subscription loading");
        }
        let mut wanted = if ask { self.ask_app(app).await } else { Vec::new() };
        // The same pair twice counts once: programmatic beats declarative, the last programmatic one and the first declarative one count.
        wanted.reverse();
        wanted.extend(self.inner.subscriptions.iter().cloned());
        let mut seen = BTreeSet::new();
        for spec in wanted {
            if seen.insert((spec.pubsub.clone(), spec.topic.clone())) {
                subscriptions.extend(self.subscribe(app, spec).await);
            }
        }
        for (name, binding) in &self.inner.components.bindings {
            let Some(input) = &binding.item.input else { continue };
            if binding.properties.get("publishTo").is_some_and(|t| !t.is_empty()) {
                continue;
            }
            let path = binding.properties.get_exact("route").filter(|r| !r.is_empty()).unwrap_or(name).to_owned();
            let declared = binding.properties.get("direction").is_some_and(|d| d.to_ascii_lowercase().contains("input"));
            let asked = match declared {
                true => true,
                false => app.call(Method::OPTIONS, &path, &[], Bytes::new()).await.is_ok_and(|a| a.is_success() || a.status == 405),
            };
            if !asked {
                tracing::info!("app has not subscribed to binding {name}.");
                continue;
            }
            match input.read(Arc::new(BindingToApp { app: app.clone(), path })).await {
                Ok(read) => reads.push(read),
                Err(error) => tracing::error!(binding = %name, error = %error, "an input binding could not be read"),
            }
        }
    }

    async fn ask_app(&self, app: &AppChannel) -> Vec<SubscriptionSpec> {
        let mut wait = RETRY.0;
        loop {
            match app.call(Method::GET, "/dapr/subscribe", &[("dapr-app-id", &self.inner.app_id)], Bytes::new()).await {
                Ok(answer) if answer.status == 200 => {
                    return programmatic(&answer.body).unwrap_or_else(|error| {
                        tracing::error!(error = %error, "the application's answer to /dapr/subscribe cannot be read");
                        Vec::new()
                    });
                }
                Ok(answer) if answer.status == 404 => return Vec::new(),
                Ok(answer) => {
                    tracing::error!(status = answer.status, "the application refuses /dapr/subscribe");
                    return Vec::new();
                }
                Err(error) => {
                    tracing::warn!(error = %error, "the application could not be asked for its subscriptions; trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                }
            }
        }
    }

    async fn subscribe(&self, app: &AppChannel, spec: SubscriptionSpec) -> Option<Box<dyn SubscriptionHandle>> {
        let Some(loaded) = self.inner.components.pubsub.get(&spec.pubsub) else {
            tracing::warn!(pubsub = %spec.pubsub, topic = %spec.topic, "a subscription names a pub/sub that is not there");
            return None;
        };
        if !scope::allows(&loaded.properties, "subscriptionScopes", &self.inner.app_id, &spec.topic) {
            tracing::warn!(pubsub = %spec.pubsub, topic = %spec.topic, "subscription to topic is not allowed for this application");
            return None;
        }
        if spec.bulk.enabled {
            tracing::warn!(topic = %spec.topic, "bulkSubscribe is not served yet: messages are delivered one by one");
        }
        let always = spec.rules.iter().find(|r| r.matches.is_empty()).map(|r| r.path.clone());
        if spec.rules.iter().any(|r| !r.matches.is_empty()) {
            tracing::warn!(topic = %spec.topic, "routing rules with a match are not served yet: the default path gets all messages");
        }
        let path = always.unwrap_or_else(|| spec.default_path.clone());
        if path.is_empty() {
            tracing::error!(topic = %spec.topic, "a subscription without a default path is left out");
            return None;
        }
        let request = SubscribeRequest { topic: spec.topic.clone(), metadata: spec.metadata.clone() };
        let handler = Arc::new(Delivering { blocks: self.clone(), app: app.clone(), path, spec: spec.clone() });
        let mut wait = RETRY.0;
        loop {
            match loaded.item.subscribe(request.clone(), handler.clone()).await {
                Ok(handle) => {
                    tracing::info!("app is subscribed to the following topics: [{}] through pubsub={}", spec.topic, spec.pubsub);
                    return Some(handle);
                }
                Err(error) => {
                    tracing::error!(topic = %spec.topic, error = %error, "a subscription failed; trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_application() {
        let check = |status, body: &str| verdict(&AppAnswer { status, body: Bytes::from(body.to_owned()) });
        for body in ["", "{}", "no json", r#"{"status":"SUCCESS"}"#, r#"{"status":""}"#] {
            assert_eq!(check(200, body), Verdict::Done, "{body}");
        }
        assert_eq!((check(200, r#"{"status":"DROP"}"#), check(404, "")), (Verdict::Drop, Verdict::Drop));
        for (status, body) in [(200, r#"{"status":"RETRY"}"#), (200, r#"{"status":"WHAT"}"#), (500, ""), (302, "")] {
            assert!(matches!(check(status, body), Verdict::Retry(_)), "{status} {body}");
        }
    }

    #[test]
    fn the_list_of_the_application() {
        let list = r#"[{"pubsubname":"p","topic":"a","route":"/a"},{"pubsubname":"p","topic":"b","routes":{"rules":[{"match":"","path":"/r"}],"default":"/d"}},{"topic":"c"}]"#;
        let found = programmatic(list.as_bytes()).unwrap();
        assert_eq!(
            found.iter().map(|s| (s.topic.as_str(), s.default_path.as_str(), s.rules.len())).collect::<Vec<_>>(),
            [("a", "/a", 0), ("b", "/d", 1)]
        );
        assert!(programmatic(b"{}").is_err() && programmatic(b"").unwrap().is_empty());
    }
}
