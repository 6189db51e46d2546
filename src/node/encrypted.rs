//! State that is encrypted on its way into a store: `primaryEncryptionKey` and `secondaryEncryptionKey` of a state component.
//!
//! A value stands in the store as `base64(nonce + AES-GCM) || name of the secret`, Dapr's form, so both read what the other has written.
//! New values take the primary key; old ones are read with the key whose name they carry. Keys are hexadecimal and come from a secret
//! store; 16 or 32 bytes (Dapr takes 24 as well; ring has no AES-192).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde_json::Value;

use crate::component::{
    BulkGetItem, DeleteRequest, Fut, GetRequest, KeysLikePage, KeysLikeRequest, Metadata, Properties, SetRequest, StateError, StateFeature,
    StateItem, StateOperation, StateStore, StateValue,
};
use crate::resource::{ComponentSpec, PropertySource};

const SEPARATOR: &[u8] = b"||";

struct Key {
    /// Name of its secret.
    name: String,
    key: LessSafeKey,
}

/// The keys of a store.
pub(super) struct Keys {
    primary: Key,
    secondary: Option<Key>,
}

fn key(spec: &ComponentSpec, properties: &Properties, property: &str) -> Result<Option<Key>, String> {
    let Some(text) = properties.get(property).filter(|t| !t.is_empty()) else { return Ok(None) };
    let source = spec.properties.iter().find(|p| p.name.eq_ignore_ascii_case(property)).map(|p| &p.source);
    let Some(PropertySource::Secret { name, .. }) = source else {
        return Err(format!("{property}: accepted is a secretKeyRef with auth.secretStore, not a value in the file"));
    };
    let bytes: Option<Vec<u8>> =
        text.is_ascii().then(|| (0..text.len()).step_by(2).map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok()).collect()).flatten();
    let algorithm = match bytes.as_ref().map(Vec::len) {
        Some(16) => &AES_128_GCM,
        Some(32) => &AES_256_GCM,
        _ => {
            return Err(format!(
                "{property}: accepted is a key of 32 or 64 hexadecimal digits (AES-128, AES-256); the secret {name} holds {} characters",
                text.len()
            ));
        }
    };
    let key = UnboundKey::new(algorithm, &bytes.unwrap_or_default()).map_err(|_| format!("{property}: the secret {name} holds no key"))?;
    Ok(Some(Key { name: name.clone(), key: LessSafeKey::new(key) }))
}

/// The keys that a component asks for, if it does.
///
/// # Errors
/// A key that is none, or does not come from a secret store.
pub(super) fn keys(spec: &ComponentSpec, properties: &Properties) -> Result<Option<Keys>, String> {
    let secondary = key(spec, properties, "secondaryEncryptionKey")?;
    match key(spec, properties, "primaryEncryptionKey")? {
        Some(primary) => Ok(Some(Keys { primary, secondary })),
        None if secondary.is_some() => Err("secondaryEncryptionKey: a primaryEncryptionKey is required beside it".to_owned()),
        // A key that is asked for and has no value must not mean plain text.
        None if spec.properties.iter().any(|p| p.name.eq_ignore_ascii_case("primaryEncryptionKey")) => {
            Err("primaryEncryptionKey: the secret is empty or cannot be read".to_owned())
        }
        None => Ok(None),
    }
}

/// The store behind its keys.
pub(super) fn wrap(store: Arc<dyn StateStore>, keys: Option<Keys>) -> Arc<dyn StateStore> {
    match keys {
        None => store,
        Some(keys) => Arc::new(Encrypted { store, keys }),
    }
}

impl Keys {
    fn seal(&self, value: StateValue) -> Result<StateValue, StateError> {
        let fail = || StateError::Unavailable("the value could not be encrypted".to_owned());
        // Dapr prints what came as JSON, so that a text loses its quotes; all else stays JSON here.
        let mut sealed = match value.json.then(|| serde_json::from_slice::<Value>(&value.bytes)) {
            Some(Ok(Value::String(text))) => text.into_bytes(),
            _ => value.bytes.to_vec(),
        };
        let mut nonce = [0u8; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| fail())?;
        self.primary.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed).map_err(|_| fail())?;
        let mut text = STANDARD.encode([&nonce[..], &sealed].concat()).into_bytes();
        text.extend_from_slice(SEPARATOR);
        text.extend_from_slice(self.primary.name.as_bytes());
        Ok(StateValue { bytes: text.into(), json: false })
    }

    fn open(&self, value: &StateValue) -> Result<StateValue, StateError> {
        let fail = |what: &str| StateError::Unavailable(format!("the value could not be decrypted: {what}"));
        let at = value.bytes.windows(SEPARATOR.len()).rposition(|w| w == SEPARATOR).ok_or_else(|| fail("it is not encrypted"))?;
        let (text, name) = (&value.bytes[..at], &value.bytes[at + SEPARATOR.len()..]);
        let known = [Some(&self.primary), self.secondary.as_ref()].into_iter().flatten().find(|k| k.name.as_bytes() == name);
        let key = known.ok_or_else(|| fail("the key it was encrypted with is neither the primary nor the secondary one"))?;
        let mut bytes = STANDARD.decode(text).map_err(|_| fail("it is no base64"))?;
        let (nonce, sealed) = bytes.split_first_chunk_mut::<NONCE_LEN>().ok_or_else(|| fail("it is too short"))?;
        let plain = key.key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::empty(), sealed).map_err(|_| fail("the key does not fit"))?;
        Ok(StateValue { bytes: Bytes::copy_from_slice(plain), json: false })
    }

    fn sealed(&self, request: SetRequest) -> Result<SetRequest, StateError> {
        Ok(SetRequest { value: self.seal(request.value)?, ..request })
    }

    fn opened(&self, found: Option<StateItem>) -> Result<Option<StateItem>, StateError> {
        found.map(|item| Ok(StateItem { value: self.open(&item.value)?, ..item })).transpose()
    }
}

