//! Messages from the broker to subscriptions: matched, kept in order per topic, handled with bounded parallelism, acknowledged
//! when handled.
//!
//! A message that its handler could not take is offered again with back-off, without waiting for a reconnect; meanwhile the
//! messages of its topic wait behind it, those of others go on.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use selvedge::component::{Fut, HandlerError};
use selvedge::escape::{Backoff, BackoffConfig, SplitMix};
use selvedge::supervise::contained;
use selvedge::time::Monotonic;
use selvedge::topic;
use smallvec::SmallVec;
use tokio::sync::{Semaphore, oneshot, watch};

use crate::connection::{Connection, Phase};
use crate::session::{Message, Session};

/// Handler calls of one component at a time.
const PARALLEL: usize = 16;
/// Messages and bytes with us; past half of it quality 0 is dropped, past all of it the socket is not read.
const MOST: usize = 1_024;
const MOST_BYTES: usize = 8 << 20;
/// Messages that may wait for a subscription that does not exist, once those of before a restart have had their time to come back. Until
/// then what a persistent session brings waits up to [`MOST`], and the socket is not read at that bound: nothing is given up.
const MOST_PARKED: usize = 64;
/// Filters of subscriptions that have ended.
const MOST_LEFT: usize = 256;

/// Takes one message. Like the core's handlers, whatever building block the messages are for.
pub(crate) type Handler = Arc<dyn Fn(Arc<Message>) -> Fut<'static, Result<(), HandlerError>> + Send + Sync>;

/// Who takes a message: the handler, and the count of its running calls.
type Takers = SmallVec<[(Handler, Arc<watch::Sender<usize>>); 2]>;

/// A subscription.
struct Subscription {
    key: u64,
    /// As the broker gets it.
    filter: String,
    qos: u8,
    handler: Handler,
    /// The broker has it in the session that stands.
    granted: bool,
    waiting: Vec<oneshot::Sender<Result<(), String>>>,
    running: Arc<watch::Sender<usize>>,
}

/// The filter without `$share/GROUP/`.
pub(crate) fn plain_filter(filter: &str) -> &str {
    match filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/')) {
        Some((_, plain)) => plain,
        None => filter,
    }
}

struct Pending {
    message: Arc<Message>,
    generation: u64,
}

/// A message that waits for a subscription.
struct Parked {
    pending: Pending,
    /// From when on; none when nobody has looked yet.
    since: Option<Monotonic>,
    /// Its subscription has ended: another one may take its place (an application that is not well comes back), or the node is stopping and the
    /// broker keeps it. It waits until room is needed.
    left: bool,
}

/// Counts for logs and metrics.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InboundCounts {
    /// Quality 0 messages dropped because too much waited.
    pub overflowed: u64,
    /// Messages that no subscription wanted.
    pub unwanted: u64,
    /// Handler calls that failed and were repeated.
    pub retried: u64,
}

/// The receiving side of a connection.
pub(crate) struct Inbound {
    connection: Weak<Connection>,
    subscriptions: Vec<Subscription>,
    /// Subscription requests on their way: which subscriptions, in the order of the packet.
    requests: HashMap<u64, Vec<u64>>,
    topics: HashMap<String, VecDeque<Pending>>,
    parked: VecDeque<Parked>,
    /// Filters of subscriptions that have ended and that the broker still has, the latest [`MOST_LEFT`].
    left: VecDeque<String>,
    with_us: usize,
    bytes: usize,
    /// Messages of connections before this one come again on a connection after it.
    superseded: u64,
    permits: Arc<Semaphore>,
    park: Duration,
    /// When the first connection stood.
    began: Option<Monotonic>,
    name: String,
    pub(crate) counts: InboundCounts,
}

impl Inbound {
    pub(crate) fn new(name: &str, park: Duration) -> Self {
        Self {
            connection: Weak::new(),
            subscriptions: Vec::new(),
            requests: HashMap::new(),
            topics: HashMap::new(),
            parked: VecDeque::new(),
            left: VecDeque::new(),
            with_us: 0,
            bytes: 0,
            superseded: 0,
            permits: Arc::new(Semaphore::new(PARALLEL)),
            park,
            began: None,
            name: name.to_owned(),
            counts: InboundCounts::default(),
        }
    }

    /// Called once, after the connection has been made.
    pub(crate) fn attach(&mut self, connection: &Arc<Connection>) {
        self.connection = Arc::downgrade(connection);
    }

    fn is_half_full(&self) -> bool {
        self.with_us >= MOST / 2 || self.bytes >= MOST_BYTES / 2
    }

    /// The socket should not be read.
    pub(crate) fn is_full(&self) -> bool {
        self.with_us >= MOST || self.bytes >= MOST_BYTES
    }

