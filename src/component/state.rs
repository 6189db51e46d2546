//! The state store contract.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Fut, Metadata};
use crate::time::Timestamp;

/// What a store can do beyond get, set and delete. The order is the one that Dapr's metadata shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StateFeature {
    /// Entity tags and first-write concurrency.
    Etag,
    /// [`StateStore::transact`].
    Transactional,
    /// Expiry of single keys.
    Ttl,
    /// [`StateStore::delete_with_prefix`].
    DeleteWithPrefix,
    /// [`StateStore::keys_like`].
    KeysLike,
}

impl StateFeature {
    /// Dapr's name of the feature.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Etag => "ETAG",
            Self::Transactional => "TRANSACTIONAL",
            Self::Ttl => "TTL",
            Self::DeleteWithPrefix => "DELETE_WITH_PREFIX",
            Self::KeysLike => "KEYS_LIKE",
        }
    }
}

/// A value as it came: bytes, and whether they are JSON text (stored as text, so that people can read the table).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StateValue {
    /// The value; for JSON its text.
    pub bytes: Bytes,
    /// Whether `bytes` are JSON text (HTTP, or content type `application/json`).
    pub json: bool,
}

/// Who wins when two write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Concurrency {
    /// The later one (the default).
    #[default]
    LastWrite,
    /// The earlier one: a write without entity tag succeeds only on a key that does not exist.
    FirstWrite,
}

/// How sure a read or write has to be. Stores that know one kind ignore it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Not said.
    #[default]
    Unspecified,
    /// Eventual.
    Eventual,
    /// Strong.
    Strong,
}

/// One key to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GetRequest {
    /// Full key, application prefix included.
    pub key: String,
    /// Wanted consistency.
    pub consistency: Consistency,
    /// Request metadata.
    pub metadata: Metadata,
}

/// A stored value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StateItem {
    /// The value.
    pub value: StateValue,
    /// Entity tag; changes with every write.
    pub etag: Option<String>,
    /// When it expires, if it does.
    pub expires: Option<Timestamp>,
}

/// Answer for one key of a bulk read.
#[derive(Debug)]
pub struct BulkGetItem {
    /// The key as asked.
    pub key: String,
    /// The value, nothing for an unknown key, or why it could not be read.
    pub result: Result<Option<StateItem>, StateError>,
}

/// One key to write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SetRequest {
    /// Full key.
    pub key: String,
    /// New value.
    pub value: StateValue,
    /// Entity tag that the stored value must have.
    pub etag: Option<String>,
    /// Seconds to live; `None` = keeps for ever (each write sets it anew). The block has turned -1 into `None`.
    pub ttl_seconds: Option<u32>,
    /// Concurrency.
    pub concurrency: Concurrency,
    /// Consistency.
    pub consistency: Consistency,
    /// Request metadata, for stores with keys of their own in it.
    pub metadata: Metadata,
}

/// One key to delete. Deleting what is not there succeeds, unless an entity tag was given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeleteRequest {
    /// Full key.
    pub key: String,
    /// Entity tag that the stored value must have.
    pub etag: Option<String>,
    /// Concurrency.
    pub concurrency: Concurrency,
    /// Consistency.
    pub consistency: Consistency,
    /// Request metadata.
    pub metadata: Metadata,
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateOperation {
    /// Write.
    Set(SetRequest),
    /// Delete.
    Delete(DeleteRequest),
}

/// Keys by an SQL LIKE pattern (`%`, `_`, escape `\`), a page at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeysLikeRequest {
    /// Pattern; empty is an error.
    pub pattern: String,
    /// Most keys of a page.
    pub page_size: Option<u32>,
    /// Token of the page before.
    pub token: Option<String>,
}

/// A page of keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeysLikePage {
    /// Keys.
    pub keys: Vec<String>,
    /// Token for the next page; none on the last.
    pub token: Option<String>,
}