struct Encrypted {
    store: Arc<dyn StateStore>,
    keys: Keys,
}

impl StateStore for Encrypted {
    fn features(&self) -> &[StateFeature] {
        self.store.features()
    }

    fn get<'a>(&'a self, request: GetRequest) -> Fut<'a, Result<Option<StateItem>, StateError>> {
        Box::pin(async move { self.keys.opened(self.store.get(request).await?) })
    }

    fn set<'a>(&'a self, request: SetRequest) -> Fut<'a, Result<(), StateError>> {
        Box::pin(async move { self.store.set(self.keys.sealed(request)?).await })
    }

    fn delete<'a>(&'a self, request: DeleteRequest) -> Fut<'a, Result<(), StateError>> {
        self.store.delete(request)
    }

    fn bulk_get<'a>(&'a self, requests: Vec<GetRequest>, parallelism: usize) -> Fut<'a, Vec<BulkGetItem>> {
        Box::pin(async move {
            let items = self.store.bulk_get(requests, parallelism).await;
            items.into_iter().map(|i| BulkGetItem { key: i.key, result: i.result.and_then(|found| self.keys.opened(found)) }).collect()
        })
    }

    fn bulk_set<'a>(&'a self, requests: Vec<SetRequest>) -> Fut<'a, Vec<Result<(), StateError>>> {
        Box::pin(async move {
            let count = requests.len();
            match requests.into_iter().map(|r| self.keys.sealed(r)).collect::<Result<Vec<_>, _>>() {
                Ok(sealed) => self.store.bulk_set(sealed).await,
                Err(error) => vec![Err(error); count],
            }
        })
    }

    fn bulk_delete<'a>(&'a self, requests: Vec<DeleteRequest>) -> Fut<'a, Vec<Result<(), StateError>>> {
        self.store.bulk_delete(requests)
    }

    fn transact<'a>(&'a self, operations: Vec<StateOperation>, metadata: Metadata) -> Fut<'a, Result<(), StateError>> {
        Box::pin(async move {
            let seal = |operation| match operation {
                StateOperation::Set(request) => self.keys.sealed(request).map(StateOperation::Set),
                other @ StateOperation::Delete(_) => Ok(other),
            };
            let sealed = operations.into_iter().map(seal).collect::<Result<Vec<_>, _>>()?;
            self.store.transact(sealed, metadata).await
        })
    }

    fn delete_with_prefix<'a>(&'a self, prefix: String) -> Fut<'a, Result<u64, StateError>> {
        self.store.delete_with_prefix(prefix)
    }

    fn keys_like<'a>(&'a self, request: KeysLikeRequest) -> Fut<'a, Result<KeysLikePage, StateError>> {
        self.store.keys_like(request)
    }

    fn max_transaction_operations(&self) -> Option<usize> {
        self.store.max_transaction_operations()
    }

    fn close<'a>(&'a self) -> Fut<'a, ()> {
        self.store.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(primary: (&str, u8), secondary: Option<(&str, u8)>) -> Keys {
        let key =
            |(name, byte): (&str, u8)| Key { name: name.to_owned(), key: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[byte; 16]).unwrap()) };
        Keys { primary: key(primary), secondary: secondary.map(key) }
    }

    fn value(text: &str, json: bool) -> StateValue {
        StateValue { bytes: Bytes::copy_from_slice(text.as_bytes()), json }
    }

    #[test]
    fn values_come_back_and_stand_in_the_store_unreadable_with_the_name_of_their_key() {
        let k = keys(("new", 1), None);
        for (given, back) in [(value("\"text\"", true), "text"), (value(r#"{"a":1}"#, true), r#"{"a":1}"#), (value("a||b", false), "a||b")] {
            let sealed = k.seal(given.clone()).unwrap();
            assert!(sealed.bytes.ends_with(b"||new") && !sealed.bytes.windows(2).any(|w| w == b"a\""), "{sealed:?}");
            assert_ne!(k.seal(given).unwrap(), sealed, "a nonce of its own");
            assert_eq!(k.open(&sealed).unwrap().bytes, back);
        }
    }

    #[test]
    fn old_values_are_read_with_the_secondary_key_and_what_fits_no_key_is_an_error() {
        let old = keys(("old", 2), None).seal(value("x", false)).unwrap();
        assert_eq!(keys(("new", 1), Some(("old", 2))).open(&old).unwrap().bytes, "x");
        let wrong = [keys(("new", 1), None).open(&old), keys(("old", 3), None).open(&old), keys(("old", 2), None).open(&value("plain", false))];
        assert!(wrong.iter().all(Result::is_err), "{wrong:?}");
        let mut bent = old.bytes.to_vec();
        bent[20] ^= 1;
        assert!(keys(("old", 2), None).open(&StateValue { bytes: bent.into(), json: false }).is_err());
    }
}
