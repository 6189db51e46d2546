//! Escape mode at work: looks at links, store and disk, feeds the controller, and does what it asks for. The mode and an outage that
//! goes on are kept in the data folder (`escape.json`), so that a restart in the middle of an outage goes on with it.

mod handle;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::budgets::Budgets;
use super::tombstones::{self, Ranges, Told};
use crate::component::{Fut, LinkCause};
use crate::escape::{
    Handover, HandoverSight, LinkSight, Mode, ModeAction, ModeActions, ModeConfig, ModeEvent, ModeMachine, Outage, SavedMode, Situation,
};
use crate::forward::{ForwarderStatus, LinkOrders};
use crate::hub::{Hub, NOTICES, QUARANTINE};
use crate::message::{Attributes, Inbound};
use crate::outbox::storage::Storage;
use crate::outbox::{Bound, DestinationId, LedgerRow, Locked, Vanished};
use crate::resource::{DiskFloor, EscapePolicySpec};
use crate::supervise::{Watch, contained};
use crate::telemetry::Metrics;
use crate::time::{Clock, Monotonic, Timestamp};
use handle::Order;
pub use handle::{EscapeHandle, EscapeOrder, EscapeSettings, ModeView};

/// Where devices and applications on the box read the mode: retained, JSON with `mode`, `since`, `cause`.
pub const MODE_TOPIC: &str = "$selvedge/mode";
/// How often the controller looks when nothing happens.
const LOOK: Duration = Duration::from_secs(1);
/// How long the controller must go on after a defect to count as well.
const WELL: Duration = Duration::from_secs(10);
/// How often the file system is asked for its room.
const DISK_LOOK: Duration = Duration::from_secs(5);
/// How often the length of an outage is saved.
const SAVE: Duration = Duration::from_secs(600);
/// Reports that are kept to be shown.
const REPORTS: usize = 10;
/// Losses are gathered for this long while a link stands.
const TELL: Duration = Duration::from_secs(10);
/// Damaged files that are named.
const DAMAGED: usize = 64;
/// Orders that may wait.
const ORDERS: usize = 8;

/// An upstream that is looked at.
pub(super) struct Watched {
    pub status: ForwarderStatus,
    pub destination: DestinationId,
    pub secondary: bool,
    /// Of a primary whose lanes may be taken over: who carries them.
    pub handover: Option<Handover>,
    pub orders: watch::Sender<LinkOrders>,
}

impl Watched {
    /// The peer has proved that it takes records.
    fn stands(&self) -> bool {
        self.status.state().stands()
    }
}

/// Upstreams that records are stored for together.
pub(super) struct WatchedSet {
    pub destination: DestinationId,
    /// Places of its members among the upstreams.
    pub members: Vec<usize>,
}

/// What the controller works on.
pub(super) struct Surroundings {
    pub node: String,
    pub dir: PathBuf,
    pub hub: Hub,
    pub storage: Arc<dyn Storage>,
    pub clock: Arc<dyn Clock>,
    pub upstreams: Vec<Watched>,
    pub sets: Vec<WatchedSet>,
    pub modes: ModeConfig,
    pub disk_free: DiskFloor,
    /// The policy, for its budgets.
    pub policy: Option<EscapePolicySpec>,
    /// Topic of notices upstream.
    pub notices: Option<String>,
    /// Files that were set aside when the store was opened.
    pub set_aside: Vec<PathBuf>,
    /// What is stored and cannot be opened for want of a key.
    pub locked: Vec<Locked>,
    /// What was stored and stood in no file any more when the store was opened.
    pub vanished: Vec<Vanished>,
    /// Whether there is a pub/sub `local` to tell the mode to.
    pub local: bool,
}

impl Surroundings {
    /// Everything that is stored for upstreams is stored for one of these.
    fn destinations(&self) -> impl Iterator<Item = DestinationId> {
        self.upstreams.iter().map(|u| u.destination).chain(self.sets.iter().map(|s| s.destination))
    }

    /// The destinations that an upstream carries records of, by its place.
    fn destinations_of(&self, upstream: usize) -> impl Iterator<Item = DestinationId> {
        let sets = self.sets.iter().filter(move |s| s.members.contains(&upstream)).map(|s| s.destination);
        self.upstreams.get(upstream).map(|u| u.destination).into_iter().chain(sets)
    }
}

