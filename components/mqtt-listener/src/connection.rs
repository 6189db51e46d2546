//! One connection: reads batches, hands them on, answers when they are safe, sends what the client subscribed to.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use selvedge::hub::{AcceptError, Consumer, LaneRun, LiveSubscription};
use selvedge::message::{Attributes, Inbound};
use selvedge::outbox::{LaneId, OutboxError};
use selvedge::time::Monotonic;
use selvedge::topic;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, watch};

use crate::broker::{Broker, OwnedWill};
use crate::live::{Inbox, Waiting, publishing_as};
use crate::session::{self, MAX_SUBSCRIPTIONS, Origin, Session, Subscription};
use crate::users::User;
use crate::wire::{self, ConnAckProperties, Connect, Filter, Outgoing, Packet, Publish, Version, WireError, reason};

/// Time for the first packet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that takes nothing for this long is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a lane that waits for the disk holds up a publisher before the connection is closed.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// Wait before a version 3 client is closed that cannot be told why, so that it does not come back at once.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);
/// Buffered output at which sending waits for the socket.
const OUT_BYTES: usize = 64 << 10;
const TOPIC_ALIASES: u16 = 16;

/// A byte stream to a client.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// The client said goodbye; whether it wants its will sent.
    Goodbye { will: bool },
    /// The stream ended or failed.
    Lost,
    /// The listener closes it.
    Close { reason: u8, why: &'static str },
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Lost
    }
}

impl From<WireError> for End {
    fn from(e: WireError) -> Self {
        tracing::debug!(reason = e.reason, what = e.what, "a client broke the protocol");
        let why = match e.reason {
            reason::TOO_LARGE => "packet-too-large",
            reason::PROTOCOL_ERROR => "protocol-error",
            _ => "malformed",
        };
        Self::Close { reason: e.reason, why }
    }
}

/// Acknowledgements that wait for the store.
struct Pending {
    settled: Pin<Box<dyn Future<Output = Result<(), AcceptError>> + Send>>,
    answers: Vec<u8>,
    publishes: usize,
}

struct Live {
    token: u64,
    group: Option<String>,
    filter: String,
    _subscription: Option<LiveSubscription>,
}

struct Connection<S> {
    broker: Arc<Broker>,
    stream: S,
    number: u64,
    version: Version,
    client_id: String,
    user: Option<User>,
    session: Session,
    will: Option<OwnedWill>,
    largest: u32,
    window: usize,
    keep_alive: Option<Duration>,
    last_received: Monotonic,
    out: Vec<u8>,
    pending: VecDeque<Pending>,
    unsettled: usize,
    aliases: HashMap<u16, String>,
    inbox: Arc<Inbox>,
    retained: VecDeque<Waiting>,
    live: HashMap<String, Live>,
    subscriptions: HashMap<u64, Subscription>,
    next_token: u64,
    consumer: Option<Consumer>,
    run: LaneRun,
    /// Records of the run that are not sent yet, from this one on.
    run_at: usize,
    readable: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    acks: Vec<(LaneId, u64)>,
}

/// Serves one client until it ends.
pub async fn serve<S: Stream>(broker: Arc<Broker>, mut stream: S, certificate: Option<String>, mut stop: watch::Receiver<bool>) {
    let mut buffer = BytesMut::new();
    let opened = tokio::select! {
        opened = tokio::time::timeout(CONNECT_TIMEOUT, read_connect(&broker, &mut stream, &mut buffer)) => opened,
        _ = stop.wait_for(|s| *s) => return,
    };
    match opened {
        Ok(Ok(length)) => {
            let first = buffer.split_to(length).freeze();
            // It was decoded once to know that it is whole; the packet borrows from `first`.
            if let Ok(Some((Packet::Connect(connect), _))) = wire::decode(&first, None, broker.spec.limits.packet_bytes) {
                accept(broker, stream, *connect, buffer, certificate, stop).await;
            }
        }
        Ok(Err(End::Close { reason, why })) => {
            broker.metrics.refused(why);
            let mut out = Vec::new();
            if reason == reason::UNSUPPORTED_VERSION {
                wire::connack(&mut out, Version::V3, false, reason, None);
                let _ = stream.write_all(&out).await;
            }
        }
        Ok(Err(_)) => {}
        Err(_) => broker.metrics.refused("connect-timeout"),
    }
}

async fn read_connect<S: Stream>(broker: &Broker, stream: &mut S, buffer: &mut BytesMut) -> Result<usize, End> {
    loop {
        if let Some((_, length)) = wire::decode(buffer, None, broker.spec.limits.packet_bytes)? {
            return Ok(length);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(End::Lost);
        }
    }
}

