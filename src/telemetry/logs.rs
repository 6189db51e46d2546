//! Logs in daprd's two forms: logfmt text, or JSON. One line per event, on the given writer.

use std::fmt::Write as _;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::time::Clock;

/// What every line carries.
#[derive(Clone)]
pub struct LogOptions {
    /// Least level that is written.
    pub level: Level,
    /// JSON instead of text.
    pub json: bool,
    /// `app_id`.
    pub app_id: String,
    /// `instance`: the host's name.
    pub instance: String,
    /// `ver`.
    pub version: String,
    /// Time of the lines.
    pub clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for LogOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogOptions").field("level", &self.level).field("json", &self.json).finish_non_exhaustive()
    }
}

struct LogLayer<W> {
    options: LogOptions,
    writer: Mutex<W>,
}

#[derive(Default)]
struct Fields {
    message: String,
    scope: Option<String>,
    rest: Vec<(&'static str, Value)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            "scope" => self.scope = value.as_str().map(str::to_owned),
            name => self.rest.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, Value::String(format!("{value:?}")));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::String(value.to_owned()));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, Value::String(value.to_string()));
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        _ => "debug",
    }
}

/// A logfmt value: quoted when it is not plain, as logrus does.
fn quote(out: &mut String, text: &str) {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/@^+".contains(&b));
    if plain {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// One event as a line, line feed included.
fn render(options: &LogOptions, level: Level, target: &str, mut fields: Fields) -> String {
    let time = options.clock.now().to_rfc3339();
    let scope = fields.scope.take().unwrap_or_else(|| {
        // Module paths of this project say where a line comes from; daprd's scopes are dotted.
        target.replace("::", ".")
    });
    if options.json {
        let mut line = Map::new();
        for (name, value) in fields.rest {
            line.insert(name.to_owned(), value);
        }
        for (name, value) in [
            ("time", time.as_str()),
            ("level", level_name(level)),
            ("msg", &fields.message),
            ("app_id", &options.app_id),
            ("instance", &options.instance),
            ("scope", &scope),
            ("type", "log"),
            ("ver", &options.version),
        ] {
            line.insert(name.to_owned(), Value::String(value.to_owned()));
        }
        return format!("{}\n", Value::Object(line));
    }
    let mut line = format!("time=\"{time}\" level={} msg=", level_name(level));
    quote(&mut line, &fields.message);
    // logrus quotes every message that is more than a word; ours are sentences.
    for (name, value) in &fields.rest {
        let _ = write!(line, " {name}=");
        match value {
            Value::String(text) => quote(&mut line, text),
            other => line.push_str(&other.to_string()),
        }
    }
    for (name, value) in [("app_id", &options.app_id), ("instance", &options.instance), ("scope", &scope)] {
        let _ = write!(line, " {name}=");
        quote(&mut line, value);
    }
    line.push_str(" type=log ver=");
    quote(&mut line, &options.version);
    line.push('\n');
    line
}

impl<S: Subscriber, W: Write + Send + 'static> Layer<S> for LogLayer<W> {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _context: Context<'_, S>) -> bool {
        // Dependencies speak at warning or above only.
        let ours = metadata.target().starts_with("selvedge");
        *metadata.level() <= self.options.level && (ours || *metadata.level() <= Level::WARN)
    }

    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = render(&self.options, *event.metadata().level(), event.metadata().target(), fields);
        // Nobody is left to tell when the log itself cannot be written.
        let _ = self.writer.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
    }
}

/// Sends all log events of the process to `writer`. Called once; a second call is without effect.
pub fn start(options: LogOptions, writer: impl Write + Send + 'static) {
    let _ = tracing_subscriber::registry().with(LogLayer { options, writer: Mutex::new(writer) }).try_init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::ManualClock;

    #[test]
    fn lines_in_both_forms() {
        let mut options = LogOptions {
            level: Level::INFO,
            json: false,
            app_id: "app".into(),
            instance: "box 1".into(),
            version: "0.1.0".into(),
            clock: Arc::new(ManualClock::default()),
        };
        let fields = || Fields { message: "a \"b\"\nc".into(), scope: None, rest: vec![("bytes", 3.into()), ("error", "no room".into())] };
        assert_eq!(
            render(&options, Level::WARN, "selvedge::hub", fields()),
            "time=\"1970-01-01T00:00:00.000Z\" level=warning msg=\"a \\\"b\\\"\\nc\" bytes=3 error=\"no room\" app_id=app instance=\"box 1\" scope=selvedge.hub type=log ver=0.1.0\n"
        );
        options.json = true;
        let line: Value = serde_json::from_str(&render(&options, Level::INFO, "x", fields())).unwrap();
        assert_eq!((line["level"].as_str(), line["msg"].as_str(), line["bytes"].as_i64()), (Some("info"), Some("a \"b\"\nc"), Some(3)));
    }
}
