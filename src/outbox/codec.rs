//! The bytes of a segment: a header, then records, each with a length and a checksum. Decision record 0001 has the layout.

use std::time::Duration;

use smallvec::SmallVec;

use super::{DestinationId, NewRecord};
use crate::message::Attributes;
use crate::seal::{FINGERPRINT, KEY_BYTES};
use crate::time::Timestamp;

/// First bytes of a segment as it was written.
pub(crate) const MAGIC: &[u8; 8] = b"SLVGSEG\x01";
/// First bytes of a segment whose header has sections after the fields that all have (decision record 0009).
pub(crate) const MAGIC_SECTIONS: &[u8; 8] = b"SLVGSEG\x02";
/// Bytes before a record's body: length and checksum.
pub(crate) const FRAME_BYTES: usize = 8;
/// Largest header that is read back: 4,096 destinations with long names would pass it, so names are bounded as well.
pub(crate) const MAX_HEADER_BYTES: usize = 1 << 20;

const HEADER_FRESH: u8 = 1;
const FLAG_RETAIN: u8 = 1 << 2;
const FLAG_TTL: u8 = 1 << 3;
const FLAG_ATTRIBUTES: u8 = 1 << 4;
const FLAG_AGGREGATE: u8 = 1 << 5;
/// Behind the destinations stands sealed text (decision record 0010).
const FLAG_SEALED: u8 = 1 << 6;
/// Where the flags stand in a body: behind sequence and time.
const FLAGS_AT: usize = 16;
/// Low bits of the field of a record's time that are the time; those above are the number of the mode that the box was in (ADR 0001).
const TIME_BITS: u32 = 56;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// When a record was accepted, and in which mode of the box: what the store itself adds to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub at: Timestamp,
    /// As [`Outbox::set_mode`](super::Outbox::set_mode) was told; 0 for none.
    pub mode: u8,
}

impl Accepted {
    fn encode(self) -> u64 {
        self.at.0.min(TIME_MASK) | u64::from(self.mode) << TIME_BITS
    }

    fn decode(field: u64) -> Self {
        Self { at: Timestamp(field & TIME_MASK), mode: (field >> TIME_BITS) as u8 }
    }
}

const SECTION_COMPACTED: u8 = 1;
const SECTION_SEALED: u8 = 2;

/// Cumulative count of records accepted for a destination before a segment's first record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AcceptedBefore {
    pub id: DestinationId,
    pub name: String,
    pub accepted: u64,
}

/// What a compacted segment says of the records that stood in its range and do not stand in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Compacted {
    /// Grows with every compaction of the lane: tells whether a cursor page knows of it.
    pub mark: u64,
    /// One past the last sequence of the range.
    pub end: u64,
    /// How far it has been downsampled: 0 for not at all, else the number of the window in the lane's list, from 1.
    pub level: u8,
    /// From which sequence on records are of which epoch; at least one, in order.
    pub epochs: Vec<(u64, u32)>,
    /// What became of the records of each destination that had any in the range.
    pub gone: Vec<Gone>,
}

/// Of one destination's records in the range of a compacted segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone {
    pub id: DestinationId,
    /// It had finished them when the segment was compacted.
    pub finished: u64,
    /// Merged into others.
    pub aggregated: u64,
    /// They stand in the file.
    pub left: u64,
}

impl Gone {
    /// Records that do not stand in the file.
    pub fn count(&self) -> u64 {
        self.finished + self.aggregated
    }
}

/// A segment's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub epoch: u32,
    pub base: u64,
    pub created: Timestamp,
    pub lane: String,
    pub destinations: Vec<AcceptedBefore>,
    /// Every record before this segment is finished, whatever earlier segments and cursors say.
    pub fresh: bool,
    pub compacted: Option<Compacted>,
    pub sealed: Option<SealedHeader>,
}

