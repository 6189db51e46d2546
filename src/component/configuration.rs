//! The configuration contract: keys whose values change while the node runs, and those who want to be told.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Aged, Fut, Metadata};
use crate::supervise::contained;

/// First and longest wait before a subscriber that could not take its changes is offered them again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// One value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigurationItem {
    /// The value; empty in a change when the key is gone.
    pub value: String,
    /// Version, in the store's own words; may be empty.
    pub version: String,
    /// What the store says besides.
    pub metadata: Metadata,
}

/// Items by key.
pub type ConfigurationItems = std::collections::BTreeMap<String, ConfigurationItem>;

/// Why a configuration store could not answer. A key that is not there is no error: it is left out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigurationError {
    /// The request makes no sense: another attempt fails as well.
    #[error("{0}")]
    Invalid(String),
    /// The store is not there: another attempt may work.
    #[error("{0}")]
    Unavailable(String),
}

/// A subscriber could not take its changes: it is to be offered what has changed by then, after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotTaken;

/// Takes the changes of a subscription, one call at a time.
pub trait ConfigurationHandler: Send + Sync + 'static {
    /// Keys that have changed, with their values now.
    fn changed<'a>(&'a self, items: ConfigurationItems) -> Fut<'a, Result<(), NotTaken>>;
}

/// A running subscription. Dropping it ends it.
pub trait ConfigurationHandle: Send + Sync {
    /// Ends it and waits for a handler that runs.
    fn close<'a>(&'a self) -> Fut<'a, ()>;
}

/// Gives values by key and tells of changes.
pub trait ConfigurationStore: Send + Sync + 'static {
    /// The items of these keys, or of all when there are none. Keys that are not there are left out.
    fn get<'a>(&'a self, keys: &'a [String], metadata: &'a Metadata) -> Fut<'a, Result<ConfigurationItems, ConfigurationError>>;

    /// [`ConfigurationStore::get`] with the age of its oldest answer.
    fn get_aged<'a>(&'a self, keys: &'a [String], metadata: &'a Metadata) -> Fut<'a, Result<Aged<ConfigurationItems>, ConfigurationError>> {
        Box::pin(async move { self.get(keys, metadata).await.map(Aged::fresh) })
    }

    /// Tells of every change of these keys (of all when there are none) from now on; what stands already is not told. Changes that follow
    /// each other quickly may be told as one; a change that is taken back before it is told may not be told at all.
    fn subscribe<'a>(
        &'a self,
        keys: Vec<String>,
        metadata: &'a Metadata,
        handler: Arc<dyn ConfigurationHandler>,
    ) -> Fut<'a, Result<Box<dyn ConfigurationHandle>, ConfigurationError>>;
}

/// What a store's subscriptions follow.
pub trait ConfigurationSource: Send + 'static {
    /// Everything as it stands; `None` when it cannot be read at the moment, which changes nothing for those who are told.
    fn now<'a>(&'a mut self) -> Fut<'a, Option<ConfigurationItems>>;
    /// Resolves when something may have changed since the last [`ConfigurationSource::now`]. Cancel-safe.
    fn moved<'a>(&'a mut self) -> Fut<'a, ()>;
}

/// The items of these keys, or all when there are none.
#[must_use]
pub fn pick(all: ConfigurationItems, keys: &[String]) -> ConfigurationItems {
    if keys.is_empty() { all } else { all.into_iter().filter(|(key, _)| keys.contains(key)).collect() }
}

/// What is different now; a key that is gone has an empty item (Dapr's rule).
#[must_use]
pub fn changes(told: &ConfigurationItems, now: &ConfigurationItems) -> ConfigurationItems {
    let gone = told.keys().filter(|key| !now.contains_key(*key)).map(|key| (key.clone(), ConfigurationItem::default()));
    let differs = |(key, item): &(&String, &ConfigurationItem)| told.get(*key).is_none_or(|before| before.value != item.value);
    now.iter().filter(differs).map(|(key, item)| (key.clone(), item.clone())).chain(gone).collect()
}

