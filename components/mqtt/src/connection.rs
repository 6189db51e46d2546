//! The one connection of a component, shared by the uplink, by callers that publish and wait, and by subscriptions.
//!
//! A task owns the socket while it is open. Everyone else touches the protocol state under one mutex, for the time of an encode;
//! the task takes all that was encoded in one write, and hands all acknowledgements of one read over at once. So the
//! cost per message is its encoding; wake-ups and system calls are per batch.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use selvedge::component::{LinkCause, LinkFailure, PubSubError, PublishRequest, UplinkAck, UplinkOutcome};
use selvedge::message::Attributes;
use selvedge::supervise::contained;
use selvedge::time::{Clock, Monotonic};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::inbound::{Handler, Inbound};
use crate::session::{MAX_INCOMING_BYTES, Owner, Session, SessionEvent, Untaken};
use crate::settings::Settings;
use crate::transport::{self, Opened, Stream};
use crate::wire::{Outgoing, PeerLimitsSeen};

/// Most publishes of callers that wait for the broker at a time, and most bytes of them.
const DIRECT_MOST: usize = 1_024;
const DIRECT_BYTES: usize = 16 << 20;
/// First size of the read buffer, and the size above which an empty one is given back.
const READ_BYTES: usize = 16 << 10;
const READ_KEEP_BYTES: usize = 128 << 10;
/// Turns of reading and writing before other tasks have theirs.
const TURNS: usize = 16;

/// With this many publishes of the uplink unanswered, a read that brought less than this many bytes is followed by a pause in which
/// arrivals gather in the kernel: a broker that writes every acknowledgement by itself (mosquitto does) costs a wake-up for each of them
/// otherwise. Measured per 100,000 publishes: 0.08 s of CPU instead of 0.83. Fewer publishes are answered without delay.
const GATHER_FROM: usize = 16;
const GATHER_BYTES: usize = 4_096;
const GATHER_FOR: Duration = Duration::from_millis(1);

/// Where the connection stands, for those who wait for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Nobody has asked for it yet.
    Idle,
    /// It is being opened.
    Connecting,
    /// The broker has accepted it.
    Up,
    /// It broke or could not be opened.
    Down(LinkFailure),
    /// The component is closed.
    Closed,
}

/// A publish whose caller waits.
struct Direct {
    topic: String,
    payload: bytes::Bytes,
    content_type: Option<String>,
    ttl_seconds: Option<u32>,
    retain: bool,
    answer: oneshot::Sender<UplinkOutcome>,
    /// It has been on a connection before.
    sent: bool,
}

/// What is shared.
pub struct Core {
    session: Option<Session>,
    failure: Option<LinkFailure>,
    generation: u64,
    acks: Vec<UplinkAck>,
    events: Vec<SessionEvent>,
    uplink_waker: Option<Waker>,
    driver_waker: Option<Waker>,
    directs: BTreeMap<u64, Direct>,
    direct_bytes: usize,
    next_key: u64,
    pub(crate) inbound: Inbound,
    closing: bool,
    driver: Option<JoinHandle<()>>,
}