/// What a sealed segment says of its key (decision record 0010).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SealedHeader {
    /// Fingerprint of the key that the segment's own key comes from.
    pub key: [u8; FINGERPRINT],
    /// Random, of this file alone.
    pub salt: [u8; KEY_BYTES],
}

/// The cipher that [`SealedHeader`] is for.
const CHACHA20_POLY1305: u8 = 1;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// More bytes are needed: `.0` in all, from the start of the thing.
    Incomplete(usize),
    /// The zeros of a preallocated tail: nothing was written here.
    Unwritten,
    /// Checksum, magic or inner lengths do not fit.
    Corrupt,
}

/// Reads little-endian fields and never past the end.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Broken> {
        if n > self.0.len() {
            return Err(Broken::Corrupt);
        }
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        self.take(N)?.try_into().map_err(|_| Broken::Corrupt)
    }

    fn u8(&mut self) -> Result<u8, Broken> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, Broken> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Broken> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Broken> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes16(&mut self) -> Result<&'a [u8], Broken> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }

    fn text8(&mut self) -> Result<&'a str, Broken> {
        let n = self.u8()?;
        std::str::from_utf8(self.take(usize::from(n))?).map_err(|_| Broken::Corrupt)
    }

    fn text16(&mut self) -> Result<&'a str, Broken> {
        std::str::from_utf8(self.bytes16()?).map_err(|_| Broken::Corrupt)
    }
}

fn put16(out: &mut Vec<u8>, bytes: &[u8]) {
    // Callers have checked lengths; a longer one is cut rather than corrupting what follows.
    let n = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&n.to_le_bytes());
    out.extend_from_slice(&bytes[..usize::from(n)]);
}

fn put8(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(255);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.push(end as u8);
    out.extend_from_slice(&text.as_bytes()[..end]);
}

/// Fills in length and checksum of the frame that begins at `start` and ends with `out`.
pub(super) fn frame(out: &mut [u8], start: usize) {
    let body = out.len() - start - FRAME_BYTES;
    let crc = crc32fast::hash(&out[start + FRAME_BYTES..]);
    out[start..start + 4].copy_from_slice(&(body as u32).to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Opens a frame: its body, and its whole length.
fn unframe(bytes: &[u8], max: usize) -> Result<(&[u8], usize), Broken> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Err(Broken::Incomplete(FRAME_BYTES)) };
    let length = u32::from_le_bytes(*length) as usize;
    let Some((crc, rest)) = rest.split_first_chunk::<4>() else { return Err(Broken::Incomplete(FRAME_BYTES)) };
    if length == 0 {
        return Err(if *crc == [0; 4] { Broken::Unwritten } else { Broken::Corrupt });
    }
    if length > max {
        return Err(Broken::Corrupt);
    }
    if rest.len() < length {
        return Err(Broken::Incomplete(FRAME_BYTES + length));
    }
    let body = &rest[..length];
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return Err(Broken::Corrupt);
    }
    Ok((body, FRAME_BYTES + length))
}

