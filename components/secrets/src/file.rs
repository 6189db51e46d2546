//! `secretstores.local.file`: secrets are in a JSON file, read once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use selvedge::component::{ComponentContext, Fut, InitError, Metadata, Secret, SecretError, SecretStore};
use serde_json::Value;

use crate::flatten::flatten;

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Gives secrets from a JSON object in a file.
///
/// With `multiValued` a secret is a member of the object: a text under its own name, or an object as several named values.
/// Without it every leaf is a secret of one value, named by its path with `nestedSeparator` (`:`) between.
pub struct FileSecrets {
    secrets: BTreeMap<String, Secret>,
    multi_valued: bool,
}

impl std::fmt::Debug for FileSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSecrets").field("secrets", &self.secrets.len()).field("multi_valued", &self.multi_valued).finish()
    }
}

/// Builds a `secretstores.local.file`.
///
/// # Errors
/// When `secretsFile` is missing, cannot be read, or holds no JSON object. A relative path is relative to the working directory.
pub async fn file_store(context: ComponentContext) -> Result<Arc<dyn SecretStore>, InitError> {
    let properties = &context.properties;
    let path = properties.require("secretsFile", "the path of a JSON file")?.to_owned();
    let separator = properties.get("nestedSeparator").filter(|s| !s.is_empty()).unwrap_or(":").to_owned();
    let multi_valued = properties.boolean("multiValued", false);
    let reading = tokio::task::spawn_blocking(move || read(Path::new(&path))).await;
    let json = reading.map_err(|e| InitError::failed("reading the secrets file", e))??;
    let secrets = if multi_valued { members(json, &separator) } else { leaves(&json, &separator) };
    Ok(Arc::new(FileSecrets { secrets, multi_valued }))
}

fn read(path: &Path) -> Result<Value, InitError> {
    let what = || format!("secrets file {}", path.display());
    let size = std::fs::metadata(path).map_err(|e| InitError::failed(what(), e))?.len();
    if size > MAX_FILE_BYTES {
        return Err(InitError::failed(what(), format_args!("{size} bytes are more than {MAX_FILE_BYTES}")));
    }
    let text = std::fs::read(path).map_err(|e| InitError::failed(what(), e))?;
    // The parser's message names a place in the file and never the text there.
    let json: Value = serde_json::from_slice(&text).map_err(|e| InitError::failed(what(), e))?;
    if json.is_object() { Ok(json) } else { Err(InitError::failed(what(), "it holds no JSON object")) }
}

fn leaves(json: &Value, separator: &str) -> BTreeMap<String, Secret> {
    let mut secrets = BTreeMap::new();
    flatten("", json, separator, &mut |name, value| {
        secrets.insert(name.clone(), Secret::from([(name, value)]));
    });
    secrets
}

fn members(json: Value, separator: &str) -> BTreeMap<String, Secret> {
    let Value::Object(members) = json else { return BTreeMap::new() };
    let mut secrets = BTreeMap::new();
    for (name, member) in members {
        match member {
            Value::String(text) => {
                secrets.insert(name.clone(), Secret::from([(name, text)]));
            }
            object @ Value::Object(_) => {
                let mut secret = Secret::new();
                flatten("", &object, separator, &mut |key, value| {
                    secret.insert(key, value);
                });
                secrets.insert(name, secret);
            }
            _ => tracing::warn!(secret = %name, "left out: a secret with several values is a text or an object"),
        }
    }
    secrets
}

impl SecretStore for FileSecrets {
    fn features(&self) -> &[&'static str] {
        if self.multi_valued { &["MULTIPLE_KEY_VALUES_PER_SECRET"] } else { &[] }
    }

    fn get<'a>(&'a self, name: &'a str, _metadata: &'a Metadata) -> Fut<'a, Result<Secret, SecretError>> {
        let secret = self.secrets.get(name).cloned().ok_or_else(|| SecretError::NotFound(name.to_owned()));
        Box::pin(std::future::ready(secret))
    }

    fn bulk_get<'a>(&'a self, _metadata: &'a Metadata) -> Fut<'a, Result<BTreeMap<String, Secret>, SecretError>> {
        Box::pin(std::future::ready(Ok(self.secrets.clone())))
    }
}

