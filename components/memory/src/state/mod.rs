//! `state.in-memory`.

mod shelf;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use selvedge::component::{
    ComponentContext, DeleteRequest, Fut, GetRequest, InitError, KeysLikePage, KeysLikeRequest, Metadata, SetRequest, StateError, StateFeature,
    StateItem, StateOperation, StateStore,
};
use selvedge::time::Clock;
use tokio::sync::Notify;

use shelf::{Now, Shelf};

const FEATURES: [StateFeature; 5] =
    [StateFeature::Etag, StateFeature::Transactional, StateFeature::Ttl, StateFeature::DeleteWithPrefix, StateFeature::KeysLike];
/// How often expired values are thrown out while there are values that expire.
const SWEEP: Duration = Duration::from_secs(1);
/// Bytes of keys and values unless `maxBytes` says otherwise.
const MAX_BYTES: u64 = 256 << 20;

struct Shared {
    shelf: Mutex<Shelf>,
    clock: Arc<dyn Clock>,
    /// A value that expires has come.
    expiring: Notify,
    bytes: Gauge,
}

impl Shared {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        Now { wall: self.clock.now(), steady: self.clock.monotonic() }
    }

    fn note_size(&self, shelf: &Shelf) {
        self.bytes.set(i64::try_from(shelf.bytes()).unwrap_or(i64::MAX));
    }
}

/// A state store in the process's memory, bounded by `maxBytes` (256 MiB unless set; a write beyond it is refused).
pub struct MemoryState {
    shared: Arc<Shared>,
    sweeper: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for MemoryState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryState").finish_non_exhaustive()
    }
}

impl Drop for MemoryState {
    fn drop(&mut self) {
        self.sweeper.abort();
    }
}

/// Builds a `state.in-memory`.
///
/// # Errors
/// When `maxBytes` is no size.
pub async fn state_store(context: ComponentContext) -> Result<Arc<dyn StateStore>, InitError> {
    let max_bytes = context.properties.size("maxBytes", MAX_BYTES)?;
    let sizes = context.metrics.shared(
        "selvedge_state_memory_bytes",
        "Bytes of keys and values in in-memory state stores",
        Family::<Vec<(&'static str, String)>, Gauge>::default,
    );
    let bytes = Gauge::clone(&sizes.get_or_create(&vec![("component", context.name)]));
    let shelf = Mutex::new(Shelf::new(usize::try_from(max_bytes).unwrap_or(usize::MAX)));
    let shared = Arc::new(Shared { shelf, clock: context.clock, expiring: Notify::new(), bytes });
    let sweeper = tokio::spawn(sweep(shared.clone()));
    Ok(Arc::new(MemoryState { shared, sweeper }))
}

/// Throws out expired values once a second, and sleeps while nothing expires.
async fn sweep(shared: Arc<Shared>) {
    loop {
        shared.expiring.notified().await;
        loop {
            tokio::time::sleep(SWEEP).await;
            let now = shared.now();
            let mut shelf = shared.shelf();
            let left = shelf.sweep(now);
            shared.note_size(&shelf);
            if left == 0 {
                break;
            }
        }
    }
}

impl MemoryState {
    fn change<T>(&self, change: impl FnOnce(&mut Shelf, Now) -> Result<T, StateError>) -> Result<T, StateError> {
        let now = self.shared.now();
        let mut shelf = self.shared.shelf();
        let outcome = change(&mut shelf, now);
        self.shared.note_size(&shelf);
        if shelf.expires() {
            self.shared.expiring.notify_one();
        }
        outcome
    }

    fn read<T>(&self, read: impl FnOnce(&Shelf, Now) -> T) -> T {
        read(&self.shared.shelf(), self.shared.now())
    }
}

fn ready<'a, T: Send + 'a>(value: T) -> Fut<'a, T> {
    Box::pin(std::future::ready(value))
}

impl StateStore for MemoryState {
    fn features(&self) -> &[StateFeature] {
        &FEATURES
    }

