//! Logs in daprd's two forms: logfmt text, or JSON, one line per event on the given writer; or entries of the system journal.

use std::fmt::Write as _;
use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use super::journal::{self, Journal};
use crate::time::Clock;

/// Levels as they are written, the most talkative first.
const LEVELS: [Level; 4] = [Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR];

/// The least level that is written. Clones share it, and it can be changed at any time.
#[derive(Debug, Clone)]
pub struct LogLevel(Arc<AtomicU8>);

impl LogLevel {
    /// Begins with this level; what is finer than `debug` is `debug`.
    #[must_use]
    pub fn new(level: Level) -> Self {
        let this = Self(Arc::default());
        this.0.store(Self::number(level), Ordering::Relaxed);
        this
    }

    fn number(level: Level) -> u8 {
        LEVELS.iter().position(|l| *l == level).unwrap_or_default() as u8
    }

    /// The level.
    #[must_use]
    pub fn get(&self) -> Level {
        LEVELS[usize::from(self.0.load(Ordering::Relaxed)).min(LEVELS.len() - 1)]
    }

    /// Changes it, from the next event on; gives the level before.
    pub fn set(&self, level: Level) -> Level {
        let before = self.get();
        self.0.store(Self::number(level), Ordering::Relaxed);
        // Every place that logs remembers whether anybody listens.
        tracing_core::callsite::rebuild_interest_cache();
        before
    }
}

/// A level by its name, as daprd's flag has them (`fatal` is written as `error`).
///
/// # Errors
/// What is accepted.
pub fn parse_level(text: &str) -> Result<Level, String> {
    match text.to_ascii_lowercase().as_str() {
        "debug" => Ok(Level::DEBUG),
        "info" => Ok(Level::INFO),
        "warn" | "warning" => Ok(Level::WARN),
        "error" | "fatal" => Ok(Level::ERROR),
        _ => Err("debug, info, warn, error or fatal".to_owned()),
    }
}

/// What every line carries.
#[derive(Clone)]
pub struct LogOptions {
    /// Least level that is written.
    pub level: LogLevel,
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
    journal: Option<Journal>,
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

/// The word for a level.
#[must_use]
pub fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        _ => "debug",
    }
}

/// A logfmt value: quoted when it is not plain, as logrus does.
pub(super) fn quote(out: &mut String, text: &str) {
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

/// Where a line comes from: what it says itself, else the module's path, dotted as daprd's scopes are.
fn scope(fields: &mut Fields, target: &str) -> String {
    fields.scope.take().unwrap_or_else(|| target.replace("::", "."))
}

/// One event as a line, line feed included.
fn render(options: &LogOptions, level: Level, target: &str, mut fields: Fields) -> String {
    let time = options.clock.now().to_rfc3339();
    let scope = scope(&mut fields, target);
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
        *metadata.level() <= self.options.level.get() && (ours || *metadata.level() <= Level::WARN)
    }

    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let (level, target) = (*event.metadata().level(), event.metadata().target());
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut prefix = String::new();
        if let Some(journal) = &self.journal {
            let scope = scope(&mut fields, target);
            if journal.send(&journal::entry(level, &scope, &self.options.app_id, &fields.message, &fields.rest)).is_ok() {
                return;
            }
            // Nobody takes it there now: as a line, whose level the journal reads from its beginning (`sd-daemon(3)`).
            fields.scope = Some(scope);
            prefix = format!("<{}>", journal::priority(level));
        }
        let line = prefix + &render(&self.options, level, target, fields);
        // Nobody is left to tell when the log itself cannot be written.
        let _ = self.writer.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
    }
}

/// Sends all log events of the process to the journal if there is a way, and else, or when it takes nothing, to `writer`. Called once; a second
/// call is without effect.
pub fn start(options: LogOptions, journal: Option<Journal>, writer: impl Write + Send + 'static) {
    let _ = tracing_subscriber::registry().with(LogLayer { options, journal, writer: Mutex::new(writer) }).try_init();
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::time::ManualClock;

    fn options() -> LogOptions {
        LogOptions {
            level: LogLevel::new(Level::INFO),
            json: false,
            app_id: "app".into(),
            instance: "box 1".into(),
            version: "0.1.0".into(),
            clock: Arc::new(ManualClock::default()),
        }
    }

    /// What was written, shared with a test.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    #[test]
    fn events_go_to_the_journal_with_their_fields_and_as_lines_with_a_priority_when_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (path, stream) = (folder.path().join("socket"), tempfile::tempfile().unwrap());
        let journald = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        journald.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let variable = stream.metadata().map(|m| format!("{}:{}", MetadataExt::dev(&m), MetadataExt::ino(&m))).unwrap();
        let written = Written::default();
        let journal = Journal::behind(&stream, Some(&variable), &path);
        let layer = LogLayer { options: options(), journal, writer: Mutex::new(written.clone()) };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(upstream = "cloud", attempt = 3, "the link\nis down");
            let mut entry = [0; 4096];
            let length = journald.recv(&mut entry).unwrap();
            let fields = journal::tests::parsed(&entry[..length]);
            for (name, value) in [
                ("PRIORITY", "4"),
                ("SYSLOG_IDENTIFIER", "selvedge"),
                ("MESSAGE", "the link\nis down upstream=cloud attempt=3"),
                ("SELVEDGE_UPSTREAM", "cloud"),
                ("SELVEDGE_ATTEMPT", "3"),
                ("SELVEDGE_SCOPE", "selvedge.telemetry.logs.tests"),
            ] {
                assert_eq!(fields[name], value, "{name}");
            }
            assert_eq!(written.text(), "");
            std::fs::remove_file(&path).unwrap();
            tracing::info!("nobody is there");
        });
        assert!(written.text().starts_with("<6>time=\"1970-01-01T00:00:00.000Z\" level=info msg=\"nobody is there\""), "{}", written.text());
    }

    #[test]
    fn the_level_changes_while_events_come() {
        let (written, options) = (Written::default(), options());
        let level = options.level.clone();
        let layer = LogLayer { options, journal: None, writer: Mutex::new(written.clone()) };
        let say = || tracing::debug!("a detail");
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            say();
            assert_eq!(written.text(), "");
            assert_eq!(level.set(Level::DEBUG), Level::INFO);
            say();
            assert_eq!(written.text().matches("a detail").count(), 1);
            level.set(Level::ERROR);
            say();
            tracing::warn!("less than an error");
        });
        assert_eq!(written.text().lines().count(), 1, "{}", written.text());
    }

    #[test]
    fn lines_in_both_forms() {
        let mut options = options();
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