fn assigned_id() -> String {
    let mut random = [0u8; 12];
    // Without randomness the id is still unique enough to be refused as a takeover at worst.
    let _ = getrandom::fill(&mut random);
    random.iter().fold(String::from("auto-"), |mut id, b| {
        id.push_str(&format!("{b:02x}"));
        id
    })
}

async fn accept<S: Stream>(
    broker: Arc<Broker>,
    mut stream: S,
    connect: Connect<'_>,
    buffer: BytesMut,
    certificate: Option<String>,
    stop: watch::Receiver<bool>,
) {
    let version = connect.version;
    let mut out = Vec::new();
    let user = match &broker.users {
        None => Ok(None),
        Some(users) => users.authenticate(connect.user, connect.password, certificate.as_deref()).cloned().map(Some).ok_or(()),
    };
    let refusal = if connect.auth_method {
        Some((reason::BAD_AUTH_METHOD, "auth-method"))
    } else if user.is_err() {
        Some((reason::BAD_CREDENTIALS, "credentials"))
    } else if connect.client_id.len() > 256 || (connect.client_id.is_empty() && !connect.clean && version == Version::V3) {
        Some((reason::CLIENT_ID, "client-id"))
    } else if connect.will.as_ref().is_some_and(|w| topic::check_name(w.topic).is_err() || w.topic.starts_with('$')) {
        Some((reason::TOPIC_INVALID, "will-topic"))
    } else {
        None
    };
    if let Some((code, why)) = refusal {
        broker.metrics.refused(why);
        wire::connack(&mut out, version, false, code, None);
        let _ = stream.write_all(&out).await;
        return;
    }
    let assigned = connect.client_id.is_empty().then(assigned_id);
    let client_id = assigned.clone().unwrap_or_else(|| connect.client_id.to_owned());
    let Some(claim) = broker.claim(&client_id, connect.clean).await else {
        broker.metrics.refused("too-many-clients");
        wire::connack(&mut out, version, false, reason::QUOTA, None);
        let _ = stream.write_all(&out).await;
        return;
    };
    let (number, kick, mut session, present, gone) = claim.split();
    session.expiry_seconds = connect.session_expiry;
    let limits = broker.spec.limits;
    let properties = ConnAckProperties {
        receive_maximum: limits.window,
        maximum_packet: limits.packet_bytes,
        topic_alias_maximum: TOPIC_ALIASES,
        assigned_client_id: assigned,
    };
    wire::connack(&mut out, version, present, reason::SUCCESS, Some(&properties));
    for id in session.reconnect() {
        wire::acknowledge(&mut out, version, 6, id, reason::SUCCESS);
    }
    let now = broker.clock.monotonic();
    let mut connection = Connection {
        stream,
        number,
        version,
        user: user.unwrap_or_default(),
        session,
        will: connect.will.as_ref().map(OwnedWill::from),
        largest: connect.maximum_packet.unwrap_or(u32::MAX),
        window: usize::from(connect.receive_maximum.min(limits.window)),
        keep_alive: (connect.keep_alive > 0).then(|| Duration::from_millis(u64::from(connect.keep_alive) * 1_500)),
        last_received: now,
        out,
        pending: VecDeque::new(),
        unsettled: 0,
        aliases: HashMap::new(),
        inbox: Inbox::new(number, broker.metrics.clone()),
        retained: VecDeque::new(),
        live: HashMap::new(),
        subscriptions: HashMap::new(),
        next_token: 0,
        consumer: None,
        run: LaneRun::default(),
        run_at: 0,
        readable: None,
        acks: Vec::new(),
        client_id,
        broker,
    };
    connection.broker.metrics.connections.inc();
    let end = connection.run(buffer, &kick, stop).await;
    connection.finish(end, &gone).await;
}

impl<S: Stream> Connection<S> {
    fn persistent(&self) -> bool {
        self.session.expiry_seconds > 0
    }

