//! The loop of a forwarder.

mod poison;

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use poison::{Refusal, SUSPECT_AFTER, Suspect};
use smallvec::SmallVec;
use tokio::sync::watch;

use super::feed::{Feed, Origin};
use super::mapping::Mapping;
use super::marks::Marks;
use super::metrics::{ForwardMetrics, UpstreamMetrics};
use super::pace::Pace;
use super::repeats::Repeats;
use super::settings::{ForwarderConfig, ForwarderControl, ForwarderSettings, LinkOrders, NOTICE_WAIT};
use super::status::{ForwarderStatus, LinkView};
use super::throttle::Throttle;
use super::window::{InFlight, Window};
use crate::component::{Fut, LinkCause, LinkFailure, PeerLimits, Traffic, Uplink, UplinkAck, UplinkOutcome, UplinkPublish};
use crate::escape::{LinkAction, LinkEvent, LinkMachine, LinkState, SplitMix};
use crate::hub::{Hub, LaneRun, NOTICES, QUARANTINE};
use crate::outbox::{DestinationId, Flow, LaneId, Peeker, Unpassed};
use crate::resource::DrainSpec;
use crate::time::{Clock, Monotonic};

/// Bytes of topic and payload that may be on their way at a time; one larger record goes alone.
const BYTES_IN_FLIGHT: usize = 1 << 20;
/// Answered slots behind an unanswered one, per slot of the window, before sending waits for the straggler.
const SPAN: usize = 8;
/// The window that a slow start begins with.
const SLOW_START: usize = 4;
/// How long a stop waits for answers.
const GRACE: Duration = Duration::from_secs(2);
/// How often the number of queued records is refreshed.
const REFRESH: Duration = Duration::from_millis(250);
/// Pause after a lane that could not be read.
const READ_RETRY: Duration = Duration::from_secs(1);
/// A pause of sending at which senders that wait for the peer are refused instead.
const LONG_HOLD: Duration = Duration::from_secs(1);
/// A delay below this is the way of a live record, not worth a mark.
const DELAY_WORTH_A_MARK: Duration = Duration::from_secs(1);
/// Bytes that a record, and its answer, are taken to cost on the wire beside topic and payload, of an uplink that does not count.
const OVERHEAD: u64 = 64;
/// Refusals that may wait to be set aside (the disk is slow or full); past it nothing is sent.
const REFUSALS: usize = 256;
/// Records that are known to have been sent before, per slot of the window.
const REPEATS_PER_SLOT: usize = 8;
/// What a record takes in the store beside topic and payload, about.
const RECORD_OVERHEAD: usize = 128;

/// Carries one upstream's records to it.
pub struct Forwarder {
    name: String,
    destination: DestinationId,
    drain: DrainSpec,
    stall: Duration,
    poison_bytes: u64,
    slow: Duration,
    window_limit: u16,
    hub: Hub,
    uplink: Box<dyn Uplink>,
    clock: Arc<dyn Clock>,
    random: SplitMix,

    link: LinkMachine,
    connecting: bool,
    limits: PeerLimits,
    feed: Feed,
    /// The source whose lanes others may take over.
    lendable: Option<u8>,
    /// Sources of primaries, closed unless this upstream stands in for them; the bit of each in [`LinkOrders::borrow`] is its place.
    borrowed: SmallVec<[u8; 1]>,
    run: LaneRun,
    marks: Marks,
    window: Window,
    pace: Pace,
    throttle: Throttle,
    acks: Vec<UplinkAck>,
    done: SmallVec<[(Origin, Vec<u64>); 4]>,
    /// What was sent before and may have arrived.
    repeats: Repeats,
    /// What was unanswered first when the link broke: whatever the order, it is what tells next whether the link breaks on it.
    begin_with: Option<(Origin, u64)>,
    /// The peer said "not now": nothing is sent until all answers are in.
    busy: Option<String>,
    /// Nothing is sent before this time: jitter of a drain, pace, a lane that could not be read.
    hold: Option<Monotonic>,
    /// Nothing is sent before this time while a notice follows that goes first.
    notice_until: Option<Monotonic>,
    /// The last read found nothing.
    caught_up: bool,
    /// When the number of queued records was refreshed while the link stood.
    refreshed_at: Monotonic,
    suspect: Option<Suspect>,
    /// Bytes refused for good since a record was last taken; at the start those that are set aside, since a peer that refuses everything does
    /// not begin to take records because this node was started again.
    refused_bytes: u64,
    /// The peer has refused something since it was last asked whether it refuses everything.
    judge_peer: bool,
    /// Refused for good and not yet set aside.
    refusals: Vec<Refusal>,
    /// When setting aside is tried again.
    set_aside_at: Option<Monotonic>,
    peekers: SmallVec<[(LaneId, Peeker); 2]>,
    refused_reasons: HashSet<String>,
    /// The lane of the node's own notices, and whether the peer has refused one: then it gets no more of them.
    notices: Option<LaneId>,
    notices_refused: bool,
    /// Answers on their way are waited for; nothing new is taken.
    stopping: bool,

