//! Live messages on their way to one connection: a bounded queue that never blocks the sender.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use selvedge::hub::{Hub, LiveSink, LiveSubscription};
use selvedge::message::Message;
use tokio::sync::Notify;

use crate::metrics::ListenerMetrics;

/// Messages that may wait for one connection; the next ones are dropped and counted (as mosquitto's `max_queued_messages`).
pub const MAX_WAITING: usize = 1_000;
/// Bytes of payload that may wait for one connection.
pub const MAX_WAITING_BYTES: usize = 4 << 20;

thread_local! {
    /// Connection that publishes on this thread right now. Sinks are called within `Hub::accept`, on the publisher's thread.
    static PUBLISHER: Cell<u64> = const { Cell::new(0) };
}

/// Runs `f` as this connection, so that its `no local` subscriptions know their own messages.
pub fn publishing_as<R>(connection: u64, f: impl FnOnce() -> R) -> R {
    PUBLISHER.set(connection);
    let result = f();
    PUBLISHER.set(0);
    result
}

/// One message and the subscription it came by.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Subscription's number on its connection.
    pub token: u64,
    /// The message.
    pub message: Arc<Message>,
    /// It is a retained one, sent because of the subscription.
    pub retained: bool,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    no_local: Vec<u64>,
}

/// The queue of one connection.
pub struct Inbox {
    connection: u64,
    queue: Mutex<Queue>,
    /// Rings when something was queued.
    pub bell: Notify,
    metrics: ListenerMetrics,
}

impl Inbox {
    /// An empty queue.
    #[must_use]
    pub fn new(connection: u64, metrics: ListenerMetrics) -> Arc<Self> {
        Arc::new(Self { connection, queue: Mutex::default(), bell: Notify::new(), metrics })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Messages under this token are not for the connection that published them.
    pub fn set_no_local(&self, token: u64, on: bool) {
        let mut queue = self.lock();
        queue.no_local.retain(|t| *t != token);
        if on {
            queue.no_local.push(token);
        }
    }

    /// The next message.
    pub fn pop(&self) -> Option<Waiting> {
        let mut queue = self.lock();
        let next = queue.waiting.pop_front()?;
        queue.bytes -= next.message.payload.len();
        Some(next)
    }

    /// Puts one back that could not be sent yet.
    pub fn put_back(&self, waiting: Waiting) {
        let mut queue = self.lock();
        queue.bytes += waiting.message.payload.len();
        queue.waiting.push_front(waiting);
    }

    fn push(&self, waiting: Waiting) -> bool {
        let mut queue = self.lock();
        if queue.waiting.len() >= MAX_WAITING || queue.bytes + waiting.message.payload.len() > MAX_WAITING_BYTES {
            return false;
        }
        queue.bytes += waiting.message.payload.len();
        queue.waiting.push_back(waiting);
        drop(queue);
        self.bell.notify_one();
        true
    }
}

impl LiveSink for Inbox {
    fn deliver(&self, token: u64, message: &Arc<Message>) {
        if PUBLISHER.get() == self.connection && self.lock().no_local.contains(&token) {
            return;
        }
        if !self.push(Waiting { token, message: message.clone(), retained: false }) {
            self.metrics.dropped("queue-full");
        }
    }
}

/// Members of a shared subscription (5.0, section 4.8.2): each message goes to one of them in turn.
pub struct Group {
    members: Mutex<Vec<(Weak<Inbox>, u64)>>,
    turn: AtomicU64,
}

impl LiveSink for Group {
    fn deliver(&self, _token: u64, message: &Arc<Message>) {
        let members: Vec<(Arc<Inbox>, u64)> =
            self.members.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(|(m, t)| Some((m.upgrade()?, *t))).collect();
        let start = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        // A member with a full queue is passed over; when all are full the first one counts the loss.
        for at in 0..members.len() {
            let (member, token) = &members[(start + at) % members.len()];
            if member.push(Waiting { token: *token, message: message.clone(), retained: false }) {
                return;
            }
        }
        if let Some((member, _)) = members.first() {
            member.metrics.dropped("queue-full");
        }
    }
}

/// Shared subscriptions of a listener, by group and filter.
#[derive(Default)]
pub struct Groups {
    groups: Mutex<HashMap<(String, String), (Arc<Group>, LiveSubscription)>>,
}

impl Groups {
    /// Adds a member; makes the group if need be.
    pub fn join(&self, hub: &Hub, pubsub: &str, group: &str, filter: &str, inbox: &Arc<Inbox>, token: u64) {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (group.to_owned(), filter.to_owned());
        if !groups.contains_key(&key) {
            let shared = Arc::new(Group { members: Mutex::default(), turn: AtomicU64::new(0) });
            // The filter was checked by the caller.
            let Ok(subscription) = hub.subscribe(pubsub, filter, 0, shared.clone()) else { return };
            groups.insert(key.clone(), (shared, subscription));
        }
        if let Some((shared, _)) = groups.get(&key) {
            shared.members.lock().unwrap_or_else(PoisonError::into_inner).push((Arc::downgrade(inbox), token));
        }
    }

    /// Removes a member; the last one takes the group with it.
    pub fn leave(&self, group: &str, filter: &str, inbox: &Arc<Inbox>) {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (group.to_owned(), filter.to_owned());
        let empty = groups.get(&key).is_some_and(|(shared, _)| {
            let mut members = shared.members.lock().unwrap_or_else(PoisonError::into_inner);
            members.retain(|(m, _)| m.upgrade().is_some_and(|m| !Arc::ptr_eq(&m, inbox)));
            members.is_empty()
        });
        if empty {
            groups.remove(&key);
        }
    }
}
