//! `secretstores.local.env`: secrets are environment variables.

use std::collections::BTreeMap;
use std::sync::Arc;

use selvedge::component::{ComponentContext, Fut, InitError, Metadata, Secret, SecretError, SecretStore};

/// Gives environment variables as secrets, those that begin with `prefix` where one is set.
///
/// A variable that is not set is an empty secret (Dapr's rule). `APP_API_TOKEN` and everything that begins with `DAPR_` is hidden.
pub struct EnvSecrets<E = fn() -> Vec<(String, String)>> {
    prefix: String,
    environment: E,
}

impl<E> std::fmt::Debug for EnvSecrets<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnvSecrets").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Builds a `secretstores.local.env`.
///
/// # Errors
/// None.
pub async fn env_store(context: ComponentContext) -> Result<Arc<dyn SecretStore>, InitError> {
    let prefix = context.properties.get("prefix").unwrap_or_default().to_owned();
    Ok(Arc::new(EnvSecrets { prefix, environment: process_environment as fn() -> _ }))
}

/// The process's variables; those that are not UTF-8 cannot be asked for by name and are left out.
fn process_environment() -> Vec<(String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

fn is_hidden(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    name == "APP_API_TOKEN" || name.starts_with("DAPR_")
}

impl<E: Fn() -> Vec<(String, String)> + Send + Sync + 'static> SecretStore for EnvSecrets<E> {
    fn features(&self) -> &[&'static str] {
        &[]
    }

    fn can_be_gone(&self) -> bool {
        false
    }

    fn get<'a>(&'a self, name: &'a str, _metadata: &'a Metadata) -> Fut<'a, Result<Secret, SecretError>> {
        let variable = format!("{}{name}", self.prefix);
        let value = if is_hidden(&variable) {
            tracing::warn!(secret = %variable, "this environment variable is not given out as a secret");
            None
        } else {
            (self.environment)().into_iter().find(|(n, _)| *n == variable).map(|(_, value)| value)
        };
        Box::pin(std::future::ready(Ok(Secret::from([(name.to_owned(), value.unwrap_or_default())]))))
    }

    fn bulk_get<'a>(&'a self, _metadata: &'a Metadata) -> Fut<'a, Result<BTreeMap<String, Secret>, SecretError>> {
        let all = (self.environment)()
            .into_iter()
            .filter(|(variable, _)| !is_hidden(variable))
            .filter_map(|(variable, value)| {
                let name = variable.strip_prefix(&self.prefix)?.to_owned();
                Some((name.clone(), Secret::from([(name, value)])))
            })
            .collect();
        Box::pin(std::future::ready(Ok(all)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(prefix: &str, variables: &'static [(&'static str, &'static str)]) -> impl SecretStore {
        let environment = move || variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
        EnvSecrets { prefix: prefix.to_owned(), environment }
    }

    #[tokio::test]
    async fn it_passes_the_shared_suite_with_and_without_prefix() {
        selvedge_conformance::secrets(&store("", &[("conftestsecret", "abcd"), ("secondsecret", "efgh")])).await;
        selvedge_conformance::secrets(&store("P_", &[("P_conftestsecret", "abcd"), ("P_secondsecret", "efgh"), ("secondsecret", "no")])).await;
    }

    #[tokio::test]
    async fn a_variable_that_is_not_set_is_an_empty_secret() {
        let secret = store("", &[]).get("nothing", &Metadata::new()).await.unwrap();
        assert_eq!(secret, Secret::from([("nothing".into(), String::new())]));
    }

    #[tokio::test]
    async fn the_runtime_s_own_variables_are_hidden() {
        let store_all = store("", &[("APP_API_TOKEN", "t"), ("DAPR_API_TOKEN", "t"), ("dapr_x", "t"), ("OK", "1")]);
        assert_eq!(store_all.bulk_get(&Metadata::new()).await.unwrap().into_keys().collect::<Vec<_>>(), ["OK"]);
        assert_eq!(store_all.get("DAPR_API_TOKEN", &Metadata::new()).await.unwrap()["DAPR_API_TOKEN"], "");
        let prefixed = store("DAPR_", &[("DAPR_API_TOKEN", "t")]);
        assert_eq!(prefixed.get("API_TOKEN", &Metadata::new()).await.unwrap()["API_TOKEN"], "", "a prefix opens no way to them");
        assert!(prefixed.bulk_get(&Metadata::new()).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_factory_reads_the_process_s_environment() {
        let bench = selvedge_conformance::Bench::new().await;
        let store = env_store(bench.context("secretstores.local.env", &[])).await.unwrap();
        let path = store.get("PATH", &Metadata::new()).await.unwrap()["PATH"].clone();
        assert_eq!(path, std::env::var("PATH").unwrap());
    }
}
