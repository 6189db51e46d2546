//! State: keys with their prefix, options, single and many, transactions.

use std::sync::Arc;

use super::{Blocks, Trace};
use crate::api::error::{ApiError, state};
use crate::component::{
    BulkGetItem, Concurrency, Consistency, DeleteRequest, GetRequest, Metadata, SetRequest, StateError, StateFeature, StateItem, StateOperation,
    StateStore, StateValue,
};
use crate::node::Loaded;

const SEPARATOR: &str = "||";

/// One value to save, as the transports give it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetItem {
    /// Key without prefix.
    pub key: String,
    /// Value.
    pub value: StateValue,
    /// Entity tag.
    pub etag: Option<String>,
    /// Metadata; `ttlInSeconds` counts.
    pub metadata: Metadata,
    /// `first-write`, `last-write` or empty.
    pub concurrency: String,
    /// `strong`, `eventual` or empty.
    pub consistency: String,
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransactionItem {
    /// Save.
    Upsert(SetItem),
    /// Delete; the value is not looked at.
    Delete(SetItem),
}

fn concurrency(text: &str) -> Result<Concurrency, StateError> {
    match text {
        "" | "last-write" => Ok(Concurrency::LastWrite),
        "first-write" => Ok(Concurrency::FirstWrite),
        _ => Err(StateError::Invalid(format!("unrecognized concurrency model {text:?}; accepted are first-write and last-write"))),
    }
}

fn consistency(text: &str) -> Result<Consistency, StateError> {
    match text {
        "" => Ok(Consistency::Unspecified),
        "strong" => Ok(Consistency::Strong),
        "eventual" => Ok(Consistency::Eventual),
        _ => Err(StateError::Invalid(format!("unrecognized consistency model {text:?}; accepted are strong and eventual"))),
    }
}

/// `ttlInSeconds`: -1 keeps for ever, as absence does.
fn ttl(metadata: &Metadata) -> Result<Option<u32>, StateError> {
    let Some(text) = metadata.iter().find(|(k, _)| k.eq_ignore_ascii_case("ttlInSeconds")).map(|(_, v)| v.trim()).filter(|v| !v.is_empty()) else {
        return Ok(None);
    };
    match text.parse::<i64>() {
        Ok(-1 | 0) => Ok(None),
        Ok(n) if (1..=i64::from(i32::MAX)).contains(&n) => Ok(u32::try_from(n).ok()),
        _ => Err(StateError::Invalid(format!("incorrect value for metadata property 'ttlInSeconds': {text:?}; accepted is -1 to 2147483647"))),
    }
}

/// A store and how its keys are made.
struct Store<'a> {
    name: &'a str,
    item: &'a Arc<dyn StateStore>,
    prefix: String,
}

impl Store<'_> {
    fn full_key(&self, key: &str) -> Result<String, ApiError> {
        if key.contains(SEPARATOR) {
            return Err(state::illegal_key(self.name, key));
        }
        Ok(if self.prefix.is_empty() { key.to_owned() } else { format!("{}{SEPARATOR}{key}", self.prefix) })
    }

    fn short_key(&self, key: &str) -> String {
        let prefix = format!("{}{SEPARATOR}", self.prefix);
        if self.prefix.is_empty() { key.to_owned() } else { key.strip_prefix(&prefix).unwrap_or(key).to_owned() }
    }

    fn set(&self, item: SetItem) -> Result<Result<SetRequest, StateError>, ApiError> {
        let key = self.full_key(&item.key)?;
        let request = || {
            Ok(SetRequest {
                key,
                ttl_seconds: ttl(&item.metadata)?,
                concurrency: concurrency(&item.concurrency)?,
                consistency: consistency(&item.consistency)?,
                value: item.value,
                etag: item.etag,
                metadata: item.metadata,
            })
        };
        Ok(request())
    }

    fn delete(&self, item: SetItem) -> Result<Result<DeleteRequest, StateError>, ApiError> {
        let key = self.full_key(&item.key)?;
        let request = || {
            Ok(DeleteRequest {
                key,
                etag: item.etag,
                concurrency: concurrency(&item.concurrency)?,
                consistency: consistency(&item.consistency)?,
                metadata: item.metadata,
            })
        };
        Ok(request())
    }
}

impl Blocks {
    fn store<'a>(&'a self, name: &'a str) -> Result<Store<'a>, ApiError> {
        let stores = &self.inner.components.state;
        if stores.is_empty() {
            return Err(state::not_configured(name, &self.inner.app_id));
        }
        let loaded = stores.get(name).ok_or_else(|| state::not_found(name, &self.inner.app_id))?;
        Ok(Store { name, item: &loaded.item, prefix: self.key_prefix(loaded) })
    }

