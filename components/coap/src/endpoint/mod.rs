//! The endpoint: datagrams, answers, messages and time in; datagrams, requests and subscriptions out. No IO, no clock.
//!
//! A request becomes an [`Action::Request`] once; its repeats are answered from memory (RFC 7252, section 4.5). The caller
//! hands the answer back with [`Endpoint::answer`] whenever it has it: within a second it travels in the acknowledgement,
//! later the acknowledgement goes empty and the answer follows in a confirmable message of its own (section 5.2.2).

mod outgoing;
mod peers;
mod request;
mod respond;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use coap_lite::{MessageType, Packet};
use selvedge::message::Message;
use selvedge::time::Monotonic;

use crate::block::{Block, Uploads};
use crate::formats;
use crate::metrics::{CoapMetrics, Dropped};
use crate::observe::Observers;
use crate::packet::{self, Code, Token};
use crate::settings::{SWEEP_INTERVAL, Settings};
use peers::{Exchange, Peers};
use timers::{Timer, TimerKey, Timers};

/// Where randomness comes from: message ids and the spread of retransmissions. Must not be foreseeable by peers.
pub type Random = Box<dyn FnMut() -> u64 + Send>;

/// Names a request until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

/// A message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Topic; a valid topic name.
    pub topic: String,
    /// Payload as it came.
    pub payload: Bytes,
    /// Content-Format option.
    pub content_format: Option<u16>,
    /// `?retain`.
    pub retain: bool,
    /// `?ttl=`.
    pub ttl_seconds: Option<u32>,
}

/// What a peer asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Publish a message; 2.04 when it is safe.
    Publish(Publish),
    /// The retained message of a topic; 4.04 when there is none.
    Read(String),
    /// The list of what can be read.
    Discover,
}

/// An answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Code.
    pub code: Code,
    /// Payload; a diagnostic text for errors (RFC 7252, section 5.5.2).
    pub payload: Bytes,
    /// Content-Format of the payload.
    pub content_format: Option<u16>,
    /// Max-Age in seconds: for 5.03, when to try again.
    pub max_age_seconds: Option<u32>,
    /// Size1 in bytes: for 4.13, what would be taken.
    pub size1: Option<u32>,
}

/// Longest diagnostic text, in bytes: error answers stay small.
const MAX_DIAGNOSTIC_BYTES: usize = 96;

impl Answer {
    /// A bare code.
    #[must_use]
    pub fn of(code: Code) -> Self {
        Self { code, payload: Bytes::new(), content_format: None, max_age_seconds: None, size1: None }
    }

    /// A code with a diagnostic text.
    #[must_use]
    pub fn text(code: Code, diagnostic: &str) -> Self {
        let end = diagnostic.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= MAX_DIAGNOSTIC_BYTES).last().unwrap_or(0);
        Self { payload: Bytes::copy_from_slice(&diagnostic.as_bytes()[..end]), ..Self::of(code) }
    }

    /// 5.03: try again after so many seconds.
    #[must_use]
    pub fn try_again(seconds: u32, diagnostic: &str) -> Self {
        Self { max_age_seconds: Some(seconds), ..Self::text(Code::UNAVAILABLE, diagnostic) }
    }

    /// 4.13: so many bytes would be taken.
    #[must_use]
    pub fn too_large(limit: usize) -> Self {
        Self { size1: Some(u32::try_from(limit).unwrap_or(u32::MAX)), ..Self::of(Code::TOO_LARGE) }
    }

    /// 2.05 with a message.
    #[must_use]
    pub fn message(message: &Message) -> Self {
        Self {
            payload: message.payload.clone(),
            content_format: message.attributes.content_type.as_deref().and_then(formats::number),
            ..Self::of(Code::CONTENT)
        }
    }
}

/// What the caller has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a datagram.
    Send(SocketAddr, Bytes),
    /// Serve a request and hand its answer to [`Endpoint::answer`].
    Request(RequestId, Request),
    /// From now on hand messages of this topic to [`Endpoint::notify`]. Comes before the request that reads it.
    Watch(String),
    /// No longer.
    Unwatch(String),
}

/// Where an answer goes.
#[derive(Debug)]
struct Reply {
    peer: SocketAddr,
    message_id: u16,
    token: Token,
    confirmable: bool,
    /// The empty acknowledgement has gone out.
    acknowledged: bool,
    method: u8,
    block1: Option<Block>,
    block2: Option<Block>,
    accept: Option<u16>,
    /// The peer asks to observe this topic, or to read a later block of it.
    topic: Option<String>,
    observe: bool,
}

#[derive(Debug)]
struct Pending {
    reply: Reply,
    timer: Option<TimerKey>,
}

/// A CoAP server endpoint.
pub struct Endpoint {
    settings: Settings,
    random: Random,
    metrics: CoapMetrics,
    peers: Peers,
    pending: HashMap<RequestId, Pending>,
    next_request: u64,
    timers: Timers,
    sweeping: bool,
    uploads: Uploads,
    observers: Observers,
    draining: bool,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("peers", &self.peers.len()).field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// An endpoint that knows nobody.
    #[must_use]
    pub fn new(settings: Settings, random: Random, metrics: CoapMetrics) -> Self {
        Self {
            settings,
            random,
            metrics,
            peers: Peers::new(settings),
            pending: HashMap::new(),
            next_request: 0,
            timers: Timers::default(),
            sweeping: false,
            uploads: Uploads::new(&settings),
            observers: Observers::new(&settings),
            draining: false,
        }
    }

