//! Which path of the application an event goes to: rules in CEL over the variable `event`, the first that holds wins.

use serde_json::Map;

use crate::expression::{Expression, Scope};
use crate::resource::SubscriptionSpec;

/// A subscription's rules, parsed.
pub(super) struct Routes {
    /// Condition (none = always) and path.
    rules: Vec<(Option<Expression>, String)>,
}

/// Parses one condition; blank = always.
fn parse(text: &str) -> Result<Option<Expression>, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    Expression::parse(text).map(Some).map_err(|e| format!("rule {text:?}: {e}"))
}

impl Routes {
    /// Parses the rules; the default path is the last, unconditional one.
    pub fn compile(spec: &SubscriptionSpec) -> Result<Self, String> {
        let mut rules = spec.rules.iter().map(|r| Ok((parse(&r.matches)?, r.path.clone()))).collect::<Result<Vec<_>, String>>()?;
        if !spec.default_path.is_empty() {
            rules.push((None, spec.default_path.clone()));
        }
        Ok(Self { rules })
    }

    /// The path for an event; `None` when no rule holds.
    ///
    /// # Errors
    /// When a rule cannot be decided for this event, such as one over an attribute that it does not have.
    pub fn path(&self, event: &Map<String, serde_json::Value>) -> Result<Option<&str>, String> {
        let mut scope = None;
        for (condition, path) in &self.rules {
            let Some(condition) = condition else { return Ok(Some(path)) };
            let scope = match &mut scope {
                Some(scope) => scope,
                none => {
                    let mut made = Scope::default();
                    made.set("event", event)?;
                    none.insert(made)
                }
            };
            if condition.holds(scope).map_err(|e| format!("the rule for {path}: {e}"))? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}

/// Whether a subscription's rules can be parsed.
///
/// # Errors
/// Which rule cannot, and why.
pub fn check_routes(spec: &SubscriptionSpec) -> Result<(), String> {
    Routes::compile(spec).map(|_| ()).map_err(|e| format!("subscription {} of topic {}: {e}", spec.name, spec.topic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{BulkSubscribe, RouteRule};

    fn spec(rules: &[(&str, &str)], default: &str) -> SubscriptionSpec {
        SubscriptionSpec {
            name: "s".to_owned(),
            pubsub: "p".to_owned(),
            topic: "t".to_owned(),
            rules: rules.iter().map(|(m, p)| RouteRule { matches: (*m).to_owned(), path: (*p).to_owned() }).collect(),
            default_path: default.to_owned(),
            metadata: std::collections::BTreeMap::new(),
            dead_letter_topic: String::new(),
            bulk: BulkSubscribe::default(),
            scopes: Vec::new(),
        }
    }

    fn path(rules: &[(&str, &str)], default: &str, event: &str) -> Result<Option<String>, String> {
        let routes = Routes::compile(&spec(rules, default)).unwrap();
        routes.path(&serde_json::from_str(event).unwrap()).map(|p| p.map(str::to_owned))
    }

    #[test]
    fn the_first_rule_that_holds_wins_then_the_default() {
        let rules = [(r#"event.type == "a""#, "/a"), ("event.data.n > 5 && event.data.n <= 7", "/n"), ("  ", "/always")];
        let check = |event: &str| path(&rules, "/default", event).unwrap().unwrap();
        assert_eq!(check(r#"{"type":"a"}"#), "/a");
        assert_eq!(check(r#"{"type":"b","data":{"n":6}}"#), "/n");
        assert_eq!(check(r#"{"type":"b","data":{"n":6.5}}"#), "/n");
        assert_eq!(check(r#"{"type":"b","data":{"n":8}}"#), "/always");
        assert_eq!(path(&rules[..1], "/default", r#"{"type":"b"}"#), Ok(Some("/default".to_owned())));
        assert_eq!(path(&rules[..1], "", r#"{"type":"b"}"#), Ok(None));
    }

    #[test]
    fn the_functions_that_rules_use() {
        let event = r#"{"type":"order.new","data":{"n":3,"tags":["x","y"],"who":null,"ok":true}}"#;
        for rule in [
            "event.data.n == 3",
            "event.data.n in [1, 2, 3]",
            r#"event.type.startsWith("order.") && event.type.endsWith("new") && event.type.contains("r.n")"#,
            r#"has(event.data.n) && !has(event.data.m)"#,
            r#""x" in event.data.tags && size(event.data.tags) == 2"#,
            "event.data.tags.exists(t, t == 'y')",
            "event.data.ok && event.data.who == null",
            r#"int("3") == event.data.n"#,
        ] {
            assert_eq!(path(&[(rule, "/yes")], "", event), Ok(Some("/yes".to_owned())), "{rule}");
        }
    }

    #[test]
    fn what_cannot_be_decided_or_parsed_is_said() {
        assert!(path(&[("event.nothing == 1", "/a")], "/d", "{}").unwrap_err().contains("/a"));
        assert!(path(&[("event.n", "/a")], "/d", r#"{"n":1}"#).unwrap_err().contains("truth value"));
        for bad in ["event.type ==", "((", "event.data.[", "\"", "1 +* 2"] {
            let error = check_routes(&spec(&[(bad, "/a")], "")).unwrap_err();
            assert!(error.contains("topic t"), "{error}");
        }
        assert!(check_routes(&spec(&[(&"(".repeat(9000), "/a")], "")).is_err());
    }
}
