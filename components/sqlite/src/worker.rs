//! The thread of a database: a bounded queue in, group commits and reads out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use crate::metrics::DatabaseMetrics;

/// Requests that may wait for one database. Each is answered `Full` beyond that.
const QUEUE_REQUESTS: usize = 4096;
/// Bytes of values that may wait for one database (a single larger request is taken when nothing waits).
const QUEUE_BYTES: usize = 32 << 20;
/// Changes of one commit: bounds how long the first of them waits.
const GROUP_CHANGES: usize = 256;
/// Bytes of one commit, for the same reason and to keep the log small.
const GROUP_BYTES: usize = 2 << 20;
/// How long a group waits to become as large as the one before. Well below the time of a sync on any disk.
const PATIENCE: Duration = Duration::from_micros(60);
/// A database that was written to and is left alone for this long is checkpointed, so that the stall falls into the pause.
const CHECKPOINT_AFTER: Duration = Duration::from_millis(500);

/// A request that changes the database, run inside a transaction that it shares with others.
pub(crate) trait Change: Send + 'static {
    /// Bytes it holds.
    fn bytes(&self) -> usize;
    /// Applies it. On an error it must have left no trace, save where SQLite has rolled back the whole transaction. May be
    /// called again after its transaction was rolled back.
    fn apply(&mut self, db: &Connection) -> rusqlite::Result<()>;
    /// Tells whoever waits: committed, or why not.
    fn answer(self, outcome: Result<(), String>);
}

/// A request that only reads.
pub(crate) type Read = Box<dyn FnOnce(&Connection) + Send>;

/// What a database without changes is told: for the thread of a reading connection.
pub(crate) enum NoChange {}

impl Change for NoChange {
    fn bytes(&self) -> usize {
        match *self {}
    }
    fn apply(&mut self, _: &Connection) -> rusqlite::Result<()> {
        match *self {}
    }
    fn answer(self, _: Result<(), String>) {
        match self {}
    }
}

enum Message<C> {
    Change(C),
    Read(Read),
    Close(oneshot::Sender<()>),
}

/// Why a request was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QueueError {
    /// The bound is reached.
    #[error("the queue of the database is full ({QUEUE_REQUESTS} requests or {} MiB)", QUEUE_BYTES >> 20)]
    Full,
    /// Closed, or its thread ended.
    #[error("the database is closed")]
    Closed,
}

#[derive(Debug, Default)]
struct Load {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

/// The way to a database's thread. Clones lead to the same thread, which ends when the last is dropped.
pub(crate) struct Line<C> {
    sender: mpsc::Sender<Message<C>>,
    load: Arc<Load>,
    metrics: DatabaseMetrics,
}

impl<C> Clone for Line<C> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), load: self.load.clone(), metrics: self.metrics.clone() }
    }
}

/// Work that the thread does by itself every so often. Returns whether there is more to do at once.
pub(crate) struct Housekeeping {
    /// Interval.
    pub every: Duration,
    /// The work, a bounded piece at a time.
    pub work: Box<dyn FnMut(&Connection) -> bool + Send>,
}

impl<C: Change> Line<C> {
    /// Starts the thread on an open connection.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(name: &str, db: Connection, metrics: DatabaseMetrics, housekeeping: Option<Housekeeping>) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let load = Arc::new(Load::default());
        let worker =
            Worker { db, receiver, load: load.clone(), metrics: metrics.clone(), housekeeping, written: false, failures: Vec::new(), last_group: 0 };
        // The system shows fifteen characters of a thread's name, and takes no NUL in it.
        std::thread::Builder::new().name(format!("db {}", name.replace('\0', ""))).spawn(move || worker.run())?;
        Ok(Self { sender, load, metrics })
    }

    /// Queues a change. Its place in line is taken when this returns.
    ///
    /// # Errors
    /// When there is no room, or the database is closed; the change is given back untouched in that it is dropped.
    pub fn change(&self, change: C) -> Result<(), QueueError> {
        let bytes = change.bytes();
        self.enter(bytes)?;
        self.send(Message::Change(change), bytes)
    }

    /// Queues a read.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    pub fn read(&self, read: Read) -> Result<(), QueueError> {
        self.enter(0)?;
        self.send(Message::Read(read), 0)
    }

    /// Ends the thread once everything queued before is done and the log is checkpointed.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.sender.send(Message::Close(done)).is_ok() {
            let _ = closed.await; // an error means that the thread has ended already
        }
    }

    fn enter(&self, bytes: usize) -> Result<(), QueueError> {
        let requests = self.load.requests.fetch_add(1, Ordering::AcqRel) + 1;
        let total = self.load.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if requests > QUEUE_REQUESTS || (bytes > 0 && total > QUEUE_BYTES && total > bytes) {
            self.leave(bytes);
            self.metrics.refused.inc();
            return Err(QueueError::Full);
        }
        self.metrics.queued.inc();
        Ok(())
    }

    fn leave(&self, bytes: usize) {
        self.load.requests.fetch_sub(1, Ordering::AcqRel);
        self.load.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    fn send(&self, message: Message<C>, bytes: usize) -> Result<(), QueueError> {
        self.sender.send(message).map_err(|_| {
            self.leave(bytes);
            self.metrics.queued.dec();
            QueueError::Closed
        })
    }
}