/// What is kept in the data folder.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Kept {
    mode: Option<SavedMode>,
    mode_since: u64,
    outages: u64,
    outage: Option<Outage>,
    /// When this was saved, on the store's clock: how long an outage has lasted counts on from there.
    saved_at: u64,
    reports: VecDeque<Value>,
    told: Told,
    /// Files that were set aside when the store was opened, still to be told.
    damaged: Vec<String>,
    /// What had vanished when the store was opened, still to be told.
    vanished: Vec<Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabel {
    mode: &'static str,
}

struct Meters {
    mode: Family<ModeLabel, Gauge>,
    changes: Family<ModeLabel, Counter>,
    outages: Counter,
    disk_short: Gauge,
}

impl Meters {
    fn register(metrics: &Metrics) -> Self {
        let all = Self { mode: Family::default(), changes: Family::default(), outages: Counter::default(), disk_short: Gauge::default() };
        metrics.register(|r| {
            r.register("selvedge_mode", "1 for the mode that the box is in", all.mode.clone());
            r.register("selvedge_mode_changes", "Times that a mode was entered", all.changes.clone());
            r.register("selvedge_outages", "Outages that have begun since the start", all.outages.clone());
            r.register("selvedge_disk_short", "1 while the file system has less room than its floor", all.disk_short.clone());
        });
        all
    }

    fn show(&self, mode: Mode) {
        for each in Mode::ALL {
            self.mode.get_or_create(&ModeLabel { mode: each.as_str() }).set(i64::from(each == mode));
        }
    }
}

/// The loop around the controller of the mode.
pub(super) struct Escape {
    at: Surroundings,
    machine: ModeMachine,
    kept: Kept,
    saved_at: Monotonic,
    ranges: Ranges,
    told_at: Option<Monotonic>,
    /// Since the last link was lost, with the books of then: an outage is known to be one only some seconds later.
    maybe_outage: Option<Outage>,
    disk: Option<(Monotonic, bool)>,
    meters: Meters,
    budgets: Budgets,
    view: watch::Sender<ModeView>,
    orders: mpsc::Receiver<Order>,
}

