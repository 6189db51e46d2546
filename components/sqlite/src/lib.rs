//! State store and small durable tables on SQLite.
//!
//! A database has one thread that writes. It takes what has gathered in its queue, runs all of it inside one transaction and
//! syncs once (group commit over requests), while every request keeps a result of its own. Reads of a database in WAL mode
//! have a thread and a connection of their own, so that they do not wait for a sync.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod clock_text;
mod connect;
mod metrics;
mod quarantine;
mod state;
mod tables;
mod worker;

pub use state::{SqliteState, state_store};
pub use tables::SqliteTables;

use selvedge::component::Registry;

/// Registers `state.sqlite`.
pub fn register(registry: &mut Registry) {
    registry.add_state_store(&["state.sqlite", "state.sqlite3"], "v1", state_store);
}
