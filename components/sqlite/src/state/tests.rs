use selvedge::component::{Concurrency, StateValue};

use super::*;

use selvedge_conformance::Bench;

async fn try_open(bench: &Bench, connection: &str, more: &[(&str, &str)]) -> Result<Arc<dyn StateStore>, InitError> {
    let mut settings = vec![("connectionString", connection)];
    settings.extend_from_slice(more);
    state_store(bench.context("state.sqlite", &settings)).await
}

struct Fixture {
    bench: Bench,
}

impl Fixture {
    async fn new() -> Self {
        Self { bench: Bench::new().await }
    }

    fn path(&self) -> String {
        self.file("data.db").display().to_string()
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.bench.dir().join(name)
    }

    async fn open(&self, more: &[(&str, &str)]) -> Arc<dyn StateStore> {
        try_open(&self.bench, &self.path(), more).await.unwrap()
    }

    fn sql(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }
}

fn text(key: &str, json: &'static str) -> SetRequest {
    SetRequest { key: key.into(), value: StateValue { bytes: json.into(), json: true }, ..SetRequest::default() }
}

#[tokio::test]
async fn a_file_in_wal_mode_passes_the_shared_suite() {
    let fixture = Fixture::new().await;
    selvedge_conformance::state(fixture.open(&[]).await, &fixture.bench.clock).await;
}

#[tokio::test]
async fn a_file_without_wal_passes_the_shared_suite() {
    let fixture = Fixture::new().await;
    selvedge_conformance::state(fixture.open(&[("disableWAL", "true")]).await, &fixture.bench.clock).await;
    let mode: String = fixture.sql().query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "delete");
}

#[tokio::test]
async fn a_database_in_memory_passes_the_shared_suite() {
    let fixture = Fixture::new().await;
    let store = try_open(&fixture.bench, ":memory:", &[]).await.unwrap();
    selvedge_conformance::state(store, &fixture.bench.clock).await;
}

