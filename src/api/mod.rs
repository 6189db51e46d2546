//! The Dapr surface: thin transports over the [building blocks](crate::block), and one table of errors.

mod door;
pub mod error;
pub mod grpc;
pub mod http;
