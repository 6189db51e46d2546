use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use selvedge::component::{
    Concurrency, DeleteRequest, GetRequest, KeysLikeRequest, Metadata, SetRequest, StateError, StateFeature, StateItem, StateOperation, StateStore,
    StateValue,
};
use selvedge::time::{Clock as _, ManualClock};

fn json(text: &str) -> StateValue {
    StateValue { bytes: Bytes::copy_from_slice(text.as_bytes()), json: true }
}

fn set(key: &str, text: &str) -> SetRequest {
    SetRequest { key: key.into(), value: json(text), ..SetRequest::default() }
}

fn delete(key: &str) -> DeleteRequest {
    DeleteRequest { key: key.into(), ..DeleteRequest::default() }
}

fn ask(key: &str) -> GetRequest {
    GetRequest { key: key.into(), ..GetRequest::default() }
}

async fn get(store: &dyn StateStore, key: &str) -> Option<StateItem> {
    store.get(ask(key)).await.unwrap()
}

async fn value(store: &dyn StateStore, key: &str) -> Option<Bytes> {
    get(store, key).await.map(|item| item.value.bytes)
}

async fn etag(store: &dyn StateStore, key: &str) -> String {
    get(store, key).await.unwrap().etag.unwrap()
}

fn is_mismatch<T: std::fmt::Debug>(result: &Result<T, StateError>) -> bool {
    matches!(result, Err(StateError::EtagMismatch(_)))
}

/// A state store keeps values by key, with the features that it declares. `clock` is the one that it was built with.
pub async fn state(store: Arc<dyn StateStore>, clock: &ManualClock) {
    let store = &*store;
    let features = store.features().to_vec();
    assert!(features.is_sorted(), "features are declared in the order that Dapr shows them");
    values(store).await;
    bulk(store).await;
    if features.contains(&StateFeature::Etag) {
        etags(store).await;
        first_write(store).await;
    }
    if features.contains(&StateFeature::Transactional) {
        transactions(store).await;
    } else {
        assert!(matches!(store.transact(Vec::new(), Metadata::new()).await, Err(StateError::Unsupported(_))));
    }
    if features.contains(&StateFeature::Ttl) {
        expiry(store, clock).await;
    }
    if features.contains(&StateFeature::DeleteWithPrefix) {
        prefixes(store).await;
    } else {
        assert!(matches!(store.delete_with_prefix("a||".into()).await, Err(StateError::Unsupported(_))));
    }
    if features.contains(&StateFeature::KeysLike) {
        patterns(store, clock).await;
    } else {
        assert!(matches!(
            store.keys_like(KeysLikeRequest { pattern: "%".into(), ..KeysLikeRequest::default() }).await,
            Err(StateError::Unsupported(_))
        ));
    }
}

async fn values(store: &dyn StateStore) {
    for (n, text) in ["1", "true", "\"text\"", "\"\"", r#""{\"like\":\"json\"}""#, r#"{"a":[1,2,{"b":null}],"ü":"ß"}"#, "null"].iter().enumerate() {
        let key = format!("value||{n}");
        store.set(set(&key, text)).await.unwrap();
        assert_eq!(get(store, &key).await.unwrap().value, json(text));
    }
    for bytes in [&[0u8, 159, 146, 150, 255][..], b"", b"plain", b"{\"json\":true}"] {
        let stored = StateValue { bytes: Bytes::copy_from_slice(bytes), json: false };
        store.set(SetRequest { key: "value||bytes".into(), value: stored, ..SetRequest::default() }).await.unwrap();
        assert_eq!(value(store, "value||bytes").await.unwrap(), bytes, "bytes come back as they were");
    }
    assert_eq!(get(store, "value||missing").await, None);
    store.delete(delete("value||missing")).await.unwrap();
    store.set(set("value||0", "2")).await.unwrap();
    assert_eq!(value(store, "value||0").await.unwrap(), "2", "a later write wins");
    store.delete(delete("value||0")).await.unwrap();
    assert_eq!(get(store, "value||0").await, None);
    let odd = "odd||' \" % _ \\ ; -- ü\u{1f980}";
    store.set(set(odd, "1")).await.unwrap();
    assert_eq!(value(store, odd).await.unwrap(), "1");
    assert_eq!(get(store, "ODD||' \" % _ \\ ; -- ü\u{1f980}").await, None, "keys are told apart by case");
}

