//! What is finished, and what is read, out of order: pieces of segments that are read forward each on its own while a destination's
//! position stays where it was (decision record 0012). Pure bookkeeping, no IO.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Pieces that one destination may have in one lane. At the bound nothing more is read ahead: what was left out is read first.
pub(crate) const MAX_PIECES: usize = 1024;
/// Of these, kept for what is left out: first for its newest, then for what stands at the position, which makes room.
const FOR_BACKLOG: usize = 8;
const FOR_POSITION: usize = 4;

/// A stretch of sequences in one segment. All of the destination's records from its start up to [`low`](Self::low) are finished.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Piece {
    /// Next sequence to look at when reading on.
    next: u64,
    /// Not read beyond this.
    end: u64,
    /// Records before `low` that are known to be finished by this alone.
    finished: u64,
    /// Handed out and at or after `low`, with "is finished".
    window: VecDeque<(u64, bool)>,
}

impl Piece {
    fn low(&self) -> u64 {
        self.window.front().map_or(self.next, |(s, _)| *s)
    }

    fn is_read(&self) -> bool {
        self.next >= self.end
    }

    fn is_done(&self) -> bool {
        self.is_read() && self.window.is_empty()
    }

    fn slide(&mut self) {
        while self.window.front().is_some_and(|(_, done)| *done) {
            self.window.pop_front();
            self.finished += 1;
        }
    }

    fn done_in_window(&self) -> u64 {
        self.window.iter().filter(|(_, done)| *done).count() as u64
    }
}

/// The pieces of one destination in one lane; none while it is read in order. No two overlap, and none lies in two segments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sides {
    /// By first sequence.
    pieces: BTreeMap<u64, Piece>,
    /// The piece that is read as records come.
    live: Option<u64>,
    /// The piece of the backlog that is being read.
    backlog: Option<u64>,
    /// A piece was done with since this was asked for last.
    changed: bool,
}

impl Sides {
    /// What an earlier run had finished: first sequence, one past the last, and how many records.
    pub fn restore(runs: impl IntoIterator<Item = (u64, u64, u64)>) -> Self {
        let piece = |(start, end, finished)| (start, Piece { next: end, end, finished, window: VecDeque::new() });
        let pieces = runs.into_iter().filter(|(start, end, _)| start < end).map(piece).collect();
        Self { pieces, changed: true, ..Self::default() }
    }

    /// For the cursor file, as [`restore`](Self::restore) takes it.
    pub fn runs(&self) -> Vec<(u64, u64, u64)> {
        self.pieces.iter().filter(|(start, p)| p.low() > **start).map(|(start, p)| (*start, p.low(), p.finished)).collect()
    }

    /// Records that were finished and stand behind one that is not.
    pub fn singles(&self) -> impl Iterator<Item = u64> + '_ {
        self.pieces.values().flat_map(|p| p.window.iter()).filter(|(_, done)| *done).map(|(s, _)| *s)
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether there is room for a piece that is read as records come; `again`: after there was none.
    pub fn has_room_for_live(&self, again: bool) -> bool {
        self.pieces.len() < if again { MAX_PIECES - MAX_PIECES / 4 } else { MAX_PIECES - FOR_BACKLOG }
    }

    /// Whether there is room to read the newest of what is left out.
    pub fn has_room_for_newest(&self) -> bool {
        self.pieces.len() < MAX_PIECES - FOR_POSITION
    }

    /// Whether there is room for anything but what stands at the position.
    pub fn has_room(&self) -> bool {
        self.pieces.len() + 1 < MAX_PIECES
    }

    pub fn live(&self) -> Option<u64> {
        self.live
    }

    pub fn backlog(&self) -> Option<u64> {
        self.backlog
    }

    /// Where a piece is read on, and up to where.
    pub fn span(&self, key: u64) -> Option<(u64, u64)> {
        self.pieces.get(&key).map(|p| (p.next, p.end))
    }