    /// Settings that it has not taken yet.
    settings: Arc<Mutex<Option<ForwarderSettings>>>,
    /// What others ask of the link.
    orders: watch::Sender<LinkOrders>,
    ordered: watch::Receiver<LinkOrders>,

    metrics: UpstreamMetrics,
    status: ForwarderStatus,
    view: watch::Sender<LinkView>,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder").field("name", &self.name).field("link", &self.link).finish_non_exhaustive()
    }
}

impl Forwarder {
    /// A forwarder that has not begun.
    #[must_use]
    pub fn new(config: ForwarderConfig, hub: Hub, uplink: Box<dyn Uplink>, clock: Arc<dyn Clock>, metrics: &ForwardMetrics) -> Self {
        let now = clock.monotonic();
        let (status, view) = ForwarderStatus::new(&config.name, clock.now());
        let metrics = metrics.of(&config.name);
        let (orders, ordered) = watch::channel(LinkOrders::default());
        let (notices, refused_bytes) = (hub.outbox().lane(NOTICES), in_quarantine(&hub));
        let mut feed = Feed::default();
        let own = Mapping::new(&config.name, config.routes);
        let lent = config.lends.clone();
        feed.add(&config.name, hub.consumer_of(config.destination, |lane| !lent.contains(&lane)), own.clone(), true);
        let lendable =
            (!lent.is_empty()).then(|| feed.add(&config.name, hub.consumer_of(config.destination, |lane| lent.contains(&lane)), own, true));
        let borrowed = config
            .stands_in_for
            .into_iter()
            .map(|p| feed.add(&p.name, hub.consumer_of(p.destination, |lane| p.lanes.contains(&lane)), Mapping::new(&p.name, p.routes), false))
            .collect();
        for set in config.sets {
            feed.add_set(&set.name, set.set.member(set.member), Mapping::new(&set.name, set.routes));
        }
        feed.set_live_share(config.drain.live_share);
        Self {
            destination: config.destination,
            drain: config.drain,
            stall: config.stall,
            poison_bytes: config.poison_bytes,
            slow: config.slow,
            window_limit: config.window.max(1),
            feed,
            lendable,
            borrowed,
            hub,
            uplink,
            random: config.seed.map_or_else(SplitMix::from_system, SplitMix::new),
            link: LinkMachine::new(config.link, now),
            connecting: false,
            limits: PeerLimits { receive_maximum: u16::MAX, maximum_packet_bytes: None, silence: Duration::ZERO, carries_marks: false },
            run: LaneRun::default(),
            marks: Marks::default(),
            window: Window::default(),
            pace: Pace::new(&config.drain, now),
            throttle: Throttle::new(config.slow),
            acks: Vec::new(),
            done: SmallVec::new(),
            repeats: Repeats::new(REPEATS_PER_SLOT * usize::from(config.window.max(1))),
            begin_with: None,
            busy: None,
            hold: None,
            notice_until: None,
            caught_up: false,
            refreshed_at: now,
            suspect: None,
            refused_bytes,
            judge_peer: false,
            refusals: Vec::new(),
            set_aside_at: None,
            peekers: SmallVec::new(),
            refused_reasons: HashSet::new(),
            notices,
            notices_refused: false,
            stopping: false,
            settings: Arc::default(),
            orders,
            ordered,
            metrics,
            status,
            view,
            name: config.name,
            clock,
        }
    }

