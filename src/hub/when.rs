//! `when` of a route: in which modes, or for which messages, it is taken.

use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};

use crate::escape::{Mode, ModeSet};
use crate::expression::{Expression, Outcome, Scope};

/// What an expression may speak of.
const VARIABLES: [&str; 3] = ["mode", "topic", "payload"];
/// Macros that give names to elements, which are no variables then.
const MACROS: [&str; 6] = [".exists(", ".exists_one(", ".all(", ".map(", ".filter(", ".existsOne("];

#[derive(Debug)]
enum Condition {
    Modes(ModeSet),
    Expression(Expression),
}

/// A condition of a route.
#[derive(Debug)]
pub struct When {
    condition: Condition,
    reads_payload: bool,
    text: String,
    failed: Counter,
    /// The first failure has been logged.
    told: AtomicBool,
}

impl When {
    /// Reads a list of modes, or an expression over `mode`, `topic` and `payload`. `failed` counts messages for which the expression cannot
    /// be decided; they do not take the route.
    ///
    /// # Errors
    /// What was found and what is accepted.
    pub fn parse(text: &str, failed: Counter) -> Result<Self, String> {
        let text = text.trim();
        let is_list = text.split(',').all(|word| word.trim().bytes().all(|b| b.is_ascii_alphabetic()));
        let condition = if is_list {
            Condition::Modes(ModeSet::parse(text).map_err(|e| format!("{e}, or a CEL expression over mode, topic and payload"))?)
        } else {
            let accepted = "accepted is a list of modes, or a CEL expression over mode, topic and payload";
            let expression = Expression::parse(text).map_err(|e| format!("found {text:?} ({e}); {accepted}"))?;
            let named = MACROS.iter().any(|m| text.contains(m));
            if let Some(unknown) = expression.names().find(|name| !named && !VARIABLES.contains(name)) {
                return Err(format!("found the name {unknown:?} in {text:?}; {accepted}"));
            }
            if let Some(never) = never_decides(&expression) {
                return Err(format!("found {text:?}, which {never} and so never gives true or false; {accepted}"));
            }
            Condition::Expression(expression)
        };
        let reads_payload = matches!(&condition, Condition::Expression(e) if reads_payload(e));
        Ok(Self { condition, reads_payload, text: text.to_owned(), failed, told: AtomicBool::new(false) })
    }

    /// It has to be asked for each message; otherwise topic and mode decide.
    #[must_use]
    pub fn reads_payload(&self) -> bool {
        self.reads_payload
    }

    /// Whether a message takes the route. An expression that cannot be decided counts as "no", and is counted.
    #[must_use]
    pub fn holds(&self, mode: Mode, topic: &str, payload: &Payload<'_>) -> bool {
        let expression = match &self.condition {
            Condition::Modes(modes) => return modes.contains(mode),
            Condition::Expression(expression) => expression,
        };
        let mut scope = Scope::default();
        let decided = scope
            .set("mode", mode.as_str())
            .and_then(|()| scope.set("topic", topic))
            .and_then(|()| if self.reads_payload { scope.set("payload", payload.value()) } else { Ok(()) })
            .and_then(|()| expression.holds(&scope));
        decided.unwrap_or_else(|error| {
            self.failed.inc();
            if !self.told.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    when = self.text,
                    mqtt.topic = topic,
                    error,
                    "a route's condition cannot be decided for a message; the route is not taken (said once; counted by selvedge_route_undecided)"
                );
            }
            false
        })
    }
}

fn reads_payload(expression: &Expression) -> bool {
    expression.names().any(|name| name == "payload")
}

/// Topics that an expression is tried with: short, a number, and as deep as most.
const SAMPLE_TOPICS: [&str; 3] = ["a", "1", "a/b/c/d/e/f/g/h"];

/// What an expression does instead of giving a truth value, if that can be told without a message: it is tried with samples of all that
/// it may speak of. What depends on fields of the payload cannot be told.
fn never_decides(expression: &Expression) -> Option<String> {
    let asks = reads_payload(expression);
    let payloads = [Value::Null, json!(true), json!(1), json!(1.5), json!("a"), json!([1]), json!({"a": 1})];
    let payloads = if asks { &payloads[..] } else { &payloads[..1] };
    let mut first = None;
    for mode in Mode::ALL {
        for (topic, payload) in SAMPLE_TOPICS.iter().flat_map(|t| payloads.iter().map(move |p| (t, p))) {
            let mut scope = Scope::default();
            scope.set("mode", mode.as_str()).and_then(|()| scope.set("topic", topic)).and_then(|()| scope.set("payload", payload)).ok()?;
            let never = match expression.outcome(&scope) {
                Outcome::Truth(_) | Outcome::Undecided(_) => return None,
                // Another payload may have the type that it asks for.
                Outcome::Mistyped(_) if asks => return None,
                Outcome::Other(kind) => format!("gives a value of type {kind}"),
                Outcome::Mistyped(error) => format!("cannot be decided ({error})"),
            };
            first.get_or_insert(never);
        }
    }
    first
}

