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
use crate::time::{Clock, Monotonic};

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
}

impl BudgetView {
    /// As JSON: `kind`, `upstream`, `usedBytes`, `limitBytes`, `per`, `level`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "kind": self.kind, "upstream": self.upstream, "usedBytes": self.used, "limitBytes": self.limit, "per": self.period.as_str(),
            "level": self.level.as_str(),
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
    /// What had been counted when it was looked at last.
    counted: u64,
    level: BudgetLevel,
    used: Gauge,
}

/// A budget whose level has changed.
pub(super) struct Change {
    pub view: BudgetView,
    pub worse: bool,
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
        let (used, limit) = (Family::<Label, Gauge>::default(), Family::<Label, Gauge>::default());
        let now = BothClocks { queue: outbox.now(), wall: clock.now() };
        let line = |kind, upstream: Option<&str>, bytes: Option<u64>, period, saved| {
            let budget = Budget::new(bytes?, period, saved, now);
            let label = Label { budget: kind, upstream: upstream.unwrap_or_default().to_owned() };
            limit.get_or_create(&label).set(i64::try_from(budget.limit()).unwrap_or(i64::MAX));
            let used = used.get_or_create(&label).clone();
            // Known before anything is sent: a budget that is used up holds from the first record on.
            let level = budget.level();
            Some(Line { kind, upstream: upstream.map(str::to_owned), budget, counted: 0, level, used })
        };
        let mut lines = Vec::new();
        lines.extend(line("flash", None, policy.and_then(|p| p.flash_per_day), Period::Day, kept.flash));
        lines.extend(line("data", None, policy.and_then(|p| p.data_per_month), Period::Month, kept.data));
        for upstream in policy.map(|p| p.upstreams.as_slice()).unwrap_or_default() {
            let saved = kept.upstreams.get(&upstream.component).copied();
            lines.extend(line("data", Some(&upstream.component), upstream.data_per_month, Period::Month, saved));
        }
        if !lines.is_empty() {
            metrics.register(|r| {
                r.register("selvedge_budget_used_bytes", "Bytes used of a budget in its period", used);
                r.register("selvedge_budget_limit_bytes", "Bytes of a budget", limit);
            });
        }
        let saved_percent = lines.iter().map(|l| l.budget.percent()).collect();
        let (view, seen) = watch::channel(Vec::new());
        let saved_at = clock.monotonic();
        (Self { lines, path, storage, clock, outbox, saved_at, saved_percent, view }, seen)
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
            let level = line.budget.spend(now, counted.saturating_sub(line.counted));
            line.counted = counted;
            line.used.set(i64::try_from(line.budget.saved().used).unwrap_or(i64::MAX));
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

    /// Whether only strict lanes may be sent to this upstream.
    pub(super) fn strict_only(&self, upstream: &str) -> bool {
        self.lines.iter().any(|l| l.kind == "data" && l.level >= BudgetLevel::Scarce && l.upstream.as_deref().is_none_or(|name| name == upstream))
    }

    /// Keeps what was used. The event loop goes on meanwhile, however slow the disk is.
    pub(super) async fn save(&mut self) {
        if self.lines.is_empty() {
            return;
        }
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
    fn view(&self) -> BudgetView {
        BudgetView {
            kind: self.kind,
            upstream: self.upstream.clone(),
            used: self.budget.saved().used,
            limit: self.budget.limit(),
            period: self.budget.period(),
            level: self.level,
        }
    }
}
