//! Secret and configuration stores with what they said last behind them: when the source is gone, the answer comes from the cache.
//!
//! "There is no such secret" is an answer of the source, not its absence: it is passed on, and what was kept is forgotten.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::SealedCache;
use crate::component::{
    Aged, ConfigurationError, ConfigurationHandle, ConfigurationHandler, ConfigurationItem, ConfigurationItems, ConfigurationStore, Fut, Metadata,
    Secret, SecretError, SecretStore, pick,
};
use crate::time::{Clock, Monotonic};

/// A source that has not answered by then counts as gone.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a store that could not be made at the start is tried again, at most: when somebody asks for a secret.
const AGAIN: Duration = Duration::from_secs(30);

/// Makes a store anew.
pub(in crate::node) type MakeSecrets = Box<dyn Fn() -> Fut<'static, Result<Arc<dyn SecretStore>, String>> + Send + Sync>;

enum Source {
    There(Arc<dyn SecretStore>),
    /// It could not be made.
    Gone {
        cause: String,
        tried: Monotonic,
    },
}

/// A secret store and its cache.
pub(in crate::node) struct CachedSecrets {
    name: String,
    cache: Arc<SealedCache>,
    clock: Arc<dyn Clock>,
    source: Mutex<Source>,
    make: MakeSecrets,
    features: OnceLock<Vec<&'static str>>,
}

impl CachedSecrets {
    /// `made` is the store, or why it could not be made; then there must be something in the cache.
    pub(in crate::node) fn new(
        name: &str,
        cache: Arc<SealedCache>,
        clock: Arc<dyn Clock>,
        made: Result<Arc<dyn SecretStore>, String>,
        make: MakeSecrets,
    ) -> Self {
        let features = OnceLock::new();
        let source = match made {
            Ok(store) => {
                let _ = features.set(store.features().to_vec());
                Source::There(store)
            }
            Err(cause) => Source::Gone { cause, tried: clock.monotonic() },
        };
        Self { name: name.to_owned(), cache, clock, source: Mutex::new(source), make, features }
    }

    /// The source, made now if it could not be made before.
    async fn source(&self) -> Result<Arc<dyn SecretStore>, String> {
        let mut source = self.source.lock().await;
        let (cause, tried) = match &*source {
            Source::There(store) => return Ok(store.clone()),
            Source::Gone { cause, tried } => (cause.clone(), *tried),
        };
        if self.clock.monotonic().since(tried) < AGAIN {
            return Err(cause);
        }
        let made = timeout(PATIENCE, (self.make)()).await;
        match made.map_err(|_| format!("it is not there within {PATIENCE:?}")).and_then(|made| made) {
            Ok(store) => {
                let _ = self.features.set(store.features().to_vec());
                *source = Source::There(store.clone());
                Ok(store)
            }
            Err(cause) => {
                *source = Source::Gone { cause: cause.clone(), tried: self.clock.monotonic() };
                Err(cause)
            }
        }
    }

    /// What the source said; an error that is no answer is text.
    fn judge<T>(&self, said: Result<Result<T, SecretError>, Elapsed>) -> Result<Result<T, SecretError>, String> {
        match said {
            Ok(Err(SecretError::Unavailable(cause))) => Err(cause),
            Ok(answer) => {
                self.cache.source_is_there(&self.name);
                Ok(answer)
            }
            Err(_) => Err(format!("no answer within {PATIENCE:?}")),
        }
    }

    async fn keep(&self, name: &str, secret: &Secret) {
        if let Ok(value) = serde_json::to_vec(secret) {
            self.cache.keep(&self.name, name, &value).await;
        }
    }
}

fn read(value: &[u8]) -> Option<Secret> {
    serde_json::from_slice(value).ok()
}

impl SecretStore for CachedSecrets {
    fn features(&self) -> &[&'static str] {
        self.features.get().map(Vec::as_slice).unwrap_or_default()
    }