    async fn run(&mut self, mut buffer: BytesMut, kick: &Notify, mut stop: watch::Receiver<bool>) -> End {
        if let Err(end) = self.restore().await {
            return end;
        }
        if !buffer.is_empty()
            && let Err(end) = self.read_batch(&mut buffer).await
        {
            return end;
        }
        let timer = tokio::time::sleep(self.keep_alive.unwrap_or(Duration::from_secs(3_600)));
        tokio::pin!(timer);
        loop {
            if let Err(end) = self.send_what_is_due().await {
                return end;
            }
            // A client whose publishes wait for the disk is not read from until some are safe.
            let reading = self.unsettled < usize::from(self.broker.spec.limits.window);
            let sending = self.session.in_flight() < self.window;
            let front = self.pending.front_mut();
            let has_pending = front.is_some();
            let settled = async {
                match front {
                    Some(p) => p.settled.as_mut().await,
                    None => std::future::pending().await,
                }
            };
            let readable = self.readable.as_mut();
            let consuming = readable.is_some();
            let more = async {
                match readable {
                    Some(r) => r.as_mut().await,
                    None => std::future::pending().await,
                }
            };
            let step = tokio::select! {
                read = self.stream.read_buf(&mut buffer), if reading => Step::Read(read),
                result = settled, if has_pending => Step::Settled(result),
                () = self.inbox.bell.notified(), if sending => Step::Look,
                () = more, if consuming && sending => Step::Readable,
                () = timer.as_mut() => Step::Timer,
                () = kick.notified() => return End::Close { reason: reason::TAKEN_OVER, why: "taken-over" },
                _ = stop.wait_for(|s| *s) => return End::Close { reason: reason::SHUTTING_DOWN, why: "shutting-down" },
            };
            let result = match step {
                Step::Read(Ok(0)) | Step::Read(Err(_)) => Err(End::Lost),
                Step::Read(Ok(_)) => {
                    let result = self.read_batch(&mut buffer).await;
                    if buffer.is_empty() && buffer.capacity() > 0 {
                        // An idle client holds no buffer; the allocator hands the same block to the next one.
                        buffer = BytesMut::new();
                    }
                    result
                }
                Step::Settled(result) => self.answer(result).await,
                Step::Look => Ok(()),
                Step::Readable => {
                    self.readable = None;
                    Ok(())
                }
                Step::Timer => {
                    let silent = self.broker.clock.monotonic().since(self.last_received);
                    match self.keep_alive {
                        Some(limit) if silent >= limit => Err(End::Close { reason: reason::KEEP_ALIVE, why: "keep-alive" }),
                        limit => {
                            let rest = limit.map_or(Duration::from_secs(3_600), |l| l.saturating_sub(silent));
                            timer.as_mut().reset(tokio::time::Instant::now() + rest);
                            Ok(())
                        }
                    }
                }
            };
            if let Err(end) = result {
                return end;
            }
        }
    }

    /// The session's subscriptions come to life again.
    async fn restore(&mut self) -> Result<(), End> {
        let all: Vec<(String, Subscription)> = self.session.subscriptions.iter().map(|(k, s)| (k.clone(), s.clone())).collect();
        for (text, subscription) in all {
            self.attach(&text, subscription)?;
        }
        if self.persistent() {
            self.saved().await?;
        }
        Ok(())
    }

    async fn saved(&mut self) -> Result<(), End> {
        if let Err(error) = self.broker.save(&self.client_id, &self.session).await {
            tracing::error!(client_id = %self.client_id, error = %error, "a session cannot be kept");
            return Err(End::Close { reason: reason::IMPLEMENTATION, why: "store-failed" });
        }
        Ok(())
    }

    fn attach(&mut self, text: &str, subscription: Subscription) -> Result<(), End> {
        self.detach(text);
        let refused = |_| End::Close { reason: reason::QUOTA, why: "store-failed" };
        let pubsub = self.broker.spec.pubsub.clone();
        if subscription.is_durable(self.persistent()) {
            let destination = self.broker.destination(&self.client_id).map_err(refused)?;
            // The filter was checked before it came here.
            let _ = self.broker.hub.bind(destination, &pubsub, &subscription.filter);
            if self.consumer.is_none() {
                self.consumer = Some(self.broker.hub.consumer(destination));
                self.readable = Some(Box::pin(std::future::ready(())));
            }
            return Ok(());
        }
        self.next_token += 1;
        let token = self.next_token;
        self.inbox.set_no_local(token, subscription.no_local);
        let live = match &subscription.group {
            Some(group) => {
                self.broker.groups.join(&self.broker.hub, &pubsub, group, &subscription.filter, &self.inbox, token);
                None
            }
            None => self.broker.hub.subscribe(&pubsub, &subscription.filter, token, self.inbox.clone()).ok(),
        };
        self.live
            .insert(text.to_owned(), Live { token, group: subscription.group.clone(), filter: subscription.filter.clone(), _subscription: live });
        self.subscriptions.insert(token, subscription);
        Ok(())
    }

