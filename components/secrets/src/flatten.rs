//! From nested JSON to flat names and texts.

use serde_json::Value;

/// Deepest nesting that is followed; the parser itself stops at 128.
const MAX_DEPTH: usize = 128;

/// Adds the leaves below `value`, each under the names of its path joined by `separator` (array elements by their index).
pub(crate) fn flatten(path: &str, value: &Value, separator: &str, add: &mut dyn FnMut(String, String)) {
    walk(path, value, separator, add, MAX_DEPTH);
}

fn walk(path: &str, value: &Value, separator: &str, add: &mut dyn FnMut(String, String), depth: usize) {
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}{separator}{name}") };
    match value {
        _ if depth == 0 => {}
        Value::Object(members) => members.iter().for_each(|(name, member)| walk(&join(name), member, separator, add, depth - 1)),
        Value::Array(elements) => {
            elements.iter().enumerate().for_each(|(index, element)| walk(&join(&index.to_string()), element, separator, add, depth - 1));
        }
        leaf => add(path.to_owned(), text(leaf)),
    }
}

/// The text of a leaf. What is no text looks as Dapr shows it: its Go code formats any value with the verb for texts, and
/// applications that read such secrets today depend on what comes out.
fn text(leaf: &Value) -> String {
    match leaf {
        Value::String(text) => text.clone(),
        Value::Bool(value) => format!("%!s(bool={value})"),
        Value::Number(number) => format!("%!s(float64={})", go_float(number.as_f64().unwrap_or_default())),
        _ => "%!s(<nil>)".to_owned(),
    }
}

/// A number as Go's `%v` writes a float64: shortest digits, with an exponent from a million on and below 1e-4.
fn go_float(number: f64) -> String {
    let scientific = format!("{number:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(e) if (-4..6).contains(&e) => format!("{number}"),
        Ok(e) => format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.unsigned_abs()),
        Err(_) => scientific,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_go_shows_them() {
        for (json, shown) in [
            ("5", "5"),
            ("5.50", "5.5"),
            ("100000", "100000"),
            ("1000000", "1e+06"),
            ("123456789", "1.23456789e+08"),
            ("1e21", "1e+21"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("-3", "-3"),
            ("1e100", "1e+100"),
        ] {
            let number: Value = serde_json::from_str(json).unwrap();
            assert_eq!(text(&number), format!("%!s(float64={shown})"));
        }
        assert_eq!(text(&Value::Bool(true)), "%!s(bool=true)");
        assert_eq!(text(&Value::Null), "%!s(<nil>)");
    }
}
