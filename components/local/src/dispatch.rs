//! Which message of a subscription is handled when: state and events in, decisions out.
//!
//! Messages of one topic go one by one, in order; topics go side by side. A topic whose handler fails waits and tries again,
//! and meanwhile keeps only its first message in memory: the rest is passed over and read again once the topic moves, so that
//! a topic that is stuck takes no room from the others.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use selvedge::component::Delivery;
use selvedge::outbox::LaneId;
use selvedge::time::{Monotonic, Timestamp};

/// Messages that are held in memory for one subscription.
const HELD_MESSAGES: usize = 512;
/// Bytes of payload that are held for one subscription (one larger message is held when it is alone).
const HELD_BYTES: usize = 4 << 20;
/// Messages that may be read beyond the oldest one that is not done. The outbox notes each of them, so this bounds its notes;
/// when it is reached, nothing more is read until the oldest is done.
const READ_AHEAD: u64 = 8_192;

/// Where a message came from, unique within its subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// A record of the outbox.
    Stored(LaneId, u64),
    /// A retained message, given when the subscription was made; nobody waits for its acknowledgement.
    Retained(u64),
}

/// What became of a message that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// It is held until it is done.
    Taken,
    /// It is held already.
    Known,
    /// It was done before it was read again: acknowledge it now.
    Done,
    /// Its topic is stuck; it will be read again.
    PassedOver,
}

/// A message to hand to the handler.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub origin: Origin,
    pub delivery: Delivery,
    /// From 1.
    pub attempt: u32,
}

#[derive(Debug)]
struct Held {
    origin: Origin,
    delivery: Delivery,
    expires: Option<Timestamp>,
    /// Number of the read that brought it, or zero when it has not been read again since the last rewind.
    read: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its first message may start.
    Ready,
    /// Its first message is with the handler.
    Running,
    /// Its first message failed and waits for its time.
    Waiting,
}

#[derive(Debug)]
struct Topic {
    queue: VecDeque<Held>,
    state: State,
    /// How often its first message has failed; a topic with failures is stuck.
    failures: u32,
    /// Messages were passed over.
    passed_over: bool,
}

/// Pauses between attempts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    pub first: Duration,
    pub max: Duration,
}

impl Backoff {
    fn after(&self, failures: u32) -> Duration {
        self.first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(self.max)
    }
}

#[derive(Debug)]
pub(crate) struct Dispatcher {
    topics: HashMap<String, Topic>,
    /// Topics whose first message may start, in the order in which they came to be so.
    ready: VecDeque<String>,
    /// Topics that wait, by the time at which they are due.
    waiting: BTreeSet<(Monotonic, String)>,
    known: HashSet<Origin>,
    /// Done while the reader had gone back and not yet come to them again.
    done_early: HashSet<Origin>,
    bytes: usize,
    running: usize,
    reads: u64,
    /// Messages of stuck topics were passed over, and their topic moves again.
    rewind: bool,
    concurrency: usize,
    backoff: Backoff,
}

impl Dispatcher {
    pub fn new(concurrency: usize, backoff: Backoff) -> Self {
        Self {
            topics: HashMap::new(),
            ready: VecDeque::new(),
            waiting: BTreeSet::new(),
            known: HashSet::new(),
            done_early: HashSet::new(),
            bytes: 0,
            running: 0,
            reads: 0,
            rewind: false,
            concurrency,
            backoff,
        }
    }

    /// Whether there is room to read on.
    pub fn wants_more(&self) -> bool {
        !self.rewind && self.known.len() < HELD_MESSAGES && self.bytes < HELD_BYTES && self.read_ahead() < READ_AHEAD
    }

    fn read_ahead(&self) -> u64 {
        let oldest = self.topics.values().filter_map(|t| t.queue.front()).map(|held| held.read).min();
        oldest.map_or(0, |read| self.reads.saturating_sub(read))
    }

    /// Whether the reader has to go back to the oldest message that is not done. Asked once per round; the caller then does.
    pub fn take_rewind(&mut self) -> bool {
        if !std::mem::take(&mut self.rewind) {
            return false;
        }
        self.reads = 0;
        self.topics.retain(|_, topic| {
            topic.queue.iter_mut().for_each(|held| held.read = 0);
            // Stuck ones go on passing over; the others get what they missed.
            topic.passed_over &= topic.failures > 0;
            !topic.queue.is_empty() || topic.passed_over
        });
        true
    }

