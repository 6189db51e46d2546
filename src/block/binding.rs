//! Calls to output bindings.

use super::Blocks;
use crate::api::error::{self, ApiError};
use crate::component::{BindingError, InvokeRequest, InvokeResponse};

impl Blocks {
    /// Calls an output binding.
    ///
    /// # Errors
    /// No such binding or operation, or what the binding says; its answer's metadata travels with the error.
    pub async fn invoke_binding(&self, name: &str, request: InvokeRequest) -> Result<InvokeResponse, ApiError> {
        let binding = self.inner.components.bindings.get(name).and_then(|b| b.item.output.clone());
        let Some(binding) = binding else {
            return Err(error::binding(name, format!("couldn't find output binding {name}")));
        };
        if request.operation.is_empty() {
            return Err(error::binding(name, "operation field is missing from request"));
        }
        let operations = binding.operations();
        if !operations.contains(&request.operation.as_str()) {
            let text = format!("binding {name} does not support operation {}. supported operations:{}", request.operation, operations.join(" "));
            return Err(error::binding(name, text));
        }
        binding.invoke(request).await.map_err(|cause| {
            let mut failure = error::binding(name, &cause);
            if let BindingError::Rejected { response, .. } = cause {
                failure.headers = response.metadata.into_iter().map(|(k, v)| (format!("metadata.{k}"), v)).collect();
            }
            failure
        })
    }
}