    fn detach(&mut self, text: &str) {
        if let Some(live) = self.live.remove(text) {
            self.inbox.set_no_local(live.token, false);
            self.subscriptions.remove(&live.token);
            if let Some(group) = &live.group {
                self.broker.groups.leave(group, &live.filter, &self.inbox);
            }
        }
    }

    /// Handles every whole packet in the buffer; neighbouring publishes are one batch.
    async fn read_batch(&mut self, buffer: &mut BytesMut) -> Result<(), End> {
        self.last_received = self.broker.clock.monotonic();
        let limit = self.broker.spec.limits.packet_bytes;
        let taken = buffer.split();
        let mut at = 0;
        let mut publishes: Vec<Publish<'_>> = Vec::new();
        loop {
            let next = wire::decode(&taken[at..], Some(self.version), limit);
            let whole = match next {
                Ok(Some((Packet::Publish(p), length))) => {
                    publishes.push(p);
                    at += length;
                    continue;
                }
                other => other,
            };
            // What came before a mistake counts.
            if !publishes.is_empty() {
                self.take(&publishes).await?;
                publishes.clear();
            }
            match whole? {
                None => break,
                Some((packet, length)) => {
                    at += length;
                    self.handle(packet).await?;
                }
            }
        }
        self.acknowledge_records();
        if at < taken.len() {
            let mut rest = taken;
            rest.advance(at);
            *buffer = rest;
        }
        Ok(())
    }

    async fn handle(&mut self, packet: Packet<'_>) -> Result<(), End> {
        match packet {
            Packet::PubAck(id) => {
                if let Some(Origin::Record(lane, sequence)) = self.session.acknowledged(id) {
                    self.acks.push((lane, sequence));
                }
            }
            Packet::PubRec(id, refused) => {
                let origin = if refused { self.session.acknowledged(id) } else { self.session.received_by_client(id) };
                if let Some(Origin::Record(lane, sequence)) = origin {
                    self.acks.push((lane, sequence));
                }
                if !refused {
                    wire::acknowledge(&mut self.out, self.version, 6, id, reason::SUCCESS);
                }
            }
            Packet::PubComp(id) => self.session.completed(id),
            Packet::PubRel(id) => {
                self.session.received.remove(&id);
                wire::acknowledge(&mut self.out, self.version, 7, id, reason::SUCCESS);
            }
            Packet::Subscribe { id, subscription, filters } => self.subscribe(id, subscription, &filters).await?,
            Packet::Unsubscribe { id, filters } => self.unsubscribe(id, &filters).await?,
            Packet::PingReq => wire::pingresp(&mut self.out),
            Packet::Disconnect { reason, session_expiry } => {
                if let Some(expiry) = session_expiry {
                    if self.session.expiry_seconds == 0 && expiry > 0 {
                        return Err(WireError { reason: reason::PROTOCOL_ERROR, what: "a session expiry where there was none" }.into());
                    }
                    self.session.expiry_seconds = expiry;
                }
                return Err(End::Goodbye { will: reason == reason::DISCONNECT_WITH_WILL });
            }
            // The reader keeps these for itself.
            Packet::Publish(_) | Packet::Connect(_) => {}
        }
        Ok(())
    }

