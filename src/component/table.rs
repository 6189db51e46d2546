//! Small durable tables for the node's own bookkeeping: retained messages, device sessions.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::Fut;

/// A table could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("table {table}: {detail}")]
pub struct TableError {
    /// Which table.
    pub table: String,
    /// What happened.
    pub detail: String,
}

/// Keys to bytes, durable when a write returns. Writes of one key take effect in the order they were called.
/// Meant for at most some ten thousand rows that are all read at start.
pub trait Table: Send + Sync + 'static {
    /// All rows.
    fn load<'a>(&'a self) -> Fut<'a, Result<Vec<(String, Bytes)>, TableError>>;
    /// Writes a row. The order of calls counts, not of polls: an implementation takes its place in line before it returns the future.
    fn put(&self, key: &str, value: Bytes) -> Fut<'static, Result<(), TableError>>;
    /// Deletes a row; one that is not there is no error.
    fn delete(&self, key: &str) -> Fut<'static, Result<(), TableError>>;
}

/// Opens tables by name.
pub trait Tables: Send + Sync + 'static {
    /// The table of this name (`[a-z0-9_]+`), made if need be.
    fn open<'a>(&'a self, name: &'a str) -> Fut<'a, Result<Arc<dyn Table>, TableError>>;
    /// A file that was found damaged when the tables were opened, by the name under which it was set aside: the tables began empty.
    fn set_aside(&self) -> Option<PathBuf> {
        None
    }
}

/// Tables that live as long as the process; for tests and for nodes that may not write.
#[derive(Debug, Default)]
pub struct MemoryTables {
    tables: Mutex<BTreeMap<String, Arc<MemoryTable>>>,
}

#[derive(Debug, Default)]
struct MemoryTable {
    rows: Mutex<BTreeMap<String, Bytes>>,
}

impl Tables for MemoryTables {
    fn open<'a>(&'a self, name: &'a str) -> Fut<'a, Result<Arc<dyn Table>, TableError>> {
        let table = self.tables.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default().clone();
        Box::pin(async move { Ok(table as Arc<dyn Table>) })
    }
}

impl Table for MemoryTable {
    fn load<'a>(&'a self) -> Fut<'a, Result<Vec<(String, Bytes)>, TableError>> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        Box::pin(async move { Ok(rows) })
    }

    fn put(&self, key: &str, value: Bytes) -> Fut<'static, Result<(), TableError>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), value);
        Box::pin(async { Ok(()) })
    }

    fn delete(&self, key: &str) -> Fut<'static, Result<(), TableError>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        Box::pin(async { Ok(()) })
    }
}
