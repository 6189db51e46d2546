//! The node's own small tables in one database, `node.db`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, params};
use selvedge::component::{Fut, Table, TableError, Tables};
use selvedge::telemetry::Metrics;
use tokio::sync::oneshot;

use crate::connect::{Journal, Location, open_writer};
use crate::metrics::DatabaseMetrics;
use crate::quarantine;
use crate::worker::{Change, Line, QueueError};

/// File name inside the data directory.
const FILE: &str = "node.db";
/// Only a backup that someone takes ever holds the lock for long.
const BUSY: Duration = Duration::from_secs(5);

/// Durable tables in `node.db` in the node's data directory. Writes of all tables share commits. A database that cannot be
/// read is set aside as `node.db.corrupt-<n>`, and an empty one takes its place.
pub struct SqliteTables {
    line: Line<RowChange>,
    /// Where the database went that was found broken.
    set_aside: Option<PathBuf>,
}

impl std::fmt::Debug for SqliteTables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteTables").finish_non_exhaustive()
    }
}

impl SqliteTables {
    /// Opens the database in `data_dir`, which is made if need be.
    ///
    /// # Errors
    /// When the folder or file cannot be made, opened or written for another reason than its content.
    pub async fn open(data_dir: &Path, metrics: &Metrics) -> Result<Self, TableError> {
        let path = data_dir.join(FILE);
        let metrics = DatabaseMetrics::new(metrics, FILE);
        let opened = tokio::task::spawn_blocking(move || Self::open_file(&path, metrics)).await;
        opened.map_err(|e| e.to_string()).and_then(|r| r).map_err(|detail| TableError { table: FILE.to_owned(), detail })
    }

    fn open_file(path: &Path, metrics: DatabaseMetrics) -> Result<Self, String> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        let mut set_aside = None;
        let db = match connect(path) {
            Err(error) if quarantine::is_corruption(&error) => {
                let place = quarantine::set_aside(path).map_err(|e| format!("{} is broken and cannot be set aside: {e}", path.display()))?;
                tracing::error!(%error, kept_as = %place.display(), "the node's own database is broken: set aside, starting with an empty one");
                set_aside = Some(place);
                connect(path)
            }
            other => other,
        };
        let db = db.map_err(|e| format!("{}: {e}", path.display()))?;
        let line = Line::start("node", db, metrics, None).map_err(|e| format!("no thread for the database: {e}"))?;
        Ok(Self { line, set_aside })
    }

    /// Writes what is queued and closes the file; calls after it fail.
    pub async fn close(&self) {
        self.line.close().await;
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let (db, _) = open_writer(&Location::file(path), BUSY, Journal::Wal)?;
    // Small, and all of it is read at start anyway: a broken page shows now, while there is a remedy.
    let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        return Err(rusqlite::Error::SqliteFailure(code, Some(verdict)));
    }
    Ok(db)
}

/// Statement texts of one table.
#[derive(Debug)]
struct RowStatements {
    name: String,
    load: String,
    put: String,
    delete: String,
}

impl RowStatements {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            load: format!("SELECT key, value FROM rows_{name} ORDER BY key"),
            put: format!("INSERT INTO rows_{name} (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2"),
            delete: format!("DELETE FROM rows_{name} WHERE key = ?1"),
        }
    }
}

type Reply = oneshot::Sender<Result<(), TableError>>;

enum Row {
    Make,
    Put(String, Bytes),
    Delete(String),
}

struct RowChange {
    row: Row,
    statements: Arc<RowStatements>,
    reply: Reply,
}

impl Change for RowChange {
    fn bytes(&self) -> usize {
        match &self.row {
            Row::Make => 0,
            Row::Put(key, value) => key.len() + value.len(),
            Row::Delete(key) => key.len(),
        }
    }

    fn apply(&mut self, db: &Connection) -> rusqlite::Result<()> {
        match &self.row {
            Row::Make => {
                let name = &self.statements.name;
                db.execute(&format!("CREATE TABLE IF NOT EXISTS rows_{name} (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL)"), [])
            }
            Row::Put(key, value) => db.prepare_cached(&self.statements.put)?.execute(params![key, value.as_ref()]),
            Row::Delete(key) => db.prepare_cached(&self.statements.delete)?.execute([key]),
        }
        .map(|_| ())
    }

    fn answer(self, outcome: Result<(), String>) {
        let outcome = outcome.map_err(|detail| TableError { table: self.statements.name.clone(), detail });
        // Whoever asked may have gone; the row stands.
        let _ = self.reply.send(outcome);
    }
}

/// One table.
struct SqliteTable {
    line: Line<RowChange>,
    statements: Arc<RowStatements>,
}

impl SqliteTable {
    fn failed(&self, detail: impl ToString) -> TableError {
        TableError { table: self.statements.name.clone(), detail: detail.to_string() }
    }

