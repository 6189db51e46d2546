//! `/v1.0/publish`.

use axum::body::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Answer, Call, field, json_response, metadata_field, no_content, put_header, text_field, trace_parent};
use crate::api::error::{ApiError, pubsub};
use crate::block::{Blocks, BulkPublishEntry, PublishCall, go_json};

fn like(call: &Call, name: &str, topic: &str) -> PublishCall {
    PublishCall {
        pubsub: name.to_owned(),
        topic: topic.to_owned(),
        content_type: call.header("content-type").to_owned(),
        metadata: call.metadata(),
        trace_parent: trace_parent(call.header("traceparent")),
        trace_state: call.header("tracestate").to_owned(),
        ..PublishCall::default()
    }
}

pub(super) async fn one(blocks: &Blocks, name: &str, topic: &str, mut call: Call) -> Answer {
    blocks.check_publish(name, topic)?;
    let mut publish = like(&call, name, topic);
    publish.data = call.bytes().await.map_err(|e| ApiError::plain(400, 3, "ERR_BODY_READ", e))?;
    let published = blocks.publish(publish).await?;
    let mut response = no_content();
    if let Some(id) = &published.record_id {
        put_header(&mut response, "selvedge-record-id", id);
        put_header(&mut response, "selvedge-queued", if published.queued { "true" } else { "false" });
        if let Some(mode) = blocks.mode() {
            put_header(&mut response, "selvedge-mode", mode.as_str());
        }
    }
    Ok(response)
}

/// An entry's event in bytes, by its media type.
fn event(value: &Value, content_type: &str) -> Result<Bytes, String> {
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match media.as_str() {
        "application/json" | "application/cloudevents+json" => Ok(Bytes::from(go_json(value))),
        "application/octet-stream" => {
            let text = value.as_str().ok_or("an event of application/octet-stream must be base64 text")?;
            STANDARD.decode(text).map(Bytes::from).map_err(|e| e.to_string())
        }
        m if m.starts_with("text/") || m == "application/xml" => {
            let text = value.as_str().ok_or_else(|| format!("an event of {m} must be a text"))?;
            Ok(Bytes::from(text.to_owned()))
        }
        _ => Err(format!("mismatch between contentType and event: {content_type:?} is not accepted")),
    }
}

pub(super) async fn bulk(blocks: &Blocks, name: &str, topic: &str, mut call: Call) -> Answer {
    blocks.check_publish(name, topic)?;
    let app = blocks.app_id().to_owned();
    let request = like(&call, name, topic);
    let body = call.bytes().await.map_err(|e| pubsub::unmarshal(name, topic, &app, e))?;
    let parsed: Value = serde_json::from_slice(&body).map_err(|e| pubsub::unmarshal(name, topic, &app, e))?;
    let Value::Array(list) = parsed else {
        return Err(pubsub::unmarshal(name, topic, &app, "json: cannot unmarshal object into Go value of type []http.bulkPublishMessageEntry"));
    };
    let mut entries = Vec::with_capacity(list.len());
    for item in &list {
        let wrong = |e: String| pubsub::unmarshal(name, topic, &app, e);
        let content_type = text_field(item, "contentType").map_err(wrong)?;
        entries.push(BulkPublishEntry {
            entry_id: text_field(item, "entryId").map_err(wrong)?,
            event: event(field(item, "event").unwrap_or(&Value::Null), &content_type).map_err(|e| pubsub::entries(name, topic, &app, e))?,
            content_type,
            metadata: metadata_field(item).map_err(wrong)?,
        });
    }
    let outcome = blocks.bulk_publish(&request, entries).await?;
    if outcome.failed.is_empty() {
        return Ok(no_content());
    }
    let failed: Vec<Value> = outcome.failed.iter().map(|(id, cause)| json!({"entryId": id, "error": cause})).collect();
    Ok(json_response(500, &json!({"failedEntries": failed, "errorCode": "ERR_PUBSUB_PUBLISH_MESSAGE"})))
}
