//! Subscriptions and input bindings of the application: found at start, delivered over the application channel or a stream.

mod active;
mod bulk;
mod deliver;
mod routes;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;

use super::{Blocks, ServedApp, scope};
use crate::api::error::{ApiError, pubsub};
use crate::app::AppChannel;
use crate::component::{
    BindingHandler, BindingReading, Contained, Fut, HandlerError, InvokeRequest, MessageHandler, PubSub, ReadHandle, SubscribeRequest,
    SubscriptionHandle,
};
use crate::node::Loaded;
use crate::resource::SubscriptionSpec;

pub(crate) use active::{ActiveSubscriptions, Listed, SubscriptionKind};
pub(crate) use deliver::Outlet;
pub use routes::check_routes;

use bulk::Batching;
use deliver::Delivering;
use routes::Routes;

/// First and longest wait before something that failed at start is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Name of the delivery to the application as a part of the node.
const APPLICATION: &str = "application";
/// Output bindings that one answer of the application may name.
const MAX_TARGETS: usize = 32;

struct BindingToApp {
    blocks: Blocks,
    app: AppChannel,
    name: String,
    path: String,
}

impl BindingHandler for BindingToApp {
    fn handle<'a>(&'a self, reading: BindingReading) -> Fut<'a, Result<Option<Bytes>, HandlerError>> {
        Box::pin(async move {
            let answer = self.app.binding_event(&self.name, &self.path, reading).await.map_err(HandlerError::Retry)?;
            if answer.to.len() > MAX_TARGETS {
                tracing::warn!(binding = %self.name, "the application names {} output bindings; the first {MAX_TARGETS} are called", answer.to.len());
            }
            for target in answer.to.iter().take(MAX_TARGETS) {
                let request =
                    InvokeRequest { operation: "create".to_owned(), data: answer.data.clone().unwrap_or_default(), ..InvokeRequest::default() };
                // The event is handled; what follows from it failed alone.
                if let Err(error) = self.blocks.invoke_binding(target, request).await {
                    tracing::error!(binding = %self.name, target = %target, error = %error.message, "the application's answer did not reach an output binding");
                }
            }
            Ok(answer.data)
        })
    }
}

/// A stream's subscription. Dropping it ends it.
pub(crate) struct StreamSubscription {
    handle: Box<dyn SubscriptionHandle>,
    _listed: Listed,
}

impl StreamSubscription {
    /// Ends the delivery and waits for what is on its way.
    pub async fn close(self) {
        self.handle.close().await;
    }
}

/// What is done once, however often the delivery begins anew.
struct Once {
    attached: Option<tokio::sync::oneshot::Sender<()>>,
    /// The application was asked what it hosts.
    asked: bool,
}

fn lock(once: &Mutex<Once>) -> MutexGuard<'_, Once> {
    once.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Resolves when the value is there; never when it cannot change any more.
