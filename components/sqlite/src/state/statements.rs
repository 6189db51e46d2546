//! The SQL of `state.sqlite`, with the tables' names put in once. Names are checked to be plain before.

/// Statement texts; each is prepared once per connection.
#[derive(Debug)]
pub(super) struct Statements {
    /// `?1` key, `?2` now -> value, is_binary, etag, expiry in seconds.
    pub get: String,
    /// `?1` key, `?2` value, `?3` is_binary, `?4` etag, `?5` now, `?6` expiry.
    pub set: String,
    /// As `set`; changes nothing when the key is alive.
    pub set_first: String,
    /// As `set`, `?7` the entity tag that must be there.
    pub set_matching: String,
    /// `?1` key.
    pub delete: String,
    /// `?1` key, `?2` now, `?3` the entity tag that must be there.
    pub delete_matching: String,
    /// `?1` pattern, `?2` now, `?3` rowid to start after, `?4` most rows -> rowid, key.
    pub keys_like: String,
    /// `?1` now, `?2` interval in ms; changes nothing when the last clean-up is younger.
    pub claim_cleanup: String,
    /// `?1` now, `?2` most rows.
    pub clean_up: String,
}

impl Statements {
    pub fn new(table: &str, metadata: &str) -> Self {
        const LIVE: &str = "(expiration_time IS NULL OR expiration_time > ";
        // An upsert in place writes fewer pages than a replacement, which deletes the row and its index entry first.
        let upsert = format!(
            "INSERT INTO {table} (key, value, is_binary, etag, update_time, expiration_time) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
             ON CONFLICT (key) DO UPDATE SET value = ?2, is_binary = ?3, etag = ?4, update_time = ?5, expiration_time = ?6"
        );
        Self {
            get: format!("SELECT value, is_binary, etag, unixepoch(expiration_time) FROM {table} WHERE key = ?1 AND {LIVE}?2)"),
            set_first: format!("{upsert} WHERE expiration_time IS NOT NULL AND expiration_time <= ?5"),
            set: upsert,
            set_matching: format!(
                "UPDATE {table} SET value = ?2, is_binary = ?3, etag = ?4, update_time = ?5, expiration_time = ?6 \
                 WHERE key = ?1 AND etag = ?7 AND {LIVE}?5)"
            ),
            delete: format!("DELETE FROM {table} WHERE key = ?1"),
            delete_matching: format!("DELETE FROM {table} WHERE key = ?1 AND etag = ?3 AND {LIVE}?2)"),
            keys_like: format!("SELECT rowid, key FROM {table} WHERE key LIKE ?1 ESCAPE '\\' AND {LIVE}?2) AND rowid > ?3 ORDER BY rowid LIMIT ?4"),
            claim_cleanup: format!(
                "INSERT INTO {metadata} (key, value) VALUES ('last-cleanup', ?1) ON CONFLICT (key) DO UPDATE SET value = ?1 \
                 WHERE (unixepoch(?1) - unixepoch(value)) * 1000 > ?2 OR unixepoch(value) IS NULL OR unixepoch(value) > unixepoch(?1)"
            ),
            clean_up: format!(
                "DELETE FROM {table} WHERE rowid IN \
                 (SELECT rowid FROM {table} WHERE expiration_time IS NOT NULL AND expiration_time <= ?1 LIMIT ?2)"
            ),
        }
    }
}
