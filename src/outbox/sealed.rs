//! Encryption at rest: segments whose records cannot be read without a key (decision record 0010).
//!
//! What recovery needs of a record stays in the clear: sequence, time, flags, lifetime, numbers of destinations. The rest of it is sealed with
//! ChaCha20-Poly1305 and the clear part is authenticated. The checksum is over what stands on the disk, so torn and damaged records are
//! found without a key.
//!
//! No nonce is used twice with a key: every file has a key of its own, made from 32 random bytes in its header when it is created; files of
//! earlier runs are never written to; and the one [`Sealer`] of a file counts what it has sealed, also what is sealed again because a write failed.

use std::io;
use std::sync::Arc;

use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};

use super::codec::{self, FRAME_BYTES, SealedHeader};
use super::lane::Lane;
use super::recover::Locked;
use crate::seal::{FINGERPRINT, FileKeys, KEY_BYTES, MasterKey};

const TAG: usize = 16;
const COUNTER: usize = 4;
/// What sealing adds to a record: its number in the file, and the tag.
pub(crate) const OVERHEAD_BYTES: usize = COUNTER + TAG;
const PURPOSE: &str = "outbox";

/// What new segments are sealed with, and what is there to open others with.
#[derive(Debug, Clone, Default)]
pub struct AtRest {
    keys: Option<Arc<Keys>>,
    /// Fingerprints of keys that will not come back.
    lost: Vec<[u8; FINGERPRINT]>,
}

#[derive(Debug)]
enum Keys {
    Known {
        keys: FileKeys,
        seals: bool,
    },
    /// Messages are to be sealed, and there is no key: why.
    Missing(String),
}

impl PartialEq for AtRest {
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &Keys, b: &Keys| match (a, b) {
            (Keys::Known { keys: a, seals }, Keys::Known { keys: b, seals: too }) => seals == too && a.fingerprints().eq(b.fingerprints()),
            (Keys::Missing(a), Keys::Missing(b)) => a == b,
            _ => false,
        };
        let keys = match (&self.keys, &other.keys) {
            (Some(a), Some(b)) => same(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        keys && self.lost == other.lost
    }
}

impl Eq for AtRest {}

/// A key's id as people see it: eight hexadecimal digits.
pub(crate) fn id_text(id: [u8; FINGERPRINT]) -> String {
    format!("{:08x}", u32::from_be_bytes(id))
}

impl AtRest {
    /// Opens segments that are sealed with any of these keys and, if it `seals`, seals new ones with the first. Without keys, or if not,
    /// new segments are plain.
    #[must_use]
    pub fn with_keys(masters: &[MasterKey], seals: bool) -> Self {
        Self { keys: FileKeys::derive(masters, PURPOSE).map(|keys| Arc::new(Keys::Known { keys, seals })), lost: Vec::new() }
    }

    /// Messages are to be sealed, but there is no key to do it with. What is stored is kept, and nothing new is taken: it is not written
    /// in the clear.
    #[must_use]
    pub fn missing(reason: impl Into<String>) -> Self {
        Self { keys: Some(Arc::new(Keys::Missing(reason.into()))), lost: Vec::new() }
    }

    /// With the ids of keys that are lost for good: what they have sealed is given up, and counted.
    #[must_use]
    pub fn without(self, lost: &[u32]) -> Self {
        Self { lost: lost.iter().map(|id| id.to_be_bytes()).collect(), ..self }
    }

