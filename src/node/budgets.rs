//! Budgets at work: counts what the store writes and what the upstreams send and receive, keeps it over restarts (`budgets.json`), says
//! when a budget runs out, and what has to give then.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::escape::{BothClocks, Budget, BudgetLevel, Period, SavedBudget};
use crate::forward::ForwarderStatus;
use crate::outbox::Outbox;
use crate::outbox::storage::Storage;
use crate::resource::EscapePolicySpec;
use crate::telemetry::Metrics;
use crate::time::{Clock, Monotonic, Timestamp};

/// How often what was used is saved at least; in between, whenever another percent is.
const SAVE: Duration = Duration::from_secs(600);

/// What is kept in the data folder.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Kept {
    flash: Option<SavedBudget>,
    data: Option<SavedBudget>,
    upstreams: BTreeMap<String, SavedBudget>,
}

/// A budget as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetView {
    /// `flash` or `data`.
    pub kind: &'static str,
    /// The upstream that it is for; none = all, or the store.
    pub upstream: Option<String>,
    /// Bytes used in the period.
    pub used: u64,
    /// Bytes of the period.
    pub limit: u64,
    /// Its period.
    pub period: Period,
    /// How far it is used up.
    pub level: BudgetLevel,
    /// Since when, by the wall clock.
    pub since: Timestamp,
}

impl BudgetView {
    /// As JSON: `kind`, `upstream`, `usedBytes`, `limitBytes`, `per`, `level`, `since`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "kind": self.kind, "upstream": self.upstream, "usedBytes": self.used, "limitBytes": self.limit, "per": self.period.as_str(),
            "level": self.level.as_str(), "since": self.since.to_rfc3339(),
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    budget: &'static str,
    upstream: String,
}

/// One budget and what it is counted by.
struct Line {
    kind: &'static str,
    upstream: Option<String>,
    budget: Budget,
    /// What had been counted when it was looked at last; none before the first look at a budget that came while the node runs.
    counted: Option<u64>,
    level: BudgetLevel,
    label: Label,
}

/// A budget whose level has changed.
pub(super) struct Change {
    pub view: BudgetView,
    pub worse: bool,
}

#[derive(Clone, Default)]
struct Gauges {
    used: Family<Label, Gauge>,
    limit: Family<Label, Gauge>,
}

impl Gauges {
    fn show(&self, line: &Line) {
        self.used.get_or_create(&line.label).set(i64::try_from(line.budget.saved().used).unwrap_or(i64::MAX));
        self.limit.get_or_create(&line.label).set(i64::try_from(line.budget.limit()).unwrap_or(i64::MAX));
    }

    fn forget(&self, line: &Line) {
        self.used.remove(&line.label);
        self.limit.remove(&line.label);
    }
}

/// The budgets that a policy has: kind, upstream, bytes, period.
fn budgets_of(policy: &EscapePolicySpec) -> impl Iterator<Item = (&'static str, Option<&str>, u64, Period)> {
    let of_all = [("flash", policy.flash_per_day, Period::Day), ("data", policy.data_per_month, Period::Month)];
    let of_all = of_all.into_iter().filter_map(|(kind, bytes, period)| Some((kind, None, bytes?, period)));
    let of_one = policy.upstreams.iter().filter_map(|u| Some(("data", Some(u.component.as_str()), u.data_per_month?, Period::Month)));
    of_all.chain(of_one)
}

/// All budgets of the node.
pub(super) struct Budgets {
    lines: Vec<Line>,
    path: PathBuf,
    storage: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
    outbox: Outbox,
    saved_at: Monotonic,
    /// Percent of each line when it was saved last.
    saved_percent: Vec<u64>,
    gauges: Gauges,
    view: watch::Sender<Vec<BudgetView>>,
}