/// A message's payload as conditions see it: JSON, else text, else nothing; understood when the first one asks.
#[derive(Debug)]
pub struct Payload<'a> {
    bytes: &'a [u8],
    value: std::cell::OnceCell<Value>,
}

impl<'a> Payload<'a> {
    /// Of these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, value: std::cell::OnceCell::new() }
    }

    /// The value.
    pub fn value(&self) -> &Value {
        self.value.get_or_init(|| {
            serde_json::from_slice(self.bytes)
                .unwrap_or_else(|_| std::str::from_utf8(self.bytes).map_or(Value::Null, |text| Value::String(text.to_owned())))
        })
    }
}

#[cfg(all(test, feature = "api"))]
mod tests {
    use super::*;

    fn holds(when: &str, mode: Mode, topic: &str, payload: &str) -> (bool, u64) {
        let failed = Counter::default();
        let holds = When::parse(when, failed.clone()).unwrap().holds(mode, topic, &Payload::new(payload.as_bytes()));
        (holds, failed.get())
    }

    #[test]
    fn a_list_of_modes_holds_in_these_modes() {
        for (when, mode, expected) in [
            ("island", Mode::Island, true),
            ("island", Mode::Survive, true),
            ("island", Mode::Normal, false),
            ("normal, recover", Mode::Recover, true),
            ("conserve", Mode::Island, false),
        ] {
            assert_eq!(holds(when, mode, "t", "1"), (expected, 0), "{when} in {mode:?}");
        }
    }

    #[test]
    fn an_expression_sees_mode_topic_and_payload_and_what_it_cannot_decide_is_counted() {
        let when = r#"mode == "island" && topic.startsWith("sensors/") && payload.temp > 80"#;
        for (mode, topic, payload, expected) in [
            (Mode::Island, "sensors/a", r#"{"temp": 81}"#, (true, 0)),
            (Mode::Island, "sensors/a", r#"{"temp": 80.5}"#, (true, 0)),
            (Mode::Island, "sensors/a", r#"{"temp": 80}"#, (false, 0)),
            (Mode::Normal, "sensors/a", r#"{"temp": 81}"#, (false, 0)),
            (Mode::Island, "other", r#"{"temp": 81}"#, (false, 0)),
            (Mode::Island, "sensors/a", "{}", (false, 1)),
            (Mode::Island, "sensors/a", "no JSON", (false, 1)),
            (Mode::Normal, "sensors/a", "{}", (false, 0)),
        ] {
            assert_eq!(holds(when, mode, topic, payload), expected, "{mode:?} {topic} {payload}");
        }
        assert_eq!(holds("payload == \"on\"", Mode::Normal, "t", "on"), (true, 0), "text that is no JSON");
        assert_eq!(holds("payload > 5", Mode::Normal, "t", "7"), (true, 0));
        assert_eq!(holds("payload.list.exists(x, x > 5)", Mode::Normal, "t", r#"{"list": [1, 9]}"#), (true, 0));
        assert_eq!(holds("payload.a", Mode::Normal, "t", r#"{"a": 1}"#), (false, 1), "no truth value");
    }

    #[test]
    fn what_is_neither_is_refused_with_what_is_accepted() {
        for (when, says) in [
            ("islnd", "found \"islnd\"; accepted is a list of normal, recover"),
            ("mode ==", "accepted is a list of modes, or a CEL expression over mode, topic and payload"),
            ("temp > 3", "found the name \"temp\""),
            ("", "found \"\""),
            ("1 + 1", "found \"1 + 1\", which gives a value of type int and so never gives true or false; accepted is a list of modes, or a CEL"),
            ("\"island\"", "gives a value of type string"),
            ("size(topic)", "gives a value of type int"),
            ("mode == \"island\" ? topic : \"other\"", "gives a value of type string"),
            ("[payload]", "gives a value of type list"),
            ("topic > 5", "cannot be decided ("),
            ("topic.startswith(\"a\")", "cannot be decided ("),
            ("1 + \"a\" == 2", "cannot be decided ("),
        ] {
            let error = When::parse(when, Counter::default()).unwrap_err();
            assert!(error.contains(says), "{when}: {error}");
        }
    }

    #[test]
    fn what_may_give_a_truth_value_for_some_message_is_accepted() {
        for when in [
            "(payload)",
            "payload.on",
            "has(payload.a) ? payload.a : 1",
            "payload == null ? 0 : payload.on",
            "payload.list[3] > 1",
            "payload.name.startsWith(\"a\")",
            "payload > \"a\"",
            "int(topic) > 3",
            "1 > 2",
            "topic.contains(\"x\") || size(topic) > 3",
        ] {
            assert!(When::parse(when, Counter::default()).is_ok(), "{when}");
        }
    }

    #[test]
    fn only_what_reads_the_payload_is_asked_for_each_message() {
        for (when, each) in [("island", false), ("mode != \"normal\" && topic == \"a\"", false), ("payload.n > 1", true)] {
            assert_eq!(When::parse(when, Counter::default()).unwrap().reads_payload(), each, "{when}");
        }
    }
}