    /// A connection stands: asks for all subscriptions that the broker does not have, in one packet.
    pub(crate) fn connected(&mut self, session: &mut Session, session_present: bool, generation: u64) {
        self.requests.clear();
        if session_present {
            // The broker sends again what was not acknowledged; what waits here would be handled twice.
            self.superseded = generation;
            self.drop_superseded();
        } else {
            for subscription in &mut self.subscriptions {
                subscription.granted = false;
            }
        }
        self.request(session, generation << 32);
    }

    fn drop_superseded(&mut self) {
        let superseded = self.superseded;
        let (mut gone, mut bytes) = (0, 0);
        let mut keep = |p: &Pending| {
            let keep = p.message.qos == 0 || p.generation >= superseded;
            if !keep {
                gone += 1;
                bytes += p.message.payload.len();
            }
            keep
        };
        for queue in self.topics.values_mut() {
            queue.retain(&mut keep);
        }
        self.parked.retain(|p| keep(&p.pending));
        self.with_us -= gone;
        self.bytes -= bytes;
    }

    fn request(&mut self, session: &mut Session, key: u64) {
        let wanted: Vec<&Subscription> = self.subscriptions.iter().filter(|s| !s.granted).collect();
        if wanted.is_empty() {
            return;
        }
        let filters: Vec<(&str, u8)> = wanted.iter().map(|s| (s.filter.as_str(), s.qos)).collect();
        if session.subscribe(key, &filters).is_ok() {
            let keys = wanted.iter().map(|s| s.key).collect();
            self.requests.insert(key, keys);
        }
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&mut self) {
        self.requests.clear();
    }

    /// The broker's answer to a subscription request.
    pub(crate) fn granted(&mut self, request: u64, granted: &[Option<u8>]) {
        let Some(keys) = self.requests.remove(&request) else { return };
        for (at, key) in keys.into_iter().enumerate() {
            let Some(subscription) = self.subscriptions.iter_mut().find(|s| s.key == key) else { continue };
            let given = granted.get(at).copied().flatten();
            subscription.granted = given.is_some();
            if given.is_none() {
                tracing::warn!(component.name = %self.name, mqtt.topic = %subscription.filter, "the broker refuses the subscription");
            }
            for waiting in subscription.waiting.drain(..) {
                let refused = || format!("the broker refuses the subscription to {}", subscription.filter);
                // The subscriber may have given up.
                let _ = waiting.send(given.map(|_| ()).ok_or_else(refused));
            }
        }
    }

    /// Adds a subscription; asks for it at once when a session stands. The receiver resolves with the broker's answer.
    pub(crate) fn subscribe(
        &mut self,
        key: u64,
        filter: &str,
        qos: u8,
        handler: Handler,
        session: Option<&mut Session>,
    ) -> (oneshot::Receiver<Result<(), String>>, watch::Receiver<usize>) {
        let (sender, answer) = oneshot::channel();
        let (running, seen) = watch::channel(0);
        self.subscriptions.push(Subscription {
            key,
            filter: filter.to_owned(),
            qos,
            handler,
            granted: false,
            waiting: vec![sender],
            running: Arc::new(running),
        });
        if let Some(session) = session
            && session.subscribe(key, &[(filter, qos)]).is_ok()
        {
            self.requests.insert(key, vec![key]);
        }
        self.left.retain(|f| f != filter);
        for parked in std::mem::take(&mut self.parked) {
            if topic::matches(plain_filter(filter), &parked.pending.message.topic) {
                self.queue(parked.pending);
            } else {
                self.parked.push_back(parked);
            }
        }
        (answer, seen)
    }

    /// Removes a subscription; with `unsubscribe` the broker is told, unless another one has the same filter.
    pub(crate) fn unsubscribe(&mut self, key: u64, unsubscribe: bool, session: Option<&mut Session>) {
        let Some(at) = self.subscriptions.iter().position(|s| s.key == key) else { return };
        let gone = self.subscriptions.swap_remove(at);
        let shared = self.subscriptions.iter().any(|s| s.filter == gone.filter);
        if shared {
            return;
        }
        if !unsubscribe {
            self.left.truncate(MOST_LEFT - 1);
            self.left.push_front(gone.filter);
        } else if let Some(session) = session {
            session.unsubscribe(&gone.filter);
        }
    }

    /// A message has come.
    pub(crate) fn message(&mut self, message: Message, generation: u64, now: Monotonic) {
        if message.qos == 0 && self.is_half_full() {
            self.counts.overflowed += 1;
            return;
        }
        let pending = Pending { message: Arc::new(message), generation };
        let wanted = self.subscriptions.iter().any(|s| topic::matches(plain_filter(&s.filter), &pending.message.topic));
        if !wanted && pending.message.qos == 0 {
            self.counts.unwanted += 1;
            return;
        }
        self.with_us += 1;
        self.bytes += pending.message.payload.len();
        if wanted {
            self.queue(pending);
        } else {
            let left = self.left.iter().any(|f| topic::matches(plain_filter(f), &pending.message.topic));
            self.parked.push_back(Parked { pending, since: Some(now), left });
        }
    }

