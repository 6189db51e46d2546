//! Dapr's tables, made by Dapr's migrations.

use rusqlite::{Connection, OptionalExtension as _};

/// The level that this store brings a database to. A higher one (written by a newer program) is left alone.
const LEVEL: u32 = 1;

/// Makes the tables unless the database says that it has them.
///
/// # Errors
/// What SQLite says.
pub(super) fn migrate(db: &Connection, table: &str, metadata: &str) -> rusqlite::Result<()> {
    if level(db, metadata)? >= LEVEL {
        return Ok(());
    }
    db.execute_batch("BEGIN EXCLUSIVE")?;
    let done = make_tables(db, table, metadata).and_then(|()| db.execute_batch("COMMIT"));
    if done.is_err() && !db.is_autocommit() {
        db.execute_batch("ROLLBACK")?;
    }
    done
}

fn level(db: &Connection, metadata: &str) -> rusqlite::Result<u32> {
    let there: Option<i64> =
        db.query_row("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1", [metadata], |row| row.get(0)).optional()?;
    if there.is_none() {
        return Ok(0);
    }
    let text: Option<String> = db.query_row(&format!("SELECT value FROM {metadata} WHERE key = 'migrations'"), [], |row| row.get(0)).optional()?;
    Ok(text.and_then(|t| t.trim().parse().ok()).unwrap_or(0))
}

fn make_tables(db: &Connection, table: &str, metadata: &str) -> rusqlite::Result<()> {
    // Another process may have made them while this one waited for the lock.
    if level(db, metadata)? >= LEVEL {
        return Ok(());
    }
    db.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS {metadata} (key text NOT NULL PRIMARY KEY, value text NOT NULL);
         CREATE TABLE IF NOT EXISTS {table} (
           key TEXT NOT NULL PRIMARY KEY,
           value TEXT NOT NULL,
           is_binary BOOLEAN NOT NULL,
           etag TEXT NOT NULL,
           expiration_time TIMESTAMP DEFAULT NULL,
           update_time TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
         );"
    ))?;
    db.execute(&format!("INSERT OR REPLACE INTO {metadata} (key, value) VALUES ('migrations', ?1)"), [LEVEL.to_string()])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_dapr_s_columns_and_are_made_once() {
        let db = Connection::open_in_memory().unwrap();
        migrate(&db, "state", "metadata").unwrap();
        db.execute("INSERT INTO state (key, value, is_binary, etag) VALUES ('k', 'v', 0, 'e')", []).unwrap();
        migrate(&db, "state", "metadata").unwrap();
        let columns: Vec<String> = db
            .prepare("SELECT name || ' ' || type || ' ' || \"notnull\" || ' ' || pk FROM pragma_table_info('state')")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(
            columns,
            [
                "key TEXT 1 1",
                "value TEXT 1 0",
                "is_binary BOOLEAN 1 0",
                "etag TEXT 1 0",
                "expiration_time TIMESTAMP 0 0",
                "update_time TIMESTAMP 1 0"
            ]
        );
        assert_eq!(level(&db, "metadata").unwrap(), 1);
        assert_eq!(db.query_row("SELECT count(*) FROM state", [], |row| row.get(0)), Ok(1));
    }

    #[test]
    fn a_newer_level_is_left_alone() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch("CREATE TABLE metadata (key text PRIMARY KEY, value text); INSERT INTO metadata VALUES ('migrations', '7')").unwrap();
        migrate(&db, "state", "metadata").unwrap();
        assert_eq!(level(&db, "metadata").unwrap(), 7);
    }
}
