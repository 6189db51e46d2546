//! The secret store contract.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Fut, Metadata};

/// A secret: one or several named values. Never logged.
pub type Secret = BTreeMap<String, String>;

/// Why a secret store could not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// No secret of this name.
    #[error("secret {0} not found")]
    NotFound(String),
    /// The store failed.
    #[error("{0}")]
    Unavailable(String),
}

/// A value, and how old it is when it comes from a cache since its source is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aged<T> {
    /// The value.
    pub value: T,
    /// Since when its source has not said so; `None` when it has just done.
    pub age: Option<Duration>,
}

impl<T> Aged<T> {
    /// Just said.
    #[must_use]
    pub fn fresh(value: T) -> Self {
        Self { value, age: None }
    }
}

/// Gives secrets by name.
pub trait SecretStore: Send + Sync + 'static {
    /// Dapr's names of what the store can do (`MULTIPLE_KEY_VALUES_PER_SECRET`).
    fn features(&self) -> &[&'static str];

    /// Whether its source can be gone while the node runs, so that its answers are worth keeping.
    fn can_be_gone(&self) -> bool {
        true
    }

    /// One secret.
    fn get<'a>(&'a self, name: &'a str, metadata: &'a Metadata) -> Fut<'a, Result<Secret, SecretError>>;

    /// All of them, by name.
    fn bulk_get<'a>(&'a self, metadata: &'a Metadata) -> Fut<'a, Result<BTreeMap<String, Secret>, SecretError>>;

    /// [`SecretStore::get`] with the age of its answer.
    fn get_aged<'a>(&'a self, name: &'a str, metadata: &'a Metadata) -> Fut<'a, Result<Aged<Secret>, SecretError>> {
        Box::pin(async move { self.get(name, metadata).await.map(Aged::fresh) })
    }

    /// [`SecretStore::bulk_get`] with the age of its oldest answer.
    fn bulk_get_aged<'a>(&'a self, metadata: &'a Metadata) -> Fut<'a, Result<Aged<BTreeMap<String, Secret>>, SecretError>> {
        Box::pin(async move { self.bulk_get(metadata).await.map(Aged::fresh) })
    }
}
