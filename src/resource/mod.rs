//! The YAML kinds, read once into typed structs.
//!
//! Dapr's kinds are read as leniently as daprd reads them, ours strictly; every problem names file, line, key, what was
//! found and what is accepted, and all problems are shown at once.

mod spec;

pub use spec::{
    BulkSubscribe, ComponentSpec, DrainSpec, EscapePolicySpec, ForwardingSpec, LaneSpec, ListenerLimits, ListenerProtocol, ListenerSpec, ListenerTls,
    PropertySource, PropertyValue, RouteRule, RouteSpec, SubscriptionSpec, UpstreamRole, UpstreamSpec,
};
