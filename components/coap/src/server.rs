//! The UDP server: a thin loop around the endpoint.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use selvedge::component::{BoundListener, Fut, InitError, ListenerContext, addresses};
use selvedge::hub::{AcceptError, Hub, LiveSink, LiveSubscription, Receipt};
use selvedge::message::{Attributes, Inbound, Message};
use selvedge::outbox::{OutboxError, Unpassed};
use selvedge::time::{Clock, Monotonic};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::endpoint::{Action, Answer, Endpoint, Publish, Request, RequestId};
use crate::formats;
use crate::metrics::{CoapMetrics, Dropped};
use crate::packet::Code;
use crate::resource::link_format;
use crate::settings::{MAX_DATAGRAM_BYTES, Settings};

/// Datagrams that are read before answers go out: they are one batch for the store.
const BATCH: usize = 64;
/// Messages that wait to be told to observers. Those beyond are dropped and counted.
const NOTIFICATION_QUEUE: usize = 1_024;
/// Longest wait for what is owed when the listener stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How long the list of topics is used again: making it looks at every retained message.
const LINKS_FRESH: Duration = Duration::from_secs(1);
/// Largest list of topics, in bytes.
const MAX_LINKS_BYTES: usize = 16_384;
/// Wait after the socket failed, so that a broken one does not spin.
const SOCKET_PAUSE: Duration = Duration::from_millis(100);
/// User property for a Content-Format that has no media type here.
const FORMAT_PROPERTY: &str = "coap-content-format";

type Settled = (Vec<RequestId>, Result<(), AcceptError>);

/// Binds the socket of a CoAP listener.
///
/// # Errors
/// When the address cannot be used, or the resource asks for what is not there: TLS, users.
pub async fn bind(context: ListenerContext) -> Result<Box<dyn BoundListener>, InitError> {
    let spec = &context.spec;
    let absent = |what: &str, way_out: &str| Err(InitError::Failed(format!("listener {}: {what}; {way_out}", context.name)));
    if spec.tls.is_some() {
        return absent("coap over DTLS is not served yet", "remove `tls`, or use an mqtt listener with `tls`");
    }
    if spec.users_file.is_some() {
        return absent("a coap listener cannot tell users apart without DTLS", "remove `users`, or use an mqtt listener with `users`");
    }
    let sockets = context.sockets.receive(&spec.bind).await?;
    let metrics = CoapMetrics::new(&context.metrics, &context.name);
    let each = sockets.into_iter().map(|socket| server(&context, socket, &metrics)).collect::<Result<Vec<_>, _>>()?;
    Ok(Box::new(Servers(each)))
}

/// The server of one socket: an answer leaves from where its request came in.
fn server(context: &ListenerContext, socket: UdpSocket, metrics: &CoapMetrics) -> Result<Server, InitError> {
    let spec = &context.spec;
    let address = socket.local_addr().map_err(|e| InitError::failed("a socket for coap has no address", e))?;
    // SipHash under a key from the system: nobody can foresee the next value from those seen.
    let (keys, mut count) = (RandomState::new(), 0u64);
    let random = Box::new(move || {
        count = count.wrapping_add(1);
        keys.hash_one(count)
    });
    let (sink, notifications) = mpsc::channel(NOTIFICATION_QUEUE);
    Ok(Server {
        name: context.name.clone(),
        address,
        socket,
        endpoint: Endpoint::new(Settings::from(spec.limits), random, metrics.clone()),
        sink: Arc::new(Sink { queue: sink, metrics: metrics.clone() }),
        metrics: metrics.clone(),
        hub: context.hub.clone(),
        pubsub: spec.pubsub.clone(),
        clock: context.clock.clone(),
        subscriptions: HashMap::new(),
        notifications,
        settling: FuturesUnordered::new(),
        actions: Vec::new(),
        links: None,
    })
}

struct Sink {
    queue: mpsc::Sender<Arc<Message>>,
    metrics: CoapMetrics,
}

impl LiveSink for Sink {
    fn deliver(&self, _: u64, message: &Arc<Message>) {
        if self.queue.try_send(message.clone()).is_err() {
            self.metrics.dropped(Dropped::Lagging);
        }
    }
}

struct Server {
    name: String,
    address: SocketAddr,
    socket: UdpSocket,
    endpoint: Endpoint,
    sink: Arc<Sink>,
    metrics: CoapMetrics,
    hub: Hub,
    pubsub: String,
    clock: Arc<dyn Clock>,
    /// By topic; at most one per observer.
    subscriptions: HashMap<String, LiveSubscription>,
    notifications: mpsc::Receiver<Arc<Message>>,
    /// At most one per waiting request.
    settling: FuturesUnordered<Fut<'static, Settled>>,
    actions: Vec<Action>,
    links: Option<(Monotonic, Bytes)>,
}

