//! Passing records on without storing them: what `passthrough` lanes do instead of appending (decision record 0018).

use super::codec::{self, Accepted};
use super::lane::Lane;
use super::passing::{Flow, Passing, Ticket, Unpassed};
use super::reader::Run;
use super::{DestinationId, Durability, LaneCell, LaneId, NewRecord, Outbox, OutboxError, Reader, RecordId, Refusal};
use crate::time::{Monotonic, Timestamp};

/// Largest share of a lane's quota that one record may take.
const LARGEST_SHARE: u64 = 2;

impl Lane {
    /// A lane that stores nothing keeps what is on its way here. Sequences go on after those that were stored.
    pub(super) fn begin_passing(&mut self) {
        if self.config.durability == Durability::Passthrough {
            self.passing = Some(Box::new(Passing::new(self.next_sequence)));
        }
    }

    /// Records of a lane that stores nothing that an upstream has not acknowledged.
    pub(super) fn waits_to_pass(&self, destination: DestinationId) -> u64 {
        self.passing.as_ref().map_or(0, |p| p.waiting(destination))
    }

    fn not_passed(&self, why: Unpassed) -> OutboxError {
        OutboxError::NotPassed { lane: self.config.name.clone(), why }
    }

    /// Counts senders that were refused.
    fn count_refused(&mut self, count: u64, why: &Unpassed) {
        self.refused[Refusal::of(why) as usize] += count;
    }

    /// Takes back what its upstreams have had for too long.
    fn expire_passing(&mut self, now: Monotonic) {
        let limit = self.config.answer_within;
        let count = self.passing.as_mut().map_or(0, |p| p.expire(now, limit));
        self.count_refused(count, &Unpassed::Late(limit));
    }
}

impl Outbox {
    /// Whether the lane stores nothing.
    #[must_use]
    pub fn passes(&self, lane: LaneId) -> bool {
        self.cell(lane).lock().passing.is_some()
    }

    /// Hands a record to the upstreams that it is for, of a lane that stores nothing. All of them must have an open link.
    ///
    /// # Errors
    /// `NotPassed` when it cannot go at once, `TooLarge`.
    pub fn pass(&self, lane: LaneId, record: &NewRecord<'_>) -> Result<Ticket, OutboxError> {
        let (now, accepted_at) = (self.shared.clock.monotonic(), self.shared.clock.now());
        let cell = self.cell(lane);
        let mut state = cell.lock();
        state.expire_passing(now);
        let taken = Self::take(&mut state, record, now, accepted_at);
        let within = state.config.answer_within;
        match taken {
            Err(error) => {
                state.note_refusal(&error);
                Err(error)
            }
            Ok((sequence, answer)) => {
                drop(state);
                cell.readable.send_modify(|n| *n += 1);
                let id = RecordId { lane, epoch: self.shared.epoch, sequence };
                Ok(Ticket { id, answer, until: tokio::time::Instant::now() + within })
            }
        }
    }

    fn take(
        state: &mut Lane,
        record: &NewRecord<'_>,
        now: Monotonic,
        accepted_at: Timestamp,
    ) -> Result<(u64, tokio::sync::oneshot::Receiver<Result<(), Unpassed>>), OutboxError> {
        let quota = state.config.quota_bytes;
        let (bytes, limit) = (codec::record_bytes(record) as u64, quota / LARGEST_SHARE);
        if bytes > limit {
            return Err(OutboxError::TooLarge { bytes, limit });
        }
        let open = state.passing.as_ref().is_some_and(|p| p.is_open(record.destinations));
        if !open {
            return Err(state.not_passed(Unpassed::Link));
        }
        if record.destinations.iter().any(|d| state.queued(*d) > 0) {
            return Err(state.not_passed(Unpassed::Behind));
        }
        let accepted = Accepted { at: accepted_at, mode: state.mode };
        let frame = |sequence| {
            let mut frame = Vec::with_capacity(bytes as usize);
            codec::encode_record(&mut frame, sequence, accepted, record);
            frame
        };
        let added = state.passing.as_mut().map(|p| p.add(record.destinations, record.payload.len(), quota, now, frame));
        match added {
            Some(Ok(added)) => Ok(added),
            Some(Err(why)) => Err(state.not_passed(why)),
            None => Err(state.not_passed(Unpassed::Link)),
        }
    }

