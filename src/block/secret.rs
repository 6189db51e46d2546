//! Secrets, under the configuration's scopes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Blocks;
use crate::api::error::{ApiError, secret};
use crate::component::{Aged, Metadata, Secret, SecretStore};

impl Blocks {
    fn secret_store(&self, name: &str) -> Result<&Arc<dyn SecretStore>, ApiError> {
        let stores = &self.inner.components.secrets;
        if stores.is_empty() {
            return Err(secret::not_configured());
        }
        stores.get(name).map(|l| &l.item).ok_or_else(|| secret::not_found(name))
    }

    fn may_read(&self, store: &str, name: &str) -> bool {
        self.inner.configuration.secret_scopes.iter().find(|s| s.store == store).is_none_or(|s| s.allows(name))
    }

    /// One secret.
    ///
    /// # Errors
    /// No store, denied, or not there.
    pub async fn secret(&self, store: &str, name: &str, metadata: &Metadata) -> Result<Aged<Secret>, ApiError> {
        let component = self.secret_store(store)?;
        if !self.may_read(store, name) {
            return Err(secret::denied(store, name));
        }
        component.get_aged(name, metadata).await.map_err(|e| secret::get(store, name, e))
    }

    /// All secrets that may be read.
    ///
    /// # Errors
    /// No store, or it failed.
    pub async fn bulk_secret(&self, store: &str, metadata: &Metadata) -> Result<Aged<BTreeMap<String, Secret>>, ApiError> {
        let component = self.secret_store(store)?;
        let mut all = component.bulk_get_aged(metadata).await.map_err(|e| secret::get(store, "", e))?;
        all.value.retain(|name, _| self.may_read(store, name));
        Ok(all)
    }
}