    async fn subscribe(&mut self, id: u16, identifier: Option<u32>, filters: &[Filter<'_>]) -> Result<(), End> {
        let mut codes = Vec::with_capacity(filters.len());
        for f in filters {
            let parts = session::split_share(f.filter).filter(|(_, filter)| topic::check_filter(filter).is_ok());
            let Some((group, filter)) = parts else {
                codes.push(if self.version == Version::V5 { reason::FILTER_INVALID } else { reason::UNSPECIFIED });
                continue;
            };
            if self.user.as_ref().is_some_and(|u| !u.may_subscribe(filter)) {
                self.broker.metrics.refused("subscribe-not-authorized");
                codes.push(if self.version == Version::V5 { reason::NOT_AUTHORIZED } else { reason::UNSPECIFIED });
                continue;
            }
            let known = self.session.subscriptions.contains_key(f.filter);
            if !known && self.session.subscriptions.len() >= MAX_SUBSCRIPTIONS {
                self.broker.metrics.refused("too-many-subscriptions");
                codes.push(if self.version == Version::V5 { reason::QUOTA } else { reason::UNSPECIFIED });
                continue;
            }
            let subscription = Subscription {
                filter: filter.to_owned(),
                group: group.map(str::to_owned),
                qos: f.qos,
                no_local: f.no_local,
                retain_as_published: f.retain_as_published,
                id: identifier,
            };
            let durable = subscription.is_durable(self.persistent());
            if known && !durable {
                self.unbind(f.filter);
            }
            self.session.subscriptions.insert(f.filter.to_owned(), subscription.clone());
            self.attach(f.filter, subscription.clone())?;
            if group.is_none() && (f.retain_handling == 0 || (f.retain_handling == 1 && !known)) {
                let token = self.retained_token(f.filter, &subscription);
                let kept = self.broker.hub.retained(&self.broker.spec.pubsub, filter);
                self.retained.extend(kept.into_iter().map(|message| Waiting { token, message, retained: true }));
            }
            codes.push(f.qos);
        }
        if self.persistent() {
            self.saved().await?;
        }
        wire::codes(&mut self.out, self.version, 9, id, &codes);
        Ok(())
    }

    /// Retained messages of a durable subscription are sent live, so they need a token as well.
    fn retained_token(&mut self, text: &str, subscription: &Subscription) -> u64 {
        if let Some(live) = self.live.get(text) {
            return live.token;
        }
        self.next_token += 1;
        self.subscriptions.insert(self.next_token, subscription.clone());
        self.live.insert(text.to_owned(), Live { token: self.next_token, group: None, filter: subscription.filter.clone(), _subscription: None });
        self.next_token
    }

    fn unbind(&mut self, text: &str) {
        if let Some(old) = self.session.subscriptions.get(text)
            && old.is_durable(self.persistent())
            && let Ok(destination) = self.broker.destination(&self.client_id)
        {
            self.broker.hub.unbind(destination, &self.broker.spec.pubsub, &old.filter);
        }
    }

    async fn unsubscribe(&mut self, id: u16, filters: &[&str]) -> Result<(), End> {
        let mut codes = Vec::with_capacity(filters.len());
        for text in filters {
            self.unbind(text);
            self.detach(text);
            let known = self.session.subscriptions.remove(*text).is_some();
            codes.push(if known { reason::SUCCESS } else { reason::NO_SUBSCRIPTION_EXISTED });
        }
        if self.persistent() {
            self.saved().await?;
        }
        wire::codes(&mut self.out, self.version, 11, id, &codes);
        Ok(())
    }

    /// A batch of publishes goes to the hub in one call; its answers wait for the store.
    async fn take(&mut self, batch: &[Publish<'_>]) -> Result<(), End> {
        let topics = self.topics(batch)?;
        let mut at = 0;
        let mut busy_since: Option<Monotonic> = None;
        while at < batch.len() {
            // A run of messages that may be taken, up to the first that is answered without the hub.
            let mut messages: Vec<Inbound<'_>> = Vec::with_capacity(batch.len() - at);
            let mut ids = BTreeSet::new();
            for (p, topic) in batch[at..].iter().zip(&topics[at..]) {
                if (p.qos == 2 && (self.session.received.contains(&p.id) || ids.contains(&p.id))) || !self.may_publish(topic) {
                    break;
                }
                if p.qos == 2 {
                    ids.insert(p.id);
                }
                messages.push(Inbound {
                    topic,
                    payload: p.payload,
                    attributes: p.properties.attributes(),
                    qos: p.qos,
                    retain: p.retain,
                    ttl_seconds: p.properties.expiry,
                });
            }
            if messages.is_empty() {
                let p = &batch[at];
                let known = p.qos == 2 && self.session.received.contains(&p.id);
                if !known {
                    self.broker.metrics.refused("publish-not-authorized");
                }
                // As mosquitto does: a version 3 client is not told, since it could not be.
                self.answer_directly(p, if known { reason::SUCCESS } else { reason::NOT_AUTHORIZED });
                at += 1;
                continue;
            }
            let accepted = publishing_as(self.number, || self.broker.hub.accept(&self.broker.spec.pubsub, &messages));
            let taken = &batch[at..at + accepted.taken];
            self.broker.metrics.received.inc_by(taken.len() as u64);
            at += accepted.taken;
            let mut answers = Vec::with_capacity(taken.len() * 4);
            let mut publishes = 0;
            let mut quality_2 = false;
            for p in taken {
                if p.qos > 0 {
                    publishes += 1;
                    wire::acknowledge(&mut answers, self.version, if p.qos == 1 { 4 } else { 5 }, p.id, reason::SUCCESS);
                }
                if p.qos == 2 {
                    quality_2 = true;
                    self.session.received.insert(p.id);
                }
            }
            if publishes > 0 {
                let row = (quality_2 && self.persistent()).then(|| self.broker.save(&self.client_id, &self.session));
                if row.is_none() && self.pending.is_empty() && self.broker.hub.is_settled(&accepted.receipt) {
                    self.out.extend_from_slice(&answers);
                } else {
                    let hub = self.broker.hub.clone();
                    let settled = Box::pin(async move {
                        hub.settled(accepted.receipt).await?;
                        match row {
                            Some(row) => row.await.map_err(|e| AcceptError::Retained(e.into())),
                            None => Ok(()),
                        }
                    });
                    self.unsettled += publishes;
                    // A version 5 client was told how many may be open; one read may hold twice that from a fair client of version 3.
                    if self.version == Version::V5 && self.unsettled > usize::from(self.broker.spec.limits.window) {
                        return Err(End::Close { reason: reason::RECEIVE_MAXIMUM, why: "receive-maximum" });
                    }
                    self.pending.push_back(Pending { settled, answers, publishes });
                }
            }
            if let Some(refused) = accepted.refused {
                let p = &batch[at];
                let busy = matches!(refused, AcceptError::Outbox(OutboxError::Busy { .. }));
                if busy {
                    let now = self.broker.clock.monotonic();
                    if now.since(*busy_since.get_or_insert(now)) > BUSY_TIMEOUT {
                        return Err(End::Close { reason: reason::BUSY, why: "disk-too-slow" });
                    }
                    // The store wakes us when it has written something.
                    let lanes = self.broker.hub.outbox().lanes();
                    let writable: Vec<_> = lanes.into_iter().map(|(lane, _)| Box::pin(self.broker.hub.outbox().writable(lane))).collect();
                    let _ = tokio::time::timeout(Duration::from_millis(50), first_of(writable)).await;
                    continue;
                }
                self.refuse(p, &refused).await?;
                at += 1;
            }
        }
        Ok(())
    }

    fn may_publish(&self, topic_name: &str) -> bool {
        !topic_name.starts_with('$') && self.user.as_ref().is_none_or(|u| u.may_write(topic_name))
    }

    /// Topics with aliases resolved (5.0, section 3.3.2.3.4).
    fn topics<'p>(&mut self, batch: &[Publish<'p>]) -> Result<Vec<Cow<'p, str>>, End> {
        let mut topics = Vec::with_capacity(batch.len());
        for p in batch {
            match p.properties.alias {
                None => topics.push(Cow::Borrowed(p.topic)),
                Some(alias) if alias > TOPIC_ALIASES => {
                    return Err(WireError { reason: reason::TOPIC_ALIAS, what: "topic alias beyond the maximum" }.into());
                }
                Some(alias) if p.topic.is_empty() => match self.aliases.get(&alias) {
                    Some(known) => topics.push(Cow::Owned(known.clone())),
                    None => return Err(WireError { reason: reason::PROTOCOL_ERROR, what: "topic alias that was not set" }.into()),
                },
                Some(alias) => {
                    self.aliases.insert(alias, p.topic.to_owned());
                    topics.push(Cow::Borrowed(p.topic));
                }
            }
        }
        Ok(topics)
    }

    /// An answer that waits for nothing, but keeps its turn behind those that wait.
    fn answer_directly(&mut self, p: &Publish<'_>, code: u8) {
        if p.qos == 0 {
            return;
        }
        let mut answer = Vec::with_capacity(5);
        wire::acknowledge(&mut answer, self.version, if p.qos == 1 { 4 } else { 5 }, p.id, code);
        match self.pending.back_mut() {
            Some(last) => last.answers.extend_from_slice(&answer),
            None => self.out.extend_from_slice(&answer),
        }
    }

    async fn refuse(&mut self, p: &Publish<'_>, why: &AcceptError) -> Result<(), End> {
        let (code, label) = match why {
            AcceptError::Topic { .. } => (reason::TOPIC_INVALID, "topic-invalid"),
            AcceptError::Outbox(OutboxError::Full { .. }) | AcceptError::Retained(_) => (reason::QUOTA, "lane-full"),
            AcceptError::Outbox(OutboxError::TooLarge { .. }) => (reason::TOO_LARGE, "record-too-large"),
            AcceptError::Outbox(_) => (reason::IMPLEMENTATION, "lane-failed"),
        };
        self.broker.metrics.refused(label);
        if code == reason::IMPLEMENTATION {
            return Err(End::Close { reason: code, why: label });
        }
        if p.qos == 0 {
            self.broker.metrics.dropped(label);
            return Ok(());
        }
        if self.version == Version::V5 {
            self.answer_directly(p, code);
            return Ok(());
        }
        // Version 3 has no way to refuse: it gets no acknowledgement, and its connection ends.
        self.flush().await?;
        tokio::time::sleep(REFUSAL_PAUSE).await;
        Err(End::Close { reason: code, why: label })
    }

    /// The front of the line is safe: its answers may go, and those behind it that are safe as well.
    async fn answer(&mut self, result: Result<(), AcceptError>) -> Result<(), End> {
        if let Err(error) = result {
            tracing::error!(client_id = %self.client_id, error = %error, "messages are not safe; their sender gets no acknowledgement");
            return Err(End::Close { reason: reason::IMPLEMENTATION, why: "lane-failed" });
        }
        if let Some(done) = self.pending.pop_front() {
            self.out.extend_from_slice(&done.answers);
            self.unsettled -= done.publishes;
        }
        Ok(())
    }

    fn acknowledge_records(&mut self) {
        let Some(consumer) = &self.consumer else { return };
        self.acks.sort_unstable();
        let mut rest = self.acks.as_slice();
        while let Some((lane, _)) = rest.first() {
            let n = rest.iter().take_while(|(l, _)| l == lane).count();
            let sequences: Vec<u64> = rest[..n].iter().map(|(_, s)| *s).collect();
            consumer.acknowledge(*lane, &sequences);
            rest = &rest[n..];
        }
        self.acks.clear();
    }

    /// Sends what the client's window has room for: retained, then live, then stored messages.
    async fn send_what_is_due(&mut self) -> Result<(), End> {
        loop {
            let before = self.out.len();
            while self.out.len() < OUT_BYTES && self.session.in_flight() < self.window {
                let Some(waiting) = self.retained.pop_front().or_else(|| self.inbox.pop()) else { break };
                self.send_live(&waiting);
            }
            self.send_records()?;
            let stuck = self.out.len() == before;
            if self.out.is_empty() {
                return Ok(());
            }
            self.flush().await?;
            if stuck {
                return Ok(());
            }
        }
    }

    fn send_live(&mut self, waiting: &Waiting) {
        let Some(subscription) = self.subscriptions.get(&waiting.token) else { return };
        let m = &waiting.message;
        if self.user.as_ref().is_some_and(|u| !u.may_read(&m.topic)) {
            return;
        }
        let qos = m.qos.min(subscription.qos);
        let id = if qos > 0 {
            match self.session.send(Origin::Live) {
                Some((id, _)) => id,
                None => return self.inbox.put_back(waiting.clone()),
            }
        } else {
            0
        };
        let user: Vec<(&str, &str)> = m.attributes.user.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let subscriptions: Vec<u32> = subscription.id.into_iter().collect();
        let message = Outgoing {
            topic: &m.topic,
            payload: &m.payload,
            attributes: Attributes {
                content_type: m.attributes.content_type.as_deref(),
                response_topic: m.attributes.response_topic.as_deref(),
                correlation_data: m.attributes.correlation_data.as_deref(),
                utf8: m.attributes.utf8,
                user: &user,
            },
            qos,
            id,
            dup: false,
            retain: waiting.retained || (m.retain && subscription.retain_as_published),
            expiry: m.ttl_seconds,
            subscriptions: &subscriptions,
        };
        if wire::publish_to(&mut self.out, self.version, &message, self.largest) {
            self.broker.metrics.sent.inc();
        } else {
            self.session.acknowledged(id);
            self.broker.metrics.dropped("larger-than-client-takes");
        }
    }

    fn send_records(&mut self) -> Result<(), End> {
        let Some(consumer) = &mut self.consumer else { return Ok(()) };
        let now = self.broker.hub.outbox().now();
        loop {
            if self.run_at >= self.run.run.len() {
                let room = self.window.saturating_sub(self.session.in_flight());
                if room == 0 || self.out.len() >= OUT_BYTES || self.readable.is_some() {
                    return Ok(());
                }
                self.run_at = 0;
                match consumer.next_run(room, 32 << 10, &mut self.run) {
                    Ok(0) => {
                        // Caught up: an idle client holds no buffer.
                        self.run = LaneRun::default();
                        self.readable = Some(Box::pin(consumer.readable()));
                        return Ok(());
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::error!(client_id = %self.client_id, error = %error, "stored messages cannot be read");
                        return Err(End::Close { reason: reason::IMPLEMENTATION, why: "lane-failed" });
                    }
                }
            }
            let Some(lane) = self.run.lane() else { return Ok(()) };
            let mut done: Vec<u64> = Vec::new();
            for record in self.run.run.iter().skip(self.run_at) {
                if self.session.in_flight() >= self.window {
                    break;
                }
                self.run_at += 1;
                let sequence = record.id.sequence;
                let readable = self.user.as_ref().is_none_or(|u| u.may_read(record.topic()));
                // A record of a subscription that has ended meanwhile is done.
                let Some((granted, subscriptions, as_published)) = self.session.match_record(record.topic()).filter(|_| readable) else {
                    done.push(sequence);
                    continue;
                };
                let qos = record.qos().min(granted);
                let (id, dup) = if qos > 0 {
                    match self.session.send(Origin::Record(lane, sequence)) {
                        Some(sent) => sent,
                        None => {
                            self.run_at -= 1;
                            break;
                        }
                    }
                } else {
                    (0, false)
                };
                let written = record.with_attributes(|attributes| {
                    let message = Outgoing {
                        topic: record.topic(),
                        payload: record.payload(),
                        attributes,
                        qos,
                        id,
                        dup,
                        retain: record.retain() && as_published,
                        expiry: record.remaining_seconds(now),
                        subscriptions: &subscriptions,
                    };
                    wire::publish_to(&mut self.out, self.version, &message, self.largest)
                });
                if written {
                    self.broker.metrics.sent.inc();
                } else {
                    self.session.acknowledged(id);
                    self.broker.metrics.dropped("larger-than-client-takes");
                }
                if qos == 0 || !written {
                    done.push(sequence);
                }
            }
            if !done.is_empty() {
                consumer.acknowledge(lane, &done);
            }
            if self.session.in_flight() >= self.window {
                return Ok(());
            }
        }
    }

    async fn flush(&mut self) -> Result<(), End> {
        if self.out.is_empty() {
            return Ok(());
        }
        match tokio::time::timeout(WRITE_TIMEOUT, self.stream.write_all(&self.out)).await {
            Ok(result) => result?,
            Err(_) => return Err(End::Close { reason: reason::UNSPECIFIED, why: "client-does-not-read" }),
        }
        self.out.clear();
        if self.out.capacity() > OUT_BYTES {
            self.out = Vec::new();
        }
        Ok(())
    }

    async fn finish(mut self, end: End, gone: &watch::Sender<bool>) {
        self.acknowledge_records();
        let mut will = self.will.take();
        match &end {
            End::Goodbye { will: wanted } => {
                if !wanted {
                    will = None;
                }
            }
            End::Lost => {}
            End::Close { reason, why } => {
                self.broker.metrics.closed(why);
                if *reason == reason::SHUTTING_DOWN {
                    // Acknowledgements that are owed go out; the store is still at work.
                    while let Some(front) = self.pending.front_mut() {
                        let settled = tokio::time::timeout(Duration::from_secs(2), front.settled.as_mut()).await;
                        if !matches!(settled, Ok(Ok(()))) {
                            break;
                        }
                        if let Some(done) = self.pending.pop_front() {
                            self.out.extend_from_slice(&done.answers);
                        }
                    }
                }
                wire::disconnect(&mut self.out, self.version, *reason);
                let _ = tokio::time::timeout(Duration::from_secs(1), self.stream.write_all(&self.out)).await;
                let _ = tokio::time::timeout(Duration::from_secs(1), self.stream.shutdown()).await;
            }
        }
        let texts: Vec<String> = self.live.keys().cloned().collect();
        for text in texts {
            self.detach(&text);
        }
        self.consumer = None;
        if self.persistent()
            && let Err(error) = self.broker.save(&self.client_id, &self.session).await
        {
            tracing::warn!(client_id = %self.client_id, error = %error, "a session could not be kept up to date");
        }
        self.broker.metrics.connections.dec();
        let session = std::mem::take(&mut self.session);
        self.broker.release(&self.client_id, self.number, session, will, gone);
    }
}

enum Step {
    Read(io::Result<usize>),
    Settled(Result<(), AcceptError>),
    Look,
    Readable,
    Timer,
}

/// Resolves with the first of several futures.
async fn first_of<F: Future<Output = ()> + Unpin>(mut futures: Vec<F>) {
    std::future::poll_fn(|cx| {
        for f in &mut futures {
            if Pin::new(f).poll(cx).is_ready() {
                return std::task::Poll::Ready(());
            }
        }
        std::task::Poll::Pending
    })
    .await;
}
