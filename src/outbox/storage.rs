//! The file layer under the outbox: few operations, so that a test can replace it by one that loses what was not synced.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open file, read and written at positions.
pub trait StoredFile: Send + Sync {
    /// Writes all of `bytes` at `offset`. After an error any part may have been written.
    ///
    /// # Errors
    /// As the system says; a full disk is `StorageFull` or `QuotaExceeded`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Reads up to the buffer's length; 0 at the end.
    ///
    /// # Errors
    /// As the system says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Makes everything written durable. After an error what was not durable may be lost, even if a later call succeeds.
    ///
    /// # Errors
    /// As the system says.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the file.
    ///
    /// # Errors
    /// As the system says.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Length in bytes.
    ///
    /// # Errors
    /// As the system says.
    fn size(&self) -> io::Result<u64>;
}

/// A small file system.
pub trait Storage: Send + Sync {
    /// Makes a directory and its parents, durably.
    ///
    /// # Errors
    /// As the system says.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the directory for this process until the storage is dropped.
    ///
    /// # Errors
    /// `WouldBlock` when another process has it.
    fn lock(&self, dir: &Path) -> io::Result<()>;
    /// Names in a directory, unsorted.
    ///
    /// # Errors
    /// As the system says.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes a new file with `preallocate` bytes reserved (as zeros) if the file system can.
    ///
    /// # Errors
    /// `AlreadyExists`, or as the system says.
    fn create(&self, path: &Path, preallocate: u64) -> io::Result<Arc<dyn StoredFile>>;
    /// Opens an existing file.
    ///
    /// # Errors
    /// `NotFound`, or as the system says.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn StoredFile>>;
    /// Replaces a small file as a whole: after a crash the old or the new content stands there, if `durable` surely the new one.
    ///
    /// # Errors
    /// As the system says.
    fn replace(&self, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()>;
    /// Reads a small file.
    ///
    /// # Errors
    /// `NotFound`, or as the system says.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Removes a file.
    ///
    /// # Errors
    /// As the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Renames a file within its directory.
    ///
    /// # Errors
    /// As the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// As the system says.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Room on the file system of `dir`.
    ///
    /// # Errors
    /// As the system says.
    fn space(&self, dir: &Path) -> io::Result<Space>;
}

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that an unprivileged process may still write.
    pub available: u64,
    /// Bytes in all.
    pub total: u64,
}

/// The real file system.
#[derive(Debug, Default)]
pub struct DiskStorage {
    locks: std::sync::Mutex<Vec<fs::File>>,
}

struct DiskFile(fs::File);

impl StoredFile for DiskFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

impl Storage for DiskStorage {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        // What waits is not for everybody on the box to read; the umask may take more away.
        fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
        match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.sync_dir(parent),
            _ => Ok(()),
        }
    }

    fn lock(&self, dir: &Path) -> io::Result<()> {
        let file = fs::File::options().create(true).truncate(false).write(true).open(dir.join("lock"))?;
        match file.try_lock() {
            Ok(()) => {
                self.locks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(file);
                Ok(())
            }
            Err(fs::TryLockError::WouldBlock) => Err(io::Error::new(io::ErrorKind::WouldBlock, "another process uses this directory")),
            Err(fs::TryLockError::Error(e)) => Err(e),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(dir)?.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, path: &Path, preallocate: u64) -> io::Result<Arc<dyn StoredFile>> {
        let file = fs::File::options().read(true).write(true).create_new(true).open(path)?;
        if preallocate > 0 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, preallocate) {
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {}
                Err(e) => {
                    drop(file);
                    let _ = fs::remove_file(path);
                    return Err(e.into());
                }
            }
        }
        Ok(Arc::new(DiskFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn StoredFile>> {
        Ok(Arc::new(DiskFile(fs::File::options().read(true).write(true).open(path)?)))
    }

    fn replace(&self, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
        let new: PathBuf = path.with_extension("new");
        let file = fs::File::create(&new)?;
        file.write_all_at(bytes, 0)?;
        if durable {
            file.sync_data()?;
        }
        fs::rename(&new, path)?;
        match path.parent() {
            Some(dir) if durable => self.sync_dir(dir),
            _ => Ok(()),
        }
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(Space { available: stat.f_bavail.saturating_mul(stat.f_frsize), total: stat.f_blocks.saturating_mul(stat.f_frsize) })
    }
}