    fn queue(&self, row: Row) -> Fut<'static, Result<(), TableError>> {
        let (reply, answer) = oneshot::channel();
        let closed = self.failed(QueueError::Closed);
        // Queued before the future exists: the order of calls is the order of rows, whoever polls first.
        match self.line.change(RowChange { row, statements: self.statements.clone(), reply }) {
            Ok(()) => Box::pin(async move { answer.await.unwrap_or(Err(closed)) }),
            Err(error) => {
                let refused = self.failed(error);
                Box::pin(async move { Err(refused) })
            }
        }
    }
}

impl Tables for SqliteTables {
    fn set_aside(&self) -> Option<PathBuf> {
        self.set_aside.clone()
    }

    fn open<'a>(&'a self, name: &'a str) -> Fut<'a, Result<Arc<dyn Table>, TableError>> {
        Box::pin(async move {
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
                return Err(TableError { table: name.to_owned(), detail: "a table's name has small letters, digits and underscores".to_owned() });
            }
            let table = SqliteTable { line: self.line.clone(), statements: Arc::new(RowStatements::new(name)) };
            table.queue(Row::Make).await?;
            Ok(Arc::new(table) as Arc<dyn Table>)
        })
    }
}

impl Table for SqliteTable {
    fn load<'a>(&'a self) -> Fut<'a, Result<Vec<(String, Bytes)>, TableError>> {
        let (reply, answer) = oneshot::channel();
        let statements = self.statements.clone();
        let read = move |db: &Connection| {
            let rows: rusqlite::Result<Vec<(String, Bytes)>> = db.prepare_cached(&statements.load).and_then(|mut statement| {
                let rows = statement.query_map([], |row| Ok((row.get(0)?, Bytes::from(row.get::<_, Vec<u8>>(1)?))))?;
                rows.collect()
            });
            let _ = reply.send(rows.map_err(|e| e.to_string()));
        };
        let queued = self.line.read(Box::new(read));
        Box::pin(async move {
            queued.map_err(|e| self.failed(e))?;
            answer.await.map_err(|_| self.failed(QueueError::Closed))?.map_err(|e| self.failed(e))
        })
    }

    fn put(&self, key: &str, value: Bytes) -> Fut<'static, Result<(), TableError>> {
        self.queue(Row::Put(key.to_owned(), value))
    }

    fn delete(&self, key: &str) -> Fut<'static, Result<(), TableError>> {
        self.queue(Row::Delete(key.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open(dir: &Path) -> SqliteTables {
        SqliteTables::open(dir, &Metrics::new()).await.unwrap()
    }

    #[tokio::test]
    async fn tables_pass_the_shared_suite() {
        let dir = tempfile::tempdir().unwrap();
        selvedge_conformance::tables(&open(dir.path()).await).await;
    }

    #[tokio::test]
    async fn rows_are_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let tables = open(&dir.path().join("made")).await;
        let table = tables.open("sessions").await.unwrap();
        drop(table.put("dropped future", Bytes::from_static(b"1")));
        table.put("a", Bytes::from_static(b"2")).await.unwrap();
        drop((table, tables)); // no close: as if the process had been killed after the answer

        let table = open(&dir.path().join("made")).await.open("sessions").await.unwrap();
        let rows = table.load().await.unwrap();
        assert_eq!(rows, [("a".to_owned(), Bytes::from_static(b"2")), ("dropped future".to_owned(), Bytes::from_static(b"1"))]);
    }

    #[tokio::test]
    async fn a_broken_database_is_set_aside_and_the_node_starts_empty() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), [b"no database at all".as_slice(); 100].concat()).unwrap();
        let tables = open(dir.path()).await;
        let table = tables.open("t").await.unwrap();
        assert!(table.load().await.unwrap().is_empty());
        assert_eq!(tables.set_aside(), Some(dir.path().join("node.db.corrupt-1")), "for the node's alarm");
        table.put("k", Bytes::new()).await.unwrap();
        assert!(dir.path().join("node.db.corrupt-1").exists());
    }

    #[tokio::test]
    async fn a_broken_page_is_found_at_start() {
        let dir = tempfile::tempdir().unwrap();
        let tables = open(dir.path()).await;
        let table = tables.open("t").await.unwrap();
        for n in 0..200 {
            drop(table.put(&format!("key {n}"), Bytes::from(vec![n; 200])));
        }
        tables.close().await;
        assert!(table.put("k", Bytes::new()).await.is_err(), "closed");
        drop((table, tables));
        let path = dir.path().join(FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[8192..8292].fill(0xff);
        std::fs::write(&path, bytes).unwrap();

        let tables = open(dir.path()).await;
        assert!(tables.open("t").await.unwrap().load().await.unwrap().is_empty());
        assert!(dir.path().join("node.db.corrupt-1").exists());
    }

    #[tokio::test]
    async fn a_place_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = SqliteTables::open(&dir.path().join("file"), &Metrics::new()).await.unwrap_err();
        assert!(error.detail.contains("file"), "{error}");
    }
}
