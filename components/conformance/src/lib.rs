//! One suite per building block. Every implementation runs the suite of its contract in its own tests, so that "it is a
//! state store" means the same for all. The suites follow Dapr's conformance checklists and add what our contracts promise beyond.
//!
//! A suite panics with the claim that does not hold. What a component does not declare as a feature is not asked of it, save
//! that it has to say so.

// This crate is test code: an unwrap that fails is a claim that does not hold.
#![allow(clippy::unwrap_used)]

mod bench;
mod binding;
mod configuration;
mod pubsub;
mod secret;
mod state;
mod tables;

pub use bench::Bench;
pub use binding::{file_binding, input_binding, output_binding};
pub use configuration::configuration;
pub use pubsub::{PubSubTraits, pubsub};
pub use secret::{SECRETS, secrets};
pub use state::state;
pub use tables::tables;
