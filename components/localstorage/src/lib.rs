//! `bindings.localstorage`: an output binding that keeps files below one folder.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod binding;
mod place;

pub use binding::binding;

use selvedge::component::Registry;

/// Registers `bindings.localstorage`.
pub fn register(registry: &mut Registry) {
    registry.add_binding(&["bindings.localstorage"], "v1", binding);
}