    /// The ids of the keys, the one that seals first.
    #[must_use]
    pub fn key_ids(&self) -> Vec<String> {
        match self.keys.as_deref() {
            Some(Keys::Known { keys, .. }) => keys.fingerprints().map(id_text).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether new segments are sealed, or cannot be for want of a key.
    fn seals(&self) -> bool {
        !matches!(self.keys.as_deref(), None | Some(Keys::Known { seals: false, .. }))
    }

    /// Why nothing can be sealed although it should be.
    pub(super) fn no_key(&self) -> Option<String> {
        match self.keys.as_deref() {
            Some(Keys::Missing(reason)) => Some(format!("messages are to be sealed (spec.atRest), and {reason}")),
            _ => None,
        }
    }

    /// Bytes that sealing adds to each record.
    pub(super) fn overhead_bytes(&self) -> usize {
        if self.seals() { OVERHEAD_BYTES } else { 0 }
    }

    /// How long encoded records become in a file.
    pub(super) fn stored_bytes(&self, records: &[u8]) -> usize {
        if self.seals() { sealed_bytes(records) } else { records.len() }
    }

    /// What seals a new file, and what its header says of it. None when files are plain.
    ///
    /// # Errors
    /// When there is no key, or the system gives no random numbers.
    pub(super) fn begin(&self, place: &Place<'_>) -> io::Result<Option<(SealedHeader, Sealer)>> {
        let keys = match self.keys.as_deref() {
            None | Some(Keys::Known { seals: false, .. }) => return Ok(None),
            Some(Keys::Missing(_)) => return Err(io::Error::other(self.no_key().unwrap_or_default())),
            Some(Keys::Known { keys, .. }) => keys,
        };
        let mut salt = [0; KEY_BYTES];
        getrandom::fill(&mut salt).map_err(|e| io::Error::other(e.to_string()))?;
        let id = keys.fingerprints().next().unwrap_or_default();
        let key = place.key(keys, id, &salt).ok_or_else(|| io::Error::other("no key could be derived"))?;
        Ok(Some((SealedHeader { key: id, salt }, Sealer { key: Arc::new(key), count: 0, scratch: Vec::new() })))
    }

    /// What opens a file that has this header.
    pub(super) fn cover(&self, header: &codec::Header) -> Cover {
        let Some(sealed) = &header.sealed else { return Cover::Plain };
        let place = Place { lane: &header.lane, epoch: header.epoch, base: header.base };
        let key = match self.keys.as_deref() {
            Some(Keys::Known { keys, .. }) => place.key(keys, sealed.key, &sealed.salt),
            _ => None,
        };
        match key {
            Some(key) => Cover::Sealed(Arc::new(key)),
            None if self.lost.contains(&sealed.key) => Cover::Lost,
            None => Cover::Locked(sealed.key),
        }
    }
}

/// Which file a key is for: in another place it opens nothing.
pub(super) struct Place<'a> {
    pub lane: &'a str,
    pub epoch: u32,
    pub base: u64,
}

impl Place<'_> {
    fn key(&self, keys: &FileKeys, id: [u8; FINGERPRINT], salt: &[u8; KEY_BYTES]) -> Option<LessSafeKey> {
        keys.of_file(id, salt, &[&self.epoch.to_le_bytes(), &self.base.to_le_bytes(), self.lane.as_bytes()])
    }
}

/// How the records of a segment are to be read.
#[derive(Clone, Default)]
pub(crate) enum Cover {
    #[default]
    Plain,
    Sealed(Arc<LessSafeKey>),
    /// Its key is not there. Nothing in it is damaged; it is kept until the key is.
    Locked([u8; FINGERPRINT]),
    /// Its key will not come back: what stands in it is lost.
    Lost,
}

impl std::fmt::Debug for Cover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "Plain",
            Self::Sealed(_) => "Sealed",
            Self::Locked(_) => "Locked",
            Self::Lost => "Lost",
        })
    }
}

/// The record does not open: it was changed, or does not belong here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DoesNotOpen;

