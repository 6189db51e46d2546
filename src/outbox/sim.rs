//! A simulated file layer for tests: keeps only what was synced when the power is cut, tears writes, refuses on demand.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::storage::{Space, Storage, StoredFile};

#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    /// What a power cut leaves for sure.
    durable: Vec<u8>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<PathBuf, Arc<Mutex<Content>>>,
    /// Names that a power cut leaves for sure.
    durable_names: BTreeMap<PathBuf, Arc<Mutex<Content>>>,
    dirs: Vec<PathBuf>,
    operations: u64,
    crash_at: Option<u64>,
    crashed: bool,
    fail_syncs: u32,
    capacity: Option<u64>,
    reads: u64,
    bytes_read: u64,
}

/// The simulated file system; clones share it.
#[derive(Clone, Default)]
pub struct SimStorage {
    state: Arc<Mutex<State>>,
}

impl std::fmt::Debug for SimStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimStorage").finish_non_exhaustive()
    }
}

struct SimFile {
    storage: SimStorage,
    content: Arc<Mutex<Content>>,
}

fn content(c: &Mutex<Content>) -> MutexGuard<'_, Content> {
    c.lock().unwrap_or_else(PoisonError::into_inner)
}

fn power_cut() -> io::Error {
    io::Error::other("the power is cut")
}

impl SimStorage {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a changing operation; fails from the chosen one on.
    fn operate(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        state.operations += 1;
        if state.crash_at.is_some_and(|at| state.operations >= at) {
            state.crashed = true;
        }
        if state.crashed { Err(power_cut()) } else { Ok(state) }
    }

    /// Changing operations so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Reads so far, and the bytes they gave.
    #[must_use]
    pub fn reads(&self) -> (u64, u64) {
        let state = self.lock();
        (state.reads, state.bytes_read)
    }

    /// The changing operation with this number, and all after it, fail: the power is cut in it.
    pub fn crash_at(&self, operation: u64) {
        self.lock().crash_at = Some(operation);
    }

    /// Whether the power has been cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.lock().crashed
    }

    /// The next syncs of files fail, and what they should have kept is lost.
    pub fn fail_syncs(&self, count: u32) {
        self.lock().fail_syncs = count;
    }

    /// Bytes that all files together may have.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// The disk after the power cut. For each file `keep` says how much of what was written and not synced survived, 0 to 8 eighths;
    /// names that were not synced survive when it says so.
    #[must_use]
    pub fn after_power_cut(&self, mut keep: impl FnMut() -> u8) -> Self {
        let state = self.lock();
        let mut files = BTreeMap::new();
        let mut names = state.durable_names.clone();
        for (path, file) in &state.files {
            if !names.contains_key(path) && keep() >= 4 {
                names.insert(path.clone(), file.clone());
            }
        }
        for (path, file) in names {
            let c = content(&file);
            let eighths = usize::from(keep().min(8));
            let mut left = c.durable.clone();
            let limit = c.now.len();
            // Changed bytes reach the disk in order up to the tear; beyond it stands what was durable, or zeros.
            let tear = limit * eighths / 8;
            if left.len() < limit {
                left.resize(limit, 0);
            }
            left[..tear].copy_from_slice(&c.now[..tear]);
            if eighths == 8 {
                left.clone_from(&c.now);
            }
            files.insert(path, Arc::new(Mutex::new(Content { now: left.clone(), durable: left })));
        }
        let fresh = Self::default();
        *fresh.lock() = State { durable_names: files.clone(), files, dirs: state.dirs.clone(), ..State::default() };
        fresh
    }

    /// The disk after the process was killed: everything as it was written.
    #[must_use]
    pub fn after_kill(&self) -> Self {
        let state = self.lock();
        let mut files = BTreeMap::new();
        for (path, file) in &state.files {
            let now = content(file).now.clone();
            files.insert(path.clone(), Arc::new(Mutex::new(Content { now: now.clone(), durable: now })));
        }
        let fresh = Self::default();
        *fresh.lock() = State { durable_names: files.clone(), files, dirs: state.dirs.clone(), ..State::default() };
        fresh
    }

    /// Changes bytes on the disk, as a failing medium does.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(file) = self.lock().files.get(path) {
            change(&mut content(file).now);
        }
    }

    /// All files, sorted.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.lock().files.keys().cloned().collect()
    }

    fn used(state: &State) -> u64 {
        state.files.values().map(|f| content(f).now.len() as u64).sum()
    }

    fn room(state: &State, more: u64) -> io::Result<()> {
        match state.capacity {
            Some(capacity) if Self::used(state) + more > capacity => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }
}

