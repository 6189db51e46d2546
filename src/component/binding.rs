//! The binding contracts: events from outside in, calls to the outside out.

use std::sync::Arc;

use bytes::Bytes;

use super::{Fut, HandlerError, Metadata};

/// An event that an input binding has read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BindingReading {
    /// Event data; empty for triggers such as cron.
    pub data: Bytes,
    /// Event metadata. `topic`, where present, is the topic suffix when readings are published (`publishTo`).
    pub metadata: Metadata,
    /// Media type of `data`.
    pub content_type: Option<String>,
}

/// Takes the events of an input binding. The answer, if any, goes back to the source where that is possible.
pub trait BindingHandler: Send + Sync + 'static {
    /// Handles one event; an error leaves it unacknowledged at the source.
    fn handle<'a>(&'a self, reading: BindingReading) -> Fut<'a, Result<Option<Bytes>, HandlerError>>;
}

/// A running read. Dropping it stops it.
pub trait ReadHandle: Send + Sync {
    /// Stops reading and waits for the handler calls that run.
    fn close<'a>(&'a self) -> Fut<'a, ()>;

    /// Resolves when reading has ended without [`ReadHandle::close`], by a defect: the node reads anew. Never where that cannot happen.
    fn ended<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(std::future::pending())
    }
}

/// Brings events from outside.
pub trait InputBinding: Send + Sync + 'static {
    /// Starts to read; returns when the source is attached (or, for sources that come and go, when attaching has begun).
    fn read<'a>(&'a self, handler: Arc<dyn BindingHandler>) -> Fut<'a, Result<Box<dyn ReadHandle>, BindingError>>;

    /// Closes the source.
    fn close<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(async {})
    }
}

/// A call to an output binding.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InvokeRequest {
    /// One of [`OutputBinding::operations`].
    pub operation: String,
    /// Data as the caller gave it (JSON text over HTTP).
    pub data: Bytes,
    /// Request metadata.
    pub metadata: Metadata,
}

/// An output binding's answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InvokeResponse {
    /// Answer, if there is one.
    pub data: Option<Bytes>,
    /// Answer metadata.
    pub metadata: Metadata,
    /// Media type of `data`.
    pub content_type: Option<String>,
}

/// Why a binding could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindingError {
    /// The request makes no sense: another attempt fails as well.
    #[error("{0}")]
    Invalid(String),
    /// The other side refused for good. Its answer, if any, is passed on.
    #[error("{message}")]
    Rejected {
        /// What it said.
        message: String,
        /// Its answer.
        response: Box<InvokeResponse>,
    },
    /// Not reachable or timed out: another attempt may work.
    #[error("{0}")]
    Unavailable(String),
}

/// Calls something outside the node. Dropping the future means "outcome unknown".
pub trait OutputBinding: Send + Sync + 'static {
    /// Operations, in the order shown to users.
    fn operations(&self) -> &[&'static str];

    /// Calls one operation; the block has checked that it is one of [`OutputBinding::operations`].
    fn invoke<'a>(&'a self, request: InvokeRequest) -> Fut<'a, Result<InvokeResponse, BindingError>>;

    /// Closes connections.
    fn close<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(async {})
    }
}

/// A built binding: one or both directions.
#[derive(Clone)]
pub struct Binding {
    /// Events in.
    pub input: Option<Arc<dyn InputBinding>>,
    /// Calls out.
    pub output: Option<Arc<dyn OutputBinding>>,
}

impl std::fmt::Debug for Binding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Binding").field("input", &self.input.is_some()).field("output", &self.output.is_some()).finish()
    }
}