fn section(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// The header's bytes, magic included. Two headers that differ in numbers alone are of the same length.
pub(crate) fn encode_header(header: &Header) -> Vec<u8> {
    let sections = header.compacted.is_some() || header.sealed.is_some();
    let mut out = if sections { MAGIC_SECTIONS.to_vec() } else { MAGIC.to_vec() };
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_BYTES]);
    out.extend_from_slice(&header.epoch.to_le_bytes());
    out.extend_from_slice(&header.base.to_le_bytes());
    out.extend_from_slice(&header.created.0.to_le_bytes());
    put8(&mut out, &header.lane);
    out.extend_from_slice(&(header.destinations.len() as u16).to_le_bytes());
    for d in &header.destinations {
        out.extend_from_slice(&d.id.0.to_le_bytes());
        out.extend_from_slice(&d.accepted.to_le_bytes());
        put16(&mut out, d.name.as_bytes());
    }
    if sections || header.fresh {
        out.push(if header.fresh { HEADER_FRESH } else { 0 });
    }
    if let Some(c) = &header.compacted {
        section(&mut out, SECTION_COMPACTED, |out| {
            out.extend_from_slice(&c.mark.to_le_bytes());
            out.extend_from_slice(&c.end.to_le_bytes());
            out.push(c.level);
            out.extend_from_slice(&(c.epochs.len() as u16).to_le_bytes());
            for (first, epoch) in &c.epochs {
                out.extend_from_slice(&first.to_le_bytes());
                out.extend_from_slice(&epoch.to_le_bytes());
            }
            out.extend_from_slice(&(c.gone.len() as u16).to_le_bytes());
            for g in &c.gone {
                out.extend_from_slice(&g.id.0.to_le_bytes());
                for count in [g.finished, g.aggregated, g.left] {
                    out.extend_from_slice(&count.to_le_bytes());
                }
            }
        });
    }
    if let Some(sealed) = &header.sealed {
        section(&mut out, SECTION_SEALED, |out| {
            out.push(CHACHA20_POLY1305);
            out.extend_from_slice(&sealed.key);
            out.extend_from_slice(&sealed.salt);
        });
    }
    frame(&mut out, start);
    out
}

fn decode_sealed(bytes: &[u8]) -> Result<SealedHeader, Broken> {
    let mut fields = Fields(bytes);
    let (cipher, key, salt) = (fields.u8()?, fields.array()?, fields.array()?);
    if cipher == CHACHA20_POLY1305 && fields.0.is_empty() { Ok(SealedHeader { key, salt }) } else { Err(Broken::Corrupt) }
}

fn decode_compacted(bytes: &[u8]) -> Result<Compacted, Broken> {
    let mut fields = Fields(bytes);
    let (mark, end, level) = (fields.u64()?, fields.u64()?, fields.u8()?);
    let mut epochs = Vec::new();
    for _ in 0..fields.u16()? {
        epochs.push((fields.u64()?, fields.u32()?));
    }
    let mut gone = Vec::new();
    for _ in 0..fields.u16()? {
        gone.push(Gone { id: DestinationId(fields.u16()?), finished: fields.u64()?, aggregated: fields.u64()?, left: fields.u64()? });
    }
    if epochs.is_empty() { Err(Broken::Corrupt) } else { Ok(Compacted { mark, end, level, epochs, gone }) }
}

/// The header and its length.
pub(crate) fn decode_header(bytes: &[u8]) -> Result<(Header, usize), Broken> {
    if bytes.len() < MAGIC.len() + FRAME_BYTES {
        return Err(Broken::Incomplete(MAGIC.len() + FRAME_BYTES));
    }
    let sections = bytes.starts_with(MAGIC_SECTIONS);
    let Some(rest) = bytes.strip_prefix(if sections { MAGIC_SECTIONS } else { MAGIC }) else { return Err(Broken::Corrupt) };
    let (body, length) = unframe(rest, MAX_HEADER_BYTES).map_err(|e| match e {
        Broken::Incomplete(n) => Broken::Incomplete(n + MAGIC.len()),
        other => other,
    })?;
    let mut fields = Fields(body);
    let (epoch, base, created) = (fields.u32()?, fields.u64()?, Timestamp(fields.u64()?));
    let lane = fields.text8()?.to_owned();
    let count = fields.u16()?;
    let mut destinations = Vec::with_capacity(usize::from(count).min(4096));
    for _ in 0..count {
        let (id, accepted) = (DestinationId(fields.u16()?), fields.u64()?);
        destinations.push(AcceptedBefore { id, accepted, name: fields.text16()?.to_owned() });
    }
    let flags = if fields.0.is_empty() { 0 } else { fields.u8()? };
    let (mut compacted, mut sealed) = (None, None);
    while sections && !fields.0.is_empty() {
        let (tag, length) = (fields.u8()?, fields.u32()?);
        let bytes = fields.take(length as usize)?;
        match tag {
            SECTION_COMPACTED => compacted = Some(decode_compacted(bytes)?),
            SECTION_SEALED => sealed = Some(decode_sealed(bytes)?),
            // What it means is not known here, so what follows cannot be trusted to mean what it seems to.
            _ => return Err(Broken::Corrupt),
        }
    }
    Ok((Header { epoch, base, created, lane, destinations, fresh: flags & HEADER_FRESH != 0, compacted, sealed }, MAGIC.len() + length))
}

