//! `configuration.file`: keys and values in a YAML or JSON file, or in a folder with a file for each key, watched for changes.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod place;
mod store;

pub use store::file_store;

use selvedge::component::Registry;

/// Registers `configuration.file`.
pub fn register(registry: &mut Registry) {
    registry.add_configuration_store(&["configuration.file"], "v1", file_store);
}