async fn becomes(well: &mut watch::Receiver<bool>, wanted: bool) {
    if well.wait_for(|w| *w == wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Blocks {
    /// Finds what the application wants and delivers it while it is `well`, until `stop` resolves. The caller has waited for the
    /// application's port. `attached` resolves when the subscriptions stand, or is dropped when they wait for the application to be well.
    pub async fn serve_app(&self, app: AppChannel, well: watch::Receiver<bool>, attached: tokio::sync::oneshot::Sender<()>, stop: Fut<'static, ()>) {
        // One application per node: nobody has set it before.
        let _ = self.inner.app.set(ServedApp { channel: app.clone(), well: well.clone() });
        // Readiness does not wait for the application's health (Dapr's rule).
        let once = Mutex::new(Once { attached: Some(attached).filter(|_| *well.borrow()), asked: self.inner.skip.config });
        let stop = stop.shared();
        self.inner.status.supervisor().keep(APPLICATION, stop.clone(), || self.deliver_to(&app, well.clone(), &once, stop.clone())).await;
    }

    /// One run of [`Blocks::serve_app`]; a subscription that ends by itself ends it with an error.
    async fn deliver_to(
        &self,
        app: &AppChannel,
        mut well: watch::Receiver<bool>,
        once: &Mutex<Once>,
        mut stop: impl Future<Output = ()> + Unpin,
    ) -> Result<(), String> {
        loop {
            tokio::select! {
                () = becomes(&mut well, true) => {}
                () = &mut stop => return Ok(()),
            }
            let mut subscriptions: Vec<Box<dyn SubscriptionHandle>> = Vec::new();
            let mut reads: Vec<Box<dyn ReadHandle>> = Vec::new();
            let delivering = async {
                if !std::mem::replace(&mut lock(once).asked, true) {
                    let actors = app.actor_types(&self.inner.app_id).await;
                    if !actors.is_empty() {
                        tracing::warn!(types = actors.join(", "), "the application hosts actors; they are not served yet");
                    }
                }
                self.attach(app, &mut subscriptions, &mut reads).await;
                if let Some(attached) = lock(once).attached.take() {
                    // Nobody may wait for it any more.
                    let _ = attached.send(());
                }
                let ends = subscriptions.iter().map(|s| s.ended()).chain(reads.iter().map(|r| r.ended()));
                let mut ends: FuturesUnordered<_> = ends.collect();
                if ends.next().await.is_none() {
                    std::future::pending::<()>().await;
                }
            };
            let ended = tokio::select! {
                () = delivering => Some(Err("a subscription or an input binding has ended by itself".to_owned())),
                () = becomes(&mut well, false) => None,
                () = &mut stop => Some(Ok(())),
            };
            for read in &reads {
                read.close().await;
            }
            for subscription in &subscriptions {
                subscription.close().await;
            }
            if let Some(ended) = ended {
                return ended;
            }
            tracing::warn!("App entered un-healthy status; its subscriptions and input bindings wait until it is well");
        }
    }

    async fn attach(&self, app: &AppChannel, subscriptions: &mut Vec<Box<dyn SubscriptionHandle>>, reads: &mut Vec<Box<dyn ReadHandle>>) {
        let wanted = self.wanted(app).await;
        self.inner.active.replace_app(&wanted);
        for (_, spec) in wanted {
            subscriptions.extend(self.subscribe(app, spec).await);
        }
        for (name, binding) in &self.inner.components.bindings {
            let Some(input) = &binding.item.input else { continue };
            if binding.properties.get("publishTo").is_some_and(|t| !t.is_empty()) {
                continue;
            }
            let path = binding.properties.get_exact("route").filter(|r| !r.is_empty()).unwrap_or(name).to_owned();
            let declared = binding.properties.get("direction").is_some_and(|d| d.to_ascii_lowercase().contains("input"));
            if !declared && !app.wants_binding(name, &path).await {
                tracing::info!("app has not subscribed to binding {name}.");
                continue;
            }
            let handler: Arc<dyn BindingHandler> = Arc::new(BindingToApp { blocks: self.clone(), app: app.clone(), name: name.clone(), path });
            match input.read(Arc::new(Contained::new(handler, APPLICATION, self.inner.status.supervisor()))).await {
                Ok(read) => reads.push(read),
                Err(error) => tracing::error!(binding = %name, error = %error, "an input binding could not be read"),
            }
        }
    }

    /// The application's list and the resources, each pair of pub/sub and topic once: programmatic beats declarative, the last
    /// programmatic one and the first declarative one count.
    async fn wanted(&self, app: &AppChannel) -> Vec<(SubscriptionKind, SubscriptionSpec)> {
        let ask = !self.inner.components.pubsub.is_empty() && !self.inner.skip.subscribe;
        if self.inner.skip.subscribe {
            tracing::info!("Skipping programmatic subscription loading");
        }
        let mut programmatic = if ask { self.ask_app(app).await } else { Vec::new() };
        programmatic.reverse();
        let programmatic = programmatic.into_iter().map(|s| (SubscriptionKind::Programmatic, s));
        let declarative = self.inner.subscriptions.iter().cloned().map(|s| (SubscriptionKind::Declarative, s));
        let mut seen = BTreeSet::new();
        programmatic.chain(declarative).filter(|(_, s)| seen.insert((s.pubsub.clone(), s.topic.clone()))).collect()
    }

    async fn ask_app(&self, app: &AppChannel) -> Vec<SubscriptionSpec> {
        let mut wait = RETRY.0;
        loop {
            match app.subscriptions(&self.inner.app_id).await {
                Ok(list) => return list,
                Err(error) => {
                    tracing::warn!(error = %error, "the application could not be asked for its subscriptions; trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                }
            }
        }
    }

    fn contained(&self, handler: Arc<dyn MessageHandler>) -> Arc<dyn MessageHandler> {
        Arc::new(Contained::new(handler, APPLICATION, self.inner.status.supervisor()))
    }

    fn may_subscribe(&self, loaded: &Loaded<dyn PubSub>, topic: &str) -> bool {
        scope::allows(&loaded.properties, "subscriptionScopes", &self.inner.app_id, topic)
    }

    async fn subscribe(&self, app: &AppChannel, spec: SubscriptionSpec) -> Option<Box<dyn SubscriptionHandle>> {
        let Some(loaded) = self.inner.components.pubsub.get(&spec.pubsub) else {
            tracing::warn!(pubsub = %spec.pubsub, topic = %spec.topic, "a subscription names a pub/sub that is not there");
            return None;
        };
        if !self.may_subscribe(loaded, &spec.topic) {
            tracing::warn!(pubsub = %spec.pubsub, topic = %spec.topic, "subscription to topic is not allowed for this application");
            return None;
        }
        let routes = match Routes::compile(&spec) {
            Ok(routes) => routes,
            Err(error) => {
                tracing::error!(pubsub = %spec.pubsub, topic = %spec.topic, error = %error, "a subscription whose rules cannot be parsed is left out");
                return None;
            }
        };
        let request = SubscribeRequest { topic: spec.topic.clone(), metadata: spec.metadata.clone() };
        let delivering = Delivering { blocks: self.clone(), outlet: Arc::new(app.clone()), spec: spec.clone(), routes };
        let handler: Arc<dyn MessageHandler> = if spec.bulk.enabled {
            Arc::new(Batching::start(delivering, app.clone(), spec.bulk, loaded.item.bulk_waits()))
        } else {
            Arc::new(delivering)
        };
        let mut wait = RETRY.0;
        loop {
            match loaded.item.subscribe(request.clone(), self.contained(handler.clone())).await {
                Ok(handle) => {
                    tracing::info!("app is subscribed to the following topics: [{}] through pubsub={}", spec.topic, spec.pubsub);
                    return Some(handle);
                }
                Err(error) => {
                    tracing::error!(topic = %spec.topic, error = %error, "a subscription failed; trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                }
            }
        }
    }

    /// Subscribes for a stream: no rules, no batches, everything goes to its outlet.
    ///
    /// # Errors
    /// No such pub/sub, not allowed, or the pub/sub refused.
    pub(crate) async fn subscribe_stream(&self, spec: SubscriptionSpec, outlet: Arc<dyn Outlet>) -> Result<StreamSubscription, ApiError> {
        let loaded = self.inner.components.pubsub.get(&spec.pubsub).ok_or_else(|| pubsub::not_found(&spec.pubsub))?;
        if !self.may_subscribe(loaded, &spec.topic) {
            return Err(pubsub::forbidden(&spec.pubsub, &spec.topic, &self.inner.app_id));
        }
        let routes = Routes::compile(&spec).map_err(|e| pubsub::metadata(&spec.pubsub, &self.inner.app_id, e))?;
        let request = SubscribeRequest { topic: spec.topic.clone(), metadata: spec.metadata.clone() };
        let handler = Arc::new(Delivering { blocks: self.clone(), outlet, spec: spec.clone(), routes });
        let handle = loaded.item.subscribe(request, self.contained(handler)).await.map_err(|e| {
            ApiError::plain(500, 13, "ERR_PUBSUB_SUBSCRIBE", format!("failed to subscribe to topic {} from pubsub {}: {e}", spec.topic, spec.pubsub))
        })?;
        tracing::info!("a stream is subscribed to topic {} through pubsub={}", spec.topic, spec.pubsub);
        Ok(StreamSubscription { handle, _listed: self.inner.active.add(SubscriptionKind::Streaming, spec) })
    }
}