impl Cover {
    /// Whether its records have to be opened.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Plain)
    }

    /// Whether its records cannot be read for want of a key.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Locked(_))
    }

    /// Whether its records will never be read.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost)
    }

    /// Opens the record in this frame, whose checksum has been checked, in place. Gives the length of the frame as it is now: a plain one
    /// with a length and a checksum of its own, at the start of `bytes`.
    pub fn open(&self, bytes: &mut [u8]) -> Result<usize, DoesNotOpen> {
        let body = bytes.get_mut(FRAME_BYTES..).ok_or(DoesNotOpen)?;
        let sealed = codec::decode_body(body).map_err(|_| DoesNotOpen)?.sealed;
        let key = match self {
            Self::Plain if !sealed => return Ok(bytes.len()),
            // One that somebody put there, too.
            Self::Sealed(key) if sealed => key,
            _ => return Err(DoesNotOpen),
        };
        let clear = codec::clear_bytes(body).ok_or(DoesNotOpen)?;
        let (clear, text) = body.split_at_mut(clear);
        let count = text.first_chunk::<COUNTER>().ok_or(DoesNotOpen)?;
        let nonce = nonce(u32::from_le_bytes(*count));
        let plain = key.open_within(nonce, Aad::from(&*clear), text, COUNTER..).map_err(|_| DoesNotOpen)?.len();
        let length = FRAME_BYTES + clear.len() + plain;
        codec::mark_sealed(&mut bytes[FRAME_BYTES..length], false);
        codec::frame(&mut bytes[..length], 0);
        // What it says was sealed by us, but it is read like everything else.
        codec::decode_body(&bytes[FRAME_BYTES..length]).map_err(|_| DoesNotOpen)?;
        Ok(length)
    }
}

/// What a lane holds that cannot be opened, by key.
pub(super) fn locked(lane: &Lane) -> Vec<Locked> {
    let mut locked: Vec<Locked> = Vec::new();
    for segment in &lane.segments {
        let Cover::Locked(id) = &segment.cover else { continue };
        let key = id_text(*id);
        match locked.iter_mut().find(|l| l.key == key) {
            Some(known) => known.segments += 1,
            None => locked.push(Locked { key, lane: lane.config.name.clone(), segments: 1 }),
        }
    }
    locked
}

fn nonce(count: u32) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[..COUNTER].copy_from_slice(&count.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// The encoded records of a buffer of ours.
fn frames(mut records: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = FRAME_BYTES + u32::from_le_bytes(*records.first_chunk()?) as usize;
        let (frame, rest) = records.split_at_checked(length)?;
        records = rest;
        Some(frame)
    })
}

/// How long encoded records become in a sealed file.
pub(super) fn sealed_bytes(records: &[u8]) -> usize {
    records.len() + frames(records).count() * OVERHEAD_BYTES
}

/// Seals the records of one file. There is one for each file, from its creation on, and none afterwards.
pub(super) struct Sealer {
    key: Arc<LessSafeKey>,
    count: u32,
    scratch: Vec<u8>,
}

impl Sealer {
    /// What reads the file.
    pub fn cover(&self) -> Cover {
        Cover::Sealed(self.key.clone())
    }

    /// Encoded records as they stand in the file.
    ///
    /// # Errors
    /// When the file has had 2^32 records: no nonce is used again.
    pub fn seal(&mut self, records: &[u8]) -> io::Result<&[u8]> {
        let out = &mut self.scratch;
        out.clear();
        for frame in frames(records) {
            let body = &frame[FRAME_BYTES..];
            let clear = codec::clear_bytes(body).ok_or_else(|| io::Error::other("a record is malformed"))?;
            let count = self.count;
            self.count = count.checked_add(1).ok_or_else(|| io::Error::other("the segment is used up"))?;
            let start = out.len();
            out.extend_from_slice(&frame[..FRAME_BYTES + clear]);
            let clear = start + FRAME_BYTES..out.len();
            codec::mark_sealed(&mut out[clear.clone()], true);
            out.extend_from_slice(&count.to_le_bytes());
            let text = out.len();
            out.extend_from_slice(&body[clear.len()..]);
            let (before, text) = out.split_at_mut(text);
            let tag = self
                .key
                .seal_in_place_separate_tag(nonce(count), Aad::from(&before[clear]), text)
                .map_err(|_| io::Error::other("a record could not be sealed"))?;
            out.extend_from_slice(tag.as_ref());
            codec::frame(out, start);
        }
        Ok(out)
    }
}
