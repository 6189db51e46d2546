//! The forwarder against a scripted uplink. Time is tokio's paused time, so waits cost nothing and durations are exact.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use super::*;
use crate::component::{Fut, LinkCause, LinkFailure, MemoryTables, PeerLimits, Tables as _, Uplink, UplinkAck, UplinkOutcome, UplinkPublish};
use crate::escape::LinkState;
use crate::hub::{Hub, LaneRule, QUARANTINE, Release};
use crate::message::Inbound;
use crate::outbox::sim::SimStorage;
use crate::outbox::{AtRest, DestinationId, Durability, LaneConfig, Order, Outbox, OutboxConfig};
use crate::resource::{DrainSpec, RouteSpec};
use crate::telemetry::Metrics;
use crate::time::{Clock, Monotonic, Timestamp};

mod forwarding;
mod passing;
mod sets;

/// Tokio's clock, which tests pause.
struct TokioClock(tokio::time::Instant);

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_764_000_000_000).plus(self.0.elapsed())
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic(self.0.elapsed())
    }
}

/// The answer to a publish; `None` = never.
type Answer = Box<dyn FnMut(&Sent) -> Option<UplinkOutcome> + Send>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    token: u64,
    topic: String,
    payload: String,
    at: Duration,
    repeated: bool,
    marks: Vec<(String, String)>,
    user: Vec<(String, String)>,
}

struct Peer {
    start: tokio::time::Instant,
    answer: Answer,
    /// What connecting gives, one by one; then success.
    connects: VecDeque<LinkFailure>,
    /// Breaks the connection when there is nothing to do.
    breaks: VecDeque<LinkFailure>,
    sent: Vec<Sent>,
    waiting: Vec<UplinkAck>,
    in_flight: usize,
    most_in_flight: usize,
    connected_at: Vec<Duration>,
    disconnects: usize,
    receive_maximum: u16,
    /// No answer goes out before this.
    hold_until: Duration,
    /// The peer breaks the connection when it meets this payload.
    poison: Option<&'static str>,
    poisoned: bool,
}

#[derive(Clone)]
struct Scripted(Arc<Mutex<Peer>>);

impl Scripted {
    fn new(answer: impl FnMut(&Sent) -> Option<UplinkOutcome> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Peer {
            start: tokio::time::Instant::now(),
            answer: Box::new(answer),
            connects: VecDeque::new(),
            breaks: VecDeque::new(),
            sent: Vec::new(),
            waiting: Vec::new(),
            in_flight: 0,
            most_in_flight: 0,
            connected_at: Vec::new(),
            disconnects: 0,
            receive_maximum: u16::MAX,
            hold_until: Duration::ZERO,
            poison: None,
            poisoned: false,
        })))
    }

    fn accepting() -> Self {
        Self::new(|_| Some(UplinkOutcome::Accepted))
    }

    fn peer(&self) -> std::sync::MutexGuard<'_, Peer> {
        // Some tests let it panic.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn payloads(&self) -> Vec<String> {
        self.peer().sent.iter().map(|s| s.payload.clone()).collect()
    }
}

impl Uplink for Scripted {
    fn connect<'a>(&'a mut self) -> Fut<'a, Result<PeerLimits, LinkFailure>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let mut peer = self.peer();
            peer.in_flight = 0;
            peer.poisoned = false;
            peer.waiting.clear();
            let now = peer.start.elapsed();
            peer.connected_at.push(now);
            match peer.connects.pop_front() {
                Some(failure) => Err(failure),
                None => {
                    let receive_maximum = peer.receive_maximum;
                    Ok(PeerLimits { receive_maximum, maximum_packet_bytes: None, silence: Duration::from_secs(45), carries_marks: true })
                }
            }
        })
    }

    fn enqueue(&mut self, p: &UplinkPublish<'_>) -> Result<(), UplinkOutcome> {
        let mut peer = self.peer();
        let sent = Sent {
            token: p.token,
            topic: p.topic.to_owned(),
            payload: String::from_utf8_lossy(p.payload).into_owned(),
            at: peer.start.elapsed(),
            repeated: p.repeated,
            marks: p.marks.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            user: p.attributes.user.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        peer.poisoned |= peer.poison == Some(sent.payload.as_str());
        if !peer.poisoned
            && let Some(outcome) = (peer.answer)(&sent)
        {
            peer.waiting.push(UplinkAck { token: p.token, outcome });
        }
        peer.sent.push(sent);
        peer.in_flight += 1;
        peer.most_in_flight = peer.most_in_flight.max(peer.in_flight);
        Ok(())
    }

    fn drive<'a>(&'a mut self, acks: &'a mut Vec<UplinkAck>, _until_written: bool) -> Fut<'a, Result<(), LinkFailure>> {
        Box::pin(async move {
            // An answer takes a round trip.
            let wait = {
                let peer = self.peer();
                Duration::from_millis(1).max(peer.hold_until.saturating_sub(peer.start.elapsed()))
            };
            tokio::time::sleep(wait).await;
            let ready = {
                let mut peer = self.peer();
                // What came before it is answered.
                if peer.poisoned && peer.waiting.is_empty() {
                    Some(Err(LinkFailure::new(LinkCause::PeerError, "protocol error")))
                } else if peer.waiting.is_empty() {
                    peer.breaks.pop_front().map(Err)
                } else {
                    peer.in_flight -= peer.waiting.len();
                    acks.append(&mut peer.waiting);
                    Some(Ok(()))
                }
            };
            match ready {
                Some(result) => result,
                None => std::future::poll_fn(|_| Poll::Pending).await,
            }
        })
    }

    fn disconnect<'a>(&'a mut self) -> Fut<'a, ()> {
        self.peer().disconnects += 1;
        Box::pin(async {})
    }
}

