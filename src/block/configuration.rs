//! Configuration: values by key, and subscriptions to their changes, each with an id.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Map, Value, json};

use super::{Blocks, go_json};
use crate::api::error::{ApiError, configuration};
use crate::app::MethodCall;
use crate::component::{Aged, ConfigurationHandle, ConfigurationHandler, ConfigurationItems, ConfigurationStore, Fut, Metadata, NotTaken};

/// Subscriptions at a time; one more is refused.
const MOST: usize = 1_000;
/// Longest key, in bytes, and most keys of a call.
const LONGEST_KEY: usize = 1_024;
const MOST_KEYS: usize = 1_000;

/// Subscriptions by id, each with the store that it is of.
type ById = HashMap<String, (String, Box<dyn ConfigurationHandle>)>;

/// What is subscribed.
#[derive(Default)]
pub(super) struct ConfigurationSubscriptions(Mutex<ById>);

impl ConfigurationSubscriptions {
    fn with<T>(&self, f: impl FnOnce(&mut ById) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Items in Dapr's JSON: what is empty is left out.
pub(crate) fn items_json(items: &ConfigurationItems) -> Value {
    let one = |item: &crate::component::ConfigurationItem| {
        let mut fields = Map::new();
        for (name, value) in [("value", &item.value), ("version", &item.version)] {
            if !value.is_empty() {
                fields.insert(name.to_owned(), json!(value));
            }
        }
        if !item.metadata.is_empty() {
            fields.insert("metadata".to_owned(), json!(item.metadata));
        }
        Value::Object(fields)
    };
    Value::Object(items.iter().map(|(key, item)| (key.clone(), one(item))).collect())
}

/// Tells the application: a call for each key, in the order of the keys.
struct ToApp {
    blocks: Blocks,
    store: String,
    id: String,
    /// It could not be told the last time; said once.
    failing: AtomicBool,
}

/// A key as one part of a path.
fn path_part(key: &str) -> String {
    const KEPT: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b':').remove(b'@').remove(b'$');
    percent_encoding::utf8_percent_encode(key, KEPT).to_string()
}

impl ToApp {
    async fn tell(&self, key: &str, items: &ConfigurationItems) -> Result<(), String> {
        let app = self.blocks.inner.app.get().ok_or("app channel is not initialized")?;
        if !*app.well.borrow() {
            return Err("app is not in a healthy state".to_owned());
        }
        let call = MethodCall {
            verb: Method::POST,
            path: format!("configuration/{}/{}", path_part(&self.store), path_part(key)),
            query: String::new(),
            headers: HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]),
            body: Bytes::from(go_json(&json!({"id": self.id, "items": items_json(items)}))),
        };
        let answer = app.channel.invoke(call).await.map_err(|e| e.to_string())?;
        if answer.status.is_success() { Ok(()) } else { Err(format!("the application answers with the status {}", answer.status)) }
    }
}

impl ConfigurationHandler for ToApp {
    fn changed<'a>(&'a self, items: ConfigurationItems) -> Fut<'a, Result<(), NotTaken>> {
        Box::pin(async move {
            for (key, item) in &items {
                // As daprd: each call has the key that it is about alone.
                let alone = ConfigurationItems::from([(key.clone(), item.clone())]);
                if let Err(error) = self.tell(key, &alone).await {
                    if !self.failing.swap(true, Ordering::Relaxed) {
                        tracing::warn!(store = %self.store, key, error, "the application could not be told of a changed configuration; it is tried again");
                    }
                    return Err(NotTaken);
                }
            }
            if self.failing.swap(false, Ordering::Relaxed) {
                tracing::info!(store = %self.store, "the application is told of changed configuration again");
            }
            Ok(())
        })
    }
}

impl Blocks {
    fn configuration_store(&self, name: &str) -> Result<&Arc<dyn ConfigurationStore>, ApiError> {
        let stores = &self.inner.components.configuration;
        if stores.is_empty() {
            return Err(configuration::not_configured());
        }
        stores.get(name).map(|l| &l.item).ok_or_else(|| configuration::not_found(name))
    }

