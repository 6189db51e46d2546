//! The way out: one forwarder per upstream reads what is stored for it and hands it to the upstream's connection.
//!
//! ```text
//! hub.consumer(destination) --runs--> topic, marks --> uplink.enqueue --> uplink.drive --> acknowledgements --> one cursor move
//! ```
//! The forwarder owns order, window, pace and the state of the link ([`crate::escape`]); the [`crate::component::Uplink`] owns the
//! connection and its protocol. Per message there is no future, no channel and no allocation.
//!
//! Promises: records of one lane leave in order, so each topic is in order on one connection (of a lane with `order: newest` within a
//! segment only); after a loss, sending starts again at the lowest record that is not acknowledged, or with the newest. A record is
//! repeated only when its acknowledgement was lost with the link.

mod feed;
mod mapping;
mod marks;
mod metrics;
mod pace;
mod repeats;
mod run;
mod settings;
mod status;
#[cfg(test)]
mod tests;
mod throttle;
mod window;

pub use metrics::ForwardMetrics;
pub use run::Forwarder;
pub use settings::{ForwarderConfig, ForwarderControl, ForwarderSettings, LinkOrders, NOTICE_WAIT, SetShare, StandIn};
pub use status::{ForwarderSnapshot, ForwarderStatus};