fn lane(name: &str) -> LaneConfig {
    LaneConfig { durability: Durability::Fsync, quota_bytes: 8 << 20, ..LaneConfig::new(name) }
}

struct Rig {
    hub: Hub,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    destination: DestinationId,
    write: Arc<Mutex<Box<dyn FnMut() + Send>>>,
}

impl Rig {
    async fn new() -> Self {
        Self::with(Vec::new(), Vec::new()).await
    }

    /// With more lanes than the default one, and rules for them.
    async fn with(more: Vec<LaneConfig>, rules: Vec<LaneRule>) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(TokioClock(tokio::time::Instant::now()));
        // The store's writer is stepped here: a thread of its own would not know that time is paused.
        let lane = lane("default");
        let mut lanes = vec![lane.clone(), LaneConfig { name: QUARANTINE.into(), ..lane }];
        lanes.extend(more);
        let config = OutboxConfig {
            dir: "/outbox".into(),
            node: "test".into(),
            lanes,
            segment_bytes: 1 << 20,
            cursor_interval: Duration::from_secs(1),
            at_rest: AtRest::default(),
        };
        let (outbox, mut writer, _) = Outbox::open_without_thread(config, Arc::new(SimStorage::default()), clock.clone()).unwrap();
        let write: Box<dyn FnMut() + Send> = Box::new(move || {
            writer.step(false);
        });
        let hub = Hub::new(outbox, rules, MemoryTables::default().open("retained").await.unwrap(), clock.clone()).await.unwrap();
        let destination = hub.destination("upstream/cloud").unwrap();
        hub.bind(destination, "cloud", "#").unwrap();
        hub.bind(destination, "local", "#").unwrap();
        Self { hub, clock, metrics: Metrics::new(), destination, write: Arc::new(Mutex::new(write)) }
    }

    /// Writes on its own from now on, once in a millisecond of paused time.
    fn keep_writing(&self) {
        let write = self.write.clone();
        tokio::spawn(async move {
            loop {
                (write.lock().unwrap())();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }

    fn accept(&self, pubsub: &str, topic: &str, numbers: std::ops::Range<u32>) {
        let payloads: Vec<String> = numbers.map(|n| n.to_string()).collect();
        let batch: Vec<Inbound<'_>> = payloads.iter().map(|p| Inbound::new(topic, p.as_bytes())).collect();
        let accepted = self.hub.accept(pubsub, &batch);
        assert_eq!(accepted.taken, batch.len());
        while !self.hub.is_settled(&accepted.receipt) {
            (self.write.lock().unwrap())();
        }
    }

    fn config(&self) -> ForwarderConfig {
        ForwarderConfig { seed: Some(1), ..ForwarderConfig::new("cloud", self.destination) }
    }

    fn start(&self, config: ForwarderConfig, uplink: &Scripted) -> (ForwarderStatus, tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
        let metrics = ForwardMetrics::register(&self.metrics);
        let forwarder = Forwarder::new(config, self.hub.clone(), Box::new(uplink.clone()), self.clock.clone(), &metrics);
        let status = forwarder.status();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(forwarder.run(Box::pin(async move {
            let _ = stopped.await;
        })));
        (status, stop, task)
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    let start = tokio::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(600), "the condition does not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}