    fn get<'a>(&'a self, request: GetRequest) -> Fut<'a, Result<Option<StateItem>, StateError>> {
        ready(Ok(self.read(|shelf, now| shelf.get(now, &request.key))))
    }

    fn set<'a>(&'a self, request: SetRequest) -> Fut<'a, Result<(), StateError>> {
        self.transact(vec![StateOperation::Set(request)], Metadata::new())
    }

    fn delete<'a>(&'a self, request: DeleteRequest) -> Fut<'a, Result<(), StateError>> {
        self.transact(vec![StateOperation::Delete(request)], Metadata::new())
    }

    fn transact<'a>(&'a self, operations: Vec<StateOperation>, _metadata: Metadata) -> Fut<'a, Result<(), StateError>> {
        ready(self.change(|shelf, now| shelf.transact(now, operations)))
    }

    fn delete_with_prefix<'a>(&'a self, prefix: String) -> Fut<'a, Result<u64, StateError>> {
        ready(self.change(|shelf, now| shelf.delete_with_prefix(now, &prefix)))
    }

    fn keys_like<'a>(&'a self, request: KeysLikeRequest) -> Fut<'a, Result<KeysLikePage, StateError>> {
        ready(self.read(|shelf, now| shelf.keys_like(now, &request)))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use selvedge::component::StateValue;
    use selvedge_conformance::Bench;

    use super::*;

    fn text(key: &str, json: &'static str) -> SetRequest {
        SetRequest { key: key.into(), value: StateValue { bytes: json.into(), json: true }, ..SetRequest::default() }
    }

    #[tokio::test]
    async fn it_passes_the_shared_suite() {
        let bench = Bench::new().await;
        let store = state_store(bench.context("state.in-memory", &[])).await.unwrap();
        selvedge_conformance::state(store, &bench.clock).await;
    }

    #[tokio::test(start_paused = true)]
    async fn expired_values_are_swept_out_within_a_second_or_two() {
        let bench = Bench::new().await;
        let store = state_store(bench.context("state.in-memory", &[])).await.unwrap();
        for n in 0..10 {
            store.set(SetRequest { ttl_seconds: Some(1 + n % 2 * 9), ..text(&format!("k{n}"), "\"some text\"") }).await.unwrap();
        }
        let bytes = || bench.metrics.render().lines().find(|l| l.starts_with("selvedge_state_memory_bytes{")).unwrap().to_owned();
        let full = bytes();
        bench.clock.advance(Duration::from_secs(2));
        tokio::time::sleep(Duration::from_millis(2100)).await;
        assert_ne!(bytes(), full);
        bench.clock.advance(Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(bytes().ends_with(" 0"), "{}", bytes());
    }

    #[tokio::test]
    async fn a_full_store_refuses_by_name_and_keeps_what_it_has() {
        let bench = Bench::new().await;
        let store = state_store(bench.context("state.in-memory", &[("maxBytes", "1KiB")])).await.unwrap();
        store.set(text("a", "1")).await.unwrap();
        let large = SetRequest { value: StateValue { bytes: Bytes::from(vec![0; 2000]), json: false }, ..text("b", "") };
        let error = store.set(large).await.unwrap_err();
        assert!(error.to_string().contains("1024"), "{error}");
        let get = |key: &str| store.get(GetRequest { key: key.into(), ..GetRequest::default() });
        assert!(get("a").await.unwrap().is_some() && get("b").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn expiry_does_not_follow_jumps_of_the_wall_clock() {
        let bench = Bench::new().await;
        let store = state_store(bench.context("state.in-memory", &[])).await.unwrap();
        store.set(SetRequest { ttl_seconds: Some(60), ..text("a", "1") }).await.unwrap();
        bench.clock.set_wall(bench.clock.now().plus(Duration::from_secs(1 << 30)));
        assert!(store.get(GetRequest { key: "a".into(), ..GetRequest::default() }).await.unwrap().is_some());
    }
}