    /// Acknowledges and drops what has waited for a subscription too long, or is too much.
    pub(crate) fn expire(&mut self, session: &mut Session, generation: u64, now: Monotonic) {
        let settled = now.since(*self.began.get_or_insert(now)) >= self.park;
        let mut strangers = if settled { self.parked.iter().filter(|p| !p.left).count() } else { 0 };
        loop {
            let (needed, park) = (self.is_half_full(), self.park);
            let over = |parked: &mut Parked| {
                let late = now.since(*parked.since.get_or_insert(now)) >= park;
                if parked.left { late && needed } else { late || strangers > MOST_PARKED }
            };
            let Some(Parked { pending, left, .. }) = self.parked.iter_mut().position(over).and_then(|at| self.parked.remove(at)) else { return };
            strangers = strangers.saturating_sub(usize::from(!left));
            if self.counts.unwanted.is_power_of_two() || self.counts.unwanted == 0 {
                let (name, topic) = (&self.name, &pending.message.topic);
                tracing::warn!(component.name = %name, mqtt.topic = %topic, dropped = self.counts.unwanted + 1, "message that no subscription wants");
            }
            self.counts.unwanted += 1;
            self.release(&pending);
            if pending.generation == generation {
                session.handled(pending.message.id, pending.message.qos);
            }
        }
    }

    fn release(&mut self, pending: &Pending) {
        self.with_us -= 1;
        self.bytes -= pending.message.payload.len();
    }

    /// Puts a message behind those of its topic; a topic with something to do has a task.
    fn queue(&mut self, pending: Pending) {
        if let Some(queue) = self.topics.get_mut(&pending.message.topic) {
            queue.push_back(pending);
            return;
        }
        let topic = pending.message.topic.clone();
        self.topics.insert(topic.clone(), VecDeque::from([pending]));
        if let Some(connection) = self.connection.upgrade() {
            tokio::spawn(work(connection, topic, self.permits.clone()));
        }
    }

    /// The next message of a topic with those who want it; `None` ends the topic's task. What nobody wants any more is parked: nobody has
    /// taken it, so the broker must not hear that it is handled.
    fn next(&mut self, topic: &str) -> Option<(Pending, Takers)> {
        let wanted = self.subscriptions.iter().filter(|s| topic::matches(plain_filter(&s.filter), topic));
        let handlers: Takers = wanted.map(|s| (s.handler.clone(), s.running.clone())).collect();
        if handlers.is_empty() {
            let left = self.topics.remove(topic).unwrap_or_default();
            self.parked.extend(left.into_iter().map(|pending| Parked { pending, since: None, left: true }));
            return None;
        }
        let Some(pending) = self.topics.get_mut(topic).and_then(VecDeque::pop_front) else {
            self.topics.remove(topic);
            return None;
        };
        Some((pending, handlers))
    }
}

/// Handles the messages of one topic, in order, until there is none.
async fn work(connection: Arc<Connection>, topic: String, permits: Arc<Semaphore>) {
    let mut phase = connection.phase();
    let mut backoff = Backoff::new(BackoffConfig::default());
    let mut random = SplitMix::from_system();
    loop {
        let Some((pending, mut handlers)) = connection.core().inbound.next(&topic) else { return };
        backoff.reset();
        let mut leave = false;
        loop {
            // Those who have taken it are not asked again.
            let mut failed = SmallVec::new();
            for (handler, running) in handlers {
                let Ok(_permit) = permits.acquire().await else { return };
                running.send_modify(|n| *n += 1);
                // A defect of one handler is no end for the messages of this topic.
                let result = contained(handler(pending.message.clone())).await.unwrap_or_else(|cause| Err(HandlerError::Retry(cause)));
                running.send_modify(|n| *n -= 1);
                match result {
                    Ok(()) => {}
                    Err(HandlerError::Closed) => leave = true,
                    Err(HandlerError::Retry(reason)) => {
                        tracing::debug!(component.name = %connection.settings.name, mqtt.topic = %topic, error = %reason, "message is offered again later");
                        failed.push((handler, running));
                    }
                }
            }
            if failed.is_empty() {
                break;
            }
            handlers = failed;
            connection.core().inbound.counts.retried += 1;
            let closed = phase.wait_for(|p| *p == Phase::Closed);
            tokio::select! {
                biased;
                _ = closed => return,
                () = tokio::time::sleep(backoff.next(random.draw())) => {}
            }
            // The broker sends it again on the connection that stands now.
            if pending.message.qos > 0 && pending.generation < connection.core().inbound.superseded {
                leave = true;
                break;
            }
        }
        let mut core = connection.core();
        let core = &mut *core;
        core.inbound.release(&pending);
        let current = core.generation() == pending.generation;
        if let Some(session) = core.session()
            && current
            && !leave
        {
            session.handled(pending.message.id, pending.message.qos);
        }
        // An acknowledgement to write, or room to read.
        core.wake_driver();
    }
}
