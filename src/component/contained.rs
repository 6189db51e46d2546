//! Handlers whose panic costs one message, not the loop that calls them.

use std::sync::Arc;

use bytes::Bytes;

use super::{BindingHandler, BindingReading, Delivery, Fut, HandlerError, MessageHandler};
use crate::supervise::{Supervisor, contained};

/// A handler behind a wall: a panic is a failure like others, and the message comes again.
pub struct Contained<T: ?Sized> {
    handler: Arc<T>,
    part: String,
    supervisor: Supervisor,
}

impl<T: ?Sized> std::fmt::Debug for Contained<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contained").field("part", &self.part).finish_non_exhaustive()
    }
}

impl<T: ?Sized> Contained<T> {
    /// The handler, as a part of the node that panics are counted for.
    pub fn new(handler: Arc<T>, part: impl Into<String>, supervisor: &Supervisor) -> Self {
        Self { handler, part: part.into(), supervisor: supervisor.clone() }
    }

    async fn run<R>(&self, handled: impl Future<Output = Result<R, HandlerError>>) -> Result<R, HandlerError> {
        contained(handled).await.unwrap_or_else(|cause| {
            self.supervisor.count(&self.part, &cause);
            Err(HandlerError::Retry(cause))
        })
    }
}

impl MessageHandler for Contained<dyn MessageHandler> {
    fn handle<'a>(&'a self, message: Delivery) -> Fut<'a, Result<(), HandlerError>> {
        Box::pin(self.run(async { self.handler.handle(message).await }))
    }
}

impl BindingHandler for Contained<dyn BindingHandler> {
    fn handle<'a>(&'a self, reading: BindingReading) -> Fut<'a, Result<Option<Bytes>, HandlerError>> {
        Box::pin(self.run(async { self.handler.handle(reading).await }))
    }
}