/// Tells a handler of what changes in a source, compared with `told`, until the handle is closed or dropped.
#[must_use]
pub fn follow(
    mut source: Box<dyn ConfigurationSource>,
    keys: Vec<String>,
    mut told: ConfigurationItems,
    handler: Arc<dyn ConfigurationHandler>,
) -> Box<dyn ConfigurationHandle> {
    let end = CancellationToken::new();
    let ended = end.clone();
    let running = tokio::spawn(async move {
        let mut pause = RETRY.0;
        let mut again = false;
        loop {
            let wait = async {
                if again {
                    tokio::time::sleep(pause).await;
                } else {
                    source.moved().await;
                }
            };
            // The end comes first: who has dropped the handle is told nothing more, however late this task runs.
            tokio::select! {
                biased;
                () = ended.cancelled() => return,
                () = wait => {}
            }
            let now = tokio::select! {
                biased;
                () = ended.cancelled() => return,
                now = source.now() => now,
            };
            let Some(now) = now.map(|all| pick(all, &keys)) else { continue };
            let news = changes(&told, &now);
            if news.is_empty() {
                again = false;
                continue;
            }
            // One that runs is waited for by `close`.
            again = contained(handler.changed(news)).await != Ok(Ok(()));
            pause = if again { (pause * 2).min(RETRY.1) } else { RETRY.0 };
            if !again {
                told = now;
            }
        }
    });
    Box::new(Following { end, running: Mutex::new(Some(running)) })
}

struct Following {
    end: CancellationToken,
    running: Mutex<Option<JoinHandle<()>>>,
}

impl ConfigurationHandle for Following {
    fn close<'a>(&'a self) -> Fut<'a, ()> {
        self.end.cancel();
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(async move {
            if let Some(running) = running {
                // A handler that panicked has said so.
                let _ = running.await;
            }
        })
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(of: &[(&str, &str)]) -> ConfigurationItems {
        of.iter().map(|(k, v)| ((*k).to_owned(), ConfigurationItem { value: (*v).to_owned(), ..ConfigurationItem::default() })).collect()
    }

    /// A source that has another value at each look, and always something to say.
    struct Restless(u64);

    impl ConfigurationSource for Restless {
        fn now<'a>(&'a mut self) -> Fut<'a, Option<ConfigurationItems>> {
            self.0 += 1;
            Box::pin(std::future::ready(Some(items(&[("a", &self.0.to_string())]))))
        }

        fn moved<'a>(&'a mut self) -> Fut<'a, ()> {
            // Gives way, as one that waits does.
            Box::pin(tokio::task::yield_now())
        }
    }

    #[derive(Default)]
    struct Counting(std::sync::atomic::AtomicUsize);

    impl ConfigurationHandler for Counting {
        fn changed<'a>(&'a self, _items: ConfigurationItems) -> Fut<'a, Result<(), NotTaken>> {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Box::pin(std::future::ready(Ok(())))
        }
    }

    #[tokio::test]
    async fn a_handle_that_is_dropped_ends_its_subscription_though_there_is_news_at_the_same_moment() {
        for _ in 0..64 {
            let counting = Arc::new(Counting::default());
            let told = || counting.0.load(std::sync::atomic::Ordering::Relaxed);
            let handle = follow(Box::new(Restless(0)), Vec::new(), ConfigurationItems::new(), counting.clone());
            while told() == 0 {
                tokio::task::yield_now().await;
            }
            drop(handle);
            let before = told();
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            assert_eq!(told(), before);
        }
    }

    #[test]
    fn what_changed_is_new_different_or_gone() {
        let told = items(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let now = items(&[("a", "1"), ("b", "5"), ("d", "4")]);
        assert_eq!(changes(&told, &now), items(&[("b", "5"), ("c", ""), ("d", "4")]));
        assert!(changes(&now, &now).is_empty());
        assert_eq!(pick(now.clone(), &["a".to_owned(), "x".to_owned()]), items(&[("a", "1")]));
        assert_eq!(pick(now.clone(), &[]), now);
    }
}
