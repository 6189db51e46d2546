//! One connection: reads batches, hands them on, answers when they are safe, sends what the client subscribed to.

mod deliveries;
mod publishes;
mod subscriptions;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use selvedge::hub::{AcceptError, Consumer, LaneRun, LiveSubscription, Receipt};
use selvedge::message::{Attributes, Inbound};
use selvedge::outbox::{LaneId, OutboxError};
use selvedge::resource::ListenerLimits;
use selvedge::time::Monotonic;
use selvedge::topic;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;

use crate::broker::{Broker, Kick, OwnedWill};
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
    /// Quality of service and id of the one publish that waits for an upstream: its own answer is not among the others, since it may be
    /// refused.
    passing: Option<(u8, u16)>,
}

impl Pending {
    /// The publish that waited for an upstream is taken: its answer goes first.
    fn take_passing(&mut self, version: Version) {
        if let Some((qos, id)) = self.passing.take() {
            let mut answers = Vec::with_capacity(4 + self.answers.len());
            wire::acknowledge(&mut answers, version, if qos == 1 { 4 } else { 5 }, id, reason::SUCCESS);
            answers.append(&mut self.answers);
            self.answers = answers;
        }
    }
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
    limits: ListenerLimits,
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
    let packet_bytes = broker.rules().limits.packet_bytes;
    let opened = tokio::select! {
        opened = tokio::time::timeout(CONNECT_TIMEOUT, read_connect(packet_bytes, &mut stream, &mut buffer)) => opened,
        _ = stop.wait_for(|s| *s) => return,
    };
    match opened {
        Ok(Ok(length)) => {
            let first = buffer.split_to(length).freeze();
            // It was decoded once to know that it is whole; the packet borrows from `first`.
            if let Ok(Some((Packet::Connect(connect), _))) = wire::decode(&first, None, packet_bytes) {
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

async fn read_connect<S: Stream>(packet_bytes: u32, stream: &mut S, buffer: &mut BytesMut) -> Result<usize, End> {
    loop {
        if let Some((_, length)) = wire::decode(buffer, None, packet_bytes)? {
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
    let rules = broker.rules();
    let user = match &rules.users {
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
        if code == reason::BAD_CREDENTIALS {
            broker.tell_stranger(connect.client_id, connect.user);
        }
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
    let limits = rules.limits;
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
        limits,
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

    async fn run(&mut self, mut buffer: BytesMut, kick: &Kick, mut stop: watch::Receiver<bool>) -> End {
        // Accounts may have changed since the password was looked at; from here on the bell says so.
        if let Err(end) = self.check_account() {
            return end;
        }
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
            let reading = self.unsettled < usize::from(self.limits.window);
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
                () = kick.bell.notified() => Step::Kicked,
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
                Step::Kicked if kick.taken_over.load(Ordering::Relaxed) => Err(End::Close { reason: reason::TAKEN_OVER, why: "taken-over" }),
                Step::Kicked => self.check_account(),
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

    /// Gives the connection the rights that its account has now, and closes it when the account is gone or has another password.
    fn check_account(&mut self) -> Result<(), End> {
        let users = self.broker.rules().users;
        let revoked = End::Close { reason: reason::NOT_AUTHORIZED, why: "account-changed" };
        self.user = match (users, &self.user) {
            (None, _) => None,
            (Some(users), Some(user)) => Some(users.again(user).cloned().ok_or(revoked)?),
            (Some(_), None) => return Err(revoked),
        };
        Ok(())
    }

    /// Handles every whole packet in the buffer; neighbouring publishes are one batch.
    async fn read_batch(&mut self, buffer: &mut BytesMut) -> Result<(), End> {
        self.last_received = self.broker.clock.monotonic();
        let limit = self.limits.packet_bytes;
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
                        self.answer_front();
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
    Kicked,
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
