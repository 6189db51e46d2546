//! One connection's protocol state, without IO: bytes in, answers and messages out, time handed in.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use selvedge::component::{LinkCause, LinkFailure, UplinkAck, UplinkOutcome};
use selvedge::time::Monotonic;
use smallvec::SmallVec;

use crate::settings::{Settings, Version};
use crate::wire::{self, EncodeError, Incoming, Outgoing, Packet, PeerLimitsSeen, kind};

/// Largest packet taken from a peer: what the Dapr API takes as a body, and room for the headers.
pub const MAX_INCOMING_BYTES: usize = (4 << 20) + (64 << 10);
/// Messages that a peer may have unanswered towards us (MQTT 5; brokers of 3.1.1 have limits of their own).
pub const RECEIVE_MAXIMUM: u16 = 64;
/// How long an MQTT 5 broker keeps the session of a client that is away, in seconds: a week, as long as the default lane keeps records.
pub const SESSION_EXPIRY_SECONDS: u32 = 7 * 24 * 3_600;
/// Packet ids, 1 to 65,535.
const IDS: u64 = 65_535;

/// Whose packet it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A publish of the uplink, with the forwarder's token.
    Uplink(u64),
    /// A publish of a caller that waits.
    Direct(u64),
    /// A subscription request.
    Subscribe(u64),
    /// The end of a subscription; nobody waits.
    Unsubscribe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Sent,
    /// Quality 2, the peer has taken it: what is left is to release the id.
    Released,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    owner: Owner,
    stage: Stage,
}

/// A message of the peer, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Bytes,
    /// Quality of service of this delivery.
    pub qos: u8,
    /// Packet id; 0 with quality 0.
    pub id: u16,
    /// It was retained.
    pub retain: bool,
    /// Media type.
    pub content_type: Option<String>,
    /// Topic for an answer.
    pub response_topic: Option<String>,
    /// User properties.
    pub user: Vec<(String, String)>,
}

impl From<&Incoming<'_>> for Message {
    fn from(m: &Incoming<'_>) -> Self {
        Self {
            topic: m.topic.to_owned(),
            payload: Bytes::copy_from_slice(m.payload),
            qos: m.qos,
            id: m.id,
            retain: m.retain,
            content_type: m.content_type.map(str::to_owned),
            response_topic: m.response_topic.map(str::to_owned),
            user: m.user().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        }
    }
}

/// What came of the peer's bytes, beside acknowledgements of the uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
    /// A caller's publish is answered.
    Published {
        /// The caller's.
        key: u64,
        /// The answer.
        outcome: UplinkOutcome,
    },
    /// A subscription request is answered.
    Subscribed {
        /// The requester's.
        key: u64,
        /// The quality granted for each filter, or `None` where it was refused.
        granted: SmallVec<[Option<u8>; 4]>,
    },
    /// A message.
    Message(Message),
}

/// Why a publish was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Untaken {
    /// It can never be sent on this connection.
    Never(EncodeError),
    /// No packet id is free.
    Full,
}

/// A connection that the peer has accepted.
#[derive(Debug)]
pub struct Session {
    version: Version,
    qos: u8,
    limits: PeerLimitsSeen,
    keep_alive: Duration,
    out: Vec<u8>,
    /// Bytes ever encoded and ever written; equal when the peer's socket has everything.
    encoded: u64,
    written: u64,
    slots: VecDeque<Option<Slot>>,
    /// Number of the first slot; its packet id is `base % IDS + 1`.
    base: u64,
    /// Publishes that count against the peer's receive maximum, and those that wait for room in it.
    publishes: usize,
    held: VecDeque<Vec<u8>>,
    uplink_in_flight: usize,
    /// Publishes of quality 0: done once written up to this byte.
    unwritten: VecDeque<(u64, Owner)>,
    /// Quality 2 messages that are with us until the peer releases them.
    unreleased: HashSet<u16>,
    last_received: Monotonic,
    last_sent: Monotonic,
    ping_due: Option<Monotonic>,
}