    /// A message was read.
    pub fn offer(&mut self, origin: Origin, delivery: Delivery, expires: Option<Timestamp>) -> Offer {
        self.reads += 1;
        if self.done_early.remove(&origin) {
            return Offer::Done;
        }
        if self.known.contains(&origin) {
            let again = self.topics.get_mut(&delivery.topic).and_then(|t| t.queue.iter_mut().find(|held| held.origin == origin));
            if let Some(held) = again {
                held.read = self.reads;
            }
            return Offer::Known;
        }
        let name = delivery.topic.clone();
        let topic =
            self.topics.entry(name.clone()).or_insert_with(|| Topic { queue: VecDeque::new(), state: State::Ready, failures: 0, passed_over: false });
        if topic.passed_over || topic.failures > 0 {
            topic.passed_over = true;
            return Offer::PassedOver;
        }
        self.bytes += delivery.data.len();
        self.known.insert(origin);
        topic.queue.push_back(Held { origin, delivery, expires, read: self.reads });
        if topic.queue.len() == 1 && topic.state == State::Ready {
            self.ready.push_back(name);
        }
        Offer::Taken
    }

    /// The next message to hand out, while there are fewer at the handler than may be.
    pub fn start(&mut self, now: Monotonic, wall: Timestamp) -> Option<Job> {
        while self.waiting.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, name)) = self.waiting.pop_first() else { break };
            if let Some(topic) = self.topics.get_mut(&name) {
                topic.state = State::Ready;
                self.ready.push_back(name);
            }
        }
        while self.running < self.concurrency {
            let name = self.ready.pop_front()?;
            let Some(topic) = self.topics.get_mut(&name) else { continue };
            let Some(first) = topic.queue.front() else { continue };
            if first.expires.is_some_and(|at| at <= wall) {
                // The outbox counts what has expired when it is read: give it up here, and have it read again.
                let origin = first.origin;
                self.take_first(&name, origin);
                self.after_first(&name);
                if matches!(origin, Origin::Stored(..)) {
                    self.rewind = true;
                }
                continue;
            }
            topic.state = State::Running;
            self.running += 1;
            return Some(Job { origin: first.origin, delivery: first.delivery.clone(), attempt: topic.failures + 1 });
        }
        None
    }

    /// The handler is done with the first message of a topic. Returns whether it is to be acknowledged now.
    pub fn finished(&mut self, topic: &str, origin: Origin, handled: bool, now: Monotonic) -> bool {
        self.running = self.running.saturating_sub(1);
        let Some(state) = self.topics.get_mut(topic) else { return false };
        if !handled {
            state.failures = state.failures.saturating_add(1);
            state.state = State::Waiting;
            self.waiting.insert((now.plus(self.backoff.after(state.failures)), topic.to_owned()));
            self.keep_first_alone(topic);
            return false;
        }
        let stuck = state.failures > 0;
        let read = self.take_first(topic, origin);
        if stuck {
            tracing::info!(mqtt.topic = topic, "the handler takes messages of this topic again");
        }
        self.after_first(topic);
        match (origin, read) {
            (Origin::Retained(_), _) | (_, None) => false,
            (_, Some(0)) => {
                self.done_early.insert(origin);
                false
            }
            _ => true,
        }
    }

    /// When the next message that failed is due.
    pub fn next_due(&self) -> Option<Monotonic> {
        self.waiting.first().map(|(at, _)| *at)
    }

    fn take_first(&mut self, topic: &str, origin: Origin) -> Option<u64> {
        let queue = &mut self.topics.get_mut(topic)?.queue;
        let first = queue.pop_front_if(|held| held.origin == origin)?;
        self.bytes -= first.delivery.data.len();
        self.known.remove(&origin);
        Some(first.read)
    }

    /// The topic's first message is gone: the next one is ready, or what was passed over has to be read.
    fn after_first(&mut self, name: &str) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        topic.failures = 0;
        topic.state = State::Ready;
        if !topic.queue.is_empty() {
            self.ready.push_back(name.to_owned());
        } else if topic.passed_over {
            self.rewind = true;
        } else {
            self.topics.remove(name);
        }
    }

    fn keep_first_alone(&mut self, name: &str) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        // Retained messages cannot be read again.
        let mut kept = VecDeque::new();
        for (place, held) in std::mem::take(&mut topic.queue).into_iter().enumerate() {
            if place == 0 || matches!(held.origin, Origin::Retained(_)) {
                kept.push_back(held);
            } else {
                self.bytes -= held.delivery.data.len();
                self.known.remove(&held.origin);
                topic.passed_over = true;
            }
        }
        topic.queue = kept;
    }
}

#[cfg(test)]
mod tests;
