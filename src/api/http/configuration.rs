//! `/v1.0/configuration`.

use serde_json::json;

use super::{Answer, Call, aged, json_response, no_content};
use crate::block::{Blocks, items_json};

/// `key=a&key=b` of the query.
fn keys(call: &Call) -> Vec<String> {
    call.query.iter().filter(|(k, _)| k == "key").map(|(_, v)| v.clone()).collect()
}

pub(super) async fn get(blocks: &Blocks, store: &str, call: Call) -> Answer {
    let items = blocks.configuration(store, &keys(&call), &call.metadata()).await?;
    Ok(if items.value.is_empty() { no_content() } else { aged(json_response(200, &items_json(&items.value)), items.age) })
}

pub(super) async fn subscribe(blocks: &Blocks, store: &str, call: Call) -> Answer {
    let id = blocks.subscribe_app_to_configuration(store, keys(&call), &call.metadata()).await?;
    Ok(json_response(200, &json!({"id": id})))
}

pub(super) async fn unsubscribe(blocks: &Blocks, store: &str, id: &str) -> Answer {
    Ok(match blocks.unsubscribe_configuration(store, id).await? {
        Ok(()) => json_response(200, &json!({"ok": true})),
        Err(message) => json_response(500, &json!({"ok": false, "message": message})),
    })
}
