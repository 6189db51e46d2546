//! `state.sqlite`: Dapr's table layout and rules on the database thread.

mod config;
mod operations;
mod schema;
mod statements;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use selvedge::component::{
    BulkGetItem, ComponentContext, DeleteRequest, Fut, GetRequest, InitError, KeysLikePage, KeysLikeRequest, Metadata, SetRequest, StateError,
    StateFeature, StateItem, StateOperation, StateStore,
};
use selvedge::time::Clock;
use tokio::sync::oneshot;

use crate::connect::{Journal, open_reader, open_writer};
use crate::metrics::DatabaseMetrics;
use crate::quarantine;
use crate::worker::{Housekeeping, Line, NoChange, QueueError};
use config::StateConfig;
use operations::StateChange;
use statements::Statements;

const FEATURES: [StateFeature; 4] = [StateFeature::Etag, StateFeature::Transactional, StateFeature::Ttl, StateFeature::KeysLike];

/// A state store on SQLite.
///
/// A write that has returned is on the disk (`synchronous=FULL`). Writes that wait at the same time share one sync.
pub struct SqliteState {
    name: String,
    writer: Line<StateChange>,
    /// None where the database has one connection alone: reads then go to the writer's thread.
    reader: Option<Line<NoChange>>,
    statements: Arc<Statements>,
    clock: Arc<dyn Clock>,
    timeout: Duration,
}

impl std::fmt::Debug for SqliteState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteState").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Builds a `state.sqlite`.
///
/// # Errors
/// When a setting is wrong or the database cannot be opened. A broken database inside the node's data directory is set aside instead.
pub async fn state_store(context: ComponentContext) -> Result<Arc<dyn StateStore>, InitError> {
    let config = StateConfig::read(&context.properties)?;
    if config.location.other_txlock {
        tracing::warn!(component.name = %context.name, "_txlock is always immediate; the value given is not used");
    }
    let opening = Opening {
        name: context.name,
        statements: Arc::new(Statements::new(&config.table, &config.metadata_table)),
        config,
        data_dir: context.data_dir,
        clock: context.clock,
        metrics: context.metrics,
        supervisor: context.supervisor,
    };
    let store = tokio::task::spawn_blocking(move || opening.open()).await.map_err(|e| InitError::failed("opening the database", e))??;
    Ok(Arc::new(store))
}

struct Opening {
    name: String,
    config: StateConfig,
    statements: Arc<Statements>,
    data_dir: std::path::PathBuf,
    clock: Arc<dyn Clock>,
    metrics: selvedge::telemetry::Metrics,
    supervisor: selvedge::supervise::Supervisor,
}

impl Opening {
    fn open(self) -> Result<SqliteState, InitError> {
        let location = &self.config.location;
        let shown = location.path.as_deref().map_or_else(|| "memory".to_owned(), |p| p.display().to_string());
        let failed = |error: rusqlite::Error| InitError::failed(format_args!("opening the database {shown}"), error);
        // A file below the data directory is the node's own: its folder is made, and it never keeps the node from starting.
        let own = location.path.as_deref().filter(|path| is_below(path, &self.data_dir));
        if let Some(folder) = own.and_then(Path::parent) {
            std::fs::create_dir_all(folder).map_err(|e| InitError::failed(format_args!("making the folder {}", folder.display()), e))?;
        }
        let (db, journal) = match self.connect() {
            Err(error) if quarantine::is_corruption(&error) && own.is_some() => {
                let path = own.unwrap_or(Path::new(""));
                let place =
                    quarantine::set_aside(path).map_err(|e| InitError::failed(format_args!("setting aside the broken database {shown}"), e))?;
                tracing::error!(component.name = %self.name, %error, kept_as = %place.display(), "state database is broken: set aside, starting with an empty one");
                self.supervisor.set_aside(&format!("component/{}", self.name), place);
                self.connect().map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        if journal != self.config.journal && !location.read_only {
            tracing::warn!(component.name = %self.name, wanted = ?self.config.journal, got = ?journal, "the database has another journal mode");
        }
        let reading = match (journal, location.read_only) {
            (Journal::Wal, false) => Some(open_reader(location, self.config.busy).map_err(failed)?),
            _ => None,
        };
        let metrics = DatabaseMetrics::new(&self.metrics, &self.name);
        let thread = |e: std::io::Error| InitError::failed("starting a thread for the database", e);
        let reader = reading.map(|db| Line::start(&self.name, db, metrics.clone(), None)).transpose().map_err(thread)?;
        let housekeeping = self.config.cleanup.filter(|_| !location.read_only).map(|every| self.cleaning(every));
        Ok(SqliteState {
            writer: Line::start(&self.name, db, metrics, housekeeping).map_err(thread)?,
            reader,
            name: self.name,
            statements: self.statements,
            clock: self.clock,
            timeout: self.config.timeout,
        })
    }

    fn connect(&self) -> rusqlite::Result<(Connection, Journal)> {
        let (db, journal) = open_writer(&self.config.location, self.config.busy, self.config.journal)?;
        if !self.config.location.read_only {
            schema::migrate(&db, &self.config.table, &self.config.metadata_table)?;
        }
        Ok((db, journal))
    }

    fn cleaning(&self, every: Duration) -> Housekeeping {
        let (statements, clock, name) = (self.statements.clone(), self.clock.clone(), self.name.clone());
        let mut more = false;
        let work = move |db: &Connection| {
            more = operations::clean_up(db, &statements, clock.now(), every, more).unwrap_or_else(|error| {
                tracing::warn!(component.name = %name, %error, "expired state was not cleaned up");
                false
            });
            more
        };
        Housekeeping { every, work: Box::new(work) }
    }
}

fn is_below(path: &Path, folder: &Path) -> bool {
    // Both may be relative to the working directory, and neither need exist; `..` would make the answer unsure.
    match (std::path::absolute(path), std::path::absolute(folder)) {
        (Ok(path), Ok(folder)) => path.starts_with(folder) && !path.components().any(|c| c == std::path::Component::ParentDir),
        _ => false,
    }
}

fn refused(error: QueueError) -> StateError {
    StateError::Unavailable(error.to_string())
}

impl SqliteState {
    /// Runs operations, all or each on its own; one result per operation.
    async fn write(&self, operations: Vec<StateOperation>, atomic: bool) -> Vec<Result<(), StateError>> {
        let count = operations.len();
        let all = |error: StateError| vec![Err(error); count];
        let (reply, answer) = oneshot::channel();
        let change = StateChange::new(operations, atomic, self.statements.clone(), self.clock.clone(), reply);
        if let Err(error) = self.writer.change(change) {
            return all(refused(error));
        }
        match self.within(answer).await {
            Ok(results) => results,
            Err(error) => all(error),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection, &Statements) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        let (reply, answer) = oneshot::channel();
        let statements = self.statements.clone();
        let read = Box::new(move |db: &Connection| drop(reply.send(work(db, &statements))));
        match &self.reader {
            Some(reader) => reader.read(read),
            None => self.writer.read(read),
        }
        .map_err(refused)?;
        self.within(answer).await?
    }

    async fn within<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, StateError> {
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(refused(QueueError::Closed)),
            Err(_) => Err(StateError::Unavailable(format!("no answer from the database within {:?}", self.timeout))),
        }
    }

    async fn one(&self, operation: StateOperation) -> Result<(), StateError> {
        self.write(vec![operation], false).await.pop().unwrap_or(Ok(()))
    }
}

impl StateStore for SqliteState {
    fn features(&self) -> &[StateFeature] {
        &FEATURES
    }

