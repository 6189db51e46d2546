//! The controller as others know it: what they see, and what they may order.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use crate::component::LinkCause;
use crate::escape::Mode;
use crate::hub::Hub;
use crate::node::budgets::BudgetView;
use crate::outbox::Bound;
use crate::resource::EscapePolicySpec;
use crate::time::Timestamp;

/// Longest pin.
const LONGEST_PIN: Duration = Duration::from_secs(30 * 86_400);

/// The mode as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeView {
    /// Mode.
    pub mode: Mode,
    /// Wall-clock time at which it was entered.
    pub since: Timestamp,
    /// Why the first upstream that is not up is not.
    pub cause: Option<LinkCause>,
    /// An operator has closed the links.
    pub fenced: bool,
    /// Seconds for which an operator has pinned the mode still.
    pub pinned_seconds: Option<u64>,
}

/// What may change while the controller runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EscapeSettings {
    /// The policy: when modes change, least room on the disk, budgets.
    pub policy: EscapePolicySpec,
    /// How long a primary must stand before it gets its lanes back.
    pub failback_after: Duration,
}

/// What an operator may order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EscapeOrder {
    /// Close all links.
    Enter,
    /// Open them, and end a pin.
    Leave,
    /// Set the mode for a time.
    Pin(Mode, Duration),
    /// Other values from now on.
    Configure(Box<EscapeSettings>),
    /// The reports of the last outages, the newest first; the first one goes on if there is one.
    Reports,
}

pub(super) type Order = (EscapeOrder, oneshot::Sender<Value>);

/// A cheap handle to the controller.
#[derive(Debug, Clone)]
pub struct EscapeHandle {
    pub(super) view: watch::Receiver<ModeView>,
    pub(super) budgets: watch::Receiver<Vec<BudgetView>>,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) hub: Hub,
}

impl EscapeHandle {
    /// The mode now.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.view.borrow().mode
    }

    /// The mode, to be told of its changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<ModeView> {
        self.view.clone()
    }

    /// The mode with its circumstances, as JSON: `mode`, `since`, `cause`, `fenced`, `pinnedSeconds`, and what it and the disk change in the
    /// store now: `batchesLonger`, `heldLanes` (they grow no more), `shutLanes` (they take nothing).
    #[must_use]
    pub fn to_json(&self) -> Value {
        let view = self.view.borrow().clone();
        let lanes = self.hub.outbox().status();
        let bounded = |wanted: &[Bound]| lanes.iter().filter(|l| wanted.contains(&l.bound)).map(|l| l.lane.as_str()).collect::<Vec<_>>();
        json!({
            "mode": view.mode, "since": view.since.to_rfc3339(), "cause": view.cause.map(LinkCause::as_str), "fenced": view.fenced,
            "pinnedSeconds": view.pinned_seconds, "batchesLonger": self.hub.outbox().spares_flash(),
            "heldLanes": bounded(&[Bound::Held, Bound::Short]), "shutLanes": bounded(&[Bound::Shut]),
        })
    }

    /// The budgets of the policy, and what is used of them.
    #[must_use]
    pub fn budgets(&self) -> Vec<BudgetView> {
        self.budgets.borrow().clone()
    }

    /// Gives an order; the answer is the state after it, or the reports.
    ///
    /// # Errors
    /// A pin that is too long, or a node that is about to end.
    pub async fn order(&self, order: EscapeOrder) -> Result<Value, String> {
        if let EscapeOrder::Pin(_, lasting) = &order
            && *lasting > LONGEST_PIN
        {
            return Err("a mode can be pinned for at most 30 days".to_owned());
        }
        let asks = order == EscapeOrder::Reports;
        let (answer, answered) = oneshot::channel();
        let gone = || "the node is not running (yet, or any more)".to_owned();
        self.orders.try_send((order, answer)).map_err(|_| gone())?;
        let said = answered.await.map_err(|_| gone())?;
        Ok(if asks { said } else { self.to_json() })
    }
}
