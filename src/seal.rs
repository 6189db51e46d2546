//! Sealing what lies on the disk: ChaCha20-Poly1305 (RFC 8439), which needs no processor support, with keys derived for each purpose.
//!
//! A sealed text is `1 | first 4 bytes of the key's fingerprint | nonce of 12 bytes | cipher text and tag`. Of several keys the first one
//! seals and all of them open, so a key is changed by putting the new one before the old one.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::{digest, hkdf};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// What sealing adds to a text.
pub const OVERHEAD_BYTES: usize = HEAD + NONCE_LEN + 16;

const VERSION: u8 = 1;
/// Bytes that tell keys apart.
pub const FINGERPRINT: usize = 4;
const HEAD: usize = 1 + FINGERPRINT;

/// A sealed text could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It was sealed by a key that is not among these.
    #[error("it was sealed with another key")]
    OtherKey,
    /// It is no sealed text, was changed, or stands in another place.
    #[error("it is damaged")]
    Damaged,
    /// No random numbers, or no memory.
    #[error("the system gives no random numbers")]
    NoRandom,
}

/// A master key. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct MasterKey([u8; KEY_BYTES]);

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey")
    }
}

impl MasterKey {
    /// Of 32 bytes.
    #[must_use]
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits or base64 (with or without `=`), white space around it left out.
    ///
    /// # Errors
    /// What would have been accepted; the text is not shown.
    pub fn parse(text: &str) -> Result<Self, String> {
        use base64::Engine as _;
        use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
        const ANY: GeneralPurpose = GeneralPurpose::new(
            &base64::alphabet::STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
        );
        let text = text.trim();
        let hex = || (0..text.len()).step_by(2).map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok()).collect::<Option<Vec<u8>>>();
        let is_hex = text.len() == 2 * KEY_BYTES && text.bytes().all(|b| b.is_ascii_hexdigit());
        let bytes = if is_hex { hex() } else { ANY.decode(text).ok() };
        let key = bytes.and_then(|b| <[u8; KEY_BYTES]>::try_from(b).ok());
        key.map(Self).ok_or_else(|| format!("{} characters; accepted are 32 bytes as 64 hexadecimal digits or in base64", text.len()))
    }
}

struct Key {
    fingerprint: [u8; FINGERPRINT],
    key: LessSafeKey,
}

/// Keys for one purpose. The first one seals, all of them open.
pub struct Seal(Vec<Key>);

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|k| k.fingerprint)).finish()
    }
}

struct KeyLength;

impl hkdf::KeyType for KeyLength {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

/// A master key's key for one purpose, and its fingerprint, which tells keys apart and is no secret.
fn for_purpose(master: &MasterKey, purpose: &str) -> Option<([u8; FINGERPRINT], [u8; KEY_BYTES])> {
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"selvedge seal");
    let mut derived = [0u8; KEY_BYTES];
    salt.extract(&master.0).expand(&[purpose.as_bytes()], KeyLength).ok()?.fill(&mut derived).ok()?;
    let mut fingerprint = [0u8; FINGERPRINT];
    fingerprint.copy_from_slice(&digest::digest(&digest::SHA256, &derived).as_ref()[..FINGERPRINT]);
    Some((fingerprint, derived))
}

/// Keys for one purpose that seal no text themselves: each file gets a key of its own from one of them and from random bytes that stand in
/// the file. The first one is for new files, all of them open.
#[derive(Clone)]
pub struct FileKeys(Vec<([u8; FINGERPRINT], [u8; KEY_BYTES])>);

impl std::fmt::Debug for FileKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.fingerprints()).finish()
    }
}

impl FileKeys {
    /// Keys for `purpose`. `None` without master keys.
    #[must_use]
    pub fn derive(masters: &[MasterKey], purpose: &str) -> Option<Self> {
        let keys: Vec<_> = masters.iter().filter_map(|master| for_purpose(master, purpose)).collect();
        (!keys.is_empty()).then_some(Self(keys))
    }

    /// What tells the keys apart, the one for new files first.
    pub fn fingerprints(&self) -> impl Iterator<Item = [u8; FINGERPRINT]> + '_ {
        self.0.iter().map(|(fingerprint, _)| *fingerprint)
    }

    /// The key of the file with these random bytes, of which `context` says what it is: one moved to another place does not open. `None`
    /// when the key of this fingerprint is not there.
    #[must_use]
    pub fn of_file(&self, fingerprint: [u8; FINGERPRINT], salt: &[u8; KEY_BYTES], context: &[&[u8]]) -> Option<LessSafeKey> {
        let (_, key) = self.0.iter().find(|(f, _)| *f == fingerprint)?;
        let mut derived = [0u8; KEY_BYTES];
        hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(key).expand(context, KeyLength).ok()?.fill(&mut derived).ok()?;
        Some(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &derived).ok()?))
    }
}