async fn bulk(store: &dyn StateStore) {
    let results = store.bulk_set(vec![set("bulk||1", "1"), set("bulk||2", "2"), set("bulk||3", "3")]).await;
    assert_eq!(results, [Ok(()), Ok(()), Ok(())]);
    let items = store.bulk_get(["bulk||3", "bulk||none", "bulk||1"].map(ask).to_vec(), 10).await;
    let found: Vec<_> = items.iter().map(|i| (i.key.as_str(), i.result.as_ref().unwrap().as_ref().map(|s| s.value.bytes.clone()))).collect();
    assert_eq!(found, [("bulk||3", Some("3".into())), ("bulk||none", None), ("bulk||1", Some("1".into()))]);
    assert!(store.bulk_get(Vec::new(), 0).await.is_empty());
    assert_eq!(store.bulk_delete(vec![delete("bulk||1"), delete("bulk||none")]).await, [Ok(()), Ok(())]);
    assert_eq!(get(store, "bulk||1").await, None);
    assert!(store.bulk_set(Vec::new()).await.is_empty());
}

async fn etags(store: &dyn StateStore) {
    store.set(set("etag||a", "1")).await.unwrap();
    let first = etag(store, "etag||a").await;
    let in_bulk = store.bulk_get(vec![ask("etag||a")], 0).await.remove(0).result.unwrap().unwrap().etag.unwrap();
    assert_eq!(in_bulk, first);
    let with = |key: &str, text: &str, tag: &str| SetRequest { etag: Some(tag.to_owned()), ..set(key, text) };
    store.set(with("etag||a", "2", &first)).await.unwrap();
    let second = etag(store, "etag||a").await;
    assert_ne!(first, second, "each write makes a new tag");

    assert!(is_mismatch(&store.set(with("etag||a", "3", &first)).await), "a stale tag");
    assert!(is_mismatch(&store.delete(DeleteRequest { etag: Some(first.clone()), ..delete("etag||a") }).await));
    assert!(is_mismatch(&store.set(with("etag||none", "3", &first)).await), "a tag of a key that is not there");
    assert_eq!((value(store, "etag||a").await.unwrap(), etag(store, "etag||a").await), ("2".into(), second.clone()), "nothing changed");
    assert_eq!(get(store, "etag||none").await, None);

    let results = store.bulk_set(vec![set("etag||b", "1"), with("etag||a", "4", &first), set("etag||c", "1")]).await;
    assert!(results[0].is_ok() && is_mismatch(&results[1]) && results[2].is_ok(), "in bulk only that key fails: {results:?}");
    let c = etag(store, "etag||c").await;
    let stale = DeleteRequest { etag: Some(first), ..delete("etag||b") };
    let results = store.bulk_delete(vec![stale, DeleteRequest { etag: Some(c), ..delete("etag||c") }]).await;
    assert!(is_mismatch(&results[0]) && results[1].is_ok(), "{results:?}");
    assert!(get(store, "etag||b").await.is_some() && get(store, "etag||c").await.is_none());

    store.delete(DeleteRequest { etag: Some(second), ..delete("etag||a") }).await.unwrap();
    assert_eq!(get(store, "etag||a").await, None);
}

async fn first_write(store: &dyn StateStore) {
    let first = |text: &str, tag: Option<String>| SetRequest { concurrency: Concurrency::FirstWrite, etag: tag, ..set("first||a", text) };
    store.set(first("1", None)).await.unwrap();
    let tag = etag(store, "first||a").await;
    assert!(is_mismatch(&store.set(first("2", None)).await), "the key is taken");
    assert_eq!(value(store, "first||a").await.unwrap(), "1");
    store.set(first("3", Some(tag.clone()))).await.unwrap();
    assert!(is_mismatch(&store.set(first("4", Some(tag))).await), "a stale tag");
    assert_eq!(value(store, "first||a").await.unwrap(), "3");
    store.delete(delete("first||a")).await.unwrap();
    store.set(first("5", None)).await.unwrap();
}