    fn get<'a>(&'a self, name: &'a str, metadata: &'a Metadata) -> Fut<'a, Result<Secret, SecretError>> {
        Box::pin(async move { self.get_aged(name, metadata).await.map(|aged| aged.value) })
    }

    fn bulk_get<'a>(&'a self, metadata: &'a Metadata) -> Fut<'a, Result<BTreeMap<String, Secret>, SecretError>> {
        Box::pin(async move { self.bulk_get_aged(metadata).await.map(|aged| aged.value) })
    }

    fn get_aged<'a>(&'a self, name: &'a str, metadata: &'a Metadata) -> Fut<'a, Result<Aged<Secret>, SecretError>> {
        Box::pin(async move {
            // Metadata asks for something particular, such as a version: that is not what is kept.
            let plain = metadata.is_empty();
            let said = match self.source().await {
                Ok(source) => self.judge(timeout(PATIENCE, source.get(name, metadata)).await),
                Err(cause) => Err(cause),
            };
            let cause = match said {
                Ok(Ok(secret)) => {
                    if plain {
                        self.keep(name, &secret).await;
                    }
                    return Ok(Aged::fresh(secret));
                }
                Ok(Err(error)) => {
                    if plain {
                        self.cache.forget(&self.name, name).await;
                    }
                    return Err(error);
                }
                Err(cause) => cause,
            };
            let kept = self.cache.one(&self.name, name).filter(|_| plain).and_then(|(value, age)| Some((read(&value)?, age)));
            let Some((secret, age)) = kept else { return Err(SecretError::Unavailable(cause)) };
            self.cache.answered(&self.name, age, &cause);
            Ok(Aged { value: secret, age: Some(age) })
        })
    }

    fn bulk_get_aged<'a>(&'a self, metadata: &'a Metadata) -> Fut<'a, Result<Aged<BTreeMap<String, Secret>>, SecretError>> {
        Box::pin(async move {
            let said = match self.source().await {
                Ok(source) => self.judge(timeout(PATIENCE, source.bulk_get(metadata)).await),
                Err(cause) => Err(cause),
            };
            let cause = match said {
                Ok(Ok(all)) => {
                    if metadata.is_empty() {
                        for (name, secret) in &all {
                            self.keep(name, secret).await;
                        }
                    }
                    return Ok(Aged::fresh(all));
                }
                Ok(Err(error)) => return Err(error),
                Err(cause) => cause,
            };
            let kept: Vec<_> = self.cache.all(&self.name).into_iter().filter_map(|(name, value, age)| Some((name, read(&value)?, age))).collect();
            let Some(age) = kept.iter().map(|(_, _, age)| *age).max().filter(|_| metadata.is_empty()) else {
                return Err(SecretError::Unavailable(cause));
            };
            self.cache.answered(&self.name, age, &cause);
            Ok(Aged { value: kept.into_iter().map(|(name, secret, _)| (name, secret)).collect(), age: Some(age) })
        })
    }
}

/// A configuration store and its cache.
pub(in crate::node) struct CachedConfiguration {
    name: String,
    cache: Arc<SealedCache>,
    source: Arc<dyn ConfigurationStore>,
}

impl CachedConfiguration {
    pub(in crate::node) fn new(name: &str, cache: Arc<SealedCache>, source: Arc<dyn ConfigurationStore>) -> Self {
        Self { name: name.to_owned(), cache, source }
    }

    /// What the source has said of these keys (of all, if there are none).
    async fn keep(&self, keys: &[String], items: &ConfigurationItems) {
        for (key, item) in items {
            if let Ok(value) = serde_json::to_vec(&(&item.value, &item.version, &item.metadata)) {
                self.cache.keep(&self.name, key, &value).await;
            }
        }
        let known = if keys.is_empty() { self.cache.all(&self.name).into_iter().map(|(key, ..)| key).collect() } else { keys.to_vec() };
        for gone in known.iter().filter(|key| !items.contains_key(*key)) {
            self.cache.forget(&self.name, gone).await;
        }
    }
}