/// Why a store could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The stored entity tag is another one, or a first write found the key taken.
    #[error("possible etag mismatch. error from state store{}", .0.as_deref().map(|d| format!(": {d}")).unwrap_or_default())]
    EtagMismatch(Option<String>),
    /// The entity tag cannot be one of this store's.
    #[error("invalid etag value{}", .0.as_deref().map(|d| format!(": {d}")).unwrap_or_default())]
    EtagInvalid(Option<String>),
    /// The request makes no sense to this store.
    #[error("{0}")]
    Invalid(String),
    /// The store does not have this feature.
    #[error("state store does not support {0}")]
    Unsupported(&'static str),
    /// The store failed or cannot be reached; another attempt may work.
    #[error("{0}")]
    Unavailable(String),
}

/// Keeps values by key. Dropping a future of a write means "outcome unknown".
pub trait StateStore: Send + Sync + 'static {
    /// What this store can do, in [`StateFeature`]'s order.
    fn features(&self) -> &[StateFeature];

    /// Reads one key; `None` when it is not there or has expired.
    fn get<'a>(&'a self, request: GetRequest) -> Fut<'a, Result<Option<StateItem>, StateError>>;

    /// Writes one key; durable when it returns, as far as the store is durable at all.
    fn set<'a>(&'a self, request: SetRequest) -> Fut<'a, Result<(), StateError>>;

    /// Deletes one key.
    fn delete<'a>(&'a self, request: DeleteRequest) -> Fut<'a, Result<(), StateError>>;

    /// Reads many keys, answers in the order asked. `parallelism` bounds what runs at once (0 = the store's choice).
    fn bulk_get<'a>(&'a self, requests: Vec<GetRequest>, parallelism: usize) -> Fut<'a, Vec<BulkGetItem>> {
        let _ = parallelism;
        Box::pin(async move {
            let mut items = Vec::with_capacity(requests.len());
            for request in requests {
                let key = request.key.clone();
                items.push(BulkGetItem { key, result: self.get(request).await });
            }
            items
        })
    }

    /// Writes many keys, each on its own: one failing leaves the others written. Results in the order given.
    fn bulk_set<'a>(&'a self, requests: Vec<SetRequest>) -> Fut<'a, Vec<Result<(), StateError>>> {
        Box::pin(async move {
            let mut results = Vec::with_capacity(requests.len());
            for request in requests {
                results.push(self.set(request).await);
            }
            results
        })
    }

    /// Deletes many keys, each on its own.
    fn bulk_delete<'a>(&'a self, requests: Vec<DeleteRequest>) -> Fut<'a, Vec<Result<(), StateError>>> {
        Box::pin(async move {
            let mut results = Vec::with_capacity(requests.len());
            for request in requests {
                results.push(self.delete(request).await);
            }
            results
        })
    }

    /// All or nothing, in order. Only with [`StateFeature::Transactional`].
    fn transact<'a>(&'a self, operations: Vec<StateOperation>, metadata: Metadata) -> Fut<'a, Result<(), StateError>> {
        let _ = (operations, metadata);
        Box::pin(async { Err(StateError::Unsupported("transactions")) })
    }

    /// Deletes the keys that begin with `prefix` and have no further `||` after it; returns how many. Only with
    /// [`StateFeature::DeleteWithPrefix`].
    fn delete_with_prefix<'a>(&'a self, prefix: String) -> Fut<'a, Result<u64, StateError>> {
        let _ = prefix;
        Box::pin(async { Err(StateError::Unsupported("deleting by prefix")) })
    }

    /// Keys by pattern. Only with [`StateFeature::KeysLike`].
    fn keys_like<'a>(&'a self, request: KeysLikeRequest) -> Fut<'a, Result<KeysLikePage, StateError>> {
        let _ = request;
        Box::pin(async { Err(StateError::Unsupported("listing keys")) })
    }

    /// Most operations of one transaction; `None` = no limit.
    fn max_transaction_operations(&self) -> Option<usize> {
        None
    }

    /// Ends background work and closes files; calls after it fail.
    fn close<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(async {})
    }
}

/// Metadata that goes with a value in answers (`ttlExpireTime`).
#[must_use]
pub fn item_metadata(item: &StateItem) -> Metadata {
    item.expires
        .map(|t| {
            let seconds = Timestamp(t.0 / 1000 * 1000).to_rfc3339();
            BTreeMap::from([("ttlExpireTime".to_owned(), seconds.replace(".000Z", "Z"))])
        })
        .unwrap_or_default()
}
