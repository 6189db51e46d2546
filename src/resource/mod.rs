//! The YAML kinds, read once into typed structs.
//!
//! Dapr's kinds are read as leniently as daprd reads them, ours strictly; every problem names file, line, key, what was
//! found and what is accepted, and all problems are shown at once.

mod dapr;
mod key_source;
mod load;
mod own;
mod routes;
mod spec;
mod strict;
#[cfg(test)]
mod tests;
mod together;
pub mod yaml;

pub use key_source::{KeySource, read_keys};
pub use load::{LoadError, load, load_configuration};
pub use own::DEFAULT_QUOTA_BYTES;
pub use spec::{
    BulkSubscribe, ComponentSpec, ConfigurationSpec, DedupeSpec, Deliver, DiskFloor, DrainSpec, EscapePolicySpec, ForwardingSpec, LaneSpec,
    ListenerLimits, ListenerProtocol, ListenerSpec, ListenerTls, Origin, PropertySource, PropertyValue, RouteRule, RouteSpec, SET_SEPARATOR,
    SecretScope, SubscriptionSpec, UpstreamRole, UpstreamSpec,
};
pub use strict::Environment;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Said at start; the node runs.
    Warning,
    /// A document that is no YAML: left out with a warning as daprd does, an error for `selvedge check`.
    Unreadable,
    /// The node does not start.
    Error,
}

/// Something wrong in a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// File; empty when the problem lies between several.
    pub file: String,
    /// Line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// Key, as a path such as `spec.lanes[1].quota`; may be empty.
    pub key: String,
    /// What was found and what is accepted.
    pub text: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}", self.file)?;
            if self.line > 0 {
                write!(f, ":{}", self.line)?;
            }
            f.write_str(": ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{} ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// Everything that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Components in the order of the files.
    pub components: Vec<ComponentSpec>,
    /// Declarative subscriptions.
    pub subscriptions: Vec<SubscriptionSpec>,
    /// Listeners.
    pub listeners: Vec<ListenerSpec>,
    /// Forwardings.
    pub forwardings: Vec<ForwardingSpec>,
    /// Escape policies.
    pub escape_policies: Vec<EscapePolicySpec>,
    /// `level` of `kind: Logging`, if there is one.
    pub log_level: Option<tracing::Level>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// daprd's text for components that stand twice.
    pub duplicate_components: Option<String>,
}

impl Resources {
    /// Where the node's own notices go upstream; none unless something of ours is declared, or when they are not wanted.
    #[must_use]
    pub fn notices(&self) -> Option<&str> {
        let declared = !self.forwardings.is_empty() || !self.escape_policies.is_empty();
        let topic = self.escape_policies.first().map_or(spec::DEFAULT_NOTICES, |p| p.notices.as_str());
        (declared && !topic.is_empty()).then_some(topic)
    }

    /// Whether anything names the pub/sub `local` without declaring it as a component.
    #[must_use]
    pub fn needs_local(&self) -> bool {
        let declared = self.components.iter().any(|c| c.name == "local");
        let named = self.listeners.iter().any(|l| l.pubsub == "local")
            || self.components.iter().any(ComponentSpec::publishes_to_local)
            || self.forwardings.iter().flat_map(|f| &f.routes).any(|r| r.from == "local" || r.to.iter().any(|t| t == "local"));
        named && !declared
    }
}