/// A component's connection.
pub struct Connection {
    pub(crate) settings: Settings,
    clock: Arc<dyn Clock>,
    core: Mutex<Core>,
    phase: watch::Sender<Phase>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Core {
    /// The session, while the connection stands.
    pub(crate) fn session(&mut self) -> Option<&mut Session> {
        self.session.as_mut()
    }

    /// Number of the connection that stands or stood last.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Adds a subscription.
    pub(crate) fn subscribe(
        &mut self,
        key: u64,
        filter: &str,
        qos: u8,
        handler: Handler,
    ) -> (oneshot::Receiver<Result<(), String>>, watch::Receiver<usize>) {
        self.inbound.subscribe(key, filter, qos, handler, self.session.as_mut())
    }

    /// Removes a subscription.
    pub(crate) fn unsubscribe(&mut self, key: u64, tell: bool) {
        self.inbound.unsubscribe(key, tell, self.session.as_mut());
    }

    pub(crate) fn next_key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    /// Tells the task that there is something to write.
    pub(crate) fn wake_driver(&mut self) {
        if let Some(waker) = self.driver_waker.take() {
            waker.wake();
        }
    }

    fn wake_uplink(&mut self) {
        if let Some(waker) = self.uplink_waker.take() {
            waker.wake();
        }
    }

    fn send_direct(&mut self, key: u64) {
        let Some(session) = &mut self.session else { return };
        let Some(direct) = self.directs.get_mut(&key) else { return };
        let outgoing = Outgoing {
            topic: &direct.topic,
            payload: &direct.payload,
            attributes: Attributes { content_type: direct.content_type.as_deref(), ..Attributes::default() },
            marks: &[],
            expires_seconds: direct.ttl_seconds,
            qos: session.qos(),
            retain: direct.retain,
            dup: false,
        };
        let outcome = match session.publish(Owner::Direct(key), &outgoing) {
            Ok(()) => {
                direct.sent = true;
                return self.wake_driver();
            }
            Err(Untaken::Never(e)) => UplinkOutcome::Refused(e.to_string()),
            Err(Untaken::Full) => UplinkOutcome::TryLater("no packet id is free".into()),
        };
        self.finish_direct(key, outcome);
    }

    fn finish_direct(&mut self, key: u64, outcome: UplinkOutcome) {
        if let Some(direct) = self.directs.remove(&key) {
            self.direct_bytes -= direct.payload.len();
            // The caller may have given up.
            let _ = direct.answer.send(outcome);
        }
    }
}

impl Connection {
    /// A connection that is not open.
    pub(crate) fn new(settings: Settings, clock: Arc<dyn Clock>, inbound: Inbound) -> Arc<Self> {
        Arc::new(Self {
            settings,
            clock,
            core: Mutex::new(Core {
                session: None,
                failure: None,
                generation: 0,
                acks: Vec::new(),
                events: Vec::new(),
                uplink_waker: None,
                driver_waker: None,
                directs: BTreeMap::new(),
                direct_bytes: 0,
                next_key: 0,
                inbound,
                closing: false,
                driver: None,
            }),
            phase: watch::channel(Phase::Idle).0,
        })
    }

    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Monotonic {
        self.clock.monotonic()
    }

    /// Where it stands.
    pub(crate) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.send_if_modified(|p| {
            let change = *p != phase && *p != Phase::Closed;
            if change {
                *p = phase;
            }
            change
        });
    }

    /// Opens the connection, ending one that stands. Dropping the future leaves it closed.
    ///
    /// # Errors
    /// What failed.
    pub(crate) async fn open(self: &Arc<Self>) -> Result<PeerLimitsSeen, LinkFailure> {
        self.end(LinkFailure::new(LinkCause::Operator, "reconnecting"));
        if *self.phase.borrow() == Phase::Closed {
            return Err(LinkFailure::new(LinkCause::Operator, "the component is closed"));
        }
        self.set_phase(Phase::Connecting);
        match transport::open(&self.settings).await {
            Ok(opened) => Ok(self.begin(opened)),
            Err(failure) => {
                self.set_phase(Phase::Down(failure.clone()));
                Err(failure)
            }
        }
    }

    /// Takes over a stream that the broker has accepted: subscriptions first, so that nothing is missed, then callers that wait.
    fn begin(self: &Arc<Self>, opened: Opened) -> PeerLimitsSeen {
        let mut session = Session::new(&self.settings, opened.limits, self.now());
        let mut core = self.core();
        core.generation += 1;
        let generation = core.generation;
        core.inbound.connected(&mut session, opened.session_present, generation);
        core.session = Some(session);
        (core.failure, core.closing) = (None, false);
        core.acks.clear();
        core.events.clear();
        let waiting: Vec<u64> = core.directs.keys().copied().collect();
        for key in waiting {
            core.send_direct(key);
        }
        let mut driver = Driver {
            connection: self.clone(),
            generation,
            stream: opened.stream,
            input: opened.rest,
            filled: 0,
            out: Vec::new(),
            at: 0,
            unflushed: false,
            fresh: true,
            sleep: None,
            gather: None,
        };
        driver.filled = driver.input.len();
        core.driver = Some(tokio::spawn(driver.run()));
        drop(core);
        self.set_phase(Phase::Up);
        opened.limits
    }

