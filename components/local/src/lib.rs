//! The built-in pub/sub `local`: what devices and applications on this box share.
//!
//! It is a thin face of the node's exchange. A publish is answered when the message is as safe as its lane declares. An
//! application's subscription is a durable destination: what comes while the application is away waits in the outbox.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod delivery;
mod dispatch;
mod publish;
mod subscription;

pub use publish::LocalPubSub;

use std::sync::Arc;
use std::time::Duration;

use selvedge::component::{ComponentContext, InitError, PropertyError, PubSub, Registry};
use selvedge::hub::Hub;
use selvedge::telemetry::Metrics;

/// Registers `pubsub.local`.
pub fn register(registry: &mut Registry) {
    registry.add_pubsub(&["pubsub.local"], "v1", pubsub);
}

/// How an application's subscriptions are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalOptions {
    /// Topics of one subscription that are handled at the same time; within a topic messages go one by one. 1 to 256.
    pub concurrency: usize,
    /// Pause before a message whose handler failed is tried again; doubles from try to try.
    pub retry_first: Duration,
    /// Longest such pause.
    pub retry_max: Duration,
    /// A subscription that nobody holds for this long is forgotten, with what waits for it. Zero = never.
    pub forget_after: Duration,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self {
            concurrency: 16,
            retry_first: Duration::from_millis(100),
            retry_max: Duration::from_secs(30),
            forget_after: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// The pub/sub without a Component resource: `name` is the name space of its topics, `app_id` owns the subscriptions.
///
/// Must be called inside the node's runtime. Subscriptions that the application held when the node stopped collect messages
/// from now on, before the application has come back.
#[must_use]
pub fn local(name: &str, app_id: &str, hub: Hub, metrics: &Metrics, options: LocalOptions) -> Arc<dyn PubSub> {
    Arc::new(LocalPubSub::new(name, app_id, hub, metrics, options))
}

/// Builds a `pubsub.local`. Settings: `concurrency` (16), `retryMaxInterval` (30s), `forgetAfter` (168h, 0 = never).
///
/// # Errors
/// When a setting has no meaning.
pub async fn pubsub(context: ComponentContext) -> Result<Arc<dyn PubSub>, InitError> {
    let default = LocalOptions::default();
    let properties = &context.properties;
    let concurrency = properties.integer("concurrency", 16)?;
    let concurrency = usize::try_from(concurrency)
        .ok()
        .filter(|n| (1..=256).contains(n))
        .ok_or_else(|| PropertyError::invalid("concurrency", concurrency.to_string(), "a number from 1 to 256"))?;
    let retry_max = properties.duration("retryMaxInterval", default.retry_max)?.max(default.retry_first);
    let options = LocalOptions { concurrency, retry_max, forget_after: properties.duration("forgetAfter", default.forget_after)?, ..default };
    let hub = context.hub.ok_or_else(|| InitError::Failed("the node has no store for local messages".to_owned()))?;
    Ok(local(&context.name, &context.app_id, hub, &context.metrics, options))
}
