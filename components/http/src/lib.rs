//! `bindings.http`: an output binding that makes HTTP requests.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod binding;
mod connect;
mod request;
mod settings;
mod tls;

pub use binding::binding;

use selvedge::component::Registry;

/// Registers `bindings.http`.
pub fn register(registry: &mut Registry) {
    registry.add_binding(&["bindings.http"], "v1", binding);
}