    /// Forgets the connection that stands, at once.
    fn end(&self, failure: LinkFailure) {
        let mut core = self.core();
        if let Some(driver) = core.driver.take() {
            driver.abort();
        }
        Self::broke(&mut core, failure);
    }

    fn broke(core: &mut Core, failure: LinkFailure) {
        if core.session.take().is_some() {
            core.inbound.disconnected();
        }
        core.failure.get_or_insert(failure);
        core.wake_uplink();
    }

    /// Says goodbye and closes; at most a second.
    pub(crate) async fn disconnect(&self) {
        let driver = {
            let mut core = self.core();
            if let Some(session) = &mut core.session {
                session.disconnect();
                core.closing = true;
                core.wake_driver();
            }
            core.driver.take()
        };
        if let Some(mut driver) = driver
            && tokio::time::timeout(Duration::from_secs(1), &mut driver).await.is_err()
        {
            driver.abort();
        }
        let closed = LinkFailure::new(LinkCause::Operator, "disconnected");
        Self::broke(&mut self.core(), closed.clone());
        if *self.phase.borrow() == Phase::Up {
            self.set_phase(Phase::Down(closed));
        }
    }

    /// Ends everything: for the component's close and drop.
    pub(crate) fn close(&self) {
        self.end(LinkFailure::new(LinkCause::Operator, "the component is closed"));
        self.core().directs.clear();
        self.phase.send_replace(Phase::Closed);
    }

    /// Publishes and waits for the broker's acknowledgement; over a reconnect if need be.
    ///
    /// # Errors
    /// The broker's refusal, or that it did not answer in time.
    pub(crate) async fn publish(&self, request: PublishRequest, retain: bool, ttl_seconds: Option<u32>) -> Result<(), PubSubError> {
        if *self.phase.borrow() == Phase::Closed {
            return Err(PubSubError::Closed);
        }
        let (sender, answer) = oneshot::channel();
        let key = {
            let mut core = self.core();
            if core.directs.len() >= DIRECT_MOST || core.direct_bytes + request.data.len() > DIRECT_BYTES {
                return Err(PubSubError::Unavailable(format!("{} publishes wait for {} already", core.directs.len(), self.settings.peer())));
            }
            let key = core.next_key();
            core.direct_bytes += request.data.len();
            core.directs.insert(
                key,
                Direct {
                    topic: request.topic,
                    payload: request.data,
                    content_type: request.content_type,
                    ttl_seconds,
                    retain,
                    answer: sender,
                    sent: false,
                },
            );
            core.send_direct(key);
            key
        };
        // Whatever ends the wait, the entry goes with it.
        let _entry = Entry { connection: self, key };
        match tokio::time::timeout(self.settings.timing.answer, answer).await {
            Ok(Ok(UplinkOutcome::Accepted)) => Ok(()),
            Ok(Ok(UplinkOutcome::Refused(reason))) => Err(PubSubError::Refused(reason)),
            Ok(Ok(UplinkOutcome::TryLater(reason))) => Err(PubSubError::Unavailable(reason)),
            Ok(Err(_)) => Err(PubSubError::Closed),
            Err(_) => {
                let why = match &*self.phase.borrow() {
                    Phase::Down(failure) => failure.to_string(),
                    _ => "no acknowledgement came".to_owned(),
                };
                Err(PubSubError::Unavailable(format!("{} within {} s: {why}", self.settings.peer(), self.settings.timing.answer.as_secs_f32())))
            }
        }
    }