/// Upper bound of the bytes that a record takes in a segment.
pub(crate) fn record_bytes(record: &NewRecord<'_>) -> usize {
    let a = &record.attributes;
    let attributes = a.content_type.map_or(0, str::len)
        + a.response_topic.map_or(0, str::len)
        + a.correlation_data.map_or(0, <[u8]>::len)
        + a.user.iter().map(|(k, v)| k.len() + v.len() + 4).sum::<usize>();
    FRAME_BYTES
        + 8
        + 8
        + 1
        + 4
        + 2
        + 2 * record.destinations.len()
        + 1
        + record.source.len()
        + 2
        + record.topic.len()
        + 16
        + attributes
        + record.payload.len()
}

/// Appends one record to `out`.
pub(crate) fn encode_record(out: &mut Vec<u8>, sequence: u64, accepted: Accepted, record: &NewRecord<'_>) {
    encode_rewritten(out, sequence, accepted, record, false);
}

/// Appends a record that compaction has written anew, an aggregate of others or one with fewer destinations.
pub(crate) fn encode_rewritten(out: &mut Vec<u8>, sequence: u64, accepted: Accepted, record: &NewRecord<'_>, aggregate: bool) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_BYTES]);
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&accepted.encode().to_le_bytes());
    let a = &record.attributes;
    let plain = *a == Attributes::default();
    let flags = (record.qos & 3)
        | if record.retain { FLAG_RETAIN } else { 0 }
        | if record.ttl_seconds.is_some() { FLAG_TTL } else { 0 }
        | if aggregate { FLAG_AGGREGATE } else { 0 }
        | if plain { 0 } else { FLAG_ATTRIBUTES };
    out.push(flags);
    if let Some(ttl) = record.ttl_seconds {
        out.extend_from_slice(&ttl.to_le_bytes());
    }
    out.extend_from_slice(&(record.destinations.len() as u16).to_le_bytes());
    for d in record.destinations {
        out.extend_from_slice(&d.0.to_le_bytes());
    }
    put8(out, record.source);
    put16(out, record.topic.as_bytes());
    if !plain {
        let present = u8::from(a.utf8)
            | u8::from(a.content_type.is_some()) << 1
            | u8::from(a.response_topic.is_some()) << 2
            | u8::from(a.correlation_data.is_some()) << 3;
        out.push(present);
        for part in [a.content_type.map(str::as_bytes), a.response_topic.map(str::as_bytes), a.correlation_data].into_iter().flatten() {
            put16(out, part);
        }
        out.extend_from_slice(&(a.user.len().min(usize::from(u16::MAX)) as u16).to_le_bytes());
        for (k, v) in a.user.iter().take(usize::from(u16::MAX)) {
            put16(out, k.as_bytes());
            put16(out, v.as_bytes());
        }
    }
    out.extend_from_slice(record.payload);
    frame(out, start);
}

/// A record in the buffer it was read into.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawRecord<'a> {
    pub sequence: u64,
    pub accepted: Accepted,
    pub qos: u8,
    pub retain: bool,
    /// It stands for several that were downsampled.
    pub aggregate: bool,
    /// Source, topic, attributes and payload are sealed: they are empty here, and the payload is sealed text.
    pub sealed: bool,
    pub ttl_seconds: Option<u32>,
    destinations: &'a [u8],
    pub source: &'a str,
    pub topic: &'a str,
    attributes: &'a [u8],
    pub payload: &'a [u8],
}