    /// Finished in this range of whole segments.
    pub fn finished_in(&self, base: u64, end: u64) -> u64 {
        self.pieces.range(base..end).map(|(_, p)| p.finished + p.done_in_window()).sum()
    }

    /// Whether a piece begins in this range of whole segments, and thus lies in it.
    pub fn touches(&self, base: u64, end: u64) -> bool {
        self.pieces.range(base..end).next().is_some()
    }

    /// Whether what stands on both sides of this sequence is finished and known by one number: no segment that begins there is needed.
    pub fn crosses(&self, sequence: u64) -> bool {
        self.pieces.range(..sequence).next_back().is_some_and(|(_, p)| p.low() > sequence)
    }

    /// Segments have changed around the pieces.
    pub fn touch(&mut self) {
        self.changed = true;
    }

    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// A piece that begins here and is read as records come.
    pub fn open_live(&mut self, start: u64) {
        self.pieces.insert(start, Piece { next: start, end: u64::MAX, ..Piece::default() });
        self.live = Some(start);
    }

    /// The live piece ends where it has been read to: what comes next is backlog, or the next live piece.
    pub fn close_live(&mut self) {
        let Some(key) = self.live.take() else { return };
        let Some(piece) = self.pieces.get_mut(&key) else { return };
        piece.end = piece.next;
        if piece.next == key {
            self.pieces.remove(&key);
        }
        self.changed = true;
    }

    /// What was handed out in order becomes a piece that is read: from `low` to `end`, which lie in one segment.
    pub fn park(&mut self, low: u64, end: u64, window: VecDeque<(u64, bool)>) {
        if low < end {
            let mut piece = Piece { next: end, end, finished: 0, window };
            piece.slide();
            self.pieces.insert(low, piece);
            self.changed = true;
        }
    }