impl ConfigurationStore for CachedConfiguration {
    fn get<'a>(&'a self, keys: &'a [String], metadata: &'a Metadata) -> Fut<'a, Result<ConfigurationItems, ConfigurationError>> {
        Box::pin(async move { self.get_aged(keys, metadata).await.map(|aged| aged.value) })
    }

    fn get_aged<'a>(&'a self, keys: &'a [String], metadata: &'a Metadata) -> Fut<'a, Result<Aged<ConfigurationItems>, ConfigurationError>> {
        Box::pin(async move {
            let cause = match timeout(PATIENCE, self.source.get(keys, metadata)).await {
                Ok(Err(ConfigurationError::Unavailable(cause))) => cause,
                Err(_) => format!("no answer within {PATIENCE:?}"),
                Ok(answer) => {
                    self.cache.source_is_there(&self.name);
                    if let (Ok(items), true) = (&answer, metadata.is_empty()) {
                        self.keep(keys, items).await;
                    }
                    return answer.map(Aged::fresh);
                }
            };
            let mut oldest = Duration::ZERO;
            let kept = self.cache.all(&self.name).into_iter().filter(|(key, ..)| keys.is_empty() || keys.contains(key));
            let items = kept.filter_map(|(key, value, age)| {
                let (value, version, metadata) = serde_json::from_slice(&value).ok()?;
                oldest = oldest.max(age);
                Some((key, ConfigurationItem { value, version, metadata }))
            });
            let items: ConfigurationItems = items.collect();
            if items.is_empty() || !metadata.is_empty() {
                return Err(ConfigurationError::Unavailable(cause));
            }
            self.cache.answered(&self.name, oldest, &cause);
            Ok(Aged { value: pick(items, keys), age: Some(oldest) })
        })
    }

    fn subscribe<'a>(
        &'a self,
        keys: Vec<String>,
        metadata: &'a Metadata,
        handler: Arc<dyn ConfigurationHandler>,
    ) -> Fut<'a, Result<Box<dyn ConfigurationHandle>, ConfigurationError>> {
        self.source.subscribe(keys, metadata, handler)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as Lock;

    use super::*;
    use crate::telemetry::Metrics;
    use crate::time::{ManualClock, Timestamp};

    /// Answers what it is told to; `None` = never.
    struct Vault(Arc<Lock<Option<Result<Secret, SecretError>>>>);

    impl SecretStore for Vault {
        fn features(&self) -> &[&'static str] {
            &["MULTIPLE_KEY_VALUES_PER_SECRET"]
        }

        fn get<'a>(&'a self, _: &'a str, _: &'a Metadata) -> Fut<'a, Result<Secret, SecretError>> {
            let answer = self.0.lock().unwrap().clone();
            Box::pin(async move {
                match answer {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            })
        }

        fn bulk_get<'a>(&'a self, metadata: &'a Metadata) -> Fut<'a, Result<BTreeMap<String, Secret>, SecretError>> {
            Box::pin(async move { Ok(BTreeMap::from([("db".to_owned(), self.get("db", metadata).await?)])) })
        }
    }

    fn secret(value: &str) -> Secret {
        Secret::from([("db".to_owned(), value.to_owned())])
    }

    async fn cache(clock: &Arc<ManualClock>) -> Arc<SealedCache> {
        Arc::new(SealedCache::open("secrets", Duration::from_secs(100), None, clock.clone(), &Metrics::new()).await)
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_fails_or_hangs_is_answered_from_the_cache_for_its_time_and_no_answer_is_no_absence() {
        let clock = Arc::new(ManualClock::at(Timestamp(1_795_488_182_500)));
        let said = Arc::new(Lock::new(Some(Ok(secret("hush")))));
        let (never, of) = (Box::new(|| -> Fut<'static, _> { Box::pin(async { Err("never".to_owned()) }) }), said.clone());
        let store = CachedSecrets::new("vault", cache(&clock).await, clock.clone(), Ok(Arc::new(Vault(of))), never);
        assert_eq!(store.features(), ["MULTIPLE_KEY_VALUES_PER_SECRET"]);
        let none = Metadata::new();
        let versioned = Metadata::from([("version_id".to_owned(), "1".to_owned())]);
        assert_eq!(store.get_aged("db", &none).await, Ok(Aged::fresh(secret("hush"))));
        clock.advance(Duration::from_secs(40));
        for answer in [Some(Err(SecretError::Unavailable("gone".into()))), None] {
            *said.lock().unwrap() = answer;
            let aged = Aged { value: secret("hush"), age: Some(Duration::from_secs(40)) };
            assert_eq!(store.get_aged("db", &none).await, Ok(aged.clone()));
            assert_eq!(store.get("db", &none).await, Ok(secret("hush")));
            let all = store.bulk_get_aged(&none).await.unwrap();
            assert_eq!((all.value["db"].clone(), all.age), (aged.value, aged.age));
            assert!(store.get("other", &none).await.is_err(), "what was never read is not there");
            assert!(store.get("db", &versioned).await.is_err(), "a particular version is something else");
        }
        *said.lock().unwrap() = Some(Err(SecretError::Unavailable("gone".into())));
        clock.advance(Duration::from_secs(61));
        assert_eq!(store.get("db", &none).await, Err(SecretError::Unavailable("gone".into())), "too old");
        *said.lock().unwrap() = Some(Ok(secret("new")));
        assert_eq!(store.get_aged("db", &none).await, Ok(Aged::fresh(secret("new"))));
        *said.lock().unwrap() = Some(Err(SecretError::NotFound("db".into())));
        assert_eq!(store.get("db", &none).await, Err(SecretError::NotFound("db".into())), "an answer, not an absence");
        *said.lock().unwrap() = Some(Err(SecretError::Unavailable("gone".into())));
        assert!(store.get("db", &none).await.is_err(), "and what was kept is forgotten");
    }

    #[tokio::test]
    async fn a_store_that_could_not_be_made_answers_from_the_cache_and_is_made_later() {
        let clock = Arc::new(ManualClock::at(Timestamp(1_795_488_182_500)));
        let cache = cache(&clock).await;
        cache.keep("vault", "db", &serde_json::to_vec(&secret("old")).unwrap()).await;
        let mounted = Arc::new(Lock::new(false));
        let there = mounted.clone();
        let make = move || -> Fut<'static, Result<Arc<dyn SecretStore>, String>> {
            let made = if *there.lock().unwrap() {
                Ok(Arc::new(Vault(Arc::new(Lock::new(Some(Ok(secret("new"))))))) as Arc<dyn SecretStore>)
            } else {
                Err("not mounted".to_owned())
            };
            Box::pin(async move { made })
        };
        let store = CachedSecrets::new("vault", cache, clock.clone(), Err("not mounted".to_owned()), Box::new(make));
        let none = Metadata::new();
        assert_eq!(store.get("db", &none).await, Ok(secret("old")));
        *mounted.lock().unwrap() = true;
        assert_eq!(store.get("db", &none).await, Ok(secret("old")), "it is not tried with every call");
        clock.advance(AGAIN);
        assert_eq!(store.get_aged("db", &none).await, Ok(Aged::fresh(secret("new"))));
        assert_eq!(store.features(), ["MULTIPLE_KEY_VALUES_PER_SECRET"]);
    }
}
