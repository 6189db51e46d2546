//! What the node does when an upstream fails: link states, reconnect back-off, the mode of the box. Pure decisions; loops elsewhere
//! act on them.

mod backoff;
mod budget;
mod handover;
mod link;
mod mode;
mod outage;
#[cfg(test)]
mod tests;

pub use backoff::{Backoff, BackoffConfig, SplitMix};
pub use budget::{BothClocks, Budget, BudgetLevel, Period, SavedBudget};
pub use handover::{Handover, HandoverOrders, HandoverSight};
pub use link::{LinkAction, LinkActions, LinkConfig, LinkEvent, LinkMachine, LinkState, fences};
pub use mode::{LinkSight, Mode, ModeAction, ModeActions, ModeConfig, ModeEvent, ModeMachine, ModeSet, SavedMode, Situation};
pub use outage::Outage;