    /// Encodes a publish of the uplink.
    pub(crate) fn enqueue(&self, owner: Owner, outgoing: &Outgoing<'_>) -> Result<(), UplinkOutcome> {
        let mut core = self.core();
        let Some(session) = &mut core.session else { return Err(UplinkOutcome::TryLater("not connected".into())) };
        // Quality 2 upstream would need packet ids that outlive the process; the record id serves the same purpose. Quality 0 is what
        // was asked for in the settings.
        let outgoing = Outgoing { qos: session.qos(), ..*outgoing };
        match session.publish(owner, &outgoing) {
            Ok(()) => Ok(()),
            Err(Untaken::Never(e)) => Err(UplinkOutcome::Refused(e.to_string())),
            Err(Untaken::Full) => Err(UplinkOutcome::TryLater("no packet id is free".into())),
        }
    }

    /// One poll of the uplink's drive.
    pub(crate) fn poll_uplink(&self, cx: &Context<'_>, acks: &mut Vec<UplinkAck>, until_written: bool) -> Poll<Result<(), LinkFailure>> {
        let mut core = self.core();
        if !core.acks.is_empty() {
            acks.append(&mut core.acks);
            if core.session.as_ref().is_some_and(Session::has_out) {
                core.wake_driver();
            }
            return Poll::Ready(Ok(()));
        }
        let Some(session) = &core.session else {
            let failure = core.failure.clone().unwrap_or_else(|| LinkFailure::new(LinkCause::Operator, "not connected"));
            return Poll::Ready(Err(failure));
        };
        if until_written && session.all_written() {
            return Poll::Ready(Ok(()));
        }
        if session.has_out() {
            core.wake_driver();
        }
        match &core.uplink_waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => core.uplink_waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

struct Entry<'a> {
    connection: &'a Connection,
    key: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut core = self.connection.core();
        if let Some(direct) = core.directs.remove(&self.key) {
            core.direct_bytes -= direct.payload.len();
        }
    }
}

/// Owns the socket.
struct Driver {
    connection: Arc<Connection>,
    generation: u64,
    stream: Stream,
    input: Vec<u8>,
    filled: usize,
    out: Vec<u8>,
    at: usize,
    unflushed: bool,
    /// Nothing has been read; the buffer may hold what came with CONNACK.
    fresh: bool,
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Nothing is read before this.
    gather: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Driver {
    async fn run(mut self) {
        // A defect ends this connection like any other failure of it.
        let failure = contained(std::future::poll_fn(|cx| self.poll(cx))).await;
        let failure = failure.unwrap_or_else(|cause| LinkFailure::new(LinkCause::PeerError, format!("a defect in this node: {cause}")));
        let mut core = self.connection.core();
        if core.generation == self.generation {
            Connection::broke(&mut core, failure.clone());
            drop(core);
            self.connection.set_phase(Phase::Down(failure));
        }
    }

    /// Ready with the reason when the connection has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<LinkFailure> {
        if std::mem::take(&mut self.fresh)
            && self.filled > 0
            && let Err(failure) = self.received()
        {
            return Poll::Ready(failure);
        }
        for _ in 0..TURNS {
            match self.turn(cx) {
                Ok(true) => {}
                Ok(false) => return self.timers(cx),
                Err(failure) => return Poll::Ready(failure),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes and reads once; whether anything moved.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkFailure> {
        let connection = self.connection.clone();
        let io = |e: std::io::Error| LinkFailure::new(transport::classify(&e), format!("{}: {e}", connection.settings.peer()));
        let mut moved = false;
        if self.at == self.out.len() {
            self.out.clear();
            self.at = 0;
            let now = connection.now();
            let mut core = connection.core();
            match &core.driver_waker {
                Some(waker) if waker.will_wake(cx.waker()) => {}
                _ => core.driver_waker = Some(cx.waker().clone()),
            }
            let closing = core.closing;
            let Some(session) = &mut core.session else {
                return Err(LinkFailure::new(LinkCause::Operator, "disconnected"));
            };
            session.take_out(&mut self.out, now);
            if closing && self.out.is_empty() && !self.unflushed {
                return Err(LinkFailure::new(LinkCause::Operator, "disconnected"));
            }
        }
        while self.at < self.out.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.out[self.at..]) {
                Poll::Pending => break,
                Poll::Ready(Err(e)) => return Err(io(e)),
                Poll::Ready(Ok(0)) => return Err(io(std::io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    self.at += n;
                    self.unflushed = true;
                    moved = true;
                    let mut core = connection.core();
                    let core = &mut *core;
                    if let Some(session) = &mut core.session {
                        session.wrote(n, &mut core.acks, &mut core.events);
                        if !core.acks.is_empty() || session.all_written() {
                            core.wake_uplink();
                        }
                    }
                }
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Err(e)) => return Err(io(e)),
                Poll::Ready(Ok(())) => self.unflushed = false,
            }
        }
        if let Some(gather) = &mut self.gather {
            if gather.as_mut().poll(cx).is_pending() {
                return Ok(moved);
            }
            self.gather = None;
            self.stream.tcp().watch();
        }
        if connection.core().inbound.is_full() {
            return Ok(moved);
        }
        self.make_room();
        let mut buffer = ReadBuf::new(&mut self.input[self.filled..]);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => {}
            Poll::Ready(Err(e)) => return Err(io(e)),
            Poll::Ready(Ok(())) => {
                let n = buffer.filled().len();
                if n == 0 {
                    return Err(LinkFailure::new(LinkCause::PeerError, format!("{} closed the connection", self.connection.settings.peer())));
                }
                self.filled += n;
                let in_flight = self.received()?;
                moved = true;
                if n < GATHER_BYTES && in_flight >= GATHER_FROM {
                    self.stream.tcp().park();
                    self.gather = Some(Box::pin(tokio::time::sleep(GATHER_FOR)));
                }
            }
        }
        Ok(moved)
    }

