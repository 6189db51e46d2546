//! `bindings.cron`: an input binding that calls the application by a schedule.
//!
//! Nothing is caught up: what was due while the box slept, was off, or had a wrong clock, is not called later.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod binding;
mod schedule;
mod ticker;

pub use binding::binding;
pub use schedule::{Schedule, ScheduleError};

use selvedge::component::Registry;

/// Registers `bindings.cron`.
pub fn register(registry: &mut Registry) {
    registry.add_binding(&["bindings.cron"], "v1", binding);
}
