//! What a `memory` lane keeps out of the files: its records wait in memory for their destinations, and are written only when that
//! takes too long or too much room (decision record 0011). Pure bookkeeping, no IO.

use std::collections::VecDeque;
use std::time::Duration;

use super::lane::Chunk;
use crate::time::Timestamp;

/// Bytes that wait in memory at most, per lane; past it the oldest are written. An eighth of the quota if that is less.
pub(crate) const HOLD_BYTES: u64 = 1 << 20;
/// Records are held, dropped and written in pieces of about this size ...
pub(crate) const PIECE_BYTES: usize = 64 << 10;
/// ... or of this part of the time that they may wait.
const PIECES: u32 = 4;

/// Records that wait in memory, oldest first.
#[derive(Default)]
pub(crate) struct Hold {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    /// Everything up to this sequence is to be written now.
    spill_upto: u64,
    /// Bytes of records that were written because they waited for too long or too many waited.
    pub spilled: u64,
    /// Bytes of records that all who wanted them had before they were written.
    pub spared: u64,
}

/// How old a piece gets before the next one begins.
pub(crate) fn piece_age(spill_after: Duration) -> Duration {
    spill_after / PIECES
}

impl Hold {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub fn front(&self) -> Option<&Chunk> {
        self.chunks.front()
    }

    pub fn push(&mut self, chunk: Chunk) {
        self.bytes += chunk.bytes.len();
        self.chunks.push_back(chunk);
    }

    /// The piece that was taken last could not be written.
    pub fn push_front(&mut self, chunk: Chunk) {
        self.bytes += chunk.bytes.len();
        self.spilled = self.spilled.saturating_sub(chunk.bytes.len() as u64);
        self.chunks.push_front(chunk);
    }

    /// The piece in which the record of this sequence, or the first after it, stands.
    pub fn at(&self, sequence: u64) -> Option<&Chunk> {
        self.chunks.get(self.chunks.partition_point(|c| c.end <= sequence))
    }

    /// Asks for everything up to this sequence to be written.
    pub fn spill(&mut self, upto: u64) {
        self.spill_upto = self.spill_upto.max(upto);
    }

    pub fn must_write(&self, sequence: u64) -> bool {
        sequence <= self.spill_upto
    }

    fn pop(&mut self) -> Option<Chunk> {
        let chunk = self.chunks.pop_front()?;
        self.bytes -= chunk.bytes.len();
        Some(chunk)
    }

    /// The oldest piece, which nobody needs any more.
    pub fn pop_spared(&mut self) -> Option<Chunk> {
        let chunk = self.pop()?;
        self.spared += chunk.bytes.len() as u64;
        Some(chunk)
    }

    /// The oldest piece if it has to be written: `all` of them, those that have waited for `spill_after`, and those beyond `most` bytes.
    pub fn pop_due(&mut self, now: Timestamp, spill_after: Duration, most: u64, all: bool) -> Option<Chunk> {
        let oldest = self.chunks.front()?;
        let due = all || self.must_write(oldest.first) || now.since(oldest.since) >= spill_after || self.bytes as u64 > most;
        if !due {
            return None;
        }
        let chunk = self.pop()?;
        self.spilled += chunk.bytes.len() as u64;
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(first: u64, end: u64, bytes: usize, since: u64) -> Chunk {
        Chunk { bytes: vec![0; bytes], first, end, since: Timestamp(since), accepted_before: Default::default(), accepted_after: Default::default() }
    }

    #[test]
    fn age_room_and_request_write_the_oldest_and_no_other() {
        let after = Duration::from_secs(2);
        let mut hold = Hold::default();
        for n in 0..4 {
            hold.push(chunk(1 + 10 * n, 11 + 10 * n, 100, 1_000 * n));
        }
        assert_eq!(hold.at(11).map(|c| c.first), Some(11));
        assert!(hold.at(41).is_none());
        assert!(hold.pop_due(Timestamp(1_999), after, 400, false).is_none());
        assert_eq!(hold.pop_due(Timestamp(2_000), after, 400, false).map(|c| c.first), Some(1));
        assert!(hold.pop_due(Timestamp(2_000), after, 300, false).is_none());
        assert_eq!(hold.pop_due(Timestamp(2_000), after, 299, false).map(|c| c.first), Some(11));
        hold.spill(25);
        assert_eq!(hold.pop_due(Timestamp(2_000), after, 400, false).map(|c| c.first), Some(21));
        assert!(hold.pop_due(Timestamp(2_000), after, 400, false).is_none());
        assert_eq!(hold.pop_spared().map(|c| c.first), Some(31));
        assert_eq!((hold.bytes(), hold.spilled, hold.spared), (0, 300, 100));
    }
}
