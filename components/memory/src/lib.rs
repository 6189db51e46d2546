//! In-memory state store and pub/sub: nothing survives the process.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod like;
mod pubsub;
mod state;

pub use pubsub::{MemoryPubSub, pubsub};
pub use state::{MemoryState, state_store};

use selvedge::component::Registry;

/// Registers `state.in-memory` and `pubsub.in-memory`.
pub fn register(registry: &mut Registry) {
    registry.add_state_store(&["state.in-memory"], "v1", state_store);
    registry.add_pubsub(&["pubsub.in-memory"], "v1", pubsub);
}
