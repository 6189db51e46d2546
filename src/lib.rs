//! The core of Selvedge: the contracts that components implement, the building blocks of the Dapr API, the outbox that keeps
//! every accepted message, the escape controller, and the node that puts them together.
//!
//! Direction of dependency: targets know components and core, components know the core, the core knows neither.
//! Decision logic is free of IO and clocks ([`topic`], [`outbox`]'s logs and cursors, link states); thin loops around it act.

#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(feature = "api")]
pub mod api;
#[cfg(feature = "api")]
pub mod app;
#[cfg(feature = "api")]
pub mod block;
pub mod certificate;
pub mod component;
pub mod escape;
pub mod expression;
pub mod forward;
pub mod hub;
pub mod message;
pub mod node;
pub mod outbox;
pub mod outlook;
pub mod resource;
pub mod seal;
pub mod supervise;
pub mod telemetry;
pub mod time;
#[cfg(feature = "tls")]
pub mod tls_time;
pub mod topic;
pub mod units;