    fn get<'a>(&'a self, request: GetRequest) -> Fut<'a, Result<Option<StateItem>, StateError>> {
        let now = self.clock.now();
        Box::pin(self.read(move |db, statements| operations::get(db, statements, now, &request.key)))
    }

    fn set<'a>(&'a self, request: SetRequest) -> Fut<'a, Result<(), StateError>> {
        Box::pin(self.one(StateOperation::Set(request)))
    }

    fn delete<'a>(&'a self, request: DeleteRequest) -> Fut<'a, Result<(), StateError>> {
        Box::pin(self.one(StateOperation::Delete(request)))
    }

    fn bulk_get<'a>(&'a self, requests: Vec<GetRequest>, _parallelism: usize) -> Fut<'a, Vec<BulkGetItem>> {
        let now = self.clock.now();
        Box::pin(async move {
            let keys: Vec<String> = requests.into_iter().map(|r| r.key).collect();
            let asked = keys.clone();
            let results = self.read(move |db, statements| operations::get_many(db, statements, now, &asked)).await;
            match results {
                Ok(results) => keys.into_iter().zip(results).map(|(key, result)| BulkGetItem { key, result }).collect(),
                Err(error) => keys.into_iter().map(|key| BulkGetItem { key, result: Err(error.clone()) }).collect(),
            }
        })
    }

    fn bulk_set<'a>(&'a self, requests: Vec<SetRequest>) -> Fut<'a, Vec<Result<(), StateError>>> {
        Box::pin(self.write(requests.into_iter().map(StateOperation::Set).collect(), false))
    }

    fn bulk_delete<'a>(&'a self, requests: Vec<DeleteRequest>) -> Fut<'a, Vec<Result<(), StateError>>> {
        Box::pin(self.write(requests.into_iter().map(StateOperation::Delete).collect(), false))
    }

    fn transact<'a>(&'a self, operations: Vec<StateOperation>, _metadata: Metadata) -> Fut<'a, Result<(), StateError>> {
        Box::pin(async move {
            if operations.is_empty() {
                return Ok(());
            }
            self.write(operations, true).await.into_iter().collect()
        })
    }

    fn keys_like<'a>(&'a self, request: KeysLikeRequest) -> Fut<'a, Result<KeysLikePage, StateError>> {
        let now = self.clock.now();
        Box::pin(async move {
            if request.pattern.is_empty() {
                return Err(StateError::Invalid("the pattern of keys must not be empty".to_owned()));
            }
            self.read(move |db, statements| operations::keys_like(db, statements, now, &request)).await
        })
    }

    fn close<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(async move {
            if let Some(reader) = &self.reader {
                reader.close().await;
            }
            self.writer.close().await;
        })
    }
}

#[cfg(test)]
mod tests;
