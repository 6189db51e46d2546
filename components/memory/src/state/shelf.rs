//! The values and the rules, without locks, tasks and clocks.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use selvedge::component::{Concurrency, DeleteRequest, KeysLikePage, KeysLikeRequest, SetRequest, StateError, StateItem, StateOperation, StateValue};
use selvedge::time::{Monotonic, Timestamp};

use crate::like::Like;

/// What an entry costs beside its key and value: table slot, entity tag, allocations. An estimate that keeps many small
/// entries from passing the bound unseen.
const OVERHEAD_BYTES: usize = 160;
/// Keys of a page when the caller sets no bound; the token leads to the rest.
const PAGE_KEYS: u32 = 65_536;

/// Both readings of the clock: expiry is measured with the steady one, and told in the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub wall: Timestamp,
    pub steady: Monotonic,
}

#[derive(Debug, Clone)]
struct Entry {
    value: StateValue,
    etag: String,
    expires: Option<(Monotonic, Timestamp)>,
    /// Place in the order of first writes, which pages of keys follow.
    place: u64,
}

impl Entry {
    fn alive(&self, now: Now) -> bool {
        self.expires.is_none_or(|(at, _)| at > now.steady)
    }

    fn bytes(&self, key: &str) -> usize {
        key.len() + self.value.bytes.len() + OVERHEAD_BYTES
    }
}

#[derive(Debug)]
pub(super) struct Shelf {
    entries: HashMap<String, Entry>,
    bytes: usize,
    max_bytes: usize,
    expiring: usize,
    next_place: u64,
}

