//! YAML text into a tree that knows its lines. Bounded: a hostile document costs an error, not memory.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

/// Most nodes of a file, aliases counted as often as they are used.
const MAX_NODES: usize = 100_000;
/// Deepest nesting.
const MAX_DEPTH: usize = 64;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Line in the file, from 1.
    pub line: usize,
}

/// A YAML value. Plain scalars are resolved as Go's YAML does: `yes`, `on` and their opposites are booleans.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A boolean, with the text as it stood.
    Bool(bool, String),
    /// A number, as text.
    Number(String),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A map in the order of the file; keys may repeat.
    Map(Vec<(String, usize, Node)>),
}

/// A text that is no YAML, or more than is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {detail}")]
pub struct YamlError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub detail: String,
}

impl Node {
    /// The value under a key of a map, the last one if it repeats, whatever the case.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries.iter().rev().find(|(k, _, _)| k.eq_ignore_ascii_case(key)).map(|(_, _, v)| v),
            _ => None,
        }
    }

    /// A scalar as text: what Go's YAML-to-JSON reading accepts for a string.
    #[must_use]
    pub fn scalar(&self) -> Option<&str> {
        match &self.value {
            Value::Bool(_, text) | Value::Number(text) | Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Elements of a list; nothing for anything else.
    #[must_use]
    pub fn items(&self) -> &[Self] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// Entries of a map; nothing for anything else.
    #[must_use]
    pub fn entries(&self) -> &[(String, usize, Self)] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The node as JSON.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(b, _) => Json::Bool(*b),
            Value::Number(text) => serde_json::from_str(text).unwrap_or_else(|_| Json::String(text.clone())),
            Value::Text(text) => Json::String(text.clone()),
            Value::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Value::Map(entries) => Json::Object(entries.iter().map(|(k, _, v)| (k.clone(), v.to_json())).collect()),
        }
    }

    fn size(&self) -> usize {
        1 + self.items().iter().map(Self::size).sum::<usize>() + self.entries().iter().map(|(_, _, v)| v.size()).sum::<usize>()
    }
}

fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Value::Bool(true, text.to_owned()),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Value::Bool(false, text.to_owned()),
        _ => {
            let numeric = text.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+' || c == '.') && text.parse::<f64>().is_ok();
            if numeric { Value::Number(text.to_owned()) } else { Value::Text(text.to_owned()) }
        }
    }
}

enum Open {
    List { node: Node, anchor: usize },
    Map { node: Node, anchor: usize, key: Option<(String, usize)> },
}

/// The documents of a text; empty ones are left out.
///
/// # Errors
/// Where and why the text cannot be read.
pub fn parse(text: &str) -> Result<Vec<Node>, YamlError> {
    let mut documents = Vec::new();
    let mut stack: Vec<Open> = Vec::new();
    let mut anchors: HashMap<usize, Node> = HashMap::new();
    let mut nodes = 0usize;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| YamlError { line: e.marker().line(), detail: e.info().to_owned() })?;
        let line = span.start.line();
        let fail = |detail: &str| YamlError { line, detail: detail.to_owned() };
        let (finished, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => {
                let value = if style == ScalarStyle::Plain { plain(&text) } else { Value::Text(text.into_owned()) };
                (Node { value, line }, anchor)
            }
            Event::Alias(anchor) => (anchors.get(&anchor).cloned().ok_or_else(|| fail("alias of an anchor that is not there or not finished"))?, 0),
            Event::SequenceStart(anchor, _) => {
                stack.push(Open::List { node: Node { value: Value::List(Vec::new()), line }, anchor });
                if stack.len() > MAX_DEPTH {
                    return Err(fail("nested too deeply"));
                }
                continue;
            }
            Event::MappingStart(anchor, _) => {
                stack.push(Open::Map { node: Node { value: Value::Map(Vec::new()), line }, anchor, key: None });
                if stack.len() > MAX_DEPTH {
                    return Err(fail("nested too deeply"));
                }
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match stack.pop() {
                Some(Open::List { node, anchor } | Open::Map { node, anchor, .. }) => (node, anchor),
                None => return Err(fail("end without a start")),
            },
            Event::DocumentStart(_) => {
                anchors.clear();
                continue;
            }
            _ => continue,
        };
        nodes += finished.size();
        if nodes > MAX_NODES {
            return Err(fail("too many values in one file"));
        }
        if anchor > 0 {
            anchors.insert(anchor, finished.clone());
        }
        match stack.last_mut() {
            None => {
                if finished.value != Value::Null {
                    documents.push(finished);
                }
            }
            Some(Open::List { node, .. }) => {
                if let Value::List(items) = &mut node.value {
                    items.push(finished);
                }
            }
            Some(Open::Map { node, key, .. }) => match key.take() {
                None => {
                    let name = finished.scalar().map(str::to_owned).ok_or_else(|| fail("a key must be a plain value"))?;
                    *key = Some((name, finished.line));
                }
                Some((name, key_line)) => {
                    if let Value::Map(entries) = &mut node.value {
                        entries.push((name, key_line, finished));
                    }
                }
            },
        }
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_know_their_lines_and_documents_are_split() {
        let docs = parse("a: 1\nb:\n  - x\n  - yes\n---\n\nc: \"1\"\n---\n").unwrap();
        assert_eq!(docs.len(), 2);
        let b = docs[0].get("B").unwrap();
        assert_eq!((b.items()[1].value.clone(), b.items()[1].line), (Value::Bool(true, "yes".into()), 4));
        assert_eq!((docs[1].get("c").unwrap().value.clone(), docs[1].get("c").unwrap().line), (Value::Text("1".into()), 7));
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for n in 1..9 {
            let before = format!("*a{}", n - 1);
            text += &format!("a{n}: &a{n} [{}]\n", vec![before; 10].join(","));
        }
        assert!(parse(&text).unwrap_err().detail.contains("too many"));
        assert!(parse(&"[".repeat(1000)).is_err());
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics(text in "[\\[\\]{}:,&*!|>'\"%@`#a-c0-9 \n\t-]{0,200}") {
            let _ = parse(&text);
        }
    }
}
