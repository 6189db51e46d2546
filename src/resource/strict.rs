//! Reading our own kinds: every key is known, every problem is collected.

use std::collections::BTreeSet;

use super::yaml::{Node, Value};
use super::{Origin, Problem, Severity};
use crate::units;

/// Where values such as `${NAME}` come from.
pub type Environment<'e> = &'e dyn Fn(&str) -> Option<String>;

/// Collects problems of one file.
pub(super) struct Findings<'e> {
    pub file: String,
    pub problems: Vec<Problem>,
    pub environment: Environment<'e>,
}

impl Findings<'_> {
    pub fn add(&mut self, severity: Severity, line: usize, key: &str, text: impl Into<String>) {
        self.problems.push(Problem { severity, file: self.file.clone(), line, key: key.to_owned(), text: text.into() });
    }

    fn error(&mut self, node: &Node, key: &str, accepted: &str) {
        let found = match &node.value {
            Value::Null => "nothing".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
            Value::Bool(_, t) | Value::Number(t) | Value::Text(t) => format!("{t:?}"),
        };
        self.add(Severity::Error, node.line, key, format!("found {found}; accepted is {accepted}"));
    }
}

/// One map being read. Keys that are not asked for are reported by [`finish`](Self::finish).
pub(super) struct Fields<'n> {
    node: &'n Node,
    path: String,
    known: BTreeSet<&'static str>,
}

impl<'n> Fields<'n> {
    pub fn new(node: &'n Node, path: &str, findings: &mut Findings<'_>) -> Self {
        if !matches!(node.value, Value::Map(_)) {
            findings.error(node, path, "a map");
        }
        Self { node, path: path.to_owned(), known: BTreeSet::new() }
    }

    pub fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn line(&self) -> usize {
        self.node.line
    }

    /// The line of a key; of the map where it is not written.
    pub fn line_of(&self, name: &str) -> usize {
        self.node.entries().iter().rev().find(|(k, _, _)| k == name).map_or(self.node.line, |(_, line, _)| *line)
    }

    /// Where it stands.
    pub fn origin(&self, findings: &Findings<'_>) -> Origin {
        Origin { file: findings.file.clone(), line: self.line(), key: self.path.clone() }
    }

