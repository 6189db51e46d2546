//! Secret stores: the environment and a JSON file.
//!
//! Values are never logged, and `Debug` shows none.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod env;
mod file;
mod flatten;

pub use env::{EnvSecrets, env_store};
pub use file::{FileSecrets, file_store};

use selvedge::component::Registry;

/// Registers `secretstores.local.env` and `secretstores.local.file`.
pub fn register(registry: &mut Registry) {
    registry.add_secret_store(&["secretstores.local.env"], "v1", env_store);
    registry.add_secret_store(&["secretstores.local.file"], "v1", file_store);
}