impl Session {
    /// The session after a CONNACK that accepted.
    #[must_use]
    pub fn new(settings: &Settings, limits: PeerLimitsSeen, now: Monotonic) -> Self {
        let keep_alive = limits.keep_alive_seconds.map_or(settings.timing.keep_alive, |s| Duration::from_secs(u64::from(s)));
        Self {
            version: settings.version,
            qos: settings.qos.min(limits.maximum_qos),
            limits,
            keep_alive,
            out: Vec::new(),
            encoded: 0,
            written: 0,
            slots: VecDeque::new(),
            base: 0,
            publishes: 0,
            held: VecDeque::new(),
            uplink_in_flight: 0,
            unwritten: VecDeque::new(),
            unreleased: HashSet::new(),
            last_received: now,
            last_sent: now,
            ping_due: None,
        }
    }

    /// What the peer allows.
    #[must_use]
    pub fn limits(&self) -> PeerLimitsSeen {
        self.limits
    }

    /// After this long without a byte the link is dead; zero when the peer switched keep-alive off.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.keep_alive + self.keep_alive / 2
    }

    fn id_of(number: u64) -> u16 {
        // Less than 65,536 by the remainder.
        (number % IDS + 1) as u16
    }

    fn take_id(&mut self, owner: Owner) -> Option<u16> {
        if self.slots.len() as u64 >= IDS {
            return None;
        }
        let number = self.base + self.slots.len() as u64;
        self.slots.push_back(Some(Slot { owner, stage: Stage::Sent }));
        Some(Self::id_of(number))
    }

    fn slot(&mut self, id: u16) -> Option<&mut Option<Slot>> {
        let first = self.base % IDS;
        let index = (u64::from(id) - 1 + IDS - first) % IDS;
        self.slots.get_mut(usize::try_from(index).ok()?)
    }

    fn free(&mut self, id: u16) {
        if let Some(slot) = self.slot(id) {
            *slot = None;
        }
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.base += 1;
        }
    }

    fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.out.len();
        write(&mut self.out);
        self.encoded += (self.out.len() - before) as u64;
    }

    /// Encodes a publish. It waits inside when the peer's receive maximum is reached.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn publish(&mut self, owner: Owner, p: &Outgoing<'_>) -> Result<(), Untaken> {
        let p = &Outgoing { qos: p.qos.min(self.limits.maximum_qos), retain: p.retain && self.limits.retain_available, ..*p };
        let sizes = wire::publish_bytes(self.version, p).map_err(Untaken::Never)?;
        if let Some(limit) = self.limits.maximum_packet_bytes
            && sizes.0 as u64 > u64::from(limit)
        {
            return Err(Untaken::Never(EncodeError::OverPeerLimit { bytes: sizes.0, limit }));
        }
        let version = self.version;
        if p.qos == 0 {
            self.append(|out| wire::publish(out, version, p, 0, sizes));
            self.unwritten.push_back((self.encoded, owner));
            return Ok(());
        }
        let id = self.take_id(owner).ok_or(Untaken::Full)?;
        self.uplink_in_flight += usize::from(matches!(owner, Owner::Uplink(_)));
        if self.publishes >= usize::from(self.limits.receive_maximum) {
            let mut packet = Vec::with_capacity(sizes.0);
            wire::publish(&mut packet, version, p, id, sizes);
            self.held.push_back(packet);
        } else {
            self.publishes += 1;
            self.append(|out| wire::publish(out, version, p, id, sizes));
        }
        Ok(())
    }

    /// Publishes of the uplink whose answer has not come.
    #[must_use]
    pub fn uplink_in_flight(&self) -> usize {
        self.uplink_in_flight
    }

    /// Quality of service that publishes go with.
    #[must_use]
    pub fn qos(&self) -> u8 {
        self.qos
    }

    /// Encodes a subscription request.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn subscribe(&mut self, key: u64, filters: &[(&str, u8)]) -> Result<(), Untaken> {
        let id = self.take_id(Owner::Subscribe(key)).ok_or(Untaken::Full)?;
        let (version, mut result) = (self.version, Ok(()));
        self.append(|out| result = wire::subscribe(out, version, id, filters));
        result.map_err(|e| {
            self.free(id);
            Untaken::Never(e)
        })
    }

    /// Encodes the end of a subscription.
    pub fn unsubscribe(&mut self, filter: &str) {
        if let Some(id) = self.take_id(Owner::Unsubscribe) {
            let version = self.version;
            // A filter that is too long was refused when it was subscribed.
            self.append(|out| {
                let _ = wire::unsubscribe(out, version, id, filter);
            });
        }
    }

    /// The message is handled: it will not come again.
    pub fn handled(&mut self, id: u16, qos: u8) {
        match qos {
            1 => self.append(|out| wire::respond(out, kind::PUBACK, id)),
            2 => self.append(|out| wire::respond(out, kind::PUBREC, id)),
            _ => {}
        }
    }

    /// Encodes the goodbye.
    pub fn disconnect(&mut self) {
        self.append(wire::disconnect);
    }

    /// Moves the bytes to be written to `to`, which must be empty.
    pub fn take_out(&mut self, to: &mut Vec<u8>, now: Monotonic) {
        if !self.out.is_empty() {
            std::mem::swap(&mut self.out, to);
            self.last_sent = now;
        }
    }

    /// Whether bytes wait to be taken.
    #[must_use]
    pub fn has_out(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether everything encoded has been written.
    #[must_use]
    pub fn all_written(&self) -> bool {
        self.written == self.encoded
    }

    /// The socket took bytes.
    pub fn wrote(&mut self, bytes: usize, acks: &mut Vec<UplinkAck>, events: &mut Vec<SessionEvent>) {
        self.written += bytes as u64;
        while let Some((upto, owner)) = self.unwritten.front().copied()
            && upto <= self.written
        {
            self.unwritten.pop_front();
            answer(owner, UplinkOutcome::Accepted, acks, events);
        }
    }

    /// Reads the packets in `input`; returns how many bytes were used. The rest is the beginning of a packet.
    ///
    /// # Errors
    /// When the peer broke the protocol or ended the connection.
    pub fn receive(&mut self, input: &[u8], now: Monotonic, acks: &mut Vec<UplinkAck>, events: &mut Vec<SessionEvent>) -> Result<usize, LinkFailure> {
        self.last_received = now;
        self.ping_due = None;
        let mut used = 0;
        while let Some(frame) = wire::frame(&input[used..], MAX_INCOMING_BYTES).map_err(broken)? {
            used += frame.bytes;
            let packet = wire::parse(self.version, frame).map_err(broken)?;
            self.packet(packet, acks, events)?;
        }
        Ok(used)
    }

    fn packet(&mut self, packet: Packet<'_>, acks: &mut Vec<UplinkAck>, events: &mut Vec<SessionEvent>) -> Result<(), LinkFailure> {
        match packet {
            Packet::PubAck { id, code, reason } => {
                let slot = self.slot(id).and_then(|s| s.as_ref()).copied();
                if let Some(Slot { owner: owner @ (Owner::Uplink(_) | Owner::Direct(_)), stage: Stage::Sent }) = slot {
                    self.free(id);
                    self.room();
                    self.answered(owner, outcome(code, reason), acks, events);
                }
                // An answer to nothing is of no harm: brokers send one for a packet of an earlier connection.
            }
            Packet::PubRec { id, code, reason } => {
                let slot = self.slot(id).and_then(|s| s.as_mut());
                match slot {
                    Some(Slot { owner: owner @ (Owner::Uplink(_) | Owner::Direct(_)), stage }) => {
                        let (owner, was) = (*owner, *stage);
                        *stage = Stage::Released;
                        if was == Stage::Sent {
                            self.answered(owner, outcome(code, reason), acks, events);
                        }
                        if code >= 0x80 {
                            self.free(id);
                            self.room();
                        } else {
                            self.append(|out| wire::respond(out, kind::PUBREL, id));
                        }
                    }
                    _ => self.append(|out| wire::respond(out, kind::PUBREL, id)),
                }
            }
            Packet::PubComp { id } => {
                if self.slot(id).and_then(|s| s.as_ref()).is_some_and(|s| s.stage == Stage::Released) {
                    self.free(id);
                    self.room();
                }
            }
            Packet::PubRel { id } => {
                self.unreleased.remove(&id);
                self.append(|out| wire::respond(out, kind::PUBCOMP, id));
            }
            Packet::Publish(message) => {
                // A repeat of a quality 2 message that is with us already is not another message (section 4.3.3).
                if message.qos < 2 || self.unreleased.insert(message.id) {
                    events.push(SessionEvent::Message(Message::from(&message)));
                }
            }
            Packet::SubAck { id, codes } => {
                let slot = self.slot(id).and_then(|s| s.as_ref()).copied();
                if let Some(Slot { owner: Owner::Subscribe(key), .. }) = slot {
                    self.free(id);
                    events.push(SessionEvent::Subscribed { key, granted: codes.iter().map(|c| (*c <= 2).then_some(*c)).collect() });
                }
            }
            Packet::UnsubAck { id } => {
                if self.slot(id).and_then(|s| s.as_ref()).is_some_and(|s| s.owner == Owner::Unsubscribe) {
                    self.free(id);
                }
            }
            Packet::PingResp => {}
            Packet::ConnAck { .. } => return Err(LinkFailure::new(LinkCause::PeerError, "a second CONNACK")),
            Packet::Disconnect { code, reason } => return Err(disconnected(code, reason)),
        }
        Ok(())
    }

    fn answered(&mut self, owner: Owner, outcome: UplinkOutcome, acks: &mut Vec<UplinkAck>, events: &mut Vec<SessionEvent>) {
        self.uplink_in_flight -= usize::from(matches!(owner, Owner::Uplink(_)));
        answer(owner, outcome, acks, events);
    }

    /// A publish is off the peer's window: the next one that waits may go.
    fn room(&mut self) {
        match self.held.pop_front() {
            Some(packet) => self.append(|out| out.extend_from_slice(&packet)),
            None => self.publishes = self.publishes.saturating_sub(1),
        }
    }

    /// Keeps the connection alive; returns when to be called again, `None` for never.
    ///
    /// # Errors
    /// When nothing came from the peer for one and a half keep-alive intervals.
    pub fn tick(&mut self, now: Monotonic) -> Result<Option<Monotonic>, LinkFailure> {
        if self.keep_alive.is_zero() {
            return Ok(None);
        }
        if let Some(due) = self.ping_due {
            if now >= due {
                let silent = now.since(self.last_received);
                return Err(LinkFailure::new(LinkCause::Silent, format!("nothing came for {:.1} s", silent.as_secs_f64())));
            }
            return Ok(Some(due));
        }
        let next = self.last_received.min(self.last_sent).plus(self.keep_alive);
        if now < next {
            return Ok(Some(next));
        }
        self.append(wire::ping);
        let due = now.plus(self.keep_alive / 2);
        self.ping_due = Some(due);
        Ok(Some(due))
    }
}

