//! `Component`, `Subscription` and `Configuration`, read as leniently as daprd reads them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::spec::{BulkSubscribe, ComponentSpec, ConfigurationSpec, PropertySource, PropertyValue, RouteRule, SecretScope, SubscriptionSpec};
use super::strict::Findings;
use super::yaml::{Node, Value};
use super::{Resources, Severity};
use crate::component::is_truthy;
use crate::units;

fn text(node: Option<&Node>) -> String {
    node.and_then(Node::scalar).unwrap_or_default().to_owned()
}

fn texts(node: Option<&Node>) -> Vec<String> {
    node.map(|n| n.items().iter().filter_map(Node::scalar).map(str::to_owned).collect()).unwrap_or_default()
}

fn flag(node: Option<&Node>) -> bool {
    match node.map(|n| &n.value) {
        Some(Value::Bool(b, _)) => *b,
        Some(Value::Text(t)) => is_truthy(t),
        _ => false,
    }
}

fn number(node: Option<&Node>) -> u32 {
    node.and_then(Node::scalar).and_then(|t| t.parse().ok()).unwrap_or(0)
}

fn text_map(node: Option<&Node>) -> BTreeMap<String, String> {
    node.map(|n| n.entries().iter().filter_map(|(k, _, v)| Some((k.clone(), v.scalar()?.to_owned()))).collect()).unwrap_or_default()
}

/// A property's value as Dapr reads it: a text as it is, anything else as its JSON.
fn literal(node: &Node) -> String {
    match &node.value {
        Value::Text(t) => t.clone(),
        Value::Null => String::new(),
        Value::Bool(b, _) => b.to_string(),
        Value::Number(t) => t.clone(),
        _ => node.to_json().to_string(),
    }
}

fn component(document: &Node, name: &str, findings: &Findings<'_>) -> ComponentSpec {
    let spec = document.get("spec");
    let field = |key: &str| spec.and_then(|s| s.get(key));
    let properties = field("metadata")
        .map(Node::items)
        .unwrap_or_default()
        .iter()
        .filter_map(|item| {
            let name = item.get("name")?.scalar()?.to_owned();
            let written = item.get("value").map(literal).filter(|v| !v.is_empty());
            let secret =
                item.get("secretKeyRef").and_then(|s| s.get("name").and_then(Node::scalar).map(|n| (n, s.get("key").and_then(Node::scalar))));
            let source = match (written, item.get("envRef").and_then(Node::scalar), secret) {
                (_, _, Some((secret, key))) if !secret.is_empty() => {
                    PropertySource::Secret { name: secret.to_owned(), key: key.filter(|k| !k.is_empty()).unwrap_or(secret).to_owned() }
                }
                (Some(value), _, _) => PropertySource::Literal(value),
                (None, Some(variable), _) if !variable.is_empty() => PropertySource::Environment(variable.to_owned()),
                _ => PropertySource::Literal(String::new()),
            };
            Some(PropertyValue { name, source })
        })
        .collect();
    let init_timeout = field("initTimeout").and_then(Node::scalar).and_then(|t| units::parse_duration(t).ok()).filter(|d| !d.is_zero());
    ComponentSpec {
        name: name.to_owned(),
        type_name: text(field("type")),
        version: text(field("version")),
        ignore_errors: flag(field("ignoreErrors")),
        init_timeout: init_timeout.unwrap_or(Duration::from_secs(5)),
        properties,
        secret_store: document.get("auth").and_then(|a| a.get("secretStore")).and_then(Node::scalar).filter(|s| !s.is_empty()).map(str::to_owned),
        scopes: texts(document.get("scopes")),
        origin: format!("{}:{}", findings.file, document.line),
    }
}

fn subscription(document: &Node, name: &str) -> SubscriptionSpec {
    let spec = document.get("spec");
    let field = |key: &str| spec.and_then(|s| s.get(key));
    let routes = field("routes");
    let rules = routes
        .and_then(|r| r.get("rules"))
        .map(Node::items)
        .unwrap_or_default()
        .iter()
        .map(|rule| RouteRule { matches: text(rule.get("match")), path: text(rule.get("path")) })
        .collect();
    let default_path = text(routes.and_then(|r| r.get("default")));
    let bulk = field("bulkSubscribe");
    let within = |key: &str| bulk.and_then(|b| b.get(key));
    SubscriptionSpec {
        name: name.to_owned(),
        pubsub: text(field("pubsubname")),
        topic: text(field("topic")),
        rules,
        default_path: if default_path.is_empty() { text(field("route")) } else { default_path },
        metadata: text_map(field("metadata")),
        dead_letter_topic: text(field("deadLetterTopic")),
        bulk: BulkSubscribe {
            enabled: flag(within("enabled")),
            max_messages: number(within("maxMessagesCount")),
            max_await_ms: number(within("maxAwaitDurationMs")),
        },
        scopes: texts(document.get("scopes")),
    }
}

pub(super) fn read(document: &Node, kind: &str, name: &str, resources: &mut Resources, findings: &mut Findings<'_>) {
    match kind {
        "Component" => {
            let found = component(document, name, findings);
            resources.components.push(found);
        }
        "Subscription" => resources.subscriptions.push(subscription(document, name)),
        "HTTPEndpoint" | "Resiliency" => {
            findings.add(Severity::Warning, document.line, "kind", format!("{kind} {name:?} is not served yet and has no effect"));
        }
        // A Configuration counts only when it is given by --config (daprd's rule).
        _ => {}
    }
}

/// A `--config` file's first document.
pub(super) fn configuration(document: &Node, into: &mut ConfigurationSpec) {
    let spec = document.get("spec");
    let field = |path: &[&str]| path.iter().try_fold(spec?, |node, key| node.get(key));
    if let Some(scopes) = field(&["secrets", "scopes"]) {
        into.secret_scopes = scopes
            .items()
            .iter()
            .map(|s| SecretScope {
                store: text(s.get("storeName")),
                default_allow: !text(s.get("defaultAccess")).eq_ignore_ascii_case("deny"),
                allowed: texts(s.get("allowedSecrets")),
                denied: texts(s.get("deniedSecrets")),
            })
            .collect();
    }
    if let Some(enabled) = field(&["logging", "apiLogging", "enabled"]) {
        into.api_logging = Some(flag(Some(enabled)));
    }
    for section in ["metric", "metrics"] {
        if let Some(on) = field(&[section, "recordErrorCodes"]) {
            into.record_error_codes = flag(Some(on));
        }
    }
    if let Some(features) = field(&["features"]) {
        into.features = features.items().iter().filter(|f| flag(f.get("enabled"))).map(|f| text(f.get("name"))).collect();
    }
}