impl Seal {
    /// Keys for `purpose`, derived from the master keys (HKDF with SHA-256, RFC 5869): what is sealed for one purpose does not open for another.
    /// `None` without master keys.
    #[must_use]
    pub fn derive(masters: &[MasterKey], purpose: &str) -> Option<Self> {
        let one = |master: &MasterKey| {
            let (fingerprint, derived) = for_purpose(master, purpose)?;
            Some(Key { fingerprint, key: LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &derived).ok()?) })
        };
        let keys: Vec<Key> = masters.iter().filter_map(one).collect();
        (!keys.is_empty()).then_some(Self(keys))
    }

    /// Seals a text for one `place` (its row, its file): it opens nowhere else. Nonces are random, so one key is good for some billions of texts.
    ///
    /// # Errors
    /// Only when the system gives no random numbers.
    pub fn seal(&self, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let key = self.0.first().ok_or(SealError::OtherKey)?;
        let mut nonce = [0u8; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| SealError::NoRandom)?;
        let mut sealed = Vec::with_capacity(plain.len() + OVERHEAD_BYTES);
        sealed.push(VERSION);
        sealed.extend_from_slice(&key.fingerprint);
        sealed.extend_from_slice(&nonce);
        let start = sealed.len();
        sealed.extend_from_slice(plain);
        let tag = key
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place), &mut sealed[start..])
            .map_err(|_| SealError::NoRandom)?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// Whether the first key has sealed this: if not, it is worth sealing anew.
    #[must_use]
    pub fn is_current(&self, sealed: &[u8]) -> bool {
        self.0.first().is_some_and(|key| sealed.get(1..HEAD).is_some_and(|fingerprint| fingerprint == key.fingerprint))
    }

    /// Opens what was sealed for this place by any of the keys.
    ///
    /// # Errors
    /// None of the keys, or not what was sealed here.
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (head, rest) = sealed.split_at_checked(HEAD).ok_or(SealError::Damaged)?;
        let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or(SealError::Damaged)?;
        let nonce: [u8; NONCE_LEN] = nonce.try_into().map_err(|_| SealError::Damaged)?;
        if head[0] != VERSION {
            return Err(SealError::Damaged);
        }
        let mut known = false;
        for key in self.0.iter().filter(|k| k.fingerprint == head[1..]) {
            known = true;
            let mut text = text.to_vec();
            if let Ok(plain) = key.key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(place), &mut text) {
                let length = plain.len();
                text.truncate(length);
                return Ok(text);
            }
        }
        Err(if known { SealError::Damaged } else { SealError::OtherKey })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(of: &[u8]) -> Vec<MasterKey> {
        of.iter().map(|n| MasterKey::new([*n; KEY_BYTES])).collect()
    }

    fn seal(of: &[u8]) -> Seal {
        Seal::derive(&keys(of), "test").unwrap()
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_in_its_place_and_for_its_purpose_only() {
        let ours = seal(&[1]);
        let sealed = ours.seal(b"row", b"hush").unwrap();
        assert_eq!(sealed.len(), 4 + OVERHEAD_BYTES);
        assert_eq!(ours.open(b"row", &sealed), Ok(b"hush".to_vec()));
        assert_eq!(ours.open(b"other row", &sealed), Err(SealError::Damaged));
        assert_eq!(seal(&[2]).open(b"row", &sealed), Err(SealError::OtherKey));
        assert_eq!(Seal::derive(&keys(&[1]), "other").unwrap().open(b"row", &sealed), Err(SealError::OtherKey));
        assert_ne!(ours.seal(b"row", b"hush").unwrap(), sealed, "no nonce twice");
        assert!(Seal::derive(&[], "test").is_none());
        assert!(!format!("{ours:?} {:?}", keys(&[1])).contains("1, 1, 1"));
    }

    #[test]
    fn a_key_is_changed_by_putting_the_new_one_first() {
        let old = seal(&[1]).seal(b"", b"x").unwrap();
        let both = seal(&[2, 1]);
        assert!(!both.is_current(&old) && both.is_current(&both.seal(b"", b"x").unwrap()));
        assert_eq!(both.open(b"", &old), Ok(b"x".to_vec()));
        let new = both.seal(b"", b"y").unwrap();
        assert_eq!((seal(&[2]).open(b"", &new), seal(&[1]).open(b"", &new)), (Ok(b"y".to_vec()), Err(SealError::OtherKey)));
    }

    #[test]
    fn keys_are_read_as_hexadecimal_digits_and_as_base64() {
        let key = MasterKey::new([0xAB; KEY_BYTES]);
        let base64 = "q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=";
        for text in ["ab".repeat(32), "AB".repeat(32) + "\n", base64.to_owned(), base64.trim_end_matches('=').to_owned()] {
            assert_eq!(MasterKey::parse(&text), Ok(key.clone()), "{text}");
        }
        for text in ["", "ab", &"ab".repeat(31), &"zz".repeat(32), "secret text"] {
            let error = MasterKey::parse(text).unwrap_err();
            assert!(error.contains("64 hexadecimal digits") && !error.contains("secret"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_text_that_was_changed_or_cut_does_not_open(at in 0usize..64, bit in 0u8..8, cut in 0usize..64) {
            let ours = seal(&[1]);
            let sealed = ours.seal(b"row", &[7; 31]).unwrap();
            let mut changed = sealed.clone();
            changed[at % sealed.len()] ^= 1 << bit;
            prop_assert!(ours.open(b"row", &changed).is_err());
            prop_assert!(ours.open(b"row", &sealed[..cut % sealed.len()]).is_err());
        }
    }
}
