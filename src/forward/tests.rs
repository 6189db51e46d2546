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

#[tokio::test(start_paused = true)]
async fn one_record_is_acknowledged_before_the_others_are_sent() {
    let rig = Rig::new().await;
    rig.accept("cloud", "t", 0..50);
    let uplink = Scripted::accepting();
    uplink.peer().hold_until = Duration::from_secs(3);
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((uplink.payloads(), status.state()), (numbers(0..1), LinkState::Probing));
    until(|| status.state() == LinkState::Up).await;
    until(|| status.snapshot().acknowledged == 50).await;
    assert_eq!(uplink.payloads(), numbers(0..50));
    let snapshot = status.snapshot();
    assert_eq!((snapshot.sent, snapshot.refused, snapshot.queued, snapshot.connects), (50, 0, 0, 1));
    let metrics = rig.metrics.render();
    for line in [
        "selvedge_link_state{upstream=\"cloud\"} 5",
        "selvedge_forward_acknowledged_total{upstream=\"cloud\"} 50",
        "selvedge_forward_latency_seconds_count{upstream=\"cloud\"} 50",
        "selvedge_link_changes_total{upstream=\"cloud\",cause=\"none\"} 3",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_window_is_the_smaller_of_ours_and_the_peers() {
    for (ours, theirs, expected) in [(20, 65_535, 20), (256, 7, 7), (1, 1, 1)] {
        let rig = Rig::new().await;
        rig.accept("cloud", "t", 0..200);
        let uplink = Scripted::accepting();
        uplink.peer().receive_maximum = theirs;
        let (status, _stop, _task) = rig.start(ForwarderConfig { window: ours, ..rig.config() }, &uplink);
        until(|| status.snapshot().acknowledged == 200).await;
        assert_eq!(uplink.peer().most_in_flight, expected);
        assert_eq!(uplink.payloads(), numbers(0..200));
    }
}

#[tokio::test(start_paused = true)]
async fn when_the_data_budget_is_used_up_strict_lanes_alone_are_sent_and_everything_once_there_is_room_again() {
    let rule = LaneRule { lane: "critical".into(), filters: vec!["alarm/#".into()], weight: 1, strict: true };
    let rig = Rig::with(vec![lane("critical")], vec![rule]).await;
    rig.accept("cloud", "t", 0..100);
    let uplink = Scripted::accepting();
    let forwarder =
        Forwarder::new(rig.config(), rig.hub.clone(), Box::new(uplink.clone()), rig.clock.clone(), &ForwardMetrics::register(&rig.metrics));
    let (status, orders) = (forwarder.status(), forwarder.orders());
    orders.send_modify(|o| o.strict_only = true);
    let _task = tokio::spawn(forwarder.run(Box::pin(std::future::pending())));
    until(|| status.state() == LinkState::Up).await;
    for n in 100..110 {
        rig.accept("cloud", "alarm/a", n..n + 1);
        rig.accept("cloud", "t", 1_000 + n..1_001 + n);
        until(|| status.snapshot().acknowledged == u64::from(n - 99)).await;
    }
    assert_eq!(uplink.payloads(), numbers(100..110));
    assert!(status.is_behind() && status.is_paused() && status.state() == LinkState::Up);
    assert_eq!(status.snapshot().queued, 110);
    orders.send_modify(|o| o.strict_only = false);
    until(|| status.snapshot().acknowledged == 120).await;
    assert_eq!(uplink.payloads()[10..110], numbers(0..100));
    until(|| !status.is_behind()).await;
    assert!(status.traffic().sent > 120 * 64 && status.traffic().received == 120 * 64, "estimated, since this uplink does not count");
}

#[tokio::test(start_paused = true)]
async fn a_backlog_leaves_at_the_drains_rate_and_what_comes_after_it_at_once() {
    let rig = Rig::new().await;
    rig.accept("cloud", "t", 0..301);
    let uplink = Scripted::accepting();
    let drain = DrainSpec { messages_per_second: Some(100), ..DrainSpec::default() };
    let (status, _stop, _task) = rig.start(ForwarderConfig { drain, ..rig.config() }, &uplink);
    until(|| status.state() == LinkState::Up).await;
    let took = uplink.peer().sent.last().unwrap().at;
    assert!((Duration::from_millis(2_700)..Duration::from_millis(3_300)).contains(&took), "300 records took {took:?}");
    let before = tokio::time::Instant::now();
    rig.accept("cloud", "t", 301..401);
    until(|| status.snapshot().acknowledged == 401).await;
    assert!(before.elapsed() < Duration::from_millis(500), "live records took {:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_drain_begins_within_its_jitter() {
    let rig = Rig::new().await;
    rig.accept("cloud", "t", 0..10);
    let uplink = Scripted::accepting();
    let drain = DrainSpec { jitter: Duration::from_secs(30), ..DrainSpec::default() };
    let (status, _stop, _task) = rig.start(ForwarderConfig { drain, seed: Some(3), ..rig.config() }, &uplink);
    until(|| status.snapshot().acknowledged == 10).await;
    let sent = uplink.peer().sent.clone();
    let (probe, first) = (sent[0].at, sent[1].at);
    assert!(first - probe > Duration::from_millis(100) && first - probe < Duration::from_secs(31), "{probe:?} {first:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_that_breaks_is_opened_again() {
    let rig = Rig::new().await;
    let uplink = Scripted::accepting();
    uplink.peer().connects.push_back(LinkFailure::new(LinkCause::Dns, "no such name"));
    uplink.peer().breaks.push_back(LinkFailure::new(LinkCause::PeerError, "closed"));
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    until(|| uplink.peer().connected_at.len() == 3).await;
    until(|| status.state() == LinkState::Up).await;
    assert_eq!(status.snapshot().connects, 2);
    rig.accept("cloud", "t", 0..1);
    until(|| status.snapshot().acknowledged == 1).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_on_its_way_when_the_link_broke_goes_again_in_order() {
    let rig = Rig::new().await;
    rig.accept("cloud", "t", 0..100);
    // The fortieth and all behind it are not answered on the first connection.
    let mut met = 0;
    let uplink = Scripted::new(move |sent| {
        met += usize::from(sent.payload == "39");
        (met != 1).then_some(UplinkOutcome::Accepted)
    });
    uplink.peer().breaks.push_back(LinkFailure::new(LinkCause::Tcp, "reset"));
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    until(|| status.snapshot().acknowledged == 100).await;
    let sent = uplink.peer().sent.clone();
    // As many as the window of a new connection let go, then all that were not answered.
    let first = sent.len() - 61;
    assert!(first > 40);
    assert_eq!(sent.iter().map(|s| s.payload.clone()).collect::<Vec<_>>(), [numbers(0..first as u32), numbers(39..100)].concat());
    assert!(sent.iter().enumerate().all(|(at, s)| s.repeated == (at >= first && at - first < first - 39)));
    let marks: Vec<&str> = sent[first].marks.iter().map(|(k, _)| k.as_str()).collect();
    assert_eq!(marks, ["selvedge-id", "selvedge-time", "selvedge-delay-ms"]);
    assert_eq!(sent[39].marks[0], sent[first].marks[0], "a repeat carries the same id");
}

#[tokio::test(start_paused = true)]
async fn silence_breaks_the_link_after_the_stall_time() {
    let rig = Rig::new().await;
    rig.accept("cloud", "t", 0..1);
    let mut seen = 0;
    let uplink = Scripted::new(move |_| {
        seen += 1;
        (seen > 1).then_some(UplinkOutcome::Accepted)
    });
    let (mut status, _stop, _task) = rig.start(rig.config(), &uplink);
    while status.snapshot().cause != Some(LinkCause::Silent) {
        assert!(status.changed().await);
    }
    let stalled = tokio::time::Instant::now() - uplink.peer().start;
    assert!((Duration::from_secs(20)..Duration::from_millis(20_500)).contains(&stalled), "{stalled:?}");
    assert!(status.snapshot().detail.contains("1 publishes are unanswered"), "{:?}", status.snapshot());
    until(|| status.snapshot().acknowledged == 1).await;
}

#[tokio::test(start_paused = true)]
async fn not_now_is_probed_with_back_off_on_the_same_connection() {
    let rig = Rig::new().await;
    rig.accept("cloud", "t", 0..20);
    let mut refusals = 5;
    let uplink = Scripted::new(move |sent| {
        if sent.payload == "7" && refusals > 0 {
            refusals -= 1;
            return Some(UplinkOutcome::TryLater("quota exceeded".into()));
        }
        Some(UplinkOutcome::Accepted)
    });
    let (status, _stop, _task) = rig.start(ForwarderConfig { window: 1, ..rig.config() }, &uplink);
    until(|| status.snapshot().cause == Some(LinkCause::Quota)).await;
    assert_eq!(status.state(), LinkState::Probing);
    until(|| status.snapshot().acknowledged == 20).await;
    let expected = [numbers(0..7), vec!["7".to_owned(); 5], numbers(7..20)].concat();
    assert_eq!((uplink.payloads(), uplink.peer().connected_at.len()), (expected, 1));
}

#[tokio::test(start_paused = true)]
async fn a_refused_record_is_set_aside_and_comes_again_only_when_it_is_released() {
    let rig = Rig::new().await;
    rig.keep_writing();
    rig.accept("cloud", "t", 0..10);
    let refusing = Arc::new(AtomicBool::new(true));
    let still = refusing.clone();
    let uplink = Scripted::new(move |sent| {
        let refused = sent.payload == "4" && still.load(Ordering::Relaxed);
        Some(if refused { UplinkOutcome::Refused("not authorized".into()) } else { UplinkOutcome::Accepted })
    });
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    until(|| status.state() == LinkState::Up && status.snapshot().queued == 0).await;
    assert_eq!((status.snapshot().acknowledged, status.snapshot().refused), (9, 1));
    assert_eq!(uplink.payloads(), numbers(0..10));
    let aside = rig.hub.quarantined(0, 10).await.unwrap();
    let facts = ["upstream", "reason", "topic", "payload", "lane", "recordId"].map(|key| aside[0][key].as_str().unwrap());
    assert_eq!(facts, ["cloud", "not authorized", "t", "4", "default", "test/1/default/5"]);
    assert_eq!(aside.len(), 1);
    // Tried too early it is set aside again; then it goes through, and carries nothing of its stay.
    assert_eq!(rig.hub.release(None, Release::Retry).await, Ok(1));
    until(|| status.snapshot().refused == 2).await;
    refusing.store(false, Ordering::Relaxed);
    let again = rig.hub.quarantined(0, 10).await.unwrap();
    assert_eq!(rig.hub.release(Some(&[again[0]["number"].as_u64().unwrap()]), Release::Retry).await, Ok(1));
    until(|| status.snapshot().acknowledged == 10).await;
    assert!(rig.hub.quarantined(0, 10).await.unwrap().is_empty());
    assert!(uplink.peer().sent.iter().all(|s| s.user.is_empty()));
    for row in rig.hub.outbox().ledger() {
        assert_eq!(row.accepted, row.delivered + row.expired + row.evicted + row.aggregated + row.queued, "{row:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_breaks_the_link_again_and_again_is_set_aside_and_the_others_arrive() {
    let rig = Rig::new().await;
    rig.keep_writing();
    rig.accept("cloud", "t", 0..10);
    let uplink = Scripted::accepting();
    uplink.peer().poison = Some("4");
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    until(|| status.state() == LinkState::Up && status.snapshot().queued == 0).await;
    assert_eq!(status.snapshot().refused, 1);
    let aside = rig.hub.quarantined(0, 10).await.unwrap();
    assert_eq!((aside.len(), aside[0]["payload"].as_str()), (1, Some("4")));
    assert!(aside[0]["reason"].as_str().unwrap().contains("broke"), "{aside:?}");
    let mut arrived: Vec<String> = uplink.payloads();
    arrived.sort();
    arrived.dedup();
    assert_eq!(arrived, numbers(0..10));
    // A peer that breaks on everything condemns nobody.
    let rig = Rig::new().await;
    rig.keep_writing();
    rig.accept("cloud", "t", 0..3);
    let uplink = Scripted::new(|_| None);
    uplink.peer().breaks = (0..10).map(|_| LinkFailure::new(LinkCause::PeerError, "no")).collect();
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    until(|| uplink.peer().breaks.is_empty()).await;
    assert_eq!((status.snapshot().refused, status.snapshot().queued), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_defect_opens_the_link_anew_and_nothing_is_lost() {
    let rig = Rig::new().await;
    rig.accept("cloud", "t", 0..10);
    let mut panics = 3;
    let uplink = Scripted::new(move |sent| {
        if sent.payload == "4" && panics > 0 {
            panics -= 1;
            panic!("a defect, as the test wants it");
        }
        Some(UplinkOutcome::Accepted)
    });
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    until(|| status.state() == LinkState::Up && status.snapshot().queued == 0).await;
    assert_eq!((status.snapshot().acknowledged, status.snapshot().refused, status.snapshot().connects), (10, 0, 4));
    assert!(rig.metrics.render_text().contains("selvedge_forward_defects_total{upstream=\"cloud\"} 3"), "{}", rig.metrics.render_text());
}

#[tokio::test(start_paused = true)]
async fn a_slow_start_opens_the_window_little_by_little() {
    let rig = Rig::new().await;
    rig.accept("cloud", "t", 0..2_000);
    let uplink = Scripted::accepting();
    let drain = DrainSpec { slow_start: Duration::from_secs(1), ..DrainSpec::default() };
    let (status, _stop, _task) = rig.start(ForwarderConfig { drain, ..rig.config() }, &uplink);
    until(|| status.snapshot().acknowledged == 2_000).await;
    // A round trip is a millisecond: without a limit all would have left in a few of them.
    let sent: Vec<Duration> = uplink.peer().sent.iter().map(|s| s.at).collect();
    let within = |ms: u64| sent.iter().filter(|at| at.as_millis() <= u128::from(ms) + 5).count();
    assert!(within(10) < 80 && within(20) < 250, "{} after 10 ms, {} after 20 ms", within(10), within(20));
    assert!(uplink.peer().most_in_flight > 20);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_refuses_everything_is_asked_once_a_minute_and_keeps_the_rest_stored() {
    let rig = Rig::new().await;
    rig.keep_writing();
    rig.accept("cloud", "t", 0..500);
    let refusing = Arc::new(AtomicBool::new(true));
    let still = refusing.clone();
    let uplink = Scripted::new(move |_| {
        Some(if still.load(Ordering::Relaxed) { UplinkOutcome::Refused("not authorized".into()) } else { UplinkOutcome::Accepted })
    });
    let (status, _stop, _task) = rig.start(ForwarderConfig { poison_bytes: 10 * 130, ..rig.config() }, &uplink);
    until(|| status.state() == LinkState::Fenced).await;
    assert_eq!((status.snapshot().cause, status.snapshot().refused), (Some(LinkCause::Refused), 10));
    tokio::time::sleep(Duration::from_secs(500)).await;
    let refused = status.snapshot().refused;
    assert!((15..60).contains(&refused), "one for each attempt: {refused}");
    refusing.store(false, Ordering::Relaxed);
    until(|| status.state() == LinkState::Up && status.snapshot().queued == 0).await;
    assert_eq!(status.snapshot().acknowledged, 500 - status.snapshot().refused);
}

#[tokio::test(start_paused = true)]
async fn slow_and_overdue_answers_degrade_the_link_and_what_is_new_still_counts_as_live() {
    let rig = Rig::new().await;
    let uplink = Scripted::accepting();
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    until(|| status.state() == LinkState::Up).await;
    // A quick answer first: without one the link might be far away instead of slow.
    rig.accept("cloud", "t", 0..1);
    until(|| status.snapshot().acknowledged == 1).await;
    let start = uplink.peer().start;
    uplink.peer().hold_until = start.elapsed() + Duration::from_secs(4);
    rig.accept("cloud", "t", 1..2);
    until(|| status.state() == LinkState::Degraded).await;
    assert_eq!((status.snapshot().cause, status.snapshot().acknowledged, status.is_behind()), (Some(LinkCause::Slow), 1, false), "before it comes");
    let overdue = start.elapsed();
    assert!(overdue < Duration::from_secs(2), "{overdue:?}");
    until(|| status.state() == LinkState::Up).await;
    let healed = start.elapsed();
    assert!((Duration::from_secs(19)..Duration::from_millis(19_100)).contains(&healed), "15 s after the slow answer: {healed:?}");
}

#[tokio::test(start_paused = true)]
async fn routes_give_the_topic_and_own_publishes_keep_theirs() {
    let rig = Rig::new().await;
    rig.accept("cloud", "own/topic", 0..1);
    rig.accept("local", "sensors/a", 1..2);
    let route = RouteSpec {
        from: "local".into(),
        topics: vec!["sensors/#".into()],
        to: vec!["cloud".into()],
        prefix: "site7/".into(),
        ..RouteSpec::default()
    };
    let uplink = Scripted::accepting();
    let (status, _stop, _task) = rig.start(ForwarderConfig { routes: vec![route], ..rig.config() }, &uplink);
    until(|| status.snapshot().acknowledged == 2).await;
    let topics: Vec<_> = uplink.peer().sent.iter().map(|s| s.topic.clone()).collect();
    assert_eq!(topics, ["own/topic", "site7/sensors/a"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_answers_two_seconds_at_most() {
    for answered in [true, false] {
        let rig = Rig::new().await;
        let uplink = Scripted::new(move |_| answered.then_some(UplinkOutcome::Accepted));
        let (status, stop, task) = rig.start(rig.config(), &uplink);
        until(|| status.state() == LinkState::Up).await;
        let start = uplink.peer().start;
        uplink.peer().hold_until = start.elapsed() + Duration::from_secs(1);
        rig.accept("cloud", "t", 0..5);
        until(|| status.snapshot().sent == 5).await;
        let begin = tokio::time::Instant::now();
        stop.send(()).unwrap();
        task.await.unwrap();
        let snapshot = status.snapshot();
        if answered {
            assert_eq!((snapshot.acknowledged, snapshot.queued), (5, 0));
            assert!(begin.elapsed() < Duration::from_millis(1_500));
        } else {
            assert_eq!((snapshot.acknowledged, snapshot.queued), (0, 5));
            assert!((Duration::from_secs(2)..Duration::from_millis(2_500)).contains(&begin.elapsed()));
        }
        assert_eq!((snapshot.state, snapshot.cause, uplink.peer().disconnects), (LinkState::Down, Some(LinkCause::Operator), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_a_connect_and_a_wait_at_once() {
    let rig = Rig::new().await;
    let uplink = Scripted::accepting();
    uplink.peer().connects.extend((0..50).map(|_| LinkFailure::new(LinkCause::Tcp, "refused")));
    let (status, stop, task) = rig.start(rig.config(), &uplink);
    until(|| uplink.peer().connected_at.len() > 5).await;
    let begin = tokio::time::Instant::now();
    stop.send(()).unwrap();
    task.await.unwrap();
    assert!(begin.elapsed() < Duration::from_millis(10));
    assert_eq!(status.snapshot().connects, 0);
}

/// A lane that is sent newest first, in segments of about 3,000 records.
async fn newest_first() -> Rig {
    let lane = LaneConfig { order: Order::Newest, quota_bytes: 1 << 20, ..lane("telemetry") };
    let rule = LaneRule { lane: "telemetry".into(), filters: vec!["t".into()], weight: 1, strict: false };
    Rig::with(vec![lane], vec![rule]).await
}

fn accept_all(rig: &Rig, numbers: std::ops::Range<u32>) {
    numbers.clone().step_by(500).for_each(|from| rig.accept("cloud", "t", from..(from + 500).min(numbers.end)));
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_live_records_and_the_newest_leave_first_and_only_what_was_on_its_way_is_marked_as_repeated() {
    let rig = newest_first().await;
    accept_all(&rig, 0..6_000);
    // The hundredth publish and all behind it are not answered on the first connection.
    let (mut met, mut healed) = (0, false);
    let uplink = Scripted::new(move |sent| {
        met += 1;
        healed |= sent.repeated;
        (met < 100 || healed).then_some(UplinkOutcome::Accepted)
    });
    uplink.peer().breaks.push_back(LinkFailure::new(LinkCause::Tcp, "reset"));
    let config = ForwarderConfig { window: 300, drain: DrainSpec { live_share: Some(80), ..DrainSpec::default() }, ..rig.config() };
    let (status, _stop, _task) = rig.start(config, &uplink);
    until(|| uplink.peer().connected_at.len() == 2).await;
    accept_all(&rig, 6_000..6_010);
    until(|| status.snapshot().queued == 0).await;
    let sent: Vec<(u32, bool)> = uplink.peer().sent.iter().map(|s| (s.payload.parse().unwrap(), s.repeated)).collect();
    let first = sent.iter().position(|(_, repeated)| *repeated).unwrap();
    assert!((100..1_000).contains(&first), "{first}");
    // Before the outage: the newest segment, forward.
    assert!((2_500..5_000).contains(&sent[0].0) && sent[..first].windows(2).all(|w| w[1].0 == w[0].0 + 1), "{:?}", &sent[..5]);
    // After it: each of those that were not answered, marked, and none else is; what is live before the oldest.
    let lost: Vec<u32> = sent[99..first].iter().map(|(n, _)| *n).collect();
    let repeated: Vec<u32> = sent.iter().filter(|(_, repeated)| *repeated).map(|(n, _)| *n).collect();
    let mut again = repeated.clone();
    again.sort_unstable();
    assert_eq!(again, lost);
    let at = |n: u32| sent.iter().position(|(m, _)| *m == n).unwrap();
    assert!((6_000..6_010).all(|n| at(n) < first + 400) && at(0) > at(5_999), "{} {}", at(0), at(5_999));
    let all: std::collections::BTreeSet<u32> = sent.iter().map(|(n, _)| *n).collect();
    assert_eq!((all.len(), sent.len()), (6_010, 6_010 + lost.len()));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_breaks_the_link_is_found_among_newer_ones_and_set_aside() {
    let rig = newest_first().await;
    rig.keep_writing();
    accept_all(&rig, 0..5_000);
    let uplink = Scripted::accepting();
    uplink.peer().poison = Some("3300");
    // So slowly that newer ones have come, and gone through, before the link comes to it.
    let drain = DrainSpec { messages_per_second: Some(1_000), ..DrainSpec::default() };
    let (status, _stop, _task) = rig.start(ForwarderConfig { drain, ..rig.config() }, &uplink);
    // There is always something newer that could be tried instead.
    let (mut next, mut polls) = (5_000, 0);
    until(|| {
        polls += 1;
        if polls % 10 == 0 {
            accept_all(&rig, next..next + 1);
            next += 1;
        }
        status.snapshot().refused == 1
    })
    .await;
    until(|| status.snapshot().queued == 0).await;
    assert_eq!((status.snapshot().refused, status.snapshot().acknowledged), (1, u64::from(next) - 1));
    let aside = rig.hub.outbox().ledger().into_iter().find(|r| r.lane == QUARANTINE).map(|r| r.queued);
    assert_eq!(aside, Some(1));
}
