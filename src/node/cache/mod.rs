//! What sources said last, for when they are gone: kept in memory, and sealed in a table when the node has a key (decision record 0014).

pub(in crate::node) mod stores;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde::{Deserialize, Serialize};

use crate::component::Table;
use crate::seal::Seal;
use crate::telemetry::Metrics;
use crate::time::Clock;

/// Most entries of a cache, and most bytes of one. What is beyond is not kept: it is counted, and answered only while its source is there.
const MOST: usize = 1_000;
const MOST_BYTES: usize = 64 << 10;
/// An entry that its source confirms is written again after this time, not each time: flash wears.
const REFRESH: Duration = Duration::from_secs(3_600);

/// What a source said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// When it said so last, in milliseconds since 1970.
    at: u64,
    /// In base64.
    value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreLabel {
    cache: &'static str,
    store: String,
}

#[derive(Debug, Clone)]
struct Meters {
    answers: Family<StoreLabel, Counter>,
    age: Family<StoreLabel, Gauge>,
    left_out: Family<StoreLabel, Counter>,
}

/// Where a cache is on the disk.
pub(in crate::node) struct Disk {
    pub table: Arc<dyn Table>,
    pub seal: Seal,
}

/// Entries by store and name.
pub(in crate::node) struct SealedCache {
    name: &'static str,
    max_age: Duration,
    clock: Arc<dyn Clock>,
    disk: Option<Disk>,
    entries: Mutex<BTreeMap<(String, String), Entry>>,
    /// Stores that answer from here at the moment.
    gone: Mutex<BTreeSet<String>>,
    meters: Meters,
}

impl std::fmt::Debug for SealedCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedCache").field("name", &self.name).field("entries", &self.lock().len()).finish_non_exhaustive()
    }
}

/// A row's name: store and name, apart by a character that neither has.
fn row(store: &str, name: &str) -> String {
    format!("{store}\u{1}{name}")
}

impl SealedCache {
    /// Reads what is on the disk. What is too old is deleted; what does not open stays where it is, for the key may come back.
    pub(in crate::node) async fn open(name: &'static str, max_age: Duration, disk: Option<Disk>, clock: Arc<dyn Clock>, metrics: &Metrics) -> Self {
        let meters = Meters {
            answers: metrics.shared("selvedge_cache_answers", "Answers from a cache because the source was gone", Family::default),
            age: metrics.shared("selvedge_cache_age_seconds", "Age of the last answer from a cache; 0 while the source answers", Family::default),
            left_out: metrics.shared("selvedge_cache_left_out", "Values too large or too many to be kept", Family::default),
        };
        let this = Self { name, max_age, clock, disk, entries: Mutex::default(), gone: Mutex::default(), meters };
        this.load().await;
        this
    }

