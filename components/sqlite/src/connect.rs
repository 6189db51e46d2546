//! Where a database is and how it is opened.

use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use rusqlite::{Connection, OpenFlags};

/// Prepared statements kept per connection; more than any component here uses.
const STATEMENTS: usize = 48;

/// A connection string that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    /// As SQLite takes it: `file:...`, query included.
    pub uri: String,
    /// The file; none in memory.
    pub path: Option<PathBuf>,
    /// Opened without the right to write (`mode=ro`, `immutable=1`).
    pub read_only: bool,
    /// Settings that the string asks for (`_pragma=name(value)`).
    pub pragmas: Vec<(String, String)>,
    /// `_txlock` had another value than `immediate`, which is what is used.
    pub other_txlock: bool,
}

impl Location {
    /// Reads a path, a `file:` URI or `:memory:`, each with or without a query (Dapr's rules for `connectionString`).
    ///
    /// # Errors
    /// Says what is not accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let uri = if text.get(..5).is_some_and(|p| p.eq_ignore_ascii_case("file:")) { text.to_owned() } else { format!("file:{text}") };
        let without_fragment = uri.split('#').next().unwrap_or_default();
        let (name, query) = without_fragment.split_once('?').unwrap_or((without_fragment, ""));
        let name = &name[5..];
        if name.is_empty() && query.is_empty() {
            return Err("the path is empty".to_owned());
        }
        let mut location = Self { uri: uri.clone(), path: None, read_only: false, pragmas: Vec::new(), other_txlock: false };
        let mut memory = name.eq_ignore_ascii_case(":memory:") || name.is_empty();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8().map_err(|_| format!("{key} is not UTF-8"))?;
            match key {
                "mode" if value == "memory" => memory = true,
                "mode" if value == "ro" => location.read_only = true,
                "immutable" if value == "1" => location.read_only = true,
                "_txlock" => location.other_txlock |= !value.eq_ignore_ascii_case("immediate"),
                "_pragma" => location.pragmas.push(pragma(&value)?),
                _ => {}
            }
        }
        if !memory {
            let file = match name.strip_prefix("//") {
                Some(rest) => rest.find('/').map_or("", |slash| &rest[slash..]),
                None => name,
            };
            location.path = Some(PathBuf::from(percent_decode_str(file).decode_utf8().map_err(|_| "the path is not UTF-8".to_owned())?.as_ref()));
        }
        Ok(location)
    }

    /// A plain file.
    pub fn file(path: &Path) -> Self {
        let escaped = percent_encoding::utf8_percent_encode(&path.to_string_lossy(), PATH).to_string();
        Self { uri: format!("file:{escaped}"), path: Some(path.to_owned()), read_only: false, pragmas: Vec::new(), other_txlock: false }
    }
}

/// What a URI path has to escape.
const PATH: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'?').add(b'#').add(b'%');

fn pragma(text: &str) -> Result<(String, String), String> {
    let form = || format!("_pragma={text} is not of the form name(value)");
    let (name, value) = match text.split_once('(') {
        Some((name, rest)) => (name, rest.strip_suffix(')').ok_or_else(form)?),
        None => text.split_once('=').ok_or_else(form)?,
    };
    let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
    if matches!(name.as_str(), "busy_timeout" | "journal_mode" | "foreign_keys") {
        return Err(format!("_pragma must not set {name}: it is managed by the component"));
    }
    let plain = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if !plain(&name) || !plain(value) {
        return Err(form());
    }
    Ok((name, value.to_owned()))
}

/// How the journal is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Journal {
    /// Write-ahead log: readers do not wait for writers.
    Wal,
    /// Rollback journal.
    Delete,
    /// In memory, for databases that are there too.
    Memory,
}

/// Opens a connection that writes, and sets it up. Returns the journal mode that SQLite agreed to.
///
/// # Errors
/// What SQLite says.
pub(crate) fn open_writer(location: &Location, busy: Duration, journal: Journal) -> rusqlite::Result<(Connection, Journal)> {
    let db = open(location, busy)?;
    let wanted = match journal {
        Journal::Wal => "WAL",
        Journal::Delete => "DELETE",
        Journal::Memory => "MEMORY",
    };
    let got = if location.read_only {
        // The journal of a database that may not be written is what its owner made it.
        Journal::Delete
    } else {
        let mode: String = db.query_row(&format!("PRAGMA journal_mode={wanted}"), [], |row| row.get(0))?;
        match mode.to_ascii_lowercase().as_str() {
            "wal" => Journal::Wal,
            "memory" => Journal::Memory,
            _ => Journal::Delete,
        }
    };
    // FULL: a commit is on the disk when the caller hears of it. The journal's file is cut back after a checkpoint.
    db.execute_batch("PRAGMA synchronous=FULL; PRAGMA journal_size_limit=4194304;")?;
    apply(&db, &location.pragmas)?;
    Ok((db, got))
}

/// Opens a second connection that only reads.
///
/// # Errors
/// What SQLite says.
pub(crate) fn open_reader(location: &Location, busy: Duration) -> rusqlite::Result<Connection> {
    let db = open(location, busy)?;
    db.execute_batch("PRAGMA query_only=1")?;
    apply(&db, &location.pragmas)?;
    Ok(db)
}

fn open(location: &Location, busy: Duration) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(&location.uri, flags)?;
    db.busy_timeout(busy)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(db)
}

fn apply(db: &Connection, pragmas: &[(String, String)]) -> rusqlite::Result<()> {
    pragmas.iter().try_for_each(|(name, value)| db.execute_batch(&format!("PRAGMA {name}={value}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings_in_all_their_forms() {
        let path = |text: &str| Location::parse(text).unwrap().path;
        assert_eq!(path("data.db"), Some("data.db".into()));
        assert_eq!(path("/var/lib/x/data.db?cache=private"), Some("/var/lib/x/data.db".into()));
        assert_eq!(path("file:///var/lib/a%20b.db"), Some("/var/lib/a b.db".into()));
        assert_eq!(path("file:rel.db?mode=rwc"), Some("rel.db".into()));
        for memory in [":memory:", "file::memory:", "file:name?mode=memory", ":memory:?cache=shared"] {
            assert_eq!(path(memory), None, "{memory}");
        }
        assert!(Location::parse("x.db?mode=ro").unwrap().read_only);
        assert!(Location::parse("x.db?immutable=1").unwrap().read_only);
        assert!(Location::parse("x.db?_txlock=deferred").unwrap().other_txlock);
        assert!(!Location::parse("x.db?_txlock=immediate").unwrap().other_txlock);
        assert!(Location::parse("").is_err());
    }

    #[test]
    fn pragmas_of_the_string_are_kept_but_for_the_managed_ones() {
        let location = Location::parse("x.db?_pragma=synchronous(NORMAL)&_pragma=cache_size%28-512%29").unwrap();
        assert_eq!(location.pragmas, [("synchronous".into(), "NORMAL".into()), ("cache_size".into(), "-512".into())]);
        for bad in ["journal_mode(WAL)", "busy_timeout(1)", "FOREIGN_KEYS(1)", "x", "x(1;drop table state)", "x(1"] {
            assert!(Location::parse(&format!("x.db?_pragma={bad}")).is_err(), "{bad}");
        }
    }
}