    /// Takes a record back whose sender is refused for another reason.
    pub fn take_back(&self, ticket: &Ticket) {
        if let Some(passing) = &mut self.cell(ticket.lane()).lock().passing {
            passing.withdraw(ticket.id.sequence, Unpassed::Broken);
        }
    }

    /// Resolves when all upstreams of the record have acknowledged it. Dropping it leaves the record on its way.
    ///
    /// # Errors
    /// `NotPassed`: why they have not.
    pub async fn passed(&self, mut ticket: Ticket) -> Result<(), OutboxError> {
        let lane = ticket.lane();
        let answered = match tokio::time::timeout_at(ticket.until, &mut ticket.answer).await {
            Ok(answered) => answered.ok(),
            Err(_) => {
                let mut state = self.cell(lane).lock();
                let why = Unpassed::Late(state.config.answer_within);
                if state.passing.as_mut().is_some_and(|p| p.withdraw(ticket.id.sequence, why.clone())) {
                    state.count_refused(1, &why);
                    Some(Err(why))
                } else {
                    // It was answered in this moment.
                    ticket.answer.try_recv().ok()
                }
            }
        };
        let why = match answered {
            Some(Ok(())) => return Ok(()),
            Some(Err(why)) => why,
            None => Unpassed::Broken,
        };
        let name = self.lane_name(lane);
        Err(OutboxError::NotPassed { lane: name, why })
    }
}

impl LaneCell {
    fn flow(&self, destination: DestinationId, flow: &Flow) {
        let mut lane = self.lock();
        let refused = lane.passing.as_mut().map_or(0, |p| p.flow(destination, flow));
        if let Flow::Closing(why) | Flow::Shut(why) = flow {
            lane.count_refused(refused, why);
        }
    }
}

impl Reader {
    /// Whether the lane stores nothing.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.passes
    }

    /// How the destination takes records of a lane that stores nothing; of other lanes nothing changes.
    pub fn flow(&mut self, flow: &Flow) {
        let open = *flow == Flow::Open;
        if !self.passes || (open && self.flows) {
            return;
        }
        self.flows = open;
        self.cell().flow(self.destination, flow);
    }

    /// Reads what is on its way to the destination and has not been handed out.
    pub(super) fn next_passing(&mut self, max_records: usize, max_bytes: usize, run: &mut Run) -> usize {
        let now = self.shared.clock.monotonic();
        let shared = self.shared.clone();
        let mut lane = shared.lanes[usize::from(self.lane.0)].lock();
        lane.expire_passing(now);
        if let Some(passing) = &mut lane.passing {
            run.take_frames(shared.epoch, |take| {
                let (mut records, mut bytes) = (0, 0);
                passing.read(self.destination, |frame| {
                    let wanted = records < max_records && (records == 0 || bytes + frame.len() <= max_bytes);
                    if wanted {
                        records += 1;
                        bytes += frame.len();
                        take(frame);
                    }
                    wanted
                });
            });
        }
        run.len()
    }

    /// These records are with the destination; those of them that are with all others as well are accepted and delivered now.
    pub(super) fn passed(&self, sequences: &[u64]) {
        let mut lane = self.lock();
        let lane = &mut *lane;
        let Some(passing) = &mut lane.passing else { return };
        for sequence in sequences {
            let Some(passed) = passing.acknowledge(self.destination, *sequence) else { continue };
            for d in &passed.destinations {
                lane.places.entry(*d).or_default().passed += 1;
            }
            lane.accepted_bytes += passed.payload_bytes as u64;
            passed.tell();
        }
    }

    /// The destination refuses this record for good: so is its sender refused.
    pub(super) fn refuse_passing(&self, sequence: u64, reason: &str) {
        let mut lane = self.lock();
        let why = Unpassed::Refused(reason.to_owned());
        if lane.passing.as_mut().is_some_and(|p| p.withdraw(sequence, why.clone())) {
            lane.count_refused(1, &why);
        }
    }
}

impl Drop for Reader {
    /// A destination that nobody reads for has no link.
    fn drop(&mut self) {
        if self.flows {
            self.cell().flow(self.destination, &Flow::Shut(Unpassed::Broken));
        }
    }
}
