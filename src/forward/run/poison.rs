//! Records that the peer refuses for good, or that break the link: they are set aside, and the others go on.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::feed::Origin;
use super::Forwarder;
use crate::component::{LinkCause, LinkFailure};
use crate::escape::{LinkEvent, LinkState};
use crate::outbox::LaneId;
use crate::time::Monotonic;

/// Reasons of refusals that have been logged; past it refusals are counted only.
const REFUSED_REASONS: usize = 256;
/// Pause after a refused record could not be set aside.
const SET_ASIDE_RETRY: Duration = Duration::from_secs(1);
/// A record on which alone the link broke this many times in a row is suspected of breaking it.
pub(super) const SUSPECT_AFTER: u32 = 5;
/// A record that the peer refuses for good.
#[derive(Debug)]
pub(super) struct Refusal {
    pub origin: Origin,
    pub sequence: u64,
    pub reason: String,
    /// Of a set: nobody takes it, so it is set aside.
    pub unwanted: bool,
}

impl Refusal {
    pub(super) fn new(origin: Origin, sequence: u64, reason: String) -> Self {
        Self { origin, sequence, reason, unwanted: false }
    }
}

/// A record that may be what breaks the link.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suspect {
    pub origin: Origin,
    pub sequence: u64,
    pub breaks: u32,
    /// It was left out on this connection, to see whether the next record goes through.
    pub left_out: bool,
}

impl Forwarder {
    /// Puts what was refused into the quarantine; of a set, what none of its members takes. What cannot be put there stays where it is: it
    /// is tried again, here and, after a restart or a reconnect, at the peer.
    pub(super) async fn set_aside(&mut self, now: Monotonic) {
        if self.set_aside_at.is_some_and(|at| at > now) {
            return;
        }
        self.set_aside_at = None;
        let asked = std::mem::take(&mut self.refusals);
        for refusal in asked {
            self.judge_refusal(refusal, now).await;
        }
        while self.set_aside_at.is_none() {
            let unwanted = self.feed.unwanted();
            if unwanted.is_empty() {
                break;
            }
            for (origin, sequence, reason) in unwanted {
                self.judge_refusal(Refusal { origin, sequence, reason, unwanted: true }, now).await;
            }
        }
    }

    async fn judge_refusal(&mut self, refusal: Refusal, now: Monotonic) {
        let Refusal { origin, sequence, ref reason, unwanted } = refusal;
        let lane = origin.lane;
        if self.feed.passes(origin) {
            // Nothing was accepted, so nothing is set aside: its sender is refused.
            self.feed.reject(origin, sequence, reason);
            self.step(LinkEvent::Refused, "");
            self.count_refusal(lane, sequence, reason, "record of a lane that stores nothing refused for good; its sender is told");
            return;
        }
        if Some(lane) == self.notices {
            if unwanted || self.feed.refuse(origin, sequence, reason) {
                self.feed.reject(origin, sequence, reason);
            }
            if !unwanted {
                // Some brokers close the connection on each record that they do not allow: one is enough.
                self.notices_refused = true;
                self.status.refuse_notices();
                tracing::warn!(
                    upstream = %self.name, error = %reason,
                    "the upstream does not take this node's notices; it gets no more of them: allow their topic, or set notices.topic of the EscapePolicy"
                );
            }
            return;
        }
        if !unwanted && !self.feed.refuse(origin, sequence, reason) {
            self.count_refusal(lane, sequence, reason, "record refused for good; the other upstreams of its set are asked");
            self.step(LinkEvent::Refused, "");
            return;
        }
        if self.set_aside_at.is_some() {
            self.refusals.push(refusal);
            return;
        }
        let at = match self.peekers.iter().position(|(l, _)| *l == lane) {
            Some(at) => at,
            None => {
                self.peekers.push((lane, self.hub.outbox().peeker(lane)));
                self.peekers.len() - 1
            }
        };
        if let Err(error) = self.hub.set_aside(&mut self.peekers[at].1, lane, sequence, self.feed.owner(origin.source), reason).await {
            tracing::error!(upstream = %self.name, outbox.seq = sequence, %error, "a refused record cannot be set aside; trying again");
            self.set_aside_at = Some(now.plus(SET_ASIDE_RETRY));
            self.refusals.push(refusal);
            return;
        }
        self.feed.reject(origin, sequence, reason);
        let what = "record refused for good and set aside (`selvedge queue show`)";
        if unwanted {
            // Those who refused it have counted it.
            self.tell_refusal(lane, sequence, reason, what);
        } else {
            self.count_refusal(lane, sequence, reason, what);
            self.step(LinkEvent::Refused, "");
        }
    }

    fn count_refusal(&mut self, lane: LaneId, sequence: u64, reason: &str, what: &str) {
        self.metrics.refused.inc();
        self.status.counts.refused.fetch_add(1, Ordering::Relaxed);
        self.tell_refusal(lane, sequence, reason, what);
    }

    fn tell_refusal(&mut self, lane: LaneId, sequence: u64, reason: &str, what: &str) {
        if self.refused_reasons.len() < REFUSED_REASONS && self.refused_reasons.insert(reason.to_owned()) {
            let lane = self.hub.outbox().lane_name(lane);
            tracing::error!(
                upstream = %self.name, lane, outbox.seq = sequence, error = %reason, "{what}; further ones with this reason are counted only"
            );
        }
    }

    /// A record that was alone on the link when the peer closed it may be the reason. It is not judged before the record after it went
    /// through where it did not: a peer that closes on everything condemns nobody.
    pub(super) fn note_suspect(&mut self, failure: &LinkFailure) {
        let alone = self.window.only().filter(|_| self.link.state() == LinkState::Probing);
        self.suspect = match (self.suspect, alone, failure.cause) {
            (Some(suspect), Some(publish), LinkCause::PeerError | LinkCause::Tcp) => {
                let same = (suspect.origin, suspect.sequence) == (publish.origin, publish.sequence);
                let breaks = if same { suspect.breaks + 1 } else { 1 };
                Some(Suspect { origin: publish.origin, sequence: publish.sequence, breaks, left_out: false })
            }
            (None, Some(publish), LinkCause::PeerError | LinkCause::Tcp) => {
                Some(Suspect { origin: publish.origin, sequence: publish.sequence, breaks: 1, left_out: false })
            }
            (suspect, None, _) => suspect.map(|s| Suspect { left_out: false, ..s }),
            (_, Some(_), _) => None,
        };
    }

    /// Something went through. A suspect that was left out meanwhile is what broke the link; any other is none.
    pub(super) fn judge_suspect(&mut self) {
        if let Some(Suspect { origin, sequence, left_out: true, .. }) = self.suspect.take() {
            let reason = format!("the link broke {SUSPECT_AFTER} times on it, and not on the record after it");
            self.refusals.push(Refusal::new(origin, sequence, reason));
        }
    }
}