    /// Values of these keys, or of all when there are none.
    ///
    /// # Errors
    /// No such store, too many keys, or the store failed.
    pub async fn configuration(&self, store: &str, keys: &[String], metadata: &Metadata) -> Result<Aged<ConfigurationItems>, ApiError> {
        let component = self.configuration_store(store)?;
        check_keys(keys).map_err(|e| configuration::get(store, &[], e))?;
        component.get_aged(keys, metadata).await.map_err(|e| configuration::get(store, keys, e))
    }

    /// Subscribes; the handler is told of changes until [`Blocks::unsubscribe_configuration`]. Returns the subscription's id.
    ///
    /// # Errors
    /// No such store, too many subscriptions, or the store refused.
    pub(crate) async fn subscribe_configuration(
        &self,
        store: &str,
        keys: Vec<String>,
        metadata: &Metadata,
        handler: impl FnOnce(&str) -> Arc<dyn ConfigurationHandler> + Send,
    ) -> Result<String, ApiError> {
        let component = self.configuration_store(store)?;
        check_keys(&keys).map_err(|e| configuration::subscribe(store, &[], e))?;
        let all = &self.inner.configuration_subscriptions;
        let full = || configuration::subscribe(store, &keys, format_args!("there are {MOST} subscriptions already"));
        if all.with(|all| all.len()) >= MOST {
            return Err(full());
        }
        let id = uuid::Uuid::new_v4().to_string();
        let handle = component.subscribe(keys.clone(), metadata, handler(&id)).await.map_err(|e| configuration::subscribe(store, &keys, e))?;
        let refused = all.with(|all| {
            if all.len() >= MOST {
                return Some(handle);
            }
            all.insert(id.clone(), (store.to_owned(), handle));
            None
        });
        if refused.is_some() { Err(full()) } else { Ok(id) }
    }

    /// Subscribes the application: it is called for each key that changes.
    ///
    /// # Errors
    /// No such store, too many subscriptions, the store refused, or there is no application.
    pub async fn subscribe_app_to_configuration(&self, store: &str, keys: Vec<String>, metadata: &Metadata) -> Result<String, ApiError> {
        self.configuration_store(store)?;
        if self.inner.app.get().is_none() {
            return Err(configuration::no_app());
        }
        let handler =
            |id: &str| Arc::new(ToApp { blocks: self.clone(), store: store.to_owned(), id: id.to_owned(), failing: AtomicBool::new(false) }) as _;
        self.subscribe_configuration(store, keys, metadata, handler).await
    }

    /// Ends a subscription. The inner error tells that there is none of this id.
    ///
    /// # Errors
    /// No such store.
    pub async fn unsubscribe_configuration(&self, store: &str, id: &str) -> Result<Result<(), String>, ApiError> {
        self.configuration_store(store)?;
        let handle = self.inner.configuration_subscriptions.with(|all| match all.get(id) {
            Some((of, _)) if of == store => all.remove(id),
            _ => None,
        });
        match handle {
            // A handler that runs ends by itself: the application may be unsubscribing from within it.
            Some(_) => Ok(Ok(())),
            None => Ok(Err(format!("subscription with id {id} does not exist"))),
        }
    }
}

fn check_keys(keys: &[String]) -> Result<(), String> {
    if keys.len() > MOST_KEYS {
        return Err(format!("{} keys; accepted are at most {MOST_KEYS}", keys.len()));
    }
    match keys.iter().find(|k| k.is_empty() || k.len() > LONGEST_KEY) {
        Some(key) => Err(format!("a key of {} bytes; accepted are 1 to {LONGEST_KEY}", key.len())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::ConfigurationItem;

    #[test]
    fn items_are_written_as_dapr_writes_them() {
        let full = ConfigurationItem { value: "v".into(), version: "2".into(), metadata: Metadata::from([("m".into(), "x".into())]) };
        let items = ConfigurationItems::from([("a".into(), full), ("gone".into(), ConfigurationItem::default())]);
        assert_eq!(items_json(&items), json!({"a": {"value": "v", "version": "2", "metadata": {"m": "x"}}, "gone": {}}));
        assert_eq!((path_part("mode.since"), path_part("a/b c?")), ("mode.since".into(), "a%2Fb%20c%3F".into()));
    }
}