    /// `keyPrefix`: `appid` (default), `name`, `none`, `namespace`, or a text of its own.
    fn key_prefix(&self, store: &Loaded<dyn StateStore>) -> String {
        let written = store.properties.get("keyPrefix").unwrap_or_default().to_ascii_lowercase();
        match written.as_str() {
            "" | "appid" => self.inner.app_id.clone(),
            "name" => store.name.clone(),
            "none" => String::new(),
            "namespace" => match &self.inner.namespace {
                Some(namespace) => format!("{namespace}.{}", self.inner.app_id),
                None => self.inner.app_id.clone(),
            },
            other => other.to_owned(),
        }
    }

    /// Whether there is a store of this name.
    ///
    /// # Errors
    /// As Dapr tells it.
    pub fn check_store(&self, name: &str) -> Result<(), ApiError> {
        self.store(name).map(|_| ())
    }

    /// Reads one key.
    ///
    /// # Errors
    /// No store, illegal key, or the store failed.
    pub async fn get_state(&self, store: &str, key: &str, consistency_text: &str, metadata: Metadata) -> Result<Option<StateItem>, ApiError> {
        let s = self.store(store)?;
        let fail = |e: StateError| state::get(store, key, &e);
        let request = GetRequest { key: s.full_key(key)?, consistency: consistency(consistency_text).map_err(fail)?, metadata };
        s.item.get(request).await.map_err(fail)
    }

    /// Reads many keys, in the order asked; keys without prefix.
    ///
    /// # Errors
    /// No store or an illegal key; a store's failure stands at its key.
    pub async fn bulk_get_state(&self, store: &str, keys: &[String], parallelism: usize, metadata: &Metadata) -> Result<Vec<BulkGetItem>, ApiError> {
        let s = self.store(store)?;
        let requests = keys
            .iter()
            .map(|k| Ok(GetRequest { key: s.full_key(k)?, consistency: Consistency::Unspecified, metadata: metadata.clone() }))
            .collect::<Result<Vec<_>, ApiError>>()?;
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let items = s.item.bulk_get(requests, parallelism).await;
        Ok(items.into_iter().map(|i| BulkGetItem { key: s.short_key(&i.key), result: i.result }).collect())
    }

    /// Saves values, each on its own; the first failure is told, the others are saved all the same.
    ///
    /// # Errors
    /// No store, illegal key, or the first failure.
    pub async fn save_state(&self, store: &str, items: Vec<SetItem>) -> Result<(), ApiError> {
        let s = self.store(store)?;
        let fail = |e: StateError| state::save(store, &e);
        let mut requests = Vec::with_capacity(items.len());
        for item in items {
            requests.push(s.set(item)?.map_err(fail)?);
        }
        let results = match requests.len() {
            0 => return Ok(()),
            1 => vec![s.item.set(requests.remove(0)).await],
            _ => s.item.bulk_set(requests).await,
        };
        results.into_iter().find_map(Result::err).map_or(Ok(()), |e| Err(fail(e)))
    }

    /// Deletes one key.
    ///
    /// # Errors
    /// No store, illegal key, or the store failed.
    pub async fn delete_state(&self, store: &str, item: SetItem) -> Result<(), ApiError> {
        let s = self.store(store)?;
        let key = item.key.clone();
        let fail = |e: StateError| state::delete(&key, &e);
        let request = s.delete(item)?.map_err(fail)?;
        s.item.delete(request).await.map_err(fail)
    }

    /// All or nothing.
    ///
    /// # Errors
    /// No store, no transactions, too many, no way to tell of it (stores with an outbox), or the store failed.
    pub async fn transact_state(&self, store: &str, items: Vec<TransactionItem>, metadata: Metadata, trace: &Trace) -> Result<(), ApiError> {
        let s = self.store(store)?;
        if !s.item.features().contains(&StateFeature::Transactional) {
            return Err(state::no_transactions(store));
        }
        if items.is_empty() {
            return Ok(());
        }
        if let Some(most) = s.item.max_transaction_operations().filter(|most| items.len() > *most) {
            return Err(state::too_many(store, items.len(), most));
        }
        let operations = |items: Vec<TransactionItem>| {
            let operation = |item| {
                Ok(match item {
                    TransactionItem::Upsert(item) => StateOperation::Set(s.set(item)?.map_err(|e| state::transaction(&e))?),
                    TransactionItem::Delete(item) => StateOperation::Delete(s.delete(item)?.map_err(|e| state::transaction(&e))?),
                })
            };
            items.into_iter().map(operation).collect::<Result<Vec<_>, ApiError>>()
        };
        match self.inner.components.state.get(store).filter(|_| self.inner.transactional.has(store)) {
            Some(loaded) => self.transact_and_tell(loaded, items, operations, metadata, trace).await,
            None => s.item.transact(operations(items)?, metadata).await.map_err(|e| state::transaction(&e)),
        }
    }
}
