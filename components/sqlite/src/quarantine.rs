//! Setting a database aside that cannot be read, so that the node starts.

use std::path::{Path, PathBuf};

/// Files set aside per database; the last place is used again, so that a box that breaks often does not fill its disk.
const PLACES: u32 = 8;

/// Whether the error says that the file's content is broken, as against being busy, missing or forbidden.
pub(crate) fn is_corruption(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase))
}

/// Renames the database and its side files to `NAME.corrupt-<n>`, with the suffixes that SQLite needs to open them together.
///
/// # Errors
/// When the database file itself cannot be renamed.
pub(crate) fn set_aside(path: &Path) -> std::io::Result<PathBuf> {
    let place = (1..PLACES).map(|n| with_suffix(path, &format!(".corrupt-{n}"))).find(|p| !p.exists());
    let place = place.unwrap_or_else(|| with_suffix(path, &format!(".corrupt-{PLACES}")));
    std::fs::rename(path, &place)?;
    for side in ["-wal", "-shm", "-journal"] {
        match std::fs::rename(with_suffix(path, side), with_suffix(&place, side)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(place)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_broken_file_gets_a_place_of_its_own_and_places_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.db");
        for n in 1..=PLACES + 2 {
            std::fs::write(&path, format!("broken {n}")).unwrap();
            std::fs::write(dir.path().join("node.db-wal"), "w").unwrap();
            let place = set_aside(&path).unwrap();
            assert_eq!(place, dir.path().join(format!("node.db.corrupt-{}", n.min(PLACES))));
            assert!(!path.exists());
        }
        assert!(dir.path().join("node.db.corrupt-1-wal").exists());
        assert_eq!(std::fs::read_to_string(dir.path().join("node.db.corrupt-1")).unwrap(), "broken 1");
    }
}
