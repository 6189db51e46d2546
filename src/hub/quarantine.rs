//! Records that an upstream refuses for good, or on which its link breaks again and again: set aside in a lane of their own, with the
//! reason, until an operator lets them go or has them tried again. Traffic goes on meanwhile.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::{AcceptError, Hub};
use crate::message::Attributes;
use crate::outbox::{DestinationId, LaneId, NewRecord, Outbox, OutboxError, Peeker, Reader, Record, Run};
use crate::time::Timestamp;

/// The lane of what is set aside, and the name of its only destination.
pub const QUARANTINE: &str = "quarantine";
/// Room for records that upstreams refuse, in bytes on disk; the oldest are given up for newer ones.
pub const QUARANTINE_BYTES: u64 = 64 << 20;
/// The user property that says why a record is here; it is taken off again when the record is tried again.
const NOTE: &str = "selvedge-quarantine";
/// Records read at once while looking through the lane.
const RUN_RECORDS: usize = 64;
/// Bytes read at once while looking through the lane.
const RUN_BYTES: usize = 256 << 10;
/// Record ids that are remembered.
const RECENT: usize = 1_024;
/// Payload bytes of a page; one larger record is a page alone.
const PAGE_BYTES: usize = 2 << 20;

/// Why a record was set aside, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    upstream: String,
    reason: String,
    lane: String,
    record_id: String,
    accepted_at: u64,
}

/// What is to be done with records that are set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Drop them.
    Purge,
    /// Store them for their upstream again, behind what waits in their lane.
    Retry,
}

/// The operator's side of the lane.
pub(super) struct Quarantine {
    lane: LaneId,
    destination: DestinationId,
    reader: Mutex<Reader>,
    /// Record ids of the last ones: after a `kill -9` the upstream may refuse up to a second's records again. Read from the lane when
    /// the first one comes.
    recent: Mutex<Option<VecDeque<String>>>,
}

impl Quarantine {
    /// None when the outbox has no such lane.
    pub(super) fn open(outbox: &Outbox) -> Result<Option<Self>, OutboxError> {
        let Some(lane) = outbox.lane(QUARANTINE) else { return Ok(None) };
        let destination = outbox.destination(QUARANTINE)?;
        Ok(Some(Self { lane, destination, reader: Mutex::new(outbox.reader(destination, lane)), recent: Mutex::default() }))
    }
}

fn note(attributes: &Attributes<'_>) -> Option<Note> {
    let (_, text) = attributes.user.iter().rev().find(|(name, _)| *name == NOTE)?;
    serde_json::from_str(text).ok()
}

fn describe(record: &Record<'_>) -> Value {
    record.with_attributes(|attributes| {
        let note = note(&attributes);
        let user: Vec<_> = attributes.user.iter().filter(|(name, _)| *name != NOTE).collect();
        let mut described = json!({
            "number": record.id.sequence, "setAside": record.accepted_at().to_rfc3339(), "source": record.source(), "topic": record.topic(),
            "bytes": record.payload().len(), "qos": record.qos(), "retain": record.retain(), "contentType": attributes.content_type, "user": user,
        });
        match std::str::from_utf8(record.payload()) {
            Ok(text) => described["payload"] = json!(text),
            Err(_) => described["payloadBase64"] = json!(STANDARD.encode(record.payload())),
        }
        if let Some(note) = note {
            described["upstream"] = json!(note.upstream);
            described["reason"] = json!(note.reason);
            described["lane"] = json!(note.lane);
            described["recordId"] = json!(note.record_id);
            described["accepted"] = json!(Timestamp(note.accepted_at).to_rfc3339());
        }
        described
    })
}

impl Hub {
    /// Sets a record of an upstream aside. When this returns it stands durably in the quarantine, and the upstream need not keep it.
    /// A record that is gone already is no error.
    ///
    /// # Errors
    /// When it could not be read or stored: it must stay where it is.
    pub async fn set_aside(&self, peeker: &mut Peeker, lane: LaneId, sequence: u64, upstream: &str, reason: &str) -> Result<(), AcceptError> {
        let Some(quarantine) = &self.shared.quarantine else { return Ok(()) };
        let outbox = &self.shared.outbox;
        outbox.written(lane, sequence).await?;
        let run = peeker.get(sequence)?;
        let Some(record) = run.iter().next() else { return Ok(()) };
        let note = Note {
            upstream: upstream.to_owned(),
            reason: reason.to_owned(),
            lane: outbox.lane_name(lane),
            record_id: outbox.record_id_text(record.id),
            accepted_at: record.accepted_at().0,
        };
        let mut recent = quarantine.recent.lock().await;
        let recent = match &mut *recent {
            Some(recent) => recent,
            empty => empty.insert(self.recently_set_aside().await?),
        };
        if recent.contains(&note.record_id) {
            return Ok(());
        }
        let text = serde_json::to_string(&note).unwrap_or_default();
        let appended = record.with_attributes(|attributes| {
            let mut user: Vec<(&str, &str)> = attributes.user.to_vec();
            user.push((NOTE, &text));
            let record =
                NewRecord { ttl_seconds: None, destinations: &[quarantine.destination], ..again(&record, Attributes { user: &user, ..attributes }) };
            outbox.append(quarantine.lane, &[record])
        });
        if let Some(refused) = appended.refused {
            return Err(refused.into());
        }
        outbox.durable(quarantine.lane, appended.last.sequence).await?;
        remember(recent, note.record_id);
        Ok(())
    }