/// One server for each socket of the listener.
struct Servers(Vec<Server>);

impl BoundListener for Servers {
    fn address(&self) -> String {
        addresses(self.0.iter().map(|server| Ok(server.address)))
    }

    fn serve(self: Box<Self>, stop: Fut<'static, ()>) -> Fut<'static, ()> {
        let stop = stop.shared();
        let all = self.0.into_iter().map(move |server| server.run(Box::pin(stop.clone())));
        Box::pin(async move {
            futures_util::future::join_all(all).await;
        })
    }
}

impl Server {
    async fn run(mut self, mut stop: Fut<'static, ()>) {
        let mut buffer = vec![0; MAX_DATAGRAM_BYTES + 1];
        let mut stop_by: Option<Monotonic> = None;
        tracing::debug!(listener = %self.name, address = %self.address, "coap listener serves");
        loop {
            let now = self.clock.monotonic();
            if let Some(by) = stop_by
                && (self.endpoint.owes_nothing() || by <= now)
            {
                break;
            }
            let deadline = self.endpoint.next_deadline().into_iter().chain(stop_by).min();
            let wait = async {
                match deadline {
                    Some(at) => tokio::time::sleep(at.since(now)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut stop, if stop_by.is_none() => {
                    let now = self.clock.monotonic();
                    stop_by = Some(now.plus(DRAIN_LIMIT));
                    self.endpoint.drain(now, &mut self.actions);
                }
                ready = self.socket.readable() => match ready {
                    Ok(()) => self.receive(&mut buffer).await,
                    Err(error) => self.socket_failed(&error).await,
                },
                Some((ids, result)) = self.settling.next() => self.settled(&ids, &result),
                Some(message) = self.notifications.recv() => {
                    let now = self.clock.monotonic();
                    self.endpoint.notify(now, &message, &mut self.actions);
                }
                () = wait => {}
            }
            let now = self.clock.monotonic();
            self.endpoint.tick(now, &mut self.actions);
            self.perform().await;
        }
        tracing::debug!(listener = %self.name, "coap listener stopped");
    }

    /// Reads what has come, up to a batch.
    async fn receive(&mut self, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            match self.socket.try_recv_from(buffer) {
                Ok((length, from)) => {
                    let cut = length > MAX_DATAGRAM_BYTES;
                    let now = self.clock.monotonic();
                    self.endpoint.datagram(now, from, &buffer[..length.min(MAX_DATAGRAM_BYTES)], cut, &mut self.actions);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => return self.socket_failed(&error).await,
            }
        }
    }

    async fn socket_failed(&mut self, error: &std::io::Error) {
        self.metrics.dropped(Dropped::Socket);
        tracing::debug!(listener = %self.name, %error, "coap socket failed");
        tokio::time::sleep(SOCKET_PAUSE).await;
    }

    /// Does what the endpoint has asked for, until it asks for no more.
    async fn perform(&mut self) {
        while !self.actions.is_empty() {
            let mut publishes = Vec::new();
            for action in std::mem::take(&mut self.actions) {
                match action {
                    Action::Send(to, bytes) => self.send(to, &bytes).await,
                    Action::Request(id, Request::Publish(publish)) => publishes.push((id, publish)),
                    Action::Request(id, Request::Read(topic)) => {
                        let kept = self.hub.retained(&self.pubsub, &topic);
                        self.answer(id, kept.first().map_or_else(|| Answer::of(Code::NOT_FOUND), |message| Answer::message(message)));
                    }
                    Action::Request(id, Request::Discover) => {
                        let answer = Answer { payload: self.links(), content_format: Some(formats::LINK_FORMAT), ..Answer::of(Code::CONTENT) };
                        self.answer(id, answer);
                    }
                    Action::Watch(topic) => match self.hub.subscribe(&self.pubsub, &topic, 0, self.sink.clone()) {
                        Ok(subscription) => {
                            self.subscriptions.insert(topic, subscription);
                        }
                        Err(error) => tracing::error!(listener = %self.name, %error, "a topic that was checked cannot be subscribed"),
                    },
                    Action::Unwatch(topic) => {
                        self.subscriptions.remove(&topic);
                    }
                }
            }
            self.publish(&publishes);
        }
    }

    fn answer(&mut self, id: RequestId, answer: Answer) {
        let now = self.clock.monotonic();
        self.endpoint.answer(now, id, answer, &mut self.actions);
    }

    async fn send(&mut self, to: SocketAddr, bytes: &[u8]) {
        let sent = match self.socket.try_send_to(bytes, to) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.socket.send_to(bytes, to).await,
            other => other,
        };
        if let Err(error) = sent {
            // The protocol repeats what matters.
            self.metrics.dropped(Dropped::Socket);
            tracing::debug!(listener = %self.name, peer = %to, %error, "coap datagram not sent");
        }
    }

    /// Hands a batch to the exchange. Each sender is answered when everything of the batch is safe: one sync serves them all.
    fn publish(&mut self, publishes: &[(RequestId, Publish)]) {
        if publishes.is_empty() {
            return;
        }
        let unnamed: Vec<Option<String>> = publishes
            .iter()
            .map(|(_, p)| p.content_format.filter(|format| formats::media_type(*format).is_none()).map(|format| format.to_string()))
            .collect();
        let properties: Vec<Option<(&str, &str)>> = unnamed.iter().map(|text| text.as_deref().map(|text| (FORMAT_PROPERTY, text))).collect();
        let messages: Vec<Inbound<'_>> = publishes
            .iter()
            .zip(&properties)
            .map(|((_, p), property)| Inbound {
                attributes: Attributes {
                    content_type: p.content_format.and_then(formats::media_type),
                    user: property.as_slice(),
                    ..Attributes::default()
                },
                retain: p.retain,
                ttl_seconds: p.ttl_seconds,
                ..Inbound::new(&p.topic, &p.payload)
            })
            .collect();
        let mut receipt = Receipt::default();
        let mut taken = Vec::with_capacity(messages.len());
        let mut at = 0;
        while at < messages.len() {
            let accepted = self.hub.accept(&self.pubsub, &messages[at..]);
            let these = publishes[at..at + accepted.taken].iter().map(|(id, _)| *id);
            if accepted.receipt.is_passing() {
                // It is answered by itself: another one's upstream may have refused.
                let (ids, hub, own) = (these.collect(), self.hub.clone(), accepted.receipt);
                self.settling.push(Box::pin(async move { (ids, hub.settled(own).await) }));
            } else {
                receipt.merge(accepted.receipt);
                taken.extend(these);
            }
            at += accepted.taken;
            if (accepted.taken == 0 || accepted.refused.is_some())
                && let Some((id, _)) = publishes.get(at)
            {
                let answer = accepted.refused.as_ref().map_or_else(|| Answer::try_again(1, "not taken"), refusal);
                self.answer(*id, answer);
                at += 1;
            }
        }
        if taken.is_empty() {
            return;
        }
        if self.hub.is_settled(&receipt) {
            return self.settled(&taken, &Ok(()));
        }
        let hub = self.hub.clone();
        self.settling.push(Box::pin(async move { (taken, hub.settled(receipt).await) }));
    }

    fn settled(&mut self, ids: &[RequestId], result: &Result<(), AcceptError>) {
        for id in ids {
            self.answer(*id, result.as_ref().map_or_else(refusal, |()| Answer::of(Code::CHANGED)));
        }
    }

    fn links(&mut self) -> Bytes {
        let now = self.clock.monotonic();
        if let Some((made, links)) = &self.links
            && now.since(*made) < LINKS_FRESH
        {
            return links.clone();
        }
        let kept = self.hub.retained(&self.pubsub, "#");
        let topics = kept.iter().map(|m| (m.topic.as_str(), m.attributes.content_type.as_deref().and_then(formats::number)));
        let links = link_format(topics, MAX_LINKS_BYTES);
        self.links = Some((now, links.clone()));
        links
    }
}

/// What a sender is told whose message was not taken.
fn refusal(error: &AcceptError) -> Answer {
    let text = error.to_string();
    match error {
        AcceptError::Topic { .. } => Answer::text(Code::BAD_REQUEST, &text),
        AcceptError::Outbox(OutboxError::NotPassed { why: Unpassed::Refused(_), .. }) => Answer::text(Code::BAD_GATEWAY, &text),
        AcceptError::Outbox(OutboxError::TooLarge { limit, .. }) => Answer::too_large(usize::try_from(*limit).unwrap_or(usize::MAX)),
        // A store that is broken may be whole again.
        error => Answer::try_again(error.retry_seconds().unwrap_or(30), &text),
    }
}
