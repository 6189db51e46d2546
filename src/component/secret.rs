//! The secret store contract.

use std::collections::BTreeMap;

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

/// Gives secrets by name.
pub trait SecretStore: Send + Sync + 'static {
    /// Dapr's names of what the store can do (`MULTIPLE_KEY_VALUES_PER_SECRET`).
    fn features(&self) -> &[&'static str];

    /// One secret.
    fn get<'a>(&'a self, name: &'a str, metadata: &'a Metadata) -> Fut<'a, Result<Secret, SecretError>>;

    /// All of them, by name.
    fn bulk_get<'a>(&'a self, metadata: &'a Metadata) -> Fut<'a, Result<BTreeMap<String, Secret>, SecretError>>;
}