struct Worker<C> {
    db: Connection,
    receiver: mpsc::Receiver<Message<C>>,
    load: Arc<Load>,
    metrics: DatabaseMetrics,
    housekeeping: Option<Housekeeping>,
    /// Written since the last checkpoint.
    written: bool,
    failures: Vec<Option<String>>,
    /// Changes of the group before.
    last_group: usize,
}

impl<C: Change> Worker<C> {
    fn run(mut self) {
        let mut group = Vec::new();
        let mut reads = Vec::new();
        // This loop is the IO: what it times are pauses of its own thread, no decision about data.
        let mut next_round = self.housekeeping.as_ref().map(|h| Instant::now() + h.every);
        loop {
            let mut closing = None;
            match self.wait(next_round) {
                Ok(first) => closing = self.gather(first, &mut group, &mut reads),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            // Reads that came with the group are answered from what it has made durable.
            self.commit(&mut group);
            for read in reads.drain(..) {
                read(&self.db);
                self.left(0);
            }
            if let (Some(at), Some(housekeeping)) = (next_round, &mut self.housekeeping)
                && Instant::now() >= at
            {
                let more = (housekeeping.work)(&self.db);
                next_round = Some(Instant::now() + if more { Duration::ZERO } else { housekeeping.every });
                self.written = true;
            }
            if let Some(done) = closing {
                self.checkpoint("TRUNCATE");
                // All gone before the answer: no request is taken any more, and the file is closed.
                drop(self);
                let _ = done.send(());
                return;
            }
        }
    }

    fn wait(&mut self, next_round: Option<Instant>) -> Result<Message<C>, mpsc::RecvTimeoutError> {
        if self.written {
            match self.receiver.recv_timeout(CHECKPOINT_AFTER) {
                Err(mpsc::RecvTimeoutError::Timeout) => self.checkpoint("PASSIVE"),
                other => return other,
            }
        }
        match next_round {
            Some(at) => self.receiver.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => self.receiver.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
        }
    }

    fn gather(&mut self, first: Message<C>, group: &mut Vec<C>, reads: &mut Vec<Read>) -> Option<oneshot::Sender<()>> {
        let mut bytes = 0;
        let mut waiting: Option<Instant> = None;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Change(change) => {
                    bytes += change.bytes();
                    group.push(change);
                }
                Message::Read(read) => reads.push(read),
                Message::Close(done) => return Some(done),
            }
            let full = group.len() >= GROUP_CHANGES || bytes >= GROUP_BYTES || reads.len() >= GROUP_CHANGES;
            next = if full { None } else { self.receiver.try_recv().ok() };
            // Callers that were answered together are about to come again together: a moment's patience saves them a sync each.
            while next.is_none() && !full && !group.is_empty() && group.len() < self.last_group {
                if waiting.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                    break;
                }
                std::thread::yield_now();
                next = self.receiver.try_recv().ok();
            }
        }
        self.last_group = group.len();
        None
    }

    fn left(&self, bytes: usize) {
        self.load.requests.fetch_sub(1, Ordering::AcqRel);
        self.load.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.metrics.queued.dec();
    }

    /// Runs the group in one transaction. When that as a whole fails for a reason that one of its changes may have caused
    /// (no room, out of memory), each gets a transaction of its own, so that one cannot take the others down.
    fn commit(&mut self, group: &mut Vec<C>) {
        if group.is_empty() {
            return;
        }
        let mut failures = std::mem::take(&mut self.failures);
        let outcome = self.attempt(group, &mut failures);
        match outcome {
            Ok(()) => {
                for (change, failure) in group.drain(..).zip(failures.drain(..)) {
                    self.answer(change, failure.map_or(Ok(()), Err));
                }
            }
            Err(error) if group.len() > 1 && may_be_one_of_them(&error) => {
                for mut change in group.drain(..) {
                    let alone = self.attempt(std::slice::from_mut(&mut change), &mut failures);
                    let outcome = alone.map_err(|e| e.to_string()).and_then(|()| failures.pop().flatten().map_or(Ok(()), Err));
                    self.answer(change, outcome);
                }
            }
            Err(error) => {
                tracing::warn!(%error, changes = group.len(), "commit failed");
                for change in group.drain(..) {
                    self.answer(change, Err(error.to_string()));
                }
            }
        }
        failures.clear();
        self.failures = failures;
    }

    fn answer(&self, change: C, outcome: Result<(), String>) {
        self.left(change.bytes());
        if outcome.is_ok() {
            self.metrics.changes.inc();
        }
        change.answer(outcome);
    }

    fn attempt(&mut self, group: &mut [C], failures: &mut Vec<Option<String>>) -> rusqlite::Result<()> {
        failures.clear();
        let outcome = run_group(&self.db, group, failures);
        match &outcome {
            Ok(()) => {
                self.written = true;
                self.metrics.commits.inc();
            }
            Err(_) if !self.db.is_autocommit() => {
                if let Err(error) = execute(&self.db, "ROLLBACK") {
                    tracing::error!(%error, "a failed transaction could not be rolled back");
                }
            }
            Err(_) => {}
        }
        outcome
    }

    fn checkpoint(&mut self, mode: &str) {
        self.written = false;
        // Without a write-ahead log this does nothing. One that is busy leaves the log for the next pause.
        let done = self.db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()));
        if let Err(error) = done {
            tracing::debug!(%error, "checkpoint put off");
        }
    }
}