async fn transactions(store: &dyn StateStore) {
    use StateOperation::{Delete, Set};
    let transact = async |operations: Vec<StateOperation>| store.transact(operations, Metadata::new()).await;
    transact(vec![Set(set("tx||a", "1")), Set(set("tx||b", "1")), Set(set("tx||a", "2")), Delete(delete("tx||b")), Delete(delete("tx||none"))])
        .await
        .unwrap();
    assert_eq!((value(store, "tx||a").await, value(store, "tx||b").await), (Some("2".into()), None), "in order");

    let stale = |key: &str| SetRequest { etag: Some("stale".into()), ..set(key, "9") };
    let outcome = transact(vec![Set(set("tx||a", "3")), Delete(delete("tx||a")), Set(set("tx||c", "1")), Set(stale("tx||a"))]).await;
    assert!(outcome.is_err(), "one step that fails, fails all");
    assert_eq!((value(store, "tx||a").await, value(store, "tx||c").await), (Some("2".into()), None), "and undoes all");
    if store.features().contains(&StateFeature::Etag) {
        assert!(is_mismatch(&transact(vec![Set(stale("tx||a"))]).await));
        let tag = etag(store, "tx||a").await;
        transact(vec![Set(set("tx||d", "1")), Set(SetRequest { etag: Some(tag), ..set("tx||a", "4") })]).await.unwrap();
        assert_eq!(value(store, "tx||a").await.unwrap(), "4");
    }
    transact(Vec::new()).await.unwrap();
    transact(vec![Delete(delete("tx||a"))]).await.unwrap();
    assert_eq!(get(store, "tx||a").await, None);
}

async fn expiry(store: &dyn StateStore, clock: &ManualClock) {
    let with = |key: &str, ttl: Option<u32>| SetRequest { ttl_seconds: ttl, ..set(key, "1") };
    for (key, ttl) in [("ttl||short", Some(2)), ("ttl||long", Some(3600)), ("ttl||kept", Some(2)), ("ttl||none", None)] {
        store.set(with(key, ttl)).await.unwrap();
    }
    let long = get(store, "ttl||long").await.unwrap();
    let expires = long.expires.unwrap();
    let hour = Duration::from_secs(3600);
    let off = expires.since(clock.now().plus(hour)).max(clock.now().plus(hour).since(expires));
    assert!(off <= Duration::from_secs(1), "the time of expiry is told: {expires:?}");
    assert_eq!(get(store, "ttl||none").await.unwrap().expires, None);
    assert!(store.bulk_get(vec![ask("ttl||long")], 0).await.remove(0).result.unwrap().unwrap().expires.is_some());
    store.set(with("ttl||kept", None)).await.unwrap();
    assert_eq!(get(store, "ttl||kept").await.unwrap().expires, None, "a write without it takes the expiry away");
    let tag = etag(store, "ttl||short").await;

    clock.advance(Duration::from_secs(3));
    assert_eq!(get(store, "ttl||short").await, None);
    assert!(store.bulk_get(vec![ask("ttl||short")], 0).await.remove(0).result.unwrap().is_none());
    assert!(get(store, "ttl||kept").await.is_some() && get(store, "ttl||long").await.is_some());
    if store.features().contains(&StateFeature::Etag) {
        let stale = SetRequest { etag: Some(tag), ..set("ttl||short", "2") };
        assert!(is_mismatch(&store.set(stale).await), "an expired key has no tag");
        let again = SetRequest { concurrency: Concurrency::FirstWrite, ..set("ttl||short", "3") };
        store.set(again).await.unwrap();
        assert_eq!(value(store, "ttl||short").await.unwrap(), "3", "an expired key is free for a first write");
    }
    // Times of expiry may be kept in whole seconds.
    clock.advance(hour + Duration::from_secs(1));
    assert_eq!(get(store, "ttl||long").await, None);
    assert!(get(store, "ttl||none").await.is_some());
}

