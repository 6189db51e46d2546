//! Reading single records again, whoever they are for: what a peer refuses is set aside with its payload, and that is rare.

use std::sync::Arc;

use super::codec::{self, Broken};
use super::reader::{Run, SegmentKey};
use super::{LaneId, OutboxError, Shared, writer};

/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// Reads single records of one lane by their sequence. Going forwards is cheap: it remembers where it was.
pub struct Peeker {
    shared: Arc<Shared>,
    lane: LaneId,
    /// Segment, and the offset of the record with this sequence or a later one.
    place: Option<(SegmentKey, u64, u64)>,
}

impl std::fmt::Debug for Peeker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peeker").field("lane", &self.lane).finish_non_exhaustive()
    }
}

impl Peeker {
    pub(super) fn new(shared: Arc<Shared>, lane: LaneId) -> Self {
        Self { shared, lane, place: None }
    }

    /// A run of this one record; empty when it is not there any more. It must have been written
    /// ([`Outbox::written`](super::Outbox::written)).
    ///
    /// # Errors
    /// `Directory` when its segment cannot be read.
    pub fn get(&mut self, sequence: u64) -> Result<Run, OutboxError> {
        let mut run = Run { lane: Some(self.lane), ..Run::default() };
        let (file, key, mut offset, data_end, largest, path) = {
            let lane = self.shared.lanes[usize::from(self.lane.0)].lock();
            let at = lane.segments.partition_point(|s| s.base <= sequence);
            let Some(segment) = at.checked_sub(1).and_then(|at| lane.segments.get(at)) else { return Ok(run) };
            let key = (segment.base, segment.epoch, segment.attempt);
            run.epochs = segment.epochs.clone();
            run.cover = segment.cover.clone();
            let offset = match self.place {
                Some((place, offset, from)) if place == key && from <= sequence => offset,
                _ => segment.data_start,
            };
            let largest = writer::segment_bytes(&self.shared.config, &lane.config) as usize;
            (segment.file.clone(), key, offset, segment.data_end, largest, segment.path.clone())
        };
        let mut want = CHUNK;
        while offset < data_end {
            let length = want.min((data_end - offset) as usize);
            run.buffer.resize(length, 0);
            let filled = file.read_at(offset, &mut run.buffer).map_err(|e| OutboxError::Directory {
                what: "cannot read",
                path: path.clone(),
                detail: e.to_string(),
            })?;
            let mut at = 0;
            loop {
                match codec::decode_record(&run.buffer[at..filled], largest) {
                    Ok((record, length)) if record.sequence == sequence => {
                        self.place = Some((key, offset + at as u64, sequence));
                        let sealed = record.sealed || !run.cover.is_plain();
                        let opened = if sealed { run.cover.open(&mut run.buffer[at..at + length]) } else { Ok(length) };
                        // One that does not open is not there.
                        if let Ok(length) = opened {
                            run.bodies.push(((at + codec::FRAME_BYTES) as u32, (at + length) as u32));
                        }
                        return Ok(run);
                    }
                    Ok((record, length)) if record.sequence < sequence => at += length,
                    Err(Broken::Incomplete(n)) if at > 0 || n > length && n as u64 <= data_end - offset => {
                        want = n.max(CHUNK);
                        break;
                    }
                    // Past it, or damaged: it is not there.
                    _ => return Ok(run),
                }
            }
            offset += at as u64;
        }
        Ok(run)
    }
}