fn answer(owner: Owner, outcome: UplinkOutcome, acks: &mut Vec<UplinkAck>, events: &mut Vec<SessionEvent>) {
    match owner {
        Owner::Uplink(token) => acks.push(UplinkAck { token, outcome }),
        Owner::Direct(key) => events.push(SessionEvent::Published { key, outcome }),
        Owner::Subscribe(_) | Owner::Unsubscribe => {}
    }
}

fn broken(malformed: wire::Malformed) -> LinkFailure {
    LinkFailure::new(LinkCause::PeerError, format!("the peer broke the protocol: {malformed}"))
}

/// What a reason code of PUBACK or PUBREC means (sections 3.4.2.1 and 3.5.2.1). What may pass with time or with a change at the broker
/// is tried again; what is about the message itself is final.
fn outcome(code: u8, reason: Option<&str>) -> UplinkOutcome {
    let words = |name: &str| match reason {
        Some(reason) => format!("{name} (0x{code:02X}): {reason}"),
        None => format!("{name} (0x{code:02X})"),
    };
    match code {
        0..=0x7F => UplinkOutcome::Accepted,
        0x87 => UplinkOutcome::Refused(words("not authorized")),
        0x90 => UplinkOutcome::Refused(words("topic name invalid")),
        0x95 => UplinkOutcome::Refused(words("packet too large")),
        0x99 => UplinkOutcome::Refused(words("payload format invalid")),
        0x97 => UplinkOutcome::TryLater(words("quota exceeded")),
        0x91 => UplinkOutcome::TryLater(words("packet identifier in use")),
        0x83 => UplinkOutcome::TryLater(words("implementation specific error")),
        _ => UplinkOutcome::TryLater(words("unspecified error")),
    }
}