impl<'a> RawRecord<'a> {
    pub fn destinations(&self) -> impl Iterator<Item = DestinationId> + 'a {
        self.destinations.chunks_exact(2).map(|c| DestinationId(u16::from_le_bytes([c[0], c[1]])))
    }

    /// Whether its life is over at this time; `ttl` is what its lane allows.
    pub fn is_over(&self, now: Timestamp, ttl: Option<Duration>) -> bool {
        let age = now.since(self.accepted.at);
        self.ttl_seconds.is_some_and(|t| age.as_secs() >= u64::from(t)) || ttl.is_some_and(|t| age > t)
    }

    /// The attributes, whose list of user properties lives on the stack of this call.
    pub fn with_attributes<R>(&self, f: impl FnOnce(Attributes<'_>) -> R) -> R {
        let mut user: SmallVec<[(&str, &str); 8]> = SmallVec::new();
        // The section was walked when the record was decoded, so it holds what it promises.
        let attributes = read_attributes(&mut Fields(self.attributes), |k, v| user.push((k, v))).unwrap_or_default();
        f(Attributes { user: &user, ..attributes })
    }
}

fn read_attributes<'a>(fields: &mut Fields<'a>, mut user: impl FnMut(&'a str, &'a str)) -> Result<Attributes<'a>, Broken> {
    if fields.0.is_empty() {
        return Ok(Attributes::default());
    }
    let present = fields.u8()?;
    let mut attributes = Attributes { utf8: present & 1 != 0, ..Attributes::default() };
    if present & 2 != 0 {
        attributes.content_type = Some(fields.text16()?);
    }
    if present & 4 != 0 {
        attributes.response_topic = Some(fields.text16()?);
    }
    if present & 8 != 0 {
        attributes.correlation_data = Some(fields.bytes16()?);
    }
    for _ in 0..fields.u16()? {
        let (k, v) = (fields.text16()?, fields.text16()?);
        user(k, v);
    }
    Ok(attributes)
}

/// The record at the start of `bytes`, and its length.
pub(crate) fn decode_record(bytes: &[u8], max: usize) -> Result<(RawRecord<'_>, usize), Broken> {
    let (body, length) = unframe(bytes, max)?;
    Ok((decode_body(body)?, length))
}

/// A record from its body, whose checksum has been checked.
pub(crate) fn decode_body(body: &[u8]) -> Result<RawRecord<'_>, Broken> {
    let mut fields = Fields(body);
    let (sequence, accepted, flags) = (fields.u64()?, Accepted::decode(fields.u64()?), fields.u8()?);
    let ttl_seconds = if flags & FLAG_TTL != 0 { Some(fields.u32()?) } else { None };
    let count = fields.u16()?;
    let destinations = fields.take(2 * usize::from(count))?;
    let sealed = flags & FLAG_SEALED != 0;
    let (source, topic) = if sealed { ("", "") } else { (fields.text8()?, fields.text16()?) };
    let mut attributes: &[u8] = &[];
    if flags & FLAG_ATTRIBUTES != 0 && !sealed {
        let before = fields.0;
        read_attributes(&mut fields, |_, _| {})?;
        attributes = &before[..before.len() - fields.0.len()];
    }
    Ok(RawRecord {
        sequence,
        accepted,
        qos: flags & 3,
        retain: flags & FLAG_RETAIN != 0,
        aggregate: flags & FLAG_AGGREGATE != 0,
        sealed,
        ttl_seconds,
        destinations,
        source,
        topic,
        attributes,
        payload: fields.0,
    })
}

/// How much at the start of a body is never sealed, as recovery needs it: sequence, time, flags, lifetime, destinations.
pub(super) fn clear_bytes(body: &[u8]) -> Option<usize> {
    let flags = *body.get(FLAGS_AT)?;
    let count_at = FLAGS_AT + 1 + if flags & FLAG_TTL != 0 { 4 } else { 0 };
    let count = u16::from_le_bytes(body.get(count_at..count_at + 2)?.try_into().ok()?);
    Some(count_at + 2 + 2 * usize::from(count)).filter(|n| *n <= body.len())
}

