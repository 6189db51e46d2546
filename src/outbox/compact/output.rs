//! A segment that compaction writes: which records stay in it, and what became of the others.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::aggregate;
use super::super::codec::{self, Gone, Header, RawRecord};
use super::super::loss::Loss;
use super::super::merge::{Fate, Plan};
use super::super::sealed::Sealer;
use super::super::storage::StoredFile;
use super::super::{DestinationId, NewRecord};
use crate::time::Timestamp;

/// Written bytes that are synced together, so that no sync has much to do.
const SYNC_BYTES: u64 = 256 << 10;

/// A segment that is being written.
pub(super) struct Output {
    pub inputs: Range<usize>,
    pub path: PathBuf,
    pub temporary: PathBuf,
    pub file: Arc<dyn StoredFile>,
    pub attempt: u32,
    pub header: Header,
    pub data_start: u64,
    /// End of what is written.
    pub end: u64,
    pub unsynced: u64,
    pub pending: Vec<u8>,
    pub sealer: Option<Sealer>,
    /// New ones, and what is left.
    pub gone: BTreeMap<DestinationId, Gone>,
    pub losses: BTreeMap<DestinationId, Loss>,
}

impl Output {
    fn of(&mut self, d: DestinationId) -> &mut Gone {
        self.gone.entry(d).or_insert(Gone { id: d, finished: 0, aggregated: 0, left: 0 })
    }

    /// Writes one record, or counts it as gone.
    pub fn take(
        &mut self,
        plan: &mut Plan,
        number: usize,
        record: &RawRecord<'_>,
        needed: &[DestinationId],
        bytes: &[u8],
        told: impl Fn(Timestamp) -> String,
    ) {
        let all = record.destinations().count();
        for d in record.destinations().filter(|d| !needed.contains(d)) {
            self.of(d).finished += 1;
        }
        if needed.is_empty() {
            return;
        }
        let fate = plan.fate(number, record, needed, &told);
        let rewrite = |out: &mut Vec<u8>, payload: &[u8], user: Option<&[(&str, &str)]>| {
            record.with_attributes(|attributes| {
                let attributes = crate::message::Attributes { user: user.unwrap_or(attributes.user), ..attributes };
                let new = NewRecord {
                    source: record.source,
                    topic: record.topic,
                    payload,
                    attributes,
                    qos: record.qos,
                    retain: record.retain,
                    ttl_seconds: record.ttl_seconds,
                    destinations: needed,
                };
                codec::encode_rewritten(out, record.sequence, record.accepted, &new, record.aggregate || user.is_some());
            });
        };
        match fate {
            Fate::Merged => {
                for d in needed {
                    self.of(*d).aggregated += 1;
                    let one = Loss::one(record.sequence, record.accepted.at);
                    self.losses.entry(*d).and_modify(|l| l.merge(one)).or_insert(one);
                }
                return;
            }
            Fate::Stays if needed.len() == all => self.pending.extend_from_slice(bytes),
            Fate::Stays => rewrite(&mut self.pending, record.payload, None),
            Fate::StandsFor { payload, count, from } => {
                let (count, to) = (count.to_string(), told(record.accepted.at));
                record.with_attributes(|a| {
                    let own = a.user;
                    let to = if record.aggregate { own.iter().rev().find(|(k, _)| *k == aggregate::TO).map_or(&*to, |(_, v)| *v) } else { &to };
                    rewrite(&mut self.pending, &payload, Some(&aggregate::properties(own, &count, &from, to)));
                });
            }
        }
        for d in needed {
            self.of(*d).left += 1;
        }
    }

    pub fn flush(&mut self) -> io::Result<()> {
        let stored = match &mut self.sealer {
            Some(sealer) => sealer.seal(&self.pending)?,
            None => &self.pending,
        };
        self.file.write_at(self.end, stored)?;
        self.end += stored.len() as u64;
        self.unsynced += stored.len() as u64;
        self.pending.clear();
        if self.unsynced >= SYNC_BYTES {
            self.file.sync()?;
            self.unsynced = 0;
        }
        Ok(())
    }
}
