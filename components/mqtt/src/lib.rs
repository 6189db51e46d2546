//! MQTT client components: `pubsub.mqtt3`, `pubsub.mqtt5` (pub/sub and uplink) and `bindings.mqtt3`.
//!
//! Layers, each without knowledge of the one above: [`wire`] (packets as bytes), [`session`] (one connection's protocol state,
//! sans-IO), `transport` (TCP, TLS, CONNECT), `connection` (the task that owns the socket, shared by all users), then the contracts.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod binding;
mod connection;
mod inbound;
mod probe;
mod pubsub;
pub mod session;
pub mod settings;
mod supervise;
mod tcp;
pub mod tls;
mod transport;
mod uplink;
#[allow(missing_docs)] // Fields and codes carry the names of the specification's own tables.
pub mod wire;

pub use binding::{MqttBinding, binding};
pub use pubsub::{MqttPubSub, pubsub_v3, pubsub_v5};
pub use settings::{Settings, Timing, Version};
pub use uplink::MqttUplink;

use selvedge::component::Registry;

/// Registers all factories of this crate.
pub fn register(registry: &mut Registry) {
    registry.add_pubsub(&["pubsub.mqtt3", "pubsub.mqtt"], "v1", pubsub_v3).add_pubsub(&["pubsub.mqtt5"], "v1", pubsub_v5);
    registry.add_binding(&["bindings.mqtt3", "bindings.mqtt"], "v1", binding);
}
