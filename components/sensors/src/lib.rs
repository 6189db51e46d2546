//! The box's own sensors as an input binding, `bindings.sensors`: temperatures, fans, voltages, power, load, processor,
//! memory, disks and network, as far as the machine has them.
//!
//! | setting | meaning | default |
//! | --- | --- | --- |
//! | `interval` | time between samples, at least 100 ms | `10s` |
//! | `include` | groups to sample, separated by commas | all |
//! | `exclude` | groups to leave out | none |
//! | `format` | `json` (`{"value":45.1,"unit":"celsius","time":"..."}`) or `text` (the bare number) | `json` |
//! | `rootPath` | where `/proc` and `/sys` of the host are found | `/` |
//!
//! Every sensor is one reading per sample, with its name in the metadata `topic`: `temperature/cpu-thermal`, `load/1m`,
//! `memory/available`, `network/eth0/received`. The first sample is taken at once.
//!
//! Files under `/sys` may block for as long as a bus takes, so one thread of the binding's own reads them; a sample that
//! is still under way when the next is due takes its place. A sensor that fails is left out, counted, and logged when it
//! begins to fail.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod binding;
mod host;
mod metrics;
mod reading;
mod schedule;
mod settings;

use std::sync::Arc;

use selvedge::component::{Binding, ComponentContext, InitError, Registry};

/// Builds a `bindings.sensors`.
///
/// # Errors
/// When a setting has no meaning.
pub async fn binding(context: ComponentContext) -> Result<Binding, InitError> {
    let settings = settings::Settings::from_properties(&context.properties)?;
    let metrics = metrics::SensorMetrics::new(&context.metrics, &context.name);
    let input = binding::Sensors::new(context.name, settings, context.clock, metrics);
    Ok(Binding { input: Some(Arc::new(input)), output: None })
}

/// Registers the binding.
pub fn register(registry: &mut Registry) {
    registry.add_binding(&["bindings.sensors"], "v1", binding);
}
