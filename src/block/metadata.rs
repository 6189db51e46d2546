//! What the node is, for `/v1.0/metadata`.

use std::sync::PoisonError;

use serde_json::{Map, Value, json};

use super::Blocks;
use crate::component::StateFeature;

impl Blocks {
    /// Dapr's metadata; empty parts are left out. `extended.selvedge` holds the node's own status as JSON text.
    #[must_use]
    pub fn metadata(&self) -> Value {
        let inner = &self.inner;
        let mut extended: Map<String, Value> = Map::new();
        extended.insert("daprRuntimeVersion".into(), json!(inner.version));
        for (k, v) in inner.extended.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            extended.insert(k.clone(), json!(v));
        }
        if inner.hub.is_some() {
            extended.insert("selvedge".into(), json!(inner.status.to_json().to_string()));
        }
        let mut metadata = json!({
            "id": inner.app_id,
            "runtimeVersion": inner.version,
            "extended": extended,
            "actorRuntime": {"runtimeStatus": "DISABLED", "hostReady": false, "placement": "placement: disconnected"},
            "scheduler": {},
            "workflows": {},
        });
        let components = self.component_list();
        if !components.is_empty() {
            metadata["components"] = Value::Array(components);
        }
        if !inner.configuration.features.is_empty() {
            metadata["enabledFeatures"] = json!(inner.configuration.features);
        }
        let subscriptions: Vec<Value> = inner
            .active
            .all()
            .iter()
            .map(|(kind, s)| {
                let mut rules: Vec<Value> = s.rules.iter().map(|r| json!({"match": r.matches, "path": r.path})).collect();
                if !s.default_path.is_empty() {
                    rules.push(json!({"match": "", "path": s.default_path}));
                }
                let mut entry = json!({
                    "pubsubname": s.pubsub, "topic": s.topic, "rules": rules, "deadLetterTopic": s.dead_letter_topic, "type": kind.as_str(),
                });
                if !s.metadata.is_empty() {
                    entry["metadata"] = json!(s.metadata);
                }
                entry
            })
            .collect();
        if !subscriptions.is_empty() {
            metadata["subscriptions"] = Value::Array(subscriptions);
        }
        metadata
    }

    fn component_list(&self) -> Vec<Value> {
        let c = &self.inner.components;
        let entry = |name: &str, type_name: &str, version: &str, capabilities: Vec<&str>| {
            let mut entry = json!({"name": name, "type": type_name, "version": version});
            if !capabilities.is_empty() {
                entry["capabilities"] = json!(capabilities);
            }
            entry
        };
        c.order
            .iter()
            .filter_map(|name| {
                if let Some(l) = c.state.get(name) {
                    let features = l.item.features();
                    let mut names: Vec<&str> = features.iter().map(|f| f.as_str()).collect();
                    if features.contains(&StateFeature::Etag) && features.contains(&StateFeature::Transactional) {
                        names.push("ACTOR");
                    }
                    return Some(entry(name, &l.type_name, &l.version, names));
                }
                if let Some(l) = c.pubsub.get(name) {
                    return Some(entry(name, &l.type_name, &l.version, l.item.features().iter().map(|f| f.as_str()).collect()));
                }
                if let Some(l) = c.bindings.get(name) {
                    let directions = [(l.item.input.is_some(), "INPUT_BINDING"), (l.item.output.is_some(), "OUTPUT_BINDING")];
                    return Some(entry(name, &l.type_name, &l.version, directions.iter().filter(|(there, _)| *there).map(|(_, n)| *n).collect()));
                }
                if let Some(l) = c.configuration.get(name) {
                    return Some(entry(name, &l.type_name, &l.version, Vec::new()));
                }
                c.secrets.get(name).map(|l| entry(name, &l.type_name, &l.version, l.item.features().to_vec()))
            })
            .collect()
    }

    /// Sets a label that metadata shows.
    pub fn set_metadata(&self, key: &str, value: &str) {
        /// Most labels; the ones that are there may still change.
        const MOST: usize = 1_024;
        let mut extended = self.inner.extended.lock().unwrap_or_else(PoisonError::into_inner);
        if extended.len() < MOST || extended.contains_key(key) {
            extended.insert(key.to_owned(), value.to_owned());
        } else {
            tracing::warn!(key, "a metadata label is left out: no room for more than {MOST}");
        }
    }
}
