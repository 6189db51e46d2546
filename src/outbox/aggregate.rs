//! Several numeric JSON payloads of one topic as one: smallest, largest, mean, count and last of each number. No IO.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

/// Payloads larger than this are left alone.
const MAX_PAYLOAD_BYTES: usize = 16 << 10;
/// And those with more numbers.
const MAX_NUMBERS: usize = 64;
/// Objects are walked this deep.
const MAX_DEPTH: usize = 8;

/// User property of an aggregate: how many records it stands for.
pub(crate) const AGGREGATED: &str = "selvedge-aggregated";
/// When the first of them was accepted.
pub(crate) const FROM: &str = "selvedge-from";
/// When the last one was.
pub(crate) const TO: &str = "selvedge-to";

/// What is known of one number of a payload.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stats {
    pub count: u64,
    pub min: Number,
    pub max: Number,
    pub mean: f64,
    pub last: Number,
}

/// Whether `a` is less than `b`; whole numbers are compared exactly.
fn less(a: &Number, b: &Number) -> bool {
    let whole = |n: &Number| n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from));
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => a < b,
        _ => a.as_f64().unwrap_or_default() < b.as_f64().unwrap_or_default(),
    }
}

impl Stats {
    fn one(n: &Number) -> Self {
        Self { count: 1, min: n.clone(), max: n.clone(), mean: n.as_f64().unwrap_or_default(), last: n.clone() }
    }

    /// Adds what came later. Means are weighted by their counts, so it does not matter in which groups records are merged.
    pub fn add(&mut self, later: &Self) {
        let count = self.count.saturating_add(later.count);
        let share = later.count as f64 / count.max(1) as f64;
        if less(&later.min, &self.min) {
            self.min = later.min.clone();
        }
        if less(&self.max, &later.max) {
            self.max = later.max.clone();
        }
        let apart = later.mean - self.mean;
        let mean = if apart.is_finite() { self.mean + apart * share } else { self.mean * (1.0 - share) + later.mean * share };
        // Never leaves the range, whatever rounding does.
        let (min, max) = (self.min.as_f64().unwrap_or(f64::MIN), self.max.as_f64().unwrap_or(f64::MAX));
        self.mean = mean.max(min).min(max);
        self.count = count;
        self.last = later.last.clone();
    }

    fn read(object: &Map<String, Value>) -> Option<Self> {
        let number = |key: &str| object.get(key).and_then(Value::as_number).cloned();
        if object.len() != 5 {
            return None;
        }
        Some(Self {
            count: object.get("count")?.as_u64().filter(|n| *n > 0)?,
            min: number("min")?,
            max: number("max")?,
            mean: number("mean")?.as_f64()?,
            last: number("last")?,
        })
    }

    fn to_json(&self) -> Value {
        let mean = Number::from_f64(self.mean).unwrap_or_else(|| self.last.clone());
        let fields: [(&str, Value); 5] = [
            ("count", self.count.into()),
            ("last", self.last.clone().into()),
            ("max", self.max.clone().into()),
            ("mean", mean.into()),
            ("min", self.min.clone().into()),
        ];
        Value::Object(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
    }
}

/// Calls `visit` for each number of a payload with its path, in the payload's order. What was aggregated before is told apart by the
/// record's flag, since a device may well send an object with these five names.
fn walk(value: &Value, aggregate: bool, depth: usize, path: &mut String, visit: &mut impl FnMut(&str, Stats)) {
    match value {
        Value::Number(n) => visit(path, Stats::one(n)),
        Value::Object(object) => {
            if let Some(stats) = aggregate.then(|| Stats::read(object)).flatten() {
                visit(path, stats);
            } else if depth < MAX_DEPTH {
                for (key, value) in object {
                    let length = path.len();
                    path.push('\0');
                    path.push_str(key);
                    walk(value, aggregate, depth + 1, path, visit);
                    path.truncate(length);
                }
            }
        }
        _ => {}
    }
}

/// A payload's numbers. Payloads with numbers at the same places have the same shape, and only those are merged.
#[derive(Debug)]
pub(crate) struct Numbers {
    pub stats: Vec<Stats>,
    /// The places.
    pub shape: String,
    value: Value,
    aggregate: bool,
}

impl Numbers {
    /// None when the payload is no JSON number or object with a number in it, or too large.
    pub fn read(payload: &[u8], aggregate: bool) -> Option<Self> {
        // A look at the first byte spares the parser what cannot be one.
        let first = payload.iter().find(|b| !b.is_ascii_whitespace())?;
        if payload.len() > MAX_PAYLOAD_BYTES || !matches!(first, b'{' | b'-' | b'0'..=b'9') {
            return None;
        }
        let value: Value = serde_json::from_slice(payload).ok()?;
        let (mut stats, mut shape) = (Vec::new(), String::new());
        walk(&value, aggregate, 0, &mut String::new(), &mut |path, one| {
            shape.push_str(path);
            shape.push('\u{1}');
            stats.push(one);
        });
        (1..=MAX_NUMBERS).contains(&stats.len()).then_some(Self { stats, shape, value, aggregate })
    }