    /// The handle to its status.
    #[must_use]
    pub fn status(&self) -> ForwarderStatus {
        self.status.clone()
    }

    /// Whether another upstream may take lanes of it over.
    #[must_use]
    pub fn lends(&self) -> bool {
        self.lendable.is_some()
    }

    /// Its destination in the store.
    #[must_use]
    pub fn destination(&self) -> DestinationId {
        self.destination
    }

    /// Where others say what they ask of the link.
    #[must_use]
    pub fn orders(&self) -> watch::Sender<LinkOrders> {
        self.orders.clone()
    }

    /// Where it is given other settings.
    #[must_use]
    pub fn control(&self) -> ForwarderControl {
        ForwarderControl { settings: self.settings.clone(), orders: self.orders.clone() }
    }

    /// Forwards until `stop` resolves; then nothing more is sent, answers on their way have two seconds to arrive, and the connection is
    /// closed. Dropping the future ends it at once: records that were on their way are sent again by the next forwarder.
    pub async fn run(mut self, mut stop: Fut<'static, ()>) {
        self.step(LinkEvent::Start, "");
        loop {
            if self.ordered.borrow_and_update().closed && !self.closed(&mut stop).await {
                break;
            }
            self.take_settings();
            self.hand_over();
            let turn = std::panic::AssertUnwindSafe(async {
                match self.link.state() {
                    state if state.is_connected() => self.cycle(&mut stop).await,
                    _ if self.connecting => self.connect(&mut stop).await,
                    _ => self.wait(&mut stop).await,
                }
            });
            match turn.catch_unwind().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => self.defect().await,
            }
        }
        self.finish().await;
    }

    /// Something panicked, here or in the uplink. The other upstreams and everything local go on; this one begins anew after a pause, as
    /// after any loss of the link.
    async fn defect(&mut self) {
        self.metrics.defects.inc();
        tracing::error!(upstream = %self.name, "the forwarder met a defect; the link is opened anew");
        self.connecting = false;
        self.acks.clear();
        self.lost(LinkFailure::new(LinkCause::PeerError, "a defect in this node; its log has the place")).await;
    }

    fn take_settings(&mut self) {
        let Some(settings) = self.settings.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        for (owner, routes) in &settings.routes {
            self.feed.set_routes(owner, routes);
        }
        if self.drain != settings.drain {
            self.drain = settings.drain;
            self.feed.set_live_share(self.drain.live_share);
            self.pace = Pace::new(&self.drain, self.clock.monotonic());
        }
        if self.slow != settings.slow {
            self.slow = settings.slow;
            self.throttle.set_slow(settings.slow);
        }
        self.stall = settings.stall;
        self.link.set_stable(settings.heal);
    }

    /// Lends lanes and takes them over as ordered. A source is given up when nothing of it is on its way any more; only then is it said
    /// to be ([`ForwarderStatus::handed`]), so that two never send from it at a time.
    fn hand_over(&mut self) {
        let orders = *self.ordered.borrow();
        let lendable = self.lendable.map(|source| (source, !orders.lent, 0));
        let borrowed = self.borrowed.iter().enumerate().map(|(at, source)| (*source, orders.borrow & (1 << at) != 0, at + 1));
        for (source, wanted, bit) in lendable.into_iter().chain(borrowed) {
            let has = self.status.handed(bit);
            if wanted && !self.feed.is_open(source) {
                self.feed.set_open(source, true);
                self.status.set_handed(bit, true);
                self.caught_up = false;
                tracing::info!(upstream = %self.name, lanes_of = self.feed.owner(source), "lanes are taken over");
            } else if !wanted && self.feed.is_open(source) {
                self.feed.set_open(source, false);
            }
            let on_its_way = self.window.has(source) || self.refusals.iter().any(|r| r.origin.source == source);
            if !wanted && has && !on_its_way {
                self.feed.give_back(source);
                self.repeats.forget(source);
                self.status.set_handed(bit, false);
                tracing::info!(upstream = %self.name, lanes_of = self.feed.owner(source), "lanes are handed over");
            }
        }
        self.flow();
    }

    /// Says to lanes that store nothing whether the link takes records: their senders are refused at once while it does not.
    fn flow(&mut self) {
        let others = if !self.link.state().is_connected() {
            Flow::Shut(Unpassed::Broken)
        } else if self.link.is_paused() {
            Flow::Shut(Unpassed::Busy)
        } else {
            Flow::Open
        };
        let closing = Flow::Closing(Unpassed::Link);
        let open = others == Flow::Open;
        // A drain that begins later, or that has spent its rate for long, sends nothing of them either.
        let now = self.clock.monotonic();
        let waits = self.hold.is_some_and(|until| until.since(now) > LONG_HOLD);
        let strict = if open && (self.stopping || waits) { &closing } else { &others };
        self.feed.flow(strict, if open && self.ordered.borrow().strict_only { &closing } else { strict });
    }

    /// Keeps the link closed while it is fenced. Returns whether to go on.
    async fn closed(&mut self, stop: &mut Fut<'static, ()>) -> bool {
        self.settle(self.clock.monotonic());
        self.hang_up(LinkEvent::Close, "closed by an operator").await;
        self.connecting = false;
        loop {
            tokio::select! {
                biased;
                () = &mut *stop => return false,
                open = self.ordered.wait_for(|orders| !orders.closed) => {
                    // The sender is held here too, so it cannot be gone.
                    drop(open);
                    break;
                }
                () = tokio::time::sleep(REFRESH) => {}
            }
            self.refresh();
        }
        self.step(LinkEvent::Start, "");
        true
    }

    /// Opens the connection. Returns whether to go on.
    async fn connect(&mut self, stop: &mut Fut<'static, ()>) -> bool {
        let opened = {
            let mut connect = self.uplink.connect();
            loop {
                tokio::select! {
                    biased;
                    () = &mut *stop => return false,
                    _ = self.ordered.changed() => return true,
                    opened = &mut connect => break opened,
                    () = tokio::time::sleep(REFRESH) => self.status.counts.queued.store(self.feed.queued(), Ordering::Relaxed),
                }
            }
        };
        self.connecting = false;
        match opened {
            Ok(limits) => {
                self.limits = limits;
                self.throttle.begin();
                self.status.counts.connects.fetch_add(1, Ordering::Relaxed);
                self.feed.rewind();
                if let Some((origin, sequence)) = self.begin_with.take() {
                    self.feed.begin_with(origin, sequence);
                }
                self.window.clear();
                (self.busy, self.hold, self.caught_up) = (None, None, false);
                self.refresh();
                let backlog = self.sendable() > 0;
                self.step(LinkEvent::Connected { backlog }, "");
            }
            Err(failure) => self.step(LinkEvent::Lost(failure.cause), &failure.detail),
        }
        true
    }

    /// Waits for the next attempt.
    async fn wait(&mut self, stop: &mut Fut<'static, ()>) -> bool {
        self.refresh();
        let until = self.link.deadline().map_or(REFRESH, |due| due.since(self.clock.monotonic())).min(REFRESH);
        tokio::select! {
            biased;
            () = stop => return false,
            _ = self.ordered.changed() => return true,
            () = tokio::time::sleep(until) => {}
        }
        self.step(LinkEvent::Tick, "");
        true
    }

    /// Sends what may be sent, and takes what comes back.
    async fn cycle(&mut self, stop: &mut Fut<'static, ()>) -> bool {
        let now = self.clock.monotonic();
        if now.since(self.refreshed_at) >= REFRESH {
            self.refresh();
            self.refreshed_at = now;
        }
        self.fill(now);
        // What waits for a set may end without this one.
        let others = self.feed.has_sets() && self.window.waiting() == 0 && self.status.counts.queued.load(Ordering::Relaxed) > 0;
        let overdue = self.window.oldest().filter(|_| self.link.state() != LinkState::Degraded).map(|at| self.throttle.overdue_at(at));
        let wake = [
            overdue.filter(|at| *at > now),
            self.window.oldest().map(|at| at.plus(self.stall)),
            self.hold,
            self.notice_until,
            self.set_aside_at,
            self.link.deadline(),
            others.then(|| self.refreshed_at.plus(REFRESH)),
        ]
        .into_iter()
        .flatten()
        .min();
        let readable = (self.caught_up && self.may_send() > 0).then(|| self.feed.readable(self.ordered.borrow().strict_only));
        let driven = tokio::select! {
            biased;
            () = stop => return false,
            _ = self.ordered.changed() => return true,
            driven = self.uplink.drive(&mut self.acks, false) => driven,
            () = maybe(readable) => Ok(()),
            () = maybe(wake.map(|at| tokio::time::sleep(at.since(now)))) => Ok(()),
        };
        let now = self.clock.monotonic();
        self.settle(now);
        self.set_aside(now).await;
        self.resume();
        if let Err(failure) = driven {
            self.lost(failure).await;
        } else if self.window.oldest().is_some_and(|at| now.since(at) >= self.stall) {
            let detail = format!("{} publishes are unanswered, the oldest for {} s", self.window.waiting(), self.stall.as_secs());
            self.lost(LinkFailure::new(LinkCause::Silent, detail)).await;
        } else if self.refusals.is_empty() && std::mem::take(&mut self.judge_peer) && self.refused_bytes >= self.poison_bytes {
            let detail = format!("records of {} bytes were refused in a row, and none was taken", self.refused_bytes);
            self.lost(LinkFailure::new(LinkCause::Refused, detail)).await;
        } else {
            if self.window.oldest().is_some_and(|at| self.throttle.is_slow(now.since(at))) {
                self.step(LinkEvent::Slow, "an answer is overdue");
            }
            if self.link.deadline().is_some_and(|at| at <= now) {
                self.step(LinkEvent::Tick, "");
            }
        }
        true
    }

    /// How many publishes may be under way in this state.
    fn may_send(&self) -> usize {
        if self.busy.is_some() || self.link.is_paused() || self.refusals.len() >= REFUSALS {
            return 0;
        }
        match self.link.state() {
            LinkState::Fenced | LinkState::Down => 0,
            LinkState::Probing => 1,
            LinkState::Draining => self.slow_start(self.throttle.allow(self.full_window())),
            LinkState::Degraded | LinkState::Up => self.throttle.allow(self.full_window()),
        }
    }

    fn full_window(&self) -> usize {
        usize::from(self.window_limit.min(self.limits.receive_maximum).max(1))
    }

    /// The window of a drain that has just begun: it grows to the full one in even steps.
    fn slow_start(&self, full: usize) -> usize {
        let (time, since) = (self.drain.slow_start, self.clock.monotonic().since(self.link.since()));
        if since >= time {
            return full;
        }
        let share = since.as_secs_f64() / time.as_secs_f64();
        ((full as f64 * share) as usize).clamp(SLOW_START.min(full), full)
    }

    /// Reads and enqueues as far as window, pace and holds allow.
    fn fill(&mut self, now: Monotonic) {
        // Only a read that found nothing says so: to wait for new records without reading them would be to spin.
        self.caught_up = false;
        if self.notice_until.is_some_and(|until| until <= now || !self.ordered.borrow().notice_follows) {
            self.notice_until = None;
        }
        if self.notice_until.is_some() || self.hold.is_some_and(|until| until > now) {
            return;
        }
        self.hold = None;
        let allowed = self.may_send();
        // A full window is refilled by the quarter: one write for many records, while three quarters keep the peer busy.
        if allowed <= self.window.waiting() || allowed - self.window.waiting() < allowed / 4 {
            return;
        }
        let draining = self.link.state().stands() && self.link.is_behind();
        let paced = draining && (self.drain.messages_per_second.is_some() || self.drain.bytes_per_second.is_some());
        loop {
            // Busy may have been set by a record that the uplink could not take.
            let allowed = self.may_send().min(allowed);
            let room = allowed.saturating_sub(self.window.waiting());
            if room == 0 || self.window.bytes() >= BYTES_IN_FLIGHT || self.window.span() >= allowed.max(32) * SPAN {
                return;
            }
            if paced && let Some(until) = self.pace.wait_until(now) {
                self.hold = Some(until);
                return;
            }
            let most = if paced || self.window.bytes() > BYTES_IN_FLIGHT / 2 { 1 } else { room };
            let strict_only = self.ordered.borrow().strict_only;
            match self.feed.next_run(most, BYTES_IN_FLIGHT / 2, strict_only, &mut self.run) {
                Ok(None) => {
                    self.caught_up = true;
                    // What is accepted and not written yet is not read yet: it still is backlog.
                    let left_out = u64::from(self.suspect.is_some_and(|s| s.left_out));
                    let empty = self.window.waiting() == 0 && self.sendable() <= left_out;
                    self.refresh();
                    let event = if empty { LinkEvent::Empty } else { LinkEvent::CaughtUp };
                    self.step(event, "");
                    return;
                }
                Ok(Some(origin)) => self.enqueue_run(origin, now),
                Err(error) => {
                    tracing::warn!(upstream = %self.name, %error, "a lane cannot be read");
                    self.hold = Some(now.plus(READ_RETRY));
                    return;
                }
            }
        }
    }

    /// Hands the run that was read to the uplink.
    fn enqueue_run(&mut self, origin: Origin, now: Monotonic) {
        let now_in_queue = self.hub.outbox().now();
        let live = !self.link.is_behind();
        let (mut sent, mut bytes) = (0u64, 0u64);
        for record in self.run.run.iter() {
            let sequence = record.id.sequence;
            if self.notices_refused && Some(origin.lane) == self.notices {
                let why = "the peer takes no notices";
                if self.feed.refuse(origin, sequence, why) {
                    self.feed.reject(origin, sequence, why);
                }
                continue;
            }
            if let Some(suspect) = &mut self.suspect
                && suspect.breaks >= SUSPECT_AFTER
                && (suspect.origin, suspect.sequence) == (origin, sequence)
            {
                suspect.left_out = true;
                continue;
            }
            let topic = self.feed.map(origin.source, record.source(), record.topic());
            let waited = now_in_queue.since(record.accepted_at());
            let repeated = self.repeats.take(origin, sequence);
            let marks;
            let marks = if self.limits.carries_marks {
                let delayed = !live || repeated || waited >= DELAY_WORTH_A_MARK;
                marks = self.marks.of(self.hub.outbox(), &record, now_in_queue, delayed);
                &marks.0[..marks.1]
            } else {
                &[][..]
            };
            let size = topic.len() + record.payload().len();
            let (token, uplink) = (self.window.next_token(), &mut self.uplink);
            let outcome = record.with_attributes(|attributes| {
                uplink.enqueue(&UplinkPublish {
                    token,
                    topic,
                    payload: record.payload(),
                    attributes,
                    marks,
                    retain: record.retain(),
                    // The reader leaves out what has expired; what expires in this second still goes.
                    expires_seconds: record.remaining_seconds(now_in_queue).map(|left| left.max(1)),
                    repeated,
                })
            });
            match outcome {
                Ok(()) => {
                    self.window.push(InFlight { origin, sequence, sent_at: now, bytes: size });
                    self.pace.spend(size);
                    sent += 1;
                    bytes += size as u64;
                }
                Err(UplinkOutcome::Refused(reason)) => {
                    self.refusals.push(Refusal::new(origin, sequence, reason));
                }
                Err(UplinkOutcome::TryLater(reason)) => {
                    if repeated {
                        self.repeats.note(origin, sequence);
                    }
                    self.busy = Some(reason);
                    break;
                }
                Err(UplinkOutcome::Accepted) => {
                    self.metrics.first.inc_by(self.feed.acknowledge(origin, &[sequence]));
                }
            }
        }
        self.metrics.sent.inc_by(sent);
        self.metrics.bytes.inc_by(bytes);
        self.status.counts.sent.fetch_add(sent, Ordering::Relaxed);
        self.metrics.in_flight(self.window.waiting());
    }

    /// Takes the answers that have come.
    fn settle(&mut self, now: Monotonic) {
        let mut accepted = 0u64;
        let mut slow = false;
        let full = self.full_window();
        for ack in self.acks.drain(..) {
            let Some(publish) = self.window.answer(ack.token) else { continue };
            match ack.outcome {
                UplinkOutcome::Accepted => {
                    accepted += 1;
                    self.metrics.latency(now.since(publish.sent_at));
                    slow |= self.throttle.answered(publish.sent_at, now, full);
                    match self.done.iter_mut().find(|(origin, _)| *origin == publish.origin) {
                        Some((_, sequences)) => sequences.push(publish.sequence),
                        None => self.done.push((publish.origin, vec![publish.sequence])),
                    }
                }
                UplinkOutcome::Refused(reason) => {
                    if Some(publish.origin.lane) != self.notices && !self.feed.passes(publish.origin) {
                        self.refused_bytes += (publish.bytes + RECORD_OVERHEAD) as u64;
                        self.judge_peer = true;
                    }
                    self.refusals.push(Refusal::new(publish.origin, publish.sequence, reason));
                }
                UplinkOutcome::TryLater(reason) => {
                    self.repeats.note(publish.origin, publish.sequence);
                    self.busy = Some(reason);
                }
            }
        }
        if accepted > 0 {
            for (origin, sequences) in &mut self.done {
                if !sequences.is_empty() {
                    self.metrics.first.inc_by(self.feed.acknowledge(*origin, sequences));
                    sequences.clear();
                }
            }
            self.metrics.acknowledged.inc_by(accepted);
            self.status.counts.acknowledged.fetch_add(accepted, Ordering::Relaxed);
            self.metrics.in_flight(self.window.waiting());
            self.metrics.window(self.throttle.allow(full));
            self.refused_bytes = 0;
            self.judge_suspect();
            self.step(LinkEvent::Acknowledged, "");
            if slow {
                self.step(LinkEvent::Slow, "answers are slow");
            }
        }
    }

    /// After a "not now": once all answers are in, what was not taken is read again, in order.
    fn resume(&mut self) {
        if self.window.waiting() == 0
            && self.refusals.is_empty()
            && let Some(reason) = self.busy.take()
        {
            let busy = Flow::Shut(Unpassed::Busy);
            self.feed.flow(&busy, &busy);
            self.feed.rewind();
            self.caught_up = false;
            self.throttle.refused(self.clock.monotonic(), self.full_window());
            self.step(LinkEvent::Busy, &reason);
        }
    }

    async fn lost(&mut self, failure: LinkFailure) {
        self.note_suspect(&failure);
        self.hang_up(LinkEvent::Lost(failure.cause), &failure.detail).await;
    }

    /// Closes the connection; what is unanswered is read again.
    async fn hang_up(&mut self, event: LinkEvent, detail: &str) {
        self.uplink.disconnect().await;
        self.step(event, detail);
        self.begin_with = self.window.unanswered().next().map(|p| (p.origin, p.sequence));
        for publish in self.window.unanswered() {
            self.repeats.note(publish.origin, publish.sequence);
        }
        // What is not set aside yet is refused again.
        for refusal in self.refusals.drain(..) {
            self.repeats.note(refusal.origin, refusal.sequence);
        }
        self.window.clear();
        self.metrics.in_flight(0);
        self.feed.rewind();
        self.refresh();
    }

    async fn finish(&mut self) {
        self.stopping = true;
        self.flow();
        let deadline = self.clock.monotonic().plus(GRACE);
        while self.link.state().is_connected() && self.window.waiting() > 0 {
            let left = deadline.since(self.clock.monotonic());
            let driven = tokio::time::timeout(left, self.uplink.drive(&mut self.acks, false)).await;
            self.busy = None;
            let now = self.clock.monotonic();
            self.settle(now);
            self.set_aside(now).await;
            if !matches!(driven, Ok(Ok(()))) {
                break;
            }
        }
        self.uplink.disconnect().await;
        self.step(LinkEvent::Stop, "stopped");
        self.metrics.in_flight(0);
        self.refresh();
    }

    fn refresh(&self) -> u64 {
        self.count_traffic();
        for (set, counts) in self.feed.sets() {
            self.metrics.set(set, counts);
        }
        self.status.set_paused(self.ordered.borrow().strict_only);
        let queued = self.feed.queued();
        self.status.counts.queued.store(queued, Ordering::Relaxed);
        queued
    }

    /// Records that may be sent as orders are.
    fn sendable(&self) -> u64 {
        self.feed.sendable(self.ordered.borrow().strict_only)
    }

    /// Notes what has passed on the wire.
    fn count_traffic(&self) {
        let traffic = self.uplink.traffic().unwrap_or_else(|| {
            let counts = &self.status.counts;
            let (sent, answered) = (counts.sent.load(Ordering::Relaxed), counts.acknowledged.load(Ordering::Relaxed));
            Traffic { sent: self.metrics.bytes.get() + sent * OVERHEAD, received: answered * OVERHEAD }
        });
        let counts = &self.status.counts;
        for (now, seen, counter) in
            [(traffic.sent, &counts.bytes_sent, &self.metrics.traffic[0]), (traffic.received, &counts.bytes_received, &self.metrics.traffic[1])]
        {
            let before = seen.swap(now, Ordering::Relaxed);
            counter.inc_by(now.saturating_sub(before));
        }
    }

    /// Feeds the state machine and does what it asks for.
    fn step(&mut self, event: LinkEvent, detail: &str) {
        let now = self.clock.monotonic();
        let random = self.random.draw();
        for action in self.link.step(now, event, random) {
            match action {
                LinkAction::Connect => self.connecting = true,
                // The cycle sends what the state allows; the connection is closed where the loss is seen.
                LinkAction::Probe | LinkAction::Disconnect => {}
                LinkAction::Drain => {
                    self.pace = Pace::new(&self.drain, now);
                    self.notice_until = Some(now.plus(NOTICE_WAIT)).filter(|_| self.ordered.borrow().notice_follows);
                    if self.link.is_behind() && !self.drain.jitter.is_zero() {
                        let fraction = f64::from((self.random.draw() >> 32) as u32) / f64::from(u32::MAX);
                        self.hold = Some(now.plus(self.drain.jitter.mul_f64(fraction)));
                    }
                }
                LinkAction::Changed { from, to, cause } => self.changed(from, to, cause, detail),
            }
        }
        self.flow();
        let behind = self.link.is_behind();
        self.view.send_if_modified(|view| std::mem::replace(&mut view.behind, behind) != behind);
    }

    fn changed(&mut self, from: LinkState, to: LinkState, cause: Option<LinkCause>, detail: &str) {
        self.metrics.changed(to, cause);
        let queued = self.feed.queued();
        let (name, state, was) = (&self.name, to.as_str(), from.as_str());
        match cause {
            Some(cause) if cause != LinkCause::Operator && !detail.is_empty() => {
                tracing::warn!(upstream = %name, link.state = state, link.before = was, link.cause = cause.as_str(), error = detail, queued, "link changed");
            }
            _ => tracing::info!(upstream = %name, link.state = state, link.before = was, queued, "link changed"),
        }
        let (since, behind) = (self.clock.now(), self.link.is_behind());
        self.view.send_modify(|view| {
            if view.state != to {
                view.since = since;
            }
            view.state = to;
            view.cause = cause;
            view.behind = behind;
            if cause.is_none() {
                view.detail.clear();
            } else if !detail.is_empty() {
                detail.clone_into(&mut view.detail);
            }
        });
    }
}

/// The future if there is one, else one that never resolves.
/// Bytes that are set aside.
fn in_quarantine(hub: &Hub) -> u64 {
    hub.outbox().status().iter().find(|l| l.lane == QUARANTINE).map_or(0, |l| l.disk_bytes)
}

async fn maybe(future: Option<impl Future<Output = ()>>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
