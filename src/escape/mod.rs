//! What the node does when an upstream fails: link states, reconnect back-off. Pure decisions; loops elsewhere act on them.

mod backoff;
mod link;
#[cfg(test)]
mod tests;

pub use backoff::{Backoff, BackoffConfig, SplitMix};
pub use link::{LinkAction, LinkActions, LinkConfig, LinkEvent, LinkMachine, LinkState};