impl Escape {
    /// Reads what is kept; a file that cannot be read is set aside.
    pub(super) fn new(at: Surroundings, metrics: &Metrics) -> (Self, EscapeHandle) {
        let (now, wall) = (at.clock.monotonic(), at.clock.now());
        let path = at.dir.join("escape.json");
        let mut kept = match at.storage.read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(path = %path.display(), %error, "cannot be understood; a damaged file is set aside, and the mode begins anew");
                let kept_as = path.with_extension("json.corrupt");
                match at.storage.rename(&path, &kept_as) {
                    Ok(()) => Kept { damaged: vec![kept_as.display().to_string()], ..Kept::default() },
                    Err(error) => {
                        tracing::error!(path = %path.display(), %error, "cannot be set aside");
                        Kept::default()
                    }
                }
            }),
            Err(_) => Kept::default(),
        };
        if let Some(outage) = &mut kept.outage {
            outage.restarted();
            // Whatever ended the node, and however long it was away: nobody has seen a link since then.
            if let Some(lasted) = kept.mode.as_mut().and_then(|m| m.offline_ms.as_mut()).filter(|_| kept.saved_at > 0) {
                let since = at.hub.outbox().now().since(Timestamp(kept.saved_at));
                *lasted = lasted.saturating_add(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
            }
        }
        let room = DAMAGED.saturating_sub(kept.damaged.len());
        kept.damaged.extend(at.set_aside.iter().take(room).map(|p| p.display().to_string()));
        let room = DAMAGED.saturating_sub(kept.vanished.len());
        let vanished = |v: &Vanished| json!({"lane": v.lane, "sequences": [v.sequences.0, v.sequences.1], "count": v.records});
        kept.vanished.extend(at.vanished.iter().take(room).map(vanished));
        for destination in at.destinations() {
            at.hub.outbox().watch_losses(destination);
        }
        let machine = ModeMachine::new(at.modes, kept.mode, now);
        let since = kept.mode.map_or(wall, |_| Timestamp(kept.mode_since));
        let (view, seen) = watch::channel(ModeView { mode: machine.mode(), since, cause: None, fenced: machine.is_fenced(), pinned_seconds: None });
        let (give, orders) = mpsc::channel(ORDERS);
        let meters = Meters::register(metrics);
        meters.show(machine.mode());
        let (budgets, budgets_seen) =
            Budgets::new(at.policy.as_ref(), &at.dir, at.storage.clone(), at.clock.clone(), at.hub.outbox().clone(), metrics);
        let mut this = Self {
            at,
            machine,
            kept,
            saved_at: now,
            ranges: Ranges::default(),
            told_at: None,
            maybe_outage: None,
            disk: None,
            meters,
            budgets,
            view,
            orders,
        };
        this.at.hub.set_mode(this.machine.mode());
        this.order_links();
        let hub = this.at.hub.clone();
        (this, EscapeHandle { view: seen, budgets: budgets_seen, orders: give, hub })
    }

    /// Looks after the mode until `stop` resolves. After a defect it goes on with what it has saved last.
    pub(super) async fn run(mut self, mut watch: Watch, mut stop: Fut<'static, ()>) {
        let mut told = false;
        let mut since_defect = None::<Monotonic>;
        if !self.kept.damaged.is_empty() || !self.kept.vanished.is_empty() || self.kept.outage.is_some() {
            // The next start does not find files damaged or missing any more, so an alarm that was not sent by then must be kept; and a start in the middle
            // of an outage is one that its report counts.
            self.save().await;
        }
        loop {
            let turn = async {
                if !std::mem::replace(&mut told, true) {
                    self.tell().await;
                }
                self.turn(&mut stop).await
            };
            match contained(turn).await {
                Ok(true) => {
                    if since_defect.take_if(|at| self.at.clock.monotonic().since(*at) >= WELL).is_some() {
                        watch.well();
                    }
                }
                Ok(false) => break,
                Err(cause) => {
                    let pause = watch.failed(&cause);
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = &mut stop => break,
                    }
                    since_defect = Some(self.at.clock.monotonic());
                    told = false;
                    self.restart();
                }
            }
        }
        self.budgets.save().await;
        self.save().await;
    }

    /// Waits for something to do, and does it. `false` when `stop` has resolved.
    async fn turn(&mut self, stop: &mut Fut<'static, ()>) -> bool {
        let changes: Vec<_> = self.at.upstreams.iter_mut().map(|u| Box::pin(u.status.changed())).collect();
        let changed = async {
            if changes.is_empty() {
                std::future::pending::<()>().await;
            }
            futures_util::future::select_all(changes).await;
        };
        let order = tokio::select! {
            biased;
            () = stop => return false,
            order = self.orders.recv() => order,
            () = changed => None,
            () = tokio::time::sleep(LOOK) => None,
        };
        self.look().await;
        if let Some((order, answer)) = order {
            let said = self.obey(order).await;
            // Who asked may have gone.
            let _ = answer.send(said);
        }
        true
    }

    /// Begins anew from the file, as after a restart of the node: what a defect has left in memory may be half done.
    fn restart(&mut self) {
        let path = self.at.dir.join("escape.json");
        match self.at.storage.read(&path).map_err(|e| e.to_string()).and_then(|b| serde_json::from_slice(&b).map_err(|e| e.to_string())) {
            Ok(kept) => self.kept = kept,
            // Nothing was saved yet, or the disk is gone: what is known is better than nothing.
            Err(error) => tracing::debug!(error, "the mode goes on from memory"),
        }
        let now = self.at.clock.monotonic();
        self.machine = ModeMachine::new(self.at.modes, self.kept.mode, now);
        (self.told_at, self.maybe_outage) = (None, None);
        self.meters.show(self.machine.mode());
        self.refresh_view();
        self.order_links();
    }

    async fn obey(&mut self, order: EscapeOrder) -> Value {
        let event = match order {
            EscapeOrder::Reports => return self.reports(),
            EscapeOrder::Configure(settings) => {
                self.configure(*settings).await;
                self.bound_store(false);
                return Value::Null;
            }
            EscapeOrder::Enter => ModeEvent::Enter,
            EscapeOrder::Leave => ModeEvent::Leave,
            EscapeOrder::Pin(mode, lasting) => ModeEvent::Pin { mode, lasting },
        };
        tracing::warn!(order = ?event, "an operator steers the escape mode");
        let actions = self.machine.step(self.at.clock.monotonic(), event);
        self.act(actions).await;
        self.order_links();
        self.save().await;
        self.refresh_view();
        self.bound_store(false);
        Value::Null
    }

    async fn configure(&mut self, settings: EscapeSettings) {
        let policy = settings.policy;
        self.machine.configure(policy.modes);
        self.at.modes = policy.modes;
        self.at.disk_free = policy.disk_free;
        self.disk = None; // asked for anew
        for handover in self.at.upstreams.iter_mut().filter_map(|u| u.handover.as_mut()) {
            handover.configure(policy.modes.settle, settings.failback_after);
        }
        self.budgets.configure(&policy).await;
        self.order_links();
    }

    fn reports(&self) -> Value {
        let running = self.kept.outage.as_ref().map(|outage| {
            let mut report = self.report(outage);
            report["ended"] = Value::Null;
            report
        });
        json!(running.iter().chain(self.kept.reports.iter()).collect::<Vec<_>>())
    }

    /// The lines of the upstreams.
    fn books(&self) -> Vec<LedgerRow> {
        self.at.destinations().flat_map(|d| self.at.hub.outbox().ledger_of(d)).collect()
    }

    fn report(&self, outage: &Outage) -> Value {
        outage.report(&self.at.node, self.at.clock.now(), &self.books())
    }

    fn disk_short(&mut self, now: Monotonic) -> bool {
        if let Some((at, short)) = self.disk
            && now.since(at) < DISK_LOOK
        {
            return short;
        }
        let before = self.disk.is_some_and(|(_, short)| short);
        let short = match self.at.storage.space(&self.at.dir) {
            Ok(space) => self.at.disk_free.is_passed(space),
            Err(error) => {
                tracing::warn!(%error, "the file system does not tell its room");
                before
            }
        };
        self.disk = Some((now, short));
        if short != before {
            self.meters.disk_short.set(i64::from(short));
            if short {
                tracing::error!(path = %self.at.dir.display(), "the file system has less room than its floor: no lane grows beyond its own floor");
            } else {
                tracing::info!(path = %self.at.dir.display(), "the file system has room again");
            }
        }
        short
    }

    /// What the mode and the disk change in the store. While the mode is told, lanes take something in any case: a subscriber's lane may be
    /// one of those that take nothing.
    fn bound_store(&self, telling: bool) {
        let now = self.at.clock.monotonic();
        let pinned = self.machine.pinned_for(now).is_some();
        let disk_short = self.disk.is_some_and(|(_, short)| short);
        let protected = if disk_short { Bound::Short } else { Bound::Quota };
        // By itself the node does not go below the quotas that were declared for an outage: what is full does what its `onFull` says. An
        // operator may.
        let others = match self.machine.mode() {
            Mode::Survive if pinned && !telling => Bound::Shut,
            Mode::Conserve | Mode::Survive if pinned && !disk_short => Bound::Held,
            _ => protected,
        };
        // Full lanes are no reason to let senders wait; a long time without a link is.
        let long = self.machine.offline_for(now).is_some_and(|offline| offline >= self.at.modes.conserve_after);
        let saves = (pinned || long) && matches!(self.machine.mode(), Mode::Conserve | Mode::Survive);
        self.at.hub.bound_lanes(protected, others);
        self.at.hub.outbox().spare_flash(saves || self.budgets.flash_is_spent());
    }

    async fn look(&mut self) {
        let now = self.at.clock.monotonic();
        let disk_short = self.disk_short(now);
        let (mut used, mut quota) = (0u64, 0u64);
        let lanes = self.at.hub.outbox().status();
        let lane_fails = lanes.iter().any(|l| l.failure.is_some());
        // The node's own lanes have bounds of their own, and the room of lanes that nothing is in helps no other.
        for lane in lanes.iter().filter(|l| l.disk_bytes > 0 && l.lane != NOTICES && l.lane != QUARANTINE) {
            used += lane.disk_bytes;
            quota = quota.saturating_add(lane.quota_bytes);
        }
        let fill_percent = u8::try_from(used.saturating_mul(100) / quota.max(1)).unwrap_or(100).min(100);
        let links: Vec<LinkSight> = self
            .at
            .upstreams
            .iter()
            .map(|u| {
                let link = u.status.snapshot();
                LinkSight { secondary: u.secondary, state: link.state, behind: link.behind, cause: link.cause }
            })
            .collect();
        let actions = self.machine.step(now, ModeEvent::Look(&Situation { links: &links, fill_percent, disk_short, lane_fails }));
        match self.machine.offline_for(now) {
            None => self.maybe_outage = None,
            Some(_) if self.maybe_outage.is_none() && self.kept.outage.is_none() => {
                self.maybe_outage = Some(Outage::began(0, Timestamp::default(), &self.books()));
            }
            Some(_) => {}
        }
        let new_cause = self.note_causes();
        self.act(actions).await;
        self.look_at_budgets().await;
        self.bound_store(false);
        let told = self.tell_losses(now).await;
        self.order_links();
        self.refresh_view();
        if told || new_cause || (self.machine.in_outage() && now.since(self.saved_at) >= SAVE) {
            self.save().await;
        }
    }

    /// A budget that runs out is told to every primary upstream, and so is one that has room again.
    async fn look_at_budgets(&mut self) {
        let statuses: Vec<ForwarderStatus> = self.at.upstreams.iter().map(|u| u.status.clone()).collect();
        let changes = self.budgets.look(&statuses).await;
        let Some(topic) = self.at.notices.as_ref().map(|topic| format!("{topic}/alarm")) else { return };
        let to: Vec<DestinationId> = self.at.upstreams.iter().filter(|u| !u.secondary && u.status.takes_notices()).map(|u| u.destination).collect();
        if to.is_empty() {
            return;
        }
        for change in changes {
            let alarm = json!({
                "kind": "alarm", "alarm": "budget", "node": self.at.node, "at": self.at.clock.now().to_rfc3339(), "budget": change.view.to_json(),
            });
            if let Err(error) = self.at.hub.notice(&to, &topic, alarm.to_string().as_bytes()).await {
                tracing::warn!(%error, "the state of a budget could not be told; `selvedge status` shows it");
            }
        }
    }

    /// What keeps the links down, for the report. Says whether an outage has a new one that its report lists.
    fn note_causes(&mut self) -> bool {
        let known = self.kept.outage.is_some();
        let Some(outage) = self.kept.outage.as_mut().or(self.maybe_outage.as_mut()) else { return false };
        let mut new = false;
        for upstream in &self.at.upstreams {
            let link = upstream.status.snapshot();
            if let Some(cause) = link.cause {
                new |= outage.cause(self.at.clock.now(), &link.upstream, cause, &link.detail);
            }
        }
        known && new && outage.lists_all()
    }

    fn refresh_view(&mut self) {
        let now = self.at.clock.monotonic();
        let cause = self.at.upstreams.iter().find_map(|u| u.status.snapshot().cause);
        let (mode, fenced) = (self.machine.mode(), self.machine.is_fenced());
        let pinned_seconds = self.machine.pinned_for(now).map(|t| t.as_secs());
        let since = Timestamp(self.kept.mode_since);
        self.view.send_if_modified(|view| {
            let next = ModeView { mode, since: if self.kept.mode_since == 0 { view.since } else { since }, cause, fenced, pinned_seconds };
            let changed = *view != next;
            *view = next;
            changed
        });
    }

    async fn act(&mut self, actions: ModeActions) {
        let mut changes = Vec::new();
        let anything = !actions.is_empty();
        for action in actions {
            match action {
                ModeAction::Changed { from, to } => {
                    self.note_change(to);
                    changes.push((from, to));
                }
                ModeAction::OutageBegan(since) => {
                    let (now, wall) = (self.at.clock.monotonic(), self.at.clock.now());
                    let started = Timestamp(wall.0.saturating_sub(u64::try_from(now.since(since).as_millis()).unwrap_or(0)));
                    self.kept.outages += 1;
                    self.meters.outages.inc();
                    let mut outage = self.maybe_outage.take().unwrap_or_else(|| Outage::began(0, started, &self.books()));
                    outage.confirm(self.kept.outages, started);
                    outage.mode(wall, self.machine.mode());
                    self.kept.outage = Some(outage);
                }
                ModeAction::OutageEnded => self.outage_ended().await,
                // Told to the links with everything else.
                ModeAction::Fence(_) => {}
            }
        }
        // Kept before anybody is told: a box that is killed now begins in the mode that it has told.
        if anything {
            self.save().await;
        }
        for (from, to) in changes {
            self.changed(from, to).await;
        }
    }

    /// Who carries the lanes of each primary: whether each upstream lends its own, and which ones the secondary takes over.
    fn hand_over(&mut self) -> (Vec<bool>, u32) {
        let now = self.at.clock.monotonic();
        let standby = self.at.upstreams.iter().find(|u| u.secondary).map(|u| (u.stands(), u.status.clone()));
        let (mut lent, mut borrow, mut place) = (Vec::new(), 0u32, 0);
        for upstream in &mut self.at.upstreams {
            let primary_stands = upstream.stands();
            let Some((handover, (secondary_stands, secondary))) = upstream.handover.as_mut().zip(standby.as_ref()) else {
                lent.push(false);
                continue;
            };
            let sight = HandoverSight {
                primary_stands,
                secondary_stands: *secondary_stands,
                primary_has: upstream.status.handed(0),
                secondary_has: secondary.handed(place + 1),
            };
            let orders = handover.step(now, sight);
            lent.push(orders.lent);
            borrow |= u32::from(orders.borrow) << place;
            place += 1;
        }
        (lent, borrow)
    }

    /// Tells the forwarders what the controller asks of their links.
    fn order_links(&mut self) {
        let (lent, borrow) = self.hand_over();
        for (place, (upstream, lent)) in self.at.upstreams.iter().zip(lent).enumerate() {
            let untold = |row: &LedgerRow| tombstones::is_untold(&self.kept.told, row);
            let news = (self.kept.outage.is_some() && !upstream.secondary)
                || !self.kept.damaged.is_empty()
                || !self.kept.vanished.is_empty()
                || !self.at.locked.is_empty()
                || self.at.destinations_of(place).any(|d| self.at.hub.outbox().ledger_of(d).iter().any(untold));
            let orders = LinkOrders {
                closed: self.machine.is_fenced(),
                notice_follows: news && self.at.notices.is_some() && upstream.status.takes_notices() && !upstream.stands(),
                lent,
                strict_only: self.budgets.strict_only(upstream.status.upstream()),
                borrow: if upstream.secondary { borrow } else { 0 },
            };
            upstream.orders.send_if_modified(|o| std::mem::replace(o, orders) != orders);
        }
    }

    /// Every loss leaves a tombstone for its upstream: before the backlog when the link has just come up, else gathered for some seconds.
    /// Returns whether anything was told.
    async fn tell_losses(&mut self, now: Monotonic) -> bool {
        let Some(topic) = self.at.notices.clone() else { return false };
        for destination in self.at.destinations() {
            self.ranges.gather(self.at.hub.outbox(), destination);
        }
        let due = self.told_at.is_none_or(|at| now.since(at) >= TELL);
        let mut told = false;
        let hears = |u: &Watched| u.stands() && u.status.takes_notices() && (due || u.orders.borrow().notice_follows);
        let mut heard: Vec<DestinationId> = self.at.upstreams.iter().filter(|u| hears(u)).map(|u| u.destination).collect();
        // What a set has lost is told to whichever of its members is there.
        heard.extend(self.at.sets.iter().filter(|s| s.members.iter().any(|at| hears(&self.at.upstreams[*at]))).map(|s| s.destination));
        for destination in heard {
            for row in self.at.hub.outbox().ledger_of(destination) {
                if !tombstones::is_untold(&self.kept.told, &row) {
                    continue;
                }
                for stone in self.ranges.tombstones(&self.kept.told, &self.at.node, destination, &row) {
                    if let Err(error) = self.at.hub.notice(&[destination], &format!("{topic}/tombstone"), stone.to_string().as_bytes()).await {
                        tracing::warn!(%error, "a tombstone could not be stored; its range is told without details later");
                        return told;
                    }
                }
                tombstones::tell(&mut self.kept.told, &row);
                told = true;
            }
        }
        told |= self.tell_damage(&topic).await;
        if told {
            self.told_at = Some(now);
        }
        told
    }

    /// Files of the store that were set aside or have vanished, and messages that cannot be opened, are told to the first upstream that stands.
    async fn tell_damage(&mut self, topic: &str) -> bool {
        let Some(upstream) = self.at.upstreams.iter().find(|u| u.stands() && !u.secondary && u.status.takes_notices()) else { return false };
        let destination = upstream.destination;
        let mut told = false;
        if !self.kept.damaged.is_empty() && self.alarm(topic, destination, "store-damaged", ("setAside", json!(self.kept.damaged))).await {
            self.kept.damaged.clear();
            told = true;
        }
        if !self.kept.vanished.is_empty() && self.alarm(topic, destination, "store-vanished", ("vanished", json!(self.kept.vanished))).await {
            self.kept.vanished.clear();
            told = true;
        }
        if !self.at.locked.is_empty() {
            // Found again at every start, so it need not be kept.
            let locked = self.at.locked.iter().map(|l| json!({"key": l.key, "lane": l.lane, "segments": l.segments})).collect();
            if self.alarm(topic, destination, "store-locked", ("locked", locked)).await {
                self.at.locked.clear();
                told = true;
            }
        }
        told
    }

    /// Stores an alarm for an upstream.
    async fn alarm(&self, topic: &str, to: DestinationId, alarm: &str, (key, what): (&str, serde_json::Value)) -> bool {
        let text = json!({"kind": "alarm", "alarm": alarm, "node": self.at.node, "at": self.at.clock.now().to_rfc3339(), key: what}).to_string();
        let stored = self.at.hub.notice(&[to], &format!("{topic}/alarm"), text.as_bytes()).await;
        if let Err(error) = &stored {
            tracing::warn!(%error, "an alarm could not be stored; it is tried again");
        }
        stored.is_ok()
    }

    fn note_change(&mut self, to: Mode) {
        let wall = self.at.clock.now();
        self.kept.mode_since = wall.0;
        if let Some(outage) = &mut self.kept.outage {
            outage.mode(wall, to);
        }
    }

    async fn changed(&mut self, from: Mode, to: Mode) {
        self.at.hub.set_mode(to);
        self.meters.show(to);
        self.meters.changes.get_or_create(&ModeLabel { mode: to.as_str() }).inc();
        self.refresh_view();
        let cause = self.view.borrow().cause.map_or("none", LinkCause::as_str);
        if to.is_island() {
            tracing::warn!(mode = to.as_str(), before = from.as_str(), cause, "the box changes its mode");
        } else {
            tracing::info!(mode = to.as_str(), before = from.as_str(), cause, "the box changes its mode");
        }
        self.tell().await;
    }

    /// Tells the mode to everyone on the box.
    async fn tell(&mut self) {
        if !self.at.local {
            return;
        }
        self.bound_store(true);
        let said = {
            let view = self.view.borrow();
            json!({"mode": view.mode, "since": view.since.to_rfc3339(), "cause": view.cause.map(LinkCause::as_str)}).to_string()
        };
        let attributes = Attributes { content_type: Some("application/json"), utf8: true, ..Attributes::default() };
        let message = Inbound { attributes, retain: true, qos: 1, ..Inbound::new(MODE_TOPIC, said.as_bytes()) };
        if let Err(error) = self.at.hub.accept_one("local", &message).await {
            tracing::warn!(%error, "the mode could not be told on the box");
        }
    }

    /// The report goes before everything that waits.
    async fn outage_ended(&mut self) {
        let Some(outage) = self.kept.outage.take() else { return };
        let report = self.report(&outage);
        tracing::info!(number = outage.number(), seconds = report["seconds"].as_u64(), "an outage has ended");
        if let Some(topic) = &self.at.notices {
            let destinations: Vec<DestinationId> =
                self.at.upstreams.iter().filter(|u| !u.secondary && u.status.takes_notices()).map(|u| u.destination).collect();
            if !destinations.is_empty()
                && let Err(error) = self.at.hub.notice(&destinations, &format!("{topic}/outage"), report.to_string().as_bytes()).await
            {
                tracing::warn!(%error, "the report of the outage could not be stored; `selvedge escape report` shows it");
            }
        }
        self.kept.reports.push_front(report);
        self.kept.reports.truncate(REPORTS);
    }

    /// The event loop goes on meanwhile, however slow the disk is.
    async fn save(&mut self) {
        let now = self.at.clock.monotonic();
        self.saved_at = now;
        (self.kept.mode, self.kept.saved_at) = (Some(self.machine.saved(now)), self.at.hub.outbox().now().0);
        let path = self.at.dir.join("escape.json");
        let saved = match serde_json::to_vec_pretty(&self.kept) {
            Ok(bytes) => {
                let (storage, to) = (self.at.storage.clone(), path.clone());
                let replaced = tokio::task::spawn_blocking(move || storage.replace(&to, &bytes, true));
                replaced.await.unwrap_or_else(|e| Err(std::io::Error::other(e)))
            }
            Err(error) => Err(std::io::Error::other(error)),
        };
        if let Err(error) = saved {
            tracing::warn!(path = %path.display(), %error, "the mode could not be saved; a restart would begin it anew");
        }
    }
}