    /// The payload of an aggregate: this one, with each number replaced by what is known of it.
    pub fn with(self, stats: &[Stats]) -> Vec<u8> {
        fn replace(value: Value, aggregate: bool, depth: usize, stats: &mut std::slice::Iter<'_, Stats>) -> Value {
            match value {
                Value::Number(n) => stats.next().map_or(Value::Number(n), Stats::to_json),
                Value::Object(object) if aggregate && Stats::read(&object).is_some() => stats.next().map_or(Value::Object(object), Stats::to_json),
                Value::Object(object) if depth < MAX_DEPTH => {
                    Value::Object(object.into_iter().map(|(key, value)| (key, replace(value, aggregate, depth + 1, stats))).collect())
                }
                other => other,
            }
        }
        // Maps have string keys and numbers are finite, so serialising to memory cannot fail.
        serde_json::to_vec(&replace(self.value, self.aggregate, 0, &mut stats.iter())).unwrap_or_default()
    }
}

/// The user properties of an aggregate: the last record's own, and what it stands for.
pub(crate) fn properties<'a>(own: &[(&'a str, &'a str)], count: &'a str, from: &'a str, to: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut all: Vec<_> = own.iter().copied().filter(|(k, _)| ![AGGREGATED, FROM, TO].contains(k)).collect();
    all.extend([(AGGREGATED, count), (FROM, from), (TO, to)]);
    all
}