    fn raw(&mut self, name: &'static str) -> Option<&'n Node> {
        self.known.insert(name);
        let found = self.node.entries().iter().rev().find(|(k, _, _)| k == name).map(|(_, _, v)| v);
        found.filter(|n| n.value != Value::Null)
    }

    /// The text of a scalar, `${NAME}` and `${NAME:-default}` replaced.
    pub fn text(&mut self, name: &'static str, findings: &mut Findings<'_>) -> Option<(String, usize)> {
        let node = self.raw(name)?;
        let key = self.key(name);
        let Some(text) = node.scalar() else {
            findings.error(node, &key, "a text");
            return None;
        };
        match interpolate(text, findings.environment) {
            Ok(text) => Some((text, node.line)),
            Err(variable) => {
                findings.add(
                    Severity::Error,
                    node.line,
                    &key,
                    format!("environment variable {variable} is not set; set it or write ${{{variable}:-default}}"),
                );
                None
            }
        }
    }

    pub fn require(&mut self, name: &'static str, what: &str, findings: &mut Findings<'_>) -> Option<(String, usize)> {
        let text = self.text(name, findings).filter(|(t, _)| !t.is_empty());
        if text.is_none() {
            let key = self.key(name);
            if !findings.problems.iter().any(|p| p.key == key && p.line >= self.node.line) {
                findings.add(Severity::Error, self.node.line, &key, format!("is required: {what}"));
            }
        }
        text
    }

    /// A text that `parse` turns into a value, or `default`.
    pub fn parsed<T>(&mut self, name: &'static str, default: T, findings: &mut Findings<'_>, parse: impl FnOnce(&str) -> Result<T, String>) -> T {
        let Some((text, line)) = self.text(name, findings) else { return default };
        match parse(&text) {
            Ok(value) => value,
            Err(accepted) => {
                let key = self.key(name);
                findings.add(Severity::Error, line, &key, format!("found {text:?}; accepted is {accepted}"));
                default
            }
        }
    }

    pub fn duration(&mut self, name: &'static str, default: std::time::Duration, findings: &mut Findings<'_>) -> std::time::Duration {
        self.parsed(name, default, findings, |t| units::parse_duration(t).map_err(|e| e.accepted.to_owned()))
    }

    /// The same of what makes no sense at once.
    pub fn duration_above_zero(&mut self, name: &'static str, default: std::time::Duration, findings: &mut Findings<'_>) -> std::time::Duration {
        self.parsed(name, default, findings, |t| match units::parse_duration(t) {
            Ok(time) if time.is_zero() => Err("a time above 0, such as 7d".to_owned()),
            read => read.map_err(|e| e.accepted.to_owned()),
        })
    }

    pub fn flag(&mut self, name: &'static str, default: bool, findings: &mut Findings<'_>) -> bool {
        self.parsed(name, default, findings, |t| t.parse().map_err(|_| "true or false".to_owned()))
    }

    pub fn number(&mut self, name: &'static str, default: u64, range: std::ops::RangeInclusive<u64>, findings: &mut Findings<'_>) -> u64 {
        self.parsed(name, default, findings, |t| {
            t.parse().ok().filter(|n| range.contains(n)).ok_or_else(|| format!("a whole number from {} to {}", range.start(), range.end()))
        })
    }

    pub fn size(&mut self, name: &'static str, default: u64, range: std::ops::RangeInclusive<u64>, findings: &mut Findings<'_>) -> u64 {
        self.parsed(name, default, findings, |t| {
            let size = units::parse_size(t).map_err(|e| e.accepted.to_owned())?;
            if range.contains(&size) {
                Ok(size)
            } else {
                Err(format!("a size from {} to {}, such as 64MiB", units::size(*range.start()), units::size(*range.end())))
            }
        })
    }

    /// A list of texts; one text alone is a list of one.
    pub fn texts(&mut self, name: &'static str, findings: &mut Findings<'_>) -> Vec<(String, usize)> {
        let Some(node) = self.raw(name) else { return Vec::new() };
        let key = self.key(name);
        let items = if node.scalar().is_some() { std::slice::from_ref(node) } else { node.items() };
        if items.is_empty() && !matches!(node.value, Value::List(_)) {
            findings.error(node, &key, "a list of texts");
        }
        let mut texts = Vec::new();
        for item in items {
            match item.scalar().map(|t| interpolate(t, findings.environment)) {
                Some(Ok(text)) => texts.push((text, item.line)),
                Some(Err(variable)) => findings.add(Severity::Error, item.line, &key, format!("environment variable {variable} is not set")),
                None => findings.error(item, &key, "a text"),
            }
        }
        texts
    }

    /// A list of maps, with the path of each.
    pub fn maps(&mut self, name: &'static str, findings: &mut Findings<'_>) -> Vec<Fields<'n>> {
        let Some(node) = self.raw(name) else { return Vec::new() };
        let key = self.key(name);
        if !matches!(node.value, Value::List(_)) {
            findings.error(node, &key, "a list");
        }
        node.items().iter().enumerate().map(|(i, item)| Fields::new(item, &format!("{key}[{i}]"), findings)).collect()
    }

    /// A map under a key.
    pub fn map(&mut self, name: &'static str, findings: &mut Findings<'_>) -> Option<Fields<'n>> {
        let node = self.raw(name)?;
        Some(Fields::new(node, &self.key(name), findings))
    }

    /// Reports keys that nobody asked for.
    pub fn finish(self, findings: &mut Findings<'_>) {
        for (name, line, _) in self.node.entries() {
            if !self.known.contains(name.as_str()) {
                let accepted: Vec<&str> = self.known.iter().copied().collect();
                findings.add(Severity::Error, *line, &self.key(name), format!("is not a key here; accepted are {}", accepted.join(", ")));
            }
        }
    }
}

/// Replaces `${NAME}` and `${NAME:-default}`; `$$` is a dollar sign.
pub(super) fn interpolate(text: &str, environment: Environment<'_>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(next) = after.strip_prefix('$') {
            out.push('$');
            rest = next;
        } else if let Some((inside, next)) = after.strip_prefix('{').and_then(|inside| inside.split_once('}')) {
            let (name, default) = inside.split_once(":-").map_or((inside, None), |(n, d)| (n, Some(d)));
            match environment(name).filter(|v| !v.is_empty()).or_else(|| default.map(str::to_owned)) {
                Some(value) => out.push_str(&value),
                None => return Err(name.to_owned()),
            }
            rest = next;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(out)
}
