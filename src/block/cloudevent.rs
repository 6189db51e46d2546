//! CloudEvents as Dapr makes them of what applications publish.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::go_json;
use crate::component::Metadata;
use crate::time::Timestamp;

/// Media type of an event.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// What an envelope is made from.
#[derive(Debug, Clone, Copy)]
pub struct Wrap<'a> {
    /// Application that publishes.
    pub app_id: &'a str,
    /// Pub/sub.
    pub pubsub: &'a str,
    /// Topic.
    pub topic: &'a str,
    /// What it publishes.
    pub data: &'a [u8],
    /// As what.
    pub content_type: &'a str,
    /// `metadata.cloudevent.*` overrides.
    pub metadata: &'a Metadata,
    /// W3C trace parent; empty when there is none.
    pub trace_parent: &'a str,
    /// W3C trace state.
    pub trace_state: &'a str,
    /// Now.
    pub now: Timestamp,
}

/// `application/json; charset=utf-8` is `application/json`.
fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn is_binary(media: &str) -> bool {
    matches!(media, "application/octet-stream" | "application/cloudevents+protobuf" | "application/x-protobuf")
}

/// Wraps what is published; something that is a CloudEvent already is completed.
///
/// # Errors
/// When it says that it is a CloudEvent and is none.
pub fn wrap(w: &Wrap<'_>) -> Result<Bytes, String> {
    let media = media_type(w.content_type);
    let time = Timestamp(w.now.0 / 1000 * 1000).to_rfc3339().replace(".000Z", "Z");
    if media == CONTENT_TYPE {
        let parsed: Value = serde_json::from_slice(w.data).map_err(|e| e.to_string())?;
        let Value::Object(mut event) = parsed else { return Err("the body is no JSON object".to_owned()) };
        event.insert("topic".into(), json!(w.topic));
        event.insert("pubsubname".into(), json!(w.pubsub));
        if !event.contains_key("traceid") {
            event.insert("traceid".into(), json!(w.trace_parent));
            event.insert("traceparent".into(), json!(w.trace_parent));
        }
        for (name, value) in
            [("tracestate", w.trace_state), ("time", &time), ("source", "Dapr"), ("type", "com.dapr.event.sent"), ("specversion", "1.0")]
        {
            event.entry(name).or_insert_with(|| json!(value));
        }
        return Ok(Bytes::from(go_json(&Value::Object(event))));
    }
    let content_type = if w.content_type.is_empty() { "text/plain" } else { w.content_type };
    let mut event = Map::new();
    for (name, value) in [
        ("id", uuid::Uuid::new_v4().to_string().as_str()),
        ("specversion", "1.0"),
        ("datacontenttype", content_type),
        ("source", w.app_id),
        ("type", "com.dapr.event.sent"),
        ("topic", w.topic),
        ("pubsubname", w.pubsub),
        ("traceid", w.trace_parent),
        ("traceparent", w.trace_parent),
        ("tracestate", w.trace_state),
        ("time", &time),
    ] {
        event.insert(name.to_owned(), json!(value));
    }
    let text = || String::from_utf8_lossy(w.data).into_owned();
    if media == "application/json" {
        event.insert("data".into(), serde_json::from_slice(w.data).unwrap_or_else(|_| Value::String(text())));
    } else if is_binary(&media) {
        event.insert("data_base64".into(), json!(STANDARD.encode(w.data)));
    } else {
        event.insert("data".into(), Value::String(text()));
    }
    overrides(&mut event, w.metadata);
    Ok(Bytes::from(go_json(&Value::Object(event))))
}

fn overrides(event: &mut Map<String, Value>, metadata: &Metadata) {
    let find = |name: &str| {
        let wanted = format!("cloudevent.{name}");
        metadata.iter().find(|(k, _)| k.eq_ignore_ascii_case(&wanted)).map(|(_, v)| v.clone()).filter(|v| !v.is_empty())
    };
    for name in ["id", "source", "type", "subject", "tracestate"] {
        if let Some(value) = find(name) {
            event.insert(name.to_owned(), Value::String(value));
        }
    }
    if let Some(value) = find("traceparent").or_else(|| find("traceid")) {
        event.insert("traceid".into(), json!(value));
        event.insert("traceparent".into(), json!(value));
    }
}

/// Whether an event's `expiration` is over.
#[must_use]
pub fn has_expired(event: &Map<String, Value>, now: Timestamp) -> bool {
    let expiration = event.get("expiration").and_then(Value::as_str).and_then(|t| t.parse::<jiff::Timestamp>().ok());
    expiration.is_some_and(|t| u64::try_from(t.as_millisecond()).unwrap_or(0) <= now.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(data: &[u8], content_type: &str, metadata: &[(&str, &str)]) -> Value {
        let metadata: Metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let w = Wrap {
            app_id: "app",
            pubsub: "p",
            topic: "t",
            data,
            content_type,
            metadata: &metadata,
            trace_parent: "00-1-2-01",
            trace_state: "",
            now: Timestamp(1_000),
        };
        serde_json::from_slice(&wrap(&w).unwrap()).unwrap()
    }

    #[test]
    fn the_content_type_decides_how_data_stands() {
        let e = event(br#"{"a":1}"#, "application/json; charset=utf-8", &[]);
        assert_eq!(
            (&e["data"]["a"], &e["source"], &e["type"], &e["time"]),
            (&json!(1), &json!("app"), &json!("com.dapr.event.sent"), &json!("1970-01-01T00:00:01Z"))
        );
        assert_eq!(event(b"hi", "", &[])["datacontenttype"], "text/plain");
        assert_eq!(event(&[0, 255], "application/octet-stream", &[])["data_base64"], "AP8=");
        assert_eq!(event(b"{bad", "application/json", &[])["data"], "{bad");
    }

    #[test]
    fn an_event_is_completed_and_attributes_are_overridden() {
        let e = event(br#"{"id":"1","source":"s","data":5}"#, CONTENT_TYPE, &[("cloudevent.id", "x")]);
        assert_eq!((&e["id"], &e["source"], &e["topic"], &e["specversion"]), (&json!("1"), &json!("s"), &json!("t"), &json!("1.0")));
        let e = event(b"x", "text/plain", &[("cloudevent.ID", "x"), ("cloudevent.traceparent", "00-a"), ("cloudevent.traceid", "b")]);
        assert_eq!((&e["id"], &e["traceid"], &e["traceparent"]), (&json!("x"), &json!("00-a"), &json!("00-a")));
    }
}