fn run_group<C: Change>(db: &Connection, group: &mut [C], failures: &mut Vec<Option<String>>) -> rusqlite::Result<()> {
    execute(db, "BEGIN IMMEDIATE")?;
    for change in group {
        match change.apply(db) {
            Ok(()) => failures.push(None),
            // SQLite gave up the whole transaction, so those before it are undone as well.
            Err(error) if db.is_autocommit() => return Err(error),
            Err(error) => failures.push(Some(error.to_string())),
        }
    }
    execute(db, "COMMIT")
}

/// A write lock that another process holds, or a disk that fails, fails for each alone as well, only slower.
fn may_be_one_of_them(error: &rusqlite::Error) -> bool {
    !matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
        )
    )
}

/// Runs a statement without parameters and rows.
pub(crate) fn execute(db: &Connection, sql: &str) -> rusqlite::Result<()> {
    db.prepare_cached(sql)?.execute([]).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use selvedge::telemetry::Metrics;

    use super::*;

    type Answers = Arc<Mutex<Vec<(String, Result<(), String>)>>>;

    struct Statement {
        sql: String,
        answers: Answers,
        bytes: usize,
    }

    impl Change for Statement {
        fn bytes(&self) -> usize {
            self.bytes
        }
        fn apply(&mut self, db: &Connection) -> rusqlite::Result<()> {
            execute(db, &self.sql)
        }
        fn answer(self, outcome: Result<(), String>) {
            self.answers.lock().unwrap().push((self.sql, outcome));
        }
    }

    fn database() -> Connection {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY CHECK (n < 100))").unwrap();
        db
    }

    fn metrics() -> DatabaseMetrics {
        DatabaseMetrics::new(&Metrics::new(), "test")
    }

    /// A worker that runs on the test's thread, so that a test says what one group is.
    fn worker(db: Connection) -> Worker<Statement> {
        let (_, receiver) = mpsc::channel();
        let load = Arc::new(Load::default());
        load.requests.store(1000, Ordering::Relaxed);
        load.bytes.store(1000, Ordering::Relaxed);
        Worker { db, receiver, load, metrics: metrics(), housekeeping: None, written: false, failures: Vec::new(), last_group: 0 }
    }

    fn run(worker: &mut Worker<Statement>, statements: &[&str]) -> Vec<bool> {
        let answers = Answers::default();
        let mut group: Vec<_> = statements.iter().map(|s| Statement { sql: (*s).to_owned(), answers: answers.clone(), bytes: 1 }).collect();
        worker.commit(&mut group);
        let answers = answers.lock().unwrap();
        assert_eq!(answers.iter().map(|(sql, _)| sql.as_str()).collect::<Vec<_>>(), statements, "each is answered once, in order");
        answers.iter().map(|(_, outcome)| outcome.is_ok()).collect()
    }

    fn rows(worker: &Worker<Statement>) -> Vec<i64> {
        let mut statement = worker.db.prepare("SELECT n FROM t ORDER BY n").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn a_group_is_one_commit() {
        let mut worker = worker(database());
        assert_eq!(run(&mut worker, &["INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)", "DELETE FROM t WHERE n = 1"]), [true; 3]);
        assert_eq!(rows(&worker), [2]);
        assert_eq!((worker.metrics.commits.get(), worker.metrics.changes.get()), (1, 3));
    }

    #[test]
    fn a_change_that_fails_leaves_its_neighbours_standing() {
        let mut worker = worker(database());
        assert_eq!(run(&mut worker, &["INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (100)", "INSERT INTO t VALUES (3)"]), [true, false, true]);
        assert_eq!(rows(&worker), [1, 3]);
    }

    #[test]
    fn a_change_that_ends_the_whole_transaction_does_not_undo_its_neighbours() {
        let mut worker = worker(database());
        let group = ["INSERT INTO t VALUES (1)", "INSERT OR ROLLBACK INTO t VALUES (100)", "INSERT INTO t VALUES (3)"];
        assert_eq!(run(&mut worker, &group), [true, false, true]);
        assert_eq!(rows(&worker), [1, 3]);
        assert!(worker.db.is_autocommit());
    }

    #[test]
    fn a_database_that_another_holds_fails_the_group_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let db = Connection::open(&path).unwrap();
        db.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY)").unwrap();
        db.busy_timeout(Duration::ZERO).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut worker = worker(db);
        assert_eq!(run(&mut worker, &["INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)"]), [false, false]);
        other.execute_batch("ROLLBACK").unwrap();
        assert_eq!(run(&mut worker, &["INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)"]), [true, true]);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_by_name_and_takes_again_when_it_has_drained() {
        let line: Line<Statement> = Line::start("test", database(), metrics(), None).unwrap();
        let (hold, held) = mpsc::channel::<()>();
        let (begin, begun) = oneshot::channel();
        let occupy = move |_: &Connection| {
            begin.send(()).unwrap();
            assert!(held.recv().is_err());
        };
        line.read(Box::new(occupy)).unwrap();
        begun.await.unwrap();
        let answers = Answers::default();
        let change = |bytes| Statement { sql: "INSERT OR IGNORE INTO t VALUES (1)".into(), answers: answers.clone(), bytes };
        line.change(change(QUEUE_BYTES + 1)).unwrap(); // nothing else holds bytes
        assert_eq!(line.change(change(1)), Err(QueueError::Full), "bytes");
        let reads = (0..QUEUE_REQUESTS).take_while(|_| line.read(Box::new(|_| ())).is_ok()).count();
        assert_eq!(reads, QUEUE_REQUESTS - 2, "reads hold no bytes, but a place each");
        drop(hold);
        line.close().await;
        assert_eq!(line.metrics.refused.get(), 2);
        assert_eq!(line.metrics.queued.get(), 0);
        assert_eq!(line.change(change(1)), Err(QueueError::Closed));
    }

    #[tokio::test]
    async fn what_was_queued_before_the_close_is_done() {
        let line: Line<Statement> = Line::start("test", database(), metrics(), None).unwrap();
        let answers = Answers::default();
        for n in 0..50 {
            line.change(Statement { sql: format!("INSERT INTO t VALUES ({n})"), answers: answers.clone(), bytes: 1 }).unwrap();
        }
        line.close().await;
        assert_eq!(answers.lock().unwrap().iter().filter(|(_, outcome)| outcome.is_ok()).count(), 50);
    }
}