    async fn recently_set_aside(&self) -> Result<VecDeque<String>, OutboxError> {
        let mut recent = VecDeque::new();
        self.look_through(|record| {
            if let Some(note) = record.with_attributes(|attributes| note(&attributes)) {
                remember(&mut recent, note.record_id);
            }
            Look::On
        })
        .await?;
        Ok(recent)
    }

    /// Records that are set aside, from the one after `after` on: at most `most`, as many as a page holds; each with `number`, `upstream`,
    /// `reason`, `recordId`, `lane`, `source`, `topic`, `accepted`, `setAside`, `bytes`, and `payload` or `payloadBase64`.
    ///
    /// # Errors
    /// When the lane cannot be read.
    pub async fn quarantined(&self, after: u64, most: usize) -> Result<Vec<Value>, OutboxError> {
        let mut page = Vec::new();
        let mut bytes = 0;
        self.look_through(|record| {
            if record.id.sequence > after {
                bytes += record.payload().len();
                let full = page.len() >= most || (bytes > PAGE_BYTES && !page.is_empty());
                if full {
                    return Look::Stop;
                }
                page.push(describe(record));
            }
            Look::On
        })
        .await?;
        Ok(page)
    }

    /// Releases records that are set aside: those of these numbers, or all of them (`None`). Returns how many.
    ///
    /// # Errors
    /// When the lane cannot be read, or a record could not be stored again; those before it are released.
    pub async fn release(&self, numbers: Option<&[u64]>, how: Release) -> Result<usize, AcceptError> {
        let Some(quarantine) = &self.shared.quarantine else { return Ok(0) };
        let outbox = &self.shared.outbox;
        let mut reader = quarantine.reader.lock().await;
        // What is refused again meanwhile is not tried for ever.
        let last = outbox.last_sequence(quarantine.lane);
        let chosen = |n: u64| n <= last && numbers.is_none_or(|all| all.contains(&n));
        let mut released = 0;
        let mut run = Run::default();
        reader.rewind();
        while reader.next_run(RUN_RECORDS, RUN_BYTES, &mut run)? > 0 {
            for record in run.iter().filter(|r| chosen(r.id.sequence)) {
                match how {
                    Release::Purge => reader.reject(record.id.sequence, "purged by an operator"),
                    Release::Retry => {
                        let Some((lane, sequence)) = self.store_again(&record)? else { continue };
                        outbox.durable(lane, sequence).await?;
                        reader.acknowledge(&[record.id.sequence]);
                    }
                }
                released += 1;
            }
            // A long lane must not hold up everything else.
            tokio::task::yield_now().await;
        }
        reader.rewind();
        Ok(released)
    }

    /// Appends the record for the upstream that its note names; none when there is no note.
    fn store_again(&self, record: &Record<'_>) -> Result<Option<(LaneId, u64)>, AcceptError> {
        let outbox = &self.shared.outbox;
        record.with_attributes(|attributes| {
            let Some(note) = note(&attributes) else { return Ok(None) };
            let lane = outbox.lane(&note.lane).filter(|lane| !outbox.passes(*lane)).or_else(|| outbox.lane("default"));
            let Some(lane) = lane else { return Ok(None) };
            let destination = outbox.destination(&crate::node::upstream_destination(&note.upstream))?;
            let user: Vec<(&str, &str)> = attributes.user.iter().copied().filter(|(name, _)| *name != NOTE).collect();
            let appended =
                outbox.append(lane, &[NewRecord { destinations: &[destination], ..again(record, Attributes { user: &user, ..attributes }) }]);
            match appended.refused {
                Some(refused) => Err(refused.into()),
                None => Ok(Some((lane, appended.last.sequence))),
            }
        })
    }

    /// Shows every record that is set aside, in order.
    async fn look_through(&self, mut look: impl FnMut(&Record<'_>) -> Look) -> Result<(), OutboxError> {
        let Some(quarantine) = &self.shared.quarantine else { return Ok(()) };
        let mut reader = quarantine.reader.lock().await;
        reader.rewind();
        let mut run = Run::default();
        'all: while reader.next_run(RUN_RECORDS, RUN_BYTES, &mut run)? > 0 {
            for record in run.iter() {
                if look(&record) == Look::Stop {
                    break 'all;
                }
            }
            tokio::task::yield_now().await;
        }
        reader.rewind();
        Ok(())
    }
}

fn remember(recent: &mut VecDeque<String>, id: String) {
    recent.push_back(id);
    if recent.len() > RECENT {
        recent.pop_front();
    }
}

#[derive(PartialEq, Eq)]
enum Look {
    On,
    Stop,
}

/// The record as a new one, for nobody yet.
fn again<'a>(record: &Record<'a>, attributes: Attributes<'a>) -> NewRecord<'a> {
    NewRecord {
        source: record.source(),
        topic: record.topic(),
        payload: record.payload(),
        attributes,
        qos: record.qos(),
        retain: record.retain(),
        ttl_seconds: None,
        destinations: &[],
    }
}