/// A DISCONNECT of the broker (section 3.14.2.1).
fn disconnected(code: u8, reason: Option<&str>) -> LinkFailure {
    let cause = match code {
        0x87 | 0x98 => LinkCause::Auth,
        0x89 | 0x96 | 0x97 | 0x9F => LinkCause::Quota,
        0x8D => LinkCause::Silent,
        _ => LinkCause::PeerError,
    };
    let name = match code {
        0x00 => "normal disconnection",
        0x87 => "not authorized",
        0x89 => "server busy",
        0x8B => "server shutting down",
        0x8D => "keep alive timeout",
        0x8E => "session taken over: another client uses the same client id",
        0x93 => "receive maximum exceeded",
        0x95 => "packet too large",
        0x96 => "message rate too high",
        0x97 => "quota exceeded",
        0x98 => "administrative action",
        0x9F => "connection rate exceeded",
        _ => "the broker ended the connection",
    };
    LinkFailure::new(cause, format!("{name} (0x{code:02X}){}", reason.map(|r| format!(": {r}")).unwrap_or_default()))
}

/// A CONNACK that refuses (3.1.1: section 3.2.2.3; 5.0: section 3.2.2.2).
#[must_use]
pub fn refused(version: Version, code: u8, reason: Option<&str>) -> LinkFailure {
    let (cause, name) = match (version, code) {
        (Version::V3, 1) | (Version::V5, 0x84) => (LinkCause::PeerError, "unsupported protocol version"),
        (Version::V3, 2) | (Version::V5, 0x85) => (LinkCause::Auth, "client identifier not valid"),
        (Version::V3, 3) | (Version::V5, 0x88) => (LinkCause::Quota, "server unavailable"),
        (Version::V3, 4) | (Version::V5, 0x86) => (LinkCause::Auth, "bad user name or password"),
        (Version::V3, 5) | (Version::V5, 0x87) => (LinkCause::Auth, "not authorized"),
        (Version::V5, 0x89) => (LinkCause::Quota, "server busy"),
        (Version::V5, 0x8A) => (LinkCause::Auth, "banned"),
        (Version::V5, 0x8C) => (LinkCause::Auth, "bad authentication method"),
        (Version::V5, 0x97) => (LinkCause::Quota, "quota exceeded"),
        (Version::V5, 0x9F) => (LinkCause::Quota, "connection rate exceeded"),
        _ => (LinkCause::PeerError, "connection refused"),
    };
    LinkFailure::new(cause, format!("{name} (0x{code:02X}){}", reason.map(|r| format!(": {r}")).unwrap_or_default()))
}
