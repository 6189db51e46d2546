//! The Dapr surface: thin transports over the [building blocks](crate::block), and one table of errors.

mod door;
pub mod error;
pub mod grpc;
pub mod http;

/// Header, and gRPC metadata, of an answer from a cache: how many seconds ago its source said so.
const CACHE_AGE: &str = "selvedge-cache-age";