    /// A datagram came. `cut` says that it was longer than `bytes`.
    pub fn datagram(&mut self, now: Monotonic, from: SocketAddr, bytes: &[u8], cut: bool, out: &mut Vec<Action>) {
        let packet = match packet::decode(bytes) {
            Ok(packet) => packet,
            Err(malformed) => {
                self.metrics.malformed.inc();
                if let Some(message_id) = malformed.reset {
                    out.push(Action::Send(from, packet::reset(message_id)));
                }
                return;
            }
        };
        self.peers.touch(now, from);
        let kind = packet.header.get_type();
        let id = packet.header.message_id;
        match (u8::from(packet.header.code), kind) {
            (_, MessageType::Acknowledgement) => self.acknowledged(now, from, id, out),
            (_, MessageType::Reset) => self.was_reset(now, from, id, out),
            (1..=0x1F, _) => self.request(now, from, &packet, cut, out),
            // A ping (section 4.3), a response to nothing that was asked, a reserved class.
            (_, MessageType::Confirmable) => out.push(Action::Send(from, packet::reset(id))),
            _ => self.metrics.dropped(Dropped::Stray),
        }
        self.gauges();
    }

    /// The answer to a request.
    pub fn answer(&mut self, now: Monotonic, id: RequestId, answer: Answer, out: &mut Vec<Action>) {
        let Some(pending) = self.pending.remove(&id) else { return };
        if let Some(timer) = pending.timer {
            self.timers.cancel(timer);
        }
        if let Some(peer) = self.peers.get_mut(pending.reply.peer) {
            peer.pending -= 1;
        }
        self.respond(now, pending.reply, answer, out);
        self.gauges();
    }

    /// A message was published to a topic that is watched.
    pub fn notify(&mut self, now: Monotonic, message: &Arc<Message>, out: &mut Vec<Action>) {
        for due in self.observers.notify(&message.topic, message) {
            self.notify_one(now, &due, message, out);
        }
        self.gauges();
    }

    /// Time has passed: see [`next_deadline`](Self::next_deadline).
    pub fn tick(&mut self, now: Monotonic, out: &mut Vec<Action>) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Retransmit(peer) => self.retransmit(now, peer, out),
                Timer::Acknowledge(id) => self.acknowledge_empty(id, out),
                Timer::Sweep => {
                    self.uploads.expire(now);
                    self.peers.sweep(now, |address| self.observers.has(address));
                    self.sweeping = false;
                    self.sweep_later(now);
                }
            }
        }
        self.gauges();
    }

    /// When [`tick`](Self::tick) has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Monotonic> {
        self.timers.next()
    }

    /// The node stops: from now on requests get 5.03, and observers are told that they are observers no longer.
    pub fn drain(&mut self, now: Monotonic, out: &mut Vec<Action>) {
        self.draining = true;
        for (peer, token) in self.observers.all() {
            if let Some(known) = self.peers.get_mut(peer) {
                let message_id = known.message_id();
                let farewell = Answer::try_again(5, "the box stops");
                let packet = respond::packet(MessageType::NonConfirmable, message_id, &token, &farewell);
                out.push(Action::Send(peer, packet::encode(&packet)));
            }
            if let Some(topic) = self.observers.remove(peer, token) {
                out.push(Action::Unwatch(topic));
            }
        }
        let _ = now;
        self.gauges();
    }

    /// Whether no request waits for its answer.
    #[must_use]
    pub fn owes_nothing(&self) -> bool {
        self.pending.is_empty()
    }

    fn gauges(&self) {
        let set = |gauge: &prometheus_client::metrics::gauge::Gauge, value: usize| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.metrics.observers, self.observers.len());
        set(&self.metrics.peers, self.peers.len());
        set(&self.metrics.pending, self.pending.len());
    }

    fn sweep_later(&mut self, now: Monotonic) {
        if !self.sweeping && self.peers.len() > 0 {
            self.sweeping = true;
            self.timers.set(now.plus(SWEEP_INTERVAL), Timer::Sweep);
        }
    }

    fn forgotten(&self, exchanges: usize) {
        for _ in 0..exchanges {
            self.metrics.dropped(Dropped::Forgotten);
        }
    }

    fn note(&mut self, peer: SocketAddr, message_id: u16, state: Exchange) {
        let forgotten = self.peers.note(peer, message_id, state);
        self.forgotten(forgotten);
    }

    /// The request has waited long enough: its sender need not repeat it.
    fn acknowledge_empty(&mut self, id: RequestId, out: &mut Vec<Action>) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        pending.timer = None;
        pending.reply.acknowledged = true;
        let (peer, message_id) = (pending.reply.peer, pending.reply.message_id);
        out.push(Action::Send(peer, packet::empty_ack(message_id)));
        self.note(peer, message_id, Exchange::Working { acknowledged: true });
    }
}

fn is_confirmable(packet: &Packet) -> bool {
    packet.header.get_type() == MessageType::Confirmable
}