impl StoredFile for SimFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let result = self.storage.operate().map(|_| ());
        let end = offset as usize + bytes.len();
        let grows = end.saturating_sub(content(&self.content).now.len()) as u64;
        let mut keep = bytes.len();
        if result.is_err() {
            // The write that the power cut falls into may have got halfway.
            keep /= 2;
        }
        if result.is_ok() {
            SimStorage::room(&self.storage.lock(), grows)?;
        }
        let mut c = content(&self.content);
        if c.now.len() < offset as usize + keep {
            c.now.resize(offset as usize + keep, 0);
        }
        c.now[offset as usize..offset as usize + keep].copy_from_slice(&bytes[..keep]);
        result
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let c = content(&self.content);
        let from = (offset as usize).min(c.now.len());
        let n = buffer.len().min(c.now.len() - from);
        buffer[..n].copy_from_slice(&c.now[from..from + n]);
        drop(c);
        let mut state = self.storage.lock();
        state.reads += 1;
        state.bytes_read += n as u64;
        Ok(n)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.storage.operate()?;
        if state.fail_syncs > 0 {
            state.fail_syncs -= 1;
            drop(state);
            let mut c = content(&self.content);
            // Linux marks the pages clean after a failed sync: what was not durable is gone for later syncs as well.
            c.now = c.durable.clone();
            return Err(io::Error::other("sync failed"));
        }
        drop(state);
        let mut c = content(&self.content);
        c.durable = c.now.clone();
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        drop(self.storage.operate()?);
        content(&self.content).now.resize(len as usize, 0);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(content(&self.content).now.len() as u64)
    }
}

impl Storage for SimStorage {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.operate()?;
        if !state.dirs.iter().any(|d| d == dir) {
            state.dirs.push(dir.to_owned());
        }
        Ok(())
    }

    fn lock(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        let names = state.files.keys().chain(state.dirs.iter()).filter(|p| p.parent() == Some(dir));
        Ok(names.filter_map(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned()).collect())
    }

    fn create(&self, path: &Path, preallocate: u64) -> io::Result<Arc<dyn StoredFile>> {
        let mut state = self.operate()?;
        if state.files.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Self::room(&state, preallocate)?;
        let fresh = Arc::new(Mutex::new(Content { now: vec![0; preallocate as usize], durable: Vec::new() }));
        state.files.insert(path.to_owned(), fresh.clone());
        drop(state);
        Ok(Arc::new(SimFile { storage: self.clone(), content: fresh }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn StoredFile>> {
        let file = self.lock().files.get(path).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { storage: self.clone(), content: file }))
    }

    fn replace(&self, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
        let mut state = self.operate()?;
        let fresh = Arc::new(Mutex::new(Content { now: bytes.to_vec(), durable: if durable { bytes.to_vec() } else { Vec::new() } }));
        state.files.insert(path.to_owned(), fresh.clone());
        if durable {
            state.durable_names.insert(path.to_owned(), fresh);
        }
        Ok(())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.lock().files.get(path).cloned().ok_or(io::ErrorKind::NotFound)?;
        let bytes = content(&file).now.clone();
        Ok(bytes)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.operate()?;
        state.files.remove(path).ok_or(io::ErrorKind::NotFound)?;
        // Removal may or may not have reached the disk; the durable name goes with it here, tests of stale files make them.
        state.durable_names.remove(path);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.operate()?;
        let file = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.durable_names.remove(from);
        state.files.insert(to.to_owned(), file.clone());
        state.durable_names.insert(to.to_owned(), file);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.operate()?;
        let names: Vec<_> = state.files.iter().filter(|(p, _)| p.parent() == Some(dir)).map(|(p, f)| (p.clone(), f.clone())).collect();
        state.durable_names.extend(names);
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        let state = self.lock();
        let total = state.capacity.unwrap_or(u64::MAX);
        Ok(Space { available: total.saturating_sub(Self::used(&state)), total })
    }
}
