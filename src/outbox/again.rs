//! Records that were read once and are offered to somebody else as well: copied from run to run for as long as they are out.

use super::codec;
use super::cursor::End;
use super::loss::Loss;
use super::reader::{Reader, Run};

impl Run {
    /// Becomes a copy of the records of another run that stand at these places in it, which grow; nothing else of it is kept.
    pub fn copy(&mut self, from: &Self, places: impl IntoIterator<Item = usize>) {
        self.clear();
        self.buffer.clear();
        (self.lane, self.epochs, self.unopened) = (from.lane, from.epochs.clone(), None);
        for (start, end) in places.into_iter().filter_map(|at| from.bodies.get(at)) {
            let at = self.buffer.len() as u32;
            self.buffer.extend_from_slice(&from.buffer[*start as usize..*end as usize]);
            self.bodies.push((at, at + (end - start)));
        }
    }

    /// Bytes of the record at this place, overhead included; 0 when there is none.
    #[must_use]
    pub fn bytes_of(&self, place: usize) -> usize {
        self.bodies.get(place).map_or(0, |(start, end)| (end - start) as usize)
    }
}

impl Reader {
    /// Leaves those of these places in a run whose records are out: handed out by this reader, not finished, and not given up with their
    /// segment. Those whose life has ended meanwhile are counted as expired.
    pub fn retain_out(&self, run: &Run, places: &mut Vec<usize>) {
        let now = self.shared.clock.now();
        let mut lane = self.lock();
        let ttl = lane.config.ttl;
        let Some(place) = lane.places.get_mut(&self.destination) else { return places.clear() };
        let mut expired = None::<Loss>;
        places.retain(|at| {
            let body = run.bodies.get(*at).map(|(start, end)| &run.buffer[*start as usize..*end as usize]);
            let Some(record) = body.and_then(|body| codec::decode_body(body).ok()) else { return false };
            if !place.cursor.is_out(record.sequence) {
                return false;
            }
            if !record.is_over(now, ttl) {
                return true;
            }
            place.cursor.finish(record.sequence, End::Expired);
            let one = Loss::one(record.sequence, record.accepted.at);
            expired = Some(expired.map_or(one, |mut all| {
                all.merge(one);
                all
            }));
            false
        });
        lane.note_expired(self.destination, expired);
    }

    /// Whether the record was handed out by this reader and has not ended in any way.
    #[must_use]
    pub fn is_out(&self, sequence: u64) -> bool {
        self.lock().places.get(&self.destination).is_some_and(|p| p.cursor.is_out(sequence))
    }
}