    /// Stretches that no piece covers, from the position `low` up to `upto`, in order.
    pub fn gaps(&self, low: u64, upto: u64) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        let ends = std::iter::once(low).chain(self.pieces.values().map(|p| p.end));
        let starts = self.pieces.keys().copied().chain(std::iter::once(upto));
        let pairs: Vec<(u64, u64)> = ends.zip(starts).filter(|(from, to)| from < to).collect();
        pairs.into_iter()
    }

    /// The stretch from `start` to `end`, part of a gap, is read next; `begins`: a segment begins there, or something is left out before it.
    pub fn open_backlog(&mut self, start: u64, end: u64, begins: bool) {
        // It goes on with what has been finished before it in the same segment.
        let before = self.pieces.range(..start).next_back().filter(|(_, p)| !begins && p.end == start && p.is_done()).map(|(key, _)| *key);
        let key = before.unwrap_or(start);
        let piece = self.pieces.entry(key).or_insert_with(|| Piece { next: start, ..Piece::default() });
        piece.end = end;
        self.backlog = Some(key);
    }

    pub fn close_backlog(&mut self) {
        self.backlog = None;
    }

    /// Nothing of the piece stands before this sequence any more.
    pub fn set_next(&mut self, key: u64, next: u64) {
        if let Some(piece) = self.pieces.get_mut(&key) {
            piece.next = piece.next.max(next);
            self.changed |= piece.is_done();
        }
    }

    /// A reader met this record in a piece; `done`: it was finished before.
    pub fn hand_out(&mut self, key: u64, sequence: u64, done: bool) {
        if let Some(piece) = self.pieces.get_mut(&key) {
            piece.next = sequence + 1;
            piece.window.push_back((sequence, done));
            piece.slide();
            self.changed |= piece.is_done();
        }
    }

    /// Whether this record was handed out and has not ended.
    pub fn is_out(&self, sequence: u64) -> bool {
        let Some((_, piece)) = self.pieces.range(..=sequence).next_back() else { return false };
        piece.window.binary_search_by_key(&sequence, |(s, _)| *s).is_ok_and(|at| !piece.window[at].1)
    }

    /// A record that was handed out ended; false when it was not out.
    pub fn finish(&mut self, sequence: u64) -> bool {
        let Some((_, piece)) = self.pieces.range_mut(..=sequence).next_back() else { return false };
        let Ok(at) = piece.window.binary_search_by_key(&sequence, |(s, _)| *s) else { return false };
        if std::mem::replace(&mut piece.window[at].1, true) {
            return false;
        }
        piece.slide();
        self.changed |= piece.is_done();
        true
    }

    /// Hands out again what was not finished, as gaps; what was finished behind it goes to `ahead`.
    pub fn rewind(&mut self, ahead: &mut BTreeSet<u64>) {
        ahead.extend(self.singles());
        for piece in self.pieces.values_mut() {
            piece.next = piece.low();
            piece.end = piece.next;
            piece.window.clear();
        }
        self.pieces.retain(|start, p| p.end > *start);
        (self.live, self.backlog, self.changed) = (None, None, true);
    }

    /// Everything before `end`, a segment's boundary, is gone.
    pub fn drop_before(&mut self, end: u64) {
        self.pieces = self.pieces.split_off(&end);
        self.live = self.live.filter(|key| *key >= end);
        self.backlog = self.backlog.filter(|key| *key >= end);
        self.changed = true;
    }

    /// Pieces that are done with and meet become one, unless a segment begins between them.
    pub fn merge(&mut self, begins: impl Fn(u64) -> bool) {
        let mut next = self.pieces.first_key_value().map(|(key, _)| *key);
        while let Some(key) = next {
            let end = self.pieces[&key].end;
            next = self.pieces.range(key + 1..).next().map(|(key, _)| *key);
            let (Some(follows), true) = (next.filter(|n| *n == end && !begins(*n)), self.pieces[&key].is_done()) else { continue };
            let (Some(first), Some(mut second)) = (self.pieces.remove(&key), self.pieces.remove(&follows)) else { continue };
            second.finished += first.finished;
            self.pieces.insert(key, second);
            for reading in [&mut self.live, &mut self.backlog] {
                *reading = reading.map(|k| if k == follows || k == key { key } else { k });
            }
            // A piece of the backlog that was done with is no longer the one that is read.
            self.backlog = self.backlog.filter(|k| self.live != Some(*k));
            next = Some(key);
        }
    }

    /// Pieces that are done with, as first sequence and end.
    pub fn done(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.pieces.iter().filter(|(_, p)| p.is_done()).map(|(start, p)| (*start, p.end))
    }

    /// So many more records of a piece ended without having been handed out.
    pub fn finish_in(&mut self, key: u64, count: u64) {
        if let Some(piece) = self.pieces.get_mut(&key) {
            piece.finished += count;
        }
    }

    /// Takes out what is done with from the position on; gives the new position.
    pub fn absorb(&mut self, mut low: u64) -> u64 {
        while let Some(first) = self.pieces.first_entry().filter(|e| *e.key() <= low && e.get().is_done()) {
            let (key, piece) = first.remove_entry();
            low = low.max(piece.end);
            self.live = self.live.filter(|k| *k != key);
            self.backlog = self.backlog.filter(|k| *k != key);
        }
        low
    }

    /// When nothing is left out any more: where reading goes on in order, and what is out.
    pub fn join(&mut self, low: u64) -> Option<(u64, VecDeque<(u64, bool)>)> {
        let live = self.live.filter(|key| *key == low && self.pieces.len() == 1)?;
        let piece = self.pieces.remove(&live)?;
        (self.live, self.backlog) = (None, None);
        Some((piece.next, piece.window))
    }

    /// What was finished in this run of sequences cannot be told apart by `at`, where the file ends: all of it counts as having stood
    /// behind it.
    pub fn move_behind(&mut self, at: u64) {
        let Some((&key, _)) = self.pieces.range(..at).next_back().filter(|(_, p)| p.end > at) else { return };
        if let Some(piece) = self.pieces.remove(&key) {
            self.pieces.insert(at, piece);
        }
    }
}
