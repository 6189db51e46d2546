//! What the database thread does for the state store.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use selvedge::component::{Concurrency, DeleteRequest, KeysLikePage, KeysLikeRequest, SetRequest, StateError, StateItem, StateOperation, StateValue};
use selvedge::time::{Clock, Timestamp};
use tokio::sync::oneshot;

use super::statements::Statements;
use crate::clock_text;
use crate::worker::{Change, execute};

/// Keys of a page when the caller sets no bound; the token leads to the rest.
const PAGE_KEYS: u32 = 65_536;
/// Expired rows deleted in one piece, so that requests do not wait long.
const CLEANUP_ROWS: u32 = 1_000;

type Results = Vec<Result<(), StateError>>;

/// Writes of one request.
pub(super) struct StateChange {
    operations: Vec<StateOperation>,
    /// All or nothing, or each on its own.
    atomic: bool,
    statements: Arc<Statements>,
    clock: Arc<dyn Clock>,
    results: Results,
    reply: oneshot::Sender<Results>,
}

impl StateChange {
    pub fn new(
        operations: Vec<StateOperation>,
        atomic: bool,
        statements: Arc<Statements>,
        clock: Arc<dyn Clock>,
        reply: oneshot::Sender<Results>,
    ) -> Self {
        let results = Vec::with_capacity(operations.len());
        Self { operations, atomic, statements, clock, results, reply }
    }

    fn apply_each(&mut self, db: &Connection, now: Timestamp) -> rusqlite::Result<()> {
        for operation in &self.operations {
            let result = match run(db, &self.statements, now, operation) {
                Ok(result) => result,
                Err(error) if db.is_autocommit() => return Err(error),
                Err(error) => Err(unavailable(&error)),
            };
            self.results.push(result);
        }
        Ok(())
    }

    fn apply_all(&mut self, db: &Connection, now: Timestamp) -> rusqlite::Result<()> {
        execute(db, "SAVEPOINT request")?;
        for operation in &self.operations {
            let outcome = run(db, &self.statements, now, operation);
            match outcome {
                Ok(Ok(())) => {}
                Err(error) if db.is_autocommit() => return Err(error),
                failed => {
                    if let Err(error) = execute(db, "ROLLBACK TO request").and_then(|()| execute(db, "RELEASE request")) {
                        // Nothing of it may stay: give up the group, which is then run again one by one.
                        execute(db, "ROLLBACK")?;
                        return Err(error);
                    }
                    self.results.push(failed.unwrap_or_else(|error| Err(unavailable(&error))));
                    return Ok(());
                }
            }
        }
        execute(db, "RELEASE request")
    }
}

impl Change for StateChange {
    fn bytes(&self) -> usize {
        let size = |operation: &StateOperation| match operation {
            StateOperation::Set(set) => set.key.len() + set.value.bytes.len(),
            StateOperation::Delete(delete) => delete.key.len(),
        };
        self.operations.iter().map(size).sum()
    }

    fn apply(&mut self, db: &Connection) -> rusqlite::Result<()> {
        self.results.clear();
        let now = self.clock.now();
        if self.atomic && self.operations.len() > 1 { self.apply_all(db, now) } else { self.apply_each(db, now) }
    }

    fn answer(self, outcome: Result<(), String>) {
        let results = match outcome {
            Ok(()) => self.results,
            Err(text) => vec![Err(StateError::Unavailable(text)); self.operations.len()],
        };
        // Whoever asked may have gone; the write stands.
        let _ = self.reply.send(results);
    }
}

fn unavailable(error: &rusqlite::Error) -> StateError {
    StateError::Unavailable(error.to_string())
}

fn run(db: &Connection, sql: &Statements, now: Timestamp, operation: &StateOperation) -> rusqlite::Result<Result<(), StateError>> {
    match operation {
        StateOperation::Set(request) => set(db, sql, now, request),
        StateOperation::Delete(request) => delete(db, sql, now, request),
    }
}

fn set(db: &Connection, sql: &Statements, now: Timestamp, request: &SetRequest) -> rusqlite::Result<Result<(), StateError>> {
    let encoded;
    let (text, binary) = match std::str::from_utf8(&request.value.bytes) {
        Ok(json) if request.value.json => (json, false),
        _ => {
            encoded = STANDARD.encode(&request.value.bytes);
            (encoded.as_str(), true)
        }
    };
    let mut buffer = uuid::Uuid::encode_buffer();
    let etag: &str = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut buffer);
    let expires = request.ttl_seconds.filter(|ttl| *ttl > 0).map(|ttl| clock_text::text_after(now, ttl));
    let now = clock_text::text(now);
    let changed = match (&request.etag, request.concurrency) {
        (Some(wanted), _) => db.prepare_cached(&sql.set_matching)?.execute(params![request.key, text, binary, etag, now, expires, wanted])?,
        (None, Concurrency::FirstWrite) => db.prepare_cached(&sql.set_first)?.execute(params![request.key, text, binary, etag, now, expires])?,
        (None, Concurrency::LastWrite) => db.prepare_cached(&sql.set)?.execute(params![request.key, text, binary, etag, now, expires])?,
    };
    Ok(if changed == 0 { Err(StateError::EtagMismatch(None)) } else { Ok(()) })
}

