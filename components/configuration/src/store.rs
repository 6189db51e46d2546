//! The store: every read is fresh; subscribers are told what a later look finds changed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use selvedge::component::{
    ComponentContext, ConfigurationError, ConfigurationHandle, ConfigurationHandler, ConfigurationItems, ConfigurationSource, ConfigurationStore,
    Fut, InitError, Metadata, PropertyError, follow, pick,
};

use crate::place;

const DEFAULT_POLL: Duration = Duration::from_secs(1);
const POLL: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(3_600);

/// `configuration.file`.
#[derive(Debug, Clone)]
struct FileStore {
    name: String,
    path: PathBuf,
    poll: Duration,
    /// What keeps it from being read, said when it begins and when it ends.
    trouble: Option<String>,
}

/// Builds a `configuration.file`. The file need not be there yet: what is mounted late is read once it is there.
///
/// # Errors
/// When `path` is missing, or `pollInterval` is no time from 50ms to 1h.
pub async fn file_store(context: ComponentContext) -> Result<Arc<dyn ConfigurationStore>, InitError> {
    let properties = &context.properties;
    let path = PathBuf::from(properties.require("path", "a YAML or JSON file of keys and values, or a folder with a file for each key")?);
    let poll = properties.duration("pollInterval", DEFAULT_POLL)?;
    if !POLL.contains(&poll) {
        return Err(PropertyError::invalid("pollInterval", format!("{poll:?}"), "50ms to 1h").into());
    }
    let mut store = FileStore { name: context.name, path, poll, trouble: None };
    // Said now rather than at the first question.
    let _ = store.now().await;
    Ok(Arc::new(store))
}

impl FileStore {
    async fn read(&self) -> Result<ConfigurationItems, String> {
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || place::read(&path)).await.map_err(|e| e.to_string())?
    }
}

impl ConfigurationSource for FileStore {
    fn now<'a>(&'a mut self) -> Fut<'a, Option<ConfigurationItems>> {
        Box::pin(async move {
            match self.read().await {
                Ok(items) => {
                    if self.trouble.take().is_some() {
                        tracing::info!(component.name = %self.name, path = %self.path.display(), "the configuration can be read again");
                    }
                    Some(items)
                }
                Err(error) => {
                    if self.trouble.as_ref() != Some(&error) {
                        tracing::warn!(component.name = %self.name, error, "the configuration cannot be read; what it said last counts");
                        self.trouble = Some(error);
                    }
                    None
                }
            }
        })
    }

    fn moved<'a>(&'a mut self) -> Fut<'a, ()> {
        Box::pin(tokio::time::sleep(self.poll))
    }
}

impl ConfigurationStore for FileStore {
    fn get<'a>(&'a self, keys: &'a [String], _metadata: &'a Metadata) -> Fut<'a, Result<ConfigurationItems, ConfigurationError>> {
        Box::pin(async move { self.read().await.map(|all| pick(all, keys)).map_err(ConfigurationError::Unavailable) })
    }

    fn subscribe<'a>(
        &'a self,
        keys: Vec<String>,
        _metadata: &'a Metadata,
        handler: Arc<dyn ConfigurationHandler>,
    ) -> Fut<'a, Result<Box<dyn ConfigurationHandle>, ConfigurationError>> {
        Box::pin(async move {
            // What cannot be read now is told once it can.
            let told = self.read().await.map(|all| pick(all, &keys)).unwrap_or_default();
            Ok(follow(Box::new(self.clone()), keys, told, handler))
        })
    }
}

#[cfg(test)]
mod tests {
    use selvedge_conformance::Bench;

    use super::*;

    #[tokio::test]
    async fn a_file_and_a_folder_pass_the_shared_suite() {
        let bench = Bench::new().await;
        let (file, folder) = (bench.dir().join("keys.yaml"), bench.dir().join("keys"));
        std::fs::create_dir(&folder).unwrap();
        for path in [&file, &folder] {
            let write = |keys: &[(&str, &str)]| {
                if path.is_dir() {
                    for gone in path.read_dir().unwrap() {
                        let gone = gone.unwrap().path();
                        let kept = keys.iter().any(|(k, _)| gone.ends_with(k));
                        if !kept {
                            std::fs::remove_file(gone).unwrap();
                        }
                    }
                    keys.iter().for_each(|(k, v)| {
                        std::fs::write(path.with_extension("new"), v).unwrap();
                        std::fs::rename(path.with_extension("new"), path.join(k)).unwrap();
                    });
                } else {
                    let text: String = keys.iter().map(|(k, v)| format!("{k}: \"{v}\"\n")).collect();
                    std::fs::write(path.with_extension("new"), text).unwrap();
                    std::fs::rename(path.with_extension("new"), path).unwrap();
                }
            };
            write(&[]);
            let settings = [("path", path.to_str().unwrap()), ("pollInterval", "50ms")];
            let store = file_store(bench.context("configuration.file", &settings)).await.unwrap();
            selvedge_conformance::configuration(&*store, write).await;
        }
    }

    #[tokio::test]
    async fn a_file_that_vanishes_is_an_outage_and_no_change() {
        let bench = Bench::new().await;
        let path = bench.dir().join("late.yaml");
        let settings = [("path", path.to_str().unwrap()), ("pollInterval", "50ms")];
        let store = file_store(bench.context("configuration.file", &settings)).await.unwrap();
        let missing = store.get(&[], &Metadata::new()).await;
        assert!(matches!(&missing, Err(ConfigurationError::Unavailable(e)) if e.contains("late.yaml")), "{missing:?}");
        let mut source = FileStore { name: "part".into(), path: path.clone(), poll: DEFAULT_POLL, trouble: None };
        assert_eq!(source.now().await, None);
        std::fs::write(&path, "a: 1").unwrap();
        assert_eq!(source.now().await.unwrap()["a"].value, "1");
    }

    #[tokio::test]
    async fn settings_are_checked() {
        let bench = Bench::new().await;
        for (settings, word) in [(vec![], "path"), (vec![("path", "x"), ("pollInterval", "1ms")], "pollInterval")] {
            let error = file_store(bench.context("configuration.file", &settings)).await.err().unwrap().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