/// Says in the flags of a body whether it is sealed.
pub(super) fn mark_sealed(body: &mut [u8], sealed: bool) {
    if let Some(flags) = body.get_mut(FLAGS_AT) {
        *flags = if sealed { *flags | FLAG_SEALED } else { *flags & !FLAG_SEALED };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample<'a>(payload: &'a [u8], user: &'a [(&'a str, &'a str)], destinations: &'a [DestinationId]) -> NewRecord<'a> {
        NewRecord {
            source: "local",
            topic: "sensors/a",
            payload,
            attributes: Attributes { content_type: Some("text/plain"), correlation_data: Some(&[1, 2]), user, ..Attributes::default() },
            qos: 2,
            retain: true,
            ttl_seconds: Some(9),
            destinations,
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(payload in proptest::collection::vec(any::<u8>(), 0..300), k in ".{0,20}", v in ".{0,20}", mode: u8, at in 0..=TIME_MASK) {
            let accepted = Accepted { at: Timestamp(at), mode };
            let user = [(k.as_str(), v.as_str())];
            let destinations = [DestinationId(3), DestinationId(700)];
            let record = sample(&payload, &user, &destinations);
            let mut out = Vec::new();
            encode_record(&mut out, 42, accepted, &record);
            prop_assert!(out.len() <= record_bytes(&record));
            let (back, length) = decode_record(&out, 1 << 20).unwrap();
            prop_assert_eq!(length, out.len());
            prop_assert_eq!((back.sequence, back.accepted, back.qos, back.retain, back.ttl_seconds), (42, accepted, 2, true, Some(9)));
            prop_assert_eq!((back.source, back.topic, back.payload), ("local", "sensors/a", payload.as_slice()));
            prop_assert_eq!(back.destinations().collect::<Vec<_>>(), destinations.to_vec());
            back.with_attributes(|a| assert_eq!(a, record.attributes));
        }

        #[test]
        fn hostile_bytes_never_panic_and_a_flipped_bit_is_found(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..1000, bit in 0u8..8) {
            let _ = decode_record(&bytes, 1 << 16);
            let _ = decode_header(&bytes);
            let mut valid = Vec::new();
            encode_record(&mut valid, 1, Accepted { at: Timestamp(2), mode: 3 }, &sample(&bytes, &[], &[]));
            let at = at % valid.len();
            valid[at] ^= 1 << bit;
            prop_assert!(decode_record(&valid, 1 << 16).is_err());
            bytes.splice(0..0, MAGIC.iter().copied());
            let _ = decode_header(&bytes);
        }
    }

    #[test]
    fn header_round_trip_and_short_reads() {
        let header = Header {
            epoch: 3,
            base: 99,
            created: Timestamp(5),
            lane: "critical".into(),
            destinations: vec![AcceptedBefore { id: DestinationId(1), name: "upstream/cloud".into(), accepted: 98 }],
            fresh: false,
            compacted: None,
            sealed: None,
        };
        let sealed = Some(SealedHeader { key: [1, 2, 3, 4], salt: [7; KEY_BYTES] });
        let compacted = Compacted {
            mark: 7,
            end: 180,
            level: 2,
            epochs: vec![(99, 3), (120, 4)],
            gone: vec![Gone { id: DestinationId(1), finished: 5, aggregated: 60, left: 7 }],
        };
        let compacted = Header { compacted: Some(compacted), ..header.clone() };
        for header in [
            header.clone(),
            Header { fresh: true, ..header.clone() },
            Header { sealed, ..header.clone() },
            Header { sealed, ..compacted.clone() },
            compacted,
        ] {
            let bytes = encode_header(&header);
            assert_eq!(decode_header(&bytes), Ok((header, bytes.len())));
            for cut in 0..bytes.len() {
                assert!(matches!(decode_header(&bytes[..cut]), Err(Broken::Incomplete(n)) if n > cut), "cut at {cut}");
            }
        }
    }
}