/// How many records one stands for, and since when.
pub(crate) fn stands_for<'a>(own: &[(&'a str, &'a str)], aggregate: bool, accepted_at: impl FnOnce() -> String) -> (u64, Cow<'a, str>) {
    let property = |name: &str| own.iter().rev().find(|(k, _)| *k == name).map(|(_, v)| *v);
    match (aggregate, property(AGGREGATED).and_then(|n| n.parse().ok()), property(FROM)) {
        (true, Some(count), Some(from)) => (count, Cow::Borrowed(from)),
        _ => (1, Cow::Owned(accepted_at())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Merges payloads as compaction does.
    fn merge(payloads: &[(Vec<u8>, bool)]) -> Vec<u8> {
        let mut all = Numbers::read(&payloads[0].0, payloads[0].1).unwrap();
        for (payload, aggregate) in &payloads[1..] {
            let next = Numbers::read(payload, *aggregate).unwrap();
            assert_eq!(next.shape, all.shape);
            let mut stats = all.stats;
            stats.iter_mut().zip(&next.stats).for_each(|(a, b)| a.add(b));
            all = Numbers { stats, ..next };
        }
        let stats = all.stats.clone();
        all.with(&stats)
    }

    fn value(payload: &[u8]) -> Value {
        serde_json::from_slice(payload).unwrap()
    }

    #[test]
    fn numbers_are_reduced_and_the_rest_is_the_last_one() {
        let raw = |v: Value| (v.to_string().into_bytes(), false);
        let merged = merge(&[raw(json!(3)), raw(json!(1)), raw(json!(2.75)), raw(json!(1.25))]);
        assert_eq!(value(&merged), json!({"count": 4, "last": 1.25, "max": 3, "mean": 2.0, "min": 1}));
        let merged = merge(&[
            raw(json!({"unit": "C", "at": {"t": 20, "ok": true}, "list": [1]})),
            raw(json!({"unit": "F", "at": {"t": 22, "ok": false}, "list": [2]})),
        ]);
        let t = json!({"count": 2, "last": 22, "max": 22, "mean": 21.0, "min": 20});
        assert_eq!(value(&merged), json!({"unit": "F", "at": {"t": t, "ok": false}, "list": [2]}));
        // Whole numbers beyond what a float holds are kept exactly.
        let (a, b) = (u64::MAX - 1, u64::MAX);
        assert_eq!(value(&merge(&[raw(json!(b)), raw(json!(a))]))["max"], json!(b));
    }

    #[test]
    fn what_has_no_numbers_or_is_too_large_is_left_alone() {
        for payload in ["on", "\"3\"", "[1,2]", "{\"a\":\"b\"}", "{\"a\":[1]}", "{", "", " ", "1 2", "1e999"] {
            assert!(Numbers::read(payload.as_bytes(), false).is_none(), "{payload}");
        }
        let many: Map<String, Value> = (0..65).map(|n| (n.to_string(), n.into())).collect();
        assert!(Numbers::read(&serde_json::to_vec(&many).unwrap(), false).is_none());
        assert!(Numbers::read(format!("{{\"a\":1,\"b\":\"{}\"}}", "x".repeat(MAX_PAYLOAD_BYTES)).as_bytes(), false).is_none());
        // A device's own object with the five names is not taken for an aggregate.
        let own = json!({"count": 1, "last": 2, "max": 3, "mean": 4, "min": 5}).to_string();
        assert_eq!((Numbers::read(own.as_bytes(), false).unwrap().stats.len(), Numbers::read(own.as_bytes(), true).unwrap().stats.len()), (5, 1));
    }

    proptest! {
        #[test]
        fn aggregates_of_aggregates_are_what_one_pass_gives(numbers in proptest::collection::vec(-1.0e300f64..1.0e300, 2..60), cuts in proptest::collection::vec(1usize..60, 0..5)) {
            let raw: Vec<_> = numbers.iter().map(|n| (json!({"v": n}).to_string().into_bytes(), false)).collect();
            let whole = value(&merge(&raw));
            let mut parts: Vec<Vec<(Vec<u8>, bool)>> = vec![Vec::new()];
            for (at, record) in raw.into_iter().enumerate() {
                if cuts.contains(&at) {
                    parts.push(Vec::new());
                }
                parts.last_mut().unwrap().push(record);
            }
            let merged: Vec<_> = parts.into_iter().map(|part| if part.len() == 1 { part[0].clone() } else { (merge(&part), true) }).collect();
            let again = value(&merge(&merged));
            for exact in ["count", "min", "max", "last"] {
                prop_assert_eq!(&whole["v"][exact], &again["v"][exact]);
            }
            let (a, b) = (whole["v"]["mean"].as_f64().unwrap(), again["v"]["mean"].as_f64().unwrap());
            let size = numbers.iter().fold(0.0f64, |m, n| m.max(n.abs()));
            prop_assert!((a - b).abs() <= size * 1e-12);
            let mean = numbers.iter().map(|n| n / numbers.len() as f64).sum::<f64>();
            prop_assert!((a - mean).abs() <= size * 1e-12);
        }

        #[test]
        fn hostile_payloads_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), aggregate: bool) {
            if let Some(numbers) = Numbers::read(&bytes, aggregate) {
                let stats = numbers.stats.clone();
                numbers.with(&stats);
            }
        }
    }
}