impl Budgets {
    /// Reads what is kept; none without a budget in the policy.
    pub(super) fn new(
        policy: Option<&EscapePolicySpec>,
        dir: &std::path::Path,
        storage: Arc<dyn Storage>,
        clock: Arc<dyn Clock>,
        outbox: Outbox,
        metrics: &Metrics,
    ) -> (Self, watch::Receiver<Vec<BudgetView>>) {
        let path = dir.join("budgets.json");
        let kept: Kept = match storage.read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(path = %path.display(), %error, "cannot be understood: what was used of the budgets is counted anew");
                Kept::default()
            }),
            Err(_) => Kept::default(),
        };
        let gauges = Gauges::default();
        let now = BothClocks { queue: outbox.now(), wall: clock.now() };
        let saved = |kind: &str, upstream: Option<&str>| match (kind, upstream) {
            ("flash", _) => kept.flash,
            (_, None) => kept.data,
            (_, Some(name)) => kept.upstreams.get(name).copied(),
        };
        let lines: Vec<Line> = policy
            .into_iter()
            .flat_map(budgets_of)
            .map(|(kind, upstream, bytes, period)| {
                let line = Line::new(kind, upstream, Budget::new(bytes, period, saved(kind, upstream), now));
                Line { counted: Some(0), ..line }
            })
            .collect();
        lines.iter().for_each(|line| gauges.show(line));
        metrics.register(|r| {
            r.register("selvedge_budget_used_bytes", "Bytes used of a budget in its period", gauges.used.clone());
            r.register("selvedge_budget_limit_bytes", "Bytes of a budget", gauges.limit.clone());
        });
        let saved_percent = lines.iter().map(|l| l.budget.percent()).collect();
        let (view, seen) = watch::channel(Vec::new());
        let saved_at = clock.monotonic();
        (Self { lines, path, storage, clock, outbox, saved_at, saved_percent, gauges, view }, seen)
    }

    /// Counts on, and does to the store what follows. Gives the budgets whose level is another now.
    pub(super) async fn look(&mut self, upstreams: &[ForwarderStatus]) -> Vec<Change> {
        if self.lines.is_empty() {
            return Vec::new();
        }
        let now = BothClocks { queue: self.outbox.now(), wall: self.clock.now() };
        let mut changes = Vec::new();
        for line in &mut self.lines {
            let counted = match (line.kind, &line.upstream) {
                ("flash", _) => self.outbox.write_counts().flash_bytes,
                (_, None) => upstreams.iter().map(ForwarderStatus::traffic_bytes).sum(),
                (_, Some(name)) => upstreams.iter().filter(|u| u.upstream() == name).map(ForwarderStatus::traffic_bytes).sum(),
            };
            let before = line.counted.replace(counted).unwrap_or(counted);
            let level = line.budget.spend(now, counted.saturating_sub(before));
            self.gauges.show(line);
            let before = std::mem::replace(&mut line.level, level);
            if level != before {
                changes.push(Change { view: line.view(), worse: level > before });
            }
        }
        for change in &changes {
            let BudgetView { kind, upstream, used, limit, level, .. } = &change.view;
            let (upstream, level) = (upstream.as_deref().unwrap_or_default(), level.as_str());
            if change.worse {
                tracing::warn!(budget = kind, upstream, used, limit, level, "a budget runs out");
            } else {
                tracing::info!(budget = kind, upstream, used, limit, level, "there is room in a budget again");
            }
        }
        let views: Vec<_> = self.lines.iter().map(Line::view).collect();
        self.view.send_if_modified(|old| {
            let new = *old != views;
            *old = views;
            new
        });
        let percent = self.lines.iter().zip(&self.saved_percent).any(|(l, saved)| l.budget.percent() != *saved);
        let at = self.clock.monotonic();
        if percent || !changes.is_empty() || at.since(self.saved_at) >= SAVE {
            self.save().await;
        }
        changes
    }

    /// Whether what the store may write in a day is used up.
    pub(super) fn flash_is_spent(&self) -> bool {
        self.lines.iter().any(|l| l.kind == "flash" && l.level == BudgetLevel::Spent)
    }

    /// The budgets of another policy from now on. One that was there before counts on under its new limit; one that is new begins with
    /// nothing used, and one that is gone is forgotten and holds nothing back any more.
    pub(super) async fn configure(&mut self, policy: &EscapePolicySpec) {
        let now = BothClocks { queue: self.outbox.now(), wall: self.clock.now() };
        let mut before = std::mem::take(&mut self.lines);
        for (kind, upstream, bytes, period) in budgets_of(policy) {
            let line = match before.iter().position(|l| l.kind == kind && l.upstream.as_deref() == upstream) {
                Some(at) => {
                    let mut line = before.swap_remove(at);
                    line.budget.set_limit(bytes, now);
                    line
                }
                None => Line::new(kind, upstream, Budget::new(bytes, period, None, now)),
            };
            self.gauges.show(&line);
            self.lines.push(line);
        }
        before.iter().for_each(|gone| self.gauges.forget(gone));
        self.view.send_replace(self.lines.iter().map(Line::view).collect());
        self.write().await;
    }

    /// Whether only strict lanes may be sent to this upstream.
    pub(super) fn strict_only(&self, upstream: &str) -> bool {
        self.lines.iter().any(|l| l.kind == "data" && l.level >= BudgetLevel::Scarce && l.upstream.as_deref().is_none_or(|name| name == upstream))
    }

    /// Keeps what was used. The event loop goes on meanwhile, however slow the disk is.
    pub(super) async fn save(&mut self) {
        if !self.lines.is_empty() {
            self.write().await;
        }
    }

    async fn write(&mut self) {
        let mut kept = Kept::default();
        for line in &self.lines {
            match (line.kind, &line.upstream) {
                ("flash", _) => kept.flash = Some(line.budget.saved()),
                (_, None) => kept.data = Some(line.budget.saved()),
                (_, Some(name)) => {
                    kept.upstreams.insert(name.clone(), line.budget.saved());
                }
            }
        }
        self.saved_at = self.clock.monotonic();
        self.saved_percent = self.lines.iter().map(|l| l.budget.percent()).collect();
        let (storage, to) = (self.storage.clone(), self.path.clone());
        let replaced = tokio::task::spawn_blocking(move || {
            serde_json::to_vec_pretty(&kept).map_err(std::io::Error::other).and_then(|bytes| storage.replace(&to, &bytes, false))
        });
        let saved = replaced.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        if let Err(error) = saved {
            tracing::warn!(path = %self.path.display(), %error, "what was used of the budgets could not be saved");
        }
    }
}

impl Line {
    fn new(kind: &'static str, upstream: Option<&str>, budget: Budget) -> Self {
        let label = Label { budget: kind, upstream: upstream.unwrap_or_default().to_owned() };
        // Known before anything is sent: a budget that is used up holds from the first record on.
        let level = budget.level();
        Self { kind, upstream: upstream.map(str::to_owned), budget, counted: None, level, label }
    }

    fn view(&self) -> BudgetView {
        BudgetView {
            kind: self.kind,
            upstream: self.upstream.clone(),
            used: self.budget.saved().used,
            limit: self.budget.limit(),
            period: self.budget.period(),
            level: self.level,
            since: self.budget.level_since(),
        }
    }
}