async fn prefixes(store: &dyn StateStore) {
    for key in ["pre||a||1", "pre||a||2", "pre||a||2||deep", "pre||ab||1", "pre||b||1"] {
        store.set(set(key, "1")).await.unwrap();
    }
    assert_eq!(store.delete_with_prefix("pre||a".into()).await.unwrap(), 2, "direct children, counted");
    assert_eq!(get(store, "pre||a||1").await, None);
    for kept in ["pre||a||2||deep", "pre||ab||1", "pre||b||1"] {
        assert!(get(store, kept).await.is_some(), "{kept}");
    }
    assert_eq!(store.delete_with_prefix("pre||b||".into()).await.unwrap(), 1);
    assert_eq!(store.delete_with_prefix("pre||b||".into()).await.unwrap(), 0);
    for bad in ["", "||"] {
        assert!(matches!(store.delete_with_prefix(bad.into()).await, Err(StateError::Invalid(_))), "{bad:?}");
    }
}

async fn patterns(store: &dyn StateStore, clock: &ManualClock) {
    let page = async |pattern: &str, size: Option<u32>, token: Option<String>| {
        store.keys_like(KeysLikeRequest { pattern: pattern.into(), page_size: size, token }).await
    };
    let all = async |pattern: &str| {
        let page = page(pattern, None, None).await.unwrap();
        assert_eq!(page.token, None, "all fit into one page");
        let mut keys = page.keys;
        keys.sort();
        keys
    };
    for key in ["like||a1", "like||a2", "like||b1", "like||100%", "like||100x", "like||a_1", "like||back\\slash"] {
        store.set(set(key, "1")).await.unwrap();
    }
    assert_eq!(all("like||a%").await, ["like||a1", "like||a2", "like||a_1"]);
    assert_eq!(all("like||a_").await, ["like||a1", "like||a2"]);
    assert_eq!(all("like||100\\%").await, ["like||100%"]);
    assert_eq!(all("like||a\\_1").await, ["like||a_1"]);
    assert_eq!(all("like||back\\\\slash").await, ["like||back\\slash"]);
    assert_eq!(all("like||a1").await, ["like||a1"]);
    assert_eq!(all("%||b1").await, ["like||b1"]);
    assert!(all("nothing%").await.is_empty());
    assert!(matches!(page("", None, None).await, Err(StateError::Invalid(_))));
    assert!(matches!(page("like%", Some(1), Some("no token".into())).await, Err(StateError::Invalid(_))));

    store.set(SetRequest { ttl_seconds: Some(1), ..set("like||gone", "1") }).await.unwrap();
    clock.advance(Duration::from_secs(2));
    assert!(all("like||gone%").await.is_empty(), "expired keys are hidden");

    // Pages, with changes between them: what was there all the time comes exactly once.
    let requests = (0..1025).map(|n| set(&format!("page||{n:04}"), "1")).collect();
    assert!(store.bulk_set(requests).await.iter().all(Result::is_ok));
    assert_eq!(all("page||%").await.len(), 1025);
    let mut seen = Vec::new();
    let mut token = None;
    for round in 0.. {
        let page = page("page||%", Some(100), token).await.unwrap();
        assert!(page.keys.len() <= 100);
        assert_eq!(page.token.is_none(), seen.len() + page.keys.len() >= 1024, "a token on every page but the last (round {round})");
        seen.extend(page.keys);
        token = page.token;
        if round == 0 {
            store.delete(delete(&seen[0])).await.unwrap();
            store.delete(delete("page||0500")).await.unwrap();
            store.set(set("page||0600", "2")).await.unwrap();
        }
        if token.is_none() {
            break;
        }
    }
    seen.sort();
    let before = seen.len();
    seen.dedup();
    assert_eq!((before, seen.len()), (1024, 1024));
    let exact = page("like||a_", Some(2), None).await.unwrap();
    assert_eq!((exact.keys.len(), exact.token), (2, None), "no token on a last page that is full");
}
