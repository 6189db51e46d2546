//! Metrics and logs.

pub mod journal;
pub mod logs;
mod metrics;

pub use metrics::Metrics;