/// First-write is not enforced without an entity tag, as in Dapr's store.
fn delete(db: &Connection, sql: &Statements, now: Timestamp, request: &DeleteRequest) -> rusqlite::Result<Result<(), StateError>> {
    let Some(wanted) = &request.etag else {
        db.prepare_cached(&sql.delete)?.execute([&request.key])?;
        return Ok(Ok(()));
    };
    let deleted = db.prepare_cached(&sql.delete_matching)?.execute(params![request.key, clock_text::text(now), wanted])?;
    Ok(if deleted == 0 { Err(StateError::EtagMismatch(None)) } else { Ok(()) })
}

/// Reads one key.
pub(super) fn get(db: &Connection, sql: &Statements, now: Timestamp, key: &str) -> Result<Option<StateItem>, StateError> {
    get_at(db, sql, &clock_text::text(now), key)
}

/// Reads many keys as they stood at one moment.
pub(super) fn get_many(
    db: &Connection,
    sql: &Statements,
    now: Timestamp,
    keys: &[String],
) -> Result<Vec<Result<Option<StateItem>, StateError>>, StateError> {
    let now = clock_text::text(now);
    let snapshot = db.unchecked_transaction().map_err(|e| unavailable(&e))?;
    Ok(keys.iter().map(|key| get_at(&snapshot, sql, &now, key)).collect())
}

fn get_at(db: &Connection, sql: &Statements, now: &str, key: &str) -> Result<Option<StateItem>, StateError> {
    let found = db.prepare_cached(&sql.get).and_then(|mut statement| statement.query_row([key, now], item).optional());
    match found {
        Ok(None) => Ok(None),
        Ok(Some(Ok(item))) => Ok(Some(item)),
        Ok(Some(Err(why))) => Err(StateError::Unavailable(format!("the stored value of {key} cannot be read: {why}"))),
        Err(error) => Err(unavailable(&error)),
    }
}

fn item(row: &Row<'_>) -> rusqlite::Result<Result<StateItem, String>> {
    let stored = row.get_ref(0)?;
    let bytes = match stored.as_bytes_or_null() {
        Ok(Some(bytes)) => bytes,
        // Dapr's own driver writes texts; a number can only be some other program's.
        _ => return Ok(Err(format!("it is of type {}", stored.data_type()))),
    };
    let json = !row.get::<_, bool>(1)?;
    let bytes = if json {
        Bytes::copy_from_slice(bytes)
    } else {
        match STANDARD.decode(bytes) {
            Ok(decoded) => Bytes::from(decoded),
            Err(error) => return Ok(Err(error.to_string())),
        }
    };
    let expires: Option<i64> = row.get(3)?;
    Ok(Ok(StateItem {
        value: StateValue { bytes, json },
        etag: Some(row.get(2)?),
        expires: expires.map(|seconds| Timestamp(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000))),
    }))
}

/// A page of keys in the order in which they were first written.
pub(super) fn keys_like(db: &Connection, sql: &Statements, now: Timestamp, request: &KeysLikeRequest) -> Result<KeysLikePage, StateError> {
    let after: i64 = match request.token.as_deref().filter(|t| !t.is_empty()) {
        None => 0,
        Some(token) => token.parse().map_err(|_| StateError::Invalid(format!("{token:?} is no token of this store")))?,
    };
    let size = request.page_size.filter(|n| *n > 0).unwrap_or(PAGE_KEYS).min(PAGE_KEYS);
    let rows: rusqlite::Result<Vec<(i64, String)>> = db.prepare_cached(&sql.keys_like).and_then(|mut statement| {
        // One more than asked shows whether this page is the last.
        let rows =
            statement.query_map(params![request.pattern, clock_text::text(now), after, i64::from(size) + 1], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect()
    });
    let mut rows = rows.map_err(|e| unavailable(&e))?;
    let more = rows.len() > size as usize;
    rows.truncate(size as usize);
    let token = rows.last().filter(|_| more).map(|(rowid, _)| rowid.to_string());
    Ok(KeysLikePage { keys: rows.into_iter().map(|(_, key)| key).collect(), token })
}

/// Deletes a piece of the expired rows, if it is this process's turn (several may share the file); says whether there are more.
/// `claimed`: the turn was taken with the piece before.
///
/// # Errors
/// What SQLite says.
pub(super) fn clean_up(db: &Connection, sql: &Statements, now: Timestamp, every: Duration, claimed: bool) -> rusqlite::Result<bool> {
    let now = clock_text::text(now);
    if !claimed {
        // Two rounds of one timer may be a little less than the interval apart.
        let interval = i64::try_from(every.as_millis()).unwrap_or(i64::MAX).saturating_sub(100);
        if db.prepare_cached(&sql.claim_cleanup)?.execute(params![now, interval])? == 0 {
            return Ok(false);
        }
    }
    let deleted = db.prepare_cached(&sql.clean_up)?.execute(params![now, CLEANUP_ROWS])?;
    Ok(deleted == CLEANUP_ROWS as usize)
}