    async fn load(&self) {
        let Some(disk) = &self.disk else { return };
        let rows = disk.table.load().await.unwrap_or_else(|error| {
            tracing::error!(cache = self.name, %error, "a cache cannot be read; it begins empty");
            Vec::new()
        });
        let (mut unopened, mut cause) = (0u64, None);
        for (key, sealed) in rows {
            let Some((store, name)) = key.split_once('\u{1}') else { continue };
            let opened = disk.seal.open(key.as_bytes(), &sealed).map_err(|e| e.to_string());
            let entry = match opened.and_then(|plain| serde_json::from_slice::<Entry>(&plain).map_err(|e| e.to_string())) {
                Ok(entry) => entry,
                Err(error) => {
                    unopened += 1;
                    cause.get_or_insert(error);
                    continue;
                }
            };
            if self.age(&entry) > self.max_age {
                self.written(disk.table.delete(&key).await);
                continue;
            }
            if !disk.seal.is_current(&sealed) {
                self.write(&key, &entry).await;
            }
            self.lock().insert((store.to_owned(), name.to_owned()), entry);
        }
        if let Some(cause) = cause {
            tracing::warn!(
                cache = self.name,
                entries = unopened,
                cause,
                "entries of a cache cannot be opened; is the key of that time among spec.atRest.keys?"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn age(&self, entry: &Entry) -> Duration {
        Duration::from_millis(self.clock.now().0.saturating_sub(entry.at))
    }

    fn label(&self, store: &str) -> StoreLabel {
        StoreLabel { cache: self.name, store: store.to_owned() }
    }

    fn written(&self, done: Result<(), crate::component::TableError>) {
        if let Err(error) = done {
            tracing::warn!(cache = self.name, %error, "a cache cannot be written; it is kept in memory");
        }
    }

    async fn write(&self, key: &str, entry: &Entry) {
        let Some(disk) = &self.disk else { return };
        let sealed =
            serde_json::to_vec(entry).map_err(|e| e.to_string()).and_then(|plain| disk.seal.seal(key.as_bytes(), &plain).map_err(|e| e.to_string()));
        match sealed {
            Ok(sealed) => self.written(disk.table.put(key, Bytes::from(sealed)).await),
            Err(error) => tracing::warn!(cache = self.name, error, "an entry of a cache cannot be sealed; it is kept in memory"),
        }
    }

    /// The source has said this.
    pub(in crate::node) async fn keep(&self, store: &str, name: &str, value: &[u8]) {
        let entry = Entry { at: self.clock.now().0, value: STANDARD.encode(value) };
        let key = (store.to_owned(), name.to_owned());
        let fits = value.len() <= MOST_BYTES && !store.contains('\u{1}');
        {
            let mut entries = self.lock();
            match entries.get(&key) {
                Some(known) if known.value == entry.value && self.age(known) < REFRESH => return,
                known if fits && (known.is_some() || entries.len() < MOST) => {}
                _ => {
                    let counter = self.meters.left_out.get_or_create(&self.label(store)).clone();
                    if counter.inc() == 0 {
                        tracing::warn!(cache = self.name, store, name, "not kept: a cache takes {MOST} values of {MOST_BYTES} bytes");
                    }
                    return;
                }
            }
            entries.insert(key, entry.clone());
        }
        self.write(&row(store, name), &entry).await;
    }

    /// The source says that there is none.
    pub(in crate::node) async fn forget(&self, store: &str, name: &str) {
        let gone = self.lock().remove(&(store.to_owned(), name.to_owned()));
        if let (Some(_), Some(disk)) = (gone, &self.disk) {
            self.written(disk.table.delete(&row(store, name)).await);
        }
    }

    /// Names that are kept of a store and young enough, with their values and ages.
    pub(in crate::node) fn all(&self, store: &str) -> Vec<(String, Vec<u8>, Duration)> {
        let entries = self.lock();
        let of = entries.iter().filter(|((s, _), e)| s == store && self.age(e) <= self.max_age);
        of.filter_map(|((_, name), e)| Some((name.clone(), STANDARD.decode(&e.value).ok()?, self.age(e)))).collect()
    }

    /// One of them.
    pub(in crate::node) fn one(&self, store: &str, name: &str) -> Option<(Vec<u8>, Duration)> {
        let entries = self.lock();
        let entry = entries.get(&(store.to_owned(), name.to_owned())).filter(|e| self.age(e) <= self.max_age)?;
        Some((STANDARD.decode(&entry.value).ok()?, self.age(entry)))
    }

    /// An answer of this age was given from here, since the source failed so.
    pub(in crate::node) fn answered(&self, store: &str, age: Duration, cause: &str) {
        let label = self.label(store);
        self.meters.answers.get_or_create(&label).inc();
        self.meters.age.get_or_create(&label).set(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        if self.gone.lock().unwrap_or_else(PoisonError::into_inner).insert(store.to_owned()) {
            tracing::warn!(cache = self.name, store, age_seconds = age.as_secs(), cause, "a store is gone: it is answered from the cache");
        }
    }

    /// The source answers.
    pub(in crate::node) fn source_is_there(&self, store: &str) {
        if self.gone.lock().unwrap_or_else(PoisonError::into_inner).remove(store) {
            self.meters.age.get_or_create(&self.label(store)).set(0);
            tracing::info!(cache = self.name, store, "a store answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::{MemoryTables, Tables as _};
    use crate::seal::MasterKey;
    use crate::time::{ManualClock, Timestamp};

    const DAY: Duration = Duration::from_secs(86_400);

    fn seal(keys: &[u8]) -> Seal {
        Seal::derive(&keys.iter().map(|k| MasterKey::new([*k; 32])).collect::<Vec<_>>(), "secrets").unwrap()
    }

    async fn open(tables: &MemoryTables, keys: &[u8], clock: &Arc<ManualClock>) -> SealedCache {
        let disk = if keys.is_empty() { None } else { Some(Disk { table: tables.open("cache").await.unwrap(), seal: seal(keys) }) };
        SealedCache::open("secrets", 14 * DAY, disk, clock.clone(), &Metrics::new()).await
    }

    async fn raw(tables: &MemoryTables) -> Vec<(String, Bytes)> {
        tables.open("cache").await.unwrap().load().await.unwrap()
    }

    #[tokio::test]
    async fn entries_outlive_the_process_unreadable_and_only_for_their_time() {
        let (tables, clock) = (MemoryTables::default(), Arc::new(ManualClock::at(Timestamp(1_795_488_182_500))));
        let cache = open(&tables, &[1], &clock).await;
        cache.keep("vault", "db", b"hush").await;
        assert!(raw(&tables).await.iter().all(|(_, v)| !v.windows(4).any(|w| w == b"hush") && !v.windows(4).any(|w| w == b"aHVz")));
        clock.advance(DAY);
        let again = open(&tables, &[1], &clock).await;
        assert_eq!(again.one("vault", "db"), Some((b"hush".to_vec(), DAY)));
        assert_eq!(again.one("other", "db"), None);
        assert_eq!(again.all("vault").len(), 1);
        clock.advance(14 * DAY);
        assert_eq!((again.one("vault", "db"), again.all("vault").len()), (None, 0), "too old");
        let _ = open(&tables, &[1], &clock).await;
        assert_eq!(raw(&tables).await, [], "and deleted at the next start");
    }

    #[tokio::test]
    async fn another_key_opens_nothing_and_deletes_nothing_and_a_new_first_key_seals_anew() {
        let (tables, clock) = (MemoryTables::default(), Arc::new(ManualClock::at(Timestamp(1_795_488_182_500))));
        open(&tables, &[1], &clock).await.keep("vault", "db", b"hush").await;
        assert_eq!(open(&tables, &[9], &clock).await.one("vault", "db"), None);
        assert!(open(&tables, &[2, 1], &clock).await.one("vault", "db").is_some());
        assert!(open(&tables, &[2], &clock).await.one("vault", "db").is_some(), "the old key may go");
        assert_eq!(open(&tables, &[1], &clock).await.one("vault", "db"), None);
    }

    #[tokio::test]
    async fn what_a_source_confirms_is_written_seldom_and_what_is_gone_is_forgotten() {
        let (tables, clock) = (MemoryTables::default(), Arc::new(ManualClock::at(Timestamp(1_795_488_182_500))));
        let cache = open(&tables, &[1], &clock).await;
        cache.keep("vault", "db", b"hush").await;
        let before = raw(&tables).await;
        cache.keep("vault", "db", b"hush").await;
        assert_eq!(raw(&tables).await, before, "sealed anew would be other bytes");
        clock.advance(REFRESH);
        cache.keep("vault", "db", b"hush").await;
        assert_ne!(raw(&tables).await, before);
        assert_eq!(cache.one("vault", "db").unwrap().1, Duration::ZERO);
        cache.forget("vault", "db").await;
        assert_eq!((cache.one("vault", "db"), raw(&tables).await), (None, Vec::new()));
        // Bounds.
        cache.keep("vault", "large", &[0; MOST_BYTES + 1]).await;
        assert_eq!(cache.one("vault", "large"), None);
        let memory = open(&tables, &[], &clock).await;
        for n in 0..=MOST {
            memory.keep("vault", &n.to_string(), b"x").await;
        }
        assert_eq!((memory.all("vault").len(), raw(&tables).await.len()), (MOST, 0), "without a key nothing is on the disk");
    }
}