    /// Makes the read buffer large enough for the packet that has begun.
    fn make_room(&mut self) {
        if self.filled == 0 && self.input.len() > READ_KEEP_BYTES {
            self.input = Vec::new();
        }
        if self.input.len() < READ_BYTES {
            self.input.resize(READ_BYTES, 0);
        } else if self.filled == self.input.len() {
            // A packet larger than this was refused by its header.
            let larger = (self.input.len() * 2).min(MAX_INCOMING_BYTES + READ_BYTES);
            self.input.resize(larger, 0);
        }
    }

    /// Reads the packets that are in the buffer; returns how many publishes wait for their answer.
    fn received(&mut self) -> Result<usize, LinkFailure> {
        let now = self.connection.now();
        let mut core = self.connection.core();
        let core = &mut *core;
        if core.generation != self.generation {
            return Ok(0);
        }
        let Some(session) = &mut core.session else { return Ok(0) };
        let result = session.receive(&self.input[..self.filled], now, &mut core.acks, &mut core.events);
        // What came before a breach of the protocol counts.
        let mut events = std::mem::take(&mut core.events);
        for event in events.drain(..) {
            match event {
                SessionEvent::Published { key, outcome } => core.finish_direct(key, outcome),
                SessionEvent::Subscribed { key, granted } => core.inbound.granted(key, &granted),
                SessionEvent::Message(message) => core.inbound.message(message, core.generation, now),
            }
        }
        core.events = events;
        if !core.acks.is_empty() {
            core.wake_uplink();
        }
        let used = result?;
        self.input.copy_within(used..self.filled, 0);
        self.filled -= used;
        Ok(core.session.as_ref().map_or(0, Session::uplink_in_flight))
    }

    /// Keep-alive, and the time to look again.
    fn timers(&mut self, cx: &mut Context<'_>) -> Poll<LinkFailure> {
        loop {
            let now = self.connection.now();
            let next = {
                let mut core = self.connection.core();
                let core = &mut *core;
                let Some(session) = &mut core.session else { return Poll::Ready(LinkFailure::new(LinkCause::Operator, "disconnected")) };
                core.inbound.expire(session, core.generation, now);
                match session.tick(now) {
                    Ok(next) => {
                        if session.has_out() && self.at == self.out.len() {
                            cx.waker().wake_by_ref();
                        }
                        next
                    }
                    Err(failure) => return Poll::Ready(failure),
                }
            };
            let Some(next) = next else { return Poll::Pending };
            // One timer that is moved only when it has fired: traffic pushes the deadline on all the time.
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(next.since(now))));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.sleep = None;
        }
    }
}
