//! Service invocation, as far as it is there: a node calls the methods of its own application.

use super::Blocks;
use crate::api::error::{ApiError, invoke};
use crate::app::{MethodAnswer, MethodCall};

impl Blocks {
    /// Calls a method of the application `id`.
    ///
    /// # Errors
    /// Another application than our own, none at all, one that is not well, or one that cannot be reached.
    pub async fn invoke(&self, id: &str, call: MethodCall) -> Result<MethodAnswer, ApiError> {
        if id != self.inner.app_id {
            return Err(invoke::failed(id, "this node calls its own application only; other applications are not served yet"));
        }
        let app = self.inner.app.get().ok_or_else(|| invoke::failed(id, "app channel is not initialized"))?;
        if !*app.well.borrow() {
            return Err(invoke::failed(id, "app is not in a healthy state"));
        }
        app.channel.invoke(call).await.map_err(|e| invoke::failed(id, e))
    }
}