#[tokio::test]
async fn rows_stand_in_the_table_as_dapr_writes_them() {
    let fixture = Fixture::new().await;
    let store = fixture.open(&[("tableName", "mine"), ("metadataTableName", "mine_meta")]).await;
    store.set(SetRequest { ttl_seconds: Some(60), ..text("app||json", r#"{"a":1}"#) }).await.unwrap();
    let bytes = StateValue { bytes: vec![0xff, 0x00].into(), json: false };
    store.set(SetRequest { key: "app||bytes".into(), value: bytes, ..SetRequest::default() }).await.unwrap();

    let db = fixture.sql();
    let row = |key: &str| {
        db.query_row("SELECT value, is_binary, length(etag), expiration_time, update_time FROM mine WHERE key = ?1", [key], |r| {
            Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?))
        })
        .unwrap()
    };
    let now = "2026-11-24 02:43:02".to_owned();
    assert_eq!(row("app||json"), (r#"{"a":1}"#.to_owned(), false, 36, Some("2026-11-24 02:44:02".to_owned()), now.clone()));
    assert_eq!(row("app||bytes"), ("/wA=".to_owned(), true, 36, None, now));
}

#[tokio::test]
async fn state_is_there_after_a_restart_even_without_a_close() {
    let fixture = Fixture::new().await;
    let store = fixture.open(&[]).await;
    store.set(text("k", "1")).await.unwrap();
    drop(store);
    let item = fixture.open(&[]).await.get(GetRequest { key: "k".into(), ..GetRequest::default() }).await.unwrap().unwrap();
    assert_eq!(item.value.bytes, "1");
}

#[tokio::test]
async fn a_closed_store_says_so_and_leaves_one_file() {
    let fixture = Fixture::new().await;
    let store = fixture.open(&[]).await;
    store.set(text("k", "1")).await.unwrap();
    store.close().await;
    assert_eq!(store.set(text("k", "2")).await, Err(StateError::Unavailable("the database is closed".into())));
    assert!(store.get(GetRequest { key: "k".into(), ..GetRequest::default() }).await.is_err());
    store.close().await;
    assert!(!std::path::Path::new(&format!("{}-wal", fixture.path())).exists());
}

#[tokio::test]
async fn writes_that_come_together_share_commits() {
    let fixture = Fixture::new().await;
    let store = fixture.open(&[]).await;
    let lock = fixture.sql();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap(); // the first commit waits, the others gather behind it
    let writes: Vec<_> = (0..100)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(
                async move { store.set(SetRequest { etag: (n % 10 == 9).then(|| "wrong".to_owned()), ..text(&format!("k{n}"), "1") }).await },
            )
        })
        .collect();
    tokio::task::yield_now().await;
    lock.execute_batch("ROLLBACK").unwrap();
    let mut written = 0;
    for (n, write) in writes.into_iter().enumerate() {
        let outcome = write.await.unwrap();
        assert_eq!(outcome.is_ok(), n % 10 != 9, "a mismatch is its own request's alone: {n} {outcome:?}");
        written += i64::from(outcome.is_ok());
    }
    assert_eq!(lock.query_row("SELECT count(*) FROM state", [], |row| row.get::<_, i64>(0)).unwrap(), written);
    let commits = DatabaseMetrics::new(&fixture.bench.metrics, "part").commits.get();
    assert!(commits <= 3, "{commits} commits");
}

#[tokio::test]
async fn a_lock_that_another_process_keeps_is_an_error_that_may_be_tried_again() {
    let fixture = Fixture::new().await;
    let store = fixture.open(&[("busyTimeout", "20ms")]).await;
    let lock = fixture.sql();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(matches!(store.set(text("k", "1")).await, Err(StateError::Unavailable(_))));
    lock.execute_batch("ROLLBACK").unwrap();
    store.set(text("k", "1")).await.unwrap();
}

#[tokio::test]
async fn expired_rows_are_cleaned_up_by_one_process_at_a_time() {
    let fixture = Fixture::new().await;
    let store = fixture.open(&[]).await;
    for n in 0..1500 {
        let ttl_seconds = (n > 0).then_some(10);
        drop(store.bulk_set(vec![SetRequest { ttl_seconds, ..text(&format!("k{n}"), "1") }]).await);
    }
    let db = fixture.sql();
    let (sql, every) = (Statements::new("state", "metadata"), Duration::from_secs(3600));
    let count = || db.query_row("SELECT count(*) FROM state", [], |row| row.get::<_, i64>(0)).unwrap();
    let later = fixture.bench.clock.now().plus(Duration::from_secs(20));
    assert!(operations::clean_up(&db, &sql, later, every, false).unwrap(), "a piece at a time");
    assert!(!operations::clean_up(&db, &sql, later, every, true).unwrap());
    assert_eq!(count(), 1);

    store.set(SetRequest { ttl_seconds: Some(1), ..text("again", "1") }).await.unwrap();
    let soon = later.plus(Duration::from_secs(1800));
    operations::clean_up(&db, &sql, soon, every, false).unwrap();
    assert_eq!(count(), 2, "another process cleaned up half an hour ago");
    operations::clean_up(&db, &sql, later.plus(Duration::from_secs(3600)), every, false).unwrap();
    assert_eq!(count(), 1);
    let stamp: String = db.query_row("SELECT value FROM metadata WHERE key = 'last-cleanup'", [], |row| row.get(0)).unwrap();
    assert_eq!(stamp, "2026-11-24 03:43:22");
}

#[tokio::test]
async fn a_database_of_the_node_that_is_broken_is_set_aside() {
    let fixture = Fixture::new().await;
    std::fs::write(fixture.path(), [b"not a database ".as_slice(); 100].concat()).unwrap();
    let store = fixture.open(&[]).await;
    store.set(text("k", "1")).await.unwrap();
    assert!(fixture.file("data.db.corrupt-1").exists());
}

#[tokio::test]
async fn a_database_of_someone_else_that_is_broken_is_an_error() {
    let fixture = Fixture::new().await;
    std::fs::write(fixture.path(), [b"not a database ".as_slice(); 100].concat()).unwrap();
    let mut context = fixture.bench.context("state.sqlite", &[("connectionString", &fixture.path())]);
    context.data_dir = fixture.file("data");
    let error = state_store(context).await.err().unwrap();
    assert!(error.to_string().contains("data.db"), "{error}");
    assert!(!fixture.file("data.db.corrupt-1").exists());
}

#[tokio::test]
async fn a_file_opened_read_only_is_read_and_not_written() {
    let fixture = Fixture::new().await;
    let store = fixture.open(&[("disableWAL", "1")]).await;
    store.set(text("k", "1")).await.unwrap();
    store.close().await;
    let store = try_open(&fixture.bench, &format!("{}?mode=ro", fixture.path()), &[]).await.unwrap();
    assert!(store.get(GetRequest { key: "k".into(), ..GetRequest::default() }).await.unwrap().is_some());
    assert!(matches!(store.set(text("k", "2")).await, Err(StateError::Unavailable(_))));
}

#[tokio::test]
async fn a_value_that_another_program_damaged_is_an_error_of_its_key_alone() {
    let fixture = Fixture::new().await;
    let store = fixture.open(&[]).await;
    store.set(text("good", "1")).await.unwrap();
    fixture.sql().execute_batch("INSERT INTO state (key, value, is_binary, etag) VALUES ('bad', '%%%', 1, 'e')").unwrap();
    let keys = ["bad", "good"].map(|key| GetRequest { key: key.into(), ..GetRequest::default() });
    let items = store.bulk_get(keys.to_vec(), 0).await;
    assert!(matches!(&items[0].result, Err(StateError::Unavailable(text)) if text.contains("bad")));
    assert!(items[1].result.as_ref().unwrap().is_some());
}

#[tokio::test]
async fn a_delete_without_tag_does_not_enforce_first_write() {
    let fixture = Fixture::new().await;
    let store = fixture.open(&[]).await;
    store.set(text("k", "1")).await.unwrap();
    let delete = DeleteRequest { key: "k".into(), concurrency: Concurrency::FirstWrite, ..DeleteRequest::default() };
    assert_eq!(store.delete(delete).await, Ok(()));
}
