//! The version of the data folder: a newer node brings an older folder forward, an older node leaves a newer one alone.
//!
//! Damage never keeps the node from starting. A newer version does (ADR 0016): the folder is whole, and a binary that misreads it would set good
//! files aside or give record ids twice.

use std::io;
use std::path::{Path, PathBuf};

use crate::outbox::storage::Storage;

/// The version that this binary writes. It grows when an older binary would misread what a newer one wrote, and only then.
pub const STORE_VERSION: u32 = 3;
/// The version that folders without a version file have.
const UNVERSIONED: u32 = 0;
const FILE: &str = "store-version";

/// What the file says: its first line is the version, the second who wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    version: u32,
    writer: String,
}

fn parse(bytes: &[u8]) -> Option<Stamp> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.lines();
    let version = lines.next()?.trim().parse().ok()?;
    Some(Stamp { version, writer: lines.next().unwrap_or("an unknown version").trim().to_owned() })
}

/// A folder that this binary leaves alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "its version is {found} (written by {writer}), and this is selvedge {}, which knows versions up to {STORE_VERSION}: start selvedge {writer} or later \
     with it, or restore a copy from before the upgrade; nothing was changed",
    env!("CARGO_PKG_VERSION")
)]
pub struct TooNew {
    /// The folder's version.
    pub found: u32,
    /// The version of the program that wrote it.
    pub writer: String,
}

/// Looks at the folder and touches nothing. Gives the version that it has: 0 for one without a version file, none for a folder that is
/// not there or empty.
///
/// # Errors
/// When the folder is newer than this binary, or the file cannot be read.
pub fn check(storage: &dyn Storage, dir: &Path) -> io::Result<Result<Option<u32>, TooNew>> {
    let bytes = match storage.read(&dir.join(FILE)) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let used = storage.list(&dir.join("outbox")).is_ok_and(|names| !names.is_empty());
            return Ok(Ok(used.then_some(UNVERSIONED)));
        }
        Err(e) => return Err(e),
    };
    Ok(match parse(&bytes) {
        Some(stamp) if stamp.version > STORE_VERSION => Err(TooNew { found: stamp.version, writer: stamp.writer }),
        Some(stamp) => Ok(Some(stamp.version)),
        // Damaged: what the store's own files say decides.
        None => Ok(Some(UNVERSIONED)),
    })
}

/// Brings the folder forward from the version that [`check`] gave, and notes the present one. Each step can be done again: the version is
/// noted when all are done.
///
/// # Errors
/// When the folder cannot be written.
pub fn bring_forward(storage: &dyn Storage, dir: &Path, from: Option<u32>) -> io::Result<()> {
    match from {
        Some(STORE_VERSION) => return Ok(()),
        // Version 1 is the first with a version file. From version 2 on cursors may say what is finished out of order (ADR 0012), without which
        // counts are misread, and segments may be sealed (ADR 0010). From version 3 on the mode of the box stands above a record's time (ADR 0001).
        // Nothing that is there has to be changed.
        Some(from) => tracing::info!(from, to = STORE_VERSION, path = %dir.display(), "the data directory is brought to a newer version"),
        None => {}
    }
    let text = format!("{STORE_VERSION}\n{}\n", env!("CARGO_PKG_VERSION"));
    storage.replace(&path(dir), text.as_bytes(), true)
}

/// Where the version stands.
fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::storage::DiskStorage;

    #[test]
    fn a_folder_is_brought_forward_and_a_newer_one_is_left_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let (storage, dir) = (DiskStorage::default(), temporary.path());
        assert_eq!(check(&storage, dir).unwrap(), Ok(None));
        std::fs::create_dir(dir.join("outbox")).unwrap();
        std::fs::write(dir.join("outbox/manifest"), "x").unwrap();
        assert_eq!(check(&storage, dir).unwrap(), Ok(Some(UNVERSIONED)));
        bring_forward(&storage, dir, Some(UNVERSIONED)).unwrap();
        assert_eq!(check(&storage, dir).unwrap(), Ok(Some(STORE_VERSION)));
        std::fs::write(path(dir), "7\n3.2.1\n").unwrap();
        let refused = check(&storage, dir).unwrap().unwrap_err();
        assert_eq!((refused.found, refused.writer.as_str()), (7, "3.2.1"));
        let text = refused.to_string();
        assert!(
            text.contains("version is 7 (written by 3.2.1)")
                && text.contains(&format!("up to {STORE_VERSION}"))
                && text.contains("start selvedge 3.2.1 or later"),
            "{text}"
        );
        std::fs::write(path(dir), "\0\0").unwrap();
        assert_eq!(check(&storage, dir).unwrap(), Ok(Some(UNVERSIONED)), "damage is no reason to refuse");
    }
}