#[cfg(test)]
mod tests {
    use selvedge_conformance::Bench;

    use super::*;

    async fn try_open(text: &str, settings: &[(&str, &str)]) -> Result<Arc<dyn SecretStore>, InitError> {
        let bench = Bench::new().await;
        let path = bench.dir().join("secrets.json");
        std::fs::write(&path, text).unwrap();
        let path = path.display().to_string();
        let mut all = vec![("secretsFile", path.as_str())];
        all.extend_from_slice(settings);
        file_store(bench.context("secretstores.local.file", &all)).await
    }

    async fn open(text: &str, settings: &[(&str, &str)]) -> Arc<dyn SecretStore> {
        try_open(text, settings).await.unwrap()
    }

    async fn all(store: &Arc<dyn SecretStore>) -> BTreeMap<String, Secret> {
        store.bulk_get(&Metadata::new()).await.unwrap()
    }

    fn secret(pairs: &[(&str, &str)]) -> Secret {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    const CONFORMANCE: &str = r#"{"conftestsecret": "abcd", "secondsecret": "efgh"}"#;

    #[tokio::test]
    async fn it_passes_the_shared_suite_in_both_modes() {
        selvedge_conformance::secrets(&*open(CONFORMANCE, &[]).await).await;
        selvedge_conformance::secrets(&*open(CONFORMANCE, &[("multiValued", "true")]).await).await;
    }

    const NESTED: &str = r#"{"text": "t", "a": {"b": "1", "c": ["x", {"d": "y"}], "n": 5, "yes": true, "none": null}, "list": ["p"], "five": 5}"#;

    #[tokio::test]
    async fn single_values_are_named_by_their_path() {
        let store = open(NESTED, &[]).await;
        assert!(store.features().is_empty());
        let values: Vec<(String, String)> = all(&store).await.into_values().flatten().collect();
        let expected = [
            ("a:b", "1"),
            ("a:c:0", "x"),
            ("a:c:1:d", "y"),
            ("a:n", "%!s(float64=5)"),
            ("a:none", "%!s(<nil>)"),
            ("a:yes", "%!s(bool=true)"),
            ("five", "%!s(float64=5)"),
            ("list:0", "p"),
            ("text", "t"),
        ];
        assert_eq!(values, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(store.get("a:c:0", &Metadata::new()).await.unwrap(), secret(&[("a:c:0", "x")]));
        assert_eq!(store.get("a", &Metadata::new()).await, Err(SecretError::NotFound("a".into())));
        let dotted = open(NESTED, &[("nestedSeparator", ".")]).await;
        assert!(all(&dotted).await.contains_key("a.c.1.d"));
    }

    #[tokio::test]
    async fn several_values_are_kept_together_and_the_rest_is_left_out() {
        let store = open(NESTED, &[("multiValued", "true")]).await;
        assert_eq!(store.features(), ["MULTIPLE_KEY_VALUES_PER_SECRET"]);
        assert_eq!(store.get("text", &Metadata::new()).await.unwrap(), secret(&[("text", "t")]));
        let a = secret(&[("b", "1"), ("c:0", "x"), ("c:1:d", "y"), ("n", "%!s(float64=5)"), ("none", "%!s(<nil>)"), ("yes", "%!s(bool=true)")]);
        assert_eq!(store.get("a", &Metadata::new()).await.unwrap(), a);
        assert_eq!(all(&store).await.into_keys().collect::<Vec<_>>(), ["a", "text"]);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_used_is_named_without_its_content() {
        for text in ["{\"hush\": ", "[]", "\"hush\""] {
            let error = try_open(text, &[]).await.err().unwrap().to_string();
            assert!(error.contains("secrets.json") && !error.contains("hush"), "{error}");
        }
        let bench = Bench::new().await;
        let missing = file_store(bench.context("secretstores.local.file", &[])).await.err().unwrap();
        assert!(missing.to_string().contains("secretsFile"));
        assert!(file_store(bench.context("x", &[("secretsFile", "/nowhere/at/all.json")])).await.is_err());
    }
}