impl Shelf {
    pub fn new(max_bytes: usize) -> Self {
        Self { entries: HashMap::new(), bytes: 0, max_bytes, expiring: 0, next_place: 1 }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn expires(&self) -> bool {
        self.expiring > 0
    }

    pub fn get(&self, now: Now, key: &str) -> Option<StateItem> {
        let entry = self.alive(now, key)?;
        Some(StateItem { value: entry.value.clone(), etag: Some(entry.etag.clone()), expires: entry.expires.map(|(_, wall)| wall) })
    }

    fn alive(&self, now: Now, key: &str) -> Option<&Entry> {
        self.entries.get(key).filter(|entry| entry.alive(now))
    }

    /// All tags are checked against what is stored before, then all operations are done in order; nothing is done on an error.
    pub fn transact(&mut self, now: Now, operations: Vec<StateOperation>) -> Result<(), StateError> {
        let mut growth = 0;
        for operation in &operations {
            match operation {
                StateOperation::Set(SetRequest { key, etag, concurrency, .. })
                | StateOperation::Delete(DeleteRequest { key, etag, concurrency, .. }) => self.check(now, key, etag.as_deref(), *concurrency)?,
            }
            if let StateOperation::Set(set) = operation {
                let old = self.entries.get(&set.key).map_or(0, |entry| entry.bytes(&set.key));
                growth += (set.key.len() + set.value.bytes.len() + OVERHEAD_BYTES).saturating_sub(old);
            }
        }
        if growth > 0 && self.bytes + growth > self.max_bytes {
            let (bytes, max) = (self.bytes, self.max_bytes);
            return Err(StateError::Unavailable(format!("the in-memory state store is full: {bytes} of {max} bytes, {growth} more wanted")));
        }
        for operation in operations {
            match operation {
                StateOperation::Set(request) => self.set(now, request),
                StateOperation::Delete(request) => self.remove(&request.key),
            }
        }
        Ok(())
    }

    fn check(&self, now: Now, key: &str, etag: Option<&str>, concurrency: Concurrency) -> Result<(), StateError> {
        let there = self.alive(now, key);
        let fits = match (etag, concurrency) {
            (Some(wanted), _) => there.is_some_and(|entry| entry.etag == wanted),
            (None, Concurrency::FirstWrite) => there.is_none(),
            (None, Concurrency::LastWrite) => true,
        };
        if fits { Ok(()) } else { Err(StateError::EtagMismatch(None)) }
    }

    fn set(&mut self, now: Now, request: SetRequest) {
        let expires = request.ttl_seconds.filter(|ttl| *ttl > 0).map(|ttl| {
            let ttl = Duration::from_secs(u64::from(ttl));
            (now.steady.plus(ttl), now.wall.plus(ttl))
        });
        let place = match self.alive(now, &request.key) {
            Some(old) => old.place,
            None => {
                self.next_place += 1;
                self.next_place
            }
        };
        self.remove(&request.key);
        // Copied, since the bytes may be a small part of a large request, which would stay in memory as a whole.
        let value = StateValue { bytes: Bytes::copy_from_slice(&request.value.bytes), json: request.value.json };
        let entry = Entry { value, etag: uuid::Uuid::new_v4().to_string(), expires, place };
        self.bytes += entry.bytes(&request.key);
        self.expiring += usize::from(expires.is_some());
        self.entries.insert(request.key, entry);
    }

    fn remove(&mut self, key: &str) {
        if let Some(gone) = self.entries.remove(key) {
            self.bytes -= gone.bytes(key);
            self.expiring -= usize::from(gone.expires.is_some());
        }
    }

    fn remove_all(&mut self, which: impl Fn(&str, &Entry) -> bool) -> u64 {
        let (mut bytes, mut expiring, mut count) = (0, 0, 0);
        self.entries.retain(|key, entry| {
            let gone = which(key, entry);
            if gone {
                bytes += entry.bytes(key);
                expiring += usize::from(entry.expires.is_some());
                count += 1;
            }
            !gone
        });
        self.bytes -= bytes;
        self.expiring -= expiring;
        count
    }

    /// Throws out what has expired; returns how many values that expire are left.
    pub fn sweep(&mut self, now: Now) -> usize {
        if self.expires() {
            self.remove_all(|_, entry| !entry.alive(now));
            if self.entries.is_empty() {
                self.entries.shrink_to_fit();
            }
        }
        self.expiring
    }

    pub fn delete_with_prefix(&mut self, now: Now, prefix: &str) -> Result<u64, StateError> {
        if prefix.is_empty() || prefix == "||" {
            return Err(StateError::Invalid("a prefix is required to delete by prefix".to_owned()));
        }
        let prefix = if prefix.ends_with("||") { prefix.to_owned() } else { format!("{prefix}||") };
        self.sweep(now);
        Ok(self.remove_all(|key, _| key.strip_prefix(&prefix).is_some_and(|rest| !rest.contains("||"))))
    }

    pub fn keys_like(&self, now: Now, request: &KeysLikeRequest) -> Result<KeysLikePage, StateError> {
        if request.pattern.is_empty() {
            return Err(StateError::Invalid("the pattern of keys must not be empty".to_owned()));
        }
        let after: u64 = match request.token.as_deref().filter(|t| !t.is_empty()) {
            None => 0,
            Some(token) => token.parse().map_err(|_| StateError::Invalid(format!("{token:?} is no token of this store")))?,
        };
        let pattern = Like::parse(&request.pattern);
        let mut found: Vec<(u64, &String)> = self
            .entries
            .iter()
            .filter(|(key, entry)| entry.place > after && entry.alive(now) && pattern.matches(key))
            .map(|(key, entry)| (entry.place, key))
            .collect();
        found.sort_unstable();
        let size = request.page_size.filter(|n| *n > 0).unwrap_or(PAGE_KEYS).min(PAGE_KEYS) as usize;
        let more = found.len() > size;
        found.truncate(size);
        let token = found.last().filter(|_| more).map(|(place, _)| place.to_string());
        Ok(KeysLikePage { keys: found.into_iter().map(|(_, key)| key.clone()).collect(), token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_write_delete_needs_the_key_to_be_free() {
        let now = Now { wall: Timestamp(0), steady: Monotonic::default() };
        let mut shelf = Shelf::new(10_000);
        let delete = || StateOperation::Delete(DeleteRequest { key: "k".into(), concurrency: Concurrency::FirstWrite, ..DeleteRequest::default() });
        shelf.transact(now, vec![delete()]).unwrap();
        shelf.transact(now, vec![StateOperation::Set(SetRequest { key: "k".into(), ..SetRequest::default() })]).unwrap();
        assert_eq!(shelf.transact(now, vec![delete()]), Err(StateError::EtagMismatch(None)));
    }

    #[test]
    fn the_count_of_bytes_returns_to_zero() {
        let now = Now { wall: Timestamp(0), steady: Monotonic::default() };
        let mut shelf = Shelf::new(100_000);
        for n in 0..100u32 {
            let key = format!("p||{}", n % 10);
            let set = SetRequest { key, ttl_seconds: n.is_multiple_of(3).then_some(1), ..SetRequest::default() };
            shelf.transact(now, vec![StateOperation::Set(set)]).unwrap();
        }
        assert_eq!(shelf.delete_with_prefix(now, "p").unwrap(), 10);
        assert_eq!((shelf.bytes(), shelf.expires()), (0, false));
    }
}
