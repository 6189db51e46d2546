//! JSON as Go writes it: Dapr re-encodes what passes its HTTP API, and applications see the result.

use serde_json::Value;

/// Sorted keys, numbers as 64-bit floats, `<`, `>`, `&` and the line separators escaped.
#[must_use]
pub fn go_json(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value);
    out
}

fn write(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => out.push_str(&number(n)),
        Value::String(s) => text(out, s),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(out, item);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            // The map is sorted already.
            for (i, (k, v)) in map.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                text(out, k);
                out.push(':');
                write(out, v);
            }
            out.push('}');
        }
    }
}

fn number(n: &serde_json::Number) -> String {
    let Some(f) = n.as_f64() else { return n.to_string() };
    if f == 0.0 {
        return if f.is_sign_negative() { "-0".to_owned() } else { "0".to_owned() };
    }
    let size = f.abs();
    if (1e-6..1e21).contains(&size) {
        return format!("{f}");
    }
    // Go: at least one digit in the exponent, with its sign.
    let text = format!("{f:e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) if exponent.starts_with('-') => format!("{mantissa}e-{:0>2}", &exponent[1..]),
        Some((mantissa, exponent)) => format!("{mantissa}e+{exponent:0>2}"),
        None => text,
    }
}

fn text(out: &mut String, s: &str) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_writes_it() {
        for (given, written) in [
            (r#"{"b":1,"a":"<&>"}"#, r#"{"a":"\u003c\u0026\u003e","b":1}"#),
            ("[1.0, 2.5, 1e21, 1e-7, 9007199254740993, -0]", "[1,2.5,1e+21,1e-07,9007199254740992,-0]"),
            (r#""a\nb\u0001""#, r#""a\nb\u0001""#),
        ] {
            let value: Value = serde_json::from_str(given).unwrap();
            assert_eq!(go_json(&value), written);
        }
    }
}
