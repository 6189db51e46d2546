//! `/v1.0/state`.

use axum::body::{Body, Bytes};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::{Answer, Call, field, json_text, metadata_field, no_content, put_header, text_field, trace_parent};
use crate::api::error::{ApiError, state};
use crate::block::{Blocks, SetItem, Trace, TransactionItem, go_json};
use crate::component::{Metadata, StateValue, item_metadata};

async fn parsed(call: &mut Call) -> Result<Value, ApiError> {
    let body = call.bytes().await.map_err(state::malformed)?;
    serde_json::from_slice(&body).map_err(state::malformed)
}

/// One item of a body; URL metadata beats its own.
fn set_item(value: &Value, url: &Metadata) -> Result<SetItem, ApiError> {
    let read = || -> Result<SetItem, String> {
        if !value.is_object() {
            return Err(format!("an item must be an object, found {value}"));
        }
        let key = text_field(value, "key")?;
        if key.is_empty() {
            return Err("\"key\" is a required field".to_owned());
        }
        let mut metadata = metadata_field(value)?;
        metadata.extend(url.iter().map(|(k, v)| (k.clone(), v.clone())));
        let options = field(value, "options").cloned().unwrap_or(Value::Null);
        let etag = match field(value, "etag") {
            None => None,
            Some(Value::String(s)) => Some(s.clone()),
            Some(other) => return Err(format!("etag must be a text, found {other}")),
        };
        let json = go_json(field(value, "value").unwrap_or(&Value::Null));
        Ok(SetItem {
            key,
            value: StateValue { bytes: Bytes::from(json), json: true },
            etag,
            metadata,
            concurrency: text_field(&options, "concurrency")?,
            consistency: text_field(&options, "consistency")?,
        })
    };
    read().map_err(state::malformed)
}

pub(super) async fn save(blocks: &Blocks, store: &str, mut call: Call) -> Answer {
    blocks.check_store(store)?;
    let Value::Array(items) = parsed(&mut call).await? else { return Err(state::malformed("a list of items is accepted")) };
    let url = call.metadata();
    let items = items.iter().map(|i| set_item(i, &url)).collect::<Result<Vec<_>, _>>()?;
    blocks.save_state(store, items).await?;
    Ok(no_content())
}

pub(super) async fn get(blocks: &Blocks, store: &str, key: &str, call: Call) -> Answer {
    let Some(item) = blocks.get_state(store, key, call.parameter("consistency"), call.metadata()).await? else { return Ok(no_content()) };
    let metadata = item_metadata(&item);
    let mut response = Response::new(Body::from(item.value.bytes));
    put_header(&mut response, "content-type", "application/json");
    if let Some(etag) = &item.etag {
        put_header(&mut response, "etag", etag);
    }
    for (k, v) in &metadata {
        put_header(&mut response, &format!("metadata.{k}"), v);
    }
    Ok(response)
}

pub(super) async fn delete(blocks: &Blocks, store: &str, key: &str, call: Call) -> Answer {
    let etag = call.header("if-match");
    let item = SetItem {
        key: key.to_owned(),
        etag: (!etag.is_empty()).then(|| etag.to_owned()),
        metadata: call.metadata(),
        concurrency: call.parameter("concurrency").to_owned(),
        consistency: call.parameter("consistency").to_owned(),
        ..SetItem::default()
    };
    blocks.delete_state(store, item).await?;
    Ok(no_content())
}

pub(super) async fn bulk(blocks: &Blocks, store: &str, mut call: Call) -> Answer {
    blocks.check_store(store)?;
    let body = parsed(&mut call).await?;
    let mut metadata = metadata_field(&body).map_err(state::malformed)?;
    metadata.extend(call.metadata());
    let keys = match field(&body, "keys") {
        None => Vec::new(),
        Some(Value::Array(keys)) => keys
            .iter()
            .map(|k| k.as_str().map(str::to_owned).ok_or_else(|| state::malformed(format!("a key must be a text, found {k}"))))
            .collect::<Result<Vec<_>, _>>()?,
        Some(other) => return Err(state::malformed(format!("keys must be a list, found {other}"))),
    };
    let parallelism = field(&body, "parallelism").and_then(Value::as_u64).unwrap_or(0);
    let items = blocks.bulk_get_state(store, &keys, usize::try_from(parallelism).unwrap_or(0), &metadata).await?;
    let mut out = Vec::with_capacity(items.len());
    for item in items {
        let mut entry = Map::new();
        entry.insert("key".into(), json!(item.key));
        let mut data = None;
        match item.result {
            Ok(Some(found)) => {
                if let Some(etag) = &found.etag {
                    entry.insert("etag".into(), json!(etag));
                }
                let metadata = item_metadata(&found);
                if !metadata.is_empty() {
                    entry.insert("metadata".into(), json!(metadata));
                }
                data = Some(found.value.bytes);
            }
            Ok(None) => {}
            Err(error) => {
                entry.insert("error".into(), json!(error.to_string()));
            }
        }
        // The stored text goes out as it is when it is JSON.
        let head = go_json(&Value::Object(entry));
        out.push(match data {
            None => head,
            Some(bytes) => {
                let raw = String::from_utf8_lossy(&bytes).into_owned();
                let text = if serde_json::from_str::<Value>(&raw).is_ok() { raw } else { go_json(&json!(raw)) };
                format!("{},\"data\":{text}}}", &head[..head.len() - 1])
            }
        });
    }
    Ok(json_text(200, format!("[{}]", out.join(","))))
}

pub(super) async fn transaction(blocks: &Blocks, store: &str, mut call: Call) -> Answer {
    blocks.check_store(store)?;
    let body = parsed(&mut call).await?;
    let url = call.metadata();
    let operations = match field(&body, "operations") {
        None => Vec::new(),
        Some(Value::Array(operations)) => operations.clone(),
        Some(other) => return Err(state::malformed(format!("operations must be a list, found {other}"))),
    };
    let mut items = Vec::with_capacity(operations.len());
    for operation in &operations {
        let kind = text_field(operation, "operation").map_err(state::malformed)?;
        let request = field(operation, "request").cloned().unwrap_or(Value::Null);
        items.push(match kind.to_ascii_lowercase().as_str() {
            "upsert" => TransactionItem::Upsert(set_item(&request, &url)?),
            "delete" => TransactionItem::Delete(set_item(&request, &url)?),
            _ => return Err(state::operation(&kind)),
        });
    }
    let mut metadata = metadata_field(&body).map_err(state::malformed)?;
    metadata.extend(url);
    let trace = Trace { parent: trace_parent(call.header("traceparent")), state: call.header("tracestate").to_owned() };
    blocks.transact_state(store, items, metadata, &trace).await?;
    Ok(no_content())
}
