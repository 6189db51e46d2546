use std::collections::BTreeMap;

use selvedge::component::{Metadata, SecretStore};

/// What the store must hold before the suite runs: names and values.
pub const SECRETS: [(&str, &str); 2] = [("conftestsecret", "abcd"), ("secondsecret", "efgh")];

/// A secret store gives single secrets under their own name, and all of them at once.
pub async fn secrets(store: &dyn SecretStore) {
    let metadata = Metadata::new();
    for (name, value) in SECRETS {
        let secret = store.get(name, &metadata).await.unwrap();
        assert_eq!(secret, BTreeMap::from([(name.to_owned(), value.to_owned())]), "{name} is one value under its own name");
    }
    let all = store.bulk_get(&metadata).await.unwrap();
    for (name, value) in SECRETS {
        assert_eq!(all.get(name), Some(&BTreeMap::from([(name.to_owned(), value.to_owned())])), "{name} is among all");
    }
}
